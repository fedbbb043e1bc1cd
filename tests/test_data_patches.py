import numpy as np
import pytest
from PIL import Image

from kerasim import data
from kerasim.errors import ArgumentError, ArgumentTypeError


def numbered(height, width, first=0):
    """Returns an image whose values tell row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows + first, columns, 0 * rows], axis=-1).astype("uint8")


def test_patches_are_parts_of_the_images_as_they_are():
    images = [numbered(40, 60), numbered(50, 30, first=100)]
    patches = data.random_patches(images, 40, size=8)
    assert patches.shape == (40, 8, 8, 3) and patches.dtype == "uint8"
    for patch in patches:
        image = images[int(patch[0, 0, 0] >= 100)]
        row, column = patch[0, 0, 0] % 100, patch[0, 0, 1]
        assert np.array_equal(patch, image[row : row + 8, column : column + 8])
    assert (patches[:, 0, 0, 0] >= 100).sum() == 20  # as many of each image
    assert len({patch.tobytes() for patch in patches}) > 30


def test_every_place_of_an_image_is_cut():
    starts = data.random_patches([numbered(10, 9)], 2000, size=8)[:, 0, 0, :2]
    assert {tuple(start) for start in starts.tolist()} == {(r, c) for r in range(3) for c in (0, 1)}


def test_a_seed_gives_the_same_patches_in_an_order_of_its_own():
    images = [numbered(20, 20, first=20 * n) for n in range(5)]
    first, again, other = (data.random_patches(images, 9, 8, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_fewer_patches_than_images_come_from_different_ones():
    images = [np.full((8, 8, 1), n, "uint8") for n in range(20)]
    assert len(set(data.random_patches(images, 7, 8)[:, 0, 0, 0].tolist())) == 7


@pytest.mark.parametrize("channels, mode", [(3, "RGB"), (1, "L")])
def test_the_files_of_a_folder_are_read_at_their_full_size(channels, mode, tmp_path):
    for n in range(3):
        Image.fromarray(numbered(40, 50 + n)).convert(mode).save(tmp_path / f"{n}.png")
    folder = data.image_folder(tmp_path, image_size=16, channels=channels)
    patches = data.random_patches(folder, 12, 32)
    assert patches.shape == (12, 32, 32, channels)
    if channels == 3:
        assert (np.diff(patches[..., 1].astype(int), axis=2) == 1).all()  # not resized


def test_floats_become_levels():
    assert data.random_patches(np.full((2, 8, 8, 1), 0.5), 2, 8).tolist() == [[[[128]] * 8] * 8] * 2


@pytest.mark.parametrize(
    "images, error, said",
    [
        ([], ArgumentError, "images is empty"),
        (np.zeros((0, 8, 8, 3)), ArgumentError, "images is empty"),
        ([numbered(8, 8), numbered(7, 9)], ArgumentError, r"images\[1\] has 7 x 9 pixels.*size=8"),
        ([np.zeros((8, 8))], ArgumentError, r"images\[0\] has shape \(8, 8\).*height, width"),
        ([numbered(8, 8), np.zeros((8, 8, 1))], ArgumentError, "images have 1 and 3 channels"),
        ([np.full((8, 8, 3), 255.0)], ArgumentError, r"images\[0\] holds floats outside"),
        ([np.zeros((8, 8, 3), int)], ArgumentTypeError, r"images\[0\] must be uint8 or float"),
        ("photos", ArgumentTypeError, "images must be an ImageFolder.*image_folder"),
        (None, ArgumentTypeError, "images must be an ImageFolder"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused(images, error, said):
    with pytest.raises(error, match=said):
        data.random_patches(images, 2, 8)


def test_a_file_that_is_too_small_is_named(tmp_path):
    Image.fromarray(numbered(8, 8)).save(tmp_path / "small.png")
    folder = data.image_folder(tmp_path, image_size=16)
    with pytest.raises(ArgumentError, match="small.png.* has 8 x 8 pixels, fewer than size=64"):
        data.random_patches(folder, 2)
