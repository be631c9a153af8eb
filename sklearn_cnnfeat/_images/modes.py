"""Convert images from all modes of Pillow to RGB or gray."""

import numpy as np
from PIL import Image

from sklearn_cnnfeat._images.strips import convert_in_strips, rows_of, strips

# Pillow has no direct way from these modes to both RGB and L.
_HALFWAY = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}


def eight_bit(image, channels):
    """Return the image as RGB or L. Transparency is dropped, as Keras does."""
    mode = _mode(channels)
    if image.mode == mode:
        return image
    if _is_wide(image):
        divisor = _find_divisor(image)
        return convert_in_strips(image, mode, lambda strip: _narrow(strip, divisor).convert(mode))
    if image.mode in _HALFWAY or "transparency" in image.info:
        return convert_in_strips(image, mode, lambda strip: _convert(strip, mode))
    return image.convert(mode)


def numbers(image, channels):
    """Return the numbers that an image holds, unscaled: (height, width, channels)."""
    return as_array(image if _is_wide(image) else eight_bit(image, channels))


def n_channels(image, spec):
    """Return how many channels `numbers` returns."""
    return 1 if _is_wide(image) else spec.channels


def as_array(image):
    """Return the pixels of an image: (height, width, channels)."""
    pixels = np.asarray(image)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _mode(channels):
    return "RGB" if channels == 3 else "L"


def _is_wide(image):
    return image.mode.startswith("I") or image.mode == "F"


def _convert(image, mode):
    """Return an image of 8 bits in another mode, without its transparency."""
    # Otherwise Pillow tries to convert the transparency too, and warns or fails if it cannot.
    image.info.pop("transparency", None)
    if image.mode in _HALFWAY:
        image = image.convert(_HALFWAY[image.mode])
    return image.convert(mode)


def _find_divisor(image):
    """Return the function that converts a gray image of more than 8 bits to 8.

    16-bit modes are divided by 257, so that white stays white (Pillow would clip them). The 32-bit
    modes do not say what white is: values up to 255 are taken as they are, others as 16 bits.
    """
    if image.mode not in ("I", "F"):
        return 257
    bounds = [
        (values.min(), values.max())
        for top, bottom in strips(image.size)
        for values in [np.asarray(rows_of(image, top, bottom))]
    ]
    low, high = np.min(bounds), np.max(bounds)  # NaN if there is one
    if not (0 <= low and high <= 65535 and not (image.mode == "F" and low < high <= 1)):
        raise ValueError(
            f"its pixels are {image.mode!r} numbers (32 bits) from {low:g} to {high:g}, which do "
            "not tell what white is. Say it with value_range=(black, white)"
        )
    return 257 if high > 255 else 1


def _narrow(image, divisor):
    values = np.asarray(image) / np.float32(divisor)
    return Image.fromarray(np.rint(values).astype(np.uint8))
