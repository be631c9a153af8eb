"""From features to positions: what each position of a layer contributes to a decision."""

from itertools import pairwise

import numpy as np

from sklearn_cnnfeat._inspection.maps import giving_maps, maps_of
from sklearn_cnnfeat._network.pooling import GEM_FLOOR, GEM_POWER, SPP_LEVELS, spp_bins
from sklearn_cnnfeat.exceptions import NotAffineError


def contributions(extractor, images, row, form):
    """Return what each position of each layer contributes, by the names of the layers."""
    check_positions(extractor)
    if extractor.spec.poolings[0] == "flatten":
        maps = [
            row[columns].reshape(shape)
            for columns, shape in zip(extractor.columns, extractor.map_shapes, strict=True)
        ]
    elif extractor.precision == "int8":
        raise NotAffineError("The maps behind 8-bit features are known for pooling='flatten' only.")
    else:
        maps = [batch[0] for batch in maps_of(giving_maps(extractor, images), images)]
    return contributions_of_maps(extractor, maps, form)


def check_positions(extractor):
    """Raise where the features of an extractor belong to no positions."""
    for name, shape in zip(extractor.layers, extractor.map_shapes, strict=True):
        if len(shape) == 1:
            raise NotAffineError(f"Layer {name!r} gives a vector, which has no positions.")
    if extractor.pooling is not None:
        raise NotAffineError("What a callable pooling takes from each position is not known.")


def contributions_of_maps(extractor, maps, form):
    """Return the same, where the maps of each layer are known already."""
    pooling = extractor.spec.poolings[0]
    return {
        name: _CONTRIBUTIONS[pooling](values.astype(np.float64), form.select(columns))
        for name, values, columns in zip(extractor.layers, maps, extractor.columns, strict=True)
    }


def _of_flatten(maps, form):
    contributions = maps.ravel() * form.weights + form.offsets
    return contributions.reshape(maps.shape).sum(axis=-1)


def _of_avg(maps, form):
    return (maps @ form.weights + form.offsets.sum()) / (maps.shape[0] * maps.shape[1])


def _of_gem(maps, form):
    powers = np.maximum(maps, GEM_FLOOR) ** GEM_POWER
    return _of_shares(powers, powers.mean(axis=(0, 1)) ** (1 / GEM_POWER), form)


def _of_max(maps, form):
    largest = maps.max(axis=(0, 1))
    # Where a channel is constant, say 0 behind a ReLU, no position is more than another.
    return _of_shares(maps == largest, largest, form)


def _of_spp(maps, form):
    height, width, n_channels = maps.shape
    out = np.zeros((height, width))
    bins = [
        (slice(*rows), slice(*columns))
        for level in SPP_LEVELS
        for rows in spp_bins(height, level)
        for columns in spp_bins(width, level)
    ]
    for k, place in enumerate(bins):
        channels = slice(k * n_channels, (k + 1) * n_channels)
        out[place] += _of_max(maps[place], form.select(channels))
    return out


def _of_shares(shares, pooled, form):
    """Return what positions contribute that have shares, in proportion, in each pooled channel."""
    return shares @ ((pooled * form.weights + form.offsets) / shares.sum(axis=(0, 1)))


_CONTRIBUTIONS = {
    "flatten": _of_flatten,
    "avg": _of_avg,
    "max": _of_max,
    "gem": _of_gem,
    "spp": _of_spp,
}


def spread(map_, shape):
    """Spread each number of a map evenly over the positions of a finer one that it covers."""
    if map_.shape == tuple(shape):
        return map_
    vertical, horizontal = (
        _overlaps(coarse, fine) for coarse, fine in zip(map_.shape, shape, strict=True)
    )
    return vertical @ map_ @ horizontal.T


def _overlaps(n_coarse, n_fine):
    """Return the share of each coarse interval that lies in each fine one, (n_fine, n_coarse)."""
    fine = list(pairwise(np.arange(n_fine + 1) * n_coarse / n_fine))
    return np.array(
        [
            [max(0.0, min(end, i + 1) - max(start, i)) for i in range(n_coarse)]
            for start, end in fine
        ]
    )
