"""Finished files that are incomplete, damaged, altered or hostile are reported, and run nothing."""

import json
import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer, extract, load_features
from sklearn_cnnfeat.exceptions import UnreadableImageWarning

FORMATS = ["npy", "parquet"] + (["zarr"] if sys.version_info >= (3, 11) else [])
needs_zarr = pytest.mark.skipif("zarr" not in FORMATS, reason="zarr needs Python 3.11")
N = 12


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    paths = save_photos(tmp_path_factory.mktemp("pictures"), N)
    Path(paths[2]).write_bytes(b"not an image")
    return paths


@pytest.fixture(scope="module")
def cnn(tmp_path_factory, paths):
    network = save_network(tmp_path_factory.mktemp("network") / "small.keras")
    return CNNFeatureTransformer(network, "two", "avg").fit(paths[:2])


def run(paths, to, cnn, **settings):
    settings = {"target": [0] * 6 + [1] * 6, "on_error": "nan", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableImageWarning)
        return extract(paths, to, cnn, part_size=5, verbose=0, **settings)


@pytest.fixture(scope="module")
def originals(tmp_path_factory, paths, cnn):
    """Return a folder with a finished file of each format, in blocks of 4 rows."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn_cnnfeat._extract.formats.base.BLOCK_BYTES", 4 * 8 * 4)
        for form in FORMATS:
            run(paths, folder / f"f.{form}", cnn)
    return folder


@pytest.fixture
def files(originals, tmp_path):
    return Path(shutil.copytree(originals, tmp_path / "files"))


def content(to):
    """Return the bytes of all files that stand for `to`."""
    files = [path for path in to.parent.glob(f"{to.name}*") if path.is_file()]
    files += [path for path in to.rglob("*") if path.is_file()]
    return {str(path.relative_to(to.parent)): path.read_bytes() for path in files}


def alter(to, change):
    """Write the manifest of a file as `change`, a function of it, says: values or JSON text."""
    if to.suffix == ".npy":
        file = Path(f"{to}.json")
        changed = change(json.loads(file.read_text()))
        file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    elif to.suffix == ".zarr":
        file = to / "zarr.json"
        group = json.loads(file.read_text())
        changed = change(group["attributes"]["sklearn_cnnfeat"])
        group["attributes"]["sklearn_cnnfeat"] = "HERE" if isinstance(changed, str) else changed
        text = json.dumps(group)
        file.write_text(text.replace('"HERE"', changed) if isinstance(changed, str) else text)
    else:
        import pyarrow.parquet as pq

        table = pq.read_table(to)
        metadata = table.schema.metadata
        changed = change(json.loads(metadata[b"sklearn_cnnfeat"]))
        text = changed if isinstance(changed, str) else json.dumps(changed)
        table = table.replace_schema_metadata(metadata | {b"sklearn_cnnfeat": text.encode()})
        pq.write_table(table, to)


# --- hostile --------------------------------------------------------------------------------------


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def pickle_codec():
    """Let the libraries run pickles: numcodecs did before 0.16.6, and Zarr where it is allowed."""
    import numcodecs
    import zarr
    from numcodecs.abc import Codec

    class Pickle(Codec):
        codec_id = "pickle"

        def encode(self, values):
            return pickle.dumps(values)

        def decode(self, data, out=None):
            pickle.loads(bytes(data))
            return b""

    before = dict(numcodecs.registry.codec_registry)
    numcodecs.register_codec(Pickle)
    with zarr.config.set({"array.allow_unsafe_pickle_decode": True}):
        yield
    numcodecs.registry.codec_registry.clear()
    numcodecs.registry.codec_registry.update(before)


_V2_ARRAY = {
    "zarr_format": 2,
    "shape": [N],
    "chunks": [N],
    "dtype": "|O",
    "compressor": None,
    "fill_value": "",
    # The library refuses a pickle in the first place, but not behind another filter.
    "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}],
    "order": "C",
    "dimension_separator": ".",
}


@needs_zarr
@pytest.mark.parametrize("column", ["error", "features"])
@pytest.mark.parametrize("where", [".zarray", "zarr.json", "both", "group"])
def test_pickles_in_zarr_never_run(column, where, files, tmp_path, pickle_codec):
    to, marker = files / "f.zarr", tmp_path / "ran"
    array = to / column
    if where == "both":
        (array / ".zarray").write_text(json.dumps(_V2_ARRAY))
    else:
        (array / "zarr.json").unlink()
        (array / (".zarray" if where == "group" else where)).write_text(json.dumps(_V2_ARRAY))
    if where == "group":
        # All of it as format 2, but for the name of the file that says so.
        for other in ("path", "label", "error", "features"):
            (to / other / "zarr.json").unlink(missing_ok=True)
            (to / other / ".zarray").write_text(json.dumps(_V2_ARRAY))
            (to / other / "0").write_bytes(pickle.dumps(Payload(marker)))
        group = json.loads((to / "zarr.json").read_text())
        (to / "zarr.json").write_text(json.dumps(group | {"zarr_format": 2}))
    (array / "0").write_bytes(pickle.dumps(Payload(marker)))
    if where == "both":
        # What extract wrote is there too, and is what is read.
        np.asarray(load_features(to).data[:])
    else:
        with pytest.raises(ValueError, match=r"f\.zarr"):
            np.asarray(load_features(to).data[:])
    assert not marker.exists()
    # The test would notice: the library itself runs it.
    import zarr

    (array / ".zarray").write_text(json.dumps(_V2_ARRAY))
    with pytest.raises(ValueError):
        zarr.open_array(str(array), mode="r", zarr_format=2)[:]
    assert marker.exists()


@needs_zarr
@pytest.mark.parametrize(
    "change",
    [
        {"zarr_format": 2},
        {"node_type": "group"},
        {"data_type": "variable_length_bytes"},
        {"data_type": {"name": "numpy.object"}},
        {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
        {"codecs": [{"name": "numcodecs.pickle"}, {"name": "zstd"}]},
        {"codecs": []},
        {"codecs": 5},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**12]}}},
        {"chunk_grid": None},
        {"chunk_key_encoding": {"name": "v2"}},
        {"storage_transformers": [{"name": "anything"}]},
        {"shape": [10**12]},
        {"shape": []},
    ],
    ids=str,
)
def test_arrays_of_other_kinds_are_not_opened(change, files, monkeypatch):
    import zarr

    opened = []
    open_array = zarr.open_array
    monkeypatch.setattr(
        zarr, "open_array", lambda path, **how: opened.append(path) or open_array(path, **how)
    )
    file = files / "f.zarr" / "error" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    alter(files / "f.zarr", lambda manifest: without(manifest, "files"))
    with pytest.raises(ValueError, match=r"error/zarr\.json' describes another array"):
        load_features(files / "f.zarr")
    assert not [path for path in opened if path.endswith("error")]


# --- incomplete -----------------------------------------------------------------------------------


def pieces(to):
    """Return the files without which `to` is incomplete."""
    if to.suffix == ".npy":
        return [Path(f"{to}{suffix}") for suffix in (".csv", ".errors.csv")]
    found = [path for path in sorted(to.rglob("*")) if path.is_file()]
    return [path for path in found if path != to / "zarr.json"] + [Path(f"{to}.errors.csv")]


@pytest.mark.parametrize("form", FORMATS)
def test_missing_pieces(form, files, paths, cnn, monkeypatch):
    monkeypatch.setattr("sklearn_cnnfeat._extract.formats.base.BLOCK_BYTES", 4 * 8 * 4)
    to = files / f"f.{form}"
    before = content(to)
    if form == "zarr":
        # Also where all values are zero: labels of the first rows, errors of most.
        assert {"label/c/0", "error/c/2", "features/c/1/0"} <= {
            path.relative_to(to).as_posix() for path in pieces(to)[:-1]
        }
    for number, piece in enumerate(pieces(to)):
        piece.unlink()
        with pytest.raises(ValueError, match=f"{piece.name}.* missing or too short"):
            load_features(to)
        # Each costs a run: a few stand for all.
        if number % 4 == 0 or piece.name.endswith(".errors.csv"):
            report = run(paths, to, cnn)
            # The rows are there where only the table of errors is gone.
            n_expected = 0 if piece.name.endswith(".errors.csv") else N - 1
            assert report.n_computed == n_expected
            assert content(to) == before
        else:
            piece.write_bytes(before[str(piece.relative_to(files))])
    assert run(paths, to, cnn).n_computed == 0
    load_features(to)


@pytest.mark.parametrize("form", FORMATS)
def test_pieces_that_are_too_short(form, files, paths, cnn, monkeypatch):
    monkeypatch.setattr("sklearn_cnnfeat._extract.formats.base.BLOCK_BYTES", 4 * 8 * 4)
    to = files / f"f.{form}"
    before = content(to)
    piece = {"npy": to, "parquet": to, "zarr": to / "features" / "c" / "1" / "0"}[form]
    piece.write_bytes(piece.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"f\.{form}"):
        load_features(to)
    if form == "parquet":  # nothing tells any more whose it is
        with pytest.raises(FileExistsError, match="is not a file of extract"):
            run(paths, to, cnn)
    else:
        assert run(paths, to, cnn).n_computed == N - 1
        assert content(to) == before


@needs_zarr
def test_missing_chunks_of_earlier_versions(files, originals):
    to = files / "f.zarr"
    alter(to, lambda manifest: without(manifest, "files"))
    # As zarr leaves them out by default: nothing but empty text, and nothing but zeros.
    (to / "error" / "c" / "1").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_features(to)
    (to / "label" / "c" / "0").unlink()
    with pytest.warns(UserWarning, match=r"missing.*earlier version"):
        features = load_features(to)
    assert features.target.tolist() == [0] * 6 + [1] * 6
    (to / "label" / "c" / "2").unlink()
    with pytest.warns(UserWarning, match="earlier version"):
        assert load_features(to).target[-1] == 0
    shutil.rmtree(to / "label")
    with pytest.raises(ValueError, match=r"label/zarr\.json.* missing"):
        load_features(to)
    shutil.copytree(originals / "f.zarr" / "label", to / "label")
    with pytest.raises(ValueError, match="holds no digests"):
        load_features(to, verify=True)


def test_an_array_of_another_program_beside_our_manifest_stays(files, paths, cnn):
    to = files / "f.npy"
    np.save(to, np.zeros((5, 8), np.float32))
    before = content(to)
    for call in (lambda: load_features(to), lambda: run(paths, to, cnn)):
        with pytest.raises(ValueError, match="do not belong together"):
            call()
    np.save(to, np.zeros((N, 8), np.float64))
    with pytest.raises(ValueError, match="was not written by extract"):
        load_features(to)
    with pytest.raises(FileExistsError, match="is not a file of extract"):
        run(paths, to, cnn)
    assert content(to).keys() == before.keys()


# --- damaged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_verify(form, files):
    to = files / f"f.{form}"
    load_features(to, verify=True)
    if form == "npy":
        damaged = [to, Path(f"{to}.csv")]
    elif form == "parquet":
        damaged = [to]
    else:
        damaged = [to / "features" / "c" / "2" / "0", to / "path" / "c" / "0"]
    for file in damaged:
        good = file.read_bytes()
        # The middle of features, or of a path.
        place = good.find(b"pictures") if b"pictures" in good else len(good) * 3 // 5
        if form == "parquet":
            import pyarrow.parquet as pq

            column = pq.ParquetFile(to).metadata.row_group(0).column(3)
            place = column.data_page_offset + column.total_compressed_size - 8
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match=rf"f\.{form}.*' is damaged"):
            load_features(to, verify=True)
        file.write_bytes(good)
    load_features(to, verify=True)
    if form != "parquet":
        alter(to, lambda manifest: without(manifest, "files"))
        with pytest.raises(ValueError, match="holds no digests"):
            load_features(to, verify=True)


@pytest.mark.parametrize(
    ("table", "damage"),
    [
        ("f.npy.csv", lambda text: text.replace(b"00005.jpg,0", b"00005.jpg,many")),
        ("f.npy.csv", lambda text: text.replace(b"00005.jpg,0,", b"00005.jpg,0,,")),
        ("f.npy.csv", lambda text: text.replace(b"00005.jpg", b"\xff\xfe5.jpg")),
        ("f.npy.csv", lambda text: text[: len(text) // 2]),
        ("f.npy.errors.csv", lambda text: text.replace(b"\n2,", b"\ntwo,")),
        ("f.npy.errors.csv", lambda text: text + b"1,2\n"),
    ],
    ids=["label", "columns", "bytes", "short", "position", "rows"],
)
def test_damaged_tables(table, damage, files):
    text = (files / table).read_bytes()
    assert damage(text) != text
    (files / table).write_bytes(damage(text))
    # Of an earlier version, whose manifest does not tell how long it is.
    alter(files / "f.npy", lambda manifest: without(manifest, "files"))
    with pytest.raises(ValueError, match=r"f\.npy"):
        load_features(files / "f.npy")


# --- altered --------------------------------------------------------------------------------------


def without(manifest, name):
    return {key: value for key, value in manifest.items() if key != name}


def changes(manifest):
    """Yield altered manifests: each entry gone, and of other types, sizes and signs."""
    used = (
        "dtype part_size n_images n_rows row_shape columns label_dtype target_names heads".split()
    )
    for name in [*used, "feature_names", "on_error", "errors", "stamps", "files", "paths"]:
        if name not in ("files", "paths"):
            yield without(manifest, name)
        for value in (5, -1, 10**30, 0.5, "x", [], [[]], [{}], {}, {"x": 1}, {"0": None}, True):
            # Equal to what is there, or to what older versions wrote.
            if value != manifest.get(name, {}) and (name, value) != ("files", {}):
                yield manifest | {name: value}
    yield manifest | {"heads": [[None, [3], "avg", 8]]}
    yield manifest | {"heads": [["two", [3, 3, 10**9], "flatten", 8]]}
    yield manifest | {"heads": [["two", [3, 3], "flatten", 8]]}
    yield manifest | {"errors": {"-1": "x"}}
    yield manifest | {"errors": {"99": "x"}}
    yield manifest | {"label_dtype": "|O"}
    yield manifest | {"label_dtype": "str", "target_names": ["x"]}
    yield manifest | {"columns": ["error", "path"]}
    yield "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.sampled(1)
def test_altered_manifests(form, files, paths, cnn):
    to = files / f"f.{form}"
    good = content(to)
    found = {}
    alter(to, lambda manifest: found.update(manifest) or manifest)
    load_features(to)
    n_tried = 0
    for changed in changes(found):
        alter(to, lambda _, changed=changed: changed)
        n_tried += 1
        try:
            features = load_features(to)
        except ValueError as error:
            assert f"f.{form}" in str(error), changed
        else:
            # What can be read is what was written, or says nothing that the rows contradict.
            assert features.data.shape == (N, 8), changed
            assert list(features.target) == [0] * 6 + [1] * 6, changed
        if n_tried % 10 == 0:
            try:
                run(paths, to, cnn)
            except ValueError as error:
                assert f"f.{form}" in str(error), changed
        for name, data in good.items():
            (files / name).write_bytes(data)
    assert n_tried > 100
    load_features(to)


@pytest.mark.parametrize("text", ["5", "[]", "null", "[" * 100_000, "{"], ids=lambda text: text[:4])
def test_altered_manifest_of_an_unfinished_run(text, paths, cnn, tmp_path):
    (tmp_path / "f.npy.parts").mkdir()
    (tmp_path / "f.npy.parts" / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"f\.npy\.parts/manifest\.json' is damaged"):
        run(paths, tmp_path / "f.npy", cnn)
