"""An SQLite file that many processes share, and that may fail, fill up or be damaged.

Rules:

* Rollback journal, never WAL: two processes that checkpoint at once can corrupt a WAL database in
  SQLite 3.7.0 to 3.51.2. A process killed at any point leaves each transaction whole or undone.
* ``synchronous=NORMAL``: two flushes to the disk per transaction. After a power failure the last
  transactions may be missing and, on disks that reorder writes across flushes, the file may be
  damaged. What is kept in it has to carry checksums of its own.
* A damaged file of ours is renamed, never deleted, and a new one is started. A file of a later
  format or of another program, or without a valid header, is not touched.
* Pages of 4,096 bytes: at most half a page is lost per row, and rows of 100 KB are read and written
  about as fast as with larger pages.
"""

import contextlib
import itertools
import os
import sqlite3
import threading
import weakref
from pathlib import Path

from sklearn_cnnfeat._home import make_private_folder

_PAGE = 4096
_MAGIC = b"SQLite format 3\0"
_PATIENCE = 10.0  # seconds to wait for the lock of another process

# cause -> (how SQLite words it, what happened, what to do)
_FAULTS = {
    "locked": (
        "lock",
        "another process has kept its file locked for too long",
        "Wait for that process or end it, or give this run a folder of its own",
    ),
    "read-only": (
        "readonly",
        "its file cannot be written, only read",
        "Make the folder and the file in it writable, or choose another folder",
    ),
    "full": (
        "full",
        "the disk is full",
        # A damaged file can make SQLite ask for pages that no disk has.
        "Free some space, lower max_bytes or choose another disk; if there is space, run verify()",
    ),
    "disk": (
        "disk i/o",
        "the disk refuses to read or to write",
        "Check the disk, its quota and the limit on file sizes (ulimit -f)",
    ),
    "unreachable": (
        "unable to open",
        "its file cannot be opened or created",
        "Check that the folder exists or can be made, or choose another one",
    ),
}


class FaultError(Exception):
    """The file cannot be used. Arguments: a word for the cause, what happened, what to do."""


