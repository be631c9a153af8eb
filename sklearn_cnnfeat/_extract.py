"""More images than memory: features straight into a file, resumed after any interruption.

`extract` binds a job to a manifest (recipe, images, format), computes what its closed parts lack in
one stream, and puts the file together at the end. See `_parts` for what survives an interruption,
`_sinks` for the files.
"""

import bisect
import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_cnnfeat import _distributed
from sklearn_cnnfeat._functions import describe_function
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._images.folders import find_images
from sklearn_cnnfeat._network.spec import digest_of_text
from sklearn_cnnfeat._parts import (
    STAMP,
    DamagedPartError,
    Lock,
    LockedError,
    Part,
    Parts,
    PartSink,
    WriteError,
    sync,
    write_whole,
)
from sklearn_cnnfeat._progress import announce, progress
from sklearn_cnnfeat._sinks import (
    ASSEMBLED,
    ERRORS,
    FORMATS,
    VERSION,
    Block,
    as_text,
    block_rows,
    is_of_errors,
    write_errors,
)
from sklearn_cnnfeat._transformer import CNNFeatureTransformer
from sklearn_cnnfeat.exceptions import EngineError, ImageError, UnreadableImageWarning

# Images in a part, and bytes of its rows, at most: what a kill may cost.
_PART_ROWS = 256
_PART_BYTES = 16 * 1024**2

# Entries of a manifest that follow from others, and are told as a change only for want of these.
_FOLLOW = ("row_shape", "heads", "feature_names", "columns", "label_dtype", "target_names")

_MANIFEST = "manifest.json"
# In the working folder as soon as a finished file may be half replaced by a newer one.
_REPLACING = "replacing"
_REPLACED = "replaced"
_DTYPES = ("float32", "float16")


