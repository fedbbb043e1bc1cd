"""Noise schedules of diffusion."""

import numpy as np

from kerasim import _checks

__all__ = ["NoiseSchedule"]


class NoiseSchedule:
    """The shares of image and noise at each step of the diffusion process.

    Step t, from 0, holds `sqrt(abar_t) x + sqrt(1 - abar_t) noise` in model space. "linear" has
    betas from 1e-4 to 0.02, "cosine" those of a squared cosine, none above 0.999. A linear
    schedule of far fewer than 1,000 steps leaves part of the image at the last one.

    Args:
        steps: Number of steps, 1 or more.
        kind: "linear" or "cosine".

    Attributes:
        alphas_cumprod: abar, `(steps,)` float64, falling.
        sigmas: `(steps,)` float64, rising: the noise of an image in [0, 1] that has the
            signal-to-noise ratio of that step, `sqrt((1 - abar) / abar) / 2`.

    Raises:
        ArgumentError: If there are no steps, or the kind is not known.

    Reference:
        Ho et al., 2020. https://arxiv.org/abs/2006.11239; cosine: Nichol & Dhariwal, 2021.
        https://arxiv.org/abs/2102.09672
    """

    def __init__(self, steps: int = 1000, kind: str = "linear"):
        self.steps = _checks.integer("steps", steps)
        _checks.one_of("kind", kind, ("linear", "cosine"))
        self.kind = kind
        if kind == "linear":
            betas = np.linspace(1e-4, 0.02, self.steps)
        else:
            left = np.cos((np.linspace(0, 1, self.steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - left[1:] / left[:-1], 0.999)
        self.alphas_cumprod = np.cumprod(1 - betas)
        self.sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod) / 2

    def __repr__(self) -> str:
        return f"NoiseSchedule({self.steps}, {self.kind!r})"

    def add_noise(self, x, noise, t):
        """Adds the noise of a step to each image, in model space.

        Args:
            x: Images `(n, ...)` in [-1, 1].
            noise: Of the same shape, drawn from a standard Gaussian.
            t: `(n,)` steps, integers from 0.

        Returns:
            float32 of that shape, `sqrt(abar_t) x + sqrt(1 - abar_t) noise`.
        """
        left = self.alphas_cumprod[t].reshape(-1, *[1] * (np.ndim(x) - 1))
        return np.sqrt(left).astype("float32") * x + np.sqrt(1 - left).astype("float32") * noise

    def step_for_sigma(self, sigma):
        """Finds the step with the signal-to-noise ratio of images with noise `sigma`.

        Args:
            sigma: Standard deviation of the noise of images in [0, 1]; a number or an array.

        Returns:
            The nearest step; int64 of the shape of `sigma`.

        Raises:
            ArgumentError: If sigma is negative, not finite, or above that of the last step.
        """
        sigma = _checks.as_real_array("sigma", sigma).astype("float64")
        rows = sigma.reshape(-1)
        _checks.bad_rows("sigma", ~(rows >= 0), "a negative number or NaN")
        most = self.sigmas[-1]
        _checks.bad_rows("sigma", rows > most, f"noise above {most:.4g}, the schedule's last step,")
        # Half-way between two steps the nearer one changes.
        return np.searchsorted((self.sigmas[1:] + self.sigmas[:-1]) / 2, sigma)
