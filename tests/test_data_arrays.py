import io
import json
import os
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers import EMBEDDER, FLOATS, LEVELS, picture

from kerasim import data
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError


def test_as_float_scales_bytes_and_leaves_floats():
    np.testing.assert_array_equal(data.as_float(LEVELS), FLOATS)
    assert data.as_float(LEVELS).dtype == np.float32
    assert data.as_float(FLOATS) is FLOATS
    assert data.as_float(FLOATS.astype("float64")).dtype == np.float32


def poisoned(value, dtype="float32"):
    images = FLOATS.astype(dtype)
    images[2, 1, 1, 0] = images[5, 0, 0, 0] = value
    return images


DOORS = {
    "ImageBatches": data.ImageBatches,
    "add_noise": lambda images: data.add_noise(images, 0.1),
    "embed": lambda images: data.embed(EMBEDDER, images),
}


@pytest.fixture(params=DOORS)
def door(request):
    """Each public function that takes images."""
    return DOORS[request.param]


@pytest.mark.fault(32)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused_with_their_rows(door, value):
    with pytest.raises(ArgumentError, match="images holds NaN or infinity in 2 of 7 rows: 2, 5"):
        door(poisoned(value))


@pytest.mark.fault(32)
def test_infinities_of_both_signs_are_refused_too(door):
    images = poisoned(np.inf)
    images[5, 3, 3, 0] = -np.inf
    with pytest.raises(ArgumentError, match="2 of 7 rows: 2, 5"):
        door(images)


def test_bad_rows_are_counted_to_the_last_of_many():
    images = np.zeros((1500, 2, 2, 1), "float32")
    images[[3, 1400]] = np.nan
    with pytest.raises(ArgumentError, match="2 of 1500 rows: 3, 1400"):
        data.ImageBatches(images)


@pytest.mark.fault(46)
@pytest.mark.parametrize("value", [255.0, 1.001, -0.001])
def test_floats_outside_zero_to_one_are_refused_with_range_row_and_remedy(door, value):
    with pytest.raises(ArgumentError) as caught:
        door(poisoned(value))
    said = str(caught.value)
    for part in ("images", "[0, 1]", "2 of 7 rows: 2, 5", "divide by 255", "uint8"):
        assert part in said
    assert str(np.float32(value)) in said


@pytest.mark.fault(46)
@pytest.mark.parametrize("dtype", ["int64", "bool", "object", "complex64"])
def test_images_of_another_dtype_are_refused_by_it(door, dtype):
    with pytest.raises(ArgumentTypeError, match=rf"images .*\[0, 1\].*uint8.*{dtype}"):
        door((FLOATS > 0.5).astype(dtype))


@pytest.mark.fault(46)
@pytest.mark.parametrize("shape", [(7, 4, 4), (7, 16), (4,), (), (7, 4, 4, 1, 1), (7, 0, 4, 1)])
def test_images_of_another_shape_are_refused_with_both_shapes(door, shape):
    with pytest.raises(ArgumentError) as caught:
        door(np.zeros(shape, "float32"))
    said = str(caught.value)
    assert "images" in said and "(n, height, width, channels)" in said and str(shape) in said


def test_a_list_of_images_of_several_sizes_is_refused(door):
    with pytest.raises(ArgumentError, match="images cannot be made one array.*resize"):
        door([np.zeros((4, 4, 1)), np.zeros((5, 4, 1))])


def test_noise_has_the_deviation_asked_for():
    images = np.full((20, 32, 32, 1), 0.5, "float32")
    noise = data.add_noise(images, 0.1) - 0.5
    assert noise.dtype == np.float32
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.1], atol=0.003)


def test_the_same_seed_draws_the_same_noise_and_another_seed_another():
    first, again, other = (data.add_noise(FLOATS, 0.2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_is_clipped_unless_it_must_not_be():
    clipped, free = data.add_noise(FLOATS, 0.5), data.add_noise(FLOATS, 0.5, clip=False)
    assert free.min() < 0 and free.max() > 1
    np.testing.assert_array_equal(clipped, np.clip(free, 0, 1))


def test_noise_on_bytes_is_that_on_floats():
    np.testing.assert_array_equal(data.add_noise(LEVELS, 0.2), data.add_noise(FLOATS, 0.2))


def test_noise_leaves_its_argument_alone():
    images = FLOATS.copy()
    data.add_noise(images, 0.5)
    np.testing.assert_array_equal(images, FLOATS)


def test_no_noise_is_the_images():
    np.testing.assert_array_equal(data.add_noise(FLOATS, 0), FLOATS)


@pytest.mark.parametrize("sigma", [-0.1, np.nan, np.inf, "0.1", None, True])
def test_noise_refuses_a_sigma_that_is_none(sigma):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="sigma.* 0 or more"):
        data.add_noise(FLOATS, sigma)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="sigma.* 0 or more"):
        data.ImageBatches(FLOATS, sigma=sigma)


