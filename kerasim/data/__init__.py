"""Data sets, folders, noise, and batches of images, pairs, triplets and embeddings.

Images are an array `(n, height, width, channels)`, float32 in [0, 1] or uint8, or an `ImageFolder`,
which decodes files on access and can be passed wherever an array can. Batches are a
`keras.utils.PyDataset`. Their order, pairs, noise and augmentation depend only on the seed, the
epoch and the index of the batch, so that a resumed run uses the same batches as an uninterrupted
one.
"""

from kerasim._folders import ImageFolder, image_folder
from kerasim.data._batches import ImageBatches
from kerasim.data._candidates import candidate_pools, read_candidates, write_scores
from kerasim.data._download import fetch
from kerasim.data._embedding_pairs import EmbeddingPairBatches
from kerasim.data._noise import add_noise
from kerasim.data._noise_batches import DiffusionBatches, NoiseBatches
from kerasim.data._pair_folders import PairFolder, pair_folder
from kerasim.data._pairs import (
    BalancedBatches,
    PairBatches,
    PositivePairBatches,
    TripletBatches,
    draw_pairs,
    draw_triplets,
)
from kerasim.data._patches import random_patches
from kerasim.data._sets import Dataset, data_dir, load_dataset, resolve_dataset
from kerasim.data._splits import grouped_split
from kerasim.data._two_views import TwoViewBatches
from kerasim.images import as_float

__all__ = [
    "BalancedBatches",
    "Dataset",
    "DiffusionBatches",
    "EmbeddingPairBatches",
    "ImageBatches",
    "ImageFolder",
    "NoiseBatches",
    "PairBatches",
    "PairFolder",
    "PositivePairBatches",
    "TripletBatches",
    "TwoViewBatches",
    "add_noise",
    "as_float",
    "candidate_pools",
    "data_dir",
    "draw_pairs",
    "draw_triplets",
    "fetch",
    "grouped_split",
    "image_folder",
    "load_dataset",
    "pair_folder",
    "random_patches",
    "read_candidates",
    "resolve_dataset",
    "write_scores",
]


def __dir__() -> list[str]:
    return __all__
