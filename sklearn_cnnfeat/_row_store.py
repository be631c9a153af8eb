"""The rows of one network in a feature cache."""

import math
import time

import numpy as np

# Most rows, and bytes of rows, per write. Fewer are written if the last write took less than this
# share of the time since then, or after so many seconds. Other processes then soon find computed
# rows, and few are lost if this process is killed.
_ROWS_PER_WRITE = 256
_BYTES_PER_WRITE = 32 * 1024**2
_WRITING_TIME = 0.04
_LONGEST_PAUSE = 2.0


class RowStore:
    """Finds and keeps the rows of one network."""

    def __init__(self, cache, fingerprints, shapes):
        self._cache = cache
        self._fingerprints = fingerprints
        self._shapes = shapes
        self._unwritten = {}
        self._n_bytes = 0
        self._next_write = 0.0

    def find(self, keys):
        """Return, for each key, the rows of all heads, or None where one is missing."""
        found = [self._unwritten.get(key) for key in keys]
        wanted = [k for k, key in enumerate(keys) if key is not None and found[k] is None]
        if not wanted:
            return found
        digests = [keys[k] for k in wanted]
        hit = np.ones(len(wanted), bool)
        heads = []
        for fingerprint, shape in zip(self._fingerprints, self._shapes, strict=True):
            rows = np.empty((len(wanted), math.prod(shape)), np.float32)
            hit &= self._cache.get_many(fingerprint, digests, rows)
            heads.append(rows.reshape(len(wanted), *shape))
        for position in np.flatnonzero(hit):
            found[wanted[position]] = [rows[position] for rows in heads]
        return found

    def add(self, key, rows):
        """Keep the rows of an image; they are written together with others."""
        kept = [np.array(row).reshape(s) for row, s in zip(rows, self._shapes, strict=True)]
        self._unwritten[key] = kept
        self._n_bytes += sum(row.nbytes for row in kept)
        if (
            len(self._unwritten) >= _ROWS_PER_WRITE
            or self._n_bytes >= _BYTES_PER_WRITE
            or time.perf_counter() >= self._next_write
        ):
            self.flush()

    def flush(self):
        """Write what has been added."""
        if not self._unwritten:
            return
        start = time.perf_counter()
        keys = list(self._unwritten)
        for fingerprint, *rows in zip(self._fingerprints, *self._unwritten.values(), strict=True):
            self._cache.put_many(fingerprint, keys, np.stack([row.ravel() for row in rows]))
        # Cleared after the write: if it is interrupted, the rows are written again.
        self._unwritten, self._n_bytes = {}, 0
        end = time.perf_counter()
        self._next_write = end + min((end - start) / _WRITING_TIME, _LONGEST_PAUSE)
