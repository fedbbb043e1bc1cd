"""Sampling and denoising with networks that predict the noise.

A `NoiseSchedule` defines the noise level of each step. `models.unet` is trained on
`data.DiffusionBatches` to predict the noise in an image. `sample` starts from pure noise and
removes part of it at each step; `denoise` starts from a noisy image, at the step with the same
noise level. Both run the same reverse process, which is compiled as one graph for each network.
Model space, in which the noise is added, is `x = 2 image - 1`; public functions take and return
images in [0, 1].
"""

import threading
from typing import Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from kerasim import _checks, _image_checks, data
from kerasim._folders import ImageFolder
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.schedules import NoiseSchedule

__all__ = [
    "NoiseSchedule",
    "denoise",
    "sample",
]

_BATCH_SIZE = 128  # images per call of a network
Solver = Literal["ddim", "dpmpp_2m"]


def sample(
    model: keras.Model,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int, int],
    steps: int = 50,
    eta: float = 0.0,
    labels: ArrayLike | None = None,
    guidance: float = 0.0,
    seed: int = 0,
    solver: Solver = "ddim",
) -> np.ndarray:
    """Generates images from pure noise.

    Args:
        model: Network such as `models.unet` builds, trained on `data.DiffusionBatches`.
        schedule: The schedule that it was trained with.
        shape: `(n, height, width, channels)`.
        steps: Number of calls of the network, from 1 to the number of steps of the schedule. They
            are spread evenly over the schedule (with "dpmpp_2m" over the logarithm of the noise
            level), from the last step at which the image has 4e-5 or more of the variance (in a
            linear schedule of 1,000 steps: the last one).
        eta: Share of the noise that is drawn again at each step, 0 to 1. 0 is DDIM, which draws
            none; 1 is DDPM, if `steps` is the number of steps of the schedule.
        labels: `(n,)` integers, for a class-conditional network; None for no class.
        guidance: Weight of classifier-free guidance, 0 or more. The noise is predicted as
            `eps_c + guidance (eps_c - eps_none)`; 0 is conditioning on the label alone.
        seed: The same seed draws the same images.
        solver: "ddim", or "dpmpp_2m" for DPM-Solver++(2M), which also uses the call before. Its
            error in a few steps is smaller, and it draws no noise: `eta` is 0.

    Returns:
        `(n, height, width, channels)` float32 in [0, 1].

    Raises:
        ArgumentError: If the schedule, shape, steps or labels do not fit the network, or `eta` is
            not 0 with "dpmpp_2m".
        ArgumentTypeError: If the model does not take images and steps.

    Example:
        >>> from kerasim import models
        >>> network = models.unet((8, 8, 1), widths=(8,))
        >>> images = sample(network, NoiseSchedule(1000), shape=(2, 8, 8, 1), steps=5)
        >>> images.shape, images.dtype.name
        ((2, 8, 8, 1), 'float32')

    Reference:
        Ho et al., 2020. https://arxiv.org/abs/2006.11239; Song et al., 2021.
        https://arxiv.org/abs/2010.02502; DPM-Solver++(2M): Lu et al., 2022.
        https://arxiv.org/abs/2211.01095; guidance: Ho & Salimans, 2022.
        https://arxiv.org/abs/2207.12598
    """
    image_shape = _check_model(model, schedule)
    if np.shape(shape) != (4,) or tuple(shape[1:]) != image_shape:
        size = ", ".join(map(str, image_shape))
        raise ArgumentError(f"shape={shape} must be (n, {size}), the image shape of the network.")
    left = schedule.alphas_cumprod[-1]
    if left > 0.01:
        raise ArgumentError(
            f"the last step of schedule keeps {100 * np.sqrt(left):.0f} % of the image, "
            'expected pure noise: pass more steps, or kind="cosine".'
        )
    n = _checks.integer("shape[0]", shape[0])
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    noise = rng.standard_normal((n, *image_shape), dtype="float32")
    # At the last steps of a cosine schedule the image has so little of the variance that any error
    # of the network would be amplified.
    start = np.full(n, np.flatnonzero(schedule.alphas_cumprod >= 4e-5)[-1])
    eta = _check_solver(solver, eta)
    return _reverse(model, schedule, noise, start, steps, eta, labels, guidance, seed, solver)


