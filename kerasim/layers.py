"""Layers that Keras does not have.

Each is registered in the package `kerasim`, so that models with these layers are saved and loaded
like any other. Distances, cosines and poolings compute in float32 under any dtype policy, because
float16 is not precise enough to distinguish vectors that are close together. Where the derivative
of a formula is infinite (the square root at 0, the norm of a zero vector), the gradient is finite,
so that such a pair does not stop the training.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._tensors import (
    PAIR_METRICS,
    ConfigMixin,
    PairMetric,
    full_precision,
    l2_normalize,
    safe_norm,
)
from kerasim.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "AntialiasedResizing",
    "AttentionPooling",
    "BackbonePreprocessing",
    "CosineClassifier",
    "Distance",
    "GeMPooling",
    "GridPooling",
    "LogEnergy",
    "PatchMap",
    "Sampling",
    "TimeEmbedding",
    "TokenPooling",
    "Whitening",
]

# A tensor of any backend, or an array; Keras declares no type of it.
Tensor = Any

# A variance below this share of the largest one comes from the rounding of float32 vectors.
_LEAST_VARIANCE = 1e-12

# The axes of the inputs of layers.
_AXES = {
    "images": ("batch", "height", "width", "channels"),
    "feature maps": ("batch", "height", "width", "channels"),
    "tokens": ("batch", "tokens", "dim"),
}

_TokenMode = Literal["class", "average", "max", "gem", "attention"]


class _Layer(ConfigMixin, layers.Layer):
    """Base of the layers: computes in float32 under any dtype policy, or in float64 if asked to."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": full_precision(kwargs.get("dtype"))})


def _check_kind(
    layer: layers.Layer, input_shape: Sequence[int | None], kind: str, hint: str
) -> None:
    """Raises unless the input of a layer is of a `kind` of `_AXES`; Keras checks later inputs."""
    axes = _AXES[kind]
    if len(input_shape) != len(axes):
        raise ArgumentError(
            f"{type(layer).__name__} takes {kind} ({', '.join(axes)}). Received shape "
            f"{tuple(input_shape)}: {hint}."
        )
    layer.input_spec = keras.InputSpec(ndim=len(axes))


def _check_maps(layer: layers.Layer, input_shape: Sequence[int | None]) -> None:
    _check_kind(layer, input_shape, "feature maps", "use TokenPooling for tokens")


@keras.saving.register_keras_serializable("kerasim")
class Distance(_Layer):
    """The distance between two batches of vectors, row by row.

    The input is a list of two tensors `(batch, dim)`, the output `(batch, 1)`. The gradient is
    finite even if two vectors are equal or one is zero. Distances are computed in float32 under
    any dtype policy. "euclidean" and "squared_euclidean" have a relative error of about 1e-6, and
    are infinite where they exceed the range of float32; "cosine" has an error of about 1e-7 times
    the angle between the vectors.

    Args:
        metric: "euclidean", "squared_euclidean" or "cosine" (1 - cosine similarity, 0 to 2; 0.5
            for a vector of zeros, which has no direction).
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `metric` is unknown, or the layer is called on vectors of two sizes.

    Example:
        >>> left, right = np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])
        >>> float(Distance("euclidean")([left, right])[0, 0])
        5.0
    """

    def __init__(self, metric: PairMetric = "cosine", **kwargs: Any):
        _checks.one_of("metric", metric, PAIR_METRICS)
        super().__init__(**kwargs)
        self.metric = metric

    def build(self, input_shape: Sequence[tuple[int | None, ...]]) -> None:
        left, right = input_shape
        if left[-1] != right[-1]:
            raise ArgumentError(
                f"The two vectors have {left[-1]} and {right[-1]} numbers: pass embeddings "
                "of one model."
            )

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        left, right = inputs
        if self.metric == "cosine":
            # Half the squared distance of unit vectors is 1 - cosine, and exact near 0.
            squares = ops.square(l2_normalize(left) - l2_normalize(right))
            return ops.sum(squares, axis=-1, keepdims=True) / 2
        distances = safe_norm(left - right)
        return ops.square(distances) if self.metric == "squared_euclidean" else distances


