from pathlib import Path

import keras
import numpy as np
import pytest

from kerasim import data, embedding, training
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from tests.helpers.image_files import write_image
from tests.helpers.small_embedder import EMBEDDER, FLOATS, LEVELS


def epoch_of(batches, epoch=0):
    """Returns all inputs and all targets of an epoch."""
    batches.epoch = epoch
    inputs, targets = zip(*(batches[n] for n in range(len(batches))), strict=True)
    return np.concatenate(inputs), np.concatenate(targets)


def order_of(epoch=0, n=50, **settings):
    batches = data.ImageBatches(np.zeros((n, 1, 1, 1), "uint8"), np.arange(n), 8, **settings)
    return epoch_of(batches, epoch)[1].tolist()


def test_each_epoch_shows_every_image_once():
    for epoch in range(3):
        assert sorted(order_of(epoch)) == list(range(50))


@pytest.mark.fault("seeded-shuffling")
def test_epochs_differ_in_order():
    assert len({tuple(order_of(epoch)) for epoch in range(5)}) == 5


@pytest.mark.fault("seeded-shuffling")
def test_runs_of_one_seed_are_equal_and_of_another_differ():
    assert order_of(2, seed=3) == order_of(2, seed=3) != order_of(2, seed=4)


def test_the_order_of_a_seed_and_an_epoch_is_the_recorded_one():
    # A run that is resumed with a later kerasim must go on in the order it began with.
    assert order_of(2, n=10, seed=3) == [7, 4, 1, 8, 6, 0, 2, 9, 3, 5]


def test_the_noise_of_a_seed_and_an_epoch_is_the_recorded_one():
    batches = data.ImageBatches(np.full((2, 1, 2, 1), 0.5), batch_size=2, seed=3, sigma=0.1)
    expected = [0.58538944, 0.50447965, 0.40724432, 0.45918116]
    np.testing.assert_allclose(epoch_of(batches, 2)[0].reshape(-1), expected, atol=1e-6)


def test_an_epoch_does_not_depend_on_the_batches_drawn_before():
    settings = {"batch_size": 2, "seed": 3, "sigma": 0.3, "flip": True, "shift": 1}
    fresh = data.ImageBatches(FLOATS, **settings)
    used = data.ImageBatches(FLOATS, **settings)
    for epoch in (0, 4, 1):
        epoch_of(used, epoch)
        used.on_epoch_end()
    fresh.epoch = used.epoch = 3
    backwards = [used[n][0] for n in reversed(range(len(used)))][::-1]
    for n, batch in enumerate(backwards):
        np.testing.assert_array_equal(batch, fresh[n][0])


def test_noise_flips_and_shifts_differ_between_epochs():
    for setting in ({"sigma": 0.1}, {"flip": True}, {"shift": 1}):
        batches = data.ImageBatches(FLOATS, shuffle=False, **setting)
        assert not np.array_equal(epoch_of(batches, 0)[0], epoch_of(batches, 1)[0])


def test_the_global_random_state_of_the_caller_is_unchanged():
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    epoch_of(data.ImageBatches(FLOATS, sigma=0.1, flip=True))
    assert np.random.random() == expected


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_validation_batches_are_the_same_in_each_epoch(tmp_path):
    seen = []

    class Watched(data.ImageBatches):
        def __getitem__(self, index):
            inputs, targets = super().__getitem__(index)
            seen.append((index, self.epoch, inputs))
            return inputs, targets

    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    batches = data.ImageBatches(FLOATS, batch_size=4)
    validation = Watched(FLOATS, batch_size=4, sigma=0.2)
    training.fit(model, batches, 2, tmp_path, validation_data=validation, verbose=0)
    assert batches.epoch == 1
    assert {epoch for _, epoch, _ in seen} == {0}
    for index in range(2):
        first, *later = [inputs for n, _, inputs in seen if n == index]
        assert later
        for inputs in later:
            np.testing.assert_array_equal(inputs, first)


