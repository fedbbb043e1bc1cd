"""Images, coordinates and names for the tests of the explorer page, and what they ask a browser."""

import io
import time

import numpy as np
from PIL import Image

# Images of one color each, so that a screenshot tells which one it is.
LEVELS = np.linspace(0, 1, 30)
IMAGES = np.stack([np.full((10, 6, 3), [n, 1 - n, 0.5]) for n in LEVELS]).astype("float32")
PLACES = np.stack([np.arange(30) % 6, np.arange(30) // 6], axis=1).astype("float64")
NEIGHBORS = {
    "euclidean": (np.arange(30)[:, None] + [1, 2, 3]) % 30,
    "manhattan": (np.arange(30)[:, None] + [7, 5]) % 30,
    "cosine": (np.arange(30)[:, None] + [11, 13, 17, 19]) % 30,
}
DISTANCES = {
    metric: np.linspace(0, 2, rows.size).reshape(rows.shape) for metric, rows in NEIGHBORS.items()
}
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
LABELS = np.array(["plain", HOSTILE, "__proto__"])[np.arange(30) % 3]

_PLACE = """n => {
    const found = Bokeh.documents[0], plot = found.get_model_by_name("map");
    const data = found.get_model_by_name("points").data_source.data;
    const view = Bokeh.index.find_one_by_id(plot.id), box = view.el.getBoundingClientRect();
    return [
        box.left + view.frame.x_scale.compute(data.x[n]),
        box.top + view.frame.y_scale.compute(data.y[n]),
    ];
}"""


def place_of(page, n: int) -> tuple[float, float]:
    """Returns where a point is on the screen."""
    x, y = page.evaluate(_PLACE, n)
    return x, y


def x_range(page) -> list[float]:
    """Returns the part of the x axis that the map shows."""
    return page.evaluate(
        "(({start, end}) => [start, end])(Bokeh.documents[0].get_model_by_name('map').x_range)"
    )


def selected(page) -> str:
    """Returns the end of the address, which names the selected image."""
    return page.evaluate("location.hash")


def after_drawing(page) -> None:
    """Waits until the map is drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    time.sleep(0.1)


def screenshot(page, selector: str = "body") -> Image.Image:
    """Returns a screenshot of an element, once all tiles are drawn."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('.tile')].every(one => one.dataset.drawn)"
    )
    after_drawing(page)
    file = io.BytesIO(page.locator(selector).first.screenshot())
    return Image.open(file).convert("RGB")


def color(page, selector: str) -> np.ndarray:
    """Returns the color in the middle of an element."""
    image = screenshot(page, selector)
    return np.array(image.getpixel((image.width // 2, image.height // 2))) / 255
