import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from kerasim import diffusion, models
from kerasim.errors import ArgumentError, ArgumentTypeError

# From diffusers 0.42.1 (PyTorch 2.15), of
#   x, eps, noise = numpy.random.default_rng(0).standard_normal((3, 2, 3)):
#   settings = dict(num_train_timesteps=1000, beta_schedule="linear" or "squaredcos_cap_v2",
#                   clip_sample=False)
#   s = DDPMScheduler(**settings, variance_type="fixed_small"); s.set_timesteps(1000)
#   s.alphas_cumprod[[0, 57, 258, 500, 999]]
#   s.add_noise(x, eps, torch.tensor([57, 500])); s.step(eps, t, x).prev_sample for t = 0, 57, 999,
#       with randn_tensor of its module giving noise
#   s = DDIMScheduler(**settings, set_alpha_to_one=True); s.set_timesteps(50)
#   s.step(eps, t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
#       for t = 0, 40, 980 and eta = 0, 0.5
REFERENCE = {
    "linear": {
        "left": [
            0.9998999834060669,
            0.9619969725608826,
            0.500244677066803,
            0.07779665291309357,
            4.035830352222547e-05,
        ],
        "noisy": [
            [0.3775245477841265, 0.05505706368174074, 0.49094706861321075],
            [-1.1859434027751503, -0.7479484884861138, 0.14054220289424998],
        ],
        "steps": {  # from t to t, eta
            (0, -1, 1.0): [
                [0.11269477453710099, -0.14158353895831896, 0.6474929666300338],
                [0.11756126067647607, -0.5294625889990403, 0.3611998238206579],
            ],
            (57, 56, 1.0): [
                [0.03710692378413427, -0.14576109419389519, 0.6021801551704156],
                [0.08765731457126952, -0.5508762617164856, 0.35061446848942746],
            ],
            (999, 998, 1.0): [
                [-0.22814729126165412, -0.183522140252985, 0.4849441789631046],
                [0.02797283475742611, -0.6054852629388998, 0.31969967822082457],
            ],
            (40, 20, 0.0): [
                [0.04303153817817385, -0.1937550297618993, 0.6900840621657882],
                [0.1867639798160306, -0.4995199061036632, 0.361514389991112],
            ],
            (40, 20, 0.5): [
                [-0.04305154041833694, -0.20779198241861235, 0.6540543160490269],
                [0.17172187770788724, -0.5129845107122423, 0.35078339258958685],
            ],
            (980, 960, 0.0): [
                [-0.12974510912110016, -0.36609461939706667, 0.9318600818080301],
                [0.40201460721112325, -0.5166704936513112, 0.431033468920982],
            ],
            (980, 960, 0.5): [
                [-0.8461106285698315, -0.4676650999578227, 0.6060964788706564],
                [0.24584697907746805, -0.6458879858001905, 0.339216447942202],
            ],
        },
    },
    "cosine": {
        "left": [
            0.9999586939811707,
            0.9896129369735718,
            0.8367747068405151,
            0.4922850430011749,
            2.4287349909002387e-09,
        ],
        "noisy": [
            [0.25797522942819046, -0.034893386188587755, 0.5653653700180418],
            [-0.8280638312518057, -0.8199505810889424, 0.28315250064650843],
        ],
        "steps": {
            (57, 56, 1.0): [
                [0.08076420237759767, -0.13894148971258705, 0.6208115308894742],
                [0.09599862589866331, -0.5433773340284201, 0.3559591574527881],
            ],
            (40, 20, 0.5): [
                [0.038046278578841165, -0.17012136810580364, 0.6446983305156023],
                [0.13737127640457816, -0.5240498033560427, 0.35518839408667513],
            ],
            (980, 960, 0.5): [
                [-2.2590220048642813, -1.4582746432056566, 1.5820608473504205],
                [1.3548265848234302, -0.6177488619802824, 0.5563318626262966],
            ],
        },
    },
}
# From the same version, after each step, of
#   outputs = numpy.random.default_rng(1).standard_normal((5, 2, 3)):
#   s = DPMSolverMultistepScheduler(num_train_timesteps=1000, beta_schedule=..., solver_order=2,
#                                   final_sigmas_type="zero"); s.set_timesteps(timesteps=MULTISTEPS)
#   x = s.step(output, t, x).prev_sample for each t and output
MULTISTEPS = [980, 700, 400, 150, 0]
MULTISTEP_REFERENCE = {
    "linear": [
        [
            [-2.0268369088255405, -9.46779147425749, 3.672906099119471],
            [13.88820032295312, -14.640351087710243, -0.4694497628727913],
        ],
        [
            [-6.958173076430642, -52.42197631818183, 17.841541580289228],
            [69.82557752905905, -76.4135342211929, -5.057773520813356],
        ],
        [
            [-12.092976517506298, -104.79494905016418, 37.00481032315652],
            [138.22295348907693, -153.1999846304615, -9.457314768905084],
        ],
        [
            [-11.705741010616437, -117.02225997116969, 42.02391619084868],
            [154.03246969576585, -173.08175577977408, -11.602181244094062],
        ],
        [
            [-11.679210495453964, -117.00921272701919, 42.02776328873777],
            [154.0443862661711, -173.09253813311346, -11.604934295186201],
        ],
    ],
    "cosine": [
        [
            [-3.025421564840824, -13.734021796883017, 5.0016824752165014],
            [20.195505666840734, -21.053854404894423, -0.8848443913769015],
        ],
        [
            [-4.718986557520939, -25.109169149579976, 8.575638336244989],
            [35.5524504744, -37.53754884842948, -2.1488606452304007],
        ],
        [
            [-5.226212273850618, -30.00235901705329, 10.78783187070387],
            [42.40423875685802, -45.236516810449, -2.2456349726168847],
        ],
        [
            [-4.976027354596917, -30.48177917999318, 11.287794044125164],
            [43.829319115502614, -47.39404635709195, -2.752798569360441],
        ],
        [
            [-4.9587050426444454, -30.47026693170496, 11.289150118657963],
            [43.83293649889845, -47.39639690123149, -2.7542520937202615],
        ],
    ],
}
X, EPS, NOISE = np.random.default_rng(0).standard_normal((3, 2, 3))
SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(1).random((6, *SHAPE), dtype="float32")


