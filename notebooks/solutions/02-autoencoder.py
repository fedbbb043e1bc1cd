"""Solutions to the exercises of notebook 02, on the bundled digits.

Run with: python notebooks/solutions/02-autoencoder.py
"""

import keras
import numpy as np
from sklearn.decomposition import PCA

from kerasim import data, embedding, metrics, models, training

SEED = 0
VALIDATION = 240  # training images in the validation split
BATCH_SIZE = 32
EPOCHS = 8


def load():
    """Returns the images and labels of the training split, and those of the validation split."""
    digits = data.load_dataset("digits", image_size=24)
    x, y = digits.x_train, digits.y_train
    return x[:-VALIDATION], y[:-VALIDATION], x[-VALIDATION:], y[-VALIDATION:]


def train(x, latent_dim=10, loss="mse", epochs=EPOCHS):
    """Returns the network of the report, trained on `x`."""
    keras.utils.set_random_seed(SEED)
    network = models.conv_autoencoder((24, 24, 1), latent_dim, dense_widths=(128, 256, 512))
    network.compile("adam", loss)
    batches = data.ImageBatches(x, batch_size=BATCH_SIZE, seed=SEED)
    training.fit(network, batches, epochs, verbose=0)
    return network


def squared_errors(output, x):
    """Returns the MSE of each image."""
    return np.mean((output - x) ** 2, axis=(1, 2, 3))


def difference(new, old):
    """Returns the mean difference over the same images, and its 95 % interval."""
    low, high = metrics.bootstrap_interval(new - old)
    return f"{(new - old).mean():+.4f} ({low:+.4f} to {high:+.4f})"


def exercise_1():
    """How does the MSE depend on the number of latent dimensions?"""
    x, _, x_val, _ = load()
    pixels, pixels_val = embedding.pixels(x), embedding.pixels(x_val)
    errors = {}
    for latent_dim in (5, 10, 20):
        pca = PCA(latent_dim, random_state=SEED).fit(pixels)
        projected = pca.inverse_transform(pca.transform(pixels_val)).reshape(x_val.shape)
        by_pca = squared_errors(projected, x_val)
        output = train(x, latent_dim).predict(x_val, verbose=0)
        errors[latent_dim] = squared_errors(output, x_val)
        print(f"{latent_dim} dimensions: PCA {by_pca.mean():.4f}, network", end=" ")
        print(f"{errors[latent_dim].mean():.4f}, network minus PCA", end=" ")
        print(difference(errors[latent_dim], by_pca))
    print("network, 20 minus 10 dimensions:", difference(errors[20], errors[10]))
    print("The MSE of PCA must fall with each dimension. That of a network need not: training")
    print("has to find the use of each, and all runs are equally short.")


def exercise_2():
    """The mean minimizes the squared error, the median the absolute error."""
    x, _, x_val, _ = load()
    outputs = {loss: train(x, loss=loss).predict(x_val, verbose=0) for loss in ("mse", "mae")}
    squared, absolute, gray = {}, {}, {}
    for loss, output in outputs.items():
        squared[loss] = squared_errors(output, x_val)
        absolute[loss] = np.abs(output - x_val).mean(axis=(1, 2, 3))
        gray[loss] = ((output > 0.1) & (output < 0.9)).mean()
        print(
            f"loss {loss}: MSE {squared[loss].mean():.4f}, MAE {absolute[loss].mean():.4f},", end=""
        )
        print(f" {100 * gray[loss]:.0f} % of the pixels between 0.1 and 0.9")
    print("mae minus mse as the loss: MSE", difference(squared["mae"], squared["mse"]), end=", ")
    print("MAE", difference(absolute["mae"], absolute["mse"]))
    print("Where a pixel is black in most images with the same code, the median is black, but the")
    print("mean is gray. So the network trained with mae draws fewer gray pixels.")


def exercise_3():
    """A network that has seen one class only."""
    x, y, x_val, y_val = load()
    own, other = 0, 1
    # Ten times the epochs, because the images of one class are about a tenth of all.
    networks = {
        "all classes": train(x),
        f"class {own} only": train(x[y == own], epochs=10 * EPOCHS),
    }
    means = {label: x[y == label].mean(axis=0) for label in (own, other)}
    for label in (own, other):
        images = x_val[y_val == label]
        errors = []
        for name, network in networks.items():
            output = network.predict(images, verbose=0)
            errors.append(squared_errors(output, images))
            nearer = squared_errors(output, means[own]) < squared_errors(output, means[other])
            print(
                f"images of class {label}, network of {name}: MSE {errors[-1].mean():.4f}, ", end=""
            )
            print(f"{100 * nearer.mean():.0f} % of the outputs nearer to the mean image of {own}")
        print(f"    class {own} only minus all classes: {difference(errors[1], errors[0])}")
    print("The decoder can only draw what it has learned: variations of its own class.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
