"""Pretrained backbones: an epoch and export of the large ones; speed of the SavedModel.

VGG16 and ResNet50 without weights, each in a process of its own: one epoch over 64 pairs of random
images of 224 x 224, all layers training, batches of 8 pairs; then export and reload. SqueezeNet,
with its weights if `KERASIM_DATA_DIR` has them: one image through the SavedModel beside
`predict_on_batch`, and encoded files beside arrays.
"""

import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

PAIRS, SIZE = 64, 224


def train(name):
    """Prints images per second, peak memory, and how far the reloaded SavedModel is off."""
    import keras

    from kerasim import data, export, losses, models, training

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, PAIRS, SIZE, SIZE, 3), dtype="uint8")
    embedder = models.pretrained_embedder(
        name, weights=None, image_shape=(SIZE, SIZE, 3), trainable=True
    )
    net = models.siamese(embedder, metric=None)
    net.compile(keras.optimizers.SGD(1e-3), losses.InfoNCELoss())
    batches = data.PositivePairBatches(left, right, batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        seconds = training.fit(net, batches, 1, folder, verbose=0)["seconds"].sum()
        export.export_saved_model(embedder, Path(folder, "saved"))
        served = export.load_saved_model(Path(folder, "saved"))
    some = data.as_float(left[:4])
    off = np.abs(served(some) - embedder.predict_on_batch(some)).max()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{2 * PAIRS / seconds:.2f} {peak:.2f} {off:.1e}")


def best_of(call, times=30):
    """Returns the least milliseconds of a call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return min(found)


def encoded(pixels, kind, **settings):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **settings)
    return file.getvalue()


def serve():
    """Prints latencies of one image, and how far arrays and files are off."""
    import keras
    from sklearn.datasets import load_sample_images

    from kerasim import data, export, images, models

    keras.utils.set_random_seed(0)
    there = (data.data_dir() / "squeezenet_notop.h5").exists()
    embedder = models.pretrained_embedder(
        "squeezenet", "imagenet" if there else None, image_shape=(245, 200, 3)
    )
    with tempfile.TemporaryDirectory() as folder:
        export.export_saved_model(embedder, folder + "/saved")
        served = export.load_saved_model(folder + "/saved")
    photographs = load_sample_images().images
    fitting = [np.ascontiguousarray(x[:245, :200]) for x in photographs]
    arrays = data.as_float(np.stack(fitting))
    expected = embedder.predict_on_batch(arrays)
    exact = np.abs(served(arrays) - expected).max()
    files = [encoded(x, "PNG") for x in fitting]
    by_bytes = np.abs(served.serve_bytes(files) - expected).max()
    files = [encoded(x, "JPEG", quality=90) for x in photographs]
    ours = np.stack([images.read_image(file, (245, 200)) for file in files])
    found, wanted = served.serve_bytes(files), embedder.predict_on_batch(ours)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    one = arrays[:1]
    embedder.predict_on_batch(one)
    print(
        f"SqueezeNet, {'ImageNet' if there else 'random'} weights, one image of 245 x 200:\n"
        f"  predict_on_batch {best_of(lambda: embedder.predict_on_batch(one)):.1f} ms, SavedModel "
        f"{best_of(lambda: served(one)):.1f} ms\n"
        f"  arrays differ by {exact:.1e} at most, encoded files of that size by {by_bytes:.1e} "
        f"(reach 1e-5)\n"
        f"  resized files: cosine {((found * wanted).sum(axis=1) / lengths).min():.6f} or more "
        f"(reach 0.9999)"
    )


def main():
    rows = []
    for name in ("vgg16", "resnet50"):
        command = [sys.executable, __file__, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append((name, *done.stdout.splitlines()[-1].split()))
    columns = ["weights=None", "images/s in training", "peak GiB", "SavedModel differs by"]
    print(pd.DataFrame(rows, columns=columns).to_string(index=False) + "\n")
    serve()


if __name__ == "__main__":
    train(sys.argv[1]) if len(sys.argv) > 1 else main()
