"""Prints the reference values of tests/test_losses.py, by pytorch-metric-learning.

python -m venv .peers
.peers/bin/pip install torch pytorch-metric-learning==2.9.0 numpy
.peers/bin/python tests/peers/losses.py
"""

import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

rng = np.random.default_rng(0)
embeddings = torch.tensor(rng.standard_normal((24, 6)), dtype=torch.float32)
labels = torch.tensor(rng.integers(0, 5, 24))
classifier = torch.tensor(rng.standard_normal((6, 5)), dtype=torch.float32)
kinds = {
    "euclidean": distances.LpDistance(normalize_embeddings=False, power=1),
    "squared_euclidean": distances.LpDistance(normalize_embeddings=False, power=2),
    "cosine": distances.CosineSimilarity(),
}
for name, distance in kinds.items():
    margin = 0.3 if name == "cosine" else 1.5
    loss = losses.TripletMarginLoss(
        margin=margin, distance=distance, reducer=reducers.MeanReducer()
    )
    for mining, kind in (("all", None), ("semi_hard", "semihard"), ("hard", "hard")):
        chosen = None
        if kind:
            miner = miners.TripletMarginMiner(margin, type_of_triplets=kind, distance=distance)
            chosen = miner(embeddings, labels)
        value = loss(embeddings, labels, chosen).item()
        print(f'    ("TripletLoss", {margin}, "{name}", "{mining}"): {value:.7f},')
arc_face = losses.ArcFaceLoss(5, 6, margin=28.65, scale=64)
arc_face.W.data = classifier
others = {
    "MultiSimilarityLoss": losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
    "SupConLoss": losses.SupConLoss(temperature=0.1),
    "NTXentLoss": losses.NTXentLoss(temperature=0.1),
    "ArcFaceLoss": arc_face,
}
# It scales anchors and positives to unit length, but not negatives (2.9.0): hand it unit vectors.
directions = torch.nn.functional.normalize(embeddings)
print(f'    ("AngularLoss",): {losses.AngularLoss(alpha=40)(directions, labels).item():.7f},')
for name, loss in others.items():
    print(f'    ("{name}",): {loss(embeddings, labels).item():.7f},')
