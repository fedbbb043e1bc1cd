import json
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from kerasim import models
from kerasim.errors import ArgumentError, ArgumentTypeError

SMALL = {
    "conv_autoencoder": {"latent_dim": 5, "widths": (2, 3), "dense_widths": (6, 7)},
    "residual_autoencoder": {"latent_dim": 5, "widths": (2, 3)},
    "denoising_autoencoder": {"widths": (2, 3, 4)},
}
WITH_CODES = ("conv_autoencoder", "residual_autoencoder")
HALVING = ("residual_autoencoder", "denoising_autoencoder")


def build(builder, image_shape=(16, 16, 3), **settings):
    keras.utils.set_random_seed(0)
    return getattr(models, builder)(image_shape, **{**SMALL[builder], **settings})


def draw_images(image_shape, n=3):
    return np.random.default_rng(0).random((n, *image_shape), dtype="float32")


def test_every_builder_is_tested():
    assert set(SMALL) == {name for name in dir(models) if name.endswith("_autoencoder")}


@pytest.mark.fault("image-size")
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (20, 12)])
@pytest.mark.parametrize("name", SMALL)
def test_an_image_comes_out_in_the_shape_it_went_in_and_within_0_and_1(name, size, channels):
    model = build(name, (*size, channels))
    images = draw_images((*size, channels)) ** 4
    for weight in model.trainable_weights:  # far from the start, where outputs reach out
        weight.assign(weight * 3 + 0.05)
    output = keras.ops.convert_to_numpy(model(images))
    assert output.shape == images.shape
    assert output.min() >= 0 and output.max() <= 1


@pytest.mark.parametrize("name", SMALL)
def test_inputs_and_outputs_are_float32_in_batches_of_any_size(name):
    model = build(name)
    assert model.input_shape == model.output_shape == (None, 16, 16, 3)
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("name", SMALL)
def test_a_model_has_the_name_of_its_builder_or_its_own(name):
    assert build(name).name == name
    assert build(name, name="mine").name == "mine"


@pytest.mark.parametrize("name", WITH_CODES)
def test_encoder_and_decoder_make_up_the_whole(name):
    model = build(name)
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    images = draw_images((16, 16, 3))
    joined, whole = decoder(encoder(images)), model(images)
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (joined, whole)))
    assert model.count_params() == encoder.count_params() + decoder.count_params()


@pytest.mark.parametrize("latent_dim", [1, 7])
@pytest.mark.parametrize("name", WITH_CODES)
def test_codes_have_the_length_that_was_asked_for(name, latent_dim):
    model = build(name, latent_dim=latent_dim)
    assert model.get_layer("encoder").output_shape == (None, latent_dim)
    assert model.get_layer("decoder").input_shape == (None, latent_dim)


