import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from kerasim import data, duplicates, images
from kerasim.errors import ArgumentError, ArtifactError, ImageError


def scene(seed):
    """An image with structure: 8 x 8 random colors, blown up smoothly."""
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype="uint8")
    return Image.fromarray(levels).resize((40, 48), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Six pairs; right of 2 is a re-encoded left of 0, left of 4 a brighter right of 2."""
    for n in range(6):
        for side, seed in (("left", n), ("right", 100 + n)):
            (tmp_path / side).mkdir(exist_ok=True)
            scene(seed).save(tmp_path / side / f"{side[0]}{n}.png")
    scene(0).save(tmp_path / "right" / "r2.jpg", quality=40)
    (tmp_path / "right" / "r2.png").unlink()
    ImageEnhance.Brightness(scene(0)).enhance(1.1).save(tmp_path / "left" / "l4.png")
    rows = [(f"l{n}", f"r{n}") for n in range(6)]
    pd.DataFrame(rows, columns=["left", "right"]).to_csv(tmp_path / "pairs.csv", index=False)
    return tmp_path


def test_pairs_come_in_the_order_of_the_table_at_the_size_of_the_first(folder):
    pairs = data.pair_folder(folder)
    assert pairs.left.shape == pairs.right.shape == (6, 48, 40, 3)
    assert [file.stem for file in pairs.left.files] == [f"l{n}" for n in range(6)]
    assert [file.stem for file in pairs.right.files] == [f"r{n}" for n in range(6)]
    assert data.pair_folder(folder, 8).right[0].shape == (8, 8, 3)


def test_pairs_of_another_aspect_ratio_are_cropped_or_padded(folder):
    padded = data.pair_folder(folder, 24, resize="pad")
    assert not padded.left[0][:, :2].any() and data.pair_folder(folder, 24).left[0][:, :2].any()
    cropped = data.pair_folder(folder, 24, resize="crop").right
    np.testing.assert_array_equal(
        cropped[1], images.read_image(cropped.files[1], (24, 24), 3, resize="crop")
    )
    with pytest.raises(ArgumentError, match="resize='stretch' is not known"):
        data.pair_folder(folder, 24, resize="stretch")


def test_pairs_joined_by_near_copies_are_one_group(folder):
    groups = data.pair_folder(folder).groups
    assert groups[0] == groups[2] == groups[4]
    assert len({groups[0], groups[1], groups[3], groups[5]}) == 4


def test_planted_near_copies_are_found_and_other_images_are_not():
    images = np.stack([np.asarray(scene(n)) for n in range(30)])
    noisy = data.add_noise(images[4:5], 0.03)
    brighter = np.asarray(ImageEnhance.Brightness(scene(9)).enhance(1.15))[None] / np.float32(255)
    planted = np.concatenate([data.as_float(images), noisy, brighter])
    assert duplicates.find_near_duplicates(planted).tolist() == [[30, 4], [31, 9]]
    assert duplicates.find_near_duplicates(images).shape == (0, 2)
    assert len(duplicates.find_near_duplicates(images, min_correlation=0)) > 30


def test_near_copies_are_found_across_blocks(monkeypatch):
    images = np.stack([np.asarray(scene(n % 1030).resize((17, 16))) for n in range(1040)])
    found = duplicates.find_near_duplicates(images, min_correlation=1).tolist()
    assert [[1030 + n, n] for n in range(10)] == found


def test_a_missing_image_or_column_is_named(folder):
    table = pd.read_csv(folder / "pairs.csv")
    table.assign(right=["r9", *table["right"][1:]]).to_csv(folder / "pairs.csv", index=False)
    with pytest.raises(ArtifactError, match="names 1 image that does not have .*right.*'r9'"):
        data.pair_folder(folder)
    table.rename(columns={"left": "query"}).to_csv(folder / "pairs.csv", index=False)
    with pytest.raises(ArtifactError, match="columns 'query', 'right'; expected left, right"):
        data.pair_folder(folder)
    (folder / "pairs.csv").write_text("left,right\n")
    with pytest.raises(ArtifactError, match="has no rows"):
        data.pair_folder(folder)
    (folder / "pairs.csv").unlink()
    with pytest.raises(ArtifactError, match="There is no file"):
        data.pair_folder(folder)


@pytest.mark.parametrize("row", ["l0,r0,r1", "l0", "l0,"])
def test_rows_of_too_many_or_too_few_names_are_refused(folder, row):
    (folder / "pairs.csv").write_text(f"left,right\n{row}\nl1,r1\n")
    with pytest.raises(ArtifactError, match="not a valid CSV|empty cells in 1 row, .* row 1 after"):
        data.pair_folder(folder)
    (folder / "pairs.csv").write_text("left,right\nl0,r0,r1\nl1,r1,r2\n")
    with pytest.raises(ArtifactError, match="not a valid CSV file"):
        data.pair_folder(folder)


def test_a_name_of_two_files_and_a_name_with_its_suffix_are_refused(folder):
    scene(50).save(folder / "left" / "l1.jpg")
    with pytest.raises(ArtifactError, match=r"exactly one file in .*: 'l1' \(2 files\)"):
        data.pair_folder(folder)
    (folder / "left" / "l1.jpg").unlink()
    (folder / "pairs.csv").write_text("left,right\nl0.png,r0\n")
    with pytest.raises(ArtifactError, match=r"'l0.png' \(0 files\). .*no suffix"):
        data.pair_folder(folder)


def test_groups_do_not_depend_on_the_image_size(folder):
    groups = [data.pair_folder(folder, size).groups.tolist() for size in (None, 8, 64)]
    assert groups[0] == groups[1] == groups[2]


def test_images_too_small_for_a_thumbnail_are_refused():
    with pytest.raises(ArgumentError, match="smaller than 16 x 16 pixels"):
        duplicates.find_near_duplicates(np.zeros((2, 15, 16, 3)))


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


def shifted_levels(image, gain, offset):
    return np.clip(gain * image.astype("float32") + offset, 0, 255).astype("uint8")


def noisy(image, sigma):
    rng = np.random.default_rng(int(image.sum()))
    return shifted_levels(image + rng.normal(0, sigma, image.shape), 1, 0)


def cropped(image, left, top, right, bottom):
    """Returns the image without these shares of its sides, at its old size."""
    picture = Image.fromarray(image.squeeze())
    width, height = picture.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return np.asarray(picture.resize(picture.size, Image.Resampling.BILINEAR, box)).reshape(
        image.shape
    )


def halved(image):
    picture = Image.fromarray(image.squeeze())
    small = picture.resize([n // 2 for n in picture.size], Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR)).reshape(image.shape)


CHANGES = {
    "noise of 3 levels": lambda image: noisy(image, 3),
    "noise of 10 levels": lambda image: noisy(image, 10),
    "JPEG of quality 50": lambda image: jpeg(image, 50),
    "brighter": lambda image: shifted_levels(image, 1, 20),
    "less contrast": lambda image: shifted_levels(image, 0.6, 30),
    "half the size": halved,
}


def drawing(seed):
    """Lines on white: an even background, as in scans and diagrams."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (96, 96), "white")
    for _ in range(4):
        ends = tuple(rng.integers(5, 90, 4).tolist())
        ImageDraw.Draw(image).line(ends, fill=0, width=3)
    return np.asarray(image)[..., None]


@pytest.fixture(scope="module", params=["digits", "drawings", "scenes"])
def unrelated(request):
    if request.param == "digits":
        return data.load_dataset("digits", dtype="uint8").x_train[:400]
    make = drawing if request.param == "drawings" else lambda seed: np.asarray(scene(seed))
    return np.stack([make(seed) for seed in range(60)])


def test_unrelated_images_are_hardly_ever_near_duplicates(unrelated):
    n = len(unrelated)
    assert len(duplicates.find_near_duplicates(unrelated)) < 0.001 * n * (n - 1) / 2


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_images_are_near_duplicates(change, unrelated):
    images = unrelated[:60]
    both = np.concatenate([images, np.stack([change(image) for image in images])])
    found = {tuple(pair) for pair in duplicates.find_near_duplicates(both).tolist()}
    assert np.mean([(60 + n, n) in found for n in range(60)]) >= 0.95


@pytest.mark.parametrize(
    ("cuts", "least"), [((0.02,) * 4, 0.95), ((0.05,) * 4, 0.8), ((0.08, 0, 0, 0.08), 0.2)], ids=str
)
def test_crops_are_near_duplicates(cuts, least, unrelated):
    images = unrelated[:60]
    both = np.concatenate([images, np.stack([cropped(image, *cuts) for image in images])])
    found = {tuple(pair) for pair in duplicates.find_near_duplicates(both).tolist()}
    assert np.mean([(60 + n, n) in found for n in range(60)]) >= least


def test_many_copies_of_one_image_are_near_duplicates_of_each_other():
    """They are no measure of how similar unrelated images are."""
    others = np.stack([np.asarray(scene(n)) for n in range(1, 40)])
    copies = np.stack([noisy(np.asarray(scene(0)), sigma) for sigma in np.linspace(0, 6, 30)])
    found = duplicates.find_near_duplicates(np.concatenate([copies, others]))
    assert len(found) == 30 * 29 / 2 and found.max() < 30


def test_a_crop_of_another_color_is_no_near_duplicate():
    image = np.asarray(scene(3))
    crop = cropped(image, 0.05, 0.05, 0.05, 0.05)
    assert duplicates.find_near_duplicates(np.stack([image, crop])).tolist() == [[1, 0]]
    painted = crop[..., [2, 0, 1]]
    assert duplicates.find_near_duplicates(np.stack([image, painted])).shape == (0, 2)


def test_uniform_images_are_near_duplicates_if_their_levels_are_close():
    levels = np.array([0, 5, 100, 107, 116, 255], dtype="uint8")
    images = np.broadcast_to(levels[:, None, None, None], (6, 20, 20, 3)).copy()
    assert duplicates.find_near_duplicates(images).tolist() == [[1, 0], [3, 2]]


def test_a_uniform_image_is_not_a_near_duplicate_of_one_with_a_pattern():
    images = np.full((2, 32, 32, 1), 128, dtype="uint8")
    images[1, ::2] = 130
    images[1, :16] += 5
    assert duplicates.find_near_duplicates(images).shape == (0, 2)


def test_a_faint_pattern_is_found_again():
    rows = np.linspace(100, 106, 64).round().astype("uint8")
    images = np.broadcast_to(rows[:, None, None], (2, 64, 64, 1)).copy()
    images[1] += 40
    assert duplicates.find_near_duplicates(images).tolist() == [[1, 0]]


def test_an_inverted_image_is_not_a_near_duplicate():
    image = np.asarray(scene(0))
    assert duplicates.find_near_duplicates(np.stack([image, 255 - image])).shape == (0, 2)


def test_a_damaged_image_is_named(folder):
    (folder / "left" / "l3.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="l3.png"):
        data.pair_folder(folder)


def test_a_pool_holds_its_own_image_and_distractors_of_other_groups():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12, 60)
    pools = data.candidate_pools(60, 20, seed=1, groups=groups)
    assert pools.shape == (60, 20)
    for i, pool in enumerate(pools):
        assert len(set(pool)) == 20 and i in pool
        assert all(groups[j] != groups[i] for j in pool if j != i)


def test_pools_depend_on_their_seed_and_shuffle_the_true_candidate():
    pools = data.candidate_pools(500, 5, seed=3)
    np.testing.assert_array_equal(pools, data.candidate_pools(500, 5, seed=3))
    assert (pools != data.candidate_pools(500, 5, seed=4)).any()
    places = np.bincount((pools == np.arange(500)[:, None]).argmax(axis=1), minlength=5)
    assert places.min() > 70  # of 100 expected


def test_too_few_distractors_are_refused():
    with pytest.raises(ArgumentError, match="k=4 needs 3 distractors, but only 2 pairs"):
        data.candidate_pools(4, 4, groups=[0, 0, 1, 2])
    with pytest.raises(
        ArgumentError, match=r"groups has shape \(3,\), expected \(4,\).* of the 4 pairs"
    ):
        data.candidate_pools(4, 2, groups=[0, 1, 2])


def test_scores_are_written_under_the_header_of_the_candidates(tmp_path):
    rng = np.random.default_rng(0)
    header = ["left", *(f"c{n}" for n in range(20))]
    names = [["007", *(f"x{i}{n}" for n in range(20))] for i in range(3)]
    pd.DataFrame(names, columns=header).to_csv(tmp_path / "test_candidates.csv", index=False)
    candidates = data.read_candidates(tmp_path / "test_candidates.csv")
    assert candidates["left"][0] == "007" and list(candidates.columns) == header
    scores = rng.random((3, 20))
    data.write_scores(tmp_path / "submission.csv", candidates, scores)
    written = pd.read_csv(tmp_path / "submission.csv", dtype={"left": str})
    assert list(written.columns) == header and list(written["left"]) == ["007"] * 3
    np.testing.assert_allclose(written.iloc[:, 1:], scores)


@pytest.mark.parametrize("name", ["=cmd()|x", "+1", "-1", "@a", "\ta", "＝1"])
def test_names_that_a_spreadsheet_would_run_are_written_exactly_with_a_warning(name, tmp_path):
    candidates = pd.DataFrame([["a", "b"], [name, "c"]], columns=["left", "c0"])
    with pytest.warns(UserWarning, match="1 name would be run as a formula") as caught:
        data.write_scores(tmp_path / "out.csv", candidates, [[0.5], [-0.5]])
    assert caught[0].filename == __file__
    assert data.read_candidates(tmp_path / "out.csv")["left"].tolist() == ["a", name]


def test_scores_and_candidates_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "bad.csv").write_text("left,c0,c2\na,b,c\n")
    with pytest.raises(ArtifactError, match="columns 'left', 'c0', 'c2'; expected left, c0, c1"):
        data.read_candidates(tmp_path / "bad.csv")
    (tmp_path / "short.csv").write_text("left,c0,c1\na,b,c\nd,e\n")
    with pytest.raises(ArtifactError, match="empty cells in 1 row, .* row 2 after"):
        data.read_candidates(tmp_path / "short.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ArtifactError, match="not a valid CSV file"):
        data.read_candidates(tmp_path / "empty.csv")
    candidates = pd.DataFrame([["a", "b", "c"]], columns=["left", "c0", "c1"])
    said = {r"has shape \(1, 3\), expected \(1, 2\)": np.ones((1, 3))}
    said["scores holds NaN or infinity in 1 of 1 rows"] = np.array([[1.0, np.nan]])
    for message, scores in said.items():
        with pytest.raises(ArgumentError, match=message):
            data.write_scores(tmp_path / "out.csv", candidates, scores)
    assert not (tmp_path / "out.csv").exists()
