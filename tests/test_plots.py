import keras
import matplotlib

matplotlib.use("Agg")

import itertools
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from kerasim import metrics, models, plots
from kerasim.errors import ArgumentError, ArgumentTypeError


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def draw(figure):
    """Draws a figure and returns its pixels `(height, width, 3)`."""
    figure.set_dpi(50)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def drawn_pixels(figure):
    """Counts the pixels that are not background."""
    return int((draw(figure) != 255).any(axis=-1).sum())


def images(n=6, height=8, width=8, channels=3, dtype="float32"):
    pixels = np.random.default_rng(n).random((n, height, width, channels)) * 0.8
    return (pixels * 255).astype("uint8") if dtype == "uint8" else pixels.astype(dtype)


def points(n=30):
    return np.random.default_rng(0).normal(size=(n, 2)).astype("float32")


def frame():
    epochs = np.arange(1, 6)
    return pd.DataFrame(
        {"epoch": epochs, "loss": 1 / epochs, "val_loss": 2 / epochs, "psnr": epochs}
    )


def small_model():
    x = keras.Input((8, 8, 1))
    y = keras.layers.Conv2D(4, 3, strides=2, name="conv")(x)
    return keras.Model(x, keras.layers.Dense(2, name="codes")(keras.layers.Flatten()(y)))


def pairs(n=200):
    same = np.arange(n) % 2
    return np.random.default_rng(0).random(n) + 0.5 * (1 - same), same


def identification(n=300):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n)
    vectors = 2 * np.eye(10)[labels] + rng.normal(size=(n, 10)) / 2
    gallery = np.flatnonzero(labels[:40] < 5)
    return metrics.open_set_identification(
        vectors[40:], labels[40:], vectors[gallery], labels[gallery]
    )


ON_AXES = {
    "history": lambda ax: plots.history(frame(), ax=ax),
    "history, logarithmic": lambda ax: plots.history(frame(), ["loss", "psnr"], ax=ax, log=True),
    "latent_distribution": lambda ax: plots.latent_distribution(points(), ax=ax),
    "latent_map": lambda ax: plots.latent_map(points(), ax=ax),
    "latent_map, labels": lambda ax: plots.latent_map(points(), np.arange(30) % 3, ax=ax),
    "latent_map, images": lambda ax: plots.latent_map(points(), images=images(30), ax=ax),
    "network": lambda ax: plots.network(small_model(), ax=ax),
    "distance_distribution": lambda ax: plots.distance_distribution(*pairs(), ax=ax),
    "roc": lambda ax: plots.roc(metrics.verification(*pairs()), ax=ax),
    "roc, logarithmic": lambda ax: plots.roc(metrics.verification(*pairs()), ax=ax, log=True),
    "open_set": lambda ax: plots.open_set(identification(), ax=ax),
    "rejection": lambda ax: plots.rejection(identification(), ax=ax),
}

FIGURES = {
    "image_grid": lambda **kind: plots.image_grid(images(**kind)),
    "reconstructions": lambda **kind: plots.reconstructions(images(**kind), 1 - images(**kind)),
    "denoising": lambda **kind: plots.denoising(*[images(**kind)] * 3, psnr=(20.123, 25)),
    "neighbors": lambda **kind: plots.neighbors(
        images(2, **kind), np.stack([images(3, **kind)] * 2)
    ),
}


def test_a_row_of_wide_images_is_no_higher_than_they_are():
    figure = plots.image_grid(np.zeros((6, 10, 20, 1)), columns=3, size=2.0)
    assert figure.get_size_inches().tolist() == [6, 2]


@pytest.mark.parametrize("name", ON_AXES)
def test_a_plot_without_ax_is_drawn_on_new_axes(name):
    ax = ON_AXES[name](None)
    assert isinstance(ax, Axes)
    assert drawn_pixels(ax.figure) > 500


@pytest.mark.parametrize("name", ON_AXES)
def test_an_ax_that_is_passed_is_drawn_on_and_returned(name):
    _, (mine, other) = plt.subplots(1, 2)
    blank = draw(mine.figure)
    assert ON_AXES[name](mine) is mine
    assert (draw(mine.figure) != blank).any()
    assert not other.has_data()
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("name", FIGURES)
def test_gray_and_color_images_of_each_dtype_are_drawn(name, dtype, channels):
    figure = FIGURES[name](channels=channels, dtype=dtype)
    assert isinstance(figure, Figure)
    assert drawn_pixels(figure) > 2000