@pytest.mark.parametrize("name", WITH_CODES)
def test_codes_may_be_negative(name):
    codes = build(name).get_layer("encoder")(draw_images((16, 16, 3), 20))
    assert keras.ops.min(codes) < 0


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_builds_the_same_weights(name):
    for one, other in zip(build(name).get_weights(), build(name).get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_is_trained(name):
    model = build(name)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    images = draw_images((16, 16, 3), 16)
    before = model.get_weights()
    for _ in range(3):  # a layer that starts at zero holds back those before it for a step
        model.train_on_batch(images, images**2)
    moved = [(a != b).any() for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(moved), [w.path for w, m in zip(model.weights, moved, strict=True) if not m]


def test_the_default_conv_autoencoder_is_the_original():
    model = models.conv_autoencoder()
    assert model.count_params() == 9_038_410
    shapes = {
        part: [layer.output.shape[1:] for layer in model.get_layer(part).layers[1:]]
        for part in ("encoder", "decoder")
    }
    assert shapes["encoder"] == [
        (30, 30, 32),
        (15, 15, 32),
        (13, 13, 64),
        (6, 6, 64),
        (4, 4, 128),
        (2048,),
        (10,),
    ]
    assert shapes["decoder"] == [(512,), (1024,), (2048,), (3072,), (32, 32, 3)]


def test_activations_of_the_conv_autoencoder_are_where_they_belong():
    model = build("conv_autoencoder", activation="tanh")
    named = {
        layer.name: layer.activation.__name__
        for part in ("encoder", "decoder")
        for layer in model.get_layer(part).layers
        if hasattr(layer, "activation")
    }
    assert named == {
        "conv1": "tanh",
        "conv2": "tanh",
        "codes": "linear",
        "dense1": "tanh",
        "dense2": "tanh",
        "pixels": "sigmoid",
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_a_denoiser_returns_its_input_before_it_is_trained(channels):
    images = draw_images((16, 24, channels))
    denoised = build("denoising_autoencoder", (16, 24, channels))(images)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(denoised), images)


@pytest.mark.parametrize("name", HALVING)
def test_more_blocks_make_a_larger_model_and_none_are_allowed(name):
    sizes = [build(name, num_blocks=blocks).count_params() for blocks in (0, 1, 2)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.fault("image-size")
@pytest.mark.parametrize("name", HALVING)
def test_a_size_that_cannot_be_halved_is_refused_with_the_nearest(name):
    for size in range(1, 71):
        if size % 4 == 0:
            continue
        below, above = max(4, size // 4 * 4), size // 4 * 4 + 4
        nearest = re.escape(f"heights are {sorted({below, above})}, the nearest widths [8]")
        with pytest.raises(ArgumentError, match=f"multiples of 4. The nearest {nearest}"):
            build(name, (size, 8, 3))
        with pytest.raises(ArgumentError, match=f"image_shape=\\(8, {size}, 3\\)"):
            build(name, (8, size, 3))


@pytest.mark.fault("image-size")
def test_an_image_that_shrinks_to_nothing_is_refused_with_the_least_size():
    for size in range(1, 8):
        for shape in ((size, 70, 1), (70, size, 1)):
            with pytest.raises(ArgumentError, match="height and width must be 8 or more"):
                build("conv_autoencoder", shape)


@pytest.mark.parametrize("widths, least", [((2,), 3), ((2, 2), 8), ((2, 2, 2), 18)])
def test_the_least_size_of_a_conv_autoencoder_is_the_least(widths, least):
    assert build("conv_autoencoder", (least, least, 1), widths=widths)
    with pytest.raises(ArgumentError, match=f"must be {least} or more"):
        build("conv_autoencoder", (least, least - 1, 1), widths=widths)


@pytest.mark.fault("image-size")
@pytest.mark.parametrize("name", SMALL)
def test_every_other_size_is_built_in_the_shape_of_the_image(name):
    step = 4 if name in HALVING else 1
    for size in [*range(8, 17, step), 28, 36, 64, 68, *([31, 69, 70] if step == 1 else [])]:
        model = build(name, (size, 8, 1))
        assert model.compute_output_shape((2, size, 8, 1)) == (2, size, 8, 1)


BAD_INTEGERS = [
    (0, ArgumentError),
    (-1, ArgumentError),
    (2.5, ArgumentTypeError),
    ("8", ArgumentTypeError),
    (None, ArgumentTypeError),
    (True, ArgumentTypeError),
]


def bad_arguments():
    """Lists (builder, argument, value, kind of error)."""
    for name, settings in SMALL.items():
        for value, kind in BAD_INTEGERS:
            # Height and width of a denoiser may be open.
            is_open = name == "denoising_autoencoder" and value is None
            for place in [2] if is_open else range(3):
                shape = [16, 16, 3]
                shape[place] = value
                yield name, "image_shape", tuple(shape), kind
            yield name, "widths", (2, value), kind
            if "latent_dim" in settings:
                yield name, "latent_dim", value, kind
            if "dense_widths" in settings:
                yield name, "dense_widths", (value, 2), kind
            if name in HALVING and value != 0:
                yield name, "num_blocks", value, kind
        for value in (None, 32, (32, 32), (32, 32, 3, 1), "big"):
            yield name, "image_shape", value, ArgumentTypeError
        for value in (None, 32, "32"):
            yield name, "widths", value, ArgumentTypeError
        yield name, "widths", (), ArgumentError


@pytest.mark.fault("number-out-of-range")
@pytest.mark.parametrize("name, argument, value, kind", list(bad_arguments()))
def test_a_bad_argument_is_refused_by_name(name, argument, value, kind):
    with pytest.raises(kind, match=argument):
        build(name, **{argument: value})


def test_shapes_may_be_lists_and_widths_numpy_integers():
    model = build("conv_autoencoder", [16, 16, 3], widths=np.array([2, 3]))
    assert model.output_shape == (None, 16, 16, 3)


CHILD = """
import sys
import numpy as np
import keras

images, *paths = sys.argv[1:]
for path in paths:
    model = keras.saving.load_model(path, safe_mode=True)
    np.save(path + ".npy", model.predict(np.load(images), verbose=0))
assert "kerasim" not in sys.modules
"""


@pytest.mark.fault("model-in-new-process")
def test_a_fresh_process_loads_every_model_without_code_of_ours_or_lambdas(tmp_path):
    images = draw_images((16, 16, 3))
    np.save(tmp_path / "images.npy", images)
    expected = {}
    for name in SMALL:
        model, path = build(name), tmp_path / f"{name}.keras"
        for weight in model.trainable_weights:  # a denoiser would return its input
            weight.assign(weight * 1.5 + 0.01)
        model.save(path)
        expected[path] = model.predict(images, verbose=0)
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
        modules = set(re.findall(r'"module": "(\w+)', config))
        assert modules == {"keras"} and "Lambda" not in config
        assert json.loads(config)["config"]["name"] == name
    child = [sys.executable, "-c", CHILD, tmp_path / "images.npy", *expected]
    done = subprocess.run(child, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path, output in expected.items():
        np.testing.assert_allclose(np.load(f"{path}.npy"), output, atol=1e-6)


def test_a_denoiser_of_open_size_takes_any_multiple_and_keeps_its_weights():
    fixed = models.denoising_autoencoder((16, 24, 2), (4, 8), sigma_input=True)
    open_size = models.denoising_autoencoder((None, None, 2), (4, 8), sigma_input=True)
    rng = np.random.default_rng(0)
    open_size.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in fixed.get_weights()])
    fixed.set_weights(open_size.get_weights())
    inputs = {"images": draw_images((16, 24, 2)), "sigma": np.full((3, 1), 0.2, "float32")}
    one, other = (np.asarray(keras.ops.convert_to_numpy(net(inputs))) for net in (fixed, open_size))
    np.testing.assert_allclose(one, other, atol=1e-6)
    louder = {**inputs, "sigma": np.full((3, 1), 0.5, "float32")}
    assert np.abs(keras.ops.convert_to_numpy(fixed(louder)) - one).max() > 0.001
    assert open_size({**inputs, "images": draw_images((8, 30, 2))}).shape == (3, 8, 30, 2)
