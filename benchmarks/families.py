"""Training speed and memory of each family of models, on the backend that KERAS_BACKEND selects.

Each family is trained in a process of its own, on random images, because only time and memory are
measured. The compilation is the time by which the first epoch is longer than the later ones. Peak
memory is that of the device on a GPU, and that of the process, Keras included, on a CPU.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

EPOCHS = 4  # the first of which includes the compilation
# Steps of an epoch, and the factor by which a batch is larger than on a CPU.
SIZES = {"tiny": (2, 0.125), "cpu": (20, 1), "gpu": (50, 4)}


def images(shape, count, seed=0):
    """Returns random uint8 images."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype="uint8")


def labels(count):
    """Returns labels of ten classes, as many of each."""
    return np.arange(count) % 10


def autoencoder(steps, batch):
    """The autoencoder of ten latent dimensions."""
    from kerasim import data, models

    net = models.conv_autoencoder((32, 32, 3), latent_dim=10)
    return net, "mse", data.ImageBatches(images((32, 32, 3), steps * batch), batch_size=batch)


def vae(steps, batch):
    """The variational autoencoder of 20 latent dimensions."""
    from kerasim import data, models

    net = models.vae((28, 28, 1), latent_dim=20)
    batches = data.ImageBatches(images((28, 28, 1), steps * batch), batch_size=batch)
    return net, "binary_crossentropy", batches


def denoiser(steps, batch):
    """The autoencoder with skip connections that removes noise."""
    from kerasim import data, models

    clean = images((32, 32, 3), steps * batch)
    batches = data.NoiseBatches(clean, target="images", batch_size=batch)
    return models.denoising_autoencoder((32, 32, 3)), "mse", batches


def siamese(steps, batch):
    """A Siamese network with a contrastive loss, on pairs of MNIST's size."""
    from kerasim import data, losses, models

    pool = images((28, 28, 1), 1_000)
    net = models.siamese(models.conv_embedder((28, 28, 1), 2), metric="euclidean")
    batches = data.PairBatches(pool, labels(1_000), n=steps * batch, batch_size=batch)
    return net, losses.ContrastiveLoss(margin=5.0), batches


def supervised(steps, batch):
    """A residual embedder with a loss on labeled batches of ten classes."""
    from kerasim import data, losses, models

    pool = images((32, 32, 3), 2_000)
    net = models.resnet_embedder((32, 32, 3), widths=(16, 32, 64, 128))
    batches = data.BalancedBatches(pool, labels(2_000), 10, max(2, batch // 10), steps)
    return net, losses.SupConLoss(), batches


def two_views(steps, batch):
    """A residual embedder trained without labels, on two views of each image."""
    from kerasim import data, losses, models

    pool = images((32, 32, 3), steps * batch)
    tower = models.resnet_embedder((32, 32, 3), widths=(16, 32, 64, 128))
    batches = data.TwoViewBatches(pool, batch_size=batch, flip=True, shift=4)
    return models.siamese(tower, metric=None), losses.NTXentLoss(), batches


def diffusion(steps, batch):
    """A U-Net that predicts noise, conditioned on ten classes."""
    from kerasim import data, models
    from kerasim.diffusion import NoiseSchedule

    schedule = NoiseSchedule(1_000)
    net = models.unet((32, 32, 1), (48, 96), patch_size=2, num_classes=10, schedule=schedule)
    count = steps * batch
    pool = images((32, 32, 1), count)
    return net, "mse", data.DiffusionBatches(pool, schedule, labels(count), batch_size=batch)


def fine_tuning(steps, batch):
    """SqueezeNet with random weights, of which all layers train, on pairs of photographs."""
    from kerasim import data, losses, models

    shape, pairs = (128, 128, 3), steps * batch
    backbone = models.pretrained_embedder(
        "squeezenet", None, pooling="gem", image_shape=shape, trainable=True
    )
    batches = data.PositivePairBatches(images(shape, pairs), images(shape, pairs, 1), None, batch)
    return models.siamese(backbone, metric=None), losses.InfoNCELoss(), batches


# Each returns a model, its loss and batches; with the batch size on a CPU.
FAMILIES: dict[str, tuple[Callable[[int, int], tuple[Any, Any, Any]], int]] = {
    "autoencoder": (autoencoder, 128),
    "vae": (vae, 128),
    "denoiser": (denoiser, 32),
    "siamese": (siamese, 128),
    "supervised": (supervised, 120),
    "two views": (two_views, 64),
    "diffusion": (diffusion, 64),
    "fine-tuning": (fine_tuning, 8),
}


def peak_memory():
    """Returns the peak memory in GiB: of the GPU where there is one, else of this process."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        found = jax.devices()[0].memory_stats()  # None on a CPU
        if found and "peak_bytes_in_use" in found:
            return found["peak_bytes_in_use"] / 2**30
    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if platform.system() == "Darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(family, size, policy):
    """Trains a family, and prints what was measured as a line of JSON."""
    import keras

    from kerasim import models, training

    build, batch = FAMILIES[family]
    steps, factor = SIZES[size]
    batch = max(2, int(batch * factor))
    keras.utils.set_random_seed(0)
    with models.dtype_policy(policy):
        net, loss, batches = build(steps, batch)
    net.compile("adam", loss)
    with tempfile.TemporaryDirectory() as folder:
        history = training.fit(net, batches, EPOCHS, folder, verbose=0)
    first, *others = history["seconds"]
    epoch = statistics.median(others)
    found = {
        "family": family,
        "batch": batch,
        "compilation, s": first - epoch,
        "step, ms": 1e3 * epoch / steps,
        "batches/s": steps / epoch,
        "images/s": steps * batch / epoch,
        "peak, GiB": peak_memory(),
    }
    print(json.dumps(found))


def device():
    """Returns the devices of the backend, for readers."""
    import keras

    from kerasim import distribute

    names = distribute.device_names()
    return f"Keras {keras.__version__}, {keras.backend.backend()}, {', '.join(names)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help=f"some of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--policy", default="float32", help='such as "mixed_bfloat16"')
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one == "device":
        print(device())
        return
    if given.one:
        measure(given.one, given.size, given.policy)
        return
    rows = []
    for family in ("device", *(given.families or FAMILIES)):
        command = [sys.executable, __file__, "--one", family]
        command += ["--size", given.size, "--policy", given.policy]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(f"{family}: {done.stderr.strip().splitlines()[-1]}")
        elif family == "device":
            print(done.stdout.strip() + f", {given.policy}, {os.cpu_count()} cores")
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    table = pd.DataFrame(rows).set_index("family")
    print(table.map(lambda value: f"{value:.3g}").to_string())


if __name__ == "__main__":
    main()
