"""What all formats share: blocks of rows go in, a manifest says what they are."""

import importlib.util
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._files import digest_of_file

# Suffix of the table of unreadable images.
ERRORS = ".errors.csv"

# Bytes of rows that are written, and can be read, at once.
BLOCK_BYTES = 16 * 1024**2

MANIFEST = "sklearn_cnnfeat"
# Suffix of a file until it is complete.
ASSEMBLED = "assembled"


@dataclass
class Block:
    """Rows that follow each other in the file; the first goes to row `start`.

    `columns` has, for each of "path", "label" and "error" that there is, a list or array of values.
    An error is None where there was none, a path where none was given.
    """

    start: int
    rows: np.ndarray
    columns: dict


def block_rows(row_shape, dtype):
    """Return how many rows go into a block."""
    row_bytes = int(np.prod(row_shape)) * np.dtype(dtype).itemsize
    return max(1, min(65_536, BLOCK_BYTES // max(1, row_bytes)))


def as_text(name):
    """Return a file's name as text that any file can hold: UTF-8 without null characters."""
    if name is None:
        return None
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def plain(values):
    """Return values as text for a table: empty for None."""
    return ["" if value is None else value for value in values]


class Format:
    """A way to write features, and to read them back."""

    # Suffix of each file, that of the features last.
    suffixes = ("",)
    library = None

    def require(self):
        """Raise if the library that writes and reads the format is not installed."""
        if not self.is_installed():
            raise ImportError(
                f"{self.name} files need {self.library}: pip install "
                f'"sklearn-cnnfeat[{self.extra}]". The suffix .npy needs nothing.'
            )

    def is_installed(self):
        """Return whether the format can be written and read."""
        return self.library is None or importlib.util.find_spec(self.library) is not None

    def read_manifest_beside(self, to):
        """Return the manifest that a missing file of ours has left; None if there is none."""
        return None

    def files(self, to):
        """Return the paths of all files that make up `to`."""
        return [Path(f"{to}{suffix}") for suffix in self.suffixes]

    def find_gaps(self, to, manifest):
        """Return the paths of what is missing of a finished file, or shorter than it was.

        Raises `ValueError` where what is there does not fit the manifest.
        """
        return [
            str(path)
            for name, path in self._pieces(to, manifest)
            if not is_whole(path, _find_entry(manifest, name, to).get("bytes"))
        ]

    def verify(self, to, manifest):
        """Raise `ValueError` where a finished file is not what `extract` wrote."""
        if "files" not in manifest:
            raise missing_digests(to)
        for name, path in self._pieces(to, manifest):
            if digest_of_file(path) != _find_entry(manifest, name, to)["sha256"]:
                raise ValueError(
                    f"{str(path)!r} is damaged: its SHA-256 is not the one in the manifest. Copy "
                    "the file again, or remove it and extract again."
                )

    def _pieces(self, to, manifest):
        """Yield the files that hold features and columns, each with its name in manifests."""
        raise NotImplementedError


def describe_files(pieces):
    """Return what a manifest notes of written files: for each name its size and SHA-256."""
    return {
        name: {"bytes": os.path.getsize(path), "sha256": digest_of_file(path)}
        for name, path in pieces
    }


def missing_digests(to):
    """Return the error for a file that cannot be verified."""
    return ValueError(
        f"{str(to)!r} holds no digests: an earlier version of sklearn-cnnfeat wrote it. Leave "
        "verify=False, or remove it and extract again."
    )


def is_whole(path, size=None):
    """Return whether there is a regular file, of so many bytes where that is known."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and size in (None, status.st_size)


def _find_entry(manifest, name, to):
    """Return what a manifest notes of a file; nothing where it is of an earlier version."""
    if "files" not in manifest:
        return {}
    if name not in manifest["files"]:
        raise ValueError(f"The manifest of {str(to)!r} was altered: it does not list {name!r}.")
    return manifest["files"][name]