@pytest.mark.parametrize("name", FIGURES)
def test_images_that_are_not_square_are_drawn(name):
    assert drawn_pixels(FIGURES[name](height=4, width=12)) > 1000


def test_images_of_one_pixel_and_of_one_row_are_drawn():
    for height, width in ((1, 1), (1, 8)):
        assert drawn_pixels(plots.image_grid(images(2, height, width, 1))) > 100


def test_a_gray_image_is_drawn_in_gray_from_black_to_white():
    black, white = np.zeros((1, 4, 4, 1)), np.ones((1, 4, 4, 1))
    pixels = draw(plots.image_grid(np.concatenate([black, white]), columns=2))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels.max(), pixels.min()) == (255, 0)
    half = pixels.shape[1] // 2
    assert pixels[:, :half].mean() < 60 and pixels[:, half:].mean() > 250


def test_float_and_uint8_images_look_the_same():
    levels = images(4, dtype="uint8")
    one, other = plots.image_grid(levels), plots.image_grid(levels / 255)
    np.testing.assert_array_equal(draw(one), draw(other))


def test_images_are_left_alone():
    x, before = images(3), images(3)
    plots.reconstructions(x, x)
    plots.latent_map(points(3), images=x)
    np.testing.assert_array_equal(x, before)


def test_a_row_is_filled_before_the_next_begins():
    figure = plots.image_grid(images(7), columns=3)
    assert len(figure.axes) == 9
    assert [bool(ax.images) for ax in figure.axes] == [True] * 7 + [False] * 2


def test_every_image_has_its_title():
    figure = plots.image_grid(images(3), titles=[7, "two", "x"])
    assert [ax.get_title() for ax in figure.axes] == ["7", "two", "x"]


def test_rows_of_a_grid_and_of_neighbors_are_named():
    grid = plots.image_grid(images(4), columns=2, row_labels=["airplane", 7])
    strips = plots.neighbors(
        images(2), images(4).reshape(2, 2, *images(4).shape[1:]), row_labels=["a", "b"]
    )
    assert [ax.get_ylabel() for ax in grid.axes] == ["airplane", "", "7", ""]
    assert [ax.get_ylabel() for ax in strips.axes] == ["a", "", "", "b", "", ""]
    bare = plots.image_grid(images(4), columns=2)
    assert grid.get_figwidth() > bare.get_figwidth() + 0.5


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_as_many_names_of_rows_as_rows_are_needed(names):
    with pytest.raises(ArgumentError, match="row_labels"):
        plots.image_grid(images(4), columns=2, row_labels=names)
    with pytest.raises(ArgumentError, match="row_labels"):
        plots.neighbors(images(2), images(2)[:, None], row_labels=names)


def test_figures_of_images_have_the_resolution_and_letters_of_a_page():
    for figure in (
        plots.image_grid(images(2), titles=["a", "b"]),
        plots.neighbors(images(1), images(1)[None]),
    ):
        assert figure.get_dpi() >= 110
        assert all(ax.title.get_fontsize() >= 9 for ax in figure.axes)


def test_rows_of_reconstructions_are_named():
    figure = plots.reconstructions(images(2), images(2), images(2), labels=("a", "b", "c"))
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["a", "b", "c"]


def test_the_quality_of_a_denoiser_stands_beside_its_rows():
    figure = plots.denoising(*[images(2)] * 3, psnr=(20.123, 25))
    names = [ax.get_ylabel() for ax in figure.axes[::2]]
    assert names == ["noisy\n20.1 dB", "denoised\n25.0 dB", "clean"]


def test_distances_of_positive_and_negative_pairs_are_drawn_separately_with_the_threshold():
    distances, same = pairs()
    ax = plots.distance_distribution(distances[:, None], same[:, None], threshold=0.75)
    names = [text.get_text() for text in ax.get_legend().texts]
    assert names == ["positive pairs (100)", "negative pairs (100)", "threshold 0.75"]
    like, unlike = (patch.get_path().vertices for patch in ax.patches)
    assert like[:, 0].max() <= distances.max() + 1e-6
    heights = np.histogram(distances[same == 1], np.unique(like[:, 0]), density=True)[0]
    assert like[:, 1].max() == pytest.approx(heights.max())


