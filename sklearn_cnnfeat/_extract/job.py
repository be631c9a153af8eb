"""One extraction: bound to a manifest, computed shard by shard, assembled at the end."""

import json
import os
from dataclasses import dataclass

import numpy as np

from sklearn_cnnfeat._extract.assemble import blocks, take_apart
from sklearn_cnnfeat._extract.cluster import compute_on_cluster
from sklearn_cnnfeat._extract.compute import compute_shards
from sklearn_cnnfeat._extract.manifest import VERSION, default_part_size, differences, errors_of
from sklearn_cnnfeat._extract.output import Output
from sklearn_cnnfeat._extract.records import Records
from sklearn_cnnfeat._extract.shards import DamagedShardError, Shards
from sklearn_cnnfeat._extract.steps import Steps
from sklearn_cnnfeat._extract.workspace import Workspace
from sklearn_cnnfeat._extractor import Extractor
from sklearn_cnnfeat._files import digest_of_text
from sklearn_cnnfeat._functions import describe_function
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._progress import announce
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import UnreadableImageWarning


def make_manifest(extractor, steps, records, form, dtype, part_size):
    """Return everything that the rows of a file depend on, as it is read back from JSON."""
    row_shape = extractor.row_shape if steps is None else (steps.n_columns,)
    callables = {"pooling": extractor.pooling, "preprocessing": extractor.preprocessing}
    manifest = {
        "version": VERSION,
        "format": form.name,
        "dtype": dtype,
        "part_size": part_size or default_part_size(row_shape, dtype),
        "row_shape": row_shape,
        **records.describe(),
        "heads": None if extractor.gives_maps else extractor.column_origins(),
        "feature_names": None if steps is None else steps.names,
        "steps": None if steps is None else steps.digest,
        "functions": {
            name: describe_function(function)
            for name, function in callables.items()
            if function is not None
        },
        "recipe": [json.loads(recipe) for recipe in extractor.fingerprints],
    }
    # Tuples become lists.
    return json.loads(json.dumps(manifest))


