import functools
import os
import sys
import time
from unittest import mock

import keras
import numpy as np
import pytest
from PIL import Image

from kerasim import data, distribute, embedding
from kerasim.errors import ArgumentError, ArgumentTypeError, ClusterError, DependencyError
from kerasim.gallery import Gallery
from kerasim.neighbors import METRICS, NeighborIndex

# Ray's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RNG = np.random.default_rng(0)
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.mark.parametrize("name", ["TF_CONFIG", "KERAS_DISTRIBUTION_NUM_PROCESSES"])
def test_several_hosts_under_tensorflow_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(DependencyError, match=f"{name} .*keras#20585.*KERAS_BACKEND=jax"):
        distribute.strategy()


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(DependencyError, match="It runs on 'torch'"):
        distribute.strategy()


@pytest.mark.parametrize("devices", [["CPU:0", "GPU:99"], "CPU:0", []])
def test_devices_that_are_not_there_are_refused(devices):
    with pytest.raises(ArgumentError, match=r"devices=.* not all available: pass some of \['"):
        distribute.strategy(devices)


@pytest.mark.tensorflow("tf.distribute.MirroredStrategy")
def test_models_on_the_same_devices_share_a_strategy():
    # With one each, a model of another size than the first fails in its first step.
    devices = keras.distribution.list_devices()
    assert distribute.strategy() is distribute.strategy([name.upper() for name in devices])


@pytest.fixture(scope="module")
def embedder():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(3, 3, activation="relu"), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(5)])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of 59 images and a damaged one."""
    rng = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("pictures")
    for n in range(60):
        path = root / f"class-{n % 2}" / f"{n:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype="uint8")).save(path)
    (root / "class-0" / "06.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def folder(root):
    return data.image_folder(root, (8, 8), check=False)


def test_without_ray_the_extra_is_named(monkeypatch, embedder, folder):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[ray\]'"):
        distribute.embed_folder(embedder, folder)
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[ray\]'"):
        distribute.ShardedIndex("euclidean").fit(np.eye(3))


def test_arrays_are_refused_and_an_empty_folder_needs_no_cluster(embedder, folder):
    with pytest.raises(ArgumentTypeError, match="images is .* ndarray: pass data.image_folder"):
        distribute.embed_folder(embedder, np.zeros((2, 8, 8, 3), "float32"))
    vectors, reasons = distribute.embed_folder(embedder, folder.take([]))
    assert vectors.shape == (0, 5) and reasons == []


def test_a_query_before_fit_is_refused():
    with pytest.raises(ArgumentError, match="index is empty"):
        distribute.ShardedIndex("euclidean").query(np.eye(3))


def test_a_cluster_that_cannot_be_reached_is_an_error_at_once(monkeypatch, embedder, folder):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match="No Ray cluster answers at RAY_ADDRESS='127.0.0.1:1'"):
        distribute.embed_folder(embedder, folder)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, both on this machine."""
    if not os.environ.get("KERASIM_TEST_CLUSTER"):
        pytest.skip("a cluster of two nodes takes minutes beside other tests: make cluster")
    ray = pytest.importorskip("ray")
    utils = pytest.importorskip("ray.cluster_utils")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = utils.Cluster(initialize_head=True, head_node_args=NODE)
    cluster.second = cluster.add_node(**NODE)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


VECTORS, QUERIES = RNG.random((41, 6)).round(1) + 0.1, RNG.random((7, 6)).round(1) + 0.1


@pytest.fixture(scope="module")
def sharded(cluster):
    """An index by each metric, of rounded vectors, so that there are many ties."""
    return {metric: distribute.ShardedIndex(metric).fit(VECTORS) for metric in METRICS}


