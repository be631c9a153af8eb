"""Graphs translated for ncnn against the same graphs on OpenVINO."""

import numpy as np
import pytest
from network.graphs import EPSILON, Builder, compute, op

pytest.importorskip("ncnn")

from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork
from sklearn_cnnfeat._network.engines.ncnn_graph import TranslationError
from sklearn_cnnfeat._network.engines.ncnn_translation import translate


def run(model, pixels):
    rows = {}
    NcnnEngine(NcnnNetwork(model), n_threads=1).run(
        [(range(len(pixels)), pixels)], lambda token, found: rows.update({token: found})
    )
    return [np.stack(head) for head in zip(*(rows[i] for i in range(len(pixels))), strict=True)]


def check(model, terms, shape=(9, 11, 3), n_images=2):
    """Compare with OpenVINO; `terms` is how many products one number is made of."""
    pixels = np.random.default_rng(1).uniform(-2, 2, (n_images, *shape)).astype(np.float32)
    wanted = compute(model, pixels)
    for head, reference in zip(run(model, pixels), wanted, strict=True):
        assert head.shape == reference.shape
        # Winograd's transformations add up to ten times the numbers that they make products of.
        tolerance = (16 + 10 * terms) * EPSILON * np.abs(reference).max()
        np.testing.assert_allclose(head, reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("padding", ["same_upper", "same_lower", "valid"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 1},
        {"size": 5},
        {"size": 4, "strides": 2},
        {"strides": 2},
        {"strides": 3, "size": 2},
        {"dilations": 2},
        {"bias": False},
        {"groups": 4},
        {"groups": 16},
        {"groups": 16, "strides": 2},
        {"groups": 16, "dilations": 2},
    ],
    ids=str,
)
def test_convolution(options, padding):
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    x = builder.convolution(x, 32, padding=padding, **options)
    check(builder.model(op.relu(x)), 16 * 25 + 3)


@pytest.mark.parametrize("n", [1, 4, 7, 16, 40])
def test_number_of_filters(n):
    builder = Builder()
    x = builder.convolution(builder.convolution(builder.pixels, n), 2 * n)
    check(builder.model(x), 9 * n + 27)


@pytest.mark.parametrize(
    "activation",
    [
        op.relu,
        op.sigmoid,
        op.tanh,
        op.swish,
        op.hswish,
        op.hsigmoid,
        op.mish,
        op.exp,
        lambda x: op.clamp(x, 0.0, 6.0),
        lambda x: op.elu(x, 0.7),
        lambda x: op.gelu(x, "erf"),
        lambda x: op.gelu(x, "tanh"),
        lambda x: op.prelu(x, np.float32([0.3])),
        lambda x: op.hard_sigmoid(x, np.float32(0.2), np.float32(0.5)),
        lambda x: op.sqrt(op.abs(x)),
        lambda x: op.negative(x),
    ],
    ids=lambda activation: getattr(activation, "__name__", ""),
)
@pytest.mark.parametrize("folded", [False, True])
def test_activation(activation, folded):
    builder = Builder()
    x = builder.convolution(builder.pixels, 20, 1) if folded else builder.pixels
    check(builder.model(activation(x)), 12)


def test_normalization_behind_a_convolution():
    builder = Builder()
    x = op.relu(builder.normalize(builder.convolution(builder.pixels, 16, bias=False)))
    model = builder.model(builder.normalize(builder.convolution(x, 24)))
    check(model, 9 * 16 * 3)
    assert "Scale" not in translate(model).text


def test_normalization_before_a_convolution():
    builder = Builder()
    x = op.relu(builder.normalize(builder.convolution(builder.pixels, 16)))
    x = op.relu(builder.normalize(x))
    check(builder.model(builder.convolution(x, 24)), 9 * 16 * 3)


def test_normalization_of_its_own_kind():
    builder = Builder()
    x = op.transpose(builder.convolution(builder.pixels, 16), [0, 3, 1, 2])
    numbers = [np.exp(builder.numbers(16)), *(builder.numbers(16) for _ in range(2))]
    x = op.batch_norm_inference(x, *numbers, np.exp(builder.numbers(16)), 1e-3)
    check(builder.model(op.transpose(op.relu(x), [0, 2, 3, 1])), 60)


def test_a_convolution_that_others_read_stays_as_it_is():
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    before, after = op.relu(x), builder.normalize(x)
    check(builder.model(x, before, after, op.add(before, after)), 12)


