"""Prints the reference values of tests/test_metrics.py, by pytorch-metric-learning.

Set up as for losses.py beside this file, then: .peers/bin/python tests/peers/metrics.py
"""

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

rng = np.random.default_rng(0)
queries, gallery = rng.standard_normal((20, 4)), rng.standard_normal((30, 4))
query_labels, gallery_labels = rng.integers(0, 5, 20), rng.integers(0, 4, 30)
names = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
)
distances = {
    "euclidean": LpDistance(normalize_embeddings=False),
    "manhattan": LpDistance(normalize_embeddings=False, p=1),
    "cosine": CosineSimilarity(),
}
for metric, distance in distances.items():
    calculator = AccuracyCalculator(include=names, k=None, knn_func=CustomKNN(distance))
    asked = torch.tensor(queries), torch.tensor(query_labels)
    for alone in (False, True):
        if alone:
            scores = calculator.get_accuracy(*asked)
        else:
            scores = calculator.get_accuracy(
                *asked, torch.tensor(gallery), torch.tensor(gallery_labels)
            )
        values = ", ".join(f"{scores[key]:.7f}" for key in names)
        print(f'    ("{metric}", {alone}): ({values}),')
