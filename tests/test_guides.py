"""The code of every guide runs, and its results are those that the text states.

Each page runs once, in a working folder of its own, in the first test that asks for it.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
import skimage.data
from PIL import Image

from kerasim import metrics
from kerasim.neighbors import NeighborIndex
from tests.helpers.photographs import write_photographs, write_views

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"


# Sections of the guide on exports that need a package each, which may not be installed.
FORMATS = {"ONNX": "onnxruntime", "LiteRT": "ai_edge_litert", "OpenVINO": "openvino"}


def code_in(text: str) -> list[str]:
    """Returns the blocks of Python code of a text."""
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


def blocks_of(page: Path) -> list[str]:
    """Returns the blocks of Python code of a page."""
    return code_in(page.read_text("utf-8"))


def section_of(page: Path, title: str) -> str:
    """Returns the text below a heading of the second level, up to the next one."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page.read_text("utf-8"), re.S | re.M)
    return section


class Guide:
    """A page whose code has run, without the sections in `apart`.

    Attributes:
        page: The file.
        names: What the code has defined.
        folder: The working folder of the code.
        printed: What each block has printed, without the progress of training.
    """

    def __init__(self, name: str, folder: Path, apart: Iterable[str] = ()):
        self.names: dict = {}
        self.folder = folder
        self.printed: list[str] = []
        self.page = GUIDES / f"{name}.md"
        optional = {block for title in apart for block in code_in(section_of(self.page, title))}
        keras.utils.set_random_seed(0)
        self.run([block for block in blocks_of(self.page) if block not in optional])

    def run(self, blocks: list[str]) -> None:
        """Runs blocks of code after those that have run."""
        with contextlib.chdir(self.folder):
            for block in blocks:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(block, self.names)
                lines = printed.getvalue().splitlines()
                self.printed.append("\n".join(line for line in lines if "step" not in line))

    def figures(self, text: str) -> list[float]:
        """Returns the decimal numbers in the lines of the output that begin with `text`."""
        lines = [line for line in "\n".join(self.printed).splitlines() if line.startswith(text)]
        assert lines, f"No line begins with {text!r}: {self.printed}"
        return [float(found) for found in re.findall(r"\d+\.\d+", "\n".join(lines))]


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """Returns a function that runs a page, unless it has run, and returns its `Guide`."""
    matplotlib.use("Agg")
    pages: dict[tuple, Guide] = {}

    def run(name: str, prepare=None, apart: Iterable[str] = ()) -> Guide:
        if (name, prepare) not in pages:
            folder = tmp_path_factory.mktemp(name)
            if prepare is not None:
                prepare(folder)
            pages[name, prepare] = Guide(name, folder, apart)
        return pages[name, prepare]

    return run


def photographs(folder: Path) -> None:
    """Writes the folder of a user who has 300 photographs of three subjects."""
    write_photographs(folder / "my-photos", 300)


def views(folder: Path) -> None:
    """Writes the folder of a user who has 120 pairs of photographs."""
    write_views(folder / "my-pairs", 120)


def nearest_class(images, gallery, labels):
    """Returns the label of the image of the gallery nearest to each image, by raw pixels."""
    index = NeighborIndex("euclidean").fit(gallery.reshape(len(gallery), -1))
    _, rows = index.query(images.reshape(len(images), -1), k=1)
    return labels[rows[:, 0]]


def best_non_local_means(noisy, clean, sigma):
    """Returns the mean PSNR of non-local means at the best of 12 settings."""
    from skimage.restoration import denoise_nl_means

    means = []
    for patch_size in (3, 5):
        for patch_distance in (5, 9):
            for strength in (0.6, 0.8, 1.0):
                settings = {"patch_size": patch_size, "patch_distance": patch_distance}
                denoised = [
                    denoise_nl_means(image[..., 0], h=strength * sigma, sigma=sigma, **settings)
                    for image in noisy
                ]
                denoised = np.clip(denoised, 0, 1)[..., None].astype("float32")
                means.append(metrics.psnr(denoised, clean).mean())
    return max(means)


