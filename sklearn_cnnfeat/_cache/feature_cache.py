"""The feature cache: rows of float32 on disk, found by recipe and digest.

Each row carries a checksum over recipe, digest and values, so that whatever happens to the file a
row is the right one or none.
"""

import datetime
import operator
import sqlite3
import time
import zlib
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._cache.database import (
    Database,
    FaultError,
    number,
    shrink,
    transaction,
    used_bytes,
)
from sklearn_cnnfeat._cache.info import CacheInfo, CacheReport
from sklearn_cnnfeat._cache.recent import RecentRows
from sklearn_cnnfeat._home import features_folder
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import CacheWarning

_COARSE = 600  # seconds; a use is noted down only when the last noted one is older than this
_KEEP = 0.9  # share of max_bytes that stays when old rows are removed
_LARGEST_ROW = 10**9 - 10**6  # bytes; SQLite's limit minus the space of the key
_RECENT_BYTES = 64 * 1024**2  # of rows in memory, at most
_LOOKED_UP = 500  # rows in a statement; SQLite takes 999 values
# Seconds after now that a time of use may lie: clocks are set, and differ between machines.
_FUTURE = 366 * 24 * 3600

_SCHEMA = (
    "CREATE TABLE recipes (id INTEGER PRIMARY KEY, recipe TEXT NOT NULL UNIQUE)",
    "CREATE TABLE rows (id INTEGER PRIMARY KEY, recipe INTEGER NOT NULL, digest BLOB NOT NULL, "
    "used INTEGER NOT NULL, crc INTEGER NOT NULL, value BLOB NOT NULL, UNIQUE (recipe, digest))",
    "CREATE INDEX rows_by_use ON rows (used)",
)
_RECIPE_ID = "(SELECT id FROM recipes WHERE recipe = ?)"
# With as many marks as there are digests.
_READ = (
    "SELECT digest, id, typeof(used) != 'integer' OR used NOT BETWEEN ? AND ?, crc, value "
    f"FROM rows WHERE recipe = {_RECIPE_ID} AND digest IN ({{marks}})"
)
_CONTAINS = f"SELECT digest FROM rows WHERE recipe = {_RECIPE_ID} AND digest IN ({{marks}})"
_WRITE = (
    "INSERT OR REPLACE INTO rows (recipe, digest, used, crc, value) "
    f"VALUES ({_RECIPE_ID}, ?, ?, ?, ?)"
)
_DELETE = "DELETE FROM rows WHERE id = ?"


