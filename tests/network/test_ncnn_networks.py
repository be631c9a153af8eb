"""ncnn as an engine of the transformer: when it is taken, what it gives, and when it is missing."""

import pickle
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest

pytest.importorskip("ncnn")

from sklearn_cnnfeat import CNNFeatureTransformer, FeatureCache
from sklearn_cnnfeat._network import ncnn_networks, networks
from sklearn_cnnfeat._network.engines.ncnn import NcnnNetwork
from sklearn_cnnfeat.exceptions import EngineError, EngineWarning


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return the file of a network of 3 x 3 convolutions, all but the last of stride 1."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(n, 3, padding="same", activation="relu", name=f"conv_{n}")
        for n in (16, 128, 160)
    ]
    x = keras.Input((32, 32, 3))
    model = keras.Sequential(
        [
            x,
            keras.layers.Rescaling(1 / 255),
            *layers,
            keras.layers.LayerNormalization(name="normalized"),
        ]
    )
    path = tmp_path_factory.mktemp("plain") / "plain.keras"
    model.save(path)
    return str(path)


@pytest.fixture
def forgotten():
    """Open networks anew, before and after."""

    def forget():
        networks.forget_networks()
        networks._told.clear()
        ncnn_networks.problem_of_ncnn.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def rows_of(cnn, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cnn.fit_transform(images)


def test_auto_takes_it_for_3_x_3_convolutions(plain, images):
    import keras

    cnn = CNNFeatureTransformer(plain, "conv_160", "flatten")
    rows = rows_of(cnn, images)
    assert cnn.engine_ == "ncnn"
    model = keras.saving.load_model(plain)
    part = keras.Model(model.inputs, model.get_layer("conv_160").output)
    expected = part.predict(images.astype(np.float32), verbose=0).reshape(len(images), -1)
    tolerance = 10 * 9 * (3 + 16 + 128) * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(rows, expected, rtol=0, atol=tolerance)
    cosine = (rows * expected).sum(axis=1, dtype=float)
    cosine /= np.linalg.norm(rows.astype(float), axis=1)
    cosine /= np.linalg.norm(expected.astype(float), axis=1)
    assert cosine.min() >= 0.9999999


def test_auto_takes_openvino_for_others(plain, images):
    cnn = CNNFeatureTransformer(plain, "conv_160", "avg", engine="openvino").fit(images)
    assert cnn.engine_ == "openvino"
    # Its one convolution has three channels.
    assert CNNFeatureTransformer(plain, "conv_16", "avg").fit(images).engine_ == "openvino"


def test_any_network_that_it_can_compute_runs_on_request(plain, images):
    rows = rows_of(CNNFeatureTransformer(plain, "conv_16", "avg", engine="ncnn"), images)
    other = rows_of(CNNFeatureTransformer(plain, "conv_16", "avg", engine="openvino"), images)
    tolerance = (27 + 1024) * np.finfo(np.float32).eps * np.abs(other).max()
    np.testing.assert_allclose(rows, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "spp", "flatten", None])
