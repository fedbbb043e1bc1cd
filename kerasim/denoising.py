"""Denoising of images of any size with one saved object.

A `Denoiser` holds a network that denoises, a network that estimates how much noise an image has,
and the kind of noise that both were trained for. `Denoiser.load(path)(images)` needs nothing else.
"""

import io
import math
import os
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from tqdm import tqdm

from kerasim import _artifacts, _checks, _image_checks, _keras_files, _tiling, diffusion
from kerasim._folders import ImageFolder
from kerasim.data._noise import check_noise
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.images import as_float, read_image
from kerasim.schedules import NoiseSchedule

__all__ = [
    "Denoised",
    "Denoiser",
]

_KIND = "denoiser"
# Work shorter than this, in seconds, shows no progress bar.
_BAR_DELAY = 2.0
# Images in a call of a network have about this many pixels.
_CALL_PIXELS = 2**20
# No image has stronger noise than this, in units of [0, 1].
_MOST_SIGMA = 5.0
# The noise of a larger image is estimated from parts of this height and width, in a grid.
_PART, _GRID = 256, 4
# A network takes heights and widths that are a multiple of one of these numbers.
_MULTIPLES = tuple(2**n for n in range(9))
# An image of which more values than this are 0 or 1 seems to be clipped.
_CLIPPED_SHARE = 0.01
# The side of the blocks that are examined for noise. Smaller images have no estimate.
_BLOCK = 8
# White of 16 bits is 65535. Cameras of 12 bits, and files of 8, go up to this at most.
_MOST_OF_12_BITS = 4095
_NOISE_KEYS = ("low", "high", "gain", "clip", "bits")


class Denoised(NamedTuple):
    """Denoised images.

    Attributes:
        images: float32 in [0, 1], of the shape of the noisy images.
        sigma: `(n,)` float64, the standard deviation of the noise of each image in units of [0, 1]:
            as it was given or estimated, or NaN if it was neither.

    Example:
        >>> from kerasim import models
        >>> denoiser = Denoiser(models.denoising_autoencoder((None, None, 1), widths=(8, 16)))
        >>> images, sigma = denoiser(np.full((2, 10, 12, 1), 0.5))
        >>> images.shape, sigma.tolist()
        ((2, 10, 12, 1), [nan, nan])
    """

    images: np.ndarray
    sigma: np.ndarray


