import warnings

import keras
import numpy as np
import pytest
from PIL import Image, ImageCms

from kerasim import _tiling, data, denoising, diffusion, images, models
from kerasim.denoising import Denoiser
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError

FILE_NOISE = {"low": 0.02, "high": 0.5, "gain": 0.0, "clip": True, "bits": 8}


def uniform(shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype="float32")


def with_random_weights(model, scale=0.1, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(weight + scale * rng.standard_normal(weight.shape))
    return model


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    built = models.denoising_autoencoder((None, None, 3), (8, 16), sigma_input=True)
    return with_random_weights(built)


@pytest.fixture(scope="module")
def estimator():
    """Right for flat images with noise that is not clipped."""
    return models.noise_estimator((None, None, 3), (4,))


@pytest.fixture(scope="module")
def flat(estimator):
    """Returns its input."""
    return Denoiser(models.denoising_autoencoder((None, None, 3), (8, 16)), estimator)


def noisy(shape, sigma=0.1, **settings):
    return data.add_noise(np.full(shape, 0.5, "float32"), sigma, **settings)


# Tiles


@pytest.mark.parametrize("size", [5, 63, 64, 65, 100, 127, 129, 300, 513])
@pytest.mark.parametrize(("tile", "multiple"), [(64, 1), (64, 4), (128, 16), (32, None)])
def test_the_weights_of_tiles_add_up_to_one(size, tile, multiple):
    axis = _tiling._Axis(size, tile, multiple)
    total = np.zeros(axis.extended)
    assert axis.extended >= size and axis.extended % (multiple or 1) == 0
    for part, weights in axis:
        assert part.stop - part.start == axis.tile
        assert axis.tile == tile if multiple is None else axis.tile % multiple == 0
        assert part.start % (multiple or 1) == 0
        assert weights.min() >= 0
        total[part] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_tiles_give_what_the_whole_image_gives(network):
    denoiser = Denoiser(network)
    photo = uniform((1, 301, 403, 3))
    whole = denoiser(photo, 0.2, tile=512).images
    tiled = denoiser(photo, 0.2, tile=192).images
    assert np.abs(whole - photo).max() > 0.1  # the network changes the image
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_a_network_of_a_large_multiple_has_tiles_of_two():
    deep = Denoiser(models.denoising_autoencoder((None, None, 1), (2,) * 8, 0))
    photo = uniform((1, 300, 520, 1))
    np.testing.assert_allclose(deep(photo, tile=64).images, photo, atol=1e-6)


def test_a_network_of_a_fixed_size_gets_pieces_of_that_size():
    fixed = Denoiser(models.denoising_autoencoder((32, 48, 1), (8, 16)))
    for height, width in ((20, 30), (32, 48), (75, 90)):
        photo = uniform((2, height, width, 1))
        np.testing.assert_allclose(fixed(photo).images, photo, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 20)])
def test_images_of_any_size_keep_it(flat, size):
    photo = uniform((3, *size, 3))
    denoised = flat(photo, 0.1)
    np.testing.assert_allclose(denoised.images, photo, atol=1e-6)
    assert denoised.images.dtype == "float32"


def test_the_rows_of_a_batch_are_those_of_each_image(network):
    denoiser = Denoiser(network)
    photos = uniform((5, 22, 18, 3))
    sigma = np.linspace(0.1, 0.5, 5)
    together = denoiser(photos, sigma).images
    for n in range(5):
        np.testing.assert_allclose(
            together[n], denoiser(photos[n : n + 1], sigma[n]).images[0], atol=1e-5
        )
    assert denoiser(photos[:0], 0.1).images.shape == (0, 22, 18, 3)


@pytest.mark.parametrize("stages", [0, 1])
def test_a_network_that_predicts_the_noise_denoises_as_diffusion_does(stages):
    schedule = diffusion.NoiseSchedule(100, "cosine")
    net = models.unet((None, None, 1), (8, 16), num_attention_stages=stages, schedule=schedule)
    with_random_weights(net)
    photos = noisy((2, 16, 24, 1), 0.3, clip=False)
    expected, _ = diffusion.denoise(net, schedule, photos, 0.3)
    found = Denoiser(net, schedule=schedule)(photos, 0.3)
    np.testing.assert_allclose(found.images, expected, atol=1e-5)
    assert Denoiser(net, schedule=schedule)(photos[:, :, :21], 0.3).images.shape == (2, 16, 21, 1)


