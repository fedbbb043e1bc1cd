"""Solutions to the exercises of notebook 04, on the bundled digits.

Run with: python notebooks/solutions/04-denoising.py
"""

import keras
import numpy as np
from skimage.restoration import denoise_nl_means

from kerasim import data, embedding, metrics, models, neighbors, training

SEED = 0
SIGMA = 0.1
VALIDATION = 240  # training images in the validation split
BATCH_SIZE = 32


def load():
    """Returns the images of the training split and of the validation split."""
    digits = data.load_dataset("digits", image_size=24)
    return digits.x_train[:-VALIDATION], digits.x_train[-VALIDATION:]


def negative_psnr(x, denoised):
    """Returns the negative PSNR of each image, as a loss."""
    error = keras.ops.mean(keras.ops.square(x - denoised), axis=(1, 2, 3))
    return 10 * keras.ops.log10(error + 1e-8)


def train_denoiser(batches, loss=negative_psnr, epochs=4):
    """Returns the network with skip connections, trained on batches of noisy images."""
    keras.utils.set_random_seed(SEED)
    denoiser = models.denoising_autoencoder((24, 24, 1), (16, 32, 64), num_blocks=1)
    rate = training.warmup_cosine(epochs * len(batches), 2e-3)
    denoiser.compile(keras.optimizers.Adam(rate, global_clipnorm=10.0), loss)
    training.fit(denoiser, batches, epochs, verbose=0)
    return denoiser


def noise_of(x, sigma=SIGMA):
    """Returns batches of images with noise of one sigma."""
    return data.ImageBatches(x, batch_size=BATCH_SIZE, seed=SEED, sigma=sigma)


def difference(new, old, digits=2):
    """Returns the mean difference over the same images, and its 95 % interval."""
    low, high = metrics.bootstrap_interval(new - old)
    return f"{(new - old).mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def exercise_1():
    """One network for a range of noise: where does it gain, and where does it lose?"""
    x, x_val = load()
    ranged = data.NoiseBatches(
        x, 0.03, 0.3, target="images", batch_size=BATCH_SIZE, seed=SEED, clip=True
    )
    networks = {
        "trained with sigma 0.1": train_denoiser(noise_of(x)),
        "trained with sigma 0.03 to 0.3": train_denoiser(ranged),
    }
    for sigma in (0.03, SIGMA, 0.25):
        noisy = data.add_noise(x_val, sigma, seed=SEED + 1)
        psnrs = [metrics.psnr(noisy, x_val)]
        print(f"sigma {sigma}: noisy image {psnrs[0].mean():.2f} dB")
        for name, network in networks.items():
            psnrs.append(metrics.psnr(network.predict(noisy, verbose=0), x_val))
            gap = difference(psnrs[-1], psnrs[0])
            print(f"    {name}: {psnrs[-1].mean():.2f} dB, minus noisy image {gap}")
        print(f"    the range minus the single sigma: {difference(psnrs[2], psnrs[1])} dB")


def exercise_2():
    """The loss decides how images are weighted: by their error (MSE), or all alike (PSNR)."""
    x, x_val = load()
    noisy = data.add_noise(x_val, SIGMA, seed=SEED + 1)
    outputs = {
        name: train_denoiser(noise_of(x), loss).predict(noisy, verbose=0)
        for name, loss in (("PSNR", negative_psnr), ("MSE", "mse"))
    }
    psnrs = {name: metrics.psnr(output, x_val) for name, output in outputs.items()}
    errors = {name: 10 ** (-psnr / 10) for name, psnr in psnrs.items()}
    for name in outputs:
        print(f"loss {name}: {psnrs[name].mean():.2f} dB, MSE {errors[name].mean():.6f}")
    print(f"PSNR as the loss minus MSE as the loss: {difference(psnrs['PSNR'], psnrs['MSE'])} dB,")
    print(f"    MSE {difference(errors['PSNR'], errors['MSE'], 6)}")
    print("This is one seed of a short training; repeat it with others before you conclude.")


def non_local_means(noisy, strength):
    """Returns images denoised by non-local means, with a strength in units of sigma."""
    found = [
        denoise_nl_means(image[..., 0], 3, 6, h=strength * SIGMA, sigma=SIGMA) for image in noisy
    ]
    return np.clip(found, 0, 1).reshape(noisy.shape)


def exercise_3():
    """A query with a higher PSNR need not find more of the neighbors of the clean image."""
    x, x_val = load()
    keras.utils.set_random_seed(SEED)
    network = models.conv_autoencoder((24, 24, 1), dense_widths=(128, 256, 512))
    network.compile("adam", "mse")
    training.fit(network, data.ImageBatches(x, batch_size=BATCH_SIZE, seed=SEED), 8, verbose=0)
    encoder = network.get_layer("encoder")
    noisy = data.add_noise(x_val, SIGMA, seed=SEED + 1)
    # The strength is chosen on other images than the queries.
    tuned, tuned_noisy = x[:100], data.add_noise(x[:100], SIGMA, seed=SEED + 2)
    strength = max(
        (0.1, 0.2, 0.4),
        key=lambda h: metrics.psnr(non_local_means(tuned_noisy, h), tuned).mean(),
    )
    queries = {
        "noisy": noisy,
        "denoised by non-local means": non_local_means(noisy, strength),
        "denoised by the network": train_denoiser(noise_of(x)).predict(noisy, verbose=0),
    }
    index = neighbors.NeighborIndex("euclidean").fit(embedding.embed(encoder, x))
    wanted = index.query(embedding.embed(encoder, x_val), k=10)[1]
    recalls = {}
    for name, query in queries.items():
        found = index.query(embedding.embed(encoder, query), k=10)[1]
        recalls[name] = metrics.neighbor_overlap(found, wanted)
        psnr = metrics.psnr(query, x_val).mean()
        print(f"{name}: {psnr:.2f} dB, recall {recalls[name].mean():.3f}")
    _, by_means, by_network = recalls.values()
    print("recall, network minus non-local means:", difference(by_network, by_means, 3))


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
