"""Batches of noisy images, for networks that predict the noise or its standard deviation."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_classes
from kerasim.data._augmentation import Augment
from kerasim.data._batches import Batches
from kerasim.data._noise import check_noise, noisy_images
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.schedules import NoiseSchedule


class DiffusionBatches(Batches):
    """Batches for a network that predicts the noise, such as `models.unet` builds.

    A batch is `({"images": x_t, "t": t}, noise)`, with "labels" in the dict if `labels` is given.
    `t` is a random step for each image, `noise` is standard Gaussian noise, float32 of the shape of
    the images, and `x_t` are the images in model space, `2 image - 1`, with the noise of step `t`
    added. With `weighting="velocity"` a batch has a third element, the sample weights, float32
    `(batch, 1, 1)`. Steps and noise are drawn again in each epoch.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        schedule: `diffusion.NoiseSchedule`.
        labels: `(n,)` integers from 0, for a class-conditional network; None for none.
        drop_label: Share of images, 0 to 1, whose label is replaced by -1 (no label); guidance
            needs a share above 0.
        steps: `(first, last)` of the schedule to draw from; None for all.
        weighting: "noise" weights the errors of the predicted noise equally at all steps.
            "velocity", for a network built with a `schedule`, weights them by `1 / abar`, 25,000
            at most: the loss is then that of the predicted velocity.
        batch_size: Images per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        flip: Mirror half of the images, left to right.
        shift: Shift each image by up to this many pixels up, down, left and right, repeating its
            edge.
        augment: Layer of Keras such as `keras.layers.RandAugment()`, function `augment(images,
            rng)`, or list of these, applied after `flip` and `shift`; see `ImageBatches`.

    Raises:
        ArgumentError: If labels, steps or shares do not fit.
        ArgumentTypeError: If `steps` are not two numbers, or labels are not integers.

    Example:
        >>> from kerasim.schedules import NoiseSchedule
        >>> images = np.random.default_rng(0).random((40, 16, 16, 1))
        >>> inputs, noise = DiffusionBatches(images, NoiseSchedule(1000), batch_size=8)[0]
        >>> inputs["images"].shape, inputs["t"].shape, noise.shape
        ((8, 16, 16, 1), (8,), (8, 16, 16, 1))

    Reference:
        Ho et al., 2020. https://arxiv.org/abs/2006.11239; velocity: Salimans & Ho, 2022.
        https://arxiv.org/abs/2202.00512
    """

    _config_keys = ("schedule", "steps", "weighting", "labels", "drop_label")

    def __init__(
        self,
        images: ArrayLike | ImageFolder,
        schedule: NoiseSchedule,
        labels: ArrayLike | None = None,
        drop_label: float = 0.1,
        steps: tuple[int, int] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        weighting: Literal["noise", "velocity"] = "noise",
        *,
        flip: bool = False,
        shift: int = 0,
        augment: Augment | None = None,
    ):
        super().__init__(images, batch_size, seed, 0.0, flip, shift, augment)
        _checks.instance("schedule", schedule, NoiseSchedule, "pass a diffusion.NoiseSchedule")
        steps = (0, schedule.steps - 1) if steps is None else steps
        if not isinstance(steps, (tuple, list)) or len(steps) != 2:
            raise ArgumentTypeError(f"steps={steps!r} must be (first, last), such as (0, 99).")
        last = _checks.integer("steps[1]", steps[1], 0, schedule.steps - 1)
        self.steps = _checks.integer("steps[0]", steps[0], 0, last), last
        _checks.one_of("weighting", weighting, ("noise", "velocity"))
        self.schedule, self.weighting = schedule, weighting
        self.drop_label = _checks.number("drop_label", drop_label, 0, 1)
        self.labels = None if labels is None else check_classes(labels, len(self.images))
        if labels is not None:
            self._refuse_mixing("labels are class numbers")

    def __getitem__(self, index: int):
        (rows,), rng = self._batch_indices(index)
        x = 2 * self._augmented(rows, rng) - 1
        noise = rng.standard_normal(x.shape, dtype="float32")
        t = rng.integers(self.steps[0], self.steps[1] + 1, len(x)).astype("int32")
        inputs = {"images": self.schedule.add_noise(x, noise, t), "t": t}
        if self.labels is not None:
            dropped = rng.random(len(x)) < self.drop_label
            inputs["labels"] = np.where(dropped, -1, self.labels[rows]).astype("int32")
        if self.weighting == "noise":
            return inputs, noise
        # At the last steps of a cosine schedule abar is so small that the velocity is lost in
        # float32 rounding.
        weights = 1 / np.maximum(self.schedule.alphas_cumprod[t], 1 / 25_000)
        return inputs, noise, weights.astype("float32")[:, None, None]


class NoiseBatches(Batches):
    """Batches of noisy images, for networks that estimate the noise, denoise or classify.

    A batch is `(noisy, sigma)`: images with noise, and its standard deviation, float32
    `(batch, 1)`. With another `target` it is `(noisy, images)` or `(noisy, targets)`.

    The noise is Gaussian, of a standard deviation that is drawn for each image, log-uniformly from
    `low` to `high`, and is not clipped to [0, 1]. For the images of files pass `clip=True, bits=8`,
    for those of cameras a `gain` as well: see `add_noise`. With a gain, `sigma` is the root of
    the mean variance of the noise in that image, before it is clipped.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        low: Smallest standard deviation of the Gaussian noise, in units of [0, 1]; above 0.
        high: Largest standard deviation; `low` or more.
        target: "sigma", for `models.noise_estimator`; "images", for a denoiser; or an array of one
            target per image, such as labels.
        batch_size: Images per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        flip: Mirror half of the images, left to right.
        shift: Shift each image by up to this many pixels up, down, left and right, repeating its
            edge.
        augment: Layer of Keras such as `keras.layers.RandAugment()`, function `augment(images,
            rng)`, or list of these, applied after `flip` and `shift`; see `ImageBatches`.
        gain: Largest gain of Poisson noise; each image has one drawn uniformly from 0 to it.
        clip: Clip noisy images to [0, 1], as in a file.
        bits: Round them to the levels of a file of so many bits, 1 to 16; needs `clip=True`.
        sigma_input: True for a network with an input for sigma, such as
            `models.denoising_autoencoder(sigma_input=True)`: the first element of a batch is then
            `{"images": noisy, "sigma": sigma}`. Not with `target="sigma"`.

    Attributes:
        noise: The settings of the noise, `low`, `high`, `gain`, `clip` and `bits`, as a dict.

    Raises:
        ArgumentError: If `low` is not above 0, `high` is below it, `gain` is negative, or `bits`
            is out of range or given without `clip`.

    Example:
        >>> images = np.random.default_rng(0).random((40, 16, 16, 1))
        >>> noisy, sigma = NoiseBatches(images, low=0.05, high=0.4, batch_size=8)[0]
        >>> noisy.shape, sigma.shape
        ((8, 16, 16, 1), (8, 1))
    """

    _config_keys = ("low", "high", "target", "gain", "clip", "bits", "sigma_input")

    def __init__(
        self,
        images: ArrayLike | ImageFolder,
        low: float = 0.05,
        high: float = 0.8,
        target: Literal["sigma", "images"] | ArrayLike = "sigma",
        batch_size: int = 128,
        seed: int = 0,
        *,
        flip: bool = False,
        shift: int = 0,
        augment: Augment | None = None,
        gain: float = 0.0,
        clip: bool = False,
        bits: int | None = None,
        sigma_input: bool = False,
    ):
        super().__init__(images, batch_size, seed, 0.0, flip, shift, augment)
        self.gain, self.clip, self.bits = check_noise(gain, clip, bits)
        self.low = _checks.number("low", low, 1e-6)
        self.high = _checks.number("high", high, self.low)
        self.target = target
        if isinstance(target, str):
            _checks.one_of("target", target, ("sigma", "images"))
        else:
            self.target = _checks.same_length("target", target, len(self.images), "images")
            self._refuse_mixing("target belongs to single images")
        self.sigma_input = _checks.boolean("sigma_input", sigma_input)
        if sigma_input and isinstance(target, str) and target == "sigma":
            raise ArgumentError(
                'sigma_input=True gives the network what target="sigma" asks of it: pass '
                'target="images".'
            )

    @property
    def noise(self) -> dict[str, Any]:
        """The settings of the noise, for `denoising.Denoiser`."""
        return {name: getattr(self, name) for name in ("low", "high", "gain", "clip", "bits")}

    def __getitem__(self, index: int):
        (rows,), rng = self._batch_indices(index)
        images = self._augmented(rows, rng)
        sigma = np.exp(rng.uniform(np.log(self.low), np.log(self.high), len(images)))
        sigma = sigma.astype("float32")[:, None, None, None]
        gain: Any = rng.uniform(0, self.gain, sigma.shape) if self.gain else 0.0
        noisy = noisy_images(images, sigma, rng, gain, self.clip, self.bits)
        if self.gain:
            sigma = np.sqrt(sigma**2 + gain * images.mean((1, 2, 3), keepdims=True))
        sigma = sigma.astype("float32")[:, :, 0, 0]
        inputs = {"images": noisy, "sigma": sigma} if self.sigma_input else noisy
        if isinstance(self.target, np.ndarray):
            return inputs, self.target[rows]
        return inputs, sigma if self.target == "sigma" else images
