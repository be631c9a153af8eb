"""`extract`: features straight into a file."""

import math
import os
import time
from dataclasses import replace
from pathlib import Path

from sklearn.utils import Bunch

from sklearn_cnnfeat import _dask
from sklearn_cnnfeat._extract.cluster import check_images
from sklearn_cnnfeat._extract.inputs import (
    check_settings,
    check_shape,
    choose_format,
    find_inputs,
    read_labels,
    split,
)
from sklearn_cnnfeat._extract.job import Job, make_manifest
from sklearn_cnnfeat._extract.output import Output
from sklearn_cnnfeat._extract.records import Records
from sklearn_cnnfeat._extract.steps import Steps
from sklearn_cnnfeat._extract.workspace import Workspace
from sklearn_cnnfeat._transformer import CNNFeatureTransformer, extractor_for
from sklearn_cnnfeat._warn import warn


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

    Rows are in the order of `X`. They are collected in shards in a folder beside the file (its name
    and ``.parts``), which become the file at the end. After a crash, a kill, a full disk or Ctrl-C
    the same call resumes, and the file is the same, byte for byte, as that of a run without
    interruption. When the file is finished, the same call computes nothing; when pieces of it are
    missing, it is recomputed.

    Parameters
    ----------
    X : str, path, Bunch or sequence of images
        - a folder. If all of its images lie in subfolders, these are the classes, as for
          :func:`load_image_folder`; otherwise all images in it and below it are taken, sorted by
          name, without labels;
        - what :func:`load_image_folder` and :func:`load_image_table` return;
        - anything that :class:`CNNFeatureTransformer` takes: paths, arrays, a data frame's column.

    to : str or path
        The file: ``.parquet``, ``.npy`` or ``.zarr``. Its folder must exist.

    transformer : CNNFeatureTransformer or Pipeline, default=None
        What computes the features. A copy of one that is not fitted is fitted on `X`. None stands
        for ``CNNFeatureTransformer()``. Its `on_error` and `verbose` are ignored in favor of those
        of this function. A pipeline begins with one, and its other steps are fitted (a PCA, say) or
        need no fit; they transform row by row.

    target : array-like of shape (n_images,), default=None
        A label for each image, text or numbers, kept beside the features. None takes those of a
        folder or a Bunch.

    format : {"parquet", "npy", "zarr"}, default=None
        None goes by the suffix of `to`. See the Notes.

    dtype : {"float32", "float16"}, default="float32"
        Of the features in the file. ``"float16"`` halves it and keeps three digits.

    part_size : int, default=None
        Images per shard. At most two shards are recomputed after a kill. None takes 256, or fewer
        where their rows would take more than 16 MiB.

    on_error : {"raise", "skip", "nan"}, default="raise"
        What happens to unreadable images: an error names the first one (what is computed is kept),
        they are left out of the file, or their rows are NaN. ``"skip"`` and ``"nan"`` list them in
        a table beside the file (its name and ``.errors.csv``).

    retry_errors : bool, default=False
        Whether images that were unreadable in an earlier call are computed now.

    client : dask.distributed.Client or str, default=None
        A Dask cluster, or the address of its scheduler (``"tcp://scheduler:8786"``), that computes
        the shards, one per task, each on one core (``pip install "sklearn-cnnfeat[dask]"``). Its
        workers read the images and write the shards themselves: `X` must hold paths or URLs, and
        they must find the folders under the same names. A shard whose worker dies is computed by
        another. The file is the same, byte for byte.

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
        If what is at `to`, finished or not, comes from other images or settings (the message says
        what has changed; nothing is ever mixed), or its manifest is damaged.
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

    A run resumes only with the same settings, versions of what decodes images and runs the network,
    names and labels of all images, and sizes and times of the files that are computed already. A
    user-defined callable (`pooling` or `preprocessing`) is recognized by its name, its code and the
    values that it holds (defaults, a closure, arguments of `functools.partial`, attributes), not by
    the functions that it calls.

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
    form = choose_format(to, format)
    check_settings(dtype, part_size, on_error)
    to = _absolute(to)
    form.require()
    X, labels = find_inputs(X, target)
    cnn, steps = split(CNNFeatureTransformer() if transformer is None else transformer)
    _warn_of_another_policy(cnn.on_error, on_error)
    policy = "raise" if on_error == "raise" else "nan"
    extractor, images = extractor_for(cnn, X, on_error=policy, verbose=verbose)
    if on_error != "raise":
        # Failures go to the sink, which keeps them.
        extractor = replace(extractor, on_error="record")
    steps = None if steps is None else Steps(steps, extractor)
    records = Records(images, read_labels(labels, len(images)))
    manifest = make_manifest(extractor, steps, records, form, dtype, part_size)
    check_shape(form, manifest["row_shape"])
    job = Job(
        output=Output(to, form),
        workspace=Workspace(to),
        extractor=extractor,
        steps=steps,
        records=records,
        manifest=manifest,
        keeps_part_size=part_size is None,
        on_error=on_error,
        retry_errors=retry_errors,
    )
    if client is None:
        errors, n_computed = job.run()
    else:
        check_images(images)
        with _dask.connected(client) as connected:
            errors, n_computed = replace(job, client=connected).run()
    return Bunch(
        path=str(to),
        n_images=len(images),
        n_computed=n_computed,
        n_errors=len(errors),
        errors=[(images.name(position), errors[position]) for position in sorted(errors)],
        n_features=math.prod(manifest["row_shape"]),
        seconds=time.perf_counter() - start,
    )


def _absolute(to):
    """Return the path of the file, in a folder that exists."""
    to = Path(os.path.abspath(os.path.expanduser(os.fspath(to))))
    if not to.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(to.parent)!r} to write {to.name!r} to. Make it first."
        )
    return to


def _warn_of_another_policy(of_transformer, on_error):
    if on_error == "raise" and of_transformer == "nan":
        warn(
            "The transformer has on_error='nan', but extract decides by its own on_error, which is "
            "'raise': it stops at the first image that cannot be read. Say "
            "extract(..., on_error='nan') for rows of NaN, or 'skip' to leave such images out."
        )
