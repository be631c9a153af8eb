"""Where rows go: the protocol of a sink, and the sinks in memory."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Sink(Protocol):
    """Receives the rows of images, in any order."""

    def write(self, i, rows):
        """Take the rows of image `i`, one array per head. Copy what is kept."""

    def fail(self, i, error):
        """Record that image `i` cannot be read."""


@dataclass
class ArraySink:
    """Rows side by side in one preallocated array."""

    out: np.ndarray
    columns: list = field(default_factory=list)

    def write(self, i, rows):
        if self.out.ndim > 2:
            self.out[i] = rows[0]
            return
        for columns, row in zip(self.columns, rows, strict=True):
            self.out[i, columns] = row

    def fail(self, i, error):
        self.out[i] = np.nan


class NullSink:
    """Discards rows, which are needed only in the cache."""

    def __init__(self):
        self.n_failed = 0

    def write(self, i, rows):
        """Forget the rows of image `i`."""

    def fail(self, i, error):
        self.n_failed += 1


class ShapedSink:
    """Gives rows the shapes of their heads and applies a user-defined pooling before another sink.

    `pool` takes the maps of one image and returns a row.
    """

    def __init__(self, sink, shapes, pool=None):
        self._sink = sink
        self._shapes = shapes
        self._pool = pool

    def write(self, i, rows):
        rows = [np.reshape(row, shape) for row, shape in zip(rows, self._shapes, strict=True)]
        if self._pool is not None:
            rows = [self._pool(row) if row.ndim == 3 else row for row in rows]
        self._sink.write(i, rows)

    def fail(self, i, error):
        self._sink.fail(i, error)