@keras.saving.register_keras_serializable("kerasim")
class CosineClassifier(_Layer):
    """The cosine of each vector with a learned direction for each class, for `ArcFaceLoss`.

    The input is `(batch, dim)`, the output `(batch, num_classes)` in [-1, 1]. Train
    `keras.Sequential([embedder, CosineClassifier(10)])`, then keep the embedder. Cosines are
    computed in float32 under any dtype policy.

    Args:
        num_classes: Number of classes, 1 or more.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `num_classes` is less than 1.

    Example:
        >>> cosines = CosineClassifier(num_classes=10)(np.ones((4, 64)))
        >>> tuple(cosines.shape)
        (4, 10)

    Reference:
        Deng et al., 2019. https://arxiv.org/abs/1801.07698
    """

    def __init__(self, num_classes: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = _checks.integer("num_classes", num_classes)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = input_shape[-1], self.num_classes
        self.kernel = self.add_weight(shape, initializer="glorot_uniform", name="kernel")

    def call(self, inputs: Tensor) -> Tensor:
        return ops.matmul(l2_normalize(inputs), l2_normalize(self.kernel, axis=0))


@keras.saving.register_keras_serializable("kerasim")
class Sampling(_Layer):
    """Samples a latent vector from a Gaussian in training, and returns its mean at inference.

    The input is a list of two tensors `(batch, dim)`, the mean and the logarithm of the variance
    (clipped to [-10, 10]); the output is `(batch, dim)`. In training and in evaluation the layer
    adds a loss to its model: `weight` times the Kullback-Leibler divergence from a standard
    Gaussian, summed over the latent dimensions and averaged over the batch,
    `kl = sum(mean**2 + variance - 1 - log(variance)) / 2`. It computes in float32 under any dtype
    policy.

    A latent dimension of which the decoder makes no use collapses: its mean is 0 and its variance 1
    for every image, which costs nothing. Both arguments after `seed` counter this.

    Args:
        weight: Weight of the divergence in the loss, 0 or more.
        seed: Seed of the samples; None for a random seed.
        warmup_steps: Training steps in which the weight grows linearly from 0 to `weight`; 0 for
            none. Evaluation always uses `weight`.
        free_bits: Divergence of each dimension, averaged over the batch, in nats, that costs
            nothing: the loss is at least `weight * dim * free_bits`.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `weight`, `warmup_steps` or `free_bits` is negative.

    Example:
        >>> mean, log_variance = np.ones((4, 2)), np.zeros((4, 2))
        >>> sampling = Sampling(seed=0)
        >>> float(sampling([mean, log_variance])[0, 0])  # the mean, at inference
        1.0
        >>> float(sampling.losses[0])  # the divergence: 1 / 2 for each of 2 dimensions
        1.0

    Reference:
        Kingma & Welling, 2014. https://arxiv.org/abs/1312.6114; warm-up: Sønderby et al., 2016.
        https://arxiv.org/abs/1602.02282; free bits: Kingma et al., 2016.
        https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self,
        weight: float = 1.0,
        seed: int | None = None,
        warmup_steps: int = 0,
        free_bits: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.weight, self.seed = _checks.number("weight", weight, 0), seed
        self.warmup_steps = _checks.integer("warmup_steps", warmup_steps, 0)
        self.free_bits = _checks.number("free_bits", free_bits, 0)
        self.seeds = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        if self.warmup_steps:
            self.steps = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="steps"
            )

    def call(self, inputs: Sequence[Tensor], training: bool = False) -> Tensor:
        mean, log_variance = inputs
        log_variance = ops.clip(log_variance, -10.0, 10.0)
        parts = ops.square(mean) + ops.exp(log_variance) - 1 - log_variance
        divergences = ops.mean(parts, axis=0) / 2  # of each dimension
        if self.free_bits:
            divergences = ops.maximum(divergences, self.free_bits)
        weight: Any = self.weight
        if training and self.warmup_steps:
            weight = weight * ops.minimum(self.steps / self.warmup_steps, 1.0)
            self.steps.assign_add(1.0)
        self.add_loss(weight * ops.sum(divergences))
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), dtype=self.compute_dtype, seed=self.seeds)
        return mean + ops.exp(log_variance / 2) * noise


@keras.saving.register_keras_serializable("kerasim")
class TimeEmbedding(_Layer):
    """Sinusoidal embedding of a step, with wavelengths from 2 pi to at most 20,000 pi steps.

    The input is `(batch,)`, the output `(batch, dim)` float32 in [-1, 1]: `dim / 2` sines, then as
    many cosines.

    Args:
        dim: Embedding size, an even number.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `dim` is odd or less than 2.

    Example:
        >>> embeddings = TimeEmbedding(4)(np.array([0.0]))
        >>> keras.ops.convert_to_numpy(embeddings).tolist()
        [[0.0, 0.0, 1.0, 1.0]]

    Reference:
        Vaswani et al., 2017. https://arxiv.org/abs/1706.03762
    """

    def __init__(self, dim: int, **kwargs: Any):
        if _checks.integer("dim", dim, 2) % 2:
            raise ArgumentError(
                f"dim={dim} is odd: pass an even number, for as many sines as cosines."
            )
        super().__init__(**kwargs)
        self.dim = dim

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        # Without this, Keras calls the layer to find its shape: a large `dim` would fill the memory
        # while a model is loaded.
        return (*input_shape, self.dim)

    def call(self, inputs: Tensor) -> Tensor:
        rates = np.exp(-np.log(10_000) * np.arange(self.dim // 2) / (self.dim // 2))
        angles = ops.cast(inputs, self.compute_dtype)[:, None] * ops.cast(rates, self.compute_dtype)
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


@keras.saving.register_keras_serializable("kerasim")
class LogEnergy(_Layer):
    """The logarithm of the mean square of each channel: doubling the amplitude adds log 4.

    The input is `(batch, height, width, channels)`, the output `(batch, channels)`. It is computed
    in float32 under any dtype policy.

    Args:
        **kwargs: Passed to `keras.layers.Layer`.

    Example:
        >>> energy = LogEnergy()(2 * np.ones((1, 8, 8, 3)))
        >>> round(float(energy[0, 0]), 3)  # log 4
        1.386
    """

    def call(self, inputs: Tensor) -> Tensor:
        return ops.log(ops.mean(ops.square(inputs), axis=(1, 2)) + 1e-8)


@keras.saving.register_keras_serializable("kerasim")
class AttentionPooling(_Layer):
    """The weighted mean over the positions of a feature map, with weights from a small network.

    The input is `(batch, height, width, channels)`, the output `(batch, channels)`:
    `sum_i a_i x_i`, where `x_i` is the feature vector at position `i` and
    `a_i = softmax_i(w tanh(V x_i))`. Before training all positions have the same weight.

    Args:
        dim: Size of the hidden layer (rows of `V`), 1 or more.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `dim` is less than 1, or the layer is called on something else than
            feature maps.

    Example:
        >>> features = np.arange(8.0).reshape(1, 2, 2, 2)
        >>> pooled = AttentionPooling(dim=8)(features)  # untrained: the mean of each channel
        >>> keras.ops.convert_to_numpy(pooled).tolist()
        [[3.0, 4.0]]

    Reference:
        Ilse et al., 2018. https://arxiv.org/abs/1802.04712
    """

    def __init__(self, dim: int = 128, **kwargs: Any):
        super().__init__(**kwargs)
        self.dim = _checks.integer("dim", dim)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _check_maps(self, input_shape)
        self.hidden = self.add_weight(shape=(input_shape[-1], self.dim), name="hidden")
        # Before training all positions weigh the same.
        self.score = self.add_weight(shape=(self.dim, 1), initializer="zeros", name="score")

    def attend(self, features: Tensor) -> Tensor:
        """Returns the weight of each position in the mean.

        Args:
            features: `(batch, height, width, channels)`, the input of the layer.

        Returns:
            `(batch, height, width)`, from 0 to 1. The weights of an image sum to 1.
        """
        scores = ops.matmul(ops.tanh(ops.matmul(features, self.hidden)), self.score)[..., 0]
        # Not `ops.softmax`, which warns of maps of 1 x 1.
        weights = ops.exp(scores - ops.max(scores, axis=(1, 2), keepdims=True))
        return weights / ops.sum(weights, axis=(1, 2), keepdims=True)

    def call(self, inputs: Tensor) -> Tensor:
        return ops.sum(self.attend(inputs)[..., None] * inputs, axis=(1, 2))


@keras.saving.register_keras_serializable("kerasim")
class GeMPooling(_Layer):
    """The generalized mean of each channel of a feature map (GeM).

    The input is `(batch, height, width, channels)`, the output `(batch, channels)`:
    `mean(max(x, 1e-6) ** p) ** (1 / p)`, with a learned exponent `p`. `p = 1` is average pooling;
    as `p` grows, the result approaches max pooling.

    Args:
        p: Exponent before training, 1 or more.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `p` is less than 1, or the layer is called on something else than feature
            maps.

    Example:
        >>> features = np.array([1.0, 3.0, 5.0, 7.0]).reshape(1, 2, 2, 1)
        >>> round(float(GeMPooling(p=3.0)(features)[0, 0]), 2)  # mean 4, maximum 7
        4.99

    Reference:
        Radenovic et al., 2018. https://arxiv.org/abs/1711.02512
    """

    def __init__(self, p: float = 3.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.p = _checks.number("p", p, 1)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _check_maps(self, input_shape)
        constant = keras.initializers.Constant(self.p)
        self.exponent = self.add_weight(shape=(), initializer=constant, name="exponent")

    def call(self, inputs: Tensor) -> Tensor:
        powers = ops.power(ops.maximum(inputs, 1e-6), self.exponent)
        return ops.power(ops.mean(powers, axis=(1, 2)), 1 / self.exponent)


def _weighted_sums(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns `rows @ x @ columns.T` for each channel `x` of each feature map.

    These are matrix products instead of `einsum`, which TensorFlow's converter turns into an
    operation that LiteRT cannot run for a batch of any size.

    Args:
        maps: `(batch, height, width, channels)`, of the data type of the weights, because PyTorch
            does not convert integers.
        rows: `(new height, height)`.
        columns: `(new width, width)`.
    """
    x = ops.transpose(maps, (0, 3, 1, 2))
    x = ops.matmul(rows, ops.matmul(x, ops.transpose(columns)))
    return ops.transpose(x, (0, 2, 3, 1))


@keras.saving.register_keras_serializable("kerasim")
class GridPooling(_Layer):
    """The mean of each channel over each cell of a grid, concatenated row by row.

    The input is `(batch, height, width, channels)`, the output
    `(batch, rows * columns * channels)`: an embedding that keeps coarse positions. Cell `i` of `n`
    along an axis of length `size` goes from `floor(i * size / n)` to `ceil((i + 1) * size / n)`.
    Neighboring cells may therefore share a position if the size is not a multiple of `n`. Unlike
    `keras.layers.AdaptiveAveragePooling2D`, it takes maps of any size. It is computed in float32
    under any dtype policy.

    Args:
        grid: `(rows, columns)`, numbers of 1 or more. (1, 1) is average pooling.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `grid` is not two positive numbers, or the layer is called on something
            else than feature maps.

    Example:
        >>> features = np.arange(8.0).reshape(1, 2, 4, 1)
        >>> pooled = GridPooling(grid=(1, 2))(features)  # the left half, the right half
        >>> keras.ops.convert_to_numpy(pooled).tolist()
        [[2.5, 4.5]]

    Reference:
        Lazebnik et al., 2006 (spatial pyramid). https://doi.org/10.1109/CVPR.2006.68
    """

    def __init__(self, grid: tuple[int, int] = (3, 3), **kwargs: Any):
        super().__init__(**kwargs)
        self.grid = _check_grid(grid)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _check_maps(self, input_shape)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        channels = input_shape[-1]
        rows, columns = self.grid
        return input_shape[0], None if channels is None else rows * columns * channels

    def call(self, inputs: Tensor) -> Tensor:
        height, width = ops.shape(inputs)[1:3]
        rows, columns = self.grid
        weights = self._cell_weights(height, rows), self._cell_weights(width, columns)
        x = _weighted_sums(ops.cast(inputs, self.compute_dtype), *weights)
        return ops.reshape(x, (-1, rows * columns * inputs.shape[-1]))

    def _cell_weights(self, size: Tensor, count: int) -> Tensor:
        """Returns the weight of each of `size` positions in the mean of each of `count` cells."""
        positions = ops.arange(size, dtype="int32")[None]
        cells = ops.arange(count, dtype="int32")[:, None]
        starts, ends = cells * size // count, ((cells + 1) * size + count - 1) // count
        inside = ops.cast((positions >= starts) & (positions < ends), self.compute_dtype)
        return inside / ops.sum(inside, axis=1, keepdims=True)


@keras.saving.register_keras_serializable("kerasim")
class Whitening(_Layer):
    """Whitens vectors by PCA: centers and rotates them, and equalizes the variances of components.

    In frozen features, a few directions have most of the variance and dominate the cosine of two
    vectors. This layer projects the centered vector on the principal components of the vectors
    given to `adapt`, and divides each component by its standard deviation, raised to `power`:

    `y_i = (x - mean) . v_i / variance_i ** (power / 2)`

    where `v_i` is the direction of the `i`-th largest variance. With `power=1` all components have
    variance 1, as those of `sklearn.decomposition.PCA(whiten=True)`. With `power=0` they keep their
    variance. Values in between, often about 0.7, amplify noisy directions less than 1 does. Choose
    `power` and `components` on a validation split.

    The input is `(..., dim)`, the output `(..., components)`. Mean and directions are saved and
    exported with the model; `fit` does not change them. If the embedder before the layer is trained
    further, call `adapt` again. Before the first call of `adapt` the output is NaN.

    Args:
        components: Number of components that are kept, those of the largest variance; None for all.
        power: How far variances are equalized, from 0 (not at all) to 1 (completely).
        epsilon: Components with less than this share of the largest variance, from 0 to 1, are
            divided as if they had it.
        normalize: Whether the output is scaled to length 1.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If a number is out of range, or the size of the vectors is not fixed.

    Example:
        >>> embeddings = np.random.default_rng(0).normal(size=(100, 3)) * [1, 10, 100]
        >>> whitening = Whitening()
        >>> whitening.adapt(embeddings)
        >>> keras.ops.convert_to_numpy(whitening(embeddings)).std(axis=0, ddof=1).round(3).tolist()
        [1.0, 1.0, 1.0]

        Behind a frozen embedder, `keras.Sequential([embedder, whitening])` is one model.

    Reference:
        Jégou & Chum, 2012. https://hal.science/hal-00722622
    """

    def __init__(
        self,
        components: int | None = None,
        power: float = 1.0,
        epsilon: float = 1e-6,
        normalize: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.components = None if components is None else _checks.integer("components", components)
        self.power = _checks.number("power", power, 0, 1)
        self.epsilon = _checks.number("epsilon", epsilon, 0, 1)
        self.normalize = _checks.boolean("normalize", normalize)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = input_shape[-1]
        components = self._count(dim)
        # Without it, vectors of size 1 would be taken for `dim` equal numbers.
        self.input_spec = keras.InputSpec(axes={-1: dim})
        unknown = keras.initializers.Constant(float("nan"))  # never mistaken for whitened vectors
        self.mean = self.add_weight((dim,), initializer=unknown, trainable=False, name="mean")
        self.kernel = self.add_weight(
            (dim, components), initializer=unknown, trainable=False, name="kernel"
        )

    def _count(self, dim) -> int:
        """Returns the number of components of vectors of size `dim`."""
        if dim is None:
            raise ArgumentError(
                "Whitening takes vectors of a fixed size. Received vectors whose size is None: "
                "pass an embedder with a fixed image_shape, or another pooling."
            )
        if self.components is not None and self.components > dim:
            raise ArgumentError(
                f"components={self.components} is more than the {dim} dimensions of the vectors: "
                "pass fewer, or None for all."
            )
        return self.components or dim

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return *input_shape[:-1], self.components or input_shape[-1]

    def adapt(self, embeddings: ArrayLike) -> None:
        """Computes mean, directions and variances from embeddings, in float64.

        Args:
            embeddings: `(n, dim)`, of training images, such as `embedding.embed` returns. `n` must
                be larger than the number of components.

        Raises:
            ArgumentError: If they hold NaN or infinity, are too few, vary in fewer directions than
                there are components, are of another size than before, or too large or too small
                for float32.
            ArgumentTypeError: If they are images, not embeddings.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> whitening = Whitening(components=2, normalize=True)
            >>> whitening.adapt(rng.normal(size=(100, 8)))
            >>> tuple(whitening(rng.normal(size=(4, 8))).shape)
            (4, 2)
        """
        from sklearn.decomposition import PCA

        _refuse_images(embeddings)
        width = self.mean.shape[0] if self.built else None
        rows = _checks.vectors("embeddings", embeddings, width, rows=2).astype("float64")
        largest = float(np.finfo(self.variable_dtype).max)
        if np.abs(rows).max() > largest:
            raise ArgumentError(
                f"embeddings holds numbers up to {np.abs(rows).max():.3g}, too large for "
                f"{self.variable_dtype}, in which the layer computes: divide all of them by the "
                "same number."
            )
        count = self._count(rows.shape[1])
        if len(rows) <= count:
            raise ArgumentError(
                f"embeddings holds {len(rows)} rows, too few for {count} components: pass more "
                f"than {count} rows, or a smaller number as components."
            )
        mean = rows.mean(axis=0)
        rows -= mean  # or the covariance of vectors far from 0 would lose its digits
        if not rows.any():
            raise ArgumentError(
                "embeddings holds equal rows, which vary in no direction: check the embedder."
            )
        pca = PCA(count, svd_solver="covariance_eigh").fit(rows)
        variances = pca.explained_variance_
        varying = int((variances > _LEAST_VARIANCE * variances[0]).sum())
        if varying < count:
            directions = _checks.counted(varying, "direction", "directions")
            raise ArgumentError(
                f"embeddings varies in {directions} only, fewer than {count} components: "
                f"pass components={varying} or fewer."
            )
        variances = np.maximum(variances, self.epsilon * variances[0])
        kernel = pca.components_.T / variances ** (self.power / 2)
        if np.abs(kernel).max() > largest:
            raise ArgumentError(
                f"embeddings has standard deviations down to {variances.min() ** 0.5:.3g}, too "
                f"small for {self.variable_dtype}, in which the layer computes: multiply all of "
                "them by the same number."
            )
        if not self.built:
            self.build(rows.shape)
            self.built = True
        self.mean.assign(mean)
        self.kernel.assign(kernel)

    def call(self, inputs: Tensor) -> Tensor:
        x = ops.matmul(inputs - self.mean, self.kernel)
        return l2_normalize(x) if self.normalize else x


def _refuse_images(embeddings) -> None:
    """Raises if images are passed instead of their embeddings."""
    is_batches = isinstance(embeddings, keras.utils.PyDataset)
    if is_batches or len(getattr(embeddings, "shape", ())) == 4:
        raise ArgumentTypeError(
            f"embeddings is a {type(embeddings).__name__} of images, expected an array (n, dim): "
            "pass embedding.embed(embedder, images)."
        )


@keras.saving.register_keras_serializable("kerasim")
class TokenPooling(_Layer):
    """Pools the tokens of a vision transformer into one vector.

    The input is `(batch, tokens, dim)`, the output `(batch, dim)`. The first tokens, the prefix,
    are not patches of the image: the class token, and the registers of some networks. After them
    comes one token for each patch. It is computed in float32 under any dtype policy.

    | network | `num_prefix_tokens` |
    | --- | --- |
    | ViT, DeiT, CLIP, DINOv2: a class token | 1 (DeiT with distillation: 2) |
    | DINOv2 with registers, DINOv3: a class token and 4 registers | 5 |
    | SigLIP: patches only | 0 |

    Args:
        mode: "class" returns the first token, the class token. The others pool the patch tokens
            only: "average", "max", "gem" (`GeMPooling`) or "attention" (`AttentionPooling`, which
            is the average before training). "gem" is for features of 0 or more: it replaces
            smaller ones by 1e-6, and about half of the features of most transformers are negative.
        num_prefix_tokens: Number of tokens before the first patch, 0 or more.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `mode` is unknown, `num_prefix_tokens` is negative, or is 0 with "class",
            or the layer is called on something else than tokens, or on the prefix alone.

    Example:
        >>> tokens = np.array([[[9.0], [1.0], [3.0]]])  # a class token and two patches
        >>> [float(TokenPooling(mode)(tokens)[0, 0]) for mode in ("class", "average")]
        [9.0, 2.0]

    Reference:
        ViT: Dosovitskiy et al., 2021. https://arxiv.org/abs/2010.11929; registers: Darcet et al.,
        2024. https://arxiv.org/abs/2309.16588
    """

    def __init__(self, mode: _TokenMode = "class", num_prefix_tokens: int = 1, **kwargs: Any):
        _checks.one_of("mode", mode, get_args(_TokenMode))
        _checks.integer("num_prefix_tokens", num_prefix_tokens, 0)
        if mode == "class" and num_prefix_tokens == 0:
            raise ArgumentError(
                'mode="class" needs a class token, but num_prefix_tokens=0. Pass the number of '
                "tokens before the first patch, or another mode."
            )
        super().__init__(**kwargs)
        self.mode: _TokenMode = mode
        self.num_prefix_tokens = num_prefix_tokens
        # They pool feature maps: the patches are passed as a map with one column.
        poolings = {"gem": GeMPooling, "attention": AttentionPooling}
        if mode in poolings:
            self.pooling = poolings[mode](dtype=self.dtype_policy, name=mode)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        hint = "use GeMPooling, AttentionPooling or GridPooling for feature maps"
        _check_kind(self, input_shape, "tokens", hint)
        self._check_count(input_shape[1])
        if self.mode in ("gem", "attention"):
            self.pooling.build((None, None, 1, input_shape[2]))

    def _check_count(self, tokens: int | None) -> None:
        """Raises unless there is a patch among so many tokens, None if that is not known."""
        if tokens is not None and tokens <= self.num_prefix_tokens:
            raise ArgumentError(
                f"num_prefix_tokens={self.num_prefix_tokens} leaves no patch of {tokens} tokens: "
                "pass the number of tokens before the first patch."
            )

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape[0], input_shape[-1]

    def attend(self, features: Tensor) -> Tensor:
        """Returns the weight of each patch in the mean of attention pooling.

        Args:
            features: `(batch, tokens, dim)`, the input of the layer.

        Returns:
            `(batch, patches)`, from 0 to 1. The weights of an image sum to 1.

        Raises:
            ArgumentError: If `mode` is not "attention".
        """
        if self.mode != "attention":
            raise ArgumentError(
                f'mode={self.mode!r} has no weights: attend needs TokenPooling("attention").'
            )
        return self.pooling.attend(self._patches(features)[:, :, None])[..., 0]

    def _patches(self, tokens: Tensor) -> Tensor:
        self._check_count(tokens.shape[1])
        return tokens[:, self.num_prefix_tokens :]

    def call(self, inputs: Tensor) -> Tensor:
        if self.mode == "class":
            return inputs[:, 0]
        patches = self._patches(inputs)
        if self.mode == "average":
            return ops.mean(patches, axis=1)
        if self.mode == "max":
            return ops.max(patches, axis=1)
        return self.pooling(patches[:, :, None])


@keras.saving.register_keras_serializable("kerasim")
class PatchMap(_Layer):
    """Arranges the patch tokens of a vision transformer as a feature map.

    The input is `(batch, tokens, dim)`, the output `(batch, height, width, dim)`. The patches are
    in row-major order, as in the usual vision transformers.

    Args:
        grid: `(height, width)`: how many patches there are in each direction.
        num_prefix_tokens: Number of tokens before the first patch, which are left out; see
            `TokenPooling`.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `grid` is not two positive numbers, or `num_prefix_tokens` is negative, or
            the layer is called on something else than tokens, or on another number of patches.

    Example:
        >>> tokens = np.zeros((1, 1 + 16 * 16, 384))  # a class token and 256 patches
        >>> tuple(PatchMap(grid=(16, 16))(tokens).shape)
        (1, 16, 16, 384)
    """

    def __init__(self, grid: tuple[int, int], num_prefix_tokens: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.grid = _check_grid(grid)
        self.num_prefix_tokens = _checks.integer("num_prefix_tokens", num_prefix_tokens, 0)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _check_kind(self, input_shape, "tokens", "leave it out for feature maps")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape[0], *self.grid, input_shape[-1]

    def call(self, inputs: Tensor) -> Tensor:
        height, width = self.grid
        tokens = inputs.shape[1]
        if tokens is not None and tokens - self.num_prefix_tokens != height * width:
            raise ArgumentError(
                f"grid={self.grid} and num_prefix_tokens={self.num_prefix_tokens} make "
                f"{height * width + self.num_prefix_tokens} tokens. Received {tokens}: pass the "
                "grid of the patches and the number of tokens before the first one."
            )
        patches = inputs[:, self.num_prefix_tokens :]
        return ops.reshape(patches, (-1, height, width, patches.shape[-1]))


def _check_grid(grid) -> tuple[int, int]:
    """Returns `grid` as `(rows, columns)`."""
    sizes = _checks.as_list("grid", grid)
    if len(sizes) != 2:
        raise ArgumentError(f"grid={grid!r} has {len(sizes)} numbers: pass (rows, columns).")
    rows, columns = (_checks.integer("each of grid", size) for size in sizes)
    return rows, columns


@keras.saving.register_keras_serializable("kerasim")
class AntialiasedResizing(_Layer):
    """Resizes images by bilinear interpolation, filtered against aliasing when it shrinks them.

    The input is `(batch, h, w, channels)` of a fixed size, the output `(batch, height, width,
    channels)`. The result is that of `keras.layers.Resizing(height, width, antialias=True)`, which
    cannot be exported to ONNX; this layer can, because it computes two matrix products. It computes
    in float32 under any dtype policy.

    Args:
        height: Height of the output, 1 or more.
        width: Width of the output, 1 or more.
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If a size is less than 1, or the size of the input is not fixed.

    Example:
        >>> images = np.arange(16.0).reshape(1, 4, 4, 1)
        >>> tuple(AntialiasedResizing(2, 3)(images).shape)
        (1, 2, 3, 1)
    """

    def __init__(self, height: int, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.height = _checks.integer("height", height)
        self.width = _checks.integer("width", width)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _check_kind(self, input_shape, "images", "pass a batch of images")
        if None in input_shape[1:3]:
            raise ArgumentError(
                f"AntialiasedResizing takes images of a fixed size. Received {input_shape}: use "
                "keras.layers.Resizing(height, width, antialias=True)."
            )
        self.input_spec = keras.InputSpec(ndim=4, axes=dict(enumerate(input_shape[1:3], start=1)))
        self._rows = _resizing_weights(input_shape[1], self.height)
        self._columns = _resizing_weights(input_shape[2], self.width)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape[0], self.height, self.width, input_shape[-1]

    def call(self, inputs: Tensor) -> Tensor:
        rows, columns = (ops.cast(x, self.compute_dtype) for x in (self._rows, self._columns))
        return _weighted_sums(ops.cast(inputs, self.compute_dtype), rows, columns)


def _resizing_weights(size: Any, target: int) -> np.ndarray:
    """Returns the weight of each of `size` pixels in each of `target` pixels.

    A triangle around the center of the new pixel, as wide as the larger of an old and a new pixel
    to each side, and cut off at the border of the image.
    """
    scale = size / target
    centers = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.maximum(1 - distances, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@keras.saving.register_keras_serializable("kerasim")
class BackbonePreprocessing(_Layer):
    """Preprocesses RGB images in [0, 1] for a backbone of `keras.applications`.

    The input is `(batch, height, width, 3)`. It is multiplied by 255 and passed to the
    `preprocess_input` of that backbone ("squeezenet" uses that of VGG16); the shape stays the same.
    The layer computes in float32 under any dtype policy.

    Args:
        backbone: Name of the backbone in lower case, such as "resnet50".
        **kwargs: Passed to `keras.layers.Layer`.

    Raises:
        ArgumentError: If `backbone` is unknown.

    Example:
        >>> white = np.ones((1, 32, 32, 3))
        >>> float(BackbonePreprocessing("mobilenetv2")(white)[0, 0, 0, 0])  # range [-1, 1]
        1.0
    """

    def __init__(self, backbone: str, **kwargs: Any):
        self.find(backbone)
        super().__init__(**kwargs)
        self.backbone = backbone

    @staticmethod
    def find(name: str, argument: str = "backbone") -> Callable[..., keras.Model]:
        """Returns the function of `keras.applications` that builds the backbone called `name`.

        For "squeezenet", which Keras does not have, it returns the function of VGG16.

        Raises:
            ArgumentError: If the backbone is unknown. The message names `argument`.
        """
        builders = {key.lower(): key for key in dir(keras.applications) if key[0].isupper()}
        builders["squeezenet"] = "VGG16"
        _checks.one_of(argument, name, tuple(builders))
        return getattr(keras.applications, builders[name])

    def call(self, inputs: Tensor) -> Tensor:
        build = self.find(self.backbone)
        return sys.modules[build.__module__].preprocess_input(
            255 * inputs, data_format="channels_last"
        )