@pytest.mark.parametrize("kind", REFERENCE)
def test_alphas_and_noisy_images_agree_with_diffusers(kind):
    schedule, reference = diffusion.NoiseSchedule(1000, kind), REFERENCE[kind]
    left = schedule.alphas_cumprod[[0, 57, 258, 500, 999]]
    np.testing.assert_allclose(left, reference["left"], rtol=1e-5, atol=1e-9)  # theirs: float32
    noisy = schedule.add_noise(X, EPS, np.array([57, 500]))
    np.testing.assert_allclose(noisy, reference["noisy"], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "step"), [(kind, step) for kind in REFERENCE for step in REFERENCE[kind]["steps"]]
)
def test_a_reverse_step_agrees_with_diffusers(kind, step):
    t, after, eta = step
    left = np.append(diffusion.NoiseSchedule(1000, kind).alphas_cumprod, 1.0)
    a, b, c = diffusion._coefficients(left[t], left[after], eta)
    expected = REFERENCE[kind]["steps"][step]
    np.testing.assert_allclose(a * X + b * EPS + c * NOISE, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MULTISTEP_REFERENCE)
def test_steps_of_dpm_solver_agree_with_diffusers(kind):
    left = np.append(diffusion.NoiseSchedule(1000, kind).alphas_cumprod[MULTISTEPS], 1.0)
    outputs = np.random.default_rng(1).standard_normal((5, *X.shape))
    x, before = X, np.zeros_like(X)
    table = diffusion._multistep_coefficients(left[None])[0]
    for (u, v, p, q, r), eps, expected in zip(
        table, outputs, MULTISTEP_REFERENCE[kind], strict=True
    ):
        clean = u * x + v * eps
        x, before = p * x + q * clean + r * before, clean
        np.testing.assert_allclose(x, expected, rtol=1e-5)


def test_a_step_of_dpm_solver_to_the_same_abar_changes_nothing():
    left = np.array([[0.5, 0.5, 0.5, 0.9, 0.9, 1.0]])
    table = diffusion._multistep_coefficients(left)[0]
    assert np.isfinite(table).all()
    for n in (0, 1, 3):
        np.testing.assert_allclose(table[n, 2:], [1, 0, 0])
    once = diffusion._multistep_coefficients(left[:, [2, 4, 5]])[0]
    np.testing.assert_allclose(table[[2, 4]], once)


