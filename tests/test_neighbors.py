import copy
import gc
import json
import pickle
import subprocess
import sys
import warnings
import weakref

import faiss
import keras
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from kerasim import _artifacts, neighbors
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from kerasim.neighbors import METRICS, NeighborIndex
from tests.helpers.damaged_artifacts import reseal
from tests.helpers.search_oracle import difference_from_oracle, draw_case, float64_distances

CASES = 1000


@pytest.fixture(autouse=True)
def one_thread():
    """On small arrays threads that wait for a busy core are far slower than one."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(40, 6)).astype("float32")


@pytest.mark.fault("extreme-vectors")
@pytest.mark.parametrize("metric", METRICS)
def test_random_cases_equal_a_float64_oracle(metric):
    wrong = {}
    for seed in range(CASES):
        reason = difference_from_oracle(*draw_case(seed), metric)
        if reason is not None:
            wrong[seed] = reason
    assert not wrong


@pytest.mark.fault("extreme-vectors")
@pytest.mark.parametrize("metric", METRICS)
def test_vectors_far_from_the_origin_are_distinguished(metric):
    rng = np.random.default_rng(1)
    base = (rng.normal(size=(2000, 32)) + 1e5).astype("float32")
    assert difference_from_oracle(base, base[:20], 10, metric) is None


@pytest.mark.parametrize("metric", METRICS)
def test_neighbors_closer_together_than_float32_can_tell_are_found(metric):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        center, gaps = np.ones(8), rng.normal(size=(300, 8))
        if metric == "cosine":
            gaps -= gaps.mean(axis=1, keepdims=True)  # square to the center
        order = 1 if metric == "manhattan" else 2
        gaps /= np.linalg.norm(gaps, ord=order, axis=1, keepdims=True)
        shell = center + gaps * (1 + 1e-10 * rng.permutation(300)[:, None])
        assert difference_from_oracle(shell, center[None], 10, metric) is None


def test_distances_agree_with_sums_done_by_hand():
    base, query = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, 2.0]])
    by_hand = {
        "euclidean": [np.sqrt(13), np.sqrt(5)],
        "manhattan": [5, 3],
        "cosine": [1 - 4 / 5, 1],
    }
    for metric, expected in by_hand.items():
        distances, indices = NeighborIndex(metric).fit(base).query(query, 2)
        np.testing.assert_allclose(distances[0], np.sort(expected), rtol=1e-12)
        assert indices[0].tolist() == np.argsort(expected).tolist()


def test_distances_are_float64_and_indices_int64(vectors):
    distances, indices = NeighborIndex("euclidean").fit(vectors).query(vectors[:3], 4)
    assert (distances.dtype, indices.dtype) == ("float64", "int64")
    assert distances.shape == indices.shape == (3, 4)


@pytest.mark.parametrize("metric", METRICS)
def test_every_vector_finds_itself_at_distance_0(metric, vectors):
    distances, indices = NeighborIndex(metric).fit(vectors).query(vectors, 1)
    assert indices[:, 0].tolist() == list(range(40))
    assert not distances.any()


@pytest.mark.fault("ties")
@pytest.mark.parametrize("metric", METRICS)
def test_duplicates_come_in_order_of_index(metric, vectors):
    base = np.concatenate([vectors, np.repeat(vectors[:1], 30, axis=0), vectors])
    _, indices = NeighborIndex(metric).fit(base).query(vectors[:1], 32)
    assert indices[0].tolist() == [0, *range(40, 71)]


@pytest.mark.fault("ties")
def test_duplicates_beyond_the_first_candidates_come_in_order_of_index():
    base = np.ones((5000, 3), "float32")
    _, indices = NeighborIndex("euclidean").fit(base).query(base[:2], 5)
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.fault("ties")
@pytest.mark.parametrize("metric", METRICS)
def test_one_query_at_a_time_gives_the_same_bits_as_many(metric):
    rng = np.random.default_rng(2)
    base, queries = rng.normal(size=(3000, 33)) + 50, rng.normal(size=(60, 33)) + 50
    index = NeighborIndex(metric).fit(base)
    distances, indices = index.query(queries, 7)
    single = [index.query(query[None], 7) for query in queries]
    np.testing.assert_array_equal(distances, np.concatenate([one[0] for one in single]))
    np.testing.assert_array_equal(indices, np.concatenate([one[1] for one in single]))


@pytest.mark.fault("ties")
@pytest.mark.parametrize("metric", METRICS)
def test_the_size_of_blocks_does_not_change_the_answer(metric, monkeypatch):
    rng = np.random.default_rng(3)
    base, queries = rng.normal(size=(500, 9)), rng.normal(size=(40, 9))
    expected = NeighborIndex(metric).fit(base).query(queries, 20)
    monkeypatch.setattr("kerasim.neighbors._BUDGET", 20_000)
    for found, wanted in zip(
        NeighborIndex(metric).fit(base).query(queries, 20), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.fault("ties")
@pytest.mark.parametrize("metric", METRICS)
def test_the_number_of_threads_does_not_change_the_answer(metric):
    rng = np.random.default_rng(8)
    index = NeighborIndex(metric).fit(rng.normal(size=(2000, 40)))
    queries = rng.normal(size=(300, 40))
    answers = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            answers.append(index.query(queries, 5))
    for found in answers[1:]:
        np.testing.assert_array_equal(found, answers[0])


@pytest.mark.fault("ties")
@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_the_vectors_does_not_change_the_neighbors(metric):
    rng = np.random.default_rng(4)
    base, queries = rng.normal(size=(400, 8)), rng.normal(size=(30, 8))
    order = rng.permutation(400)
    distances, indices = NeighborIndex(metric).fit(base).query(queries, 9)
    shuffled, places = NeighborIndex(metric).fit(base[order]).query(queries, 9)
    np.testing.assert_array_equal(order[places], indices)
    np.testing.assert_array_equal(shuffled, distances)


@pytest.mark.fault("input-arrays")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["read-only", "strided", "fortran", "memmap", "big-endian"])
def test_any_layout_of_the_input_gives_the_same_bits_and_stays_untouched(kind, metric, tmp_path):
    rng = np.random.default_rng(5)
    plain = rng.normal(size=(300, 17)).astype("float32")
    if kind == "read-only":
        x = plain.copy()
        x.flags.writeable = False
    elif kind == "strided":
        x = np.repeat(np.repeat(plain, 2, axis=0), 3, axis=1)[::2, ::3]
    elif kind == "fortran":
        x = np.asfortranarray(plain)
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", plain)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    else:
        x = plain.astype(">f4")
    expected = NeighborIndex(metric).fit(plain).query(plain[:50], 5)
    for found, wanted in zip(NeighborIndex(metric).fit(x).query(x[:50], 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(x, plain)


@pytest.mark.fault("input-arrays")
def test_changing_the_array_after_fit_does_not_change_the_index(vectors):
    mine = vectors.copy()
    index = NeighborIndex("euclidean").fit(mine)
    mine[:] = 0
    assert index.query(vectors[:1], 1)[0] == 0


def test_k_may_equal_the_size_of_the_index(vectors):
    _, indices = NeighborIndex("euclidean").fit(vectors).query(vectors[:2], 40)
    assert np.sort(indices, axis=1).tolist() == [list(range(40))] * 2


@pytest.mark.fault("k-out-of-range")
@pytest.mark.parametrize("k", [0, -1])
def test_a_k_below_one_is_refused_with_the_range(k, vectors):
    with pytest.raises(ArgumentError, match=f"k={k} .* 1 or more"):
        NeighborIndex("euclidean").fit(vectors).query(vectors, k)


@pytest.mark.fault("k-out-of-range")
def test_a_k_above_the_size_gives_all_vectors_with_a_warning(vectors):
    index = NeighborIndex("euclidean").fit(vectors)
    with pytest.warns(UserWarning, match="k=41 is more than the 40 vectors in the index") as caught:
        distances, indices = index.query(vectors[:3], 41)
    assert distances.shape == indices.shape == (3, 40) and caught[0].filename == __file__


@pytest.mark.fault("k-out-of-range")
@pytest.mark.parametrize("k", [2.5, "3", None, True])
def test_k_that_is_no_integer_is_refused(k, vectors):
    with pytest.raises(ArgumentTypeError, match="k must be an integer"):
        NeighborIndex("euclidean").fit(vectors).query(vectors, k)


@pytest.mark.fault("k-out-of-range")
@pytest.mark.parametrize("metric", METRICS)
def test_no_query_gives_no_rows(metric, vectors):
    distances, indices = NeighborIndex(metric).fit(vectors).query(vectors[:0], 3)
    assert distances.shape == indices.shape == (0, 3)


@pytest.mark.fault("k-out-of-range")
def test_an_index_that_was_not_fitted_is_empty(vectors, tmp_path):
    index = NeighborIndex("euclidean")
    assert len(index) == 0
    with pytest.raises(ArgumentError, match="empty: call fit"):
        index.query(vectors)
    with pytest.raises(ArgumentError, match="empty: call fit"):
        index.save(tmp_path / "index")


def test_no_vectors_are_refused():
    with pytest.raises(ArgumentError, match=r"1 row or more. Received shape \(0, 4\)"):
        NeighborIndex("euclidean").fit(np.empty((0, 4)))


@pytest.mark.fault("vector-shape")
@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 3, 2), (1, 2, 3, 1), (), (2, 0)])
def test_a_query_of_another_shape_is_refused_with_both_shapes(shape, vectors):
    with pytest.raises(ArgumentError, match=r"x must be an array \(n, 6\)") as caught:
        NeighborIndex("euclidean").fit(vectors).query(np.zeros(shape))
    assert f"Received shape {shape}" in str(caught.value)


@pytest.mark.fault("vector-shape")
@pytest.mark.parametrize("shape", [(6,), (1, 2, 3, 1), (), (2, 0)])
def test_vectors_of_another_rank_are_refused_with_their_shape(shape):
    with pytest.raises(ArgumentError, match="embeddings must be an array") as caught:
        NeighborIndex("euclidean").fit(np.zeros(shape))
    assert f"Received shape {shape}" in str(caught.value)


@pytest.mark.fault("vector-shape")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_by_number(value, vectors):
    bad = vectors.copy()
    bad[[3, 7], 2] = value
    with pytest.raises(ArgumentError, match="embeddings holds NaN or infinity in 2 .*: 3, 7"):
        NeighborIndex("euclidean").fit(bad)
    with pytest.raises(ArgumentError, match="x holds NaN or infinity in 2 .*: 3, 7"):
        NeighborIndex("euclidean").fit(vectors).query(bad)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "object", "U3"])
def test_vectors_of_no_real_numbers_are_refused_with_their_dtype(dtype):
    with pytest.raises(ArgumentTypeError, match="embeddings must hold real numbers"):
        NeighborIndex("euclidean").fit(np.ones((3, 2)).astype(dtype))


@pytest.mark.fault("zero-vector")
def test_zero_vectors_are_refused_under_cosine_by_number(vectors):
    bad = vectors.copy()
    bad[5] = 0
    with pytest.raises(ArgumentError, match="embeddings holds zero vectors.*: 5"):
        NeighborIndex("cosine").fit(bad)
    with pytest.raises(ArgumentError, match="x holds zero vectors.*: 5"):
        NeighborIndex("cosine").fit(vectors).query(bad)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_zero_vectors_are_vectors_like_others_where_they_have_a_distance(metric, vectors):
    base = np.concatenate([vectors, np.zeros((1, 6), "float32")])
    distances, indices = NeighborIndex(metric).fit(base).query(base[-1:], 1)
    assert (indices[0, 0], distances[0, 0]) == (40, 0)


@pytest.mark.fault("unknown-metric")
@pytest.mark.parametrize("metric", ["Euclidean", "l2", "", None, 2, ["cosine"]])
def test_an_unknown_metric_is_refused_with_the_three_names(metric):
    with pytest.raises(ArgumentError, match="'euclidean', 'manhattan', 'cosine'"):
        NeighborIndex(metric)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ArgumentError, match="kind='fast' is not known"):
        NeighborIndex("euclidean", kind="fast")


@pytest.mark.fault("input-arrays")
def test_fitting_twice_forgets_the_first_vectors(vectors):
    twice = NeighborIndex("euclidean").fit(vectors + 5).fit(vectors[:9])
    once = NeighborIndex("euclidean").fit(vectors[:9])
    assert len(twice) == 9
    for found, wanted in zip(twice.query(vectors, 9), once.query(vectors, 9), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_vectors_that_are_refused_leave_the_index_as_it_was(vectors):
    index = NeighborIndex("euclidean").fit(vectors)
    before = index.query(vectors, 5)
    with pytest.raises(ArgumentError):
        index.fit(np.full((3, 2), np.nan))
    for found, wanted in zip(index.query(vectors, 5), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.fault("index-of-another-embedder")
@pytest.mark.parametrize("metric", ["manhattan", "cosine"])
def test_a_saved_index_keeps_its_metric_and_its_answers(metric, vectors, tmp_path):
    index = NeighborIndex(metric).fit(vectors.astype("float16"))
    index.save(tmp_path / "index")
    loaded = NeighborIndex.load(tmp_path / "index")
    assert (loaded.metric, loaded.embeddings.dtype, len(loaded)) == (metric, "float16", 40)
    for found, wanted in zip(loaded.query(vectors, 5), index.query(vectors, 5), strict=True):
        np.testing.assert_array_equal(found, wanted)


def small_embedder(seed):
    keras.utils.set_random_seed(seed)
    images = keras.Input((4, 4, 1))
    codes = keras.layers.Dense(6)(keras.layers.Flatten()(images))
    return keras.Model(images, codes)


@pytest.mark.fault("index-of-another-embedder")
def test_an_index_of_one_embedder_is_refused_to_another_of_equal_width(vectors, tmp_path):
    mine, other = small_embedder(0), small_embedder(1)
    NeighborIndex("euclidean").fit(vectors).save(tmp_path / "index", mine)
    with pytest.raises(ArtifactError, match="made with another embedder"):
        NeighborIndex.load(tmp_path / "index", other)
    assert len(NeighborIndex.load(tmp_path / "index", mine)) == 40


def test_an_exact_index_that_grows_keeps_its_settings(vectors):
    index = NeighborIndex("cosine", m=16, ef_search=99).fit(vectors)
    before = index.get_params()
    assert index.add(vectors[:2]).get_params() == before
    assert (before["m"], before["ef_search"]) == (16, 99)


@pytest.mark.parametrize("metric", METRICS)
def test_a_loaded_graph_answers_as_the_saved_one_and_grows(metric, tmp_path):
    rng = np.random.default_rng(0)
    x, queries = rng.normal(size=(700, 6)), rng.normal(size=(30, 6))
    index = NeighborIndex(metric, "hnsw", m=4, ef_search=8).fit(np.concatenate([x, x[:50]]))
    index.save(tmp_path / "index")
    loaded = NeighborIndex.load(tmp_path / "index")
    assert loaded.recall_ == index.recall_
    for found, wanted in zip(loaded.query(queries, 9), index.query(queries, 9), strict=True):
        np.testing.assert_array_equal(found, wanted)
    loaded.add(queries)
    assert len(loaded) == 780 and loaded.recall_ > 0.8


def forge(path, name, change, **info):
    """Changes an array of a saved index, and its manifest so that it fits."""
    array = np.load(path / name)
    changed = change(array)
    np.save(path / name, array if changed is None else changed)
    manifest = json.loads((path / _artifacts.MANIFEST).read_text())
    files = {file: _artifacts._describe(path / file) for file in manifest["files"]}
    reseal(path, files=files, info={**manifest["info"], **info})


def put(row, value):
    def change(array):
        array[row] = value

    return change


GRAPH = np.random.default_rng(0).normal(size=(300, 4))
FORGED = {  # of a graph with m=4, so that the lowest level has 8 links
    "a link past the last node": ("links.npy", put(0, 300)),
    "a link before the first node": ("links.npy", put(0, -2)),
    "too few links": ("links.npy", lambda x: x[:-1]),
    "too many links": ("links.npy", lambda x: np.append(x, x[:1])),
    "links of another type": ("links.npy", lambda x: x.astype("int64")),
    "links in rows": ("links.npy", lambda x: x[None]),
    "a node on no level": ("levels.npy", put(0, 0)),
    "a node on a negative level": ("levels.npy", put(0, -5)),
    "a node on too many levels": ("levels.npy", put(0, 2**31 - 1)),
    "too few nodes": ("levels.npy", lambda x: x[:-1]),
    "no nodes": ("levels.npy", lambda x: x[:0]),
    "levels of another type": ("levels.npy", lambda x: x.astype("float32")),
    "too few vectors": ("embeddings.npy", lambda x: x[:-1]),
}


@pytest.fixture
def graph(tmp_path):
    NeighborIndex("euclidean", kind="hnsw", m=4).fit(GRAPH).save(tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.fault("oversized-claim")
@pytest.mark.parametrize(("name", "change"), FORGED.values(), ids=FORGED)
def test_a_graph_that_does_not_fit_its_vectors_is_refused(name, change, graph):
    forge(graph, name, change)
    with pytest.raises(ArtifactError):
        NeighborIndex.load(graph)


def test_a_graph_that_links_to_a_node_on_a_level_where_it_is_not_is_refused(graph):
    levels = np.load(graph / "levels.npy")
    high, low = np.flatnonzero(levels > 1)[0], np.flatnonzero(levels == 1)[0]
    start = 4 * (levels[:high] + 1).sum()
    forge(graph, "links.npy", put(start + 8, low))
    with pytest.raises(ArtifactError, match="on a level where they are not"):
        NeighborIndex.load(graph)


@pytest.mark.parametrize("entry_point", [-1, 300, 2**40, "0", None, 1.5])
def test_a_graph_that_is_entered_outside_is_refused(graph, entry_point):
    forge(graph, "levels.npy", lambda x: x, entry_point=entry_point)
    with pytest.raises(ArtifactError):
        NeighborIndex.load(graph)


def test_a_graph_that_is_entered_below_the_top_is_refused(graph):
    low = int(np.flatnonzero(np.load(graph / "levels.npy") == 1)[0])
    forge(graph, "levels.npy", lambda x: x, entry_point=low)
    with pytest.raises(ArtifactError, match="is not on the top level"):
        NeighborIndex.load(graph)


@pytest.mark.parametrize("m", [2, 5, 2**20, 2**31, 2**62])
def test_a_graph_of_another_number_of_links_is_refused(graph, m):
    settings = {**NeighborIndex("euclidean", kind="hnsw").get_params(), "m": m}
    forge(graph, "levels.npy", lambda x: x, settings=settings)
    with pytest.raises(ArtifactError, match="does not fit a graph of 300 nodes"):
        NeighborIndex.load(graph)


def test_no_file_of_a_saved_index_is_read_by_faiss(graph, monkeypatch):
    monkeypatch.setattr("faiss.read_index", None)
    assert len(NeighborIndex.load(graph)) == 300


@pytest.mark.fault("index-of-another-embedder")
def test_an_index_saved_again_still_belongs_to_its_embedder(vectors, tmp_path):
    mine, other = small_embedder(0), small_embedder(1)
    NeighborIndex("euclidean").fit(vectors).save(tmp_path / "first", mine)
    NeighborIndex.load(tmp_path / "first", mine).add(vectors[:2]).save(tmp_path / "second")
    assert len(NeighborIndex.load(tmp_path / "second", mine)) == 42
    with pytest.raises(ArtifactError, match="made with another embedder"):
        NeighborIndex.load(tmp_path / "second", other)


def test_an_index_saved_without_an_embedder_is_refused_to_any(vectors, tmp_path):
    NeighborIndex("euclidean").fit(vectors).save(tmp_path / "index")
    with pytest.raises(ArtifactError, match="made with another embedder"):
        NeighborIndex.load(tmp_path / "index", small_embedder(0))


def test_a_damaged_index_is_refused(vectors, tmp_path):
    NeighborIndex("euclidean").fit(vectors).save(tmp_path / "index")
    file = tmp_path / "index" / "embeddings.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="embeddings.npy is damaged"):
        NeighborIndex.load(tmp_path / "index")


def test_a_missing_index_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="There is no neighbor_index"):
        NeighborIndex.load(tmp_path / "index")


PEAK = """
import resource, sys
import numpy as np
from kerasim.neighbors import NeighborIndex

