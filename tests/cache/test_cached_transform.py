"""The cache inside `transform`: the same rows, each computed once, whatever happens."""

import copy
import itertools
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC
from small_network import LAYERS, CountingTransformer, count_computed, save_network, save_photos

from sklearn_cnnfeat import CacheWarning, CNNFeatureTransformer, FeatureCache
from sklearn_cnnfeat._images.collection import ImageFiles
from sklearn_cnnfeat.exceptions import UnreadableImageWarning

N = 24


@pytest.fixture(scope="module")
def other_network(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("model") / "small.keras", seed=10)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture
def cnn(network, tmp_path):
    return CNNFeatureTransformer(network, "three", "avg", cache=tmp_path / "cache")


@pytest.fixture
def computed(monkeypatch):
    return count_computed(monkeypatch)


def uncached(cnn, X):
    return clone(cnn).set_params(cache=None).fit_transform(X)


# --- the same rows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "pooling"),
    [
        *itertools.product(["three", "mean", ["one", "three", "mean"]], ["avg", "max", "gem"]),
        *itertools.product(["three", ["three", "one"]], ["spp", "flatten"]),
        ("one", None),
        ("mean", None),
    ],
)
@pytest.mark.sampled(5)
def test_rows_are_the_same_bits(cnn, files, computed, layer, pooling):
    cnn.set_params(layer=layer, pooling=pooling)
    expected = uncached(cnn, files)
    computed.clear()
    first = cnn.fit_transform(files)
    assert sorted(computed) == list(range(N))
    again = clone(cnn).fit_transform(files[::-1])[::-1]
    assert len(computed) == N
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, expected)
    assert first.dtype == again.dtype == np.float32


def test_known_files_need_no_threads(cnn, files, monkeypatch):
    monkeypatch.setattr("sklearn_cnnfeat._images.keys._SETTLED_NS", 0)
    rows = cnn.fit_transform(files)

    def submit(*_):
        raise AssertionError("a thread is started although all rows are known")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    np.testing.assert_array_equal(cnn.transform(files), rows)


def test_only_new_images_are_computed(cnn, files, computed):
    cnn.fit_transform(files[:10])
    computed.clear()
    rows = cnn.transform(files)
    assert sorted(computed) == list(range(10, N))
    np.testing.assert_array_equal(rows, uncached(cnn, files))


def test_layers_side_by_side_are_kept_one_by_one(cnn, files, computed):
    cnn.set_params(layer=["one", "three"]).fit_transform(files)
    rows = clone(cnn).set_params(layer="three").fit_transform(files)
    assert len(computed) == N
    np.testing.assert_array_equal(rows, uncached(clone(cnn).set_params(layer="three"), files))


def test_images_that_come_several_times(cnn, files, tmp_path, computed):
    same = tmp_path / "same.jpg"
    same.write_bytes(Path(files[0]).read_bytes())
    X = [*files, *files[:5], str(same)]
    expected = uncached(cnn, X)
    np.testing.assert_array_equal(cnn.fit_transform(X), expected)
    computed.clear()
    np.testing.assert_array_equal(cnn.transform(X[::-1])[::-1], expected)
    assert not computed


def test_every_kind_of_image(cnn, files, computed):
    arrays = [np.asarray(Image.open(file)) for file in files]
    kinds = {
        "bytes": [Path(file).read_bytes() for file in files],
        "pil": [Image.open(file) for file in files],
        "arrays": arrays,
        "batch": np.stack([np.asarray(Image.open(file).resize((40, 40))) for file in files]),
    }
    for images in kinds.values():
        expected = uncached(cnn, images)
        cnn.fit_transform(images)
        computed.clear()
        np.testing.assert_array_equal(clone(cnn).fit_transform(images), expected)
        assert not computed
    # The bytes of a file are the file.
    cnn.fit_transform(files)
    assert not computed


# --- nothing is taken for something else ----------------------------------------------------------


