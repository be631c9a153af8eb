"""Whether an array fits into memory, asked before anything is computed."""

import psutil


def check_memory(n_bytes, what, remedy):
    """Raise where less than `n_bytes` of memory are free.

    Parameters
    ----------
    n_bytes : int
        Size of the array.
    what : str
        What takes this much, as the subject of a sentence in the plural.
    remedy : str
        What to do, as a sentence.

    Raises
    ------
    MemoryError
        With both.
    """
    available = psutil.virtual_memory().available
    if n_bytes > available:
        raise MemoryError(
            f"{what} take {n_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free. {remedy}"
        )
