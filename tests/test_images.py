import io
import os
import struct
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

from kerasim import images
from kerasim.errors import ArgumentError, ArgumentTypeError, ImageError
from kerasim.images import FORMATS, read_image
from tests.helpers.file_access import unprivileged
from tests.helpers.image_files import COLORS, RAMP, TRANSPOSED, chunk, encode, png, reference_images

SAVED = {
    "PNG": {},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "JPEG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.fault("pixel-formats")
@pytest.mark.parametrize(
    "content, expected", [pytest.param(*c, id=n) for n, *c in reference_images()]
)
def test_every_kind_of_pixel_becomes_the_same_rgb(content, expected):
    found = read_image(content, dtype="uint8")
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


@pytest.mark.fault("pixel-formats")
def test_a_cmyk_jpeg_is_not_read_as_its_negative():
    cyan = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    means = read_image(cyan, dtype="uint8").mean(axis=(0, 1))
    np.testing.assert_allclose(means, [0, 255, 255], atol=1)


@pytest.mark.fault("pixel-formats")
@pytest.mark.parametrize(
    "values, expected",
    [
        (RAMP.astype("float32"), "[0, 1]"),
        (np.full((6, 8), np.nan, "float32"), "[0, 1]"),
        (np.full((6, 8), -1, "int32"), "32-bit"),
        (RAMP.astype("int32"), "32-bit"),
    ],
)
def test_levels_without_a_known_white_are_refused(values, expected, tmp_path):
    path = tmp_path / "levels.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and expected in str(caught.value)
    assert "onvert it to 8" in str(caught.value)


def packed(samples, bits) -> bytes:
    """Rows of samples, the first in the highest bits, each row filled to whole bytes."""
    if bits == 16:
        return samples.astype(">u2").tobytes()
    rows = samples.reshape(len(samples), -1)
    digits = (rows[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(digits.reshape(len(rows), -1).astype("uint8"), axis=1).tobytes()


def in_8_bits(samples, bits):
    return samples >> (bits - 8) if bits > 8 else samples * 255 // (2**bits - 1)


# Color types of PNG, with their channels and depths.
PNG_TYPES = {"gray": (0, 1), "RGB": (2, 3), "palette": (3, 1), "gray + alpha": (4, 2)}
PNG_TYPES["RGB + alpha"] = (6, 4)
PNG_DEPTHS = {"gray": (1, 2, 4, 8, 16), "palette": (1, 2, 4, 8)}


def png_matrix():
    for name, (kind, channels) in PNG_TYPES.items():
        for bits in PNG_DEPTHS.get(name, (8, 16)):
            for keyed in (False, True) if "alpha" not in name else (False,):
                title = f"{name}, {bits} bits" + keyed * ", one transparent"
                yield pytest.param(name, kind, channels, bits, keyed, id=title)


@pytest.mark.parametrize("name, kind, channels, bits, keyed", [*png_matrix()])
def test_a_png_is_read_as_its_specification_says(name, kind, channels, bits, keyed):
    rng = np.random.default_rng(bits)
    samples = rng.integers(0, 2**bits, (6, 8, channels))
    samples[..., -1] = np.where(rng.random((6, 8)) < 0.5, samples[..., -1], 2**bits - 1)
    palette = rng.integers(0, 256, (2**bits, 3), dtype="uint8") if name == "palette" else None
    chunks, key = b"", samples[2, 3]
    if name == "palette":
        alpha = np.full(2**bits, 255)
        alpha[key[0]] = 0 if keyed else 255
        chunks = chunk(b"PLTE", palette.tobytes())
        chunks += chunk(b"tRNS", bytes(alpha.tolist())) if keyed else b""
        colors, opaque = palette[samples[..., 0]].astype(int), alpha[samples[..., :1]] / 255
    else:
        chunks = chunk(b"tRNS", key.astype(">u2").tobytes()) if keyed else b""
        shown = in_8_bits(samples, bits)
        colors = shown[..., :3] if channels > 2 else shown[..., :1].repeat(3, axis=-1)
        opaque = shown[..., -1:] / 255 if "alpha" in name else np.ones((6, 8, 1))
        if keyed:
            opaque = opaque * ~(samples == key).all(axis=-1, keepdims=True)
    raw = packed(samples, bits)
    width = len(raw) // 6
    rows = b"".join(b"\0" + raw[width * row : width * (row + 1)] for row in range(6))
    content = png(8, 6, bits, kind, rows, chunks)
    if name == "RGB" and bits == 16 and keyed:
        with pytest.raises(ImageError, match="16 bits per channel and one transparent color"):
            read_image(content)
        return
    right = colors * opaque + 255 * (1 - opaque)
    np.testing.assert_allclose(read_image(content, dtype="uint8"), right, atol=0.51)


def tiff(samples, bits, photometric, sample_format, order):
    """An uncompressed TIFF put together by hand. `order` is "<" or ">"."""
    height, width, channels = samples.shape
    if sample_format == 3:
        data = samples.astype(f"{order}f{bits // 8}").tobytes()
    elif bits in (16, 32):
        data = samples.astype(f"{order}{'ui'[sample_format - 1]}{bits // 8}").tobytes()
    else:
        data = packed(samples & (2**bits - 1), bits)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0)]
    tags += [(277, channels), (278, height), (279, len(data)), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    lists = {258: [bits] * channels, 339: [sample_format] * channels} if channels > 1 else {}
    body, extra = struct.pack(f"{order}H", len(tags)), b""
    for tag, value in tags:
        values = lists.get(tag, [value])
        if len(values) > 2:
            at = start + len(extra)
            extra += struct.pack(f"{order}{len(values)}H", *values)
            body += struct.pack(f"{order}HHII", tag, 3, len(values), at)
        else:
            value = start + 6 * len(lists) if tag == 273 else value
            body += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}I", 8) + body + struct.pack(f"{order}I", 0) + extra + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1, 2], ids=["0 is white", "0 is black", "RGB"])
@pytest.mark.parametrize(
    "bits, sample_format",
    [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (12, 1), (16, 1), (16, 2), (32, 1), (32, 2), (32, 3)],
)
def test_a_tiff_is_read_as_its_specification_says_or_refused(
    bits, sample_format, photometric, order
):
    rng = np.random.default_rng(bits)
    shape = (6, 8, 3 if photometric == 2 else 1)
    if sample_format == 3:
        samples = rng.random(shape, dtype="float32")
        right = np.rint(255 * samples)
    else:
        highest = 2 ** min(bits, 16) if sample_format == 1 else 2**7
        samples = rng.integers(0, highest, shape)
        right = in_8_bits(samples, bits)
    content = tiff(samples, bits, photometric, sample_format, order)
    try:
        found = read_image(content, dtype="uint8")
    except ImageError:
        standard = (
            bits in (1, 4, 8, 16) and photometric == 1 or bits in (8, 16) and photometric == 2
        )
        assert not (sample_format == 1 and standard)  # which everybody reads
        return
    assert sample_format != 2 and (bits, sample_format) != (32, 1)
    right = 255 - right if photometric == 0 else right
    np.testing.assert_allclose(found, np.broadcast_to(right, (6, 8, 3)), atol=1)


@pytest.mark.fault("exif-rotation")
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", TRANSPOSED)
def test_an_image_is_upright_whatever_its_exif_orientation(kind, orientation):
    upright = np.kron(COLORS, np.ones((8, 8, 1), "uint8"))  # blocks, as JPEG stores them
    image = Image.fromarray(upright)
    if TRANSPOSED[orientation] is not None:
        image = image.transpose(TRANSPOSED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"quality": 100, "subsampling": 0} if kind == "JPEG" else SAVED[kind]
    found = read_image(encode(image, kind, exif=exif, **settings), dtype="uint8")
    np.testing.assert_allclose(found.astype(int), upright, atol=3)


@pytest.mark.fault("exif-rotation")
def test_sixteen_bits_are_turned_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.rot90(RAMP).astype("uint16") * 257)
    found = read_image(encode(turned, exif=exif), channels=1, dtype="uint8")
    np.testing.assert_array_equal(found[..., 0], RAMP)