def extract(
    X,
    to,
    transformer=None,
    *,
    target=None,
    format=None,
    dtype="float32",
    part_size=None,
    on_error="raise",
    retry_errors=False,
    client=None,
    verbose=1,
):
    """Compute the features of images into a file, in bounded memory, resumed where it was left.

    Rows are in the order of `X`. They are collected in closed parts in a folder beside the file
    (its name and ``.parts``), which becomes the file at the end. After a crash, a kill, a full disk
    or Ctrl-C the same call goes on where it was, and the file is the same, byte for byte, as that
    of a run without interruption. When the file is finished the same call computes nothing.

    Parameters
    ----------
    X : str, path, Bunch or sequence of images
        - a folder. If all of its images lie in sub-folders, these are the classes, as for
          :func:`load_image_folder`; otherwise all images in it and below it are taken, sorted by
          name, without labels;
        - what :func:`load_image_folder` and :func:`load_image_table` return;
        - anything that :class:`CNNFeatureTransformer` takes: paths, arrays, a data frame's column.

    to : str or path
        The file: ``.parquet``, ``.npy`` or ``.zarr``. Its folder must exist.

    transformer : CNNFeatureTransformer or Pipeline, default=None
        What computes the features. One that is not fitted is fitted on `X`; it is not changed. None
        stands for ``CNNFeatureTransformer()``. Its `on_error` and `verbose` do not count: those of
        this function do. A pipeline begins with one, and its other steps are fitted (a PCA, say) or
        need no fit; they transform row by row.

    target : array-like of shape (n_images,), default=None
        A label for each image, text or numbers, to be kept beside the features. None takes those
        of a folder or a Bunch.

    format : {"parquet", "npy", "zarr"}, default=None
        None goes by the suffix of `to`. See the Notes.

    dtype : {"float32", "float16"}, default="float32"
        Of the features in the file. ``"float16"`` halves it and keeps three digits.

    part_size : int, default=None
        Images in a part. At most two parts are computed again after a kill. None takes 256, or
        fewer where their rows would take more than 16 MiB.

    on_error : {"raise", "skip", "nan"}, default="raise"
        What an image that cannot be read does: raise an error that names it (what is computed is
        kept), be left out of the file, or get a row of NaN. ``"skip"`` and ``"nan"`` list all
        failed images in a table beside the file, its name and ``.errors.csv``.

    retry_errors : bool, default=False
        Whether images that failed in an earlier call are computed again.

    client : dask.distributed.Client or str, default=None
        A Dask cluster, or the address of its scheduler (``"tcp://scheduler:8786"``), that computes
        the parts, one a task, each on one core (``pip install "sklearn-cnnfeat[dask]"``). Its
        workers read the images and write the parts themselves: `X` must hold paths or URLs, and
        the folders must be there for them under the same names. A part whose worker dies is
        computed by another. The file is the same, byte for byte.

    verbose : int, default=1
        1 shows a progress bar, 0 nothing.

    Returns
    -------
    report : :class:`~sklearn.utils.Bunch`
        Dictionary-like, with:

        path : str
            The file.
        n_images, n_computed, n_errors : int
            Number of images in `X`, of those that went through the network in this call, and of
            those that cannot be read.
        errors : list of (str, str)
            Name and error of these.
        n_features : int
            Numbers in a row.
        seconds : float
            Time that the call took.

    Raises
    ------
    ImageError
        If an image cannot be read and ``on_error="raise"``.
    FileExistsError
        If `to` is something else.
    ValueError
        If what is at `to`, finished or not, comes from other images or settings. The message says
        what has changed. Nothing is ever mixed.
    RuntimeError
        If another process is extracting to the same file.
    OSError
        If the disk is full or cannot be written to. What is computed is kept.
    ImportError
        If the format, or `client`, needs a library that is not installed.
    ConnectionError
        If no scheduler can be reached at the address `client`.

    Warns
    -----
    UnreadableImageWarning
        If images could not be read.
    UserWarning
        If the transformer has ``on_error="nan"`` and this call, which decides, ``"raise"``.

    See Also
    --------
    load_features : Read the file.

    Notes
    -----
    The formats hold the same:

    - **Parquet** (``pip install "sklearn-cnnfeat[parquet]"``): a table with the columns `path`,
      `label`, `error` (null where there was none) and `features`, a list of fixed length. Pandas,
      polars, DuckDB and Hugging Face datasets read it.
    - **npy**: an array that NumPy maps into memory, a CSV table of the other columns beside it (the
      name and ``.csv``), and a description (``.json``), without which `load_features` does not
      take it.
    - **Zarr** (``pip install "sklearn-cnnfeat[zarr]"``, Python 3.11): a group of arrays of these
      names.

    `path` and `label` are there where they are known. While the file is put together, the disk
    holds the features twice.

    Settings that change a number are part of what is checked, and so are the versions of what
    decodes images and runs the network, the names and labels of all images, and the size and time
    of files that are computed already. A function of your own (a callable `pooling` or
    `preprocessing`) is recognised by its name, its code and the values that it holds (defaults, a
    closure, arguments of `functools.partial`, attributes), not by the functions that it calls.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, extract, load_features
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_2_relu", "avg", weights=None, input_size=64, random_state=0
    ... )
    >>> photos = load_sample_images().images
    >>> to = os.path.join(tempfile.mkdtemp(), "features.npy")
    >>> report = extract(photos, to, cnn, target=["china", "flower"], verbose=0)
    >>> report.n_computed, report.n_errors
    (2, 0)
    >>> extract(photos, to, cnn, target=["china", "flower"], verbose=0).n_computed
    0
    >>> features = load_features(to)
    >>> features.data.shape, features.target_names
    ((2, 128), ['china', 'flower'])
    """
    start = time.perf_counter()
    form = _choose_format(to, format)
    _check_settings(dtype, part_size, on_error)
    to = Path(os.path.abspath(os.path.expanduser(os.fspath(to))))
    if not to.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(to.parent)!r} to write {to.name!r} to. Make it first."
        )
    form.require()
    X, labels = _find_inputs(X, target)
    cnn, steps = _split(CNNFeatureTransformer() if transformer is None else transformer)
    if on_error == "raise" and cnn.on_error == "nan":
        warnings.warn(
            "The transformer has on_error='nan', but extract decides by its own on_error, which is "
            "'raise': it stops at the first image that cannot be read. Say "
            "extract(..., on_error='nan') for rows of NaN, or 'skip' to leave such images out.",
            stacklevel=2,
        )
    cnn = _own_copy(cnn, X, on_error, verbose)
    images = cnn._read(X, reset=False)
    # The transformer's policy knows no "skip": failures go to the sink, which keeps them.
    cnn.on_error = "raise" if on_error == "raise" else "record"
    job = _Job(
        to=to,
        form=form,
        cnn=cnn,
        steps=None if steps is None else _Steps(steps, cnn),
        images=images,
        labels=_read_labels(labels, len(images)),
        dtype=dtype,
        part_size=part_size,
        on_error=on_error,
        retry_errors=retry_errors,
    )
    if client is None:
        errors, n_computed = job.run()
    else:
        job.check_for_cluster()
        with _distributed.connected(client) as job.client:
            errors, n_computed = job.run()
    return Bunch(
        path=str(to),
        n_images=len(images),
        n_computed=n_computed,
        n_errors=len(errors),
        errors=[(images.name(position), errors[position]) for position in sorted(errors)],
        n_features=job.n_features,
        seconds=time.perf_counter() - start,
    )


