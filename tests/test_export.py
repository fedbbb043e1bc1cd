import io
import json
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import onnxruntime
import pytest
from PIL import ExifTags, Image

from kerasim import data, embedding, export, layers
from kerasim.errors import (
    ArgumentError,
    ArgumentTypeError,
    ArtifactError,
    DependencyError,
    ImageError,
)
from kerasim.images import decode, read_image

tf = pytest.importorskip("tensorflow")

SIZE = 16


def embedder(channels, seed=0):
    """Builds a tiny model whose dropout and batch norm differ between training and use."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((SIZE, SIZE, channels))
    x = keras.layers.Conv2D(4, 3, activation="relu")(images)
    x = keras.layers.BatchNormalization(
        moving_mean_initializer=keras.initializers.Constant(0.2),
        moving_variance_initializer=keras.initializers.Constant(0.5),
    )(x)
    x = keras.layers.Dropout(0.5)(x)
    codes = keras.layers.Dense(5)(keras.layers.Flatten()(x))
    return keras.Model(images, codes)


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def exported(request, tmp_path_factory):
    """A model, its folder and what was loaded from there."""
    model = embedder(request.param)
    path = tmp_path_factory.mktemp("export") / "model"
    export.export_saved_model(model, path)
    return model, path, export.load_saved_model(path)


@pytest.fixture
def color(tmp_path):
    """A model exported for a test that will spoil the folder."""
    model = embedder(3)
    export.export_saved_model(model, tmp_path / "model")
    return model, tmp_path / "model"


def draw_images(n, channels):
    return np.random.default_rng(n).random((n, SIZE, SIZE, channels), dtype="float32")


def contents(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


@pytest.mark.parametrize("count", [1, 7])
def test_arrays_give_what_predict_gives(count, exported):
    model, _, loaded = exported
    images = draw_images(count, model.input_shape[3])
    np.testing.assert_allclose(loaded(images), model.predict(images, verbose=0), atol=1e-5)


def test_called_twice_it_gives_the_same(exported):
    model, _, loaded = exported
    images = draw_images(3, model.input_shape[3])
    np.testing.assert_array_equal(loaded(images), loaded(images))


def test_a_row_does_not_depend_on_its_batch(exported):
    model, _, loaded = exported
    images = draw_images(6, model.input_shape[3])
    np.testing.assert_allclose(loaded(images)[2:3], loaded(images[2:3]), atol=1e-6)


def test_an_exported_model_runs_in_inference_mode(exported):
    model, _, loaded = exported
    images = draw_images(4, model.input_shape[3])
    copy = keras.models.clone_model(model)  # whose averages the call may move
    copy.set_weights(model.get_weights())
    trained = keras.ops.convert_to_numpy(copy(images, training=True))
    assert np.abs(loaded(images) - trained).max() > 0.1


def test_uint8_images_are_scaled(exported):
    model, _, loaded = exported
    levels = (draw_images(2, model.input_shape[3]) * 255).astype("uint8")
    expected = loaded(levels.astype("float32") / 255)
    np.testing.assert_array_equal(loaded(levels), expected)


def test_no_images_give_no_rows(exported):
    model, _, loaded = exported
    assert loaded(draw_images(0, model.input_shape[3])).shape == (0, 5)
    assert loaded.serve_bytes([]).shape == (0, 5)


CHILD = """
import sys
import numpy as np
from kerasim.export import load_saved_model

folder, images, encoded, target = sys.argv[1:]
loaded = load_saved_model(folder)
with open(encoded, "rb") as file:
    content = file.read()
