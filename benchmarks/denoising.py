"""What notebook 11 leaves open: guidance by the true class, and specialists of the large size.

Both need what notebook 11 trained on MNIST in `runs/notebooks` (`denoiser-large`, `classifier`,
`noisy-classifier`). `labels` chooses guidance on 1,000 training images, for the predicted and for
the true class apart, and counts on the 10,000 test images once: sigma 0.5, samples in 15 steps.
`specialists` trains three networks of the same layers and steps as `denoiser-large`, each for one
sigma (26 minutes of one core each; a run goes on where it was stopped).
"""

import sys
import time
from pathlib import Path

import keras
import pandas as pd

from kerasim import data, diffusion, metrics, models, training

RUNS = Path("runs/notebooks/mnist")
SHAPE, SCHEDULE, SEED, EPOCHS, SIGMAS = (
    (32, 32, 1),
    diffusion.NoiseSchedule(1000),
    0,
    5,
    (0.1, 0.25, 0.5),
)


def unet():
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy("mixed_bfloat16")
    net = models.unet(
        SHAPE,
        (48, 96, 192),
        num_attention_stages=2,
        num_classes=10,
        patch_size=2,
        schedule=SCHEDULE,
    )
    keras.config.set_dtype_policy("float32")
    return net


def reader():
    keras.config.set_dtype_policy("mixed_bfloat16")
    embedder = models.conv_embedder(SHAPE, widths=(16, 32, 64))
    keras.config.set_dtype_policy("float32")
    last = keras.layers.Dense(10, "softmax", dtype="float32", name="classes")(embedder.output)
    return keras.Model(embedder.input, last)


def trained(model, run):
    if not (RUNS / run).exists():
        sys.exit(f"{RUNS / run} is missing: run KERASIM_DATA_DIR=<folder> make notebooks first.")
    training.load_weights(model, RUNS / run)
    return model


def labels(images, net):
    clean_reader, noisy_reader = (
        trained(reader(), "classifier"),
        trained(reader(), "noisy-classifier"),
    )

    def read(x, by=clean_reader):
        return by.predict(x, batch_size=500, verbose=0).argmax(axis=1)

    def kept(noisy, truth, classes, guidance, counted=...):
        """Share of samples that are read as what their image shows."""
        sample = diffusion.denoise(
            net,
            SCHEDULE,
            noisy,
            0.5,
            output="sample",
            steps=15,
            labels=classes,
            guidance=guidance,
            seed=SEED,
        )[0]
        return (read(sample) == truth)[counted]

    x, y = images.x_train[:1000], images.y_train[:1000]
    noisy = data.add_noise(x, 0.5, seed=SEED + 9, clip=False)
    ways = {"predicted class": read(noisy, noisy_reader), "true class": y}
    tried = {
        way: {g: kept(noisy, y, classes, g).mean() for g in (0, 1, 2, 4, 8, 16)}
        for way, classes in ways.items()
    }
    print("right on 1,000 training images, by guidance")
    print(pd.DataFrame(tried).T.round(4).to_string())

    x, y = images.x_test, images.y_test
    counted = read(x) == y
    noisy = data.add_noise(x, 0.5, seed=SEED + 3, clip=False)
    predicted = read(noisy, noisy_reader)
    right = (predicted == y)[counted]
    print(f"\n{counted.sum():,} test images read rightly when clean; when noisy {right.mean():.4f}")
    ways = {"no label": None, "predicted class": predicted, "true class": y}
    for way, classes in ways.items():
        guidance = max(tried[way], key=tried[way].get) if way in tried else 0
        start = time.perf_counter()
        hits = kept(noisy, y, classes, guidance, counted)
        low, high = metrics.bootstrap_interval(hits.astype(float))
        print(
            f"{way}, guidance {guidance}: label kept {hits.mean():.4f} ({low:.4f} to {high:.4f}), "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


def specialists(images, net):
    rows = {}
    for n, sigma in enumerate(SIGMAS, start=1):
        step = int(SCHEDULE.step_for_sigma(sigma))
        batches = data.DiffusionBatches(
            images.x_train,
            SCHEDULE,
            images.y_train,
            0.2,
            (step, step),
            64,
            SEED,
            weighting="velocity",
        )
        special = unet()
        rate = keras.optimizers.schedules.CosineDecay(
            1e-4, EPOCHS * len(batches), warmup_target=1e-3, warmup_steps=100
        )
        special.compile(keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.999), "mse")
        history = training.fit(special, batches, EPOCHS, RUNS / f"special-large-{step}", verbose=0)
        noisy = data.add_noise(images.x_test, sigma, seed=SEED + n, clip=False)
        one, general = (
            metrics.psnr(diffusion.denoise(model, SCHEDULE, noisy, sigma)[0], images.x_test)
            for model in (special, net)
        )
        low, high = metrics.bootstrap_interval(general - one)
        difference = f"{(general - one).mean():.2f} ({low:.2f} to {high:.2f})"
        minutes = history["seconds"].sum() / 60
        rows[sigma] = (one.mean(), general.mean(), difference, minutes)
        columns = ["specialist", "general", "difference (95 %)", "minutes"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        print(table.round(2).to_string(), flush=True)


if __name__ == "__main__":
    mnist = data.load_dataset("mnist", image_size=32)
    general = trained(unet(), "denoiser-large")
    for part in (labels, specialists):
        if sys.argv[1:] in ([], [part.__name__]):
            part(mnist, general)
