"""Builders: functions that take plain arguments and return a functional `keras.Model`.

A builder checks its arguments, builds a graph of named layers and returns it. There are no model
classes and no configuration objects, so the models can be compiled, trained, saved, divided and
combined like any Keras model. An embedder is a model that maps images to vectors: the result of
`conv_embedder`, `resnet_embedder` or `pretrained_embedder`, or `get_layer("encoder")` of an
autoencoder. All models take images in [0, 1]; preprocessing is part of the model.
"""

from kerasim.models._autoencoder import (
    conv_autoencoder,
    denoising_autoencoder,
    residual_autoencoder,
)
from kerasim.models._embedder import conv_embedder, resnet_embedder
from kerasim.models._heads import whitened_head
from kerasim.models._policy import dtype_policy
from kerasim.models._pretrained import pretrained_embedder, set_trainable
from kerasim.models._siamese import ensemble, siamese
from kerasim.models._unet import noise_estimator, unet
from kerasim.models._vae import log_likelihood_bound, vae

__all__ = [
    "conv_autoencoder",
    "conv_embedder",
    "denoising_autoencoder",
    "dtype_policy",
    "ensemble",
    "log_likelihood_bound",
    "noise_estimator",
    "pretrained_embedder",
    "residual_autoencoder",
    "resnet_embedder",
    "set_trainable",
    "siamese",
    "unet",
    "vae",
    "whitened_head",
]


def __dir__() -> list[str]:
    return __all__
