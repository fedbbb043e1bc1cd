"""Image similarity on Keras 3: embed, search, plot, export."""

import importlib
import pkgutil

__version__ = "0.1.0"

_MODULES = [module.name for module in pkgutil.iter_modules(__path__)]


def __getattr__(name: str):
    # Keras takes seconds to import: each module waits until it is asked for (PEP 562).
    if name in _MODULES:
        return importlib.import_module(f"kerasim.{name}")
    raise AttributeError(f"module 'kerasim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
