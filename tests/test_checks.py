import keras
import numpy as np
import pandas as pd
import pytest

from kerasim import (
    _checks,
    data,
    embedding,
    errors,
    export,
    gallery,
    images,
    losses,
    metrics,
    models,
    plots,
    training,
)


@pytest.mark.parametrize("value", [2.5, "8", None, True, np.bool_(True), np.float32(3)])
def test_what_is_no_integer_is_refused_with_its_type_and_the_range(value):
    with pytest.raises(errors.ArgumentTypeError) as caught:
        _checks.integer("batch_size", value)
    for part in ("batch_size", repr(value), type(value).__name__, "1 or more"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 9])
def test_an_integer_out_of_range_is_refused_with_the_range(value):
    with pytest.raises(errors.ArgumentError, match=f"k={value} .* from 1 to 8"):
        _checks.integer("k", value, 1, 8)


def test_an_integer_of_numpy_becomes_one_of_python():
    assert type(_checks.integer("k", np.int64(8), 1, 8)) is int


@pytest.mark.parametrize("value", ["1", None, True, 1j])
def test_what_is_no_number_is_refused_with_its_type(value):
    with pytest.raises(errors.ArgumentTypeError, match=f"sigma .*{type(value).__name__}"):
        _checks.number("sigma", value, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 10**400])
def test_a_number_out_of_range_is_refused_with_the_range(value):
    with pytest.raises(errors.ArgumentError, match="sigma=.* 0 or more"):
        _checks.number("sigma", value, 0)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int8(1)])
def test_a_number_in_range_becomes_a_float(value):
    number = _checks.number("sigma", value, 0, 1)
    assert type(number) is float and number == value


@pytest.mark.parametrize("value", ["eucledian", None, 3, ["cosine"]])
def test_an_unknown_choice_is_refused_with_the_known_ones(value):
    with pytest.raises(errors.ArgumentError) as caught:
        _checks.one_of("metric", value, ("cosine", "euclidean"))
    assert f"metric={value!r}" in str(caught.value)
    assert "'cosine', 'euclidean'" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (3, 0), (3, 5), (1, 4), (3, 2, 2)])
def test_vectors_of_another_shape_are_refused_with_both_shapes(shape):
    with pytest.raises(errors.ArgumentError) as caught:
        _checks.vectors("queries", np.zeros(shape), width=4, rows=2)
    assert "queries" in str(caught.value) and "(n, 4)" in str(caught.value)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "object", "U3"])
def test_vectors_that_are_no_numbers_are_refused_with_their_dtype(dtype):
    with pytest.raises(errors.ArgumentTypeError, match="queries .* dtype"):
        _checks.vectors("queries", np.zeros((2, 2), dtype))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused_with_their_rows(poison):
    x = np.zeros((5, 2))
    x[1, 0] = x[3, 1] = poison
    with pytest.raises(errors.ArgumentError, match="queries .* 2 of 5 rows: 1, 3"):
        _checks.vectors("queries", x)


def test_an_error_about_many_rows_names_the_first_ten():
    with pytest.raises(errors.ArgumentError, match=r"12 of 12 rows: 0, 1, .*, 9, \.\.\.\. Remove"):
        _checks.bad_rows("x", np.ones(12, bool), "NaN")


