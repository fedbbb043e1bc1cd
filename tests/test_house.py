"""Rules for the package and the tests as a whole, checked in their sources."""

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

import kerasim
from tests.helpers.sources import MODULES, NOTEBOOKS, PACKAGE, imported, name_of, parse, unsafe

# A module imports only those before it.
ORDER = """
    errors _quiet _checks _distances _artifacts images _folders _keras_compat _devices _tensors
    layers losses _keras_files _grids _cutting _model_identity _image_checks _content duplicates
    schedules data embedding neighbors curation metrics diffusion _tiling denoising models _fitting
    _resume training projection plots explorer _serving export distribute _sources
    _thumbnails _items _adding _report gallery cli __main__
""".split()

# Within a folder likewise; the families of models know their shared blocks alone.
INSIDE = {
    "data": ["_noise", "_augmentation", "_batches", "_candidates", "_sets"],
    "models": ["_blocks"],
}


@pytest.mark.fault("pickle")
@pytest.mark.parametrize("path", [*MODULES, *NOTEBOOKS], ids=lambda path: path.name)
def test_nothing_can_run_code_from_a_file(path):
    assert list(unsafe(parse(path))) == []


@pytest.mark.fault("pickle")
@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import dill as d",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "eval('1')",
        "exec(code)",
        "keras.saving.load_model(x, safe_mode=False)",
        "keras.layers.Lambda(f)",
        "from keras.layers import Lambda",
        "pd.read_pickle(x)",
    ],
)
def test_the_search_for_unsafe_code_finds(line):
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize("line", ["np.load(x, allow_pickle=False)", "model.evaluate(x)"])
def test_the_search_for_unsafe_code_lets_through(line):
    assert not list(unsafe(ast.parse(line)))


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_or_helper_imports_a_test(path):
    parts = {part for name, _ in imported(parse(path)) for part in name.split(".")}
    assert [part for part in parts if part.startswith("test_")] == []