@pytest.mark.parametrize("padding", ["valid", "same_upper", "same_lower"])
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("size, strides", [(2, 2), (3, 2), (3, 1), (2, 3), (5, 2)])
def test_pooling(kind, size, strides, padding):
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    check(builder.model(builder.pool(x, kind, size, strides, padding)), 12 + size * size)


def test_average_that_counts_padding():
    builder = Builder()
    check(builder.model(builder.pool(builder.pixels, "avg", 3, 1, "same_upper", counts=True)), 9)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("reduce", [op.reduce_mean, op.reduce_max])
@pytest.mark.parametrize("channels", [1, 16])
def test_pooling_over_all_positions(reduce, keep, channels):
    builder = Builder()
    x = builder.convolution(builder.pixels, channels, 1)
    check(builder.model(reduce(x, np.array([1, 2]), keep)), 12 + 99)


@pytest.mark.parametrize(
    "operation", [op.add, op.subtract, op.multiply, op.maximum, op.minimum, op.divide]
)
def test_two_values(operation):
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    y = op.exp(builder.convolution(builder.pixels, 16, 1))
    check(builder.model(operation(x, y)), 12)


@pytest.mark.parametrize("shape", [(), (16,), (1, 1, 1, 16), (9, 11, 16), (11, 1), (1, 9, 1, 1)])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "operation", [op.add, op.subtract, op.multiply, op.maximum, op.minimum, op.divide]
)
def test_value_and_constant(operation, shape, first):
    builder = Builder()
    x = op.add(op.relu(builder.convolution(builder.pixels, 16, 1)), np.float32(1))
    constant = np.exp(builder.numbers(*shape)).astype(np.float32)
    check(builder.model(operation(*([constant, x] if first else [x, constant]))), 12)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 1 / 3])
def test_power(exponent):
    builder = Builder()
    x = op.maximum(builder.pixels, np.float32(1e-6))
    check(builder.model(op.power(x, np.float32(exponent))), 12)


def test_squeeze_and_excitation():
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    weights = op.reduce_mean(x, np.array([1, 2]), False)
    weights = op.reshape(weights, np.array([-1, 1, 1, 16]), False)
    weights = op.relu(builder.convolution(weights, 4, 1))
    weights = op.sigmoid(builder.convolution(weights, 16, 1))
    check(builder.model(op.multiply(x, weights), op.multiply(weights, x)), 40)


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concatenation(axis):
    builder = Builder()
    parts = [builder.convolution(builder.pixels, 16, 1) for _ in range(3)]
    check(builder.model(op.concat(parts, axis)), 12)


def test_dense_layers_behind_a_flattening_in_the_order_of_keras():
    builder = Builder()
    x = builder.convolution(builder.pixels, 8)
    x = op.reshape(x, np.array([-1, 9 * 11 * 8]), False)
    x = op.relu(builder.dense(x, 30))
    check(builder.model(op.softmax(builder.dense(x, 5), 1), x), 9 * 11 * 8 + 27)


def test_a_shape_that_the_graph_computes():
    builder = Builder()
    x = builder.convolution(builder.pixels, 8)
    means = op.reduce_mean(x, np.array([1, 2]), False)
    # As Keras does where it knows all lengths but that of the batch.
    n_images = op.gather(op.shape_of(means), np.array(0), np.array(0))
    assert list(n_images.get_output_shape(0)) == []
    shape = [op.unsqueeze(n_images, np.array(0)), *(np.array([n]) for n in (1, 1, 8))]
    check(builder.model(op.multiply(x, op.reshape(means, op.concat(shape, 0), False))), 200)


def test_dense_layer_on_channels():
    builder = Builder()
    check(builder.model(builder.dense(builder.convolution(builder.pixels, 8, 1), 30)), 12)


@pytest.mark.parametrize("front", [[0, 1, 2, 0], [0, 0, 3, 1], [0, 2, 2, 2]])
@pytest.mark.parametrize("fill", [0.0, 1.5])
def test_padding(front, fill):
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    back = list(reversed(front[1:]))
    check(builder.model(op.pad(x, front, [0, *back], "constant", np.float32(fill))), 12)


def test_padding_that_cuts():
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    x = op.pad(x, [0, -1, 2, 0], [0, 1, -3, 0], "constant", np.float32(0))
    check(builder.model(x), 12)


