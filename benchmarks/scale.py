"""What an image and a vector cost, how that grows, and what it comes to for a billion.

Each cost is measured at four sizes, each of them twice the one before, and a power of the size is
laid through the four; an exponent of 1 says that twice as many cost twice as much (the peak of
memory goes on in a straight line from the two largest). Seconds are
those of a core (CPU time), which other work on the machine does not change much; those of Ray are
by the clock. Embedding: JPEG files of 200 x 245 through SqueezeNet (random weights take no other
time). Indexes: vectors of 64 dimensions, a mixture of 1,000 Gaussians, 1,000 queries at once,
k = 10, each index in a process of its own. Map: the same vectors. Cluster: one Ray node on this
machine, so that the figures say what Ray itself costs. Seed 0.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # none that wait busily
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ctypes
import functools
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES = (256, 512, 1024, 2048)
VECTORS = {
    "exact": (50_000, 100_000, 200_000, 400_000),
    "hnsw": (20_000, 40_000, 80_000, 160_000),
}
MAPPED = (5000, 10_000, 20_000, 40_000)
TARGETS = (10**7, 10**8, 10**9)


def seconds(call, clock=time.process_time):
    start = clock()
    result = call()
    return clock() - start, result


def by_the_clock(call):
    return seconds(call, time.perf_counter)


def draw(n):
    """Returns `n` vectors of 64 dimensions, and 1,000 queries."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, 64), dtype="float32")
    x = (
        rng.standard_normal((n + 1000, 64), dtype="float32")
        + 3 * centres[rng.integers(0, 1000, n + 1000)]
    )
    return x[:n], x[n:]


def pictures(root, n):
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(n):
        top, left = rng.integers(0, np.array(photographs[i % 2].shape[:2]) - (245, 200))
        crop = photographs[i % 2][top : top + 245, left : left + 200]
        Image.fromarray(crop).save(root / f"{i:05}.jpg", quality=90)


def embedding():
    import keras

    from kerasim import data, distribute, embedding, models
    from kerasim.gallery import Gallery

    keras.utils.set_random_seed(0)
    embedder = models.pretrained_embedder(
        "squeezenet", None, pooling="average", embedding_dim=64, image_shape=(245, 200, 3)
    )
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        pictures(root, IMAGES[-1])
        folder = data.image_folder(root, (245, 200), check=False)
        Gallery(embedder).add(root / "00000.jpg")
        embedding.embed_folder(embedder, folder.take(slice(0, 300)))  # both sizes of batch
        times = []
        for n in IMAGES:
            gallery, files = Gallery(embedder), list(map(str, folder.files[:n]))
            times.append(seconds(lambda g=gallery, f=files: g.add(f))[0])
        gallery.save(root / "gallery")
        rows = [file for file in (root / "gallery").iterdir() if file.name != "embedder.keras"]
        some, cluster = folder.take(slice(0, 1024)), []
        for part in (some.take(slice(0, 256)), some):  # the first starts Ray, too
            call = functools.partial(distribute.embed_folder, embedder, part)
            taken, (vectors, _) = by_the_clock(call)
            cluster.append(taken)
        alone, (local, _) = by_the_clock(lambda: embedding.embed_folder(embedder, some))
        return {
            "times": times,
            "read": sum(file.stat().st_size for file in folder.files) / len(folder),
            "kept": sum(file.stat().st_size for file in rows) / len(folder),
            "cluster": [*cluster, alone],
            "equal": bool(np.array_equal(vectors, local)),
        }


def index(kind, n):
    from kerasim.neighbors import NeighborIndex

    NeighborIndex("euclidean", kind=kind).fit(draw(1000)[0]).query(
        draw(1000)[1]
    )  # loads what it uses
    vectors, queries = draw(n)

    def resident():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    built, made = seconds(lambda: NeighborIndex("euclidean", kind=kind).fit(vectors))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    held = resident() - before
    if kind == "exact":  # so fast that one time says little
        built = min(seconds(lambda: NeighborIndex("euclidean").fit(vectors))[0] for _ in range(3))
    asked = min(seconds(lambda: made.query(queries, 10))[0] for _ in range(3))
    with tempfile.TemporaryDirectory() as root:
        made.save(Path(root, "index"))
        kept = sum(file.stat().st_size for file in Path(root, "index").iterdir())
    return {"built": built, "held": held, "peak": peak, "asked": asked, "kept": kept}


