"""Small pictures of photographs, for displays of many of them."""

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np


def shrink(pixels, side):
    """Return a picture (height, width, 1 or 3) as RGB whose longest side is at most `side`."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longest = max(image.size)
    if longest > side:
        size = [max(1, round(length * side / longest)) for length in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)


def thumbnails(pictures, positions, side):
    """Yield small pictures of photographs, in order, decoded by a few threads."""
    with ThreadPoolExecutor(4) as pool:
        # In portions: a photograph of a camera takes 36 MB until it is shrunk.
        for start in range(0, len(positions), 64):
            yield from pool.map(
                lambda i: shrink(pictures.whole(i), side), positions[start : start + 64]
            )


def webp(pixels, quality=70):
    """Return a picture as the bytes of a WebP file."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=3)
    return buffer.getvalue()
