"""Solutions to the exercises of notebook 10, on the bundled digits and on normal distributions.

Run with: python notebooks/solutions/10-diffusion.py
"""

import keras
import numpy as np

from kerasim import data, diffusion, models, training

SEED = 0
STEPS = 190  # of training, for each schedule
VALIDATION = 240  # training images in the validation split
BANDS = ((0.02, 0.2), (0.2, 1.0), (1.0, 10.0))  # ranges of sigma


def train(x, y, schedule):
    """Trains a small U-Net that predicts the velocity, and returns it."""
    keras.utils.set_random_seed(SEED)
    network = models.unet(x.shape[1:], (16, 32), num_classes=10, schedule=schedule)
    batches = data.DiffusionBatches(
        x, schedule, y, 0.2, batch_size=32, seed=SEED, weighting="velocity"
    )
    epochs = round(STEPS / len(batches))
    rate = training.warmup_cosine(epochs * len(batches), 3e-3)
    network.compile(keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.98), "mse")
    training.fit(network, batches, epochs, verbose=0)
    return network


def velocity_error(network, x, y, schedule, low, high):
    """Returns the mean squared error of the velocity for sigma between `low` and `high`."""
    steps = tuple(int(schedule.step_for_sigma(sigma)) for sigma in (low, high))
    batches = data.DiffusionBatches(x, schedule, y, 0.0, steps, batch_size=len(x), seed=SEED + 1)
    inputs, noise = batches[0]
    error = np.square(network.predict_on_batch(inputs) - noise).mean(axis=(1, 2, 3))
    return np.mean(error / schedule.alphas_cumprod[inputs["t"]])


def exercise_1():
    """The schedule decides which noise levels a network practices most."""
    digits = data.load_dataset("digits")
    x, y = digits.x_train[:, 5:28:3, 5:28:3], digits.y_train
    for kind in ("linear", "cosine"):
        schedule = diffusion.NoiseSchedule(1000, kind)
        network = train(x[:-VALIDATION], y[:-VALIDATION], schedule)
        for low, high in BANDS:
            inside = np.mean((schedule.sigmas >= low) & (schedule.sigmas < high))
            error = velocity_error(network, x[-VALIDATION:], y[-VALIDATION:], schedule, low, high)
            print(
                f"{kind}, sigma {low:g} to {high:g}: {100 * inside:.0f} % of the steps, "
                f"error of the velocity {error:.4f}"
            )
    print("Within a range both schedules weight the noise levels differently, so the errors are")
    print("only roughly comparable. The shares show where each schedule spends its training.")


# A pixel with a normal distribution, in model space, and the range of noise levels.
MEAN, DEVIATION = -0.3, 0.5
LOG_SIGMAS = np.log(diffusion.NoiseSchedule(1000).sigmas)[[-1, 0]]


def rates(log_sigmas):
    """Returns the factors of the image and of the noise, from logarithms of sigma."""
    ratio = 2 * np.exp(log_sigmas)  # noise / image; sigma is in units of [0, 1]
    image = 1 / np.sqrt(1 + ratio**2)
    return image, ratio * image


def exact_noise(x, a, s, mean=MEAN, deviation=DEVIATION):
    """Returns the best prediction of the noise, if pixels are normally distributed."""
    return s * (x - a * mean) / (a**2 * deviation**2 + s**2)


def follow(x, calls, second_order):
    """Follows the path of x from the last to the first noise level; returns its end."""
    a, s = rates(np.linspace(*LOG_SIGMAS, calls + 1))
    lengths = np.diff(np.log(a / s))
    before = None
    for n, h in enumerate(lengths):
        x0 = (x - s[n] * exact_noise(x, a[n], s[n])) / a[n]
        clean = x0
        if second_order and before is not None:
            clean = x0 + h / (2 * lengths[n - 1]) * (x0 - before)
        x = s[n + 1] / s[n] * x - a[n + 1] * np.expm1(-h) * clean
        before = x0
    return x


def exercise_2():
    """DDIM is of first order, DPM-Solver++(2M) of second order."""
    x = np.random.default_rng(SEED).standard_normal(1000)
    (a, a_end), (s, s_end) = rates(LOG_SIGMAS)
    # The path keeps the number of standard deviations from the mean.
    units = (x - a * MEAN) / np.sqrt(a**2 * DEVIATION**2 + s**2)
    exact = a_end * MEAN + units * np.sqrt(a_end**2 * DEVIATION**2 + s_end**2)
    calls = np.array([20, 40, 80, 160, 320])
    for name, second_order in (("DDIM", False), ("DPM-Solver++(2M)", True)):
        errors = [np.sqrt(np.square(follow(x, n, second_order) - exact).mean()) for n in calls]
        slope = np.polyfit(np.log(calls), np.log(errors), 1)[0]
        listed = ", ".join(f"{n}: {error:.1e}" for n, error in zip(calls, errors, strict=True))
        print(f"{name}: {listed}; the error falls as calls to the power {slope:.2f}")


def guided_samples(guidance, calls=300, count=20_000):
    """Returns samples of the class at +0.6; the other one is at -0.6, both with sd 0.3."""
    x = np.random.default_rng(SEED).standard_normal(count)
    a, s = rates(np.linspace(*LOG_SIGMAS, calls + 1))
    for n in range(calls):
        variance = a[n] ** 2 * 0.3**2 + s[n] ** 2
        evidence = [np.exp(-((x - a[n] * mean) ** 2) / (2 * variance)) for mean in (0.6, -0.6)]
        noises = [exact_noise(x, a[n], s[n], mean, 0.3) for mean in (0.6, -0.6)]
        share = evidence[0] / (evidence[0] + evidence[1])
        unconditional = share * noises[0] + (1 - share) * noises[1]
        noise = noises[0] + guidance * (noises[0] - unconditional)
        x = a[n + 1] * (x - s[n] * noise) / a[n] + s[n + 1] * noise
    return x


def exercise_3():
    """Guidance pushes samples away from the other class, and reduces their variance."""
    for guidance in (0, 1, 4):
        x = guided_samples(guidance)
        print(
            f"guidance {guidance}: {100 * np.mean(x > 0):.2f} % on the side of the class, "
            f"mean {x.mean():.2f}, standard deviation {x.std():.3f}"
        )
    print("Without guidance the samples have the distribution of the class. With guidance they")
    print("are more typical of it than its images are: clearer, but less diverse.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