def test_without_a_shuffle_the_order_is_that_of_the_images():
    inputs, targets = epoch_of(data.ImageBatches(LEVELS, batch_size=3, shuffle=False), 4)
    np.testing.assert_array_equal(inputs, FLOATS)
    np.testing.assert_array_equal(targets, FLOATS)


def test_the_last_batch_is_smaller():
    batches = data.ImageBatches(FLOATS, batch_size=3)
    assert [len(batches[n][0]) for n in range(len(batches))] == [3, 3, 1]


@pytest.mark.fault("no-images")
def test_fewer_images_than_a_batch_are_one_batch():
    batches = data.ImageBatches(FLOATS, batch_size=100)
    assert len(batches) == 1 and len(batches[0][0]) == 7


def test_batches_of_bytes_are_those_of_floats():
    settings = {"batch_size": 3, "sigma": 0.1, "flip": True}
    for of_bytes, of_floats in zip(
        epoch_of(data.ImageBatches(LEVELS, **settings)),
        epoch_of(data.ImageBatches(FLOATS, **settings)),
        strict=True,
    ):
        assert of_bytes.dtype == np.float32
        np.testing.assert_array_equal(of_bytes, of_floats)


def test_without_targets_the_images_are_the_targets():
    inputs, targets = epoch_of(data.ImageBatches(FLOATS, batch_size=3))
    np.testing.assert_array_equal(inputs, targets)


def test_targets_stay_beside_their_images():
    inputs, targets = epoch_of(data.ImageBatches(FLOATS, np.arange(7) * 10, batch_size=3))
    np.testing.assert_array_equal(inputs, FLOATS[targets // 10])


def test_noise_is_on_the_inputs_alone_and_clipped():
    inputs, targets = epoch_of(data.ImageBatches(FLOATS, shuffle=False, sigma=0.5))
    np.testing.assert_array_equal(targets, FLOATS)
    assert not np.array_equal(inputs, FLOATS)
    assert inputs.min() == 0 and inputs.max() == 1


def test_a_flip_mirrors_some_images_and_their_targets_with_them():
    images = np.arange(40 * 6, dtype="uint8").reshape(40, 2, 3, 1)
    inputs, targets = epoch_of(data.ImageBatches(images, shuffle=False, flip=True))
    np.testing.assert_array_equal(inputs, targets)
    straight, mirrored = data.as_float(images), data.as_float(images)[:, :, ::-1]
    turned = (inputs == mirrored).all(axis=(1, 2, 3))
    kept = (inputs == straight).all(axis=(1, 2, 3))
    assert (turned ^ kept).all() and 8 < turned.sum() < 32


def test_a_shift_moves_each_image_by_its_own_steps_and_repeats_the_edge():
    images = np.random.default_rng(0).integers(0, 256, (60, 5, 4, 2), dtype="uint8")
    inputs, targets = epoch_of(data.ImageBatches(images, shuffle=False, shift=1))
    np.testing.assert_array_equal(inputs, targets)
    padded = np.pad(data.as_float(images), ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    seen = set()
    for image, large in zip(inputs, padded, strict=True):
        steps = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if np.array_equal(image, large[y : y + 5, x : x + 4])
        ]
        assert len(steps) == 1
        seen |= set(steps)
    assert len(seen) == 9


@pytest.mark.parametrize("shift", [-1, 1.5, "1", None])
def test_a_shift_that_is_none_is_refused(shift):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="shift.* 0 or more"):
        data.ImageBatches(FLOATS, shift=shift)


def test_batches_leave_the_images_alone():
    images = FLOATS.copy()
    batches = data.ImageBatches(images, sigma=0.5, flip=True, shift=1)
    epoch_of(batches)
    np.testing.assert_array_equal(images, FLOATS)


def test_batches_read_a_folder(tmp_path):
    for level in (0, 51, 255):
        write_image(tmp_path / f"{level:03}.png", level)
    found = data.image_folder(tmp_path, 4)
    inputs, _ = epoch_of(data.ImageBatches(found, batch_size=2, shuffle=False))
    np.testing.assert_array_equal(inputs, found[:])


@pytest.mark.fault("no-images")
def test_no_images_are_refused():
    with pytest.raises(ArgumentError, match="images is empty"):
        data.ImageBatches(FLOATS[:0])


def test_targets_of_another_length_are_refused_with_both_lengths():
    with pytest.raises(
        ArgumentError, match=r"targets has shape \(6,\), expected \(7,\).* of the 7 images"
    ):
        data.ImageBatches(FLOATS, np.zeros(6))


@pytest.mark.fault("nan-in-data")
def test_targets_that_are_not_finite_are_refused_with_their_rows():
    targets = np.zeros((7, 2))
    targets[4, 1] = np.nan
    with pytest.raises(ArgumentError, match="targets holds NaN .* 1 of 7 rows: 4"):
        data.ImageBatches(FLOATS, targets)


@pytest.mark.fault("number-out-of-range")
@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", None, True])
def test_a_batch_size_that_is_none_is_refused(batch_size):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="batch_size.* 1 or more"):
        data.ImageBatches(FLOATS, batch_size=batch_size)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="batch_size.* 1 or more"):
        embedding.embed(EMBEDDER, FLOATS, batch_size=batch_size)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 1 - FLOATS},
        {"images": LEVELS},
        {"images": FLOATS[:6], "targets": np.arange(6)},
        {"images": FLOATS.reshape(7, 2, 8, 1)},
        {"targets": np.arange(1, 8)},
        {"targets": None},
        {"batch_size": 3},
        {"seed": 1},
        {"sigma": 0.1},
        {"flip": True},
        {"shift": 1},
        {"shuffle": False},
    ],
)
def test_settings_change_with_whatever_decides_the_batches(change):
    given = {"images": FLOATS, "targets": np.arange(7)}
    before = data.ImageBatches(**given).settings()
    assert data.ImageBatches(**{**given, **change}).settings() != before