def test_rows_of_several_lengths_are_refused_by_name():
    with pytest.raises(
        errors.ArgumentError, match="x cannot be converted to one array.*rows of one length"
    ):
        _checks.vectors("x", [[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("values", [[1, 2], [[1], [2], [3]], 1, None])
def test_what_is_not_one_for_each_is_refused_with_its_shape(values):
    with pytest.raises(errors.ArgumentError) as caught:
        _checks.same_length("labels", values, 3, "images", 1)
    assert f"labels has shape {np.shape(values)}, expected (3,)" in str(caught.value)
    assert "pass one for each of the 3 images" in str(caught.value)


def test_targets_of_several_lengths_are_refused_by_name():
    with pytest.raises(errors.ArgumentError, match="targets cannot be converted to one array"):
        _checks.same_length("targets", [[1, 2], [3]], 2, "images")


def test_rows_may_have_any_rank_unless_one_is_required():
    assert _checks.same_length("targets", [[1, 2], [3, 4], [5, 6]], 3, "images").shape == (3, 2)
    with pytest.raises(errors.ArgumentError, match=r"expected \(3, any\): pass one for each"):
        _checks.same_length("targets", [[1, 2]], 3, "images")


@pytest.mark.parametrize("value", ["no", 0, 1, None, [True]])
def test_what_is_no_flag_is_refused(value):
    with pytest.raises(errors.ArgumentTypeError, match="flip must be a bool"):
        _checks.boolean("flip", value)


def test_a_flag_of_numpy_becomes_one_of_python():
    assert _checks.boolean("flip", np.bool_(True)) is True


IMAGES, ANY = np.zeros((4, 8, 8, 1), "float32"), "no/such/folder"
FLAGS = {
    "flip": lambda: data.ImageBatches(IMAGES, flip="no"),
    "shuffle": lambda: data.ImageBatches(IMAGES, shuffle=0),
    "clip": lambda: data.add_noise(IMAGES, 0.1, clip="no"),
    "check": lambda: data.image_folder(ANY, 8, check="no"),
    "trust": lambda: export.load_saved_model(ANY, trust="no"),
    "squared_margin": lambda: losses.ContrastiveLoss(squared_margin="no"),
    "per_query": lambda: metrics.retrieval([[0.0], [1.0]], [0, 0], per_query="no"),
    "resume": lambda: training.fit(None, data.ImageBatches(IMAGES), 1, ANY, resume="no"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_checked_wherever_it_is_taken(name):
    with pytest.raises(errors.ArgumentTypeError, match=f"{name} must be a bool"):
        FLAGS[name]()


class Foreign:
    """An array of another library that NumPy cannot read, such as a tensor on a GPU."""

    shape, dtype = (3,), "foreign"

    def __array__(self, *_, **__):
        raise RuntimeError("can't convert a tensor on cuda:0")

    def __iter__(self):
        raise NotImplementedError("symbolic")


def test_an_array_of_another_library_is_refused_as_such():
    with pytest.raises(errors.ArgumentTypeError, match="x, a Foreign, .*cuda:0.* NumPy array"):
        _checks.array("x", Foreign())
    with pytest.raises(
        errors.ArgumentTypeError, match="x must be a list or tuple. Received Foreign"
    ):
        _checks.as_list("x", Foreign())


def test_a_count_beyond_64_bits_is_refused():
    with pytest.raises(errors.ArgumentError, match="whole number of 64 bits, 1 or more"):
        _checks.integer("n", 10**30)
    assert _checks.integer("seed", 10**30, 0) == 10**30


SYMBOLIC = keras.Input((4, 4, 3))
EMBEDDER = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.verification([0.1, 0.2], [1, 0]).score("near"),
        lambda: metrics.candidate_accuracy(np.eye(3), np.eye(3), [[0, 1], [2]]),
        lambda: metrics.psnr(np.zeros((1, 8, 8, 1)), Foreign()),
        lambda: images.read_image(b"", SYMBOLIC),
        lambda: models.conv_embedder(SYMBOLIC),
        lambda: losses.EmptyBatchCounter("mean_squared_error"),
        lambda: losses.EmptyBatchCounter("none such"),
        lambda: gallery.Gallery.load("gallery", embedder=pd.Series([1, 2])),
        lambda: gallery.Gallery(EMBEDDER).remove("a\0b"),
        lambda: plots.network(EMBEDDER, ax="axes"),
        lambda: plots.latent_distribution(np.eye(3), ax=pd.Series([1.0])),
    ],
    ids=lambda call: " ".join(call.__code__.co_names),
)
def test_an_argument_of_another_kind_raises_an_error_of_kerasim(call):
    with pytest.raises(errors.KerasimError):
        call()


def test_psnr_takes_an_integer_data_range_of_any_size():
    black, white = np.zeros((1, 8, 8, 1)), np.ones((1, 8, 8, 1))
    assert metrics.psnr(black, white, 10**30)[0] == pytest.approx(600)


def test_a_model_that_returns_a_dictionary_is_refused():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, {"vector": keras.layers.Flatten()(image)})
    uses = [
        lambda: embedding.embed(model, np.zeros((2, 4, 4, 3))),
        lambda: gallery.Gallery(model),
        lambda: models.siamese(model, metric="euclidean"),
    ]
    if keras.backend.backend() == "tensorflow":  # which exports need
        uses.append(lambda: export.export_saved_model(model, "never written"))
    for use in uses:
        with pytest.raises(errors.ArgumentError, match="must return a tensor, not a dictionary"):
            use()
