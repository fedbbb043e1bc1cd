"""The devices of the backend, and the devices and processes that a model is distributed over.

`distribute.strategy` distributes a model. This module determines from the model how many devices
share a batch, which rows of it this process computes, and which process writes files. So
`training.fit` works in the same way on one device and on several, and refuses losses and batches
for which several devices would give other results.
"""

import contextlib

import keras
import numpy as np

from kerasim.errors import ArgumentError


def device_names() -> list[str]:
    """Returns the names of the devices on which Keras computes, on any backend.

    Returns:
        Names such as `["gpu:0", "gpu:1"]`: all GPUs or TPUs, or `["cpu:0"]` if there are none.

    Example:
        >>> device_names()[0].split(":")[0] in ("cpu", "gpu", "tpu")
        True
    """
    if keras.backend.backend() != "torch":
        return keras.distribution.list_devices()
    # Keras lists no devices of PyTorch.
    import torch  # pyright: ignore[reportMissingImports]

    return [f"gpu:{index}" for index in range(torch.cuda.device_count())] or ["cpu:0"]


def first_device() -> tuple[str, tuple[int, ...]]:
    """Returns the kind of the first device, and the compute capability of a GPU of NVIDIA."""
    kind = device_names()[0].split(":")[0].lower()
    if kind in ("cpu", "tpu"):
        return kind, ()
    if keras.backend.backend() == "torch":
        import torch  # pyright: ignore[reportMissingImports]

        return kind, torch.cuda.get_device_capability()
    if keras.backend.backend() == "jax":
        import jax

        version = str(getattr(jax.devices()[0], "compute_capability", ""))
        return kind, tuple(int(part) for part in version.split(".") if part.isdigit())
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    return kind, tuple(details.get("compute_capability", ()))


class Devices:
    """The devices over which `distribute.strategy` distributes a model; one without a strategy.

    Args:
        model: Built `keras.Model`.

    Attributes:
        scope: Context in which the model trains.
        replicas: Devices, each of which takes its part of a batch.
        processes: Processes that train together, on one host each.
        process: Which of them this is, from 0.
        writes: Whether this process writes files.
    """

    def __init__(self, model):
        self.scope, self.replicas, self.processes, self.process = contextlib.nullcontext, 1, 1, 0
        value = getattr(next(iter(model.variables), None), "value", None)
        if keras.backend.backend() == "tensorflow":
            self.scope = model.distribute_strategy.scope
            self.replicas = model.distribute_strategy.num_replicas_in_sync
        elif mesh := getattr(getattr(value, "sharding", None), "mesh", None):
            shared = keras.distribution
            found = shared.distribution() or shared.DataParallel(None, [*mesh.devices.flat], False)
            self.scope, self.replicas = found.scope, found.num_model_replicas
            self.processes, self.process = found.num_processes, found.data_shard_id
        self.writes = self.process == 0

    def check(self, loss, **batches) -> None:
        """Refuses a `loss` or `batches` with which several devices give other results than one.

        Raises:
            ArgumentError: If the loss needs the whole batch, but each device sees only its part, or
                the devices cannot share a batch evenly.
        """
        if self.replicas == 1:
            return
        if keras.backend.backend() == "tensorflow" and hasattr(loss, "count_valid"):
            raise ArgumentError(
                f"loss {type(loss).__name__} compares all images of a batch, but on "
                "TensorFlow each device sees only its part of the batch: set "
                "KERAS_BACKEND=jax, or train on one device."
            )
        for name, given in batches.items():
            ends = (0, len(given) - 1) if given is not None else ()
            sizes = [len(keras.tree.flatten(given[n])[0]) for n in ends]
            if any(size % self.replicas for size in sizes):
                raise ArgumentError(
                    f"{name} holds batches of {sizes[0]} rows, and the last has {sizes[1]}, which "
                    f"cannot be split evenly over {self.replicas} devices: choose batch_size and "
                    f"the number of images as multiples of {self.replicas}."
                )

    def part(self, batches):
        """Returns `batches` with only those rows that this process trains on."""
        return batches if batches is None or self.replicas == 1 else _Part(batches, self)

    def agree(self, values) -> None:
        """Waits for the other processes, and compares arrays `values` with theirs.

        Raises:
            ArgumentError: If they differ.
        """
        if self.processes == 1:
            return
        from jax.experimental import multihost_utils

        try:
            multihost_utils.assert_equal([keras.ops.convert_to_numpy(value) for value in values])
        except AssertionError as error:
            raise ArgumentError(
                "The processes differ in epoch or weights: pass one run_dir that all of "
                "them see, and call keras.utils.set_random_seed first."
            ) from error


class _Part(keras.utils.PyDataset):
    """The rows of each batch that fall to one process, in arrays of their own.

    CPU devices of TensorFlow share their memory with NumPy, and may write into the arrays that they
    receive: without a copy the next epoch could train on overwritten targets.
    """

    def __init__(self, batches, devices):
        super().__init__()
        self.batches, self.count, self.own = batches, devices.processes, devices.process

    def __len__(self):
        return self.batches.num_batches

    def on_epoch_begin(self):
        self.batches.on_epoch_begin()

    def on_epoch_end(self):
        self.batches.on_epoch_end()

    def __getitem__(self, index):
        return keras.tree.map_structure(
            lambda rows: np.array(np.split(rows, self.count)[self.own]), self.batches[index]
        )
