"""Features in a Zarr group; the only module that imports zarr.

Files may come from anybody, and the library opens arrays of all kinds, some of which hold pickles.
So the metadata of each array is checked here, and the library opens only what `extract` writes.
"""

import json
import math
import os
import uuid
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._extract.formats.base import (
    ASSEMBLED,
    MANIFEST,
    Format,
    block_rows,
    describe_files,
    is_whole,
    plain,
)
from sklearn_cnnfeat._extract.manifest import check_manifest, errors_of
from sklearn_cnnfeat._files import sync
from sklearn_cnnfeat._warn import warn

_METADATA = "zarr.json"
# Limit of metadata in bytes for one array; it normally has some hundred.
_MOST_METADATA = 2**20


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
        # A new name each time: what Zarr does in the background outlives an error or an interrupt.
        path = folder / f"{ASSEMBLED}-{uuid.uuid4().hex}"
        group = zarr.create_group(str(path), zarr_format=3)
        arrays = {
            name: group.create_array(
                name,
                shape=(n_rows, *shape),
                chunks=(n_block, *shape),
                dtype=str if dtype == "str" else dtype,
                # Chunks of nothing but zeros, too: one that is not there is missing.
                config={"write_empty_chunks": True},
            )
            for name, (shape, dtype) in _arrays(manifest).items()
        }
        for block in blocks:
            rows = slice(block.start, block.start + len(block.rows))
            arrays["features"][rows] = block.rows
            for name in manifest["columns"]:
                values = block.columns[name]
                if name != "label":
                    values = plain(values)
                is_text = arrays[name].dtype.kind in "OTU"
                arrays[name][rows] = np.asarray(values, object if is_text else None)
        pieces = self._pieces(path, manifest)
        group.attrs[MANIFEST] = manifest | {"files": describe_files(pieces)}
        for where, _, names in os.walk(path):
            for name in names:
                sync(os.path.join(where, name))
            sync(where)
        return [path]

    def read_manifest(self, to):
        """Return the manifest of a file of ours; None for any other."""
        file = Path(to) / _METADATA
        if not is_whole(file):
            return None
        group = _read_json(file)
        is_group = isinstance(group, dict) and group.get("zarr_format") == 3
        attributes = group.get("attributes") if is_group else None
        if not isinstance(attributes, dict):
            return None
        return check_manifest(attributes.get(MANIFEST), to, self.name)

    def find_gaps(self, to, manifest):
        arrays = [f"{name}/{_METADATA}" for name in _arrays(manifest)]
        gaps = [path for path in map(Path(to).joinpath, arrays) if not is_whole(path)]
        if gaps:
            return list(map(str, gaps))
        if "files" in manifest:
            return super().find_gaps(to, manifest)
        self._warn_of_missing_chunks(to, manifest)
        return []

    def _warn_of_missing_chunks(self, to, manifest):
        """Warn where an earlier version may have left out a chunk of zeros, or a copy lost one."""
        n_block = _chunk_rows(to, manifest, "error")
        failed = errors_of(manifest) if manifest["on_error"] == "nan" else {}
        with_errors = {f"error/c/{position // n_block}" for position in failed}
        for name, path in self._pieces(to, manifest):
            is_empty_text = name.startswith("error/") and name not in with_errors
            if is_whole(path) or is_empty_text:
                continue
            warn(
                f"{str(path)!r} is missing. Either all values in this chunk are zero, which an "
                "earlier version of sklearn-cnnfeat did not write, or it was lost, and zeros are "
                "read instead. To be sure, remove the file and extract again.",
            )
            return

    def read_rows(self, to, manifest, rows):
        """Return all rows as a Zarr array, which reads what is asked of it, or some in memory."""
        features = _open(to, manifest, "features")
        return features if len(rows) == manifest["n_rows"] else features[rows.start : rows.stop]

    def read_columns(self, to, manifest, rows):
        """Return the columns beside the features, as lists."""
        return {
            name: _open(to, manifest, name)[rows.start : rows.stop].tolist()
            for name in manifest["columns"]
        }

    def _pieces(self, to, manifest):
        for name, (row_shape, _) in _arrays(manifest).items():
            yield f"{name}/{_METADATA}", Path(to, name, _METADATA)
            n_block = _chunk_rows(to, manifest, name)
            # Chunks hold whole rows.
            rest = ["0"] * len(row_shape)
            for number in range(math.ceil(manifest["n_rows"] / n_block)):
                piece = "/".join([name, "c", str(number), *rest])
                yield piece, Path(to) / piece


def _arrays(manifest):
    """Return the arrays of a file: for each name the shape of a row, and the dtype."""
    label = manifest["label_dtype"]
    columns = {name: ((), label if name == "label" else "str") for name in manifest["columns"]}
    return {"features": (tuple(manifest["row_shape"]), manifest["dtype"])} | columns


def _open(to, manifest, name):
    """Open an array after a look at what kind it is."""
    import zarr

    _read_array(to, manifest, name)
    # As format 3: a folder may hold metadata of another beside it.
    return zarr.open_array(os.path.join(to, name), mode="r", zarr_format=3)


def _read_array(to, manifest, name):
    """Return the metadata of an array; raise `ValueError` where `extract` did not write it."""
    path = Path(to) / name / _METADATA
    row_shape, dtype = _arrays(manifest)[name]
    is_small = is_whole(path) and os.path.getsize(path) <= _MOST_METADATA
    metadata = _read_json(path) if is_small else None
    if not isinstance(metadata, dict) or not _is_ours(metadata, manifest, row_shape, dtype):
        raise ValueError(
            f"{str(path)!r} describes another array than extract writes, and is not opened. Copy "
            "the file again, or remove it and extract again."
        )
    return metadata


def _chunk_rows(to, manifest, name):
    """Return the number of rows in a chunk of an array."""
    grid = _read_array(to, manifest, name)["chunk_grid"]
    return grid["configuration"]["chunk_shape"][0]


def _is_ours(metadata, manifest, row_shape, dtype):
    is_text = dtype == "str"
    grid = metadata.get("chunk_grid")
    try:
        (n_block, *rest) = grid["configuration"]["chunk_shape"]
    except (KeyError, TypeError, ValueError):
        return False
    codecs = metadata.get("codecs")
    if not isinstance(codecs, list) or not all(isinstance(codec, dict) for codec in codecs):
        return False
    endian = [codec.get("configuration") for codec in codecs[:1]]
    return (
        metadata.get("zarr_format") == 3
        and metadata.get("node_type") == "array"
        and metadata.get("data_type") == ("string" if is_text else np.dtype(dtype).name)
        and metadata.get("shape") == [manifest["n_rows"], *row_shape]
        and grid == {"name": "regular", "configuration": {"chunk_shape": [n_block, *rest]}}
        and type(n_block) is int
        and 1 <= n_block <= max(1, manifest["n_rows"])
        and rest == list(row_shape)
        and metadata.get("chunk_key_encoding") == _KEYS
        and [codec.get("name") for codec in codecs] == ["vlen-utf8" if is_text else "bytes", "zstd"]
        and endian in ([{"endian": "little"}], [{}], [None])
        and metadata.get("storage_transformers", []) == []
    )


_KEYS = {"name": "default", "configuration": {"separator": "/"}}


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{str(path)!r} is nested too deep.") from None
    except ValueError:
        return None
