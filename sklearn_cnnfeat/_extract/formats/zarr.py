"""Features in a Zarr group; the only module that imports zarr."""

import json
import os
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._extract.formats.base import ASSEMBLED, MANIFEST, Format, block_rows, plain
from sklearn_cnnfeat._files import sync


class ZarrFormat(Format):
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
        group = zarr.create_group(str(path), zarr_format=3, attributes={MANIFEST: manifest})
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
                    values = plain(values)
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
            manifest = json.loads(text)["attributes"][MANIFEST]
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