def shards(n):
    from kerasim.distribute import ShardedIndex
    from kerasim.neighbors import NeighborIndex

    vectors, queries = draw(n)
    one = NeighborIndex("euclidean").fit(vectors)
    built, two = by_the_clock(lambda: ShardedIndex("euclidean", shards=2).fit(vectors))
    started, _ = by_the_clock(lambda: two.query(queries, 10))
    asked = [
        min(by_the_clock(lambda i=i, x=x: i.query(x, 10))[0] for _ in range(3))
        for i in (one, two)
        for x in (queries, queries[:1])
    ]
    return {"started": built + started, "asked": asked}


def mapping():
    from kerasim.projection import Projection

    Projection().fit_transform(draw(4500)[0])  # compiles
    return {
        "times": [seconds(lambda n=n: Projection().fit_transform(draw(n)[0]))[0] for n in MAPPED]
    }


def apart(*arguments):
    """Returns what a part of this script finds in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def power(sizes, values):
    """Returns the exponent of the power of the size that lies nearest, and a function of it."""
    exponent, start = np.polyfit(np.log(sizes), np.log(values), 1)
    return exponent, lambda n: float(np.exp(start) * n**exponent)


def row(name, sizes, values, unit, scale):
    exponent, law = power(sizes, values)
    of = (1,) * 4 if "query" in name else sizes
    each = [scale * value / n for n, value in zip(of, values, strict=True)]
    shown = " / ".join(f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in each)
    print(
        f"| {name} | {sizes[0]:,} to {sizes[-1]:,} | {shown} {unit} | {exponent:.2f} |", flush=True
    )
    return law


def main():
    start = time.perf_counter()
    print("| cost | sizes | at each size | exponent |\n| --- | --- | --- | --- |")
    images = apart("embedding")
    laws = {"embed": row("embed, an image", IMAGES, images["times"], "ms", 1e3)}
    for kind, sizes in VECTORS.items():
        found = [apart("index", kind, n) for n in sizes]
        for key, name, unit, scale in (
            ("built", "add, a vector", "us", 1e6),
            ("asked", "one query of 1,000", "ms", 1),
            ("held", "held, a vector", "bytes", 1),
            ("peak", "peak while built, a vector", "bytes", 1),
            ("kept", "saved, a vector", "bytes", 1),
        ):
            values = [each[key] for each in found]
            laws[kind, key] = row(f"{kind}: {name}", sizes, values, unit, scale)
            if key == "peak":  # holds blocks of a fixed size, which count for less and less
                (m, n), (low, high) = sizes[-2:], values[-2:]
                laws[kind, key] = lambda x, a=(high - low) / (n - m), b=high, n=n: b + a * (x - n)
    laws["map"] = row("map, a vector", MAPPED, apart("mapping")["times"], "ms", 1e3)
    print(
        f"\nA file is {images['read']:,.0f} bytes, a row of a gallery {images['kept']:.0f}. "
        f"Ray, two workers: {images['cluster'][0]:.0f} s for 256 images with its start, "
        f"{images['cluster'][1]:.0f} s for 1,024, without Ray {images['cluster'][2]:.0f} s; "
        f"vectors equal to the bit: {images['equal']}."
    )
    two = apart("shards", VECTORS["exact"][2])
    print(
        f"Two shards of {VECTORS['exact'][2]:,} vectors: ready after {two['started']:.1f} s; 1,000 "
        f"queries {1e3 * two['asked'][2]:.0f} ms, one index {1e3 * two['asked'][0]:.0f} ms; one "
        f"query {1e3 * two['asked'][3]:.1f} ms, one index {1e3 * two['asked'][1]:.1f} ms.\n"
    )
    print("| along those powers | " + " | ".join(f"{n:,}" for n in TARGETS) + " |")
    print("| --- " * (len(TARGETS) + 1) + "|")
    for name, law, scale in (
        ("embed, hours of a core", "embed", 1 / 3600),
        ("exact: GiB held", ("exact", "held"), 2**-30),
        ("exact: GiB at the peak", ("exact", "peak"), 2**-30),
        ("exact: one query, s of a core", ("exact", "asked"), 1e-3),
        ("hnsw: hours of a core to build", ("hnsw", "built"), 1 / 3600),
        ("hnsw: GiB held", ("hnsw", "held"), 2**-30),
        ("hnsw: GiB at the peak", ("hnsw", "peak"), 2**-30),
        ("hnsw: one query, ms of a core", ("hnsw", "asked"), 1),
        ("map, hours", "map", 1 / 3600),
    ):
        print(f"| {name} | " + " | ".join(f"{scale * laws[law](n):,.3g}" for n in TARGETS) + " |")
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    parts = {"embedding": embedding, "index": index, "shards": shards, "mapping": mapping}
    if sys.argv[1:]:
        arguments = [int(x) if x.isdigit() else x for x in sys.argv[2:]]
        print(json.dumps(parts[sys.argv[1]](*arguments)))
    else:
        main()