def test_settings_are_the_same_for_the_same_data_at_any_epoch():
    batches, copy = data.ImageBatches(FLOATS), data.ImageBatches(FLOATS.copy(order="F"))
    copy.epoch = 5
    assert batches.settings() == copy.settings()


def test_embeddings_are_those_of_the_model_in_order():
    found = embedding.embed(EMBEDDER, FLOATS, batch_size=3)
    assert found.shape == (7, 5) and found.dtype == np.float32
    expected = [keras.ops.convert_to_numpy(EMBEDDER(FLOATS[n : n + 1]))[0] for n in range(7)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_batch_size_does_not_change_the_embeddings(batch_size):
    np.testing.assert_allclose(
        embedding.embed(EMBEDDER, FLOATS, batch_size), embedding.embed(EMBEDDER, FLOATS), atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_floats_of_each_precision_have_the_same_embeddings(dtype):
    images = np.round(FLOATS * 16) / 16  # exact in each of them
    np.testing.assert_array_equal(
        embedding.embed(EMBEDDER, images.astype(dtype)), embedding.embed(EMBEDDER, images)
    )


def test_uint8_images_have_the_embeddings_of_their_floats():
    np.testing.assert_array_equal(
        embedding.embed(EMBEDDER, LEVELS), embedding.embed(EMBEDDER, FLOATS)
    )


@pytest.mark.parametrize("batch_size", [3, 256])
def test_flipped_embeddings_are_the_mean_of_an_image_and_its_mirror_image(batch_size, tmp_path):
    one, other = embedding.embed(EMBEDDER, FLOATS), embedding.embed(EMBEDDER, FLOATS[:, :, ::-1])
    assert np.abs(one - other).max() > 0.01
    settings = {"batch_size": batch_size, "cache": tmp_path}
    plain = embedding.embed(EMBEDDER, FLOATS, **settings)
    for _ in range(2):  # computed, then read from the cache
        found = embedding.embed(EMBEDDER, FLOATS, **settings, flip=True)
        np.testing.assert_allclose(found, (one + other) / 2, atol=1e-6)
    np.testing.assert_allclose(plain, one, atol=1e-6)


def test_pixels_are_the_rows_of_images_from_0_to_1(tmp_path):
    write_image(tmp_path / "1.png", 51)
    folder = data.image_folder(tmp_path, 4, channels=1)
    assert np.unique(folder[:]).tolist() == [np.float32(0.2)]
    for images, expected in ((FLOATS, FLOATS), (LEVELS, LEVELS / 255), (folder, folder[:])):
        found = embedding.pixels(images)
        assert found.dtype == np.float32 and found.shape == (len(images), 16)
        np.testing.assert_allclose(found, expected.reshape(len(images), -1), atol=1e-7)
    with pytest.raises(ArgumentError, match=r"images has shape \(7, 16\)"):
        embedding.pixels(FLOATS.reshape(7, 16))


def test_a_view_has_the_embeddings_of_its_copy():
    view = FLOATS[::-2, ::-1]
    np.testing.assert_array_equal(
        embedding.embed(EMBEDDER, view), embedding.embed(EMBEDDER, view.copy())
    )


def test_a_folder_has_the_embeddings_of_its_images(tmp_path):
    for n, level in enumerate((255, 0, 51)):
        write_image(tmp_path / f"{n}.png", level)
    found = data.image_folder(tmp_path, 4, channels=1)
    np.testing.assert_array_equal(
        embedding.embed(EMBEDDER, found, batch_size=2),
        embedding.embed(EMBEDDER, found[:], batch_size=2),
    )


@pytest.mark.fault("no-images")
def test_no_images_give_no_embeddings():
    found = embedding.embed(EMBEDDER, FLOATS[:0])
    assert found.shape == (0, 5) and found.dtype == np.float32


def test_images_of_another_size_are_refused_with_the_size_the_model_takes():
    with pytest.raises(
        ArgumentError, match=r"images has shape \(7, 4, 4, 3\), expected \(any, 4, 4, 1\)"
    ):
        embedding.embed(EMBEDDER, np.zeros((7, 4, 4, 3), "float32"))


def test_embeddings_that_are_not_finite_are_refused_with_their_rows():
    inputs = keras.Input((4, 4, 1))
    means = keras.layers.GlobalMaxPooling2D()(inputs)
    model = keras.Model(inputs, keras.ops.log(means))
    images = FLOATS.copy()
    images[[1, 4]] = 0
    with pytest.raises(ArgumentError, match="embedder's output .* 2 of 7 rows: 1, 4"):
        embedding.embed(model, images)


def test_a_model_that_gives_no_vectors_is_refused_with_its_output():
    inputs = keras.Input((4, 4, 1))
    with pytest.raises(ArgumentError, match=r"embedder .*\(None, 4, 4, 1\).*encoder"):
        embedding.embed(keras.Model(inputs, keras.layers.ReLU()(inputs)), FLOATS)


def test_a_model_that_gives_two_outputs_is_refused():
    inputs = keras.Input((4, 4, 1))
    codes = keras.layers.Flatten()(inputs)
    with pytest.raises(ArgumentError, match="embedder must have one output"):
        embedding.embed(keras.Model(inputs, [codes, keras.layers.ReLU()(codes)]), FLOATS)


def test_a_model_of_pairs_is_refused():
    left, right = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    model = keras.Model([left, right], keras.layers.Flatten()(left + right))
    with pytest.raises(ArgumentTypeError, match="embedder .*keras.Model of images.*one tower"):
        embedding.embed(model, FLOATS)


@pytest.mark.parametrize(
    "embedder", [None, "model.keras", len, keras.Sequential([keras.layers.Flatten()])]
)
def test_what_is_no_built_model_is_refused_with_its_type(embedder):
    with pytest.raises(ArgumentTypeError, match=f"embedder .*{type(embedder).__name__}"):
        embedding.embed(embedder, FLOATS)


def test_kept_embeddings_are_given_back_while_network_weights_and_images_are_the_same(
    tmp_path, monkeypatch
):
    vectors = embedding.embed(EMBEDDER, LEVELS, cache=tmp_path)
    np.testing.assert_array_equal(vectors, embedding.embed(EMBEDDER, LEVELS))
    other = keras.models.clone_model(EMBEDDER)
    other.set_weights(EMBEDDER.get_weights())
    with monkeypatch.context() as patch:
        again = "kerasim.embedding._embed_batches"
        patch.setattr(again, lambda *_, **__: pytest.fail("embedded again"))
        np.testing.assert_array_equal(embedding.embed(EMBEDDER, LEVELS, cache=tmp_path), vectors)
        np.testing.assert_array_equal(embedding.embed(other, LEVELS, cache=tmp_path), vectors)
    other.set_weights([weight + 0.1 for weight in EMBEDDER.get_weights()])
    np.testing.assert_array_equal(
        embedding.embed(other, LEVELS, cache=tmp_path), embedding.embed(other, LEVELS)
    )
    changed = LEVELS.copy()
    changed[0, 0, 0, 0] ^= 1
    assert len(embedding.embed(EMBEDDER, changed[:2], cache=tmp_path)) == 2
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_kept_embeddings_are_refused(tmp_path):
    embedding.embed(EMBEDDER, LEVELS, cache=tmp_path)
    file = next(tmp_path.glob("*/x.npz"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="x.npz"):
        embedding.embed(EMBEDDER, LEVELS, cache=tmp_path)


def test_a_damaged_file_is_named_and_the_others_are_embedded_as_ever(tmp_path):
    files = [write_image(tmp_path / f"{n}.png", 60 * n) for n in range(4)]
    files[2].write_bytes(b"no picture")
    folder = data.image_folder(tmp_path, (4, 4), channels=1, check=False)
    vectors, reasons = embedding.embed_folder(EMBEDDER, folder)
    assert np.isnan(vectors[2]).all() and "2.png" in reasons[2]
    np.testing.assert_array_equal(
        vectors[[0, 1, 3]], embedding.embed(EMBEDDER, folder.take([0, 1, 3]))
    )
    assert [bool(reason) for reason in reasons] == [False, False, True, False]


@pytest.mark.fault("file-lost-in-training")
def test_a_file_that_vanishes_while_it_is_embedded_is_named_without_words_of_tensorflow(tmp_path):
    for n in range(4):
        write_image(tmp_path / f"{n}.png", 40 * n)
    folder = data.image_folder(tmp_path, 4, channels=1)
    (tmp_path / "3.png").unlink()
    for _ in range(2):
        with pytest.raises(ImageError, match="There is no file .*3.png'") as caught:
            embedding.embed(EMBEDDER, folder, batch_size=1)
        assert "node" not in str(caught.value)


@pytest.mark.fault("out-of-memory")
def test_images_that_do_not_fit_in_memory_are_refused_with_a_batch_size_to_try(monkeypatch):
    def run_out(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("kerasim.embedding._embed_batches", run_out)
    with pytest.raises(ArgumentError, match="batch_size=8 needs more memory .* such as 4"):
        embedding.embed(EMBEDDER, FLOATS, batch_size=8)


def test_an_error_that_is_not_of_the_data_is_raised_unchanged(monkeypatch):
    def breaks(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("kerasim.embedding._embed_batches", breaks)
    with pytest.raises(ZeroDivisionError):
        embedding.embed(EMBEDDER, FLOATS)


def test_a_folder_of_damaged_files_has_no_embeddings(tmp_path):
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(b"no picture")
    folder = data.image_folder(tmp_path, (4, 4), channels=1, check=False)
    vectors, reasons = embedding.embed_folder(EMBEDDER, folder)
    assert vectors.shape == (2, 5) and np.isnan(vectors).all() and all(reasons)


# What embed takes, and how


def generator():
    yield FLOATS


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        ("photos", "images is a str, .*image_folder"),
        (Path("photos"), "images is a .*Path, .*image_folder"),
        (generator(), "images is a generator, .*np.concatenate"),
        (data.ImageBatches(FLOATS), "images is a ImageBatches, .*ImageFolder of which"),
    ],
)
def test_other_sources_of_images_are_refused_with_what_to_pass(images, wanted):
    with pytest.raises(ArgumentTypeError, match=wanted):
        embedding.embed(EMBEDDER, images)


def test_a_pipeline_of_tensorflow_is_refused_with_what_to_pass():
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(ArgumentTypeError, match="np.concatenate.*for images, labels in dataset"):
        embedding.embed(EMBEDDER, tf.data.Dataset.from_tensor_slices(FLOATS).batch(2))


def test_one_image_is_refused_with_how_to_pass_it():
    with pytest.raises(ArgumentError, match=r"shape \(4, 4, 1\), that of one image"):
        embedding.embed(EMBEDDER, FLOATS[0])


def test_arguments_in_the_wrong_order_and_names_of_models_are_refused():
    with pytest.raises(ArgumentTypeError, match="wrong order: call embed.embedder, images"):
        embedding.embed(FLOATS, EMBEDDER)
    with pytest.raises(ArgumentTypeError, match="embedder is 'squeezenet', .*pretrained_embedder"):
        embedding.embed("squeezenet", FLOATS)


def test_targets_that_are_strings_are_refused():
    with pytest.raises(ArgumentTypeError, match="targets must be numbers, not <U.*np.unique"):
        data.ImageBatches(FLOATS, list("abcabca"))


def net():
    stack = [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3, activation="relu")]
    return keras.Sequential([*stack, keras.layers.Flatten(), keras.layers.Dense(3)])


def test_a_few_batches_are_embedded_without_tracing_and_to_the_same_bits(monkeypatch):
    model = net()
    expected = np.asarray(model.predict_on_batch(FLOATS))
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setattr(model, "predict_on_batch", lambda _: pytest.fail("traced"))
    np.testing.assert_array_equal(embedding.embed(model, FLOATS), expected)


def test_many_batches_are_traced_in_one_size(monkeypatch):
    model, images = net(), np.concatenate([FLOATS] * 3)
    expected = embedding.embed(model, images, 21)
    sizes, predict = [], model.predict_on_batch
    monkeypatch.setattr(model, "predict_on_batch", lambda x: sizes.append(len(x)) or predict(x))
    np.testing.assert_allclose(embedding.embed(model, images, 2), expected, atol=1e-6)
    assert sizes == [2] * 10 + [1] * (keras.backend.backend() != "tensorflow")


def test_embedding_with_many_models_gives_no_warning_of_retracing(caplog):
    for n in range(1, 8):
        embedding.embed(net(), FLOATS[:n], 3)
    assert "retracing" not in caplog.text


@pytest.mark.parametrize("progress", [True, False, None])
def test_a_progress_bar_is_shown_where_it_is_wanted(progress, monkeypatch, capsys):
    monkeypatch.setattr("kerasim.embedding._BAR_DELAY", 0)
    embedding.embed(EMBEDDER, FLOATS, progress=progress)
    out, error = capsys.readouterr()
    assert ("7/7" in error) == (progress is True) and not out


NAMED = {
    "ImageBatches(7 images of 4 x 4 x 1 float32, 3 batches of 3 per epoch, seed=1, flip=True, "
    "shuffle=True)": lambda: data.ImageBatches(FLOATS, batch_size=3, seed=1, flip=True),
    "PairBatches(6 images of 4 x 4 x 1 uint8, 1 batches of 128 per epoch, seed=0, positive=0.25)": (
        lambda: data.PairBatches(LEVELS[:6], [0, 0, 0, 1, 1, 1], 0.25)
    ),
    "BalancedBatches(6 images of 4 x 4 x 1 uint8, 1 batches of 4 per epoch, seed=0, "
    "classes_per_batch=2, images_per_class=2)": (
        lambda: data.BalancedBatches(LEVELS[:6], [0, 0, 0, 1, 1, 1], 2, 2)
    ),
    "NoiseBatches(7 images of 4 x 4 x 1 uint8, 1 batches of 128 per epoch, seed=0, low=0.05, "
    "high=0.8, target='sigma', gain=0.0, clip=False, sigma_input=False)": lambda: data.NoiseBatches(
        LEVELS
    ),
}


@pytest.mark.parametrize("wanted", NAMED)
def test_the_repr_of_batches_is_one_line_that_says_what_they_hold(wanted):
    assert repr(NAMED[wanted]()) == wanted
