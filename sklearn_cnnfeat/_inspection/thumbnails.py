"""Small pictures of photographs, for displays of many of them."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import joblib
import numpy as np

_QUALITY = 70


def shrink(pixels, side):
    """Return a picture (height, width, 1 or 3) as RGB whose longest side is at most `side`."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longest = max(image.size)
    if longest > side:
        size = [max(1, round(length * side / longest)) for length in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)


def thumbnails(pictures, positions, side, encode=None):
    """Yield small pictures of photographs, in order, as `encode` returns them."""

    def make(i):
        small = shrink(pictures.whole(i), side)
        return small if encode is None else encode(small)

    # As many as there are cores, and one waiting: a photograph of a camera takes 36 MB until it is
    # shrunk.
    n_threads = joblib.cpu_count()
    with ThreadPoolExecutor(n_threads) as pool:
        waiting = deque()
        for i in positions:
            waiting.append(pool.submit(make, i))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def webp(pixels):
    """Return a picture as the bytes of a WebP file."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_QUALITY, method=3)
    return buffer.getvalue()
