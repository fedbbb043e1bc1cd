"""Quality on the CIFAR-10 test set (a JPEG copy), from the runs that `make notebooks` trained.

Reconstruction error and precision at 10 beside principal components, denoising beside BM3D and
non-local means; 95 % intervals over images.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.restoration import denoise_nl_means
from sklearn.decomposition import PCA

from kerasim import data, embedding, metrics, models, neighbors, training

RUNS = Path("runs/notebooks/cifar10")
SIGMA, SEED, BM3D_IMAGES = 0.1, 0, 200
STRENGTH = 0.5  # of non-local means: notebook 04 chose it on validation images


def interval(values):
    low, high = metrics.bootstrap_interval(values)
    return f"{np.mean(values):.5f} ({low:.5f} to {high:.5f})"


def trained(model, run):
    """Gives `model` the weights of its run, and says what that took."""
    history = training.load_weights(model, RUNS / run)
    return model, f"{len(history)} epochs, {history['seconds'].sum() / 60:.0f} minutes"


def main():
    if not RUNS.exists():
        sys.exit(f"{RUNS} is missing: run KERASIM_DATA_DIR=<folder> make notebooks first.")
    images = data.load_dataset("cifar10", dtype="uint8")
    clean = data.as_float(images.x_test)
    flat_train = data.as_float(images.x_train).reshape(len(images.x_train), -1)
    flat_test = clean.reshape(len(clean), -1)
    pca = PCA(10, random_state=SEED).fit(flat_train)
    codes = {"10 components": (pca.transform(flat_train), pca.transform(flat_test))}
    redrawn = {"10 components": pca.inverse_transform(codes["10 components"][1])}
    notes = {"10 components": "yardstick"}
    for run, builder in (
        ("autoencoder", models.conv_autoencoder),
        ("residual", models.residual_autoencoder),
    ):
        model, notes[run] = trained(builder(), run)
        encoder = model.get_layer("encoder")
        codes[run] = tuple(embedding.embed(encoder, x) for x in (images.x_train, images.x_test))
        redrawn[run] = model.predict(clean, verbose=0).reshape(len(clean), -1)
    codes["pixels"], notes["pixels"] = (flat_train, flat_test), "yardstick"
    rows = []
    for name, (gallery, asked) in codes.items():
        near = neighbors.NeighborIndex("euclidean").fit(gallery).query(asked, 10)[1]
        precision = (images.y_train[near] == images.y_test[:, None]).mean(axis=1)
        error = np.square(redrawn[name] - flat_test).mean(axis=1) if name in redrawn else None
        shown = "-" if error is None else interval(error)
        rows.append((name, shown, interval(precision), notes[name]))
    columns = ["10 dimensions", "test MSE (reach 0.0185)", "precision at 10 (reach 0.28)", ""]
    print(pd.DataFrame(rows, columns=columns).set_index("10 dimensions").to_string(), "\n")

    noisy = data.add_noise(images.x_test, SIGMA, seed=SEED + 1)
    cleaner, note = trained(models.denoising_autoencoder(num_blocks=2), "denoising/denoiser")
    once = cleaner.predict(noisy, verbose=0)
    cleaned = (once + cleaner.predict(noisy[:, :, ::-1], verbose=0)[:, :, ::-1]) / 2
    rows = [
        ("noisy", interval(metrics.psnr(noisy, clean)), "yardstick"),
        ("denoising_autoencoder", interval(metrics.psnr(once, clean)), note),
        ("mean of it and its mirror image", interval(metrics.psnr(cleaned, clean)), ""),
    ]
    some = slice(0, BM3D_IMAGES)
    by_patches = np.stack(
        [
            denoise_nl_means(x, 3, 6, STRENGTH * SIGMA, sigma=SIGMA, channel_axis=-1)
            for x in noisy[some]
        ]
    )
    note = f"yardstick, first {BM3D_IMAGES} images"
    rows.append(
        ("non-local means", interval(metrics.psnr(by_patches.clip(0, 1), clean[some])), note)
    )
    ours = metrics.psnr(cleaned[some], clean[some])
    rows.append(("mean of it and its mirror image", interval(ours), note[11:]))
    try:
        from bm3d import bm3d_rgb
    except ImportError:
        print("BM3D is not installed: pip install -r benchmarks/requirements.txt")
    else:
        matched = np.stack([bm3d_rgb(x, SIGMA) for x in noisy[some]]).astype("float32")
        theirs = metrics.psnr(matched.clip(0, 1), clean[some])
        rows.append(("BM3D", interval(theirs), note))
        rows.append(("ours less BM3D, in pairs", interval(ours - theirs), note[11:]))
    columns = [f"sigma {SIGMA}, clipped", "PSNR, dB (reach 29.5)", ""]
    print(pd.DataFrame(rows, columns=columns).set_index(columns[0]).to_string())


if __name__ == "__main__":
    main()
