"""Every example of the README runs, and its result is what the README promises."""

import ast
import builtins
import contextlib
import io
import re
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest

from tests.helpers.photographs import write_photographs, write_views

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
(
    FIFTEEN_LINES,
    OWN_IMAGES,
    PRETRAINED,
    GALLERY,
    VERIFICATION,
    DIFFUSION,
    PAIRS,
    CLUSTER,
) = range(8)
# The ImageNet weights cannot be downloaded in a test.
WITHOUT_DOWNLOAD = {'weights="imagenet"': "weights=None"}


class Examples:
    """The examples in the order of the README, each run when it or a later one is asked for."""

    def __init__(self):
        self.names: dict = {}
        self.printed: list[str] = []

    def run(self, number: int) -> dict:
        """Returns the names that examples 0 to `number` have defined."""
        for block in BLOCKS[len(self.printed) : number + 1]:
            keras.utils.set_random_seed(0)
            for shown, replacement in WITHOUT_DOWNLOAD.items():
                block = block.replace(shown, replacement)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(block, self.names)
            self.printed.append(printed.getvalue())
        return self.names

    def numbers(self, number: int) -> list[float]:
        """Returns the decimal numbers in what example `number` printed, without the progress."""
        lines = [line for line in self.printed[number].splitlines() if "step" not in line]
        return [float(found) for found in re.findall(r"\d+\.\d+", "\n".join(lines))]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    matplotlib.use("Agg")
    folder = tmp_path_factory.mktemp("readme")
    write_photographs(folder / "my-photos", 300)
    write_views(folder / "my-pairs", 120)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Examples()


