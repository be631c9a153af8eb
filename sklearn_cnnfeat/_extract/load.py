"""Features read back from the files that `extract` writes."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from sklearn_cnnfeat._extract.formats import FORMATS
from sklearn_cnnfeat._extract.formats.base import ERRORS, VERSION
from sklearn_cnnfeat._extract.formats.errors import read_errors
from sklearn_cnnfeat._memory import check_memory
from sklearn_cnnfeat._network.pooling import feature_names


def load_features(path, *, rows=None, as_frame=False):
    """Read what `extract` wrote.

    Parameters
    ----------
    path : str or path
        The ``.parquet``, ``.npy`` or ``.zarr`` file.

    rows : slice, default=None
        Which rows to read, such as ``slice(0, 1000)``, without a step; None for all.

    as_frame : bool, default=False
        Whether `data` is a data frame of pandas with a column a feature, and its index the paths
        where they are known; `target` is a Series then.

    Returns
    -------
    features : :class:`~sklearn.utils.Bunch`
        Dictionary-like, with:

        data : ndarray of shape (n_rows, n_features), or data frame
            The features. Of a ``.npy`` file they are mapped from the disk (`numpy.memmap`) and need
            no memory until they are used; of a ``.zarr`` file all rows are a `zarr.Array`, which
            reads the slices that are asked of it. A ``.parquet`` file is read into memory.
        paths : ndarray of str objects, or None
            The file of each row; None for an image that was missing.
        target : ndarray, or None
            Labels: numbers, or indices into `target_names`.
        target_names : list of str, or None
            What the labels are called where they are text, sorted.
        error : ndarray of objects
            For each row None, or what was wrong with the image; the row is NaN then.
        errors : data frame
            All failed images, those left out too: `position` in `X`, `path`, `label`, `error`.
        feature_names : ndarray of str objects, or None
            Where each column comes from; None for maps.
        n_rows : int
            Number of rows in the file, whatever `rows` says.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or it is not finished.
    ValueError
        If `extract` did not write it.
    MemoryError
        If a Parquet file's rows, or a data frame, would not fit into memory.

    See Also
    --------
    extract : Write the file.

    Examples
    --------
    Train on more rows than memory holds, a thousand at a time.

    >>> import os, tempfile
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn.linear_model import SGDClassifier
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, extract, load_features
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_2_relu", "avg", weights=None, input_size=64, random_state=0
    ... )
    >>> to = os.path.join(tempfile.mkdtemp(), "features.npy")
    >>> report = extract(
    ...     load_sample_images().images, to, cnn, target=["china", "flower"], verbose=0
    ... )
    >>> n_rows = load_features(to, rows=slice(0)).n_rows
    >>> classifier = SGDClassifier()
    >>> for start in range(0, n_rows, 1000):
    ...     some = load_features(to, rows=slice(start, start + 1000))
    ...     classifier = classifier.partial_fit(some.data, some.target, classes=[0, 1])
    >>> classifier.coef_.shape
    (1, 128)
    """
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
    form, manifest = _recognize(path)
    if rows is not None and not isinstance(rows, slice):
        raise TypeError(f"rows must be a slice, such as slice(0, 1000). Got {rows!r} instead.")
    wanted = range(manifest["n_rows"])[slice(None) if rows is None else rows]
    if wanted.step != 1:
        raise ValueError(f"rows must be a slice without a step. Got {rows!r} instead.")
    if as_frame and len(manifest["row_shape"]) > 1:
        raise ValueError("The file holds maps, which have no columns: leave as_frame=False.")
    if as_frame or form.name == "parquet":
        _check_memory(len(wanted), manifest)
    data = form.read_rows(path, manifest, wanted)
    columns = form.read_columns(path, manifest, wanted)
    paths = _objects([name or None for name in columns["path"]]) if "path" in columns else None
    target = _read_target(columns["label"], manifest) if "label" in columns else None
    names, heads = manifest["feature_names"], manifest["heads"]
    if names is not None:
        names = np.asarray(names, object)
    elif heads is not None:
        names = feature_names([tuple(head) for head in heads])
    if as_frame:
        index = None if paths is None else pd.Index(paths, name="path")
        data = pd.DataFrame(np.asarray(data), index=index, columns=names)
        target = None if target is None else pd.Series(target, index=index, name="target")
    errors = read_errors(f"{path}{ERRORS}") if manifest["errors"] else []
    return Bunch(
        data=data,
        paths=paths,
        target=target,
        target_names=manifest["target_names"],
        error=_objects([reason or None for reason in columns["error"]]),
        errors=pd.DataFrame(errors, columns=["position", "path", "label", "error"]),
        feature_names=names,
        n_rows=manifest["n_rows"],
    )


def _recognize(path):
    """Return the format and the manifest of a file."""
    if not path.exists():
        message = f"There is no file {str(path)!r}."
        if path.with_name(f"{path.name}.parts").exists():
            message += " It is not finished: the same call of extract goes on where it was."
        raise FileNotFoundError(message)
    suffix = path.suffix.lower().removeprefix(".")
    for form in sorted(FORMATS.values(), key=lambda form: form.name != suffix):
        if form.name == suffix:
            form.require()
        manifest = form.read_manifest(path) if form.is_installed() else None
        if manifest is not None:
            if manifest.get("version") != VERSION:
                raise ValueError(
                    f"{str(path)!r} was written by another version of sklearn-cnnfeat, in version "
                    f"{manifest.get('version')} of the layout; this one reads {VERSION}."
                )
            return form, manifest
    raise ValueError(
        f"{str(path)!r} was not written by extract. numpy.load, pandas.read_parquet and zarr.open "
        "read other files."
    )


def _check_memory(n_rows, manifest):
    n_columns = int(np.prod(manifest["row_shape"]))
    needed = n_rows * n_columns * np.dtype(manifest["dtype"]).itemsize
    check_memory(
        needed,
        f"{n_rows:,} rows of {n_columns:,} numbers",
        "Read some of them, rows=slice(0, 1000), or extract to a .npy file, which is mapped from "
        "the disk.",
    )


def _read_target(labels, manifest):
    if manifest["label_dtype"] == "str":
        codes = {name: code for code, name in enumerate(manifest["target_names"])}
        return np.array([codes[label] for label in labels], np.int64)
    dtype = np.dtype(manifest["label_dtype"])
    if dtype.kind == "b":
        labels = [label in (True, "True") for label in labels]
    # Of a CSV table they are text.
    return np.array(labels, dtype.newbyteorder("=") if labels else dtype).astype(dtype)


def _objects(values):
    out = np.empty(len(values), object)
    out[:] = values
    return out