def test_settings_share_a_cache(cnn, network, other_network, files, computed):
    settings = [
        {"model": [network, other_network]},
        {"layer": ["one", "two", "three"]},
        {"pooling": ["avg", "max", "gem", "spp", "flatten"]},
        {"preprocessing": [None, "rescale", "caffe", "tf", "torch"]},
        {"resize": ["stretch", "crop", "pad"]},
        {"interpolation": ["nearest", "bilinear", "lanczos"]},
    ]
    tried = [{}, *({k: v} for space in settings for k, values in space.items() for v in values)]
    tried += [{"model": other_network, "preprocessing": "tf"}, {"layer": "one", "pooling": "max"}]
    expected = [uncached(clone(cnn).set_params(**one), files) for one in tried]
    for _ in range(2):
        for one, rows in zip(tried, expected, strict=True):
            found = clone(cnn).set_params(**one).fit_transform(files)
            np.testing.assert_array_equal(found, rows, err_msg=str(one))
        # The second time all of them are there.
        computed.clear()
    assert len({rows.tobytes() for rows in expected}) >= 18


@pytest.mark.slow
def test_networks_of_the_zoo_share_a_cache(tmp_path, files):
    cnn = CNNFeatureTransformer(
        "mobilenet", "conv_pw_1_relu", "avg", weights=None, random_state=0, cache=tmp_path
    )
    tried = [{"input_size": 32}, {"input_size": (32, 64)}, {"input_size": 32, "random_state": 1}]
    tried += [{"input_size": 32, "model": "mobilenet_v2", "layer": "Conv1_relu"}]
    expected = [uncached(clone(cnn).set_params(**one), files[:4]) for one in tried]
    for _ in range(2):
        for one, rows in zip(tried, expected, strict=True):
            found = clone(cnn).set_params(**one).fit_transform(files[:4])
            np.testing.assert_array_equal(found, rows)


def test_ways_to_read_arrays_share_a_cache(cnn):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 32, 32, 3)).astype(np.float32)
    tried = [
        ({}, pixels),
        ({"value_range": (0, 255)}, pixels),
        ({"value_range": (0, 510)}, pixels),
        ({}, pixels.astype(np.uint8)),
        ({"data_format": "channels_first"}, np.moveaxis(pixels, 3, 1)),
        ({}, np.ascontiguousarray(pixels[:, ::-1])),
        ({"image_shape": (32, 32, 3)}, pixels.reshape(6, -1)),
        ({"image_shape": (64, 16, 3)}, pixels.reshape(6, -1)),
    ]
    expected = [uncached(clone(cnn).set_params(**one), X) for one, X in tried]
    for _ in range(2):
        for (one, X), rows in zip(tried, expected, strict=True):
            np.testing.assert_array_equal(clone(cnn).set_params(**one).fit_transform(X), rows)


def test_weights_changed_in_place(network, files, tmp_path):
    import keras

    model = keras.saving.load_model(network)
    cnn = CNNFeatureTransformer(model, "three", "avg", cache=tmp_path)
    before = cnn.fit_transform(files)
    kernel, bias = model.get_layer("one").get_weights()
    model.get_layer("one").set_weights([kernel[::-1], bias])
    after = clone(cnn).fit_transform(files)
    assert not np.allclose(before, after)
    np.testing.assert_array_equal(after, uncached(cnn, files))


def test_model_file_replaced(cnn, network, other_network, files, tmp_path):
    path = tmp_path / "model.keras"
    rows = []
    for version in (network, other_network, network):
        path.write_bytes(Path(version).read_bytes())
        rows.append(clone(cnn).set_params(model=str(path)).fit_transform(files))
        np.testing.assert_array_equal(rows[-1], uncached(cnn.set_params(model=version), files))
    np.testing.assert_array_equal(rows[0], rows[2])
    assert not np.allclose(rows[0], rows[1])


# --- files that change --------------------------------------------------------------------------


def versions(files):
    """Return the bytes of two photographs, brought to the same length."""
    contents = [Path(file).read_bytes() for file in files[:2]]
    longest = max(map(len, contents))
    return [content + b"\0" * (longest - len(content)) for content in contents]


@pytest.mark.parametrize("age", [0, 1000])
def test_files_changed_between_calls(cnn, files, tmp_path, age):
    path = tmp_path / "photo.jpg"
    contents = versions(files)
    expected = [uncached(cnn, [content])[0] for content in contents]
    now = path.parent.stat().st_mtime - age
    cnn.fit(files)
    for i in [0, 1, 1, 0, 1]:
        # Same name, same size, same times: only what is in it differs.
        path.write_bytes(contents[i])
        os.utime(path, (now, now))
        np.testing.assert_array_equal(cnn.transform([str(path)])[0], expected[i])


