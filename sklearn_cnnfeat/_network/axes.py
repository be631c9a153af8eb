"""Find which axes of a layer's output are height, width and channels, by inputs of other sizes.

Networks keep their maps channels first, channels last, or both in turn, and some outputs of four
dimensions are not maps at all: attention weights, heads side by side. The height is the axis that
grows when images get taller, and the width the one that grows when they get wider.
"""

from dataclasses import dataclass

CHANNELS_FIRST, CHANNELS_LAST = (1, 2, 0), (0, 1, 2)


@dataclass(frozen=True)
class Axes:
    """How an output without its batch becomes (height, width, channels) or (tokens, width)."""

    # Order of the axes, or None where the output cannot be taken.
    order: tuple | None
    # Why it cannot be taken.
    problem: str | None = None


def find_axes(shape, taller, wider, likely=None):
    """Return the axes of an output of some `shape` for one image, without the batch.

    `taller` and `wider` are the same for an image of a larger height and of a larger width, or None
    where the network takes no other sizes. `likely` is the order of the axes, if the type of the
    layer determines it.
    """
    if len(shape) == 1:
        return Axes((0,))
    if len(shape) not in (2, 3):
        return Axes(None, f"an output of {len(shape) + 1} dimensions")
    if any(other is not None and len(other) != len(shape) for other in (taller, wider)):
        return Axes(None, "an output whose dimensions depend on the size of the image")
    grown = _changes(shape, taller), _changes(shape, wider)
    return _find_token_axis(grown) if len(shape) == 2 else _find_map_axes(shape, grown, likely)


def _changes(shape, other):
    """Return the axes whose lengths differ; None if they are unknown."""
    return None if other is None else [i for i, n in enumerate(shape) if other[i] != n]


def _find_token_axis(grown):
    for axes in grown:
        if axes == [1]:
            return Axes((1, 0))
        if axes == [0, 1]:
            return Axes(None, "neither tokens nor a vector: both axes depend on the image size")
    return Axes((0, 1))


def _find_map_axes(shape, grown, likely):
    height, width = grown
    if height and width:
        if len(height) == len(width) == 1 and height != width:
            (channels,) = {0, 1, 2} - {height[0], width[0]}
            return Axes((height[0], width[0], channels))
        return Axes(None, "an output of four dimensions that is not a map")
    if likely is not None:
        return Axes(likely)
    # Maps that do not grow, such as those of a single position after adaptive pooling.
    if height == width == [] and shape[1:] == (1, 1):
        return Axes(CHANNELS_FIRST)
    if height == width == [] and shape[:2] == (1, 1):
        return Axes(CHANNELS_LAST)
    return Axes(
        None,
        "an output of four dimensions of which nothing tells the height, the width and the "
        "channels",
    )
