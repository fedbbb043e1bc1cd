"""Data sets, folders, noise and batches."""

from kerasim.data.arrays import add_noise, check_images, check_shape, digest
from kerasim.data.batches import ImageBatches, embed
from kerasim.data.folders import ImageFolder, as_float, image_folder
from kerasim.data.sets import Dataset, choose, data_dir, load

__all__ = [
    "Dataset",
    "ImageBatches",
    "ImageFolder",
    "add_noise",
    "as_float",
    "check_images",
    "check_shape",
    "choose",
    "data_dir",
    "digest",
    "embed",
    "image_folder",
    "load",
]
