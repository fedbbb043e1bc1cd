"""Denoising of 8-bit files whose noise is not known, by `denoising.Denoiser`.

`mnist`: 10,000 test images of 32 x 32, beside the same network that is given the true sigma.
`photos`: five photographs of scikit-image, in color and in gray, beside BM3D, which is given the
true sigma, and non-local means. No network saw one of them: they are trained on parts of the images
of Totally-Looks-Like. Training goes on where it was stopped, in `runs/files`.
"""

import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import skimage.data
from skimage.restoration import denoise_nl_means

from kerasim import data, denoising, metrics, models, training

RUNS, SEED = Path("runs/files"), 0
MNIST_SIGMAS = (0.1, 0.25, 0.5)
PHOTO_SIGMAS = (15 / 255, 25 / 255, 50 / 255)
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "camera")


def interval(values):
    low, high = metrics.bootstrap_interval(values)
    return f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})"


def train(name, model, loss, batches, epochs, rate):
    """Trains or goes on training, and says how long it took."""
    schedule = training.warmup_cosine(epochs * len(batches), rate)
    model.compile(keras.optimizers.Adam(schedule), loss)
    history = training.fit(model, batches, epochs, RUNS / name, verbose=0)
    minutes = history["seconds"].sum() / 60
    print(
        f"{name}: {model.count_params():,} weights, {minutes:.1f} minutes of training", flush=True
    )


def denoiser(name, images, noise, widths, blocks, epochs, batch_size, flip):
    """Trains a denoiser and its estimator on clean images."""
    channels = images.shape[-1]
    keras.utils.set_random_seed(SEED)
    with models.dtype_policy("mixed_bfloat16"):
        network = models.denoising_autoencoder(
            (None, None, channels), widths, blocks, sigma_input=True
        )
        estimator = models.noise_estimator((None, None, channels))
    settings = {"batch_size": batch_size, "seed": SEED, "flip": flip, **noise}
    pairs = data.NoiseBatches(images, target="images", sigma_input=True, **settings)
    train(f"{name}-network", network, "mse", pairs, epochs[0], 1e-3)
    sigmas = data.NoiseBatches(images, **settings)
    error = "mean_absolute_percentage_error"
    train(f"{name}-estimator", estimator, error, sigmas, epochs[1], 2e-3)
    return denoising.Denoiser(network, estimator, pairs.noise)


def mnist():
    images = data.load_dataset("mnist", image_size=32, dtype="uint8")
    noise = {"low": 0.02, "high": 0.8, "clip": True, "bits": 8}
    cleaner = denoiser("mnist", images.x_train, noise, (32, 64, 128), 1, (4, 2), 128, False)
    clean = data.as_float(images.x_test)
    rows = []
    for n, sigma in enumerate(MNIST_SIGMAS):
        noisy = data.add_noise(clean, sigma, seed=SEED + n, bits=8)
        known, found = cleaner(noisy, sigma).images, cleaner(noisy)
        of_known, of_found = metrics.psnr(known, clean), metrics.psnr(found.images, clean)
        off = np.abs(found.sigma / sigma - 1)
        rows.append(
            (
                sigma,
                metrics.psnr(noisy, clean).mean(),
                interval(of_found),
                interval(of_found - of_known),
                f"{100 * np.median(off):.1f}, {100 * np.quantile(off, 0.95):.1f}",
            )
        )
    columns = ["sigma", "noisy, dB", "denoised, dB", "minus known sigma, dB"]
    columns.append("error of sigma, %: median, 95th percentile")
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))
    rng = np.random.default_rng(SEED)
    sigmas = np.exp(rng.uniform(np.log(0.05), np.log(0.8), 2_000))
    off = [
        abs(cleaner(data.add_noise(clean[n : n + 1], sigma, n, bits=8)).sigma[0] / sigma - 1)
        for n, sigma in enumerate(sigmas)
    ]
    print(
        f"sigma from 0.05 to 0.8, {len(off):,} images: error {100 * np.median(off):.1f} % "
        f"(median), {100 * np.quantile(off, 0.95):.1f} % (95th percentile)"
    )


def crops(side, channels):
    """Returns parts of the images of Totally-Looks-Like, uint8 of `side` x `side` pixels."""
    pairs = data.pair_folder(data.data_dir() / "tll")
    parts = [
        data.random_patches(images, 6 * len(images), side, SEED)
        for images in (pairs.left, pairs.right)
    ]
    return np.concatenate(parts) if channels == 3 else gray(np.concatenate(parts))


def gray(x):
    return np.rint(x @ [0.299, 0.587, 0.114]).astype("uint8")[..., None]


def photos():
    import bm3d  # its license is non-commercial: `mnist` runs without it

    noise = {"low": 0.004, "high": 0.3, "clip": True, "bits": 8}
    for channels, kind in ((3, "color"), (1, "gray")):
        cleaner = denoiser(kind, crops(64, channels), noise, (48, 96, 192), 2, (12, 3), 32, True)
        rows = []
        for name in PHOTOS:
            photo = getattr(skimage.data, name)()
            if photo.ndim == 2 and channels == 3:
                continue
            if channels == 1:
                photo = photo[..., None] if photo.ndim == 2 else gray(photo)
            clean = photo[None] / np.float32(255)
            for n, sigma in enumerate(PHOTO_SIGMAS):
                noisy = data.add_noise(clean, sigma, seed=SEED + n, bits=8)
                started = time.perf_counter()
                found = cleaner(noisy)
                seconds = time.perf_counter() - started
                by_blocks = bm3d.bm3d_rgb if channels == 3 else bm3d.bm3d
                peer = by_blocks(noisy[0].squeeze(), sigma).reshape(clean.shape).clip(0, 1)
                means = denoise_nl_means(noisy[0], 5, 6, 0.6 * sigma, sigma=sigma, channel_axis=-1)[
                    None
                ]
                scores = [
                    metrics.psnr(x.astype("float32"), clean)[0]
                    for x in (noisy, means, peer, cleaner(noisy, sigma).images, found.images)
                ]
                rows.append((name, 255 * sigma, 255 * found.sigma[0], *scores, seconds))
        columns = ["photograph", "sigma", "estimated", "noisy", "non-local means", "BM3D"]
        table = pd.DataFrame(rows, columns=[*columns, "sigma known", "denoised", "seconds"])
        print(kind, "PSNR in dB; sigma in levels of 255")
        print(table.round(2).to_string(index=False))
        print(table.drop(columns="photograph").groupby("sigma").mean().round(2).to_string(), "\n")
        photo = skimage.data.astronaut()[None]
        photo = photo if channels == 3 else gray(photo)
        clean = photo / np.float32(255)
        print(f"a clean photograph keeps {metrics.psnr(cleaner(photo).images, clean)[0]:.1f} dB\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or ("mnist", "photos"):
        {"mnist": mnist, "photos": photos}[name]()