def denoise(
    model: keras.Model,
    schedule: NoiseSchedule,
    images: ArrayLike | ImageFolder,
    sigma: ArrayLike | None = None,
    estimator: keras.Model | None = None,
    output: Literal["mean", "sample"] = "mean",
    steps: int = 50,
    eta: float | None = None,
    labels: ArrayLike | None = None,
    guidance: float = 0.0,
    seed: int = 0,
    solver: Solver = "ddim",
) -> tuple[np.ndarray, np.ndarray]:
    """Denoises images: starts the reverse process at the step with their noise level.

    Args:
        model: Network such as `models.unet` builds, trained on `data.DiffusionBatches`.
        schedule: The schedule that it was trained with.
        images: `(n, height, width, channels)`, float or uint8, or an `ImageFolder`: images in
            [0, 1] with Gaussian noise that was not clipped; values may lie 8 sigma outside [0, 1].
        sigma: Standard deviation of that noise, in units of [0, 1], up to 5: a number, or `(n,)`.
            None for what `estimator` predicts for each image.
        estimator: Model from images to sigma, such as `models.noise_estimator` builds.
        output: "mean" for the posterior mean of the clean image, in one call of the network (the
            best PSNR, but blurred); "sample" for a sample of the posterior (sharp).
        steps: Number of calls of the network for a sample, spread evenly from the step of the noise
            level down to 0; at most `schedule.steps`. Ignored for a mean.
        eta: How much fresh noise each step draws, 0 to 1: 0 is DDIM, which draws none; 1 is DDPM.
            None for 1, or 0 with "dpmpp_2m". Ignored for a mean.
        labels: `(n,)` class numbers for a class-conditional network; None to denoise without them.
        guidance: Weight of classifier-free guidance, 0 or more. The noise is predicted as
            `eps_c + guidance (eps_c - eps_none)`; 0 is conditioning on the label alone.
        seed: The same seed draws the same images. Ignored for a mean.
        solver: As in `sample`. Ignored for a mean.

    Returns:
        The denoised images, float32 in [0, 1], and the sigma of each, `(n,)` float64.

    Raises:
        ArgumentError: If images, sigma, steps or labels do not fit the network or the schedule.
        ArgumentTypeError: If the model does not take images and steps, or the images are neither
            float nor uint8.

    Example:
        >>> from kerasim import data, models
        >>> network = models.unet((8, 8, 1), widths=(8,))
        >>> noisy = data.add_noise(np.full((2, 8, 8, 1), 0.5), sigma=0.1, clip=False)
        >>> images, sigma = denoise(network, NoiseSchedule(1000), noisy, sigma=0.1)
        >>> images.shape, sigma.tolist()
        ((2, 8, 8, 1), [0.1, 0.1])

    Reference:
        Ho et al., 2020. https://arxiv.org/abs/2006.11239; the mean: Efron, 2011, Tweedie's
        formula and selection bias.
    """
    _checks.one_of("output", output, ("mean", "sample"))
    eta = _check_solver(solver, eta)
    images = _image_checks.check_shape("images", images, _check_model(model, schedule))
    steps = _checks.integer("steps", steps, 1, schedule.steps)
    images = np.asarray(images[:])
    if images.dtype.kind != "f" and images.dtype != np.uint8:
        raise ArgumentTypeError(f"images must be float or uint8, not {images.dtype}. Convert them.")
    images = data.as_float(images)
    _checks.finite("images", images)
    if (sigma is None) == (estimator is None):
        raise ArgumentError(
            f"sigma and estimator are both {'None' if sigma is None else 'given'}: "
            "pass sigma, or a model such as models.noise_estimator."
        )
    if sigma is None:
        shape, width = _image_checks.check_embedder("estimator", estimator)
        _image_checks.check_shape("images", images, shape)
        if width != 1:
            raise ArgumentError(
                f"estimator returns {width} numbers for an image: pass a model that returns "
                "one, such as models.noise_estimator."
            )
        sigma = _Sampler.of(estimator).predict(images)[:, 0] if len(images) else []
    sigma = _checks.as_real_array("sigma", sigma).astype("float64")
    if sigma.ndim:
        _checks.same_length("sigma", sigma, len(images), "images", 1)
    sigma = np.broadcast_to(sigma, len(images)).copy()
    _checks.bad_rows("sigma", sigma > 5, "noise above 5, in units of [0, 1] (divided by 255?),")
    t = schedule.step_for_sigma(sigma)
    # One in fifty sets of 10,000 images of 1,024 pixels has a value 6 sigma away; none has 8 sigma.
    far = np.maximum(-images.min((1, 2, 3)), images.max((1, 2, 3)) - 1) > 8 * sigma + 1e-6
    _checks.bad_rows("images", far, "values more than 8 sigma outside [0, 1]")
    left = np.sqrt(schedule.alphas_cumprod[t]).astype("float32")
    x = left[:, None, None, None] * (2 * images - 1)
    steps = 1 if output == "mean" else min(steps, int(t.max(initial=0)) + 1)
    return _reverse(model, schedule, x, t, steps, eta, labels, guidance, seed, solver), sigma


