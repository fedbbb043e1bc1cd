"""A context manager for the dtype policy of a model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import keras

from kerasim._devices import first_device
from kerasim.errors import ArgumentError

# Compute capability of the first NVIDIA GPUs whose tensor cores multiply in this format.
BFLOAT16_CAPABILITY = (8, 0)  # Ampere
FLOAT16_CAPABILITY = (7, 0)  # Volta


@contextlib.contextmanager
def dtype_policy(policy: str | keras.dtype_policies.DTypePolicy) -> Iterator[str]:
    """Sets the default dtype policy of Keras in a `with` block, for the layers built there.

    The previous default is restored at the end, also after an error. The block receives the name
    of the policy.

    Args:
        policy: Name of a policy, such as "mixed_bfloat16", in which layers compute in bfloat16 and
            keep their weights in float32, or the policy itself. "auto" selects the fastest one for
            the first device of the backend: "mixed_bfloat16" on NVIDIA GPUs since Ampere, TPUs and
            processors with AMX, "mixed_float16" on GPUs of the generations Volta and Turing, else
            "float32". A processor that has only the bfloat16 instructions of AVX-512 computes
            convolutions faster in float32.

    Raises:
        ArgumentError: If there is no such policy.

    Example:
        >>> with dtype_policy("mixed_bfloat16") as name:
        ...     layer = keras.layers.Dense(8)
        >>> name, layer.compute_dtype, keras.config.dtype_policy().name
        ('mixed_bfloat16', 'bfloat16', 'float32')
    """
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(_fastest_policy() if policy == "auto" else policy)
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"policy={policy!r} is not a dtype policy of Keras: pass a name such as "
            '"mixed_bfloat16", "mixed_float16" or "float32", or "auto".'
        ) from error
    try:
        yield keras.config.dtype_policy().name
    finally:
        keras.config.set_dtype_policy(before)


def _fastest_policy() -> str:
    """Returns the policy in which the first device of the backend trains fastest."""
    kind, capability = first_device()
    if kind == "cpu":
        return "mixed_bfloat16" if _has_amx() else "float32"
    if kind == "tpu" or capability >= BFLOAT16_CAPABILITY:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= FLOAT16_CAPABILITY else "float32"


def _has_amx() -> bool:
    """Returns whether the processor multiplies matrices of bfloat16 (Intel AMX)."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()
