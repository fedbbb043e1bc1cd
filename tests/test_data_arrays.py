import os
from functools import partial

import numpy as np
import pytest

from kerasim import _content, data, duplicates, embedding
from kerasim.errors import ArgumentError, ArgumentTypeError, ImageError
from tests.helpers.image_files import write_image
from tests.helpers.small_embedder import EMBEDDER, FLOATS, LEVELS


def test_as_float_scales_bytes_and_leaves_floats():
    np.testing.assert_array_equal(data.as_float(LEVELS), FLOATS)
    assert data.as_float(LEVELS).dtype == np.float32
    assert data.as_float(FLOATS) is FLOATS
    assert data.as_float(FLOATS.astype("float64")).dtype == np.float32


def poisoned(value, dtype="float32"):
    images = FLOATS.astype(dtype)
    images[2, 1, 1, 0] = images[5, 0, 0, 0] = value
    return images


DOORS = {
    "ImageBatches": data.ImageBatches,
    "add_noise": lambda images: data.add_noise(images, 0.1),
    "embed": lambda images: embedding.embed(EMBEDDER, images),
}


@pytest.fixture(params=DOORS)
def door(request):
    """Each public function that takes images."""
    return DOORS[request.param]


@pytest.mark.fault("nan-in-data")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused_with_their_rows(door, value):
    with pytest.raises(ArgumentError, match="images holds NaN or infinity in 2 of 7 rows: 2, 5"):
        door(poisoned(value))


@pytest.mark.fault("nan-in-data")
def test_infinities_of_both_signs_are_refused_too(door):
    images = poisoned(np.inf)
    images[5, 3, 3, 0] = -np.inf
    with pytest.raises(ArgumentError, match="2 of 7 rows: 2, 5"):
        door(images)


def test_bad_rows_are_counted_to_the_last_of_many():
    images = np.zeros((1500, 2, 2, 1), "float32")
    images[[3, 1400]] = np.nan
    with pytest.raises(ArgumentError, match="2 of 1500 rows: 3, 1400"):
        data.ImageBatches(images)


@pytest.mark.fault("image-dtype")
@pytest.mark.parametrize("value", [255.0, 1.001, -0.001])
def test_floats_outside_zero_to_one_are_refused_with_range_row_and_remedy(door, value):
    with pytest.raises(ArgumentError) as caught:
        door(poisoned(value))
    said = str(caught.value)
    for part in ("images", "[0, 1]", "2 of 7 rows: 2, 5", "divide by 255", "uint8"):
        assert part in said
    assert str(np.float32(value)) in said


@pytest.mark.fault("image-dtype")
@pytest.mark.parametrize("dtype", ["int64", "bool", "object", "complex64"])
def test_images_of_another_dtype_are_refused_by_it(door, dtype):
    with pytest.raises(
        ArgumentTypeError, match=rf"images has dtype {dtype}: .*\[0, 1\] or to uint8"
    ):
        door((FLOATS > 0.5).astype(dtype))


@pytest.mark.fault("image-dtype")
@pytest.mark.parametrize("shape", [(7, 4, 4), (7, 16), (4,), (), (7, 4, 4, 1, 1), (7, 0, 4, 1)])
def test_images_of_another_shape_are_refused_with_both_shapes(door, shape):
    with pytest.raises(ArgumentError) as caught:
        door(np.zeros(shape, "float32"))
    said = str(caught.value)
    assert "images" in said and "(n, height, width, channels)" in said and str(shape) in said


def test_a_list_of_images_of_several_sizes_is_refused(door):
    with pytest.raises(ArgumentError, match="images cannot be converted to one array.*resize"):
        door([np.zeros((4, 4, 1)), np.zeros((5, 4, 1))])


def test_noise_has_the_deviation_asked_for():
    images = np.full((20, 32, 32, 1), 0.5, "float32")
    noise = data.add_noise(images, 0.1) - 0.5
    assert noise.dtype == np.float32
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.1], atol=0.003)


