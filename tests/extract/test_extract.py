"""Features into files: the same numbers, in every format, whatever comes in between."""

import contextlib
import csv
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC
from small_network import count_computed, save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer, extract, load_features, load_image_folder
from sklearn_cnnfeat._extract.formats.base import ASSEMBLED
from sklearn_cnnfeat._extract.workspace import Workspace
from sklearn_cnnfeat._images import Images
from sklearn_cnnfeat._network.engines import openvino as engine_openvino
from sklearn_cnnfeat.exceptions import EngineError, ImageError, UnreadableImageWarning

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ["npy", "parquet", "zarr"]
N = 30


@pytest.fixture(scope="module")
def other_network(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "small.keras", seed=7)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("pictures"), N)


@pytest.fixture
def paths(originals, tmp_path):
    """Return paths of files that a test may change."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return [shutil.copy2(path, folder) for path in originals]


@pytest.fixture
def cnn(network):
    # Two threads, so that one can tell how far a run has come when it is interrupted.
    return CNNFeatureTransformer(network, "two", "avg", n_jobs=2)


@pytest.fixture
def computed(monkeypatch):
    return count_computed(monkeypatch)


def run(X, to, cnn, **settings):
    """Extract in parts of 8 images, without a progress bar."""
    return extract(X, to, cnn, **{"part_size": 8, "verbose": 0, **settings})


def quietly(*args, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableImageWarning)
        return run(*args, **settings)


def content(to):
    """Return the bytes of all files that stand for `to`."""
    to = Path(to)
    files = [path for path in to.parent.glob(f"{to.name}*") if path.is_file()]
    files += [path for path in to.rglob("*") if path.is_file()]
    return {str(path.relative_to(to.parent)): path.read_bytes() for path in files}


def damage(path):
    Path(os.fsdecode(path)).write_bytes(b"no image")


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMATS)
def test_rows_are_those_of_transform(form, dtype, originals, cnn, tmp_path):
    expected = cnn.fit_transform(originals)
    to = tmp_path / f"features.{form}"
    report = run(originals, to, cnn, dtype=dtype)
    assert (report.n_images, report.n_computed, report.n_errors) == (N, N, 0)
    assert (report.path, report.n_features, report.errors) == (str(to), 8, [])
    features = load_features(to)
    rows = np.asarray(features.data)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, expected.astype(dtype))
    assert features.paths.tolist() == originals
    assert features.error.tolist() == [None] * N
    assert features.feature_names.tolist() == cnn.get_feature_names_out().tolist()
    assert features.target is None and features.target_names is None
    assert len(features.errors) == 0
    # Nothing else is left.
    assert not (tmp_path / f"features.{form}.parts").exists()
    assert not (tmp_path / f"features.{form}.errors.csv").exists()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["bee", "ant", 'wasp, or "hornet"\n'], ["ant", "bee", 'wasp, or "hornet"\n']),
        (["bee\r", "ant", "bee\r"], ["ant", "bee\r"]),
        ([3, -1, 2**60], None),
        ([0.1, np.nan, 1e300], None),
        ([True, False, True], None),
        (np.array([0.1, 2, 3], np.float32), None),
        (pd.Series(["b", "a", "b"], dtype="category"), ["a", "b"]),
        (pd.Series([1, 2, 3], dtype=object), None),
    ],
    ids=["text", "return", "int", "float", "bool", "float32", "category", "object"],
)
def test_labels_come_back(form, labels, names, originals, cnn, tmp_path):
    to = tmp_path / f"features.{form}"
    run(originals[:3], to, cnn, target=labels)
    features = load_features(to)
    assert features.target_names == names
    if names is None:
        expected = np.asarray(labels)
        expected = np.array(expected.tolist()) if expected.dtype == object else expected
        assert features.target.dtype == expected.dtype
        np.testing.assert_array_equal(features.target, expected)
    else:
        assert [names[code] for code in features.target] == list(labels)


def test_parquet_is_read_by_others(originals, cnn, tmp_path):
    to = tmp_path / "features.parquet"
    damaged = tmp_path / "damaged.jpg"
    damage(damaged)
    X = [*originals[:5], str(damaged)]
    quietly(X, to, cnn, target=list("aabbab"), on_error="nan")
    expected = np.asarray(load_features(to).data)
    for table in (pd.read_parquet(to), pl.read_parquet(to)):
        assert list(table.columns) == ["path", "label", "error", "features"]
        rows = np.array([list(row) for row in table["features"]])
        np.testing.assert_array_equal(rows.astype(np.float32), expected)
        assert list(table["path"]) == X
        assert list(table["label"]) == list("aabbab")
        assert [bool(error) and error == error for error in table["error"]] == [False] * 5 + [True]
    assert pl.read_parquet(to).schema["features"] == pl.Array(pl.Float32, 8)


def test_npy_needs_neither_library(originals, cnn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "zarr", None)
    to = tmp_path / "features.npy"
    run(originals, to, cnn)
    data = load_features(to).data
    assert isinstance(data, np.memmap) and not data.flags.writeable
    np.testing.assert_array_equal(np.load(to), cnn.fit_transform(originals))
    with open(f"{to}.csv", newline="") as table:
        assert list(csv.reader(table)) == [["path", "error"], *([path, ""] for path in originals)]


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "npy"])
def test_missing_library_is_named(form, originals, cnn, tmp_path, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("pyarrow", "zarr") else find_spec(name, *rest),
    )
    with pytest.raises(ImportError, match=re.escape(f'pip install "sklearn-cnnfeat[{form}]"')):
        run(originals, tmp_path / f"features.{form}", cnn)


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "parquet"])
def test_maps(form, network, originals, tmp_path):
    maps = CNNFeatureTransformer(network, "one", None)
    to = tmp_path / f"features.{form}"
    run(originals[:9], to, maps)
    features = load_features(to)
    np.testing.assert_array_equal(np.asarray(features.data), maps.fit_transform(originals[:9]))
    assert features.feature_names is None
    with pytest.raises(ValueError, match="as_frame=False"):
        load_features(to, as_frame=True)


def test_parquet_holds_no_maps(network, originals, tmp_path):
    maps = CNNFeatureTransformer(network, "one", None)
    with pytest.raises(ValueError, match="Choose a pooling"):
        run(originals, tmp_path / "features.parquet", maps)


def test_arrays_and_frames(originals, cnn, tmp_path):
    pixels = np.stack([np.asarray(Image.open(path).resize((32, 32))) for path in originals])
    run(pixels, tmp_path / "array.npy", cnn)
    features = load_features(tmp_path / "array.npy")
    np.testing.assert_array_equal(features.data, cnn.fit_transform(pixels))
    assert features.paths is None
    assert run(pixels, tmp_path / "array.npy", cnn).n_computed == 0
    pixels[17] += 1
    with pytest.raises(ValueError, match=r"rows 16 to 23 of X \('image 16'"):
        run(pixels, tmp_path / "array.npy", cnn)
    frame = pd.DataFrame({"photo": originals}, index=range(100, 100 + N))
    run(frame, tmp_path / "frame.npy", clone(cnn))
    assert load_features(tmp_path / "frame.npy").paths.tolist() == originals


def test_fitted_transformer_is_used_and_left_alone(originals, cnn, tmp_path):
    cnn.set_params(on_error="nan").fit(originals[:1])
    before = dict(vars(cnn))
    with pytest.warns(UserWarning, match="extract decides by its own on_error"):
        run(originals, tmp_path / "fitted.npy", cnn)
    assert vars(cnn) == before
    unfitted = CNNFeatureTransformer(cnn.model, "two", "avg")
    run(originals, tmp_path / "unfitted.npy", unfitted)
    assert not hasattr(unfitted, "layer_names_")
    assert (
        content(tmp_path / "fitted.npy")["fitted.npy"]
        == (content(tmp_path / "unfitted.npy")["unfitted.npy"])
    )


def test_several_layers_and_functions_of_the_users_own(network, originals, tmp_path):
    cnn = CNNFeatureTransformer(
        network, ["two", "one"], lambda maps: maps.std((1, 2)), preprocessing=lambda x: x / 2
    )
    run(originals, tmp_path / "features.npy", cnn)
    features = load_features(tmp_path / "features.npy")
    np.testing.assert_array_equal(features.data, cnn.fit_transform(originals))
    assert features.feature_names.tolist() == cnn.get_feature_names_out().tolist()
    changed = CNNFeatureTransformer(
        network, ["two", "one"], lambda maps: maps.std((1, 2)), preprocessing=lambda x: x / 3
    )
    with pytest.raises(ValueError, match="functions was"):
        run(originals, tmp_path / "features.npy", changed)


def power_mean(maps, p):
    return (maps**p).mean((1, 2)) ** (1 / p)


def power_mean_in_closure(p):
    return lambda maps: power_mean(maps, p)


def power_mean_by_default(p):
    return lambda maps, p=p: power_mean(maps, p)


class PowerMean:
    def __init__(self, p):
        self.p = p

    def __call__(self, maps):
        return power_mean(maps, self.p)

    def method(self, maps):
        return power_mean(maps, self.p)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: partial(power_mean, p=p),
        power_mean_in_closure,
        power_mean_by_default,
        PowerMean,
        lambda p: PowerMean(p).method,
        lambda p: power_mean_in_closure(np.array([p])),
    ],
    ids=["partial", "closure", "default", "object", "method", "array"],
)
def test_values_that_a_function_of_the_users_own_holds(network, originals, tmp_path, make):
    few, to = originals[:3], tmp_path / "features.npy"
    run(few, to, CNNFeatureTransformer(network, "two", make(2.0)))
    assert run(few, to, CNNFeatureTransformer(network, "two", make(2.0))).n_computed == 0
    with pytest.raises(ValueError, match="functions was"):
        run(few, to, CNNFeatureTransformer(network, "two", make(3.0)))


@pytest.mark.slow
def test_function_of_the_users_own_is_known_again_in_another_process(network, originals, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        from sklearn_cnnfeat import CNNFeatureTransformer, extract

        def pool(maps):
            # Text in a set has another order in each process.
            return maps.mean((1, 2)) if "avg" in {{"avg", "mean", "max", "sum", "std"}} else maps

        cnn = CNNFeatureTransformer({network!r}, "two", pool)
        print(extract({originals[:3]!r}, "features.npy", cnn, verbose=0).n_computed)
        """)
    )
    computed = [
        subprocess.run(
            [sys.executable, script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert computed == ["3\n", "0\n"]


@pytest.mark.parametrize("named", [False, True])
def test_pipeline(named, paths, cnn, tmp_path, computed):
    pipe = make_pipeline(cnn, StandardScaler(), "passthrough", PCA(3), Normalizer())
    if named:
        pipe.set_output(transform="pandas")
    expected = np.asarray(pipe.fit_transform(paths))
    good, times = Path(paths[2]).read_bytes(), os.stat(paths[2])
    damage(paths[2])
    quietly(paths, tmp_path / "f.npy", pipe, on_error="nan")
    Path(paths[2]).write_bytes(good)
    os.utime(paths[2], ns=(times.st_atime_ns, times.st_mtime_ns))
    del computed[:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(paths, tmp_path / "f.npy", pipe, retry_errors=True)
    assert computed == [2] and report.n_features == 3
    features = load_features(tmp_path / "f.npy", as_frame=True)
    np.testing.assert_allclose(features.data, expected, atol=1e-5)
    assert list(features.data.columns) == list(pipe.get_feature_names_out())
    run(paths, tmp_path / "g.npy", pipe)
    assert content(tmp_path / "g.npy")["g.npy"] == content(tmp_path / "f.npy")["f.npy"]
    pipe[-2].components_[0] *= 2
    with pytest.raises(ValueError, match="the steps of the pipeline behind the network"):
        run(paths, tmp_path / "f.npy", pipe)
    with pytest.raises(NotFittedError, match="'pca' of the pipeline is not fitted"):
        run(paths, tmp_path / "h.npy", make_pipeline(cnn, PCA(3)))
    with pytest.raises(TypeError, match=r"'svc' of the pipeline transforms nothing.*\[:-1\]"):
        run(paths, tmp_path / "h.npy", make_pipeline(cnn, SVC()))


def test_cache_is_used(network, paths, tmp_path, computed):
    cnn = CNNFeatureTransformer(network, "two", "avg", cache=tmp_path / "cache")
    expected = cnn.fit_transform(paths[:20])
    assert len(computed) == 20
    report = run(paths, tmp_path / "features.npy", cnn)
    assert report.n_computed == 10 and len(computed) == 30
    assert run(paths, tmp_path / "features.parquet", cnn).n_computed == 0
    for name in ("features.npy", "features.parquet"):
        np.testing.assert_array_equal(load_features(tmp_path / name).data[:20], expected)


def test_float16_tells_what_it_cannot_hold(network, originals, tmp_path):
    cnn = CNNFeatureTransformer(network, "two", "avg", preprocessing=lambda x: x * 1e6)
    with pytest.raises(ValueError, match="up to 65504, but a feature of image 0 is"):
        run(originals, tmp_path / "features.npy", cnn, dtype="float16")


# --- folders --------------------------------------------------------------------------------------


def test_folder_of_classes(originals, cnn, tmp_path):
    for i, path in enumerate(originals[:6]):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "photos" / "ab"[i % 2])
    photos = load_image_folder(tmp_path / "photos")
    run(tmp_path / "photos", tmp_path / "folder.npy", cnn)
    run(photos, tmp_path / "bunch.npy", cnn)
    run(str(tmp_path / "photos"), tmp_path / "own.npy", cnn, target=range(6))
    for name in ("folder.npy", "bunch.npy"):
        features = load_features(tmp_path / name)
        assert features.paths.tolist() == photos.data.tolist()
        assert features.target.tolist() == photos.target.tolist()
        assert features.target_names == photos.target_names == ["a", "b"]
    assert load_features(tmp_path / "own.npy").target.tolist() == list(range(6))


def test_folder_without_classes(originals, cnn, tmp_path):
    folder = tmp_path / "photos"
    (folder / "more" / "deep").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    wanted = [folder / "b.jpg", folder / "more" / "deep" / "a.jpg"]
    for path, original in zip(wanted, originals, strict=False):
        shutil.copy(original, path)
    run(folder, tmp_path / "features.npy", cnn)
    features = load_features(tmp_path / "features.npy")
    assert features.paths.tolist() == [str(path) for path in wanted]
    assert features.target is None


@pytest.mark.parametrize("below", ["", "empty", "empty/deep"])
def test_empty_folder(below, cnn, tmp_path):
    (tmp_path / "photos" / below).mkdir(parents=True)
    with pytest.raises(ValueError, match="no images"):
        run(tmp_path / "photos", tmp_path / "features.npy", cnn)
    assert os.listdir(tmp_path) == ["photos"]


def test_folder_that_is_not_there(cnn, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        run(tmp_path / "photos", tmp_path / "features.npy", cnn)


def test_symlink_loops(originals, cnn, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(originals[0], folder / "a.jpg")
    (folder / "up").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    run(folder, tmp_path / "features.npy", cnn)
    assert load_features(tmp_path / "features.npy").paths.tolist() == [str(folder / "a.jpg")]
    (folder / "b.jpg").symlink_to(folder / "b.jpg")
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 files in X cannot be found.*b\.jpg"):
        run(folder, tmp_path / "loop.npy", cnn)
    report = quietly(folder, tmp_path / "loop.npy", cnn, on_error="skip")
    assert report.errors == [(str(folder / "b.jpg"), "Too many levels of symbolic links")]


@pytest.mark.parametrize("form", FORMATS)
def test_strange_names(form, originals, cnn, tmp_path):
    names = ["a b.jpg", "ünï—日本.jpg", "new\nline.jpg", "a,b\"c'.jpg", "\r.jpg", " .jpg", "NA.jpg"]
    # Not in its name: what holds a line feed is quoted for that alone.
    folder = tmp_path / "strange folder"
    folder.mkdir()
    X = [shutil.copy(original, folder / name) for original, name in zip(originals, names)]  # noqa: B905
    X = [str(path) for path in X]
    to = folder / f"my features.{form}"
    run(X, to, cnn, target=names)
    features = load_features(to)
    assert features.paths.tolist() == X
    assert [features.target_names[code] for code in features.target] == names
    assert run(X, to, cnn, target=names).n_computed == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("form", FORMATS)
def test_names_that_are_no_text(form, originals, cnn, tmp_path):
    folder = os.fsencode(tmp_path) + b"/drinks/caf\xe9"
    os.makedirs(folder)
    shutil.copy(originals[0], folder + b"/\xe9\r.jpg")
    run(tmp_path / "drinks", tmp_path / f"features.{form}", cnn)
    features = load_features(tmp_path / f"features.{form}")
    assert features.paths.tolist() == [os.fsdecode(folder + b"/\xe9\r.jpg")]
    assert Path(features.paths[0]).read_bytes() == Path(originals[0]).read_bytes()
    assert features.target_names == ["caf\\udce9"] and features.target.tolist() == [0]
    assert run(tmp_path / "drinks", tmp_path / f"features.{form}", cnn).n_computed == 0
    # Beside one that cannot be read and is skipped.
    damage(folder + b"/\xe8.jpg")
    quietly(tmp_path / "drinks", tmp_path / f"some.{form}", cnn, on_error="skip")
    features = load_features(tmp_path / f"some.{form}")
    assert features.paths.tolist() == [os.fsdecode(folder + b"/\xe9\r.jpg")]
    assert features.errors["path"].tolist() == [os.fsdecode(folder + b"/\xe8.jpg")]
    frame = load_features(tmp_path / f"some.{form}", as_frame=True).data
    assert frame.index.tolist() == [os.fsdecode(folder + b"/\xe9\r.jpg")]


def test_same_path_twice(originals, cnn, tmp_path):
    X = [originals[0], originals[1], originals[0]]
    run(X, tmp_path / "features.parquet", cnn)
    features = load_features(tmp_path / "features.parquet")
    assert features.paths.tolist() == X
    np.testing.assert_array_equal(features.data[0], features.data[2])


# --- images that cannot be read -------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_broken_images(form, paths, cnn, tmp_path, computed):
    expected = cnn.fit_transform(paths)
    damage(paths[7])
    Path(paths[20]).write_bytes(b"")
    bad = [7, 20]
    good = [i for i in range(N) if i not in bad]
    labels = np.array(["x", "y"] * 15)

    def check(to, kept):
        features = load_features(to)
        data = np.asarray(features.data)
        np.testing.assert_array_equal(
            data[[kept.index(i) for i in good if i in kept]], expected[good]
        )
        assert features.paths.tolist() == [paths[i] for i in kept]
        assert [features.target_names[code] for code in features.target] == labels[kept].tolist()
        assert [i for i, error in zip(kept, features.error, strict=True) if error] == (
            [i for i in kept if i in bad]
        )
        assert features.errors["position"].tolist() == bad
        assert features.errors["path"].tolist() == [paths[i] for i in bad]
        assert features.errors["label"].tolist() == labels[bad].tolist()
        assert features.errors["error"].tolist()[1] == "it is empty"
        return data

    to = tmp_path / f"features.{form}"
    with pytest.raises(ImageError, match=r"00007\.jpg': it is not a JPEG"):
        run(paths, to, cnn, target=labels)
    assert not to.exists()
    with pytest.raises(FileNotFoundError, match="It is not finished: the same call"):
        load_features(to)
    with pytest.warns(UnreadableImageWarning, match="2 of 30 images .* are NaN, and .*errors.csv"):
        report = run(paths, to, cnn, target=labels, on_error="nan")
    assert report.n_errors == 2 and report.errors[1] == (paths[20], "it is empty")
    assert np.isnan(check(to, list(range(N)))[bad]).all()

    skipped = tmp_path / f"skipped.{form}"
    with pytest.warns(UnreadableImageWarning, match="left out"):
        run(paths, skipped, cnn, target=labels, on_error="skip")
    check(skipped, good)
    # Finished: nothing more to say, and nothing to be done.
    del computed[:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(paths, skipped, cnn, target=labels, on_error="skip")
    assert (report.n_computed, report.n_errors, computed) == (0, 2, [])
    with pytest.raises(ValueError, match="made with on_error='skip', now it is 'nan'"):
        run(paths, skipped, cnn, target=labels, on_error="nan")
    with pytest.raises(ImageError, match=r"00007.*earlier call.* 1 more .*retry_errors=True"):
        run(paths, skipped, cnn, target=labels)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("policy", ["nan", "skip"])
def test_retry_errors_of_a_finished_run(form, policy, paths, cnn, tmp_path, computed):
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / f"f.{form}"
    run(paths, whole, cnn)
    good = {i: Path(paths[i]).read_bytes() for i in (3, 7, 29)}
    times = {i: os.stat(paths[i]) for i in good}
    for i in good:
        damage(paths[i])
    to = tmp_path / f"f.{form}"
    quietly(paths, to, cnn, on_error=policy)

    def mend(i):
        Path(paths[i]).write_bytes(good[i])
        os.utime(paths[i], ns=(times[i].st_atime_ns, times[i].st_mtime_ns))

    mend(7)
    # Not asked for, not done: the others have not changed.
    assert run(paths, to, cnn, on_error=policy).n_errors == 3
    del computed[:]
    report = quietly(paths, to, cnn, on_error=policy, retry_errors=True)
    assert (report.n_computed, report.n_errors) == (1, 2)
    assert computed == [7]
    mend(3)
    mend(29)
    report = run(paths, to, cnn, on_error=policy, retry_errors=True)
    assert (report.n_computed, report.n_errors) == (2, 0)
    assert content(to) == content(whole)
    assert run(paths, to, cnn).n_computed == 0


def test_retry_errors_of_an_unfinished_run(paths, cnn, tmp_path, computed):
    good = Path(paths[2]).read_bytes()
    damage(paths[2])
    with interrupted_after(22), pytest.raises(KeyboardInterrupt):
        quietly(paths, tmp_path / "f.npy", cnn, on_error="nan")
    assert (tmp_path / "f.npy.parts" / "part-0000000").exists()
    Path(paths[2]).write_bytes(good)
    with pytest.raises(ImageError, match="00002"):
        run(paths, tmp_path / "f.npy", cnn)
    del computed[:]
    report = run(paths, tmp_path / "f.npy", cnn, retry_errors=True)
    assert report.n_errors == 0 and 2 in computed and 3 not in computed
    np.testing.assert_array_equal(load_features(tmp_path / "f.npy").data, cnn.fit_transform(paths))


def test_mended_image_goes_on_after_an_error(paths, cnn, tmp_path, computed):
    good = Path(paths[20]).read_bytes()
    damage(paths[20])
    with pytest.raises(ImageError, match="00020"):
        run(paths, tmp_path / "f.npy", cnn)
    Path(paths[20]).write_bytes(good)
    report = run(paths, tmp_path / "f.npy", cnn)
    assert report.n_computed == N - 16
    np.testing.assert_array_equal(load_features(tmp_path / "f.npy").data, cnn.fit_transform(paths))


def test_file_that_vanishes_while_running(paths, cnn, tmp_path, monkeypatch):
    read = Images.read

    def vanish(images, i):
        if i == 9:
            os.unlink(paths[9])
        return read(images, i)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "read", vanish)
        report = quietly(paths, tmp_path / "f.npy", cnn, on_error="skip")
    assert report.errors == [(paths[9], "No such file or directory")]
    # It is still gone, which changes nothing.
    assert run(paths, tmp_path / "f.npy", cnn, on_error="skip").n_computed == 0


@pytest.mark.parametrize("form", FORMATS)
def test_missing_images(form, originals, cnn, tmp_path):
    X = [*originals[:3], None, np.nan, *originals[3:]]
    with pytest.raises(ValueError, match="X lacks 2 of its 32 images"):
        run(X, tmp_path / f"f.{form}", cnn)
    report = quietly(X, tmp_path / f"f.{form}", cnn, on_error="nan")
    assert report.errors == [("image 3", "it is missing"), ("image 4", "it is missing")]
    features = load_features(tmp_path / f"f.{form}")
    assert features.paths.tolist() == [*originals[:3], None, None, *originals[3:]]
    assert np.isnan(np.asarray(features.data)[3:5]).all()
    assert features.errors["path"].tolist() == ["", ""]
    assert run(X, tmp_path / f"f.{form}", cnn, on_error="nan").n_computed == 0


def test_nothing_but_broken_images(paths, cnn, tmp_path):
    cnn.fit(paths)
    for path in paths:
        damage(path)
    for form in FORMATS:
        report = quietly(paths, tmp_path / f"f.{form}", cnn, on_error="skip")
        assert report.n_errors == N
        features = load_features(tmp_path / f"f.{form}")
        assert features.data.shape == (0, 8) and len(features.errors) == N


# --- going on -------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupted_after(n):
    """Interrupt, as Ctrl-C does, when image number n is decoded."""
    decode = Images.decode

    def interrupt(images, raw, spec, name):
        if name.endswith(f"{n:05d}.jpg"):
            raise KeyboardInterrupt
        return decode(images, raw, spec, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Images, "decode", interrupt)
        yield


@pytest.mark.parametrize("form", FORMATS)
def test_interrupted_run_goes_on(form, originals, cnn, tmp_path, computed):
    (tmp_path / "whole").mkdir()
    run(originals, tmp_path / "whole" / f"f.{form}", cnn)
    to = tmp_path / f"f.{form}"
    for n, n_parts in [(22, 2), (29, 3)]:
        with interrupted_after(n), pytest.raises(KeyboardInterrupt):
            run(originals, to, cnn)
        assert len(list((tmp_path / f"f.{form}.parts").glob("part-*"))) == n_parts
        assert not to.exists()
    del computed[:]
    report = run(originals, to, cnn)
    assert report.n_computed == 6 and computed == list(range(24, 30))
    assert content(to) == content(tmp_path / "whole" / f"f.{form}")
    before = {path: os.stat(path).st_mtime_ns for path in tmp_path.rglob("*")}
    report = run(originals, to, cnn)
    assert (report.n_images, report.n_computed) == (N, 0) and len(computed) == 6
    assert {path: os.stat(path).st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_default_part_size_is_that_of_the_unfinished_run(originals, cnn, tmp_path):
    with interrupted_after(22), pytest.raises(KeyboardInterrupt):
        run(originals, tmp_path / "f.npy", cnn)
    report = extract(originals, tmp_path / "f.npy", cnn, verbose=0)
    assert report.n_computed == N - 16


class Crash(BaseException):
    pass


def crashing(move, counter, allowed):
    """Return a function that renames or removes files, but only some."""

    def crash(*args, **kwargs):
        if next(counter) >= allowed:
            raise Crash
        move(*args, **kwargs)

    return crash


def test_what_zarr_still_writes_after_an_interrupt_is_left_out(paths, cnn, tmp_path, monkeypatch):
    zarr, clear = pytest.importorskip("zarr"), Workspace.clear

    def clear_too_early(workspace, only=""):
        clear(workspace, only)
        if only == ASSEMBLED:
            zarr.create_group(str(workspace.folder / ASSEMBLED), zarr_format=3)

    run(paths, tmp_path / "f.npy", cnn)
    monkeypatch.setattr(Workspace, "clear", clear_too_early)
    run(paths, tmp_path / "f.zarr", cnn)
    rows = [np.asarray(load_features(tmp_path / f"f.{form}").data) for form in ("zarr", "npy")]
    np.testing.assert_array_equal(*rows)
    assert not (tmp_path / "f.zarr.parts").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_crash_at_every_step(form, paths, cnn, tmp_path, monkeypatch):
    """Stop wherever a file gets or loses its name, while `to` is written, and while replaced."""
    good, state = Path(paths[2]).read_bytes(), os.stat(paths[2])
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / f"f.{form}"
    run(paths, whole, cnn)
    damage(paths[2])
    to = tmp_path / f"f.{form}"

    def crash_everywhere(**settings):
        """Call again and again, each time one step more."""
        for allowed in range(100):
            with monkeypatch.context() as patch:
                counter = iter(range(100))
                for name in ("replace", "rename", "unlink"):
                    patch.setattr(os, name, crashing(getattr(os, name), counter, allowed))
                with contextlib.suppress(Crash):
                    return quietly(paths, to, cnn, **settings), allowed
        pytest.fail("it never finished")

    report, n_crashes = crash_everywhere(on_error="skip")
    assert report.n_errors == 1 and n_crashes >= 2
    assert load_features(to).data.shape == (N - 1, 8)
    Path(paths[2]).write_bytes(good)
    os.utime(paths[2], ns=(state.st_atime_ns, state.st_mtime_ns))
    report, n_crashes = crash_everywhere(on_error="skip", retry_errors=True)
    assert report.n_errors == 0 and n_crashes >= 2
    assert content(to) == content(whole)
    assert not Path(f"{to}.parts").exists()


_CHILD = """
import os, sys, time
from sklearn_cnnfeat import CNNFeatureTransformer, extract
from sklearn_cnnfeat._network.engines import openvino as engine_openvino

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
run = engine_openvino.OpenVINOEngine.run

def slow(engine, batches, deliver):
    def count(token, rows):
        if isinstance(token, tuple):
            os.write(log, b"%d\\n" % token[0])
            time.sleep(float(sys.argv[3]))
        deliver(token, rows)
    return run(engine, batches, count)

engine_openvino.OpenVINOEngine.run = slow
folder, to, model = sys.argv[4:7]
X = sorted(os.path.join(folder, name) for name in os.listdir(folder))
cnn = CNNFeatureTransformer(model, "two", "avg", n_jobs=2).fit(X[:1])
print("ready", flush=True)
part_size = int(sys.argv[2])
extract(X, to, cnn, part_size=part_size, verbose=0)
print("done", flush=True)
"""


def start(log, to, folder, network, *, part_size=8, pause=0.004):
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, log, str(part_size), str(pause), folder, to, network],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("n_kills", "form"),
    [(4, "parquet"), *(pytest.param(20, form, marks=pytest.mark.slow) for form in FORMATS)],
)
def test_killed_at_random_moments(n_kills, form, network, cnn, tmp_path, home):
    rng = np.random.default_rng(n_kills)
    n, part_size = 20 * n_kills, 8
    originals = save_photos(tmp_path / "pictures", 40)
    for i in range(40, n):
        os.link(originals[i % 40], tmp_path / "pictures" / f"{i:05d}.jpg")
    folder = str(tmp_path / "pictures")
    (tmp_path / "whole").mkdir()
    run(folder, tmp_path / "whole" / f"f.{form}", cnn)
    to, log = tmp_path / f"f.{form}", tmp_path / "log"
    log.write_text("")
    killed, n_logged = 0, 0
    while True:
        closed = {
            number * part_size + place
            for path in Path(f"{to}.parts").glob("part-*")
            if re.fullmatch(r"part-\d+", path.name)
            for number in [int(path.name[5:])]
            for place in range(part_size)
        }
        process = start(log, to, folder, network)
        if killed < n_kills:
            time.sleep(rng.uniform(0, 0.16))
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
        numbers = list(map(int, log.read_text().split()))
        # What is closed is never computed again.
        assert not closed & set(numbers[n_logged:])
        n_logged = len(numbers)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        killed += 1
    assert killed == n_kills
    assert set(numbers) == set(range(n))
    # One part being filled and one being written, each time.
    assert len(numbers) <= n + n_kills * 2 * part_size
    assert content(to) == content(tmp_path / "whole" / f"f.{form}")
    assert not Path(f"{to}.parts").exists()


def test_two_processes_at_once(network, originals, cnn, tmp_path):
    folder = str(Path(originals[0]).parent)
    to = tmp_path / "f.npy"
    process = start(tmp_path / "log", to, folder, network, pause=1)
    try:
        while not (tmp_path / "f.npy.parts" / "manifest.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match=rf"^process {process.pid} on .* is extracting to"):
            run(folder, to, cnn)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    # The lock went with it.
    assert run(folder, to, cnn).n_images == N


def test_engines_are_not_mixed(network, originals, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no room for the network")

    # A number of threads that nothing was compiled for yet.
    settings = {"model": network, "layer": "two", "pooling": "avg", "n_jobs": 3}
    cnn = CNNFeatureTransformer(**settings).fit(originals)
    if cnn.engine_ != "openvino":
        pytest.skip("there is no OpenVINO for this platform")
    monkeypatch.setattr(engine_openvino.OpenVINOEngine, "__init__", fail)
    with pytest.raises(EngineError, match=r"no room for the network.* Pass engine='keras'"):
        run(originals, tmp_path / "f.npy", cnn)
    keras = CNNFeatureTransformer(**settings, engine="keras")
    assert run(originals, tmp_path / "f.npy", keras).n_computed == N


@pytest.mark.parametrize("how", ["flipped", "cut", "other"])
def test_damaged_part_is_computed_again(how, originals, cnn, tmp_path, capsys):
    (tmp_path / "whole").mkdir()
    run(originals, tmp_path / "whole" / "f.npy", cnn)
    with interrupted_after(22), pytest.raises(KeyboardInterrupt):
        run(originals, tmp_path / "f.npy", cnn)
    part = tmp_path / "f.npy.parts" / "part-0000001"
    stored = bytearray(part.read_bytes())
    if how == "flipped":
        stored[-20] ^= 1
    elif how == "cut":
        del stored[-20:]
    else:
        stored = part.with_name("part-0000000").read_bytes()
    part.write_bytes(stored)
    report = run(originals, tmp_path / "f.npy", cnn)
    assert report.n_computed == N - 8
    assert content(tmp_path / "f.npy") == content(tmp_path / "whole" / "f.npy")
    assert ("shard 1 is damaged" in capsys.readouterr().err) == (how == "flipped")


# --- what is not mixed ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_changes_are_noticed(state, paths, cnn, network, other_network, tmp_path, home):
    to = tmp_path / "f.npy"
    labels = ["a", "b"] * 15
    if state == "finished":
        run(paths, to, cnn, target=labels)
        there = "'.*f.npy'"
    else:
        with interrupted_after(22), pytest.raises(KeyboardInterrupt):
            run(paths, to, cnn, target=labels)
        there = "'.*f.npy.parts'"

    def refused(match, X=paths, cnn=cnn, **settings):
        before = content(to)
        with pytest.raises(ValueError, match=match) as caught:
            run(X, to, cnn, **{"target": labels, **settings})
        assert re.search(f"remove {there}, or choose another name", str(caught.value))
        assert content(to) == before

    def other(**settings):
        return CNNFeatureTransformer(
            **{"model": network, "layer": "two", "pooling": "avg"} | settings
        )

    refused('layer was "two", is "one"', cnn=other(layer="one"))
    refused('pooling was "avg", is "max"', cnn=other(pooling="max"))
    refused("source was", cnn=other(model=other_network))
    refused("images was .*stretch.*, is .*crop", cnn=other(resize="crop"))
    refused(r'layers were \["two"\], are \["one", "two"\]', cnn=other(layer=["one", "two"]))
    refused("reading was", cnn=other(value_range=(0, 200)))
    refused("functions was", cnn=other(preprocessing=np.sqrt))
    refused('dtype was "float32", is "float16"', dtype="float16")
    refused("part_size was 8, is 9", part_size=9)
    refused("30 images then, 29 now", X=paths[:-1], target=labels[:-1])
    refused("the names of the images, or their order", X=paths[::-1])
    refused("the labels", target=labels[::-1])
    refused("the labels", target=None)
    if state == "unfinished":
        refused('format was "npy", is "parquet"', format="parquet")
    good, times = Path(paths[5]).read_bytes(), os.stat(paths[5])
    shutil.copy(paths[6], paths[5])
    refused("00005|rows 0 to 7")
    Path(paths[5]).write_bytes(good)
    refused("00005|rows 0 to 7")
    os.utime(paths[5], ns=(times.st_atime_ns, times.st_mtime_ns))
    run(paths, to, cnn, target=labels)


def test_settings_may_change_as_long_as_nothing_is_computed(paths, cnn, network, tmp_path):
    damage(paths[0])
    with pytest.raises(ImageError):
        run(paths, tmp_path / "f.npy", cnn)
    other = CNNFeatureTransformer(network, "one", "max")
    assert quietly(paths, tmp_path / "f.npy", other, on_error="skip").n_computed == N - 1


def test_unfinished_work_of_a_file_that_changes_later_is_fine(paths, cnn, tmp_path):
    with interrupted_after(22), pytest.raises(KeyboardInterrupt):
        run(paths, tmp_path / "f.npy", cnn)
    shutil.copy(paths[0], paths[29])
    run(paths, tmp_path / "f.npy", cnn)
    data = load_features(tmp_path / "f.npy").data
    np.testing.assert_array_equal(data[29], data[0])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("what", ["text", "folder", "own", "link"])
def test_something_else_is_not_overwritten(form, what, originals, cnn, tmp_path):
    to = tmp_path / f"features.{form}"
    if what == "text":
        to.write_text("precious")
    elif what == "folder":
        to.mkdir()
        (to / "file").write_text("precious")
    elif what == "link":
        to.symlink_to(tmp_path / "nowhere")
    elif form == "npy":
        np.save(to, np.zeros((N, 8), np.float32))
    elif form == "parquet":
        pd.DataFrame({"a": [1]}).to_parquet(to)
    else:
        import zarr

        zarr.create_array(str(to), shape=(3,), dtype="float32")
    before = content(to)
    with pytest.raises(FileExistsError, match=r"is not a file of extract[.] Nothing was changed"):
        run(originals, to, cnn)
    assert content(to) == before and len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("table", ["f.npy.csv", "f.npy.errors.csv"])
def test_table_of_another_program_is_not_overwritten(table, originals, paths, cnn, tmp_path):
    (tmp_path / table).write_text("precious")
    with pytest.raises(FileExistsError, match=rf"{table}' exists and is not"):
        run(originals, tmp_path / "f.npy", cnn)
    assert (tmp_path / table).read_text() == "precious"
    (tmp_path / table).unlink()
    # Ours, left of a file that was removed.
    damage(paths[3])
    quietly(paths, tmp_path / "f.npy", cnn, on_error="nan")
    (tmp_path / "f.npy").unlink()
    assert (tmp_path / table).exists()
    assert run(originals, tmp_path / "f.npy", cnn).n_computed == N


def test_files_of_others_in_the_working_folder_stay(originals, cnn, tmp_path):
    (tmp_path / "f.npy.parts").mkdir()
    (tmp_path / "f.npy.parts" / "notes.txt").write_text("precious")
    run(originals, tmp_path / "f.npy", cnn)
    assert os.listdir(tmp_path / "f.npy.parts") == ["notes.txt"]
    assert run(originals, tmp_path / "f.npy", cnn).n_computed == 0


# --- disks ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_the_powers_of_root():
    """Let permissions count for this thread, as they do for everybody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    powers, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    for these in (powers, fewer):
        assert libc.capget(header, these) == 0
    fewer[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, powers) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux' own")
def test_folder_that_cannot_be_written_to(originals, cnn, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    with (
        without_the_powers_of_root(),
        pytest.raises(PermissionError, match="Choose a folder that you may write to"),
    ):
        run(originals, folder / "f.npy", cnn)
    folder.chmod(0o700)
    assert os.listdir(folder) == []


def test_folder_of_the_file_must_exist(originals, cnn, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere.* Make it first"):
        run(originals, tmp_path / "nowhere" / "f.npy", cnn)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("limit", [60_000, 200_000], ids=["in a part", "in the file"])
@pytest.mark.sampled(3)
def test_disk_full(form, limit, network, originals, tmp_path, home):
    # Parts of 115 kB, a file of 430 kB (Parquet packs it to less).
    script = f"""
        import resource, sys
        from sklearn_cnnfeat import CNNFeatureTransformer, extract
        cnn = CNNFeatureTransformer({network!r}, "one").fit({originals!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
        try:
            extract({originals!r}, {str(tmp_path / "f")!r}, cnn, format={form!r}, part_size=8,
                    verbose=0)
        except OSError as error:
            print(error.errno, error)
    """
    cnn = CNNFeatureTransformer(network, "one").fit(originals)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Raise the limit on the size of files" in done.stdout
    assert "the same call goes on" in done.stdout
    assert not (tmp_path / "f").exists()
    report = run(originals, tmp_path / "f", cnn, format=form)
    assert report.n_computed == (N if limit < 100_000 else 0)
    np.testing.assert_array_equal(
        np.asarray(load_features(tmp_path / "f").data), cnn.transform(originals)
    )


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"to": "features.csv"}, ValueError, "must end with .parquet, .npy or .zarr"),
        ({"to": "features"}, ValueError, "must end with"),
        ({"format": "csv"}, ValueError, "format must be one of parquet, npy, zarr"),
        ({"dtype": "float64"}, ValueError, "dtype must be 'float32' or 'float16'"),
        ({"part_size": 0}, ValueError, "part_size must be"),
        ({"on_error": "ignore"}, ValueError, "on_error must be 'raise', 'skip' or 'nan'"),
        ({"target": [1, 2]}, ValueError, r"one label an image, 30 .*\(2,\)"),
        ({"target": [None, "a"] * 15}, ValueError, "15 of the 30 images have no label"),
        ({"target": ["1", 2] * 15}, TypeError, "target mixes text with other things"),
        ({"target": [1j] * 30}, TypeError, "target must hold text or numbers"),
        ({"cnn": "vgg16"}, TypeError, "transformer must be a CNNFeatureTransformer"),
        ({"X": []}, ValueError, "0 sample"),
        ({"X": ["nowhere.jpg"]}, FileNotFoundError, "nowhere.jpg"),
    ],
)
def test_arguments(settings, error, match, originals, cnn, tmp_path):
    settings = {"X": originals, "cnn": cnn, "to": "f.npy", **settings}
    with pytest.raises(error, match=match):
        run(settings.pop("X"), tmp_path / settings.pop("to"), settings.pop("cnn"), **settings)
    assert os.listdir(tmp_path) == []


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_some_rows_and_frames(form, originals, cnn, tmp_path, monkeypatch):
    # Several row groups and chunks.
    monkeypatch.setattr("sklearn_cnnfeat._extract.formats.base.BLOCK_BYTES", 7 * 8 * 4)
    to = tmp_path / f"f.{form}"
    labels = ["x", "y", "z"] * 10
    run(originals, to, cnn, target=labels)
    expected = cnn.fit_transform(originals)
    codes = np.array([0, 1, 2] * 10)
    for rows in [slice(0, 5), slice(5, 23), slice(29, 40), slice(7, 14), slice(-3, None), slice(0)]:
        some = load_features(to, rows=rows)
        np.testing.assert_array_equal(np.asarray(some.data), expected[rows])
        np.testing.assert_array_equal(some.target, codes[rows])
        assert some.paths.tolist() == originals[rows] and some.n_rows == N
        assert len(some.error) == len(expected[rows])
    frame = load_features(to, as_frame=True, rows=slice(4, 6))
    pd.testing.assert_frame_equal(
        frame.data,
        pd.DataFrame(
            expected[4:6],
            index=pd.Index(np.array(originals[4:6], object), name="path"),
            columns=cnn.get_feature_names_out(),
        ),
    )
    assert frame.target.tolist() == [1, 2] and frame.target.index.equals(frame.data.index)
    pca = IncrementalPCA(2)
    for first in range(0, N, 10):
        pca.partial_fit(load_features(to, rows=slice(first, first + 10)).data)
    with pytest.raises(ValueError, match="without a step"):
        load_features(to, rows=slice(0, 8, 2))
    with pytest.raises(TypeError, match="rows must be a slice"):
        load_features(to, rows=[1, 2])


def test_files_that_cannot_be_read(originals, cnn, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_features(tmp_path / "f.npy")
    np.save(tmp_path / "f.npy", np.zeros(3))
    with pytest.raises(ValueError, match="was not written by extract"):
        load_features(tmp_path / "f.npy")
    to = tmp_path / "g.npy"
    run(originals, to, cnn)
    np.save(to, np.load(to)[:-1])
    with pytest.raises(ValueError, match="they do not belong together"):
        load_features(to)
    description = Path(f"{to}.json")
    description.write_text(json.dumps(json.loads(description.read_text()) | {"version": 99}))
    with pytest.raises(ValueError, match="version 99 of the layout"):
        load_features(to)


def test_too_large_for_memory(originals, cnn, tmp_path, monkeypatch):
    to = tmp_path / "f.parquet"
    run(originals, to, cnn)
    memory = type("Memory", (), {"available": 500})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(MemoryError, match=r"rows=slice\(0, 1000\)"):
        load_features(to)
    assert len(load_features(to, rows=slice(3)).data) == 3


@pytest.mark.slow
def test_the_guide_on_extraction_runs(assets, tmp_path):
    guide = (ROOT / "docs" / "extract.md").read_text(encoding="utf-8")
    for folder in (assets / "photos").iterdir():
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:20]:
            (tmp_path / "photos" / folder.name / photo.name).symlink_to(photo)
    done = subprocess.run(
        [sys.executable, "-c", "".join(re.findall(r"^```python\n(.*?)^```$", guide, re.M | re.S))],
        cwd=tmp_path,
        env=os.environ | {"KERAS_HOME": str(assets / "keras_home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "40 images, 40 computed, 0 errors" in done.stdout
    assert "(40, 1024) ['ants', 'bees']" in done.stdout
