import keras
import numpy as np
import pytest

from kerasim import data, diffusion, models, training
from kerasim.errors import ArgumentError, ArgumentTypeError

SCHEDULE = diffusion.NoiseSchedule(50, "cosine")
IMAGES = np.random.default_rng(0).random((12, 8, 8, 1), dtype="float32")


def build(image_shape=(8, 8, 1), widths=(8, 16), **settings):
    keras.utils.set_random_seed(0)
    return models.unet(image_shape, widths, **settings)


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (12, 20, 3), (6, 4, 2)])
@pytest.mark.parametrize("attention", [0, 1, 2])
def test_the_noise_has_the_shape_of_the_images(image_shape, attention):
    model = build(image_shape, num_attention_stages=attention, num_blocks=2)
    inputs = {"images": np.ones((2, *image_shape), "float32"), "t": np.array([0, 999])}
    assert model(inputs).shape == (2, *image_shape)
    names = [layer.name for layer in model.layers if "MultiHead" in type(layer).__name__]
    assert len(names) == 4 * attention
    assert model.get_layer("bottleneck").output.shape[1:] == (
        image_shape[0] // 2,
        image_shape[1] // 2,
        16,
    )


@pytest.mark.parametrize("patch", [2, 3])
def test_patches_take_squares_of_pixels_together(patch):
    model = build((24, 12, 3), patch_size=patch)
    stir(model)
    inputs = {"images": np.ones((2, 24, 12, 3), "float32"), "t": np.array([0, 999])}
    noise = keras.ops.convert_to_numpy(model(inputs))
    assert noise.shape == (2, 24, 12, 3)
    assert (np.ptp(noise, axis=(0, 1, 2)) > 0).all()
    assert model.get_layer("bottleneck").output.shape[1:] == (12 // patch, 6 // patch, 16)


def stir(model):
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(weight + 0.1 * rng.standard_normal(weight.shape))


def test_the_noise_depends_on_image_step_and_label():
    model = build(num_classes=3)
    stir(model)
    inputs = {"images": IMAGES[:1], "t": np.array([5]), "labels": np.array([0])}
    noise = keras.ops.convert_to_numpy(model(inputs))
    others = {"images": IMAGES[1:2], "t": np.array([6]), "labels": np.array([3])}
    for name, other in others.items():
        assert (
            np.abs(keras.ops.convert_to_numpy(model({**inputs, name: other})) - noise).max() > 1e-3
        )
    none = [model({**inputs, "labels": np.array([label])}) for label in (3, -1)]
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, none))


def test_only_attention_looks_from_corner_to_corner():
    def reached(attention):
        model = build((64, 64, 1), num_attention_stages=attention)
        for layer in model.layers:  # the means of group norm reach all over the image, too
            if isinstance(layer, keras.layers.GroupNormalization):
                layer.call = lambda x: x
        stir(model)
        images = np.zeros((2, 64, 64, 1), "float32")
        images[1, 0, 0] = 5
        noise = keras.ops.convert_to_numpy(model({"images": images, "t": np.array([5, 5])}))
        return np.abs(noise[0] - noise[1])[-1, -1, 0]

    assert reached(0) == 0 < reached(1)


@pytest.mark.parametrize("weighting", ["noise", "velocity"])
def test_a_unet_with_averaged_weights_learns_and_generates_images(weighting, tmp_path):
    model = build(num_classes=2, schedule=SCHEDULE if weighting == "velocity" else None)
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9), "mse")
    labels = np.arange(12) % 2
    batches = data.DiffusionBatches(IMAGES, SCHEDULE, labels, batch_size=4, weighting=weighting)
    history = training.fit(model, batches, 6, tmp_path, verbose=0)
    assert history.loss.iloc[-1] < 0.9 * history.loss.iloc[0]
    drawn = diffusion.sample(model, SCHEDULE, (2, 8, 8, 1), 5, labels=[0, 1], guidance=1.0)
    assert drawn.shape == (2, 8, 8, 1) and np.isfinite(drawn).all()


def test_before_training_the_predicted_noise_is_zero():
    inputs = {"images": IMAGES[:2], "t": np.array([3, 4])}
    assert (keras.ops.convert_to_numpy(build()(inputs)) == 0).all()


