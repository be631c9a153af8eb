"""Compiled networks on the disk: a graph and a record each, written whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import filelock

from sklearn_cnnfeat._files import digest_of_file
from sklearn_cnnfeat._home import make_private_folder, networks_folder
from sklearn_cnnfeat._network.engines.openvino import GRAPH, NotWrittenError
from sklearn_cnnfeat._network.spec import digest_of_text
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import ProgramWarning

# The least recently used networks are removed when all together take more bytes than this.
MAX_BYTES_ON_DISK = 20 * 1024**3

_WEIGHTS = "network.bin"
_RECORD = "record.json"
# What folders are called while they are written, and the seconds after which their writer must
# have been killed.
_UNFINISHED = "tmp-"
_ABANDONED = 3600
_LOCKS = "locks"


@dataclass(frozen=True)
class Stored:
    """A network in a folder, with the record that `write` was given.

    A folder that is `temporary` goes with this object.
    """

    record: object
    folder: Path
    temporary: object = None


@contextlib.contextmanager
def locked(key):
    """Let one process at a time make a network; if locking is impossible, let all."""
    folder = networks_folder() / _LOCKS
    lock = None
    # Older versions of filelock raise NotImplementedError on file systems without locks.
    with contextlib.suppress(OSError, NotImplementedError):
        make_private_folder(folder)
        lock = filelock.FileLock(folder / f"{key}.lock")
        lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def read(key):
    """Return the network of a key; None if it is missing or damaged."""
    folder = networks_folder() / key
    try:
        record = _read_record(folder)
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            return None
        problem = "a file is missing"
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    else:
        # A read-only folder serves networks as well; only their age is not noted.
        with contextlib.suppress(OSError):
            os.utime(folder / _RECORD)
        return Stored(record, folder)
    discard(key, problem)
    return None


def discard(key, problem):
    """Remove a damaged network, with a warning."""
    folder = networks_folder() / key
    warn(
        f"The compiled network in {folder} cannot be used ({problem}); it is compiled again.",
        ProgramWarning,
    )
    shutil.rmtree(folder, ignore_errors=True)


def write(key, make):
    """Keep a network under a key, whole or not at all.

    A key of None keeps it for this process only. `make` takes a folder, writes the graph there if
    there is one, and returns the record. Where the network cannot be kept it is in a temporary
    folder, with a warning; `NotWrittenError` is raised if that has no space either.
    """
    if key is not None:
        try:
            return _write(key, make)
        except NotWrittenError as error:
            warn(
                f"The compiled network cannot be kept in {networks_folder()} ({error}); the next "
                "process compiles it again. Set SKLEARN_CNNFEAT_HOME to a folder that can be "
                "written to and has room.",
                ProgramWarning,
            )
    problems = []
    for parent in _temporary_folders():
        try:
            with _reported():
                temporary = tempfile.TemporaryDirectory(dir=parent, prefix="cnnfeat-")
            return Stored(make(Path(temporary.name)), Path(temporary.name), temporary)
        except NotWrittenError as error:
            problems.append(f"{parent} ({error})")
    raise NotWrittenError(
        f"The compiled network cannot be written anywhere: {', '.join(problems)}."
    )


def _temporary_folders():
    """Return folders for a network that cannot be kept, in order: on disk, then in memory."""
    return tempfile.gettempdir(), "/dev/shm"


@contextlib.contextmanager
def _reported():
    try:
        yield
    except NotWrittenError:
        raise
    except OSError as error:
        raise NotWrittenError(str(error)) from error


def _write(key, make):
    parent = networks_folder()
    folder = parent / key
    with _reported():
        make_private_folder(parent)
        temporary = tempfile.TemporaryDirectory(dir=parent, prefix=_UNFINISHED)
    with temporary as name:
        record = make(Path(name))
        with _reported():
            _seal(Path(name), key, record)
            try:
                os.rename(name, folder)
            except OSError:
                # Another process was first, and what it wrote is the same; or something damaged
                # could not be removed.
                if not _is_sound(folder):
                    raise
            else:
                os.mkdir(name)  # the context manager expects something to remove
    _make_room(parent, keep=folder)
    return Stored(record, folder)


def _seal(folder, key, record):
    """Write a record with its key and the digests of the files beside it."""
    files = [name for name in (GRAPH, _WEIGHTS) if (folder / name).exists()]
    digests = {name: digest_of_file(folder / name) for name in files}
    text = json.dumps({"key": key, "record": record, "files": digests})
    envelope = json.dumps({"sha256": digest_of_text(text), "content": text})
    (folder / _RECORD).write_text(envelope, encoding="utf-8")


def _read_record(folder):
    """Return the record of a network; raise if any of its files is damaged."""
    envelope = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    try:
        text = envelope["content"]
        if digest_of_text(text) != envelope["sha256"]:
            raise ValueError("its record is damaged")
        content = json.loads(text)
        record, files = content["record"], dict(content["files"])
        key = content.get("key", folder.name)  # records of earlier versions do not have it
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("its record is damaged") from error
    if key != folder.name:
        raise ValueError("it is another network's")
    if not files.keys() <= {GRAPH, _WEIGHTS}:
        raise ValueError("its record is damaged")
    for name, digest in files.items():
        if digest_of_file(folder / name) != digest:
            raise ValueError(f"{name} is damaged")
    return record


def _is_sound(folder):
    try:
        _read_record(folder)
    except (OSError, ValueError, RecursionError):
        return False
    return True


# --- all of them ----------------------------------------------------------------------------------


def measure_networks():
    """Return how many networks are on the disk, and their bytes, unread."""
    folders = _folders()
    return len(folders), sum(_size(folder) for folder in folders)


def remove_networks():
    if networks_folder().is_dir():
        shutil.rmtree(networks_folder())


def check_networks():
    """Read all networks on the disk; return how many are sound, names of the others, and bytes."""
    sound, damaged, n_bytes = 0, [], 0
    for folder in _folders():
        if _is_sound(folder):
            sound += 1
        else:
            damaged.append(folder.name)
        n_bytes += _size(folder)
    return sound, damaged, n_bytes


def _folders():
    parent = networks_folder()
    if not parent.is_dir():
        return []
    return [
        folder
        for folder in sorted(parent.iterdir())
        if folder.is_dir() and folder.name != _LOCKS and not folder.name.startswith(_UNFINISHED)
    ]


def _size(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _make_room(parent, keep):
    _sweep(parent)
    networks = []
    for folder in _folders():
        # Some may be written or removed by another process just now.
        with contextlib.suppress(OSError):
            networks.append(((folder / _RECORD).stat().st_mtime, _size(folder), folder))
    total = sum(size for _, size, _ in networks)
    for _, size, folder in sorted(networks, key=lambda network: network[0]):
        if total <= MAX_BYTES_ON_DISK:
            break
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def _sweep(parent):
    """Remove unfinished folders of killed writers."""
    for folder in parent.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
