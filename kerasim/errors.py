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
    """Base class of all exceptions that kerasim raises deliberately.

    Example:
        >>> from kerasim.schedules import NoiseSchedule
        >>> try:
        ...     NoiseSchedule(steps=0)
        ... except KerasimError as error:
        ...     print(type(error).__name__)
        ArgumentError
    """


class ArgumentError(KerasimError, ValueError):
    """An argument has an invalid value.

    Example:
        >>> from kerasim.schedules import NoiseSchedule
        >>> try:
        ...     NoiseSchedule(steps=0)
        ... except ArgumentError as error:  # or ValueError
        ...     print(error)
        steps=0 is out of range: pass a whole number, 1 or more.
    """


class ArgumentTypeError(KerasimError, TypeError):
    """An argument has an invalid type.

    Example:
        >>> from kerasim.schedules import NoiseSchedule
        >>> try:
        ...     NoiseSchedule(steps="1000")
        ... except ArgumentTypeError as error:  # or TypeError
        ...     print(error)
        steps must be an integer. Received '1000' of type str: pass a whole number, 1 or more.
    """


class ArtifactError(KerasimError, OSError):
    """A file or folder is missing, damaged, in use, not written by kerasim, or cannot be written.

    Example:
        >>> from kerasim.neighbors import NeighborIndex
        >>> try:
        ...     NeighborIndex.load("missing")
        ... except ArtifactError as error:  # or OSError
        ...     print("no index:", type(error).__name__)
        no index: ArtifactError
    """


class ImageError(KerasimError, OSError):
    """An image file cannot be decoded.

    Example:
        >>> from kerasim.images import read_image
        >>> try:
        ...     read_image(b"not an image")
        ... except ImageError as error:  # or OSError
        ...     print(str(error)[:30])
        Cannot decode the encoded imag
    """


class DependencyError(KerasimError, OSError):
    """A library that a function needs is not installed, or Keras runs on another backend.

    Example:
        >>> issubclass(DependencyError, OSError)  # `except OSError` catches it, too
        True
    """


class TrainingError(KerasimError, ValueError):
    """A training run cannot continue: its loss or weights are not finite.

    Example:
        >>> issubclass(TrainingError, ValueError)  # `except ValueError` catches it, too
        True
    """


class ClusterError(KerasimError, OSError):
    """A cluster cannot be reached, is not suitable for the task, or lost a part of it.

    Example:
        >>> issubclass(ClusterError, OSError)  # `except OSError` catches it, too
        True
    """