@pytest.mark.fault("exif-rotation")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0this is no TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    ],
    ids=["no header", "offset past the end", "cut off", "orientation 99"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_broken_exif_does_not_lose_the_image(kind, exif):
    content = encode(Image.new("RGB", (8, 8), (200, 100, 50)), kind, exif=exif)
    means = read_image(content, dtype="uint8").mean(axis=(0, 1))
    np.testing.assert_allclose(means, [200, 100, 50], atol=2)


@pytest.mark.fault("exif-rotation")
def test_a_bad_tag_beside_it_does_not_lose_the_orientation():
    width = struct.pack(">HHI4s", 0x0100, 2, 2, b"a")  # ImageWidth, as text
    orientation = struct.pack(">HHI4s", 0x0112, 3, 1, b"\0\6")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + width + orientation + bytes(4)
    turned = Image.fromarray(np.rot90(COLORS).copy())
    found = read_image(encode(turned, exif=exif), dtype="uint8")
    np.testing.assert_array_equal(found, COLORS)


@pytest.mark.fault("animation")
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_read_with_one_warning(kind, tmp_path):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    path = tmp_path / "moving"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **SAVED[kind])
    with pytest.warns(UserWarning) as caught:
        found = read_image(path, dtype="uint8")
    assert found.shape == (6, 8, 3)
    np.testing.assert_allclose(found.astype(int), np.full((6, 8, 3), [255, 0, 0]), atol=1)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert str(path) in str(caught[0].message) and "first" in str(caught[0].message)