class Database:
    """A file, opened when it is first needed, by one connection per process.

    `schema` has the statements that make a new file; the header of a file that is ours tells
    `application` and `version`.
    """

    def __init__(self, file, schema, *, application, version):
        self.file = file
        self._schema = schema
        self._stamps = [application, version]
        self._lock = threading.RLock()
        self._connection = None
        self._identity = None  # of the file that is open: another may have taken its name since
        self._patience = _PATIENCE

    def run(self, work):
        """Return ``work(connection)``; whatever is wrong with the file is a `FaultError`."""
        with self._lock:
            for is_last in (False, True):
                try:
                    connection = self._connect()
                    connection.execute(f"PRAGMA busy_timeout = {int(1000 * self._patience)}")
                    result = work(connection)
                    self._patience = _PATIENCE
                    return result
                except sqlite3.ProgrammingError:  # a mistake of the caller, not of the file
                    self.close()
                    raise
                # SQLite's own messages may quote damaged text: UnicodeDecodeError.
                except (sqlite3.DatabaseError, OSError, UnicodeDecodeError) as error:
                    self.close()
                    cause = _cause(error)
                    # After one timeout, do not wait for a lock again until it has been free.
                    self._patience = 0.0 if cause == "locked" else _PATIENCE
                    if cause != "locked" and not is_last and self._is_replaced():
                        continue  # another process moved a damaged file aside: take the new one
                    raise self._fault(cause, error) from error
                except BaseException:  # an interrupt, say, in the middle of a transaction
                    self.close()
                    raise

    def close(self):
        """Close the file, undoing what is not committed; `run` opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __del__(self):
        self.close()

    def _connect(self):
        if self._connection is not None and self._is_replaced():
            # Deleted, or another put in its place: what is open has no name any more.
            self.close()
        if self._connection is None:
            self._open()
        return self._connection

    def _open(self):
        self._identity = None
        make_private_folder(self.file.parent)
        _OPEN[id(self)] = self
        while True:
            before = self._identity = _identity(self.file)
            self._connection = sqlite3.connect(
                self.file, timeout=self._patience, isolation_level=None, check_same_thread=False
            )
            self._identity = _identity(self.file)
            if before in (None, self._identity):
                break
            # Another process has put a new one in its place, and either of the two may be open.
            self.close()
        if before is None:
            with contextlib.suppress(OSError):  # a file system without modes
                self.file.chmod(0o600)
        self._prepare(self._connection)

    def _prepare(self, connection):
        """Make a new file ours; refuse one of others or of a later version, unchanged."""
        # SQLite's advice for files that come from elsewhere or may be damaged.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.text_factory = lambda text: text.decode(errors="replace")
        if _is_empty(connection):
            connection.execute(f"PRAGMA page_size = {_PAGE}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            with transaction(connection, "EXCLUSIVE"):
                if _is_empty(connection):  # no other process was faster
                    for statement in self._schema:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {self._stamps[0]}")
                    connection.execute(f"PRAGMA user_version = {self._stamps[1]}")
        found = _stamps(connection)
        if found[0] != self._stamps[0]:
            happened = f"{self.file} belongs to another program and is left as it is"
            raise FaultError("foreign", happened, "Choose another folder")
        if found[1] != self._stamps[1]:
            happened = (
                f"{self.file} has format {found[1]}, this version reads {self._stamps[1]}; "
                "it is left as it is"
            )
            raise FaultError("format", happened, "Upgrade sklearn-cnnfeat or choose another folder")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = NORMAL")

    def _fault(self, cause, error):
        if cause == "corrupt" and not self._is_ours():
            happened = f"{self.file} is damaged, or belongs to another program ({error})"
            return FaultError("foreign", happened, "Delete it, or choose another folder")
        if cause == "corrupt":
            return FaultError(cause, f"its file is damaged ({error})", self._move_aside())
        _, happened, advice = _FAULTS[cause]
        return FaultError(cause, f"{happened} ({error})", advice)

    def _is_ours(self):
        """Return whether the header of the file, damaged as it may be, says that it is ours."""
        try:
            with open(self.file, "rb") as file:
                header = file.read(72)
        except OSError:
            return False
        return header[:16] == _MAGIC and header[68:] == self._stamps[0].to_bytes(4, "big")

    def _move_aside(self):
        """Rename the damaged file, unless another process has done so; return what to do."""
        try:
            # A lock that goes when its process dies, on every system.
            lock = sqlite3.connect(f"{self.file}.lock", timeout=_PATIENCE)
            with contextlib.closing(lock) as mutex:
                mutex.execute("BEGIN EXCLUSIVE")
                if self._is_replaced():
                    return "A new one has been begun"
                names = (Path(f"{self.file}.corrupt-{n}") for n in itertools.count(1))
                aside = next(name for name in names if not name.exists())
                # Left behind, the journal would be rolled back into the new file.
                Path(f"{self.file}-journal").unlink(missing_ok=True)
                self.file.rename(aside)
                return f"A new one is begun; {aside.name} may be deleted"
        except (sqlite3.DatabaseError, OSError) as refusal:
            return f"It could not be renamed ({refusal}): delete it by hand"

    def _is_replaced(self):
        return _identity(self.file) != self._identity


@contextlib.contextmanager
def transaction(connection, kind="IMMEDIATE"):
    """Commit at the end. After an error `Database.run` closes the connection: nothing is kept."""
    connection.execute(f"BEGIN {kind}")
    yield
    connection.execute("COMMIT")


def number(connection, query):
    """The only value that `query` returns."""
    return connection.execute(query).fetchone()[0]


def used_bytes(connection):
    """Bytes in use. SQLite keeps the counts in the file, so all processes agree on them."""
    free = number(connection, "PRAGMA freelist_count")
    return _PAGE * (number(connection, "PRAGMA page_count") - free)


def shrink(connection, down_to=0):
    """Give free pages back to the disk until the file has `down_to` bytes."""
    excess = number(connection, "PRAGMA page_count") - down_to // _PAGE
    if excess > 0 and number(connection, "PRAGMA freelist_count"):
        # Not execute, which would stop after the first page.
        connection.executescript(f"PRAGMA incremental_vacuum({excess})")


def _is_empty(connection):
    return not number(connection, "PRAGMA schema_version") and _stamps(connection) == [0, 0]


def _stamps(connection):
    return [number(connection, f"PRAGMA {name}") for name in ("application_id", "user_version")]


def _cause(error):
    if isinstance(error, sqlite3.OperationalError):
        for cause, (wording, _, _) in _FAULTS.items():
            if wording in str(error).lower():
                return cause
    return "unreachable" if isinstance(error, OSError) else "corrupt"


def _identity(file):
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


# SQLite connections must not be carried across a fork: they are closed before it, when no
# statement is running, and opened again when they are needed.
_OPEN = weakref.WeakValueDictionary()
_FORKING = threading.Lock()
_held = []


def _before_fork():
    _FORKING.acquire()
    _held.extend(list(_OPEN.values()))
    for database in _held:
        database._lock.acquire()
        database.close()


def _after_fork():
    for database in _held:
        database._lock.release()
    _held.clear()
    _FORKING.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
