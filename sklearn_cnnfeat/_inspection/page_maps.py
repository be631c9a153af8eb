"""Feature maps and decision maps as a page holds them: small, as bytes, compressed."""

import heapq
import zlib

import numpy as np

# Channels of each layer that every photograph has.
N_CHANNELS = 8


def strongest_channels(maps, n_channels=N_CHANNELS):
    """Return the channels of maps (height, width, channels) with the largest mean magnitude."""
    return np.argsort(-np.abs(maps).mean(axis=(0, 1)), kind="stable")[:n_channels]


def as_bytes(maps, side):
    """Return small maps (channels, height, width), each on a scale of its own from 0 to 255."""
    small = _shrink(np.moveaxis(maps, -1, 0), side)
    low = np.minimum(small.min(axis=(1, 2), keepdims=True), 0)
    spread = small.max(axis=(1, 2), keepdims=True) - low
    return np.rint(255 * (small - low) / np.where(spread > 0, spread, 1)).astype(np.uint8)


def as_signed_bytes(values):
    """Return a decision map from -127 to 127, and the value that 127 stands for."""
    limit = float(np.abs(values).max()) or 1.0
    return np.rint(127 * values / limit).astype(np.int8), limit


def small_shape(shape, side):
    """Return height and width of what `as_bytes` makes of maps."""
    step = -(-max(shape[:2]) // side)
    return [-(-length // step) for length in shape[:2]]


def _shrink(maps, side):
    """Return maps whose sides are at most `side`, each value the mean of a block."""
    step = -(-max(maps.shape[1:]) // side)
    if step == 1:
        return maps
    pads = [(0, 0), *((0, -length % step) for length in maps.shape[1:])]
    padded = np.pad(maps, pads, mode="edge")
    n, height, width = padded.shape
    return padded.reshape(n, height // step, step, width // step, step).mean(axis=(2, 4))


def pack(parts):
    """Return arrays of bytes as one, compressed."""
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = b"".join(part.tobytes() for part in parts)
    return squeeze.compress(data) + squeeze.flush()


class Details:
    """The maps of all channels, for a few photographs.

    `lines` has what `make` returned, by position.

    `details` are so many photographs of the smallest lead, the first ones of equal leads; or
    positions.
    """

    def __init__(self, details, n):
        self.lines = {}
        self._largest = []
        self._chosen = None
        if isinstance(details, (int, np.integer)):
            self._most = max(0, int(details))
            return
        positions = np.asarray(details, int)
        outside = positions[(positions < -n) | (positions >= n)]
        if outside.size:
            raise ValueError(f"details holds {outside[0]}, but X has {n} photographs.")
        self._chosen = set((positions % n).tolist())

    def offer(self, i, lead, make):
        """Keep what `make` returns for photograph `i`, as long as it is among those wanted."""
        if self._chosen is not None:
            if i in self._chosen:
                self.lines[i] = make()
            return
        # The largest lead comes up first: it is the first to go.
        item = -lead, -i
        if len(self._largest) < self._most:
            heapq.heappush(self._largest, item)
        elif self._most and item > self._largest[0]:
            _, gone = heapq.heapreplace(self._largest, item)
            del self.lines[-gone]
        else:
            return
        self.lines[i] = make()