# Noise


@pytest.mark.parametrize("size", [64, 700])
def test_the_noise_is_estimated_of_small_and_of_large_images(flat, size):
    photos = np.concatenate([noisy((1, size, size, 3), sigma, clip=False) for sigma in (0.05, 0.2)])
    found = flat(photos).sigma
    assert found.shape == (2,) and found.dtype == "float64"
    np.testing.assert_allclose(found, [0.05, 0.2], rtol=0.05)


def test_an_image_with_less_noise_than_was_trained_is_returned_as_it_is(network, estimator):
    denoiser = Denoiser(network, estimator, FILE_NOISE)
    clean = noisy((1, 32, 32, 3), 0.001)
    both = np.concatenate([clean, noisy((1, 32, 32, 3), 0.1)])
    result = denoiser(both).images
    np.testing.assert_array_equal(result[0], both[0])
    assert np.abs(result[1] - both[1]).max() > 0.1


def test_more_noise_than_was_trained_is_warned_of(flat, estimator):
    denoiser = Denoiser(flat.network, estimator, {**FILE_NOISE, "clip": False, "bits": None})
    photos = noisy((2, 64, 64, 3), 0.8, clip=False)
    message = r"2 of 2 images have noise of 0.\d+ or more, and the network was trained for 0.5"
    with pytest.warns(UserWarning, match=message):
        denoiser(photos)
    with pytest.warns(UserWarning, match="The image has noise of"):
        denoiser(photos[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        denoiser(noisy((2, 64, 64, 3), 0.4, clip=False))


def test_the_file_of_a_network_for_noise_that_is_not_clipped_is_warned_of(flat, estimator):
    unclipped = Denoiser(flat.network, estimator, {"low": 0.02, "high": 0.9})
    clipped = noisy((2, 64, 64, 3), 0.4, bits=8)
    with pytest.warns(UserWarning, match="2 of 2 images seem to be clipped.*bits=8"):
        unclipped(clipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Denoiser(flat.network, estimator, FILE_NOISE)(clipped)
        unclipped(noisy((2, 64, 64, 3), 0.05))  # nothing reaches 0 or 1


def test_values_outside_of_a_file_are_refused_for_a_network_of_files(network, estimator):
    denoiser = Denoiser(network, estimator, FILE_NOISE)
    with pytest.raises(ArgumentError, match=r"images holds values outside \[0, 1\].*in 1 of 2"):
        denoiser(np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 1.5)]))


@pytest.mark.parametrize("change", ["levels", "dark levels", "from -1 to 1"])
def test_values_that_noise_does_not_explain_are_refused(flat, estimator, change):
    denoiser = Denoiser(flat.network, estimator, {"low": 0.01, "high": 0.5})
    smooth = np.broadcast_to(np.linspace(0, 1, 32)[:, None], (2, 32, 32, 3))
    photos = data.add_noise(smooth, 0.1, clip=False)
    dark = data.add_noise(np.zeros((2, 32, 32, 3)), 0.3, clip=False)
    denoiser(np.concatenate([photos, dark, 1 - dark]))  # are taken
    scaled = {
        "levels": 255 * photos,
        "dark levels": np.round(49 * photos),
        "from -1 to 1": 2 * photos - 1,
    }
    for sigma in (None, 0.2):
        with pytest.raises(ArgumentError, match=r"outside \[0, 1\] than their noise explains"):
            denoiser(scaled[change], sigma)


def test_bytes_and_16_bits_are_those_of_floats(network):
    denoiser = Denoiser(network)
    levels = np.rint(255 * uniform((1, 16, 16, 3))).astype("uint8")
    expected = denoiser(levels / 255, 0.1).images
    np.testing.assert_allclose(denoiser(levels, 0.1).images, expected, atol=1e-6)
    wide = levels.astype("uint16") * 257
    np.testing.assert_allclose(denoiser(wide, 0.1).images, expected, atol=1e-6)


