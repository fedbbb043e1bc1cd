"""The table of faults in docs/faults.md, the marks of the tests, and the outcomes of a run."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "faults.md"
_NAME = re.compile(r"^\| ([a-z0-9]+(?:-[a-z0-9]+)*) \|", re.MULTILINE)


def names() -> list[str]:
    """Returns the names of the faults, in the order of the table."""
    return _NAME.findall(TABLE.read_text())[1:]  # without the header


def marked(path) -> set[str]:
    """Returns the faults of each `pytest.mark.fault` of a test file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            found |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    return found


def summary(stats) -> str:
    """Returns a line on the faults whose tests ran; "" if none was marked.

    Args:
        stats: Reports of tests by outcome, as the terminal reporter of pytest has them.
    """
    outcomes: dict[str, set[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in stats.get(outcome, ()):
            for key, fault in getattr(report, "user_properties", ()):
                if key == "fault":
                    outcomes.setdefault(fault, set()).add(outcome)
    if not outcomes:
        return ""
    failed = sorted(fault for fault in outcomes if outcomes[fault] & {"failed", "error"})
    skipped = sorted(fault for fault in outcomes if outcomes[fault] == {"skipped"})
    parts = [f"tests of {len(outcomes) - len(skipped)} of {len(names())} faults ran"]
    for what, some in (("skipped", skipped), ("failed", failed)):
        if some:
            parts.append(f"{len(some)} {what}: {', '.join(some)}")
    if not failed and len(outcomes) > len(skipped):
        parts.append("all passed")
    return f"fault table: {', '.join(parts)}"
