"""The examples in the docstrings of the public names run, and give what they show."""

import doctest
import importlib
import inspect
import io

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

import kerasim


def examples():
    """Yields (name, docstring, public names of the module) of each docstring with an example."""
    for module in kerasim._MODULES:
        found = importlib.import_module(f"kerasim.{module}")
        names = {name: getattr(found, name) for name in found.__all__}
        for name, value in names.items():
            inner = vars(value).items() if inspect.isclass(value) else ()
            methods = {f".{key}": each for key, each in inner if not key.startswith("_")}
            for suffix, each in {"": value, **methods}.items():
                if ">>>" in (getattr(each, "__doc__", None) or ""):
                    yield f"{module}.{name}{suffix}", each.__doc__, names


EXAMPLES = {name: (docstring, names) for name, docstring, names in examples()}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_shows(name, tmp_path, monkeypatch):
    docstring, names = EXAMPLES[name]
    monkeypatch.chdir(tmp_path)
    given = {"np": np, "keras": keras, **names}
    test = doctest.DocTestParser().get_doctest(docstring, given, name, None, 0)
    report = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.write)
    plt.close("all")
    if result.attempted == 0:
        pytest.skip("needs a network or a cluster")
    assert not result.failed, report.getvalue()


def test_every_public_class_and_function_has_an_example():
    public = {
        f"{module}.{name}": value
        for module in kerasim._MODULES
        if module != "cli"
        for name, value in vars(importlib.import_module(f"kerasim.{module}")).items()
        if name in importlib.import_module(f"kerasim.{module}").__all__ and callable(value)
    }
    # `NoiseSchedule` is documented in `schedules`.
    assert set(public) - set(EXAMPLES) == set()