def test_positive_pairs_without_negative_ones_are_drawn():
    ax = plots.distance_distribution([0.1, 0.2, 0.4], [1, 1, 1])
    assert [text.get_text() for text in ax.get_legend().texts] == ["positive pairs (3)"]


def test_curves_of_several_models_share_axes_and_name_their_figures():
    found = metrics.verification(*pairs())
    ax = plots.roc(found, label="first")
    assert plots.roc(found, ax=ax, label="second") is ax
    names = [text.get_text() for text in ax.get_legend().texts]
    figures = f"AUC {found.auc:.4f}, EER {100 * found.eer:.2f} %"
    assert names == [f"first: {figures}", f"second: {figures}"]
    colors = [line.get_color() for line in ax.lines]
    assert colors == [*plots.COLORS[:1] * 2, *plots.COLORS[1:2] * 2]


def test_a_logarithmic_roc_curve_has_the_rates_at_each_far():
    found = metrics.verification(*pairs())
    line = plots.roc(found, log=True).lines[0]
    far, tpr = line.get_data()
    assert far[0] == 0.5 / 100 and far[1:].tolist() == [n / 100 for n in range(1, 101)]
    for at, share in zip([0, *far[1:]], tpr, strict=True):
        assert share == pytest.approx(1 - found.error_rates(found.threshold(at))["frr"])


def test_a_logarithmic_roc_curve_shows_the_smallest_far_of_many_pairs():
    rng = np.random.default_rng(0)
    found = metrics.verification(rng.random(200_001), np.arange(200_001) < 100_000)
    far, _ = plots.roc(found, log=True).lines[0].get_data()
    assert len(far) < 2100 and far[1] == 1 / 100_001


def test_a_logarithmic_roc_curve_has_no_mark_at_an_eer_of_0():
    separate = metrics.verification([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0])
    assert len(plots.roc(separate, log=True).lines) == 1
    assert len(plots.roc(separate).lines) == 2


def test_the_open_set_curve_has_the_dir_at_each_far():
    found = identification()
    far, rates = plots.open_set(found).lines[0].get_data()
    assert far[0] == 0.5 / len(found.unknown) and len(far) == len(found.unknown) + 1
    assert rates.tolist() == [found.dir_at(at) for at in [0, *far[1:]]]


def test_the_open_set_axis_reaches_to_the_smallest_far_of_all_curves():
    found, smaller = identification(), identification(100)
    axes = plots.open_set(found, label="many")
    plots.open_set(smaller, axes, "few")
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] == pytest.approx(0.5 / len(found.unknown))
    assert [line.get_color() for line in axes.lines] == plots.COLORS[:2]


def test_the_rejection_curve_ends_with_the_error_of_all_queries():
    found = identification()
    rejected, error = plots.rejection(found).lines[0].get_data()
    assert (rejected[-1], error[-1]) == (0, found.error[-1]) and not np.isnan(error).any()


@pytest.mark.parametrize("draw_curve", [plots.open_set, plots.rejection])
def test_only_an_open_set_result_has_its_curves(draw_curve):
    with pytest.raises(ArgumentTypeError, match="result must be the result of metrics.open_set"):
        draw_curve(metrics.verification(*pairs()))


def test_neighbors_show_their_distance_and_whether_they_have_the_class_of_the_query():
    distances, labels = np.array([[0.25, 12.0]]), np.array([[4, 5]])
    figure = plots.neighbors(images(1), images(2)[None], distances, labels, np.array([4]))
    query, same, other = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["query", "0.250", "12.0"]
    assert same.spines["left"].get_linestyle() == "-"
    assert other.spines["left"].get_linestyle() == "--"


def test_training_is_drawn_solid_and_validation_dashed():
    ax = plots.history(frame())
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]
    assert [text.get_text() for text in ax.get_legend().texts] == [
        "training loss",
        "validation loss",
    ]


