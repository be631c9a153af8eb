"""Any accepted `X` as `Images`: containers, kinds and missing values."""

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Set

import numpy as np
from PIL import Image, ImageFile
from scipy.sparse import issparse

from sklearn_cnnfeat._images.arrays import check_shapes, check_value_range, check_values
from sklearn_cnnfeat._images.collection import ImageArrays, ImageFiles, Images, PILImages
from sklearn_cnnfeat._images.urls import local_path
from sklearn_cnnfeat._text import first_few

_KINDS = {
    "path": (str, os.PathLike),
    "bytes": (bytes, bytearray, memoryview),
    "pil": Image.Image,
    "number": (numbers.Number, np.bool_, list, tuple),
}
_KIND_NAMES = {
    "path": "paths",
    "bytes": "encoded images (bytes)",
    "pil": "PIL images",
    "array": "arrays",
    "number": "numbers",
}
_CLASSES = {
    "path": ImageFiles,
    "bytes": Images,
    "pil": PILImages,
    "array": ImageArrays,
}
_EXPECTED = (
    "X must hold paths, encoded images (bytes), PIL images or arrays of numbers; in a list, an "
    "array, a Series or a data frame of one column"
)


def as_images(
    X, *, image_shape=None, value_range=None, data_format="channels_last", allow_missing=False
):
    """Return any accepted `X` as `Images`, after all checks that need no decoding.

    Parameters
    ----------
    X : sequence of images
        Paths, encoded bytes, PIL images or arrays; in a list, tuple, array, Series or a data frame
        of one column. Or one array of images: (n, height, width, channels), (n, height, width) for
        gray ones, or 2-D with `image_shape`.
    image_shape : tuple of int or None
        What each row of a 2-D numeric `X` is reshaped to, `(height, width)` or with the channels
        where `data_format` has them. One entry may be -1, as in `numpy.reshape`.
    value_range : (float, float) or None
        The values of black and white, which become 0 and 255. None uses pixels as they are. For
        files it applies to the numbers in them: (0, 4095) for 12-bit scans.
    data_format : {"channels_last", "channels_first"}
        Where arrays have their channels.
    allow_missing : bool
        Whether None or NaN may occur among paths, bytes or PIL images. Reading one of them raises
        an `ImageError`.

    Returns
    -------
    images : Images
    """
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"data_format must be 'channels_last' or 'channels_first'. Got {data_format!r} instead."
        )
    value_range = check_value_range(value_range)
    index = X.index if hasattr(X, "iloc") else None
    kind, items = _sort_out(_unwrap(X), allow_missing)
    if kind == "array":
        items = check_shapes(items, image_shape, data_format)
        dtype = check_values(items, value_range)
    else:
        _check_encoded(kind, image_shape)
        dtype = np.uint8 if value_range is None else np.float32
    return _CLASSES[kind](
        items, dtype=dtype, index=index, value_range=value_range, data_format=data_format
    )


def _unwrap(X):
    """Return what a container holds as a list or an array."""
    for kind in ("path", "bytes", "pil"):
        if isinstance(X, _KINDS[kind]):
            raise TypeError(
                f"X must be a sequence of images, got a single {type(X).__name__}. "
                "Wrap it in a list: [X]."
            )
    if issparse(X):
        raise TypeError("X is a sparse matrix, but images are dense. Pass X.toarray().")
    if isinstance(X, Mapping):
        raise TypeError(
            f"X must be a sequence of images, got a {type(X).__name__} with the entries "
            f"{first_few(list(X))}. Pass one of them, such as X['data']."
        )
    if isinstance(X, (list, tuple)):
        return list(X)
    if hasattr(X, "to_numpy"):  # pandas, polars
        return X.to_numpy()
    if isinstance(X, Set) or not (hasattr(X, "__len__") or hasattr(X, "__array__")):
        raise TypeError(
            f"X must be a sequence of images, with an order and a length, got a "
            f"{type(X).__name__}." + (" Pass list(X)." if isinstance(X, Iterable) else "")
        )
    return np.asarray(X)