class FeatureCache:
    """Features on disk, shared by all processes that use the same folder.

    Computed rows are kept under the content of the image and a *recipe*, a text that names
    everything that changes a number. A row comes back with the very bits that went in, or not at
    all: the worst that a full disk, a lock or a damaged file can do is one `CacheWarning` for each
    kind of fault, and features that are recomputed.

    Parameters
    ----------
    path : str or path-like, default=None
        Folder of the cache, made at first use for its owner only (mode 0700). ``None`` is
        ``features`` in the folder for this package's files, which the environment variable
        ``SKLEARN_CNNFEAT_HOME`` names. A read-only folder can be read from.
    max_bytes : int, default=10 * 1024**3
        Limit of disk space, at least a megabyte. When it is exceeded, the least recently used rows
        are removed until a tenth is free.

    Notes
    -----
    The file is ``features.sqlite``. To move or share a cache, copy it while no process writes to
    it. Use caches only from people you trust: checksums detect damage, not forgery.
    A file of a later format, of another program, or without a valid header is left as it is and not
    used. A damaged cache is renamed to ``features.sqlite.corrupt-1``
    (2, 3, ...) and a new one begun. Up to 64 MiB of rows that were read lately stay in memory until
    another process writes to the file.

    A cache is pickled and compared by its settings, and its copy is the cache itself, so that
    cloned estimators share it. Threads may share it too; a forked process opens the file anew.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> rows, digests = np.ones((2, 3), dtype=np.float32), [b"a" * 32, b"b" * 32]
    >>> out = np.zeros_like(rows)
    >>> with FeatureCache(folder.name) as cache:
    ...     cache.put_many("mean color", digests[:1], rows[:1])
    ...     cache.get_many("mean color", digests, out)
    array([ True, False])
    >>> out
    array([[1., 1., 1.],
           [0., 0., 0.]], dtype=float32)
    >>> folder.cleanup()
    """

    def __init__(self, path=None, *, max_bytes=10 * 1024**3):
        path = features_folder() if path is None else Path(path).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise ValueError(f"path must be a folder, but {path} is a file; pass a folder")
        try:
            max_bytes = operator.index(max_bytes)
        except TypeError:
            raise TypeError(
                f"max_bytes must be a whole number, such as 10 * 1024**3, got {max_bytes!r}"
            ) from None
        if max_bytes < 2**20:
            raise ValueError(f"max_bytes must be at least {2**20:,}, got {max_bytes:,}")
        self.__setstate__({"path": path, "max_bytes": max_bytes})

    def __getstate__(self):
        return {"path": self.path, "max_bytes": self.max_bytes}

    def __setstate__(self, settings):
        self.__dict__.update(settings)
        self._database = Database(
            self.path / "features.sqlite", _SCHEMA, application=0x434E4E46, version=1
        )
        self._warned = set()
        self._to_note = set()  # rows whose use is to be written down
        self._noted_at = 0.0
        # Valid for one state of the file: nobody else has written to it since.
        self._recent = RecentRows(_RECENT_BYTES)
        self._recent_state = None
        self._recent_since = 0.0

    def __repr__(self):
        return f"FeatureCache({str(self.path)!r}, max_bytes={self.max_bytes})"

    def __eq__(self, other):
        if not isinstance(other, FeatureCache):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    def __hash__(self):
        return hash((self.path, self.max_bytes))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def get_many(self, recipe, digests, out):
        """Fill the rows of `out` that are stored.

        Parameters
        ----------
        recipe : str
            What the rows are.
        digests : sequence of bytes
            32 bytes for each row.
        out : ndarray of shape (n_digests, width), dtype float32
            Written where a row is found, else left as it is.

        Returns
        -------
        ndarray of bool, shape (n_digests,)
            Which rows were found.
        """
        _check(recipe, digests, out)
        hits = np.zeros(len(digests), dtype=bool)
        damaged = set()

        def read(connection):
            now = time.time()
            missing = self._read_recent(connection, now, recipe, digests, out, hits)
            for places, record in _look_up(
                connection, _READ, (now - _COARSE, now + _FUTURE, recipe), missing
            ):
                digest, row, is_old, crc, value = record
                if not _is_sound(recipe, digest, crc, value) or len(value) != out[0].nbytes:
                    damaged.update(places)
                    continue
                out[places] = values = np.frombuffer(value, dtype="<f4")
                hits[places] = True
                self._recent.add((recipe, digest), values)
                if is_old:
                    self._to_note.add(row)
            self._note_use(connection)

        self._attempt(read)
        if damaged:
            happened = f"{len(damaged)} of {len(digests)} rows are damaged or of another width"
            self._warn("row", happened, "They are replaced; verify() checks all others")
        return hits

    def _read_recent(self, connection, now, recipe, digests, out, hits):
        """Fill rows that are in memory; return the places of all others by digest."""
        state = connection, number(connection, "PRAGMA data_version")
        # Once in a while rows are read from the file, so that their use is noted there.
        if state != self._recent_state or now - self._recent_since > _COARSE:
            self._recent.clear()
            self._recent_state, self._recent_since = state, now
        missing = {}
        for i, digest in enumerate(digests):
            row = self._recent.get((recipe, digest))
            if row is not None and row.nbytes == out[i].nbytes:
                out[i] = row
                hits[i] = True
            else:
                missing.setdefault(digest, []).append(i)
        return missing

    def put_many(self, recipe, digests, rows):
        """Store rows, all of them or, after a fault, none.

        Parameters
        ----------
        recipe : str
            What the rows are.
        digests : sequence of bytes
            32 bytes for each row.
        rows : ndarray of shape (n_digests, width), dtype float32
            The rows; one that is stored under the same recipe and digest is replaced.
        """
        _check(recipe, digests, rows)
        room = min(_LARGEST_ROW, int(_KEEP * self.max_bytes) - 2**16)
        if (size := 4 * rows.shape[1]) > room:
            happened = f"a row has {size:,} bytes, and max_bytes={self.max_bytes:,} leaves {room:,}"
            self._warn("too large", happened, "Raise max_bytes, or choose a smaller pooling")
            return
        rows = np.ascontiguousarray(rows, dtype="<f4")

        def write(connection):
            now = int(time.time())
            records = (
                (recipe, digest, now, _checksum(recipe, digest, row), row.data)
                for digest, row in zip(digests, rows, strict=True)
            )
            with transaction(connection):
                connection.execute("INSERT OR IGNORE INTO recipes (recipe) VALUES (?)", (recipe,))
                connection.executemany(_WRITE, records)
                self._evict(connection)
            for digest in digests:
                self._recent.discard((recipe, digest))
            shrink(connection, down_to=self.max_bytes)

        self._attempt(write)

    def contains_many(self, recipe, digests):
        """Find out which rows are stored, without reading them.

        Parameters
        ----------
        recipe : str
            What the rows are.
        digests : sequence of bytes
            32 bytes for each row.

        Returns
        -------
        ndarray of bool, shape (n_digests,)
            Which rows are there. A damaged one may turn out a miss when it is read.
        """
        _check(recipe, digests)
        found = np.zeros(len(digests), dtype=bool)

        def look(connection):
            wanted = {}
            for i, digest in enumerate(digests):
                wanted.setdefault(digest, []).append(i)
            for places, _ in _look_up(connection, _CONTAINS, (recipe,), wanted):
                found[places] = True

        self._attempt(look)
        return found

    def info(self):
        """Count what is stored.

        Returns
        -------
        CacheInfo
            Numbers of rows and bytes, recipes, times of use.
        """

        def count(connection):
            recipes = connection.execute(
                "SELECT recipes.recipe, count(*) FROM rows JOIN recipes "
                "ON recipes.id = rows.recipe WHERE typeof(recipes.recipe) = 'text' "
                "GROUP BY rows.recipe"
            )
            # Damage may have put anything in the place of a time.
            times = connection.execute(
                "SELECT min(used), max(used) FROM rows "
                "WHERE typeof(used) = 'integer' AND used BETWEEN 1 AND ?",
                (time.time() + _FUTURE,),
            ).fetchone()
            return CacheInfo(
                self.path,
                self.max_bytes,
                number(connection, "SELECT count(*) FROM rows"),
                used_bytes(connection),
                self._database.file.stat().st_size,
                dict(recipes),
                *(used and datetime.datetime.fromtimestamp(used).astimezone() for used in times),
            )

        return self._attempt(count) or CacheInfo(self.path, self.max_bytes)

    def clear(self, recipe=None):
        """Remove all rows, or those of one recipe, and free their disk space.

        Parameters
        ----------
        recipe : str, default=None
            The recipe; ``None`` removes everything.
        """

        def remove(connection):
            self._recent.clear()
            with transaction(connection):
                if recipe is None:
                    connection.execute("DELETE FROM rows")
                    connection.execute("DELETE FROM recipes")
                else:
                    connection.execute(f"DELETE FROM rows WHERE recipe = {_RECIPE_ID}", (recipe,))
                    connection.execute("DELETE FROM recipes WHERE recipe = ?", (recipe,))
            shrink(connection)

        self._attempt(remove)

    def verify(self):
        """Check the file and every row in it, and remove the rows that are damaged.

        Returns
        -------
        CacheReport
            Number of sound rows and of rows removed. A damaged *file* is moved aside with a
            `CacheWarning`, and no row is left.
        """

        def check(connection):
            verdict = number(connection, "PRAGMA integrity_check(1)")
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            self._recent.clear()
            good, bad, last = 0, [], -(2**63)
            latest = time.time() + _FUTURE
            # In portions: one long reader would keep all writers waiting.
            while portion := connection.execute(
                "SELECT recipes.recipe, digest, crc, value, used, rows.id FROM rows "
                "LEFT JOIN recipes ON recipes.id = rows.recipe "
                "WHERE rows.id > ? ORDER BY rows.id LIMIT 200",
                (last,),
            ).fetchall():
                last = portion[-1][-1]
                damaged = [
                    (row,)
                    for *record, used, row in portion
                    if not (_is_sound(*record) and type(used) is int and 0 < used <= latest)
                ]
                bad += damaged
                good += len(portion) - len(damaged)
            if bad:
                with transaction(connection):
                    connection.executemany(_DELETE, bad)
            return CacheReport(good, len(bad))

        return self._attempt(check) or CacheReport()

    def close(self):
        """Close the file. The cache stays usable: it opens the file again when needed."""
        if self._to_note:
            self._noted_at = 0.0
            self._attempt(self._note_use)
        self._database.close()

    def _attempt(self, work):
        for _ in range(2):
            try:
                return self._database.run(work)
            except FaultError as fault:
                self._warn(*fault.args)
                if fault.args[0] != "corrupt":  # else there is a new file now
                    return None

    def _warn(self, cause, happened, advice):
        if cause not in self._warned:
            self._warned.add(cause)
            warn(
                f"Feature cache {self.path}: {happened}. Results stay right, but features that "
                f"cannot be read or stored are computed again. {advice}.",
                CacheWarning,
            )

    def _evict(self, connection):
        """When there are more bytes than allowed, remove the rows used longest ago."""
        if used_bytes(connection) <= self.max_bytes:
            return
        self._recent.clear()
        while (excess := used_bytes(connection) - int(_KEEP * self.max_bytes)) > 0:
            oldest = connection.execute(
                "SELECT id, length(value) FROM rows ORDER BY used, id LIMIT 1000"
            ).fetchall()
            if not oldest:
                return
            for row, size in oldest:
                connection.execute(_DELETE, (row,))
                excess -= size or 0
                if excess <= 0:
                    break

    def _note_use(self, connection):
        """Write down which rows were used: seldom, together, and only when no one else writes."""
        now = time.time()
        if not self._to_note or now - self._noted_at < 1:
            return
        rows, self._to_note, self._noted_at = self._to_note, set(), now
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            with transaction(connection):
                connection.executemany(
                    "UPDATE rows SET used = ? WHERE id = ?", [(int(now), row) for row in rows]
                )
        except sqlite3.OperationalError:  # locked, read-only, full: the times are hints only
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _check(recipe, digests, rows=None):
    if not isinstance(recipe, str):
        raise TypeError(f"recipe must be a str, got {type(recipe).__name__}")
    if not all(isinstance(digest, bytes) and len(digest) == 32 for digest in digests):
        raise ValueError("digests must be bytes objects of length 32")
    if rows is None:
        return
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(digests):
        raise ValueError(
            f"expected float32 rows of shape ({len(digests)}, width), one a digest; "
            f"got {rows.dtype} of shape {rows.shape}"
        )


def _look_up(connection, statement, values, places):
    """Yield, for each digest that is found, its places and the record."""
    digests = list(places)
    for start in range(0, len(digests), _LOOKED_UP):
        some = digests[start : start + _LOOKED_UP]
        marks = ", ".join("?" * len(some))
        for record in connection.execute(statement.format(marks=marks), (*values, *some)):
            yield places[record[0]], record


def _checksum(recipe, digest, value):
    return zlib.crc32(value, zlib.crc32(digest, zlib.crc32(recipe.encode())))


def _is_sound(recipe, digest, crc, value):
    """Whether a record is what was stored; damage may even have changed the types."""
    is_typed = isinstance(recipe, str) and isinstance(digest, bytes) and isinstance(value, bytes)
    return is_typed and crc == _checksum(recipe, digest, value)