@pytest.mark.parametrize("seed", [-1, None, 1.5, "3", True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="seed.* 0 or more"):
        data.add_noise(FLOATS, 0.1, seed=seed)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="seed.* 0 or more"):
        data.ImageBatches(FLOATS, seed=seed)


def test_the_digest_of_strings_is_of_what_they_say_and_not_of_where_they_lie():
    labels = np.array(["cat", "dog" * 9], dtype=object)
    same = np.array(["".join(["c", "at"]), "".join(["dog"] * 9)], dtype=object)
    other = np.array(["cat", "dog" * 8], dtype=object)
    assert data.digest(labels) == data.digest(same) != data.digest(other)
    texts = [np.array(words, dtype=np.dtypes.StringDType()) for words in (labels, same, other)]
    assert data.digest(texts[0]) == data.digest(texts[1]) != data.digest(texts[2])


def test_the_digest_of_a_folder_changes_with_its_files(tmp_path):
    path = picture(tmp_path / "a.png", 10)
    folder = data.image_folder(tmp_path, 4)
    before = data.digest(folder)
    assert data.digest(data.image_folder(tmp_path, 4)) == before
    assert data.digest(data.image_folder(tmp_path, 5)) != before
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert data.digest(folder) != before


# load_embedder


def dense(units=3, **settings):
    shape = keras.Input((4, 4, 1))
    return keras.Sequential([shape, keras.layers.Flatten(), keras.layers.Dense(units, **settings)])


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Saves an embedder at `path` whose members, a dict of bytes, were handed to `change`."""
    dense().save(path)
    files = members(path)
    change(files)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def with_layer(path, layer, **settings):
    """Saves an embedder with a layer of that class, of Keras if it does not say otherwise."""
    module, _, name = layer.rpartition(".")

    def change(files):
        config = json.loads(files["config.json"])
        of = {"module": module or "keras.layers", "class_name": name, "config": settings}
        config["config"]["layers"].insert(2, {**of, "registered_name": None})
        files["config.json"] = json.dumps(config).encode()

    return rewrite(path, change)


def with_weights(path, spoil):
    """Saves an embedder whose kernel, in the HDF5 file of its weights, is made by `spoil`."""

    def change(files):
        content = io.BytesIO(files["model.weights.h5"])
        with h5py.File(content, "r+") as file:
            spoil(file, file["layers/dense/vars"])
        files["model.weights.h5"] = content.getvalue()

    return rewrite(path, change)


def links(link):
    """Returns what puts `link` in the place of a kernel."""

    def spoil(file, kernel):
        del kernel["0"]
        kernel["0"] = link

    return spoil


def external_data(path):
    def spoil(file, kernel):
        del kernel["0"]
        kernel.create_dataset("0", (16, 3), "f4", external=[(str(path), 0, 192)])

    return spoil


def virtual(path):
    def spoil(file, kernel):
        del kernel["0"]
        layout = h5py.VirtualLayout((16, 3), "f4")
        layout[:] = h5py.VirtualSource(str(path), "secret", (16, 3))
        kernel.create_virtual_dataset("0", layout)

    return spoil


def in_layers(wrap):
    """Returns what saves an embedder with a Lambda, which leaves a canary when it is called."""

    def save(path, canary):
        # A name of this module would be looked up here; what is defined within travels as code.
        code = keras.layers.Lambda(lambda x, at=str(canary): (__import__("os").mkdir(at), x)[1])
        dense().save(path)
        model = keras.Sequential([keras.Input((4, 4, 1)), wrap(code), keras.layers.Flatten()])
        canary.rmdir()
        model.save(path)
        return path

    return save


FUNCTION = {"module": "os", "class_name": "function", "config": "mkdir", "registered_name": "mkdir"}
LAMBDA = "deserialization of a `Lambda` layer"
HOSTILE = {  # what saves each, and what Keras has against it
    "lambda": (in_layers(lambda code: code), LAMBDA),
    "lambda in a model": (in_layers(lambda code: keras.Sequential([code])), LAMBDA),
    "lambda in a wrapper": (in_layers(keras.layers.TimeDistributed), LAMBDA),
    "class": (
        lambda path, canary: with_layer(path, "subprocess.Popen", args=["touch", str(canary)]),
        "'module': 'subprocess'",
    ),
    "function": (
        lambda path, canary: with_layer(path, "Activation", activation=FUNCTION),
        "'module': 'os'",
    ),
    "switch": (
        lambda path, canary: with_layer(path, "keras.config.enable_unsafe_deserialization"),
        "not a modeling function",
    ),
    "foreign graph": (
        lambda path, canary: with_layer(path, "TFSMLayer", filepath=str(canary)),
        "loads an external SavedModel",
    ),
    "torch": (
        lambda path, canary: with_layer(path, "TorchModuleWrapper", module=str(canary)),
        "torch",
    ),
    "file as words": (
        lambda path, canary: with_layer(
            path, "StringLookup", vocabulary=str(canary.parent / "secret")
        ),
        "Vocabulary file",
    ),
    "name with a way up": (
        lambda path, canary: with_layer(path, "ReLU", name="../../canary"),
        "cannot contain character `/`",
    ),
    "external link": (
        lambda path, canary: with_weights(
            path, links(h5py.ExternalLink(str(canary.parent / "secret.h5"), "secret"))
        ),
        "ExternalLink",
    ),
    "soft link": (
        lambda path, canary: with_weights(path, links(h5py.SoftLink("/layers/dense/vars/1"))),
        "SoftLink",
    ),
    "external data": (
        lambda path, canary: with_weights(path, external_data(canary.parent / "secret")),
        "external Dataset",
    ),
    "virtual data": (
        lambda path, canary: with_weights(path, virtual(canary.parent / "secret.h5")),
        "virtual Dataset",
    ),
}


@pytest.mark.fault(1, 2)
@pytest.mark.parametrize(("save", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_with_its_path_and_nothing_runs(save, reason, tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "secret").write_bytes(b"0" * 192)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.full((16, 3), 7, "float32")
    path = save(tmp_path / "model.keras", canary)
    with pytest.raises(ArgumentError) as caught:
        data.load_embedder(path)
    assert str(path) in str(caught.value) and "safe_mode" not in str(caught.value)
    assert "not run for safety" in str(caught.value) and not canary.exists()
    assert reason in str(caught.value.__cause__)


def test_a_file_made_as_the_hostile_ones_are_is_read_without_their_fault(tmp_path):
    for path in (
        with_layer(tmp_path / "a.keras", "ReLU"),
        with_layer(tmp_path / "b.keras", "Activation", activation="relu"),
        with_weights(tmp_path / "c.keras", lambda file, kernel: None),
        rewrite(tmp_path / "d.keras", lambda files: None, zipfile.ZIP_DEFLATED),
    ):
        assert data.embed(data.load_embedder(path), FLOATS).shape == (7, 3)


@pytest.mark.fault(7, 19)
def test_a_model_in_the_old_format_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model.h5 is no .keras file.*save\('model.keras'\)"):
        data.load_embedder(tmp_path / "model.h5")


@pytest.mark.fault(12)
@pytest.mark.parametrize("length", [0, 1, 100, 5000, -1])
def test_a_model_cut_short_is_called_damaged_and_not_missing(length, tmp_path):
    path = rewrite(tmp_path / "model.keras", lambda files: None)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArgumentError, match="the file is damaged") as caught:
        data.load_embedder(path)
    assert str(path) in str(caught.value) and "not found" not in str(caught.value)


def without_config(files):
    del files["config.json"]


def other_config(content):
    return lambda files: files.update({"config.json": content})


@pytest.mark.fault(10, 12)
@pytest.mark.parametrize(
    "change",
    [without_config, other_config(b"x"), other_config(b"[" * 200_000), other_config(b"[]")],
    ids=["none", "no JSON", "deep", "a list"],
)
def test_a_model_whose_config_is_none_is_called_damaged(change, tmp_path):
    with pytest.raises(ArgumentError, match="model.keras .*the file is damaged"):
        data.load_embedder(rewrite(tmp_path / "model.keras", change))


MEASURE = """
import sys, time
from kerasim import data, errors

