"""The loop: images -> decoded ahead in threads -> network -> rows into a sink.

The only room that knows images and network together. At any moment a few images a core are decoded
and nothing else: memory does not depend on how many there are.
"""

import os
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice

import joblib
import numpy as np

from sklearn_cnnfeat._images import ImageError, first_few

# Images decoded or being decoded, for each thread, before the network takes them.
_AHEAD = 4


class UnreadableImageWarning(UserWarning):
    """Some images could not be read; their rows are NaN."""


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

    def fail(self, i):
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


def stream(images, image_spec, sink, open_engine, *, n_threads, on_error, bar, adapt=None):
    """Compute the rows of all images.

    Parameters
    ----------
    images : Images
        What to compute.
    image_spec : ImageSpec
        How the network wants them.
    sink : object with ``write(i, rows)`` and ``fail(i)``
        Where rows go, in any order.
    open_engine : callable
        Returns the engine; called when the first image is there to be computed.
    n_threads : int
        Threads that read, decode and resize.
    on_error : {"raise", "nan"}
        What an unreadable image does.
    bar : tqdm
        Moved on by one for each image.
    adapt : callable, default=None
        Applied to each decoded image.
    """
    unreadable = []

    def prepare(i):
        try:
            pixels = images.decode(images.read(i), image_spec, images.name(i))
        except ImageError as error:
            return error
        return pixels if adapt is None else adapt(pixels)

    def deliver(i, rows):
        sink.write(i, rows)
        bar.update()

    def readable(prepared):
        for i, pixels in prepared:
            if not isinstance(pixels, ImageError):
                yield i, pixels
            elif on_error == "raise":
                raise pixels
            else:
                sink.fail(i)
                unreadable.append(pixels)
                bar.update()

    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="sklearn_cnnfeat")
    try:
        ready = readable(_ahead(pool, prepare, range(len(images)), _AHEAD * n_threads))
        first = next(ready, None)
        if first is not None:
            engine = open_engine()
            engine.run(_batches(chain([first], ready), engine.batch_size), deliver)
    finally:
        # After an error or an interrupt nothing goes on in the background.
        pool.shutdown(wait=True, cancel_futures=True)
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(images)} images could not be read; their rows are NaN: "
            + first_few([str(error) for error in unreadable]),
            UnreadableImageWarning,
            stacklevel=4,
        )


def _ahead(pool, function, items, depth):
    """Apply `function` in threads, at most `depth` items ahead; yield (item, result) in order."""
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
