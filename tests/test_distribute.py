import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from kerasim import data, distribute
from kerasim.errors import (
    ArgumentError,
    ArgumentTypeError,
    ClusterError,
    DependencyError,
    ImageError,
)
from kerasim.gallery import Gallery
from kerasim.neighbors import METRICS, NeighborIndex

pytestmark = [
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CHILD = str(Path(__file__).with_name("distributed_child.py"))
RNG = np.random.default_rng(0)


def start(folder, spread, *epochs, **env):
    env = {**os.environ, "PYTHONPATH": str(Path(CHILD).parents[1]), "JAX_PLATFORMS": "cpu", **env}
    return subprocess.Popen(
        [sys.executable, CHILD, str(folder), spread, *map(str, epochs)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(child):
    said = child.communicate(timeout=300)[0]
    assert child.returncode == 0, said
    return said


def assert_alike(one, other, rtol):
    one, other = np.load(one), np.load(other)
    assert len(one["loss"]) and set(one) == {"loss", "weights", "vectors"}
    for key in one:
        np.testing.assert_allclose(other[key], one[key], rtol=rtol, atol=5e-6, err_msg=key)


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def runs(request, tmp_path_factory):
    """A folder of results of one device and of two, the backend, and what the latter said."""
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    flags = "--xla_force_host_platform_device_count=2"
    env = {"KERAS_BACKEND": request.param, "XLA_FLAGS": flags}
    finish(start(folder, "one", 3, **env))
    return folder, request.param, finish(start(folder, "all", 3, **env))


def test_two_devices_end_with_the_losses_and_weights_of_one(runs):
    folder, backend, _ = runs
    assert_alike(folder / "one-pairs.npz", folder / "all-pairs.npz", 1e-5)


def test_a_loss_on_whole_batches_is_the_same_on_two_devices_or_refused(runs):
    folder, backend, said = runs
    if backend == "jax":
        assert_alike(folder / "one-whole.npz", folder / "all-whole.npz", 1e-5)
    else:
        assert "SupConLoss compares all images of a batch" in said
        assert "KERAS_BACKEND=jax" in said


def test_batches_that_two_devices_cannot_share_are_refused(runs):
    assert "batches of 8 rows, the last of 7, which 2 devices cannot share" in runs[2]


def test_two_processes_that_were_stopped_end_as_one_that_was_not(runs):
    folder, backend, _ = runs
    if backend != "jax":
        pytest.skip("several hosts need JAX")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "pairs-True").rename(folder / "earlier")
    env = {
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    }
    both = [
        start(folder, "all", 1, 3, KERAS_DISTRIBUTION_PROCESS_ID=str(n), **env) for n in range(2)
    ]
    assert "going on after epoch 1 of 3" in [finish(child) for child in both][0]
    for n in range(2):
        assert_alike(folder / "one-pairs.npz", folder / f"all{n}-pairs.npz", 1e-5)


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


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
def test_models_on_the_same_devices_share_a_strategy():
    # With one each, a model of another size than the first fails in its first step.
    assert distribute.strategy(["CPU:0"]) is distribute.strategy(["CPU:0"])


@pytest.fixture(scope="module")
def embedder():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(3, 3, activation="relu"), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(5)])


@pytest.fixture
def folder(tmp_path):
    for n in range(20):
        path = tmp_path / "pictures" / f"class-{n % 2}" / f"{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype="uint8")).save(path)
    return data.image_folder(tmp_path / "pictures", (8, 8))


def test_without_ray_the_extra_is_named(monkeypatch, embedder, folder):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"pip install 'kerasim\[ray\]'"):
        distribute.embed_folder(embedder, folder)
    with pytest.raises(DependencyError, match=r"pip install 'kerasim\[ray\]'"):
        distribute.ShardedIndex().fit(np.eye(3))


def test_arrays_are_refused_and_an_empty_folder_needs_no_cluster(embedder, folder):
    with pytest.raises(ArgumentTypeError, match="images must be an ImageFolder. Received ndarray"):
        distribute.embed_folder(embedder, np.zeros((2, 8, 8, 3), "float32"))
    assert distribute.embed_folder(embedder, folder.take([])).shape == (0, 5)


