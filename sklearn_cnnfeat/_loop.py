"""The loop: images -> known rows, or pixels decoded in threads -> network -> rows into a sink.

Only a few decoded images per core exist at any time, so memory does not depend on the number of
images.
"""

import multiprocessing
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Protocol

import joblib
import numpy as np

from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import ImageError, UnreadableImageWarning

# Images per thread that are decoded, or being decoded, ahead of the network.
_PREFETCHED = 4
# Images looked up in the cache at once: few while images are being computed, perhaps by several
# processes at the same time; more and more as long as all of them are found.
_CHUNK = 16
_LARGEST_CHUNK = 256


class Engine(Protocol):
    """Runs a network."""

    batch_size: int

    def run(self, batches, deliver):
        """Compute all batches.

        Parameters
        ----------
        batches : iterable of (tokens, pixels)
            A token for each image of the batch, and their pixels as one array.
        deliver : callable
            Called with the token and the rows of each image, one array per head. The arrays are
            the engine's own: `deliver` copies what it keeps.
        """


class Loop:
    """Computes the rows of images, each content once.

    Parameters
    ----------
    images : Images
        What to compute.
    image_spec : ImageSpec
        How they are decoded for the network.
    sink : Sink
        Where rows go.
    n_threads : int
        Threads that read, decode and resize. With 0 the calling thread does so between batches, so
        that an engine on one core and the decoding together use no more than one core.
    on_error : {"raise", "nan", "record"}
        What happens to an unreadable image: the loop raises, or passes the error to the sink, with
        ("nan") or without ("record") a warning at the end.
    bar : tqdm
        Progress bar, advanced by one for each image.
    adapt : callable, default=None
        Applied to the pixels of each image.
    store : RowStore, default=None
        Cache in which rows are looked up, and to which computed rows are added.
    """

    def __init__(
        self, images, image_spec, sink, *, n_threads, on_error, bar, adapt=None, store=None
    ):
        self._images = images
        self._image_spec = image_spec
        self._sink = sink
        self._n_threads = n_threads
        self._on_error = on_error
        self._bar = bar
        self._adapt = adapt
        self._store = store
        self._pool = None
        # The key of each image on its way through the network, and the other images of that key.
        self._keys = {}
        self._copies = {}
        self._unreadable = []
        self._n_computed = 0

    def run(self, positions, open_engine):
        """Compute the images at some positions, in this order.

        Returned is how many of them went through the network.

        `open_engine` returns an `Engine`, and is called when the first image is ready to be
        computed.
        """
        try:
            depth = _PREFETCHED * self._n_threads
            decoded = self._prefetch(self._decode, self._find_missing(positions), depth)
            readable = self._sort_out_unreadable(decoded)
            first = next(readable, None)
            if first is not None:
                engine = open_engine()
                engine.run(_batches(chain([first], readable), engine.batch_size), self._deliver)
        finally:
            # After an error or an interrupt, no thread may continue, and computed rows must not be
            # lost.
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)
            if self._store is not None:
                self._store.flush()
        if self._unreadable:
            warn(
                f"{len(self._unreadable)} of {len(self._images)} images could not be read; their "
                f"rows are NaN: {first_few([str(error) for error in self._unreadable])}",
                UnreadableImageWarning,
            )
        return self._n_computed

    def _prefetch(self, function, items, depth):
        """Apply `function` in threads, at most `depth` items ahead; yield (item, result)."""
        if not self._n_threads:
            for item in items:
                yield item, function(item)
            return
        waiting = deque()
        for item in items:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self._n_threads, thread_name_prefix="sklearn_cnnfeat"
                )
            waiting.append((item, self._pool.submit(function, item)))
            if len(waiting) >= depth:
                item, future = waiting.popleft()
                yield item, future.result()
        while waiting:
            item, future = waiting.popleft()
            yield item, future.result()

    # --- known rows -------------------------------------------------------------------------------

    def _find_missing(self, positions):
        """Write the rows that are stored; yield the images that must be computed."""
        if self._store is None:
            yield from positions
            return
        chunks = _Chunks(self._write_known(positions))
        for chunk, keys in self._with_keys(chunks):
            found = self._store.find(keys)
            chunks.adapt(all_found=None not in found)
            for i, key, rows in zip(chunk, keys, found, strict=True):
                if rows is not None:
                    self._sink.write(i, rows)
                    self._bar.update()
                elif key is not None and key in self._copies:
                    self._copies[key].append(i)
                else:
                    self._keys[i] = key
                    self._copies[key] = []
                    yield i

    def _write_known(self, positions):
        """Write the rows that are found without reading an image; return the other positions.

        If all rows are stored, as in most fits of a search, no thread is started at all.
        """
        others = []
        while positions:
            chunk, positions = positions[:_LARGEST_CHUNK], positions[_LARGEST_CHUNK:]
            found = self._store.find([self._images.known_key(i) for i in chunk])
            for i, rows in zip(chunk, found, strict=True):
                if rows is None:
                    others.append(i)
                else:
                    self._sink.write(i, rows)
                    self._bar.update()
        return others

    def _with_keys(self, chunks):
        """Yield chunks with the keys of their images; threads compute them after the first miss."""
        chunks = iter(chunks)
        for chunk in chunks:
            keys = [self._images.known_key(i) for i in chunk]
            if None in keys:
                chunks = chain([chunk], chunks)
                yield from self._prefetch(self._find_keys, chunks, self._n_threads + 1)
                return
            yield chunk, keys

    def _find_keys(self, chunk):
        keys = []
        for i in chunk:
            try:
                keys.append(self._images.key(i))
            except ImageError:
                # Reported later, when decoding fails.
                keys.append(None)
        return keys

    def _with_copies(self, i):
        """Return image `i` and all images with the same content, and forget them."""
        return [i, *self._copies.pop(self._keys.pop(i, None), ())]

    # --- pixels -----------------------------------------------------------------------------------

    def _decode(self, i):
        """Return the key of an image, if rows are stored, and its pixels or an `ImageError`."""
        images = self._images
        try:
            raw, key = images.read_with_key(i) if self._store else (images.read(i), None)
            pixels = images.decode(raw, self._image_spec, images.name(i))
        except ImageError as error:
            return None, error
        return key, pixels if self._adapt is None else self._adapt(pixels)

    def _sort_out_unreadable(self, decoded):
        """Yield (token, pixels) for readable images; raise or report the others."""
        for i, (key, pixels) in decoded:
            if key != self._keys.get(i, key):
                # The file has changed since it was looked up: the others are no copies any more.
                others = self._copies.pop(self._keys.pop(i), ())
                yield from self._sort_out_unreadable((j, self._decode(j)) for j in others)
            if not isinstance(pixels, ImageError):
                yield (i, key), pixels
            elif self._on_error == "raise":
                raise pixels
            else:
                self._fail(i, pixels.reason)

    def _fail(self, i, reason):
        for same in self._with_copies(i):
            error = ImageError(self._images.name(same), reason)
            self._sink.fail(same, error)
            if self._on_error == "nan":
                self._unreadable.append(error)
            self._bar.update()

    # --- computed rows ----------------------------------------------------------------------------

    def _deliver(self, token, rows):
        i, key = token
        for same in self._with_copies(i):
            self._sink.write(same, rows)
            self._bar.update()
        if self._store is not None:
            self._store.add(key, rows)
        self._n_computed += 1