x = np.random.default_rng(0).normal(size=(20_000, 64)).astype("float32")
index = NeighborIndex("euclidean").fit(x)
index.query(x[:10], 10)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
distances, indices = index.query(x, 10)
assert (indices[:, 0] == np.arange(len(x))).all()
print(peak() - before)
"""


@pytest.mark.fault("all-against-all")
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_all_against_all_stays_within_its_memory():
    child = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    # Distances of all pairs take 1,600 MB in float32; the budget of a query is 64 MB.
    assert int(child.stdout) < 250


def test_one_vector_of_a_class_names_those_near_it_and_the_rest_are_unknown():
    index = NeighborIndex("euclidean").fit([[0.0, 0], [10, 0], [0, 10]])
    asked = [[1.0, 0], [9, 0], [0, 7], [5, 5], [-3, 0]]
    names = index.identify(asked, ["zero", "one", "two"], threshold=3.0, unknown="nobody")
    assert names.tolist() == ["zero", "one", "two", "nobody", "zero"]
    objects = np.array(["zero", "one", "two"], dtype=object)  # as pandas has them
    assert index.identify(asked, objects, 3.0, "nobody").tolist() == names.tolist()
    assert index.identify(asked, [0, 1, 2], threshold=2.9).tolist() == [0, 1, -1, -1, -1]
    assert index.identify(np.empty((0, 2)), [0, 1, 2], threshold=1.0).shape == (0,)


@pytest.mark.parametrize("unknown", [-1, -1000, 1000])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int64", "uint64"])
def test_rows_that_are_not_accepted_get_the_unknown_label_whatever_holds_the_labels(dtype, unknown):
    index = NeighborIndex("euclidean").fit([[0.0], [1.0]])
    names = index.identify([[0.0], [9.0]], np.array([7, 24], dtype), 0.5, unknown)
    assert names.dtype.kind in "iu" and names.tolist() == [7, unknown]


def test_labels_beyond_63_bits_leave_no_place_for_a_negative_unknown_label():
    index = NeighborIndex("euclidean").fit([[0.0], [1.0]])
    with pytest.raises(ArgumentError, match="labels go up to 18446744073709551615, and unknown=-1"):
        index.identify([[9.0]], np.array([0, 2**64 - 1], "uint64"), 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [0]}, "labels has shape .1,., expected .2,."),
        ({"labels": [0, -1]}, "unknown=-1 is also the label of a vector"),
        ({"labels": ["a", "b"]}, "unknown=-1 is not of the type of labels .<U1"),
        ({"threshold": np.nan}, "threshold=nan"),
        ({"x": [[1.0, 2.0]]}, "x must be an array"),
        ({"query_groups": [0]}, "query_groups is given without gallery_groups: pass both"),
        ({"gallery_groups": [0, 1]}, "gallery_groups is given without query_groups"),
        (
            {"query_groups": [0, 1], "gallery_groups": [0, 1]},
            "query_groups has shape .2,., expected",
        ),
        ({"query_groups": [0], "gallery_groups": [0]}, "gallery_groups has shape .1,., expected"),
        (
            {"query_groups": ["0"], "gallery_groups": [0, 1]},
            "query_groups .<U1. and gallery_groups",
        ),
    ],
)
def test_identify_refuses_by_name(change, said):
    given = {"x": [[0.0]], "labels": [0, 1], "threshold": 1.0, **change}
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        NeighborIndex("euclidean").fit([[0.0], [1.0]]).identify(**given)


def identified(base, queries, metric, labels, threshold, groups):
    """Returns the label of the nearest vector of another group within the threshold, or -1."""
    distances = float64_distances(base, queries, metric)
    distances[groups[0][:, None] == groups[1]] = np.inf
    return np.where(distances.min(axis=1) <= threshold, labels[distances.argmin(axis=1)], -1)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
@pytest.mark.parametrize("values", [4, 1000])  # with many ties, and with few
def test_the_nearest_vector_of_another_group_names_a_query(metric, kind, values):
    rng = np.random.default_rng(values)
    base, queries = rng.integers(0, values, (200, 3)), rng.integers(0, values, (60, 3))
    labels = np.arange(200)
    groups = rng.choice(6, 60, p=[0.5, *[0.1] * 5]), rng.choice(6, 200, p=[0.5, *[0.1] * 5])
    threshold = np.median(float64_distances(base, queries, metric).min(axis=1))
    index = NeighborIndex(metric, kind, ef_search=200).fit(base)
    for at in (threshold, 1e6):
        found = index.identify(
            queries, labels, at, query_groups=groups[0], gallery_groups=groups[1]
        )
        expected = identified(base, queries, metric, labels, at, groups)
        np.testing.assert_array_equal(found, expected)


def test_a_query_is_identified_beyond_any_number_of_vectors_of_its_group():
    index = NeighborIndex("euclidean").fit(np.arange(101.0)[:, None])
    labels, sessions = [0] * 100 + [1], ["near"] * 100 + ["far"]
    found = index.identify(
        [[0.0], [0.0]], labels, 200.0, query_groups=["near", "other"], gallery_groups=sessions
    )
    assert found.tolist() == [1, 0]


def test_a_query_whose_group_holds_all_vectors_is_unknown():
    index = NeighborIndex("euclidean").fit([[0.0], [1.0]])
    found = index.identify([[0.0]], [0, 1], 9.0, query_groups=[5], gallery_groups=[5, 5])
    assert found.tolist() == [-1]


def test_no_queries_with_groups_have_no_labels():
    index = NeighborIndex("euclidean").fit([[0.0], [1.0]])
    none = np.empty((0, 1)), [0, 1], 9.0
    found = index.identify(*none, query_groups=np.empty(0, int), gallery_groups=[5, 5])
    assert found.shape == (0,)


def test_a_distance_of_another_group_that_float64_cannot_hold_is_refused():
    index = NeighborIndex("manhattan").fit([[1.0, 1.0], [-1e308, -1e308]])
    groups = {"query_groups": ["a"], "gallery_groups": ["a", "b"]}
    with pytest.raises(ArgumentError, match="x holds a vector whose neighbors are farther away"):
        index.identify([[1e308, 1e308]], [0, 1], 1.0, **groups)


def test_identification_with_groups_does_not_depend_on_the_size_of_its_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    index = NeighborIndex("euclidean").fit(rng.normal(size=(300, 4)))
    queries, labels = rng.normal(size=(40, 4)), np.arange(300)
    groups = {"query_groups": np.arange(40) % 2, "gallery_groups": np.arange(300) % 3}
    whole = index.identify(queries, labels, 9.0, **groups)
    monkeypatch.setattr(neighbors, "_BUDGET", 1024)
    np.testing.assert_array_equal(index.identify(queries, labels, 9.0, **groups), whole)


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_finds_nearly_what_exact_search_finds_at_true_distances(metric):
    rng = np.random.default_rng(0)
    base, queries = rng.normal(size=(3000, 8)), rng.normal(size=(50, 8))
    exact, index = (NeighborIndex(metric, kind).fit(base) for kind in ("exact", "hnsw"))
    distances, indices = index.query(queries, 10)
    wanted, expected = exact.query(queries, 10)
    hits = (indices[:, :, None] == expected[:, None]).any(axis=2)
    assert hits.mean() > 0.97 and index.recall_ > 0.97 and exact.recall_ == 1.0
    true = float64_distances(base, queries, metric)
    np.testing.assert_allclose(distances, np.take_along_axis(true, indices, 1), rtol=1e-12)
    assert (np.diff(distances, axis=1) >= 0).all() and (distances >= wanted - 1e-12).all()


def test_a_graph_of_poor_settings_says_so():
    base = np.random.default_rng(0).normal(size=(3000, 32))
    poor = NeighborIndex("euclidean", kind="hnsw", m=2, ef_construction=4, ef_search=4)
    with pytest.warns(UserWarning, match="kind='hnsw' finds a share of 0.1.*larger ef_search"):
        poor.fit(base)
    assert poor.recall_ < 0.8 < NeighborIndex("euclidean", kind="hnsw").fit(base).recall_


def test_a_graph_answers_for_every_vector_that_it_holds():
    base = np.random.default_rng(0).normal(size=(300, 4))
    index = NeighborIndex("euclidean", kind="hnsw", m=2, ef_construction=4, ef_search=4)
    with pytest.warns(UserWarning, match="finds a share of 0.62"):
        index.fit(base)
    distances, indices = index.query(base[:5], 299)
    assert all(len(set(row)) == 299 for row in indices.tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_is_saved_and_not_built_again(metric, vectors, tmp_path, monkeypatch):
    index = NeighborIndex(metric, "hnsw", m=4, ef_search=9).fit(vectors)
    index.save(tmp_path / "index")
    monkeypatch.setattr(faiss.IndexHNSWFlat, "add", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr(NeighborIndex, "_recall", lambda *_: pytest.fail("measured again"))
    loaded = NeighborIndex.load(tmp_path / "index")
    assert loaded.get_params() == index.get_params() and loaded.recall_ == index.recall_
    for one, other in zip(index.query(vectors, 5), loaded.query(vectors, 5), strict=True):
        np.testing.assert_array_equal(one, other)


SMALLER = ["hnsw_sq8", "binary"]  # kinds that search in less memory than the vectors need


def vectors_of_features(n, dim=64, latent=12, seed=0):
    """Returns float32 vectors near a linear subspace, as those of a trained network are."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(1).normal(size=(latent, dim))
    x = rng.normal(size=(n, latent)) @ basis + 0.3 * rng.normal(size=(n, dim))
    return x.astype("float32")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", SMALLER)
