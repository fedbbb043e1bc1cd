import inspect

import keras
import numpy as np
import pytest

from kerasim import diffusion, models
from kerasim.models import blocks

IMAGE_SHAPE = (16, 16, 3)


def embedder(name="conv_embedder"):
    return models.conv_embedder(IMAGE_SHAPE, 5, (2, 3), name=name)


def backbone():
    images = keras.Input(IMAGE_SHAPE)
    return keras.Model(images, keras.layers.Conv2D(4, 3)(images))


BUILDERS = {
    "conv_autoencoder": lambda: models.conv_autoencoder(IMAGE_SHAPE, 5, (2, 3), (6, 7)),
    "residual_autoencoder": lambda: models.residual_autoencoder(IMAGE_SHAPE, 5, (2, 3)),
    "denoising_autoencoder": lambda: models.denoising_autoencoder(IMAGE_SHAPE, (2, 3, 4)),
    "conv_embedder": embedder,
    "resnet_embedder": lambda: models.resnet_embedder(IMAGE_SHAPE, 5, (2, 3, 4)),
    "siamese": lambda: models.siamese(embedder(), distance=None),
    "ensemble": lambda: models.ensemble([embedder("one"), embedder("two")]),
    "vae": lambda: models.vae(IMAGE_SHAPE, 5, (2, 3), 8),
    "unet": lambda: models.unet(
        IMAGE_SHAPE, (4, 6), groups=2, num_classes=3, schedule=diffusion.NoiseSchedule(9)
    ),
    "noise_estimator": lambda: models.noise_estimator(IMAGE_SHAPE, (2, 3), 4),
    "pretrained_embedder": lambda: models.pretrained_embedder(backbone()),
}


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_every_builder_is_tested():
    public = {name for name, value in vars(models).items() if inspect.isfunction(value)}
    assert {*BUILDERS, "set_trainable"} == public


@pytest.mark.parametrize("name", BUILDERS)
def test_under_mixed_precision_the_output_is_not_rounded_to_that_precision(name, mixed_precision):
    keras.utils.set_random_seed(0)
    model = BUILDERS[name]()
    layers = model._flatten_layers(include_self=False)
    assert "bfloat16" in {layer.compute_dtype for layer in layers if layer.weights}
    for weight in model.trainable_weights:  # a denoiser would return its input
        weight.assign(weight * 1.5 + 0.01)
    images = np.random.default_rng(0).random((4, *IMAGE_SHAPE), dtype="float32")
    inputs = [images, images[::-1].copy()] if name == "siamese" else images
    if name == "unet":
        inputs = {"images": images, "t": np.arange(4), "labels": np.arange(4)}
    output = keras.ops.convert_to_numpy(model(inputs))
    assert output.dtype == "float32"
    # A bfloat16 has 8 bits: the lower 16 of its float32 are zero.
    assert (output.view("uint32") & 0xFFFF).any()


def test_a_size_of_numpy_becomes_one_of_python():
    shape = blocks.check_image_shape(np.array([8, 8, 1]))
    assert shape == (8, 8, 1) and {type(n) for n in shape} == {int}
