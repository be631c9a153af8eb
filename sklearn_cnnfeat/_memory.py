"""Memory: whether an array fits into it, and errors of other packages where it does not suffice."""

import ctypes
from contextlib import contextmanager

import psutil

# What Python, the system's loader, OpenVINO and the libraries below it say where they get no
# memory. None of them raises MemoryError.
_SIGNS = (
    "can't start new thread",
    "failed to map segment",
    "Cannot allocate memory",
    "Resource temporarily unavailable",
    "bad_alloc",
    "can't alloc",
    "Failed to allocate",
)


@contextmanager
def memory_errors(what):
    """Raise MemoryError for what other packages raise where they get no memory.

    `what` needs the memory: the end of "There is not enough memory".
    """
    try:
        yield
    except (RuntimeError, ImportError, OSError) as error:
        sign = next((sign for sign in _SIGNS if sign in str(error)), None)
        if sign is None:
            raise
        raise MemoryError(f"There is not enough memory {what} ({sign}).") from error


def check_memory(n_bytes, what, remedy):
    """Raise MemoryError where less than `n_bytes` of memory are free.

    `what` takes this much: the subject of a sentence in the plural. `remedy` is a sentence on what
    to do.
    """
    available = psutil.virtual_memory().available
    if n_bytes > available:
        raise MemoryError(
            f"{what} take {n_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free. {remedy}"
        )


def return_free_memory():
    """Give back to the system what is free between allocations, where C's library can do that."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # Only glibc has the function, and Windows no library without a name.
    trim(0)