def test_with_a_schedule_the_layers_predict_the_velocity_whose_error_is_the_loss():
    schedule = diffusion.NoiseSchedule(10, "cosine")
    model = build(schedule=schedule)
    stir(model)
    batches = data.DiffusionBatches(IMAGES, schedule, weighting="velocity")
    inputs, noise, weights = batches[0]
    abar = schedule.alphas_cumprod[inputs["t"]][:, None, None, None]
    velocity = keras.Model(model.input, model.get_layer("velocity").output)
    said = keras.ops.convert_to_numpy(velocity(inputs))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(inputs)),
        np.sqrt(1 - abar) * inputs["images"] + np.sqrt(abar) * said,
        atol=1e-5,
    )
    x = 2 * IMAGES[batches._epoch_indices(np.random.default_rng([0, 0]))[0]] - 1
    # Salimans & Ho, 2022, section 4.
    true = np.sqrt(abar) * noise - np.sqrt(1 - abar) * x
    counted = np.minimum(1, 25_000 * abar)
    assert weights.shape == (12, 1, 1) and counted.min() < 1
    model.compile(loss="mse")
    np.testing.assert_allclose(
        model.evaluate(batches, verbose=0), np.mean(counted * (said - true) ** 2), rtol=1e-4
    )


def test_a_network_is_not_used_with_another_schedule_than_its_own():
    model = build(schedule=SCHEDULE)
    diffusion.sample(model, diffusion.NoiseSchedule(50, "cosine"), (1, 8, 8, 1), 2)
    for other in (diffusion.NoiseSchedule(60, "cosine"), diffusion.NoiseSchedule(50)):
        with pytest.raises(ArgumentError, match="not the one that the network was built with"):
            diffusion.denoise(model, other, IMAGES, 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": (30, 28, 1)}, "nearest heights are \\[28, 32\\]"),
        ({"image_shape": (20, 32, 1), "patch_size": 2}, "nearest heights are \\[16, 24\\]"),
        ({"widths": (30, 64)}, "must be multiples of num_groups=8"),
        ({"num_attention_stages": 4}, "num_attention_stages=4 is out of range"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"num_groups": "8"}, "num_groups must be an integer"),
        ({"patch_size": 0}, "patch_size=0"),
    ],
)
def test_settings_that_build_no_unet_are_refused(settings, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        models.unet(**settings)


def test_the_noise_estimator_learns_how_much_noise_there_is(tmp_path):
    keras.utils.set_random_seed(0)
    images = np.zeros((256, 8, 8, 1), dtype="float32")
    images[:, ::2, ::2] = images[:, 1::2, 1::2] = 0.5  # rough, but no noise
    model = models.noise_estimator((8, 8, 1), (4, 4), 16)
    model.compile(keras.optimizers.Adam(1e-2), "mean_absolute_percentage_error")
    history = training.fit(model, data.NoiseBatches(images, batch_size=32), 15, tmp_path, verbose=0)
    assert history.loss.iloc[-1] < 20 < history.loss.iloc[0]
    assert (model.predict(images[:3], verbose=0) > 0).all()


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.8])
def test_before_training_the_noise_estimator_tells_the_noise_of_smooth_images(sigma):
    keras.utils.set_random_seed(0)
    ramp = np.broadcast_to(np.linspace(0, 1, 32)[None, :, None, None], (4, 32, 24, 3))
    noisy = data.add_noise(ramp, sigma, seed=0, clip=False)
    found = models.noise_estimator((32, 24, 3)).predict(noisy, verbose=0)
    np.testing.assert_allclose(found, sigma, rtol=0.1)


def test_an_image_of_one_row_is_refused_by_the_noise_estimator():
    with pytest.raises(ArgumentError, match=r"each side of image_shape=\(1, 8, 1\)"):
        models.noise_estimator((1, 8, 1))


@pytest.mark.parametrize("attention", [0, 1])
def test_a_u_net_of_open_size_has_the_weights_of_one_of_a_fixed_size(attention):
    fixed = build((8, 16, 1), num_attention_stages=attention)
    open_size = build((None, None, 1), num_attention_stages=attention)
    rng = np.random.default_rng(0)
    fixed.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in fixed.get_weights()])
    open_size.set_weights(fixed.get_weights())
    inputs = {"images": rng.normal(size=(2, 8, 16, 1)).astype("float32"), "t": np.array([3, 900])}
    one, other = (keras.ops.convert_to_numpy(net(inputs)) for net in (fixed, open_size))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert open_size({**inputs, "images": np.zeros((2, 12, 20, 1))}).shape == (2, 12, 20, 1)


def test_a_noise_estimator_of_open_size_takes_images_of_any_size():
    estimator = models.noise_estimator((None, None, 1))
    for height, width in ((64, 64), (50, 90)):
        noise = np.random.default_rng(0).normal(0.5, 0.1, (1, height, width, 1))
        assert abs(float(estimator(noise)[0, 0]) - 0.1) < 0.01
