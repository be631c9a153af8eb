"""One extraction: bound to a manifest, computed shard by shard, put together at the end."""

import bisect
import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sklearn_cnnfeat import _dask
from sklearn_cnnfeat._extract.compute import (
    MANIFEST,
    compute_part_on_worker,
    compute_parts,
    explain,
)
from sklearn_cnnfeat._extract.formats.base import (
    ASSEMBLED,
    ERRORS,
    VERSION,
    Block,
    as_text,
    block_rows,
)
from sklearn_cnnfeat._extract.formats.errors import is_of_errors, write_errors
from sklearn_cnnfeat._extract.lock import Lock, LockedError
from sklearn_cnnfeat._extract.manifest import differences, errors_of
from sklearn_cnnfeat._extract.shards import STAMP, DamagedPartError, Part, Parts
from sklearn_cnnfeat._extract.steps import Steps
from sklearn_cnnfeat._extractor import Extractor
from sklearn_cnnfeat._files import digest_of_text, sync, write_whole
from sklearn_cnnfeat._functions import describe_function
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._progress import announce, progress
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import ImageError, UnreadableImageWarning

# Images in a part, and bytes of its rows, at most: what a kill may cost.
_PART_ROWS = 256
_PART_BYTES = 16 * 1024**2

# In the working folder as soon as a finished file may be half replaced by a newer one.
_REPLACING = "replacing"
_REPLACED = "replaced"


