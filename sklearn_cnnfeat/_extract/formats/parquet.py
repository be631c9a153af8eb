"""Features in a Parquet file; the only module that imports pyarrow."""

import json

import numpy as np

from sklearn_cnnfeat._extract.formats.base import ASSEMBLED, MANIFEST, Format, missing_digests
from sklearn_cnnfeat._extract.manifest import parse_manifest
from sklearn_cnnfeat._files import sync

# Marks files whose pages have checksums.
_CHECKSUMS = b"sklearn_cnnfeat_page_checksums"


class ParquetFormat(Format):
    """One table; the features are lists of a fixed length, the manifest is metadata."""

    name = "parquet"
    library = "pyarrow"
    extra = "parquet"

    def write(self, folder, manifest, blocks):
        """Write the blocks into a folder; return the files, in the order of `suffixes`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        (n_columns,) = manifest["row_shape"]
        metadata = {MANIFEST: json.dumps(manifest), _CHECKSUMS: b"crc32"}
        schema = pa.schema(_fields(manifest), metadata=metadata)
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
                write_page_checksum=True,
            ) as writer,
        ):
            for block in blocks:
                columns = [
                    pa.array(block.columns[name], schema.field(name).type)
                    for name in manifest["columns"]
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
            text = (pq.read_schema(to).metadata or {})[MANIFEST.encode()].decode()
        except (OSError, ValueError, KeyError, pa.ArrowException):
            return None
        return parse_manifest(text, to, self.name)

    def find_gaps(self, to, manifest):
        """Return nothing: a Parquet file that is cut off has no manifest.

        Raises `ValueError` where the table does not fit the manifest.
        """
        import pyarrow.parquet as pq

        with pq.ParquetFile(to) as file:
            found, n_rows = file.schema_arrow, file.metadata.num_rows
        fields = _fields(manifest)
        is_ours = found.names == [field.name for field in fields] and all(
            found.field(field.name).type == field.type for field in fields
        )
        if not is_ours or n_rows != manifest["n_rows"]:
            raise ValueError(
                f"The table in {str(to)!r} does not fit its manifest, which speaks of "
                f"{manifest['n_rows']:,} rows of {', '.join(field.name for field in fields)}: one "
                "of them was altered."
            )
        return []

    def verify(self, to, manifest):
        """Raise `ValueError` where a finished file is not what `extract` wrote."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(to, page_checksum_verification=True) as file:
            if _CHECKSUMS not in (file.schema_arrow.metadata or {}):
                raise missing_digests(to)
            try:
                for _ in file.iter_batches():
                    pass
            except (OSError, pa.ArrowException) as error:
                raise ValueError(
                    f"{str(to)!r} is damaged ({error}). Copy it again, or remove it and extract "
                    "again."
                ) from error

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


def _fields(manifest):
    """Return the columns of the table that a manifest is about."""
    import pyarrow as pa

    label = manifest["label_dtype"]
    types = {
        "path": pa.string(),
        "label": pa.string() if label in (None, "str") else pa.from_numpy_dtype(np.dtype(label)),
        "error": pa.string(),
    }
    # A file holds vectors; the length of anything else fits no table.
    n_columns = manifest["row_shape"][0] if len(manifest["row_shape"]) == 1 else -1
    features = pa.list_(pa.from_numpy_dtype(np.dtype(manifest["dtype"])), n_columns)
    fields = [pa.field(name, types[name]) for name in manifest["columns"]]
    return [*fields, pa.field("features", features)]
