"""Features in a Parquet file; the only module that imports pyarrow."""

import json

import numpy as np

from sklearn_cnnfeat._extract.formats.base import ASSEMBLED, MANIFEST, Format
from sklearn_cnnfeat._files import sync


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
            metadata={MANIFEST: json.dumps(manifest)},
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
            return json.loads(metadata[MANIFEST.encode()])
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
