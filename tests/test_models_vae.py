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


def loss_of(model):
    """Returns the loss that the last call of a model has added."""
    return float(keras.ops.convert_to_numpy(model.losses[0]))


def test_the_warm_up_and_the_free_bits_reach_the_loss():
    model = build(beta_warmup_steps=10, free_bits=3.0)
    model(IMAGES, training=True)
    assert loss_of(model) == 0
    model(IMAGES)
    # The divergence of three dimensions, below 3 nats each before training, by 64 pixels.
    np.testing.assert_allclose(loss_of(model), 3 * 3.0 / 64, rtol=1e-6)


def test_a_warm_up_goes_on_where_it_stopped(tmp_path):
    def fitted(run, *epochs):
        for stop in epochs:
            model = build(beta_warmup_steps=12)
            model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
            batches = data.ImageBatches(IMAGES, batch_size=4)
            training.fit(model, batches, stop, tmp_path / run, verbose=0)
        return model.get_weights()

    for one, other in zip(fitted("whole", 4), fitted("parts", 2, 4), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def trained():
    # With a low weight, the Gaussians of the images differ much from the prior.
    model = build(beta=0.3)
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    model.fit(np.round(IMAGES), np.round(IMAGES), epochs=60, verbose=0)
    return model


def test_the_bound_of_one_sample_is_the_evidence_lower_bound(trained):
    binary = np.round(IMAGES)
    draws = [models.log_likelihood_bound(trained, binary, 1, seed) for seed in range(200)]
    entropies = []
    for _ in range(200):
        decoded = keras.ops.convert_to_numpy(trained(binary, training=True)).astype("float64")
        entropies.append(-np.log(np.where(binary > 0.5, decoded, 1 - decoded)).sum(axis=(1, 2, 3)))
    divergence = 64 * loss_of(trained) / 0.3
    expected = -np.mean(entropies) - divergence
    assert abs(np.mean(draws) - expected) < 0.01 * abs(expected)


def test_more_samples_give_a_higher_bound_up_to_the_likelihood(trained):
    binary = np.round(IMAGES[:2])
    one, ten, many = (
        np.mean([models.log_likelihood_bound(trained, binary, k, seed) for seed in range(draws)])
        for k, draws in ((1, 200), (10, 50), (10_000, 5))
    )
    assert one < ten < many < 0
    # The likelihood itself, by sampling the prior of three dimensions.
    z = np.random.default_rng(0).standard_normal((200_000, 3)).astype("float32")
    decoded = trained.get_layer("decoder").predict(z, batch_size=10_000, verbose=0)
    decoded = decoded.clip(1e-7, 1 - 1e-7).astype("float64")
    exact = [
        np.logaddexp.reduce(np.log(np.where(x > 0.5, decoded, 1 - decoded)).sum((1, 2, 3)))
        - np.log(len(z))
        for x in binary
    ]
    assert -0.1 < np.mean(exact) - many < (np.mean(exact) - one) / 2


def test_the_bound_is_that_of_each_image_alone_and_of_any_dtype(trained):
    binary = np.round(IMAGES)
    bound = models.log_likelihood_bound(trained, binary, 50)
    assert bound.shape == (12,) and bound.dtype == "float64"
    levels = (255 * binary).astype("uint8")
    np.testing.assert_allclose(models.log_likelihood_bound(trained, levels, 50), bound, rtol=1e-6)
    assert models.log_likelihood_bound(trained, binary[:0]).shape == (0,)
    alone = [models.log_likelihood_bound(trained, binary[n : n + 1], 5000)[0] for n in range(3)]
    np.testing.assert_allclose(bound[:3], alone, atol=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": keras.Sequential([keras.Input((8, 8, 1))])},
            "model must be one that models.vae",
        ),
        ({"model": None}, "model must be one that models.vae.*NoneType"),
        ({"images": np.zeros((2, 4, 4, 1))}, "images has shape"),
        ({"images": np.full((2, 8, 8, 1), 2.0)}, "images holds floats outside"),
        ({"samples": 0}, "samples=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_bound_of_what_has_none_is_refused(trained, arguments, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        models.log_likelihood_bound(**{"model": trained, "images": IMAGES, **arguments})


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
        ({"beta_warmup_steps": -1}, "beta_warmup_steps=-1"),
        ({"free_bits": -1}, "free_bits=-1"),
        ({"widths": ()}, "widths=\\(\\) is empty"),
        ({"dense_width": 2.5}, "dense_width must be an integer"),
    ],
)
def test_settings_that_build_no_vae_are_refused(settings, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        models.vae(**settings)
