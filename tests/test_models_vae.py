import keras
import numpy as np
import pytest

from kerasim import data, embedding, export, models, training
from kerasim.errors import ArgumentError, ArgumentTypeError

IMAGES = np.random.default_rng(0).random((12, 8, 8, 1), dtype="float32")


def build(**settings):
    keras.utils.set_random_seed(0)
    return models.vae((8, 8, 1), 3, (4, 8), 16, **settings)


def test_the_encoder_gives_the_mean_and_the_decoder_images():
    model = build()
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    assert encoder.output_shape == (None, 3) and decoder.output_shape == (None, 8, 8, 1)
    codes = embedding.embed(encoder, IMAGES)
    mean = keras.Model(encoder.input, encoder.get_layer("mean").output)
    np.testing.assert_array_equal(codes, mean.predict(IMAGES, verbose=0))
    images = decoder.predict(codes, verbose=0)
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), images, atol=1e-6)


def test_in_training_two_passes_differ():
    model = build()
    one, other = (keras.ops.convert_to_numpy(model(IMAGES, training=True)) for _ in range(2))
    assert (one != other).any()


def test_the_loss_is_cross_entropy_of_the_mean_code_and_divergence_by_the_values_of_an_image():
    model = build(beta=0.5)
    model.compile("adam", "binary_crossentropy")
    loss = model.evaluate(IMAGES, IMAGES, verbose=0)
    x = model.predict(IMAGES, verbose=0).astype("float64")
    entropy = -(IMAGES * np.log(x) + (1 - IMAGES) * np.log(1 - x)).sum(axis=(1, 2, 3))
    encoder = model.get_layer("encoder")
    parts = [encoder.get_layer(name).output for name in ("mean", "log_variance")]
    mean, log_variance = keras.Model(encoder.input, parts).predict(IMAGES, verbose=0)
    divergence = (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1) / 2
    np.testing.assert_allclose(64 * loss, np.mean(entropy + 0.5 * divergence), rtol=1e-5)


def test_a_vae_learns(tmp_path):
    model = build()
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    batches = data.ImageBatches(IMAGES, batch_size=4)
    history = training.fit(model, batches, 4, tmp_path / "run", verbose=0)
    assert history.loss.iloc[-1] < history.loss.iloc[0]


@pytest.mark.tensorflow("a SavedModel")
def test_the_exported_encoder_of_a_vae_does_not_sample(tmp_path):
    encoder = build().get_layer("encoder")
    export.export_saved_model(encoder, tmp_path / "encoder")
    served = export.load_saved_model(tmp_path / "encoder")
    np.testing.assert_allclose(served(IMAGES), embedding.embed(encoder, IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": (30, 28, 1)}, "nearest heights are \\[28, 32\\]"),
        ({"latent_dim": 0}, "latent_dim=0"),
        ({"beta": -1}, "beta=-1"),
        ({"widths": ()}, "widths=\\(\\) is empty"),
        ({"dense_width": 2.5}, "dense_width must be an integer"),
    ],
)
def test_settings_that_build_no_vae_are_refused(settings, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        models.vae(**settings)
