"""Sequences of images that are read, digested and decoded by separate calls.

A caller can skip decoding images that it already knows.
"""

import os
import stat
import threading
import time

import numpy as np

from sklearn_cnnfeat._images.decode import decode_array, decode_image
from sklearn_cnnfeat._images.errors import image_error
from sklearn_cnnfeat._images.keys import (
    content_digest,
    file_state,
    known_digest,
    remember_digest,
)
from sklearn_cnnfeat._images.orientation import orientation
from sklearn_cnnfeat._images.pillow import quiet
from sklearn_cnnfeat._images.urls import check_urls, is_url, read_url
from sklearn_cnnfeat._text import first_few
from sklearn_cnnfeat.exceptions import ImageError

# Largest file that is read; a file is read into memory as a whole.
_MOST_BYTES = 2 * 1024**3

# A PIL image reads its file on first use, and X may hold the same object twice.
_PIL_LOADING = threading.Lock()


class Images:
    """A sequence of images that are decoded on request; this class is for encoded images (bytes).

    `as_images` chooses the class. The subclasses below are for files, PIL images and arrays. The
    `dtype` is that of decoded pixels: uint8, or float32 if they are not all integers in 0..255.
    """

    has_paths = False

    def __init__(self, items, *, dtype, index, value_range, data_format):
        self._items = items
        self.dtype = np.dtype(dtype)
        self.index = index
        self._value_range = value_range
        self._data_format = data_format

    def __len__(self):
        return len(self._items)

    def name(self, i):
        """Return the name of image `i` for messages."""
        return f"image {i}"

    def path(self, i):
        """Return the file of image `i`; None if it is missing or is not a file."""
        return None

    def check(self):
        """Raise an error if files are missing, before anything is computed."""

    def read(self, i):
        """Return image `i` undecoded: bytes, a PIL image or an array."""
        item = self._items[i]
        if item is None:
            raise ImageError(self.name(i), "it is missing")
        return item

    def stamp(self, i):
        """Return 16 bytes that change with image `i`: for a file, its size and time.

        Files are not read. Arrays, bytes and PIL images are digested. The stamp of an unreadable
        image is zeros.
        """
        try:
            return self.digest(self.read(i))[:16]
        except ImageError:
            return bytes(16)

    def reading(self):
        """Return text that changes with how images are read, apart from the `ImageSpec`."""
        return f"{self.dtype} {self._value_range} {self._data_format}"

    def digest(self, raw):
        """Return 32 bytes that are equal only for images that decode alike."""
        return content_digest(raw, f"{self.dtype} {self._value_range} ")

    def key(self, i):
        """Return the digest of image `i`; an unchanged file is not read again."""
        return self.known_key(i) or self.read_with_key(i)[1]

    def read_with_key(self, i):
        """Return image `i` undecoded, and its digest."""
        raw = self.read(i)
        return raw, self.digest(raw)

    def known_key(self, i):
        """Return the digest of image `i` if it is known without reading the image; else None."""
        return None

    def decode(self, raw, spec, name):
        """Return the pixels on 0..255 as `spec` describes them: (height, width, channels)."""
        try:
            return self._decode(raw, spec)
        except Exception as error:
            raise image_error(name, error) from error

    def _decode(self, raw, spec):
        return decode_image(raw, spec, self._value_range)


class ImageFiles(Images):
    """Images in files, given by their paths, and URLs."""

    has_paths = True

    def absolute_part(self, span):
        """Return the files at the positions of a range, with absolute paths."""
        return ImageFiles(
            [
                path if path is None or is_url(path) else os.path.abspath(path)
                for path in self._items[span.start : span.stop]
            ],
            dtype=self.dtype,
            index=None,
            value_range=self._value_range,
            data_format=self._data_format,
        )

    def name(self, i):
        return super().name(i) if self._items[i] is None else self._items[i]

    def path(self, i):
        return self._items[i]

    def check(self):
        missing, not_files, urls = [], [], []
        for path in self._items:
            if is_url(path):
                # Whether they exist is checked when they are read, because each check is a request.
                urls.append(path)
                continue
            try:
                mode = os.stat(path).st_mode
            except (OSError, ValueError):  # ValueError: a null character in the name
                missing.append(path)
            else:
                if not stat.S_ISREG(mode):
                    not_files.append(path)
        check_urls(urls)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self)} files in X cannot be found: "
                f"{first_few(missing)}. Relative paths start at {os.getcwd()!r}."
            )
        if not_files:
            raise ValueError(
                f"X must hold the paths of image files, but {len(not_files)} of its {len(self)} "
                f"paths are folders or not regular files: {first_few(not_files)}. "
                "load_image_folder lists the images of a folder."
            )

    def read(self, i):
        path = super().read(i)
        try:
            return read_url(path, _MOST_BYTES) if is_url(path) else _read_file(path)
        except ImportError:
            # A package is missing, so the image itself may be readable.
            raise
        except Exception as error:
            raise image_error(path, error) from error

    def stamp(self, i):
        state = None if self._items[i] is None else file_state(self._items[i])
        if state is None:
            return bytes(16)
        size, modified, *_ = state
        return size.to_bytes(8, "little") + modified.to_bytes(8, "little", signed=True)

    def read_with_key(self, i):
        if self._items[i] is None:
            return super().read_with_key(i)
        now = time.time_ns()
        before = file_state(self._items[i])
        raw = self.read(i)
        key = self.known_key(i)
        if key is None:
            key = self.digest(raw)
            remember_digest(self._items[i], self._how(), key, before, now)
        return raw, key

    def known_key(self, i):
        return None if self._items[i] is None else known_digest(self._items[i], self._how())

    def _how(self):
        return self.dtype, self._value_range


def _read_file(path):
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ValueError("it is not a regular file")  # reading a pipe could block
    if status.st_size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES:,} bytes")
    with open(path, "rb") as file:
        return file.read()


class PILImages(Images):
    """Pillow images."""

    def read(self, i):
        image = super().read(i)
        try:
            with _PIL_LOADING, quiet():
                image.load()
                orientation(image)  # Pillow parses and caches EXIF data, also not thread-safe
        except Exception as error:
            raise image_error(self.name(i), error) from error
        return image


class ImageArrays(Images):
    """Images as arrays of pixels."""

    def digest(self, raw):
        how = f"{self.dtype} {self._value_range} array {self._data_format} "
        return content_digest(raw, how)

    def _decode(self, raw, spec):
        pixels = decode_array(raw, spec, self._value_range, self._data_format)
        return pixels.astype(self.dtype, copy=False)
