"""A context manager for the dtype policy of a model."""

import contextlib
from collections.abc import Iterator

import keras

from kerasim.errors import ArgumentError


@contextlib.contextmanager
def dtype_policy(policy: str | keras.dtype_policies.DTypePolicy) -> Iterator[None]:
    """Sets the default dtype policy of Keras in a `with` block, for the layers built there.

    The previous default is restored at the end, also after an error.

    Args:
        policy: Name of a policy, such as "mixed_bfloat16", in which layers compute in bfloat16 and
            keep their weights in float32, or the policy itself.

    Raises:
        ArgumentError: If there is no such policy.

    Example:
        >>> with dtype_policy("mixed_bfloat16"):
        ...     layer = keras.layers.Dense(8)
        >>> layer.compute_dtype, keras.config.dtype_policy().name
        ('bfloat16', 'float32')
    """
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"policy={policy!r} is not a dtype policy of Keras: pass a name such as "
            '"mixed_bfloat16", "mixed_float16" or "float32".'
        ) from error
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
