"""Lazy features of Dask collections, and tasks on a Dask cluster.

The only module that imports Dask, and only if the caller passes a collection or a client.
"""

import math
import queue
import sys
import time
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice

import joblib
import numpy as np
import pandas as pd

# Bytes of a pickled extractor that go through the scheduler. Dask itself warns from here on.
_LARGEST_PICKLE = 10_000_000
# Tasks in the scheduler at a time, for each thread of the workers: one that runs and two that wait.
# The bound keeps memory constant for any number of tasks.
_AHEAD = 3
# Seconds to wait for a scheduler, and for a first or another worker.
_CONNECT = 10
_NO_WORKERS = 60

# Tasks at once in this process, where one of Dask's schedulers without a cluster runs them.
_tasks = ContextVar("sklearn_cnnfeat_tasks", default=None)


def tasks_at_once():
    """Return how many tasks run in this process at the same time; None outside of Dask's tasks.

    A worker of a cluster has as many threads as it may use cores, and runs a task in each.
    """
    get_worker = getattr(sys.modules.get("distributed"), "get_worker", None)
    if get_worker is not None:
        try:
            return get_worker().state.nthreads
        except ValueError:  # not within a task
            pass
    return _tasks.get()


def is_collection(X):
    """Return whether `X` is a collection of Dask, without importing it."""
    return type(X).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(
        type(X), "__dask_graph__"
    )


def first_images(X):
    """Compute as few partitions of a collection as hold an image; return the images.

    That is the first partition that is not empty, or the last one where all are.
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


def without_rows(X):
    """Return a table of the columns of a collection without its rows; None if it is no table."""
    kind = _kind(X)
    if kind == "bag" or X.ndim != 2:
        return None
    return np.empty((0, X.shape[1])) if kind == "array" else pd.DataFrame(columns=X.columns)


def transform_lazily(extractor, X):
    """Return the features of a collection as a lazy array, one chunk and one task per partition.

    The length of a chunk is known if Dask knows the partition's.
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
    check_size(extractor)
    shape = extractor.row_shape

    # A name of its own: files may have changed when the same collection is transformed again.
    name = f"cnn-features-{uuid.uuid4().hex}"
    layer = {f"{name}-extractor": (_same, extractor)}
    for i, key in enumerate(_flat(X.__dask_keys__())):
        layer[(name, i, *(0 for _ in shape))] = (_features, f"{name}-extractor", key)
    return dask.array.Array(
        HighLevelGraph.from_collections(name, layer, [X]),
        name,
        (lengths, *((length,) for length in shape)),
        meta=np.empty((0,) * (1 + len(shape)), np.float32),
    )


def _kind(X):
    """Return which of Dask's collections `X` is."""
    # Checked by module, because a `Delayed` has every attribute.
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


def _flat(keys):
    for key in keys:
        if isinstance(key, list):
            yield from _flat(key)
        else:
            yield key


def check_size(extractor):
    """Raise if an extractor is too large to be sent to workers."""
    import cloudpickle

    size = len(cloudpickle.dumps(extractor))
    if size > _LARGEST_PICKLE:
        raise ValueError(
            f"The fitted transformer takes {size / 1e6:.0f} MB, and every worker gets a copy of it "
            f"through Dask's scheduler, which is for less than {_LARGEST_PICKLE / 1e6:.0f} MB. A "
            "model (or calibration images) in memory is better kept in a file that all workers "
            "can read: model.save('/shared/own.keras'), then model='/shared/own.keras'."
        )


# --- many tasks -----------------------------------------------------------------------------------