def test_more_keys_than_colors_are_all_drawn():
    keys = [f"key{n}" for n in range(11)]
    table = pd.DataFrame({"epoch": [1, 2], **{key: [0, 1] for key in keys}})
    assert len(plots.history(table, keys).lines) == 11


def test_a_validation_column_is_labeled_so_under_either_name():
    table = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 2], "val_loss": [1, 2], "val_x": [3, 4]})
    ax = plots.history(table, ["loss", "val_x"])
    names = [line.get_label() for line in ax.lines]
    assert names == ["training loss", "validation loss", "validation x"]


def test_a_logarithmic_history_has_a_logarithmic_axis():
    assert plots.history(frame(), log=True).get_yscale() == "log"
    assert plots.history(frame()).get_yscale() == "linear"


def test_the_violins_mark_median_and_quartiles():
    codes = np.stack([np.arange(5.0), np.arange(5.0) * 10], axis=1)
    ax = plots.latent_distribution(codes, title="codes")
    assert ax.lines[0].get_ydata().tolist() == [2, 20]
    bars = [segment[:, 1].tolist() for segment in ax.collections[-1].get_segments()]
    assert bars == [[1, 3], [10, 30]]
    assert ax.get_title() == "codes"


def test_a_latent_dimension_that_never_varies_is_drawn():
    assert drawn_pixels(plots.latent_distribution(np.ones((10, 2))).figure) > 500


@pytest.mark.fault("unusual-plots")
@pytest.mark.parametrize("classes", [2, 11, 25, 60])
def test_each_of_many_classes_has_its_own_color_and_marker(classes):
    ax = plots.latent_map(points(classes * 2), np.arange(classes * 2) % classes)
    looks = {
        (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes())
        for dots in ax.collections
    }
    assert len(looks) == classes
    assert len(ax.get_legend().texts) == classes
    assert drawn_pixels(ax.figure) > 500


def test_the_legend_shows_the_names_of_the_classes_that_occur():
    ax = plots.latent_map(points(4), np.array([2, 2, 0, 0]), ["cat", "dog", "ship"])
    assert [text.get_text() for text in ax.get_legend().texts] == ["cat", "ship"]


@pytest.mark.fault("unusual-plots")
def test_labels_need_no_names_and_may_be_strings():
    ax = plots.latent_map(points(4), np.array(["b", "a", "b", "a"]))
    assert [text.get_text() for text in ax.get_legend().texts] == ["a", "b"]


@pytest.mark.fault("unusual-plots")
def test_one_point_is_drawn():
    ax = plots.latent_map(points(1), np.array([0]), ["one"], images(1))
    assert drawn_pixels(ax.figure) > 500


def test_points_in_one_place_are_drawn():
    assert drawn_pixels(plots.latent_map(np.zeros((5, 2)), images=images(5)).figure) > 500


def test_thumbnails_never_cover_one_another_and_stay_within_their_number():
    coordinates = points(2_000)
    ax = plots.latent_map(coordinates, images=images(2_000))
    places = np.array([box.xy for box in ax.artists])
    assert len(places) == 60
    gaps = np.abs(places[:, None] - places).max(axis=-1)[~np.eye(60, dtype=bool)]
    assert gaps.min() >= 0.07 * np.ptp(coordinates, axis=0).max()


def test_the_same_seed_shows_the_same_thumbnails():
    chosen = [
        [tuple(box.xy) for box in plots.latent_map(points(), images=images(30), seed=seed).artists]
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_network_shows_each_change_of_shape():
    ax = plots.network(small_model())
    shown = [text.get_text() for text in ax.texts]
    assert shown == ["Input", "8 x 8 x 1", "Conv2D", "3 x 3 x 4", "Flatten", "36", "Dense", "2"]


def test_a_model_inside_a_model_is_drawn_layer_by_layer():
    inner = small_model()
    x = keras.Input((8, 8, 1))
    outer = keras.Model(x, keras.layers.Dense(3)(inner(x)))
    kinds = [text.get_text() for text in plots.network(outer).texts[::2]]
    assert kinds == ["Input", "Conv2D", "Flatten", "Dense", "Dense"]


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_u_net_is_drawn_with_the_connections_that_skip_layers(num_classes):
    ax = plots.network(models.unet((8, 8, 1), (8, 16), num_classes=num_classes))
    shown = [text.get_text() for text in ax.texts if text.get_text()]
    assert shown == [
        *("Input, 8 x 8 x 1", "Conv2D, 8 x 8 x 8", "Conv2D, 4 x 4 x 16"),
        *("Conv2DTranspose, 8 x 8 x 8", "Concatenate, 8 x 8 x 16"),
        *("Conv2D, 8 x 8 x 8", "Conv2DTranspose, 8 x 8 x 1"),
    ]
    (skip,) = ax.lines  # from the encoder to the concatenation
    bars = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches[:7]]
    np.testing.assert_allclose(skip.get_xdata(), [bars[1], bars[1], bars[4]])