def test_a_query_before_fit_is_refused():
    with pytest.raises(ArgumentError, match="index is empty"):
        distribute.ShardedIndex().query(np.eye(3))


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, both on this machine."""
    ray = pytest.importorskip("ray")
    utils = pytest.importorskip("ray.cluster_utils")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = utils.Cluster(initialize_head=True, head_node_args=node)
    cluster.second = cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


def test_a_cluster_that_cannot_be_reached_is_an_error_at_once(monkeypatch, embedder, folder):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match="No Ray cluster answers at RAY_ADDRESS='127.0.0.1:1'"):
        distribute.embed_folder(embedder, folder)


@pytest.mark.parametrize("metric", METRICS)
def test_shards_answer_as_one_index(cluster, metric):
    vectors, queries = RNG.random((41, 3)).round(1) + 0.1, RNG.random((7, 3)).round(1) + 0.1
    expected = NeighborIndex(metric).fit(vectors).query(queries, 30)  # rounded: many ties
    index = distribute.ShardedIndex(metric, shards=2).fit(vectors)
    for got, wanted in zip(index.query(queries, 30), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_shard_that_was_killed_is_made_again_and_one_that_stays_dead_is_an_error(cluster):
    import ray

    vectors = RNG.random((20, 3))
    index = distribute.ShardedIndex().fit(vectors)
    expected = index.query(vectors[:4], 12)
    ray.kill(index._actors[1], no_restart=False)
    for got, wanted in zip(index.query(vectors[:4], 12), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    ray.kill(index._actors[1])
    with pytest.raises(ClusterError, match="(?s)could not finish.*Nothing was returned"):
        index.query(vectors[:4], 1)


def test_a_node_of_other_versions_is_named(cluster, tmp_path, embedder, folder):
    other = tmp_path / "keras-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 2.0\n")
    env = {"PYTHONPATH": str(tmp_path)}
    node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, env_vars=env)
    cluster.wait_for_nodes()
    try:
        with pytest.raises(ClusterError, match=r"Node .* has keras 2.0, here 3.*same versions"):
            distribute.embed_folder(embedder, folder)
    finally:
        cluster.remove_node(node)


def test_a_folder_that_nodes_do_not_see_is_named(cluster, embedder, folder):
    os.remove(folder.files[0])
    with pytest.raises(ClusterError, match=r"Node .* does not see .*00.png"):
        distribute.embed_folder(embedder, folder)


def test_a_file_that_was_damaged_is_the_error_of_data_embed(cluster, embedder, folder):
    folder.files[9].write_bytes(b"no picture")
    with pytest.raises(ImageError) as here:
        data.embed(embedder, folder)
    with pytest.raises(ImageError) as there:
        distribute.embed_folder(embedder, folder)
    assert str(there.value) == str(here.value)


def test_a_gallery_embedded_on_a_cluster_is_the_local_one(cluster, embedder, folder, tmp_path):
    one, other = Gallery(embedder), Gallery(embedder)
    root = folder.files[0].parents[1]
    one.add(root)
    other.add(root, embed=distribute.embed_folder)
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    for name in ("embeddings.npy", "items.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_node_that_dies_loses_nothing_and_repeats_no_row(cluster, embedder, folder, monkeypatch):
    import ray

    whole = ray.data.Dataset.iter_batches

    def iter_batches(dataset, **kwargs):
        for n, batch in enumerate(whole(dataset, **kwargs)):
            if n == 10:
                cluster.remove_node(cluster.second, allow_graceful=False)
            yield batch

    monkeypatch.setattr(ray.data.Dataset, "iter_batches", iter_batches)
    many = folder.take(np.tile(np.arange(20), 20))
    found = distribute.embed_folder(embedder, many, batch_size=4)
    assert len(cluster.worker_nodes) == 0
    np.testing.assert_array_equal(found, data.embed(embedder, many, batch_size=4))