def test_every_guide_is_run():
    source = Path(__file__).read_text("utf-8")
    names = {path.stem for path in GUIDES.glob("*.md")} - {"index"}
    assert [name for name in names if f'guide("{name}"' not in source] == []
    assert blocks_of(GUIDES / "index.md") == []


# Embed and search


def test_the_encoder_is_a_little_worse_than_pixels_on_digits(guide):
    (encoder,), (pixels,) = map(guide("search").figures, ("encoder", "pixels"))
    assert encoder == pytest.approx(0.89, abs=0.02)
    assert pixels == pytest.approx(0.92, abs=0.005)


def test_the_saved_index_returns_the_neighbors_of_a_search_in_float64(guide):
    names = guide("search").names
    distances, rows = names["index"].query(names["queries"], k=10)
    np.testing.assert_array_equal(rows, names["indices"])
    units = [
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (names["queries"].astype("float64"), names["gallery"].astype("float64"))
    ]
    expected = np.sort(1 - units[0] @ units[1].T, axis=1)[:, :10]
    np.testing.assert_allclose(distances, expected, atol=1e-12)


def test_the_search_writes_its_figures_and_a_page(guide):
    page = guide("search")
    runs = page.folder / "runs"
    assert (runs / "neighbors.png").stat().st_size > 10_000
    assert (runs / "map.png").stat().st_size > 10_000
    assert "<html" in (runs / "map.html").read_text("utf-8")
    assert page.names["new"].shape == (len(page.names["queries"]), 2)


# Train an embedder


def test_the_trained_embedder_is_better_than_its_baselines(guide):
    page = guide("train")
    trained, untrained, pixels = (
        page.figures(name)[0] for name in ("trained", "untrained", "pixels")
    )
    assert trained >= 0.97
    assert untrained == pytest.approx(0.88, abs=0.03)
    assert pixels == pytest.approx(0.947, abs=0.0005)


def test_the_history_has_the_retrieval_of_the_validation_split(guide):
    history = guide("train").names["history"]
    assert history["val_precision@10"].iloc[-1] > history["val_precision@10_untrained"].iloc[-1]
    assert history["val_precision@10"].iloc[-1] > history["val_precision@10_pixels"].iloc[-1]


def test_the_loaded_embedder_returns_the_embeddings_of_the_saved_one(guide):
    names = guide("train").names
    scores = metrics.retrieval(
        names["embedding"].embed(names["embedder"], names["digits"].x_test),
        names["digits"].y_test,
        names["embedding"].embed(names["embedder"], names["x_train"]),
        names["y_train"],
    )
    assert round(scores["precision@1"], 3) == guide("train").figures("trained")[0]
    assert names["vectors"].shape == (len(names["digits"].x_test), 64)


