"""What was used last, in memory."""

from collections import OrderedDict


class Recent(OrderedDict):
    """The `n_most` values used last, by key."""

    def __init__(self, n_most):
        super().__init__()
        self._n_most = n_most

    def get_or_make(self, key, make):
        """Return the value of a key, made when it is not there: the oldest one leaves before."""
        if key not in self:
            while len(self) >= self._n_most:
                self.popitem(last=False)
            self[key] = make()
        self.move_to_end(key)
        return self[key]
