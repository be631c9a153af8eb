"""Find damage that Pillow passes over: cut files, missing rows and strips."""

import re
import zlib

import numpy as np


def check_strips(image):
    """Raise where the strips or tiles of a TIFF file do not cover it: the rest would be black."""
    width, height = image.size
    covered = sum((right - left) * (low - top) for _, (left, top, right, low), *_ in image.tile)
    # Channels may lie one behind the other, each in strips of its own.
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
    """Raise where a PNG file holds fewer rows than its header promises.

    Pillow is content with compressed data that end too soon, as long as they end properly.
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


# Bytes unpacked at once, to be counted.
_MOST_UNPACKED = 2**20

# In place of the marker at the end of a JPEG file: 64 bits of what no Huffman code begins with.
_NO_END = b"\xff\x00" * 8
# The next marker in compressed data, where 255 is followed by 0 and restarts may stand.
_NO_FILL = re.compile(rb"[^\xff]")
# Encoders write about ten; each takes time for all pixels, even if it takes no room in the file.
_MOST_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def expose_cuts(data):
    """Return a JPEG file changed so that Pillow notices where its data end too soon.

    If a file was cut off and closed by an end marker, libjpeg paints the rest gray and gives a
    warning that Pillow hides. Without the marker Pillow waits for more data and then tells. A few
    bytes stand in for it, because the decoder looks ahead; they are not enough for one more block.
    A file of several scans needs its end, but if it was cut off it lacks some of its scans.
    """
    place, missing, n_scans = 2, {}, 0
    try:
        while (marker := data[place + 1]) != 0xD9:
            if marker == 0xFF:
                # Markers may be preceded by any number of these.
                place = _NO_FILL.search(data, place + 2).start() - 1
                continue
            if data[place] != 0xFF or 0xD0 <= marker <= 0xD7:
                return data
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            segment = data[place + 4 : place + 2 + length]
            place += 2 + length
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                kind, n_components = marker, segment[5]
                # Coefficients of each component that no scan has brought to the last bit.
                missing = {segment[6 + 3 * i]: set(range(64)) for i in range(n_components)}
            elif marker == 0xDA:
                if kind in (0xC0, 0xC1) and segment[0] == n_components:
                    end = data.find(b"\xff\xd9", place)
                    if end < 0:
                        # What stands behind it, zeros perhaps, could pass for data.
                        raise ValueError("image file is truncated: its end is not marked")
                    return data[:end] + _NO_END
                last_bit = segment[-1] & 15
                coefficients = range(segment[-3], segment[-2] + 1)
                for i in range(segment[0]):
                    if last_bit == 0:
                        missing[segment[1 + 2 * i]].difference_update(coefficients)
                found = _MARKER.search(data, place)
                if found is None:
                    return data
                place = found.start()
                n_scans += 1
                if n_scans > _MOST_SCANS:
                    raise ValueError(f"it has more than {_MOST_SCANS} scans")
    except (AttributeError, IndexError, KeyError, UnboundLocalError):
        # Pillow says what is wrong with it.
        return data
    if any(missing.values()):
        raise ValueError("it was cut off: scans are missing, though its end is marked")
    return data