def assert_whole(index, metric):
    expected = NeighborIndex(metric).fit(VECTORS).query(QUERIES, 30)
    for got, wanted in zip(index.query(QUERIES, 30), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("metric", METRICS)
def test_shards_answer_as_one_index(sharded, metric):
    assert_whole(sharded[metric], metric)


def test_shards_may_be_graphs(cluster):
    index = distribute.ShardedIndex("manhattan", "hnsw", m=8).fit(VECTORS)
    assert_whole(index, "manhattan")  # so few that a graph finds all of them


def test_a_shard_that_was_killed_is_made_again(sharded):
    import ray

    ray.kill(sharded["manhattan"]._actors[1], no_restart=False)
    assert_whole(sharded["manhattan"], "manhattan")


def test_a_shard_that_stays_dead_is_an_error_not_a_part_of_the_answer(sharded):
    import ray

    ray.kill(sharded["manhattan"]._actors[0])
    with pytest.raises(ClusterError, match="could not finish .*Nothing was returned"):
        sharded["manhattan"].query(QUERIES, 1)


def test_a_query_that_takes_too_long_is_an_error(sharded):
    with pytest.raises(ClusterError, match="GetTimeoutError.*Nothing was returned"):
        sharded["cosine"].query(QUERIES, 1, timeout=0)


def test_a_node_of_other_versions_is_named(cluster, tmp_path, embedder, folder):
    other = tmp_path / "keras-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 2.0\n")
    node = cluster.add_node(**NODE, env_vars={"PYTHONPATH": str(tmp_path)})
    cluster.wait_for_nodes()
    try:
        with pytest.raises(ClusterError, match=r"Node .* has keras 2.0, here 3.*same versions"):
            distribute.embed_folder(embedder, folder)
    finally:
        cluster.remove_node(node)


def test_a_folder_that_nodes_do_not_see_is_named(cluster, embedder, folder):
    folder.files[0] = folder.files[0].with_name("elsewhere.png")
    with pytest.raises(ClusterError, match=r"Node .* does not see .*elsewhere.png"):
        distribute.embed_folder(embedder, folder)


def test_more_gpus_than_there_are_are_refused(cluster, embedder, folder):
    with pytest.raises(ClusterError, match="workers=2 with gpus=1 each need more than the 0 GPUs"):
        distribute.embed_folder(embedder, folder, gpus=1)


def test_an_embedder_that_no_worker_could_load_is_refused(cluster, folder):
    layers = [keras.layers.Flatten(), keras.layers.Lambda(lambda x: 2 * x)]
    with pytest.raises(ArgumentError, match="embedder cannot be loaded again"):
        distribute.embed_folder(keras.Sequential([keras.Input((8, 8, 3)), *layers]), folder)


def test_a_node_that_does_not_answer_is_named():
    class RayError(Exception):
        """As of `ray.exceptions`."""

    def get(*_, **__):
        raise RayError("gone")

    ray = mock.MagicMock(get=get)
    ray.exceptions.RayError = RayError
    ray.nodes.return_value = [
        {
            "Alive": True,
            "Resources": {"CPU": 1},
            "NodeID": "0123456789",
            "NodeManagerHostname": "far",
        }
    ]
    with pytest.raises(ClusterError, match=r"Node far \(01234567\) does not answer: gone. Restart"):
        distribute._probe(ray)


def test_an_error_in_a_worker_is_raised_unchanged():
    exceptions = pytest.importorskip("ray.exceptions")
    refused = ArgumentError("the embedder's output holds NaN.\nFailed to apply UDF")
    error = distribute._cause(exceptions.RayTaskError("embed", "its trace", refused))
    assert type(error) is ArgumentError and str(error) == "the embedder's output holds NaN."


def test_what_came_before_ray_gave_up_is_kept(cluster, embedder, folder, monkeypatch):
    import ray

    asked, taken, from_items = [], ray.data.Dataset.iter_batches, ray.data.from_items

    def iter_batches(dataset, **kwargs):
        for n, batch in enumerate(taken(dataset, **kwargs)):
            if n == 1 and len(asked) == 1:
                raise ray.exceptions.ActorDiedError
            yield batch

    monkeypatch.setattr(ray.data.Dataset, "iter_batches", iter_batches)
    monkeypatch.setattr(
        ray.data,
        "from_items",
        lambda items, **kw: asked.append(len(items)) or from_items(items, **kw),
    )
    vectors, reasons = distribute.embed_folder(embedder, folder, chunk=10)
    expected, expected_reasons = embedding.embed_folder(embedder, folder)
    np.testing.assert_array_equal(vectors, expected)
    assert reasons == expected_reasons and asked == [6, 5]


