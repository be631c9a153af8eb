"""The maps that a network computes for images, and the pictures they belong to."""

import numpy as np
from sklearn.base import clone

from sklearn_cnnfeat._images import ImageSpec
from sklearn_cnnfeat._transformer import extractor_for, is_fitted

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


def compute_maps(transformer, X, layers=None):
    """Return an extractor, the images of `X`, and the maps of some layers, all from one pass.

    A transformer that is not fitted is not changed: a copy is fitted to `X`. With None the layers
    are its own.
    """
    if not is_fitted(transformer):
        transformer = clone(transformer).set_params(pooling="flatten", precision="float32")
        if layers is not None:  # the first one has the index 0
            transformer.set_params(layer=layers)
        layers = None
    extractor, images = extractor_for(transformer, X, on_error="raise")
    if layers is not None:
        layers = layers if isinstance(layers, (list, tuple)) else [layers]
    extractor = giving_maps(extractor, images, layers)
    return extractor, images, maps_of(extractor, images)


def giving_maps(extractor, images, layers=None):
    """Return an extractor of the same network that gives all maps, flattened, in float32.

    An int8 network is calibrated for the layers that it has; for others it would be another one.
    """
    layers = extractor.spec.layers if layers is None else layers
    return extractor.with_(
        layers=layers,
        poolings=["flatten"] * len(layers),
        # Rows of one length need images of one size.
        input_size=extractor.input_size or picture_size(extractor, images),
        precision="float32" if extractor.precision == "int8" else None,
    )


def maps_of(extractor, images):
    """Return the maps of all layers of an extractor that gives them flattened."""
    rows = extractor.compute(images)
    return [
        rows[:, columns].reshape(-1, *shape)
        for columns, shape in zip(extractor.columns, extractor.map_shapes, strict=True)
    ]


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


def picture_size(extractor, images):
    """Return height and width in pixels of the first image itself."""
    return _decode(extractor, images, 0, None, None).shape[:2]


def picture(extractor, images, i):
    """Return what image `i` shows to a network, as uint8 for a person to look at.

    A stretched image is shown in its own proportions, for a map stretches along with it; a cropped
    or padded one as the network gets it.
    """
    spec = extractor.image_spec
    is_stretched = spec.resize == "stretch" and spec.crop is None
    if is_stretched or extractor.input_size is None:
        pixels = _decode(extractor, images, i, None, None)
        side = max(pixels.shape[:2])
        if side > _PICTURE_SIDE:
            scale = _PICTURE_SIDE / side
            size = [max(1, round(length * scale)) for length in pixels.shape[:2]]
            pixels = _decode(extractor, images, i, *size)
    else:
        pixels = network_pixels(extractor, images, i)
    return _as_uint8(pixels)


def _as_uint8(pixels):
    if pixels.dtype == np.uint8:
        return pixels
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def network_pixels(extractor, images, i):
    """Return the pixels of image `i` as an extractor gives them to its network."""
    return images.decode(images.read(i), extractor.image_spec, images.name(i))


def _decode(extractor, images, i, height, width):
    spec = extractor.image_spec
    spec = ImageSpec(height, width, spec.channels, max_pixels=spec.max_pixels)
    return images.decode(images.read(i), spec, images.name(i))


class Pictures:
    """The photographs of an extractor for a person to look at."""

    def __init__(self, extractor, images):
        self._extractor = extractor
        self._images = images

    def whole(self, i):
        """Return photograph `i` in its own size, as uint8."""
        return _as_uint8(_decode(self._extractor, self._images, i, None, None))

    def name(self, i):
        """Return what photograph `i` is called: its path, or its position."""
        return self._images.name(i)