def peak():  # of this process alone: getrusage would start from its parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

data.load_embedder(sys.argv[1])
before, start = peak(), time.perf_counter()
for path in sys.argv[2:]:
    try:
        print("loaded", data.load_embedder(path))
    except errors.ArtifactError as error:
        print(error)
print(peak() - before, time.perf_counter() - start)
"""


@pytest.mark.fault(8, 9)
def test_models_that_would_fill_the_memory_are_refused_before_they_do(tmp_path):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc to measure peak memory")

    def wide(files):
        config = files["config.json"]
        files["config.json"] = config.replace(b'"units": 3', b'"units": 1000000000')

    def padded(files):
        files["config.json"] += b" " * 300_000_000

    rewrite(tmp_path / "good.keras", lambda files: None)
    rewrite(tmp_path / "wide.keras", wide)
    rewrite(tmp_path / "padded.keras", padded, zipfile.ZIP_DEFLATED)
    paths = [tmp_path / f"{name}.keras" for name in ("good", "wide", "padded")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True
    )
    of_wide, of_padded, measured = done.stdout.splitlines()
    assert f"{paths[1]} declares 17000000000 weights, and holds" in of_wide
    assert f"{paths[2]} of" in of_padded and "refused as a decompression bomb" in of_padded
    megabytes, seconds = map(float, measured.split())
    assert megabytes < 200 and seconds < 10
