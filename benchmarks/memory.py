"""Peak resident size, each in a process of its own, everything included.

Training the original autoencoder on CIFAR-10 held as uint8, one epoch (reach: under 1.5 GB), and
`metrics.retrieval` of 60,000 queries of 64 dimensions among as many (reach: under 1 GB).
"""

import resource
import subprocess
import sys
import tempfile
import time


def train():
    from kerasim import data, models, training

    images = data.load_dataset("cifar10", dtype="uint8")
    model = models.conv_autoencoder()
    model.compile("adam", "mse")
    with tempfile.TemporaryDirectory() as folder:
        training.fit(model, data.ImageBatches(images.x_train), 1, folder, verbose=0)


def retrieve():
    import numpy as np

    from kerasim import metrics

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 64))
    gallery_labels, labels = rng.integers(0, 10, (2, 60_000))
    gallery, queries = (
        (centres[of] + rng.standard_normal((60_000, 64))).astype("float32")
        for of in (gallery_labels, labels)
    )
    metrics.retrieval(queries, labels, gallery, gallery_labels)


def main():
    for name, call, reach in (("training", train, 1.5), ("retrieval", retrieve, 1.0)):
        if sys.argv[1:] == [name]:
            call()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        elif not sys.argv[1:]:
            start = time.perf_counter()
            child = [sys.executable, __file__, name]
            done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
            peak, seconds = float(done.stdout.split()[-1]), time.perf_counter() - start
            print(f"{name}: peak {peak:.2f} GiB (reach {reach} GB), {seconds:.0f} s in all")


if __name__ == "__main__":
    main()