class _Chunks:
    """Positions in chunks of a size that adapts to how many rows are found.

    The workers of a search often need the same images at the same time. Each begins at another
    position, and later finds the rows that the others have stored.
    """

    def __init__(self, positions):
        start = _first_position(len(positions))
        self._parts = positions[start:], positions[:start]
        self._size = _CHUNK

    def adapt(self, all_found):
        """Take larger chunks where everything is found, small ones otherwise."""
        self._size = min(2 * self._size, _LARGEST_CHUNK) if all_found else _CHUNK

    def __iter__(self):
        for part in self._parts:
            while part:
                chunk, part = part[: self._size], part[self._size :]
                yield chunk


def _first_position(n_images):
    """Return where this process begins, if it is one of several."""
    if multiprocessing.parent_process() is None:
        return 0
    # Multiples of the golden ratio spread evenly, however few there are.
    return int(os.getpid() * 0.6180339887498949 % 1 * n_images)


def _batches(prepared, size):
    """Group (token, pixels) pairs into (tokens, pixels of a batch)."""
    if size == 1:
        for token, pixels in prepared:
            yield (token,), pixels[np.newaxis]
        return
    while group := list(islice(prepared, size)):
        tokens, pixels = zip(*group, strict=True)
        yield tokens, np.stack(pixels)


def thread_count(n_jobs):
    """Return the number of threads that `n_jobs` means.

    None stands for the cores that this process may use, or for its share of them where
    ``OMP_NUM_THREADS`` is set, as in joblib's workers.
    """
    if n_jobs is not None and n_jobs > 0:
        return n_jobs
    cores = joblib.cpu_count()
    if n_jobs is not None:
        return max(1, cores + 1 + n_jobs)
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(share)) if share.isdigit() and int(share) > 0 else cores
