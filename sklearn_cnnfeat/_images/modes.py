"""From the modes of Pillow to RGB or gray."""

import numpy as np
from PIL import Image


def _is_wide(image):
    return image.mode.startswith("I") or image.mode == "F"


def eight_bit(image, channels):
    """Return the image as RGB or L. Transparency is dropped, as Keras does."""
    mode = "RGB" if channels == 3 else "L"
    if _is_wide(image):
        image = _narrow(image)
    if image.mode == mode:
        return image
    if "transparency" in image.info:
        # Pillow would try to carry it over, and warns or fails where it cannot.
        image = image.copy()
        del image.info["transparency"]
    if image.mode in _HALFWAY:
        image = image.convert(_HALFWAY[image.mode])
    return image.convert(mode)


# Pillow has no direct way from these modes to both RGB and L.
_HALFWAY = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}


def _narrow(image):
    """Return a gray image of more than 8 bits with 8.

    16-bit modes are divided by 257, so that white stays white (Pillow would clip them). The 32-bit
    modes do not say what white is: values up to 255 are taken as they are, others as 16 bits.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode in ("I", "F") and not (
        0 <= low and high <= 65535 and not (image.mode == "F" and low < high <= 1)
    ):
        raise ValueError(
            f"its pixels are {image.mode!r} numbers (32 bits) from {low:g} to {high:g}, which do "
            "not tell what white is. Say it with value_range=(black, white)"
        )
    if image.mode not in ("I", "F") or high > 255:
        values = values / np.float32(257)
    return Image.fromarray(np.rint(values).astype(np.uint8))


def numbers(image, channels):
    """Return the numbers an image holds, unscaled: (height, width, channels)."""
    if _is_wide(image):
        return np.asarray(image)[:, :, np.newaxis]
    return as_array(eight_bit(image, channels))


def as_array(image):
    pixels = np.asarray(image)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
