"""Training on several devices with Keras, embedding and searching on several machines with Ray.

Training: `strategy` distributes a model over devices, and the call of `training.fit` does not
change. Embedding: `embed_folder` distributes the images of a folder to workers of a Ray cluster,
each with its own copy of the network. Searching: `ShardedIndex` gives each worker a part of the
vectors and merges the results. All return the same results as one process, in training except for
rounding errors. Before the workers of Ray start, each node is asked for its package versions and
whether it sees the files, because other versions could silently give other results.
"""

import functools
import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import keras
import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks, _image_checks, _keras_files, data, embedding
from kerasim._devices import device_names
from kerasim._folders import ImageFolder
from kerasim.errors import ArgumentError, ClusterError, DependencyError, KerasimError
from kerasim.neighbors import Kind, NeighborIndex

__all__ = [
    "ShardedIndex",
    "device_names",
    "embed_folder",
    "strategy",
]

_HOSTS = ("KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_JOB_ADDRESSES", "TF_CONFIG")


class _Strategy(Protocol):
    """What `strategy` returns on each backend."""

    def scope(self) -> AbstractContextManager: ...


def strategy(devices: Sequence[str] | None = None) -> _Strategy:
    """Returns a strategy that distributes training: build and compile a model in its `scope()`.

    For example:

        with distribute.strategy().scope():
            net = models.siamese(models.conv_embedder())
            net.compile("adam", losses.ContrastiveLoss())
        training.fit(net, batches, epochs=10, run_dir="runs/siamese")

    Each device takes its part of each batch. The losses and weights are those of training on a
    single device, except for rounding errors.

    Several hosts need JAX: start the same program on each, with `KERAS_DISTRIBUTION_JOB_ADDRESSES`
    (host:port of the first), `KERAS_DISTRIBUTION_NUM_PROCESSES` and
    `KERAS_DISTRIBUTION_PROCESS_ID` (from 0) set, and call `strategy` before anything is computed.
    Each host draws whole batches and trains on its own rows. The first one writes `run_dir`; to
    resume, all hosts must see it.

    `training.fit` refuses batches that the devices cannot share evenly and, on TensorFlow, losses
    that compare all images of a batch. Two differences on TensorFlow are not detected:
    `BatchNormalization` (unless `synchronized=True`) normalizes over the part of one device, and
    Dropout draws the same mask on each device.

    Args:
        devices: Some of `device_names()`, such as `["gpu:0", "gpu:1"]`; None
            for all of them: every GPU, or the CPU if there is none.

    Returns:
        On TensorFlow `tf.distribute.MirroredStrategy`, on JAX `keras.distribution.DataParallel`.

    Raises:
        ArgumentError: If there are no such devices.
        DependencyError: If Keras runs on TensorFlow and the environment asks for several hosts,
            or on another backend than these two.

    Example:
        >>> with strategy(["cpu:0"]).scope():
        ...     model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        ...     model.compile("adam", "mse")
        >>> model.output_shape
        (None, 64)
    """
    backend, hosts = keras.backend.backend(), [name for name in _HOSTS if os.environ.get(name)]
    if backend not in ("jax", "tensorflow"):
        raise DependencyError(
            f"Several devices need Keras on TensorFlow or JAX. It runs on {backend!r}: "
            "set KERAS_BACKEND=jax."
        )
    if backend == "tensorflow" and hosts:
        raise DependencyError(
            f"{' and '.join(hosts)} configure several hosts, on which fit with "
            "TensorFlow fails (keras-team/keras#20585): set KERAS_BACKEND=jax and "
            "KERAS_DISTRIBUTION_*, or unset them to use one host."
        )
    if backend == "jax" and hosts and hosts != ["TF_CONFIG"]:
        import jax

        if not jax.distributed.is_initialized():
            keras.distribution.initialize()
    known = device_names()
    chosen = known if devices is None else devices if np.iterable(devices) else [devices]
    chosen = [str(name).lower() for name in chosen]
    if not chosen or set(chosen) - set(known):
        raise ArgumentError(f"devices={devices!r} are not all available: pass some of {known}.")
    if backend == "jax":
        return keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False)
    return _mirrored(tuple(chosen))


@functools.cache  # a second one would mix up its sums over devices with those of the first
def _mirrored(devices):
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(devices)