def generators(tree):
    """Returns the names of a module that are random generators."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if ast.unparse(node.value.func).endswith(("default_rng", "RandomState", "random.Random"))
    }


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_function_draws_from_a_generator_that_tests_share(path):
    tree = parse(path)
    shared = generators(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
    names = {each.id for node in functions for each in ast.walk(node) if isinstance(each, ast.Name)}
    assert names & shared == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_modules_before_it(path):
    module = name_of(path)
    top, _, family = module.partition(".")
    if not module:
        assert not [name for name, _ in imported(parse(path)) if name.startswith("kerasim")]
        return
    assert top in ORDER, f"{module} has no place in the order of modules"
    wrong = []
    for name, node in imported(parse(path)):
        parts = name.split(".")
        if parts[0] != "kerasim" or name == "kerasim.__version__":
            continue
        if name == "kerasim" and top == "cli":  # each command loads what it needs
            continue
        if parts[1] == top:
            shared = INSIDE[top]
            before = shared[: shared.index(family)] if family in shared else shared
            allowed = path.name == "__init__.py" or parts[2] in before
        else:
            allowed = len(parts) > 1 and ORDER.index(parts[1]) < ORDER.index(top)
        if not allowed:
            wrong.append(f"line {node.lineno}: {name}")
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_exports_and_devices_import_tensorflow_and_only_inside_functions(path):
    tree = parse(path)
    found = [node for name, node in imported(tree) if name.split(".")[0] == "tensorflow"]
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    assert not found or name_of(path) in ("export", "distribute", "_devices")
    assert set(found) <= inside


def loaded_after(statement):
    """Returns which heavy libraries a fresh process has loaded after `statement`."""
    heavy = "keras tensorflow jax torch numpy pandas matplotlib sklearn umap faiss PIL".split()
    code = f"import sys; {statement}; print(*(set({heavy}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.split())


def test_importing_kerasim_loads_no_library():
    assert loaded_after("import kerasim; kerasim.__version__; dir(kerasim)") == set()


def test_artifacts_loads_numpy_alone():
    assert loaded_after("import kerasim._artifacts") == {"numpy"}


def test_modules_are_attributes_of_the_package_and_others_are_not():
    assert kerasim.errors.KerasimError
    assert dir(kerasim) == sorted(kerasim.__all__)
    with pytest.raises(AttributeError, match="module 'kerasim' has no attribute 'dta'"):
        _ = kerasim.dta


@pytest.mark.parametrize("module", kerasim._MODULES)
def test_all_names_in_all_exist_and_those_of_a_package_are_all_that_dir_shows(module):
    found = importlib.import_module(f"kerasim.{module}")
    assert len(set(found.__all__)) == len(found.__all__)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []
    if hasattr(found, "__path__"):
        assert dir(found) == sorted(found.__all__)


def test_every_module_without_an_underscore_is_public():
    found = {name_of(path) for path in MODULES} - {"", "__main__"}
    assert {name for name in found if "_" not in (name[0], name.partition(".")[2][:1])} == {
        *kerasim._MODULES
    }


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_and_all_that_is_public_in_it_have_a_docstring(path):
    tree = parse(path)
    public = [
        node
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    assert ast.get_docstring(tree)
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def exported(module):
    """Returns the names in the `__all__` of a module."""
    return importlib.import_module(f"kerasim.{module}").__all__


def public():
    """Yields (name, syntax) of each function and class that users can name."""
    definitions = {}  # of all modules, by (module, name)
    for path in MODULES:
        for node in parse(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                definitions[f"kerasim.{name_of(path)}", node.name] = node
    for module in kerasim._MODULES:
        for name in exported(module) if module != "cli" else ():  # cli has commands
            value = getattr(importlib.import_module(f"kerasim.{module}"), name)
            home = getattr(value, "__module__", "")
            # What another public module defines is documented there.
            if home == f"kerasim.{module}" or "._" in home or home == "kerasim.images":
                yield f"{module}.{name}", definitions[home, name]


def methods(node):
    """Returns the methods and properties of a class, by name, without private ones."""
    inner = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    inner = inner if isinstance(node, ast.ClassDef) else []
    inner = [each for each in inner if not is_setter(each)]  # the property is documented
    return {each.name: each for each in inner if not re.match("_[^_]", each.name)}


def is_setter(function):
    return any(getattr(each, "attr", "") == "setter" for each in function.decorator_list)


PUBLIC = dict(public())
# With the docstring that tells of the arguments; what Keras calls has it there.
CALLABLE = {
    name: (node, ast.get_docstring(node))
    for name, node in PUBLIC.items()
    if isinstance(node, ast.FunctionDef)
} | {
    f"{name}.{method}": (inner, docstring)
    for name, node in PUBLIC.items()
    for method, inner in methods(node).items()
    if (docstring := ast.get_docstring(node if method == "__init__" else inner))
}


@pytest.mark.parametrize("name", CALLABLE)
def test_a_docstring_names_each_argument(name):
    node, docstring = CALLABLE[name]
    section = re.search(r"^Args:\n((    .*\n?|\n)+)", docstring, re.M)
    listed = re.findall(r"^    (\S[^:]*):", section[1] if section else "", re.M)
    named = {each.strip("* ") for entry in listed for each in entry.split(",")}
    taken = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
    taken -= {"self", "cls"}
    if node.args.kwarg and node.args.kwarg.arg not in named:  # what is handed on stands for it
        taken = taken - {node.args.kwarg.arg} | named
    assert named <= taken
    in_the_text = {each for each in taken if f"`{each}`" in docstring}
    assert taken <= named | in_the_text or "Made by `" in docstring


@pytest.mark.parametrize("name", CALLABLE)
def test_a_docstring_names_each_error_that_is_raised(name):
    node, docstring = CALLABLE[name]
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    called = {ast.unparse(function) for function in calls}
    raised = {each for each in called if hasattr(kerasim.errors, each)}
    assert {each for each in raised if each not in docstring} == set()
    if any(re.match(r"_checks\.|(\w+\.)?check_", each) for each in called):
        assert "Error" in docstring


@pytest.mark.fault("old-libraries")
@pytest.mark.parametrize("name", ["keras", "numpy", "pillow"])
def test_an_old_library_is_warned_of_with_the_version_that_is_safe(name, monkeypatch):
    real = importlib.metadata.version
    old = {"keras": "3.9.2", "numpy": "1.25.9", "pillow": "9.5.0"}[name]
    monkeypatch.setattr(
        importlib.metadata, "version", lambda asked: old if asked == name else real(asked)
    )
    wanted = f"{name} {old} is installed, .* pip install --upgrade '{name}>="
    with pytest.warns(UserWarning, match=wanted) as caught:
        kerasim._warn_of_old()
    assert len(caught) == 1


@pytest.mark.fault("old-libraries")
def test_what_is_new_enough_or_absent_is_not_warned_of(monkeypatch):
    def version(name):
        if name == "pillow":
            raise importlib.metadata.PackageNotFoundError
        return {"keras": "3.15.0rc1", "numpy": "10.0"}[name]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kerasim._warn_of_old()
        monkeypatch.setattr(importlib.metadata, "version", version)
        kerasim._warn_of_old()
    assert caught == []


def pins(lines, between):
    """Returns (name, version) of each line such as keras>=3.15,<4."""
    found = (re.match(rf"([\w.-]+)(?:\[.*\])?{between}(\d+(?:\.\d+)*)", line) for line in lines)
    return {match[1]: tuple(map(int, match[2].split("."))) for match in found if match}


@pytest.mark.fault("old-libraries")
def test_the_lock_and_what_is_warned_of_keep_to_the_oldest_versions_that_are_declared():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = pins(project["dependencies"], ">=")
    locked = pins((PACKAGE.parent / "requirements.lock").read_text().splitlines(), "==")
    assert {*declared} <= {*locked}
    assert [name for name in declared if locked[name] < declared[name]] == []
    oldest = {name: tuple(map(int, v.split("."))) for name, v in kerasim._OLDEST.items()}
    assert oldest == {name: declared[name] for name in oldest}


WITHOUT_JAX = """
import sys
from importlib.machinery import PathFinder

