"""What a contender is: one way from image files to features.

Every contender imports what it needs when it is set up, so that its process holds nothing else.
"""

from importlib.util import find_spec

from _networks import decoded_batches, make_weights


class Contender:
    """One way from files to features.

    Attributes
    ----------
    label : str
        Its name in tables.
    packages : tuple of (module, distribution)
        What must be installed.
    batch : int
        Images that it takes at a time.
    ours : bool
        Whether it is this package.
    keras_weights : bool
        Whether it computes Keras' network with the weights that the others have.
    called : str or None
        Attribute of `Network` that says what a network is called there, or None in it that there is
        no such network. None for those that know every network.
    """

    packages = ()
    batch = 1
    ours = False
    keras_weights = True
    called = None

    def __init__(self, label):
        self.label = label

    def missing(self):
        """Return what is not installed; None where all is."""
        missing = [name for name in self.packages if find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else None

    def covers(self, network):
        """Whether it knows the network."""
        return self.called is None or getattr(network, self.called) is not None

    def prepare(self, network, paths):
        """Make the files that later runs find, in a process that is not measured."""
        if self.keras_weights:
            make_weights(network, paths)

    def set_up(self, network, paths):
        """Get everything ready."""
        raise NotImplementedError

    def features(self, paths):
        """Return an array with one row per file."""
        raise NotImplementedError


class Threaded(Contender):
    """A network that takes uint8 batches, behind decoding in threads."""

    batch = 32

    def set_up(self, network, paths):
        self._size = network.size
        self._run = self._load(network, paths)

    def features(self, paths):
        import numpy as np

        batches = decoded_batches(paths, self._size, self.batch)
        return np.concatenate([self._run(batch) for batch in batches])

    def _load(self, network, paths):
        """Return a function from a uint8 batch to rows."""
        raise NotImplementedError
