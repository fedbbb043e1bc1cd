import base64
import gzip
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from kerasim import data, explorer
from kerasim.errors import ArgumentError, ArtifactError

# Images of one color each, so that a screenshot tells which one it is.
LEVELS = np.linspace(0, 1, 30)
IMAGES = np.stack([np.full((10, 6, 3), [n, 1 - n, 0.5]) for n in LEVELS]).astype("float32")
PLACES = np.stack([np.arange(30) % 6, np.arange(30) // 6], axis=1).astype("float64")
NEIGHBORS = {
    "euclidean": (np.arange(30)[:, None] + [1, 2, 3]) % 30,
    "manhattan": (np.arange(30)[:, None] + [7, 5]) % 30,
    "cosine": (np.arange(30)[:, None] + [11, 13, 17, 19]) % 30,
}
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
LABELS = np.array(["plain", HOSTILE, "__proto__"])[np.arange(30) % 3]
PLACE_OF = """n => {
    const found = Bokeh.documents[0], plot = found.get_model_by_name("map");
    const data = found.get_model_by_name("points").data_source.data;
    const view = Bokeh.index.find_one_by_id(plot.id), box = view.el.getBoundingClientRect();
    return [
        box.left + view.frame.x_scale.compute(data.x[n]),
        box.top + view.frame.y_scale.compute(data.y[n]),
    ];
}"""
RANGE = """() => {
    const x = Bokeh.documents[0].get_model_by_name("map").x_range;
    return [x.start, x.end];
}"""


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    flags = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "map.html"
    return explorer.write_explorer(path, IMAGES, PLACES, LABELS, NEIGHBORS, title=HOSTILE)


@pytest.fixture(params=[(1280, 800, "light"), (1280, 800, "dark"), (390, 844, "light")], ids=str)
def page(request, chromium, file):
    width, height, scheme = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    assert asked == [file.as_uri()] and said == []
    assert page.evaluate("window.hacked") is None
    context.close()


def color(page, selector):
    """Returns the color in the middle of an element."""
    image = Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("RGB")
    return np.array(image.getpixel((image.width // 2, image.height // 2))) / 255


@pytest.mark.fault("html-in-names")
def test_a_point_under_the_mouse_shows_its_image_and_label(page):
    page.mouse.move(*page.evaluate(PLACE_OF, 13))
    page.wait_for_selector("#card:visible")
    assert LABELS[13] in page.inner_text("#card")
    np.testing.assert_allclose(color(page, "#card .tile"), IMAGES[13, 0, 0], atol=0.03)


@pytest.mark.fault("html-in-names")
def test_a_click_shows_the_nearest_by_each_metric_in_order(page):
    page.mouse.click(*page.evaluate(PLACE_OF, 8))
    page.wait_for_selector("#neighbors section")
    np.testing.assert_allclose(color(page, "#chosen .tile"), IMAGES[8, 0, 0], atol=0.03)
    for metric, rows in NEIGHBORS.items():
        buttons = page.locator(f"section[data-metric={metric}] button")
        shown = buttons.evaluate_all("all => all.map(one => Number(one.dataset.n))")
        assert shown == rows[8].tolist()
    page.locator("section[data-metric=cosine] button").nth(1).click()
    assert page.inner_text("#chosen").splitlines()[0] == LABELS[21]
    np.testing.assert_allclose(color(page, "#chosen .tile"), IMAGES[21, 0, 0], atol=0.03)


def test_the_keyboard_alone_searches_chooses_moves_and_zooms(page):
    page.focus("#search")
    page.keyboard.type("PLAIN")
    assert page.inner_text("#found h2") == "10 found"
    page.keyboard.press("Tab")
    for _ in range(20):  # past the map and its buttons, which come first
        if page.evaluate("document.activeElement.closest('#found') !== null"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert "number 0" in page.inner_text("#chosen")
    page.focus("#map")
    start, end = page.evaluate(RANGE)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(RANGE)[0] > start
    page.keyboard.press("0")
    assert page.evaluate(RANGE) == pytest.approx([start, end])
    page.keyboard.press("+")
    left, right = page.evaluate(RANGE)
    assert start < left < right < end
    page.fill("#search", "proto")
    page.locator("#found button").nth(1).click()
    assert page.evaluate(RANGE) == [left, right]


def test_nothing_lies_beside_the_screen_and_the_map_is_in_it(page):
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner
    box = page.locator("#map").bounding_box()
    assert box["width"] > 300 and box["height"] > 250


def test_each_kind_of_point_is_drawn_in_its_color(chromium, tmp_path):
    kinds = np.arange(30)
    file = explorer.write_explorer(tmp_path / "map.html", IMAGES, PLACES, kinds)
    page = chromium.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    drawn = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for n in kinds:
        code = explorer.COLORS[n % len(explorer.COLORS)]
        expected = [int(code[k : k + 2], 16) for k in (1, 3, 5)]
        x, y = map(round, page.evaluate(PLACE_OF, int(n)))
        np.testing.assert_allclose(drawn.getpixel((x, y)), expected, atol=40, err_msg=str(n))
    page.close()


def test_a_folder_is_searched_by_file_name(chromium, tmp_path):
    for n in range(3):
        Image.fromarray(np.full((6, 9, 3), 80 * n, "uint8")).save(tmp_path / f"photo-{n}.png")
    folder = data.image_folder(tmp_path, (6, 9))
    file = explorer.write_explorer(tmp_path / "map.html", folder, np.eye(3)[:, :2])
    page = chromium.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    page.fill("#search", "photo-2")
    assert page.inner_text("#found h2") == "1 found"
    page.locator("#found button").click()
    assert "photo-2.png" in page.inner_text("#chosen")
    np.testing.assert_allclose(color(page, "#chosen .tile"), 160 / 255, atol=0.03)
    page.close()


def luminance(code):
    """Relative luminance (WCAG 2.1)."""
    levels = np.array([int(code[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("code", explorer.COLORS)
def test_a_color_is_seen_on_white_and_on_dark(code):
    page = (explorer.resources.files("kerasim") / "explorer.html").read_text("utf-8")
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
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(change, message, tmp_path):
    given = {"images": IMAGES, "coordinates": PLACES, **change}
    with pytest.raises(ArgumentError, match=message):
        explorer.write_explorer(tmp_path / "map.html", **given)
    assert list(tmp_path.iterdir()) == []


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
    assert known["files"] == [str(file) for file in folder.files]
    assert set(known["names"]) == {kind.name, HOSTILE}
    policy = next(given for _, given in hostile.found if "http-equiv" in given)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'")
    assert tags.index("meta") < tags.index("script") and "http" not in policy["content"]


def test_a_title_and_labels_of_bytes_that_are_no_text_are_written(tmp_path):
    images, places = np.zeros((3, 4, 4, 1), "float32"), np.eye(3, 2)
    labels = ["\udc80", "\ud800", "a"]
    path = explorer.write_explorer(tmp_path / "page.html", images, places, labels, title="\udc80")
    assert "\\udc80" in path.read_text("utf-8")
