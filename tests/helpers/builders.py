"""One small model of each builder."""

import keras
import numpy as np

from kerasim import diffusion, models

IMAGE_SHAPE = (16, 16, 3)


def embedder(name="conv_embedder"):
    return models.conv_embedder(IMAGE_SHAPE, 5, (2, 3), name=name)


def backbone():
    """Returns a backbone with an explicit dtype and data format."""
    images = keras.Input(IMAGE_SHAPE, dtype="float32")
    features = keras.layers.Conv2D(4, 3, data_format="channels_last")(images)
    return keras.Model(images, features)


def features(count=20):
    """Returns stored features of size 10."""
    return np.random.default_rng(0).normal(size=(count, 10)).astype("float32")


BUILDERS = {
    "conv_autoencoder": lambda: models.conv_autoencoder(IMAGE_SHAPE, 5, (2, 3), (6, 7)),
    "residual_autoencoder": lambda: models.residual_autoencoder(IMAGE_SHAPE, 5, (2, 3)),
    "denoising_autoencoder": lambda: models.denoising_autoencoder(IMAGE_SHAPE, (2, 3, 4)),
    "conv_embedder": embedder,
    "resnet_embedder": lambda: models.resnet_embedder(IMAGE_SHAPE, 5, (2, 3, 4)),
    "siamese": lambda: models.siamese(embedder(), metric=None),
    "ensemble": lambda: models.ensemble([embedder("one"), embedder("two")]),
    "vae": lambda: models.vae(IMAGE_SHAPE, 5, (2, 3), 8),
    "unet": lambda: models.unet(
        IMAGE_SHAPE, (4, 6), num_groups=2, num_classes=3, schedule=diffusion.NoiseSchedule(9)
    ),
    "noise_estimator": lambda: models.noise_estimator(IMAGE_SHAPE, (2, 3), 4),
    "pretrained_embedder": lambda: models.pretrained_embedder(backbone()),
    "whitened_head": lambda: models.whitened_head(features(), parts=[(2, 3), (1, 4)], components=3),
}


def inputs_of(name):
    """Returns a batch of four inputs for the model of that builder."""
    images = np.random.default_rng(0).random((4, *IMAGE_SHAPE), dtype="float32")
    if name == "siamese":
        return [images, images[::-1].copy()]
    if name == "unet":
        return {
            "images": images,
            "t": np.arange(4, dtype="int32"),
            "labels": np.arange(4, dtype="int32"),
        }
    if name == "whitened_head":
        return features(4)
    return images
