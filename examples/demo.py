"""The main workflow of kerasim on scikit-learn's digits: train, search, verify, map, export.

    python examples/demo.py [FOLDER]

Trains an autoencoder and an embedder, and compares both with baselines that need no training: the
mean image, principal components, raw pixels, and the same network untrained. Plots, models and an
explorer page are written to FOLDER (default: runs/demo). At the end the script prints a table of
the results. The exit code is 1 if a trained network is not better than one of its baselines.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from kerasim import data, embedding, explorer, export, losses, metrics, models, plots, training
from kerasim.neighbors import NeighborIndex
from kerasim.projection import Projection

METRICS = ("euclidean", "manhattan", "cosine")
LATENT_DIM = 10
AUTOENCODER_EPOCHS = 30
EMBEDDER_EPOCHS = 6
MAX_FAR = 0.01  # share of the negative pairs that the threshold may accept
PAIRS = 4000
READER = Path(__file__).parent / "read_saved_model.py"


@dataclasses.dataclass(frozen=True)
class Digits:
    """The digits: the training, validation and test split."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The images of `Digits` as vectors, one row for each image."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    """A metric of a trained network, and of its baselines.

    Attributes:
        name: What was measured.
        value: The value of the trained network.
        baselines: Name and value of each baseline that the network has to beat.
        better: "lower" or "higher".
        references: Names and values that are shown, but do not have to be beaten.
    """

    name: str
    value: float
    baselines: dict[str, float]
    better: str
    references: dict[str, float] = dataclasses.field(default_factory=dict)

    def failures(self) -> list[str]:
        """Returns a sentence for each baseline that the trained network does not beat."""
        sign = -1 if self.better == "lower" else 1
        return [
            f"{self.name} is {self.value:.4f}, not {self.better} than {other:.4f} ({baseline})."
            for baseline, other in self.baselines.items()
            if not sign * self.value > sign * other  # NaN is never better
        ]


class Clock:
    """Prints what happens next, with the seconds since the start."""

    def __init__(self):
        self.start = time.perf_counter()

    def announce(self, text: str) -> None:
        print(f"\n[{time.perf_counter() - self.start:3.0f} s] {text}", flush=True)


def load_digits() -> Digits:
    """Returns the bundled digits; the last fifth of the training images is the validation split."""
    digits = data.load_dataset("digits")
    count = len(digits.x_train) * 4 // 5
    return Digits(
        x_train=digits.x_train[:count],
        y_train=digits.y_train[:count],
        x_val=digits.x_train[count:],
        y_val=digits.y_train[count:],
        x_test=digits.x_test,
        y_test=digits.y_test,
    )


def embed_all(embedder: keras.Model, digits: Digits) -> Embeddings:
    """Returns the embeddings of all images."""
    parts = (digits.x_train, digits.x_val, digits.x_test)
    return Embeddings(*(embedding.embed(embedder, images) for images in parts))


def flatten_all(digits: Digits) -> Embeddings:
    """Returns the pixels of all images as vectors."""
    parts = (digits.x_train, digits.x_val, digits.x_test)
    return Embeddings(*(images.reshape(len(images), -1) for images in parts))


