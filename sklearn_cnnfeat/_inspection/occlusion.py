"""What a decision loses when patches of the picture are covered: for every pipeline."""

from itertools import product

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch

from sklearn_cnnfeat._inspection.maps import network_pixels, picture

# Covered pictures that are computed at a time: they are held in memory.
_CHUNK = 128


def occlusion(route, question, features, patch_size, stride):
    pixels = network_pixels(route.cnn, route.images, 0)
    height, width, _ = pixels.shape
    patch = max(1, round(max(height, width) / 6)) if patch_size is None else patch_size
    stride = max(1, patch // 2) if stride is None else stride
    if not (1 <= patch <= min(height, width) and 1 <= stride <= patch):
        raise ValueError(
            f"patch_size={patch} and stride={stride} do not cover the {height} x {width} pixels "
            f"that the network gets: 1 <= stride <= patch_size <= {min(height, width)} is needed."
        )
    corners = list(product(_starts(height, patch, stride), _starts(width, patch, stride)))
    decision = question.score(features).item()
    fill = pixels.mean(axis=(0, 1)).astype(pixels.dtype)
    cnn = _taking_network_pixels(route.cnn, pixels.dtype)
    falls, counts = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, len(corners), _CHUNK):
        chunk = corners[start : start + _CHUNK]
        covered = np.repeat(pixels[np.newaxis], len(chunk), axis=0)
        for picture_, (top, left) in zip(covered, chunk, strict=True):
            picture_[top : top + patch, left : left + patch] = fill
        scores = question.score(route.forward(cnn.transform(covered))[-1])
        for score, (top, left) in zip(scores, chunk, strict=True):
            falls[top : top + patch, left : left + patch] += decision - score
            counts[top : top + patch, left : left + patch] += 1
    return Bunch(
        map=falls / counts,
        intercept=None,
        decision=decision,
        target=question.target,
        other=question.other,
        maps={},
        layer=", ".join(route.cnn.layer_names_),
        method="occlusion",
        image=picture(route.cnn, route.images, 0),
    )


def _starts(length, patch, stride):
    """Return where patches start, the last one at the edge."""
    return sorted({*range(0, length - patch, stride), length - patch})


def _taking_network_pixels(cnn, dtype):
    """Return a fitted transformer that takes pixels as they go into its network."""
    original, cnn = cnn, clone(cnn)
    # Not copy.copy, which reads the model anew from what pickles hold.
    vars(cnn).update(vars(original))
    cnn.image_shape, cnn.data_format, cnn.resize = None, "channels_last", "stretch"
    cnn.value_range = None if dtype == np.uint8 else (0, 255)
    # Covered pictures are not worth keeping.
    cnn._is_cached, cnn.verbose = False, 0
    return cnn
