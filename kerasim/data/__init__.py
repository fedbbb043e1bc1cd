"""Data sets, folders, noise, and batches of images, pairs and triplets."""

from kerasim.data.arrays import (
    add_noise,
    check_classes,
    check_embedder,
    check_images,
    check_shape,
    digest,
    find_copies,
    load_embedder,
)
from kerasim.data.batches import ImageBatches, clear_errors, embed, embed_folder
from kerasim.data.candidates import (
    PairFolder,
    candidate_pools,
    find_near_copies,
    pair_folder,
    read_candidates,
    write_scores,
)
from kerasim.data.folders import ImageFolder, as_float, image_folder
from kerasim.data.noise import DiffusionBatches, NoiseBatches
from kerasim.data.pairs import (
    BalancedBatches,
    LabelledPairBatches,
    PairBatches,
    TripletBatches,
    draw_pairs,
    draw_triplets,
)
from kerasim.data.sets import Dataset, choose, data_dir, load