def test_more_noise_than_the_schedule_has_is_refused():
    with pytest.raises(ArgumentError, match="sigma holds noise above 0.005, .* last step"):
        diffusion.NoiseSchedule(1).step_for_sigma([0.1])


def test_the_step_of_a_noise_level_is_the_one_of_its_signal_to_noise_ratio():
    schedule = diffusion.NoiseSchedule()
    assert schedule.step_for_sigma([[0.1, 0.5]]).tolist() == [[57, 258]]
    assert schedule.step_for_sigma(0.0) == 0
    steps = schedule.step_for_sigma(schedule.sigmas)
    assert steps.tolist() == list(range(1000))


@pytest.mark.fault("schedule-ends")
@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_a_schedule_is_finite_and_falls_at_any_length(kind, steps):
    schedule = diffusion.NoiseSchedule(steps, kind)
    assert schedule.alphas_cumprod.shape == schedule.sigmas.shape == (steps,)
    assert (schedule.alphas_cumprod > 0).all() and (np.diff(schedule.alphas_cumprod) < 0).all()
    noisy = schedule.add_noise(IMAGES[:2], IMAGES[2:4], np.array([0, steps - 1]))
    assert noisy.dtype == "float32" and np.isfinite(noisy).all()


@pytest.mark.fault("schedule-ends")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sigmoid"}, "kind='sigmoid' is not known"),
        ({"steps": 0}, "steps=0 is out of range"),
        ({"steps": 10.0}, "steps must be an integer"),
    ],
)
def test_a_bad_schedule_is_refused_by_name(settings, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        diffusion.NoiseSchedule(**settings)


@keras.saving.register_keras_serializable("tests")
class Ideal(keras.layers.Layer):
    """Knows the noise if images are 0.25 for label 0, 0.75 for label 1, else 0.5, give or take."""

    def __init__(self, left, variance=0.0, **kwargs):
        super().__init__(**kwargs)
        self.left, self.variance = left, variance

    def call(self, images, t, labels=None):
        left = keras.ops.take(keras.ops.cast(self.left, "float32"), t)[:, None, None, None]
        clean = 0.0
        if labels is not None:
            clean = keras.ops.take(keras.ops.cast([-0.5, 0.5, 0.0], "float32"), labels)
            clean = clean[:, None, None, None]
        rest = images - keras.ops.sqrt(left) * clean
        return keras.ops.sqrt(1 - left) * rest / (1 - left + self.variance * left)


def ideal(schedule, classes=False):
    inputs = {
        "images": keras.Input(SHAPE, name="images"),
        "t": keras.Input((), dtype="int32", name="t"),
    }
    if classes:
        inputs["labels"] = keras.Input((), dtype="int32", name="labels")
    noise = Ideal(schedule.alphas_cumprod.tolist())(*inputs.values())
    if classes:
        table = keras.layers.Embedding(3, 1, name="class_embedding")(inputs["labels"])
        table = keras.layers.Reshape((1, 1, 1))(table)
        noise = keras.layers.Add()([noise, keras.layers.Rescaling(0.0)(table)])
    return keras.Model(inputs, noise)


SCHEDULE = diffusion.NoiseSchedule(100, "cosine")


@pytest.fixture(scope="module")
def gray():
    return ideal(SCHEDULE)


@pytest.fixture(scope="module")
def two():
    return ideal(SCHEDULE, classes=True)


@pytest.mark.parametrize(
    ("solver", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("dpmpp_2m", 0.0)]
)
def test_a_network_that_knows_the_noise_draws_the_one_image_there_is(gray, solver, eta):
    images = diffusion.sample(gray, SCHEDULE, (3, *SHAPE), 10, eta, solver=solver)
    assert images.shape == (3, *SHAPE) and images.dtype == "float32"
    np.testing.assert_allclose(images, 0.5, atol=1e-4)


@pytest.mark.fault("schedule-ends")
def test_one_step_and_the_first_and_last_step_of_a_schedule_are_finite(net, gray):
    for model in (net, gray):
        drawn = diffusion.sample(model, SCHEDULE, (2, *SHAPE), steps=1)
        assert np.isfinite(drawn).all()
    t = np.array([0, SCHEDULE.steps - 1])
    said = net({"images": 2 * IMAGES[:2] - 1, "t": t, "labels": np.zeros(2, int)})
    assert np.isfinite(keras.ops.convert_to_numpy(said)).all()
    alone = diffusion.NoiseSchedule(1)
    mean, _ = diffusion.denoise(ideal(alone), alone, IMAGES, alone.sigmas[0], steps=1)
    assert np.isfinite(mean).all()


def test_labels_lead_and_guidance_leads_beyond_them(two):
    drawn = diffusion.sample(two, SCHEDULE, (2, *SHAPE), 10, labels=[0, 1])
    np.testing.assert_allclose(drawn.mean(axis=(1, 2, 3)), [0.25, 0.75], atol=1e-4)
    without = diffusion.sample(two, SCHEDULE, (2, *SHAPE), 10)
    np.testing.assert_allclose(without, 0.5, atol=1e-4)
    guided = diffusion.sample(two, SCHEDULE, (2, *SHAPE), 10, labels=[0, 1], guidance=0.5)
    np.testing.assert_allclose(guided.mean(axis=(1, 2, 3)), [0.125, 0.875], atol=1e-4)


@pytest.fixture(scope="module")
def net():
    """A U-Net of random weights, of small effect, so that images do not end black and white."""
    keras.utils.set_random_seed(0)
    model = models.unet(SHAPE, (8, 16), num_classes=3)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:  # the last layers start at zero
        weight.assign(weight + 0.1 * rng.standard_normal(weight.shape))
    left = SCHEDULE.alphas_cumprod.tolist()
    known = Ideal(left, variance=0.1)(model.input["images"], model.input["t"])
    change = keras.layers.Rescaling(0.01)(keras.layers.Activation("tanh")(model.output))
    return keras.Model(model.input, keras.layers.Add()([known, change]))


def by_hand(model, x, start, steps, labels, guidance=0.0):
    """The sampler without noise on the way, as a plain loop over the network."""
    times = np.round(np.linspace(start, 0, steps)).astype("int32")
    for n, t in enumerate(times):
        before = SCHEDULE.alphas_cumprod[t]
        after = SCHEDULE.alphas_cumprod[times[n + 1]] if n + 1 < steps else 1.0
        inputs = {"images": x, "t": np.full(len(x), t)}
        eps = keras.ops.convert_to_numpy(model({**inputs, "labels": labels}))
        other = keras.ops.convert_to_numpy(model({**inputs, "labels": np.full(len(x), 3)}))
        eps = eps + guidance * (eps - other)
        clean = (x - np.sqrt(1 - before) * eps) / np.sqrt(before)
        x = (np.sqrt(after) * clean + np.sqrt(1 - after) * eps).astype("float32")
    return np.clip((x + 1) / 2, 0, 1)


def test_the_loop_in_the_graph_equals_a_plain_loop(net):
    labels = np.array([0, 1, 2, 1], dtype="int32")
    x = np.random.default_rng(5).standard_normal((4, *SHAPE), dtype="float32")
    expected = by_hand(net, x, 98, 7, labels, 1.5)
    drawn = diffusion.sample(net, SCHEDULE, x.shape, 7, labels=labels, guidance=1.5, seed=5)
    assert expected.std() > 0.05 and np.mean((expected > 0) & (expected < 1)) > 0.8
    np.testing.assert_allclose(drawn, expected, atol=1e-3)


def test_the_graph_of_dpm_solver_equals_a_plain_loop(net):
    labels, steps = np.array([0, 1, 2, 1], dtype="int32"), 7
    x = np.random.default_rng(5).standard_normal((4, *SHAPE), dtype="float32")
    drawn = diffusion.sample(
        net, SCHEDULE, x.shape, steps, labels=labels, seed=5, solver="dpmpp_2m"
    )
    times = diffusion._spread(SCHEDULE, np.array([98]), steps, "dpmpp_2m")[0]
    assert times[0] == 98 and times[-1] == 0 and (np.diff(times) < 0).all()
    left = np.append(SCHEDULE.alphas_cumprod[times], 1.0)
    before = 0.0
    for t, (u, v, p, q, r) in zip(
        times, diffusion._multistep_coefficients(left[None])[0], strict=True
    ):
        inputs = {"images": x, "t": np.full(len(x), t), "labels": labels}
        clean = u * x + v * keras.ops.convert_to_numpy(net(inputs))
        x, before = (p * x + q * clean + r * before).astype("float32"), clean
    np.testing.assert_allclose(drawn, np.clip((x + 1) / 2, 0, 1), atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("variance", [0.004, 0.04, 0.3])
def test_dpm_solver_is_nearer_to_the_exact_solution_than_ddim(kind, variance):
    # For images of a Gaussian distribution the exact solution scales the first noise.
    schedule = diffusion.NoiseSchedule(1000, kind)
    (start,) = np.flatnonzero(schedule.alphas_cumprod >= 4e-5)[-1:]
    drawn = {}
    for solver in ("ddim", "dpmpp_2m"):
        t = diffusion._spread(schedule, np.array([start]), 15, solver)
        left = np.append(schedule.alphas_cumprod[t], 1.0)
        if solver == "ddim":
            table = diffusion._coefficients(left[:-1], left[1:], 0.0)
        else:
            table = diffusion._multistep_coefficients(left[None])[0]
        x, before = 1.0, 0.0
        for row, abar in zip(table, left[:-1], strict=True):
            eps = np.sqrt(1 - abar) * x / (1 - abar + variance * abar)
            if solver == "ddim":
                x = row[0] * x + row[1] * eps
            else:
                clean = row[0] * x + row[1] * eps
                x, before = row[2] * x + row[3] * clean + row[4] * before, clean
        drawn[solver] = x * np.sqrt((left[0] * variance + 1 - left[0]) / variance)
    assert abs(drawn["dpmpp_2m"] - 1) < 0.03 and abs(drawn["ddim"] - 1) > 0.08


def test_dpm_solver_draws_no_noise_on_the_way(gray):
    settings = {"sigma": 0.3, "output": "sample", "steps": 9, "solver": "dpmpp_2m"}
    drawn = [diffusion.denoise(gray, SCHEDULE, IMAGES, seed=n, **settings)[0] for n in range(2)]
    np.testing.assert_array_equal(*drawn)
    with pytest.raises(ArgumentError, match='eta=1.0 is not possible with solver="dpmpp_2m"'):
        diffusion.denoise(gray, SCHEDULE, IMAGES, eta=1.0, **settings)
    with pytest.raises(ArgumentError, match="solver='euler' is not known"):
        diffusion.sample(gray, SCHEDULE, (1, *SHAPE), solver="euler")


def test_a_seed_draws_the_same_images_and_another_seed_others(net):
    draw = [diffusion.sample(net, SCHEDULE, (4, *SHAPE), 7, 1.0, seed=seed) for seed in (3, 3, 4)]
    assert (draw[0] == draw[1]).all() and np.abs(draw[0] - draw[2]).max() > 0.1
    steady = diffusion.sample(net, SCHEDULE, (4, *SHAPE), 7, 0.0, seed=3)
    assert np.abs(draw[0] - steady).max() > 0.01  # noise was added on the way


def test_threads_that_sample_with_one_network_draw_what_one_thread_draws(net):
    network = keras.models.clone_model(net)  # whose graph is not compiled yet
    seeds = [1, 2, 3, 4]
    expected = [diffusion.sample(net, SCHEDULE, (4, *SHAPE), 7, 1.0, seed=n) for n in seeds]
    network.set_weights(net.get_weights())
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(diffusion.sample, network, SCHEDULE, (4, *SHAPE), 7, 1.0, seed=n)
            for n in seeds
        ]
        drawn = [run.result() for run in runs]
    np.testing.assert_allclose(drawn, expected, atol=1e-5)  # another seed differs by 0.1


def test_a_network_that_has_sampled_is_freed_saved_and_copied_like_any_other(net, tmp_path):
    network = keras.models.clone_model(net)
    diffusion.sample(network, SCHEDULE, (1, *SHAPE), 2)
    assert [layer.name for layer in network.layers] == [layer.name for layer in net.layers]
    copied = copy.deepcopy(network)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    for other in (copied, loaded):
        drawn = diffusion.sample(other, SCHEDULE, (1, *SHAPE), 2)
        np.testing.assert_array_equal(drawn, diffusion.sample(network, SCHEDULE, (1, *SHAPE), 2))
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None


def test_noise_on_the_way_differs_between_images_batches_and_steps():
    # A network that says "no noise" leaves a sum of what was added.
    inputs = {
        "images": keras.Input(SHAPE, name="images"),
        "t": keras.Input((), dtype="int32", name="t"),
    }
    silent = keras.Model(inputs, keras.layers.Rescaling(0.0)(inputs["images"]))
    seeds, drawn = [], []
    for n in range(2):
        loop = diffusion._ReverseProcess(silent, guided=False)
        loop.seeds.state.assign(diffusion._first_state(n))
        table = np.tile(np.float32([0, 0, 1]), (300, 1, 1))  # x becomes the noise of the last step
        x, t = np.zeros((300, *SHAPE), "float32"), np.zeros((300, 1), "int32")
        drawn.append(loop.predict({"images": x, "t": t, "table": table}, 128, verbose=0))
        table = np.tile(np.float32([[1, 0, 1], [1, 0, -1]]), (300, 1, 1))
        t = np.zeros((300, 2), "int32")  # of two steps, the difference
        seeds.append(loop.predict({"images": x, "t": t, "table": table}, 128, verbose=0))
    drawn = np.concatenate(drawn).reshape(600, -1)
    assert len(np.unique(drawn, axis=0)) == 600
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.03
    assert abs(np.std(seeds) - np.sqrt(2)) < 0.05


def test_the_mean_is_what_the_network_takes_away_at_the_step_of_the_noise(net):
    sigma = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
    rng = np.random.default_rng(2)
    noisy = IMAGES + (sigma[:, None, None, None] * rng.standard_normal(IMAGES.shape)).astype("f4")
    clean, used = diffusion.denoise(net, SCHEDULE, noisy, sigma)
    assert clean.dtype == "float32" and (used == sigma).all()
    t = SCHEDULE.step_for_sigma(sigma)
    left = np.sqrt(SCHEDULE.alphas_cumprod[t])[:, None, None, None]
    x = (left * (2 * noisy - 1)).astype("float32")
    inputs = {"images": x, "t": t.astype("int32"), "labels": np.full(6, 3)}
    eps = keras.ops.convert_to_numpy(net(inputs))
    expected = ((x - np.sqrt(1 - left**2) * eps) / left + 1) / 2
    np.testing.assert_allclose(clean, expected.clip(0, 1), atol=1e-4)


def test_a_sample_of_each_image_starts_at_the_step_of_its_own_noise(net):
    sigma, labels = np.array([0.1, 0.3, 0.6]), np.array([0, 2, -1])
    rng = np.random.default_rng(3)
    noisy = (0.5 + sigma[:, None, None, None] * rng.standard_normal((3, *SHAPE))).astype("float32")
    settings = {"output": "sample", "steps": 12, "eta": 0.0}
    with pytest.raises(ArgumentError, match="labels holds a negative class"):
        diffusion.denoise(net, SCHEDULE, noisy, sigma, labels=labels, **settings)
    labels[2] = 1
    clean, _ = diffusion.denoise(net, SCHEDULE, noisy, sigma, labels=labels, **settings)
    starts = SCHEDULE.step_for_sigma(sigma)
    assert len(set(starts)) == 3
    for n, start in enumerate(starts):
        x = np.sqrt(SCHEDULE.alphas_cumprod[start]) * (2 * noisy[n : n + 1] - 1)
        expected = by_hand(net, x.astype("float32"), start, 12, labels[n : n + 1])
        assert np.abs(expected - noisy[n]).max() > 0.01
        np.testing.assert_allclose(clean[n : n + 1], expected, atol=1e-3)


def test_a_network_that_is_a_little_wrong_still_draws_images_on_both_schedules():
    # All values are drawn from a Gaussian of standard deviation 0.2 in model space, 0.1 in [0, 1].
    for kind in ("linear", "cosine"):
        schedule = diffusion.NoiseSchedule(1000, kind)
        inputs = {
            "images": keras.Input(SHAPE, name="images"),
            "t": keras.Input((), dtype="int32", name="t"),
        }
        right = Ideal(schedule.alphas_cumprod.tolist(), variance=0.04)(*inputs.values())
        wrong = keras.Model(inputs, keras.layers.Rescaling(0.99)(right))
        drawn = diffusion.sample(wrong, schedule, (50, *SHAPE))
        assert 0.08 < drawn.std() < 0.13


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_network_of_mixed_precision_draws_images_of_full_precision(policy):
    if keras.backend.backend() == "jax" and policy == "mixed_float16":
        pytest.skip("JAX has no attention in float16 on the CPU: dot_general lacks F16_F16_F32.")
    keras.config.set_dtype_policy(policy)
    try:
        mixed = models.unet(SHAPE, (8, 16))
        drawn = diffusion.sample(mixed, SCHEDULE, (2, *SHAPE), 3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert drawn.dtype == "float32" and np.isfinite(drawn).all()


def told(shape=SHAPE, width=1):
    """An estimator that knows images to be gray."""
    images = keras.Input(shape)
    spread = keras.ops.std(images, axis=(1, 2))
    return keras.Model(images, keras.ops.tile(spread, (1, width)))


def test_without_sigma_the_estimator_says_it_for_each_image(gray):
    noise = np.random.default_rng(3).standard_normal((3, *SHAPE))
    noisy = (0.5 + np.array([0.05, 0.2, 0.6])[:, None, None, None] * noise).astype("float32")
    clean, used = diffusion.denoise(gray, SCHEDULE, noisy, estimator=told())
    np.testing.assert_allclose(used, noisy.std(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(clean, 0.5, atol=1e-4)


def test_no_image_gives_no_image(gray):
    none = np.empty((0, *SHAPE), "float32")
    for noise in ({"sigma": 0.1}, {"estimator": told()}):
        clean, used = diffusion.denoise(gray, SCHEDULE, none, **noise)
        assert clean.shape == (0, *SHAPE) and used.shape == (0,)


def test_uint8_images_are_scaled(net):
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype="uint8")
    clean, _ = diffusion.denoise(net, SCHEDULE, images, 0.1)
    expected, _ = diffusion.denoise(net, SCHEDULE, images.astype("float32") / 255, 0.1)
    assert clean.std() > 0.1
    np.testing.assert_allclose(clean, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": -0.1}, "sigma holds a negative number or NaN"),
        ({"sigma": np.nan}, "sigma holds a negative number or NaN"),
        ({"sigma": [0.1, 0.1]}, "sigma has shape \\(2,\\), expected \\(6,\\)"),
        ({"sigma": 25}, "sigma holds noise above 5, in units of"),
        ({"sigma": 0.1, "estimator": told()}, "sigma and estimator are both given"),
        ({"sigma": None, "estimator": 3}, "estimator must be a keras.Model"),
        (
            {"sigma": None, "estimator": told((9, 9, 1))},
            r"images has shape .*, expected \(any, 9, 9, 1\)",
        ),
        ({"sigma": None, "estimator": told(width=2)}, "estimator returns 2 numbers"),
        ({"sigma": None}, "sigma and estimator are both None"),
        ({"images": IMAGES * 255}, "images holds values more than 8 sigma outside"),
        ({"images": IMAGES[:, :4]}, "images has shape .*, expected"),
        ({"images": IMAGES * np.nan}, "images holds NaN"),
        ({"images": IMAGES.astype("int64")}, "images must be float or uint8"),
        ({"labels": [0] * 6}, "labels are given, but the network takes none"),
        ({"guidance": 1.0}, "guidance=1.0 needs labels"),
        ({"output": "median"}, "output='median' is not known"),
        ({"steps": 0}, "steps=0 is out of range"),
        ({"output": "sample", "steps": 101}, "steps=101 is out of range"),
        ({"eta": 2.0}, "eta=2.0 is out of range"),
        ({"model": 3}, "model must be a keras.Model"),
        ({"model": keras.Sequential([keras.Input(SHAPE), keras.layers.ReLU()])}, "named images"),
    ],
)
def test_bad_input_is_refused_by_name(gray, settings, message):
    settings = {"model": gray, "images": IMAGES, "sigma": 0.1, **settings}
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        diffusion.denoise(schedule=SCHEDULE, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0 is out of range"),
        ({"steps": 101}, "steps=101 is out of range"),
        ({"shape": (2, 9, 8, 1)}, "shape=\\(2, 9, 8, 1\\) must be \\(n, 8, 8, 1\\)"),
        ({"shape": 3}, "shape=3 must be"),
        ({"schedule": diffusion.NoiseSchedule(50)}, "keeps 78 % of the image"),
        ({"labels": [0, 3]}, "labels holds a class above 2 in 1 of 2 rows: 1"),
        ({"labels": [0]}, r"labels has shape \(1,\), expected \(2,\)"),
        ({"labels": [0.5, 1.0]}, "labels must be integers or strings, not float"),
        ({"labels": [0, 1], "guidance": -1}, "guidance=-1 is out of range"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused_by_name(net, settings, message):
    settings = {"schedule": SCHEDULE, "shape": (2, *SHAPE), "steps": 5, **settings}
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        diffusion.sample(net, **settings)
