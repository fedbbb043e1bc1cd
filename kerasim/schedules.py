"""Noise schedules of diffusion."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks

__all__ = ["NoiseSchedule"]


class NoiseSchedule:
    """The shares of image and noise at each step of the forward diffusion process.

    The noisy image of step `t` (from 0) is `sqrt(abar_t) x + sqrt(1 - abar_t) noise`, with images
    `x` scaled to [-1, 1]. "linear" has betas from 1e-4 to 0.02. "cosine" has the betas of a
    squared cosine, 0.999 at most. A linear schedule of far fewer than 1,000 steps leaves part of
    the image visible at the last step.

    Args:
        steps: Number of steps, 1 or more.
        kind: "linear" or "cosine".

    Attributes:
        alphas_cumprod: `abar`, `(steps,)` float64, decreasing.
        sigmas: `(steps,)` float64, increasing: the standard deviation of the noise that gives an
            image in [0, 1] the signal-to-noise ratio of that step, `sqrt((1 - abar) / abar) / 2`.

    Raises:
        ArgumentError: If `steps` is less than 1, or `kind` is unknown.

    Example:
        >>> schedule = NoiseSchedule(steps=1000)
        >>> schedule.sigmas[[0, 500, 999]].round(3).tolist()
        [0.005, 1.721, 78.704]

    Reference:
        Ho et al., 2020. https://arxiv.org/abs/2006.11239; cosine: Nichol & Dhariwal, 2021.
        https://arxiv.org/abs/2102.09672
    """

    def __init__(self, steps: int = 1000, kind: Literal["linear", "cosine"] = "linear"):
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

    def add_noise(
        self, x: ArrayLike, noise: ArrayLike, t: np.ndarray | Sequence[int]
    ) -> np.ndarray:
        """Adds the noise of a step to each image.

        Args:
            x: Images `(n, ...)`, scaled to [-1, 1].
            noise: Samples of a standard Gaussian, of the shape of `x`.
            t: `(n,)` steps, integers from 0.

        Returns:
            `sqrt(abar_t) x + sqrt(1 - abar_t) noise`, of the shape of `x`; float32 for float32
            inputs.
        """
        left = self.alphas_cumprod[t].reshape(-1, *[1] * (np.ndim(x) - 1))
        return np.sqrt(left).astype("float32") * x + np.sqrt(1 - left).astype("float32") * noise

    def step_for_sigma(self, sigma: ArrayLike) -> np.ndarray:
        """Finds the step that has the signal-to-noise ratio of images with noise `sigma`.

        Args:
            sigma: Standard deviation of the noise of images in [0, 1], a number or an array.

        Returns:
            The nearest step, int64 of the shape of `sigma`.

        Raises:
            ArgumentError: If `sigma` is negative, not finite, or above that of the last step.
        """
        sigma = _checks.as_real_array("sigma", sigma).astype("float64")
        rows = sigma.reshape(-1)
        _checks.bad_rows("sigma", ~(rows >= 0), "a negative number or NaN")
        most = self.sigmas[-1]
        _checks.bad_rows("sigma", rows > most, f"noise above {most:.4g}, the schedule's last step,")
        # The nearest step changes half-way between two sigmas.
        return np.searchsorted((self.sigmas[1:] + self.sigmas[:-1]) / 2, sigma)
