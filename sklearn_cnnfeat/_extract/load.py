"""`load_features`: read the files that `extract` writes."""

import contextlib
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from sklearn_cnnfeat._extract.formats import FORMATS
from sklearn_cnnfeat._extract.formats.base import ERRORS
from sklearn_cnnfeat._extract.formats.errors import read_errors
from sklearn_cnnfeat._extract.manifest import VERSION, positions_of, short
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._memory import check_memory
from sklearn_cnnfeat._network.pooling import feature_names, pooled_shape


def load_features(path, *, rows=None, as_frame=False, verify=False):
    """Read what `extract` wrote.

    Parameters
    ----------
    path : str or path
        The ``.parquet``, ``.npy`` or ``.zarr`` file.

    rows : slice, default=None
        Which rows to read, such as ``slice(0, 1000)``, without a step; None for all.

    as_frame : bool, default=False
        Whether `data` is a data frame of pandas with a column per feature, and its index the paths
        where they are known; `target` is a Series then.

    verify : bool, default=False
        Whether the whole file is read first and compared with the checksums that `extract` noted.
        Whether anything is missing is checked in any case.

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
        If `extract` did not write it, or it is damaged, altered or incomplete.
    MemoryError
        If a Parquet file's rows, or a data frame, would not fit into memory.

    Warns
    -----
    UserWarning
        If a chunk of a Zarr file of an earlier version is missing: it holds zeros, or is lost.

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
    _check_complete(form, path, manifest)
    if verify:
        form.verify(path, manifest)
    if rows is not None and not isinstance(rows, slice):
        raise TypeError(f"rows must be a slice, such as slice(0, 1000). Got {rows!r} instead.")
    wanted = range(manifest["n_rows"])[slice(None) if rows is None else rows]
    if wanted.step != 1:
        raise ValueError(f"rows must be a slice without a step. Got {rows!r} instead.")
    if as_frame and len(manifest["row_shape"]) > 1:
        raise ValueError("The file holds maps, which have no columns: leave as_frame=False.")
    if as_frame or form.name == "parquet":
        _check_memory(len(wanted), manifest)
    with _damage_named(path):
        data = form.read_rows(path, manifest, wanted)
        columns = form.read_columns(path, manifest, wanted)
        target = _read_target(columns["label"], manifest) if "label" in columns else None
        names = _read_names(manifest)
    paths = _read_paths(columns["path"], manifest, wanted) if "path" in columns else None
    if as_frame:
        index = None if paths is None else pd.Index(paths, _dtype_of_paths(manifest), name="path")
        data = pd.DataFrame(np.asarray(data), index=index, columns=names)
        target = None if target is None else pd.Series(target, index=index, name="target")
    return Bunch(
        data=data,
        paths=paths,
        target=target,
        target_names=manifest["target_names"],
        error=_objects([reason or None for reason in columns["error"]]),
        errors=_read_errors(path, manifest),
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
            version = manifest.get("version")
            if version != VERSION:
                raise ValueError(
                    f"{str(path)!r} was written by another version of sklearn-cnnfeat, in version "
                    f"{short(version)} of the layout; this one reads {VERSION}."
                )
            return form, manifest
    raise ValueError(
        f"{str(path)!r} was not written by extract. numpy.load, pandas.read_parquet and zarr.open "
        "read other files."
    )


def _check_complete(form, path, manifest):
    gaps = form.find_gaps(path, manifest)
    table = f"{path}{ERRORS}"
    if manifest["errors"] and not os.path.isfile(table):
        gaps.append(table)
    if gaps:
        raise ValueError(
            f"{str(path)!r} is incomplete: {first_few(gaps)} "
            f"{'is' if len(gaps) == 1 else 'are'} missing or too short. Copy the file again, or "
            "call extract with the same arguments, which recomputes it."
        )


@contextlib.contextmanager
def _damage_named(path):
    """Raise `ValueError` with the name of the file where what it holds cannot be decoded."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each library has errors of its own for damaged bytes
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}: {error}). Copy the file again, or "
            "remove it and extract again."
        ) from error


def _check_memory(n_rows, manifest):
    n_columns = math.prod(manifest["row_shape"])
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


def _read_names(manifest):
    """Return the names of the columns; None for maps."""
    if manifest["feature_names"] is not None:
        return np.asarray(manifest["feature_names"], object)
    if manifest["heads"] is None:
        return None
    heads = [tuple(head) for head in manifest["heads"]]
    for _, maps, pooling, length in heads:
        if pooling != "callable" and math.prod(pooled_shape(maps, pooling)) != length:
            raise ValueError(f"{pooling!r} of maps of shape {maps} has not {length} columns")
    return feature_names(heads)


def _read_paths(values, manifest, rows):
    """Return the paths of rows as they can be opened."""
    paths = _objects([name or None for name in values])
    if special := manifest.get("paths"):
        for row, position in enumerate(positions_of(manifest, rows)):
            paths[row] = special.get(str(position), paths[row])
    return paths


def _read_errors(path, manifest):
    """Return the table of unreadable images, with paths as they can be opened."""
    errors = read_errors(f"{path}{ERRORS}") if manifest["errors"] else []
    special = manifest.get("paths", {})
    errors = [
        (position, special.get(str(position), name), *others) for position, name, *others in errors
    ]
    columns = ["position", "path", "label", "error"]
    table = pd.DataFrame(errors, columns=columns, dtype=_dtype_of_paths(manifest))
    return table.astype({"position": np.int64}) if errors else table


def _dtype_of_paths(manifest):
    """Return the dtype of pandas for paths: its own for text takes nothing but text."""
    return object if manifest.get("paths") else None


def _objects(values):
    out = np.empty(len(values), object)
    out[:] = values
    return out
