import pytest

from kerasim import errors


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
def test_each_error_is_ours_and_one_of_pythons(kind, builtin):
    assert issubclass(kind, errors.KerasimError) and issubclass(kind, builtin)
