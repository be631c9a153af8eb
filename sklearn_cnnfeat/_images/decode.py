"""From an encoded image, a PIL image or an array to pixels."""

import io

import numpy as np
from PIL import Image, TiffImagePlugin

from sklearn_cnnfeat._images.damage import check_rows, check_strips
from sklearn_cnnfeat._images.formats import find_reader
from sklearn_cnnfeat._images.jpeg import expose_cuts, find_frame
from sklearn_cnnfeat._images.limits import check_size
from sklearn_cnnfeat._images.modes import as_array, eight_bit, n_channels, numbers
from sklearn_cnnfeat._images.orientation import ON_SIDE, orientation
from sklearn_cnnfeat._images.pillow import check_exif, check_safe, quiet
from sklearn_cnnfeat._images.resize import fit, scaled_size
from sklearn_cnnfeat._images.strips import rows_of, strips

# The tag of TIFF files that is 0 where 0 is white.
_WHITE_IS = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION


def decode_image(image, spec, value_range):
    """Return the pixels of an encoded image or a PIL image: (height, width, channels)."""
    # All stages share one name, so that each is freed as soon as the next one exists.
    with quiet():
        if isinstance(image, bytes):
            image = _open(image, spec)
        turn = orientation(image)
        if turn is not None:
            image = image.transpose(turn)
        if value_range is None:
            image = eight_bit(image, spec.channels)
            return as_array(fit(image, spec))

        def rows(top, bottom):
            return numbers(rows_of(image, top, bottom), spec.channels)

        return _decode_floats(rows, image.size, n_channels(image, spec), spec, value_range)


def decode_array(pixels, spec, value_range, data_format):
    """Return the pixels of an array: (height, width, channels), uint8 or float32."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    elif data_format == "channels_first":
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels[:, :, :3]  # no alpha
    # Decided for each image: how it is resized must not depend on the other images in `X`.
    if value_range is not None or not _is_eight_bit(pixels):
        height, width, channels = pixels.shape
        return _decode_floats(
            lambda top, bottom: pixels[top:bottom], (width, height), channels, spec, value_range
        )
    pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return as_array(fit(eight_bit(image, spec.channels), spec))


def _decode_floats(rows, size, channels, spec, value_range):
    """Return float32 pixels on 0..255, of an image whose numbers are read in strips of rows.

    `rows` returns the numbers from a row to another: (height, width, channels).
    """
    if channels > spec.channels:
        wanted = [slice(channels)]  # all of them, for a weighted sum
    else:
        wanted = [slice(i, i + 1) for i in range(channels)]
    width, height = size
    pixels = np.empty((spec.height or height, spec.width or width, len(wanted)), np.float32)
    # One channel at a time, and each in strips, to save memory.
    for i, channel in enumerate(wanted):
        values = (
            (top, _scale(rows(top, bottom)[:, :, channel], value_range))
            for top, bottom in strips(size)
        )
        if spec.height is None:
            for top, strip in values:
                pixels[top : top + len(strip), :, i] = strip
            continue
        plane = Image.new("F", size)
        for top, strip in values:
            plane.paste(Image.fromarray(strip), (0, top))
        pixels[:, :, i] = np.asarray(fit(plane, spec))
        del plane  # before the next one is made
    return pixels if len(wanted) == spec.channels else np.repeat(pixels, spec.channels, axis=2)


def _scale(pixels, value_range):
    """Return one channel as float32 on 0..255: the numbers, or a weighted sum of three colors."""
    # At least float32, and float64 for what float32 cannot hold exactly (large integers).
    pixels = pixels.astype(np.result_type(pixels.dtype, np.float32), copy=False)
    if value_range is not None:
        low, high = value_range
        pixels = (pixels - low) * 255 / (high - low)
    if pixels.shape[2] == 3:
        red, green, blue = np.moveaxis(pixels, 2, 0)
        pixels = 0.299 * red + 0.587 * green + 0.114 * blue
    else:
        pixels = pixels[:, :, 0]
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _open(data, spec):
    """Decode an encoded image as `PIL.Image.open` does, but within `spec.max_pixels`.

    The limit of `PIL.Image.open` is process-wide: `max_pixels` could not exceed it, and Pillow
    warns at half of it.
    """
    if not data:
        raise ValueError("it is empty")
    format, reader = find_reader(data)
    if reader is None:
        raise ValueError(
            f"it is not a JPEG, PNG, WebP, GIF, BMP or TIFF image; it begins with {data[:16]!r}"
        )
    if format not in spec.formats:
        raise ValueError(f"it is a {format} image, and formats={tuple(spec.formats)!r}")
    check_exif(data)
    if format == "jpeg":
        data = expose_cuts(data)
    image = _read_header(reader, data)
    check_size(format, data, image, spec.max_pixels)
    check_safe(data, image)
    if format == "jpeg" and spec.decode == "fast" and spec.height:
        _reduce(image, data, spec)
    if format == "tiff":
        check_strips(image)
    image.load()
    if format == "png":
        check_rows(data, image)
    if format == "tiff" and image.mode.startswith("I;16") and image.tag_v2.get(_WHITE_IS) == 0:
        # Pillow inverts only those of 8 bits and fewer.
        image = Image.fromarray(65535 - np.asarray(image))
    return image


def _read_header(reader, data):
    try:
        return reader(io.BytesIO(data))
    except SyntaxError as error:  # Pillow's error for a header that makes no sense
        if isinstance(error.__cause__, TypeError):
            # Pillow turns errors of its own code into it as well.
            raise ValueError(f"Pillow cannot read its header (TypeError: {error})") from error
        raise ValueError(f"its header is damaged ({error})") from error
    except OSError as error:
        if reader.format != "WEBP":
            raise
        # The decoder of earlier versions of Pillow is the first to look at this header.
        raise ValueError(f"its header is damaged ({error})") from error


def _reduce(image, data, spec):
    """Let the JPEG decoder halve a large image as long as it stays larger than needed."""
    frame = find_frame(data)
    if frame is None or frame.is_lossless:
        # libjpeg decodes these at full size only, into a buffer for the reduced size.
        return
    on_side = orientation(image) in ON_SIDE
    needed = scaled_size(image.size[::-1] if on_side else image.size, spec)
    image.draft(None, needed[::-1] if on_side else needed)


def _is_eight_bit(pixels):
    """Return whether an array holds nothing but whole numbers from 0 to 255."""
    if pixels.dtype == np.uint8:
        return True
    return pixels.dtype.kind in "bui" and pixels.min() >= 0 and pixels.max() <= 255
