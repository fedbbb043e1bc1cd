"""Each builder learns on the bundled digits: its figures on test images beat the yardsticks.

`make test` trains with one seed; with KERASIM_TEST_LEARN=1 (`make test-learn`) with three.
"""

import functools
import os

import pytest

from tests.helpers import learning

LEARN = os.environ.get("KERASIM_TEST_LEARN") == "1"
SEEDS = (0, 1, 2) if LEARN else (0,)
EVERY_SEED = pytest.mark.parametrize("seed", SEEDS)
train_embedder = functools.cache(learning.train_embedder)


@EVERY_SEED
@pytest.mark.parametrize("builder", ["conv_autoencoder", "residual_autoencoder"])
def test_an_autoencoder_reconstructs_better_than_principal_components(builder, seed):
    figures = learning.autoencoder(builder, seed)
    assert figures["mse"] <= 0.0070, figures
    assert figures["mse"] < figures["10 principal components"] < figures["mean image"]


@EVERY_SEED
def test_a_denoiser_is_4_dB_above_non_local_means(seed):
    figures = learning.denoiser(seed)
    assert figures["denoising_autoencoder"] >= 4 + figures["non-local means"], figures
    assert figures["non-local means"] > figures["noisy"]


@EVERY_SEED
@pytest.mark.parametrize("builder", learning.EMBEDDERS)
def test_an_embedder_verifies_and_retrieves_after_120_steps(builder, seed):
    embedder, untrained = train_embedder(builder, seed)
    figures = learning.with_yardsticks(embedder, untrained, "cosine")
    trained = figures["trained"]
    assert trained["auc"] >= 0.995, figures
    assert trained["frr"] <= 0.05, figures
    assert trained["p@1"] >= 0.97, figures
    assert max(figures[name]["auc"] for name in ("untrained", "pixels")) < trained["auc"]


@EVERY_SEED
def test_an_ensemble_is_at_least_as_good_as_each_member(seed):
    members = [train_embedder(builder, seed)[0] for builder in learning.EMBEDDERS]
    figures = learning.ensemble(members)
    others = [values["auc"] for name, values in figures.items() if name != "ensemble"]
    assert figures["ensemble"]["auc"] >= max(others), figures


@EVERY_SEED
def test_a_siamese_network_verifies_after_200_steps(seed):
    figures = learning.siamese(seed)
    assert figures["trained"]["eer"] <= 0.07, figures
    assert figures["trained"]["eer"] < min(figures[x]["eer"] for x in ("untrained", "pixels"))


@EVERY_SEED
def test_a_vae_has_a_bound_20_percent_below_that_of_a_code_without_information(seed):
    figures = learning.vae(seed)
    assert figures["bound"] <= 0.8 * figures["bound of zero divergence"], figures
    assert figures["active dimensions"] >= 5, figures


@EVERY_SEED
def test_a_unet_generates_the_requested_class(seed):
    embedder, _ = train_embedder("conv_embedder", seed)
    figures = learning.unet(seed, embedder)
    assert figures["accuracy of the classifier"] >= 0.95, figures
    assert figures["confirmed"] >= 0.95, figures
    # The right class alone could be ten memorized images.
    assert figures["spread"] >= 0.8 * figures["spread of test images"], figures


@EVERY_SEED
def test_a_noise_estimator_is_better_than_differences_of_neighbors(seed):
    figures = learning.noise_estimator(seed)
    assert figures["median error"] <= 0.6 * figures["differences of neighbors"], figures


@EVERY_SEED
@pytest.mark.parametrize("pooling", learning.POOLINGS)
def test_a_backbone_with_random_weights_trains_without_collapse(pooling, seed):
    figures = learning.pretrained(pooling, seed)
    assert figures["trained"]["auc"] > figures["untrained"]["auc"] + 0.05, figures
    assert figures["trained"]["mean cosine"] < 0.9, figures
