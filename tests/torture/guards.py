"""Guards of the package: each is removed, and a test must then fail. And the fault table.

A guard is a statement that protects something, such as the comparison of a checksum. In the source
of the package a comment `# guard: NAME` stands above it. To remove a guard is to replace

- the condition of an `if` by False,
- a `with` by its body,
- any other statement by `pass`,

unless `GUARDS` says what stands in its place: the header of an `if`, or a statement.
"""

import ast
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.torture.children import ROOT


@dataclasses.dataclass(frozen=True)
class Guard:
    """How it is seen that a guard is missing.

    Attributes:
        checks: What must fail without the guard: each the arguments of pytest, or a goal of
            `python -m tests.torture` with its sizes.
        replacement: What stands in its place; None for the rule above.
    """

    checks: tuple[str, ...]
    replacement: str | None = None


def guard(*checks, replacement=None):
    return Guard(checks, replacement)


GUARDS = {
    # Artifacts
    "checksum": guard("mutants names=npy,items forged=0"),
    "manifest-digest": guard(
        "test_artifacts.py -k flipped_bit",
        replacement='if not body.pop("manifest_sha256"):',
    ),
    "manifest-size": guard("test_artifacts.py -k huge_manifest"),
    "unlisted-files": guard("test_artifacts.py -k does_not_name"),
    "paths-inside": guard("test_artifacts.py -k outside_its_folder"),
    "folder-beside": guard(
        "kills kinds=index times=40",
        replacement=(
            "shutil.rmtree(path, ignore_errors=True); path.mkdir(); fill(path); "
            "shutil.copytree(path, temporary, dirs_exist_ok=True)"
        ),
    ),
    "swap": guard(
        "test_artifacts.py -k untorn",
        replacement="shutil.rmtree(path, ignore_errors=True); shutil.copytree(temporary, path)",
    ),
    "file-beside": guard(
        "failing-calls kinds=file",
        replacement="path.write_bytes(content); temporary.write_bytes(content)",
    ),
    "temporary-removed": guard("failing-calls kinds=index"),
    "sync": guard('test_artifacts.py -k "unchanged or call_fails"'),
    "temporary-lock": guard("test_artifacts.py -k another_save_is_writing"),
    "lock": guard("test_artifacts.py -k second_holder"),
    "gallery-lock": guard("concurrency"),
    "known-version": guard("concurrency"),
    "read-again": guard("test_artifacts.py -k read_again"),
    "fingerprint": guard("test_neighbors.py -k of_one_embedder_is_refused"),
    "full-disk": guard(
        "failing-calls kinds=index",
        replacement="np.save(file, array, allow_pickle=False)",
    ),
    # Files that somebody else made
    "trust": guard(
        "test_export.py -k foreign_saved_model_is_refused",
        replacement="if not (folder / _artifacts.MANIFEST).exists():",
    ),
    "archive-size": guard("test_artifacts.py -k decompression_bomb"),
    "graph-links": guard("test_neighbors.py -k does_not_fit_its_vectors"),
    "declared-weights": guard("bombs"),
    "pixels": guard("bombs"),
    "safe-mode": guard(
        "unsafe-loaders",
        replacement="model = keras.saving.deserialize_keras_object(config, safe_mode=False)",
    ),
    # Arguments
    "width": guard(
        "test_projection.py -k another_width",
        replacement="if x.ndim != 2 or x.shape[1] == 0 or len(x) < rows:",
    ),
    "zero-vectors": guard("test_neighbors.py -k zero_vectors_are_refused"),
    "cut-bypass": guard("test_explaining.py -k skip_connection_around"),
    "cut-check": guard("test_explaining.py -k does_more_than_its_layers"),
    "nan-in-export": guard("test_export.py -k returns_nan"),
    "shared-layers": guard("test_models_siamese.py -k share_layers"),
    "nan-in-vectors": guard("test_neighbors.py -k not_finite"),
    "nan-in-images": guard("test_data_arrays.py -k not_finite"),
    # Training and search
    "nan-in-loss": guard("test_training.py -k turns_nan"),
    "nan-in-weights": guard('nan "names=last step"'),
    "proof-in-float64": guard(
        "test_neighbors.py -k closer_together",
        replacement="proven = last < np.inf",
    ),
    "seeds-in-state": guard(
        "restarts",
        replacement=(
            'return _named("model", self.network.weights) '
            '| _named("optimizer", optimizer.variables)'
        ),
    ),
    "epoch-order": guard(
        "test_training.py -k the_order_differs",
        replacement="self.batches.epoch = 0",
    ),
    "run-settings": guard("test_training.py test_resume.py -k other_settings"),
}
_COMMENT = re.compile(r"^ *# guard: (.*)$", re.M)


def named(source):
    """Returns the names of the guards in the text of a module, in order."""
    return _COMMENT.findall(source)


def remove(source, name, replacement=None):
    """Returns the text of a module without that guard."""
    lines = source.splitlines()
    (comment,) = [n for n, line in enumerate(lines) if line.strip() == f"# guard: {name}"]
    (statement, *_) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno == comment + 2
    ]
    header = isinstance(statement, (ast.If, ast.With))
    stop = statement.body[0].lineno - 1 if header else statement.end_lineno
    rule = {ast.If: "if False:", ast.With: "if True:"}.get(type(statement), "pass")
    indent = " " * statement.col_offset
    lines[comment + 1 : stop] = [indent + (replacement or rule)]
    return "\n".join(lines) + "\n"


def guards(names=tuple(GUARDS)):
    """Removes one guard after the other, and looks whether its checks fail."""
    modules = {
        name: path
        for path in sorted((ROOT / "kerasim").rglob("*.py"))
        for name in named(path.read_text())
    }
    wrong = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for part in ("kerasim", "tests", "notebooks", "docs", "pyproject.toml", "README.md"):
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, Path(folder, part))
            module = Path(folder, modules[name].relative_to(ROOT))
            module.write_text(remove(module.read_text(), name, GUARDS[name].replacement))
            for check in GUARDS[name].checks:
                if not _fails(check, folder):
                    wrong.append(f"nothing fails without {name}: {check}")
    unnoticed = {text.split(":")[0] for text in wrong}
    return f"{len(names) - len(unnoticed)} of {len(names)} noticed", wrong


def _fails(check, folder):
    """Says whether a check fails in a copy of the repository."""
    args = shlex.split(check)
    if args[0].startswith("test_"):
        args = [f"tests/{arg}" if arg.startswith("test_") else arg for arg in args]
        command = ["pytest", "-x", "-q", "-p", "no:cacheprovider", *args]
    else:
        command = ["tests.torture", "--short", *args]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Otherwise nothing could be tried, or the replacement does not fit the code around it.
    if done.returncode not in (0, 1) or "NameError" in done.stdout:
        raise AssertionError(f"{check}: {done.stdout[-2000:]}")
    return done.returncode == 1


def fault_table():
    """Runs the tests of the fault table, and takes the line that they print."""
    command = [sys.executable, "-m", "pytest", "tests", "-m", "fault", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = re.findall(r"^fault table: .*", done.stdout, re.M)
    wrong = [] if done.returncode == 0 and said else [done.stdout[-1500:]]
    return "; ".join(said) or "no line was printed", wrong
