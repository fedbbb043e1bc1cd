"""kerasim beside what its users have today, at four sizes each, with the exponent of the growth.

Each part runs in a process of its own, with two threads; `python benchmarks/peers.py PART` runs
one. Seconds are the best of three runs, for what takes long of one. "peak" is that of the process
that did this alone, all that it loads included. Vectors: 64 dimensions, a mixture of 1,000
Gaussians (of 100 that overlap for the scores of retrieval), seed 0.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "2"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


def draw(n, classes=1000, apart=3):
    """Returns `n` vectors, and the Gaussian that each comes from."""
    rng = np.random.default_rng(0)
    centres = apart * rng.standard_normal((classes, 64), dtype="float32")
    labels = rng.integers(0, classes, n)
    return centres[labels] + rng.standard_normal((n, 64), dtype="float32"), labels


def best(call, runs=3):
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        result = call()
        taken.append(time.perf_counter() - start)
    return min(taken), result


# The query of the first report: ten nearest of one image by three metrics, with 10 dimensions each.
def query_loops(n):
    """As the report did it: a loop over the rows of a DataFrame, once for each metric."""
    frame = pd.DataFrame(draw(n)[0][:, :10])
    asked = frame.iloc[0].to_numpy()
    distances = (
        lambda row: np.sqrt(((row - asked) ** 2).sum()),
        lambda row: np.abs(row - asked).sum(),
        lambda row: 1 - row @ asked / np.linalg.norm(row) / np.linalg.norm(asked),
    )

    def call():
        found = []
        for distance in distances:
            values = [distance(row.to_numpy()) for _, row in frame.iterrows()]
            found.append(np.argsort(values, kind="stable")[:10])
        return found

    return best(call, 1)


def query_kerasim(n):
    from kerasim.neighbors import METRICS, NeighborIndex

    x = draw(n)[0][:, :10]
    indexes = [NeighborIndex(metric).fit(x) for metric in METRICS]
    return best(lambda: [index.query(x[:1], 10)[1][0] for index in indexes])


# A graph, 1,000 queries, ten nearest; built by each library with the same settings.
GRAPH = {"m": 32, "ef_construction": 200, "ef_search": 64}


def graph_kerasim(n):
    from kerasim.neighbors import NeighborIndex

    x = draw(n + 1000)[0]
    built, index = best(lambda: NeighborIndex("euclidean", kind="hnsw", **GRAPH).fit(x[:n]), 1)
    asked, (_, found) = best(lambda: index.query(x[n:], 10))
    return {"build": built, "1,000 queries": asked}, found


def graph_faiss(n):
    import faiss

    x = draw(n + 1000)[0]
    graph = faiss.IndexHNSWFlat(64, GRAPH["m"])
    graph.hnsw.efConstruction, graph.hnsw.efSearch = GRAPH["ef_construction"], GRAPH["ef_search"]
    built, _ = best(lambda: graph.add(x[:n]), 1)
    asked, (_, found) = best(lambda: graph.search(x[n:], 10))
    return {"build": built, "1,000 queries": asked}, found


def graph_hnswlib(n):
    import hnswlib

    x = draw(n + 1000)[0]
    graph = hnswlib.Index("l2", 64)
    graph.init_index(n, M=GRAPH["m"], ef_construction=GRAPH["ef_construction"], random_seed=0)
    graph.set_num_threads(2)
    graph.set_ef(GRAPH["ef_search"])
    built, _ = best(lambda: graph.add_items(x[:n]), 1)
    asked, (found, _) = best(lambda: graph.knn_query(x[n:], 10))
    return {"build": built, "1,000 queries": asked}, found


# Scores of retrieval, each vector against all others; 100 classes.
def retrieval_kerasim(n):
    from kerasim import metrics

    x, labels = draw(n, 100, 0.4)
    metrics.retrieval(x[:500], labels[:500])  # loads what it uses
    taken, scores = best(lambda: metrics.retrieval(x, labels, metric="euclidean"), 1)
    return taken, [scores[name] for name in ("recall@1", "r_precision", "map@r")]


def retrieval_pml(n):
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    torch.set_num_threads(2)
    x, labels = map(torch.tensor, draw(n, 100, 0.4))
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    calculator.get_accuracy(x[:500], labels[:500])
    taken, scores = best(lambda: calculator.get_accuracy(x, labels), 1)
    return taken, [scores[name] for name in names]


# The map, and the page that shows it.
def map_kerasim(n):
    from kerasim.projection import Projection

    Projection().fit_transform(draw(4500)[0])  # compiles
    return best(lambda: Projection().fit_transform(draw(n)[0]), 1)[0], None


def map_umap(n):
    import umap

    umap.UMAP(random_state=0, n_jobs=1).fit_transform(draw(4500)[0])
    x = draw(n)[0]
    return best(lambda: umap.UMAP(random_state=0, n_jobs=1).fit_transform(x), 1)[0], None


def page_kerasim(n):
    from kerasim.explorer import write_explorer
    from kerasim.neighbors import METRICS

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 28, 28, 1), dtype="uint8")
    near = {metric: rng.integers(0, n, (n, 10)) for metric in METRICS}
    with tempfile.TemporaryDirectory() as root:
        path, places = Path(root, "page.html"), rng.standard_normal((n, 2))
        taken, _ = best(
            lambda: write_explorer(path, images, places, rng.integers(0, 10, n), near), 1
        )
        return {"write": taken, "page, MB": path.stat().st_size / 1e6}, None


# Samples in 50 steps by DDIM. The networks differ (their weights are counted below the table): what
# the sampler costs is what its 50 steps take beyond 50 calls of its own network.
def sample_kerasim(n):
    from kerasim import diffusion, models

    schedule = diffusion.NoiseSchedule(1000)
    net = models.unet((32, 32, 1), (32, 64, 128))
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((n, 32, 32, 1), dtype="float32"), np.full(n, 500, "int32")
    diffusion.sample(net, schedule, x.shape, 50)  # traces
    net.predict_on_batch({"images": x, "t": t})
    taken, _ = best(lambda: diffusion.sample(net, schedule, x.shape, 50))
    once, _ = best(lambda: net.predict_on_batch({"images": x, "t": t}))
    return {"50 steps": taken, "50 calls of the network": 50 * once}, [net.count_params()]


def sample_diffusers(n):
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.set_num_threads(2)
    net = UNet2DModel(
        32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).eval()
    pipeline = DDIMPipeline(net, DDIMScheduler(1000))
    pipeline.set_progress_bar_config(disable=True)
    x = torch.randn(n, 1, 32, 32)

    def call():
        return pipeline(n, num_inference_steps=50, output_type="np")

    def once():
        with torch.inference_mode():
            return net(x, 500)

    once()
    taken, _ = best(call)
    return {"50 steps": taken, "50 calls of the network": 50 * best(once)[0]}, [
        sum(weight.numel() for weight in net.parameters())
    ]


PARTS = {
    "query": ((1000, 4000, 16_000, 60_000), "equal answers", (query_kerasim, query_loops)),
    "graph": (
        (10_000, 20_000, 40_000, 80_000),
        "recall@10",
        (graph_kerasim, graph_faiss, graph_hnswlib),
    ),
    "retrieval": (
        (7500, 15_000, 30_000, 60_000),
        "precision at 1, R-precision, MAP@R",
        (retrieval_kerasim, retrieval_pml),
    ),
    "map": ((7500, 15_000, 30_000, 60_000), None, (map_kerasim, map_umap)),
    "page": ((7500, 15_000, 30_000, 60_000), None, (page_kerasim,)),
    "sample": ((8, 16, 32, 64), "weights", (sample_kerasim, sample_diffusers)),
}


def apart(peer, n):
    """Returns figures, answers and peak GiB of a peer in a process of its own."""
    command = [sys.executable, __file__, peer.__name__, str(n)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(peer, n):
    figures, answers = peer(n)
    figures = figures if isinstance(figures, dict) else {"seconds": figures}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answers = None if answers is None else np.asarray(answers).tolist()
    print(json.dumps([figures, answers, peak]))


def true_neighbours(n):
    from kerasim.neighbors import NeighborIndex

    x = draw(n + 1000)[0]
    return NeighborIndex("euclidean").fit(x[:n]).query(x[n:], 10)[1]


def main(names):
    for name in names:
        sizes, about, peers = PARTS[name]
        rows, answers = [], {}
        for peer in peers:
            found = [apart(peer, n) for n in sizes]
            for key in found[0][0]:
                values = [figures[key] for figures, _, _ in found]
                exponent = np.polyfit(np.log(sizes), np.log(values), 1)[0]
                label = f"{peer.__name__.partition('_')[2]}: {key}"
                peak = f"{found[-1][2]:.2f}"
                rows.append([label, *(f"{value:.4g}" for value in values), f"{exponent:.2f}", peak])
            answers[peer.__name__] = found[-1][1]
        columns = [name, *(f"{n:,}" for n in sizes), "exponent", "peak, GiB"]
        print(pd.DataFrame(rows, columns=columns).to_string(index=False))
        if name == "query":
            ours, theirs = (np.array(answer) for answer in answers.values())
            print(f"{about}: {np.mean(ours == theirs):.0%}")
        elif name == "graph":
            true = true_neighbours(sizes[-1])
            for peer, rows in answers.items():
                hits = (np.array(rows)[:, :, None] == true[:, None]).any(axis=2).mean()
                print(f"{about} of {peer.partition('_')[2]}: {hits:.4f}")
        elif about:
            for peer, values in answers.items():
                print(f"{about} of {peer.partition('_')[2]}: {np.round(values, 4).tolist()}")
        print(flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(globals()[sys.argv[1]], int(sys.argv[2]))
    else:
        main(sys.argv[1:] or PARTS)
