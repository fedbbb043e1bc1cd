"""Decodes image files inside a TensorFlow graph, as `images.read_image` does outside of one.

`export.export_saved_model` puts the decoder into its endpoint "serve_bytes". TensorFlow decodes
some files otherwise than Pillow, which `read_image` uses: it ignores EXIF orientation, and it reads
BMP files with a palette or with alpha, and GIF files with transparent or partial frames, as other
pixels. The orientation is applied here; files of these kinds are refused, since their embeddings
would be silently wrong.
"""

_JPEG_MARKER = 0xFF
_JPEG_EXIF, _JPEG_SCAN, _JPEG_END = 0xE1, 0xDA, 0xD9
_EXIF_ORIENTATION, _EXIF_SHORT = 0x0112, 3
_PNG_SIGNATURE = b"\x89PNG"


def make_decoder(tf, height: int, width: int, channels: int):
    """Returns a function for a graph, from one encoded file to one image.

    Args:
        tf: The module `tensorflow`, which only `export` and `distribute` import.
        height, width: Size to which images are resized.
        channels: 3 for RGB, 1 for gray.

    Returns:
        Function from a scalar string tensor, a JPEG, PNG, BMP or GIF file, to a float32 tensor
        `(height, width, channels)` in [0, 1]. It fails on files that TensorFlow does not decode
        as `images.read_image` does.
    """

    def jpeg(encoded):
        pixels = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        data = tf.io.decode_raw(encoded, tf.uint8)
        return _upright(tf, pixels, _orientation(tf, data, _find_jpeg_exif(tf, data)))

    def png(encoded):
        pixels = tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32)
        color, alpha = pixels[..., :3], pixels[..., 3:]
        data = tf.io.decode_raw(encoded, tf.uint8)
        # Where a file has no alpha TensorFlow puts the largest value of its bit depth (byte 24 of
        # the file), which below 8 bits is not opaque.
        filler = tf.bitwise.left_shift(1, _byte(tf, data, 24)) - 1
        alpha = tf.where(tf.reduce_all(alpha == filler), 255, alpha)
        on_white = tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)
        return _upright(tf, on_white, _orientation(tf, data, _find_png_exif(tf, data)))

    def other(encoded):
        # The first bytes decide which kind of file it is; 1,024 hold the header and any palette.
        _check_bmp_or_gif(tf, tf.io.decode_raw(tf.strings.substr(encoded, 0, 1024), tf.uint8))
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    def decode(encoded):
        is_png = tf.equal(tf.strings.substr(encoded, 0, 4), _PNG_SIGNATURE)
        pixels = tf.case(
            [(tf.io.is_jpeg(encoded), lambda: jpeg(encoded)), (is_png, lambda: png(encoded))],
            lambda: other(encoded),
        )
        pixels = tf.ensure_shape(pixels, (None, None, 3))
        if channels == 1:  # with the weights and the rounding of Pillow
            weighted = tf.reduce_sum(tf.cast(pixels, tf.int32) * (19595, 38470, 7471), -1, True)
            pixels = tf.bitwise.right_shift(weighted + 32768, 16)
        image = tf.cast(pixels, tf.float32) / 255
        return tf.image.resize(image, (height, width), antialias=True)

    return decode


def _byte(tf, data, position):
    """Returns the byte at `position` as int32; that at the end for a position beyond it."""
    last = tf.maximum(tf.size(data) - 1, 0)
    return tf.cast(tf.gather(tf.pad(data, [[0, 1]]), tf.clip_by_value(position, 0, last)), tf.int32)


def _number(tf, data, position, length: int, little_endian):
    """Returns the unsigned number of `length` bytes at `position` as int32."""
    big = little = tf.zeros_like(position)
    for offset in range(length):
        value = _byte(tf, data, position + offset)
        big = 256 * big + value
        little = little + 256**offset * value
    return tf.where(little_endian, little, big)


def _find_jpeg_exif(tf, data):
    """Returns where the TIFF header of the EXIF data of a JPEG file begins, or -1."""

    def has_more(position, found):
        marker = _byte(tf, data, position + 1)
        is_header = (marker != _JPEG_SCAN) & (marker != _JPEG_END)
        is_marker = _byte(tf, data, position) == _JPEG_MARKER
        return (found < 0) & (position + 10 < tf.size(data)) & is_marker & is_header

    def advance(position, found):
        marker = _byte(tf, data, position + 1)
        length = _number(tf, data, position + 2, 2, False)
        name = [_byte(tf, data, position + 4 + offset) for offset in range(6)]
        is_exif = (marker == _JPEG_EXIF) & tf.reduce_all(tf.stack(name) == [*b"Exif\0\0"])
        is_filler = marker == _JPEG_MARKER
        next_position = tf.where(is_filler, position + 1, position + 2 + length)
        return next_position, tf.where(is_exif, position + 10, found)

    return tf.while_loop(has_more, advance, (tf.constant(2), tf.constant(-1)))[1]


