"""Features in a .npy file, with a CSV table and a JSON manifest beside it."""

import csv
import json
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._csv import csv_writer
from sklearn_cnnfeat._extract.formats.base import ASSEMBLED, Format, plain
from sklearn_cnnfeat._files import sync


class NpyFormat(Format):
    """An array that can be memory-mapped; beside it a CSV table, and the manifest as JSON."""

    name = "npy"
    suffixes = (".json", ".csv", "")

    def write(self, folder, manifest, blocks):
        """Write the blocks into a folder; return the files, in the order of `suffixes`."""
        files = [folder / f"{ASSEMBLED}{suffix}" for suffix in self.suffixes]
        manifest_file, table_file, features_file = files
        manifest_file.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        with (
            open(features_file, "wb") as features,
            open(table_file, "w", encoding="utf-8", newline="") as table,
        ):
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": (manifest["n_rows"], *manifest["row_shape"]),
            }
            np.lib.format.write_array_header_1_0(features, header)
            writer = csv_writer(lambda line: table.write(line + "\n"))
            writer.writerow(manifest["columns"])
            for block in blocks:
                rows = np.ascontiguousarray(block.rows, dtype)
                features.write(rows.reshape(-1).view(np.uint8).data)
                writer.writerows(zip(*map(plain, block.columns.values()), strict=True))
        for file in files:
            sync(file)
        return files

    def read_manifest(self, to):
        """Return the manifest of a file of ours; None for any other."""
        manifest = self.read_manifest_beside(to)
        if manifest is None:
            return None
        try:
            shape = np.load(to, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError):
            return None
        return manifest if list(shape[1:]) == manifest["row_shape"] else None

    def read_manifest_beside(self, to):
        """Return the manifest beside a file of ours that is there or gone; None for any other."""
        try:
            manifest = json.loads(Path(f"{to}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_ours = isinstance(manifest, dict) and manifest.get("format") == self.name
        return manifest if is_ours and "row_shape" in manifest else None

    def read_rows(self, to, manifest, rows):
        """Return some rows, mapped from the file."""
        features = np.load(to, mmap_mode="r", allow_pickle=False)
        if len(features) != manifest["n_rows"]:
            raise ValueError(
                f"{str(to)!r} has {len(features):,} rows and {str(to) + '.json'!r} speaks of "
                f"{manifest['n_rows']:,}: they do not belong together, or are just being replaced."
            )
        return features[rows.start : rows.stop]

    def read_columns(self, to, manifest, rows):
        """Return the columns beside the features, as lists."""
        columns = {name: [] for name in manifest["columns"]}
        with open(f"{to}.csv", encoding="utf-8", newline="") as table:
            reader = csv.reader(table)
            next(reader)
            for row, values in enumerate(reader):
                if row in rows:
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
        return columns
