"""Dask: collections of images, a cluster of real processes, and a search over its workers."""

import os
import time

import dask
import dask.array
import dask.bag
import dask.dataframe
import joblib
import numpy as np
import pandas as pd
import pytest
from dask.distributed import Client, LocalCluster
from PIL import Image
from sklearn import config_context
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from small_network import save_photos

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._dask import tasks_at_once
from sklearn_cnnfeat._network import networks
from sklearn_cnnfeat._network.engines import openvino as engine_openvino
from sklearn_cnnfeat.exceptions import ImageError

N = 11


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture(scope="module")
def pixels(files):
    return np.stack([np.asarray(Image.open(path).resize((40, 30))) for path in files])


@pytest.fixture(scope="module")
def cnn(network, files):
    return CNNFeatureTransformer(network, "two", "avg").fit(files)


@pytest.fixture(scope="module")
def expected(cnn, files):
    return cnn.transform(files)


@pytest.fixture(scope="module")
def client(home):
    """Connect to two worker processes of one thread each."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        with Client(cluster) as client:
            yield client


def _frame(files, npartitions=3):
    return dask.dataframe.from_pandas(pd.DataFrame({"path": files}), npartitions=npartitions)


COLLECTIONS = {
    "array of paths": lambda files: dask.array.from_array(np.array(files), chunks=4),
    "bag of paths": lambda files: dask.bag.from_sequence(files, npartitions=3),
    "bag of bytes": lambda files: dask.bag.from_sequence(files, npartitions=3).map(
        lambda path: open(path, "rb").read()
    ),
    "bag with empty partitions": lambda files: dask.bag.concat(
        [
            dask.bag.from_sequence(["none"], npartitions=1).filter(lambda path: path != "none"),
            dask.bag.from_sequence(files, npartitions=2),
        ]
    ),
    "data frame": _frame,
    "column": lambda files: _frame(files)["path"],
}


@pytest.mark.parametrize("scheduler", ["sync", "threads", "cluster"])
@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.sampled(6)
def test_rows_are_the_local_ones(collection, scheduler, cnn, files, expected, client):
    features = cnn.transform(COLLECTIONS[collection](files))
    assert isinstance(features, dask.array.Array)
    assert features.dtype == np.float32
    assert features.shape[1] == expected.shape[1] == 8
    if collection.startswith("array"):
        assert features.chunks == ((4, 4, 3), (8,))
    else:
        assert np.isnan(features.chunks[0]).all()
        assert features.numblocks == (3, 1)
    how = {"scheduler": client.get if scheduler == "cluster" else scheduler}
    np.testing.assert_array_equal(features.compute(**how), expected)


@pytest.mark.parametrize("chunks", [(4, 30, 40, 3), (5, 7, 40, 1), (N, 30, 40, 3)])
def test_arrays_of_images(chunks, network, pixels, client):
    cnn = CNNFeatureTransformer(network, ["one", "two"], "max").fit(pixels)
    lazy = cnn.transform(dask.array.from_array(pixels, chunks=chunks))
    assert lazy.shape == (N, 12)
    np.testing.assert_array_equal(lazy.compute(), cnn.transform(pixels))
    maps = cnn.set_params(layer="two", pooling=None).fit(pixels)
    lazy = maps.transform(dask.array.from_array(pixels, chunks=chunks))
    assert lazy.shape[1:] == maps.feature_shapes_[0]
    np.testing.assert_array_equal(lazy.compute(), maps.transform(pixels))


def test_flattened_images(network, pixels, client):
    rows = pixels.reshape(N, -1)
    cnn = CNNFeatureTransformer(network, "two", "avg", image_shape=(30, 40, 3))
    lazy = dask.array.from_array(rows, chunks=(4, 1000))
    features = cnn.fit(lazy).transform(lazy)
    assert cnn.n_features_in_ == 3600
    np.testing.assert_array_equal(features.compute(), cnn.fit(rows).transform(rows))


def test_one_task_a_partition(cnn, files):
    features = cnn.transform(_frame(files, 5))
    (own,) = (name for name in features.dask.layers if name.startswith("cnn-features"))
    # One more holds the transformer.
    assert len(features.dask.layers[own]) == 5 + 1


def test_fit_looks_at_the_first_images_only(network, files, tmp_path):
    looked_at = []

    def part(numbers):
        looked_at.append(numbers)
        return [files[i] for i in numbers]

    bag = dask.bag.from_delayed([dask.delayed(part)(n) for n in ([], [3, 4], [5], [6])])
    with dask.config.set(scheduler="sync"):
        cnn = CNNFeatureTransformer(network, "two", "avg").fit(bag)
        assert looked_at == [[], [3, 4]]
        features = cnn.transform(bag)
        assert len(looked_at) == 2
        assert features.compute().shape == (4, 8)
    # Nor are files looked for before their turn.
    lazy = cnn.transform(dask.bag.from_sequence([str(tmp_path / "none.jpg")], npartitions=1))
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 files in X cannot be found.*none"):
        lazy.compute()


def test_names_of_columns(network, files):
    cnn = CNNFeatureTransformer(network, "two", "avg")
    cnn.fit_transform(_frame(files))
    assert cnn.feature_names_in_.tolist() == ["path"]
    with pytest.raises(ValueError, match="feature names"):
        cnn.transform(_frame(files).rename(columns={"path": "other"})).compute(scheduler="sync")


def test_bad_images(cnn, files, network, tmp_path, client):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    paths = [*files, str(tmp_path / "bad.jpg")]
    with pytest.raises(ImageError, match=r"cannot read '.*bad.jpg': it is not a JPEG"):
        cnn.transform(dask.bag.from_sequence(paths, npartitions=3)).compute(scheduler=client.get)
    nan = CNNFeatureTransformer(network, "two", "avg", on_error="nan").fit(files)
    bag = dask.bag.from_sequence(paths, npartitions=3)
    rows = nan.transform(bag).compute(scheduler=client.get)
    assert np.isnan(rows).all(axis=1).tolist() == [False] * N + [True]


def test_what_cannot_be_transformed(cnn, files, network):
    with pytest.raises(TypeError, match=r"X is a dask\.delayed\.Delayed"):
        cnn.transform(dask.delayed(files))
    with config_context(transform_output="pandas"):
        with pytest.raises(ValueError, match="makes a table in memory"):
            cnn.transform(_frame(files))


def _large_model():
    import keras

    return keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(70_000, 3)]
    )


@pytest.mark.slow
def test_models_in_memory(network, files, expected, client):
    import keras

    model = keras.saving.load_model(network)
    cnn = CNNFeatureTransformer(model, "two", "avg").fit(files)
    features = cnn.transform(_frame(files))
    np.testing.assert_array_equal(features.compute(), cnn.transform(files))
    large = CNNFeatureTransformer(_large_model(), 0, "avg").fit(files)
    with pytest.raises(ValueError, match=r"takes 4\d MB.*model\.save"):
        large.transform(_frame(files))


# --- what a worker holds --------------------------------------------------------------------------


def _count_loads():
    """Count, in a worker, the networks that are loaded from now on."""
    networks.forget_networks()
    engine_openvino.loads = []
    if not hasattr(engine_openvino, "init"):
        engine_openvino.init = engine_openvino.OpenVINOEngine.__init__

    def init(engine, network, dtype, precision, n_threads, batch_size, n_callers=None):
        engine_openvino.loads.append((n_threads, n_callers))
        engine_openvino.init(engine, network, dtype, precision, n_threads, batch_size, n_callers)

    engine_openvino.OpenVINOEngine.__init__ = init


def _loads():
    return engine_openvino.loads


def test_workers_keep_their_network_and_use_one_core(network, files, client):
    client.run(_count_loads)
    cnn = CNNFeatureTransformer(network, "two", "avg", n_jobs=2).fit(files)
    for npartitions in (11, 6):
        cnn.transform(_frame(files * 2, npartitions)).compute(scheduler=client.get)
    for loads in client.run(_loads).values():
        assert loads in ([], [(1, 1)])
    assert sum(map(len, client.run(_loads).values())) >= 1


@pytest.mark.slow
def test_threads_of_a_worker_share_a_network(network, files, expected):
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"
    ) as cluster:
        with Client(cluster) as client:
            client.run(_count_loads)
            cnn = CNNFeatureTransformer(network, "two", "avg").fit(files)
            rows = cnn.transform(_frame(files, 8)).compute()
            np.testing.assert_array_equal(rows, expected)
            assert list(client.run(_loads).values()) == [[(1, 2)]]
            assert client.submit(tasks_at_once).result() == 2
    assert tasks_at_once() is None


def test_search_on_a_cluster(network, files, client, tmp_path):
    y = np.arange(N) % 2
    search = GridSearchCV(
        make_pipeline(CNNFeatureTransformer(network, "two", "avg", cache=tmp_path), SVC()),
        {"cnnfeaturetransformer__layer": ["one", "two"], "svc__C": [1, 100]},
        cv=2,
    ).fit(files, y)
    pids = set(client.run(os.getpid).values())
    assert len(pids) == 2
    # Joblib on Dask finds the client that was made last.
    with client.as_current(), joblib.parallel_config("dask"):
        parallel = GridSearchCV(search.estimator, search.param_grid, cv=2).fit(files, y)
        where = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(4))
    assert set(where) <= pids
    for key in ("mean_test_score", "params"):
        np.testing.assert_array_equal(parallel.cv_results_[key], search.cv_results_[key])


def _cores_used(cnn, files):
    """Return the seconds of all cores over the seconds that passed, for many images."""
    start, used = time.perf_counter(), time.process_time()
    cnn.transform(files)
    return (time.process_time() - used) / (time.perf_counter() - start)


def test_a_task_uses_one_core(client, tmp_path):
    # Large enough that decoding and the network both take a while.
    files = save_photos(tmp_path, 40, side=(300, 400)) * 10
    cnn = CNNFeatureTransformer(
        "mobilenet", "conv_pw_3_relu", "avg", weights=None, random_state=0, input_size=160
    ).fit(files)
    client.submit(cnn.transform, files[:10]).result()
    assert client.submit(_cores_used, cnn, files).result() < 1.25
