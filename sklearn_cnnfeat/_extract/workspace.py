"""The working folder beside a file: a manifest, closed shards, and the file being assembled."""

import contextlib
import errno
import json
import shutil

from sklearn_cnnfeat._extract.formats.base import ASSEMBLED
from sklearn_cnnfeat._extract.lock import Lock, LockedError
from sklearn_cnnfeat._files import write_whole

MANIFEST = "manifest.json"
# Exists while a finished file is being replaced by a newer one.
_REPLACING = "replacing"
# A folder that is replaced.
REPLACED = "replaced"
_OURS = (MANIFEST, _REPLACING, REPLACED, ASSEMBLED, "part-")


class Workspace:
    """The working folder of the file `to`."""

    def __init__(self, to):
        self.to = to
        self.folder = to.with_name(f"{to.name}.parts")

    @contextlib.contextmanager
    def locked(self):
        """Work in the folder alone; it is made first, and removed at the end if it is empty."""
        lock = Lock(self.folder)
        try:
            with self.explained():
                lock.acquire()
        except LockedError as error:
            raise RuntimeError(
                f"{error} is extracting to {str(self.to)!r}. Wait until it has finished, end it, "
                "or give this run a file of its own."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def read_manifest(self):
        """Return the manifest of an unfinished run; None if there is none."""
        file = self.folder / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            manifest = None
        if not isinstance(manifest, dict):
            raise ValueError(
                f"{str(file)!r} is damaged. Remove the folder {str(self.folder)!r}, and all "
                "features are recomputed."
            )
        return manifest

    def write_manifest(self, manifest):
        """Bind the folder to a job."""
        text = json.dumps(manifest, indent=1) + "\n"
        write_whole(self.folder / MANIFEST, [text.encode()])

    def has_shards(self):
        """Return whether any shard is closed."""
        return next(self.folder.glob("part-*"), None) is not None

    def is_replacing(self):
        """Return whether a finished file may be half replaced."""
        return (self.folder / _REPLACING).exists()

    def begin_to_replace(self):
        """Record that a finished file may be half replaced from now on."""
        write_whole(self.folder / _REPLACING, [])

    def clear(self, only=""):
        """Remove what is ours, the manifest first, or what begins with `only`."""
        if not only:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        for path in list(self.folder.iterdir()):
            if path.name.startswith(only or _OURS):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    @contextlib.contextmanager
    def explained(self):
        """Raise errors of the disk with what to do about them."""
        try:
            yield
        except OSError as error:
            raise explain(error, self.folder) from error


def explain(error, folder):
    """Return an `OSError` that says what to do about one that came while writing to a folder."""
    may_not = "Choose a folder that you may write to"
    remedies = {
        "ENOSPC": "Make space on the disk",
        "EDQUOT": "Make space within your quota",
        "EFBIG": "Raise the limit on the size of files (ulimit -f)",
        "EACCES": may_not,
        "EPERM": may_not,
        "EROFS": may_not,
    }
    remedy = remedies.get(errno.errorcode.get(error.errno), "Fix this")
    return OSError(
        error.errno,
        f"cannot write to {str(folder)!r}: {error.strerror or error}. What is complete there is "
        f"kept. {remedy}, and the same call goes on where it was",
    )
