"""What goes wrong, said so that it can be mended: argument, what came, what was expected.

All that is raised on purpose is a `KerasimError`, and one of Python's own kinds as well, so that
`except ValueError` goes on working. A function looks at its arguments before it does anything: a
value that cannot be used is an `ArgumentError`, a value of the wrong kind (text for a number) an
`ArgumentTypeError`, whether or not its `Raises` tells of the second.
"""


class KerasimError(Exception):
    """Base of all that kerasim raises on purpose."""


class ArgumentError(KerasimError, ValueError):
    """An argument has a value that cannot be used."""


class ArgumentTypeError(KerasimError, TypeError):
    """An argument is of a kind that cannot be used."""


class ArtifactError(KerasimError, OSError):
    """A file or folder is missing, damaged, foreign, in use or cannot be written."""


class ImageError(KerasimError, OSError):
    """An image file cannot be decoded."""


class DependencyError(KerasimError, OSError):
    """An optional library is not installed."""


class TrainingError(KerasimError, ValueError):
    """A training run cannot go on: its loss or weights are not finite."""


class ClusterError(KerasimError, OSError):
    """A cluster cannot be reached, is not fit for the work, or lost a part of it."""
