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


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
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
    assert re.search(r"2/005.png<br>probably 0 \(\d+ %\)", page)
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
    result = CliRunner().invoke(cli.app, ["report", f"{tmp_path / 'gallery'}", f"{page}", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout) == {"page": str(page)}
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_the_command_does_not_replace_an_image(tmp_path):
    with pytest.raises(ArgumentError, match="would replace any file"):
        CliRunner().invoke(cli.app, ["report", str(tmp_path), "photo.png"], catch_exceptions=False)
