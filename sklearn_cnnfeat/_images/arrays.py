"""Check the shapes and values of images that come as arrays."""

import math

import numpy as np

from sklearn_cnnfeat._warn import warn

_CHUNK_VALUES = 4_000_000
_FLOAT32_MAX = float(np.finfo(np.float32).max)

# Data other than uint8 whose maximum is this small are probably not on a 0-255 scale.
_NEARLY_BLACK = 32


def check_shapes(items, image_shape, data_format):
    """Return the arrays in `image_shape`; raise an error if they are not images."""
    if isinstance(items, list):
        if image_shape is not None:
            raise ValueError(
                f"image_shape={image_shape} reshapes the rows of a 2-D array, but X is a list of "
                "arrays, which have a shape. Leave it None."
            )
        for row, image in enumerate(items):
            _check_image_shape(image.shape, f"row {row} has the shape {image.shape}", data_format)
        return items
    if len(items.shape) and len(items) == 0:
        raise ValueError(
            f"X holds 0 sample(s) (shape={items.shape}), while a minimum of 1 is required."
        )
    if items.ndim == 2:
        items = _unflatten(items, image_shape)
    elif image_shape is not None and tuple(image_shape) != items.shape[1:]:
        raise ValueError(
            f"image_shape={tuple(image_shape)} reshapes the rows of a 2-D array, but X has the "
            f"shape {items.shape}. Leave it None."
        )
    elif items.ndim == 3 and image_shape is None and _is_color(items.shape):
        raise ValueError(
            f"X has the shape {items.shape}, which looks like a single image, but X must be a "
            "sequence of images. Wrap it in a list: [X]."
        )
    _check_image_shape(items.shape[1:], f"X has the shape {items.shape}", data_format)
    return items


def _is_color(shape):
    """Return whether a shape is that of one color image rather than of several gray images."""
    return shape[2] in (1, 3, 4) and min(shape[:2]) > 4


def _unflatten(rows, image_shape):
    if rows.shape[1] == 0:
        raise ValueError(
            f"X has 0 feature(s) (shape={rows.shape}) while a minimum of 1 is required."
        )
    if image_shape is None:
        raise ValueError(
            f"X is a 2-D array of shape {rows.shape}. If its rows are flattened images, pass "
            "their shape, such as image_shape=(28, 28) or image_shape=(32, 32, 3)."
        )
    try:
        shape = tuple(int(size) for size in image_shape)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) not in (2, 3) or any(size < 1 and size != -1 for size in shape):
        raise ValueError(
            "image_shape must be (height, width), with or without channels. "
            f"Got {image_shape!r} instead."
        )
    try:
        return rows.reshape(len(rows), *shape)
    except ValueError:
        raise ValueError(
            f"image_shape={shape} does not fit X, whose {len(rows)} rows have {rows.shape[1]} "
            f"numbers each (shape={rows.shape})."
        ) from None


def _check_image_shape(shape, what, data_format):
    if len(shape) not in (2, 3):
        raise ValueError(
            "An array image must be 2-D (gray) or 3-D, and an array of images 3-D or 4-D, but "
            f"{what}."
        )
    if 0 in shape:
        raise ValueError(f"An image must have pixels, but {what}: there are 0 feature(s).")
    if len(shape) == 2:
        return
    last = data_format == "channels_last"
    channels, other = (shape[2], shape[0]) if last else (shape[0], shape[2])
    if channels in (1, 3, 4):
        return
    message = f"Images have 1, 3 or 4 channels, but {what}, with {channels} {data_format}."
    if other in (1, 3, 4):
        right = "channels_first" if last else "channels_last"
        message += f' The channels look to be elsewhere: pass data_format="{right}".'
    raise ValueError(message)


def check_value_range(value_range):
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "value_range must be a pair of numbers, black and white, such as (0, 1). "
            f"Got {value_range!r} instead."
        )
    return low, high


def check_values(items, value_range):
    """Return the dtype of the decoded images; warn once if their values look wrong."""
    dtypes = {items.dtype} if isinstance(items, np.ndarray) else {item.dtype for item in items}
    if value_range is None and dtypes == {np.dtype(np.uint8)}:
        return np.uint8
    low, high = _bounds(items)
    floats = any(dtype.kind == "f" for dtype in dtypes)
    found = f"The pixels in X run from {low:g} to {high:g}"
    black, white = (0, 255) if value_range is None else value_range
    margin = (white - black) / 1000  # rounding, and what resampling has overshot
    if low < black - margin or high > white + margin:
        if value_range is None:
            warn(
                f"{found}, but 0 to 255 is expected. They are used as they are; pass value_range=, "
                f"such as value_range={_suggest_range(low, high, dtypes)}."
            )
        else:
            warn(f"{found}, beyond value_range=({black:g}, {white:g}), which is black and white.")
    elif value_range is None and low >= 0 and 0 < high <= _NEARLY_BLACK:
        scale = "scaled to 0-1" if high <= 1 else "as if white were no 255"
        warn(
            f"{found}: they look {scale}. Pass value_range=(0, {math.ceil(high)}), or they are all "
            "nearly black."
        )
    if value_range is None and not floats and low >= 0 and high <= 255:
        return np.uint8
    return np.float32


def _suggest_range(low, high, dtypes):
    if all(dtype.kind == "u" for dtype in dtypes):
        return 0, max(np.iinfo(dtype).max for dtype in dtypes)
    if -1 <= low and high <= 1:
        return -1, 1
    black = min(0, math.floor(low))
    return black, max(black + 1, math.ceil(high))


def _bounds(items):
    """Return the lowest and highest value of all images; raise an error if one is not finite."""
    lows, highs = [], []
    for row, pixels in _pieces(items):
        low, high = float(pixels.min()), float(pixels.max())  # NaN if there is one
        if not (-_FLOAT32_MAX <= low and high <= _FLOAT32_MAX):
            if isinstance(items, np.ndarray):
                whole = (np.abs(pixels) <= _FLOAT32_MAX).reshape(len(pixels), -1).all(axis=1)
                row += int(np.argmin(whole))
            raise ValueError(
                "X contains NaN, infinity or a value too large for float32, first in the image of "
                f"row {row}."
            )
        lows.append(low)
        highs.append(high)
    return min(lows), max(highs)


def _pieces(items):
    """Yield (row, array) in pieces, so that no large temporary array is made."""
    if isinstance(items, list):
        yield from enumerate(items)
        return
    step = max(1, _CHUNK_VALUES // math.prod(items.shape[1:]))
    for row in range(0, len(items), step):
        yield row, items[row : row + step]