class Denoiser:
    """Removes noise from images of any size.

    Args:
        network: Model that denoises: from noisy to clean images, or from noisy images and sigma
            (`models.denoising_autoencoder(sigma_input=True)`), or one that predicts the noise
            (`models.unet`), with its `schedule`. Build it with `image_shape=(None, None,
            channels)`: a network of a fixed size gets larger images in pieces of that size.
        estimator: Model from noisy images to the standard deviation of their noise, such as
            `models.noise_estimator`, with `image_shape=(None, None, channels)` too. None if the
            network has no input for sigma, or if `sigma` is given in each call.
        noise: The noise that both were trained for: `NoiseBatches(...).noise`. Images whose
            estimated noise is less are returned as they are (see `calibrate`); there is a warning
            for images with more, and for clipped images if the noise was not clipped. None to check
            nothing.
        schedule: `diffusion.NoiseSchedule` of a network that predicts the noise.

    Attributes:
        threshold: Images with a sigma below it are returned as they are: `noise["low"]`, or 0
            without `noise`, until `calibrate` raises it.

    Raises:
        ArgumentError: If a network does not fit the others, or the images it takes, or has weights
            that are not finite.
        ArgumentTypeError: If a network does not take images.

    Example:
        >>> from kerasim import data, models
        >>> photos = np.random.default_rng(0).random((8, 16, 16, 3))
        >>> batches = data.NoiseBatches(photos, target="images", clip=True, bits=8)
        >>> network = models.denoising_autoencoder((None, None, 3), widths=(8, 16))
        >>> estimator = models.noise_estimator((None, None, 3))
        >>> denoiser = Denoiser(network, estimator, batches.noise)  # after training both
        >>> denoiser.save("denoiser")
        >>> denoised = Denoiser.load("denoiser")(data.add_noise(photos, 0.1))
        >>> denoised.images.shape, denoised.sigma.shape
        ((8, 16, 16, 3), (8,))
    """

    def __init__(
        self,
        network: keras.Model,
        estimator: keras.Model | None = None,
        noise: Mapping[str, Any] | None = None,
        schedule: NoiseSchedule | None = None,
    ):
        self.network, self.estimator, self.schedule = network, estimator, schedule
        self.noise = None if noise is None else _check_noise(noise)
        self.threshold = 0.0 if self.noise is None else self.noise["low"]
        self._takes_sigma = _takes_sigma(network, schedule)
        self._image_shape = _image_shape(network)
        self._multiple = _multiple(network, self._image_shape)
        self._estimated_shape = None
        if estimator is not None:
            self._estimated_shape, width = _image_checks.check_embedder("estimator", estimator)
            if width != 1 or self._estimated_shape[2] != self._image_shape[2]:
                raise ArgumentError(
                    f"estimator takes {self._estimated_shape[2]} channels and returns {width} "
                    f"numbers for an image; expected {self._image_shape[2]} channels, as the "
                    "network takes, and one number: pass models.noise_estimator of that shape."
                )
        for name, model in (("network", network), ("estimator", estimator)):
            weights = [] if model is None else model.get_weights()
            if not all(np.isfinite(np.asarray(weight)).all() for weight in weights):
                raise ArgumentError(f"{name} has weights that are NaN or infinite: train it again.")
        self._lock = threading.Lock()
        self._saved = _artifacts.Known()

    def __repr__(self) -> str:
        return f"Denoiser({self.network.name!r}, noise={self.noise})"

    def __call__(
        self,
        images: ArrayLike | ImageFolder,
        sigma: ArrayLike | None = None,
        tile: int = 1024,
        progress: bool | None = None,
    ) -> Denoised:
        """Denoises images.

        Images larger than a tile are denoised in overlapping tiles, and their results are blended.
        Time grows with the number of pixels, and memory with the size of a tile, besides that of
        the images.

        Args:
            images: `(n, height, width, channels)`, uint8 (255 is white), uint16 (65535 is white) or
                float in [0, 1], or an `ImageFolder`. Floats may lie outside [0, 1] as far as their
                noise explains it, if the noise was not clipped in training.
            sigma: Standard deviation of the noise, in units of [0, 1]: a number, or `(n,)`. None to
                estimate it. A network without an input for sigma does not use it.
            tile: Largest height and width of a tile, 64 or more, but at least twice the multiple
                that the network needs. A network of a fixed size has tiles of that size.
            progress: True shows a progress bar on stderr if the work takes more than two seconds,
                False none, None only in a terminal.

        Returns:
            The denoised images, and the sigma of each.

        Raises:
            ArgumentError: If images, sigma or tile do not fit, or the noise is not known.

        Warns:
            UserWarning: If the noise is not of the kind that the network was trained for, or uint16
                images are so dark that they seem to have fewer bits.
        """
        _checks.integer("tile", tile, 64)
        if progress is not None:
            progress = _checks.boolean("progress", progress)
        noisy = self._checked(images)
        if sigma is not None:
            sigma = _checks.as_real_array("sigma", sigma).astype("float64")
            if not sigma.ndim:
                _checks.number("sigma", sigma.item(), 0, _MOST_SIGMA)
            else:
                _checks.same_length("sigma", sigma, len(noisy), "images", 1)
            sigma = np.broadcast_to(sigma, len(noisy)).copy()
            outside = ~(sigma >= 0) | (sigma > _MOST_SIGMA)
            _checks.bad_rows("sigma", outside, f"values outside 0 to {_MOST_SIGMA:g}")
        elif self.estimator is not None:
            sigma = self._estimate(noisy)
        elif self._takes_sigma:
            raise ArgumentError(
                "sigma is None, but the network needs it and there is no estimator: pass "
                "sigma, or an estimator to Denoiser."
            )
        else:
            sigma = np.full(len(noisy), np.nan)
        self._check_range(noisy, sigma)
        self._warn_of_noise(noisy, sigma)
        rows = np.flatnonzero(~(sigma < self.threshold))  # also where sigma is NaN
        result = np.clip(noisy, 0, 1)
        if len(rows) == len(noisy) > 0:
            self._denoise_all(noisy, sigma, tile, progress, result)
        elif len(rows):
            some = result[rows]
            self._denoise_all(noisy[rows], sigma[rows], tile, progress, some)
            result[rows] = some
        return Denoised(result, sigma)

    def calibrate(self, images: ArrayLike | ImageFolder, share: float = 0.95) -> float:
        """Raises `threshold` so that most clean images are returned as they are.

        An estimator takes some of the fine details of a clean image for noise. After this call
        images with an estimated sigma below the largest of clean images are left alone, and noise
        weaker than that stays.

        Args:
            images: Images without noise, of the kind that will be denoised, that neither network
                was trained on; as for a call of the denoiser.
            share: Share of these images that are to be returned as they are, 0 to 1.

        Returns:
            The threshold, at least `noise["low"]`. It is saved with the denoiser.

        Raises:
            ArgumentError: If there is no estimator, there are no images, or they do not fit.

        Example:
            >>> from kerasim import models
            >>> network = models.denoising_autoencoder((None, None, 1), widths=(8, 16))
            >>> denoiser = Denoiser(network, models.noise_estimator((None, None, 1)))
            >>> clean = np.random.default_rng(0).random((20, 16, 16, 1))
            >>> threshold = denoiser.calibrate(clean, share=1.0)
            >>> bool((denoiser(clean).images == clean.astype("float32")).all())
            True
        """
        share = _checks.number("share", share, 0, 1)
        if self.estimator is None:
            raise ArgumentError("calibrate needs an estimator: pass one to Denoiser.")
        estimated = self._estimate(self._checked(images))
        if not len(estimated):
            raise ArgumentError("images is empty: pass one clean image or more.")
        low = 0.0 if self.noise is None else self.noise["low"]
        # An image at the threshold itself would be denoised.
        highest = np.nextafter(np.quantile(estimated, share, method="inverted_cdf"), np.inf)
        self.threshold = max(low, float(highest))
        return self.threshold

    def denoise_file(
        self,
        source: Path | str | bytes,
        target: Path | str,
        sigma: float | None = None,
        tile: int = 1024,
    ) -> float:
        """Denoises an image file.

        The file is read as `images.read_image` reads it: upright, on white where it is transparent,
        8 bits of each channel. The color profile and the resolution are kept, other metadata are
        not. A network of one channel denoises each channel of a color image by itself.

        Args:
            source: File to read, or its bytes.
            target: File to write, completely or not at all: .png, .tif or .webp, which lose
                nothing, or .jpg. A file that is there is replaced, and missing folders are made.
            sigma: Standard deviation of the noise, in units of [0, 1]; None to estimate it.
            tile: As for a call of the denoiser.

        Returns:
            The sigma of the file, as given or estimated; of channels that are denoised by
            themselves, the root mean square.

        Raises:
            ImageError: If the source cannot be decoded.
            ArgumentError: If the suffix of the target is none of these, or the target is the
                source, whose noise could not be brought back.
            ArtifactError: If the target cannot be written.
        """
        target = _artifacts.check_path("target", target)
        suffix = target.suffix.lower()
        if suffix not in _FORMATS:
            raise ArgumentError(
                f"target={_checks.shown(target)} has the suffix {suffix!r}: pass one of "
                f"{', '.join(_FORMATS)}."
            )
        if sigma is not None:
            _checks.number("sigma", sigma, 0, _MOST_SIGMA)
        noisy = read_image(source, channels=3, dtype="uint8")
        if not isinstance(source, bytes) and os.path.realpath(source) == os.path.realpath(target):
            raise ArgumentError(
                f"target={_checks.shown(target)} is the source, whose noisy pixels would be lost: "
                "pass another name."
            )
        is_gray = bool((noisy == noisy[..., :1]).all())
        if self._image_shape[2] == 1:
            planes = noisy[..., :1] if is_gray else noisy
            result = self(planes.transpose(2, 0, 1)[..., None], sigma, tile)
            clean = result.images[..., 0].transpose(1, 2, 0)
        else:
            result = self(noisy[None], sigma, tile)
            clean = result.images[0]
            if is_gray and not result.sigma[0] < self.threshold:
                _checks.warn(
                    "The image is gray, so that the noise is the same in all of its channels, but "
                    "the network was trained for color: the result is worse than that of a network "
                    "with image_shape=(None, None, 1)."
                )
            if is_gray:
                clean = clean.mean(axis=-1, keepdims=True)
        _artifacts.write_file(target, _encode(clean, suffix, _kept_info(source, clean.shape[-1])))
        return _rms(result.sigma)

    def save(self, path: Path | str, replace: bool = False) -> None:
        """Writes the denoiser to a folder, completely or not at all.

        Args:
            path: The folder.
            replace: True to overwrite a denoiser that this one was not loaded from or saved to.

        Raises:
            ArtifactError: If the folder holds another denoiser and `replace` is False, holds
                something else, or cannot be written.
            ArgumentError: If a network could not be loaded again.
        """
        schedule = self.schedule and [self.schedule.steps, self.schedule.kind]
        info = {"noise": self.noise, "schedule": schedule, "threshold": self.threshold}
        info["estimates"] = self.estimator is not None

        def fill(folder):
            _keras_files.save_model(self.network, folder / "network.keras", "network")
            if self.estimator is not None:
                _keras_files.save_model(self.estimator, folder / "estimator.keras", "estimator")

        self._saved.check(path, _KIND, replace)
        _artifacts.write(path, _KIND, fill, info)
        self._saved.note(path)

    @classmethod
    def load(cls, path: Path | str) -> "Denoiser":
        """Reads a denoiser that `save` wrote, without running code that the files may hold.

        Args:
            path: The folder.

        Returns:
            The denoiser.

        Raises:
            ArtifactError: If the folder is missing or damaged, or holds something else.
        """

        def load(folder, manifest):
            info = manifest.info
            estimator = None
            if info["estimates"]:
                estimator = _keras_files.load_model(folder / "estimator.keras")
            schedule = info["schedule"] and NoiseSchedule(*info["schedule"])
            network = _keras_files.load_model(folder / "network.keras")
            denoiser = cls(network, estimator, info["noise"], schedule)
            denoiser.threshold = _checks.number("threshold", info["threshold"], 0)
            denoiser._saved.note(path, folder)
            return denoiser

        return _artifacts.read(path, _KIND, load)

    def _checked(self, images) -> np.ndarray:
        """Returns images as float32, if they fit the network and their values may be right."""
        images = _image_checks.check_shape("images", images, (None, None, self._image_shape[2]))
        noisy = _as_float(images)
        _checks.finite("images", noisy)
        if self.noise is not None and self.noise["clip"]:
            outside = (noisy.min((1, 2, 3)) < 0) | (noisy.max((1, 2, 3)) > 1)
            _checks.bad_rows(
                "images",
                outside,
                "values outside [0, 1], which the network was not trained for (divide by 255, or "
                "pass uint8),",
            )
        return noisy

    @property
    def _most(self) -> float:
        """The strongest noise that the network was trained for, in a white image."""
        if self.noise is None:
            return _MOST_SIGMA
        return math.hypot(self.noise["high"], math.sqrt(self.noise["gain"]))

    def _check_range(self, noisy, sigma) -> None:
        """Refuses images whose values lie further outside [0, 1] than their noise can explain."""
        outside = np.maximum(-noisy, 0) + np.maximum(noisy - 1, 0)
        # In a black image, the mean of what noise takes below 0 is sigma / sqrt(2 pi). An estimate
        # grows with the values of an image, so that the noise of the training is a limit, too.
        most = 1.5 * np.fmin(sigma, self._most) / math.sqrt(2 * math.pi) + 1e-3
        _checks.bad_rows(
            "images",
            outside.mean((1, 2, 3)) > most,
            "values further outside [0, 1] than their noise explains (scale to [0, 1], or pass "
            "uint8),",
        )

    def _warn_of_noise(self, noisy, sigma) -> None:
        if self.noise is None or not len(noisy):
            return
        high = sigma[sigma > 1.1 * self._most]
        if len(high):
            _checks.warn(
                f"{_share_of(len(high), len(noisy), 'has', 'have')} noise of "
                f"{high.max():.2g} or more, and the network was trained for {self._most:.2g} at "
                "most: the result is worse than it could be. Train it on NoiseBatches with a "
                "larger `high`."
            )
        if not self.noise["clip"]:
            at_ends = ((noisy == 0) | (noisy == 1)).mean((1, 2, 3))
            inside = (noisy.min((1, 2, 3)) >= 0) & (noisy.max((1, 2, 3)) <= 1)
            clipped = inside & (at_ends > _CLIPPED_SHARE) & ~(sigma < 0.01)
            if clipped.any():
                _checks.warn(
                    f"{_share_of(clipped.sum(), len(noisy), 'seems', 'seem')} to be clipped to "
                    "[0, 1], as in a file, but the network was trained for noise that is not: the "
                    "noise is underestimated. Train both networks with NoiseBatches(clip=True, "
                    "bits=8)."
                )

    def _estimate(self, noisy) -> np.ndarray:
        """Returns the standard deviation of the noise of each image, `(n,)` float64.

        Blocks without any noise, such as a frame or transparent parts, are left out: the mean
        square of the noise is that of the others.
        """
        if min(noisy.shape[1:3]) < _BLOCK:
            raise ArgumentError(
                f"images of {noisy.shape[1]} x {noisy.shape[2]} pixels are too small for an "
                f"estimate of their noise, which needs {_BLOCK} x {_BLOCK}: pass sigma."
            )
        blank = np.array([_blank_share(image) for image in noisy])
        return self._estimate_whole(noisy) / np.sqrt(np.where(blank < 1, 1 - blank, 1))

    def _estimate_whole(self, noisy) -> np.ndarray:
        whole = noisy.shape[1:3]
        size = self._estimated_shape[:2]
        if None in size:
            small = math.prod(whole) <= (_PART * _GRID / 2) ** 2
            size = whole if small else (min(_PART, whole[0]), min(_PART, whole[1]))
        if size[0] > whole[0] or size[1] > whole[1]:
            raise ArgumentError(
                f"images of {whole[0]} x {whole[1]} are smaller than the {size[0]} x {size[1]} "
                "that the estimator takes. Build it with image_shape=(None, None, "
                f"{noisy.shape[3]}), or pass sigma."
            )
        if size == whole:
            parts = [self._call(self.estimator, noisy[part])[:, 0] for part in _chunks(noisy)]
            return np.concatenate([np.zeros(0), *parts], dtype="float64")
        rows, columns = (
            np.linspace(0, full - part, min(_GRID, -(-full // part))).astype(int)
            for full, part in zip(whole, size, strict=True)
        )
        found = []
        for image in noisy:
            parts = [image[r : r + size[0], c : c + size[1]] for r in rows for c in columns]
            found.append(_rms(self._call(self.estimator, np.stack(parts))))
        return np.array(found)

    def _denoise_all(self, noisy, sigma, tile, progress, result) -> None:
        """Writes the denoised images to `result`."""
        height, width = noisy.shape[1:3]
        size = self._image_shape[:2]
        if None in size:
            # Of tiles of a single multiple none would overlap.
            side = max(tile // self._multiple, 2) * self._multiple
            size = (side, side)
        tiles = _tiling.count((height, width), size, self._multiple)
        hidden = None if progress is None else not progress
        with tqdm(total=len(noisy) * tiles, unit="tile", disable=hidden, delay=_BAR_DELAY) as bar:
            for part in _chunks(noisy) if tiles == 1 else []:
                extended = _tiling.extend(noisy[part], size, self._multiple)
                result[part] = self._denoise(extended, sigma[part])[:, :height, :width]
                bar.update(len(result[part]))
            for n in range(len(noisy)) if tiles > 1 else []:
                denoise = partial(self._denoise, sigma=sigma[n : n + 1])
                _tiling.apply(denoise, noisy[n], size, self._multiple, result[n], bar.update)

    def _denoise(self, noisy, sigma) -> np.ndarray:
        """Returns the output of the network for images of a size that it takes."""
        if self.schedule is not None:
            return diffusion.denoise(self.network, self.schedule, noisy, sigma)[0]
        inputs: Any = noisy
        if self._takes_sigma:
            inputs = {"images": noisy, "sigma": sigma.astype("float32")[:, None]}
        return np.clip(self._call(self.network, inputs), 0, 1)

    def _call(self, model, inputs) -> np.ndarray:
        with self._lock:
            outputs = np.asarray(model.predict_on_batch(inputs))
        # Each of several devices returns all rows: those of the first are kept.
        return outputs[: len(keras.tree.flatten(inputs)[0])]


_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_FORMATS |= {".jpg": "JPEG", ".jpeg": "JPEG"}


def _kept_info(source, channels: int) -> dict[str, Any]:
    """Returns the color profile, if it fits the channels that are written, and the resolution."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        kept = {key: image.info[key] for key in ("dpi",) if image.info.get(key)}
        fits = image.mode in (("L", "LA") if channels == 1 else ("RGB", "RGBA", "P"))
        if fits and image.info.get("icc_profile"):
            kept["icc_profile"] = image.info["icc_profile"]
        return kept


def _encode(image, suffix: str, info: dict[str, Any]) -> bytes:
    pixels = np.rint(255 * image).astype("uint8")
    file = io.BytesIO()
    lossless = {"lossless": True} if suffix == ".webp" else {}
    quality = {"quality": 95} if _FORMATS[suffix] == "JPEG" else lossless
    squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(squeezed).save(file, _FORMATS[suffix], **quality, **info)
    return file.getvalue()


def _chunks(noisy) -> list[slice]:
    """Returns slices of as many images as one call of a network takes."""
    size = max(1, _CALL_PIXELS // math.prod(noisy.shape[1:3]))
    return [slice(start, start + size) for start in range(0, len(noisy), size)]


def _blank_share(image) -> float:
    """Returns the share of blocks in which each channel of an image has one value only."""
    height, width = (n - n % _BLOCK for n in image.shape[:2])
    blocks = image[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, -1)
    return float((blocks == blocks[:, :1, :, :1]).all(axis=(1, 3, 4)).mean())


def _share_of(count: int, total: int, one: str, many: str) -> str:
    """Returns the beginning of a warning about some of the images."""
    if total == 1:
        return f"The image {one}"
    return f"{count} of {total} images {one if count == 1 else many}"


def _rms(values) -> float:
    return float(np.sqrt(np.square(np.asarray(values, "float64")).mean()))


def _as_float(x) -> np.ndarray:
    x = np.asarray(x[:])
    if x.dtype == np.uint16:
        if 0 < x.max(initial=0) <= _MOST_OF_12_BITS:
            _checks.warn(
                f"images are uint16 with values up to {x.max()}, and 65535 is white, so that they "
                "are nearly black. If white is less, such as 4095 for 12 bits, divide by it."
            )
        return np.divide(x, np.float32(65535), dtype="float32")
    if x.dtype.kind != "f" and x.dtype != np.uint8:
        raise ArgumentTypeError(f"images must be float, uint8 or uint16, not {x.dtype}.")
    return as_float(x)


def _check_noise(noise) -> dict[str, Any]:
    """Returns the settings of noise as a dict, all of them."""
    if not isinstance(noise, Mapping) or set(noise) - set(_NOISE_KEYS):
        raise ArgumentTypeError(
            f"noise={noise!r} must be a dict with {', '.join(_NOISE_KEYS)}: pass "
            "data.NoiseBatches(...).noise."
        )
    noise = {"low": 1e-6, "high": _MOST_SIGMA, "gain": 0.0, "clip": False, "bits": None, **noise}
    low = _checks.number("noise['low']", noise["low"], 0)
    high = _checks.number("noise['high']", noise["high"], low)
    gain, clip, bits = check_noise(noise["gain"], noise["clip"], noise["bits"])
    return {"low": low, "high": high, "gain": gain, "clip": clip, "bits": bits}


def _takes_sigma(network, schedule) -> bool:
    """Returns whether a network needs sigma, if it takes images and fits the schedule."""
    taken = getattr(network, "inputs", None) or []
    names = sorted(x.name for x in taken)
    if isinstance(network, keras.Model) and names in (["images", "t"], ["images", "labels", "t"]):
        _checks.instance("schedule", schedule, NoiseSchedule, "pass a diffusion.NoiseSchedule")
        diffusion.check_schedule("schedule", network, schedule)
        return True
    if schedule is not None:
        raise ArgumentError(
            f"schedule={schedule} is for a network with inputs named images and t; this one has "
            f"{names}. Leave it out."
        )
    if isinstance(network, keras.Model) and names == ["images", "sigma"]:
        return True
    if not isinstance(network, keras.Model) or len(taken) != 1:
        raise ArgumentTypeError(
            "network must be a keras.Model of images, or of images and t, or of images and sigma. "
            f"Received {type(network).__name__} with the inputs {names}: pass a model such as "
            "models.denoising_autoencoder."
        )
    return False


def _image_shape(network) -> tuple:
    """Returns the image shape that a network takes, if it returns images of that shape."""
    (taken,) = [x.shape[1:] for x in network.inputs if len(x.shape) == 4] or [()]
    given = getattr(network, "output_shape", None)
    if len(taken) != 3 or given != (None, *taken):
        raise ArgumentError(
            f"network takes {taken} and returns {given}: expected images, and images of the same "
            "shape. Pass a model such as models.denoising_autoencoder."
        )
    if (taken[0] is None) != (taken[1] is None):
        raise ArgumentError(
            f"network takes images of {taken}: expected a height and a width, or neither."
        )
    return taken


def _multiple(network, image_shape) -> int | None:
    """Returns the number of which heights and widths have to be multiples; None of a fixed size."""
    if None not in image_shape:
        return None
    for multiple in _MULTIPLES:
        size = 3 * multiple
        shapes = {x.name: (1, *x.shape[1:]) for x in network.inputs}
        name = next(x.name for x in network.inputs if len(x.shape) == 4)
        shapes[name] = (1, size, size, image_shape[2])
        inputs = {x.name: keras.KerasTensor(shapes[x.name], x.dtype) for x in network.inputs}
        try:
            given = network.compute_output_spec(inputs if len(inputs) > 1 else inputs[name])
        except Exception:  # layers refuse sizes by errors of many kinds
            continue
        if given.shape[1:3] == (size, size):
            return multiple
    raise ArgumentError(
        "network returns images of another size than it takes, for every size that was tried. "
        "Pass a model such as models.denoising_autoencoder."
    )
