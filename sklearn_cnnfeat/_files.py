"""Write files atomically, and compute digests of content."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from functools import lru_cache
from pathlib import Path

UNFINISHED = ".tmp"  # suffix of what `write_whole` has not finished


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
    """Write a file atomically: it has all of its content, or does not exist."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
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
    """Yield the name of a temporary file that replaces `path` once it is complete.

    For writers that need a file name. Errors of writing name `path`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=suffix)
    os.close(handle)
    try:
        yield temporary
        # What `mkstemp` makes is for its owner only.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        # Of a failure to write, `copyfile` names both files, the one that it reads first; others
        # name none.
        if isinstance(error, OSError) and (error.filename is None or error.filename2 is not None):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def copy_whole(source, path):
    """Copy a file's content; the copy has all of it, or does not exist."""
    with replaced_whole(path, ".part") as temporary:
        shutil.copyfile(source, temporary)


def remove_unfinished(folder):
    """Remove what `copy_whole` and `write_whole` leave in a folder when they are killed."""
    for path in folder.iterdir():
        if re.fullmatch(rf"\.\w{{8}}\.part|.+\.[0-9a-f]{{32}}\{UNFINISHED}", path.name):
            path.unlink()


def check_readme(folder, title):
    """Refuse a folder whose README does not begin with a title: it is not ours to replace."""
    path = folder / "README.md"
    if path.exists() and not path.read_bytes().startswith(title.encode()):
        raise FileExistsError(
            errno.EEXIST,
            "the folder already has another README, which would be replaced. Name a new folder",
            str(path),
        )


def digest_of_text(text):
    """Return the SHA-256 of `text` in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path, algorithm="sha256"):
    """Return the digest of a file's content in hexadecimal.

    It is remembered while the file's size, inode and times stay the same, so that a search
    with hundreds of fits reads a model file once.
    """
    status = os.stat(path)
    return _digest_of_file(
        Path(path),
        algorithm,
        (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino),
    )


@lru_cache(maxsize=64)
def _digest_of_file(path, algorithm, _version):
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
