"""One rule for missing labels, in every function of the package that takes labels."""

import decimal
import threading
import warnings

import keras
import matplotlib
import numpy as np
import pandas as pd
import pytest

from kerasim import _checks, _image_checks, data, explorer, metrics, neighbors, plots, training
from kerasim.errors import ArgumentError, ArgumentTypeError

matplotlib.use("Agg")

NAMES = ["a", "a", "b", "b", "c", "c"]
VECTORS = np.random.default_rng(0).normal(size=(6, 3))
IMAGES = np.random.default_rng(1).random((6, 4, 4, 1), dtype="float32")
MISSING = {
    "None": None,
    "NaN": np.nan,
    "NumPy's NaN": np.float32("nan"),
    "pandas.NA": pd.NA,
    "NaT": pd.NaT,
    "decimal NaN": decimal.Decimal("nan"),
    "empty": "",
}


def embedder():
    return keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])


def with_one_missing(value):
    return ["a", "a", value, "b", "c", "c"]


CONTAINERS = {
    "list": with_one_missing,
    "tuple": lambda value: tuple(with_one_missing(value)),
    "array of objects": lambda value: np.array(with_one_missing(value), dtype=object),
    "Series of objects": lambda value: pd.Series(with_one_missing(value), dtype=object),
}
ARRAYS = {
    "floats": np.array([0, 0, np.nan, 1, 2, 2]),
    "float Series": pd.Series([0, 0, None, 1, 2, 2]),
    "nullable integers": pd.Series([0, 0, None, 1, 2, 2], dtype="Int64"),
    "string Series": pd.Series(["a", "a", None, "b", "c", "c"]),
    "categories": pd.Series(["a", "a", None, "b", "c", "c"], dtype="category"),
    "masked integers": np.ma.array([0, 0, 1, 1, 2, 2], mask=[0, 0, 1, 0, 0, 0]),
    "empty string": np.array(["a", "a", "", "b", "c", "c"]),
}
CASES = {
    **{f"{kind} with {name}": make(value) for kind, make in CONTAINERS.items()
       for name, value in MISSING.items()},
    **ARRAYS,
}  # fmt: skip
INDEX = neighbors.NeighborIndex("euclidean").fit(VECTORS)
REFUSE = {  # functions whose result depends on each label
    "retrieval": lambda labels: metrics.retrieval(VECTORS, labels, ks=[1]),
    "retrieval, gallery": lambda labels: metrics.retrieval(VECTORS, NAMES, VECTORS, labels, ks=[1]),
    "retrieval, groups": lambda groups: metrics.retrieval(
        VECTORS, NAMES, ks=[1], query_groups=groups
    ),
    "retrieval, gallery_groups": lambda groups: metrics.retrieval(
        VECTORS, NAMES, VECTORS, NAMES, ks=[1], query_groups=NAMES, gallery_groups=groups
    ),
    "pairwise_verification": lambda labels: metrics.pairwise_verification(
        VECTORS, labels, resamples=2
    ),
    "open_set_identification": lambda labels: metrics.open_set_identification(
        VECTORS, labels, VECTORS, NAMES
    ),
    "open_set_identification, gallery": lambda labels: metrics.open_set_identification(
        VECTORS, NAMES, VECTORS, labels
    ),
    "identify": lambda labels: INDEX.identify(VECTORS, labels, 1.0, unknown="?"),
    "identify, groups": lambda groups: INDEX.identify(
        VECTORS, NAMES, 1.0, "?", query_groups=groups, gallery_groups=NAMES
    ),
    "draw_pairs": data.draw_pairs,
    "draw_triplets": data.draw_triplets,
    "PairBatches": lambda labels: data.PairBatches(IMAGES, labels),
    "TripletBatches": lambda labels: data.TripletBatches(IMAGES, labels),
    "BalancedBatches": lambda labels: data.BalancedBatches(IMAGES, labels, 2, 2),
    "PositivePairBatches": lambda groups: data.PositivePairBatches(IMAGES, IMAGES, groups),
    "EmbeddingPairBatches": lambda groups: data.EmbeddingPairBatches(VECTORS, VECTORS, groups),
    "DiffusionBatches": lambda labels: _image_checks.check_classes(labels, 6),
    "candidate_pools": lambda groups: data.candidate_pools(6, 2, groups=groups),
    "grouped_split": lambda labels: data.grouped_split(labels, NAMES),
    "grouped_split, groups": lambda groups: data.grouped_split(NAMES, groups),
    "RetrievalCallback": lambda labels: training.RetrievalCallback(embedder(), IMAGES, labels),
    "RetrievalCallback, groups": lambda groups: training.RetrievalCallback(
        embedder(), IMAGES, NAMES, groups=groups
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_missing_label_is_found_in_whatever_holds_it(case):
    labels, absent = _checks.optional_labels("labels", CASES[case], 6, "images")
    assert absent.tolist() == [False, False, True, False, False, False]
    assert _checks.missing(CASES[case]).tolist() == absent.tolist()
    kept = [str(label) for label, none in zip(labels, absent, strict=True) if not none]
    assert kept in (["a", "a", "b", "c", "c"], ["0", "0", "1", "2", "2"])


@pytest.mark.parametrize("name", REFUSE)
def test_a_function_whose_result_depends_on_labels_refuses_a_missing_one(name):
    for labels in CASES.values():
        with pytest.raises(ArgumentError, match="no label .* in 1 of 6 rows: 2"):
            REFUSE[name](labels)


@pytest.mark.parametrize("case", CASES)
def test_a_map_shows_points_without_a_label_as_such(case):
    axes = plots.latent_map(VECTORS[:, :2], CASES[case])
    drawn = [len(points.get_offsets()) for points in axes.collections]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert drawn == [2, 1, 2, 1] and texts[-1] == "no label"
    matplotlib.pyplot.close("all")


def test_a_map_without_any_label_can_be_drawn():
    axes = plots.latent_map(VECTORS[:, :2], [None] * 6, class_names=["a"])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["no label"]
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("case", CASES)
def test_a_page_shows_images_without_a_label_as_such(case):
    names, classes, missing = explorer._classes(CASES[case], 6)
    assert names[-1] == "no label" and len(names) == 4 and missing
    assert classes.tolist() == [0, 0, 3, 1, 2, 2]


def test_a_neighbor_is_framed_only_where_both_labels_are_known():
    found = np.stack([IMAGES[:3]] * 2)
    figure = plots.neighbors(
        IMAGES[:2], found, labels=[["a", "b", None]] * 2, query_labels=["a", None]
    )
    framed = [ax for ax in figure.axes if ax.spines["left"].get_linewidth() == 2]
    assert len(framed) == 2 + 2  # the queries, and two neighbors of the first
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    "labels",
    [["a", 1], [0.5, 1.0], [2.0**53, 2.0**53 + 2], [1j, 2], [b"a", "a"], [object(), "a"]],
)
def test_labels_of_other_kinds_are_refused_with_their_types(labels):
    with pytest.raises(ArgumentTypeError, match="labels must be integers or strings"):
        _checks.labels("labels", labels, 2, "images")


@pytest.mark.parametrize("labels", [[1, 2], np.array([1, 2], "u1"), [1.0, 2.0], ["a", "b"], [b"a"]])
def test_labels_of_one_kind_stay_as_they_are(labels):
    found = _checks.labels("labels", labels, len(labels), "images")
    assert found.tolist() == list(labels)


# How messages show names, and where warnings point


@pytest.mark.parametrize(
    "name", ["船 8.png", "été.jpg", "فایل\u200cها", "शिव\u200d.png", "a　b", "🙂"]
)
def test_a_name_in_any_script_is_shown_as_it_is(name):
    assert _checks.shown(name) == f"'{name}'"


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[2Jb", "a\udcffb", "a\u202egnp.exe", "a\u2028b", "\0"]
)
def test_what_could_break_a_line_or_turn_it_around_is_escaped(name):
    shown = _checks.shown(name)
    assert shown.isascii() and shown.isprintable() and eval(shown) == name


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a\\b", "'\""])
def test_quotes_and_backslashes_of_a_name_can_be_read_back(name):
    assert eval(_checks.shown(name)) == name


def test_names_beyond_the_first_five_are_left_out_of_a_message():
    assert _checks.shown_names("abcdef") == "'a', 'b', 'c', 'd', 'e', ..."
    assert _checks.shown_names(iter("ab")) == "'a', 'b'"


def test_a_warning_points_at_the_line_that_called_kerasim():
    images = np.concatenate([IMAGES, IMAGES[:1]])
    with pytest.warns(UserWarning, match="copy of an image with another label") as caught:
        data.BalancedBatches(images, [*NAMES, "c"], 2, 2)
    assert [warning.filename for warning in caught] == [__file__]


def test_warnings_are_ignored_in_one_thread_alone():
    before, heard, inside, done = list(warnings.filters), [], threading.Event(), threading.Event()

    def quiet():
        with _checks.no_warnings():
            inside.set()
            assert done.wait(60)
            warnings.warn("from the quiet thread", stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=quiet)
        thread.start()
        assert inside.wait(60)
        warnings.warn("from this thread", stacklevel=1)
        warnings.filterwarnings("ignore", "set meanwhile")
        done.set()
        thread.join()
        warnings.warn("set meanwhile", stacklevel=1)  # a filter that must not be taken back
        heard = [str(warning.message) for warning in caught]
    assert heard == ["from this thread"] and list(warnings.filters) == before


def test_warnings_of_some_modules_or_one_class_are_ignored():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _checks.no_warnings("other."), _checks.no_warnings(category=FutureWarning):
            warnings.warn("heard", stacklevel=1)
            warnings.warn("not heard", FutureWarning, stacklevel=1)
        with _checks.no_warnings(__name__):
            warnings.warn("not heard", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["heard"]


def test_a_warning_of_one_line_is_shown_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            _checks.warn("Only once.")
    assert len(caught) == 1