def _check_solver(solver, eta) -> float:
    """Returns eta as a number: by default 1 for "ddim" and 0 for "dpmpp_2m"."""
    _checks.one_of("solver", solver, ("ddim", "dpmpp_2m"))
    if eta is None:
        return 1.0 if solver == "ddim" else 0.0
    if _checks.number("eta", eta, 0, 1) and solver == "dpmpp_2m":
        raise ArgumentError(
            f'eta={eta} is not possible with solver="dpmpp_2m", which draws no noise: pass '
            'eta=0, or solver="ddim".'
        )
    return eta


def _check_model(model, schedule) -> tuple[int, int, int]:
    """Returns the image shape of a network, if it takes images and t and fits the schedule."""
    _checks.instance("schedule", schedule, NoiseSchedule, "pass a diffusion.NoiseSchedule")
    inputs = {x.name: x for x in model.inputs} if isinstance(model, keras.Model) else {}
    if not {"images", "t"} <= set(inputs):
        raise ArgumentTypeError(
            "model must be a keras.Model with inputs named images and t. Received "
            f"{type(model).__name__} with {sorted(inputs)}: pass a model such as "
            "models.unet."
        )
    check_schedule("schedule", model, schedule)
    return inputs["images"].shape[1:]


def check_schedule(name: str, model, schedule) -> None:
    """Refuses a schedule that is not the one that a network was built with, if it has one.

    Args:
        name: Argument that a message names.
        model: Network such as `models.unet` builds.
        schedule: `NoiseSchedule`.

    Raises:
        ArgumentError: If the network was built with another schedule.
    """
    if "schedule" in [layer.name for layer in model.layers]:
        known = model.get_layer("schedule").get_weights()[0][:, 1] ** 2
        abar = schedule.alphas_cumprod
        if len(known) != len(abar) or not np.allclose(known, abar, rtol=1e-3, atol=1e-9):
            raise ArgumentError(
                f"{name}={schedule} is not the one that the network was built with. Pass "
                f"the original one, which has {len(known)} steps and ends at abar "
                f"{known[-1]:.2g}."
            )


def _check_labels(model, labels, guidance, n):
    """Returns labels for the network: those given, or -1 for no class; None if it takes none."""
    if _checks.number("guidance", guidance, 0) and labels is None:
        raise ArgumentError(f"guidance={guidance} needs labels: pass labels, or guidance=0.")
    if "labels" not in [x.name for x in model.inputs]:
        if labels is not None:
            raise ArgumentError(
                "labels are given, but the network takes none: leave them out, or build "
                "the network with num_classes and train it with labels."
            )
        return None
    if labels is None:
        return np.full(n, -1)
    # The last row of the embedding means that there is no label.
    classes = model.get_layer("class_embedding").input_dim - 1
    return _image_checks.check_classes(labels, n, classes)


def _coefficients(before, after, eta):
    """Returns a, b, c of a reverse step, `a x + b eps + c noise`, from one abar to the next."""
    variance = eta**2 * (1 - after) / (1 - before) * (1 - before / after)
    a = np.sqrt(after / before)
    b = np.sqrt(1 - after - variance) - a * np.sqrt(1 - before)
    return np.stack([a, b, np.sqrt(variance)], axis=-1)


