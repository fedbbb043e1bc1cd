"""Image files, encoded images, and the pixels expected when they are read."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path, color=128, size=(8, 6), kind=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, color, color)).save(path, kind)
    return path


def write_animation(path) -> Path:
    frames = [Image.new("L", (8, 6), level) for level in (0, 128, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


RAMP = (np.arange(48).reshape(6, 8) * 5).astype("uint8")  # gray levels 0, 5, ... 235
COLORS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
GRAY = np.repeat(RAMP[..., None], 3, axis=-1)
CLEAR = np.zeros((6, 8), "uint8")  # alpha: the left half cannot be seen
CLEAR[:, 4:] = 255


def encode(image, kind="PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def chunk(name, content) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(width, height, bits, kind, raw, chunks=b"") -> bytes:
    """Returns a PNG file assembled from its parts, for what Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    body = header + chunks + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def rgba(colors, alpha):
    return Image.fromarray(np.dstack([colors, alpha]))


def on_white(colors):
    return np.where(CLEAR[..., None] > 0, colors, 255)


def reference_images():
    gray = Image.fromarray(RAMP)
    half = (RAMP > 120).astype("uint8") * 255
    wide = RAMP.astype("uint16") * 257
    palette = Image.fromarray(COLORS).quantize(48)
    listed = palette.convert("RGB")
    pierced = np.where(np.asarray(palette)[..., None] == 0, 255, np.asarray(listed))
    yield "RGB", encode(Image.fromarray(COLORS)), COLORS
    yield "grey", encode(gray), GRAY
    yield "LA", encode(Image.merge("LA", [gray, Image.fromarray(CLEAR)])), on_white(GRAY)
    yield "RGBA", encode(rgba(COLORS, CLEAR)), on_white(COLORS)
    yield "RGBA WebP", encode(rgba(COLORS, CLEAR), "WEBP", lossless=True), on_white(COLORS)
    yield "palette", encode(palette), np.asarray(listed)
    yield "palette + transparency", encode(palette, transparency=0), pierced
    yield "palette + transparency, GIF", encode(palette, "GIF", transparency=0), pierced
    levels = bytes([0] + [255] * 47)
    yield "palette + levels of transparency", encode(palette, transparency=levels), pierced
    yield "grey + transparency", encode(gray, transparency=5), np.where(GRAY == 5, 255, GRAY)
    yield "1-bit", encode(Image.fromarray(half).convert("1")), np.repeat(half[..., None], 3, 2)
    yield "16-bit grey PNG", encode(Image.fromarray(wide)), GRAY
    yield "16-bit grey TIFF", encode(Image.fromarray(wide), "TIFF"), GRAY
    yield "16-bit big-endian TIFF", encode(Image.fromarray(wide.astype(">u2")), "TIFF"), GRAY
    yield (
        "16-bit grey + transparency",
        encode(Image.fromarray(wide), transparency=5 * 257),
        np.where(GRAY == 5, 255, GRAY),
    )
    rows = (COLORS.astype(">u2") * 257).reshape(6, -1)
    color16 = b"".join(b"\0" + row.tobytes() for row in rows)
    yield "16-bit RGB PNG", png(8, 6, 16, 2, color16), COLORS
    yield "float TIFF", encode(Image.fromarray(RAMP.astype("float32") / 255), "TIFF"), GRAY
    # Pillow turns CMYK to RGB without a profile: 255 - ink, less the black.
    inks = [Image.fromarray(255 - COLORS[..., n]) for n in range(3)]
    inks = Image.merge("CMYK", [*inks, Image.new("L", (8, 6))])
    yield "CMYK TIFF", encode(inks, "TIFF"), COLORS


# How an upright image was transposed before it was stored with this EXIF orientation.
TRANSPOSED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