def test_every_pooling(plain, images, pooling):
    rows = rows_of(CNNFeatureTransformer(plain, "conv_160", pooling, engine="ncnn"), images)
    other = rows_of(CNNFeatureTransformer(plain, "conv_160", pooling, engine="openvino"), images)
    assert rows.shape == other.shape
    np.testing.assert_allclose(rows, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_a_network_that_it_cannot_compute(plain, images):
    cnn = CNNFeatureTransformer(plain, "normalized", "avg")
    rows_of(cnn, images)  # without a warning
    assert cnn.engine_ == "openvino"
    with pytest.raises(EngineError, match="ncnn cannot compute"):
        cnn.set_params(engine="ncnn").fit(images)


@pytest.mark.parametrize("verbose", [0, 1])
def test_it_is_told_why_a_network_stays_on_openvino(plain, images, forgotten, capsys, verbose):
    cnn = CNNFeatureTransformer(plain, "normalized", "max", verbose=verbose)
    assert cnn.fit(images).engine_ == "openvino"
    told = "ncnn cannot compute" in capsys.readouterr().err
    assert told == bool(verbose)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1, 3), None), ((1, 7, 1), None), ((9, 5, 1), None), ((8, 8, 3), 1024)]
)
def test_sizes_and_channels(shape, size):
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input((None, None, 3) if size else shape)
    y = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="one")(x)
    y = keras.layers.Conv2D(16, 3, padding="same", name="two")(y)
    model = keras.Model(x, y)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    rows = {
        engine: rows_of(
            CNNFeatureTransformer(
                model, "two", "max", engine=engine, input_size=size, preprocessing=None
            ),
            pixels,
        )
        for engine in ("ncnn", "openvino")
    }
    tolerance = 10 * 9 * (3 + 16) * np.finfo(np.float32).eps * np.abs(rows["openvino"]).max()
    np.testing.assert_allclose(rows["ncnn"], rows["openvino"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(plain, images, number):
    def preprocess(batch):
        batch[:, 3, 4, 1] = number
        return batch

    cnn = CNNFeatureTransformer(plain, "conv_160", "avg", preprocessing=preprocess)
    with pytest.raises(ValueError, match=r"NaN or infinite.*engine='openvino'"):
        cnn.fit(images).transform(images)
    assert cnn.engine_ == "ncnn"
    floats = images.astype(np.float32)
    floats[1, 2, 3, 0] = number
    with pytest.raises(ValueError, match="NaN, infinity"):
        CNNFeatureTransformer(plain, "conv_160", "avg").fit_transform(floats)


def test_rows_are_the_same_bits(plain, images):
    rows = rows_of(CNNFeatureTransformer(plain, "conv_160", "avg", n_jobs=1), images)
    for n_jobs, batch_size in ((2, None), (3, 4)):
        cnn = CNNFeatureTransformer(plain, "conv_160", "avg", n_jobs=n_jobs, batch_size=batch_size)
        assert np.array_equal(rows_of(cnn, images), rows)
        assert np.array_equal(cnn.transform(images[::-1]), rows[::-1])
        assert np.array_equal(cnn.transform(images[2:3]), rows[2:3])


def test_rows_of_worker_processes_and_pickles(plain, images):
    cnn = CNNFeatureTransformer(plain, "conv_160", "avg").fit(images)
    rows = cnn.transform(images)
    copy = pickle.loads(pickle.dumps(cnn))
    assert np.array_equal(copy.transform(images), rows)
    tasks = (joblib.delayed(cnn.transform)(images) for _ in range(2))
    for other in joblib.Parallel(n_jobs=2)(tasks):
        assert np.array_equal(other, rows)


def test_other_precisions_are_not_its_own(plain, images):
    for precision in ("bfloat16", "int8"):
        cnn = CNNFeatureTransformer(plain, "conv_160", "avg", engine="ncnn", precision=precision)
        with pytest.raises(ValueError, match="ncnn runs this network"):
            cnn.fit(images)


def test_images_of_any_size_stay_on_openvino(images):
    import keras

    x = keras.Input((None, None, 3))
    y = keras.layers.Conv2D(32, 3, name="one")(x)
    model = keras.Model(x, keras.layers.Conv2D(32, 3, name="two")(y))
    cnn = CNNFeatureTransformer(model, "two", "avg")
    rows_of(cnn, images)
    assert cnn.engine_ == "openvino"
    with pytest.raises(EngineError, match="images of any size"):
        cnn.set_params(engine="ncnn").fit(images)


def test_missing(plain, images, monkeypatch, forgotten):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    cnn = CNNFeatureTransformer(plain, "conv_160", "avg")
    with pytest.warns(EngineWarning, match="pip install ncnn") as caught:
        cnn.fit(images)
        CNNFeatureTransformer(plain, ["conv_128", "conv_160"], "avg").fit(images)
    assert len(caught) == 1
    assert cnn.engine_ == "openvino"
    with pytest.raises(EngineError, match="pip install ncnn"):
        cnn.set_params(engine="ncnn").fit(images)


def test_broken(plain, images, monkeypatch, tmp_path, forgotten):
    (tmp_path / "ncnn").mkdir()
    (tmp_path / "ncnn" / "__init__.py").write_text("raise OSError('libgomp.so: too short')\n")
    monkeypatch.delitem(sys.modules, "ncnn", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    cnn = CNNFeatureTransformer(plain, "conv_160", "avg")
    with pytest.warns(EngineWarning, match="too short"):
        cnn.fit(images)
    assert cnn.engine_ == "openvino"
    with pytest.raises(EngineError, match="too short"):
        cnn.set_params(engine="ncnn").fit(images)


def test_other_numbers_are_noticed(plain, images, monkeypatch, forgotten):
    compute = NcnnNetwork.compute
    monkeypatch.setattr(NcnnNetwork, "compute", lambda *a: [1.01 * row for row in compute(*a)])
    # Layers that no other test has compared.
    cnn = CNNFeatureTransformer(plain, ["conv_128", "conv_160", "conv_16"], "avg")
    with pytest.warns(EngineWarning, match="differ from OpenVINO's by"):
        cnn.fit(images)
    assert cnn.engine_ == "openvino"


@pytest.mark.skipif(sys.platform != "linux", reason="reads which files are in memory from /proc")
def test_the_graph_leaves_memory_once_ncnn_has_the_weights(plain, images, forgotten):
    def is_mapped():
        return "network.bin" in Path("/proc/self/maps").read_text()

    openvino = CNNFeatureTransformer(plain, "conv_160", "avg", engine="openvino").fit(images)
    expected = openvino.transform(images)
    assert is_mapped()
    networks.forget_networks()
    del openvino
    cnn = CNNFeatureTransformer(plain, "conv_160", "avg").fit(images)
    rows = cnn.transform(images)
    assert not is_mapped()
    # And it comes back for another cut of the network.
    other = CNNFeatureTransformer(plain, "conv_128", "avg", engine="openvino").fit_transform(images)
    assert other.shape == (len(images), 128)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_pickle_where_it_is_missing(plain, images, monkeypatch, tmp_path, forgotten):
    cache = FeatureCache(tmp_path)
    cnn = CNNFeatureTransformer(plain, "conv_160", "avg", cache=cache)
    rows = rows_of(cnn, images)
    assert cache.info().rows == len(images)
    data = pickle.dumps(cnn)
    monkeypatch.setitem(sys.modules, "ncnn", None)
    networks.forget_networks()
    ncnn_networks.problem_of_ncnn.cache_clear()
    with pytest.warns(EngineWarning, match="OpenVINO computes the network instead"):
        other = pickle.loads(data).transform(images)
    assert cache.info().rows == 2 * len(images)
    reference = CNNFeatureTransformer(plain, "conv_160", "avg", engine="openvino")
    assert np.array_equal(other, rows_of(reference, images))
    np.testing.assert_allclose(rows, other, rtol=0, atol=1e-5 * np.abs(other).max())