def test_files_replaced_by_others(cnn, files, tmp_path):
    path = tmp_path / "photo.jpg"
    contents = versions(files)
    expected = [uncached(cnn, [content])[0] for content in contents]
    for i in [0, 1, 0]:
        new = tmp_path / "new.jpg"
        new.write_bytes(contents[i])
        os.utime(new, (1e9, 1e9))
        os.replace(new, path)
        np.testing.assert_array_equal(cnn.fit(files).transform([str(path)])[0], expected[i])


def test_files_rewritten_during_the_run(cnn, files, tmp_path):
    contents = versions(files)
    expected = {uncached(cnn, [content])[0].tobytes() for content in contents}
    paths = [tmp_path / f"{i}.jpg" for i in range(200)]
    for path in paths:
        path.write_bytes(contents[0])
    stop = threading.Event()

    def rewrite():
        for i, path in itertools.cycle(enumerate(paths)):
            if stop.is_set():
                return
            new = tmp_path / "new.jpg"
            new.write_bytes(contents[i % 2])
            os.replace(new, path)
            contents.reverse()

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        X = [str(path) for path in paths]
        for _ in range(5):
            rows = cnn.fit_transform(X)
            assert {row.tobytes() for row in rows} <= expected
    finally:
        stop.set()
        thread.join()
    np.testing.assert_array_equal(cnn.transform(X), uncached(cnn, X))


@pytest.mark.parametrize("change", ["rewritten", "deleted"])
def test_a_copy_that_changes_during_the_run(cnn, files, tmp_path, monkeypatch, change):
    first, second = tmp_path / "1.jpg", tmp_path / "2.jpg"
    expected = uncached(cnn, files[:2])
    shutil.copy(files[0], first)
    shutil.copy(files[0], second)
    read_with_key = ImageFiles.read_with_key
    reads = []

    def read(images, i):
        reads.append(i)
        if reads.count(0) == 2:  # the first time it was only looked up
            first.unlink(missing_ok=True)
            if change == "rewritten":
                shutil.copy(files[1], first)
        return read_with_key(images, i)

    cnn.set_params(on_error="nan").fit(files)
    monkeypatch.setattr(ImageFiles, "read_with_key", read)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableImageWarning)
        rows = cnn.transform([str(first), str(second), str(second)])
    if change == "rewritten":
        np.testing.assert_array_equal(rows[0], expected[1])
    else:
        assert np.isnan(rows[0]).all()
    np.testing.assert_array_equal(rows[1:], expected[[0, 0]])


def test_unreadable_images_are_not_kept(cnn, files, tmp_path, computed):
    path = tmp_path / "photo.jpg"
    content = Path(files[0]).read_bytes()
    path.write_bytes(content[:200])
    cnn.set_params(on_error="nan").fit(files)
    X = [files[1], str(path)]
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 2 images could not be read"):
            rows = cnn.transform(X)
        assert np.isnan(rows[1]).all()
        assert np.isfinite(rows[0]).all()
    assert len(computed) == 1
    assert FeatureCache(cnn.cache).info().rows == 1
    path.write_bytes(content)
    np.testing.assert_array_equal(cnn.transform(X), uncached(cnn, X))


def test_what_was_computed_before_an_error_is_kept(cnn, files, tmp_path, computed):
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"no photograph")
    cnn.fit(files)
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        cnn.transform([*files, str(path)])
    before = len(computed)
    assert before > 0
    cnn.transform(files)
    assert len(computed) == N


# --- searches without precompute ----------------------------------------------------------------


