"""Drawing pairs, and training on them: kerasim beside a plain loop, plain Keras and plain PyTorch.

Drawing: 60,000 pairs of MNIST, beside the loop of the keras.io example (one image at a time, into
an array of images). Training: the original Siamese net, 100 batches of 128 pairs, with one thread
and with two; the best of five epochs after a first one. kerasim draws, gathers and converts its
batches and saves its state; the others train on arrays gathered beforehand.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd

PAIRS, BATCH, EPOCHS, MARGIN = 12_800, 128, 6, 5.0
PEERS = ("kerasim", "keras", "torch")


def loop(images, labels, seed):
    """Pairs each image with one of its class and one of another, as the keras.io example does."""
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == name) for name in range(10)]
    pairs, same = [], []
    for image, label in zip(images, labels, strict=True):
        pairs.append([image, images[rng.choice(of_class[label])]])
        other = (label + rng.integers(1, 10)) % 10
        pairs.append([image, images[rng.choice(of_class[other])]])
        same += [1, 0]
    return np.array(pairs), np.array(same, dtype="float32")


def draw(images, labels):
    from kerasim import data

    ours = []
    for seed in range(5):
        start = time.perf_counter()
        left, right, same = data.draw_pairs(labels, 60_000, seed=seed)
        ours.append(time.perf_counter() - start)
    start = time.perf_counter()
    pairs, _ = loop(images[:30_000], labels[:30_000], seed=0)
    theirs = time.perf_counter() - start
    print(
        f"60,000 pairs: {min(ours) * 1e3:.1f} ms and {left.nbytes + right.nbytes + same.nbytes:,} "
        f"bytes, loop {theirs * 1e3:.0f} ms and {pairs.nbytes:,} bytes: "
        f"{theirs / min(ours):.0f} times faster (reach 100)\n"
    )


def gathered(images, labels):
    from kerasim import data

    left, right, same = data.draw_pairs(labels, PAIRS)
    return data.as_float(images[left]), data.as_float(images[right]), same


def train(peer, images, labels):
    """Returns the seconds of each epoch but the first."""
    if peer == "torch":
        return train_torch(*gathered(images, labels))
    import keras

    from kerasim import data, losses, models, training

    keras.utils.set_random_seed(0)
    original = models.conv_embedder((28, 28, 1), 2, convs=1, activation=None, dense_width=64)
    net = models.siamese(original, metric="euclidean")
    net.compile("adam", losses.ContrastiveLoss(MARGIN))
    if peer == "kerasim":
        batches = data.PairBatches(images, labels, batch_size=BATCH, n=PAIRS)
        with tempfile.TemporaryDirectory() as folder:
            return training.fit(net, batches, EPOCHS, folder, verbose=0)["seconds"][1:]
    left, right, same = gathered(images, labels)
    seconds = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        net.fit((left, right), same, batch_size=BATCH, verbose=0)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def train_torch(left, right, same):
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    layers, channels = [], 1
    for filters, padding in ((32, 1), (64, 1), (128, 0)):
        conv = nn.Conv2d(channels, filters, 3, padding=padding, bias=False)
        layers += [conv, nn.BatchNorm2d(filters)]
        layers.append(nn.AvgPool2d(5) if filters == 128 else nn.MaxPool2d(2))
        channels = filters
    dense = [nn.Linear(128, 64), nn.BatchNorm1d(64), nn.Linear(64, 2)]
    net = nn.Sequential(*layers, nn.Flatten(), *dense)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    left, right = (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (left, right))
    same = torch.from_numpy(same.astype("float32"))
    seconds = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        order = torch.randperm(len(same))
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            gap = net(left[rows]) - net(right[rows])
            distance = (gap.square().sum(1) + 1e-12).sqrt()
            like = same[rows]
            unlike = (1 - like) * torch.relu(MARGIN - distance).square()
            (like * distance.square() + unlike).mean().backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def in_process(peer, threads):
    """Returns pairs per second, measured in a process of its own with so many threads."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    # TensorFlow and PyTorch in one process would quarrel over LLVM.
    backend = {"KERAS_BACKEND": "torch"} if peer == "torch" else {}
    done = subprocess.run(
        [sys.executable, __file__, "--peer", peer],
        env={**os.environ, **dict.fromkeys(names, str(threads)), **backend},
        capture_output=True,
        text=True,
    )
    if "No module named 'torch'" in done.stderr:
        return np.nan
    if done.returncode:
        sys.exit(done.stderr)
    return PAIRS / float(done.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=PEERS)
    peer = parser.parse_args().peer
    from kerasim import data

    images = data.load_dataset("mnist", dtype="uint8")
    if peer:
        print(min(train(peer, images.x_train, images.y_train)))
        return
    draw(images.x_train, images.y_train)
    rows = {n: [in_process(peer, n) for peer in PEERS] for n in (1, 2)}
    table = pd.DataFrame.from_dict(rows, "index", columns=[f"{peer}, pairs/s" for peer in PEERS])
    table["kerasim / keras (reach 0.95)"] = table.iloc[:, 0] / table.iloc[:, 1]
    print(table.rename_axis("threads").round(2).to_string())
    if table.isna().any(axis=None):
        print("PyTorch is not installed: pip install -r benchmarks/requirements.txt")


if __name__ == "__main__":
    main()