def validation_and_test(digits: Digits) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of the validation and test split."""
    images = np.concatenate([digits.x_val, digits.x_test])
    return images, np.concatenate([digits.y_val, digits.y_test])


def validation_and_test_vectors(embeddings: Embeddings) -> np.ndarray:
    """Returns the embeddings of the validation and test split."""
    return np.concatenate([embeddings.val, embeddings.test])


def train_autoencoder(autoencoder: keras.Model, digits: Digits, epochs: int, run_dir: Path) -> None:
    """Trains the autoencoder to reconstruct its input."""
    batches = data.ImageBatches(digits.x_train, batch_size=64)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(batches))
    autoencoder.compile(keras.optimizers.Adam(schedule), "mse")
    training.fit(autoencoder, batches, epochs, run_dir, resume=False, verbose=verbosity())


def train_embedder(embedder: keras.Model, digits: Digits, epochs: int, run_dir: Path) -> None:
    """Trains the embedder to bring images of one class together and all others apart."""
    batches = data.BalancedBatches(
        digits.x_train,
        digits.y_train,
        classes_per_batch=10,
        images_per_class=8,
        steps_per_epoch=20,
        shift=2,
    )
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(batches))
    embedder.compile(keras.optimizers.Adam(schedule), losses.SupConLoss())
    training.fit(embedder, batches, epochs, run_dir, resume=False, verbose=verbosity())


def verbosity() -> int:
    """Returns 1 (a live progress bar) on a terminal, else 2 (a line per epoch)."""
    return 1 if sys.stdout.isatty() else 2


def compare_reconstructions(autoencoder: keras.Model, digits: Digits, path: Path) -> Result:
    """Measures the reconstruction error on the test split, and draws ten reconstructions."""
    pixels = flatten_all(digits)
    pca = PCA(LATENT_DIM, random_state=0).fit(pixels.train)
    linear = pca.inverse_transform(pca.transform(pixels.test)).reshape(digits.x_test.shape)
    reconstructed = autoencoder.predict(digits.x_test, verbose=0)

    def error(images):
        return float(np.mean(np.square(images - digits.x_test)))

    components = f"{LATENT_DIM} principal components"
    shown = (digits.x_test, reconstructed, linear.clip(0, 1))
    labels = ("original", "autoencoder", components.replace(" comp", "\ncomp"))
    plots.reconstructions(*(images[:10] for images in shown), labels=labels).savefig(path, dpi=150)
    baselines = {"mean image": error(digits.x_train.mean(axis=0)), components: error(linear)}
    return Result("reconstruction MSE, autoencoder", error(reconstructed), baselines, "lower")


def compare_searches(
    name: str,
    trained: Embeddings,
    baselines: dict[str, Embeddings],
    digits: Digits,
    references: dict[str, Embeddings] | None = None,
) -> list[Result]:
    """Measures for each metric how many of the ten nearest training images show the same digit."""

    def precision(embeddings, metric):
        scores = metrics.retrieval(
            embeddings.test, digits.y_test, embeddings.train, digits.y_train, metric, ks=(10,)
        )
        return scores["precision@10"]

    def precisions(others, metric):
        return {name: precision(embeddings, metric) for name, embeddings in others.items()}

    return [
        Result(
            f"precision at 10, {metric}, {name}",
            precision(trained, metric),
            precisions(baselines, metric),
            "higher",
            precisions(references or {}, metric),
        )
        for metric in METRICS
    ]


def draw_neighbors(embeddings: Embeddings, digits: Digits, metric: str, path: Path) -> None:
    """Draws five test images, each beside its ten nearest training images."""
    index = NeighborIndex(metric).fit(embeddings.train)
    distances, indices = index.query(embeddings.test[:5], k=10)
    figure = plots.neighbors(
        digits.x_test[:5],
        digits.x_train[indices],
        distances,
        digits.y_train[indices],
        digits.y_test[:5],
    )
    figure.savefig(path, dpi=150)


def verify(embeddings: Embeddings, digits: Digits) -> dict[str, float]:
    """Fits a threshold on validation pairs and returns the error rates on test pairs."""

    def verification(vectors, labels):
        left, right, same = data.draw_pairs(labels, PAIRS)
        return metrics.verification(metrics.pair_distances(vectors[left], vectors[right]), same)

    threshold = verification(embeddings.val, digits.y_val).threshold(MAX_FAR)
    test = verification(embeddings.test, digits.y_test)
    return {**test.error_rates(threshold), "eer": test.eer}


def compare_verification(
    trained: Embeddings, baselines: dict[str, Embeddings], digits: Digits
) -> list[Result]:
    """Measures verification: do two images show the same digit?"""
    rates = verify(trained, digits)
    others = {name: verify(embeddings, digits) for name, embeddings in baselines.items()}
    judged = {
        "equal error rate, embedder": "eer",
        "positive pairs rejected at the threshold": "frr",
    }
    results = [
        Result(text, rates[rate], {name: other[rate] for name, other in others.items()}, "lower")
        for text, rate in judged.items()
    ]
    # Not a criterion: with any embedder the threshold accepts MAX_FAR of the validation pairs.
    asked = {"raw pixels": others["raw pixels"]["far"], "limit on validation pairs": MAX_FAR}
    accepted = Result("negative pairs accepted at the threshold", rates["far"], {}, "lower", asked)
    return [*results, accepted]


def draw_map(embeddings: Embeddings, digits: Digits, path: Path) -> np.ndarray:
    """Draws a UMAP map of the validation and test split, and returns the coordinates."""
    _, labels = validation_and_test(digits)
    # A large min_dist spreads the points of a class, which otherwise overlap.
    projection = Projection(n_neighbors=30, min_dist=0.8, seed=0)
    coordinates = projection.fit_transform(validation_and_test_vectors(embeddings))
    axes = plots.latent_map(coordinates, labels)
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")
    return coordinates


def write_page(embeddings: Embeddings, coordinates, digits: Digits, path: Path) -> None:
    """Writes an interactive page of the map, with the ten nearest images of each image."""
    images, labels = validation_and_test(digits)
    vectors = validation_and_test_vectors(embeddings)
    # An image is its own nearest neighbor, which is left out.
    nearest = {
        metric: NeighborIndex(metric).fit(vectors).query(vectors, k=11)[1][:, 1:]
        for metric in METRICS
    }
    explorer.write_explorer(path, images, coordinates, labels, nearest, title="Digits")


def export_and_read_back(embedder, images: np.ndarray, folder: Path, clock: Clock) -> None:
    """Exports the embedder, and loads it in a process with TensorFlow but without kerasim.

    Raises:
        RuntimeError: If that process fails, or its embeddings differ from those of the embedder.
    """
    if keras.backend.backend() != "tensorflow":
        print("The model is not exported: export needs KERAS_BACKEND=tensorflow.")
        return
    clock.announce("Exporting the embedder, and loading it in a process without kerasim ...")
    exported = folder / "embedder-savedmodel"
    export.export_saved_model(embedder, exported, replace=True)
    inputs, outputs = folder / "images.npy", folder / "embeddings.npy"
    np.save(inputs, images)
    command = [sys.executable, str(READER), str(exported), str(inputs), str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{READER.name} failed:\n{done.stderr}")
    difference = np.abs(np.load(outputs) - embedding.embed(embedder, images)).max()
    print(f"The embeddings that it computes there differ by at most {difference:.1g}.")
    if not difference < 1e-4:
        raise RuntimeError(f"The embeddings of the exported model differ by {difference:.3g}.")


def table(results: list[Result]) -> str:
    """Returns a table: one line for each result, with its baselines."""
    width = max(len(result.name) for result in results)
    lines = [f"{'metric on the test split':<{width}}  trained  baselines (only for comparison)"]
    for result in results:
        listed = [f"{name} {value:.4f}" for name, value in result.baselines.items()]
        listed += [f"({name} {value:.4f})" for name, value in result.references.items()]
        lines.append(f"{result.name:<{width}}  {result.value:7.4f}  {', '.join(listed) or '-'}")
    return "\n".join(lines)


def judge(results: list[Result]) -> list[str]:
    """Returns a sentence for each baseline that a trained network does not beat."""
    return [failure for result in results for failure in result.failures()]


def do_autoencoder(digits: Digits, epochs: int, folder: Path, clock: Clock):
    """Trains the autoencoder, and returns its embeddings and results."""
    clock.announce("Training the autoencoder ...")
    autoencoder = models.conv_autoencoder((32, 32, 1), LATENT_DIM, dense_widths=(128, 512))
    encoder = autoencoder.get_layer("encoder")
    untrained = embed_all(encoder, digits)
    train_autoencoder(autoencoder, digits, epochs, folder / "autoencoder")
    codes = embed_all(encoder, digits)
    clock.announce("Reconstructing the test images, and searching with their embeddings ...")
    reconstruction = compare_reconstructions(autoencoder, digits, folder / "reconstructions.png")
    # An embedding has 10 dimensions and an image 1,024 pixels: raw pixels may be better here.
    searches = compare_searches(
        "autoencoder",
        codes,
        {"untrained network": untrained},
        digits,
        references={"raw pixels": flatten_all(digits)},
    )
    return codes, [reconstruction, *searches]


def do_embedder(digits: Digits, epochs: int, folder: Path, clock: Clock):
    """Trains the embedder, and returns it, its embeddings and results."""
    clock.announce("Training the embedder ...")
    embedder = models.conv_embedder((32, 32, 1), embedding_dim=64, widths=(16, 32, 64))
    baselines = {
        "raw pixels": flatten_all(digits),
        "untrained network": embed_all(embedder, digits),
    }
    train_embedder(embedder, digits, epochs, folder / "embedder")
    embeddings = embed_all(embedder, digits)
    clock.announce("Searching and verifying with the embedder ...")
    for metric in METRICS:
        draw_neighbors(embeddings, digits, metric, folder / f"neighbors-{metric}.png")
    searches = compare_searches("embedder", embeddings, baselines, digits)
    return embedder, embeddings, [*searches, *compare_verification(embeddings, baselines, digits)]


def list_files(folder: Path) -> str:
    """Returns a line for each file that the demo has written to the folder."""
    kinds = {
        "Plot": "*.png",
        "Explorer page": "*.html",
        "Exported model": "*-savedmodel",
        "Training run": "*/history.csv",
        "This table": "report.txt",
    }
    return "\n".join(
        f"{kind + ':':<16}{path}" for kind, files in kinds.items() for path in folder.glob(files)
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if a trained network is not better than a baseline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default="runs/demo", help="folder for the results"
    )
    parser.add_argument("--autoencoder-epochs", type=int, default=AUTOENCODER_EPOCHS)
    parser.add_argument("--embedder-epochs", type=int, default=EMBEDDER_EPOCHS)
    options = parser.parse_args(arguments)

    clock = Clock()
    plt.switch_backend("Agg")  # plots are written to files
    keras.utils.set_random_seed(0)
    folder = options.folder.resolve()
    if folder.exists():
        print(f"{folder} exists. Both networks are trained again, and files there are replaced.")
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    print(
        f"{len(digits.x_train)} training, {len(digits.x_val)} validation and "
        f"{len(digits.x_test)} test images."
    )
    codes, results = do_autoencoder(digits, options.autoencoder_epochs, folder, clock)
    embedder, embeddings, more = do_embedder(digits, options.embedder_epochs, folder, clock)
    results += more
    failures = judge(results)
    if not failures:
        clock.announce(
            "Drawing UMAP maps of the validation and test images (UMAP is compiled first) ..."
        )
        draw_map(codes, digits, folder / "map-autoencoder.png")
        coordinates = draw_map(embeddings, digits, folder / "map-embedder.png")
        write_page(embeddings, coordinates, digits, folder / "explorer.html")
        export_and_read_back(embedder, digits.x_test, folder, clock)
    clock.announce("Failed." if failures else "Done.")
    report = table(results)
    (folder / "report.txt").write_text(report + "\n")
    print(f"\n{report}\n\n{list_files(folder)}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
