"""The loop: images -> known rows, or decoded ahead in threads -> network -> rows into a sink.

The only room that knows images, cache and network together. At any moment a few images a core are
decoded and nothing else: memory does not depend on how many there are.
"""

import math
import multiprocessing
import os
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice

import joblib
import numpy as np

from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat.exceptions import ImageError, UnreadableImageWarning

# Images decoded or being decoded, for each thread, before the network takes them.
_AHEAD = 4
# Images looked up in the cache at once: few where they are being computed, perhaps by several
# processes at the same time; more and more as long as all of them are found.
_CHUNK = 16
_LARGEST_CHUNK = 256
# Rows and bytes of rows written to it at once, at most. Fewer are written as soon as the last write
# took less than this part of the time since, or after so many seconds: what is computed is soon
# there for other processes, and not lost if this one is killed.
_ROWS_A_WRITE = 256
_BYTES_A_WRITE = 32 * 1024**2
_WRITING_TIME = 0.04
_LONGEST_PAUSE = 2.0


@dataclass
class ArraySink:
    """Rows side by side in one preallocated array.

    Parameters
    ----------
    out : ndarray of shape (n_images, n_columns) or (n_images, *map_shape)
        Where the rows go.
    columns : list of slice
        The columns of each head.
    """

    out: np.ndarray
    columns: list = field(default_factory=list)

    def write(self, i, rows):
        """Copy the rows of image `i`, one a head."""
        if self.out.ndim > 2:
            self.out[i] = rows[0]
            return
        for columns, row in zip(self.columns, rows, strict=True):
            self.out[i, columns] = row

    def fail(self, i, error):
        """Mark image `i` as unreadable."""
        self.out[i] = np.nan


def thread_count(n_jobs):
    """Return the number of threads that `n_jobs` means.

    None stands for the cores that this process may use, or for its share of them where
    ``OMP_NUM_THREADS`` says so, as joblib's workers do.
    """
    if n_jobs is not None and n_jobs > 0:
        return n_jobs
    cores = joblib.cpu_count()
    if n_jobs is not None:
        return max(1, cores + 1 + n_jobs)
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(share)) if share.isdigit() and int(share) > 0 else cores


class NullSink:
    """Rows that are wanted in the cache only; `failed` holds the unreadable images."""

    def __init__(self):
        # A set: where another engine takes over, it begins with the first image again.
        self.failed = set()

    def write(self, i, rows):
        """Forget the rows of image `i`."""

    def fail(self, i, error):
        """Note down image `i` as unreadable."""
        self.failed.add(i)


class RowStore:
    """The rows of one network in a feature cache.

    Parameters
    ----------
    cache : FeatureCache
        Where rows are kept.
    recipes : list of str
        What the rows of each head depend on besides the image.
    shapes : list of tuple
        Shape of each head's row.
    """

    def __init__(self, cache, recipes, shapes):
        self._cache = cache
        self._recipes = recipes
        self._shapes = shapes
        self._rows = {}
        self._n_bytes = 0
        self._next_write = 0.0

    def find(self, keys):
        """Return, for each key, the rows of all heads, or None where one is missing."""
        # Those added but not written yet are known as well.
        found = [self._rows.get(key) for key in keys]
        known = [k for k, key in enumerate(keys) if key is not None and found[k] is None]
        digests = [keys[k] for k in known]
        hit = np.ones(len(known), bool)
        heads = []
        for recipe, shape in zip(self._recipes, self._shapes, strict=True):
            rows = np.empty((len(known), math.prod(shape)), np.float32)
            hit &= self._cache.get_many(recipe, digests, rows)
            heads.append(rows.reshape(len(known), *shape))
        for position in np.flatnonzero(hit):
            found[known[position]] = [rows[position] for rows in heads]
        return found

    def add(self, key, rows):
        """Keep the rows of an image; they are written in lots."""
        self._rows[key] = [
            np.array(row).reshape(shape) for row, shape in zip(rows, self._shapes, strict=True)
        ]
        self._n_bytes += sum(row.nbytes for row in self._rows[key])
        if (
            len(self._rows) >= _ROWS_A_WRITE
            or self._n_bytes >= _BYTES_A_WRITE
            or time.perf_counter() >= self._next_write
        ):
            self.flush()

    def flush(self):
        """Write what has been added."""
        if not self._rows:
            return
        start = time.perf_counter()
        keys = list(self._rows)
        for recipe, *rows in zip(self._recipes, *self._rows.values(), strict=True):
            self._cache.put_many(recipe, keys, np.stack([row.ravel() for row in rows]))
        # Only now: after an interrupt in between they are written again.
        self._rows, self._n_bytes = {}, 0
        end = time.perf_counter()
        self._next_write = end + min((end - start) / _WRITING_TIME, _LONGEST_PAUSE)


