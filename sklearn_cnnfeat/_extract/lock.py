"""One process at a time works in a folder."""

import contextlib
import os
import socket

_LOCK = "lock"


class LockedError(Exception):
    """Another process holds the lock; the argument says which."""


class Lock:
    """One process at a time works in a folder; the lock goes with the process, however it ends.

    The folder is made if it is not there, and removed at the end if it is empty.
    """

    def __init__(self, folder):
        self._folder = folder
        self._path = folder / _LOCK
        self._file = None

    def acquire(self):
        """Take the lock; raise `LockedError` if another process, or this one, holds it."""
        while True:
            self._folder.mkdir(exist_ok=True)
            try:
                self._file = open(self._path, "a+")  # closed by `release`
            except FileNotFoundError:  # the folder was removed in between
                continue
            try:
                _lock(self._file)
            except (BlockingIOError, PermissionError):  # PermissionError on Windows
                self._file.seek(0)
                holder = self._file.read().strip()
                self._file.close()
                raise LockedError(holder or "another process") from None
            # The process that held it may have removed the file while we waited.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                    break
            self._file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self):
        """Give the lock back."""
        # Removed while it is held: afterwards it may be another process's. Windows does not remove
        # what is open, by us or by them.
        if os.name == "nt":
            self._file.close()
        try:
            with contextlib.suppress(OSError):
                self._path.unlink()
        finally:
            self._file.close()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _lock(file):
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 30)  # beyond the text, which others read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
