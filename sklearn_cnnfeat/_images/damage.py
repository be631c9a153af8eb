"""Find damage that Pillow ignores: missing rows of PNG files and strips of TIFF files."""

import zlib

import numpy as np


def check_strips(image):
    """Raise an error if the strips of a TIFF file do not cover it: the rest would be black."""
    width, height = image.size
    covered = sum((right - left) * (low - top) for _, (left, top, right, low), *_ in image.tile)
    # Channels may be stored one after another, each in its own strips.
    if covered % (width * height):
        raise ValueError("image file is truncated: its strips do not cover the picture")


# Where the passes of an interlaced PNG file begin, and their steps: x, y, across, down.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# Channels of each type of PNG file.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def check_rows(data, image):
    """Raise an error if a PNG file holds fewer rows than its header promises.

    Pillow accepts compressed data with too few rows if the compressed stream ends properly.
    """
    width, height = image.size
    interlaced = data[28]
    if not interlaced and np.asarray(image.crop((0, height - 1, width, height))).any():
        return  # a row that is missing is black
    bits = data[24] * _CHANNELS[data[25]]
    missing = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        n_pixels, n_rows = -(-(width - left) // across), -(-(height - top) // down)
        if n_pixels > 0:
            missing += max(0, n_rows) * (1 + (n_pixels * bits + 7) // 8)
    unpacked = zlib.decompressobj()
    place = 8
    while missing > 0 and place < len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        packed = data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(unpacked.decompress(packed, _MOST_UNPACKED))
            packed = unpacked.unconsumed_tail
        place += length + 12
    if missing > 0:
        raise ValueError("image file is truncated: rows are missing")


# Bytes that are unpacked at once.
_MOST_UNPACKED = 2**20
