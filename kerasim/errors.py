"""Exceptions. A message names the argument, the value received, what was expected and what to do.

Every exception that kerasim raises deliberately is a `KerasimError`. It is also a `ValueError`,
`TypeError` or `OSError`, so that code with `except ValueError` works. Functions check their
arguments first. An invalid value raises an `ArgumentError`, a value of the wrong type (such as a
string instead of a number) an `ArgumentTypeError`, even where the `Raises` section does not mention
the second.
"""

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ArtifactError",
    "ClusterError",
    "DependencyError",
    "ImageError",
    "KerasimError",
    "TrainingError",
]


class KerasimError(Exception):
    """Base class of all exceptions that kerasim raises deliberately."""


class ArgumentError(KerasimError, ValueError):
    """An argument has an invalid value."""


class ArgumentTypeError(KerasimError, TypeError):
    """An argument has an invalid type."""


class ArtifactError(KerasimError, OSError):
    """A file or folder is missing, damaged, in use, not kerasim's, or cannot be written."""


class ImageError(KerasimError, OSError):
    """An image file cannot be decoded."""


class DependencyError(KerasimError, OSError):
    """An optional library is not installed."""


class TrainingError(KerasimError, ValueError):
    """A training run cannot continue: its loss or weights are not finite."""


class ClusterError(KerasimError, OSError):
    """A cluster cannot be reached, is not suitable for the task, or lost a part of it."""
