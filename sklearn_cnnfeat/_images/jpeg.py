"""Parse the structure of JPEG files, to find damage and dangerous headers before decoding."""

import re
import struct
from dataclasses import dataclass, replace

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
# Markers that are followed by nothing: TEM, and the restarts.
_ALONE = (0x01, *range(0xD0, 0xD8))
_FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
_BASELINE, _EXTENDED, _LOSSLESS = 0xC0, 0xC1, 0xC3
_PROGRESSIVE = (0xC2, 0xCA)

# Replaces the end marker of a JPEG file: 64 bits with which no Huffman code begins.
_NO_END = b"\xff\x00" * 8
# The next marker in compressed data, where 255 is followed by 0 and restarts may stand.
_NO_FILL = re.compile(rb"[^\xff]")
# Encoders write about ten; each scan takes time for all pixels, even if it has hardly any bytes.
_MOST_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True)
class Frame:
    """The header of a JPEG picture.

    The `marker` tells the kind of compression: 0xC0 is baseline, 0xC3 lossless. A picture in
    several scans (`in_scans`) is kept as coefficients until the last of them.
    """

    marker: int
    width: int
    height: int
    n_components: int
    in_scans: bool = False

    @property
    def is_lossless(self):
        """Whether the picture is lossless, which libjpeg does not decode at reduced size."""
        return self.marker == _LOSSLESS


def find_frame(data):
    """Return the `Frame` that libjpeg decodes, following its rules; None if that is not certain."""
    frame, place = None, 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 9 < len(data):
        marker = data[place + 1]
        place += 1 if marker == 0xFF else 2
        if marker in (0x00, 0xFF, *_ALONE):
            continue
        if marker == _SCAN:
            in_scans = frame and (
                frame.marker in _PROGRESSIVE or data[place + 2] < frame.n_components
            )
            return frame and replace(frame, in_scans=in_scans)
        if marker in (_START, _END) or (frame is not None and marker in _FRAMES):
            return None
        if marker in _FRAMES:
            _, _, height, width, n_components = struct.unpack_from(">HBHHB", data, place)
            frame = Frame(marker, width, height, n_components)
        place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return None


def expose_cuts(data):
    """Return a JPEG file changed so that Pillow notices where its data end too soon.

    If a file was cut off and closed by an end marker, libjpeg paints the rest gray and gives a
    warning that Pillow hides. Without the marker, Pillow waits for more data and then raises an
    error. A few bytes replace the marker, because the decoder looks ahead; they are not enough
    for one more block. A file of several scans needs its end marker, but if it was cut off, some
    of its scans are missing.
    """
    place, missing, n_scans = 2, {}, 0
    try:
        while (marker := data[place + 1]) != _END:
            if marker == 0xFF:
                # Markers may be preceded by any number of these.
                place = _NO_FILL.search(data, place + 2).start() - 1
                continue
            if data[place] != 0xFF or 0xD0 <= marker <= 0xD7:
                return data
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            segment = data[place + 4 : place + 2 + length]
            place += 2 + length
            if marker in _FRAMES:
                kind, n_components = marker, segment[5]
                # Coefficients of each component that no scan has brought to the last bit.
                missing = {segment[6 + 3 * i]: set(range(64)) for i in range(n_components)}
            elif marker == _SCAN:
                if kind in (_BASELINE, _EXTENDED, _LOSSLESS) and segment[0] == n_components:
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
