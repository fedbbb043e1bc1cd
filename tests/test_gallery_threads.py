"""A gallery that is interrupted, and one that several threads use."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from kerasim import _adding, _items, embedding
from kerasim import gallery as module
from kerasim.gallery import Gallery
from kerasim.neighbors import NeighborIndex
from tests.helpers.interrupted import at_line
from tests.helpers.small_embedder import EMBEDDER

IMAGES = np.random.default_rng(0).random((60, 4, 4, 1), dtype="float32")
TRACED = {module.__file__, _adding.__file__, _items.__file__}


def traced(call, interrupt_at=0) -> int:
    """Calls `call` and returns how many lines of the gallery's modules ran.

    With `interrupt_at` it raises KeyboardInterrupt at that line, counted from 1.
    """
    with at_line(interrupt_at, TRACED) as lines:
        call()
    return lines[0]


def check(gallery, folder, path):
    """Checks that the gallery can be saved and loaded, and that the same add completes it."""
    assert len(gallery._items.table) == len(gallery._items.vectors)
    assert gallery.items["id"].is_unique
    gallery.save(path)
    assert Gallery.load(path, EMBEDDER).items.equals(gallery.items)
    gallery.add(folder)
    gallery.prune()
    files = sorted(map(str, folder.rglob("*.bmp")))
    assert sorted(gallery.items["file"]) == files
    found = gallery.query(files, k=1)
    assert found["file"].tolist() == files and found["distance"].max() < 1e-4


@pytest.fixture
def folder(tmp_path):
    for n in range(6):
        write_random_image(tmp_path / "images" / "ab"[n % 2] / f"{n}.bmp", n)
    return tmp_path / "images"


def write_random_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype="uint8")
    Image.fromarray(pixels).save(path)


def change(folder):
    """Changes, moves, removes and adds a file."""
    write_random_image(folder / "a" / "0.bmp", 10)
    (folder / "b" / "1.bmp").rename(folder / "a" / "1.bmp")
    (folder / "a" / "2.bmp").unlink()
    write_random_image(folder / "b" / "7.bmp", 7)


OPERATIONS = {  # and at how many lines they are interrupted
    "add": (lambda gallery, folder, path: gallery.add(folder, on_error="skip"), 8),
    "add and save": (lambda gallery, folder, path: gallery.add(folder, path=path), 6),
    "query": (lambda gallery, folder, path: gallery.query(IMAGES[:1], k=1), 3),
    "remove": (lambda gallery, folder, path: gallery.remove([2, 3]), 4),
    "prune": (lambda gallery, folder, path: gallery.prune(), 3),
    "relocate": (lambda gallery, folder, path: gallery.relocate(folder / "b", folder / "a"), 3),
    "compact": (lambda gallery, folder, path: gallery.compact(), 3),
    "save": (lambda gallery, folder, path: gallery.save(path), 4),
}


@pytest.mark.filterwarnings("ignore:.*missing")
@pytest.mark.filterwarnings("ignore:.*keep their old names")
@pytest.mark.parametrize(
    ("kind", "name"), [*(("exact", name) for name in OPERATIONS), ("hnsw", "add")]
)
def test_an_interrupt_at_any_line_leaves_a_gallery_that_can_be_used_and_saved(
    name, kind, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(_adding, "PIECE", 2)
    start = Gallery(EMBEDDER, "euclidean", kind)
    start.add(folder)
    start.remove(5)
    start.save(tmp_path / "start")
    change(folder)
    operation, count = OPERATIONS[name]

    def loaded():
        return Gallery.load(tmp_path / "start", EMBEDDER)

    whole = loaded()
    lines = traced(lambda: operation(whole, folder, tmp_path / "whole"))
    for line in np.linspace(1, lines, count).round().astype(int):
        gallery, path = loaded(), tmp_path / str(line)
        with pytest.raises(KeyboardInterrupt):
            traced(lambda: operation(gallery, folder, path), line)  # noqa: B023
        check(gallery, folder, path)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_an_interrupt_at_any_line_of_a_commit_neither_loses_nor_doubles_an_image(kind, folder):
    for line in range(1, 200):
        gallery = Gallery(EMBEDDER, "euclidean", kind)
        commit = gallery._commit
        monkeypatched = iter([True])

        def interrupted(taken):
            if next(monkeypatched, False):  # noqa: B023
                return traced(lambda: commit(taken), line)  # noqa: B023
            return commit(taken)  # noqa: B023

        gallery._commit = interrupted
        try:
            gallery.add(IMAGES[:3])
        except KeyboardInterrupt:
            assert gallery.items["id"].tolist() == [0, 1, 2]
            assert gallery.query(IMAGES[:3], k=1)["id"].tolist() == [0, 1, 2]
        else:
            break
    assert 5 < line < 199


def test_an_interrupt_while_images_are_embedded_keeps_those_before_it_and_saves_them(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(_adding, "PIECE", 2)
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(*arguments)

    embed = embedding.embed
    monkeypatch.setattr("kerasim.embedding.embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Gallery(EMBEDDER).add(folder, path=tmp_path / "gallery")
    assert len(Gallery.load(tmp_path / "gallery", EMBEDDER)) == 4


def thread_map(count, call):
    """Calls `call(n)` in threads that start together; returns what they raised."""
    errors, barrier = [], threading.Barrier(count)

    def run(n):
        barrier.wait()
        try:
            call(n)
        except BaseException as error:  # for the assert
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_threads_that_query_after_an_add_all_find_the_new_images(kind, monkeypatch):
    plain = NeighborIndex.__len__

    def slow(self):  # so that one thread comes in while another one grows the index
        length = plain(self)
        time.sleep(0.005)
        return length

    gallery = Gallery(EMBEDDER, "euclidean", kind, m=8)
    gallery.add(IMAGES[:40])
    assert len(gallery.index) == 40
    gallery.add(IMAGES[40:])
    monkeypatch.setattr(NeighborIndex, "__len__", slow)
    found = {}

    def query(n):
        found[n] = gallery.query(IMAGES[50:60], k=1)["id"].tolist()

    assert thread_map(4, query) == []
    assert list(found.values()) == [list(range(50, 60))] * 4


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_queries_answer_while_other_threads_add_and_remove(kind):
    gallery = Gallery(EMBEDDER, "euclidean", kind, m=8)
    gallery.add(IMAGES[:20])

    def work(n):
        for step in range(5):
            if n == 0:
                gallery.add(IMAGES[20 + 8 * step : 28 + 8 * step])
            elif n == 1:
                gallery.remove(10 + step)
            else:
                found = gallery.query(IMAGES[:10], k=2)
                assert found["id"][found["rank"] == 1].tolist() == list(range(10))

    assert thread_map(4, work) == []
    assert gallery.items["id"].tolist() == [*range(10), *range(15, 60)]
    assert gallery.query(IMAGES[15:], k=1)["id"].tolist() == list(range(15, 60))


def test_two_threads_that_add_one_folder_take_each_file_once(folder):
    gallery = Gallery(EMBEDDER)
    assert thread_map(3, lambda n: gallery.add(folder)) == []
    assert len(gallery) == 6 and gallery.items["file"].is_unique


def test_two_threads_that_save_one_gallery_both_do(folder, tmp_path):
    gallery = Gallery(EMBEDDER)
    gallery.add(folder)
    assert thread_map(3, lambda n: gallery.save(tmp_path / "gallery")) == []
    assert len(Gallery.load(tmp_path / "gallery", EMBEDDER)) == 6


def test_a_query_does_not_wait_for_an_add(folder):
    gallery = Gallery(EMBEDDER)
    gallery.add(IMAGES[:5])
    reached, go_on = threading.Event(), threading.Event()

    def embed(*arguments):
        reached.set()
        assert go_on.wait(60)
        return embedding.embed_folder(*arguments)

    adding = threading.Thread(target=lambda: gallery.add(folder, embed=embed))
    adding.start()
    assert reached.wait(60)
    assert gallery.query(IMAGES[:5], k=1)["id"].tolist() == list(range(5))
    go_on.set()
    adding.join()
    assert len(gallery) == 11
