"""The photographs that excite channels most, and where: one pass, in bounded memory."""

import heapq

import numpy as np

from sklearn_cnnfeat._inspection.maps import giving_maps
from sklearn_cnnfeat._inspection.one_pass import run_in_chunks


class StrongestExamples:
    """The `n_examples` largest values of some channels, from one photograph each."""

    def __init__(self, channels, n_examples):
        self.n_seen = 0
        self._channels = channels
        self._n_examples = n_examples
        self._best = [[] for _ in channels]

    def take(self, positions, maps):
        """Take maps, (n, height, width, channels), of photographs at some positions."""
        self.n_seen += len(positions)
        width = maps.shape[2]
        for found, channel in zip(self._best, self._channels, strict=True):
            values = maps[..., channel].reshape(len(maps), -1)
            places = values.argmax(axis=1)
            for position, place, row in zip(positions, places, values, strict=True):
                # Of equal values the first photograph stays.
                item = (float(row[place]), -int(position), *divmod(int(place), width))
                if len(found) < self._n_examples:
                    heapq.heappush(found, item)
                else:
                    heapq.heappushpop(found, item)

    def sorted(self):
        """Return for each channel (value, position, row, column), the largest value first."""
        return [
            [(value, -position, row, column) for value, position, row, column in sorted(one)[::-1]]
            for one in self._best
        ]


def examples_of(extractor, images, layer, channels, n_examples):
    """Find the strongest examples of channels in one pass.

    Returns the extractor that gives the layer's maps, the channels as indices, their examples, and
    the number of photographs that can be read.
    """
    layers = None if layer is None else layer if isinstance(layer, (list, tuple)) else [layer]
    extractor = giving_maps(extractor, images, layers)
    shape, name = extractor.map_shapes[0], extractor.layers[0]
    if len(extractor.layers) > 1:
        raise ValueError(
            f"The transformer has {len(extractor.layers)} layers: say whose channels with "
            f"layer=, one of {', '.join(map(repr, extractor.layers))}."
        )
    if len(shape) != 3:
        raise ValueError(
            f"Layer {name!r} gives a vector of {shape[0]} numbers, whose units have no place in a "
            "photograph. Choose a layer with maps; layer_summary(model) lists shapes."
        )
    chosen = _as_indices(channels, shape[2], name)
    examples = StrongestExamples(chosen, n_examples)

    def take(positions, heads):
        examples.take(positions, heads[0].reshape(-1, *shape))

    run_in_chunks(extractor, images, take)
    return extractor, chosen, examples.sorted(), examples.n_seen


def _as_indices(channels, n_channels, layer):
    chosen = np.atleast_1d(np.asarray(channels))
    if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"channel must be an int or a sequence of these. Got {channels!r}.")
    outside = chosen[(chosen < -n_channels) | (chosen >= n_channels)]
    if outside.size:
        raise ValueError(
            f"channel={outside[0]} is out of range: layer {layer!r} has {n_channels} channels, 0 "
            f"to {n_channels - 1}."
        )
    return chosen % n_channels