def _find_png_exif(tf, data):
    """Returns where the TIFF header of the eXIf chunk of a PNG file begins, or -1."""

    def has_more(position, found):
        return (found < 0) & (position >= 0) & (position + 12 <= tf.size(data))

    def advance(position, found):
        length = _number(tf, data, position, 4, False)
        name = [_byte(tf, data, position + 4 + offset) for offset in range(4)]
        is_exif = tf.reduce_all(tf.stack(name) == [*b"eXIf"])
        # A damaged length may be negative as int32, which ends the loop.
        next_position = tf.where(length >= 0, position + 12 + length, -1)
        return next_position, tf.where(is_exif, position + 8, found)

    return tf.while_loop(has_more, advance, (tf.constant(8), tf.constant(-1)))[1]


def _orientation(tf, data, start):
    """Returns the EXIF orientation, 1 to 8, of the TIFF header at `start`; 1 if there is none."""
    little_endian = _byte(tf, data, start) == ord("I")
    directory = start + _number(tf, data, start + 4, 4, little_endian)
    count = _number(tf, data, directory, 2, little_endian)
    entries = directory + 2 + 12 * tf.range(tf.minimum(count, tf.size(data) // 12))
    is_orientation = (
        (_number(tf, data, entries, 2, little_endian) == _EXIF_ORIENTATION)
        & (_number(tf, data, entries + 2, 2, little_endian) == _EXIF_SHORT)
        & (_number(tf, data, entries + 4, 4, little_endian) > 0)
        & (entries > 0)
        & (entries + 12 <= tf.size(data))
    )
    # Of several values Pillow takes the first. More than two do not fit into the entry.
    is_inside = _number(tf, data, entries + 4, 4, little_endian) <= 2
    outside = start + _number(tf, data, entries + 8, 4, little_endian)
    positions = tf.where(is_inside, entries + 8, outside)
    values = tf.where(is_orientation, _number(tf, data, positions, 2, little_endian), 0)
    value = tf.reduce_max(tf.concat([values, [0]], axis=0))
    return tf.where((start >= 0) & (value >= 1) & (value <= 8), value, 1)


def _upright(tf, pixels, orientation):
    def transposed():
        return tf.transpose(pixels, (1, 0, 2))

    return tf.switch_case(
        orientation - 1,
        [
            lambda: pixels,
            lambda: pixels[:, ::-1],
            lambda: pixels[::-1, ::-1],
            lambda: pixels[::-1],
            transposed,
            lambda: transposed()[:, ::-1],
            lambda: transposed()[::-1, ::-1],
            lambda: transposed()[::-1],
        ],
    )


def _check_bmp_or_gif(tf, head) -> None:
    """Fails on BMP and GIF files that TensorFlow does not decode as Pillow does."""
    is_bmp = (_byte(tf, head, 0) == ord("B")) & (_byte(tf, head, 1) == ord("M"))
    is_plain_bmp = (
        (_number(tf, head, tf.constant(14), 4, True) >= 40)
        & (_number(tf, head, tf.constant(28), 2, True) == 24)
        & (_number(tf, head, tf.constant(30), 4, True) == 0)
    )
    tf.debugging.Assert(
        ~is_bmp | is_plain_bmp,
        ["Only BMP files of 24 bits without compression can be decoded here: send a PNG file."],
    )
    is_gif = (_byte(tf, head, 0) == ord("G")) & (_byte(tf, head, 1) == ord("I"))
    flags = _byte(tf, head, 10)
    colors = tf.bitwise.left_shift(2, tf.bitwise.bitwise_and(flags, 7))
    block = 13 + tf.where(flags >= 128, 3 * colors, 0)
    # An extension of 8 bytes may come before the frame; its flag says whether a color is clear.
    has_control = (_byte(tf, head, block) == 0x21) & (_byte(tf, head, block + 1) == 0xF9)
    is_clear = has_control & (_byte(tf, head, block + 3) % 2 == 1)
    frame = tf.where(has_control, block + 8, block)
    is_whole = (
        (_byte(tf, head, frame) == 0x2C)
        & (_number(tf, head, frame + 1, 4, True) == 0)
        & (_number(tf, head, frame + 5, 2, True) == _number(tf, head, tf.constant(6), 2, True))
        & (_number(tf, head, frame + 7, 2, True) == _number(tf, head, tf.constant(8), 2, True))
    )
    tf.debugging.Assert(
        ~is_gif | (is_whole & ~is_clear),
        [
            "Only GIF files whose first frame is whole and opaque can be decoded here, not "
            "animations or transparent ones: send a PNG file."
        ],
    )
