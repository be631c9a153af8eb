"""The sink that puts rows into shards."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sklearn_cnnfeat._extract.shards import STAMP, Shard


class WriteError(Exception):
    """A shard could not be written; the cause is an `OSError`."""


class ShardSink:
    """Put rows into shards, and write each in another thread when its last row is there.

    At most one shard is being written while the next is filled: no more than these two are lost if
    the process ends here.

    `positions` are the images that will come; other images of their shards are taken from the
    closed shard. Image 0 of this sink and of `stamps` is image `first` of the job. `columns` are
    those of each head, or None where a row is one head's maps.
    """

    def __init__(self, shards, columns, stamps, positions, first=0):
        self._shards = shards
        self._columns = columns
        self._stamps = stamps
        self._first = first
        numbers = (np.asarray(positions, np.int64) + first) // shards.part_size
        numbers, counts = np.unique(numbers, return_counts=True)
        self._n_missing = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        self._open = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sklearn_cnnfeat_shards")
        self._writing = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._writer.shutdown(wait=True)
        if kind is None:
            self._wait()

    def write(self, i, rows):
        position = self._first + i
        shard = self._shard_of(position)
        row = shard.rows[position % self._shards.part_size]
        if shard.rows.dtype == np.float16:
            self._check_range(i, rows)
        if self._columns is None:
            row[...] = rows[0]
        else:
            for columns, values in zip(self._columns, rows, strict=True):
                row[columns] = np.ravel(values)
        shard.errors.pop(position, None)
        self._done(position)

    def fail(self, i, error):
        position = self._first + i
        shard = self._shard_of(position)
        shard.rows[position % self._shards.part_size] = np.nan
        shard.errors[position] = error.reason
        self._done(position)

    def _shard_of(self, position):
        number = position // self._shards.part_size
        if number not in self._open:
            span = self._shards.span(number)
            if self._n_missing[number] < len(span):
                known = self._shards.read(number)
                shard = Shard(known.rows.copy(), known.stamps.copy(), known.errors)
            else:
                rows = np.empty((len(span), *self._shards.row_shape), self._shards.dtype)
                shard = Shard(rows, np.empty((len(span), STAMP), np.uint8))
            self._open[number] = shard
        return self._open[number]

    def _done(self, position):
        number, place = divmod(position, self._shards.part_size)
        shard = self._open[number]
        shard.stamps[place] = self._stamps[position - self._first]
        self._n_missing[number] -= 1
        if self._n_missing[number] == 0:
            del self._open[number]
            self._wait()
            self._writing = self._writer.submit(self._shards.write, number, shard)

    def _wait(self):
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.result()
            except OSError as error:
                raise WriteError from error

    def _check_range(self, i, rows):
        largest = np.finfo(np.float16).max
        for values in rows:
            values = np.abs(values)
            beyond = values[np.isfinite(values) & (values > largest)]
            if len(beyond):
                raise ValueError(
                    f"dtype='float16' holds numbers up to {largest:g}, but a feature of image "
                    f"{self._first + i} is {beyond.max():g}. Use dtype='float32'."
                )
