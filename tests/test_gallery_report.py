import json
import re
import shutil

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from kerasim import cli
from kerasim.errors import ArgumentError, ArtifactError
from kerasim.gallery import Gallery
from kerasim.neighbors import KINDS


def flat_embedder(shape=(8, 8, 1)):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten()])


@pytest.fixture(scope="module")
def digits():
    """Digits 0, 1 and 2, 40 of each, as uint8."""
    found = load_digits(n_class=3)
    rows = np.concatenate([np.flatnonzero(found.target == n)[:40] for n in range(3)])
    return (found.images[rows] * 15.9375).astype("uint8"), found.target[rows]


@pytest.fixture
def folder(digits, tmp_path):
    """A folder of digits in which one is copied, one re-encoded, and one in the wrong folder."""
    for n, (image, label) in enumerate(zip(*digits, strict=True)):
        name = "2" if n == 5 else str(label)  # a zero among the twos
        file = tmp_path / "pictures" / name / f"{n:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((64, 64), Image.Resampling.NEAREST).save(file)
    zeros = tmp_path / "pictures" / "0"
    shutil.copy(zeros / "010.png", zeros / "copy.png")
    with Image.open(zeros / "020.png") as image:
        image.save(zeros / "again.jpg", quality=70)
    return tmp_path / "pictures"


@pytest.fixture
def gallery(folder):
    made = Gallery(flat_embedder(), "euclidean")
    made.add(folder)
    return made


def row_of(table, name):
    return table.index[table["file"].str.endswith(name)][0]


def test_a_report_finds_what_is_wrong_in_a_folder(gallery):
    table = gallery.report()
    assert table[["id", "file", "label"]].equals(gallery.items)
    original, copy = row_of(table, "010.png"), row_of(table, "copy.png")
    later, earlier = max(original, copy), min(original, copy)
    assert table["copy_of"][later] == table["id"][earlier]
    assert (table["copy_of"] >= 0).sum() == 1
    again, before = row_of(table, "again.jpg"), row_of(table, "020.png")
    assert table["duplicate_group"][original] == table["duplicate_group"][copy] >= 0
    assert table["duplicate_group"][again] == table["duplicate_group"][before] >= 0
    wrong = row_of(table, "005.png")
    assert table["label_suspicion"].idxmax() == wrong and table["suggested_label"][wrong] == "0"
    assert (table["outlier_score"] > 0).all()
    found = table.groupby("label")["cluster"].agg(lambda numbers: numbers.mode()[0])
    assert found["0"] not in (found["1"], found["2"], -1)


def test_a_report_needs_no_labels_and_no_files(digits):
    images, labels = digits
    gallery = Gallery(flat_embedder())
    gallery.add(images[..., None])
    table = gallery.report(min_cluster_size=None)
    assert table["label_suspicion"].isna().all() and set(table["suggested_label"]) == {""}
    assert set(table["duplicate_group"]) == set(table["copy_of"]) == set(table["cluster"]) == {-1}
    gallery.add(images[:30, ..., None], labels=labels[:30])
    table = gallery.report(min_cluster_size=None)
    assert table["label_suspicion"].notna().sum() == 30
    assert (table["suggested_label"] != "").all()


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_were_removed_are_in_no_report(digits, kind):
    images, labels = digits
    gallery = Gallery(flat_embedder(), kind=kind)
    gallery.add(images[..., None], labels=labels)
    gallery.remove([3, 50])
    table = gallery.report()
    assert len(table) == 118 and not {3, 50} & set(table["id"])
    assert table["label"].tolist() == [str(n) for n in np.delete(labels, [3, 50])]


def test_a_file_that_is_gone_is_in_no_group(gallery, folder):
    (folder / "0" / "again.jpg").unlink()
    table = gallery.report()
    assert table["duplicate_group"][row_of(table, "020.png")] == -1
    assert table["duplicate_group"][row_of(table, "copy.png")] >= 0


