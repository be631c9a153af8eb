"""From a layer's maps to a row: the poolings, their widths and the names of their columns.

The formulas are written once, in a few operations that every engine's tensors have, and become part
of the network.
"""

import numpy as np

# Exponent and floor of generalized-mean pooling, as in the paper's fixed setting.
GEM_POWER = 3.0
GEM_FLOOR = 1e-6
# Rows and columns of bins on each level of the spatial pyramid.
SPP_LEVELS = (1, 2, 4)

POOLINGS = ("flatten", "avg", "max", "gem", "spp", "cls")


def spp_bins(length, n_bins):
    """Return the first and the last-plus-one position of each bin along one axis.

    Bins cover all positions, differ by at most one in length, and overlap where there are fewer
    positions than bins.
    """
    return [(i * length // n_bins, -(-(i + 1) * length // n_bins)) for i in range(n_bins)]


def pool(maps, pooling, map_shape, ops):
    """Apply `pooling` to a batch of maps.

    Parameters
    ----------
    maps : tensor
        Maps (n, height, width, channels), or vectors, which are returned as they are.
    pooling : str or None
        One of `POOLINGS`, or None for the maps themselves.
    map_shape : tuple
        Height, width and channels; entries may be None where the pooling takes any size.
    ops : object
        The operations on such a tensor: ``mean(maps)`` and ``max(maps)`` over height and width,
        ``power(maps, exponent)``, ``maximum(maps, floor)``, ``flatten(maps, length)``,
        ``crop(maps, top, bottom, left, right)`` and ``concatenate(vectors)``.
    """
    if pooling is None or len(map_shape) == 1:
        return maps
    if pooling == "flatten":
        return ops.flatten(maps, int(np.prod(map_shape)))
    if pooling == "avg":
        return ops.mean(maps)
    if pooling == "max":
        return ops.max(maps)
    if pooling == "gem":
        powers = ops.power(ops.maximum(maps, GEM_FLOOR), GEM_POWER)
        return ops.power(ops.mean(powers), 1.0 / GEM_POWER)
    height, width, _ = map_shape
    return ops.concatenate(
        [
            ops.max(ops.crop(maps, top, bottom, left, right))
            for level in SPP_LEVELS
            for top, bottom in spp_bins(height, level)
            for left, right in spp_bins(width, level)
        ]
    )


def pooled_shape(map_shape, pooling):
    """Return the shape of what `pool` makes of one image's maps."""
    if pooling is None or len(map_shape) == 1:
        return tuple(map_shape)
    *_, channels = map_shape
    if pooling == "flatten":
        return (int(np.prod(map_shape)),)
    if pooling == "spp":
        return (sum(level * level for level in SPP_LEVELS) * channels,)
    return (channels,)


def needs_fixed_size(pooling):
    """Whether `pooling` gives as many numbers for every image only if maps are of one size."""
    return pooling in ("flatten", "spp", None)


def column_names(layer, map_shape, pooling):
    """Name each column after the layer, the position and the channel it comes from."""
    if len(map_shape) == 1:
        return [f"{layer}_{i}" for i in range(map_shape[0])]
    height, width, channels = map_shape
    if pooling == "flatten":
        return [
            f"{layer}_y{y}_x{x}_c{c}"
            for y in range(height)
            for x in range(width)
            for c in range(channels)
        ]
    if pooling == "spp":
        return [
            f"{layer}_spp{level}_y{y}_x{x}_c{c}"
            for level in SPP_LEVELS
            for y in range(level)
            for x in range(level)
            for c in range(channels)
        ]
    return [f"{layer}_c{c}" for c in range(channels)]


def feature_names(heads):
    """Name the columns of several heads: (layer, map_shape, pooling, n_columns) each.

    The columns of a user-defined pooling, "callable", are numbered.
    """
    names = []
    for layer, map_shape, pooling, n_columns in heads:
        if pooling == "callable" and len(map_shape) > 1:
            names += [f"{layer}_{i}" for i in range(n_columns)]
        else:
            names += column_names(layer, map_shape, pooling)
    return np.asarray(names, dtype=object)
