"""What `duplicates.find_near_duplicates` finds: false pairs and recall on four kinds of images.

MNIST and CIFAR-10 (a JPEG copy) and Totally-Looks-Like come from `data.data_dir()`; the drawings
are made here. Changed copies are added to each set, of other images for each change. Recall is the
share of the copies that are found as near-duplicates of their original. A false pair is a pair of
different images that is found, or whose copies are; the sets hold a few true near-duplicates, which
are counted as false.
"""

import io
import time

import numpy as np
from PIL import Image, ImageDraw

from kerasim import data, duplicates

CHANGED = 100  # copies for each change; fewer of a small set


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


def resized(image, factor):
    """Returns the image after it was scaled by `factor` and back."""
    picture = Image.fromarray(image.squeeze())
    small = picture.resize([round(factor * n) for n in picture.size], Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR)).reshape(image.shape)


def cropped(image, share):
    """Returns the image without `share` of its height and width at each side, at its old size."""
    picture = Image.fromarray(image.squeeze())
    width, height = picture.size
    left, top = max(1, round(share * width)), max(1, round(share * height))
    inner = picture.crop((left, top, width - left, height - top))
    return np.asarray(inner.resize(picture.size, Image.Resampling.BILINEAR)).reshape(image.shape)


def levels(image):
    return np.clip(np.rint(image), 0, 255).astype("uint8")


def changes(rng):
    return {
        "noise, 3 levels": lambda image: levels(image + rng.normal(0, 3, image.shape)),
        "noise, 10 levels": lambda image: levels(image + rng.normal(0, 10, image.shape)),
        "JPEG, quality 50": lambda image: jpeg(image, 50),
        "JPEG, quality 20": lambda image: jpeg(image, 20),
        "half the size": lambda image: resized(image, 0.5),
        "1.5 times the size": lambda image: resized(image, 1.5),
        "20 levels brighter": lambda image: levels(image + 20.0),
        "0.8 of the contrast": lambda image: levels(0.8 * image),
        "2 % cut off each side": lambda image: cropped(image, 0.02),
        "5 % cut off each side": lambda image: cropped(image, 0.05),
    }


def drawing(seed):
    rng = np.random.default_rng(seed)
    image = Image.new("L", (96, 96), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 6)):
        pen.line(tuple(rng.integers(5, 90, 4).tolist()), fill=0, width=int(rng.integers(1, 4)))
        (left, top), (right, bottom) = np.sort(rng.integers(5, 90, (2, 2)), axis=0).tolist()
        pen.ellipse((left, top, right + 2, bottom + 2), outline=0, width=2)
    return np.asarray(image)[..., None]


def image_sets():
    rng = np.random.default_rng(0)
    for name in ("mnist", "cifar10"):
        images = data.load_dataset(name, dtype="uint8").x_train
        yield name, images[rng.permutation(len(images))[:10_000]]
    files = sorted((data.data_dir() / "tll" / "left").iterdir())
    folder = data.ImageFolder(files, None, [], [], (128, 128), 3)
    yield "Totally-Looks-Like", levels(255 * folder[:])
    yield "drawings", np.stack([drawing(seed) for seed in range(1000)])


def main():
    for name, images in image_sets():
        start = time.perf_counter()
        n, functions = len(images), changes(np.random.default_rng(1))
        each = min(CHANGED, n // (2 * len(functions)))
        drawn = np.random.default_rng(2).permutation(n)[: each * len(functions)]
        copies = [
            function(images[row])
            for function, rows in zip(
                functions.values(), drawn.reshape(len(functions), each), strict=True
            )
            for row in rows
        ]
        original = np.concatenate([np.arange(n), drawn])
        pairs = duplicates.find_near_duplicates(np.concatenate([images, np.stack(copies)]))
        of_one = np.diff(original[pairs], axis=1)[:, 0] == 0
        different = np.unique(np.sort(original[pairs[~of_one]], axis=1), axis=0)
        seconds = time.perf_counter() - start
        print(
            f"{name}: {n} images, {each * len(functions)} copies, {len(different)} false pairs, "
            f"{seconds:.0f} s"
        )
        found = np.isin(np.arange(n, len(original)), pairs[of_one]).reshape(len(functions), each)
        for change, recall in zip(functions, found.mean(axis=1), strict=True):
            print(f"    {change:22} {recall:.3f}")


if __name__ == "__main__":
    main()
