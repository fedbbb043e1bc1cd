"""Builders: plain arguments in, a functional `keras.Model` out."""

from kerasim.models.autoencoder import conv_autoencoder, denoising_autoencoder, residual_autoencoder
from kerasim.models.embedder import conv_embedder, resnet_embedder
from kerasim.models.pretrained import pretrained_embedder, set_trainable
from kerasim.models.siamese import ensemble, siamese
from kerasim.models.unet import noise_estimator, unet
from kerasim.models.vae import vae
