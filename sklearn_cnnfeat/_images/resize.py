"""Bring an image to the size of an `ImageSpec`."""

import math

from PIL import Image

# "crop" keeps this part of the short side (224 of 256), as most networks are evaluated.
_CROP_FRACTION = 0.875


def fit(image, spec):
    """Bring an image to the size of `spec`."""
    if spec.height is None:
        return image
    width, height = scaled_size(image.size, spec)
    if width * height > spec.max_pixels:
        raise ValueError(
            f"its {image.size[0]} x {image.size[1]} pixels are too long and narrow for "
            f"resize={spec.resize!r}, which would need {width} x {height}"
        )
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling[spec.interpolation.upper()])
    if (width, height) == (spec.width, spec.height):
        return image
    left = round((width - spec.width) / 2)
    top = round((height - spec.height) / 2)
    # Outside the image is black, so that cropping also pads.
    return image.crop((left, top, left + spec.width, top + spec.height))


def scaled_size(size, spec):
    """Return the (width, height) to resize to, before the center is cut out or padded."""
    width, height = spec.width, spec.height
    if spec.resize == "crop" or spec.crop is not None:
        width, height = (_before_crop(side, spec.crop) for side in (width, height))
    if spec.resize == "stretch":
        return width, height
    if spec.resize == "crop":
        by_height = size[0] * height > size[1] * width
        if by_height:
            return size[0] * height // size[1], height
        return width, size[1] * width // size[0]
    if size[0] * height > size[1] * width:
        return width, max(1, round(size[1] * width / size[0]))
    return max(1, round(size[0] * height / size[1])), height


def _before_crop(side, fraction):
    """Return the side of which a crop leaves `side`."""
    if fraction is None:
        return round(side / _CROP_FRACTION)
    scaled = side / fraction
    # A fraction that was made of two integers gives them back.
    return round(scaled) if abs(scaled - round(scaled)) < 1e-9 else math.floor(scaled)