@pytest.mark.parametrize("form", ["gather", "slice", "strided"])
def test_preprocessing_of_blue_green_red(form):
    builder = Builder()
    x = builder.pixels
    if form == "gather":
        x = op.gather(x, np.array([2, 1, 0]), np.array(3))
    elif form == "slice":
        x = op.slice(x, *(np.array([i]) for i in (-1, -(2**31), -1, 3)))
    else:
        mask = [1, 1, 1, 0]
        x = op.strided_slice(x, [0, 0, 0, -1], [0, 0, 0, -4], [1, 1, 1, -1], mask, mask)
    x = op.subtract(x, np.float32([0.103, 0.116, 0.123]))
    check(builder.model(builder.convolution(x, 16)), 27)


@pytest.mark.parametrize("pooling", ["spp", "gem"])
def test_other_poolings(pooling):
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    axes = np.array([1, 2])
    if pooling == "gem":
        y = op.power(op.maximum(x, np.float32(1e-6)), np.float32(3))
        y = op.power(op.reduce_mean(y, axes, False), np.float32(1 / 3))
    else:
        corners = [(0, 0, 9, 11), (0, 0, 5, 6), (4, 5, 9, 11)]
        parts = [
            op.slice(x, *(np.array(v) for v in ([t, le], [b, r], [1, 1], [1, 2])))
            for t, le, b, r in corners
        ]
        y = op.concat([op.reduce_max(part, axes, False) for part in parts], -1)
    check(builder.model(y), 120)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 1), (1, 7, 3), (7, 1, 1), (5, 5, 1)])
def test_small_images_and_one_channel(shape):
    builder = Builder(shape)
    x = op.relu(builder.convolution(builder.pixels, 16))
    y = builder.normalize(builder.convolution(x, 1, strides=2))
    z = op.reshape(x, np.array([0, -1]), True)
    heads = [x, y, op.reduce_mean(x, np.array([1, 2]), False), builder.dense(z, 3)]
    check(builder.model(*heads), 9 * 16 * 12, shape)


def test_heads_anywhere():
    builder = Builder()
    x = builder.convolution(builder.pixels, 16, 1)
    y = builder.convolution(op.relu(x), 4, 1)
    flat = op.reshape(y, np.array([-1, 9 * 11 * 4]), False)
    check(
        builder.model(builder.pixels, x, y, x, flat, op.reduce_max(x, np.array([1, 2]), False)), 20
    )


def test_weights_kept_in_half_precision():
    builder = Builder()
    kernel = op.convert(op.constant(builder.numbers(8, 3, 3, 3).astype(np.float16)), np.float32)
    x = op.transpose(builder.pixels, [0, 3, 1, 2])
    x = op.convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    check(builder.model(op.transpose(x, [0, 2, 3, 1])), 27)


def test_transposed_kernels_are_not_copied():
    builder = Builder()
    kernel = op.constant(builder.numbers(3, 3, 3, 8))
    x = op.transpose(builder.pixels, [0, 3, 1, 2])
    x = op.convolution(x, op.transpose(kernel, [3, 2, 0, 1]), [1, 1], [1, 1], [1, 1], [1, 1])
    model = builder.model(op.transpose(x, [0, 2, 3, 1]))
    weights = [array for array, _ in translate(model).weights if array.ndim == 4]
    assert [array.shape for array in weights] == [(8, 3, 3, 3)]
    assert np.shares_memory(weights[0], kernel.data)
    check(model, 27)


def test_what_ncnn_lacks_is_named():
    builder = Builder()
    x = op.cos(builder.convolution(builder.pixels, 16, 1))
    x.set_friendly_name("strange_layer")
    with pytest.raises(TranslationError, match=r"Cos \(strange_layer\)"):
        translate(builder.model(x))


def test_normalization_over_channels_of_each_position_is_refused():
    builder = Builder()
    mean = op.reduce_mean(builder.pixels, np.array([3]), True)
    with pytest.raises(TranslationError, match=r"ReduceMean .* rows and columns"):
        translate(builder.model(op.subtract(builder.pixels, mean)))


def test_images_of_any_size_are_refused():
    builder = Builder((-1, -1, 3))
    with pytest.raises(TranslationError, match="any size"):
        translate(builder.model(builder.convolution(builder.pixels, 16)))
