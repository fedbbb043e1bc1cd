import numpy as np
import pytest

from kerasim import data, diffusion
from kerasim.errors import ArgumentError, ArgumentTypeError

SCHEDULE = diffusion.NoiseSchedule(50, "cosine")
IMAGES = np.random.default_rng(0).random((500, 4, 4, 1), dtype="float32")
LABELS = np.arange(500) % 5


def epoch_of(batches, epoch=0):
    batches.epoch = epoch
    return [batches[n] for n in range(len(batches))]


def test_a_batch_holds_the_step_of_the_schedule_that_it_says_and_its_noise():
    batches = data.DiffusionBatches(IMAGES[:40], SCHEDULE, batch_size=16, seed=2)
    assert [len(noise) for _, noise in epoch_of(batches)] == [16, 16, 8]
    seen = []
    for inputs, noise in epoch_of(batches):
        assert noise.dtype == inputs["images"].dtype == "float32" and inputs["t"].dtype == "int32"
        left = SCHEDULE.alphas_cumprod[inputs["t"]][:, None, None, None]
        x = (inputs["images"] - np.sqrt(1 - left) * noise) / np.sqrt(left)
        seen.append((x[SCHEDULE.sigmas[inputs["t"]] < 10] + 1) / 2)
    seen = np.concatenate(seen)
    gaps = np.abs(seen[:, None] - IMAGES[None, :40]).max(axis=(2, 3, 4))
    assert len(seen) > 30 and gaps.min(axis=1).max() < 1e-4
    assert len(set(gaps.argmin(axis=1))) == len(seen)  # each image once


def test_steps_and_noise_are_spread_as_they_should_and_differ_between_epochs():
    batches = data.DiffusionBatches(IMAGES, SCHEDULE, batch_size=500)
    steps, noises = [], []
    for epoch in range(4):
        ((inputs, noise),) = epoch_of(batches, epoch)
        steps.append(inputs["t"])
        noises.append(noise)
    assert set(np.concatenate(steps)) == set(range(50))
    assert abs(np.mean(steps) - 24.5) < 1 and abs(np.std(noises) - 1) < 0.02
    assert (steps[0] != steps[1]).any() and (noises[0] != noises[1]).all()
    ((_, again),) = epoch_of(batches, 0)
    np.testing.assert_array_equal(again, noises[0])


def test_steps_can_be_kept_to_a_few():
    batches = data.DiffusionBatches(IMAGES, SCHEDULE, steps=(7, 9), batch_size=500)
    assert set(batches[0][0]["t"]) == {7, 8, 9}


def test_labels_go_with_their_images_but_for_the_share_that_is_dropped():
    images = np.broadcast_to((LABELS / 4)[:, None, None, None], (500, 4, 4, 1)).astype("float32")
    batches = data.DiffusionBatches(
        images, SCHEDULE, LABELS, drop_label=0.3, steps=(0, 0), batch_size=500
    )
    inputs, _ = batches[0]
    shown = np.round((inputs["images"].mean(axis=(1, 2, 3)) + 1) * 2)
    dropped = inputs["labels"] == -1
    assert 0.2 < dropped.mean() < 0.4 and inputs["labels"].dtype == "int32"
    assert (inputs["labels"] == shown)[~dropped].all()
    kept = data.DiffusionBatches(images, SCHEDULE, LABELS, drop_label=0.0)
    assert kept[0][0]["labels"].max() == 4
    assert kept[0][0]["labels"].min() == 0