def _sort_out(items, allow_missing=False):
    """Return the kind of the images, and them: a list, or one array of all images."""
    if isinstance(items, np.ndarray):
        if items.dtype.kind == "S":
            raise TypeError(
                f"X is an array of dtype {items.dtype}, which loses the zeros that an encoded "
                "image ends with. Pass a list of bytes."
            )
        if items.ndim == 2 and items.shape[1] == 1 and items.dtype.kind in "OUT":
            items = items[:, 0]
        if items.ndim != 1 or items.dtype.kind not in "OUT":
            return "array", _as_numeric(items, "X")
        items = items.tolist()
    if not items:
        raise ValueError("X holds 0 sample(s), while a minimum of 1 is required.")

    types = set(map(type, items))  # a million paths are checked by their types alone
    if allow_missing and any(map(_may_be_missing, types)):
        items = [None if _is_missing(item) else item for item in items]
        present = {type(item) for item in items if item is not None}
        if present and {_kind(type_) for type_ in present} <= {"path", "bytes", "pil"}:
            types = present
    kinds = {_kind(type_) for type_ in types}
    if len(kinds) > 1 or not kinds <= set(_KIND_NAMES):
        raise _not_one_kind(items)
    (kind,) = kinds
    if kind == "path":
        items = _as_paths(items, types)
    elif kind == "bytes" and types != {bytes}:
        items = [item if item is None else bytes(item) for item in items]
    elif kind == "array":
        items = [np.asarray(item) for item in items]
        if all(item.ndim == 1 for item in items):
            return _sort_out(_stack(items))
        items = [_as_numeric(item, f"Row {row} of X") for row, item in enumerate(items)]
    elif kind == "number":
        return _sort_out(_stack(items))
    return kind, items


def _as_paths(items, types):
    """Return paths and URLs as text, local URLs as paths; missing ones stay None."""
    if types != {str}:
        items = [item if item is None else str(os.fsdecode(item)) for item in items]
    if any("://" in item for item in items if item is not None):
        items = [item if item is None else local_path(item) for item in items]
    return items


def _kind(type_):
    for kind, types in _KINDS.items():
        if issubclass(type_, types):
            return kind
    return "array" if hasattr(type_, "__array__") else None


def _not_one_kind(items):
    """Return the error for images of several kinds, of none, or missing ones."""
    missing = [row for row, item in enumerate(items) if _is_missing(item)]
    if missing:
        return ValueError(
            f"X lacks {len(missing)} of its {len(items)} images: rows {first_few(missing)} are "
            f"{items[missing[0]]!r}. Drop these rows first; among paths, bytes or PIL images, "
            "on_error='nan' turns them into rows of NaN."
        )
    first = {}
    for row, item in enumerate(items):
        first.setdefault(_kind(type(item)), row)
    if None in first:
        row = first[None]
        # scikit-learn's checks look for these words.
        return TypeError(
            f"{_EXPECTED}. Row {row} is a {type(items[row]).__name__!r}: argument must be a string "
            "or a number."
        )
    found = " and ".join(f"{_KIND_NAMES[kind]} (row {row})" for kind, row in first.items())
    return TypeError(f"X mixes {found}. Pass images of one kind.")


def _is_missing(item):
    if isinstance(item, float):
        return math.isnan(item)
    return _may_be_missing(type(item))


def _may_be_missing(type_):
    return type_ is float or type_.__name__ in ("NoneType", "NAType", "NaTType")


def _stack(items):
    try:
        return np.asarray(items)
    except ValueError as error:
        raise ValueError(f"The rows of X differ in length: {error}. {_EXPECTED}.") from error


def _as_numeric(array, what):
    kind = array.dtype.kind
    if kind in "buif":
        return array
    if kind == "c":
        raise ValueError(f"Complex data not supported: {what} has the dtype {array.dtype}.")
    if array.ndim == 2 and array.size and isinstance(array[0, 0], _KINDS["path"]):
        raise ValueError(
            f"X must be one column of images, got {array.shape[1]} columns. Select the one that "
            "holds the paths."
        )
    try:
        if kind not in "OUT":
            raise TypeError("these are no numbers")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_EXPECTED}. {what} has the dtype {array.dtype}: {error}.") from error


def _check_encoded(kind, image_shape):
    if image_shape is not None:
        raise ValueError(
            f"image_shape={image_shape} reshapes rows of numbers, but X holds {_KIND_NAMES[kind]}, "
            "which have a shape. Leave it None."
        )
    if kind != "pil" and ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so that damaged files would be read "
            "half gray without an error. Set it to False; on_error='nan' skips damaged files."
        )
