"""Data sets, folders, noise, and batches of images, pairs and triplets.

Images are an array `(n, height, width, channels)`, float32 in [0, 1] or uint8, or an `ImageFolder`,
which decodes files when they are needed and can be passed wherever an array can. Batches are a
`keras.utils.PyDataset`. Their order, pairs, noise and shifts depend only on the seed, the epoch and
the index of the batch, so that a resumed run uses the same batches as an uninterrupted one. `embed`
computes the embeddings of images.
"""

from kerasim.data.arrays import (
    add_noise,
    check_classes,
    check_embedder,
    check_images,
    check_shape,
    digest,
    find_copies,
    find_near_copies,
    load_embedder,
    shapes_of,
)
from kerasim.data.batches import ImageBatches, clear_errors, embed, embed_folder, predict
from kerasim.data.candidates import candidate_pools, pair_folder, read_candidates, write_scores
from kerasim.data.download import SQUEEZENET_FILE, SQUEEZENET_SHA256, fetch
from kerasim.data.folders import ImageFolder, PairFolder, check_usable, image_folder
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
from kerasim.images import as_float
