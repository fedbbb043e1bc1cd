"""Builders: functions that take plain arguments and return a functional `keras.Model`.

A builder checks its arguments, builds a graph of named layers and returns it. There are no model
classes and no configuration objects, so the models can be compiled, trained, saved, divided and
combined like any Keras model. An embedder is a model that maps images to vectors: the result of
`conv_embedder`, `resnet_embedder` or `pretrained_embedder`, or `get_layer("encoder")` of an
autoencoder. All models take images in [0, 1]; preprocessing is part of the model.
"""

from kerasim.models.autoencoder import conv_autoencoder, denoising_autoencoder, residual_autoencoder
from kerasim.models.embedder import conv_embedder, resnet_embedder
from kerasim.models.pretrained import pretrained_embedder, set_trainable
from kerasim.models.siamese import ensemble, siamese
from kerasim.models.unet import noise_estimator, unet
from kerasim.models.vae import vae
