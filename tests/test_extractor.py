"""The extractor behind a fitted transformer: shared, frozen, and changed by copies only."""

import concurrent.futures
import dataclasses
import pickle

import numpy as np
import pytest
from small_network import save_photos

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._row_sinks import ArraySink
from sklearn_cnnfeat._transformer import extractor_for, extractor_of

N = 7


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), N)


def test_describes_its_rows(network, files):
    cnn = CNNFeatureTransformer(network, ["two", "mean"], "max").fit(files)
    extractor = extractor_of(cnn)
    assert extractor.layers == cnn.layer_names_ == ["two", "mean"]
    assert extractor.map_shapes == cnn.feature_shapes_ == [(13, 13, 8), (16,)]
    assert extractor.shapes == ((8,), (16,))
    assert extractor.columns == [slice(0, 8), slice(8, 24)]
    assert extractor.row_shape == (24,)
    np.testing.assert_array_equal(extractor.feature_names, cnn.get_feature_names_out())
    assert len(set(extractor.fingerprints)) == 2


def test_is_frozen(network, files):
    extractor = extractor_of(CNNFeatureTransformer(network, "two", "avg").fit(files))
    with pytest.raises(dataclasses.FrozenInstanceError):
        extractor.batch_size = 3


@pytest.mark.parametrize("positions", [None, range(2, 5), [6, 0]])
def test_runs_some_positions(network, files, positions):
    cnn = CNNFeatureTransformer(network, "two", "avg")
    expected = cnn.fit_transform(files)
    extractor = extractor_of(cnn)
    out = np.full_like(expected, -1)
    n_computed = extractor.run(extractor.read(files), ArraySink(out, extractor.columns), positions)
    chosen = list(range(N) if positions is None else positions)
    assert n_computed == len(chosen)
    np.testing.assert_array_equal(out[chosen], expected[chosen])
    others = np.setdiff1d(np.arange(N), chosen)
    assert (out[others] == -1).all()


@pytest.mark.parametrize(("layers", "poolings"), [(["one"], ["max"]), (["three", 1], ["avg"] * 2)])
def test_other_layers_of_the_same_network(network, files, layers, poolings):
    extractor = extractor_of(CNNFeatureTransformer(network, "two", "avg").fit(files))
    other = extractor.with_(layers=layers, poolings=poolings)
    expected = CNNFeatureTransformer(network, layers, poolings[0]).fit_transform(files)
    np.testing.assert_array_equal(other.compute(other.read(files)), expected)


def test_other_layers_keep_random_weights(files):
    cnn = CNNFeatureTransformer("mobilenet", "conv1_relu", "avg", weights=None, input_size=32)
    extractor = extractor_of(cnn.fit(files))
    other = extractor.with_(layers=["conv_pw_1_relu"])
    back = other.with_(layers=["conv1_relu"])
    np.testing.assert_array_equal(back.compute(back.read(files)), cnn.transform(files))


def test_pickled_by_itself(network, files):
    import keras

    model = keras.saving.load_model(network)
    for given in (network, model):
        cnn = CNNFeatureTransformer(given, "two", "avg").fit(files)
        copied = pickle.loads(pickle.dumps(extractor_of(cnn)))
        np.testing.assert_array_equal(copied.compute(copied.read(files)), cnn.transform(files))


def test_extractor_of_an_unfitted_transformer_leaves_it_unfitted(network, files):
    cnn = CNNFeatureTransformer(network, "two", "avg", on_error="nan")
    before = dict(vars(cnn))
    extractor, images = extractor_for(cnn, files, on_error="raise")
    assert vars(cnn) == before
    assert extractor.on_error == "raise"
    np.testing.assert_array_equal(extractor.compute(images), cnn.fit_transform(files))


def test_threads_share_a_transformer_of_changing_settings(network, files):
    """`transform` reads the parameters that act at once and writes nothing."""
    cnn = CNNFeatureTransformer(network, "two", "avg").fit(files)
    expected = cnn.transform(files)
    before = {name: id(value) for name, value in vars(cnn).items()}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: cnn.transform(files), range(12)):
            np.testing.assert_array_equal(rows, expected)
    assert {name: id(value) for name, value in vars(cnn).items()} == before
