"""The photographs that excite channels most, and where: one pass, in bounded memory."""

import heapq

import numpy as np

from sklearn_cnnfeat._inspection.judged import judge
from sklearn_cnnfeat._inspection.maps import chunks_of_maps


def strongest_examples(chunks, channels, n_examples):
    """Return the largest values of channels with their places.

    Parameters
    ----------
    chunks : iterable of (positions, maps)
        Positions of photographs, and maps of a layer, (n, height, width, channels).
    channels : ndarray of int
        The channels.
    n_examples : int
        Examples for each: from one photograph each, the largest first.

    Returns
    -------
    examples : list of list of tuple
        For each channel (value, position of the photograph, row, column).
    """
    best = [[] for _ in channels]
    for positions, maps in chunks:
        width = maps.shape[2]
        for found, channel in zip(best, channels, strict=True):
            values = maps[..., channel].reshape(len(maps), -1)
            places = values.argmax(axis=1)
            for position, place, row in zip(positions, places, values, strict=True):
                # Of equal values the first photograph stays.
                item = (float(row[place]), -int(position), *divmod(int(place), width))
                if len(found) < n_examples:
                    heapq.heappush(found, item)
                else:
                    heapq.heappushpop(found, item)
    return [
        [(value, -position, row, column) for value, position, row, column in sorted(one)[::-1]]
        for one in best
    ]


def readable_positions(transformer, X, n):
    """Return the positions of photographs that can be read; all unless unreadable ones are NaN."""
    if transformer.on_error != "nan":
        return np.arange(n)
    return judge(transformer, X).readable


def examples_of(transformer, X, positions, layer, channels, n_examples):
    """Return the extractor, the channels as indices, and their examples."""
    chunks = chunks_of_maps(transformer, X, positions, layer)
    extractor = next(chunks)
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
    chosen = np.atleast_1d(np.asarray(channels))
    if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"channel must be an int or a sequence of these. Got {channels!r}.")
    outside = chosen[(chosen < -shape[2]) | (chosen >= shape[2])]
    if outside.size:
        raise ValueError(
            f"channel={outside[0]} is out of range: layer {name!r} has {shape[2]} channels, 0 to "
            f"{shape[2] - 1}."
        )
    chosen = chosen % shape[2]
    pairs = ((part, maps[0]) for part, maps in chunks)
    return extractor, chosen, strongest_examples(pairs, chosen, n_examples)