def _spread(schedule, starts, steps, solver):
    """Returns the steps of the schedule from each of `starts` down to 0, `(n, steps)` int32.

    DDIM is spread evenly over the steps, DPM-Solver++ over the logarithm of the noise level: over
    the steps, its last ones would be too long to extrapolate from those before them.
    """
    if solver == "ddim":
        return np.round(np.linspace(starts, 0, steps)).astype("int32").T
    levels = np.log(schedule.sigmas)
    wanted = np.linspace(levels[starts], levels[0], steps).T
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, wanted).astype("int32")


def _multistep_coefficients(left):
    """Returns the coefficients of DPM-Solver++(2M) for each step between these abar.

    With the clean image `y = u x + v eps` of this call of the network and `z` of the call before, a
    step is `p x + q y + r z`.

    Args:
        left: `(n, steps + 1)` abar, from the first step to 1, the clean image. An abar may repeat.

    Returns:
        `(n, steps, 5)`: u, v, p, q, r.
    """
    alpha, sigma = np.sqrt(left), np.sqrt(1 - left)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(alpha) - np.log(sigma)  # infinite for the clean image
    length = np.diff(log_ratio)
    before = np.pad(length[:, :-1], ((0, 0), (1, 0)))  # 0 before the first step
    # The last step, and one after a step of length 0, use the clean image of their own call alone.
    extrapolates = (before > 0) & np.isfinite(length)
    share = np.where(extrapolates, length, 0) / np.where(extrapolates, 2 * before, 1)
    change = -alpha[:, 1:] * np.expm1(-length)
    u, v = 1 / alpha[:, :-1], -sigma[:, :-1] / alpha[:, :-1]
    p, q, r = sigma[:, 1:] / sigma[:, :-1], change * (1 + share), -change * share
    return np.stack([u, v, p, q, r], axis=-1)


def _reverse(model, schedule, x, start, steps, eta, labels, guidance, seed, solver):
    """Runs the reverse process from x, at step `start` of each image, and returns images."""
    steps = _checks.integer("steps", steps, 1, schedule.steps)
    seed = _checks.integer("seed", seed, 0, 2**31 - 1)
    labels = _check_labels(model, labels, guidance, len(x))
    if not len(x):
        return x
    # An image that starts at a small step repeats steps: from an abar to itself nothing changes.
    starts, which = np.unique(start, return_inverse=True)
    t = _spread(schedule, starts, steps, solver)
    left = np.pad(schedule.alphas_cumprod[t], ((0, 0), (0, 1)), constant_values=1.0)
    if solver == "ddim":
        table = _coefficients(left[:, :-1], left[:, 1:], eta)
    else:
        table = _multistep_coefficients(left)
    inputs = {"images": x, "t": t[which], "table": table[which].astype("float32")}
    if labels is not None:
        inputs["labels"] = labels.astype("int32")
        inputs["guidance"] = np.full(len(x), guidance, "float32")
    x = _Sampler.of(model).reverse(inputs, guidance > 0, solver, seed)
    return np.clip((x + 1) / 2, 0, 1)


class _Sampler:
    """Calls a network, and runs its reverse process, for one thread at a time.

    The first call compiles a graph; later calls with the same network use it again. The sampler is
    kept in an attribute of the network, so that both are freed together.
    """

    _creation = threading.Lock()

    @classmethod
    def of(cls, model) -> "_Sampler":
        """Returns the sampler of a network, made at the first call."""
        with cls._creation:
            # Not by `setattr`, for which Keras would track it as a part of the network.
            return vars(model).setdefault("_kerasim_sampler", cls(model))

    def __init__(self, model):
        self._model = model
        self._processes: dict = {}  # by whether guided, and solver
        self._lock = threading.Lock()

    def predict(self, inputs) -> np.ndarray:
        """Returns the outputs of the network for arrays of equal length."""
        with self._lock:
            return _predict(self._model, inputs)

    def reverse(self, inputs, guided: bool, solver: Solver, seed: int) -> np.ndarray:
        """Returns the images, in model space, at the end of the reverse process.

        Args:
            inputs: As `_ReverseProcess` takes them.
            guided: Whether `inputs` hold labels and weights of classifier-free guidance.
            solver: Solver that the coefficients in `inputs` are of.
            seed: Seed of the noise that is drawn on the way.
        """
        kind = _ReverseProcess if solver == "ddim" else _MultistepProcess
        with self._lock:
            if (guided, solver) not in self._processes:
                self._processes[guided, solver] = kind(self._model, guided)
            process = self._processes[guided, solver]
            process.seeds.state.assign(_first_state(seed))
            return _predict(process, inputs)


