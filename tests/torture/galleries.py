"""Galleries: random additions and removals, killed or not, and queries from several threads."""

import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.children import drain, run_child, start_child

KINDS = ("exact", "hnsw", "hnsw_sq8", "binary")
_POOL = np.random.default_rng(5).random((400, 4, 4, 1), dtype="float32")


def new_gallery(kind: Any = "exact"):
    import keras

    from kerasim.gallery import Gallery

    embedder = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    embedder.compile(run_eagerly=True)
    return Gallery(embedder, "euclidean", kind, m=8, thumbnail_size=None)


class Model:
    """What a gallery must hold, in plain Python.

    Attributes:
        items: The position in the pool, and the label, of each item by its id.
        next_id: Id of the next item.
    """

    def __init__(self):
        self.items: dict[int, tuple[int, str]] = {}
        self.next_id = 0

    def step(self, rng, gallery=None):
        """Applies the next random change to the model, and to the gallery if one is given."""
        way = rng.choice(["add", "add", "remove", "remove", "compact"])
        if way == "add":
            added = [rng.randrange(len(_POOL)) for _ in range(rng.randint(1, 6))]
            labels = [rng.choice(["", "a", "b"]) for _ in added]
            ids = range(self.next_id, self.next_id + len(added))
            self.items.update(zip(ids, zip(added, labels, strict=True), strict=True))
            self.next_id = ids.stop
            if gallery is not None:
                assert gallery.add(_POOL[added], labels).tolist() == list(ids)
        elif way == "remove":
            count = len(self.items) if rng.random() < 0.05 else rng.randint(0, 5)
            removed = rng.sample(sorted(self.items), min(count, len(self.items)))
            for number in removed:
                del self.items[number]
            if gallery is not None:
                assert gallery.remove(removed).tolist() == sorted(removed)
        elif gallery is not None:
            gallery.compact()

    def difference(self, gallery):
        """Returns in what a gallery differs, or ""."""
        table = gallery.items
        if table["id"].tolist() != sorted(self.items):
            return f"ids {table['id'].tolist()}, expected {sorted(self.items)}"
        labels = [self.items[number][1] for number in table["id"]]
        pool = _POOL[[self.items[number][0] for number in table["id"]]]
        if table["label"].tolist() != labels:
            return "other labels"
        if not np.array_equal(gallery.vectors, pool.reshape(len(pool), 16)):
            return "other vectors"
        if not self.items:
            return ""
        found = gallery.query(pool, k=1)
        same = [self.items[number][0] for number in found["id"]]
        wanted = [self.items[number][0] for number in table["id"]]  # an image may be there twice
        return "" if same == wanted else "a query does not find its own image"


def _change_galleries(kinds, runs, steps, folder, send):
    from kerasim.gallery import Gallery

    wrong = []
    for kind in kinds:
        for run in range(runs):
            rng, path = random.Random(f"{kind}/{run}"), Path(folder, f"{kind}-{run}")
            gallery, model = new_gallery(kind), Model()
            for n in range(steps):
                try:
                    model.step(rng, gallery)
                    if rng.random() < 0.1:
                        gallery.save(path)
                        gallery = Gallery.load(path, gallery.embedder)
                    said = model.difference(gallery)
                except Exception as error:
                    said = repr(error)
                if said:
                    wrong.append(f"{kind}, run {run}, step {n}: {said}")
                    break
    return wrong


def _change_and_save(kind, path, done, send):
    from kerasim.gallery import Gallery

    model, rng = Model(), random.Random(kind)
    for _ in range(done):
        model.step(rng)
    gallery = Gallery.load(path) if done else new_gallery(kind)
    while True:
        model.step(rng, gallery)
        done += 1
        gallery.save(path)
        send(done)


def _at(kind, done):
    model, rng = Model(), random.Random(kind)
    for _ in range(done):
        model.step(rng)
    return model


def _which(kind, path, done, send):
    """Returns how many steps a saved gallery has seen, and in what it differs from those."""
    from kerasim.gallery import Gallery

    gallery = Gallery.load(path)
    said = [_at(kind, n).difference(gallery) for n in (done, done + 1)]
    return done + bool(said[0]), said[0] and said[1]


def _kill_changes(kind, kills):
    rng, wrong, done = random.Random(f"kill {kind}"), [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "it")
        for n in range(kills):
            with start_child(_change_and_save, kind, path, done) as (process, messages):
                done = messages.recv()
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
                done = drain(messages, done)
            done, said = run_child(_which, kind, path, done)
            if said:
                wrong.append(f"{kind}, kill {n}: {said}")
                break
    return wrong


