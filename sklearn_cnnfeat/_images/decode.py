"""From an encoded image, a PIL image or an array to pixels."""

import io

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from sklearn_cnnfeat._images.damage import check_rows, check_strips, expose_cuts
from sklearn_cnnfeat._images.formats import find_reader
from sklearn_cnnfeat._images.modes import as_array, eight_bit, numbers
from sklearn_cnnfeat._images.orientation import ON_SIDE, orientation
from sklearn_cnnfeat._images.resize import fit, scaled_size

# The tag of TIFF files that is 0 where 0 is white.
_WHITE_IS = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION


def decode_image(image, spec, value_range):
    """Return the pixels of an encoded image or a PIL image: (height, width, channels)."""
    image = _upright(_open(image, spec) if isinstance(image, bytes) else image)
    if value_range is None:
        return as_array(fit(eight_bit(image, spec.channels), spec))
    return _decode_floats(numbers(image, spec.channels), spec, value_range)


def decode_array(pixels, spec, value_range, data_format):
    """Return the pixels of an array: (height, width, channels), uint8 or float32."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    elif data_format == "channels_first":
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels[:, :, :3]  # no alpha
    # Whatever the other images in `X` are: how an image is resized must not depend on them.
    if value_range is not None or not _is_eight_bit(pixels):
        return _decode_floats(pixels, spec, value_range)
    pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return as_array(fit(eight_bit(image, spec.channels), spec))


def _decode_floats(pixels, spec, value_range):
    # At least float32, and float64 for what float32 cannot hold exactly (large integers).
    pixels = pixels.astype(np.result_type(pixels.dtype, np.float32), copy=False)
    if value_range is not None:
        low, high = value_range
        pixels = (pixels - low) * 255 / (high - low)
    if spec.channels == 1 and pixels.shape[2] == 3:
        red, green, blue = np.moveaxis(pixels, 2, 0)
        pixels = (0.299 * red + 0.587 * green + 0.114 * blue)[:, :, np.newaxis]
    planes = [
        np.asarray(fit(Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)), spec))
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    if len(planes) < spec.channels:
        planes *= spec.channels
    return np.stack(planes, axis=2)


def _open(data, spec):
    """Decode an encoded image as `PIL.Image.open` does, but within `spec.max_pixels`.

    The limit of `PIL.Image.open` belongs to the whole process: `max_pixels` could not exceed it,
    and a warning would come at half of it.
    """
    if not data:
        raise ValueError("it is empty")
    format, reader = find_reader(data)
    if reader is None:
        raise ValueError(
            f"no JPEG, PNG, WebP, GIF, BMP or TIFF image; it begins with {data[:16]!r}"
        )
    if format not in spec.formats:
        raise ValueError(f"it is a {format} image, and formats={tuple(spec.formats)!r}")
    if format == "jpeg":
        data = expose_cuts(data)
    try:
        image = reader(io.BytesIO(data))
    except SyntaxError as error:  # what Pillow says of a header that makes no sense
        raise ValueError(f"its header is damaged ({error})") from error
    width, height = image.size
    if width * height > spec.max_pixels:
        raise ValueError(
            f"its header promises {width} x {height} pixels, more than max_pixels={spec.max_pixels}"
        )
    if spec.decode == "fast" and reader is JpegImagePlugin.JpegImageFile and spec.height:
        on_side = orientation(image) in ON_SIDE
        needed = scaled_size((height, width) if on_side else (width, height), spec)
        image.draft(None, needed[::-1] if on_side else needed)
    if format == "tiff":
        check_strips(image)
    image.load()
    if format == "png":
        check_rows(data, image)
    if format == "tiff" and image.mode.startswith("I;16") and image.tag_v2.get(_WHITE_IS) == 0:
        # Pillow inverts only those of 8 bits and fewer.
        image = Image.fromarray(65535 - np.asarray(image))
    return image


def _upright(image):
    turn = orientation(image)
    return image if turn is None else image.transpose(turn)


def _is_eight_bit(pixels):
    """Tell whether an array holds nothing but whole numbers from 0 to 255."""
    if pixels.dtype == np.uint8:
        return True
    return pixels.dtype.kind in "bui" and pixels.min() >= 0 and pixels.max() <= 255
