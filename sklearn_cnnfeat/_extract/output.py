"""The finished file and the files beside it: found, checked, and replaced by newer ones."""

import os
from pathlib import Path

from sklearn_cnnfeat._extract.formats.base import ASSEMBLED, ERRORS
from sklearn_cnnfeat._extract.formats.errors import is_of_errors, write_errors
from sklearn_cnnfeat._extract.manifest import VERSION
from sklearn_cnnfeat._extract.workspace import REPLACED
from sklearn_cnnfeat._files import sync


class Output:
    """The file that a job makes."""

    def __init__(self, to, form):
        self.to = to
        self.form = form
        self.errors_table = Path(f"{to}{ERRORS}")

    def find(self):
        """Return the manifest of the finished file; None if there is none.

        Raises `FileExistsError` where a file of others stands in the way.
        """
        files = self.form.files(self.to)
        target = files[-1]
        found = self.form.read_manifest(target) if os.path.lexists(target) else None
        if found is not None and found.get("version") == VERSION:
            return found
        others = [path for path in files if os.path.lexists(path)]
        # Beside a file that was removed, ours may be left.
        if target not in others and self.form.read_manifest_beside(target) is not None:
            others = []
        if os.path.lexists(self.errors_table) and not is_of_errors(self.errors_table):
            others.append(self.errors_table)
        if others:
            raise FileExistsError(
                f"{str(others[0])!r} exists and is not a file of extract. Nothing was changed. "
                "Remove it or choose another name."
            )
        return None

    def find_gaps(self, found):
        """Return the paths that a finished file lacks, apart from the table of errors."""
        return self.form.find_gaps(self.to, found)

    def lacks_errors(self, found):
        """Return whether the table of errors is gone."""
        return bool(found["errors"]) and not self.errors_table.exists()

    def replace(self, workspace, manifest, blocks, failed):
        """Write a whole file in the working folder, and put it in the place of an older one."""
        workspace.clear(only=ASSEMBLED)
        files = self.form.write(workspace.folder, manifest, blocks)
        table = workspace.folder / f"{ASSEMBLED}{ERRORS}"
        if failed:
            write_errors(table, failed)
        workspace.begin_to_replace()
        if failed:
            os.replace(table, self.errors_table)
        for file, target in zip(files, self.form.files(self.to), strict=True):
            if target.is_dir():
                workspace.clear(only=REPLACED)  # of a call that was stopped right here
                os.rename(target, workspace.folder / REPLACED)
            os.replace(file, target)
        if not failed:
            self.errors_table.unlink(missing_ok=True)
        sync(self.to.parent)
