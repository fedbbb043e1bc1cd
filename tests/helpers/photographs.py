"""Stand-in for a user's folder: photographs of three subjects, one subfolder for each.

The subjects are a cat, a cup of coffee and a flower, from photographs of scikit-image and
scikit-learn. Each image shows one of them at another size, place and angle, before
another background and in other light, as a JPEG file of another size and quality.
"""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_image

# Center and radius of the subject in its photograph, in pixels.
_SUBJECTS = {
    "cat": (skimage.data.chelsea, (225, 125), 110),
    "coffee": (skimage.data.coffee, (300, 195), 150),
    "flower": (lambda: load_sample_image("flower.jpg"), (320, 215), 170),
}


def _backgrounds() -> list[Image.Image]:
    gray = [skimage.data.brick(), skimage.data.grass(), skimage.data.gravel()]
    color = [skimage.data.rocket(), skimage.data.stereo_motorcycle()[0], skimage.data.astronaut()]
    color += [load_sample_image("china.jpg"), skimage.data.hubble_deep_field()]
    return [Image.fromarray(np.asarray(image)).convert("RGB") for image in [*gray, *color]]


def _crop(image, center, half, angle, size):
    """Returns the square around `center`, turned by `angle` degrees, on `size` x `size` pixels."""
    x, y = center
    wide = 1.5 * half  # the corners of the turned square lie within this
    box = (int(x - wide), int(y - wide), int(x + wide), int(y + wide))
    around = image.crop(box).resize((int(1.5 * size), int(1.5 * size)), Image.Resampling.BILINEAR)
    margin = around.width - size
    turned = around.rotate(angle, Image.Resampling.BILINEAR)
    return turned.crop((margin // 2, margin // 2, margin // 2 + size, margin // 2 + size))


def _photograph(subject, center, radius, backgrounds, rng) -> Image.Image:
    background = backgrounds[rng.integers(len(backgrounds))]
    half = int(rng.uniform(0.15, 0.45) * min(background.size))
    place = [rng.integers(half, length - half) for length in background.size]
    photo = _crop(background, place, half, 0, 160)
    size = int(rng.uniform(70, 130))
    shown = _crop(subject, center, radius * rng.uniform(0.8, 1.2), rng.uniform(-30, 30), size)
    if rng.random() < 0.5:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse((4, 4, size - 5, size - 5), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(3))
    photo.paste(shown, tuple(rng.integers(0, 160 - size, 2).tolist()), mask)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        photo = enhance(photo).enhance(rng.uniform(0.6, 1.4))
    tint = np.asarray(photo) * rng.uniform(0.75, 1.25, 3)
    photo = Image.fromarray(tint.clip(0, 255).astype("uint8"))
    photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    return photo.resize(tuple(rng.integers(90, 200, 2).tolist()))


def write_photographs(folder, count: int, seed: int = 0) -> None:
    """Writes `count` JPEG files in all into a subfolder of `folder` for each subject.

    Args:
        folder: It is created.
        count: Number of images, split evenly between the three subjects.
        seed: The same seed writes the same files.
    """
    backgrounds = _backgrounds()
    for label, (name, (load, center, radius)) in enumerate(_SUBJECTS.items()):
        subject = Image.fromarray(np.asarray(load()))
        subfolder = Path(folder, name)
        subfolder.mkdir(parents=True)
        for n in range(count // len(_SUBJECTS)):
            rng = np.random.default_rng([seed, label, n])
            photo = _photograph(subject, center, radius, backgrounds, rng)
            photo.save(subfolder / f"{n:03}.jpg", quality=int(rng.integers(60, 96)))


def write_views(folder, count: int, seed: int = 0) -> None:
    """Writes `count` pairs of images that show the same part of a photograph.

    The right one of a pair is shifted, scaled and turned a little, and in other light.

    Args:
        folder: It is created, with the folders `left` and `right` and the file `pairs.csv`.
        count: Number of pairs.
        seed: The same seed writes the same files.
    """
    photographs = _backgrounds()
    for side in ("left", "right"):
        Path(folder, side).mkdir(parents=True)
    for n in range(count):
        rng = np.random.default_rng([seed, n])
        photograph = photographs[n % len(photographs)]
        half = int(rng.uniform(0.1, 0.2) * min(photograph.size))
        place = [rng.integers(2 * half, length - 2 * half) for length in photograph.size]
        _crop(photograph, place, half, 0, 64).save(Path(folder, "left", f"{n}.png"))
        moved = [position + rng.uniform(-0.25, 0.25) * half for position in place]
        view = _crop(photograph, moved, half * rng.uniform(0.8, 1.25), rng.uniform(-15, 15), 64)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
            view = enhance(view).enhance(rng.uniform(0.6, 1.4))
        view.save(Path(folder, "right", f"{n}.png"))
    rows = ["left,right", *(f"{n},{n}" for n in range(count))]
    Path(folder, "pairs.csv").write_text("\n".join(rows))
