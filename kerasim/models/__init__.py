"""Builders: plain arguments in, a functional `keras.Model` out."""

from kerasim.models.autoencoder import conv_autoencoder, denoising_autoencoder, residual_autoencoder
from kerasim.models.embedder import conv_embedder, resnet_embedder
from kerasim.models.siamese import ensemble, siamese

__all__ = [
    "conv_autoencoder",
    "conv_embedder",
    "denoising_autoencoder",
    "ensemble",
    "residual_autoencoder",
    "resnet_embedder",
    "siamese",
]
