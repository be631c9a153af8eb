"""Files of features: .npy with a table beside it, Parquet, Zarr. They know nothing of images.

The only room that knows pyarrow and zarr. A format *writes* a whole file from blocks of rows in
bounded memory, under another name, and *reads* one, or some rows of it. In each file stands a
manifest, which says what its rows are; a file without one is not ours.
"""

import csv
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._csv import csv_writer
from sklearn_cnnfeat._parts import sync

# Raised whenever files are written in another way.
VERSION = 1
# What stands behind the name of the table of failed images.
ERRORS = ".errors.csv"

# Bytes of rows that are written, and can be read, at once.
BLOCK_BYTES = 16 * 1024**2

_MANIFEST = "sklearn_cnnfeat"
# What a file is called until it is whole.
ASSEMBLED = "assembled"


@dataclass
class Block:
    """Rows that follow each other in the file.

    Attributes
    ----------
    start : int
        Row of the file that the first goes to.
    rows : ndarray of shape (n, *row_shape)
        The features.
    columns : dict
        For each of "path", "label" and "error" that there is: a list or array of n values. An
        error is None where there was none, a path where none was given.
    """

    start: int
    rows: np.ndarray
    columns: dict


def block_rows(row_shape, dtype):
    """Return how many rows go into a block."""
    row_bytes = int(np.prod(row_shape)) * np.dtype(dtype).itemsize
    return max(1, min(65_536, BLOCK_BYTES // max(1, row_bytes)))


def as_text(name):
    """Return a file's name as text that any file can hold: UTF-8 without null characters."""
    if name is None:
        return None
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


class _Format:
    # What stands behind the name of each file, the one with the features last.
    suffixes = ("",)
    library = None

    def require(self):
        """Raise if what writes and reads the format is not installed."""
        if not self.is_installed():
            raise ImportError(
                f"{self.name} files need {self.library}: pip install "
                f'"sklearn-cnnfeat[{self.extra}]". The suffix .npy needs nothing.'
            )

    def is_installed(self):
        """Tell whether the format can be written and read."""
        return self.library is None or importlib.util.find_spec(self.library) is not None

    def read_manifest_beside(self, to):
        """Return the manifest that is left of a file of ours that is gone; None where none is."""
        return None

    def files(self, to):
        """Return the paths of all files that make up `to`."""
        return [Path(f"{to}{suffix}") for suffix in self.suffixes]


class NpyFormat(_Format):
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
                writer.writerows(zip(*map(_plain, block.columns.values()), strict=True))
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


class ParquetFormat(_Format):
    """One table; the features are lists of a fixed length, the manifest is metadata."""

    name = "parquet"
    library = "pyarrow"
    extra = "parquet"

    def write(self, folder, manifest, blocks):
        """Write the blocks into a folder; return the files, in the order of `suffixes`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        (n_columns,) = manifest["row_shape"]
        label = manifest["label_dtype"]
        types = {
            "path": pa.string(),
            "label": pa.string()
            if label in (None, "str")
            else pa.from_numpy_dtype(np.dtype(label)),
            "error": pa.string(),
        }
        features = pa.list_(pa.from_numpy_dtype(np.dtype(manifest["dtype"])), n_columns)
        fields = [pa.field(name, types[name]) for name in manifest["columns"]]
        schema = pa.schema(
            [*fields, pa.field("features", features)],
            metadata={_MANIFEST: json.dumps(manifest)},
        )
        file = folder / ASSEMBLED
        # Through a file of our own: its errors are those of the system.
        with (
            open(file, "wb") as stream,
            pq.ParquetWriter(
                stream,
                schema,
                compression="zstd",
                use_dictionary=[name for name in manifest["columns"] if name != "path"],
                write_statistics=manifest["columns"],
            ) as writer,
        ):
            for block in blocks:
                columns = [
                    pa.array(block.columns[name], types[name]) for name in manifest["columns"]
                ]
                values = pa.array(np.ascontiguousarray(block.rows).reshape(-1))
                columns.append(pa.FixedSizeListArray.from_arrays(values, n_columns))
                table = pa.table(columns, schema=schema)
                writer.write_table(table, row_group_size=max(1, len(block.rows)))
        sync(file)
        return [file]

    def read_manifest(self, to):
        """Return the manifest of a file of ours; None for any other."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            metadata = pq.read_schema(to).metadata or {}
            return json.loads(metadata[_MANIFEST.encode()])
        except (OSError, ValueError, KeyError, pa.ArrowException):
            return None

    def read_rows(self, to, manifest, rows):
        """Return some rows as an array in memory."""
        out = np.empty((len(rows), *manifest["row_shape"]), manifest["dtype"])
        for start, table in self._groups(to, rows, ["features"]):
            for chunk in table.column("features").chunks:
                values = chunk.flatten().to_numpy(zero_copy_only=False)
                values = values.reshape(len(chunk), *manifest["row_shape"])
                out[start : start + len(chunk)] = values
                start += len(chunk)
        return out

    def read_columns(self, to, manifest, rows):
        """Return the columns beside the features, as lists."""
        columns = {name: [] for name in manifest["columns"]}
        for _, table in self._groups(to, rows, list(columns)):
            for name, values in columns.items():
                values.extend(table.column(name).to_pylist())
        return columns

    def _groups(self, to, rows, columns):
        """Yield, group by group, the wanted rows and where the first of them goes."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(to) as file:
            end = 0
            for group in range(file.num_row_groups):
                start, end = end, end + file.metadata.row_group(group).num_rows
                first, last = max(start, rows.start), min(end, rows.stop)
                if first < last:
                    table = file.read_row_group(group, columns=columns)
                    yield first - rows.start, table.slice(first - start, last - first)


class ZarrFormat(_Format):
    """A group of arrays, features in chunks of whole rows; the manifest is an attribute."""

    name = "zarr"
    library = "zarr"
    extra = "zarr"

    def write(self, folder, manifest, blocks):
        """Write the blocks into a folder; return the files, in the order of `suffixes`."""
        import zarr

        n_rows, row_shape = manifest["n_rows"], tuple(manifest["row_shape"])
        n_block = max(1, min(n_rows, block_rows(row_shape, manifest["dtype"])))
        path = folder / ASSEMBLED
        group = zarr.create_group(str(path), zarr_format=3, attributes={_MANIFEST: manifest})
        features = group.create_array(
            "features",
            shape=(n_rows, *row_shape),
            chunks=(n_block, *row_shape),
            dtype=manifest["dtype"],
        )
        label = manifest["label_dtype"]
        columns = {
            name: group.create_array(
                name,
                shape=(n_rows,),
                chunks=(n_block,),
                dtype=label if name == "label" and label != "str" else str,
            )
            for name in manifest["columns"]
        }
        for block in blocks:
            rows = slice(block.start, block.start + len(block.rows))
            features[rows] = block.rows
            for name, array in columns.items():
                values = block.columns[name]
                if name != "label":
                    values = _plain(values)
                array[rows] = np.asarray(values, object if array.dtype.kind in "OTU" else None)
        for where, _, names in os.walk(path):
            for name in names:
                sync(os.path.join(where, name))
            sync(where)
        return [path]

    def read_manifest(self, to):
        """Return the manifest of a file of ours; None for any other."""
        try:
            text = (Path(to) / "zarr.json").read_text(encoding="utf-8")
            manifest = json.loads(text)["attributes"][_MANIFEST]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return manifest if isinstance(manifest, dict) else None

    def read_rows(self, to, manifest, rows):
        """Return all rows as a Zarr array, which reads what is asked of it, or some in memory."""
        import zarr

        features = zarr.open_group(str(to), mode="r")["features"]
        return features if len(rows) == manifest["n_rows"] else features[rows.start : rows.stop]

    def read_columns(self, to, manifest, rows):
        """Return the columns beside the features, as lists."""
        import zarr

        group = zarr.open_group(str(to), mode="r")
        return {name: group[name][rows.start : rows.stop].tolist() for name in manifest["columns"]}


FORMATS = {form.name: form for form in (ParquetFormat(), NpyFormat(), ZarrFormat())}


_FAILED = ("position", "path", "label", "error")


def write_errors(file, failed):
    """Write the table of failed images: rows of (position, path, label, error)."""
    with open(file, "w", encoding="utf-8", newline="") as table:
        writer = csv_writer(lambda line: table.write(line + "\n"))
        writer.writerow(_FAILED)
        writer.writerows(failed)
    sync(file)


def is_of_errors(file):
    """Tell whether `write_errors` wrote a file."""
    try:
        with open(file, "rb") as table:
            return table.readline(100) == (",".join(_FAILED) + "\n").encode()
    except OSError:
        return False


def read_errors(file):
    """Return what `write_errors` wrote; nothing if there is no such file."""
    try:
        with open(file, encoding="utf-8", newline="") as table:
            rows = list(csv.reader(table))[1:]
    except FileNotFoundError:
        return []
    return [(int(position), *others) for position, *others in rows]


def _plain(values):
    """Return values as a file of text takes them: nothing for None."""
    return ["" if value is None else value for value in values]
