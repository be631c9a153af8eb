"""Compute on a few rows at a time, so that no large temporary arrays are made."""

from PIL import Image

_STRIP_PIXELS = 2**17


def strips(size):
    """Yield (top, bottom) of strips of rows that cover an image of (width, height)."""
    width, height = size
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield top, min(height, top + step)


def rows_of(image, top, bottom):
    """Return a copy of some rows of an image."""
    # In Pillow 11 `crop` asks the limit of the process on the size of images.
    is_all = bottom - top == image.height
    return image.copy() if is_all else image.crop((0, top, image.width, bottom))


def convert_in_strips(image, mode, convert):
    """Return an image in another mode; `convert` turns one of a few rows into one of `mode`."""
    converted = Image.new(mode, image.size)
    for top, bottom in strips(image.size):
        converted.paste(convert(rows_of(image, top, bottom)), (0, top))
    return converted
