"""Builders: plain arguments in, a functional `keras.Model` out."""

from kerasim.models.autoencoder import conv_autoencoder, denoising_autoencoder, residual_autoencoder

__all__ = ["conv_autoencoder", "denoising_autoencoder", "residual_autoencoder"]
