import ast

import pytest

from kerasim import errors
from tests.helpers.sources import MODULES, name_of, parse


@pytest.mark.parametrize(
    "kind, builtin",
    [
        (errors.ArgumentError, ValueError),
        (errors.ArgumentTypeError, TypeError),
        (errors.ArtifactError, OSError),
        (errors.ImageError, OSError),
        (errors.DependencyError, OSError),
        (errors.TrainingError, ValueError),
        (errors.ClusterError, OSError),
    ],
)
def test_each_error_is_a_kerasim_error_and_one_of_python(kind, builtin):
    assert issubclass(kind, errors.KerasimError) and issubclass(kind, builtin)


# Raised and caught within one module, or by the reader of a file, for the module that reads it; and
# errors that Python expects of a hook.
INSIDE = {
    *(("_artifacts", "OSError"), ("_artifacts", "ValueError")),
    *(("export", "OSError"), ("gallery", "ValueError"), ("_items", "ValueError")),
    *(("training", "ValueError"), ("_resume", "CannotSaveError")),
    ("_thumbnails", "ValueError"),
}
PYTHON = {
    *(("", "AttributeError"), ("", "ModuleNotFoundError")),
    *(("neighbors", "AttributeError"), ("cli", "Exit")),
}


def words(node, said):
    """Returns the text of an expression: names as `said` has them, other values as {}."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, (ast.FormattedValue, ast.Name)):
        named = said.get(ast.unparse(getattr(node, "value", node)))
        return "{}" if named is None else words(named, said)
    return "".join(words(part, said) for part in ast.iter_child_nodes(node))


def raised():
    """Yields (module, line, name of the kind, text) of each error that is raised in words."""
    for path in MODULES:
        tree, said = parse(path), {}
        for function in ast.walk(tree):  # of functions in one another the inner one comes last
            if isinstance(function, ast.FunctionDef):
                texts = {
                    ast.unparse(node.targets[0]): node.value
                    for node in ast.walk(function)
                    if isinstance(node, ast.Assign)
                    and isinstance(node.value, (ast.Constant, ast.JoinedStr))
                }
                said |= {id(node): texts for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func).split(".")[-1]
                text = words(node.exc.args[0], said[id(node)]) if node.exc.args else ""
                yield name_of(path), node.lineno, name, text


RAISED = [found for found in raised() if (found[0], found[2]) not in INSIDE | PYTHON]


@pytest.mark.fault("error-messages")
def test_every_error_that_is_raised_is_a_kerasim_error():
    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    # These return one of ours.
    makers = {"_write_error", "_read_error", "_damaged_array", "_cause", "_refusal", "error_class"}
    assert len(RAISED) > 150
    assert [found for found in RAISED if found[2] not in ours | makers] == []


@pytest.mark.fault("error-messages")
def test_no_text_shows_how_to_switch_safety_off_and_no_module_asserts():
    for path in MODULES:
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(parse(path)))
    assert [f for f in RAISED if "safe_mode" in f[3] or "unsafe" in f[3]] == []
