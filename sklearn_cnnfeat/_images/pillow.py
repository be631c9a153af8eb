"""Workarounds that depend on the version of Pillow: its C library, known flaws, warnings."""

import ctypes
import logging
import threading
import warnings
from contextlib import contextmanager

from PIL import Image

from sklearn_cnnfeat._images.jpeg import find_frame

# The version of the C library that decodes, which differs from that of the Python files if Pillow
# was replaced under a live process.
DECODER = Image.core.PILLOW_VERSION
# The first version that compares the width of a JPEG frame with its own (CVE-2026-112403) and that
# reads a repeated EXIF header in linear time (CVE-2026-96643).
_REPAIRED = 13
_IS_REPAIRED = int(DECODER.partition(".")[0]) >= _REPAIRED

_EXIF = b"Exif\0\0"
# Pillow before 13 copies all EXIF data once for each header.
_MOST_EXIF_HEADERS = 100


def check_safe(data, image):
    """Raise an error for a file that a flaw in the loaded version of Pillow makes dangerous.

    That is a JPEG picture whose width or channels are not what Pillow's decoder expects, which
    makes it write beyond its buffer. The file is opened and not yet decoded.
    """
    if _IS_REPAIRED or image.format != "JPEG":
        return
    frame = find_frame(data)
    found = frame and (frame.width, frame.height, frame.n_components)
    if found != (*image.size, len(image.getbands())):
        raise ValueError(
            "its headers contradict each other, which can make the JPEG decoder of Pillow "
            f"{DECODER} write beyond its memory. Pillow {_REPAIRED} and later are safe"
        )


def check_exif(data):
    """Raise an error for EXIF data that would keep the loaded version of Pillow busy for hours."""
    if not _IS_REPAIRED and data.count(_EXIF) > _MOST_EXIF_HEADERS:
        raise ValueError(
            f"it repeats the header of its EXIF data, which takes Pillow {DECODER} very long. "
            f"Pillow {_REPAIRED} and later are safe"
        )


# --- libtiff -------------------------------------------------------------------------------------


class _LibtiffMessages:
    """Switch off what libtiff writes to stderr, while any thread decodes."""

    def __init__(self):
        self._lock = threading.Lock()
        self._n_threads = 0
        self._handler = None
        prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        try:
            self._set_handler = prototype(("TIFFSetErrorHandler", ctypes.CDLL(Image.core.__file__)))
        except (AttributeError, OSError):
            # If libtiff is linked statically into Pillow, as on Windows, it cannot be looked up.
            self._set_handler = None

    def __enter__(self):
        with self._lock:
            if self._set_handler and self._n_threads == 0:
                self._handler = self._set_handler(None)
            self._n_threads += 1

    def __exit__(self, *exc_info):
        with self._lock:
            self._n_threads -= 1
            if self._set_handler and self._n_threads == 0:
                self._set_handler(self._handler)


_libtiff = _LibtiffMessages()


# --- warnings ------------------------------------------------------------------------------------


class _Decoding(threading.local):
    """Whether the current thread is decoding an image."""

    depth = 0

    def enter(self):
        self.depth += 1

    def leave(self):
        self.depth -= 1


_decoding = _Decoding()

# The one message of Pillow's readers that goes to a log, which Python prints if nobody handles it.
logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda record: _decoding.depth == 0)


class _PillowWhileDecoding:
    """The pattern of a warnings filter: matches modules of Pillow in threads that decode images."""

    # scikit-learn makes filters for its workers from the texts of those that it finds.
    pattern = r"PIL(\.|$)"

    def match(self, module):
        return _decoding.depth > 0 and module.partition(".")[0] == "PIL"


# It ignores nothing outside of `quiet` and nothing in other threads. `warnings.catch_warnings`
# would change the filters of all threads, and leave them changed for good where threads leave it
# in another order than they entered it.
_FILTER = ("ignore", None, Warning, _PillowWhileDecoding(), 0)


@contextmanager
def quiet():
    """Suppress warnings and messages of Pillow and libtiff in this thread.

    They report details without naming the file ("Corrupt EXIF data"), and whatever makes an image
    unreadable is an error anyway.
    """
    if not warnings.filters or warnings.filters[0] is not _FILTER:
        warnings.filters.insert(0, _FILTER)
    _decoding.enter()
    try:
        with _libtiff:
            yield
    finally:
        _decoding.leave()