# --- what there is to be done --------------------------------------------------------------------


def _choose_format(to, format):
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


def _check_settings(dtype, part_size, on_error):
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be 'float32' or 'float16'. Got {dtype!r} instead.")
    if on_error not in ("raise", "skip", "nan"):
        raise ValueError(f"on_error must be 'raise', 'skip' or 'nan'. Got {on_error!r} instead.")
    if part_size is not None and not (isinstance(part_size, Integral) and part_size > 0):
        raise ValueError(f"part_size must be a number of images. Got {part_size!r} instead.")


def _find_inputs(X, target):
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


def _read_labels(labels, n_images):
    """Return (values, dtype, names of classes or None); all None where there are no labels."""
    if labels is None:
        return None, None, None
    values, names = labels
    # A list of text and numbers would become text without a word.
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
        # Classes named after folders, too, may be no text that a file can hold.
        found, codes = np.unique(values, return_inverse=True)
        found = np.array([as_text(name) for name in found.tolist()], object)
        names = found.tolist() if names is None else [as_text(str(name)) for name in names]
        return found[codes], "str", names
    if values.dtype.kind not in "buif":
        raise TypeError(f"target must hold text or numbers. Got the dtype {values.dtype} instead.")
    return values, values.dtype.newbyteorder("<").str, None


def _split(transformer):
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


def _own_copy(transformer, X, on_error, verbose):
    """Return a fitted transformer that may be changed."""
    on_error = "raise" if on_error == "raise" else "nan"
    own = transformer._share(on_error=on_error, verbose=verbose)
    try:
        check_is_fitted(own)
    except NotFittedError:
        own.fit(X)
    return own


class _Steps:
    """The steps of a pipeline behind the network, applied row by row.

    A row is then the same whatever it was computed together with, before or after an interruption.
    """

    def __init__(self, steps, cnn):
        if cnn.pooling is None:
            raise ValueError("pooling=None gives maps; the steps of a pipeline take vectors.")
        self._steps = steps
        self._columns = cnn._columns()
        self._names = None
        if hasattr(steps[0], "feature_names_in_"):
            self._names = cnn.get_feature_names_out()
        self._row = np.zeros((1, cnn._n_features_out), np.float32)
        self.n_columns = self._transform().size
        try:
            names = steps.get_feature_names_out(cnn.get_feature_names_out())
        except AttributeError:  # a step that knows no names
            names = [f"{steps.steps[-1][0]}_{i}" for i in range(self.n_columns)]
        self.names = [str(name) for name in names]
        self.digest = joblib.hash(steps)

    def wrap(self, sink):
        """Return a sink that transforms rows before `sink` takes them."""
        return _StepSink(self, sink)

    def apply(self, rows):
        """Return what becomes of the rows of one image, one a head."""
        for columns, values in zip(self._columns, rows, strict=True):
            self._row[0, columns] = np.ravel(values)
        return self._transform()

    def _transform(self):
        row = self._row
        if self._names is not None:
            row = pd.DataFrame(row, columns=self._names)
        row = np.asarray(self._steps.transform(row))
        if row.ndim != 2 or len(row) != 1 or row.dtype.kind not in "buif":
            raise ValueError(
                "The steps of the pipeline must give a dense array with a row an image. Got "
                f"{row.dtype} of shape {row.shape} for one image."
            )
        return row[0]


class _StepSink:
    def __init__(self, steps, sink):
        self._steps = steps
        self._sink = sink
        self.fail = sink.fail

    def write(self, i, rows):
        self._sink.write(i, [self._steps.apply(rows)])