def test_the_same_seed_draws_the_same_noise_and_another_seed_another():
    first, again, other = (data.add_noise(FLOATS, 0.2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_is_clipped_unless_it_must_not_be():
    clipped, free = data.add_noise(FLOATS, 0.5), data.add_noise(FLOATS, 0.5, clip=False)
    assert free.min() < 0 and free.max() > 1
    np.testing.assert_array_equal(clipped, np.clip(free, 0, 1))


def test_poisson_noise_grows_with_brightness():
    levels = np.array([0.0, 0.25, 1.0], "float32")[:, None, None, None]
    images = np.broadcast_to(levels, (3, 64, 64, 1))
    noise = data.add_noise(images, 0.1, clip=False, gain=0.04) - images
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise.mean((1, 2, 3)), 0, atol=0.01)
    expected = np.sqrt(0.04 * levels[:, 0, 0, 0] + 0.1**2)
    np.testing.assert_allclose(noise.std((1, 2, 3)), expected, rtol=0.05)
    photons = data.add_noise(images, 0, clip=False, gain=0.04) / 0.04
    np.testing.assert_allclose(photons, np.round(photons), atol=1e-4)
    assert photons[0].max() == 0


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_noise_in_a_file_has_the_levels_of_its_bits(bits):
    noisy = data.add_noise(FLOATS, 0.5, bits=bits)
    levels = noisy * (2**bits - 1)
    np.testing.assert_allclose(levels, np.round(levels), atol=0.01)
    assert np.abs(noisy - data.add_noise(FLOATS, 0.5)).max() <= 0.5 / (2**bits - 1) + 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gain": -0.1}, "gain=-0.1.*0 or more"),
        ({"gain": None}, "gain must be a number.*0 or more"),
        ({"bits": 0}, "bits=0 is out of range"),
        ({"bits": 32}, "bits=32 is out of range"),
        ({"bits": 8, "clip": False}, "bits=8 needs clip=True"),
    ],
)
@pytest.mark.parametrize("door", [partial(data.add_noise, sigma=0.1), data.NoiseBatches])
def test_noise_that_no_file_has_is_refused(door, settings, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        door(FLOATS, **{"clip": True, **settings})


def test_noise_on_bytes_is_that_on_floats():
    np.testing.assert_array_equal(data.add_noise(LEVELS, 0.2), data.add_noise(FLOATS, 0.2))


def test_noise_leaves_its_argument_alone():
    images = FLOATS.copy()
    data.add_noise(images, 0.5)
    np.testing.assert_array_equal(images, FLOATS)


def test_noise_of_sigma_0_returns_the_images():
    np.testing.assert_array_equal(data.add_noise(FLOATS, 0), FLOATS)


@pytest.mark.parametrize("sigma", [-0.1, np.nan, np.inf, "0.1", None, True])
def test_an_invalid_sigma_of_noise_is_refused(sigma):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="sigma.* 0 or more"):
        data.add_noise(FLOATS, sigma)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="sigma.* 0 or more"):
        data.ImageBatches(FLOATS, sigma=sigma)


@pytest.mark.parametrize("seed", [-1, None, 1.5, "3", True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="seed.* 0 or more"):
        data.add_noise(FLOATS, 0.1, seed=seed)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="seed.* 0 or more"):
        data.ImageBatches(FLOATS, seed=seed)


def test_the_digest_of_strings_depends_on_their_text_and_not_on_their_address():
    labels = np.array(["cat", "dog" * 9], dtype=object)
    same = np.array(["".join(["c", "at"]), "".join(["dog"] * 9)], dtype=object)
    other = np.array(["cat", "dog" * 8], dtype=object)
    assert (
        _content.content_hash(labels) == _content.content_hash(same) != _content.content_hash(other)
    )
    texts = [np.array(words, dtype=np.dtypes.StringDType()) for words in (labels, same, other)]
    assert (
        _content.content_hash(texts[0])
        == _content.content_hash(texts[1])
        != _content.content_hash(texts[2])
    )


