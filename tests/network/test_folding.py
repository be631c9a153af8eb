"""Folded batch normalization against the graph as it was."""

import numpy as np
import openvino as ov
import openvino.opset15 as ops
import pytest

from sklearn_cnnfeat._network.folding import fold_batch_normalization

_RNG = np.random.default_rng(0)
_CORE = ov.Core()
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
_CHANNELS = 6


def constant(values):
    return ops.constant(np.array(values, np.float32))


def normal(*shape):
    return constant(_RNG.standard_normal(shape) / 4)


def numbers():
    """Return gamma, beta, mean and variance."""
    ranges = [(0.5, 1.5), (-1, 1), (-1, 1), (0.5, 1.5)]
    return [constant(_RNG.uniform(low, high, _CHANNELS)) for low, high in ranges]


def run(outputs, parameter, pixels):
    model = ov.Model([ops.result(output) for output in outputs], [parameter])
    compiled = _CORE.compile_model(model, "CPU", _EXACT)
    found = compiled({0: pixels})
    return [np.array(found[i]) for i in range(len(outputs))]


def kinds(outputs, parameter):
    model = ov.Model([ops.result(output) for output in outputs], [parameter])
    return [node.get_type_name() for node in model.get_ordered_ops()]


def fold(parameter, outputs):
    model = ov.Model([ops.result(outputs[-1])], [parameter])
    folded = fold_batch_normalization(model, {str(i): out for i, out in enumerate(outputs)})
    return [folded[str(i)] for i in range(len(outputs))]


LAYERS = {
    "Convolution": lambda x: ops.convolution(
        x, normal(_CHANNELS, 4, 3, 3), [2, 2], [], [], [1, 1], "same_upper"
    ),
    "Convolution-dilated": lambda x: ops.convolution(
        x, normal(_CHANNELS, 4, 3, 3), [1, 1], [2, 1], [1, 2], [2, 1]
    ),
    "GroupConvolution": lambda x: ops.group_convolution(
        x, normal(2, 3, 2, 3, 3), [1, 1], [0, 0], [0, 0], [1, 1]
    ),
    "ConvolutionBackpropData": lambda x: ops.convolution_backprop_data(
        x, normal(4, _CHANNELS, 3, 3), [2, 2]
    ),
    "GroupConvolutionBackpropData": lambda x: ops.group_convolution_backprop_data(
        x, normal(2, 2, 3, 3, 3), [2, 2]
    ),
    "transposed-kernel": lambda x: ops.convolution(
        x,
        ops.transpose(normal(3, 3, 4, _CHANNELS), [3, 2, 0, 1]),
        [1, 1],
        [0, 0],
        [0, 0],
        [1, 1],
    ),
    "MatMul": lambda x: ops.matmul(
        ops.reduce_mean(x, [2, 3], False), normal(4, _CHANNELS), False, False
    ),
    "MatMul-transposed": lambda x: ops.matmul(
        ops.reduce_mean(x, [2, 3], False), normal(_CHANNELS, 4), False, True
    ),
}


def per_channel(x):
    """Return the shape of constants that hold one number for each channel."""
    return (_CHANNELS, *[1] * (len(x.get_output_partial_shape(0)) - 2))


def factors(x):
    return constant(_RNG.uniform(0.5, 1.5, per_channel(x)))