def _first_state(seed: int) -> list[int]:
    """Returns the state of a `keras.random.SeedGenerator` that begins with `seed`.

    The second number of a state counts batches and steps. Keras on torch adds both numbers, so that
    the second batch of seed 0 would get the noise of the first batch of seed 1. There the seed is
    hashed, which puts the sums of different seeds far apart.
    """
    if keras.backend.backend() == "torch":
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)  # below 2**31
    return [seed, 0]


def _predict(model, inputs):
    """Returns the outputs of `model` for arrays of equal length, as `model.predict` would.

    On TensorFlow `model.predict` reads batches through tf.data, whose tuner sleeps for 10 ms, then
    for twice as long each time, and can miss the end: then three seconds of work take five.
    """
    outputs = []
    for start in range(0, len(keras.tree.flatten(inputs)[0]), _BATCH_SIZE):
        part = slice(start, start + _BATCH_SIZE)
        batch = keras.tree.map_structure(lambda x, part=part: x[part], inputs)
        rows = len(keras.tree.flatten(batch)[0])
        # Each of several devices returns all rows: those of the first are kept.
        outputs.append(np.asarray(model.predict_on_batch(batch))[:rows])
    return np.concatenate(outputs)


class _Carried(keras.random.SeedGenerator):
    """A seed that the loop passes on, because no variable can change inside of it."""

    def __init__(self, seed):
        self.seed = seed

    def next(self, ordered=True):
        return self.seed


class _ReverseProcess(keras.Model):
    """All steps of the reverse process, in one graph.

    Its inputs are a dict of
        images: `(n, height, width, channels)`, in model space.
        t: `(n, steps)` step of the schedule at which each call of the network happens.
        table: `(n, steps, 3)` the `_coefficients` of each step.
        labels: `(n,)`, for a class-conditional network.
        guidance: `(n,)` weights, beside labels.

    Args:
        model: The network.
        guided: Whether to call it without labels, too.
    """

    def __init__(self, model, guided):
        super().__init__(name="reverse_process", dtype="float32")  # under any dtype policy
        self.model, self.guided = model, guided
        self.seeds = keras.random.SeedGenerator(0)
        self.built = True  # or JAX would run it once more to see its shapes

    def call(self, inputs):
        t, table = inputs["t"], inputs["table"]
        seed = self.seeds.next()  # of this batch
        next_step = ops.convert_to_tensor(np.array([0, 2**16]), dtype=seed.dtype)

        def step(n, x):
            a, b, c = (table[:, n, k][:, None, None, None] for k in range(3))
            drawn = _Carried(seed + next_step * ops.cast(n + 1, seed.dtype))
            fresh = keras.random.normal(ops.shape(x), dtype="float32", seed=drawn)
            return a * x + b * self._noise_in(x, t[:, n], inputs) + c * fresh

        return ops.fori_loop(0, ops.shape(t)[1], step, inputs["images"])

    def _noise_in(self, x, t, inputs):
        """Returns the noise that the network predicts, with classifier-free guidance."""
        network = {"images": x, "t": t}
        if "labels" in inputs:
            network["labels"] = inputs["labels"]
        noise = self.model(network, training=False)
        if self.guided:
            no_labels = {"labels": ops.full_like(inputs["labels"], -1)}
            unconditional = self.model({**network, **no_labels}, training=False)
            guidance = inputs["guidance"][:, None, None, None]
            noise += guidance * (noise - unconditional)
        return noise


class _MultistepProcess(_ReverseProcess):
    """The reverse process of DPM-Solver++(2M); `table` is `(n, steps, 5)`."""

    def call(self, inputs):
        t, table = inputs["t"], inputs["table"]

        def step(n, state):
            x, before = state
            u, v, p, q, r = (table[:, n, k][:, None, None, None] for k in range(5))
            clean = u * x + v * self._noise_in(x, t[:, n], inputs)
            return p * x + q * clean + r * before, clean

        x = inputs["images"]
        return ops.fori_loop(0, ops.shape(t)[1], step, (x, ops.zeros_like(x)))[0]
