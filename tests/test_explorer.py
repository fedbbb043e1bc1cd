"""What the explorer page holds; tests/test_explorer_page.py tries it in a browser."""

import base64
import gzip
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from kerasim import data, explorer
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from tests.helpers.explorer_page import DISTANCES, HOSTILE, IMAGES, LABELS, NEIGHBORS, PLACES


def luminance(code):
    """Relative luminance (WCAG 2.1)."""
    levels = np.array([int(code[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("code", explorer.COLORS)
def test_a_color_is_seen_on_white_and_on_dark(code):
    page = (explorer.resources.files("kerasim") / "explorer.css").read_text("utf-8")
    for back in ("#ffffff", "#17191c"):
        assert f"--back: {back}" in page
        low, high = sorted([luminance(code), luminance(back)])
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coordinates": PLACES[:, :1]}, "coordinates"),
        ({"coordinates": PLACES[:5]}, "coordinates"),
        ({"labels": LABELS[:4]}, "labels has shape"),
        ({"neighbors": {"l2": NEIGHBORS["cosine"]}}, "metric of neighbors='l2' is not known"),
        ({"neighbors": {"cosine": NEIGHBORS["cosine"][:4]}}, "neighbors\\['cosine'\\]"),
        (
            {"neighbors": {"cosine": NEIGHBORS["cosine"] + 1}},
            "a position outside 0 to 29|expected integers",
        ),
        (
            {"neighbors": {"cosine": NEIGHBORS["cosine"] / 2}},
            "a position outside 0 to 29|expected integers",
        ),
        ({"images": IMAGES[..., :2]}, "channels=2 is not known"),
        ({"metric": "l2"}, "metric='l2' is not known"),
        ({"metric": "cosine"}, r"metric='cosine' is none of the metrics of neighbors, \[\]: pass"),
        ({"distances": DISTANCES}, r"distances\['euclidean'\] is given without neighbors"),
        (
            {"neighbors": NEIGHBORS, "distances": {"cosine": DISTANCES["euclidean"]}},
            r"distances\['cosine'\] has shape .30, 3., expected .30, 4.",
        ),
        (
            {"neighbors": NEIGHBORS, "distances": {"cosine": -DISTANCES["cosine"]}},
            r"distances\['cosine'\] holds negative distances in 30 of 30 rows",
        ),
        (
            {"neighbors": NEIGHBORS, "distances": {"cosine": DISTANCES["cosine"] * np.nan}},
            r"distances\['cosine'\] holds NaN or infinity",
        ),
        ({"groups": {"cluster": [1, 2]}}, r"groups\['cluster'\] has shape .2,., expected .30,."),
        ({"groups": {"score": [0.5, 2]}}, r"groups\['score'\] has shape .2,., expected .30,."),
        ({"files": ["a.png"]}, "files has shape .1,., expected .30,."),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(change, message, tmp_path):
    given = {"images": IMAGES, "coordinates": PLACES, **change}
    with pytest.raises(ArgumentError, match=message):
        explorer.write_explorer(tmp_path / "map.html", **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": LABELS}, "groups must be a dict of names"),
        ({"groups": {3: LABELS}}, "name of groups is 3, of type int: pass a name"),
        ({"groups": {"a": [object()] * 30}}, r"groups\['a'\] must be integers or strings"),
        ({"distances": 3}, "distances must be a dict of metrics"),
        ({"files": 3}, "files must be a list or tuple"),
        ({"files": [3] * 30}, "files is 3, of type int: pass paths or names"),
    ],
)
def test_what_is_of_another_type_is_refused_by_name(change, message, tmp_path):
    given = {"images": IMAGES, "coordinates": PLACES, **change}
    with pytest.raises(ArgumentTypeError, match=message):
        explorer.write_explorer(tmp_path / "map.html", **given)
    assert list(tmp_path.iterdir()) == []


# What the page holds


def held(path):
    """Returns the data of a page, and its sheets as arrays."""
    text = path.read_text("utf-8")
    known = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    sheets = re.findall(r'class="sheet">data:image/webp;base64,(.*?)</script>', text, re.S)
    images = [Image.open(io.BytesIO(base64.b64decode(sheet))) for sheet in sheets]
    return known, [np.asarray(image.convert("RGB")) for image in images]


def unpacked(packed):
    kind, text = packed
    return np.frombuffer(base64.b64decode(text), f"<{kind}")


def test_labels_are_held_in_natural_order_with_the_one_that_is_missing_last(tmp_path):
    labels = ["10", "1", "img 2b", None, "2", "img 10", "IMG 1", "02", "9" * 5000, "1"]
    path = explorer.write_explorer(tmp_path / "map.html", IMAGES[:10], PLACES[:10], labels)
    (coloring,) = held(path)[0]["colorings"]
    names = coloring["names"]
    assert names[:3] == ["1", "02", "2"] and names[-1] == "no label" and coloring["missing"] == 8
    assert names[3:-1] == ["10", "9" * 5000, "IMG 1", "img 2b", "img 10"]
    assert [names[n] for n in unpacked(coloring["classes"])] == [
        "no label" if label is None else label for label in labels
    ]


def test_a_label_named_no_label_is_none_that_is_missing(tmp_path):
    labels = ["a", "no label"] * 15
    path = explorer.write_explorer(tmp_path / "map.html", IMAGES, PLACES, labels)
    assert held(path)[0]["colorings"][0]["missing"] == -1


def test_groups_of_floats_are_divided_into_ranges_of_about_as_many_images(tmp_path):
    scores = np.linspace(0, 1, 30) ** 2
    scores[7] = np.nan
    path = explorer.write_explorer(
        tmp_path / "map.html", IMAGES, PLACES, groups={"score": scores, "whole": scores * 0 + 2.0}
    )
    score, whole = held(path)[0]["colorings"]
    assert np.bincount(unpacked(score["classes"])).tolist() == [6, 6, 5, 6, 6, 1]
    assert score["names"][-1] == "no score" and score["names"][0].startswith("0 to ")
    assert whole["names"] == ["2", "no whole"]


@pytest.mark.parametrize("scale", [1e-200, 1e-5, 1, 1e200])
def test_distances_are_held_to_three_digits(scale, tmp_path):
    distances = {metric: rows * scale for metric, rows in DISTANCES.items()}
    path = explorer.write_explorer(
        tmp_path / "map.html", IMAGES, PLACES, None, NEIGHBORS, metric="cosine", distances=distances
    )
    known = held(path)[0]
    assert [each["metric"] for each in known["nearest"]] == ["cosine", "euclidean", "manhattan"]
    for each in known["nearest"]:
        coded = each["distances"]
        codes = unpacked(coded["codes"]).astype(float)
        values = np.where(codes == 0, 0, np.exp(coded["low"] + (codes - 1) * coded["step"]))
        np.testing.assert_allclose(values, distances[each["metric"]].ravel(), rtol=2e-4)
        np.testing.assert_array_equal(unpacked(each["rows"]), NEIGHBORS[each["metric"]].ravel())


def test_equal_distances_and_those_of_no_neighbors_are_held(tmp_path):
    for k in (0, 2):
        rows, zeros = np.zeros((30, k), int), np.zeros((30, k))
        path = explorer.write_explorer(
            tmp_path / "map.html",
            IMAGES,
            PLACES,
            None,
            {"cosine": rows},
            distances={"cosine": zeros},
        )
        assert unpacked(held(path)[0]["nearest"][0]["distances"]["codes"]).tolist() == [0] * 30 * k


@pytest.fixture
def folder(tmp_path):
    for n, (kind, size) in enumerate([("cat", (300, 100)), ("dog", (50, 100)), ("dog", (8, 8))]):
        file = tmp_path / "secret name" / "photos" / kind / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (80 * n, 20, 200)).save(file)
    return data.image_folder(tmp_path / "secret name" / "photos", (6, 6))


def test_thumbnails_of_files_keep_their_aspect_ratio(folder, tmp_path):
    known, (sheet,) = held(explorer.write_explorer(tmp_path / "a.html", folder, np.eye(3, 2)))
    sizes = unpacked(known["sizes"]).reshape(-1, 2)
    assert known["side"] == 128 and sizes.tolist() == [[128, 43], [50, 100], [8, 8]]
    for n, (width, height) in enumerate(sizes.tolist()):
        left = n * known["side"]
        part = sheet[:height, left : left + width].astype(int)
        assert np.abs(part - [80 * n, 20, 200]).mean() < 6


def test_the_page_holds_no_path_of_the_disk(folder, tmp_path):
    page = explorer.write_explorer(tmp_path / "other" / "a.html", folder, np.eye(3, 2))
    known = held(page)[0]
    assert known["files"] == ["cat/0.png", "dog/1.png", "dog/2.png"] and known["folder"] is None
    text = page.read_text("utf-8")
    assert "secret name" not in text and str(tmp_path) not in text


def test_files_below_the_folder_of_the_page_are_linked(folder, tmp_path):
    page = explorer.write_explorer(tmp_path / "secret name" / "a.html", folder, np.eye(3, 2))
    assert held(page)[0]["folder"] == "photos"


def test_names_of_files_can_be_given_for_arrays(tmp_path):
    files = [tmp_path / "a" / "1.png", "", str(tmp_path / "b.png")]
    page = explorer.write_explorer(tmp_path / "a.html", IMAGES[:3], PLACES[:3], files=files)
    known = held(page)[0]
    assert known["files"] == ["a/1.png", "", "b.png"] and known["folder"] is None


def test_a_file_that_is_gone_is_named(folder, tmp_path):
    folder.files[1].unlink()
    with pytest.raises(ImageError, match="1.png"):
        explorer.write_explorer(tmp_path / "a.html", folder, np.eye(3, 2))
    assert not (tmp_path / "a.html").exists()


def places_in(page):
    """Returns the places of the points, as the page holds them."""
    data = r'"type":"ndarray","array":\{"type":"bytes","data":"([^"]+)"\}'
    pattern = data + r',"shape":\[30\],"dtype":"float64"'
    columns = [gzip.decompress(base64.b64decode(data)) for data in re.findall(pattern, page)]
    return np.stack([np.frombuffer(column, "<f8") for column in columns[:2]], axis=1)


@pytest.mark.parametrize(
    ("factor", "offset"),
    [(1, 0), (1, 1.7e9), (1e-9, 1.0), (1e-30, 0), (1e30, 0), (1e-300, 0), (3e36, 1e37)],
)
def test_the_page_holds_the_distances_of_places_of_any_size_and_offset(factor, offset, tmp_path):
    places = PLACES * factor + offset
    file = explorer.write_explorer(tmp_path / "map.html", IMAGES, places)
    held = places_in(file.read_text("utf-8"))
    np.testing.assert_allclose(held - held[0], places - places[0], rtol=1e-12)
    assert len(np.unique(held, axis=0)) == 30


def test_one_place_far_away_leaves_the_others_apart(tmp_path):
    places = PLACES.copy()
    places[7] = 1e30
    file = explorer.write_explorer(tmp_path / "map.html", IMAGES, places)
    assert len(np.unique(places_in(file.read_text("utf-8")), axis=0)) == 30


@pytest.mark.parametrize("largest", [1e39, -1e300])
def test_places_too_large_to_draw_are_refused_with_their_rows(largest, tmp_path):
    places = PLACES.copy()
    places[[4, 9], 1] = largest
    with pytest.raises(ArgumentError, match=r"coordinates holds numbers above 1e\+38.*: 4, 9"):
        explorer.write_explorer(tmp_path / "map.html", IMAGES, places)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="map.html"):
        explorer.write_explorer(tmp_path / "file" / "map.html", IMAGES, PLACES)


class Elements(html.parser.HTMLParser):
    """Lists the elements of a page as (tag, attributes), and the text of each."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


@pytest.mark.fault("html-in-names")
def test_hostile_names_of_classes_and_files_make_no_elements_and_the_page_has_its_policy(tmp_path):
    kind = tmp_path / "<b onclick=hack()>"
    kind.mkdir()
    for name in ("<img src=x onerror=hack()>", "--><script>hack()<!--"):
        Image.new("RGB", (6, 9)).save(kind / f"{name}.png")
    folder = data.image_folder(tmp_path, (6, 9))
    plain, hostile = (
        Elements(
            explorer.write_explorer(
                tmp_path / "map.html", images, np.eye(2), labels, title=title
            ).read_text()
        )
        for images, labels, title in (
            (IMAGES[:2], ["plain", "plain"], "Plain"),
            (folder, [*folder.class_names, HOSTILE], HOSTILE),
        )
    )
    tags = [tag for tag, _ in hostile.found]
    assert tags == [tag for tag, _ in plain.found] and "img" not in tags
    assert not any(name.startswith("on") for _, given in hostile.found for name in given)
    title = hostile.texts[tags.index("title")]
    assert title.strip() == HOSTILE
    (known,) = (
        json.loads(text)
        for (_, given), text in zip(hostile.found, hostile.texts, strict=True)
        if given.get("id") == "data"
    )
    assert known["files"] == [str(file.relative_to(kind)) for file in folder.files]
    assert set(known["colorings"][0]["names"]) == {kind.name, HOSTILE}
    policy = next(given for _, given in hostile.found if "http-equiv" in given)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'")
    assert tags.index("meta") < tags.index("script") and "http" not in policy["content"]


def test_a_title_and_labels_of_bytes_that_are_no_text_are_written(tmp_path):
    images, places = np.zeros((3, 4, 4, 1), "float32"), np.eye(3, 2)
    labels = ["\udc80", "\ud800", "a"]
    path = explorer.write_explorer(tmp_path / "page.html", images, places, labels, title="\udc80")
    assert "\\udc80" in path.read_text("utf-8")