NORMALIZATIONS = {
    "BatchNormInference": lambda x: ops.batch_norm_inference(x, *numbers(), 1e-3),
    "multiply-add": lambda x: ops.add(ops.multiply(factors(x), x), factors(x)),
    "subtract-divide": lambda x: ops.divide(ops.subtract(x, factors(x)), factors(x)),
    "computed": lambda x: ops.multiply(x, ops.divide(factors(x), ops.sqrt(factors(x)))),
    "scalar": lambda x: ops.add(ops.multiply(x, constant([[[2.0]]][0][0][0])), constant(1.0)),
}
_SHAPE = (2, 4, 7, 8)
_PIXELS = _RNG.standard_normal(_SHAPE).astype(np.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.sampled(16)
def test_goes_into_the_kernel(layer, normalization, bias):
    parameter = ops.parameter([-1, *_SHAPE[1:]], np.float32)
    raw = LAYERS[layer](parameter)
    raw = ops.add(raw, factors(raw)) if bias else raw
    output = NORMALIZATIONS[normalization](raw).output(0)
    shape = output.get_partial_shape()
    [folded] = fold(parameter, [output])
    assert folded.get_partial_shape() == shape
    before, after = (run([value], parameter, _PIXELS)[0] for value in (output, folded))
    # 36 products and the terms of the normalization, each rounded differently.
    tolerance = 40 * np.finfo(np.float32).eps * np.abs(before).max()
    np.testing.assert_allclose(after, before, rtol=0, atol=tolerance)
    # Nothing but the kernel is multiplied, and one shift is added.
    assert "BatchNormInference" not in kinds([folded], parameter)
    add = folded.get_node()
    assert add.get_type_name() == "Add"
    assert add.input_value(0).get_node().get_type_name() == raw_kind(layer)


def raw_kind(layer):
    return "Convolution" if layer == "transposed-kernel" else layer.partition("-")[0]


def test_the_raw_output_is_a_branch_of_its_own():
    parameter = ops.parameter([-1, *_SHAPE[1:]], np.float32)
    raw = LAYERS["Convolution"](parameter)
    biased = ops.add(raw, factors(raw))
    normalized = ops.relu(ops.batch_norm_inference(biased, *numbers(), 1e-3))
    wanted = [biased.output(0), normalized.output(0)]
    folded = fold(parameter, wanted)
    assert folded[0] == wanted[0]
    together = run(folded, parameter, _PIXELS)
    for i, output in enumerate(folded):
        [alone] = run([output], parameter, _PIXELS)
        np.testing.assert_array_equal(alone, together[i])


def test_the_kernel_is_stored_once(tmp_path):
    parameter = ops.parameter([-1, *_SHAPE[1:]], np.float32)
    raw = ops.convolution(parameter, normal(_CHANNELS, 4, 9, 9), [1, 1], [4, 4], [4, 4], [1, 1])
    outputs = [raw.output(0), ops.batch_norm_inference(raw, *numbers(), 1e-3).output(0)]
    folded = fold(parameter, outputs)
    ov.save_model(ov.Model(folded, [parameter]), tmp_path / "a.xml", compress_to_fp16=False)
    kernel = _CHANNELS * 4 * 9 * 9 * 4
    assert kernel <= (tmp_path / "a.bin").stat().st_size < 1.1 * kernel


BEFORE = {
    "Concat": lambda x: ops.concat([x, ops.relu(x)], 1),
    "Add": lambda x: ops.add(x, ops.relu(x)),
    "Relu": ops.relu,
    "vector": lambda x: ops.relu(ops.reduce_mean(x, [2, 3], False)),
    "tokens": lambda x: ops.relu(ops.reduce_mean(x, [2], False)),
}


@pytest.mark.parametrize("kind", BEFORE)
def test_elsewhere_it_scales_once_and_shifts_once(kind):
    n = _CHANNELS // 2 if kind == "Concat" else _CHANNELS
    parameter = ops.parameter([-1, n, 7, 8], np.float32)
    output = ops.batch_norm_inference(BEFORE[kind](parameter), *numbers(), 1e-3).output(0)
    pixels = _RNG.standard_normal((2, n, 7, 8)).astype(np.float32)
    [before] = run([output], parameter, pixels)
    [folded] = fold(parameter, [output])
    [after] = run([folded], parameter, pixels)
    # A product and a sum, each rounded differently.
    tolerance = 8 * np.finfo(np.float32).eps * np.abs(before).max()
    np.testing.assert_allclose(after, before, rtol=0, atol=tolerance)
    add = folded.get_node()
    scaled = add.input_value(0).get_node().get_type_name()
    assert add.get_type_name() == "Add"
    assert scaled == ("GroupConvolution" if kind in ("Add", "Relu") else "Multiply")


@pytest.mark.parametrize("behind", ["residual", "activation"])
def test_bits_do_not_depend_on_who_reads_the_convolution_before(behind):
    n = 32
    parameter = ops.parameter([1, n, 16, 16], np.float32)
    kernel = constant(_RNG.standard_normal((n, n, 3, 3)) / 16)
    raw = ops.convolution(parameter, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    biased = ops.add(raw, constant(_RNG.standard_normal((n, 1, 1))))
    read = ops.add(biased, parameter) if behind == "residual" else ops.relu(biased)
    ranges = [(0.5, 1.5), (-1, 1), (-1, 1), (0.5, 1.5)]
    statistics = [constant(_RNG.uniform(low, high, n)) for low, high in ranges]
    normalized = ops.relu(ops.batch_norm_inference(read, *statistics, 1e-3))
    folded = fold(parameter, [read.output(0), normalized.output(0)])
    pixels = _RNG.standard_normal((1, n, 16, 16)).astype(np.float32)
    [alone] = run(folded[1:], parameter, pixels)
    np.testing.assert_array_equal(run(folded, parameter, pixels)[1], alone)


def test_what_does_not_scale_channels_stays():
    parameter = ops.parameter([2, *_SHAPE[1:]], np.float32)
    raw = ops.convolution(parameter, normal(8, 4, 1, 1), [1, 1], [0, 0], [0, 0], [1, 1])
    along_width = ops.multiply(raw, constant(_RNG.uniform(0.5, 1.5, 8)))
    by_itself = ops.multiply(along_width, raw)
    more_axes = ops.multiply(raw, constant(np.full((1, 1, 1, 1, 1), 2)))
    from_above = ops.subtract(constant(np.ones((8, 1, 1))), by_itself)
    by_zero = ops.divide(from_above, constant([0.0]))
    wanted = [node.output(0) for node in (along_width, by_itself, more_axes, from_above, by_zero)]
    assert fold(parameter, wanted) == wanted


def test_normalizations_in_a_row_are_one():
    parameter = ops.parameter([-1, *_SHAPE[1:]], np.float32)
    x = LAYERS["Convolution"](parameter)
    for _ in range(3):
        x = ops.batch_norm_inference(x, *numbers(), 1e-3)
    [before] = run([x.output(0)], parameter, _PIXELS)
    [folded] = fold(parameter, [x.output(0)])
    [after] = run([folded], parameter, _PIXELS)
    tolerance = 48 * np.finfo(np.float32).eps * np.abs(before).max()
    np.testing.assert_allclose(after, before, rtol=0, atol=tolerance)
    assert kinds([folded], parameter).count("Add") == 1


def test_names_go_to_what_gives_the_values_now():
    parameter = ops.parameter([-1, *_SHAPE[1:]], np.float32)
    normalized = ops.batch_norm_inference(LAYERS["Convolution"](parameter), *numbers(), 1e-3)
    normalized.set_friendly_name("bn1")
    normalized.output(0).set_names({"layer:bn1"})
    [folded] = fold(parameter, [normalized.output(0)])
    assert folded.get_names() == {"layer:bn1"}
    assert folded.get_node().get_friendly_name() == "bn1"
