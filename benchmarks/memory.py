"""Peak resident size of training the original autoencoder on CIFAR-10 held as uint8, one epoch.

Reach: under 1.5 GB, everything included.
"""

import resource
import tempfile

from kerasim import data, models, training


def main():
    images = data.load("cifar10", dtype="uint8")
    model = models.conv_autoencoder()
    model.compile("adam", "mse")
    with tempfile.TemporaryDirectory() as folder:
        training.fit(model, data.ImageBatches(images.x_train), 1, folder, verbose=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident size: {peak:.2f} GiB (reach 1.5 GB)")


if __name__ == "__main__":
    main()
