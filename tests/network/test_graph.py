"""Cuts of one graph: preprocessing, layers and poolings as Keras and NumPy have them."""

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer, layer_summary
from sklearn_cnnfeat._network import graph, store
from sklearn_cnnfeat._network.pooling import SPP_LEVELS, spp_bins
from sklearn_cnnfeat._network.runtime import import_openvino, import_operations
from sklearn_cnnfeat._network.spec import Head

EPS = np.finfo(np.float32).eps


def _compute(model, pixels):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = import_openvino().Core().compile_model(model, "CPU", options)
    results = compiled(pixels)
    return [np.array(results[i]) for i in range(len(compiled.outputs))]


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).uniform(0, 255, (2, 9, 7, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=[None, (0, 2, 3, 1)], ids=["as it is", "channels first"])
def stored(request):
    """Return a network of one layer, ``2 x - 100``, and the permutation that it is kept with."""
    openvino, op = import_openvino(), import_operations()
    parameter = op.parameter([-1, 9, 7, 3], np.float32, name="pixels")
    values = op.subtract(op.multiply(parameter, np.float32(2)), np.float32(100))
    if request.param is not None:
        values = op.transpose(values, np.array([0, 3, 1, 2], np.int64))
    values.output(0).add_names({"layer:maps"})
    parameter.output(0).add_names({"layer:input"})
    network = openvino.Model([op.result(values.output(0))], [parameter])
    return network, {} if request.param is None else {"maps": request.param}


def _pooled_by_numpy(maps, pooling):
    maps = maps.astype(np.float64)
    if pooling in (None, "flatten"):
        return maps
    if pooling == "avg":
        return maps.mean((1, 2))
    if pooling == "max":
        return maps.max((1, 2))
    if pooling == "gem":
        return (np.maximum(maps, 1e-6) ** 3).mean((1, 2)) ** (1 / 3)
    height, width = maps.shape[1:3]
    bins = [
        maps[:, top:bottom, left:right].max((1, 2))
        for level in SPP_LEVELS
        for top, bottom in spp_bins(height, level)
        for left, right in spp_bins(width, level)
    ]
    return np.concatenate(bins, 1)


@pytest.mark.parametrize("pooling", [None, "flatten", "avg", "max", "gem", "spp"])
def test_poolings_are_those_of_numpy(pooling, stored, pixels):
    network, permutations = stored
    head = Head("maps", pooling, (9, 7, 3), ())
    (rows,) = _compute(graph.cut(network, [head], permutations, None), pixels)
    expected = _pooled_by_numpy(2 * pixels - 100, pooling)
    # A mean of 63 numbers, each rounded a few times; powers multiply the error by their exponent.
    atol = 63 * 3 * EPS * np.abs(expected).max()
    np.testing.assert_allclose(rows.reshape(expected.shape), expected, atol=atol)


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch", "rescale"])
def test_preprocessing_is_that_of_keras(mode, stored, pixels):
    import keras

    network, permutations = stored
    head = Head("input", None, (9, 7, 3), ())
    (rows,) = _compute(graph.cut(network, [head], permutations, mode), pixels)
    if mode == "rescale":
        expected = pixels / 255
    else:
        expected = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=mode)
    np.testing.assert_allclose(rows, expected, atol=4 * EPS * 255)


def test_the_input_and_one_layer_twice(stored, pixels):
    network, permutations = stored
    heads = [Head(name, pooling, (9, 7, 3), ()) for name, pooling in _HEADS]
    rows = _compute(graph.cut(network, heads, permutations, None), pixels)
    np.testing.assert_array_equal(rows[0], pixels)
    np.testing.assert_array_equal(rows[1].reshape(pixels.shape), 2 * pixels - 100)
    np.testing.assert_array_equal(rows[2], (2 * pixels - 100).max((1, 2)))
    # The whole network is as it was.
    (again,) = _compute(graph.cut(network, heads[1:2], permutations, None), pixels)
    np.testing.assert_array_equal(again, rows[1])


_HEADS = [("input", None), ("maps", "flatten"), ("maps", "max")]

_CHEAP = ["mobilenet", "resnet50"]
_OTHERS = ["densenet121", "resnet50_v2", "efficientnet_b0", "mobilenet_v3_small", "xception"]


@pytest.mark.parametrize(
    "name", [*_CHEAP, *(pytest.param(name, marks=pytest.mark.slow) for name in _OTHERS)]
)
@pytest.mark.sampled(1)
def test_a_row_does_not_depend_on_the_layers_beside_it(name):
    """To the bit, across batch normalization too: the cache takes one for the other."""
    images = np.random.default_rng(1).integers(0, 256, (1, 96, 96, 3), np.uint8)
    options = {"weights": None, "random_state": 0, "input_size": 96}
    layers = layer_summary(CNNFeatureTransformer(name, "last", **options))
    paths = [row.path for row in layers.itertuples() if len(row.output_shape) == 3 and row.index][
        :-1
    ]
    rng = np.random.default_rng(0)

    def columns(chosen):
        cnn = CNNFeatureTransformer(name, list(chosen), "flatten", **options)
        row = cnn.fit_transform(images)[0]
        ends = np.cumsum([np.prod(shape) for shape in cnn.feature_shapes_])
        return dict(zip(chosen, np.split(row, ends[:-1]), strict=True))

    for _ in range(4):
        # Neighbors in the network most of all: a convolution, its normalization, its activation.
        start = rng.integers(len(paths) - 6)
        chosen = [paths[i] for i in sorted({*range(start, start + 4), rng.integers(len(paths))})]
        together = columns(chosen)
        for path in chosen:
            alone = columns([path])[path]
            np.testing.assert_array_equal(together[path], alone, err_msg=f"{path} in {chosen}")
    assert store.measure_networks()[0] >= 1
