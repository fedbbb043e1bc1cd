"""What a user can do on the explorer page, in Chromium: with mouse, touch and keyboard."""

import shutil

import numpy as np
import pytest
from PIL import Image

from kerasim import data, explorer
from tests.helpers.explorer_page import (
    DISTANCES,
    HOSTILE,
    IMAGES,
    LABELS,
    NEIGHBORS,
    PLACES,
    color,
    place_of,
    screenshot,
    selected,
    x_range,
)


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
def opened(chromium):
    """Returns a function that opens a page, of which nothing may fail or leave the computer."""
    contexts, said, asked = [], [], []

    def open_page(file, width=1400, height=900, scheme="light", touch=False, hash=""):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            offline=True,
            has_touch=touch,
        )
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri() + hash)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith("file:") for url in asked)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "map.html"
    return explorer.write_explorer(
        path,
        IMAGES,
        PLACES,
        LABELS,
        NEIGHBORS,
        title=HOSTILE,
        metric="cosine",
        distances=DISTANCES,
        groups={"cluster": np.arange(30) // 15, "score": np.linspace(0, 1, 30), HOSTILE: LABELS},
    )


SCREENS = [(1400, 900, "light"), (1400, 900, "dark"), (820, 1100, "light"), (390, 844, "dark")]


@pytest.fixture(params=SCREENS, ids=str)
def page(request, opened, file):
    page = opened(file, *request.param)
    yield page
    assert page.evaluate("window.hacked") is None
    page.close()


@pytest.fixture
def desktop(opened, file):
    page = opened(file)
    yield page
    page.close()


@pytest.fixture
def numbered(opened, tmp_path_factory):
    """A page of 600 images of 45 classes, named 0 to 44."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("numbered") / "map.html"
    images = rng.integers(0, 255, (600, 4, 4, 1), dtype="uint8")
    places = rng.normal(size=(600, 2))
    labels = [str(n % 45) for n in range(600)]
    page = opened(explorer.write_explorer(path, images, places, labels))
    yield page
    page.close()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A page beside its folder of 90 landscape images, of which some have long names."""
    root = tmp_path_factory.mktemp("beside")
    kinds = ("cat", "Flugzeuge größer", "Donaudampfschifffahrtsgesellschaft")
    for n in range(90):
        path = root / "photos" / kinds[n % 3] / f"img_{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100), (2 * n, 40, 90)).save(path)
    folder = data.image_folder(root / "photos", (6, 6))
    labels = [folder.class_names[n] for n in folder.labels]
    places = np.random.default_rng(0).normal(size=(90, 2))
    nearest = {"cosine": (np.arange(90)[:, None] + [1, 2, 40]) % 90}
    return explorer.write_explorer(root / "map.html", folder, places, labels, nearest)


# The map


@pytest.mark.fault("html-in-names")
def test_a_point_under_the_mouse_shows_its_image_and_label(page):
    page.mouse.move(*place_of(page, 13))
    page.wait_for_selector("#card:visible")
    assert LABELS[13] in page.inner_text("#card")
    np.testing.assert_allclose(color(page, "#card .tile"), IMAGES[13, 0, 0], atol=0.03)


@pytest.mark.parametrize("away", [0, 8, 14])
def test_a_click_selects_the_nearest_point_within_twenty_pixels(away, numbered):
    numbered.locator("#images").click()
    x, y = place_of(numbered, 7)
    distances = [np.hypot(*np.subtract(place_of(numbered, n), (x + away, y))) for n in range(600)]
    numbered.mouse.click(x + away, y)
    assert selected(numbered) == f"#image-{np.argmin(distances)}"


def test_a_tap_on_a_phone_selects_and_one_far_from_all_points_does_not(opened, file):
    page = opened(file, 390, 844, touch=True)
    assert page.inner_text("#chosen").startswith("Tap or click a point")
    page.locator("#images").tap()
    x, y = place_of(page, 8)
    page.touchscreen.tap(x + 12, y + 12)
    assert selected(page) == "#image-8"
    page.locator("[aria-label='Clear the selection']").tap()
    page.touchscreen.tap((x + place_of(page, 9)[0]) / 2, (y + place_of(page, 14)[1]) / 2)
    assert selected(page) == ""
    page.close()


def test_the_same_point_can_be_selected_again_after_one_of_its_neighbors(desktop):
    desktop.mouse.click(*place_of(desktop, 8))
    desktop.locator("#nearest button").first.click()
    assert selected(desktop) == "#image-19"
    desktop.mouse.click(*place_of(desktop, 8))
    assert selected(desktop) == "#image-8"


def test_each_kind_of_point_is_drawn_in_its_color(opened, tmp_path):
    kinds = np.arange(30)
    page = opened(explorer.write_explorer(tmp_path / "map.html", IMAGES, PLACES, kinds))
    page.locator("#images").click()
    page.mouse.move(1390, 10)
    drawn = screenshot(page)
    for n in kinds:
        code = explorer.COLORS[n % len(explorer.COLORS)]
        expected = [int(code[k : k + 2], 16) for k in (1, 3, 5)]
        x, y = map(round, place_of(page, int(n)))
        np.testing.assert_allclose(drawn.getpixel((x, y)), expected, atol=40, err_msg=str(n))
    page.close()


def test_images_are_drawn_on_the_map_where_there_is_room(desktop):
    desktop.mouse.move(1390, 10)
    drawn = screenshot(desktop)
    for n in (0, 14, 29):
        x, y = map(round, place_of(desktop, n))
        for aside in ((0, 0), (8, 12)):
            pixel = np.array(drawn.getpixel((x + aside[0], y + aside[1]))) / 255
            np.testing.assert_allclose(pixel, IMAGES[n, 0, 0], atol=0.04)


def test_images_are_drawn_on_a_crowded_map_only_when_zoomed_in(numbered):
    def differs_without_images():
        numbered.mouse.move(1390, 10)
        before = np.asarray(screenshot(numbered, "#overlay"))
        numbered.locator("#images").click()
        after = np.asarray(screenshot(numbered, "#overlay"))
        numbered.locator("#images").click()
        return (before[:700] != after[:700]).any()  # without the buttons below

    assert not differs_without_images()
    for _ in range(3):
        numbered.locator("[data-key='+']").click()
    assert differs_without_images()


# The selected image and its neighbors


@pytest.mark.fault("html-in-names")
def test_a_click_shows_the_nearest_by_each_metric_in_order_with_rank_and_distance(page):
    page.mouse.click(*place_of(page, 8))
    np.testing.assert_allclose(color(page, "#chosen .tile"), IMAGES[8, 0, 0], atol=0.03)
    assert page.locator("[role=tab]").all_inner_texts() == ["cosine ★", "euclidean", "manhattan"]
    for metric, rows in NEIGHBORS.items():
        page.locator(f"#tab-{metric}").click()
        buttons = page.locator(f"section[data-metric={metric}] button")
        shown = buttons.evaluate_all("all => all.map(one => Number(one.dataset.n))")
        assert shown == rows[8].tolist()
        notes = page.locator("#nearest .number").all_inner_texts()
        expected = [f"{n + 1} · {float(f'{d:.3g}'):g}" for n, d in enumerate(DISTANCES[metric][8])]
        assert notes == expected
    page.locator("#tab-cosine").click()
    page.locator("#nearest button").nth(1).click()
    assert page.inner_text("#chosen strong") == LABELS[21]
    np.testing.assert_allclose(color(page, "#chosen .tile"), IMAGES[21, 0, 0], atol=0.03)


def test_neighbors_of_the_same_label_are_framed_solid_and_others_dashed(desktop):
    desktop.mouse.click(*place_of(desktop, 8))
    desktop.locator("#tab-euclidean").click()
    styles = desktop.locator("#nearest button").evaluate_all(
        """all => all.map(one => getComputedStyle(one)).map(
            style => [style.borderTopStyle, style.borderTopColor]
        )"""
    )
    assert [style for style, _ in styles] == ["dashed", "dashed", "solid"]
    assert styles[0][1] == "rgb(207, 34, 46)" and styles[2][1] == "rgb(26, 127, 55)"
    names = desktop.locator("#nearest button").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert names[0].endswith("another label") and names[2].endswith("the same label")


def test_a_tile_under_the_mouse_highlights_its_point_and_a_point_its_tile(desktop):
    desktop.mouse.click(*place_of(desktop, 8))
    desktop.mouse.move(1390, 10)
    x, y = map(round, place_of(desktop, 19))
    box = (x - 60, y - 60, x + 60, y + 60)
    before = screenshot(desktop).crop(box)
    desktop.locator("#nearest button").first.hover()
    assert np.any(np.asarray(screenshot(desktop).crop(box)) != np.asarray(before))
    desktop.mouse.move(*place_of(desktop, 21))
    desktop.wait_for_selector("#nearest button.near[data-n='21']")


def test_the_selection_survives_a_search_and_its_end(desktop):
    desktop.mouse.click(*place_of(desktop, 8))
    desktop.mouse.move(1390, 10)
    before = screenshot(desktop, "#map")
    desktop.fill("#search", "proto")
    assert selected(desktop) == "#image-8" and desktop.locator("#nearest button").count() == 4
    desktop.fill("#search", "")
    np.testing.assert_array_equal(np.asarray(screenshot(desktop, "#map")), np.asarray(before))


def test_the_address_names_the_selected_image_and_opens_it_again(opened, file):
    page = opened(file, hash="#image-21")
    assert page.locator("#chosen strong").inner_text() == LABELS[21]
    page.evaluate("location.hash = '#image-3'")
    page.wait_for_selector("#nearest button[data-n='14']")
    page.evaluate("location.hash = '#image-9999'")
    page.evaluate("location.hash = ''")
    page.wait_for_function("() => document.querySelector('#nearest') === null")
    page.close()


def test_a_click_on_the_selected_image_enlarges_it_and_links_to_its_file(opened, photographs):
    page = opened(photographs, hash="#image-4")
    page.locator(".enlarge").click()
    page.wait_for_selector("#large img")
    width, height = page.locator("#large img").evaluate(
        "one => [one.naturalWidth, one.naturalHeight]"
    )
    assert (width, height) == (200, 100)
    link = page.locator("#large a").get_attribute("href")
    with page.context.expect_page() as caught:
        page.locator("#large a").click()
    assert caught.value.url == (photographs.parent / link).resolve().as_uri()
    page.locator("#large button").click()
    assert not page.locator("#large").is_visible()
    page.close()


def test_tiles_have_the_aspect_ratio_of_the_files(opened, photographs):
    page = opened(photographs, hash="#image-4")
    for tile in page.locator(".tile").all():
        box = tile.bounding_box()
        assert box["width"] == pytest.approx(2 * box["height"], abs=1)
    page.close()


@pytest.mark.parametrize("screen", [(1400, 900), (390, 844)], ids=str)
def test_a_word_is_broken_only_if_it_is_wider_than_its_tile(screen, opened, photographs):
    page = opened(photographs, *screen, hash="#image-31")
    heights = """all => all.map(one => {
        const range = document.createRange(), text = one.firstChild, found = [];
        for (const {index, 0: word} of text.data.matchAll(/\\S+/g)) {
            range.setStart(text, index);
            range.setEnd(text, index + word.length);
            found.push([word, range.getClientRects().length]);
        }
        return found;
    }).flat()"""
    lines = dict(page.locator(".row .name").evaluate_all(heights))
    assert lines["Flugzeuge"] == lines["größer"] == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


# Search and filter


def test_a_label_of_the_legend_shows_only_its_images_with_their_number(numbered):
    buttons = numbered.locator("#legend li button")
    texts = buttons.all_inner_texts()
    assert [text.split()[1] for text in texts] == [str(n) for n in range(45)]
    assert [int(text.split()[2]) for text in texts] == np.bincount(np.arange(600) % 45).tolist()
    buttons.nth(1).click()
    assert numbered.inner_text("#count") == "14 of 600 images shown"
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    numbered.focus("#map")
    numbered.keyboard.press("n")
    assert selected(numbered) == "#image-1"
    numbered.keyboard.press("n")
    assert selected(numbered) == "#image-46"
    buttons.nth(44).click()
    assert numbered.inner_text("#count") == "27 of 600 images shown"
    numbered.locator("#all").click()
    assert numbered.inner_text("#count") == "600 images"


def test_points_that_the_filter_hides_cannot_be_selected(numbered):
    numbered.locator("#legend li button").nth(3).click()
    numbered.mouse.click(*place_of(numbered, 4))
    assert selected(numbered) in ("", *(f"#image-{n}" for n in range(3, 600, 45)))


def test_a_search_finds_images_with_all_words_in_any_order(opened, photographs):
    page = opened(photographs)
    for text in ("cat 013", "IMG_012 cat", "cat", "größer 1", "1 größer"):
        page.fill("#search", text)
        found = int(page.inner_text("#found h2").split()[0])
        names = [f"{n:03d}" for n in range(90)]
        kinds = ("cat", "flugzeuge größer", "donaudampfschifffahrtsgesellschaft")
        texts = [f"{kinds[n % 3]} {kinds[n % 3]}/img_{name}.png" for n, name in enumerate(names)]
        assert found == sum(all(word in each for word in text.lower().split()) for each in texts)
    page.close()


def test_all_hits_of_a_search_can_be_shown(numbered):
    numbered.fill("#search", "1")
    total = sum("1" in str(n % 45) for n in range(600))
    assert numbered.inner_text("#found h2") == f"{total} found"
    for _ in range(total // 60):
        numbered.locator("#found .more").click()
    assert numbered.locator("#found .row > [data-n]").count() == total
    assert numbered.locator("#found .more").count() == 0
    assert numbered.evaluate("document.activeElement.dataset.n !== undefined")


def test_without_labels_and_files_there_is_no_search_box_and_no_legend(opened, tmp_path):
    page = opened(explorer.write_explorer(tmp_path / "map.html", IMAGES, PLACES))
    assert not page.locator("#search").is_visible() and not page.locator("#legend").is_visible()
    assert page.inner_text("#chosen") == "Click a point."
    page.mouse.click(*place_of(page, 3))
    assert "image 3" in page.inner_text("#chosen")
    page.close()


def test_the_search_box_says_what_can_be_searched(opened, tmp_path, photographs, desktop):
    assert desktop.get_attribute("#search", "placeholder") == "Search labels"
    page = opened(photographs)
    assert page.get_attribute("#search", "placeholder") == "Search labels and files"
    page.close()


@pytest.mark.fault("html-in-names")
def test_points_can_be_colored_by_other_groups(desktop):
    options = desktop.locator("#coloring option").all_inner_texts()
    assert options == ["label", "cluster", "score", HOSTILE]
    desktop.locator("#coloring select").select_option("1")
    assert desktop.locator("#legend li button").count() == 2
    desktop.locator("#legend li button").nth(1).click()
    assert desktop.inner_text("#count") == "15 of 30 images shown"
    desktop.locator("#coloring select").select_option("2")
    assert desktop.inner_text("#count") == "30 images"
    names = desktop.locator("#legend li button span:nth-child(2)").all_inner_texts()
    assert names[0] == "0 to 0.2" and names[-1] == "0.8 to 1"


# Keyboard, screen readers and screens


def test_the_keyboard_alone_searches_chooses_moves_and_zooms(page):
    page.focus("#search")
    page.keyboard.type("PLAIN")
    assert page.inner_text("#found h2") == "10 found"
    for _ in range(60):  # past the map, its buttons and the legend, which come first
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#found') !== null"):
            break
    page.keyboard.press("Enter")
    assert selected(page) == "#image-0"
    page.focus("#map")
    page.keyboard.press("Escape")
    start, end = x_range(page)
    page.keyboard.press("ArrowRight")
    assert x_range(page)[0] > start
    page.keyboard.press("0")
    assert x_range(page) == pytest.approx([start, end])
    page.keyboard.press("+")
    left, right = x_range(page)
    assert start < left < right < end


def test_every_point_is_reached_and_left_by_keys(desktop):
    desktop.focus("#map")
    seen = set()
    for _ in range(30):
        desktop.keyboard.press("n")
        seen.add(selected(desktop))
    assert seen == {f"#image-{n}" for n in range(30)}
    for key, expected in (("p", 28), ("Shift+ArrowLeft", 27), ("Shift+ArrowDown", 21)):
        desktop.keyboard.press(key)
        assert selected(desktop) == f"#image-{expected}"
    desktop.keyboard.press("Escape")
    assert selected(desktop) == "" and desktop.inner_text("#status") == "Nothing is selected"
    desktop.keyboard.press("Enter")
    assert selected(desktop) in ("#image-14", "#image-15")


def test_escape_clears_selection_filter_and_search_in_turn(desktop):
    desktop.fill("#search", "plain")
    desktop.locator("#legend li button").first.click()
    desktop.mouse.click(*place_of(desktop, 1))
    desktop.focus("#map")
    desktop.keyboard.press("Escape")
    assert selected(desktop) == "" and "shown" in desktop.inner_text("#count")
    desktop.keyboard.press("Escape")
    assert desktop.inner_text("#count") == "30 images"
    desktop.keyboard.press("Escape")
    assert desktop.input_value("#search") == "" and not desktop.locator("#found").is_visible()


def test_each_element_in_the_order_of_focus_has_a_name_and_a_visible_focus(page):
    page.mouse.click(*place_of(page, 8))
    page.focus("#search")
    page.keyboard.press("Tab")
    told = """() => {
        let one = document.activeElement;
        while (one.shadowRoot && one.shadowRoot.activeElement) one = one.shadowRoot.activeElement;
        const text = one.innerText || one.closest("label")?.innerText || "";
        const name = one.getAttribute("aria-label") || text, {outlineStyle} = getComputedStyle(one);
        return [one.outerHTML.slice(0, 80), name, outlineStyle, one === document.body];
    }"""
    for _ in range(60):
        element, name, outline, ended = page.evaluate(told)
        if ended:
            break
        assert name.strip() and outline != "none", element
        page.keyboard.press("Tab")
    else:
        pytest.fail("the order of focus does not end")


def test_nothing_lies_beside_the_screen_and_the_map_is_in_it(page):
    page.mouse.click(*place_of(page, 8))
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner
    box = page.locator("#map").bounding_box()
    assert box["width"] > 300 and box["height"] > 250


def test_on_a_phone_the_selected_image_is_seen_after_a_tap(opened, file):
    page = opened(file, 390, 844, touch=True)
    page.touchscreen.tap(*place_of(page, 8))
    box = page.locator("#chosen .tile").bounding_box()
    assert 400 < box["y"] and box["y"] + box["height"] < 844
    page.close()


def test_a_printed_page_is_light_and_has_no_buttons(opened, file):
    page = opened(file, scheme="dark", hash="#image-8")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in ("#tools", "#search", "#help"):
        assert not page.locator(hidden).is_visible()
    assert page.locator("#nearest button").first.is_visible()
    page.close()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_map_of_few_images_can_be_used(count, opened, tmp_path):
    places = PLACES[:count] * [1, 0]
    page = opened(explorer.write_explorer(tmp_path / "map.html", IMAGES[:count], places))
    page.mouse.click(*place_of(page, count - 1))
    assert selected(page) == f"#image-{count - 1}"
    page.close()