@dataclass
class Job:
    to: Path
    form: object
    extractor: Extractor
    # What comes after the network, or None.
    steps: Steps | None
    images: object
    # Values, dtype and names of classes, as `read_labels` returns them.
    labels: tuple
    dtype: str
    part_size: int | None
    on_error: str
    retry_errors: bool
    client: object = None

    def __post_init__(self):
        self.folder = self.to.with_name(f"{self.to.name}.parts")
        self.row_shape = self.extractor.row_shape
        if self.steps is not None:
            self.row_shape = (self.steps.n_columns,)
        self.n_features = int(np.prod(self.row_shape))
        if self.form.name == "parquet" and len(self.row_shape) > 1:
            raise ValueError(
                "pooling=None gives maps, and a Parquet table holds vectors. Choose a pooling, or "
                "write a .npy or .zarr file."
            )
        self.manifest = self._make_manifest()
        self._known_stamps = None

    def run(self):
        """Bring the file about; return the errors and the number of images computed."""
        if not self.folder.exists():
            found = self._look_at_output()
            if found is not None and self._is_finished(found):
                return errors_of(found), 0
        lock = Lock(self.folder)
        try:
            with self._explained():
                lock.acquire()
        except LockedError as error:
            raise RuntimeError(
                f"{error} is extracting to {str(self.to)!r}. Wait until it has finished, end it, "
                "or give this run a file of its own."
            ) from None
        try:
            return self._run()
        finally:
            lock.release()

    def _run(self):
        found = self._look_at_output()
        begun = self._read_manifest()
        if begun is None and found is not None and self._is_finished(found):
            self._clear()
            return errors_of(found), 0
        parts = self._begin(begun, found)
        n_computed = 0
        retry = self.retry_errors
        while True:
            try:
                n_computed += self._compute(parts, retry)
                # Once: what fails again has failed.
                retry = False
                errors = self._assemble(parts)
                break
            except DamagedPartError as error:
                announce(f"part {error.number} is damaged; it is computed again.", True)
                parts.path(error.number).unlink(missing_ok=True)
        if errors:
            what = "left out" if self.on_error == "skip" else "NaN"
            warn(
                f"{len(errors)} of {len(self.images)} images could not be read; their rows are "
                f"{what}, and {str(self.to) + ERRORS!r} lists them: "
                + first_few([str(self._error(position, errors)) for position in sorted(errors)]),
                UnreadableImageWarning,
            )
        return errors, n_computed

    def _compute(self, parts, retry):
        """Compute what the closed parts lack; return how many images went through the network."""
        errors, positions = {}, []
        for number in range(len(parts)):
            closed = parts.peek(number)
            if closed is None:
                positions.append(np.asarray(parts.span(number)))
                continue
            stamps, failed = closed
            self._check_unchanged(parts.span(number), stamps, failed)
            errors |= failed
            if retry:
                positions.append(np.array(sorted(failed), np.int64))
        if errors and not retry and self.on_error == "raise":
            raise self._known_error(errors)
        positions = np.concatenate(positions) if positions else np.empty(0, np.int64)
        if not len(positions):
            return 0
        if self.client is not None:
            return self._compute_on_cluster(parts, positions)
        return compute_parts(
            parts, self.extractor, self.images, self._stamps(), positions.tolist(), steps=self.steps
        )

    def check_for_cluster(self):
        """Raise where workers cannot read the images by themselves."""
        if self.images.kind != "path":
            raise ValueError(
                "With client=, workers read the images themselves: X must hold paths or URLs. "
                "Write the images to files first, or extract without client=."
            )

    def _compute_on_cluster(self, parts, positions):
        """Do as `compute_parts`, one part a task."""
        _dask.check_workers(self.client, compute_part_on_worker)
        extractor = replace(self.extractor, verbose=0)
        _dask.check_size(extractor)
        common = parts, extractor, self.steps, self.manifest["recipe"]
        numbers, starts = np.unique(positions // parts.part_size, return_index=True)

        def jobs():
            lots = np.split(positions, starts[1:])
            for number, lot in zip(numbers.tolist(), lots, strict=True):
                span = parts.span(number)
                stamps = self._stamps()[span.start : span.stop]
                yield (
                    self.images.absolute_part(span),
                    stamps,
                    (lot - span.start).tolist(),
                    span.start,
                )

        n_computed = 0
        n_known = len(self.images) - len(positions)
        with progress(len(self.images), "extract", self.extractor.verbose, n_known) as bar:
            tasks = _dask.run_tasks(self.client, compute_part_on_worker, common, jobs())
            for n_of_part, n_done in tasks:
                n_computed += n_of_part
                bar.update(n_done)
        return n_computed

    def _assemble(self, parts):
        """Make the file of all parts; return the errors."""
        errors = {}
        for number in range(len(parts)):
            closed = parts.peek(number)
            if closed is None:
                raise DamagedPartError(number)
            errors |= closed[1]
        skips = self.on_error == "skip"
        manifest = self.manifest | {
            "n_rows": len(self.images) - (len(errors) if skips else 0),
            "on_error": self.on_error if errors else None,
            "errors": {str(position): errors[position] for position in sorted(errors)},
            "stamps": [self._digest_stamps(parts.span(k), errors) for k in range(len(parts))],
        }
        with self._explained():
            self._clear(only=ASSEMBLED)
            files = self.form.write(self.folder, manifest, self._blocks(parts, errors, manifest))
            table = self.folder / f"{ASSEMBLED}{ERRORS}"
            if errors:
                write_errors(table, [self._describe_error(i, errors) for i in sorted(errors)])
            write_whole(self.folder / _REPLACING, [])
            if errors:
                os.replace(table, f"{self.to}{ERRORS}")
            for file, target in zip(files, self.form.files(self.to), strict=True):
                if target.is_dir():
                    self._clear(only=_REPLACED)  # of a call that was stopped right here
                    os.rename(target, self.folder / _REPLACED)
                os.replace(file, target)
            if not errors:
                Path(f"{self.to}{ERRORS}").unlink(missing_ok=True)
            sync(self.to.parent)
        self._clear()
        return errors

    def _blocks(self, parts, errors, manifest):
        """Yield the rows of all parts in blocks; what is yielded is used again for the next."""
        n_block = block_rows(self.row_shape, self.dtype)
        n_block = min(n_block, max(1, manifest["n_rows"]))
        block = np.empty((n_block, *self.row_shape), self.dtype)
        start, positions = 0, []
        for number in range(len(parts)):
            span, rows = parts.span(number), parts.read(number).rows
            kept = np.asarray(span)
            if self.on_error == "skip":
                kept = np.array([position for position in span if position not in errors], int)
                rows = rows[kept - span.start]
            while len(rows):
                n_taken = min(n_block - len(positions), len(rows))
                block[len(positions) : len(positions) + n_taken] = rows[:n_taken]
                positions += kept[:n_taken].tolist()
                rows, kept = rows[n_taken:], kept[n_taken:]
                if len(positions) == n_block:
                    yield Block(start, block, self._columns(positions, errors))
                    start, positions = start + n_block, []
        if positions:
            yield Block(start, block[: len(positions)], self._columns(positions, errors))

    def _columns(self, positions, errors):
        columns = {}
        if self.images.kind == "path":
            columns["path"] = [as_text(self.images.path(position)) for position in positions]
        if self.labels[0] is not None:
            columns["label"] = self.labels[0][positions]
        columns["error"] = [errors.get(position) for position in positions]
        return columns

    def _describe_error(self, position, errors):
        label = "" if self.labels[0] is None else self.labels[0][position]
        return position, as_text(self.images.path(position)), label, errors[position]

    # --- what is there already -------------------------------------------------------------------

    def _look_at_output(self):
        """Return the manifest of the finished file; None if there is none."""
        target = self.form.files(self.to)[-1]
        found = self.form.read_manifest(target) if os.path.lexists(target) else None
        if found is not None and found.get("version") != VERSION:
            found = None
        if found is None:
            others = [path for path in self.form.files(self.to) if os.path.lexists(path)]
            # Beside a file that was removed, ours may be left.
            if target not in others and self.form.read_manifest_beside(target) is not None:
                others = []
            table = Path(f"{self.to}{ERRORS}")
            if os.path.lexists(table) and not is_of_errors(table):
                others.append(table)
            if others:
                raise FileExistsError(
                    f"{str(others[0])!r} is there already, and is no file of extract. Nothing was "
                    "changed. Remove it or choose another name."
                )
        return found

    def _is_finished(self, found):
        """Tell whether nothing is left to be done; raise if the file is not what was asked for."""
        self._check_manifest(found, f"{str(self.to)!r} was made")
        errors = errors_of(found)
        parts = self._parts()
        for number, digest in enumerate(found["stamps"]):
            span = parts.span(number)
            if digest != self._digest_stamps(span, errors):
                raise ValueError(
                    f"{str(self.to)!r} was made of other images: at least one of those in rows "
                    f"{span[0]} to {span[-1]} of X ({first_few(self._names(span))}) has changed "
                    f"since. {self._remedy()}"
                )
        if not errors:
            return True
        if self.retry_errors:
            return False
        if self.on_error == "raise":
            raise self._known_error(errors)
        if self.on_error != found["on_error"]:
            raise ValueError(
                f"{str(self.to)!r} was made with on_error={found['on_error']!r}, now it is "
                f"{self.on_error!r}, and {len(errors)} images cannot be read. {self._remedy()}"
            )
        return True

    def _read_manifest(self):
        """Return the manifest of an unfinished run; None if there is none."""
        try:
            return json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise ValueError(
                f"{str(self.folder / MANIFEST)!r} is damaged. Remove the folder "
                f"{str(self.folder)!r}, and the features are computed anew."
            ) from None

    def _begin(self, begun, found):
        """Bind the working folder to this job; return its parts."""
        if found is not None:
            self._check_manifest(found, f"{str(self.to)!r} was made")
        if begun is not None:
            is_empty = next(self.folder.glob("part-*"), None) is None
            # Of an unfinished run that has computed nothing, nothing can be mixed up.
            if not (is_empty and found is None):
                self._check_manifest(begun, f"{str(self.folder)!r} was begun")
        parts = self._parts()
        with self._explained():
            parts.sweep()
            if begun != self.manifest:
                text = json.dumps(self.manifest, indent=1) + "\n"
                write_whole(self.folder / MANIFEST, [text.encode()])
            if found is not None and not (self.folder / _REPLACING).exists():
                self._restore(parts, found)
        return parts

    def _restore(self, parts, found):
        """Take the finished file apart again, to compute what failed."""
        errors = errors_of(found)
        failed = sorted(errors) if found["on_error"] == "skip" else []
        rows = self.form.read_rows(self.to, found, range(found["n_rows"]))
        for number in range(len(parts)):
            if parts.peek(number) is not None:
                continue
            span = parts.span(number)
            known = {position: errors[position] for position in span if position in errors}
            stamps = self._stamps()[span.start : span.stop]
            part = Part(np.full((len(span), *self.row_shape), np.nan, self.dtype), stamps, known)
            start, stop = (
                position - bisect.bisect_left(failed, position)
                for position in (span.start, span.stop)
            )
            if failed:
                kept = [position - span.start for position in span if position not in errors]
                part.rows[kept] = rows[start:stop]
            else:
                part.rows[:] = rows[start:stop]
            parts.write(number, part)

    def _clear(self, only=""):
        """Remove what is ours from the working folder, the manifest first."""
        ours = (MANIFEST, _REPLACING, _REPLACED, ASSEMBLED, "part-")
        if not only:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        for path in list(self.folder.iterdir()):
            if path.name.startswith(only or ours):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    # --- what it is bound to ---------------------------------------------------------------------

    def _make_manifest(self):
        extractor, images = self.extractor, self.images
        values, label_dtype, target_names = self.labels
        row_bytes = self.n_features * np.dtype(self.dtype).itemsize
        names = hashlib.sha256()
        for name in self._names(range(len(images))) if images.kind == "path" else ():
            names.update(name.encode("utf-8", "surrogatepass") + b"\0")
        functions = {
            name: describe_function(function)
            for name, function in (
                ("pooling", extractor.pooling),
                ("preprocessing", extractor.preprocessing),
            )
            if function is not None
        }
        columns = ["path"] if images.kind == "path" else []
        columns += ["label"] if values is not None else []
        manifest = {
            "version": VERSION,
            "format": self.form.name,
            "dtype": self.dtype,
            "part_size": self.part_size or max(1, min(_PART_ROWS, _PART_BYTES // row_bytes)),
            "n_images": len(images),
            "row_shape": self.row_shape,
            "columns": [*columns, "error"],
            "names": names.hexdigest(),
            "labels": None if values is None else digest_of_text(json.dumps(values.tolist())),
            "label_dtype": label_dtype,
            "target_names": target_names,
            "heads": None if extractor.gives_maps else extractor.column_origins(),
            "feature_names": None if self.steps is None else self.steps.names,
            "steps": None if self.steps is None else self.steps.digest,
            "reading": images.reading(),
            "functions": functions,
            "recipe": [json.loads(recipe) for recipe in extractor.fingerprints],
        }
        # As it is read back: tuples become lists.
        return json.loads(json.dumps(manifest))

    def _parts(self):
        return Parts(
            folder=self.folder,
            key=digest_of_text(json.dumps(self.manifest, sort_keys=True)),
            n_images=len(self.images),
            part_size=self.manifest["part_size"],
            row_shape=self.row_shape,
            dtype=self.dtype,
        )

    def _check_manifest(self, other, what):
        """Raise if a finished or unfinished run was about something else."""
        if self.part_size is None and isinstance(other.get("part_size"), int):
            self.manifest["part_size"] = other["part_size"]
        changes = differences(other, self.manifest)
        if changes:
            raise ValueError(
                f"{what} with other images or settings: {'; '.join(changes)}. {self._remedy()}"
            )

    def _remedy(self):
        there = [path for path in (self.to, self.folder) if os.path.lexists(path)]
        return (
            "Features of different origin are never mixed: remove "
            f"{' and '.join(repr(str(path)) for path in there)}, or choose another name."
        )

    def _stamps(self):
        if self._known_stamps is None:
            stamps = b"".join(map(self.images.stamp, range(len(self.images))))
            self._known_stamps = np.frombuffer(stamps, np.uint8).reshape(-1, STAMP)
        return self._known_stamps

    def _digest_stamps(self, span, errors):
        stamps = self._stamps()[span.start : span.stop].copy()
        stamps[[position - span.start for position in span if position in errors]] = 0
        return hashlib.sha256(stamps).hexdigest()[:16]

    def _check_unchanged(self, span, stamps, failed):
        now = self._stamps()[span.start : span.stop]
        changed = [
            span[place]
            for place in np.flatnonzero((now != stamps).any(axis=1)).tolist()
            if span[place] not in failed
        ]
        if changed:
            raise ValueError(
                f"{len(changed)} images have changed since {str(self.folder)!r} was begun and "
                f"their features computed: {first_few(self._names(changed))}. {self._remedy()}"
            )

    def _names(self, positions):
        return [self.images.name(position) for position in positions]

    def _error(self, position, errors):
        return ImageError(self.images.name(position), errors[position])

    def _known_error(self, errors):
        """Return the error for images that failed in an earlier call."""
        position = min(errors)
        others = f" {len(errors) - 1} more cannot be read." if len(errors) > 1 else ""
        return ImageError(
            self.images.name(position),
            f"{errors[position]}, as an earlier call with another on_error found.{others} "
            "retry_errors=True computes them again",
        )

    @contextlib.contextmanager
    def _explained(self):
        """Say what to do about a disk that cannot be written to."""
        try:
            yield
        except OSError as error:
            raise explain(error, self.folder) from error
