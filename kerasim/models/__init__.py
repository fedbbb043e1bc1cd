"""Builders: plain arguments in, a functional `keras.Model` out."""

from kerasim.models.autoencoder import conv_autoencoder, denoising_autoencoder, residual_autoencoder
from kerasim.models.embedder import conv_embedder, resnet_embedder
from kerasim.models.pretrained import pretrained_embedder, set_trainable
from kerasim.models.siamese import ensemble, siamese
from kerasim.models.unet import noise_estimator, unet
from kerasim.models.vae import vae

__all__ = [
    "conv_autoencoder",
    "conv_embedder",
    "denoising_autoencoder",
    "ensemble",
    "noise_estimator",
    "pretrained_embedder",
    "residual_autoencoder",
    "resnet_embedder",
    "set_trainable",
    "siamese",
    "unet",
    "vae",
]
