"""Denoising: tiles and whole images, of any size, of 8 and 16 bits, gray, color and transparent."""

import random
import tempfile
from pathlib import Path

import numpy as np

from tests.torture.children import run_child

_MOST = 320  # pixels of the longer side of an image
_TOLERANCE = 2e-5
MODES = ("L", "LA", "RGB", "RGBA", "P", "I;16")


def _networks():
    """Returns networks by name, with channels and smallest tile.

    Tiles of that size overlap by more than the network sees around a pixel.
    """
    import keras

    from kerasim import models

    keras.utils.set_random_seed(0)
    plain = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
        ]
    )
    stages = models.denoising_autoencoder((None, None, 3), (4, 8))
    rng = np.random.default_rng(0)
    for weight in stages.trainable_weights:
        weight.assign(weight + 0.1 * rng.standard_normal(weight.shape))
    for model in (plain, stages):
        model.compile(run_eagerly=True)  # a graph for each size would take most of the time
    return {"plain": (plain, 1, 64), "stages": (stages, 3, 192)}


def _draw(rng, channels):
    """Returns images of a random size and type, and the same ones as floats."""
    generator = np.random.default_rng(rng.randrange(2**32))
    height, width = (rng.randint(1, rng.choice([9, _MOST])) for _ in range(2))
    shape = (rng.randint(1, 2), height, width, channels)
    dtype = rng.choice(["uint8", "uint16", "float32", "float64"])
    if dtype.startswith("float"):
        images = generator.random(shape).astype(dtype)
        return images, images.astype("float32")
    white = np.iinfo(dtype).max
    images = generator.integers(0, white, shape, dtype, endpoint=True)
    images.flat[0] = white  # or a dark one would seem to have 12 bits
    return images, (images / white).astype("float32")


def _compare_tiles(count, send):
    from kerasim.denoising import Denoiser

    wrong = []
    for name, (network, channels, least) in _networks().items():
        denoiser = Denoiser(network)
        for n in range(count):
            rng = random.Random(f"{name}/{n}")
            images, floats = _draw(rng, channels)
            tile = rng.randint(least, least + 64)
            tiled, whole = denoiser(images, tile=tile).images, denoiser(floats, tile=2048).images
            case = f"{name} {n}, {images.dtype} {images.shape}, tile={tile}"
            if tiled.shape != images.shape or tiled.dtype != np.float32:
                wrong.append(f"{case}: {tiled.dtype} {tiled.shape}")
            elif (error := float(np.abs(tiled - whole).max())) > _TOLERANCE:
                wrong.append(f"{case}: differs by {error:.2g}")
    return wrong


def _denoise_files(count, folder, send):
    from PIL import Image

    from kerasim.denoising import Denoiser
    from kerasim.images import read_image

    wrong = []
    source, target = Path(folder, "noisy.png"), Path(folder, "clean.png")
    for name, (network, channels, least) in _networks().items():
        denoiser = Denoiser(network)
        for n in range(count):
            rng = random.Random(f"{name}/{n}")
            mode, size = rng.choice(MODES), (rng.randint(1, 90), rng.randint(1, 90))
            pixels = np.random.default_rng(n).integers(0, 256, (size[1], size[0], 4), "uint8")
            if mode == "I;16":
                Image.fromarray(pixels[..., 0].astype("uint16") * 257).save(source)
            else:
                Image.fromarray(pixels).convert(mode).save(source)
            denoiser.denoise_file(source, target, tile=least)
            found = np.rint(255 * read_image(target, channels=3)).astype(int)
            noisy = read_image(source, channels=3)
            planes = noisy.transpose(2, 0, 1)[..., None] if channels == 1 else noisy[None]
            clean = denoiser(planes, tile=2048).images
            clean = clean[..., 0].transpose(1, 2, 0) if channels == 1 else clean[0]
            if (noisy == noisy[..., :1]).all():  # gray, and one channel in the file
                clean = clean.mean(-1, keepdims=True)
            case = f"{name} {n}, file {mode} {size}"
            if found.shape[:2] != size[::-1]:
                wrong.append(f"{case}: {found.shape}")
            elif (error := float(np.abs(found - 255 * clean).max())) > 1:
                wrong.append(f"{case}: differs by {error:.1f} levels")
    return wrong


def tiles(count=300, files=100):
    """Denoises images of random sizes in tiles and as a whole, and files of every mode.

    Args:
        count: Images of each of two networks.
        files: Files of each of two networks.
    """
    with tempfile.TemporaryDirectory() as folder:
        wrong = run_child(_compare_tiles, count) + run_child(_denoise_files, files, folder)
    total = 2 * (count + files)
    return f"{total - len(wrong)} of {total} equal", wrong