MEASURE = """
import sys
from kerasim.images import ImageError, read_image

def peak():  # of this process alone: getrusage would start from its parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

read_image(sys.argv[1])
before = peak()
try:
    print("read", read_image(sys.argv[2], dtype="uint8").shape)
except ImageError as error:
    print(error)
print(peak() - before)
"""


def read_in_a_child(tmp_path, width, height):
    """Returns what reading a 1-bit PNG says and by how many megabytes it raises the peak."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc to measure peak memory")
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("L", (8, 8)).save(small)
    large.write_bytes(png(width, height, 1, 0, bytes((1 + (width + 7) // 8) * height)))
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE, small, large],
        capture_output=True,
        text=True,
        check=True,
    )
    said, megabytes = child.stdout.splitlines()
    return said, int(megabytes)


@pytest.mark.fault("huge-image")
@pytest.mark.parametrize("side", [12_000, 20_000])
def test_a_pixel_bomb_is_refused_by_name_before_it_takes_memory(side, tmp_path):
    said, megabytes = read_in_a_child(tmp_path, side, side)
    assert "large.png" in said and "pixels" in said and "remove it" in said
    assert megabytes < 20


def test_the_measure_of_memory_sees_a_large_image(tmp_path):
    said, megabytes = read_in_a_child(tmp_path, 4_000, 3_000)
    assert said == "read (3000, 4000, 3)" and megabytes > 36


@pytest.mark.fault("huge-image")
@pytest.mark.parametrize("width, height", [(1, 100_000), (100_000, 1)])
def test_a_long_strip_has_few_pixels_and_is_read(width, height):
    content = encode(Image.new("L", (width, height), 7))
    assert read_image(content).shape == (height, width, 3)
    np.testing.assert_array_equal(read_image(content, 32, dtype="uint8"), np.full((32, 32, 3), 7))


def test_the_limit_is_on_pixels_and_the_message_gives_it(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 12)
    assert read_image(encode(Image.new("L", (3, 4)))).shape == (4, 3, 3)
    with pytest.raises(ImageError, match="13 x 1 pixels, more than 12"):
        read_image(encode(Image.new("L", (13, 1))))


def striped():
    """Returns an image 10 high and 30 wide: red, green and blue thirds."""
    image = Image.new("RGB", (30, 10), "red")
    image.paste("lime", (10, 0, 20, 10))
    image.paste("blue", (20, 0, 30, 10))
    return image


@pytest.mark.parametrize("turned", [False, True])
def test_an_image_of_another_aspect_ratio_is_squashed_cropped_or_padded(turned):
    image = striped().transpose(Image.Transpose.TRANSPOSE) if turned else striped()
    found = {
        way: read_image(encode(image), (6, 6), dtype="uint8", resize=way)
        for way in ("squash", "crop", "pad")
    }
    if turned:
        found = {way: pixels.transpose(1, 0, 2) for way, pixels in found.items()}
    np.testing.assert_array_equal(found["crop"], np.broadcast_to([0, 255, 0], (6, 6, 3)))
    assert found["squash"][:, 0, 0].min() > 200 and found["squash"][:, 5, 2].min() > 200
    assert not found["pad"][[0, 1, 4, 5]].any() and found["pad"][2:4].any(axis=-1).all()
    assert found["pad"][2, 0, 0] > 200 and found["pad"][3, 5, 2] > 200
    np.testing.assert_array_equal(
        read_image(encode(image), (6, 6), dtype="uint8"),
        (found["squash"].transpose(1, 0, 2) if turned else found["squash"]),
    )


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("target", [(4, 4), (5, 3), (1, 9)])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_every_way_to_resize_gives_the_size_that_was_asked_for(size, target, resize):
    image = Image.new("RGB", size[::-1], "white")
    pixels = read_image(encode(image), target, dtype="uint8", resize=resize)
    assert pixels.shape == (*target, 3) and pixels.max() == 255
    assert resize == "pad" or pixels.min() == 255


def test_an_unknown_way_to_resize_is_refused():
    with pytest.raises(ArgumentError, match="resize='stretch'"):
        read_image(encode(striped()), 6, resize="stretch")


@pytest.mark.fault("unreadable-images")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.2, 0.8])
def test_a_truncated_file_is_refused_by_name(kind, part, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8")
    whole = encode(Image.fromarray(noise), kind, **SAVED[kind])
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and "a complete image" in str(caught.value)
    assert "Replace or remove it" in str(caught.value)


@pytest.mark.fault("unreadable-images")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("missing", [1, 2, 4, 8, 16, 40, 150])
def test_a_file_without_its_last_bytes_is_refused_or_read_in_full(kind, missing):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8")
    whole = encode(Image.fromarray(noise), kind, **SAVED[kind])
    right = read_image(whole)
    try:
        found = read_image(whole[:-missing])
    except ImageError:
        return
    np.testing.assert_array_equal(found, right)


@pytest.mark.fault("huge-image")
def test_an_image_of_too_many_rows_is_refused_before_it_takes_memory(monkeypatch):
    monkeypatch.setattr(images, "MAX_SIDE", 500)
    assert read_image(encode(Image.new("L", (1, 500)))).shape == (500, 1, 3)
    for size in ((1, 501), (501, 1)):
        with pytest.raises(ImageError, match="the longer side may have 500 at most"):
            read_image(encode(Image.new("L", size)))


@pytest.mark.fault("huge-image")
def test_a_small_tiff_of_huge_tiles_is_refused():
    tags = [(256, 8), (257, 8), (258, 8), (259, 5), (262, 1), (277, 1), (322, 45_000)]
    tags += [(323, 45_000), (324, 8), (325, 60)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(64)
    with pytest.raises(ImageError, match="8 x 8 pixels in tiles of 45000 x 45000"):
        read_image(content)


def test_sixteen_bits_and_alpha_take_a_small_multiple_of_their_pixels(tmp_path):
    small, deep, clear = (tmp_path / name for name in ("small.png", "deep.png", "clear.png"))
    Image.new("L", (8, 8)).save(small)
    rows = bytes(1 + 2 * 4_000) * 4_000
    deep.write_bytes(png(4_000, 4_000, 16, 0, rows))
    Image.new("RGBA", (4_000, 4_000)).save(clear)
    for large in (deep, clear):
        child = subprocess.run(
            [sys.executable, "-c", MEASURE, small, large],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(child.stdout.splitlines()[1]) < 16 * 15  # MB for 16 million pixels


@pytest.mark.fault("huge-image")
@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "EPS", "PDF"])
def test_other_formats_are_not_opened_whatever_their_suffix(kind, tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (16, 16)).save(path, kind)
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="unknown format.*JPEG, PNG"):
            read_image(source)


@pytest.mark.fault("unreadable-images")
def test_a_web_page_is_refused_by_name(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(ImageError, match="page.jpg.*unknown format"):
        read_image(path)


@pytest.mark.fault("unreadable-images")
@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_counts_and_not_the_suffix(kind, tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(encode(Image.new("L", (8, 6), 128).convert("RGB"), kind))
    np.testing.assert_allclose(read_image(path, dtype="uint8"), 128, atol=1)


def refusal(path):
    """Returns the error of reading `path`, which must be of one line."""
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.fault("unusable-path")
def test_a_missing_file_is_named(tmp_path):
    said = refusal(tmp_path / "none.png")
    assert f"There is no file '{tmp_path / 'none.png'}': check the path" in said


@pytest.mark.fault("unusable-path")
def test_an_empty_path_is_refused():
    assert "There is no file ''" in refusal("")


@pytest.mark.fault("unusable-path")
def test_a_folder_is_refused_as_such(tmp_path):
    said = refusal(tmp_path)
    assert str(tmp_path) in said and "is a folder" in said


@pytest.mark.parametrize("target", ["loop.png", "gone.png"])
def test_a_link_that_leads_nowhere_is_named(target, tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / target)
    assert str(tmp_path / "loop.png") in refusal(tmp_path / "loop.png")


def test_a_name_is_shown_on_one_line_with_the_letters_of_its_script(tmp_path):
    said = refusal(os.fsencode(tmp_path).decode() + "/a\nb\udcff\u00e9\u8239.png")
    assert "a\\nb\\udcff\u00e9\u8239.png" in said


@pytest.mark.fault("unusable-path")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)

    def unblock():  # without this a reader that opens the pipe would hang here for ever
        try:
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            pass

    watchdog = threading.Timer(10, unblock)
    watchdog.start()
    try:
        assert "not a regular file" in refusal(pipe)
    finally:
        watchdog.cancel()


@pytest.mark.fault("unusable-path")
def test_a_file_without_permission_is_named(visible):
    path = visible / "secret.png"
    path.write_bytes(encode(Image.new("L", (8, 8))))
    path.chmod(0)
    with unprivileged():
        said = refusal(path)
    assert str(path) in said and "Permission denied" in said and "permissions" in said


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("source", [None, 5, 2.5, bytearray(b"x"), ["a.png"], np.zeros((4, 4, 3))])
def test_what_is_no_path_and_no_bytes_is_refused_with_its_type(source):
    with pytest.raises(ArgumentTypeError) as caught:
        read_image(source)
    assert "source" in str(caught.value) and type(source).__name__ in str(caught.value)
    assert "pass a path or a file's bytes" in str(caught.value)


@pytest.mark.parametrize("channels", [0, 2, 4, -1, True, 3.0, "3", None, [3]])
def test_channels_other_than_one_and_three_are_refused(channels):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="channels"):
        read_image(encode(Image.new("L", (4, 4))), channels=channels)


@pytest.mark.parametrize(
    "size", [0, -1, 2.5, "8", True, (8, 0), (8,), (8, 8, 3), (8, 2.5), (8, None), 10_000, ()]
)
def test_what_is_no_size_is_refused_with_what_came(size):
    with pytest.raises(ArgumentError) as caught:
        read_image(encode(Image.new("L", (4, 4))), image_size=size)
    assert f"image_size={size!r}" in str(caught.value)
    assert "(height, width)" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float64", None, np.uint8])
def test_another_dtype_is_refused_with_the_two_known(dtype):
    with pytest.raises(ArgumentError, match="dtype=.*'float32', 'uint8'"):
        read_image(encode(Image.new("L", (4, 4))), dtype=dtype)


def test_floats_are_the_bytes_over_255():
    content = encode(Image.fromarray(COLORS))
    found = read_image(content)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, COLORS.astype("float32") / 255)


def test_one_channel_keeps_its_axis():
    found = read_image(encode(Image.fromarray(RAMP)), channels=1, dtype="uint8")
    np.testing.assert_array_equal(found, RAMP[..., None])


def test_a_size_is_height_then_width():
    assert read_image(encode(Image.fromarray(COLORS)), image_size=(5, 7)).shape == (5, 7, 3)


def test_one_number_is_both_height_and_width():
    assert read_image(encode(Image.fromarray(COLORS)), image_size=np.int64(5)).shape == (5, 5, 3)


def test_shrinking_takes_the_mean_and_not_a_sample():
    stripes = np.tile(np.array([[0, 255]], "uint8"), (64, 32))
    found = read_image(encode(Image.fromarray(stripes)), 4, channels=1, dtype="uint8")
    np.testing.assert_allclose(found, 127.5, atol=4)


def test_a_path_and_its_bytes_give_the_same_pixels(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(COLORS).save(path)
    for source in (path, str(path)):
        np.testing.assert_array_equal(read_image(source), read_image(path.read_bytes()))


def test_the_array_can_be_written_to():
    pixels = read_image(encode(Image.fromarray(COLORS)), dtype="uint8")
    pixels[:] = 0
    assert not pixels.any()


def test_threads_that_decode_leave_the_warning_filters_as_they_were(monkeypatch):
    first_in, second_in = threading.Event(), threading.Event()
    content = encode(Image.new("L", (4, 4)))
    decode = images._decode

    def in_turns(image, name, size, channels, resize):
        if size == (1, 1):  # enters first, leaves first
            first_in.set()
            second_in.wait(10)
        else:
            second_in.set()
            first.join(10)
        return decode(image, name, size, channels, resize)

    monkeypatch.setattr(images, "_decode", in_turns)
    before = list(warnings.filters)
    first = threading.Thread(target=read_image, args=(content, 1))
    first.start()
    first_in.wait(10)
    read_image(content, 2)
    after = list(warnings.filters)
    warnings.filters[:] = before  # what leaks here must not silence the tests that follow
    assert after == before


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<u2"])
def test_a_tiff_of_one_plane_for_each_channel_is_read_or_refused(dtype, channels, compression):
    bits = 8 * np.dtype(dtype).itemsize
    samples = np.random.default_rng(0).integers(0, 2**bits, (6, 8, channels)).astype(dtype)
    content = io.BytesIO()
    tifffile.imwrite(
        content,
        np.moveaxis(samples, 2, 0).copy(),
        byteorder=dtype[0] if dtype[0] in "<>" else "<",
        compression=compression,
        extrasamples=["unassalpha"] if channels != 3 else None,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="separate",
    )
    try:
        found = read_image(content.getvalue(), dtype="uint8")
    except ImageError:
        assert channels == 2 or (bits == 16 and compression is None)
        return
    levels = in_8_bits(samples.astype(int), bits)
    alpha = levels[..., 3:] / 255 if channels == 4 else 1
    right = levels[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(found, right, atol=0.51)
