"""Which tokens are patches, and which axes are height, width and channels."""

import pytest

from sklearn_cnnfeat._network.axes import CHANNELS_FIRST, find_axes
from sklearn_cnnfeat._network.tokens import TokenGrid, find_grid, square_patches


@pytest.mark.parametrize(
    ("n_tokens", "maps", "n_prefix", "grid"),
    [
        (197, [(14, 14)], None, TokenGrid(1, 14, 14)),
        (201, [(14, 14)], 5, TokenGrid(5, 14, 14)),
        (261, [(16, 16)], None, TokenGrid(5, 16, 16)),
        # The nearest map that fits, in a network with stages.
        (49, [(56, 56), (28, 28), (14, 14), (7, 7)], None, TokenGrid(0, 7, 7)),
        (24, [(4, 6)], 0, TokenGrid(0, 4, 6)),
        # Class tokens join the nearest map only: these are other numbers.
        (72, [(8, 8), (6, 6)], None, None),
        # The architecture says otherwise.
        (197, [(14, 14)], 0, None),
        # Queries of a detector: no place in the image.
        (100, [(14, 14)], None, None),
        (10, [], None, None),
    ],
)
def test_grid(n_tokens, maps, n_prefix, grid):
    assert find_grid(n_tokens, maps, n_prefix) == grid


@pytest.mark.parametrize(
    ("shape", "taller", "wider", "likely", "order"),
    [
        ((8, 7, 7), (8, 14, 7), (8, 7, 14), None, (1, 2, 0)),
        ((7, 7, 7), (14, 7, 7), (7, 14, 7), None, (0, 1, 2)),
        ((7, 7, 7), (7, 14, 7), (7, 7, 14), None, (1, 2, 0)),
        # A network that keeps its maps transposed.
        ((8, 7, 7), (8, 7, 14), (8, 14, 7), None, (2, 1, 0)),
        # What its size tells goes before what its type suggests.
        ((7, 7, 8), (14, 7, 8), (7, 14, 8), CHANNELS_FIRST, (0, 1, 2)),
        ((8, 7, 7), None, None, CHANNELS_FIRST, (1, 2, 0)),
        ((8, 1, 1), (8, 1, 1), (8, 1, 1), None, (1, 2, 0)),
        ((1, 1, 8), (1, 1, 8), (1, 1, 8), None, (0, 1, 2)),
        # Attention weights: both axes are positions.
        ((3, 49, 49), (3, 98, 98), (3, 98, 98), None, None),
        # Heads side by side.
        ((3, 49, 64), (3, 98, 64), (3, 98, 64), None, None),
        ((8, 7, 7), None, None, None, None),
        ((8, 7, 7), (8, 14, 14), None, None, None),
        ((49, 8), (98, 8), (98, 8), None, (0, 1)),
        ((8, 49), (8, 98), (8, 98), None, (1, 0)),
        ((49, 49), (98, 98), (98, 98), None, None),
        ((8,), (8,), (8,), None, (0,)),
        ((2, 3, 4, 5), None, None, None, None),
        ((), None, None, None, None),
    ],
)
def test_axes(shape, taller, wider, likely, order):
    axes = find_axes(shape, taller, wider, likely)
    assert axes.order == order
    assert (axes.problem is None) == (order is not None)


@pytest.mark.parametrize(
    ("n_patches", "size", "grid"),
    [
        (196, (224, 224), (14, 14)),
        (24, (32, 48), (4, 6)),
        (23, (32, 48), None),
        (197, (224, 224), None),
        (0, (32, 32), None),
        (-1, (32, 32), None),
        (32 * 33, (32, 32), None),
    ],
)
def test_square_patches(n_patches, size, grid):
    assert square_patches(n_patches, size) == grid