BAD_CALLS = {
    "no images": ({"images": None}, "images"),
    "another number of channels": ({"images": np.zeros((1, 8, 8, 1))}, "images has shape"),
    "one image": ({"images": np.zeros((8, 8, 3))}, r"one image.*images\[None\]"),
    "integers": ({"images": np.zeros((1, 8, 8, 3), int)}, "float, uint8 or uint16, not int64"),
    "NaN": ({"images": np.full((1, 8, 8, 3), np.nan)}, "images holds NaN"),
    "a negative sigma": ({"sigma": -0.1}, "sigma=-0.1 is out of range"),
    "sigma of 255": ({"sigma": 25.0}, "sigma=25.0 is out of range: pass a number from 0 to 5"),
    "sigmas of 255": ({"sigma": [25.0]}, "sigma holds values outside 0 to 5"),
    "sigma of other images": ({"sigma": [0.1, 0.2]}, "sigma has shape"),
    "no sigma": ({"sigma": None}, "sigma is None.*no estimator"),
    "a small tile": ({"tile": 8}, "tile=8 is out of range"),
    "progress": ({"progress": "no"}, "progress"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_what_cannot_be_denoised_is_refused(network, name):
    settings, message = BAD_CALLS[name]
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        Denoiser(network)(**{"images": np.zeros((1, 8, 8, 3)), "sigma": 0.1, **settings})


def test_images_too_small_for_an_estimate_are_refused(flat):
    with pytest.raises(ArgumentError, match="images of 3 x 256 pixels are too small.*pass sigma"):
        flat(uniform((2, 3, 256, 3)))
    assert flat(uniform((2, 3, 256, 3)), 0.1).images.shape == (2, 3, 256, 3)


@pytest.mark.parametrize("size", [64, 700])
def test_a_frame_without_noise_does_not_lower_the_estimate(flat, size):
    photos = noisy((2, size, size, 3), 0.2, clip=False)
    photos[0, : size // 2] = 1.0
    photos[1, :, : size // 4] = 0.0
    np.testing.assert_allclose(flat(photos).sigma, [0.2, 0.2], rtol=0.15)


def test_an_image_without_noise_has_an_estimate_of_0(flat):
    assert flat(np.full((1, 20, 20, 3), 0.5)).sigma[0] <= 1e-4


def test_dark_16_bit_images_are_warned_of(network):
    with pytest.warns(UserWarning, match="uint16 with values up to 4095, and 65535 is white"):
        Denoiser(network)(np.full((1, 8, 8, 3), 4095, "uint16"), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Denoiser(network)(np.zeros((1, 8, 8, 3), "uint16"), 0.1)


def test_most_clean_images_are_returned_as_they_are_after_a_calibration(
    network, estimator, tmp_path
):
    denoiser = Denoiser(network, estimator, FILE_NOISE)
    detailed = uniform((20, 16, 16, 3)) * np.linspace(0.1, 0.5, 20)[:, None, None, None]
    assert denoiser.threshold == 0.02 and not (denoiser(detailed).sigma < 0.02).any()
    threshold = denoiser.calibrate(detailed, 0.9)
    left_alone = (denoiser(detailed).images == detailed.astype("float32")).all((1, 2, 3))
    assert left_alone.sum() == 18 and threshold == denoiser.threshold > 0.02
    denoiser.save(tmp_path / "denoiser")
    assert Denoiser.load(tmp_path / "denoiser").threshold == threshold
    assert denoiser.calibrate(np.full((1, 16, 16, 3), 0.5)) == 0.02  # what was trained


def test_a_calibration_without_images_or_estimator_is_refused(network, estimator):
    with pytest.raises(ArgumentError, match="images is empty"):
        Denoiser(network, estimator).calibrate(np.zeros((0, 16, 16, 3)))
    with pytest.raises(ArgumentError, match="calibrate needs an estimator"):
        Denoiser(network).calibrate(np.zeros((1, 16, 16, 3)))


def test_images_smaller_than_a_fixed_estimator_takes_are_refused(network):
    denoiser = Denoiser(network, models.noise_estimator((32, 32, 3), (4,)))
    assert denoiser(noisy((1, 64, 80, 3))).sigma.shape == (1,)
    with pytest.raises(ArgumentError, match="images of 16 x 64 are smaller than the 32 x 32"):
        denoiser(noisy((1, 16, 64, 3)))


def an_encoder():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])


UNFIT = {
    "no model": (lambda net, _: Denoiser("model"), "network must be a keras.Model.*str"),
    "an encoder": (lambda net, _: Denoiser(an_encoder()), "network takes .* and returns"),
    "a schedule too many": (
        lambda net, _: Denoiser(net, schedule=diffusion.NoiseSchedule(10)),
        "schedule=.* is for a network with inputs named images and t",
    ),
    "no schedule": (lambda net, _: Denoiser(models.unet((8, 8, 1), (8,))), "schedule"),
    "a size that changes": (
        lambda net, _: Denoiser(
            keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(3, 3)])
        ),
        "another size than it takes",
    ),
    "a gray estimator": (
        lambda net, _: Denoiser(net, models.noise_estimator((None, None, 1))),
        "estimator takes 1 channels.*expected 3",
    ),
    "an estimator of vectors": (
        lambda net, _: Denoiser(net, an_encoder()),
        "returns 192 numbers",
    ),
    "noise of another kind": (
        lambda net, _: Denoiser(net, noise={"sigma": 0.1}),
        "noise={'sigma': 0.1} must be a dict with low, high",
    ),
    "noise out of order": (
        lambda net, _: Denoiser(net, noise={"low": 0.5, "high": 0.1}),
        r"noise\['high'\]=0.1",
    ),
    "another schedule": (
        lambda net, _: Denoiser(
            models.unet((8, 8, 1), (8,), schedule=diffusion.NoiseSchedule(100)),
            schedule=diffusion.NoiseSchedule(50),
        ),
        "is not the one that the network was built with",
    ),
}


def test_weights_that_are_not_finite_are_refused(network, estimator):
    broken = keras.models.clone_model(estimator)
    broken.set_weights([np.full(w.shape, np.nan) for w in estimator.get_weights()])
    with pytest.raises(ArgumentError, match="estimator has weights that are NaN"):
        Denoiser(network, broken)


def test_a_network_with_classes_denoises_without_them():
    schedule = diffusion.NoiseSchedule(100)
    net = models.unet((None, None, 1), (8,), num_classes=3, schedule=schedule)
    with_random_weights(net)
    photos = noisy((2, 16, 16, 1), 0.3, clip=False)
    expected = diffusion.denoise(net, schedule, photos, 0.3)[0]
    found = Denoiser(net, schedule=schedule)(photos, 0.3).images
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_of_numpy_numbers_is_saved(network, estimator, tmp_path):
    noise = {"low": np.float32(0.5), "high": np.float64(1), "clip": np.True_, "bits": np.int8(8)}
    Denoiser(network, estimator, noise).save(tmp_path / "denoiser")
    found = Denoiser.load(tmp_path / "denoiser").noise
    assert found == {"low": 0.5, "high": 1.0, "gain": 0.0, "clip": True, "bits": 8}


@pytest.mark.parametrize("name", UNFIT)
def test_networks_that_do_not_fit_are_refused(network, estimator, name):
    make, message = UNFIT[name]
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make(network, estimator)


def test_training_batches_say_the_noise_of_a_denoiser(network, estimator):
    batches = data.NoiseBatches(noisy((4, 8, 8, 3)), 0.02, 0.5, clip=True, bits=8)
    assert Denoiser(network, estimator, batches.noise).noise == FILE_NOISE


# Files


def test_a_saved_denoiser_denoises_alike(network, estimator, tmp_path):
    denoiser = Denoiser(network, estimator, FILE_NOISE)
    denoiser.save(tmp_path / "denoiser")
    loaded = Denoiser.load(tmp_path / "denoiser")
    photos = noisy((2, 18, 22, 3), 0.1, bits=8)
    expected, found = denoiser(photos), loaded(photos)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-6)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-5)
    assert loaded.noise == FILE_NOISE and repr(loaded).startswith("Denoiser('denoising")
    loaded.save(tmp_path / "denoiser")  # its own
    with pytest.raises(ArtifactError, match="replace"):
        Denoiser(network).save(tmp_path / "denoiser")
    Denoiser(network).save(tmp_path / "denoiser", replace=True)
    assert Denoiser.load(tmp_path / "denoiser").estimator is None


