"""Tokens of transformers as features: which of them are patches, and their positions."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TokenGrid:
    """How a sequence of tokens lies on the image."""

    # Tokens in front of the patches: the class token, registers, a distillation token.
    n_prefix: int
    # Rows and columns of patches, in the order of rows.
    height: int
    width: int

    def tokens_of(self, pooling):
        """Return the first and the last-plus-one of the tokens that a pooling takes."""
        if pooling == "cls":
            return 0, 1
        return self.n_prefix, self.n_prefix + self.height * self.width


def find_grid(n_tokens, maps, n_prefix=None):
    """Return the grid of a sequence of tokens, or None if it is unknown.

    `maps` has height and width of the maps computed before, the nearest last: tokens come from a
    convolution, one per position. `n_prefix` is the number of tokens that are not patches, if the
    architecture is known.
    """
    for i, (height, width) in enumerate(reversed(maps)):
        n_others = n_tokens - height * width
        # Other tokens join the patches of the nearest map; no network has more than so many.
        most = _MOST_PREFIX if i == 0 else 0
        if n_others == n_prefix or (n_prefix is None and 0 <= n_others <= most):
            return TokenGrid(n_others, height, width)
    return None


def square_patches(n_patches, size):
    """Return rows and columns of square patches that cover an image; None if there are none.

    Parameters
    ----------
    n_patches : int
    size : (int, int)
        Height and width of the image.
    """
    height, width = size
    side = math.isqrt(height * width // n_patches) if n_patches > 0 else 0
    if not side or height % side or width % side:
        return None
    grid = height // side, width // side
    return grid if math.prod(grid) == n_patches else None


def with_grids(layers, patches=None):
    """Return layers in the order of computation, those that give tokens with their grids.

    `patches` has rows and columns of the maps that some layers make inside, by path.
    """
    maps, found = [], []
    for layer in layers:
        shape = layer.shape
        if layer.path in (patches or {}):
            maps.append(patches[layer.path])
        if shape is not None and None not in shape:
            if len(shape) == 3:
                maps.append(shape[:2])
            elif len(shape) == 2:
                layer = replace(layer, grid=find_grid(shape[0], maps))
        found.append(layer)
    return tuple(found)


# DINOv2 has one class token and four registers; some networks distill with one more.
_MOST_PREFIX = 16