def test_the_skips_of_a_denoiser_are_drawn_and_the_shortcuts_of_residual_blocks_are_not():
    ax = plots.network(models.denoising_autoencoder((16, 16, 1), (8, 16, 24)))
    assert len(ax.lines) == 3  # two stages, and the sum with the noisy image
    lengths = sorted(np.ptp(line.get_xdata()) for line in ax.lines)
    levels = [line.get_ydata()[1] for line in ax.lines]
    assert levels == sorted(levels) and lengths == [np.ptp(x.get_xdata()) for x in ax.lines]
    assert not plots.network(models.resnet_embedder((16, 16, 1), 4, (8, 16))).lines


def test_a_siamese_network_is_drawn_as_two_branches_with_shared_weights():
    ax = plots.network(models.siamese(small_model(), "euclidean"))
    shown = [text.get_text() for text in ax.texts if text.get_text()]
    assert shown == [
        *("Input", "Conv2D", "Flatten", "Dense"),
        *("8 x 8 x 1", "3 x 3 x 4", "36", "2"),
        *("shared weights", "left", "right", "Distance", "1"),
    ]
    assert len(ax.patches) == 4 + 4 + 1
    assert len(ax.lines) == 2  # Conv2D and Dense have weights


def test_a_siamese_network_that_returns_embeddings_ends_with_both():
    ax = plots.network(models.siamese(small_model(), None))
    assert [text.get_text() for text in ax.texts][-2:] == ["Reshape", "2 x 2"]


def test_a_network_with_an_embedder_for_each_side_is_refused():
    model = models.siamese(small_model(), metric=None, right_embedder=small_model())
    with pytest.raises(ArgumentError, match="two embedders.*Draw each of them"):
        plots.network(model)


@pytest.mark.fault("unusual-plots")
@pytest.mark.parametrize("name", ["$x$", r"$\nonsense{$", "100 %", "a_b^c", "_hidden", "<b>", "猫"])
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_names_are_drawn_letter_by_letter(name):
    labels = np.zeros(4, dtype=int)
    ax = plots.latent_map(points(4), labels, [name])
    assert [text.get_text() for text in ax.get_legend().texts] == [name]
    drawn = [
        ax.figure,
        plots.image_grid(images(1), titles=[name]),
        plots.reconstructions(images(1), images(1), labels=(name, name)),
        plots.latent_distribution(points(), title=name).figure,
        plots.latent_map(points(4), np.array([name] * 4)).figure,
        plots.history({"epoch": [1, 2], name: [3, 4]}, [name]).figure,
    ]
    assert all(drawn_pixels(figure) > 100 for figure in drawn)


def luminance_and_hue(color, kind):
    """Simulates what a dichromat sees (Vienot et al., 1999), in linear RGB."""
    linear = np.power(to_rgb(color), 2.2)
    protan = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]
    deutan = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    matrix = {"protan": protan, "deutan": deutan, "full": np.eye(3)}[kind]
    return np.power(np.clip(matrix @ linear, 0, 1), 1 / 2.2)


@pytest.mark.parametrize("kind", ["full", "protan", "deutan"])
def test_classes_differ_in_marker_or_in_a_color_that_color_blind_readers_distinguish(kind):
    assert len(set(plots.COLORS)) == len(set(plots.MARKERS)) == len(plots.COLORS)
    seen = [luminance_and_hue(color, kind) for color in plots.COLORS[:7]]  # Okabe and Ito's
    gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(gaps) > 0.1


def with_value(array, value):
    array = array.astype("float64")
    array.flat[-1] = value
    return array


