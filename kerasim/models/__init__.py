"""Builders: plain arguments in, a functional `keras.Model` out.

A builder checks its arguments, builds a graph of named layers and returns it; there is no class, no
config and nothing to subclass, so that a net is compiled, fitted, saved, cut and joined as Keras
does it. An embedder is a model from images to vectors: what `conv_embedder`, `resnet_embedder`
and `pretrained_embedder` give, or `get_layer("encoder")` of an autoencoder. Preprocessing is a part
of the model: they take images in [0, 1].
"""

from kerasim.models.autoencoder import conv_autoencoder, denoising_autoencoder, residual_autoencoder
from kerasim.models.embedder import conv_embedder, resnet_embedder
from kerasim.models.pretrained import pretrained_embedder, set_trainable
from kerasim.models.siamese import ensemble, siamese
from kerasim.models.unet import noise_estimator, unet
from kerasim.models.vae import vae
