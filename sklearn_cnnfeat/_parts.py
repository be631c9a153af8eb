"""Rows on their way into a file: closed parts in a working folder, which survive any end of a run.

A part holds the rows of some hundred images that follow each other. It is written to a file of
another name, flushed to the disk and renamed: a part that is there is whole. Whoever computes part
number k of the same job writes the same bytes, so that it does no harm if two do.
"""

import contextlib
import json
import os
import socket
import tempfile
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

STAMP = 16  # bytes that tell whether an image has changed

_MAGIC = b"cnnfeat part 1\n\0"
_UNFINISHED = ".tmp"
_LOCK = "lock"


class DamagedPartError(Exception):
    """A part does not hold what was written; `number` says which."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class WriteError(Exception):
    """A part could not be written; the cause is an `OSError`."""


class LockedError(Exception):
    """Another process holds the lock; the argument says which."""


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path, content):
    """Write a file that is either there with all of its content or not at all."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        with open(temporary, "xb") as file:
            for piece in content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


@contextlib.contextmanager
def replaced_whole(path, suffix):
    """Yield the name of a file to be written in the place of `path`, which gets all of it or none.

    For those who write a file by its name. A failure to write is told with `path`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=suffix)
    os.close(handle)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        # Of a failure to write, `copyfile` names both files, the one that it reads first; others
        # name none.
        if isinstance(error, OSError) and (error.filename is None or error.filename2 is not None):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@dataclass
class Part:
    """The rows of images that follow each other.

    Attributes
    ----------
    rows : ndarray of shape (n_images, *row_shape)
        Those of failed images are NaN.
    stamps : ndarray of shape (n_images, STAMP), uint8
        What the images were like when they were computed.
    errors : dict
        For each failed image: its position among all images, and what is wrong with it.
    """

    rows: np.ndarray
    stamps: np.ndarray
    errors: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """All parts of a job, closed or not.

    Parameters
    ----------
    folder : pathlib.Path
        Where their files are.
    key : str
        Digest of all that their content depends on; parts of another job are not taken for ours.
    n_images, part_size : int
        Number of images, and of those in a part (fewer in the last).
    row_shape : tuple of int
        Shape of an image's row.
    dtype : str
        "float32" or "float16".
    """

    folder: Path
    key: str
    n_images: int
    part_size: int
    row_shape: tuple
    dtype: str

    def __len__(self):
        return -(-self.n_images // self.part_size)

    def span(self, number):
        """Return the positions of the images of a part."""
        start = number * self.part_size
        return range(start, min(start + self.part_size, self.n_images))

    def path(self, number):
        """Return the file of a part."""
        return self.folder / f"part-{number:07d}"

    def write(self, number, part):
        """Write a part, whole or not at all."""
        header = {
            "key": self.key,
            "part": number,
            "errors": {str(position): part.errors[position] for position in sorted(part.errors)},
        }
        head = json.dumps(header).encode()
        rows = np.ascontiguousarray(part.rows, np.dtype(self.dtype).newbyteorder("<"))
        content = [
            _MAGIC,
            len(head).to_bytes(8, "little"),
            head,
            part.stamps.tobytes(),
            rows.reshape(-1).view(np.uint8).data,
        ]
        checksum = 0
        for piece in content:
            checksum = zlib.crc32(piece, checksum)
        write_whole(self.path(number), [*content, checksum.to_bytes(4, "little")])

    def read(self, number):
        """Return a part; raise `DamagedPartError` where it is not what was written."""
        with open(self.path(number), "rb") as file:
            content = file.read()
        head = self._header(number, content, len(content))
        if head is None or zlib.crc32(memoryview(content)[:-4]) != int.from_bytes(
            content[-4:], "little"
        ):
            raise DamagedPartError(number)
        start, stamps, errors = head
        dtype = np.dtype(self.dtype).newbyteorder("<")
        n_images = len(self.span(number))
        rows = np.frombuffer(content, np.uint8, offset=start)[:-4].view(dtype)
        return Part(rows.reshape(n_images, *self.row_shape), stamps, errors)

    def peek(self, number):
        """Return the (stamps, errors) of a closed part without its rows; None if there is none."""
        try:
            with open(self.path(number), "rb") as file:
                content = file.read(len(_MAGIC) + 8)
                n_head = int.from_bytes(content[-8:], "little")
                # A damaged length must not make us read more than there is.
                size = os.fstat(file.fileno()).st_size
                content += file.read(min(n_head + STAMP * self.part_size, size))
        except FileNotFoundError:
            return None
        head = self._header(number, content, size)
        return None if head is None else head[1:]

    def _header(self, number, content, size):
        """Return where rows start, stamps and errors; None if this is no such part."""
        start = len(_MAGIC) + 8
        if content[: len(_MAGIC)] != _MAGIC or len(content) < start:
            return None
        end = start + int.from_bytes(content[len(_MAGIC) : start], "little")
        try:
            header = json.loads(content[start:end])
            errors = {int(position): str(reason) for position, reason in header["errors"].items()}
            is_ours = header["key"] == self.key and header["part"] == number
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        span = self.span(number)
        rows_start = end + STAMP * len(span)
        row_bytes = int(np.prod(self.row_shape)) * np.dtype(self.dtype).itemsize
        if not is_ours or size != rows_start + row_bytes * len(span) + 4:
            return None
        if not all(position in span for position in errors):
            return None
        stamps = np.frombuffer(content[end:rows_start], np.uint8).reshape(len(span), STAMP)
        return rows_start, stamps, errors

    def sweep(self):
        """Remove what killed writers left behind; for whoever holds the lock."""
        for path in self.folder.glob(f"*{_UNFINISHED}"):
            with contextlib.suppress(OSError):
                path.unlink()


class PartSink:
    """Puts rows into parts, and closes each in a thread of its own when its last row is there.

    At most one part is being written while the next is filled: no more than these two are lost if
    the process ends here.

    Parameters
    ----------
    parts : Parts
        Where they go.
    columns : list of slice or None
        The columns of each head; None where a row is one head's maps.
    stamps : ndarray of shape (n_images, STAMP), uint8
        What the images are like now.
    positions : sequence of int
        The images that will come. Other images of their parts are taken from the closed part.
    first : int, default=0
        Position, among all images, of the image that is told as number 0, and that `stamps` begins
        with.
    """

    def __init__(self, parts, columns, stamps, positions, first=0):
        self._parts = parts
        self._columns = columns
        self._stamps = stamps
        self._first = first
        numbers = (np.asarray(positions, np.int64) + first) // parts.part_size
        numbers, counts = np.unique(numbers, return_counts=True)
        self._n_missing = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        self._open = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sklearn_cnnfeat_parts")
        self._writing = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._writer.shutdown(wait=True)
        if kind is None:
            self._wait()

    def write(self, i, rows):
        """Take the rows of image `i`, one a head."""
        position = self._first + i
        part = self._part_of(position)
        row = part.rows[position % self._parts.part_size]
        if part.rows.dtype == np.float16:
            self._check_range(i, rows)
        if self._columns is None:
            row[...] = rows[0]
        else:
            for columns, values in zip(self._columns, rows, strict=True):
                row[columns] = np.ravel(values)
        part.errors.pop(position, None)
        self._done(position)

    def fail(self, i, error):
        """Note down that image `i` cannot be read."""
        position = self._first + i
        part = self._part_of(position)
        part.rows[position % self._parts.part_size] = np.nan
        part.errors[position] = error.reason
        self._done(position)

    def _part_of(self, position):
        number = position // self._parts.part_size
        if number not in self._open:
            span = self._parts.span(number)
            if self._n_missing[number] < len(span):
                known = self._parts.read(number)
                part = Part(known.rows.copy(), known.stamps.copy(), known.errors)
            else:
                rows = np.empty((len(span), *self._parts.row_shape), self._parts.dtype)
                part = Part(rows, np.empty((len(span), STAMP), np.uint8))
            self._open[number] = part
        return self._open[number]

    def _done(self, position):
        number, place = divmod(position, self._parts.part_size)
        part = self._open[number]
        part.stamps[place] = self._stamps[position - self._first]
        self._n_missing[number] -= 1
        if self._n_missing[number] == 0:
            del self._open[number]
            self._wait()
            self._writing = self._writer.submit(self._parts.write, number, part)

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


class Lock:
    """One process at a time works in a folder; the lock goes with the process, however it ends.

    Parameters
    ----------
    folder : pathlib.Path
        Made if it is not there, and removed at the end if it is empty.
    """

    def __init__(self, folder):
        self._folder = folder
        self._path = folder / _LOCK
        self._file = None

    def acquire(self):
        """Take the lock; raise `LockedError` if another process, or this one, holds it."""
        while True:
            self._folder.mkdir(exist_ok=True)
            try:
                self._file = open(self._path, "a+")  # closed by `release`
            except FileNotFoundError:  # the folder was removed in between
                continue
            try:
                _lock(self._file)
            except (BlockingIOError, PermissionError):  # the second is Windows' word for it
                self._file.seek(0)
                holder = self._file.read().strip()
                self._file.close()
                raise LockedError(holder or "another process") from None
            # The process that held it may have removed the file while we waited.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                    break
            self._file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self):
        """Give the lock back."""
        # Removed while it is held: afterwards it may be another process's. Windows does not remove
        # what is open, by us or by them.
        if os.name == "nt":
            self._file.close()
        try:
            with contextlib.suppress(OSError):
                self._path.unlink()
        finally:
            self._file.close()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _lock(file):
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 30)  # beyond the text, which others read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
