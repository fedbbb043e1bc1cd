"""Solutions to the exercises of notebook 11, on the bundled digits.

Run with: python notebooks/solutions/11-diffusion-denoising.py
"""

import math

import keras
import numpy as np

from kerasim import data, diffusion, metrics, models, training

SEED = 0
BATCH_SIZE = 32
VALIDATION = 237  # training images in the validation split
STEPS = 190  # of each network
SCHEDULE = diffusion.NoiseSchedule(1000)


def load():
    """Returns the images of the training split and of the validation split."""
    digits = data.load_dataset("digits", image_size=24)
    return digits.x_train[:-VALIDATION], digits.x_train[-VALIDATION:]


def fit(model, batches, **average):
    """Trains a network for `STEPS` steps, in whole epochs."""
    epochs = math.ceil(STEPS / len(batches))
    rate = training.warmup_cosine(epochs * len(batches), 2e-3)
    model.compile(keras.optimizers.Adam(rate, **average), "mse")
    training.fit(model, batches, epochs, verbose=0)
    return model


def regression_network(x, gain):
    """Returns a regression network for files, trained on Gaussian and perhaps Poisson noise."""
    keras.utils.set_random_seed(SEED)
    network = models.denoising_autoencoder((24, 24, 1), (16, 32, 64))
    noise = {"low": 0.02, "high": 0.3, "gain": gain, "clip": True, "bits": 8}
    batches = data.NoiseBatches(x, target="images", batch_size=BATCH_SIZE, seed=SEED, **noise)
    return fit(network, batches)


def unet(x, last_step):
    """Returns a U-Net, trained on the steps of the schedule up to `last_step`."""
    keras.utils.set_random_seed(SEED)
    network = models.unet((24, 24, 1), (16, 32), patch_size=3, schedule=SCHEDULE)
    batches = data.DiffusionBatches(
        x,
        SCHEDULE,
        steps=(0, last_step),
        batch_size=BATCH_SIZE,
        seed=SEED,
        weighting="velocity",
    )
    return fit(network, batches, use_ema=True, ema_momentum=0.98)


def shown(new, old):
    """Returns the mean of paired differences and its 95 % interval as text."""
    low, high = metrics.bootstrap_interval(new - old, SEED)
    return f"{(new - old).mean():+.2f} dB ({low:+.2f} to {high:+.2f})"


def exercise_1():
    """A network trained for noise that grows with brightness is better on such noise."""
    x, x_val = load()
    files = data.add_noise(x_val, 0.05, seed=SEED + 1, gain=0.05, bits=8)
    found = {}
    for gain in (0.0, 0.05):
        denoised = regression_network(x, gain).predict(files, verbose=0)
        found[gain] = metrics.psnr(denoised, x_val)
        print(f"trained with gain {gain}: {found[gain].mean():.2f} dB")
    print(f"with gain minus without: {shown(found[0.05], found[0.0])}")


def exercise_2():
    """With eta 0 the noisy image alone determines the sample; with eta 1 the seeds differ most."""
    x, x_val = load()
    network = unet(x, int(SCHEDULE.step_for_sigma(0.8)))
    clean = x_val[:64]
    noisy = data.add_noise(clean, 0.5, seed=SEED + 1, clip=False)
    for eta in (0.0, 0.5, 1.0):
        settings = {"sigma": 0.5, "output": "sample", "steps": 12, "eta": eta}
        samples = [
            diffusion.denoise(network, SCHEDULE, noisy, seed=k, **settings)[0] for k in range(3)
        ]
        quality = np.mean([metrics.psnr(sample, clean).mean() for sample in samples])
        spread = np.std(samples, axis=0).mean()
        print(f"eta {eta}: PSNR {quality:.2f} dB, spread between seeds {spread:.4f}")


def exercise_3():
    """Steps that denoising does not use take training time from those that it does."""
    x, x_val = load()
    networks = {
        "whole schedule": unet(x, SCHEDULE.steps - 1),
        "up to sigma 0.8": unet(x, int(SCHEDULE.step_for_sigma(0.8))),
    }
    for sigma in (0.1, 0.25, 0.5):
        noisy = data.add_noise(x_val, sigma, seed=SEED + 1, clip=False)
        found = {
            name: metrics.psnr(diffusion.denoise(network, SCHEDULE, noisy, sigma)[0], x_val)
            for name, network in networks.items()
        }
        gap = shown(found["up to sigma 0.8"], found["whole schedule"])
        print(f"sigma {sigma}, up to sigma 0.8 minus whole schedule: {gap}")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