def test_a_saved_diffusion_denoiser_keeps_its_schedule(tmp_path):
    schedule = diffusion.NoiseSchedule(100, "cosine")
    net = models.unet((None, None, 1), (8,), num_attention_stages=0, schedule=schedule)
    Denoiser(net, schedule=schedule).save(tmp_path / "denoiser")
    loaded = Denoiser.load(tmp_path / "denoiser")
    assert repr(loaded.schedule) == repr(schedule)
    assert loaded(noisy((1, 8, 8, 1)), 0.1).images.shape == (1, 8, 8, 1)


def test_a_damaged_denoiser_is_refused(network, tmp_path):
    Denoiser(network).save(tmp_path / "denoiser")
    (tmp_path / "denoiser" / "network.keras").write_bytes(b"")
    with pytest.raises(ArtifactError):
        Denoiser.load(tmp_path / "denoiser")
    with pytest.raises(ArtifactError):
        Denoiser.load(tmp_path / "nothing")


@pytest.fixture
def photo(tmp_path):
    levels = np.rint(255 * noisy((1, 70, 90, 3), 0.1, bits=8)[0]).astype("uint8")
    Image.fromarray(levels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def save_gray(photo):
    with Image.open(photo) as image:
        image.convert("L").save(photo.parent / "gray.png")
    return photo.parent / "gray.png"


def mode_of(path):
    with Image.open(path) as image:
        return image.mode


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_a_file_is_denoised(network, photo, tmp_path, suffix):
    denoiser = Denoiser(network)
    used = denoiser.denoise_file(photo, tmp_path / f"clean{suffix}", 0.2)
    assert used == pytest.approx(0.2)
    expected = denoiser(images.read_image(photo)[None], 0.2).images[0]
    written = images.read_image(tmp_path / f"clean{suffix}")
    if suffix == ".jpg":  # which loses most of what a random network adds
        np.testing.assert_allclose(written.mean((0, 1)), expected.mean((0, 1)), atol=0.03)
    else:
        assert np.abs(written - expected).max() <= 0.5 / 255 + 1e-6


def test_each_channel_of_a_file_goes_through_a_gray_network(photo, tmp_path):
    net = with_random_weights(models.denoising_autoencoder((None, None, 1), (8,)), 0.05)
    denoiser = Denoiser(net)
    denoiser.denoise_file(photo, tmp_path / "clean.png")
    planes = images.read_image(photo).transpose(2, 0, 1)[..., None]
    expected = denoiser(planes).images[..., 0].transpose(1, 2, 0)
    assert np.abs(images.read_image(tmp_path / "clean.png") - expected).max() < 0.003
    gray = save_gray(photo)
    denoiser.denoise_file(gray, tmp_path / "clean-gray.png")
    assert mode_of(tmp_path / "clean-gray.png") == "L"


def test_a_gray_file_in_a_network_for_color_is_warned_of(network, photo, tmp_path):
    with pytest.warns(UserWarning, match="The image is gray"):
        Denoiser(network).denoise_file(save_gray(photo), tmp_path / "clean.png", 0.1)
    assert mode_of(tmp_path / "clean.png") == "L"


def test_what_is_no_image_leaves_no_file(network, photo, tmp_path):
    denoiser = Denoiser(network)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageError):
        denoiser.denoise_file(tmp_path / "text.png", tmp_path / "clean.png", 0.1)
    with pytest.raises(ArgumentError, match="target=.*the suffix '.gif': pass one of .png"):
        denoiser.denoise_file(photo, tmp_path / "clean.gif", 0.1)
    assert not list(tmp_path.glob("clean*"))