def test_ray_that_gives_up_three_times_is_an_error(cluster, embedder, folder, monkeypatch):
    import ray

    def dead(dataset, **kwargs):
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray.data.Dataset, "iter_batches", dead)
    with pytest.raises(ClusterError, match="could not finish .*Nothing was returned"):
        distribute.embed_folder(embedder, folder)


@pytest.fixture(scope="module")
def galleries(cluster, sharded, embedder, root, tmp_path_factory):
    """Embedded here, and on two nodes of which one dies in the middle; with their folders."""
    import ray

    made, marks = [], tmp_path_factory.mktemp("marks")
    nodes = [node.node_id for node in (cluster.head_node, cluster.second)]
    taken = ray.data.Dataset.iter_batches

    class Worker(distribute._Worker):
        def __call__(self, batch):
            (marks / ray.get_runtime_context().get_node_id()).touch()
            while not all((marks / node).exists() for node in nodes):  # until both are at work
                time.sleep(0.1)
            return super().__call__(batch)

    def iter_batches(dataset, **kwargs):
        for n, batch in enumerate(taken(dataset, **kwargs)):
            if n == 3:
                cluster.remove_node(cluster.second, allow_graceful=False)
            yield batch

    embed = functools.partial(distribute.embed_folder, chunk=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribute, "_Worker", Worker)
        patch.setattr(ray.data.Dataset, "iter_batches", iter_batches)
        for settings in ({"chunk": 4}, {"embed": embed}):
            gallery, path = Gallery(embedder), tmp_path_factory.mktemp("gallery") / "gallery"
            with pytest.warns(UserWarning, match="1 file is left out"):
                gallery.add(root, on_error="skip", **settings)
            gallery.save(path)
            made.append((gallery, path))
    assert not cluster.worker_nodes
    return made


@pytest.mark.parametrize("name", ["embeddings.npy", "items.json"])
def test_a_cluster_that_loses_a_node_makes_the_local_gallery_to_the_bit(galleries, name):
    (_, one), (_, other) = galleries
    assert (one / name).read_bytes() == (other / name).read_bytes()


def test_damaged_files_are_listed_as_locally(galleries):
    (one, _), (other, _) = galleries
    assert other.skipped == one.skipped and "06.png" in other.skipped[0][0]


def test_work_that_the_cluster_cannot_finish_is_an_error(cluster, embedder, folder, monkeypatch):
    import ray

    def breaks(dataset, **kwargs):
        raise ray.exceptions.RayError("no workers left")

    monkeypatch.setattr(ray.data.Dataset, "iter_batches", breaks)
    with pytest.raises(ClusterError, match="could not finish the work .*no workers left"):
        distribute.embed_folder(embedder, folder)


def test_a_row_that_comes_twice_is_an_error(cluster, embedder, folder, monkeypatch):
    import ray

    def twice(dataset, **kwargs):
        row = np.arange(len(folder))
        part = {"row": row, "vector": np.zeros((len(row), 5)), "reason": row.astype(str)}
        yield from (part, part)

    monkeypatch.setattr(ray.data.Dataset, "iter_batches", twice)
    with pytest.raises(
        ClusterError, match="60 of 60 images were returned by no worker or by several"
    ):
        distribute.embed_folder(embedder, folder)


def test_a_shard_whose_node_died_is_made_again_elsewhere(sharded, galleries):
    assert_whole(sharded["euclidean"], "euclidean")


def test_an_index_is_shown_on_one_line():
    index = distribute.ShardedIndex("cosine", shards=3)
    assert repr(index) == "<ShardedIndex metric='cosine', kind='exact': empty in 3 shards>"
    index.shape = (40, 8)  # as `fit` sets it, with a cluster
    assert repr(index).endswith("40 vectors of 8 numbers in 3 shards>")
