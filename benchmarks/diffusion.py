"""The sampler beside loops in Python; denoising of MNIST by the U-Net of notebook 10 beside BM3D.

The first table needs no training: time does not depend on the weights. The second needs what
`make notebooks` trained on MNIST in `runs/notebooks`.
"""

import sys
import time
from pathlib import Path

import bm3d
import keras
import numpy as np
import pandas as pd

from kerasim import data, diffusion, metrics, models, training

RUN = Path("runs/notebooks/mnist/unet-large")
IMAGES, STEPS, BM3D_IMAGES, SEED = 64, 50, 200, 0
SHAPE, SCHEDULE = (32, 32, 1), diffusion.NoiseSchedule(1000)


def loop(call):
    """DDIM as one writes it at first: a call of the network, then NumPy, for each step."""
    x = np.random.default_rng(SEED).standard_normal((IMAGES, *SHAPE), dtype="float32")
    steps = np.round(np.linspace(SCHEDULE.steps - 1, 0, STEPS)).astype("int32")
    abar = np.append(SCHEDULE.alphas_cumprod[steps], 1.0).astype("float32")
    for step, now, then in zip(steps, abar[:-1], abar[1:], strict=True):
        noise = np.asarray(call({"images": x, "t": np.full(IMAGES, step)}))
        x = np.sqrt(then / now) * (x - np.sqrt(1 - now) * noise) + np.sqrt(1 - then) * noise
    return np.clip((x + 1) / 2, 0, 1)


def seconds(ways):
    """The best of five runs of each way, in turns (a host's speed drifts), and what it returns."""
    drawn = {name: call() for name, call in ways.items()}
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(5):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            times[name] = min(times[name], time.perf_counter() - start)
    return {name: (times[name], drawn[name]) for name in ways}


def sampler():
    rows = []
    for settings in ({"widths": (48, 96), "patch": 2}, {"widths": (32, 64, 128)}):
        model = models.unet(SHAPE, **settings)
        rng = np.random.default_rng(SEED)
        for weight in model.trainable_weights:  # before training it would say that there is none
            weight.assign(weight + 0.01 * rng.standard_normal(weight.shape))
        ways = {
            "diffusion.sample": lambda m=model: diffusion.sample(
                m, SCHEDULE, (IMAGES, *SHAPE), STEPS, seed=SEED
            ),
            "eager model(x)": lambda m=model: loop(m),
            "predict_on_batch": lambda m=model: loop(m.predict_on_batch),
        }
        results = seconds(ways)
        ours, expected = results["diffusion.sample"]
        for name, (taken, drawn) in results.items():
            np.testing.assert_allclose(drawn, expected, atol=1e-3)
            rows.append((f"{settings}", model.count_params(), name, taken, ours / taken))
    columns = ["U-Net", "weights", "way", "seconds", "ours / that"]
    print(f"{IMAGES} images, {STEPS} steps")
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))


def denoising():
    if not RUN.exists():
        sys.exit(f"{RUN} is missing: run KERASIM_DATA_DIR=<folder> make notebooks first.")
    clean = data.load_dataset("mnist", image_size=32).x_test[:BM3D_IMAGES]
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = models.unet(
        SHAPE,
        (48, 96, 192),
        num_attention_stages=2,
        num_classes=10,
        patch_size=2,
        schedule=SCHEDULE,
    )
    keras.config.set_dtype_policy("float32")
    training.load_weights(model, RUN)
    rows = []
    for n, sigma in enumerate((0.1, 0.25, 0.5), start=1):
        noisy = data.add_noise(clean, sigma, seed=SEED + n, clip=False)
        blocks = [bm3d.bm3d(x[..., 0], sigma) for x in noisy]
        peer = metrics.psnr(np.clip(blocks, 0, 1)[..., None], clean)
        ours = metrics.psnr(diffusion.denoise(model, SCHEDULE, noisy, sigma)[0], clean)
        low, high = metrics.bootstrap_interval(ours - peer)
        between = f"{low:.2f} to {high:.2f}"
        rows.append((sigma, peer.mean(), ours.mean(), (ours - peer).mean(), between))
    columns = ["sigma", "BM3D", "diffusion mean", "difference", "95 %"]
    print(f"\nPSNR in dB, the first {BM3D_IMAGES} test images, noise not clipped, sigma known")
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))


if __name__ == "__main__":
    sampler()
    denoising()