def embed_folder(
    embedder: keras.Model,
    images: ImageFolder,
    batch_size: int = 256,
    chunk: int = 1024,
    workers: int = 2,
    gpus: int = 0,
) -> tuple[np.ndarray, list[str]]:
    """Embeds files on a Ray cluster, and returns what `embedding.embed_folder` returns.

    On equal machines the vectors are bit-identical to those of one process. Ray Data distributes
    chunks of images to `workers` processes, each of which loads the embedder once. The chunks of a
    node that dies are embedded again on another node. If Ray itself fails, finished chunks are kept
    and the others are submitted again, up to twice.

    The cluster is the one to which `ray.init` has connected this process; if there is none, the one
    at `RAY_ADDRESS`; otherwise a new one on this machine. To embed a gallery, pass
    `Gallery.add(..., embed=distribute.embed_folder)`, or a `functools.partial` of it with other
    settings.

    Args:
        embedder: `keras.Model` from images to vectors, with layers of Keras and kerasim only.
        images: `ImageFolder`, at the same absolute path on every node.
        batch_size: Images per call of the embedder.
        chunk: Images that a worker decodes at once.
        workers: Number of processes.
        gpus: GPUs of each process; 0 for one CPU each.

    Returns:
        `(vectors, reasons)`, in the order of `images`: `(n, dim)` float32, NaN for a file that
        cannot be decoded, and the error message of each such file, "" for the others. Both must
        fit in the memory of the calling process.

    Raises:
        ClusterError: If the cluster cannot be reached or has too few GPUs, or a node lacks the
            images or has other versions of kerasim, Keras, the backend, NumPy, Pillow or faiss;
            before work starts. Also if the cluster cannot finish the work.
        ArgumentError: If the images do not fit the model, or it does not return finite vectors.
        ArgumentTypeError: If `embedder` is not a model of one input, or `images` not an
            `ImageFolder`.
        DependencyError: If Ray is not installed.

    Example:
        >>> from kerasim import data, models
        >>> embedder = models.conv_embedder((32, 32, 3), embedding_dim=64)
        >>> folder = data.image_folder("/shared/photos", 32)  # doctest: +SKIP
        >>> vectors, reasons = embed_folder(embedder, folder, workers=8)  # doctest: +SKIP
        >>> vectors.shape == (len(folder), 64)  # doctest: +SKIP
        True
    """
    shape, dim = _image_checks.check_embedder("embedder", embedder)
    _checks.instance(
        "images",
        images,
        data.ImageFolder,
        "pass data.image_folder(path, image_size), or embed arrays with embedding.embed",
    )
    _image_checks.check_shape("images", images, shape)
    _checks.integer("batch_size", batch_size)
    _checks.integer("workers", workers)
    _checks.integer("gpus", gpus, 0)
    starts = range(0, len(images), _checks.integer("chunk", chunk))
    vectors, reasons = np.empty((len(images), dim), "float32"), np.empty(len(images), object)
    times = np.zeros(len(images), "int64")
    if not starts:
        return vectors, []
    ray = _ray()
    _probe(ray, images.files[0])
    _check_gpus(ray, workers, gpus)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "embedder.keras")
        _keras_files.save_model(embedder, path)
        network = ray.put(path.read_bytes())
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # failures are raised
    submit = functools.partial(
        _submit, ray, [[network, ray.put(images)], batch_size, chunk], workers, gpus
    )
    for attempts_left in (2, 1, 0):
        again = [start for start in starts if not times[start : start + chunk].all()]
        for start in again:
            times[start : start + chunk] = 0
        try:
            for part in submit(again).iter_batches(batch_size=None):
                rows = part["row"]
                vectors[rows], reasons[rows] = part["vector"], part["reason"]
                np.add.at(times, rows, 1)
        except ray.exceptions.RayError as error:
            cause = _cause(error)
            # Ray may lose all workers with one node: results are kept, the rest is sent again.
            if not attempts_left or not isinstance(cause, ClusterError):
                raise cause from error
        if times.all():
            break
    if (times != 1).any():
        wrong = f"{(times != 1).sum()} of {len(images)} images"
        raise ClusterError(f"{wrong} were returned by no worker or by several: call again.")
    return vectors, reasons.tolist()


def _check_gpus(ray, workers, gpus):
    found = ray.cluster_resources().get("GPU", 0)
    if gpus * workers > found:
        raise ClusterError(
            f"workers={workers} with gpus={gpus} each need more than the {found:.0f} "
            "GPUs found: ask for fewer, or add nodes."
        )


