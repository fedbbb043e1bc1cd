"""Trains each builder on the bundled digits, and measures it on test images in inference mode.

Each function trains one network with one seed and returns its figures, with those of its baselines.
`python -m tests.helpers.learning NAME SEED ...` prints them with the CPU time, for a table of
results.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from kerasim import data, diffusion, embedding, losses, metrics, models, training
from kerasim.neighbors import NeighborIndex

DIGITS = data.load_dataset("digits")
IMAGE_SHAPE = DIGITS.x_train.shape[1:]
# The digits without their margin of 4 black pixels: no information less, and half of the work.
# Reconstructions are measured on whole images, because black pixels lower the mean squared error.
X_TRAIN, X_TEST = (x[:, 4:-4, 4:-4] for x in (DIGITS.x_train, DIGITS.x_test))
INNER_SHAPE = X_TRAIN.shape[1:]
# Thresholds are chosen on the last training images, which the embedders do not train on.
FITTED = slice(0, 1200)
VALIDATION = slice(1200, None)
EMBEDDERS = {
    "conv_embedder": lambda: models.conv_embedder(INNER_SHAPE, 64, (32, 64, 128)),
    "resnet_embedder": lambda: models.resnet_embedder(INNER_SHAPE, 64, (16, 32, 64, 128)),
}


def fit(model, loss, batches, epochs, learning_rate, **optimizer):
    """Trains with Adam, a warm-up over a tenth of the steps and a cosine schedule down to zero."""
    steps = epochs * len(batches)
    warmup_steps = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup_steps, warmup_target=learning_rate, warmup_steps=warmup_steps
    )
    model.compile(keras.optimizers.Adam(schedule, **optimizer), loss)
    with tempfile.TemporaryDirectory() as folder:
        history = training.fit(model, batches, epochs, Path(folder) / "run", verbose=0)
    assert np.isfinite(history["loss"]).all()


def mean_squared_error(images):
    return float(np.mean(np.square(images - DIGITS.x_test)))


def principal_components(count):
    """Returns the test images reconstructed from `count` principal components of training."""
    from sklearn.decomposition import PCA

    rows = [x.reshape(len(x), -1) for x in (DIGITS.x_train, DIGITS.x_test)]
    pca = PCA(count, random_state=0).fit(rows[0])
    return pca.inverse_transform(pca.transform(rows[1])).reshape(DIGITS.x_test.shape)


def autoencoder(builder, seed):
    """Mean squared error of reconstructions from 10 latent dimensions."""
    keras.utils.set_random_seed(seed)
    sizes = {
        "conv_autoencoder": {"dense_widths": (256, 512)},
        "residual_autoencoder": {"widths": (16, 32, 64), "dense_width": 256},
    }
    model = getattr(models, builder)(IMAGE_SHAPE, latent_dim=10, **sizes[builder])
    batches = data.ImageBatches(DIGITS.x_train, batch_size=32, seed=seed)
    fit(model, "mse", batches, 20, 2e-3)
    return {
        "mse": mean_squared_error(model.predict(DIGITS.x_test, verbose=0)),
        "mean image": mean_squared_error(DIGITS.x_train.mean(axis=0)),
        "10 principal components": mean_squared_error(principal_components(10)),
    }


def non_local_means(noisy, sigma, size, distance, strength):
    from skimage.restoration import denoise_nl_means

    cleaned = [
        denoise_nl_means(image[..., 0], size, distance, strength * sigma, sigma=sigma)
        for image in noisy
    ]
    return np.clip(cleaned, 0, 1)[..., None].astype("float32")


def denoiser(seed, sigma=0.25):
    """Mean PSNR of cleaned test images, in decibels."""
    keras.utils.set_random_seed(seed)
    model = models.denoising_autoencoder(IMAGE_SHAPE, widths=(16, 32, 64))
    batches = data.NoiseBatches(
        DIGITS.x_train, low=sigma, high=sigma, target="images", batch_size=32, seed=seed
    )
    fit(model, "mse", batches, 5, 2e-3)
    noisy = data.add_noise(DIGITS.x_test, sigma, seed=seed + 1, clip=False)
    results = {
        "denoising_autoencoder": model.predict(noisy, verbose=0),
        "noisy": np.clip(noisy, 0, 1),
        "non-local means": non_local_means(noisy, sigma, *BEST_NON_LOCAL_MEANS),
    }
    return {
        name: float(metrics.psnr(images, DIGITS.x_test).mean()) for name, images in results.items()
    }


# Patch size, patch distance and strength; the best of 24 settings on training images.
BEST_NON_LOCAL_MEANS = 7, 6, 0.6


def embedding_figures(embeddings, validation=None, metric="cosine"):
    """Measures all pairs of test images and the nearest other test image of each."""
    result = pairwise_verification(embeddings, DIGITS.y_test, metric)
    found = metrics.retrieval(embeddings, DIGITS.y_test, metric=metric, ks=(1,))
    figures = {
        "auc": result.auc,
        "eer": result.eer,
        "frr": result.error_rates(result.threshold(0.01))["frr"],
        "p@1": found["precision@1"],
        # 1 if all embeddings have collapsed to one direction.
        "mean cosine": 1 - float(np.mean(all_pairs_distances(embeddings, "cosine"))),
    }
    if validation is not None:
        chosen = pairwise_verification(validation, DIGITS.y_train[VALIDATION], metric).threshold(
            0.01
        )
        rates = result.error_rates(chosen)
        figures |= {"far, chosen threshold": rates["far"], "frr, chosen threshold": rates["frr"]}
    return figures


def all_pairs_distances(embeddings, metric):
    left, right = np.triu_indices(len(embeddings), 1)
    return metrics.pair_distances(embeddings[left], embeddings[right], metric)


def pairwise_verification(embeddings, labels, metric):
    left, right = np.triu_indices(len(embeddings), 1)
    distances = all_pairs_distances(embeddings, metric)
    return metrics.verification(distances, labels[left] == labels[right])


def with_yardsticks(embedder, untrained, metric):
    """Returns the figures of an embedder, of the untrained one and of raw pixels."""
    pixels = X_TEST.reshape(len(X_TEST), -1)
    validation = embedding.embed(embedder, X_TRAIN[VALIDATION])
    return {
        "trained": embedding_figures(embedding.embed(embedder, X_TEST), validation, metric),
        "untrained": embedding_figures(untrained, metric=metric),
        "pixels": embedding_figures(pixels, metric=metric),
    }


def balanced_batches(images_per_class, steps_per_epoch, seed, shift=0):
    """Returns batches of all ten digits, without the validation images."""
    return data.BalancedBatches(
        X_TRAIN[FITTED],
        DIGITS.y_train[FITTED],
        classes_per_batch=10,
        images_per_class=images_per_class,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        shift=shift,
    )


def train_embedder(builder, seed, steps=120):
    """Returns an embedder trained with SupCon, and its untrained embeddings of test images."""
    keras.utils.set_random_seed(seed)
    embedder = EMBEDDERS[builder]()
    untrained = embedding.embed(embedder, X_TEST)
    # Shifts by one pixel are better than none on the validation images.
    batches = balanced_batches(8, steps // 8, seed, shift=1)
    fit(embedder, losses.SupConLoss(), batches, 8, 5e-3)
    return embedder, untrained


def supcon(builder, seed):
    return with_yardsticks(*train_embedder(builder, seed), "cosine")


def ensemble(members):
    embedders = {model.name: model for model in (*members, models.ensemble(members))}
    return {
        name: embedding_figures(embedding.embed(model, X_TEST)) for name, model in embedders.items()
    }


def siamese(seed, steps=200):
    """Equal error rate over all pairs of test images, Euclidean distance."""
    keras.utils.set_random_seed(seed)
    embedder = models.conv_embedder(INNER_SHAPE, 32, (16, 32, 64))
    untrained = embedding.embed(embedder, X_TEST)
    batches = data.PairBatches(
        X_TRAIN[FITTED],
        DIGITS.y_train[FITTED],
        n=64 * steps // 8,
        batch_size=64,
        seed=seed,
    )
    fit(
        models.siamese(embedder, metric="euclidean"),
        losses.ContrastiveLoss(margin=5.0),
        batches,
        8,
        5e-3,
    )
    return with_yardsticks(embedder, untrained, "euclidean")


def cross_entropy(images, reference):
    """Mean over images of the binary cross-entropy, in nats an image."""
    images = np.clip(images.astype("float64"), 1e-7, 1 - 1e-7)
    values = reference * np.log(images) + (1 - reference) * np.log(1 - images)
    return float(-values.sum(axis=(1, 2, 3)).mean())


def vae(seed):
    """The negative evidence lower bound of test images in nats, codes sampled."""
    keras.utils.set_random_seed(seed)
    model = models.vae(INNER_SHAPE, latent_dim=20, widths=(16, 32), dense_width=256)
    batches = data.ImageBatches(X_TRAIN, batch_size=32, seed=seed)
    fit(model, "binary_crossentropy", batches, 16, 2e-3)
    encoder = model.get_layer("encoder")
    parts = [encoder.get_layer(name).output for name in ("mean", "log_variance")]
    mean, log_variance = keras.Model(encoder.inputs[0], parts).predict(X_TEST, verbose=0)
    log_variance = np.clip(log_variance, -10, 10)
    divergence = (mean**2 + np.exp(log_variance) - 1 - log_variance).mean(axis=0) / 2
    noise = np.random.default_rng(seed).standard_normal(mean.shape)
    codes = (mean + np.exp(log_variance / 2) * noise).astype("float32")
    images = model.get_layer("decoder").predict(codes, verbose=0)
    return {
        "bound": cross_entropy(images, X_TEST) + float(divergence.sum()),
        "bound of zero divergence": cross_entropy(X_TRAIN.mean(axis=0)[None], X_TEST),
        "entropy of the targets": cross_entropy(X_TEST, X_TEST),
        "active dimensions": int((divergence > 0.1).sum()),
    }


def classifier(embedder):
    """Returns a function from images to labels, and its accuracy on test images.

    An image has the label of the training image that is nearest to it by cosine distance.
    """
    index = NeighborIndex(metric="cosine").fit(embedding.embed(embedder, X_TRAIN))

    def classify(images):
        return DIGITS.y_train[index.query(embedding.embed(embedder, images), k=1)[1][:, 0]]

    return classify, float(np.mean(classify(X_TEST) == DIGITS.y_test))


def unet(seed, embedder):
    """Share of samples whose requested class a classifier by `embedder` confirms."""
    keras.utils.set_random_seed(seed)
    schedule = diffusion.NoiseSchedule(1000, "cosine")
    # A patch of 3 x 3 is one pixel of the original digit.
    model = models.unet(
        INNER_SHAPE, widths=(16, 32), patch_size=3, num_classes=10, schedule=schedule
    )
    batches = data.DiffusionBatches(
        X_TRAIN,
        schedule,
        DIGITS.y_train,
        batch_size=32,
        seed=seed,
        weighting="velocity",
    )
    fit(model, "mse", batches, 24, 4e-3, use_ema=True, ema_momentum=0.99)
    labels = np.repeat(np.arange(10), 20)
    images = diffusion.sample(
        model,
        schedule,
        (len(labels), *INNER_SHAPE),
        steps=20,
        labels=labels,
        guidance=2.0,
        seed=seed,
    )
    classify, accuracy = classifier(embedder)
    return {
        "confirmed": float(np.mean(classify(images) == labels)),
        "accuracy of the classifier": accuracy,
        "spread": float(images.std(axis=0).mean()),
        "spread of test images": float(X_TEST.std(axis=0).mean()),
    }


def noise_estimator(seed):
    """Median relative error of the estimated sigma of test images, each with noise six times."""
    keras.utils.set_random_seed(seed)
    model = models.noise_estimator(IMAGE_SHAPE, widths=(16, 16, 16), dense_width=32)
    rng = np.random.default_rng(seed)
    images = np.repeat(DIGITS.x_test, 6, axis=0)
    sigma = np.exp(rng.uniform(np.log(0.05), np.log(0.8), len(images)))
    noise = rng.standard_normal(images.shape, dtype="float32")
    noisy = images + sigma[:, None, None, None].astype("float32") * noise

    def median_error():
        return float(np.median(np.abs(model.predict(noisy, verbose=0)[:, 0] / sigma - 1)))

    differences = median_error()  # which the network returns before training
    batches = data.NoiseBatches(DIGITS.x_train, batch_size=32, seed=seed)
    fit(model, "mean_absolute_percentage_error", batches, 17, 5e-3)
    return {"median error": median_error(), "differences of neighbors": differences}


POOLINGS = ("attention", "gem", "max", "average", "flatten")


def pretrained(pooling, seed, steps=50):
    """Figures of a SqueezeNet with random weights after a short training of all its layers.

    Its last features have a sixteenth of the size of the images: these are enlarged to 48 x 48.
    """
    keras.utils.set_random_seed(seed)
    height, width, channels = INNER_SHAPE
    squeezenet = models.pretrained_embedder(
        "squeezenet",
        weights=None,
        pooling=pooling,
        embedding_dim=32,
        image_shape=(2 * height, 2 * width, channels),
        trainable=True,
    )
    enlarge = keras.layers.UpSampling2D(2, interpolation="bilinear")
    embedder = keras.Sequential([keras.Input(INNER_SHAPE), enlarge, squeezenet])
    untrained = embedding.embed(embedder, X_TEST)
    batches = balanced_batches(4, steps // 5, seed)
    fit(embedder, losses.SupConLoss(), batches, 5, 1e-3)
    return with_yardsticks(embedder, untrained, "cosine")


RECIPES = {
    "conv_autoencoder": lambda seed: autoencoder("conv_autoencoder", seed),
    "residual_autoencoder": lambda seed: autoencoder("residual_autoencoder", seed),
    "denoising_autoencoder": denoiser,
    "conv_embedder": lambda seed: supcon("conv_embedder", seed),
    "resnet_embedder": lambda seed: supcon("resnet_embedder", seed),
    "ensemble": lambda seed: ensemble([train_embedder(name, seed)[0] for name in EMBEDDERS]),
    "siamese": siamese,
    "vae": vae,
    "unet": lambda seed: unet(seed, train_embedder("conv_embedder", seed)[0]),
    "noise_estimator": noise_estimator,
    **{f"pretrained_{p}": lambda seed, p=p: pretrained(p, seed) for p in POOLINGS},
}


def main(name, *seeds):
    for seed in map(int, seeds):
        start = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
        figures = RECIPES[name](seed)
        wall = time.time() - start[0]
        cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime - start[1]
        print(name, "seed", seed, f"wall {wall:.0f} s, CPU {cpu:.0f} s", flush=True)
        nested = figures if isinstance(next(iter(figures.values())), dict) else {"": figures}
        for row, values in nested.items():
            print("   ", row, ", ".join(f"{key} {value:.4f}" for key, value in values.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