def test_smaller_codes_find_most_neighbors_at_exact_distances(kind, metric):
    x, queries = vectors_of_features(3000), vectors_of_features(100, seed=2)
    index, exact = NeighborIndex(metric, kind).fit(x), NeighborIndex(metric).fit(x)
    distances, indices = index.query(queries)
    found = (distances <= exact.query(queries)[0][:, -1:]).mean()
    assert found > {"hnsw_sq8": 0.98, "binary": 0.9}[kind]
    assert abs(found - index.recall_) < 0.06
    for row in range(5):
        wanted = NeighborIndex(metric).fit(x[indices[row]]).query(queries[row : row + 1])[0]
        np.testing.assert_array_equal(distances[row : row + 1], wanted)


@pytest.mark.parametrize("kind", SMALLER)
def test_smaller_codes_need_less_memory_once_vectors_stay_on_the_disk(kind, tmp_path):
    x = vectors_of_features(2000)
    plain = NeighborIndex("euclidean", "hnsw" if kind == "hnsw_sq8" else "exact").fit(x)
    index = NeighborIndex("euclidean", kind).fit(x)
    plain.save(tmp_path / "plain")
    index.save(tmp_path / "index")
    loaded = NeighborIndex.load(tmp_path / "index", mmap_mode="r")
    assert isinstance(loaded.embeddings, np.memmap) and index.nbytes - loaded.nbytes == x.nbytes
    links = plain.nbytes - 2 * x.nbytes
    assert loaded.nbytes == {"hnsw_sq8": x.nbytes // 4 + links, "binary": x.nbytes // 8}[kind]
    kept = NeighborIndex.load(tmp_path / "plain", mmap_mode="r")
    assert loaded.nbytes < 0.66 * kept.nbytes


@pytest.mark.parametrize("kind", ["exact", "hnsw", *SMALLER])
def test_an_index_can_be_pickled_and_copied(kind):
    x = vectors_of_features(300)
    index = NeighborIndex("cosine", kind).fit(x)
    for other in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert repr(other) == repr(index)
        for one, same in zip(index.query(k=5), other.query(k=5), strict=True):
            np.testing.assert_array_equal(one, same)
        other.add(x[:2])
        assert len(other) == 302 and len(index) == 300


@pytest.mark.parametrize("kind", ["exact", "hnsw", *SMALLER])
def test_an_index_that_is_replaced_is_freed_at_once(kind):
    index = NeighborIndex("euclidean", kind).fit(vectors_of_features(300))
    index.query(k=3)
    engine = weakref.ref(index._state.engine)
    gc.disable()
    try:
        index.fit(vectors_of_features(100))
        assert engine() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", SMALLER)
def test_a_low_recall_is_warned_of_and_a_usual_one_is_not(kind):
    x = vectors_of_features(1500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = NeighborIndex("euclidean", kind).fit(x)
    far = x + 1e6 * (np.arange(1500) % 2)[:, None]
    with pytest.warns(UserWarning, match=rf"kind='{kind}' finds a share of 0\.\d\d .*'exact'"):
        index.fit(far)
    with pytest.warns(UserWarning, match="or a larger ef_search"):
        index.add(far[:3])


def test_adding_no_vector_leaves_the_others_on_the_disk(tmp_path):
    NeighborIndex("cosine", "binary").fit(vectors_of_features(300)).save(tmp_path / "index")
    loaded = NeighborIndex.load(tmp_path / "index", mmap_mode="r")
    width = loaded.embeddings.shape[1]
    assert isinstance(loaded.add(np.empty((0, width))).embeddings, np.memmap)


@pytest.mark.parametrize("kind", SMALLER)
def test_smaller_codes_answer_the_same_after_loading_and_growing(kind, tmp_path, monkeypatch):
    x = vectors_of_features(1500)
    index = NeighborIndex("cosine", kind).fit(x)
    grown = index._grown(np.concatenate([x, vectors_of_features(50, seed=3)]))
    assert len(index) == 1500 and len(grown) == 1550
    grown.save(tmp_path / "index")
    assert grown.query(grown.embeddings[-3:], 1)[1].tolist() == [[1547], [1548], [1549]]
    monkeypatch.setattr(NeighborIndex, "_recall", lambda *_: pytest.fail("measured again"))
    loaded = NeighborIndex.load(tmp_path / "index", mmap_mode="r")
    assert loaded.recall_ == grown.recall_ and repr(loaded) == repr(grown)
    for one, other in zip(grown.query(x[:50], 5), loaded.query(x[:50], 5), strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.undo()
    loaded.add(x[:5])
    assert len(loaded) == 1555 and loaded.query(x[:1], 2)[1].tolist() == [[0, 1550]]


@pytest.mark.parametrize("kind", SMALLER)
@pytest.mark.parametrize("n", [1, 2, 30, 300])
def test_smaller_codes_of_few_equal_or_far_vectors(kind, n):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype("float32")
    x[n // 2] *= 1e6  # the levels of the others must not follow it
    x = np.concatenate([x, np.repeat(x[:1], 5, axis=0)])
    index = NeighborIndex("euclidean", kind).fit(x)
    assert index.recall_ > 0.9
    k = min(3, n)
    found, exact = index.query(x, k)[0], NeighborIndex("euclidean").fit(x).query(x, k)[0]
    assert (found <= exact[:, -1:]).mean() > 0.9


@pytest.mark.parametrize("kind", SMALLER)
def test_smaller_codes_are_refused_for_manhattan_distances(kind):
    with pytest.raises(ArgumentError, match=f"kind='{kind}' does not search by Manhattan"):
        NeighborIndex("manhattan", kind)


def test_the_recall_of_a_graph_counts_equal_distances_as_equal(vectors):
    copies = np.repeat(vectors, 40, axis=0)
    assert NeighborIndex("euclidean", kind="hnsw").fit(copies).recall_ > 0.95


def spread_copies(distinct, copies, dim, seed=0):
    """Returns vectors and many copies of the first of them, in random order."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(distinct, dim)).astype("float32")
    x = np.concatenate([rows, np.repeat(rows[:1], copies, axis=0)])
    return rows, x[rng.permutation(len(x))]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("noise", [0, 1e-12, 1e-7])
def test_copies_do_not_hide_other_vectors_from_a_graph(metric, noise):
    rows, x = spread_copies(600, 3000, 16)
    x = x + noise * np.random.default_rng(1).normal(size=x.shape)
    index = NeighborIndex(metric, "hnsw").fit(x)
    queries = np.random.default_rng(2).normal(size=(100, 16))
    exact = NeighborIndex(metric).fit(x).query(queries)[0]
    true = (index.query(queries)[0] <= exact[:, -1:]).mean()
    assert true > index.recall_ - 0.1 and index.recall_ > 0.9
    # Vectors that differ in float32 are no copies: of those a graph misses a few.
    assert (index.query(rows[1:101], 1)[0] <= 1e-5).mean() >= 0.95


def test_a_graph_that_grows_by_copies_answers_as_one_that_is_built_at_once(tmp_path):
    rows, x = spread_copies(60, 300, 8)
    grown = NeighborIndex("euclidean", kind="hnsw").fit(x[:100])
    for start in range(100, 360, 26):
        grown.add(x[start : start + 26])
    exact = NeighborIndex("euclidean").fit(x)
    for found, wanted in zip(grown.query(rows, 9), exact.query(rows, 9), strict=True):
        np.testing.assert_array_equal(found, wanted)
    grown.save(tmp_path / "index")
    loaded = NeighborIndex.load(tmp_path / "index").add(x[:5])
    assert len(loaded) == 365 and loaded.query(rows, 1)[0].max() == 0


def test_a_graph_whose_growth_was_interrupted_is_built_again(vectors, monkeypatch):
    index = NeighborIndex("euclidean", kind="hnsw").fit(vectors[:20])
    real = NeighborIndex._recall

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(NeighborIndex, "_recall", dies)
    with pytest.raises(KeyboardInterrupt):
        index.add(vectors[20:25])
    monkeypatch.setattr(NeighborIndex, "_recall", real)
    index.add(vectors[len(index) :])
    assert index.query(vectors, 1)[1][:, 0].tolist() == list(range(40))


def counted(monkeypatch):
    """Returns a list that grows by the number of rows each time all distances are computed."""
    scanned, scan = [], NeighborIndex._scan

    def counting(self, state, x, k):
        scanned.append(len(x))
        return scan(self, state, x, k)

    monkeypatch.setattr(NeighborIndex, "_scan", counting)
    return scanned


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factor", [1e6, 1e20, 1e100, 1e300])
def test_one_far_vector_does_not_turn_search_into_a_scan(metric, factor, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 16))
    x[7] *= factor
    scanned = counted(monkeypatch)
    distances, indices = NeighborIndex(metric).fit(x).query(x[100:300], 10)
    assert not scanned and indices[:, 0].tolist() == list(range(100, 300))


@pytest.mark.parametrize("metric", METRICS)
def test_many_copies_do_not_turn_search_into_a_scan(metric, monkeypatch):
    rows, x = spread_copies(600, 3000, 16)
    scanned = counted(monkeypatch)
    distances, indices = NeighborIndex(metric).fit(x).query(x[:200], 10)
    assert not scanned and not distances[:, 0].any()
    copies = np.flatnonzero((x == rows[0]).all(axis=1))
    assert indices[x[:200].tolist().index(rows[0].tolist())].tolist() == copies[:10].tolist()


def in_tight_clusters(rng, n, dim):
    """Returns vectors whose distances are small beside their norms, but for those of clusters."""
    centers = 3 * rng.standard_normal((20, dim))
    return centers[rng.integers(0, 20, n)] + 1e-3 * rng.standard_normal((n, dim))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [3, 100])  # faiss computes few and many queries differently
@pytest.mark.parametrize("kind", ["ordinary", "in tight clusters", "of very different norms"])
def test_no_vector_that_was_not_proposed_is_nearer_than_the_bound(metric, queries, kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 48))
    if kind == "in tight clusters":
        x = in_tight_clusters(rng, 1500, 48)
    elif kind == "of very different norms":
        x *= 10.0 ** rng.uniform(-3, 3, (1500, 1))
    reduced = x.astype("float32")
    asked = reduced[:queries] + np.float32(1e-4)
    # The distances of the vectors before they are rounded are those that count.
    true = float64_distances(x, asked, "manhattan" if metric == "manhattan" else "euclidean")
    flat = neighbors._Flat(reduced, metric)
    for propose in (getattr(flat, name) for name in flat.proposers):
        candidates, bound = propose(asked, 16)
        others = true.copy()
        np.put_along_axis(others, candidates, np.inf, axis=1)
        assert (bound <= others.min(axis=1)).all()
        if kind == "ordinary":  # and the bound is of use
            assert (bound > np.sort(true, axis=1)[:, 9]).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_where_float32_proves_little_later_queries_do_not_ask_it(metric, monkeypatch):
    products, by_product = [], neighbors._Flat._by_product

    def counting(self, reduced, count):
        products.append(len(reduced))
        return by_product(self, reduced, count)

    monkeypatch.setattr(neighbors._Flat, "_by_product", counting)
    rng = np.random.default_rng(0)
    tight = in_tight_clusters(rng, 2000, 32)
    assert difference_from_oracle(tight, tight[:40], 10, metric) is None
    products.clear()
    index = NeighborIndex(metric).fit(tight)
    first, second = (index.query(tight[:40], 10) for _ in range(2))
    assert products == [40]
    assert all(np.array_equal(*found) for found in zip(first, second, strict=True))
    ordinary = NeighborIndex(metric).fit(rng.standard_normal((2000, 32)))
    products.clear()
    for _ in range(2):
        ordinary.query(tight[:40], 10)
    assert products == [40, 40]


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize(
    ("metric", "value"), [("euclidean", 1e200), ("manhattan", 1e300), ("cosine", 1e308)]
)
def test_a_query_of_any_size_is_answered(metric, value, kind, vectors):
    distances, indices = NeighborIndex(metric, kind).fit(vectors).query(np.full((1, 6), value), 3)
    assert np.isfinite(distances).all() and len(set(indices[0])) == 3


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_a_distance_beyond_float64_is_refused_by_row(metric, vectors):
    queries = np.array([np.zeros(6), np.full(6, 1.7e308)])
    with pytest.raises(ArgumentError, match="x holds a vector whose neighbors.*1.8e308.* rows: 1"):
        NeighborIndex(metric).fit(vectors).query(queries, 3)


def test_whole_numbers_that_float64_does_not_hold_are_refused():
    with pytest.raises(ArgumentError, match="embeddings holds integers up to 9007199254740993"):
        NeighborIndex("euclidean").fit(np.array([[2**53 + 1, 0], [0, 1]]))
    assert (
        NeighborIndex("euclidean").fit(np.array([[2**53, 0], [0, 1]])).query([[2**53, 3]], 1)[0]
        == 3
    )


@pytest.mark.skipif(np.finfo("longdouble").max == np.finfo("float64").max, reason="no wider type")
def test_numbers_wider_than_float64_are_rounded_or_refused(vectors):
    wide = vectors.astype("longdouble")
    found = NeighborIndex("euclidean").fit(wide).query(wide, 5)
    for one, other in zip(
        found, NeighborIndex("euclidean").fit(vectors).query(vectors, 5), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ArgumentError, match="too large for float64"):
        NeighborIndex("euclidean").fit(wide * np.longdouble(10) ** 400)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int64", "float16", "bool"])
def test_vectors_of_small_types_have_the_distances_of_float64(dtype):
    x = np.random.default_rng(0).integers(0, 2, (50, 9)).astype(dtype)
    if dtype == "bool":
        with pytest.raises(ArgumentTypeError):
            NeighborIndex("euclidean").fit(x)
        return
    assert difference_from_oracle(x, x[:5], 7, "euclidean") is None
    assert difference_from_oracle(x, x[:5], 7, "manhattan") is None


@pytest.mark.parametrize("dim", [1, 2, 4096])
@pytest.mark.parametrize("metric", METRICS)
def test_vectors_of_any_width_are_searched(metric, dim):
    x = np.random.default_rng(0).normal(size=(60, dim)).astype("float32")
    assert difference_from_oracle(x, x[:4], 60, metric) is None
    assert difference_from_oracle(x, x[:4], 1, metric) is None


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_of_one_vector_is_searched(metric):
    for kind in ("exact", "hnsw"):
        distances, indices = NeighborIndex(metric, kind).fit([[3.0, 4.0]]).query([[3.0, 4.0]], 1)
        assert (distances[0, 0], indices[0, 0]) == (0, 0)


def test_an_index_shows_its_settings_and_its_size(vectors):
    assert (
        repr(NeighborIndex("euclidean"))
        == "<NeighborIndex metric='euclidean', kind='exact': empty>"
    )
    shown = repr(NeighborIndex("cosine", "hnsw").fit(vectors))
    held = "40 vectors of 6 numbers, recall_=1.000"
    assert shown == f"<NeighborIndex metric='cosine', kind='hnsw': {held}>"