def test_a_search_computes_each_image_once_a_layer(cnn, files, computed):
    search = GridSearchCV(
        Pipeline([("cnn", cnn), ("svm", SVC())]),
        {"cnn__layer": LAYERS, "svm__C": [0.1, 1, 10]},
        cv=4,
    )
    y = np.arange(N) % 2
    search.fit(files, y)
    assert len(computed) == 3 * N
    plain = GridSearchCV(
        Pipeline([("cnn", clone(cnn).set_params(cache=None)), ("svm", SVC())]),
        search.param_grid,
        cv=4,
    ).fit(files, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


@pytest.mark.slow
def test_two_workers_do_little_twice(assets, photos, imagenet_home, tmp_path, monkeypatch):
    count = tmp_path / "count"
    monkeypatch.setenv("CNNFEAT_TEST_COUNT", str(count))
    layers = ["conv_pw_6_relu", "conv_pw_12_relu"]
    cnn = CountingTransformer("mobilenet", layers[0], "avg", cache=tmp_path / "cache")
    for layer in layers:
        # Workers that compile networks would hardly meet.
        clone(cnn).set_params(layer=layer, cache=None).fit_transform(photos[:1])
    count.unlink()
    # Workers of earlier tests do not know where the weights are.
    get_reusable_executor().shutdown(wait=True)
    search = GridSearchCV(
        Pipeline([("cnn", cnn), ("svm", SVC())]),
        {"cnn__layer": layers, "svm__C": [0.1, 1, 10]},
        cv=5,
        n_jobs=2,
    )
    search.fit(photos, ["ants" in path for path in photos])
    n_computed = sum(map(int, count.read_text().split()))
    # Beginning at the same image, both would compute most of them: 1.6 times as many.
    assert 2 * 120 <= n_computed <= 1.5 * 2 * 120


# --- a full hit ----------------------------------------------------------------------------------

FULL_HIT = """
import pickle, sys
import numpy as np
import PIL.ImageFile
with open(sys.argv[1], "rb") as file:
    estimator, X, y = pickle.load(file)
decoded = []
load = PIL.ImageFile.ImageFile.load
PIL.ImageFile.ImageFile.load = lambda image: decoded.append(image) or load(image)
rows = estimator.fit(X, y).transform(X) if hasattr(estimator, "transform") else None
estimator.fit(X, y)
if rows is not None:
    np.save(sys.argv[2], rows)
loaded = {"tensorflow", "keras", "openvino", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
assert not decoded, len(decoded)
"""


def run_full_hit(estimator, X, y, tmp_path):
    """Fit and transform in a process that must neither decode nor load a runtime."""
    job, rows = tmp_path / "job.pickle", tmp_path / "rows.npy"
    job.write_bytes(pickle.dumps((estimator, X, y)))
    done = subprocess.run(
        [sys.executable, "-c", FULL_HIT, str(job), str(rows)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return np.load(rows) if rows.exists() else None


@pytest.mark.parametrize("layer", ["three", ["one", "two"]])
def test_a_full_hit_loads_no_runtime_and_decodes_nothing(cnn, files, tmp_path, layer):
    cnn.set_params(layer=layer)
    expected = cnn.fit_transform(files)
    rows = run_full_hit(clone(cnn), files, None, tmp_path)
    np.testing.assert_array_equal(rows, expected)


def test_a_whole_search_loads_no_runtime(cnn, files, tmp_path):
    from sklearn_cnnfeat import precompute

    search = GridSearchCV(
        Pipeline([("cnn", cnn), ("svm", SVC())]), {"cnn__layer": LAYERS, "svm__C": [1, 10]}, cv=3
    )
    precompute(search, files, verbose=0)
    run_full_hit(search, files, np.arange(N) % 2, tmp_path)


# --- the parameter --------------------------------------------------------------------------------


def test_ways_to_name_a_cache(network, files, tmp_path, monkeypatch, computed):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path))
    folder = tmp_path / "features"
    cache = FeatureCache(folder)
    for name in (True, str(folder), folder, cache, FeatureCache()):
        CNNFeatureTransformer(network, "three", "avg", cache=name).fit_transform(files)
    assert len(computed) == N
    assert cache.info().rows == N
    for name in (None, False):
        CNNFeatureTransformer(network, "three", "avg", cache=name).fit_transform(files)
    assert len(computed) == 3 * N
    assert cache.info().rows == N


@pytest.mark.parametrize("name", [3, b"folder", ["folder"]])
def test_no_cache_at_all(network, files, name):
    with pytest.raises(ValueError, match="The 'cache' parameter"):
        CNNFeatureTransformer(network, "three", cache=name).fit(files)


@pytest.mark.parametrize("nothing", [None, False])
def test_a_cache_taken_away_after_fit_is_not_used(cnn, files, computed, nothing):
    rows = cnn.fit_transform(files)
    cnn.set_params(cache=nothing)
    computed.clear()
    np.testing.assert_array_equal(cnn.transform(files), rows)
    assert len(computed) == N


def test_caches_are_off_by_default(network, files, home):
    before = set(home.rglob("features*"))
    CNNFeatureTransformer(network, "three", "avg").fit_transform(files)
    assert set(home.rglob("features*")) == before


@pytest.mark.parametrize(
    "copied", [clone, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_copies_use_the_same_cache(network, files, tmp_path, computed, copied):
    cache = FeatureCache(tmp_path, max_bytes=50_000_000)
    cnn = CNNFeatureTransformer(network, "three", "avg", cache=cache)
    rows = cnn.fit_transform(files)
    other = copied(cnn)
    assert other.cache == cache
    assert other.cache.max_bytes == 50_000_000
    np.testing.assert_array_equal(other.fit(files).transform(files), rows)
    assert len(computed) == N


def test_least_recently_used_rows_leave(cnn, files, tmp_path, computed):
    cnn.set_params(cache=FeatureCache(tmp_path, max_bytes=2**20), layer="one", pooling="flatten")
    expected = uncached(cnn, files)
    for _ in range(3):
        np.testing.assert_array_equal(cnn.fit_transform(files), expected)
        assert cnn.cache.info().bytes <= 2**20


# --- what is not kept -----------------------------------------------------------------------------


def brighten(pixels):
    return pixels * 1.5


def spread(maps):
    return maps.std(axis=(1, 2))


def test_of_a_pooling_of_the_users_own_the_maps_are_kept(cnn, files, computed):
    cnn.set_params(pooling=spread)
    rows = cnn.fit_transform(files)
    np.testing.assert_array_equal(rows, uncached(cnn, files))
    computed.clear()
    # Another function needs no image again.
    cnn.set_params(pooling=lambda maps: maps.max(axis=(1, 2)))
    others = cnn.fit_transform(files)
    assert not computed
    np.testing.assert_array_equal(others, uncached(cnn, files))
    assert not np.array_equal(others, rows)


def test_what_comes_after_code_of_the_users_own_is_not_kept(cnn, files, computed):
    cnn.set_params(preprocessing=brighten)
    with pytest.warns(CacheWarning, match="not used: preprocessing is a callable") as caught:
        rows = cnn.fit_transform(files)
    assert len([w for w in caught if w.category is CacheWarning]) == 1
    np.testing.assert_array_equal(rows, uncached(cnn, files))
    assert not Path(cnn.cache).exists()
    computed.clear()
    cnn.transform(files)
    assert len(computed) == N


@pytest.mark.slow
def test_layers_of_the_users_own_are_not_kept(files, tmp_path, computed):
    import keras

    class Half(keras.layers.Layer):
        def call(self, inputs):
            return inputs / 2

    model = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(2, 3, name="one"), Half(name="half")]
    )
    cnn = CNNFeatureTransformer(model, "half", "avg", cache=tmp_path / "cache")
    with pytest.warns(CacheWarning, match="layers that are not Keras' own"):
        rows = cnn.fit_transform(files)
    np.testing.assert_array_equal(rows, uncached(cnn, files))
    assert not (tmp_path / "cache").exists()


def test_functional_models_are_kept(files, tmp_path, computed):
    import keras

    inputs = keras.Input((32, 32, 3))
    one = keras.layers.Conv2D(2, 3, name="one")(inputs)
    both = keras.layers.Concatenate(name="both")([one, keras.layers.ReLU()(one)])
    keras.Model(inputs, both).save(tmp_path / "functional.keras")
    cnn = CNNFeatureTransformer(tmp_path / "functional.keras", "both", "avg", cache=tmp_path / "c")
    rows = cnn.fit_transform(files)
    computed.clear()
    np.testing.assert_array_equal(cnn.fit_transform(files), rows)
    assert not computed


# --- faults ---------------------------------------------------------------------------------------


def cache_warnings(caught):
    return [str(w.message) for w in caught if issubclass(w.category, CacheWarning)]


def test_locked_cache(cnn, files, monkeypatch):
    monkeypatch.setattr("sklearn_cnnfeat._cache.database._PATIENCE", 0.3)
    expected = uncached(cnn, files)
    cnn.fit_transform(files[:4])
    with closing(sqlite3.connect(Path(cnn.cache) / "features.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                np.testing.assert_array_equal(clone(cnn).fit_transform(files), expected)
    (message,) = cache_warnings(caught)
    assert "locked" in message
    np.testing.assert_array_equal(cnn.transform(files), expected)


FULL_DISK = """
import resource, sys, warnings
import numpy as np
from sklearn_cnnfeat import CacheWarning, CNNFeatureTransformer
network, cache, out, *files = sys.argv[1:]
cnn = CNNFeatureTransformer(network, "one", "flatten", cache=cache).fit(files)
cnn.transform(files[:1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, hard))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    rows = cnn.transform(files)
    again = cnn.transform(files)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
np.testing.assert_array_equal(rows, again)
np.save(out, rows)
print(len([w for w in caught if issubclass(w.category, CacheWarning)]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_full_disk(cnn, network, files, tmp_path):
    cnn.set_params(layer="one", pooling="flatten", cache=None)
    expected = cnn.fit_transform(files)
    out = tmp_path / "rows.npy"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, network, str(tmp_path / "cache"), str(out), *files],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
    np.testing.assert_array_equal(np.load(out), expected)


def test_damaged_cache(cnn, files):
    expected = cnn.fit_transform(files)
    file = Path(cnn.cache) / "features.sqlite"
    content = bytearray(file.read_bytes())
    for i in range(0, len(content), 997):
        content[i] ^= 0x55
    cnn.cache = FeatureCache(cnn.cache)
    file.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(cnn.fit_transform(files), expected)
        np.testing.assert_array_equal(cnn.fit_transform(files), expected)
    assert len(cache_warnings(caught)) == 1


def test_equal_images_are_computed_once(cnn, files, computed):
    expected = clone(cnn).set_params(cache=None).fit_transform(files[:3])
    computed.clear()
    rows = cnn.fit_transform([files[0]] * 9 + files[:3] * 2)
    assert len(computed) == 3
    np.testing.assert_array_equal(rows, np.vstack([expected[[0] * 9], expected, expected]))


def test_equal_images_that_cannot_be_read(cnn, files, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(files[0]).read_bytes()[:500])
    X = [str(broken), files[0], str(broken)]
    with pytest.warns(UserWarning, match="2 of 3 images could not be read"):
        rows = cnn.set_params(on_error="nan").fit_transform(X)
    assert np.isnan(rows).all(axis=1).tolist() == [True, False, True]


def test_deleted_cache_is_begun_anew(cnn, files, computed):
    cnn.fit_transform(files[:3])
    shutil.rmtree(cnn.cache)
    computed.clear()
    cnn.fit_transform(files[:3])
    assert len(computed) == 3
    assert FeatureCache(cnn.cache).info().rows == 3


def test_known_rows_need_no_threads_and_few_lookups(cnn, files, monkeypatch):
    """A warm search transforms hundreds of times: each time costs a few statements, no more."""
    # The files may be new, but they do not change.
    monkeypatch.setattr("sklearn_cnnfeat._images.keys._SETTLED_NS", 0)
    cnn.set_params(layer=["one", "three"])
    expected = cnn.fit_transform(files)
    lookups = []
    get_many = FeatureCache.get_many

    def looking_up(cache, fingerprint, digests, out):
        lookups.append(len(digests))
        return get_many(cache, fingerprint, digests, out)

    monkeypatch.setattr(FeatureCache, "get_many", looking_up)
    monkeypatch.setattr("sklearn_cnnfeat._loop.ThreadPoolExecutor", None)
    np.testing.assert_array_equal(clone(cnn).fit_transform(files), expected)
    # One for each layer.
    assert lookups == [N, N]


@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D", "SeparableConv2D"])
def test_a_layer_has_the_same_bits_beside_any_other(kind, files, tmp_path):
    """Whatever a pass computes, the cache takes its rows for those of the layer alone."""
    import keras

    keras.utils.set_random_seed(0)
    convolution = {
        "Conv2D": lambda: keras.layers.Conv2D(12, 3, name="conv"),
        "DepthwiseConv2D": lambda: keras.layers.DepthwiseConv2D(3, name="conv"),
        "SeparableConv2D": lambda: keras.layers.SeparableConv2D(12, 3, name="conv"),
    }[kind]()
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 255),
            convolution,
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Conv2D(8, 3, name="next"),
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        # Normalizations that have been trained.
        layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    model.save(tmp_path / "model.keras")
    path = tmp_path / "model.keras"
    layers = ["conv", "bn", "relu", "next"]
    together = CNNFeatureTransformer(path, layers, "avg").fit_transform(files)
    alone = [CNNFeatureTransformer(path, layer, "avg").fit_transform(files) for layer in layers]
    np.testing.assert_array_equal(together, np.hstack(alone))
    pair = CNNFeatureTransformer(path, ["bn", "conv"], "avg").fit_transform(files)
    np.testing.assert_array_equal(pair, np.hstack([alone[1], alone[0]]))
