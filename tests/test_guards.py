"""The guards that `make torture GOALS=guards` removes: comments, table, and the removal."""

import ast
import re
import shlex
from collections import Counter

import pytest

from tests.helpers.sources import MODULES
from tests.torture import guards
from tests.torture.goals import GOALS

SOURCES = [path.read_text() for path in MODULES]
WHERE = {name: source for source in SOURCES for name in guards.named(source)}


def test_each_comment_has_an_entry_in_the_table_and_each_entry_one_comment():
    comments = Counter(name for source in SOURCES for name in guards.named(source))
    assert comments == Counter(list(guards.GUARDS))


@pytest.mark.parametrize("name", guards.GUARDS)
def test_without_a_guard_the_module_is_other_code_that_still_parses(name):
    source, replacement = WHERE[name], guards.GUARDS[name].replacement
    changed = ast.parse(guards.remove(source, name, replacement))
    assert ast.dump(changed) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("name", guards.GUARDS)
def test_the_checks_of_a_guard_are_tests_or_goals_that_exist(name):
    for check in guards.GUARDS[name].checks:
        *files, selection = shlex.split(check.replace(" -k ", " ")) if " -k " in check else [check]
        if not files:
            assert check.split()[0] in GOALS
            continue
        texts = [(guards.ROOT / "tests" / file).read_text("utf-8") for file in files]
        tests = re.findall(r"^def (test_\w+)", "\n".join(texts), re.M)
        for word in set(re.findall(r"\w+", selection)) - {"and", "or", "not"}:
            assert any(word in test for test in tests), f"{files}: no test is named {word}"


@pytest.mark.parametrize(
    ("source", "replacement", "expected"),
    [
        ("if a == b(\n    1\n):\n    c()\nd()", None, "if False:\n    c()\nd()"),
        ("with a as b:\n    c()\nd()", None, "if True:\n    c()\nd()"),
        ("a(\n    1\n)\nb()", None, "pass\nb()"),
        ("if a:\n    b()\nelse:\n    c()", "if d:", "if d:\n    b()\nelse:\n    c()"),
        ("a = b", "a = 0", "a = 0"),
    ],
)
def test_a_guard_is_replaced_by_the_rule_or_by_what_the_table_says(source, replacement, expected):
    changed = guards.remove(f"# guard: x\n{source}", "x", replacement)
    assert changed == f"# guard: x\n{expected}\n"