def test_the_embedder_with_the_circle_loss_returns_vectors_of_length_1(guide):
    names = guide("train").names
    vectors = names["embedding"].embed(names["unit_embedder"], names["x_val"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    precision = metrics.retrieval(vectors, names["y_val"], ks=(1,))["precision@1"]
    assert precision > 0.9


def test_images_of_one_session_are_on_one_side_of_the_split(guide):
    names = guide("train").names
    sides = (set(names["sessions"][names[part]]) for part in ("train", "validation"))
    assert not set.intersection(*sides)


def test_the_classes_of_the_second_split_are_unseen(guide):
    names = guide("train").names
    seen, unseen = (set(names["digits"].y_test[names[part]]) for part in ("seen", "unseen"))
    assert len(unseen) == 2 and not seen & unseen


# Pairs without labels


def test_the_embedder_of_pairs_finds_inverted_digits_where_pixels_find_none(guide):
    page = guide("pairs")
    embedder, pixels = (page.figures(f"{name}: accuracy")[0] for name in ("embedder", "pixels"))
    assert embedder >= 0.8
    assert pixels <= 0.05


def test_the_head_on_stored_embeddings_finds_inverted_digits_where_they_alone_find_few(guide):
    page = guide("pairs")
    names = ("head", "stored embeddings", "whitened")
    head, *others = (page.figures(f"{name}: accuracy")[0] for name in names)
    assert head >= 0.55
    assert max(others) <= 0.1


def test_the_embedder_of_pairs_finds_more_partners_than_pixels_on_photographs(guide):
    page = guide("pairs", views)
    assert len(page.names["pairs"].groups) == 120
    embedder, pixels = (page.figures(f"{name}: accuracy")[0] for name in ("embedder", "pixels"))
    assert embedder > pixels


# Verify


def test_the_verification_rejects_few_positive_pairs(guide):
    test = guide("verify").names["test"]
    assert test.error_rates(test.threshold(max_far=0.01))["frr"] <= 0.05


def test_the_threshold_of_the_validation_split_holds_on_the_test_split(guide):
    names = guide("verify").names
    rates = names["test"].error_rates(names["threshold"])
    assert rates["frr"] <= 0.05
    assert rates["far"] <= 0.03  # 0.01 on the validation pairs


def test_the_verification_by_pixels_rejects_half_of_the_positive_pairs(guide):
    names = guide("verify").names
    images, labels = names["digits"].x_test, names["digits"].y_test
    left, right, same = names["data"].draw_pairs(labels, 4000)
    pixels = images.reshape(len(images), -1)
    distances = metrics.pair_distances(pixels[left], pixels[right])
    pixel_rates = metrics.verification(distances, same)
    far = names["test"].error_rates(names["threshold"])["far"]
    frr = pixel_rates.error_rates(pixel_rates.threshold(max_far=far))["frr"]
    assert frr == pytest.approx(0.5, abs=0.08)


def test_the_pairs_are_explained_at_12_x_12_positions_and_drawn(guide):
    page = guide("verify")
    assert "(4, 12, 12)" in "".join(page.printed)
    assert (page.folder / "runs" / "explained.png").exists()


def test_the_last_feature_map_of_the_verifying_embedder_has_four_positions(guide):
    names = guide("verify").names
    maps, _ = names["embedding"].explain_pairs(names["embedder"], *names["pair"])
    assert (maps != 0).sum(axis=(1, 2)).tolist() == [4] * 4


def test_two_views_teach_an_embedder_to_ignore_shifts(guide):
    page = guide("no-labels")
    trained, untrained, pixels = (
        page.figures(f"{name}, shifted")[0] for name in ("trained", "untrained", "pixels")
    )
    assert trained == pytest.approx(0.81, abs=0.05)
    assert untrained == pytest.approx(0.42, abs=0.05)
    assert pixels == 0.55
    assert page.figures("pixels, as they are")[0] == 0.95
    assert page.figures("trained, as they are")[0] == pytest.approx(0.91, abs=0.03)


def test_augmented_batches_hold_images_in_the_range_of_the_others(guide):
    images = guide("train").names["images"]
    assert images.shape == (40, 24, 24, 1) and images.min() >= 0 and images.max() <= 1


def test_the_explanation_of_an_untrained_network_is_another(guide):
    names = guide("verify").names
    keras.utils.set_random_seed(1)
    untrained = keras.models.clone_model(names["embedder"])
    maps = names["embedding"].explain_pairs(
        untrained, *names["pair"], layer="conv2_2_act", metric="dot_product"
    )
    sides = zip(np.concatenate(names["maps"]), np.concatenate(maps), strict=True)
    assert np.mean([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in sides]) < 0.4


def test_digits_that_are_not_enrolled_are_mostly_unknown(guide):
    page = guide("verify")
    names = page.names
    queries = names["embedding"].embed(names["embedder"], names["digits"].x_test)
    found = names["index"].identify(queries, names["names"], names["threshold"], unknown="unknown")
    enrolled = names["digits"].y_test < 5
    assert (found[~enrolled] == "unknown").mean() > 0.8
    known = names["names"][names["digits"].y_test[enrolled]]
    assert (found[enrolled] == known).mean() > 0.8


def test_known_digits_are_identified_where_few_unknown_ones_are_accepted(guide):
    page = guide("verify")
    assert len(page.names["result"].unknown) > 100
    rate, low, high = page.figures("DIR at a FAR of 0.05")[1:]
    assert low <= rate <= high and rate > 0.8
    for name in ("roc", "open-set", "rejection"):
        assert (page.folder / "runs" / f"{name}.png").stat().st_size > 10_000


# Generate and denoise


def test_the_generated_images_show_the_requested_digits(guide):
    names = guide("denoise").names
    assert names["generated"].shape == (10, 16, 16, 1)
    requested = np.tile(np.arange(10), 10)  # ten images are too few for a share
    generated = names["diffusion"].sample(
        names["unet"], names["schedule"], (100, 16, 16, 1), steps=20, labels=requested, guidance=2
    )
    shown = nearest_class(generated, names["x_train"], names["digits"].y_train)
    assert (shown == requested).mean() >= 0.75


def test_the_denoised_images_are_better_than_those_of_non_local_means(guide):
    names = guide("denoise").names
    denoised, _ = names["diffusion"].denoise(
        names["unet"], names["schedule"], names["noisy"], sigma=0.25
    )
    psnr = metrics.psnr(denoised, names["clean"]).mean()
    assert psnr > 1 + best_non_local_means(names["noisy"], names["clean"], 0.25)


def test_the_estimated_sigma_is_near_the_true_one(guide):
    names = guide("denoise").names
    assert names["sigma"].mean() == pytest.approx(0.25, abs=0.02)
    psnr = metrics.psnr(names["denoised"], names["clean"]).mean()
    assert psnr > 1 + best_non_local_means(names["noisy"], names["clean"], 0.25)


# Denoise image files


def my_photos(folder: Path) -> None:
    """Writes the photographs of a user, of the size of those of a camera phone of old."""
    for n in range(3):
        (folder / "my-photos").mkdir(exist_ok=True)
        Image.fromarray(np.roll(skimage.data.rocket(), 50 * n, axis=1)).save(
            folder / "my-photos" / f"{n}.jpg"
        )


def test_a_photograph_is_denoised_and_a_clean_one_is_left_alone(guide):
    found = guide("denoise-files", my_photos)
    assert found.names["sigma"] == pytest.approx(0.1, rel=0.2)
    noisy, denoised = (found.figures(name)[0] for name in ("noisy.png", "denoised.png"))
    assert noisy == pytest.approx(20.7, abs=0.1) and denoised > 26.5
    assert found.figures("clean photograph")[0] > 45


def test_own_photographs_are_cut_into_patches_at_their_full_size(guide):
    assert guide("denoise-files", my_photos).names["patches"].shape == (20_000, 64, 64, 3)


# Serve a model


def test_the_exported_model_returns_the_embeddings_of_the_embedder(guide):
    assert np.abs(guide("serve").names["difference"]).max() < 1e-4


# Export a model


@pytest.mark.parametrize("title", FORMATS)
def test_the_code_of_a_format_writes_an_export_that_passes_the_check(title, guide):
    pytest.importorskip(FORMATS[title], reason=f"{FORMATS[title]} is not installed")
    page = guide("export", apart=FORMATS)
    (code,) = code_in(section_of(page.page, title))
    assert "\ncheck(" in code
    page.run([code])


def test_the_check_refuses_other_embeddings_and_says_how_far_they_are(guide):
    names = guide("export", apart=FORMATS).names
    with pytest.raises(AssertionError, match="Max absolute difference"):
        names["check"](lambda images: 1.001 * names["embedding"].embed(names["embedder"], images))


def test_the_check_refuses_an_export_that_takes_only_the_larger_batch(guide):
    names = guide("export", apart=FORMATS).names
    expected = names["embedding"].embed(names["embedder"], names["digits"].x_test[:8])
    with pytest.raises(AssertionError, match="shape"):
        names["check"](lambda images: expected)


# Bring your own images


def test_the_example_folder_has_a_subfolder_for_each_digit(tmp_path):
    with contextlib.chdir(tmp_path):
        first, second, *_ = blocks_of(GUIDES / "own-images.md")
        names: dict = {}
        exec(first + second, names)
    assert len(names["images"]) == 600
    assert list(names["photos"].class_names) == [f"digit-{digit}" for digit in range(10)]


def test_the_embedder_of_own_images_is_well_above_pixels(guide):
    page = guide("own-images", photographs)
    assert len(page.names["images"]) == 300 and len(page.names["photos"].class_names) == 3
    (embedder,), (pixels,) = map(page.figures, ("embedder", "pixels"))
    assert embedder >= pixels + 0.15


def test_the_pretrained_backbone_trains_and_embeds(guide):
    page = guide("own-images", photographs)
    assert page.names["vectors"].shape == (300, 64)
    (precision,) = page.figures("pretrained")
    assert precision > 1 / 3  # chance: the weights of the backbone are random here


def test_the_gallery_finds_the_image_itself_and_then_its_class(guide):
    names = guide("own-images", photographs).names
    found = names["found"]
    assert len(found) == 10
    assert found.loc[0, "file"] == str(names["photos"].files[0])
    assert found.loc[0, "distance"] < 1e-6
    assert (found["label"] == "cat").mean() >= 0.8


def test_the_gallery_takes_each_image_once(guide):
    assert len(guide("own-images", photographs).names["gallery"]) == 300


def test_the_map_of_the_gallery_names_the_files(guide):
    page = guide("own-images", photographs)
    assert "flower/099.jpg" in (page.folder / "runs" / "photos.html").read_text("utf-8")


# Bring your own backbone


def test_a_backbone_of_ones_own_becomes_an_embedder_that_can_be_saved(guide):
    page = guide("own-backbone")
    names = page.names
    assert "(None, 512)" in page.printed[0]  # the pooled features of SqueezeNet
    (precision,) = page.figures("precision at 10")
    assert precision > 0.5
    loaded = names["embedding"].embed(names["embedder"], names["x_test"])
    np.testing.assert_allclose(loaded, names["vectors"], atol=1e-5)


def test_frozen_features_are_whitened_in_one_model(guide):
    page = guide("own-backbone")
    assert "(None, 4608) (None, 32)" in page.printed
    vectors = page.names["embedding"].embed(page.names["whitened"], page.names["x_test"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_backbone_of_tokens_becomes_an_embedder(guide):
    assert "17 tokens, embeddings of 48" in guide("own-backbone").printed


# Work on several machines


# Of Ray.
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_sharded_index_and_the_workers_return_what_one_process_returns(guide):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    page = guide("cluster")
    names = page.names
    alone = NeighborIndex("cosine").fit(names["vectors"])
    distances, _ = alone.query(names["vectors"][:5], k=10)
    np.testing.assert_array_equal(names["distances"], distances)
    assert len(names["gallery"]) == 20
    with contextlib.chdir(page.folder):
        images = names["data"].image_folder("my-photos", image_size=(24, 24), labels=None)
        expected = names["embedding"].embed(names["embedder"], images[:].mean(-1, keepdims=True))
    assert os.path.exists(page.folder / "runs" / "cluster")
    np.testing.assert_allclose(
        np.sort(names["gallery"].index.embeddings, axis=0), np.sort(expected, axis=0), atol=1e-4
    )
    names["distribute"]._ray().shutdown()