@contextmanager
def connected(client):
    """Give a client of a cluster, connected to a scheduler where only its address is given.

    Addresses are those such as ``"tcp://scheduler:8786"``; `ConnectionError` is raised if no
    scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError('Clusters need Dask: pip install "sklearn-cnnfeat[dask]".') from error
    if not isinstance(client, str):
        if not isinstance(client, Client):
            raise TypeError(
                "client must be a dask.distributed.Client or the address of a scheduler, such as "
                f"'tcp://scheduler:8786'. Got {client!r} instead."
            )
        yield client
        return
    if "://" not in client:
        raise ValueError(
            "The address of a Dask scheduler begins with how it is reached, such as "
            f"'tcp://scheduler:8786'. Got {client!r} instead."
        )
    try:
        own = Client(client, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"No Dask scheduler can be reached at {client!r} ({error}). 'dask scheduler' starts "
            "one and prints its address; a firewall may be in between."
        ) from error
    try:
        yield own
    finally:
        own.close()


def check_workers(client, function):
    """Raise if there is no worker, or one that lacks this package."""

    module = function.__module__

    def find_problem():
        # A nested function is sent as code, so it runs on workers without this package.
        import importlib

        try:
            importlib.import_module(module)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    try:
        client.wait_for_workers(1, timeout=_NO_WORKERS)
    except TimeoutError:  # one and the same from Python 3.11 on
        raise RuntimeError(
            f"The scheduler at {client.scheduler.address!r} has no workers, and none came in "
            f"{_NO_WORKERS} seconds. 'dask worker {client.scheduler.address}' starts one."
        ) from None
    problems = {
        f"worker {address}": problem
        for address, problem in client.run(find_problem).items()
        if problem
    }
    # Tasks pass through the scheduler, which must be able to import their functions.
    if problem := client.run_on_scheduler(find_problem):
        problems["the scheduler"] = problem
    if problems:
        raise RuntimeError(
            "sklearn-cnnfeat must be installed on all workers and on the scheduler, in the version "
            f"of this process. {len(problems)} cannot import it: "
            + "; ".join(f"{who} ({problem})" for who, problem in list(problems.items())[:5])
        )


def run_tasks(client, function, common, jobs):
    """Run ``function(common, *job)`` for each job on a cluster; yield the results as they come.

    The function is one of this package, for workers import it; `common` is sent to each worker
    once; jobs are taken as tasks end. A task whose worker dies runs again on another one.
    `RuntimeError` is raised if the workers or the scheduler are lost, or a task has taken several
    workers with it.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    # A task, not data: if its worker dies, another has it again.
    shared = client.submit(_same, common, pure=False)
    done = queue.SimpleQueue()
    running = {}
    jobs = iter(jobs)
    n_wanted, next_look = 1, 0.0

    try:
        while True:
            if time.monotonic() >= next_look:
                # Workers come and go.
                n_wanted = max(1, _AHEAD * sum(client.nthreads().values()))
                next_look = time.monotonic() + 1
            for job in islice(jobs, max(0, n_wanted - len(running))):
                future = client.submit(function, shared, *job, pure=False)
                running[future.key] = future
                future.add_done_callback(done.put)
            if not running:
                return
            future = _next(client, done)
            del running[future.key]
            try:
                result = future.result()
            except KilledWorker as error:
                raise RuntimeError(
                    f"A task ended its worker again and again; the last one was "
                    f"{error.last_worker.address}. Perhaps it needs more memory than it may have: "
                    "the logs of the worker say more."
                ) from error
            except CancelledError as error:
                raise _lost_scheduler(client) from error
            yield result
    except CommClosedError as error:
        # The connection to the scheduler was lost during a request.
        raise _lost_scheduler(client) from error
    finally:
        # After an error or an interrupt nothing goes on in the background.
        if client.status == "running":
            client.cancel(list(running.values()))


def _next(client, done):
    """Return the next future that is done; raise if there will not be one."""
    while True:
        try:
            return done.get(timeout=_NO_WORKERS)
        except queue.Empty:
            if client.status != "running":
                raise _lost_scheduler(client) from None
            if not client.nthreads():
                raise RuntimeError(
                    f"The cluster has had no workers for {_NO_WORKERS} seconds. Start some and "
                    "call again: what is computed is kept."
                ) from None


def _lost_scheduler(client):
    return RuntimeError(
        f"The connection to the scheduler was lost ({client}). Call again when it is back: what is "
        "computed is kept."
    )


# --- what workers do ------------------------------------------------------------------------------


def _same(value):
    """Keep a value on a worker, for the tasks that need it there."""
    return value


def _features(extractor, images):
    """Compute the features of one partition."""
    if not hasattr(images, "__len__"):
        images = list(images)
    if len(images) == 0:
        return np.empty((0, *extractor.row_shape), np.float32)
    before = _tasks.set(joblib.cpu_count())
    try:
        return extractor.compute(extractor.read(images))
    finally:
        _tasks.reset(before)
