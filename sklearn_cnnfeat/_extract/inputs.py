"""Check the arguments of `extract`."""

import os
from collections.abc import Mapping
from numbers import Integral

import numpy as np
import pandas as pd
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_cnnfeat._extract.formats import FORMATS
from sklearn_cnnfeat._extract.formats.base import as_text
from sklearn_cnnfeat._extract.manifest import DTYPES, ON_ERROR
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._images.folders import find_images
from sklearn_cnnfeat._transformer import CNNFeatureTransformer


def choose_format(to, format):
    if format is None:
        suffix = os.path.splitext(os.fspath(to))[1].lower()
        form = FORMATS.get(suffix.removeprefix("."))
        if form is None:
            raise ValueError(
                f"to={os.fspath(to)!r} must end with .parquet, .npy or .zarr; or say format=."
            )
        return form
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}. Got {format!r} instead.")
    return FORMATS[format]


def check_settings(dtype, part_size, on_error):
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be 'float32' or 'float16'. Got {dtype!r} instead.")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be 'raise', 'skip' or 'nan'. Got {on_error!r} instead.")
    if part_size is not None and not (isinstance(part_size, Integral) and part_size > 0):
        raise ValueError(f"part_size must be a number of images. Got {part_size!r} instead.")


def check_shape(form, row_shape):
    """Raise where a format cannot hold what is kept of an image."""
    if form.name == "parquet" and len(row_shape) > 1:
        raise ValueError(
            "pooling=None gives maps, and a Parquet table holds vectors. Choose a pooling, or "
            "write a .npy or .zarr file."
        )


def find_inputs(X, target):
    """Return what the transformer takes, and (labels, names of classes or None) or None."""
    names = None
    if isinstance(X, (str, os.PathLike)):
        photos = find_images(X)
        X, labels, names = photos.data, photos.target, photos.target_names
    elif isinstance(X, Mapping) and "data" in X:
        X, labels, names = X["data"], X.get("target"), X.get("target_names")
    else:
        labels = None
    if target is not None:
        labels, names = target, None
    return X, None if labels is None else (labels, names)


def read_labels(labels, n_images):
    """Return (values, dtype, names of classes or None); all None where there are no labels."""
    if labels is None:
        return None, None, None
    values, names = labels
    # NumPy would silently convert a list of text and numbers to text.
    values = np.asarray(values, object if isinstance(values, (list, tuple)) else None)
    if values.shape != (n_images,):
        raise ValueError(
            f"target must hold one label an image, {n_images:,} of them. Got the shape "
            f"{values.shape} instead."
        )
    if names is not None:
        values = np.asarray(names)[values]
    if values.dtype.kind in "OT":
        items = values.tolist()
        if any(item is None or isinstance(item, str) for item in items):
            missing = np.flatnonzero(pd.isna(values)).tolist()
            if missing:
                raise ValueError(
                    f"{len(missing)} of the {n_images:,} images have no label: rows "
                    f"{first_few(missing)}."
                )
            if not all(isinstance(item, str) for item in items):
                raise TypeError("target mixes text with other things. Make all of it text.")
        values = np.array(items)
    if values.dtype.kind == "U":
        # Classes are named after folders, whose names need not be valid text.
        found, codes = np.unique(values, return_inverse=True)
        found = np.array([as_text(name) for name in found.tolist()], object)
        names = found.tolist() if names is None else [as_text(str(name)) for name in names]
        return found[codes], "str", names
    if values.dtype.kind not in "buif":
        raise TypeError(f"target must hold text or numbers. Got the dtype {values.dtype} instead.")
    return values, values.dtype.newbyteorder("<").str, None


def split(transformer):
    """Return the network's transformer, and a pipeline of what comes after it or None."""
    first, *others = [transformer]
    if isinstance(transformer, Pipeline):
        (_, first), *others = transformer.steps
    if not isinstance(first, CNNFeatureTransformer):
        raise TypeError(
            "transformer must be a CNNFeatureTransformer, or a Pipeline that begins with one. Got "
            f"{transformer!r} instead."
        )
    others = [(name, step) for name, step in others if step not in (None, "passthrough")]
    for name, step in others:
        if not hasattr(step, "transform"):
            raise TypeError(
                f"The step {name!r} of the pipeline transforms nothing. Leave it out: "
                "pipeline[:-1]."
            )
        try:
            check_is_fitted(step)
        except NotFittedError as error:
            raise NotFittedError(
                f"The step {name!r} of the pipeline is not fitted, and extract cannot fit it on "
                "features that are not computed yet. Extract without it, fit it with load_features."
            ) from error
    return first, Pipeline(others) if others else None
