"""Digests by which a cache recognizes images, remembered by path and time of the file."""

import hashlib
import os

import numpy as np

from sklearn_cnnfeat._images.orientation import orientation

# Digests of files by path and by how they are read, with the state of the file at that time.
_DIGESTS = {}
_MOST_DIGESTS = 500_000
# Nanoseconds after which a file's times are trusted to change with its content: file systems keep
# them to two seconds or better.
_SETTLED_NS = 2_500_000_000


def file_state(path):
    """Return size, times and identity of a file; None if it is not accessible."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def content_digest(raw, how):
    """Return 32 bytes that are equal only for images that decode alike.

    `raw` is undecoded; `how` is everything else that its pixels depend on.
    """
    if isinstance(raw, bytes):
        how += "encoded"
        content = raw
    elif isinstance(raw, np.ndarray):
        how += f"{raw.dtype.str} {raw.shape}"
        content = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    else:
        palette = raw.getpalette("RGB") if raw.mode in ("P", "PA") else None
        how += f"pil {raw.mode} {raw.size} {palette} {orientation(raw)}"
        content = raw.tobytes()
    digest = hashlib.sha256(how.encode() + b"\0")
    digest.update(content)
    return digest.digest()


def known_digest(path, how):
    """Return the digest of a file that was read before and has not changed; None for others."""
    state, key = _DIGESTS.get((path, how), (None, None))
    return key if state is not None and state == file_state(path) else None


def remember_digest(path, how, key, before, now):
    """Keep the digest of a file whose state was `before` when it was read, at the time `now`."""
    # A file just written may change again without a change of its time.
    settled = before is not None and now - max(before[1:3]) > _SETTLED_NS
    if settled and file_state(path) == before:
        if len(_DIGESTS) >= _MOST_DIGESTS:
            _DIGESTS.clear()
        _DIGESTS[path, how] = before, key
