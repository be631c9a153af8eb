"""What was used last, in memory."""

from collections import OrderedDict


class Recent(OrderedDict):
    """The `n_most` values used last, by key."""

    def __init__(self, n_most):
        super().__init__()
        self._n_most = n_most

    def recall(self, key):
        """Return the value of a key, or None."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]

    def keep(self, key, value):
        """Keep a value in place of the least recently used one."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._n_most:
            self.popitem(last=False)