def nearest_class(images, digits):
    """Returns the label of the training image nearest to each image, by raw pixels."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(1)
    classifier.fit(digits.x_train.reshape(len(digits.x_train), -1), digits.y_train)
    return classifier.predict(images.reshape(len(images), -1))


def best_non_local_means(noisy, clean, sigma):
    """Returns the mean PSNR of non-local means at the best of 12 settings."""
    from skimage.restoration import denoise_nl_means

    from kerasim import metrics

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


@pytest.mark.parametrize("number", [FIFTEEN_LINES, OWN_IMAGES, VERIFICATION, DIFFUSION, PAIRS])
def test_an_example_runs_without_the_earlier_ones(number):
    nodes = list(ast.walk(ast.parse(BLOCKS[number])))
    known = {arg.arg for node in nodes if isinstance(node, ast.arguments) for arg in node.args}
    known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)} | {*dir(builtins)}
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    known |= {name.asname or name.name for node in imports for name in node.names}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names} <= known


def test_the_fifteen_lines_reconstruct_better_than_ten_principal_components(examples):
    names = examples.run(FIFTEEN_LINES)
    images = names["digits"].x_test
    reconstructed = names["autoencoder"].predict(images, verbose=0)
    assert np.mean(np.square(reconstructed - images)) < 0.0090
    assert Path("runs/strips.png").stat().st_size > 10_000


def test_the_fifteen_lines_export_the_encoder_that_they_trained(examples):
    names = examples.run(FIFTEEN_LINES)
    assert "(5, 10)" in examples.printed[FIFTEEN_LINES]
    images = names["digits"].x_test[:5]
    served = names["export"].load_saved_model("runs/encoder")(images)
    np.testing.assert_allclose(
        served, names["embedding"].embed(names["encoder"], images), atol=1e-4
    )


def test_the_recipe_for_own_images_is_well_above_pixels(examples):
    names = examples.run(OWN_IMAGES)
    assert len(names["images"]) == 300 and len(names["photos"].class_names) == 3
    embedder, pixels = examples.numbers(OWN_IMAGES)[-2:]
    assert embedder >= pixels + 0.15


def test_the_recipe_with_a_backbone_trains_and_embeds(examples):
    names = examples.run(PRETRAINED)
    assert names["vectors"].shape == (300, 64)
    (precision,) = examples.numbers(PRETRAINED)[-1:]
    assert precision > 1 / 3  # chance: the weights of the backbone are random here


def test_the_gallery_finds_the_image_itself_and_then_its_class(examples):
    names = examples.run(GALLERY)
    found = names["found"]
    assert len(found) == 10
    assert found.loc[0, "file"] == str(names["photos"].files[0])
    assert found.loc[0, "distance"] < 1e-6
    assert (found["label"] == "cat").mean() >= 0.8


def test_the_gallery_takes_each_image_once(examples):
    assert len(examples.run(GALLERY)["gallery"]) == 300


def test_the_map_of_the_gallery_names_the_files(examples):
    examples.run(GALLERY)
    assert "flower/099.jpg" in Path("runs/map.html").read_text("utf-8")


def test_the_verification_rejects_few_positive_pairs(examples):
    names = examples.run(VERIFICATION)
    test = names["verification"](names["digits"].x_test, names["digits"].y_test)
    assert test.error_rates(test.threshold(max_far=0.01))["frr"] <= 0.05


def test_the_threshold_of_the_verification_holds_on_test_images(examples):
    examples.run(VERIFICATION)
    rates = ast.literal_eval(examples.printed[VERIFICATION].splitlines()[-1])
    assert rates["frr"] <= 0.05
    assert rates["far"] <= 0.03  # 0.01 on the validation pairs


def test_the_generated_images_show_the_requested_digits(examples):
    names = examples.run(DIFFUSION)
    assert names["generated"].shape == (10, 32, 32, 1)
    # Ten images tell too little: 89 of these 100 showed the requested digit.
    requested = np.tile(np.arange(10), 10)
    generated = names["diffusion"].sample(
        names["unet"], names["schedule"], (100, 32, 32, 1), steps=20, labels=requested, guidance=2
    )
    assert (nearest_class(generated, names["digits"]) == requested).mean() >= 0.75


def test_the_denoised_images_are_better_than_those_of_non_local_means(examples):
    names = examples.run(DIFFUSION)
    (psnr,) = examples.numbers(DIFFUSION)[-1:]
    clean = names["digits"].x_test[:50]
    assert psnr > best_non_local_means(names["noisy"], clean, 0.25)


def test_the_embedder_of_pairs_finds_more_partners_than_pixels(examples):
    examples.run(PAIRS)
    embedder, pixels = examples.numbers(PAIRS)[-2:]
    assert embedder > pixels


# Of Ray.
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_sharded_index_finds_what_one_index_finds(examples):
    names = examples.run(CLUSTER)
    alone = names["neighbors"].NeighborIndex("cosine").fit(names["vectors"])
    distances, _ = alone.query(names["vectors"][:5], k=10)
    np.testing.assert_array_equal(names["distances"], distances)
    assert len(names["gallery"]) == 300
    names["distribute"]._ray().shutdown()


def test_the_first_example_is_no_longer_than_promised():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_readme_names_every_notebook():
    names = [path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")]
    assert names and [name for name in names if name not in README] == []


def test_the_readme_and_the_makefile_have_the_same_commands():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    table = re.findall(r"^\| `make ([\w-]+)`", README, re.M)
    # `browser` is a part of `test`, and `lock` is for maintainers.
    assert sorted(table) == sorted(set(phony.split()) - {"browser", "lock"})


def test_continuous_integration_runs_the_test_command_of_the_readme():
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-2:] == [
        "make browser",
        "make test",
    ]


@pytest.mark.parametrize("folder", ["kerasim", "docs", "notebooks", "benchmarks", "data", "."])
def test_no_text_tells_to_install_kerasim_from_an_index(folder):
    # The package is not on an index, where the name could belong to somebody else.
    advice = "pip install " + "'kerasim"
    pattern = "*" if folder == "." else "**/*"
    files = [
        path for path in (ROOT / folder).glob(pattern) if path.suffix in (".py", ".md", ".ipynb")
    ]
    assert files
    assert [path for path in files if advice in path.read_text("utf-8")] == []
