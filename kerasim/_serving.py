"""Decodes image files inside a TensorFlow graph, as `images.read_image` does outside of one.

`export.export_saved_model` puts the decoder into its endpoint "serve_bytes". TensorFlow decodes
some files differently from Pillow, which `read_image` uses: it ignores EXIF orientation, and it
returns other pixels for BMP files with a palette or with alpha, and for GIF files with transparent
or partial frames. The orientation is applied here. The other files are refused, because their
embeddings would be silently wrong.
"""

from kerasim.images import Resize

_JPEG_MARKER = 0xFF
_JPEG_EXIF, _JPEG_SCAN, _JPEG_END = 0xE1, 0xDA, 0xD9
_EXIF_ORIENTATION, _EXIF_SHORT = 0x0112, 3
_PNG_SIGNATURE = b"\x89PNG"
_PNG_RGB, _PNG_GRAY_ALPHA, _PNG_RGBA = 2, 4, 6


def make_decoder(tf, height: int, width: int, channels: int, resize: Resize):
    """Returns a function for a graph, from one encoded file to one image.

    Args:
        tf: The module `tensorflow`, which only `export` and `distribute` import.
        height, width: Size to which images are resized.
        channels: 3 for RGB, 1 for gray.
        resize: As for `images.read_image`.

    Returns:
        Function from a scalar string tensor, a JPEG, PNG, BMP or GIF file, to a float32 tensor
        `(height, width, channels)` in [0, 1]. It fails on files that TensorFlow does not decode
        as `images.read_image` does.
    """

    def jpeg(encoded):
        pixels = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        return pixels, _orientation(tf, encoded, _find_jpeg_exif(tf, encoded))

    def png(encoded):
        bits, color_type = tf.unstack(_bytes(tf, encoded, 24, 2))
        has_key = _find_png_chunk(tf, encoded, b"tRNS", b"IDAT") >= 0
        tf.debugging.Assert(
            (bits < 16) | (color_type != _PNG_RGB) | ~has_key,
            ["PNG files of 16 bits with one transparent color cannot be decoded here."],
        )
        pixels = tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32)
        color, alpha = pixels[..., :3], pixels[..., 3:]
        # Where a file has no alpha TensorFlow puts the largest value of its bit depth, which below
        # 8 bits is not opaque.
        has_alpha = has_key | (color_type == _PNG_GRAY_ALPHA) | (color_type == _PNG_RGBA)
        alpha = tf.where(has_alpha, alpha, 255)
        on_white = tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)
        return on_white, _orientation(tf, encoded, _find_png_chunk(tf, encoded, b"eXIf"))

    def other(encoded):
        _check_bmp_or_gif(tf, encoded)
        return tf.io.decode_image(encoded, channels=3, expand_animations=False), 1

    def decode(encoded):
        is_png = tf.equal(tf.strings.substr(encoded, 0, 4), _PNG_SIGNATURE)
        pixels, orientation = tf.case(
            [(tf.io.is_jpeg(encoded), lambda: jpeg(encoded)), (is_png, lambda: png(encoded))],
            lambda: other(encoded),
        )
        pixels = _upright(tf, tf.ensure_shape(pixels, (None, None, 3)), orientation)
        if channels == 1:  # with the weights and the rounding of Pillow
            weighted = tf.reduce_sum(tf.cast(pixels, tf.int32) * (19595, 38470, 7471), -1, True)
            pixels = tf.bitwise.right_shift(weighted + 32768, 16)
        image = tf.cast(pixels, tf.float32) / 255
        size = tf.shape(image)[:2]
        inner = (height, width)
        if resize == "crop":
            cut = _fitting(tf, inner, size)
            top, left = tf.unstack((size - cut) // 2)
            image = tf.image.crop_to_bounding_box(image, top, left, *tf.unstack(cut))
        elif resize == "pad":
            inner = _fitting(tf, size, (height, width))
        image = tf.image.resize(image, inner, antialias=True)
        if resize == "pad":
            top, left = tf.unstack(((height, width) - inner) // 2)
            image = tf.image.pad_to_bounding_box(image, top, left, height, width)
        return tf.ensure_shape(image, (height, width, channels))

    return tf.autograph.experimental.do_not_convert(decode)  # it has no Python control flow


def _fitting(tf, size, most):
    """Returns `images.fitting` of two sizes `(height, width)`."""
    (height, width), (most_height, most_width) = (
        tf.unstack(tf.cast(pair, tf.int64)) for pair in (size, most)
    )
    is_wide = width * most_height > height * most_width
    by_width = tf.clip_by_value((2 * most_width * height + width) // (2 * width), 1, most_height)
    by_height = tf.clip_by_value((2 * most_height * width + height) // (2 * height), 1, most_width)
    fitted = tf.where(is_wide, (by_width, most_width), (most_height, by_height))
    return tf.cast(fitted, tf.int32)


def _bytes(tf, encoded, position, length: int):
    """Returns `length` bytes from `position` on as int32, zeros beyond the end of the file."""
    available = tf.clip_by_value(tf.strings.length(encoded) - position, 0, length)
    position = tf.clip_by_value(position, 0, tf.strings.length(encoded))
    padded = tf.strings.join([tf.strings.substr(encoded, position, available), b"\0" * length])
    values = tf.io.decode_raw(tf.strings.substr(padded, 0, length), tf.uint8)
    return tf.cast(tf.ensure_shape(values, (length,)), tf.int32)


def _number(tf, values, little_endian=False):
    """Returns the unsigned number that the bytes of the last axis make."""
    powers = [256**n for n in range(values.shape[-1])]
    powers = tf.where(little_endian, powers, powers[::-1])
    return tf.reduce_sum(values * powers, axis=-1)


def _find_jpeg_exif(tf, encoded):
    """Returns where the TIFF header of the EXIF data of a JPEG file begins, or -1."""

    def has_more(position, found):
        head = _bytes(tf, encoded, position, 2)
        is_header = (head[0] == _JPEG_MARKER) & (head[1] != _JPEG_SCAN) & (head[1] != _JPEG_END)
        return (found < 0) & is_header

    def advance(position, found):
        head = _bytes(tf, encoded, position, 10)
        is_exif = (head[1] == _JPEG_EXIF) & tf.reduce_all(head[4:] == [*b"Exif\0\0"])
        is_filler = head[1] == _JPEG_MARKER
        next_position = position + tf.where(is_filler, 1, 2 + _number(tf, head[2:4]))
        return next_position, tf.where(is_exif, position + 10, found)

    return tf.while_loop(has_more, advance, (tf.constant(2), tf.constant(-1)))[1]


def _find_png_chunk(tf, encoded, kind: bytes, end: bytes = b"IEND"):
    """Returns where the content of the last chunk of a kind begins in a PNG file, or -1.

    Only chunks before the first one of the kind `end` count.
    """

    def has_more(position, found):
        return (position >= 8) & (position + 12 <= tf.strings.length(encoded))

    def advance(position, found):
        head = _bytes(tf, encoded, position, 8)
        length = _number(tf, head[:4])  # negative, as int32, in a damaged file
        is_wanted = tf.reduce_all(head[4:] == [*kind])
        is_last = (length < 0) | tf.reduce_all(head[4:] == [*end])
        next_position = tf.where(is_last, -1, position + 12 + length)
        return next_position, tf.where(is_wanted, position + 8, found)

    return tf.while_loop(has_more, advance, (tf.constant(8), tf.constant(-1)))[1]


def _orientation(tf, encoded, start):
    """Returns the EXIF orientation, 1 to 8, of the TIFF header at `start`; 1 if there is none."""

    def read():
        header = _bytes(tf, encoded, start, 8)
        little = header[0] == ord("I")
        is_tiff = tf.reduce_all(header[:4] == [*b"II*\0"]) | tf.reduce_all(
            header[:4] == [*b"MM\0*"]
        )
        offset = _number(tf, header[4:], little)  # negative, as int32, in a damaged file
        directory = tf.where(is_tiff & (offset > 0), start + offset, 0)
        count = _number(tf, _bytes(tf, encoded, directory, 2), little)
        available = (tf.strings.length(encoded) - directory - 2) // 12
        count = tf.maximum(tf.where(directory > 0, tf.minimum(count, available), 0), 0)
        table = tf.strings.substr(encoded, tf.where(count > 0, directory + 2, 0), 12 * count)
        entries = tf.reshape(tf.cast(tf.io.decode_raw(table, tf.uint8), tf.int32), (-1, 12))
        length = _number(tf, entries[:, 4:8], little)
        is_orientation = (
            (_number(tf, entries[:, :2], little) == _EXIF_ORIENTATION)
            & (_number(tf, entries[:, 2:4], little) == _EXIF_SHORT)
            & (length > 0)
        )
        entry = tf.concat(
            [tf.boolean_mask(entries, is_orientation), tf.zeros((1, 12), "int32")], 0
        )[0]
        # Of several values Pillow takes the first; more than two lie outside of the entry.
        is_inside = _number(tf, entry[4:8], little) <= 2
        outside = start + _number(tf, entry[8:], little)
        first = tf.where(is_inside, entry[8:10], _bytes(tf, encoded, outside, 2))
        return _number(tf, first, little)

    value = tf.cond(start >= 0, read, lambda: 1)
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _upright(tf, pixels, orientation):
    """Turns an image of an EXIF orientation from 1 to 8 upright."""
    is_transposed = orientation >= 5
    pixels = tf.transpose(pixels, tf.where(is_transposed, [1, 0, 2], [0, 1, 2]))
    last_row, last_column = tf.shape(pixels)[0] - 1, tf.shape(pixels)[1] - 1
    rows, columns = tf.range(last_row + 1), tf.range(last_column + 1)
    is_upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    is_mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    pixels = tf.gather(pixels, tf.where(is_upside_down, last_row - rows, rows), axis=0)
    return tf.gather(pixels, tf.where(is_mirrored, last_column - columns, columns), axis=1)


def _check_bmp_or_gif(tf, encoded) -> None:
    """Fails on BMP and GIF files that TensorFlow does not decode as Pillow does."""
    head = _bytes(tf, encoded, 0, 34)
    is_bmp = tf.reduce_all(head[:2] == [*b"BM"])
    is_plain_bmp = (
        (_number(tf, head[14:18], True) >= 40)  # not the header of OS/2
        & (_number(tf, head[28:30], True) == 24)  # bits per pixel
        & (_number(tf, head[30:34], True) == 0)  # no compression
    )
    tf.debugging.Assert(
        ~is_bmp | is_plain_bmp,
        ["Only BMP files of 24 bits without compression can be decoded here: send a PNG file."],
    )
    is_gif = tf.reduce_all(head[:3] == [*b"GIF"])
    palette_length = 3 * tf.bitwise.left_shift(2, head[10] % 8)
    start = 13 + tf.where(head[10] >= 128, palette_length, 0)
    block = _bytes(tf, encoded, start, 8)
    # An extension may come before the frame; its flag says whether a color is transparent.
    has_control = tf.reduce_all(block[:2] == [0x21, 0xF9])
    is_transparent = has_control & (block[3] % 2 == 1)
    frame = _bytes(tf, encoded, start + tf.where(has_control, 8, 0), 9)
    is_whole = tf.reduce_all(frame[:5] == [0x2C, 0, 0, 0, 0]) & tf.reduce_all(
        frame[5:] == head[6:10]
    )
    tf.debugging.Assert(
        ~is_gif | (is_whole & ~is_transparent),
        [
            "Only GIF files whose first frame is whole and opaque can be decoded here, not "
            "animations or transparent ones: send a PNG file."
        ],
    )