def test_settings_differ_with_schedule_steps_and_labels():
    def settings(schedule=SCHEDULE, labels=LABELS, **others):
        return data.DiffusionBatches(IMAGES, schedule, labels, **others).settings()

    variants = [
        settings(),
        settings(diffusion.NoiseSchedule(50)),
        settings(labels=None),
        settings(labels=4 - LABELS),
        settings(steps=(0, 9)),
        settings(drop_label=0.2),
        settings(weighting="velocity"),
    ]
    assert len({repr(variant) for variant in variants}) == len(variants)
    assert settings() == settings()
    kinds = ({"high": 0.5}, {}, {"clip": True}, {"clip": True, "bits": 8}, {"gain": 0.1})
    kinds += ({"target": "images"}, {"target": "images", "sigma_input": True})
    noises = [repr(data.NoiseBatches(IMAGES, **kind).settings()) for kind in kinds]
    assert len(set(noises)) == len(noises)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"labels": LABELS[:3]},
            "labels has shape \\(3,\\), expected \\(500,\\).* of the 500 images",
        ),
        ({"labels": LABELS - 1}, "labels holds a negative class in 100 of 500"),
        ({"labels": LABELS + 0.5}, "labels must be integers or strings, not float"),
        ({"labels": [[1], [2, 3]]}, "labels cannot be converted to one array"),
        ({"labels": LABELS, "drop_label": 2}, "drop_label=2 is out of range"),
        ({"steps": (0, 50)}, "steps\\[1\\]=50 is out of range"),
        ({"steps": 50}, "steps=50 must be \\(first, last\\)"),
        ({"weighting": "snr"}, "weighting='snr' is not known"),
        ({"steps": (5, 4)}, "steps\\[0\\]=5 is out of range"),
    ],
)
def test_settings_that_make_no_batches_are_refused(settings, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        data.DiffusionBatches(IMAGES, SCHEDULE, **settings)


def test_batches_that_draw_their_own_noise_take_no_sigma():
    with pytest.raises(TypeError, match="sigma"):
        data.DiffusionBatches(IMAGES, SCHEDULE, sigma=0.1)
    with pytest.raises(TypeError, match="sigma"):
        data.NoiseBatches(IMAGES, sigma=0.1)


def test_noise_batches_say_how_much_noise_they_added():
    images = np.full((500, 16, 16, 1), 0.5, dtype="float32")
    noisy, sigma = data.NoiseBatches(images, 0.1, 0.4, batch_size=500)[0]
    assert sigma.shape == (500, 1) and sigma.dtype == noisy.dtype == "float32"
    np.testing.assert_allclose(noisy.std(axis=(1, 2, 3)), sigma[:, 0], rtol=0.2)
    assert noisy.min() < 0 and noisy.max() > 1  # not cut
    logs = np.log(sigma)
    assert np.log(0.1) <= logs.min() and logs.max() <= np.log(0.4) + 1e-6
    np.testing.assert_allclose(logs.mean(), np.log(0.2), atol=0.05)


def test_noise_batches_like_files_are_clipped_and_rounded_and_their_targets_are_not():
    settings = {"low": 0.3, "high": 0.5, "batch_size": 500, "seed": 3}
    free, sigma = data.NoiseBatches(IMAGES, **settings)[0]
    noisy, same = data.NoiseBatches(IMAGES, clip=True, bits=8, **settings)[0]
    np.testing.assert_array_equal(sigma, same)
    np.testing.assert_allclose(noisy, np.rint(np.clip(free, 0, 1) * 255) / 255, atol=1e-6)
    _, clean = data.NoiseBatches(IMAGES, target="images", clip=True, bits=8, **settings)[0]
    assert np.abs(255 * clean - np.rint(255 * clean)).max() > 0.4


def test_noise_batches_may_hold_sigma_beside_the_images():
    settings = {"batch_size": 500, "seed": 3}
    noisy, sigma = data.NoiseBatches(IMAGES, **settings)[0]
    inputs, clean = data.NoiseBatches(IMAGES, target="images", sigma_input=True, **settings)[0]
    np.testing.assert_array_equal(inputs["images"], noisy)
    np.testing.assert_array_equal(inputs["sigma"], sigma)
    assert clean.shape == noisy.shape
    with pytest.raises(ArgumentError, match='sigma_input=True.*target="images"'):
        data.NoiseBatches(IMAGES, sigma_input=True)


def test_noise_batches_with_a_gain_say_the_root_of_the_mean_variance():
    images = np.linspace(0, 1, 500 * 256, dtype="float32").reshape(500, 16, 16, 1)
    batches = data.NoiseBatches(images, 0.01, 0.02, batch_size=500, gain=0.1)
    noisy, sigma = batches[0]
    _, clean = data.NoiseBatches(images, 0.01, 0.02, "images", 500, gain=0.1)[0]
    spread = np.sqrt(np.square(noisy - clean).mean((1, 2, 3))) / sigma[:, 0]
    assert sigma.shape == (500, 1) and sigma.dtype == noisy.dtype == "float32"
    assert abs(spread.mean() - 1) < 0.02
    # Without the variance of the Gaussian part, which is between 0.01**2 and 0.02**2.
    gains = (sigma[:, 0] ** 2 - 0.01**2) / clean.mean((1, 2, 3))
    bright = gains[clean.mean((1, 2, 3)) > 0.1]
    assert 0 < bright.min() < 0.01 and 0.09 < bright.max() < 0.1 + 0.003


def test_noise_batches_for_a_denoiser_hold_the_clean_images():
    settings = {"batch_size": 500, "seed": 3, "flip": True}
    noisy, clean = data.NoiseBatches(IMAGES, target="images", **settings)[0]
    again, sigma = data.NoiseBatches(IMAGES, **settings)[0]
    np.testing.assert_array_equal(noisy, again)
    spread = (noisy - clean).std(axis=(1, 2, 3)) / sigma[:, 0]
    assert abs(spread.mean() - 1) < 0.05
    _, labels = data.NoiseBatches(IMAGES, target=np.arange(500), **settings)[0]
    np.testing.assert_array_equal(np.sort(labels), np.arange(500))
    assert (labels != np.arange(500)).any()
    mirrored = np.minimum(*(np.abs(IMAGES[labels, :, ::s] - clean).max((1, 2, 3)) for s in (1, -1)))
    assert mirrored.max() == 0  # each label beside its image


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("noise", "target='noise' is not known"),
        (np.arange(3), "target has shape .*, expected \\(500,\\)"),
    ],
)
def test_a_target_that_is_none_is_refused(target, message):
    with pytest.raises(ArgumentError, match=message):
        data.NoiseBatches(IMAGES, target=target)


@pytest.mark.parametrize("limits", [(0.0, 0.5), (0.5, 0.4), (-1, 1)])
def test_noise_levels_out_of_order_are_refused(limits):
    with pytest.raises(ArgumentError, match="low|high"):
        data.NoiseBatches(IMAGES, *limits)