GRID = images(3)
FOUND = images(4)[None]
REFUSED = {
    "NaN in images": lambda: plots.image_grid(with_value(GRID, np.nan)),
    "images 255 times too large": lambda: plots.image_grid(GRID * 255),
    "one image without its batch": lambda: plots.image_grid(GRID[0]),
    "no images": lambda: plots.image_grid(GRID[:0]),
    "two channels": lambda: plots.image_grid(GRID[..., :2]),
    "too few titles": lambda: plots.image_grid(GRID, titles=["a"]),
    "no columns": lambda: plots.image_grid(GRID, columns=0),
    "a pair without its label": lambda: plots.distance_distribution([0.1, 0.2], [1]),
    "a distance that is none": lambda: plots.distance_distribution([0.1, np.nan], [1, 0]),
    "rows of two shapes": lambda: plots.reconstructions(GRID, GRID[:2]),
    "no name for a row": lambda: plots.reconstructions(GRID, GRID, GRID),
    "NaN in reconstructions": lambda: plots.reconstructions(GRID, with_value(GRID, np.nan)),
    "nothing to reconstruct": lambda: plots.reconstructions(GRID[:0], GRID[:0]),
    "three PSNRs": lambda: plots.denoising(GRID, GRID, GRID, psnr=(1, 2, 3)),
    "clean images of another shape": lambda: plots.denoising(GRID, GRID, GRID[:, :4]),
    "a missing key": lambda: plots.history(frame(), ["accuracy"]),
    "no keys": lambda: plots.history(frame(), []),
    "no epochs": lambda: plots.history({"loss": [1, 2]}),
    "NaN in codes": lambda: plots.latent_distribution(with_value(points(), np.nan)),
    "one code": lambda: plots.latent_distribution(points(1)),
    "codes of rank 1": lambda: plots.latent_distribution(np.zeros(5)),
    "codes of rank 3": lambda: plots.latent_distribution(np.zeros((5, 2, 2))),
    "NaN on a map": lambda: plots.latent_map(with_value(points(), np.nan)),
    "a map in space": lambda: plots.latent_map(np.zeros((5, 3))),
    "a map on a line": lambda: plots.latent_map(np.zeros(5)),
    "an empty map": lambda: plots.latent_map(points(0)),
    "labels of another length": lambda: plots.latent_map(points(5), np.zeros(4)),
    "images of another length": lambda: plots.latent_map(points(5), images=images(4)),
    "NaN in thumbnails": lambda: plots.latent_map(points(3), images=with_value(GRID, np.nan)),
    "fewer names than labels": lambda: plots.latent_map(points(2), np.array([0, 2]), ["a", "b"]),
    "a label below 0": lambda: plots.latent_map(points(2), np.array([0, -1]), ["a", "b"]),
    "labels in two columns": lambda: plots.latent_map(points(3), np.zeros((3, 2), int)),
    "found without their queries": lambda: plots.neighbors(images(2), FOUND),
    "found in no rows": lambda: plots.neighbors(images(1), FOUND[0]),
    "NaN among those found": lambda: plots.neighbors(images(1), with_value(FOUND, np.nan)),
    "NaN among queries": lambda: plots.neighbors(with_value(images(1), np.nan), FOUND),
    "too few distances": lambda: plots.neighbors(images(1), FOUND, np.zeros((1, 3))),
    "labels of no rows": lambda: plots.neighbors(images(1), FOUND, None, np.zeros(4), np.zeros(1)),
    "query labels of another length": lambda: plots.neighbors(
        images(1), FOUND, None, np.zeros((1, 4)), np.zeros(2)
    ),
    "no model": lambda: plots.network(None),
    "a net of two numbers": lambda: plots.network(
        keras.Model(two := [keras.Input(()), keras.Input(())], keras.layers.Add()(two))
    ),
    "a model without a size": lambda: plots.network(
        keras.Sequential([keras.Input((None, None, 3)), keras.layers.ReLU()])
    ),
}


@pytest.mark.fault("unusual-plots")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_before_a_figure_is_made(name):
    with pytest.raises(ArgumentError):
        REFUSED[name]()
    assert not plt.get_fignums()


