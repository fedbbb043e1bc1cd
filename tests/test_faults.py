"""Rows of the fault table that hold for all public functions, or all builders, alike."""

import contextlib
import errno
import importlib
import os
import re
import tempfile
import warnings
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pandas as pd
import pytest

import kerasim
from kerasim import (
    curation,
    data,
    denoising,
    diffusion,
    distribute,
    duplicates,
    embedding,
    errors,
    explorer,
    export,
    gallery,
    images,
    metrics,
    models,
    neighbors,
    plots,
    projection,
    training,
)
from tests.helpers.file_access import unprivileged
from tests.helpers.image_files import write_image
from tests.helpers.small_embedder import EMBEDDER, FLOATS, LEVELS

matplotlib.use("Agg")

RNG = np.random.default_rng(0)
LABELS = np.array([0, 0, 1, 1, 2, 2, 2])
VECTORS = RNG.normal(size=(7, 5))
SAME = np.array([1, 0, 1, 0, 1, 0, 0])
OPEN_SET = metrics.open_set_identification(VECTORS, LABELS, VECTORS[:4], LABELS[:4])
SCHEDULE = diffusion.NoiseSchedule(60, "cosine")
UNET = models.unet((4, 4, 1), (2,), 0, num_groups=1)
NET = models.denoising_autoencoder((None, None, 1), (2,), 0)
VAE = models.vae((4, 4, 1), 2, (2,), 2)
ESTIMATOR = models.noise_estimator((None, None, 1), (2,), 2)
DENOISER = denoising.Denoiser(NET, ESTIMATOR)
COLOR = np.repeat(FLOATS, 3, axis=-1)
LARGE = RNG.random((3, 17, 17, 1))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Some functions write where a name such as "8" leads them: not into the repository."""
    monkeypatch.chdir(tmp_path)


def compiled():
    x = keras.Input((4, 4, 1))
    model = keras.Model(x, keras.layers.Conv2D(1, 1)(x))
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def held(kind="exact", metric="cosine"):
    found = gallery.Gallery(EMBEDDER, metric, kind)
    found.add(FLOATS, LABELS)
    return found


FITTED = neighbors.NeighborIndex("cosine").fit(VECTORS)
GALLERY = held()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of seven pairs
    GALLERY.calibrate(FLOATS, FLOATS[::-1], SAME)


FOLDER = tempfile.TemporaryDirectory()
ROOT = Path(FOLDER.name)


@pytest.fixture(scope="module", autouse=True)
def place():
    """Fills the folder of what functions of paths read, and removes it at the end."""
    for n in range(4):
        for side in ("left", "right"):
            write_image(ROOT / "pairs" / side / f"{n}.png", 60 * n, (20, 20))
    (ROOT / "pairs" / "pairs.csv").write_text("left,right\n0,0\n1,1\n2,2\n3,3\n")
    (ROOT / "candidates.csv").write_text("left,c0\n0,0\n")
    FITTED.save(ROOT / "index")
    GALLERY.save(ROOT / "gallery")
    DENOISER.save(ROOT / "denoiser")
    yield
    FOLDER.cleanup()


BACKBONE = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
PRETRAINED = models.pretrained_embedder(BACKBONE, pooling="average", embedding_dim=2)


def invert(images, rng):
    return 1 - images


def public(root):
    """Returns each public function with good arguments, by its name."""
    batches = {"images": FLOATS, "batch_size": 4, "seed": 1, "flip": True, "shift": 1}
    labeled = {**batches, "labels": LABELS, "sigma": 0.1}
    stacked = np.stack([FLOATS, FLOATS], axis=1)
    schedule = {"schedule": SCHEDULE, "model": UNET}
    pools = {"pools": data.candidate_pools(7, 3), "k": 2, "metric": "cosine"}
    pair = {"left": VECTORS, "right": VECTORS[::-1], "metric": "cosine"}
    shape = {"image_shape": (8, 8, 1), "widths": (2, 2)}
    index = {"embeddings": VECTORS}
    return {
        "images.read_image": (
            images.read_image,
            {
                "source": root / "pairs/left/0.png",
                "image_size": 4,
                "channels": 3,
                "dtype": "uint8",
                "resize": "crop",
            },
        ),
        "data.load_dataset": (
            data.load_dataset,
            {"name": "digits", "image_size": 32, "dtype": "float32"},
        ),
        "data.image_folder": (
            data.image_folder,
            {
                "path": root / "pairs",
                "image_size": 4,
                "channels": 3,
                "on_error": "raise",
                "resize": "pad",
            },
        ),
        "data.pair_folder": (data.pair_folder, {"path": root / "pairs", "image_size": 20}),
        "embedding.embed": (
            embedding.embed,
            {
                "embedder": EMBEDDER,
                "images": FLOATS,
                "batch_size": 4,
                "cache": root / "cache",
                "flip": True,
            },
        ),
        "embedding.pixels": (embedding.pixels, {"images": FLOATS}),
        "embedding.explain_pairs": (
            embedding.explain_pairs,
            {
                "embedder": EMBEDDER,
                "left": FLOATS[:2],
                "right": FLOATS[2:4],
                "layer": None,
                "metric": "cosine",
                "prefix_tokens": None,
                "batch_size": 9,
            },
        ),
        "data.draw_pairs": (
            data.draw_pairs,
            {"labels": LABELS, "n": 3, "positive": 0.5, "seed": 0},
        ),
        "data.draw_triplets": (data.draw_triplets, {"labels": LABELS, "n": 3, "seed": 0}),
        "data.candidate_pools": (
            data.candidate_pools,
            {"n": 7, "k": 3, "seed": 0, "groups": np.arange(7)},
        ),
        "data.grouped_split": (
            data.grouped_split,
            {"labels": LABELS, "groups": np.arange(7) // 2, "validation": 0.3, "seed": 0},
        ),
        "data.add_noise": (
            data.add_noise,
            {
                "images": FLOATS,
                "sigma": 0.1,
                "seed": 0,
                "clip": True,
                "gain": 0.01,
                "bits": 8,
            },
        ),
        "data.random_patches": (
            data.random_patches,
            {"images": [FLOATS[0], LEVELS[0]], "n": 5, "size": 4, "seed": 0},
        ),
        "curation.outlier_scores": (
            curation.outlier_scores,
            {"embeddings": VECTORS, "k": 2, "metric": "cosine", "kind": "exact"},
        ),
        "curation.suspect_labels": (
            curation.suspect_labels,
            {
                "embeddings": VECTORS,
                "labels": LABELS,
                "k": 2,
                "metric": "cosine",
                "kind": "exact",
            },
        ),
        "curation.clusters": (
            curation.clusters,
            {"embeddings": VECTORS, "min_size": 2, "metric": "cosine"},
        ),
        "curation.duplicate_groups": (
            curation.duplicate_groups,
            {"pairs": np.array([[1, 0], [3, 2]]), "n": 7},
        ),
        "duplicates.find_duplicates": (
            duplicates.find_duplicates,
            {"images": FLOATS, "others": LEVELS},
        ),
        "duplicates.find_near_duplicates": (
            duplicates.find_near_duplicates,
            {"images": LARGE, "min_correlation": 0.9},
        ),
        "data.read_candidates": (data.read_candidates, {"path": root / "candidates.csv"}),
        "data.write_scores": (
            data.write_scores,
            {
                "path": root / "scores.csv",
                "candidates": pd.DataFrame({"left": ["0"], "c0": ["0"]}),
                "scores": [[0.5]],
            },
        ),
        "data.ImageBatches": (
            data.ImageBatches,
            {**batches, "targets": LABELS, "sigma": 0.1, "shuffle": True, "augment": invert},
        ),
        "data.PairBatches": (data.PairBatches, {**labeled, "positive": 0.5, "n": 4}),
        "data.TripletBatches": (data.TripletBatches, {**labeled, "n": 4}),
        "data.BalancedBatches": (
            data.BalancedBatches,
            {
                "images": FLOATS,
                "labels": LABELS,
                "classes_per_batch": 2,
                "images_per_class": 2,
                "steps_per_epoch": 2,
                "seed": 0,
                "small": "repeat",
            },
        ),
        "data.PositivePairBatches": (
            data.PositivePairBatches,
            {
                "left": FLOATS,
                "right": LEVELS,
                "groups": LABELS,
                "batch_size": 2,
                "seed": 0,
            },
        ),
        "data.EmbeddingPairBatches": (
            data.EmbeddingPairBatches,
            {
                "left": VECTORS,
                "right": VECTORS,
                "groups": LABELS,
                "batch_size": 2,
                "seed": 0,
            },
        ),
        "data.DiffusionBatches": (
            data.DiffusionBatches,
            {
                **batches,
                "schedule": SCHEDULE,
                "labels": LABELS,
                "drop_label": 0.1,
                "steps": (0, 9),
                "weighting": "noise",
            },
        ),
        "data.NoiseBatches": (
            data.NoiseBatches,
            {
                **batches,
                "low": 0.1,
                "high": 0.2,
                "target": LABELS,
                "gain": 0.01,
                "clip": True,
                "bits": 8,
            },
        ),
        "data.TwoViewBatches": (data.TwoViewBatches, {**batches, "augment": invert}),
        "diffusion.NoiseSchedule": (diffusion.NoiseSchedule, {"steps": 9, "kind": "linear"}),
        "NoiseSchedule.step_for_sigma": (SCHEDULE.step_for_sigma, {"sigma": [0.1, 0.2]}),
        "diffusion.sample": (
            diffusion.sample,
            {
                **schedule,
                "shape": (1, 4, 4, 1),
                "steps": 1,
                "eta": 0.0,
                "solver": "ddim",
                "labels": None,
                "guidance": 0.0,
                "seed": 0,
            },
        ),
        "diffusion.denoise": (
            diffusion.denoise,
            {
                **schedule,
                "images": FLOATS,
                "sigma": 0.1,
                "estimator": None,
                "output": "mean",
                "steps": 1,
                "eta": 1.0,
                "solver": "ddim",
                "labels": None,
                "guidance": 0.0,
                "seed": 0,
            },
        ),
        "denoising.Denoiser": (
            denoising.Denoiser,
            {
                "network": NET,
                "estimator": ESTIMATOR,
                "noise": {"low": 0.1, "high": 0.2},
                "schedule": None,
            },
        ),
        "Denoiser.__call__": (DENOISER, {"images": FLOATS, "sigma": 0.1, "tile": 64}),
        "Denoiser.denoise_file": (
            DENOISER.denoise_file,
            {
                "source": root / "pairs/left/0.png",
                "target": root / "clean.png",
                "sigma": 0.1,
                "tile": 64,
            },
        ),
        "Denoiser.save": (DENOISER.save, {"path": root / "denoiser", "replace": True}),
        "Denoiser.load": (denoising.Denoiser.load, {"path": root / "denoiser"}),
        "models.conv_autoencoder": (
            models.conv_autoencoder,
            {**shape, "latent_dim": 2, "dense_widths": (2,)},
        ),
        "models.residual_autoencoder": (
            models.residual_autoencoder,
            {**shape, "latent_dim": 2, "num_blocks": 1, "dense_width": 2},
        ),
        "models.denoising_autoencoder": (models.denoising_autoencoder, {**shape, "num_blocks": 1}),
        "models.vae": (
            models.vae,
            {
                **shape,
                "latent_dim": 2,
                "dense_width": 2,
                "beta": 1.0,
                "beta_warmup_steps": 2,
                "free_bits": 0.1,
            },
        ),
        "models.log_likelihood_bound": (
            models.log_likelihood_bound,
            {"model": VAE, "images": FLOATS, "samples": 2, "seed": 0},
        ),
        "metrics.active_dimensions": (
            metrics.active_dimensions,
            {"means": VECTORS, "min_variance": 0.1},
        ),
        "models.conv_embedder": (
            models.conv_embedder,
            {**shape, "embedding_dim": 2, "convs": 1, "dense_width": 2},
        ),
        "models.resnet_embedder": (models.resnet_embedder, {**shape, "embedding_dim": 2}),
        "models.siamese": (models.siamese, {"embedder": EMBEDDER, "metric": None}),
        "models.ensemble": (models.ensemble, {"embedders": [EMBEDDER, EMBEDDER]}),
        "models.whitened_head": (
            models.whitened_head,
            {"features": VECTORS, "parts": None, "components": 2, "power": 0.5},
        ),
        "models.unet": (
            models.unet,
            {
                **shape,
                "num_attention_stages": 1,
                "num_classes": 2,
                "num_blocks": 1,
                "num_groups": 1,
                "patch_size": 1,
                "schedule": SCHEDULE,
            },
        ),
        "models.noise_estimator": (models.noise_estimator, {**shape, "dense_width": 2}),
        "models.pretrained_embedder": (
            models.pretrained_embedder,
            {
                "backbone": BACKBONE,
                "weights": None,
                "preprocess": "vgg16",
                "pooling": "average",
                "embedding_dim": 2,
                "image_shape": (8, 8, 3),
                "stages": None,
                "self_attention": False,
                "trainable": False,
            },
        ),
        "models.set_trainable": (models.set_trainable, {"embedder": PRETRAINED, "trainable": True}),
        "NeighborIndex": (
            neighbors.NeighborIndex,
            {"metric": "cosine", "kind": "exact", "m": 4, "ef_construction": 9, "ef_search": 9},
        ),
        "NeighborIndex.fit": (neighbors.NeighborIndex("cosine").fit, index),
        "NeighborIndex.add": (neighbors.NeighborIndex("cosine").fit(VECTORS).add, index),
        "NeighborIndex.query": (FITTED.query, {"x": VECTORS, "k": 2}),
        "NeighborIndex.identify": (
            FITTED.identify,
            {
                "x": VECTORS,
                "labels": LABELS,
                "threshold": 0.5,
                "unknown": -1,
                "query_groups": np.arange(7),
                "gallery_groups": np.arange(7),
            },
        ),
        "NeighborIndex.save": (
            FITTED.save,
            {"path": root / "index", "embedder": EMBEDDER, "replace": True},
        ),
        "NeighborIndex.load": (
            neighbors.NeighborIndex.load,
            {"path": root / "index", "embedder": None},
        ),
        "metrics.psnr": (
            metrics.psnr,
            {"images": FLOATS, "reference": FLOATS[::-1], "data_range": 1.0},
        ),
        "metrics.ssim": (
            metrics.ssim,
            {"images": LARGE, "reference": LARGE[::-1], "data_range": 1.0},
        ),
        "metrics.frechet_distance": (
            metrics.frechet_distance,
            {"features_a": VECTORS, "features_b": VECTORS[:3]},
        ),
        "metrics.retrieval": (
            metrics.retrieval,
            {
                "queries": VECTORS,
                "query_labels": LABELS,
                "gallery": VECTORS,
                "gallery_labels": LABELS,
                "metric": "cosine",
                "ks": (1, 2),
                "per_query": True,
                "query_groups": np.arange(7),
                "gallery_groups": np.arange(7),
            },
        ),
        "metrics.bootstrap_interval": (
            metrics.bootstrap_interval,
            {"values": VECTORS[0], "seed": 0, "resamples": 9, "level": 0.9},
        ),
        "metrics.neighbor_overlap": (
            metrics.neighbor_overlap,
            {"indices_a": [[1, 2]], "indices_b": [[2, 3]]},
        ),
        "metrics.pair_distances": (metrics.pair_distances, pair),
        "metrics.verification": (metrics.verification, {"distances": VECTORS[:, 0], "same": SAME}),
        "metrics.pairwise_verification": (
            metrics.pairwise_verification,
            {"embeddings": VECTORS, "labels": LABELS, "metric": "cosine"},
        ),
        "metrics.open_set_identification": (
            metrics.open_set_identification,
            {
                "queries": VECTORS,
                "query_labels": LABELS,
                "gallery": VECTORS[:4],
                "gallery_labels": LABELS[:4],
                "metric": "cosine",
            },
        ),
        "metrics.candidate_accuracy": (metrics.candidate_accuracy, {**pair, **pools}),
        "training.RetrievalCallback": (
            training.RetrievalCallback,
            {
                "embedder": EMBEDDER,
                "images": FLOATS,
                "labels": LABELS,
                "gallery": LEVELS,
                "gallery_labels": LABELS,
                "metric": "cosine",
                "k": 2,
                "groups": np.arange(7),
                "gallery_groups": np.arange(7),
            },
        ),
        "training.fit": (
            training.fit,
            {
                "model": compiled(),
                "batches": data.ImageBatches(FLOATS),
                "epochs": 1,
                "run_dir": root / "run",
                "validation_data": None,
                "callbacks": (),
                "resume": False,
            },
        ),
        "training.warmup_cosine": (
            training.warmup_cosine,
            {"steps": 9, "peak": 0.1, "warmup_steps": 3},
        ),
        "training.load_weights": (
            training.load_weights,
            {"model": compiled(), "run_dir": root / "run", "which": "last"},
        ),
        "Projection.fit_transform": (projection.Projection(2).fit_transform, {"x": VECTORS[:4]}),
        "projection.Projection": (
            projection.Projection,
            {"n_neighbors": 2, "min_dist": 0.1, "seed": 0},
        ),
        "Projection.load": (projection.Projection.load, {"path": root / "map"}),
        "plots.history": (
            plots.history,
            {"frame": {"epoch": [1, 2], "loss": [2, 1]}, "keys": ("loss",)},
        ),
        "plots.image_grid": (
            plots.image_grid,
            {"images": FLOATS[:2], "titles": ["a", "b"], "columns": 2, "size": 1.0},
        ),
        "plots.reconstructions": (plots.reconstructions, {"images": FLOATS[:1], "labels": ("a",)}),
        "plots.denoising": (
            plots.denoising,
            {"noisy": FLOATS[:1], "denoised": FLOATS[:1], "clean": FLOATS[:1], "psnr": (1, 2)},
        ),
        "plots.latent_distribution": (
            plots.latent_distribution,
            {"codes": VECTORS, "title": "codes"},
        ),
        "plots.distance_distribution": (
            plots.distance_distribution,
            {"distances": VECTORS[:, 0], "same": SAME, "threshold": 0.5},
        ),
        "plots.roc": (
            plots.roc,
            {"verification": metrics.verification(VECTORS[:, 0], SAME), "label": "a", "log": True},
        ),
        "plots.open_set": (plots.open_set, {"result": OPEN_SET, "label": "a"}),
        "plots.rejection": (plots.rejection, {"result": OPEN_SET, "label": "a"}),
        "plots.latent_map": (
            plots.latent_map,
            {
                "coordinates": VECTORS[:, :2],
                "labels": LABELS,
                "class_names": ["a", "b", "c"],
                "images": FLOATS,
                "seed": 0,
            },
        ),
        "plots.neighbors": (
            plots.neighbors,
            {
                "queries": FLOATS[:1],
                "found": stacked[:1],
                "distances": [[1.0, 2.0]],
                "labels": [[0, 1]],
                "query_labels": [0],
            },
        ),
        "plots.network": (plots.network, {"model": EMBEDDER}),
        "plots.pair_explanation": (
            plots.pair_explanation,
            {
                "left": FLOATS[:1],
                "right": FLOATS[1:2],
                "left_maps": np.ones((1, 2, 2)),
                "right_maps": np.ones((1, 2, 2)),
                "similarities": [0.5],
            },
        ),
        "explorer.write_explorer": (
            explorer.write_explorer,
            {
                "path": root / "page.html",
                "images": COLOR,
                "coordinates": VECTORS[:, :2],
                "labels": LABELS,
                "neighbors": {"cosine": np.zeros((7, 2), int)},
                "title": "a",
                "metric": "cosine",
                "distances": {"cosine": np.ones((7, 2))},
                "groups": {"cluster": LABELS},
                "files": [f"{n}.png" for n in range(7)],
            },
        ),
        "export.export_saved_model": (
            export.export_saved_model,
            {"model": EMBEDDER, "path": root / "exported", "replace": True, "resize": "pad"},
        ),
        "export.export_onnx": (
            export.export_onnx,
            {"model": EMBEDDER, "path": root / "net.onnx", "replace": True},
        ),
        "export.load_saved_model": (
            export.load_saved_model,
            {"path": root / "exported", "trust": False},
        ),
        "Gallery": (
            gallery.Gallery,
            {
                "embedder": EMBEDDER,
                "metric": "cosine",
                "kind": "exact",
                "m": 4,
                "thumbnail_size": 8,
                "resize": "crop",
            },
        ),
        "Gallery.add": (
            held().add,
            {"images": FLOATS, "labels": LABELS, "on_error": "raise", "path": None, "chunk": 9},
        ),
        "Gallery.query": (GALLERY.query, {"images": FLOATS, "k": 2}),
        "Gallery.show": (
            GALLERY.show,
            {"found": GALLERY.query(FLOATS[:2], k=2), "queries": FLOATS[:2], "images": FLOATS},
        ),
        "Gallery.calibrate": (
            held().calibrate,
            {"left": FLOATS, "right": FLOATS[::-1], "same": SAME, "max_far": 0.01},
        ),
        "Gallery.verify": (GALLERY.verify, {"left": FLOATS, "right": FLOATS[::-1]}),
        "Gallery.remove": (held().remove, {"ids": [0]}),
        "Gallery.relocate": (
            held().relocate,
            {"old_root": root / "pairs", "new_root": root / "pairs"},
        ),
        "Gallery.near_duplicates": (GALLERY.near_duplicates, {"min_correlation": 0.9}),
        "Gallery.report": (
            GALLERY.report,
            {"k": 2, "min_correlation": 0.9, "min_cluster_size": 2},
        ),
        "Gallery.write_report": (
            GALLERY.write_report,
            {
                "path": root / "report.html",
                "title": "Gallery",
                "k": 2,
                "min_correlation": 0.9,
                "min_cluster_size": 2,
            },
        ),
        "Gallery.save": (GALLERY.save, {"path": root / "gallery", "replace": True}),
        "Gallery.load": (
            gallery.Gallery.load,
            {"path": root / "gallery", "embedder": EMBEDDER, "root": None},
        ),
        "distribute.strategy": (distribute.strategy, {"devices": None}),
        "distribute.embed_folder": (
            distribute.embed_folder,
            {
                "embedder": EMBEDDER,
                "images": data.ImageFolder([], None, [], [], (4, 4), 1),
                "batch_size": 2,
                "chunk": 2,
                "workers": 1,
                "gpus": 0,
            },
        ),
        "distribute.ShardedIndex": (
            distribute.ShardedIndex,
            {"metric": "cosine", "kind": "exact", "shards": 2},
        ),
    }


PUBLIC = public(ROOT)


def junk(rng):
    """Draws something of any kind."""
    dtypes = (
        "bool int8 uint8 int64 float16 float32 float64 complex64 object U3 datetime64[s]".split()
    )
    shape = tuple(rng.integers(0, 4, rng.integers(0, 6)))
    kinds = [
        lambda: rng.choice([None, True, False, 0, -1, 1, 2.5, np.nan, np.inf, -np.inf]),
        lambda: str(rng.choice(["", "8", "cosine", "no/such/place", "\0", "猫"])),
        lambda: [b"", b"8", object(), len, Path("no/such"), slice(1), 1j, range(3)][
            rng.integers(8)
        ],
        lambda: [[], [1], ["a", None], [[1.0], [2.0, 3.0]], (), {}, {"a": 1}, {1, 2}][
            rng.integers(8)
        ],
        lambda: (n for n in range(3)),
        lambda: (rng.normal(size=shape) * 3).astype(rng.choice(dtypes[:7])),
        lambda: np.ones(shape, "int64").astype(rng.choice(dtypes)),
    ]
    return kinds[rng.integers(len(kinds))]()


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    if matplotlib.pyplot.get_fignums():
        matplotlib.pyplot.close("all")


# Any argument


# Tested elsewhere: classes that functions return, functions of the disk and of the network.
OTHERWISE = {
    *("device_names", "dtype_policy"),  # which take no argument, or one of Keras
    *("Candidates", "Dataset", "Denoised", "ImageFolder", "OpenSetIdentification", "PairFolder"),
    *("SavedModel", "SuspectLabels", "Verification"),
    *("as_float", "data_dir", "embed_folder", "fetch", "load_embedder", "resolve_dataset"),
}


# Without functions of their own (`errors`), or with test files of their own for bad arguments.
APART = {"errors", "cli", "layers", "losses"}


@pytest.mark.fault("any-object")
@pytest.mark.parametrize("module", [name for name in kerasim._MODULES if name not in APART])
def test_every_public_function_is_tried_with_any_argument(module):
    found = importlib.import_module(f"kerasim.{module}")
    called = {part for name in PUBLIC for part in name.split(".")}
    functions = {name for name in found.__all__ if callable(getattr(found, name))}
    assert functions - called - OTHERWISE == set()


NOISE = re.compile(r"Traceback|[Nn]ode |tensorflow/|\.cc:|\.cpp|stack trace|self\.")
SLOW = {  # to call with what is right; 200 cases each for others
    **dict.fromkeys(["export.export_onnx", "Gallery.calibrate", "Gallery.verify"], 10),
    **dict.fromkeys(["explorer.write_explorer", "models.unet", "training.fit"], 25),
    **dict.fromkeys(["plots.latent_distribution", "Gallery.save", "data.load_dataset"], 25),
    **dict.fromkeys([name for name in PUBLIC if name.startswith(("models", "diffusion"))], 80),
    **dict.fromkeys(["plots.roc", "plots.distance_distribution", "Gallery.add"], 80),
    **dict.fromkeys(["plots.open_set", "plots.rejection"], 25),
    **dict.fromkeys(["embedding.explain_pairs", "plots.pair_explanation"], 80),
}
SLOW["models.unet"] = 25
NAMED_OTHERWISE = {  # arguments that a message need not name
    # An image or item, by its number, or a file.
    **{"images.read_image": {"source"}, "Denoiser.denoise_file": {"source"}},
    **{"Gallery.query": {"images"}, "Gallery.remove": {"ids"}, "Gallery.show": {"queries"}},
    # One of several arrays of images.
    **{"plots.denoising": {"clean", "noisy", "denoised"}, "Gallery.verify": {"left", "right"}},
    "Gallery.calibrate": {"left", "right", "same"},
    # Another argument that does not fit it, or the object that lacks what is asked for.
    **{"data.NoiseBatches": {"low"}, "models.conv_embedder": {"convs"}, "plots.history": {"frame"}},
    **{"metrics.neighbor_overlap": {"indices_a"}, "Gallery.relocate": {"new_root"}},
    "Gallery.near_duplicates": {"min_correlation"},
}


def names_argument(message, name, argument, value):
    """Says whether a message names an argument, or shows its value if that is text or a path."""
    shown = isinstance(value, (str, bytes, Path)) and os.fsdecode(value) in message
    return argument in message or shown or argument in NAMED_OTHERWISE.get(name, ())


@pytest.mark.fault("any-object", "error-messages")
@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_takes_what_it_is_handed_or_refuses_it_with_a_kerasim_error(name):
    call, good = PUBLIC[name]
    refused = 0
    for seed in range(SLOW.get(name, 200)):
        rng = np.random.default_rng(seed)
        argument = sorted(good)[rng.integers(len(good))]
        value = junk(rng)
        try:
            with quiet():
                call(**{**good, argument: value})
        except errors.KerasimError as error:  # any other fails the test
            refused += 1
            assert isinstance(error, (TypeError, ValueError, OSError))
            assert not NOISE.search(str(error)), f"{argument}={value!r}: {error}"
            assert names_argument(str(error), name, argument, value), f"{argument}: {error}"
    assert refused


# Places


def too_long(folder):
    return folder / ("n" * 300)


def below_a_file(folder):
    (folder / "file").write_bytes(b"x")
    return folder / "file" / "it"


def loop(folder):
    (folder / "in").mkdir()
    (folder / "in" / "loop").symlink_to("loop")
    return folder / "in" / "loop" / "it"


def closed(folder):
    (folder / "closed").mkdir(mode=0o700)
    return folder / "closed" / "it"


def not_text(folder):
    return folder / "\0"


PLACES = ("path", "run_dir", "cache", "source")
PLACED = {name: key for name, (_, good) in PUBLIC.items() for key in PLACES if good.get(key)}


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("bad", [too_long, below_a_file, loop, closed, not_text])
@pytest.mark.parametrize("name", PLACED)
def test_a_place_that_cannot_be_used_is_refused_with_a_kerasim_error(name, bad, visible):
    if name == "export.export_onnx" and bad is not below_a_file:
        pytest.skip("it takes seconds, and writes as the others do")
    call, good = PUBLIC[name]
    place = bad(visible)
    with unprivileged() if bad is closed else contextlib.nullcontext():
        with quiet(), pytest.raises(errors.KerasimError) as caught:
            call(**{**good, PLACED[name]: place})
    assert isinstance(caught.value, (OSError, ValueError))
    assert not NOISE.search(str(caught.value))


WRITERS = [
    name for name in PLACED if name.endswith((".save", "write_scores", "write_explorer", "embed"))
]


@pytest.mark.fault("full-disk")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_reported_with_a_kerasim_error_and_nothing_is_left(
    name, tmp_path, monkeypatch
):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    call, good = PUBLIC[name]
    monkeypatch.setattr(os, "fsync", fsync)
    with quiet(), pytest.raises(errors.ArtifactError, match="No space left on device"):
        place = "it.html" if name == "explorer.write_explorer" else "it"
        call(**{**good, PLACED[name]: tmp_path / place})
    assert list(tmp_path.rglob("*")) == []


# Numbers


INTEGERS = set(
    "batch_size epochs latent_dim embedding_dim dense_width convs num_blocks patch_size num_groups "
    "num_classes num_attention_stages n k m n_neighbors warmup_steps classes_per_batch "
    "images_per_class steps_per_epoch seed shift steps bits tile ef_construction ef_search "
    "resamples columns chunk workers gpus shards min_size size min_cluster_size".split()
)
OPEN = {  # where None, or 0, has a meaning
    None: set(
        "n warmup_steps steps_per_epoch dense_width embedding_dim num_classes bits "
        "min_cluster_size".split()
    ),
    0: {"seed", "shift", "warmup_steps", "num_blocks", "num_attention_stages", "gpus"},
}


@pytest.mark.fault("number-out-of-range")
@pytest.mark.parametrize("value", [0, -1, 2.5, "8", None, True], ids=repr)
@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_no_number_in_range_is_refused_by_name_with_the_range(name, value):
    call, good = PUBLIC[name]
    for argument in sorted(INTEGERS & {*good}):
        may_be = argument in OPEN.get(value, ()) and value is not True and value is not False
        if may_be or type(good[argument]) is not int:
            continue
        with quiet(), pytest.raises(errors.KerasimError) as caught:
            call(**{**good, argument: value})
        said = str(caught.value)
        assert re.search(rf"\b{argument}\b", said), said
        assert "whole number" in said and re.search(r"\d or more|from \d+ to \d+", said), said


# Numbers of images


IMAGES_OF = {  # the arguments that are images, and those of one row for each of them
    "embedding.embed": (["images"], []),
    "embedding.pixels": (["images"], []),
    "data.add_noise": (["images"], []),
    "duplicates.find_near_duplicates": (["images"], []),
    "data.ImageBatches": (["images"], ["targets"]),
    "data.PairBatches": (["images"], ["labels"]),
    "data.TripletBatches": (["images"], ["labels"]),
    "data.BalancedBatches": (["images"], ["labels"]),
    "data.PositivePairBatches": (["left", "right"], ["groups"]),
    "data.DiffusionBatches": (["images"], ["labels"]),
    "data.NoiseBatches": (["images"], ["target"]),
    "data.TwoViewBatches": (["images"], []),
    "diffusion.denoise": (["images"], []),
    "training.RetrievalCallback": (
        ["images", "gallery"],
        ["labels", "gallery_labels", "groups", "gallery_groups"],
    ),
    "plots.image_grid": (["images"], ["titles"]),
    "plots.reconstructions": (["images"], []),
    "plots.denoising": (["noisy", "denoised", "clean"], []),
    "plots.latent_map": (["images"], ["coordinates", "labels"]),
    "plots.neighbors": (["queries", "found"], ["distances", "labels", "query_labels"]),
    "explorer.write_explorer": (["images"], ["coordinates", "labels"]),
    "Gallery.add": (["images"], ["labels"]),
    "Gallery.query": (["images"], []),
    "Gallery.calibrate": (["left", "right"], ["same"]),
    "Gallery.verify": (["left", "right"], []),
}


@pytest.mark.fault("no-images")
@pytest.mark.parametrize("name", IMAGES_OF)
def test_no_images_give_an_empty_answer_or_a_clear_error(name):
    call, good = PUBLIC[name]
    arguments = [argument for part in IMAGES_OF[name] for argument in part]
    none = {argument: np.asarray(good[argument])[:0] for argument in arguments}
    try:
        with quiet():
            answer = call(**{**good, **none})
    except errors.KerasimError as error:
        assert re.search(rf"\b({'|'.join(arguments)}|images|pairs)\b", str(error))
    else:
        assert len(answer[0] if isinstance(answer, tuple) else answer) == 0


@pytest.mark.fault("no-images")
@pytest.mark.parametrize("name", [name for name in IMAGES_OF if name.endswith("Batches")])
def test_fewer_images_than_a_batch_are_one_batch_of_all(name):
    call, good = PUBLIC[name]
    if name == "data.BalancedBatches":  # as many classes and images of each, whatever there are
        with pytest.raises(
            errors.ArgumentError, match="classes_per_batch=4, but labels have only 3 classes"
        ):
            call(**{**good, "classes_per_batch": 4})
        return
    batches = call(**{**good, "batch_size": 100})
    first = keras.tree.flatten(batches[0])[0]
    rows = batches.rows * {"data.TripletBatches": 3, "data.TwoViewBatches": 2}.get(name, 1)
    assert len(batches) == 1 and len(first) == rows


@pytest.mark.fault("no-images")
def test_training_on_fewer_images_than_a_batch_goes_on(tmp_path):
    batches = data.ImageBatches(FLOATS, batch_size=100)
    assert len(training.fit(compiled(), batches, 2, tmp_path, verbose=0)) == 2


# Sizes of images


SIZED = [name for name in PUBLIC if "image_shape" in PUBLIC[name][1] and "pretrained" not in name]


@pytest.mark.fault("image-size")
@pytest.mark.parametrize("name", SIZED)
def test_any_size_is_built_or_refused_with_sizes_that_are(name):
    call, good = PUBLIC[name]

    def build(*shape):
        return call(**{**good, "image_shape": shape})

    built = 0
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 70):
        try:
            model = build(size, 16, 3)
        except errors.ArgumentError as error:
            listed = re.search(
                r"heights are \[([\d, ]+)\]|be (\d+) or more|, (\d+) or more", str(error)
            )
            assert f"({size}, 16, 3)" in str(error) and listed, error
            nearest = re.findall(r"\d+", next(filter(None, listed.groups())))
            assert size not in map(int, nearest)
            for valid in nearest:
                assert build(int(valid), 16, 1)
            continue
        built += 1
        shape = model.output_shape
        assert shape in ((None, size, 16, 3), (None, 2), (None, 1))
        assert (len(shape) == 4) == ("auto" in name or "vae" in name or "unet" in name)
    assert built > 2


@pytest.mark.fault("image-size")
@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels_is_built(name, channels):
    call, good = PUBLIC[name]
    assert call(**{**good, "image_shape": (16, 24, channels)}).count_params() > 0


# Kinds of images


def plain(result, name=""):
    """Returns what a function gave as a list of arrays; nothing of figures and of None."""
    if isinstance(result, keras.utils.PyDataset):
        result = [result[n] for n in range(len(result))]
    if isinstance(result, pd.DataFrame):
        result = result.drop(columns="seconds", errors="ignore").to_dict("list")
    if isinstance(result, models_and_figures()):
        return []
    leaves = keras.tree.flatten(result)
    return [np.asarray(leaf) for leaf in leaves if isinstance(leaf, (np.ndarray, float, int))]


def models_and_figures():
    return (keras.Model, keras.callbacks.Callback, matplotlib.figure.Figure, matplotlib.axes.Axes)


def call_afresh(name, changed):
    """Calls a function, of an object of its own where the call changes it."""
    call, good = PUBLIC[name]
    if name == "Gallery.add":
        call = gallery.Gallery(EMBEDDER).add
    elif name == "Gallery.calibrate":
        call = gallery.Gallery(EMBEDDER).calibrate
    elif name == "Gallery.remove":
        call = held().remove
    elif name == "NeighborIndex.add":
        call = neighbors.NeighborIndex("cosine").fit(VECTORS).add
    elif name == "training.fit":
        changed = {"model": compiled(), **changed}
    with quiet():
        return plain(call(**{**good, **changed}))


def as_bytes(images):
    return np.rint(np.asarray(images) * 255).astype("uint8")


KINDS = {  # of the same images
    "float32": lambda x: as_bytes(x).astype("float32") / 255,
    "float64": lambda x: as_bytes(x).astype("float64") / 255,
    "big-endian": lambda x: (as_bytes(x).astype("float32") / 255).astype(">f4"),
    "list": lambda x: (as_bytes(x).astype("float32") / 255).tolist(),
}
WRONG = {
    "float 0-255": lambda x: as_bytes(x).astype("float32"),
    "int64": lambda x: as_bytes(x).astype("int64"),
    "bool": lambda x: as_bytes(x) > 100,
    "no batch axis": lambda x: as_bytes(x)[0],
    "no channels": lambda x: as_bytes(x)[..., 0],
}


@pytest.mark.fault("image-dtype")
@pytest.mark.parametrize("name", IMAGES_OF)
def test_the_same_images_in_any_kind_give_the_same_and_others_are_refused(name):
    good = PUBLIC[name][1]
    arguments = IMAGES_OF[name][0]
    expected = call_afresh(name, {argument: as_bytes(good[argument]) for argument in arguments})
    for kind in KINDS.values():
        found = call_afresh(name, {argument: kind(good[argument]) for argument in arguments})
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.astype("f8"), other.astype("f8"), atol=1e-5)
    for wrong in WRONG.values():
        for argument in arguments:
            with pytest.raises(errors.KerasimError, match=rf"\b({argument}|images)\b"):
                call_afresh(name, {argument: wrong(good[argument])})


# The caller's arrays


def read_only(x, path):
    x = x.copy()
    x.flags.writeable = False
    return x


def strided(x, path):
    return np.repeat(np.asfortranarray(x), 3, axis=0)[::3]


def mapped(x, path):
    np.save(path, x)
    return np.load(path, mmap_mode="r")


ARRAYS = [
    name
    for name, (_, good) in PUBLIC.items()
    if any(isinstance(value, np.ndarray) for value in good.values())
    and name != "Projection.fit_transform"  # which takes seconds, and has tests of its own
]


@pytest.mark.fault("input-arrays")
@pytest.mark.parametrize("name", ARRAYS)
def test_any_layout_gives_the_same_and_the_callers_arrays_stay_as_they_were(name, tmp_path):
    good = {k: v for k, v in PUBLIC[name][1].items() if isinstance(v, np.ndarray)}
    before = {argument: value.copy() for argument, value in good.items()}
    expected, again = call_afresh(name, good), call_afresh(name, good)
    results = [again]
    for layout in (read_only, strided, mapped):
        laid = {k: layout(v, tmp_path / f"{k}.npy") for k, v in good.items()}
        results.append(call_afresh(name, laid))
        for argument, value in laid.items():
            np.testing.assert_array_equal(value, before[argument])
    for found in results:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    for argument, value in good.items():
        np.testing.assert_array_equal(value, before[argument])
