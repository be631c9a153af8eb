"""Rows on their way into a file: closed shards in a working folder, which survive any end of a run.

A shard holds the rows of some hundred consecutive images. It is written to a temporary file,
flushed to the disk and renamed, so a shard that exists is complete. Shard number k of a job always
has the same bytes, so two processes may write it.
"""

import contextlib
import json
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._files import UNFINISHED, write_whole

STAMP = 16  # bytes that show whether an image has changed

_MAGIC = b"cnnfeat part 1\n\0"


class DamagedShardError(Exception):
    """A shard does not hold what was written; `number` says which."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


@dataclass
class Shard:
    """The rows of images that follow each other; those of failed images are NaN.

    `stamps` show what the images were like when they were computed; `errors` tell, by position
    among all images, what is wrong with failed ones.
    """

    rows: np.ndarray
    stamps: np.ndarray
    errors: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Shards:
    """All shards of a job, closed or not.

    The `key` is a digest of all that their content depends on: shards of another job are not taken
    for ours. The last shard may have fewer images than `part_size`.
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
        """Return the positions of the images of a shard."""
        start = number * self.part_size
        return range(start, min(start + self.part_size, self.n_images))

    def path(self, number):
        """Return the file of a shard."""
        return self.folder / f"part-{number:07d}"

    def write(self, number, shard):
        """Write a shard, whole or not at all."""
        header = {
            "key": self.key,
            "part": number,
            "errors": {str(position): shard.errors[position] for position in sorted(shard.errors)},
        }
        head = json.dumps(header).encode()
        rows = np.ascontiguousarray(shard.rows, np.dtype(self.dtype).newbyteorder("<"))
        content = [
            _MAGIC,
            len(head).to_bytes(8, "little"),
            head,
            shard.stamps.tobytes(),
            rows.reshape(-1).view(np.uint8).data,
        ]
        checksum = 0
        for piece in content:
            checksum = zlib.crc32(piece, checksum)
        write_whole(self.path(number), [*content, checksum.to_bytes(4, "little")])

    def read(self, number):
        """Return a shard; raise `DamagedShardError` where it is not what was written."""
        with open(self.path(number), "rb") as file:
            content = file.read()
        head = self._header(number, content, len(content))
        if head is None or zlib.crc32(memoryview(content)[:-4]) != int.from_bytes(
            content[-4:], "little"
        ):
            raise DamagedShardError(number)
        start, stamps, errors = head
        dtype = np.dtype(self.dtype).newbyteorder("<")
        n_images = len(self.span(number))
        rows = np.frombuffer(content, np.uint8, offset=start)[:-4].view(dtype)
        return Shard(rows.reshape(n_images, *self.row_shape), stamps, errors)

    def peek(self, number):
        """Return the (stamps, errors) of a closed shard without its rows; None if there is none."""
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
        """Return where rows start, stamps and errors; None if this is not one."""
        start = len(_MAGIC) + 8
        if content[: len(_MAGIC)] != _MAGIC or len(content) < start:
            return None
        end = start + int.from_bytes(content[len(_MAGIC) : start], "little")
        try:
            header = json.loads(content[start:end])
            errors = {int(position): str(reason) for position, reason in header["errors"].items()}
            is_ours = header["key"] == self.key and header["part"] == number
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        span = self.span(number)
        rows_start = end + STAMP * len(span)
        row_bytes = math.prod(self.row_shape) * np.dtype(self.dtype).itemsize
        if not is_ours or size != rows_start + row_bytes * len(span) + 4:
            return None
        if not all(position in span for position in errors):
            return None
        stamps = np.frombuffer(content[end:rows_start], np.uint8).reshape(len(span), STAMP)
        return rows_start, stamps, errors

    def sweep(self):
        """Remove unfinished files of killed writers; the caller must hold the lock."""
        for path in self.folder.glob(f"*{UNFINISHED}"):
            with contextlib.suppress(OSError):
                path.unlink()