def test_an_unchanged_image_is_unchanged_in_the_file(flat, estimator, photo, tmp_path):
    denoiser = Denoiser(flat.network, estimator, {**FILE_NOISE, "low": 0.3})
    sigma = denoiser.denoise_file(photo, tmp_path / "same.png")
    assert sigma == pytest.approx(0.1, rel=0.1)
    np.testing.assert_array_equal(
        images.read_image(tmp_path / "same.png"), images.read_image(photo)
    )


def test_a_denoiser_refers_to_what_it_is(flat):
    assert denoising.__all__ == ["Denoised", "Denoiser"] and "noise=None" in repr(flat)


def test_the_source_is_not_replaced(network, photo):
    before = photo.read_bytes()
    (photo.parent / "link.png").symlink_to(photo)
    for target in (photo, photo.parent / "link.png"):
        with pytest.raises(ArgumentError, match="is the source"):
            Denoiser(network).denoise_file(photo, target, 0.1)
    assert photo.read_bytes() == before


def test_a_file_keeps_its_color_profile_and_resolution(network, photo, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(photo) as image:
        image.save(tmp_path / "tagged.png", icc_profile=profile, dpi=(300, 300))
    for name in ("clean.png", "clean.jpg", "clean.tif"):
        Denoiser(network).denoise_file(tmp_path / "tagged.png", tmp_path / name, 0.1)
        with Image.open(tmp_path / name) as written:
            assert written.info["icc_profile"] == profile
            assert np.rint(np.array(written.info["dpi"], float)).tolist() == [300, 300]
