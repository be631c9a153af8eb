"""Work on a Dask cluster: collections of images lazily, and how many cores a task may use.

The only room that imports Dask, and only where a caller brought a collection or a client of it.
"""

import math
import sys
import uuid
from contextvars import ContextVar

import joblib
import numpy as np

# Bytes of a pickled transformer that go through the scheduler. Dask itself warns from here on.
_LARGEST_PICKLE = 10_000_000

# Tasks at once in this process, where one of Dask's schedulers without a cluster runs them.
_tasks = ContextVar("sklearn_cnnfeat_tasks", default=None)


def tasks_at_once():
    """Return how many tasks run in this process at the same time; None outside of Dask's tasks.

    A worker of a cluster has as many threads as it may use cores, and runs a task in each.
    """
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            return distributed.get_worker().state.nthreads
        except ValueError:  # not within a task
            pass
    return _tasks.get()


def is_collection(X):
    """Tell whether `X` is a collection of Dask, without importing it."""
    return type(X).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(
        type(X), "__dask_graph__"
    )


def first_images(X):
    """Compute as few partitions of a collection as hold an image; return the images.

    Parameters
    ----------
    X : dask.array.Array, dask.bag.Bag, dask.dataframe.DataFrame or dask.dataframe.Series
        Images, as `CNNFeatureTransformer.transform` takes them.

    Returns
    -------
    images : ndarray, list, pandas.DataFrame or pandas.Series
        The first partition that is not empty; the last one where all are.
    """
    kind = _kind(X)
    if kind == "array":
        X = _whole_images(X)
        partitions = (X.blocks[i] for i in range(X.numblocks[0]))
    elif kind == "bag":
        partitions = X.to_delayed()
    else:
        partitions = (X.partitions[i] for i in range(X.npartitions))
    first = []
    for partition in partitions:
        first = partition.compute()
        if not hasattr(first, "__len__"):
            first = list(first)
        if len(first):
            break
    return first


def transform_lazily(transformer, X, shape):
    """Return the features of a collection as a lazy array, one task a partition.

    Parameters
    ----------
    transformer : CNNFeatureTransformer
        Fitted. It is sent to each worker once.
    X : dask.array.Array, dask.bag.Bag, dask.dataframe.DataFrame or dask.dataframe.Series
        Images.
    shape : tuple of int
        Of the features of one image.

    Returns
    -------
    features : dask.array.Array of float32
        One chunk a partition; as long as it where Dask knows its length.
    """
    import dask.array
    from dask.highlevelgraph import HighLevelGraph

    kind = _kind(X)
    if kind == "array":
        X = _whole_images(X)
        lengths = X.chunks[0]
    else:
        # Reads only the column that is wanted.
        X = X.optimize() if kind == "dataframe" else X
        lengths = (math.nan,) * X.npartitions
    worker_copy = _quiet_copy(transformer)
    _check_size(worker_copy)

    # A name of its own: files may have changed when the same collection is transformed again.
    name = f"cnn-features-{uuid.uuid4().hex}"
    layer = {f"{name}-transformer": (_same, worker_copy)}
    for i, key in enumerate(_flat(X.__dask_keys__())):
        layer[(name, i, *(0 for _ in shape))] = (_features, f"{name}-transformer", key, shape)
    return dask.array.Array(
        HighLevelGraph.from_collections(name, layer, [X]),
        name,
        (lengths, *((length,) for length in shape)),
        meta=np.empty((0,) * (1 + len(shape)), np.float32),
    )


def _kind(X):
    """Return which of Dask's collections `X` is."""
    # By their modules: a `Delayed` answers to any attribute.
    package, _, module = type(X).__module__.partition(".")
    kind = "dataframe" if package == "dask_expr" else module.partition(".")[0]
    if kind in ("array", "bag", "dataframe"):
        return kind
    raise TypeError(
        f"X is a {type(X).__module__}.{type(X).__name__}. Of Dask's collections, an array of "
        "images, a bag of paths or bytes, and a column of paths of a data frame can be transformed."
    )


def _whole_images(X):
    """Return the array with its chunks along the first axis only."""
    if X.ndim == 0:
        raise ValueError("X must be a sequence of images, got a Dask array without dimensions.")
    return X.rechunk(dict.fromkeys(range(1, X.ndim), -1))


def _quiet_copy(transformer):
    """Return a copy that shares everything, model included, and shows no progress."""
    quiet = object.__new__(type(transformer))
    quiet.__dict__.update(transformer.__dict__, verbose=0)
    return quiet


def _flat(keys):
    for key in keys:
        if isinstance(key, list):
            yield from _flat(key)
        else:
            yield key


def _check_size(transformer):
    import cloudpickle

    size = len(cloudpickle.dumps(transformer))
    if size > _LARGEST_PICKLE:
        raise ValueError(
            f"The fitted transformer takes {size / 1e6:.0f} MB, and every worker gets a copy of it "
            f"through Dask's scheduler, which is for less than {_LARGEST_PICKLE / 1e6:.0f} MB. A "
            "model (or calibration images) in memory is better kept in a file that all workers "
            "can read: model.save('/shared/own.keras'), then model='/shared/own.keras'."
        )


# --- what workers do ------------------------------------------------------------------------------


def _same(value):
    """Keep a value on a worker, for the tasks that need it there."""
    return value


def _features(transformer, images, shape):
    """Compute the features of one partition."""
    if not hasattr(images, "__len__"):
        images = list(images)
    if len(images) == 0:
        return np.empty((0, *shape), np.float32)
    before = _tasks.set(joblib.cpu_count())
    try:
        return np.asarray(transformer.transform(images))
    finally:
        _tasks.reset(before)