@dataclass
class Job:
    """What is to be done.

    `keeps_part_size` tells that a run that was begun with shards of another size goes on with
    these, `retry_errors` that images which failed in an earlier call are computed again.
    """

    output: Output
    workspace: Workspace
    extractor: Extractor
    steps: Steps | None
    records: Records
    manifest: dict
    keeps_part_size: bool
    on_error: str
    retry_errors: bool
    client: object = None

    def run(self):
        """Make the file; return the errors and the number of computed images."""
        if not self.workspace.folder.exists():
            found = self.output.find()
            if found is not None and self._is_finished(found):
                return errors_of(found), 0
        with self.workspace.locked():
            return self._run()

    def _run(self):
        found = self.output.find()
        begun = self.workspace.read_manifest()
        if begun is None and found is not None and self._is_finished(found):
            self.workspace.clear()
            return errors_of(found), 0
        shards = self._begin(begun, found)
        n_computed, retry = 0, self.retry_errors
        while True:
            try:
                n_computed += self._compute(shards, retry)
                # Retry only once.
                retry = False
                errors = self._assemble(shards)
                break
            except DamagedShardError as error:
                announce(f"shard {error.number} is damaged; it is recomputed.", True)
                shards.path(error.number).unlink(missing_ok=True)
        if errors:
            self._warn_of(errors)
        return errors, n_computed

    def _is_finished(self, found):
        """Return whether the file is complete; raise if it comes from another job."""
        self._check_manifest(found, f"{str(self.output.to)!r} was made")
        errors = errors_of(found)
        shards = self._shards()
        for number, digest in enumerate(found["stamps"]):
            span = shards.span(number)
            if digest != self.records.digest_stamps(span, errors):
                raise ValueError(
                    f"{str(self.output.to)!r} was made of other images: at least one of those in "
                    f"rows {span[0]} to {span[-1]} of X ({self.records.first_names(span)}) has "
                    f"changed since. {self._remedy()}"
                )
        if self.output.find_gaps(found):
            return False
        if not errors:
            return True
        if self.retry_errors:
            return False
        if self.on_error == "raise":
            raise self.records.known_error(errors)
        if self.on_error != found["on_error"]:
            raise ValueError(
                f"{str(self.output.to)!r} was made with on_error={found['on_error']!r}, now it is "
                f"{self.on_error!r}, and {len(errors)} images cannot be read. {self._remedy()}"
            )
        return not self.output.lacks_errors(found)

    def _begin(self, begun, found):
        """Bind the working folder to this job; return its shards."""
        if found is not None:
            self._check_manifest(found, f"{str(self.output.to)!r} was made")
        # Nothing can be mixed up with an unfinished run that has computed nothing.
        if begun is not None and (found is not None or self.workspace.has_shards()):
            self._check_manifest(begun, f"{str(self.workspace.folder)!r} was begun")
        shards = self._shards()
        with self.workspace.explained():
            shards.sweep()
            if begun != self.manifest:
                self.workspace.write_manifest(self.manifest)
            if found is not None and not self.workspace.is_replacing():
                self._take_apart(shards, found)
        return shards

    def _take_apart(self, shards, found):
        """Reuse the rows of the finished file, unless some are missing."""
        gaps = self.output.find_gaps(found)
        if gaps:
            announce(
                f"{str(self.output.to)!r} is incomplete, it lacks {first_few(gaps)}; it is "
                "recomputed.",
                True,
            )
            return
        rows = self.output.form.read_rows(self.output.to, found, range(found["n_rows"]))
        take_apart(shards, self.records, rows, found)

    def _compute(self, shards, retry):
        """Compute what the closed shards lack; return how many images went through the network."""
        errors, positions = {}, []
        for number in range(len(shards)):
            closed = shards.peek(number)
            if closed is None:
                positions.append(np.asarray(shards.span(number)))
                continue
            stamps, failed = closed
            self._check_unchanged(shards.span(number), stamps, failed)
            errors |= failed
            if retry:
                positions.append(np.array(sorted(failed), np.int64))
        if errors and not retry and self.on_error == "raise":
            raise self.records.known_error(errors)
        positions = np.concatenate(positions) if positions else np.empty(0, np.int64)
        if not len(positions):
            return 0
        extractor, records, steps = self.extractor, self.records, self.steps
        if self.client is not None:
            recipe = self.manifest["recipe"]
            return compute_on_cluster(
                self.client, shards, extractor, records, recipe, positions, steps
            )
        stamps = records.stamps(range(len(records)))
        return compute_shards(
            shards, extractor, records.images, stamps, positions.tolist(), steps=steps
        )

    def _assemble(self, shards):
        """Assemble the file from all shards; return the errors."""
        errors = {}
        for number in range(len(shards)):
            closed = shards.peek(number)
            if closed is None:
                raise DamagedShardError(number)
            errors |= closed[1]
        records, skips = self.records, self.on_error == "skip"
        failed = sorted(errors)
        spans = map(shards.span, range(len(shards)))
        manifest = self.manifest | {
            "n_rows": len(records) - (len(errors) if skips else 0),
            "on_error": self.on_error if errors else None,
            "errors": {str(position): errors[position] for position in failed},
            "stamps": [records.digest_stamps(span, errors) for span in spans],
            "paths": records.paths_beyond_text(),
        }
        with self.workspace.explained():
            self.output.replace(
                self.workspace,
                manifest,
                blocks(shards, records, errors, manifest["n_rows"], skips),
                [records.describe_error(position, errors) for position in failed],
            )
        self.workspace.clear()
        return errors

    def _shards(self):
        return Shards(
            folder=self.workspace.folder,
            key=digest_of_text(json.dumps(self.manifest, sort_keys=True)),
            n_images=len(self.records),
            part_size=self.manifest["part_size"],
            row_shape=tuple(self.manifest["row_shape"]),
            dtype=self.manifest["dtype"],
        )

    def _check_manifest(self, other, what):
        """Raise if a finished or unfinished run has another manifest."""
        size = other.get("part_size")
        if self.keeps_part_size and type(size) is int and size > 0:
            self.manifest["part_size"] = size
        changes = differences(other, self.manifest)
        if changes:
            raise ValueError(
                f"{what} with other images or settings: {'; '.join(changes)}. {self._remedy()}"
            )

    def _check_unchanged(self, span, stamps, failed):
        changed = self.records.find_changed(span, stamps, failed)
        if changed:
            raise ValueError(
                f"{len(changed)} images have changed since {str(self.workspace.folder)!r} was "
                f"begun and their features computed: {self.records.first_names(changed)}. "
                f"{self._remedy()}"
            )

    def _remedy(self):
        there = [path for path in (self.output.to, self.workspace.folder) if os.path.lexists(path)]
        return (
            "Features of different origin are never mixed: remove "
            f"{' and '.join(repr(str(path)) for path in there)}, or choose another name."
        )

    def _warn_of(self, errors):
        """Warn of images that could not be read."""
        what = "left out" if self.on_error == "skip" else "NaN"
        failed = [str(self.records.error(position, errors)) for position in sorted(errors)]
        warn(
            f"{len(errors)} of {len(self.records)} images could not be read; their rows are "
            f"{what}, and {str(self.output.errors_table)!r} lists them: {first_few(failed)}",
            UnreadableImageWarning,
        )
