"""Solutions to the exercises of notebook 09, on the bundled digits.

Run with: python notebooks/solutions/09-vae.py
"""

import keras
import numpy as np

from kerasim import data, embedding, metrics, models, neighbors, training

SEED = 0
LATENT_DIM = 20
BATCH_SIZE = 32
STEPS = 500
VALIDATION = 240  # training images in the validation split


def load():
    """Returns the images and labels of the training split and of the validation split."""
    digits = data.load_dataset("digits", image_size=24)
    x, y = digits.x_train, digits.y_train
    return x[:-VALIDATION], y[:-VALIDATION], x[-VALIDATION:], y[-VALIDATION:]


def train(x, beta=1.0):
    """Trains a VAE with KL warm-up and returns it."""
    keras.utils.set_random_seed(SEED)
    network = models.vae(
        x.shape[1:], LATENT_DIM, (16, 32), 256, beta=beta, beta_warmup_steps=STEPS // 3
    )
    batches = data.ImageBatches(x, batch_size=BATCH_SIZE, seed=SEED)
    epochs = -(-STEPS // len(batches))
    rate = training.warmup_cosine(epochs * len(batches), 1.5e-3)
    network.compile(keras.optimizers.Adam(rate), "binary_crossentropy")
    training.fit(network, batches, epochs, verbose=0)
    return network


def bound_parts(network, x):
    """Returns the mean cross-entropy and the mean divergence of images, in nats."""
    encoder = network.get_layer("encoder")
    heads = [encoder.get_layer(name).output for name in ("mean", "log_variance")]
    mean, log_variance = keras.Model(encoder.input, heads).predict(x, verbose=0)
    divergence = np.sum(mean**2 + np.exp(log_variance) - 1 - log_variance, axis=1) / 2
    bound = -models.log_likelihood_bound(network, x, samples=1, seed=SEED)
    return bound.mean() - divergence.mean(), divergence.mean()


def mean_squared_error(network, x):
    return float(np.mean((network.predict(x, verbose=0) - x) ** 2))


def exercise_1():
    """A larger weight of the divergence: fewer dimensions are worth their cost."""
    x, _, x_val, _ = load()
    counts = {}
    for beta in (1.0, 4.0):
        network = train(x, beta)
        means = embedding.embed(network.get_layer("encoder"), x_val)
        counts[beta] = int(metrics.active_dimensions(means).sum())
        entropy, divergence = bound_parts(network, x_val)
        print(
            f"beta {beta:g}: {counts[beta]} of {LATENT_DIM} dimensions active, "
            f"cross-entropy {entropy:.1f} nats, divergence {divergence:.1f} nats"
        )
    fewer = "fewer" if counts[4.0] < counts[1.0] else "not fewer"
    print(f"With beta=4 {fewer} dimensions are active: less divergence, more cross-entropy.")


def exercise_2():
    """Codes nearer to the origin: how near are samples to training images, and how varied?"""
    x = load()[0]
    decoder = train(x).get_layer("decoder")
    index = neighbors.NeighborIndex("euclidean").fit(embedding.pixels(x))
    codes = np.random.default_rng(SEED).standard_normal((500, LATENT_DIM), dtype="float32")
    nearest, variety = {}, {}
    for factor in (1.0, 0.5):
        samples = embedding.pixels(decoder.predict(factor * codes, verbose=0))
        nearest[factor] = np.median(index.query(samples, k=1)[0])
        apart = metrics.pair_distances(samples[:250], samples[250:], "euclidean")
        variety[factor] = apart.mean()
        print(
            f"codes times {factor}: {nearest[factor]:.2f} to the nearest training image, "
            f"{variety[factor]:.2f} between two samples"
        )
    nearer = "nearer to" if nearest[0.5] < nearest[1.0] else "not nearer to"
    kept = 100 * variety[0.5] / variety[1.0]
    print(f"With half the codes, samples are {nearer} training images; {kept:.0f} % of the variety")
    print("is left: smaller codes decode to images that resemble the code of the origin.")


def exercise_3():
    """A class that was left out: how much worse are its reconstructions?"""
    x, y, x_val, y_val = load()
    left_out = 8
    unseen = x_val[y_val == left_out]
    errors = {}
    for name, chosen in (("all classes", y >= 0), (f"without {left_out}", y != left_out)):
        network = train(x[chosen])
        errors[name] = mean_squared_error(network, unseen)
        rest = mean_squared_error(network, x_val[y_val != left_out])
        print(f"{name}: MSE {errors[name]:.4f} of class {left_out}, {rest:.4f} of the others")
    seen, without = errors.values()
    print(f"Without the class its error is {without / seen:.2f} times as large.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
