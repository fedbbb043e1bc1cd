"""At initialization, signals neither vanish nor explode on their way through a network.

For each layer of each builder: in training mode, the standard deviation across images of the output
is at least 1 % of that of the images, and at most 100 times as much. Layers that start at zero, and
output layers, which start small, are exempt.
"""

import keras
import numpy as np
import pytest

from kerasim import data, diffusion, models
from kerasim.models import _blocks

DIGITS = data.load_dataset("digits").x_train[:16]
ACTIVATIONS = ("relu", "silu", "gelu", "elu", "selu", "tanh", "leaky_relu")
OUTPUT_LAYERS = {"pixels", "image", "up1", "change", "clean", "noise", "velocity", "factor"}


def images_of(image_shape):
    """Returns digits cut or tiled to a shape."""
    height, width, channels = image_shape
    rows, columns = -(-height // 32), -(-width // 32)
    return np.tile(DIGITS, (1, rows, columns, channels))[:, :height, :width]


def cases():
    """Yields (name of the case, image shape, function that builds the model)."""
    shape = (32, 32, 1)
    by_activation = {"residual_autoencoder": ACTIVATIONS, "vae": ACTIVATIONS[:2]}
    by_activation |= dict.fromkeys(("conv_autoencoder", "conv_embedder"), ("relu", "tanh"))
    for name, activations in by_activation.items():
        for activation in activations:
            settings = {"widths": (8, 16, 32), "activation": activation}
            yield f"{name}-{activation}", shape, settings
    sizes = [((16, 48, 1), (8, 8)), ((16, 16, 3), (32, 16, 8)), ((32, 32, 1), (8, 16, 32, 64))]
    for image_shape, widths in sizes:
        label = f"{len(widths)} stages"
        for name in ("residual_autoencoder", "denoising_autoencoder", "vae", "resnet_embedder"):
            yield f"{name}-{label}", image_shape, {"widths": widths}
        yield f"unet-{label}", image_shape, {"widths": widths, "num_classes": 10}
    schedule = diffusion.NoiseSchedule(100)
    yield "unet-patch", shape, {"widths": (8, 16), "patch_size": 2, "schedule": schedule}
    for number in (0, 12):
        for name in ("residual_autoencoder", "denoising_autoencoder"):
            yield f"{name}-{number} blocks", shape, {"widths": (8, 16, 32), "num_blocks": number}
    yield "conv_embedder-report", shape, {"activation": None, "convs": 1, "dense_width": 64}
    yield "conv_autoencoder-default", (32, 32, 3), {}
    yield "noise_estimator", shape, {}


CASES = {name: (image_shape, settings) for name, image_shape, settings in cases()}


def spread(x):
    """Returns the root mean square, over positions, of the deviation from the mean image."""
    x = keras.ops.convert_to_numpy(x).astype("float64")
    return float(np.sqrt(np.mean(np.square(x - x.mean(axis=0)))))


def starts_at_zero(layer):
    kernel = getattr(layer, "kernel", None)
    return kernel is not None and not keras.ops.convert_to_numpy(kernel).any()


def spreads(model, inputs):
    """Returns each layer of a model with the spread of its output."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    taken = {x.name: x for x in model.inputs} if len(model.inputs) > 1 else model.inputs[0]
    outputs = keras.Model(taken, [layer.output for layer in layers])(inputs, training=True)
    return [(layer, spread(output)) for layer, output in zip(layers, outputs, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_signals_keep_their_size_at_initialization(case):
    image_shape, settings = CASES[case]
    keras.utils.set_random_seed(0)
    builder = case.split("-")[0]
    model = getattr(models, builder)(image_shape=image_shape, **settings)
    images = images_of(image_shape)
    numbers = np.arange(len(images), dtype="int32")
    inputs = {"images": images, "t": numbers, "labels": numbers % 10}
    inputs = {x.name: inputs[x.name] for x in model.inputs} if builder == "unet" else images
    parts = [model]
    if builder in ("conv_autoencoder", "residual_autoencoder", "vae"):
        parts = [model.get_layer("encoder"), model.get_layer("decoder")]
    for part in parts:
        for layer, value in spreads(part, inputs):
            if layer.name in OUTPUT_LAYERS or starts_at_zero(layer):
                continue
            assert 0.01 <= value / spread(images) <= 100, layer.name
        inputs = part(inputs, training=True)


@pytest.mark.parametrize("pooling", ["attention", "gem", "max", "average", "flatten"])
def test_signals_keep_their_size_in_a_squeezenet_with_random_weights(pooling):
    keras.utils.set_random_seed(0)
    shape = (64, 64, 3)
    embedder = models.pretrained_embedder("squeezenet", None, None, pooling, 16, shape)
    prepared = embedder.get_layer("preprocessing")(images_of(shape))
    for layer, value in spreads(embedder.get_layer("backbone"), prepared):
        assert 0.01 <= value / spread(prepared) <= 100, layer.name
    assert 0.01 <= spread(embedder(images_of(shape))) / spread(prepared) <= 100


@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
def test_the_gain_of_an_activation_preserves_the_mean_square(activation):
    normal = np.random.default_rng(0).standard_normal((100_000, 1)).astype("float32")
    values = keras.activations.get(activation)(keras.ops.convert_to_tensor(normal))
    mean_square = np.mean(np.square(keras.ops.convert_to_numpy(values)))
    assert _blocks.activation_gain(activation) * mean_square == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("momentum", [0.9])
@pytest.mark.parametrize(
    "build",
    [
        lambda: models.conv_embedder((16, 16, 1), 4, (4, 8), convs=1, dense_width=8),
        lambda: models.resnet_embedder((16, 16, 1), 4, (4, 8)),
        lambda: models.pretrained_embedder("mobilenet", None, image_shape=(32, 32, 3)),
    ],
    ids=["conv_embedder", "resnet_embedder", "pretrained_embedder"],
)
def test_moving_statistics_are_right_after_a_short_run(build, momentum):
    found = [
        layer.momentum
        for layer in build()._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert found and set(found) == {momentum}
