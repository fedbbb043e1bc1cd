"""Image similarity on Keras 3: embed, search, plot, export."""

import importlib
import importlib.metadata
import pkgutil
import re
import warnings

__version__ = "0.1.0"

# The oldest without known holes, as in pyproject.toml: not every installer keeps to that.
_OLDEST = {"keras": "3.15", "numpy": "1.26", "pillow": "12.2"}

_MODULES = [module.name for module in pkgutil.iter_modules(__path__)]


def _warn_of_old() -> None:
    def parts(version):
        return [int(part) for part in re.findall(r"\d+", version)[:2]]

    for name, oldest in _OLDEST.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # its import will say so
            continue
        if parts(found) < parts(oldest):
            warnings.warn(
                f"{name} {found} is installed, kerasim is safe from {oldest} on: pip install "
                f"--upgrade '{name}>={oldest}'.",
                stacklevel=2,
            )


_warn_of_old()


def __getattr__(name: str):
    # Keras takes seconds to import: each module waits until it is asked for (PEP 562).
    if name in _MODULES:
        return importlib.import_module(f"kerasim.{name}")
    raise AttributeError(f"module 'kerasim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