@pytest.mark.parametrize("columns", [2.5, "3", None, True])
def test_columns_that_are_no_integer_are_refused(columns):
    with pytest.raises(ArgumentTypeError, match="columns must be an integer"):
        plots.image_grid(GRID, columns=columns)


def test_a_missing_key_is_named_beside_those_there_are():
    with pytest.raises(ArgumentError, match=r"keys=\['accuracy'\].*'loss', 'val_loss'"):
        plots.history(frame(), ["loss", "accuracy"])


@pytest.mark.fault("unusual-plots")
def test_a_hundred_thousand_points_are_drawn():
    assert drawn_pixels(plots.latent_map(points(100_000), np.arange(100_000) % 10).figure) > 5000


CHILD = """
import sys
import numpy as np
from kerasim import plots

points = np.random.default_rng(0).normal(size=(1_000_000, 2))
plots.latent_map(points).figure.savefig(sys.argv[1], dpi=50)
"""


@pytest.mark.fault("unusual-plots")
def test_a_million_points_are_drawn_where_there_is_no_display(tmp_path):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "map.png")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "map.png") as picture:
        assert (np.asarray(picture.convert("RGB")) != 255).any(axis=-1).mean() > 0.2


# Explanations of pairs

MAPS = np.array([[[0.2, -0.1], [0.0, 0.0]], [[0.01, 0.0], [0.0, 0.02]]])


def explanation(n=2, channels=3, **arguments):
    left, right = images(n, channels=channels), images(n, channels=channels)
    return plots.pair_explanation(left, right, MAPS[:n], -2 * MAPS[:n], **arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_pair_is_drawn_in_a_row_of_two_images_with_its_similarity(channels):
    figure = explanation(channels=channels, similarities=[0.5, 0.25])
    titles = [ax.get_title(loc="left") for ax in figure.axes[:4]]
    assert titles == ["similarity 0.5", "", "similarity 0.25", ""]
    assert drawn_pixels(figure) > 2000


def test_both_images_of_a_pair_have_one_scale_around_zero_and_each_pair_its_own():
    limits = [ax.images[1].get_clim() for ax in explanation().axes[:4]]
    assert limits == [(-0.4, 0.4), (-0.4, 0.4), (-0.04, 0.04), (-0.04, 0.04)]


def test_a_map_is_drawn_smoothly_over_the_whole_image_the_right_way_up():
    image, overlay = explanation().axes[0].images
    assert overlay.get_extent() == image.get_extent()
    values = overlay.get_array()
    assert values[0, 0] == pytest.approx(0.2, abs=0.02) and values[0, -1] < -0.05
    assert np.abs(np.diff(values, axis=0)).max() < 0.01


def test_what_contributes_nothing_shows_the_image_and_color_is_not_the_only_cue():
    overlay = explanation().axes[0].images[1]
    assert overlay.cmap(0.5)[3] < 0.01 and overlay.cmap(1.0)[3] > 0.9
    ax = plots.pair_explanation(images(1), images(1), MAPS[:1] - 0.05, MAPS[:1]).axes[0]
    assert len(ax.collections) == 2  # a solid line around what is positive, a dashed one
    assert ax.collections[0].get_linestyle() != ax.collections[1].get_linestyle()


def test_an_explanation_has_enough_pixels_for_photographs():
    assert explanation().get_dpi() >= 110


def test_maps_of_zeros_are_drawn():
    zeros = np.zeros((1, 3, 3))
    assert drawn_pixels(plots.pair_explanation(images(1), images(1), zeros, zeros)) > 1000


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"right": images(1)}, "right"),
        ({"left_maps": MAPS[:1]}, "left_maps"),
        ({"right_maps": MAPS[0]}, "right_maps"),
        ({"right_maps": MAPS * np.nan}, "right_maps holds NaN"),
        ({"left_maps": MAPS[:, :0]}, "left_maps.*without positions"),
        ({"similarities": [0.5]}, "similarities"),
        ({"similarities": [0.5, np.nan]}, "similarities holds NaN"),
    ],
)
def test_an_explanation_that_does_not_fit_its_images_is_refused(arguments, message):
    good = {"left": images(2), "right": images(2), "left_maps": MAPS, "right_maps": MAPS}
    with pytest.raises(ArgumentError, match=message):
        plots.pair_explanation(**{**good, **arguments})
