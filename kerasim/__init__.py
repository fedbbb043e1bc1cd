"""Image similarity on Keras 3: embed, search, plot, export.

The workflow is the same for every network:

    images -> embedder -> embeddings -> search, map, verify -> plot -> export

An embedder is any `keras.Model` that maps images to vectors: the encoder of an autoencoder, the
tower of a Siamese network, a pretrained backbone. `data` loads images. `models` builds networks,
which `training.fit` trains with one of the `losses`. `embedding.embed` computes embeddings.
`neighbors` finds the nearest ones, `metrics` evaluates the results, `projection` computes a map,
`plots` and `explorer` display it, and `export` writes the embedder for a server. `gallery` stores
all of this in one folder, and `cli` is the command line. `diffusion` generates and denoises images.
`duplicates` finds images that occur twice, and `curation` outliers, suspect labels and clusters.
`distribute` is for work that is too large for one machine.

Images are float32 in [0, 1] with channels last. Distances are larger for less similar images.
Functions that draw random numbers take a seed, and the same seed gives the same result. A saved
artifact is a folder that is written completely or not at all, and checked before it is used. A
module imports only the modules above it on this page.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import warnings
from pathlib import Path

__version__ = "0.2.0"

# The oldest versions without known vulnerabilities. They are those of pyproject.toml, which some
# installers ignore.
_OLDEST = {"keras": "3.15", "numpy": "1.26", "pillow": "12.2"}

# The public modules; each imports only those before it.
_MODULES = (
    "errors",
    "images",
    "layers",
    "losses",
    "duplicates",
    "schedules",
    "data",
    "embedding",
    "neighbors",
    "curation",
    "metrics",
    "diffusion",
    "denoising",
    "models",
    "training",
    "projection",
    "plots",
    "explorer",
    "export",
    "distribute",
    "gallery",
    "cli",
)

__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


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
                f"{name} {found} is installed, which has known vulnerabilities. Upgrade it with: "
                f"pip install --upgrade '{name}>={oldest}'",
                stacklevel=2,
            )


_warn_of_old()


def _backend() -> str:
    """Returns the backend that Keras will use, as Keras decides it."""
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        return json.loads(Path(home, "keras.json").read_text())["backend"]
    except (OSError, ValueError, LookupError, TypeError):
        return "tensorflow"


class _MissingBackend:
    """Says how to install the backend of Keras when its import fails.

    It is the last finder, so that it is asked only for what no other finder has found.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _backend():
            return None
        raise ModuleNotFoundError(
            f"Keras uses the backend {fullname!r}, which is not installed. Install TensorFlow with "
            "`pip install -e '.[tf]'` (or '.[tf-cpu]', or '.[gpu]'), JAX with "
            "`pip install -e '.[jax]'` or PyTorch with `pip install -e '.[torch]'`, and set the "
            "environment variable KERAS_BACKEND to 'tensorflow', 'jax' or 'torch'.",
            name=fullname,
        )


if _backend() in ("tensorflow", "jax", "torch") and importlib.util.find_spec(_backend()) is None:
    sys.meta_path.append(_MissingBackend())


def __getattr__(name: str):
    # Keras takes seconds to import: each module waits until it is asked for (PEP 562).
    if name in _MODULES:
        try:
            return importlib.import_module(f"kerasim.{name}")
        except ModuleNotFoundError as error:
            if error.name != _backend():
                raise
            errors = importlib.import_module("kerasim.errors")
            raise errors.DependencyError(str(error)) from error
    raise AttributeError(f"module 'kerasim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
