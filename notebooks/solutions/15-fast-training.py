"""Solutions to the exercises of notebook 15, on the bundled digits.

Run with: python notebooks/solutions/15-fast-training.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before Keras is imported

import keras
import numpy as np

from kerasim import data, embedding, layers, metrics, training

VALIDATION = 240  # the last training images are the queries
EPOCHS, BATCH = 10, 100


def whitening_filters(x):
    """Returns the filters of a convolution of 2 x 2 pixels: whitened, and their negatives."""
    patches = np.lib.stride_tricks.sliding_window_view(4 * data.as_float(x) - 2, (2, 2), (1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 4)
    moments, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = (directions / np.sqrt(moments + 5e-4)).reshape(2, 2, 1, -1)
    return np.concatenate([filters, -filters], axis=-1)


def build(x, whitened=True, identity=True):
    """Returns the fast network of the notebook, or one that lacks an ingredient."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((24, 24, 1))
    scaled = keras.layers.Rescaling(4.0, offset=-2.0)(inputs)
    first = keras.layers.Conv2D(8, 2, trainable=not whitened)
    outputs = keras.layers.ReLU()(first(scaled))
    convolutions = []
    for width in (16, 32, 32):
        for pooled in (True, False):
            convolutions.append(keras.layers.Conv2D(width, 3, padding="same", use_bias=False))
            outputs = convolutions[-1](outputs)
            if pooled:
                outputs = keras.layers.MaxPooling2D()(outputs)
            norm = keras.layers.BatchNormalization(momentum=0.6, epsilon=1e-5, scale=False)
            outputs = keras.layers.ReLU()(norm(outputs))
    outputs = keras.layers.GlobalMaxPooling2D()(outputs)
    embedder = keras.Model(inputs, keras.layers.UnitNormalization()(outputs))
    if whitened:
        first.set_weights([whitening_filters(x), np.zeros(8)])
    for convolution in convolutions if identity else ():
        (kernel,) = convolution.get_weights()
        kept = np.arange(min(kernel.shape[2:]))
        kernel[:, :, :, kept] = 0
        kernel[1, 1, kept, kept] = 1
        convolution.set_weights([kernel])
    return embedder


def train(images, smoothing=0.2, **ingredients):
    """Returns an embedder after training, and its precision@1 after the first epoch."""
    x, y = images.x_train[:-VALIDATION], images.y_train[:-VALIDATION]
    embedder = build(x, **ingredients)
    logits = layers.CosineClassifier(10)(embedder.output)
    classifier = keras.Model(embedder.input, keras.layers.Rescaling(10.0)(logits))
    steps = len(x) // BATCH
    rate = training.warmup_cosine(EPOCHS * steps, 0.73, EPOCHS * steps // 5)
    optimizer = keras.optimizers.SGD(rate, 0.85, nesterov=True, weight_decay=0.0089)

    def loss(y_true, y_pred):
        targets = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), 10)
        return keras.losses.categorical_crossentropy(targets, y_pred, True, smoothing)

    classifier.compile(optimizer, loss)
    batches = data.BalancedBatches(x, y, 10, BATCH // 10, steps, shift=1)
    early = []
    after_first = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epoch or early.append(scores(embedder, images)[0].mean())
    )
    training.fit(classifier, batches, EPOCHS, callbacks=[after_first], verbose=0)
    return embedder, early[0]


def scores(embedder, images):
    """Returns precision@1 and MAP@R of each validation image."""
    gallery = embedding.embed(embedder, images.x_train[:-VALIDATION], progress=False)
    queries = embedding.embed(embedder, images.x_train[-VALIDATION:], progress=False)
    labels = images.y_train[-VALIDATION:]
    found = metrics.retrieval(
        queries, labels, gallery, images.y_train[:-VALIDATION], ks=(1,), per_query=True
    )
    return found["precision@1"], found["map@r"]


def compare(images, baseline, **changes):
    """Prints what a change does after the first epoch and after the last."""
    embedder, early = train(images, **changes)
    print(f"   precision@1 after the first epoch: {early:.3f}, unchanged network {baseline[1]:.3f}")
    for name, new, old in zip(
        ("precision@1", "MAP@R"), scores(embedder, images), baseline[0], strict=True
    ):
        low, high = metrics.bootstrap_interval(new - old)
        print(f"   {name}: {new.mean():.3f}, minus {old.mean():.3f}: {low:+.3f} to {high:+.3f}")


def exercise_1(images, baseline):
    """Replaces the whitened filters by random ones, which are trained."""
    compare(images, baseline, whitened=False)


def exercise_2(images, baseline):
    """Trains without label smoothing."""
    compare(images, baseline, smoothing=0.0)


def exercise_3(images, baseline):
    """Starts the convolutions at random instead of as the identity."""
    compare(images, baseline, identity=False)


def main():
    images = data.load_dataset("digits", image_size=24, dtype="uint8")
    embedder, early = train(images)
    baseline = scores(embedder, images), early
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise(images, baseline)


if __name__ == "__main__":
    main()