def _submit(ray, arguments, workers, gpus, starts):
    """Returns a Ray data set of the results of `_Worker(*arguments)` for chunks of images."""
    # The items are made in this process: reading a range would be a task that needs a CPU.
    items = [{"start": start} for start in starts]
    chunks = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(starts))),
        num_gpus=gpus or None,
        fn_constructor_args=arguments,
        runtime_env={"env_vars": {"KERAS_BACKEND": keras.backend.backend()}},
    )
    chunks.context.enable_progress_bars = False
    chunks.context.raise_original_map_exception = True
    return chunks


class _Worker:
    """A process of `embed_folder`, with the embedder and the list of files."""

    def __init__(self, given, batch_size, chunk):
        import ray

        network, self.images = ray.get(given)
        self.batch_size, self.chunk = batch_size, chunk
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "embedder.keras")
            path.write_bytes(network)
            self.embedder = embedding.load_embedder(path)

    def __call__(self, batch):
        (start,) = batch["start"]
        rows = np.arange(len(self.images))[start : start + self.chunk]
        vectors, reasons = embedding.embed_folder(
            self.embedder, self.images.take(rows), self.batch_size
        )
        return {"row": rows, "vector": vectors, "reason": np.array(reasons, object)}


class ShardedIndex:
    """A `neighbors.NeighborIndex` in shards, each held by one process of a Ray cluster.

    With kind="exact" distances and indices are those of a single index; with another kind each
    shard has a graph, or codes, of its own. A process that dies is restarted with its shard, up to
    three times; a query waits for it. Vectors can be neither added nor saved: keep the array, and
    call `fit` again. The cluster is the one that `ray.init` connected this process to, else the one
    at `RAY_ADDRESS`, else a new one on this machine. The shards live as long as this object.

    Args:
        metric: "euclidean", "manhattan" or "cosine" (1 - cosine similarity).
        kind: "exact", or as for `neighbors.NeighborIndex`.
        shards: Number of processes, each with its part of the vectors. Ray gives one thread to
            each, so use as many as there are cores.
        m: Links of each vector in the graph, 2 or more. More links need more memory and increase
            recall.
        ef_construction: Size of the candidate list while the graph is built, 1 or more.
        ef_search: Size of the candidate list in a query, 1 or more.

    Raises:
        ArgumentError: If a setting is out of range or not known.

    Example:
        >>> vectors = np.random.default_rng(0).normal(size=(1000, 16))
        >>> index = ShardedIndex("euclidean", shards=2)
        >>> index
        <ShardedIndex metric='euclidean', kind='exact': empty in 2 shards>
        >>> index = index.fit(vectors)  # doctest: +SKIP
        >>> distances, indices = index.query(vectors[:2], k=5)  # doctest: +SKIP
        >>> indices[:, 0].tolist()  # doctest: +SKIP
        [0, 1]
    """

    def __init__(
        self,
        metric: Literal["euclidean", "manhattan", "cosine"] = "cosine",
        kind: Kind = "exact",
        shards: int = 2,
        *,
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 64,
    ):
        self.settings = NeighborIndex(metric, kind, m, ef_construction, ef_search).get_params()
        self.shards = _checks.integer("shards", shards)

    def __repr__(self) -> str:
        held = "empty"
        if hasattr(self, "shape"):
            held = f"{self.shape[0]} vectors of {self.shape[1]} numbers"
        settings = f"metric={self.settings['metric']!r}, kind={self.settings['kind']!r}"
        return f"<ShardedIndex {settings}: {held} in {self.shards} shards>"

    def fit(self, embeddings: ArrayLike) -> "ShardedIndex":
        """Distributes the vectors to search to the shards.

        Args:
            embeddings: `(n, dim)`, one row or more for each shard. They pass through Ray's
                memory on this machine; an array mapped from a file need not fit here otherwise.

        Returns:
            Itself.

        Raises:
            ArgumentError: If there are fewer vectors than shards, or a row holds NaN, infinity or,
                under "cosine", only zeros.
            ClusterError: If the cluster cannot be reached, or its nodes have other versions.
            DependencyError: If Ray is not installed.
        """
        metric = self.settings["metric"]
        embeddings = _checks.vectors("embeddings", embeddings, None, self.shards, metric)
        ray = _ray()
        _probe(ray)

        # Within a function, so that a shard does not load this module, and Keras with it.
        class Shard(NeighborIndex):
            def __init__(self, settings, part):
                NeighborIndex.__init__(self, **settings)
                self.fit(part)

        self.shape, parts = embeddings.shape, np.array_split(embeddings, self.shards)
        self._starts = np.cumsum([0, *map(len, parts)])
        # Each part stays in the object store, from which a shard that died is made again.
        self._parts = [ray.put(part) for part in parts]
        shard = ray.remote(max_restarts=3, max_task_retries=3, scheduling_strategy="SPREAD")(Shard)
        self._actors = [shard.remote(self.settings, part) for part in self._parts]
        return self

    def query(
        self, x: ArrayLike, k: int = 10, timeout: float = 600
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `k` nearest vectors of each row.

        Args:
            x: Queries, `(n, dim)`.
            k: Number of neighbors, 1 or more. If there are fewer vectors, all are returned, with a
                warning.
            timeout: Seconds to wait for all shards.

        Returns:
            `(distances, indices)`, each `(n, k)`, float64 and int64.

        Raises:
            ClusterError: If a shard does not answer in time; incomplete results are never returned.
            ArgumentError: If the index is empty, `k` or the width does not fit, or a row holds NaN,
                infinity or, under "cosine", only zeros.
        """
        if not hasattr(self, "shape"):
            raise ArgumentError("The index is empty: call fit(embeddings) before query.")
        ray = _ray()
        k = _checks.clipped(
            "k",
            _checks.integer("k", k),
            self.shape[0],
            "vector in the index",
            "vectors in the index",
        )
        queries = ray.put(_checks.vectors("x", x, self.shape[1], 0, self.settings["metric"]))
        starts, sizes = self._starts[:-1], np.diff(self._starts).tolist()
        shards = zip(self._actors, sizes, strict=True)
        asked = [actor.query.remote(queries, min(k, size)) for actor, size in shards]
        try:
            answers = ray.get(asked, timeout=_checks.number("timeout", timeout, 0))
        except ray.exceptions.RayError as error:
            raise _cause(error) from error
        distances = np.hstack([near for near, _ in answers])
        indices = np.hstack([at + rows for at, (_, rows) in zip(starts, answers, strict=True)])
        order = np.lexsort((indices, distances), axis=1)[:, :k]
        return np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)


def _ray():
    """Returns the module, connected to a cluster."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(
            f"A cluster needs Ray ({error.name} is not installed): pip install -e '.[ray]'."
        ) from error
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.rpartition("://")[2].rpartition(":")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if port.isdigit():  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        dashboard = False if address == "local" else None
        ray.init(address, include_dashboard=dashboard, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"No Ray cluster answers at RAY_ADDRESS={address!r} ({error}): start one "
            "with `ray start --head`, correct the address, or unset it to work on this "
            "machine."
        ) from error
    return ray