def stream(
    images,
    image_spec,
    sink,
    open_engine,
    *,
    n_threads,
    on_error,
    bar,
    adapt=None,
    store=None,
    positions=None,
):
    """Compute the rows of all images, or of some.

    Parameters
    ----------
    images : Images
        What to compute.
    image_spec : ImageSpec
        How the network wants them.
    sink : object with ``write(i, rows)`` and ``fail(i, error)``
        Where rows go, in any order.
    open_engine : callable
        Returns the engine; called when the first image is there to be computed.
    n_threads : int or None
        Threads that read, decode and resize. None does so in between, in the thread that calls, so
        that with an engine that does not work ahead either one core is busy and no more.
    on_error : {"raise", "nan", "record"}
        What an unreadable image does: end it all, or go to the sink as an error, with a warning at
        the end ("nan") or without.
    bar : tqdm
        Moved on by one for each image.
    adapt : callable, default=None
        Applied to each decoded image.
    store : RowStore, default=None
        Where rows are looked up before, and kept after, they are computed.
    positions : sequence of int, default=None
        Which images to compute, in this order; None for all.

    Returns
    -------
    n_computed : int
        Number of images that went through the network.
    """
    unreadable = []
    n_computed = 0
    # Keys of the images that are being computed, and the other images of the same content.
    key_of = {}
    twins = {}
    positions = range(len(images)) if positions is None else positions

    def find_keys(chunk):
        keys = []
        for i in chunk:
            try:
                keys.append(images.key(i))
            except ImageError:
                # Told when it is about to be decoded.
                keys.append(None)
        return keys

    def missing():
        """Write the rows that are known already; yield the images that must be computed."""
        if store is None:
            yield from positions
            return
        size = _CHUNK

        def chunks():
            turn = _turn(len(positions))
            for part in positions[turn:], positions[:turn]:
                while part:
                    chunk, part = part[:size], part[size:]
                    yield chunk

        for chunk, keys in _ahead(pool, find_keys, chunks(), (n_threads or 0) + 1):
            found = store.find(keys)
            size = _CHUNK if None in found else min(2 * size, _LARGEST_CHUNK)
            for i, key, rows in zip(chunk, keys, found, strict=True):
                if rows is not None:
                    sink.write(i, rows)
                    bar.update()
                elif key is not None and key in twins:
                    twins[key].append(i)
                else:
                    key_of[i] = key
                    twins[key] = []
                    yield i

    def prepare(i):
        try:
            raw, key = (images.read(i), None) if store is None else images.read_with_key(i)
            pixels = images.decode(raw, image_spec, images.name(i))
        except ImageError as error:
            return None, error
        return key, pixels if adapt is None else adapt(pixels)

    def readable(prepared):
        for i, (key, pixels) in prepared:
            if key != key_of.get(i, key):
                # The file has changed since it was looked up, and is no twin of others any more.
                others = twins.pop(key_of.pop(i), ())
                yield from readable((other, prepare(other)) for other in others)
            if not isinstance(pixels, ImageError):
                yield (i, key), pixels
            elif on_error == "raise":
                raise pixels
            else:
                for same in equal_to(i):
                    error = ImageError(images.name(same), pixels.reason)
                    sink.fail(same, error)
                    if on_error == "nan":
                        unreadable.append(error)
                    bar.update()

    def deliver(token, rows):
        nonlocal n_computed
        i, key = token
        for same in equal_to(i):
            sink.write(same, rows)
            bar.update()
        if store is not None:
            store.add(key, rows)
        n_computed += 1

    def equal_to(i):
        return [i, *twins.pop(key_of.pop(i, None), ())]

    pool = n_threads and ThreadPoolExecutor(n_threads, thread_name_prefix="sklearn_cnnfeat")
    try:
        ready = readable(_ahead(pool, prepare, missing(), _AHEAD * (n_threads or 0)))
        first = next(ready, None)
        if first is not None:
            engine = open_engine()
            engine.run(_batches(chain([first], ready), engine.batch_size), deliver)
    finally:
        # After an error or an interrupt nothing goes on in the background, and nothing that was
        # computed is lost.
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)
        if store is not None:
            store.flush()
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(images)} images could not be read; their rows are NaN: "
            + first_few([str(error) for error in unreadable]),
            UnreadableImageWarning,
            stacklevel=7,
        )
    return n_computed


def _turn(n_images):
    """Return the image to begin with.

    The workers of a search often want the same images at the same time. Each begins elsewhere, and
    finds what the others have kept when it gets there.
    """
    if multiprocessing.parent_process() is None:
        return 0
    # Multiples of the golden ratio spread evenly, however few there are.
    return int(os.getpid() * 0.6180339887498949 % 1 * n_images)


def _ahead(pool, function, items, depth):
    """Apply `function` in threads, at most `depth` items ahead; yield (item, result) in order."""
    if pool is None:
        for item in items:
            yield item, function(item)
        return
    waiting = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) >= depth:
            item, future = waiting.popleft()
            yield item, future.result()
    while waiting:
        item, future = waiting.popleft()
        yield item, future.result()


def _batches(prepared, size):
    """Group (i, pixels) pairs into (tokens, pixels of a batch)."""
    if size == 1:
        for i, pixels in prepared:
            yield (i,), pixels[np.newaxis]
        return
    while group := list(islice(prepared, size)):
        tokens, pixels = zip(*group, strict=True)
        yield tokens, np.stack(pixels)
