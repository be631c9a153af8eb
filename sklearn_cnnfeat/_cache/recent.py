"""Recently read rows in memory, up to a limit of bytes."""

from collections import OrderedDict


class RecentRows:
    """Rows by key, `max_bytes` together at most; the least recently used ones are removed first."""

    def __init__(self, max_bytes):
        self._max_bytes = max_bytes
        self._rows = OrderedDict()
        self._n_bytes = 0

    def get(self, key):
        """Return a row; None where it is not known."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def add(self, key, row):
        """Keep a copy of a row."""
        if key in self._rows or row.nbytes > self._max_bytes:
            return
        self._rows[key] = row.copy()
        self._n_bytes += row.nbytes
        while self._n_bytes > self._max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self._n_bytes -= oldest.nbytes

    def discard(self, key):
        row = self._rows.pop(key, None)
        if row is not None:
            self._n_bytes -= row.nbytes

    def clear(self):
        self._rows.clear()
        self._n_bytes = 0
