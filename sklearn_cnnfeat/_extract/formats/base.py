"""What all formats share: blocks of rows go in, a manifest says what they are."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Raised whenever files are written in another way.
VERSION = 1
# What stands behind the name of the table of failed images.
ERRORS = ".errors.csv"

# Bytes of rows that are written, and can be read, at once.
BLOCK_BYTES = 16 * 1024**2

MANIFEST = "sklearn_cnnfeat"
# What a file is called until it is whole.
ASSEMBLED = "assembled"


@dataclass
class Block:
    """Rows that follow each other in the file.

    Attributes
    ----------
    start : int
        Row of the file that the first goes to.
    rows : ndarray of shape (n, *row_shape)
        The features.
    columns : dict
        For each of "path", "label" and "error" that there is: a list or array of n values. An
        error is None where there was none, a path where none was given.
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


class Format:
    # What stands behind the name of each file, the one with the features last.
    suffixes = ("",)
    library = None

    def require(self):
        """Raise if what writes and reads the format is not installed."""
        if not self.is_installed():
            raise ImportError(
                f"{self.name} files need {self.library}: pip install "
                f'"sklearn-cnnfeat[{self.extra}]". The suffix .npy needs nothing.'
            )

    def is_installed(self):
        """Tell whether the format can be written and read."""
        return self.library is None or importlib.util.find_spec(self.library) is not None

    def read_manifest_beside(self, to):
        """Return the manifest that is left of a file of ours that is gone; None where none is."""
        return None

    def files(self, to):
        """Return the paths of all files that make up `to`."""
        return [Path(f"{to}{suffix}") for suffix in self.suffixes]


def plain(values):
    """Return values as a file of text takes them: nothing for None."""
    return ["" if value is None else value for value in values]