np.savez(target, arrays=loaded(np.load(images)), encoded=loaded.serve_bytes([content]))
"""


def test_a_fresh_process_gives_what_predict_gives(color, tmp_path):
    model, path = color
    images = draw_images(5, 3)
    names = [tmp_path / name for name in ("images.npy", "image.png", "out.npz")]
    np.save(names[0], images)
    names[1].write_bytes(encode(CASES["png colour"][0]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path, *names], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(names[2]) as out:
        np.testing.assert_allclose(out["arrays"], model.predict(images, verbose=0), atol=1e-5)
        decoded = read_image(names[1])[None]
        np.testing.assert_allclose(out["encoded"], embedding.embed(model, decoded), atol=1e-5)


def encode(image, form="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def draw_cases(size):
    """Returns (image, format, settings) by name."""
    rng = np.random.default_rng(0)

    def noise(*shape, high=256, dtype="uint8"):
        return Image.fromarray(rng.integers(0, high, (size, size, *shape)).astype(dtype))

    rgb, rgba, gray = noise(3), noise(4), noise()
    deep = noise(high=65536, dtype="uint16")
    few, many = rgb.quantize(16), rgb.quantize(200)
    return {
        "jpeg colour": (rgb, "JPEG", {}),
        "jpeg colour, every pixel's own colour": (rgb, "JPEG", {"subsampling": 0}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg grey": (gray, "JPEG", {}),
        "png colour": (rgb, "PNG", {}),
        "png grey": (gray, "PNG", {}),
        "png colour and alpha": (rgba, "PNG", {}),
        "png grey and alpha": (rgba.convert("LA"), "PNG", {}),
        "png colour, one colour transparent": (
            rgb,
            "PNG",
            {"transparency": rgb.getpixel((0, 0))},
        ),
        "png grey, one level transparent": (gray, "PNG", {"transparency": gray.getpixel((0, 0))}),
        "png palette of 200": (many, "PNG", {}),
        "png palette of 16": (few, "PNG", {}),
        "png palette of 4": (rgb.quantize(4), "PNG", {}),
        "png palette, one entry transparent": (few, "PNG", {"transparency": 3}),
        "png palette, each entry its own alpha": (
            many,
            "PNG",
            {"transparency": bytes(range(0, 256))[:200]},
        ),
        "png 16-bit": (deep, "PNG", {}),
        "png 1-bit": (gray.convert("1"), "PNG", {}),
        "bmp colour": (rgb, "BMP", {}),
        "gif": (few, "GIF", {}),
    }


CASES = draw_cases(SIZE)


@pytest.mark.fault("pixel-formats")
@pytest.mark.parametrize("name", CASES)
def test_encoded_files_give_what_their_decoded_images_give(name, exported):
    model, _, loaded = exported
    image, form, settings = CASES[name]
    content = encode(image, form, **settings)
    decoded = read_image(content, channels=model.input_shape[3])
    expected = model.predict_on_batch(decoded[None])
    np.testing.assert_allclose(loaded.serve_bytes([content]), expected, atol=1e-5)


def test_encoded_files_of_several_formats_go_into_one_batch(exported):
    model, _, loaded = exported
    contents = [encode(image, form, **settings) for image, form, settings in CASES.values()]
    single = np.concatenate([loaded.serve_bytes([content]) for content in contents])
    np.testing.assert_allclose(loaded.serve_bytes(contents), single, atol=1e-5)


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def pixels(request, tmp_path_factory):
    """A model that gives the pixels that it is shown, loaded from its export."""
    model = keras.Sequential([keras.Input((SIZE, SIZE, request.param)), keras.layers.Flatten()])
    path = tmp_path_factory.mktemp("export") / "pixels"
    export.export_saved_model(model, path)
    return request.param, export.load_saved_model(path)


@pytest.mark.parametrize("size", [(40, 24), (9, 30), (8, 8), (200, 100)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_encoded_files_of_another_size_are_resized_as_read_image_does_within_a_level(
    form, size, pixels
):
    channels, loaded = pixels
    smooth = Image.fromarray((draw_images(1, 3)[0, :6, :6] * 255).astype("uint8"))
    content = encode(smooth.resize(size, Image.Resampling.BICUBIC), form)
    decoded = read_image(content, SIZE, channels=channels).ravel()
    (served,) = loaded.serve_bytes([content])
    assert np.abs(served - decoded).max() * 255 < 1.01
    assert served @ decoded / np.linalg.norm(served) / np.linalg.norm(decoded) > 0.9999


@pytest.mark.fault("pixel-formats")
def test_every_level_of_color_and_alpha_is_laid_over_white_as_read_image_does(tmp_path):
    levels = np.arange(256, dtype="uint8")
    image = np.zeros((256, 256, 4), "uint8")
    image[..., :3], image[..., 3] = levels[:, None], levels
    content = encode(Image.fromarray(image))
    model = keras.Sequential([keras.Input((256, 256, 3)), keras.layers.Flatten()])
    export.export_saved_model(model, tmp_path / "pixels")
    (served,) = export.load_saved_model(tmp_path / "pixels").serve_bytes([content])
    decoded = read_image(content, dtype="uint8")
    np.testing.assert_array_equal(np.rint(served * 255), decoded.ravel())
    alpha, color = image[..., 3:].astype(int), image[..., :3].astype(int)
    np.testing.assert_array_equal(decoded, (color * alpha + 255 * (255 - alpha) + 127) // 255)


ORIENTATIONS = [*range(10), 65_535]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_encoded_files_are_turned_upright_as_read_image_does(orientation, form, pixels):
    channels, loaded = pixels
    smooth = Image.fromarray((draw_images(1, 3)[0, :6, :6] * 255).astype("uint8"))
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.DateTime] = "2026:01:01 00:00:00"
    content = encode(smooth.resize((SIZE, 2 * SIZE)), form, exif=exif)
    (served,) = loaded.serve_bytes([content])
    decoded = read_image(content, SIZE, channels=channels).ravel()
    assert np.abs(served - decoded).max() * 255 < 1.01


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("before", [b"", b"\xff\xe2\0\x06abcd", b"\xff\xff\xe2\0\x03a"])
@pytest.mark.parametrize("kind, count", [(3, 1), (3, 2), (3, 0), (2, 1), (4, 1), (8, 1), (9, 1)])
def test_exif_is_read_in_either_byte_order_and_behind_other_segments(
    kind, count, before, order, pixels
):
    channels, loaded = pixels
    image = Image.fromarray((draw_images(1, 3)[0] * 255).astype("uint8"))
    whole = encode(image, "JPEG")
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, 1)
    tiff += struct.pack(f"{order}HHIHH", 0x0112, kind, count, 6, 0) + bytes(4)
    segment = b"Exif\0\0" + tiff
    content = whole[:2] + before + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    content += whole[2:]
    (served,) = loaded.serve_bytes([content])
    decoded = read_image(content, channels=channels).ravel()
    assert np.abs(served - decoded).max() * 255 < 1.01


def test_exif_that_is_damaged_leaves_the_image_as_it_is(pixels):
    channels, loaded = pixels
    image = Image.fromarray((draw_images(1, 3)[0] * 255).astype("uint8"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = exif.tobytes()
    damaged = [data[:cut] for cut in (7, 10, 14, 18, 22)]
    damaged += [data.replace(b"MM\0*", b"MM\0+"), data.replace(b"MM\0*\0", b"MM\0*\xff")]
    for exif in damaged:
        content = encode(image, "JPEG", exif=exif)
        (served,) = loaded.serve_bytes([content])
        decoded = read_image(content, channels=channels).ravel()
        assert np.abs(served - decoded).max() * 255 < 1.01


def other_files():
    """Yields BMP, GIF and JPEG files of many kinds, by name."""
    ramp = np.arange(SIZE * SIZE, dtype="uint8").reshape(SIZE, SIZE)
    gray, rgb = Image.fromarray(ramp), Image.fromarray(np.dstack([ramp, ramp.T, 255 - ramp]))
    palette = rgb.quantize(16)
    yield "BMP of 24 bits", encode(rgb, "BMP")
    yield "BMP of gray levels", encode(gray, "BMP")
    yield "BMP of 1 bit", encode(gray.convert("1"), "BMP")
    yield "BMP with a palette", encode(palette, "BMP")
    yield "BMP of 32 bits", encode(Image.merge("RGBA", [*rgb.split(), gray]), "BMP")
    upside_down = bytearray(encode(rgb, "BMP"))
    upside_down[22:26] = struct.pack("<i", -SIZE)
    yield "BMP with its top row first", bytes(upside_down)
    yield "GIF", encode(palette, "GIF")
    yield "GIF, interlaced", encode(palette, "GIF", interlace=1)
    yield "GIF of gray levels", encode(gray, "GIF")
    yield "GIF with a comment", encode(palette, "GIF", comment=b"a comment")
    yield "GIF with a transparent color", encode(palette, "GIF", transparency=3)
    frames = [palette, palette.transpose(Image.Transpose.ROTATE_90)]
    yield "GIF, animated", encode(palette, "GIF", save_all=True, append_images=frames)
    small = bytearray(encode(rgb.resize((SIZE // 2, SIZE // 2)).quantize(4), "GIF"))
    small[6:10] = struct.pack("<HH", SIZE, SIZE)
    yield "GIF, a frame smaller than the screen", bytes(small)
    yield "JPEG of CMYK", encode(rgb.convert("CMYK"), "JPEG", quality=95)
    yield "WebP", encode(rgb, "WEBP", lossless=True)
    yield "TIFF", encode(rgb, "TIFF")


def png_files():
    """Yields PNG files with transparent colors and several EXIF chunks, by name."""
    rng = np.random.default_rng(0)

    def png(bits, color_type, before=(), after=()):
        header = struct.pack(">IIBBBBB", SIZE, SIZE, bits, color_type, 0, 0, 0)
        row = SIZE * bits * {2: 3}.get(color_type, 1) // 8
        rows = b"".join(b"\0" + rng.bytes(row) for _ in range(SIZE))
        chunks = [
            (b"IHDR", header),
            *before,
            (b"IDAT", zlib.compress(rows)),
            *after,
            (b"IEND", b""),
        ]
        parts = [
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    for bits in (1, 2, 4):
        for alpha in (0, 2**bits - 1, 255):
            palette = (b"PLTE", rng.bytes(3 * 2**bits)), (b"tRNS", bytes([alpha] * 2**bits))
            yield f"palette of {bits} bits, alpha {alpha}", png(bits, 3, palette)
    for bits in (2, 4, 8):
        key = (b"tRNS", struct.pack(">H", 2**bits + 1))
        yield f"gray of {bits} bits, key of more bits", png(bits, 0, [key])
    yield "RGB of 16 bits with a key", png(16, 2, [(b"tRNS", bytes(6))])
    yield "key behind the pixels", png(8, 0, after=[(b"tRNS", bytes([0, 77]))])
    upright, turned = (b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0" + n for n in (b"\1", b"\6"))
    exif = [(b"eXIf", data + bytes(6)) for data in (upright, turned)]
    yield "two EXIF chunks", png(8, 2, exif[:1], exif[1:])
    yield "EXIF with the prefix of JPEG", png(8, 2, [(b"eXIf", b"Exif\0\0" + exif[1][1])])


FILES = [pytest.param(file, id=name) for name, file in (*other_files(), *png_files())]


@pytest.mark.parametrize("content", FILES)
def test_a_file_is_decoded_as_read_image_does_or_refused(content, pixels):
    channels, loaded = pixels
    try:
        (served,) = loaded.serve_bytes([content])
    except ImageError:
        return
    # What read_image refuses is refused by the server, too.
    decoded = data.as_float(decode(content, channels=channels)[0]).ravel()
    assert np.abs(served - decoded).max() * 255 < 1.01


@pytest.mark.parametrize("name", ["BMP of 24 bits", "BMP with its top row first", "GIF"])
def test_plain_bmp_and_gif_files_are_decoded(name, pixels):
    assert len(pixels[1].serve_bytes([dict(other_files())[name]])) == 1


@pytest.mark.parametrize(
    "encoded",
    [b"one file", "names", ["name"], [None], None, 5, [[b"nested"]]],
    ids=repr,
)
def test_what_is_no_list_of_bytes_is_refused(encoded, exported):
    with pytest.raises(ArgumentTypeError, match="each of type bytes"):
        exported[2].serve_bytes(encoded)


@pytest.mark.fault("unreadable-images")
@pytest.mark.parametrize("cut", [0, 3, 20, 60], ids="{} bytes".format)
def test_a_damaged_file_is_refused_with_a_kerasim_error(cut, exported):
    whole = encode(CASES["png colour"][0])
    with pytest.raises(ImageError, match="^One of the 2 encoded images is not a complete JPEG"):
        exported[2].serve_bytes([whole, whole[:cut]])


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, SIZE, SIZE, 2)])
def test_images_of_another_shape_are_refused_with_both_shapes(shape, exported):
    with pytest.raises(ArgumentError, match=f"\\(any, {SIZE}, {SIZE}, ") as caught:
        exported[2](np.zeros(shape, "float32"))
    assert str(shape) in str(caught.value)


def test_one_image_without_a_batch_axis_is_refused_with_advice(exported):
    with pytest.raises(ArgumentError, match="that of one image.*Pass images\\[None\\]"):
        exported[2](np.zeros(exported[0].input_shape[1:], "float32"))


@pytest.mark.parametrize("value", [np.nan, -0.1, 255.0])
def test_images_that_are_out_of_range_are_refused(value, exported):
    model, _, loaded = exported
    with pytest.raises(ArgumentError, match="^images "):
        loaded(np.full((1, *model.input_shape[1:]), value, "float32"))


@pytest.mark.parametrize("write", [export.export_saved_model, export.export_onnx])
def test_a_model_that_returns_nan_is_not_exported(write, tmp_path):
    flat = [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    with pytest.raises(ArgumentError, match="returns NaN .*adapt"):
        write(keras.Sequential([*flat, layers.Whitening(2)]), tmp_path / "exported")


def test_the_manifest_names_exactly_the_files_and_the_shape(exported):
    model, path, _ = exported
    manifest = json.loads((path / "kerasim.json").read_text())
    assert contents(path) == {*manifest["files"], "kerasim.json"}
    assert manifest["info"]["image_shape"] == list(model.input_shape[1:])


@pytest.mark.fault("extra-or-missing-file")
def test_an_export_over_an_older_one_leaves_none_of_its_files(color):
    _, path = color
    wide = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(name="codes")])
    export.export_saved_model(wide, path, replace=True)
    manifest = json.loads((path / "kerasim.json").read_text())
    assert contents(path) == {*manifest["files"], "kerasim.json"}
    assert export.load_saved_model(path)(np.zeros((2, 8, 8, 1), "float32")).shape == (2, 64)


def test_an_export_never_replaces_a_folder_that_kerasim_did_not_write(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="has no kerasim.json"):
        export.export_saved_model(embedder(1), tmp_path)
    assert contents(tmp_path) == {"thesis.txt"}


@pytest.mark.fault("foreign-saved-model")
@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_an_edited_export_is_refused(name, color):
    _, path = color
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    for trust in (False, True):
        with pytest.raises(ArtifactError, match=f"{name} is damaged"):
            export.load_saved_model(path, trust=trust)


@pytest.mark.fault("truncated-file")
def test_a_truncated_export_is_refused_with_both_sizes(color):
    _, path = color
    content = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(content[:100])
    with pytest.raises(ArtifactError, match=f"expected {len(content)} bytes, found 100"):
        export.load_saved_model(path)


@pytest.mark.fault("extra-or-missing-file")
def test_a_file_added_to_an_export_is_refused(color):
    _, path = color
    (path / "assets.extra").mkdir(exist_ok=True)
    (path / "assets.extra" / "canary").write_text("")
    with pytest.raises(ArtifactError, match="canary"):
        export.load_saved_model(path)


@pytest.mark.fault("foreign-saved-model")
def test_an_export_that_lost_its_manifest_needs_trust(color):
    model, path = color
    (path / "kerasim.json").unlink()
    with pytest.raises(ArtifactError, match="has no kerasim.json"):
        export.load_saved_model(path)
    images = draw_images(2, 3)
    loaded = export.load_saved_model(path, trust=True)
    np.testing.assert_allclose(loaded(images), model.predict(images, verbose=0), atol=1e-5)


class Foreign(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 1), tf.float32, name="x")])
    def brightness(self, x):
        return tf.reduce_mean(x, axis=(1, 2))


@pytest.fixture
def foreign(tmp_path):
    module = Foreign()
    tf.saved_model.save(module, str(tmp_path), signatures=module.brightness)
    return tmp_path


def test_a_head_behind_its_backbone_is_exported_with_equal_outputs(tmp_path):
    backbone, whitening = embedder(1), layers.Whitening()
    images = draw_images(12, 1)
    head = keras.Sequential([keras.Input((5,)), whitening, keras.layers.Dense(4)])
    stored = embedding.embed(backbone, images)
    whitening.adapt(stored)
    joined = keras.Model(backbone.input, head(backbone.output))
    export.export_saved_model(joined, tmp_path / "model")
    served = export.load_saved_model(tmp_path / "model")(images)
    np.testing.assert_allclose(served, embedding.embed(head, stored), atol=1e-4)


@pytest.mark.fault("foreign-saved-model")
def test_a_foreign_saved_model_is_refused(foreign):
    with pytest.raises(ArtifactError, match="kerasim did not write it"):
        export.load_saved_model(foreign)


def test_a_foreign_saved_model_runs_if_it_is_trusted(foreign):
    loaded = export.load_saved_model(foreign, trust=True)
    np.testing.assert_allclose(loaded(np.full((3, 4, 4, 1), 0.25)), np.full((3, 1), 0.25))


def test_an_endpoint_that_a_foreign_model_lacks_is_named(foreign):
    with pytest.raises(ArgumentError, match="no endpoint 'serve_bytes', only .*serving_default"):
        export.load_saved_model(foreign, trust=True).serve_bytes([b""])


@pytest.mark.parametrize("trust", [False, True])
def test_a_missing_folder_is_refused(trust, tmp_path):
    with pytest.raises(ArtifactError, match="nowhere.*[Cc]heck the path"):
        export.load_saved_model(tmp_path / "nowhere", trust=trust)


@pytest.mark.parametrize("shape", [(None, None, 3), (8, 8, 4), (8, 8, 2), (8,), (8, 8, 8, 3)])
def test_a_model_without_one_batch_of_images_of_a_fixed_size_is_refused(shape, tmp_path):
    images = keras.Input(shape)
    said = "takes images .* needs a fixed size|must be a keras.Model of images"
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        export.export_saved_model(keras.Model(images, keras.layers.ReLU()(images)), tmp_path / "m")
    assert contents(tmp_path) == set()


def test_a_model_of_two_inputs_is_refused(tmp_path):
    pair = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    with pytest.raises(ArgumentTypeError, match="must be a keras.Model of images"):
        export.export_saved_model(keras.Model(pair, keras.layers.Add()(pair)), tmp_path / "m")


def test_a_model_of_two_outputs_is_refused(tmp_path):
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, [keras.layers.ReLU()(images), keras.layers.Flatten()(images)])
    with pytest.raises(ArgumentError, match="model must have one output"):
        export.export_saved_model(model, tmp_path / "m")


@pytest.mark.parametrize("model", [None, "model.keras", 3])
def test_what_is_no_model_is_refused(model, tmp_path):
    with pytest.raises(ArgumentTypeError, match="^model .*a keras.Model"):
        export.export_saved_model(model, tmp_path / "m")


def test_without_tensorflow_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[tf\]'"):
        export.export_saved_model(None, tmp_path / "m")
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[tf\]'"):
        export.load_saved_model(tmp_path / "m")


def test_on_another_backend_the_error_says_how_to_export(monkeypatch, tmp_path):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(DependencyError, match="runs on 'jax'.*KERAS_BACKEND=tensorflow"):
        export.export_saved_model(None, tmp_path / "m")


@pytest.mark.parametrize("channels", [1, 3])
def test_an_onnx_file_gives_what_the_model_and_the_saved_model_give(channels, tmp_path):
    model = embedder(channels)
    export.export_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    export.export_saved_model(model, tmp_path / "saved")
    saved = export.load_saved_model(tmp_path / "saved")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 5):
        images = np.random.default_rng(n).random((n, SIZE, SIZE, channels), dtype="float32")
        (output,) = session.run(None, {"images": images})
        np.testing.assert_allclose(output, model.predict(images, verbose=0), atol=1e-5)
        np.testing.assert_allclose(output, saved(images), atol=1e-5)


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "tf2onnx"])
def test_without_the_extra_the_error_says_what_to_install(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[onnx\]'"):
        export.export_onnx(embedder(1), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_onnx_lacks_is_refused_and_nothing_written(tmp_path):
    class Betainc(keras.layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return tf.math.betainc(x + 1.0, x + 2.0, 0.5 * x)

    images = keras.Input((8, 8, 1))
    model = keras.Model(images, keras.layers.Flatten()(Betainc()(images)))
    with pytest.raises(ArgumentError, match="an operation that cannot be exported as ONNX file"):
        export.export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


# An export is its model


def model_of(*parts):
    return keras.Sequential([keras.Input((8, 8, 3)), *parts, keras.layers.Flatten()])


def adapted():
    layer = keras.layers.Normalization()
    layer.adapt(np.random.default_rng(0).random((4, 8, 8, 3)))
    return layer


LAYERS = {  # some of which tf2onnx converts wrongly, or into what no runtime can run
    "Resizing bilinear": lambda: keras.layers.Resizing(11, 5),
    "Resizing area": lambda: keras.layers.Resizing(4, 4, interpolation="area"),
    "Resizing bicubic": lambda: keras.layers.Resizing(5, 5, interpolation="bicubic"),
    "Normalization": lambda: keras.layers.Normalization(mean=[0.1] * 3, variance=[2.0] * 3),
    "Normalization, adapted": adapted,
    "Conv2DTranspose": lambda: keras.layers.Conv2DTranspose(2, 3, 2, padding="same"),
    "DepthwiseConv2D": lambda: keras.layers.DepthwiseConv2D(3, dilation_rate=2),
    "GroupNormalization": lambda: keras.layers.GroupNormalization(3),
    "sparsemax": lambda: keras.layers.Activation("sparsemax"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_onnx_file_gives_what_the_model_gives_or_is_refused(name, tmp_path):
    model, path = model_of(LAYERS[name]()), tmp_path / "model.onnx"
    path.write_bytes(b"before")
    try:
        export.export_onnx(model, path, replace=True)
    except ArgumentError as error:
        assert "model " in str(error) and "Replace the layer" in str(error)
        assert path.read_bytes() == b"before"
    else:
        images = np.random.default_rng(1).random((3, 8, 8, 3), dtype="float32")
        (found,) = onnxruntime.InferenceSession(path).run(None, {"images": images})
        np.testing.assert_allclose(found, model.predict_on_batch(images), atol=1e-3)


def test_a_grid_and_whitening_give_in_an_onnx_file_what_they_give_in_the_model(tmp_path):
    rng = np.random.default_rng(2)
    base = keras.Sequential([keras.Input((8, 8, 3)), layers.GridPooling((3, 2))])
    whitening = layers.Whitening(5, power=0.7, normalize=True)
    whitening.adapt(base.predict(rng.random((30, 8, 8, 3)), verbose=0))
    model = keras.Sequential([base, whitening])
    export.export_onnx(model, tmp_path / "model.onnx")
    images = rng.random((3, 8, 8, 3), dtype="float32")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"images": images})
    np.testing.assert_allclose(found, model.predict_on_batch(images), atol=1e-5)


def test_a_grid_and_resizing_give_in_litert_what_they_give_in_the_model(tmp_path):
    """LiteRT cannot run an `einsum` of TensorFlow for a batch of any size."""
    runtime = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="ai-edge-litert is not installed"
    )
    images = keras.Input((8, 8, 3), name="images")
    pooled = layers.GridPooling((3, 2))(layers.AntialiasedResizing(5, 7)(images))
    model = keras.Model(images, pooled)
    model.export(str(tmp_path / "model.tflite"), format="litert", verbose=False)
    run = runtime.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    for count in (1, 3):
        x = np.random.default_rng(0).random((count, 8, 8, 3), dtype="float32")
        np.testing.assert_allclose(run(images=x)["output_0"], model.predict_on_batch(x), atol=1e-6)


class Eager(keras.layers.Layer):
    """Multiplies by another number in a graph than outside of one."""

    def call(self, inputs):
        return inputs * (2.0 if tf.executing_eagerly() else 2.01)


class Noisy(keras.layers.Layer):
    def call(self, inputs):
        return inputs + keras.random.uniform((1, 8, 8, 3))


EXPORTS = {"saved model": export.export_saved_model, "onnx": export.export_onnx}


@pytest.mark.parametrize("write", EXPORTS.values(), ids=EXPORTS)
def test_an_export_that_gives_other_numbers_is_refused_and_nothing_written(write, tmp_path):
    with pytest.raises(ArgumentError, match="differ from those of the model .by up to"):
        write(model_of(Eager()), tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_refused_leaves_the_earlier_one(color):
    model, path = color
    before = contents(path)
    with pytest.raises(ArgumentError, match="differ from those of the model"):
        export.export_saved_model(model_of(Eager()), path, replace=True)
    assert contents(path) == before
    images = draw_images(2, 3)
    np.testing.assert_allclose(export.load_saved_model(path)(images), model(images), atol=1e-5)


def test_a_model_that_is_random_at_inference_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="different outputs for the same images"):
        export.export_saved_model(model_of(Noisy()), tmp_path / "it")


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(40, 23), (23, 40), (3, 500), (32, 32), (5, 5)])
def test_served_files_are_resized_as_read_image_resizes_them(resize, size, tmp_path_factory):
    model = keras.Sequential([keras.Input((12, 9, 3)), keras.layers.Flatten()])
    path = tmp_path_factory.getbasetemp() / f"served-{resize}"
    if not path.exists():
        export.export_saved_model(model, path, resize=resize)
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (*np.maximum(np.array(size) // 4, 1), 3), dtype="uint8")
    smooth = Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)
    content = encode(smooth)
    expected = read_image(content, (12, 9), resize=resize).reshape(1, -1)
    served = export.load_saved_model(path).serve_bytes([content])
    np.testing.assert_allclose(served, expected, atol=0.012)


def test_an_endpoint_of_bytes_that_decodes_otherwise_is_refused(tmp_path, monkeypatch):
    def make_decoder(tf, *settings):
        def decode(encoded):
            return tf.image.flip_left_right(real(encoded))

        real = make(tf, *settings)
        return decode

    make = export.make_decoder
    monkeypatch.setattr(export, "make_decoder", make_decoder)
    with pytest.raises(ArgumentError, match="outputs of its SavedModel's serve_bytes differ"):
        export.export_saved_model(embedder(3), tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", EXPORTS.values(), ids=EXPORTS)
def test_a_model_of_half_precision_is_exported(write, tmp_path):
    model = model_of(keras.layers.Conv2D(4, 3, dtype="mixed_float16"))
    write(model, tmp_path / "it")
    assert (tmp_path / "it").exists()


def test_a_model_that_cannot_be_traced_is_refused(tmp_path):
    class Peeking(keras.layers.Layer):
        def call(self, inputs):
            return inputs * float(keras.ops.sum(inputs)) if tf.executing_eagerly() else fail()

        def compute_output_shape(self, shape):
            return shape

    def fail():
        raise ZeroDivisionError("not in a graph")

    with pytest.raises(ArgumentError, match="cannot be exported as SavedModel .Zero.*in a graph"):
        export.export_saved_model(model_of(Peeking()), tmp_path / "it")