def test_the_digest_of_a_folder_changes_with_its_files(tmp_path):
    path = write_image(tmp_path / "a.png", 10)
    folder = data.image_folder(tmp_path, 4)
    before = _content.content_hash(folder)
    assert _content.content_hash(data.image_folder(tmp_path, 4)) == before
    assert _content.content_hash(data.image_folder(tmp_path, 5)) != before
    os.utime(path, ns=(0, 0))
    assert _content.content_hash(folder) == before
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    assert _content.content_hash(folder) != before
    path.unlink()
    with pytest.raises(ImageError, match="There is no file .*a.png"):
        _content.content_hash(folder)


def test_the_digest_of_a_list_is_that_of_its_array():
    assert _content.content_hash([[1, 2], [3, 4]]) == _content.content_hash(
        np.array([[1, 2], [3, 4]])
    )


SAME_BYTES = {  # arrays of the same bytes
    "float32": np.zeros((2, 4), "float32"),
    "int32": np.zeros((2, 4), "int32"),
    "big-endian": np.zeros((2, 4), ">i4"),
    "turned": np.zeros((4, 2), "float32"),
    "flat": np.zeros(8, "float32"),
    "bytes": np.zeros((2, 16), "uint8"),
    "double": np.zeros((2, 2), "float64"),
    "structure": np.zeros((2, 4), [("a", "f4")]),
    "masked": np.ma.masked_array(np.zeros((2, 4), "float32"), np.eye(2, 4)),
    "unmasked": np.ma.masked_array(np.zeros((2, 4), "float32"), np.zeros((2, 4))),
    "objects": np.zeros((2, 4), object),
    "texts": np.zeros((2, 4), "U1"),
}


def test_arrays_of_the_same_bytes_have_digests_of_their_own():
    digests = {name: _content.content_hash(array) for name, array in SAME_BYTES.items()}
    assert len(set(digests.values())) == len(SAME_BYTES)
    assert digests == {
        name: _content.content_hash(array.copy()) for name, array in SAME_BYTES.items()
    }


OBJECTS = [1, 1.0, True, "1", b"1", None, "None", (1,), [1], np.zeros(2000), np.eye(2000)[0], "a,b"]


def test_objects_of_a_list_have_digests_of_their_own():
    def boxed(value):
        array = np.empty(2, object)
        array[0] = value
        return _content.content_hash(array)

    assert len({boxed(value) for value in OBJECTS}) == len(OBJECTS)


def test_the_layout_of_an_array_in_memory_does_not_change_its_digest():
    array = np.arange(24.0).reshape(2, 3, 4)
    for same in (np.asfortranarray(array), array[:, ::-1][:, ::-1], np.repeat(array, 2, 0)[::2]):
        assert _content.content_hash(same) == _content.content_hash(array)


def test_images_of_the_same_bytes_and_another_shape_are_no_copies():
    one, other = np.zeros((1, 2, 8, 1), "uint8"), np.zeros((1, 4, 4, 1), "uint8")
    assert len(duplicates.find_duplicates(one, other)) == 0
    assert len(duplicates.find_duplicates(one, one.astype("float32")[:, :, :2])) == 0
    assert len(duplicates.find_duplicates(one, one)) == 1


def test_the_same_shape_in_another_color_is_no_near_duplicate():
    rng = np.random.default_rng(0)
    shape, texture = np.zeros((32, 32, 1)), np.kron(rng.random((16, 16, 3)), np.ones((2, 2, 1)))
    shape[8:24, 8:24] = 0.6
    red, blue = shape * (1, 0, 0), shape * (0, 0, 1)
    even = [np.full((32, 32, 3), color) for color in ((0.3, 0, 0), (0, 0.3, 0), (0.31, 0, 0))]
    images = np.stack([red, blue, texture, texture[..., [2, 0, 1]], *even, 0.9 * red])
    assert duplicates.find_near_duplicates(images).tolist() == [[6, 4], [7, 0]]
    assert duplicates.find_near_duplicates(np.rint(255 * images).astype("uint8")).tolist() == [
        [6, 4],
        [7, 0],
    ]