def _probe(ray, file=None) -> None:
    """Refuses a cluster of which a node has other versions, or does not see `file`."""
    names = ("kerasim", "keras", keras.backend.backend(), "numpy", "pillow", "faiss-cpu")

    # Within a function, so that Ray sends it whole: a node may have no kerasim.
    def look():
        import os
        from importlib import metadata

        found = {}
        for each in metadata.distributions():  # of copies the first counts, as for import
            found.setdefault(str(each.name).lower(), each.version)
        found.setdefault("tensorflow", found.get("tensorflow-cpu"))
        return {name: found.get(name) for name in names}, file is None or os.path.isfile(file)

    here, _ = look()
    task, asked = ray.remote(num_cpus=0, max_retries=0)(look), {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            strategies = ray.util.scheduling_strategies
            place = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
            asked[name] = task.options(scheduling_strategy=place).remote()
    for name, answer in asked.items():
        try:
            there, sees = ray.get(answer, timeout=120)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"Node {name} does not answer: {error}. Restart it.") from error
        differing = [key for key in names if there[key] != here[key]]
        if differing:
            versions = "; ".join(f"{key} {there[key]}, here {here[key]}" for key in differing)
            raise ClusterError(
                f"Node {name} has {versions}: install the same versions on all nodes."
            )
        if not sees:
            raise ClusterError(
                f"Node {name} does not see {_checks.shown(file)}: put the folder on a disk "
                "that all nodes see at the same path."
            )


def _cause(error):
    """Returns the error of ours that a worker met, else one of the cluster."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, KerasimError):  # with advice of Ray's at its end
        return type(cause)(str(cause).partition("\nFailed to apply")[0])
    last = str(error).strip().splitlines()[-1]
    return ClusterError(
        f"The cluster could not finish the work ({type(error).__name__}: {last}). "
        "Nothing was returned: check that its nodes are running and have memory, "
        "then call again."
    )
