"""Image similarity on Keras 3: embed, search, plot, export.

Whatever learnt an embedding, it travels one path:

    images -> embedder -> embeddings -> search, map, verify -> plot -> export

An embedder is any `keras.Model` from images to vectors: the encoder of an autoencoder, the tower of
a Siamese net, a backbone that others trained. Pictures come in through `data`. A builder of
`models` makes a network, which `training.fit` trains with one of the `losses`, and `data.embed`
makes vectors with it. From here on it does not matter what made them: `neighbors` finds the
nearest, `metrics` says how good that is, `projection` lays them out on a map, `plots` and
`explorer` show them, `export` hands the embedder to a server. `gallery` holds all of it as one
folder, and `cli` is the same from a shell. `diffusion` is a path of its own: networks that draw and
clean images. `distribute` is for what is too much for one machine.

Images are float32 in [0, 1], channels last; a distance grows with unlikeness; what draws random
numbers takes a seed, and the same seed draws the same. What is saved is a folder that is written
whole or not at all, and checked before it is used (`artifacts`). A module imports only those above
it on this page.
"""

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
            what = f"{name} {found} is installed, kerasim is safe from {oldest} on"
            mend = f"pip install --upgrade '{name}>={oldest}'"
            warnings.warn(f"{what}: {mend}.", stacklevel=2)


_warn_of_old()


def __getattr__(name: str):
    # Keras takes seconds to import: each module waits until it is asked for (PEP 562).
    if name in _MODULES:
        return importlib.import_module(f"kerasim.{name}")
    raise AttributeError(f"module 'kerasim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