class WithoutJax:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name == "jax" else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutJax
"""


def last_error_without_jax(statement):
    """Returns how a process ends that runs `statement` on JAX, which is not installed."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX + statement],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    return done.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize(
    "statement",
    [
        "from kerasim import data",
        "import kerasim; kerasim.models",
        "from kerasim.gallery import Gallery",
        "from kerasim.losses import SupConLoss",
        "from kerasim import cli; sys.argv = ['kerasim', 'fetch', 'mnist']; cli.main()",
    ],
)
def test_without_a_backend_the_error_names_the_extras_and_the_variable(statement):
    error = last_error_without_jax(statement)
    for needed in (
        "'jax', which is not installed",
        "'.[tf]'",
        "'.[jax]'",
        "'.[torch]'",
        "KERAS_BACKEND",
    ):
        assert needed in error


def test_without_a_backend_kerasim_itself_is_imported():
    assert last_error_without_jax("import kerasim; kerasim.errors; kerasim.__version__") == ""


@pytest.mark.parametrize(
    ("content", "backend"),
    [('{"backend": "jax"}', "jax"), ("{}", "tensorflow"), ("[]", "tensorflow"), ("", "tensorflow")],
)
def test_the_backend_is_that_of_the_settings_of_keras(content, backend, tmp_path, monkeypatch):
    (tmp_path / "keras.json").write_text(content)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert kerasim._backend() == backend


def test_the_makefile_names_tests_that_exist():
    """pytest would collect nothing at all if one of them did not."""
    root = PACKAGE.parent
    named = re.findall(r"(tests/\w+\.py)::(\w+)", (root / "Makefile").read_text("utf-8"))
    assert len(named) >= 4
    for file, test in named:
        assert f"def {test}(" in (root / file).read_text("utf-8"), f"{file}::{test}"
