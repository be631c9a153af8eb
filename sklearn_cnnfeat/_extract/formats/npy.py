"""Features in a .npy file, with a CSV table and a JSON manifest beside it."""

import csv
import json
import os
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._csv import csv_writer
from sklearn_cnnfeat._extract.formats.base import ASSEMBLED, Format, describe_files, plain
from sklearn_cnnfeat._extract.manifest import parse_manifest
from sklearn_cnnfeat._files import sync


class NpyFormat(Format):
    """An array that can be memory-mapped; beside it a CSV table, and the manifest as JSON."""

    name = "npy"
    suffixes = (".json", ".csv", "")

    def write(self, folder, manifest, blocks):
        """Write the blocks into a folder; return the files, in the order of `suffixes`."""
        files = [folder / f"{ASSEMBLED}{suffix}" for suffix in self.suffixes]
        manifest_file, table_file, features_file = files
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
        pieces = self._pieces(folder / ASSEMBLED, manifest)
        manifest = manifest | {"files": describe_files(pieces)}
        manifest_file.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for file in files:
            sync(file)
        return files

    def read_manifest(self, to):
        """Return the manifest of a file of ours; None for any other."""
        manifest = self.read_manifest_beside(to)
        if manifest is None:
            return None
        try:
            shape, dtype, _ = _read_header(to)
        except (OSError, ValueError):
            return None
        is_ours = list(shape[1:]) == manifest["row_shape"] and dtype == manifest["dtype"]
        return manifest if is_ours else None

    def read_manifest_beside(self, to):
        file = f"{to}.json"
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        return parse_manifest(text, file, self.name)

    def find_gaps(self, to, manifest):
        shape, dtype, start = _read_header(to)
        if shape[0] != manifest["n_rows"]:
            raise ValueError(
                f"{str(to)!r} has {shape[0]:,} rows and {str(to) + '.json'!r} speaks of "
                f"{manifest['n_rows']:,}: they do not belong together, or are just being replaced."
            )
        gaps = super().find_gaps(to, manifest)
        if not gaps and os.path.getsize(to) != start + dtype.itemsize * int(np.prod(shape)):
            gaps = [str(to)]
        return gaps

    def read_rows(self, to, manifest, rows):
        """Return some rows, mapped from the file."""
        return np.load(to, mmap_mode="r", allow_pickle=False)[rows.start : rows.stop]

    def read_columns(self, to, manifest, rows):
        """Return the columns beside the features, as lists."""
        columns = {name: [] for name in manifest["columns"]}
        n_found = 0
        with open(f"{to}.csv", encoding="utf-8", newline="") as table:
            reader = csv.reader(table)
            next(reader)
            for row, values in enumerate(reader):
                n_found += 1
                if row in rows:
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
        if n_found != manifest["n_rows"]:
            raise ValueError(f"{n_found:,} rows instead of {manifest['n_rows']:,} in the table")
        return columns

    def _pieces(self, to, manifest):
        yield "table", Path(f"{to}.csv")
        yield "features", Path(to)


def _read_header(path):
    """Return shape and dtype of a .npy file, and where its numbers begin."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"version {version} of the .npy format")
        shape, is_fortran, dtype = read(file)
        if is_fortran or not shape:
            raise ValueError("not rows that follow each other")
        return shape, dtype, file.tell()
