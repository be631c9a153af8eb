"""What a decision loses when patches of the picture are covered: for every pipeline."""

from dataclasses import replace
from itertools import product

import numpy as np
from sklearn.utils import Bunch

from sklearn_cnnfeat._extractor import Reading
from sklearn_cnnfeat._inspection.maps import network_pixels, picture

# Covered pictures that are computed at a time: they are held in memory.
_CHUNK = 128


def occlusion(route, question, features, patch_size, stride):
    pixels = network_pixels(route.extractor, route.images, 0)
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
    extractor = _taking_network_pixels(route.extractor, pixels.dtype)
    falls, counts = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, len(corners), _CHUNK):
        chunk = corners[start : start + _CHUNK]
        covered = np.repeat(pixels[np.newaxis], len(chunk), axis=0)
        for picture_, (top, left) in zip(covered, chunk, strict=True):
            picture_[top : top + patch, left : left + patch] = fill
        rows = extractor.compute(extractor.read(covered))
        scores = question.score(route.forward(rows)[-1])
        for score, (top, left) in zip(scores, chunk, strict=True):
            falls[top : top + patch, left : left + patch] += decision - score
            counts[top : top + patch, left : left + patch] += 1
    return Bunch(
        map=falls / counts,
        intercept=None,
        decision=decision,
        **question.predict(features),
        target=question.target,
        other=question.other,
        maps={},
        layer=", ".join(route.extractor.layers),
        method="occlusion",
        image=picture(route.extractor, route.images, 0),
    )


def _starts(length, patch, stride):
    """Return where patches start, the last one at the edge."""
    return sorted({*range(0, length - patch, stride), length - patch})


def _taking_network_pixels(extractor, dtype):
    """Return an extractor that takes pixels as they go into its network."""
    return replace(
        extractor,
        reading=Reading(value_range=None if dtype == np.uint8 else (0, 255)),
        image_spec=replace(extractor.image_spec, resize="stretch", crop=None),
        # Covered pictures are not worth keeping.
        cache=None,
        verbose=0,
    )