def removals(runs=20, steps=100, kills=20, kinds=KINDS):
    """Adds to galleries, removes and compacts in random order, and compares them with a model.

    Args:
        runs: Galleries of each kind that are compared after every step, some of them loaded anew.
        steps: Steps of each.
        kills: Kills of a process that saves a gallery after every step, for each kind.
        kinds: Kinds of the index.
    """
    with tempfile.TemporaryDirectory() as folder:
        wrong = run_child(_change_galleries, kinds, runs, steps, folder)
    for kind in kinds:
        wrong += _kill_changes(kind, kills) if kills else []
    total = len(kinds) * runs * steps
    return f"{total} steps, {kills * len(kinds)} kills, {len(wrong)} wrong", wrong


# Threads

_KEPT = 50  # items that stay, of the pool


def _check_answer(found, kept, before, removed_before, removed_now):
    """Returns what is wrong with the answer to queries for items that stay.

    Args:
        found: The table.
        kept: Ids of the queries.
        before: Id of the next item, as it was before the query.
        removed_before, removed_now: Ids that were removed before and after the query.
    """
    for query, rows in found.groupby("query"):
        ids, distances = rows["id"].to_numpy(), rows["distance"].to_numpy()
        true = np.linalg.norm((_POOL[ids] - _POOL[kept[query]]).reshape(len(ids), 16), axis=1)
        if ids[0] != kept[query] or len(set(ids)) < len(ids):
            return f"query {kept[query]} found {ids.tolist()}"
        if np.abs(true - distances).max() > 1e-5 or (np.diff(distances) < 0).any():
            return f"query {kept[query]} has the distances of other items"
        if rows["label"].tolist() != [str(number) for number in ids]:
            return f"query {kept[query]} has the labels of other items"
        if removed_before & set(ids.tolist()):
            return f"query {kept[query]} found an item that had been removed"
        there = np.setdiff1d(np.arange(before), sorted(removed_now))
        all_there = np.linalg.norm((_POOL[there] - _POOL[kept[query]]).reshape(-1, 16), axis=1)
        if (all_there < distances[-1] - 1e-5).sum() > len(ids) - 1:
            return f"query {kept[query]} missed an item that was there"
    return ""


def _query_while_changed(kind, threads, queries, send):
    gallery = new_gallery(kind)
    gallery.add(_POOL[:_KEPT], [str(n) for n in range(_KEPT)])
    wrong, removed, over = [], [], threading.Event()
    removing: set[int] = set()

    def change():
        """Adds the pool, one to four images at a time, and removes some of them."""
        rng, count = random.Random(kind), _KEPT
        while count < len(_POOL) and not over.is_set():
            stop = min(len(_POOL), count + rng.randint(1, 4))
            gallery.add(_POOL[count:stop], [str(n) for n in range(count, stop)])
            count = stop
            gone = rng.randrange(_KEPT, count)
            if gone not in removing and rng.random() < 0.3:
                removing.add(gone)
                gallery.remove(gone)
                removed.append(gone)
            if rng.random() < 0.05:
                gallery.compact()
            time.sleep(0.002)

    def ask(thread):
        rng = np.random.default_rng(thread)
        for _ in range(queries):
            kept = rng.integers(0, _KEPT, 3)
            before, gone = int(gallery.items["id"].to_numpy().max()) + 1, set(removed)
            found = gallery.query(_POOL[kept], k=5)
            said = _check_answer(found, kept, before, gone, set(removing))
            if said:
                wrong.append(f"{kind}, thread {thread}: {said}")

    def run(function, *args):
        try:
            function(*args)
        except Exception as error:
            wrong.append(f"{kind}: {error!r}")

    askers = [threading.Thread(target=run, args=(ask, n)) for n in range(threads)]
    changer = threading.Thread(target=run, args=(change,))
    for thread in (changer, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    over.set()
    changer.join()
    return wrong[:10]


def threads(threads=4, queries=300, kinds=("exact", "hnsw")):
    """Queries a gallery from several threads, while another one adds and removes.

    Each answer must be that of one state of the gallery.
    """
    wrong = []
    for kind in kinds:
        wrong += run_child(_query_while_changed, kind, threads, queries)
    total = threads * queries * len(kinds)
    return f"{total} queries of {threads} threads, {len(wrong)} wrong", wrong