def test_files_are_compared_as_they_are_now(gallery, folder):
    """A copy that was deleted, replaced or damaged since it was added is a copy no more."""
    zeros = folder / "0"
    (zeros / "copy.png").unlink()
    table = gallery.report(min_cluster_size=None)
    assert (table["copy_of"] == -1).all()
    assert table["duplicate_group"][row_of(table, "copy.png")] == -1
    shutil.copy(zeros / "012.png", zeros / "copy.png")
    with pytest.warns(UserWarning, match="1 file has changed since the last add: 'copy.png'"):
        table = gallery.report(min_cluster_size=None)
    copy, first = row_of(table, "copy.png"), row_of(table, "012.png")
    assert table["copy_of"][max(copy, first)] == table["id"][min(copy, first)]
    (zeros / "copy.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="1 file is not compared.*cannot be decoded: 'copy.png'"):
        table = gallery.report(min_cluster_size=None)
    assert (table["copy_of"] == -1).all()
    again, before = row_of(table, "again.jpg"), row_of(table, "020.png")
    assert table["duplicate_group"][again] == table["duplicate_group"][before] >= 0
    page = gallery.write_report(folder.parent / "report.html", min_cluster_size=None)
    assert "no image" not in page.read_text("utf-8")  # the thumbnail of the damaged file is shown


def test_a_suspect_label_differs_from_the_one_suggested(digits, tmp_path):
    images, labels = digits
    rng = np.random.default_rng(0)
    mixed = np.where(rng.random(len(labels)) < 0.7, rng.integers(0, 3, len(labels)), labels)
    gallery = Gallery(flat_embedder())
    gallery.add(images[..., None], labels=mixed)
    table = gallery.report(min_cluster_size=None)
    high = table["label_suspicion"] >= 0.5
    assert (high & (table["suggested_label"] == table["label"])).any()
    page = gallery.write_report(tmp_path / "report.html").read_text("utf-8")
    shown = re.findall(r"<b>(\d+)</b> <span><bdi>[^<]*</bdi><br>like images of (\d+);", page)
    assert len(shown) > 5 and all(own != suggested for own, suggested in shown)


def test_a_label_of_any_bytes_is_suggested(folder):
    (folder / "2").rename(folder / "a\udcff")
    gallery = Gallery(flat_embedder(), "euclidean")
    gallery.add(folder)
    table = gallery.report(min_cluster_size=None)
    assert (table["suggested_label"] == "a\udcff").sum() > 20
    gallery.write_report(folder.parent / "report.html", min_cluster_size=None)
    found = gallery.query(ids=[0], k=2, query_labels=["a\udcff"])
    assert found["query_label"].tolist() == ["a\udcff"] * 2


def test_a_page_of_images_from_two_places_names_no_folder_above_theirs(digits, tmp_path):
    for n, place in enumerate(("secret/one", "private/two")):
        for row, image in enumerate(digits[0][20 * n : 20 * n + 20]):
            file = tmp_path / place / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((32, 32)).save(file)
    gallery = Gallery(flat_embedder())
    gallery.add(tmp_path / "secret" / "one")
    gallery.add(tmp_path / "private" / "two")
    page = gallery.write_report(tmp_path / "report.html").read_text("utf-8")
    assert "two/3.png" in page and "private" not in page and "secret" not in page


def test_the_page_does_not_speak_of_what_was_not_looked_for(digits, tmp_path):
    gallery = Gallery(flat_embedder())
    gallery.add(digits[0][..., None])
    gallery.add(digits[0][:1, ..., None], labels=["0"])
    path = tmp_path / "report.html"
    page = gallery.write_report(path, min_cluster_size=None).read_text("utf-8")
    assert "cluster" not in page.lower()
    assert "duplicates are looked for among files alone" in page
    assert "Fewer than two images have a label" in page
    page = gallery.write_report(path, min_cluster_size=100).read_text("utf-8")
    assert "No cluster was found" in page


def test_the_page_replaces_no_other_file(gallery, folder):
    file = folder / "0" / "010.png"
    before = file.read_bytes()
    with pytest.raises(ArgumentError, match="010.png' is not the name of a page: end it in .html"):
        gallery.write_report(file)
    assert file.read_bytes() == before


def test_a_report_of_few_images_is_refused(digits):
    gallery = Gallery(flat_embedder())
    gallery.add(digits[0][:2, ..., None])
    with pytest.raises(ArgumentError, match="The gallery has 2 items.*add 3 or more"):
        gallery.report()


@pytest.mark.parametrize(
    "settings", [{"k": 0}, {"min_correlation": 2}, {"min_cluster_size": 1}], ids=str
)
def test_numbers_out_of_range_are_refused_by_name(digits, settings):
    gallery = Gallery(flat_embedder())
    gallery.add(digits[0][..., None])
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        gallery.report(**settings)


def test_the_page_shows_the_findings_with_images_and_without_paths(gallery, folder, tmp_path):
    path = gallery.write_report(tmp_path / "report.html", title="Digits & <more>")
    page = path.read_text("utf-8")
    assert "Digits &amp; &lt;more&gt;" in page and str(tmp_path) not in page
    assert "122 images with 3 labels." in page
    assert "2 groups of images" in page and "the same file content" in page
    assert re.search(r"2/005.png</bdi><br>like images of 0; suspicion \d", page)
    assert page.count("data:image/webp;base64,") > 30
    assert "src=" not in page.replace('src="data:image/webp', "")  # needs no other file


def test_names_and_labels_on_the_page_cannot_be_code(digits, tmp_path):
    gallery = Gallery(flat_embedder(), thumbnail_size=None)
    labels = np.where(digits[1] == 0, "<script>alert(1)</script>", "dog & cat")
    gallery.add(digits[0][..., None], labels=labels)
    page = gallery.write_report(tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "no image" in page


def test_a_page_that_cannot_be_written_is_an_error(gallery, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError):
        gallery.write_report(tmp_path / "file" / "report.html")


def test_the_command_writes_the_page(gallery, tmp_path):
    gallery.save(tmp_path / "gallery")
    page = tmp_path / "report.html"
    settings = ["-k", "5", "--min-correlation", "0.9", "--min-cluster-size", "0", "--json"]
    result = CliRunner().invoke(
        cli.app, ["report", f"{tmp_path / 'gallery'}", f"{page}", *settings]
    )
    assert result.exit_code == 0 and json.loads(result.stdout) == {"page": str(page)}
    text = page.read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>") and "image of rank 5" in text
    assert "Clusters" not in text


def test_the_command_does_not_replace_an_image(tmp_path):
    with pytest.raises(ArgumentError, match="would replace any file"):
        CliRunner().invoke(cli.app, ["report", str(tmp_path), "photo.png"], catch_exceptions=False)
