"""The maps that a network computes for images, and the pictures they belong to."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from sklearn.base import clone

from sklearn_cnnfeat._images import ImageSpec

# Longest side of the pictures that maps are laid over.
_PICTURE_SIDE = 640

COMBINATIONS = {"sum": np.sum, "mean": np.mean, "max": np.max}


def as_batch(image, transformer):
    """Return one image as an `X` of one; several images as they are."""
    if isinstance(image, np.ndarray):
        if transformer.image_shape is not None:
            return image[np.newaxis] if image.ndim == 1 else image
        channels = -1 if transformer.data_format == "channels_last" else 0
        is_one = image.ndim == 2 or (image.ndim == 3 and image.shape[channels] in (1, 3, 4))
        return image[np.newaxis] if is_one else image
    # Lists, tuples, Series and data frames hold images; strings, bytes and PIL images are some.
    is_many = isinstance(image, (list, tuple)) or hasattr(image, "to_numpy")
    return image if is_many else [image]


def fit_for_maps(transformer, X, layers=None):
    """Return a fitted copy of `transformer` that gives all maps of the layers, flattened.

    Of a fitted transformer the copy has the same network.
    """
    copy = clone(transformer).set_output(transform="default")
    copy.set_params(pooling="flatten", on_error="raise")
    if layers is not None:  # the first one has the index 0
        copy.set_params(layer=layers)
    if transformer.precision == "int8":
        # Calibrated on one image it would be another network.
        copy.set_params(precision="float32")
    fitted = getattr(transformer, "_spec", None)
    if fitted is not None and transformer.input_size_ is None:
        copy.set_params(input_size=picture_size(transformer, X))
    copy.fit(X)
    if fitted is not None:
        # Random weights are the ones that were drawn, whatever would be drawn now.
        source = replace(copy._spec.source, seed=fitted.source.seed)
        copy._spec = replace(copy._spec, source=source)
    return copy


def compute_maps(transformer, X, layers=None):
    """Return a fitted copy of `transformer`, and maps (n, height, width, channels) of its layers.

    All come from one pass. Layers that give vectors have (n, length) instead.
    """
    fitted = fit_for_maps(transformer, X, layers)
    rows = fitted.transform(X)
    ends = np.cumsum([int(np.prod(shape)) for shape in fitted.feature_shapes_])
    maps = [
        rows[:, start:end].reshape(-1, *shape)
        for (start, end), shape in zip(pairwise([0, *ends]), fitted.feature_shapes_, strict=True)
    ]
    return fitted, maps


def combine_channels(maps, combine, layer):
    """Fuse maps (..., channels) into one."""
    if isinstance(combine, str):
        if combine not in COMBINATIONS:
            raise ValueError(
                f"combine must be one of {', '.join(map(repr, COMBINATIONS))} or one weight a "
                f"channel. Got {combine!r} instead."
            )
        return COMBINATIONS[combine](maps, axis=-1)
    weights = np.asarray(combine, dtype=np.float64)
    if weights.shape != maps.shape[-1:]:
        raise ValueError(
            f"combine holds weights of shape {weights.shape}, but layer {layer!r} has "
            f"{maps.shape[-1]} channels to be combined: one weight a channel is needed."
        )
    return maps @ weights


def choose_channels(maps, channels, layer, default, what="channel"):
    """Return the indices along the last axis that are meant by `channels`."""
    n_channels = maps.shape[-1]
    if channels is None:
        return np.arange(min(default, n_channels))
    if isinstance(channels, (int, np.integer)):
        if channels < 1:
            raise ValueError(f"{what}s={channels} must be at least 1.")
        return np.arange(min(channels, n_channels))
    if isinstance(channels, str) and channels == "all":
        return np.arange(n_channels)
    if isinstance(channels, str) and channels == "strongest":
        strength = np.abs(maps).mean(axis=tuple(range(maps.ndim - 1)), dtype=np.float64)
        return np.argsort(-strength, kind="stable")[:default]
    chosen = np.asarray(channels)
    if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"{what}s must be a number, a sequence of indices, 'all' or 'strongest'. Got "
            f"{channels!r} instead."
        )
    outside = chosen[(chosen < -n_channels) | (chosen >= n_channels)]
    if outside.size:
        raise ValueError(
            f"{what.capitalize()} {outside[0]} is out of range: layer {layer!r} has {n_channels} "
            f"{what}s, 0 to {n_channels - 1}."
        )
    return chosen % n_channels


# --- pictures -----------------------------------------------------------------------------------


def picture_size(transformer, X):
    """Return height and width in pixels of the first image itself."""
    return _decode(transformer, X, 0, None, None).shape[:2]


def picture(transformer, X, i):
    """Return what image `i` shows to a fitted transformer, as uint8 for a person to look at.

    A stretched image is shown in its own proportions, for a map stretches along with it; a cropped
    or padded one as the network gets it.
    """
    if transformer.resize == "stretch" or transformer.input_size_ is None:
        pixels = _decode(transformer, X, i, None, None)
        side = max(pixels.shape[:2])
        if side > _PICTURE_SIDE:
            scale = _PICTURE_SIDE / side
            size = [max(1, round(length * scale)) for length in pixels.shape[:2]]
            pixels = _decode(transformer, X, i, *size)
    else:
        pixels = network_pixels(transformer, X, i)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def network_pixels(transformer, X, i):
    """Return the pixels of image `i` as a fitted transformer gives them to its network."""
    images = transformer._as_images(X)
    spec = transformer._image_spec(transformer._info)
    return images.decode(images.read(i), spec, images.name(i))


def _decode(transformer, X, i, height, width):
    images = transformer._as_images(X)
    channels = transformer._info.input_shape[2]
    spec = ImageSpec(height, width, channels, max_pixels=transformer.max_pixels)
    return images.decode(images.read(i), spec, images.name(i))