# --- doing it ------------------------------------------------------------------------------------


@dataclass
class _Job:
    to: Path
    form: object
    cnn: CNNFeatureTransformer
    # What comes after the network, or None.
    steps: _Steps | None
    images: object
    # Values, dtype and names of classes, as `_read_labels` returns them.
    labels: tuple
    dtype: str
    part_size: int | None
    on_error: str
    retry_errors: bool
    client: object = None

    def __post_init__(self):
        self.folder = self.to.with_name(f"{self.to.name}.parts")
        cnn = self.cnn
        self.row_shape = cnn._shapes[0] if cnn.pooling is None else (cnn._n_features_out,)
        if self.steps is not None:
            self.row_shape = (self.steps.n_columns,)
        self.n_features = int(np.prod(self.row_shape))
        if self.form.name == "parquet" and len(self.row_shape) > 1:
            raise ValueError(
                "pooling=None gives maps, and a Parquet table holds vectors. Choose a pooling, or "
                "write a .npy or .zarr file."
            )
        self.manifest = self._make_manifest()
        self._known_stamps = None

    def run(self):
        """Bring the file about; return the errors and the number of images computed."""
        if not self.folder.exists():
            found = self._look_at_output()
            if found is not None and self._is_finished(found):
                return _errors_of(found), 0
        lock = Lock(self.folder)
        try:
            with self._explained():
                lock.acquire()
        except LockedError as error:
            raise RuntimeError(
                f"{error} is extracting to {str(self.to)!r}. Wait until it has finished, end it, "
                "or give this run a file of its own."
            ) from None
        try:
            return self._run()
        finally:
            lock.release()

    def _run(self):
        found = self._look_at_output()
        begun = self._read_manifest()
        if begun is None and found is not None and self._is_finished(found):
            self._clear()
            return _errors_of(found), 0
        parts = self._begin(begun, found)
        n_computed = 0
        retry = self.retry_errors
        while True:
            try:
                n_computed += self._compute(parts, retry)
                # Once: what fails again has failed.
                retry = False
                errors = self._assemble(parts)
                break
            except DamagedPartError as error:
                announce(f"part {error.number} is damaged; it is computed again.", True)
                parts.path(error.number).unlink(missing_ok=True)
        if errors:
            what = "left out" if self.on_error == "skip" else "NaN"
            warnings.warn(
                f"{len(errors)} of {len(self.images)} images could not be read; their rows are "
                f"{what}, and {str(self.to) + ERRORS!r} lists them: "
                + first_few([str(self._error(position, errors)) for position in sorted(errors)]),
                UnreadableImageWarning,
                stacklevel=4,
            )
        return errors, n_computed

    def _compute(self, parts, retry):
        """Compute what the closed parts lack; return how many images went through the network."""
        errors, positions = {}, []
        for number in range(len(parts)):
            closed = parts.peek(number)
            if closed is None:
                positions.append(np.asarray(parts.span(number)))
                continue
            stamps, failed = closed
            self._check_unchanged(parts.span(number), stamps, failed)
            errors |= failed
            if retry:
                positions.append(np.array(sorted(failed), np.int64))
        if errors and not retry and self.on_error == "raise":
            raise self._known_error(errors)
        positions = np.concatenate(positions) if positions else np.empty(0, np.int64)
        if not len(positions):
            return 0
        if self.client is not None:
            return self._compute_on_cluster(parts, positions)
        return compute_parts(
            parts, self.cnn, self.images, self._stamps(), positions.tolist(), steps=self.steps
        )

    def check_for_cluster(self):
        """Raise where workers cannot read the images by themselves."""
        if self.images.kind != "path":
            raise ValueError(
                "With client=, workers read the images themselves: X must hold paths or URLs. "
                "Write the images to files first, or extract without client=."
            )

    def _compute_on_cluster(self, parts, positions):
        """Do as `compute_parts`, one part a task."""
        _distributed.check_workers(self.client, compute_part_on_worker)
        cnn = _distributed.copy_for_workers(self.cnn)
        common = parts, cnn, self.steps, self.manifest["recipe"]
        numbers, starts = np.unique(positions // parts.part_size, return_index=True)

        def jobs():
            lots = np.split(positions, starts[1:])
            for number, lot in zip(numbers.tolist(), lots, strict=True):
                span = parts.span(number)
                stamps = self._stamps()[span.start : span.stop]
                yield (
                    self.images.absolute_part(span),
                    stamps,
                    (lot - span.start).tolist(),
                    span.start,
                )

        n_computed = 0
        n_known = len(self.images) - len(positions)
        with progress(len(self.images), "extract", self.cnn.verbose, n_known) as bar:
            tasks = _distributed.run_tasks(self.client, compute_part_on_worker, common, jobs())
            for n_of_part, n_done in tasks:
                n_computed += n_of_part
                bar.update(n_done)
        return n_computed

    def _assemble(self, parts):
        """Make the file of all parts; return the errors."""
        errors = {}
        for number in range(len(parts)):
            closed = parts.peek(number)
            if closed is None:
                raise DamagedPartError(number)
            errors |= closed[1]
        skips = self.on_error == "skip"
        manifest = self.manifest | {
            "n_rows": len(self.images) - (len(errors) if skips else 0),
            "on_error": self.on_error if errors else None,
            "errors": {str(position): errors[position] for position in sorted(errors)},
            "stamps": [self._digest_stamps(parts.span(k), errors) for k in range(len(parts))],
        }
        with self._explained():
            self._clear(only=ASSEMBLED)
            files = self.form.write(self.folder, manifest, self._blocks(parts, errors, manifest))
            table = self.folder / f"{ASSEMBLED}{ERRORS}"
            if errors:
                write_errors(table, [self._describe_error(i, errors) for i in sorted(errors)])
            write_whole(self.folder / _REPLACING, [])
            if errors:
                os.replace(table, f"{self.to}{ERRORS}")
            for file, target in zip(files, self.form.files(self.to), strict=True):
                if target.is_dir():
                    self._clear(only=_REPLACED)  # of a call that was stopped right here
                    os.rename(target, self.folder / _REPLACED)
                os.replace(file, target)
            if not errors:
                Path(f"{self.to}{ERRORS}").unlink(missing_ok=True)
            sync(self.to.parent)
        self._clear()
        return errors

    def _blocks(self, parts, errors, manifest):
        """Yield the rows of all parts in blocks; what is yielded is used again for the next."""
        n_block = block_rows(self.row_shape, self.dtype)
        n_block = min(n_block, max(1, manifest["n_rows"]))
        block = np.empty((n_block, *self.row_shape), self.dtype)
        start, positions = 0, []
        for number in range(len(parts)):
            span, rows = parts.span(number), parts.read(number).rows
            kept = np.asarray(span)
            if self.on_error == "skip":
                kept = np.array([position for position in span if position not in errors], int)
                rows = rows[kept - span.start]
            while len(rows):
                n_taken = min(n_block - len(positions), len(rows))
                block[len(positions) : len(positions) + n_taken] = rows[:n_taken]
                positions += kept[:n_taken].tolist()
                rows, kept = rows[n_taken:], kept[n_taken:]
                if len(positions) == n_block:
                    yield Block(start, block, self._columns(positions, errors))
                    start, positions = start + n_block, []
        if positions:
            yield Block(start, block[: len(positions)], self._columns(positions, errors))

    def _columns(self, positions, errors):
        columns = {}
        if self.images.kind == "path":
            columns["path"] = [as_text(self.images.path(position)) for position in positions]
        if self.labels[0] is not None:
            columns["label"] = self.labels[0][positions]
        columns["error"] = [errors.get(position) for position in positions]
        return columns

    def _describe_error(self, position, errors):
        label = "" if self.labels[0] is None else self.labels[0][position]
        return position, as_text(self.images.path(position)), label, errors[position]

    # --- what is there already -------------------------------------------------------------------

    def _look_at_output(self):
        """Return the manifest of the finished file; None if there is none."""
        target = self.form.files(self.to)[-1]
        found = self.form.read_manifest(target) if os.path.lexists(target) else None
        if found is not None and found.get("version") != VERSION:
            found = None
        if found is None:
            others = [path for path in self.form.files(self.to) if os.path.lexists(path)]
            # Beside a file that was removed, ours may be left.
            if target not in others and self.form.read_manifest_beside(target) is not None:
                others = []
            table = Path(f"{self.to}{ERRORS}")
            if os.path.lexists(table) and not is_of_errors(table):
                others.append(table)
            if others:
                raise FileExistsError(
                    f"{str(others[0])!r} is there already, and is no file of extract. Nothing was "
                    "changed. Remove it or choose another name."
                )
        return found

    def _is_finished(self, found):
        """Tell whether nothing is left to be done; raise if the file is not what was asked for."""
        self._check_manifest(found, f"{str(self.to)!r} was made")
        errors = _errors_of(found)
        parts = self._parts()
        for number, digest in enumerate(found["stamps"]):
            span = parts.span(number)
            if digest != self._digest_stamps(span, errors):
                raise ValueError(
                    f"{str(self.to)!r} was made of other images: at least one of those in rows "
                    f"{span[0]} to {span[-1]} of X ({first_few(self._names(span))}) has changed "
                    f"since. {self._remedy()}"
                )
        if not errors:
            return True
        if self.retry_errors:
            return False
        if self.on_error == "raise":
            raise self._known_error(errors)
        if self.on_error != found["on_error"]:
            raise ValueError(
                f"{str(self.to)!r} was made with on_error={found['on_error']!r}, now it is "
                f"{self.on_error!r}, and {len(errors)} images cannot be read. {self._remedy()}"
            )
        return True

    def _read_manifest(self):
        """Return the manifest of an unfinished run; None if there is none."""
        try:
            return json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise ValueError(
                f"{str(self.folder / _MANIFEST)!r} is damaged. Remove the folder "
                f"{str(self.folder)!r}, and the features are computed anew."
            ) from None

    def _begin(self, begun, found):
        """Bind the working folder to this job; return its parts."""
        if found is not None:
            self._check_manifest(found, f"{str(self.to)!r} was made")
        if begun is not None:
            is_empty = next(self.folder.glob("part-*"), None) is None
            # Of an unfinished run that has computed nothing, nothing can be mixed up.
            if not (is_empty and found is None):
                self._check_manifest(begun, f"{str(self.folder)!r} was begun")
        parts = self._parts()
        with self._explained():
            parts.sweep()
            if begun != self.manifest:
                text = json.dumps(self.manifest, indent=1) + "\n"
                write_whole(self.folder / _MANIFEST, [text.encode()])
            if found is not None and not (self.folder / _REPLACING).exists():
                self._restore(parts, found)
        return parts

    def _restore(self, parts, found):
        """Take the finished file apart again, to compute what failed."""
        errors = _errors_of(found)
        failed = sorted(errors) if found["on_error"] == "skip" else []
        rows = self.form.read_rows(self.to, found, range(found["n_rows"]))
        for number in range(len(parts)):
            if parts.peek(number) is not None:
                continue
            span = parts.span(number)
            known = {position: errors[position] for position in span if position in errors}
            stamps = self._stamps()[span.start : span.stop]
            part = Part(np.full((len(span), *self.row_shape), np.nan, self.dtype), stamps, known)
            start, stop = (
                position - bisect.bisect_left(failed, position)
                for position in (span.start, span.stop)
            )
            if failed:
                kept = [position - span.start for position in span if position not in errors]
                part.rows[kept] = rows[start:stop]
            else:
                part.rows[:] = rows[start:stop]
            parts.write(number, part)

    def _clear(self, only=""):
        """Remove what is ours from the working folder, the manifest first."""
        ours = (_MANIFEST, _REPLACING, _REPLACED, ASSEMBLED, "part-")
        if not only:
            (self.folder / _MANIFEST).unlink(missing_ok=True)
        for path in list(self.folder.iterdir()):
            if path.name.startswith(only or ours):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    # --- what it is bound to ---------------------------------------------------------------------

    def _make_manifest(self):
        cnn, images = self.cnn, self.images
        values, label_dtype, target_names = self.labels
        row_bytes = self.n_features * np.dtype(self.dtype).itemsize
        names = hashlib.sha256()
        for name in self._names(range(len(images))) if images.kind == "path" else ():
            names.update(name.encode("utf-8", "surrogatepass") + b"\0")
        functions = {
            name: describe_function(getattr(cnn, name))
            for name in ("pooling", "preprocessing")
            if callable(getattr(cnn, name))
        }
        columns = ["path"] if images.kind == "path" else []
        columns += ["label"] if values is not None else []
        manifest = {
            "version": VERSION,
            "format": self.form.name,
            "dtype": self.dtype,
            "part_size": self.part_size or max(1, min(_PART_ROWS, _PART_BYTES // row_bytes)),
            "n_images": len(images),
            "row_shape": self.row_shape,
            "columns": [*columns, "error"],
            "names": names.hexdigest(),
            "labels": None if values is None else digest_of_text(json.dumps(values.tolist())),
            "label_dtype": label_dtype,
            "target_names": target_names,
            "heads": None if cnn.pooling is None else cnn._describe_columns(),
            "feature_names": None if self.steps is None else self.steps.names,
            "steps": None if self.steps is None else self.steps.digest,
            "reading": images.reading(),
            "functions": functions,
            "recipe": [json.loads(recipe) for recipe in cnn._recipes()],
        }
        # As it is read back: tuples become lists.
        return json.loads(json.dumps(manifest))

    def _parts(self):
        return Parts(
            folder=self.folder,
            key=digest_of_text(json.dumps(self.manifest, sort_keys=True)),
            n_images=len(self.images),
            part_size=self.manifest["part_size"],
            row_shape=self.row_shape,
            dtype=self.dtype,
        )

    def _check_manifest(self, other, what):
        """Raise if a finished or unfinished run was about something else."""
        if self.part_size is None and isinstance(other.get("part_size"), int):
            self.manifest["part_size"] = other["part_size"]
        changes = _differences(other, self.manifest)
        if changes:
            raise ValueError(
                f"{what} with other images or settings: {'; '.join(changes)}. {self._remedy()}"
            )

    def _remedy(self):
        there = [path for path in (self.to, self.folder) if os.path.lexists(path)]
        return (
            "Features of different origin are never mixed: remove "
            f"{' and '.join(repr(str(path)) for path in there)}, or choose another name."
        )

    def _stamps(self):
        if self._known_stamps is None:
            stamps = b"".join(map(self.images.stamp, range(len(self.images))))
            self._known_stamps = np.frombuffer(stamps, np.uint8).reshape(-1, STAMP)
        return self._known_stamps

    def _digest_stamps(self, span, errors):
        stamps = self._stamps()[span.start : span.stop].copy()
        stamps[[position - span.start for position in span if position in errors]] = 0
        return hashlib.sha256(stamps).hexdigest()[:16]

    def _check_unchanged(self, span, stamps, failed):
        now = self._stamps()[span.start : span.stop]
        changed = [
            span[place]
            for place in np.flatnonzero((now != stamps).any(axis=1)).tolist()
            if span[place] not in failed
        ]
        if changed:
            raise ValueError(
                f"{len(changed)} images have changed since {str(self.folder)!r} was begun and "
                f"their features computed: {first_few(self._names(changed))}. {self._remedy()}"
            )

    def _names(self, positions):
        return [self.images.name(position) for position in positions]

    def _error(self, position, errors):
        return ImageError(self.images.name(position), errors[position])

    def _known_error(self, errors):
        """Return the error for images that failed in an earlier call."""
        position = min(errors)
        others = f" {len(errors) - 1} more cannot be read." if len(errors) > 1 else ""
        return ImageError(
            self.images.name(position),
            f"{errors[position]}, as an earlier call with another on_error found.{others} "
            "retry_errors=True computes them again",
        )

    @contextlib.contextmanager
    def _explained(self):
        """Say what to do about a disk that cannot be written to."""
        try:
            yield
        except OSError as error:
            raise explain(error, self.folder) from error


def compute_parts(parts, cnn, images, stamps, positions, first=0, steps=None):
    """Compute some images and close the parts that are complete with them.

    Whoever does this for the same images writes the same files: it may be done twice, at the same
    time, or by a process on another machine that sees the folder.

    Parameters
    ----------
    parts : Parts
        Where they go.
    cnn : CNNFeatureTransformer
        Fitted.
    images : Images
        All of them, or those of a part.
    stamps : ndarray of shape (n_images, STAMP), uint8
        What they are like.
    positions : list of int
        Those of `images` that are to be computed: all of each part that is not closed, and of
        closed ones some.
    first : int, default=0
        Position of the first of `images` among all of the job.
    steps : object with ``wrap(sink)``, default=None
        What rows go through before they are kept.

    Returns
    -------
    n_computed : int
        Number of images that went through the network.
    """
    columns = None if cnn.pooling is None or steps is not None else cnn._columns()
    try:
        with PartSink(parts, columns, stamps, positions, first) as sink:
            wrapped = sink if steps is None else steps.wrap(sink)
            return cnn._stream(images, wrapped, "extract", positions)
    except WriteError as error:
        raise explain(error.__cause__, parts.folder) from error
    except EngineError as error:
        # `transform` would go on with Keras, whose numbers differ from those of earlier parts.
        raise EngineError(f"{error} Pass engine='keras' to compute it with Keras.") from error


def compute_part_on_worker(common, images, stamps, positions, first):
    """Compute some images of one part and close it, on a machine that may not be the caller's.

    Parameters
    ----------
    common : tuple
        Parts, transformer, steps behind it or None, and the recipe that its rows must have.
    images, stamps, positions, first
        As for `compute_parts`.

    Returns
    -------
    n_computed, n_done : int
        Number of images that went through the network, and of `positions`.
    """
    parts, cnn, steps, recipe = common
    where = f"the worker on {socket.gethostname()} (process {os.getpid()})"
    if not (parts.folder / _MANIFEST).is_file():
        raise FileNotFoundError(
            f"{where} does not see the folder {str(parts.folder)!r}. With client=, the output must "
            "lie where all workers find it under the same name, on a network file system, say."
        )
    here = [json.loads(text) for text in cnn._recipes()]
    if here != recipe:
        then, now = ({"n_images": 0, "recipe": value} for value in (recipe, here))
        changes = "; ".join(_differences(then, now))
        raise RuntimeError(
            f"{where} would compute other features than this run is about: {changes}. Install the "
            "same versions everywhere."
        )
    # Of what was there a moment ago, nothing is: as errors of images that would be misleading.
    known = [images.name(i) for i in positions if stamps[i].any()]
    if known and not any(map(os.path.exists, known)):
        raise FileNotFoundError(
            f"{where} does not see the images: of {len(known)} not one is there: "
            f"{first_few(known)}. With client=, all workers must find them under the same names."
        )
    return compute_parts(parts, cnn, images, stamps, positions, first, steps), len(positions)


def explain(error, folder):
    """Return an `OSError` that says what to do about one that came while writing to a folder."""
    may_not = "Choose a folder that you may write to"
    remedies = {
        "ENOSPC": "Make space on the disk",
        "EDQUOT": "Make space within your quota",
        "EFBIG": "Raise the limit on the size of files (ulimit -f)",
        "EACCES": may_not,
        "EPERM": may_not,
        "EROFS": may_not,
    }
    remedy = remedies.get(errno.errorcode.get(error.errno), "Mend this")
    return OSError(
        error.errno,
        f"cannot write to {str(folder)!r}: {error.strerror or error}. Nothing is lost of what is "
        f"complete there. {remedy}, and the same call goes on where it was",
    )


def _errors_of(manifest):
    return {int(position): reason for position, reason in manifest["errors"].items()}


def _differences(before, now):
    """Say what differs between two manifests."""
    if before.get("n_images") != now["n_images"]:
        return [f"{before.get('n_images')} images then, {now['n_images']} now"]
    words = {
        "names": "the names of the images, or their order",
        "labels": "the labels",
        "steps": "the steps of the pipeline behind the network",
    }
    changes = []
    for name, value in now.items():
        old = before.get(name)
        if old == value:
            continue
        if name in words:
            changes.append(words[name])
        elif name == "recipe" and isinstance(old, list) and len(old) == len(value):
            for old_head, head in zip(old, value, strict=True):
                changes += [
                    f"{entry} was {_short(old_head.get(entry))}, is {_short(head[entry])}"
                    for entry in head
                    if old_head.get(entry) != head[entry]
                ]
        elif name == "recipe":
            layers = [[head["layer"] for head in heads] for heads in (old or [], value)]
            changes.append(f"layers were {_short(layers[0])}, are {_short(layers[1])}")
        elif name not in _FOLLOW:
            changes.append(f"{name} was {_short(old)}, is {_short(value)}")
    # What follows from others is told only where nothing else explains it.
    if not changes:
        changes = [name for name in now if before.get(name) != now[name]]
    return list(dict.fromkeys(changes))


def _short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
