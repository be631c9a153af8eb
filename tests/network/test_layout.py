"""The layout pass against the graph as it was."""

import hypothesis.strategies as st
import numpy as np
import openvino as ov
import openvino.opset15 as ops
import pytest
from hypothesis import given, settings

from sklearn_cnnfeat._network.layout import carry_transpositions

_TO_SECOND, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_SHAPE = (2, 5, 6, 4)
_RNG = np.random.default_rng(0)


def transpose(value, order):
    return ops.transpose(value, ops.constant(np.array(order, np.int64))).output(0)


def constant(values, dtype=np.float32):
    return ops.constant(np.array(values, dtype))


_CORE = ov.Core()


def run(outputs, parameter, pixels):
    """Return the values of outputs, computed in float32 on one core."""
    model = ov.Model([ops.result(output) for output in outputs], [parameter])
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = _CORE.compile_model(model, "CPU", exact)
    found = compiled({0: pixels})
    return [np.array(found[i]) for i in range(len(outputs))]


def evaluate(outputs, parameter, pixels):
    """Return the same by OpenVINO's reference code, which needs no compilation."""
    model = ov.Model([ops.result(output) for output in outputs], [parameter])
    tensors = [ov.Tensor(output.get_element_type(), output.get_shape()) for output in outputs]
    assert model.evaluate(tensors, [ov.Tensor(pixels)])
    return [np.array(tensor.data) for tensor in tensors]


def kinds(outputs, parameter):
    model = ov.Model([ops.result(output) for output in outputs], [parameter])
    return [node.get_type_name() for node in model.get_ordered_ops()]


def carry(parameter, outputs, pixels, run=run):
    """Run the pass; return the values before it, after it, and what holds them."""
    before = run(outputs, parameter, pixels)
    model = ov.Model([ops.result(outputs[-1])], [parameter])
    carried = carry_transpositions(model, {str(i): out for i, out in enumerate(outputs)})
    kept = [carried[str(i)] for i in range(len(outputs))]
    after = [
        value if order is None else value.transpose(order)
        for value, (_, order) in zip(
            run([output for output, _ in kept], parameter, pixels), kept, strict=True
        )
    ]
    return before, after, kept


def pixels_of(shape):
    return _RNG.standard_normal(shape).astype(np.float32)


def channels(n=4):
    return np.linspace(0.5, 1.5, n, dtype=np.float32)


# Operations on a value with channels second, whose layout in the graph is channels last.
CARRIED = {
    "Relu": ops.relu,
    "Clamp": lambda x: ops.clamp(x, -0.5, 0.5),
    "Convert": lambda x: ops.convert(ops.convert(x, "f64"), "f32"),
    "Swish": lambda x: ops.swish(x, constant(1.5)),
    "HardSigmoid": lambda x: ops.hard_sigmoid(x, constant(0.2), constant(0.5)),
    "Selu": lambda x: ops.selu(x, constant(1.6), constant(1.05)),
    "PRelu-scalar": lambda x: ops.prelu(x, constant([0.3])),
    "PRelu-channels": lambda x: ops.prelu(x, constant(channels())),
    "PRelu-full": lambda x: ops.prelu(x, constant(channels().reshape(4, 1, 1))),
    "Add-scalar": lambda x: ops.add(x, constant(2.0)),
    "Add-ones": lambda x: ops.add(x, constant([[[[[2.0]]]]][0])),
    "Add-channels": lambda x: ops.add(x, constant(channels().reshape(1, 4, 1, 1))),
    "Add-lower-rank": lambda x: ops.add(constant(channels(6)), x),
    "Add-rank-3": lambda x: ops.add(x, constant(np.ones((4, 1, 6)))),
    "Add-full": lambda x: ops.add(x, constant(_RNG.standard_normal((2, 4, 5, 6)))),
    "Add-itself": lambda x: ops.add(x, ops.sigmoid(x)),
    "Subtract": lambda x: ops.subtract(constant(channels().reshape(4, 1, 1)), x),
    "Divide": lambda x: ops.divide(x, constant(channels().reshape(4, 1, 1))),
    "Power": lambda x: ops.power(x, constant(2.0)),
    "Maximum": lambda x: ops.maximum(x, constant(channels(6))),
    "SquaredDifference": lambda x: ops.squared_difference(x, constant(channels(6))),
    "Select": lambda x: ops.select(ops.greater(x, constant(0.0)), x, constant(channels(6))),
    "FakeQuantize": lambda x: ops.fake_quantize(
        x,
        constant(-channels().reshape(1, 4, 1, 1)),
        constant(channels().reshape(1, 4, 1, 1)),
        constant(-1.0),
        constant(1.0),
        16,
    ),
    "Multiply-reduced": lambda x: ops.multiply(x, ops.reduce_mean(x, [2, 3], True)),
    "Concat": lambda x: ops.concat([x, ops.relu(x)], 1),
    "Concat-negative": lambda x: ops.concat([x, ops.relu(x)], -1),
    "Concat-constant": lambda x: ops.concat([x, constant(np.ones((2, 1, 5, 6)))], 1),
    "ReduceMean": lambda x: ops.reduce_mean(x, [2, 3], False),
    "ReduceMean-kept": lambda x: ops.reduce_mean(x, [-2, -1], True),
    "ReduceMax": lambda x: ops.reduce_max(x, [1], False),
    "ReduceSum-batch": lambda x: ops.reduce_sum(x, [0, 2], False),
    "ReduceL2": lambda x: ops.reduce_l2(x, [1], True),
    "Softmax": lambda x: ops.softmax(x, 1),
    "LogSoftmax": lambda x: ops.log_softmax(x, -3),
    "MVN": lambda x: ops.mvn(x, [1], True, 1e-3, "inside_sqrt"),
    "NormalizeL2": lambda x: ops.normalize_l2(x, [1], 1e-3, "add"),
    "CumSum": lambda x: ops.cum_sum(x, constant(1, np.int64)),
    "Split": lambda x: ops.add(*ops.split(x, constant(1, np.int64), 2).outputs()),
    "VariadicSplit": lambda x: ops.variadic_split(x, constant(-3, np.int64), [1, 3]).output(1),
    "Slice": lambda x: ops.slice(x, [1, 0], [3, 4], [1, 2], [1, -1]),
    "StridedSlice": lambda x: ops.strided_slice(x, [0, 1], [0, 3], [1, 1], [1, 0], [1, 0]),
    "StridedSlice-steps": lambda x: ops.strided_slice(
        x, [0, 0, 1, 0], [0, 0, 5, 6], [1, 1, 2, 3], [1, 1], [1, 1]
    ),
    "Pad": lambda x: ops.pad(x, [0, 0, 1, 2], [0, 1, 0, 3], "constant", constant(7.0)),
    "Pad-reflect": lambda x: ops.pad(x, [0, 0, 1, 2], [0, 0, 2, 1], "reflect"),
    "Tile": lambda x: ops.tile(x, [1, 2, 1, 3]),
    "Gather": lambda x: ops.gather(x, constant([2, 0], np.int64), constant(1, np.int64)),
    "Gather-scalar": lambda x: ops.gather(x, constant(2, np.int64), constant(-1, np.int64)),
    "Gather-table": lambda x: ops.gather(
        x, constant([[2, 0], [1, 1]], np.int64), constant(2, np.int64)
    ),
    "Squeeze": lambda x: ops.squeeze(ops.reduce_mean(x, [2], True), [2]),
    "Unsqueeze": lambda x: ops.unsqueeze(x, [1, -1]),
    "Reshape-merge": lambda x: ops.reshape(x, [0, 0, 30], True),
    "Reshape-split": lambda x: ops.reshape(x, [2, 2, 2, 5, 6], False),
    "Reshape-units": lambda x: ops.reshape(ops.reduce_mean(x, [2, 3], True), [2, 4], False),
    "Interpolate": lambda x: ops.interpolate(
        x, [10, 12], "nearest", "sizes", coordinate_transformation_mode="asymmetric", axes=[2, 3]
    ),
    "Interpolate-scales": lambda x: ops.interpolate(
        x, constant([2.0, 1.5]), "linear_onnx", "scales", axes=[2, 3]
    ),
    "ShapeOf": lambda x: ops.reshape(
        ops.relu(x), ops.gather(ops.shape_of(x), [0, 1, 2, 3], constant(0, np.int64)), False
    ),
}
# What the pass does not know, or cannot carry on.
RESTORED = {
    "BatchNormInference": lambda x: ops.batch_norm_inference(
        x, *(constant(channels() + i) for i in range(4)), 1e-3
    ),
    "MatMul": lambda x: ops.matmul(x, constant(_RNG.standard_normal((6, 3))), False, False),
    "AvgPool": lambda x: ops.avg_pool(x, [1, 1], [0, 0], [0, 0], [2, 2], True),
    "Reshape-flat": lambda x: ops.reshape(x, [0, -1], True),
    "Reshape-mixed": lambda x: ops.reshape(x, [2, 20, 6], False),
    "DepthToSpace": lambda x: ops.depth_to_space(x, "blocks_first", 2),
    "StridedSlice-shrinking": lambda x: ops.strided_slice(
        x, [0, 1], [0, 2], [1, 1], [1, 0], [1, 0], shrink_axis_mask=[0, 1]
    ),
    "Add-pdpd": lambda x: ops.add(x, constant(np.ones((2, 4, 5, 6))), "pdpd"),
}
# Sums of at most 120 products, in another order.
_CLOSE = {"rtol": 0, "atol": 120 * np.finfo(np.float32).eps * 4}


_OF_TWO = ("Reshape-split", "Reshape-units")  # the length of the batch is part of the new shape


@pytest.fixture(scope="module", params=[2, -1], ids=["batch-2", "any-batch"])
def operations(request):
    """Run the pass once on all operations; return what became of each."""
    parameter = ops.parameter([request.param, *_SHAPE[1:]], np.float32)
    outputs = {}
    for kind, build in {**CARRIED, **RESTORED}.items():
        if request.param == 2 or kind not in _OF_TWO:
            x = ops.tanh(transpose(parameter, _TO_SECOND))
            outputs[kind] = ops.relu(build(x)).output(0)
    found = carry(parameter, list(outputs.values()), pixels_of(_SHAPE))
    return parameter, dict(zip(outputs, zip(*found, strict=True), strict=True))


@pytest.mark.parametrize("kind", CARRIED)
def test_operations_take_the_other_order(operations, kind):
    parameter, found = operations
    if kind not in found:
        pytest.skip("the length of the batch is part of the new shape")
    before, after, (held_by, _) = found[kind]
    np.testing.assert_allclose(after, before, **_CLOSE)
    assert "Transpose" not in kinds([held_by], parameter)


@pytest.mark.parametrize("kind", RESTORED)
def test_other_operations_get_their_transposition_back(operations, kind):
    parameter, found = operations
    before, after, (held_by, order) = found[kind]
    np.testing.assert_allclose(after, before, **_CLOSE)
    assert order is None
    assert kinds([held_by], parameter).count("Transpose") == 1


def test_batch_normalization_keeps_its_channels_second():
    parameter = ops.parameter([-1, 4, 5, 6], np.float32)
    numbers = [constant(channels() + i) for i in range(4)]
    swapped = ops.batch_norm_inference(transpose(parameter, (0, 1, 3, 2)), *numbers, 1e-3)
    before, after, [(held_by, order)] = carry(
        parameter, [swapped.output(0)], pixels_of((2, 4, 5, 6))
    )
    np.testing.assert_allclose(after[0], before[0], **_CLOSE)
    assert order == (0, 1, 3, 2)
    assert "Transpose" not in kinds([held_by], parameter)


def test_transpositions_around_convolutions_vanish():
    kernel = constant(_RNG.standard_normal((4, 4, 3, 3)) / 6)
    parameter = ops.parameter([-1, 5, 6, 4], np.float32)
    values, x = [], parameter.output(0)
    for _ in range(3):
        x = ops.convolution(
            transpose(x, _TO_SECOND), kernel, [1, 1], [1, 1], [1, 1], [1, 1]
        ).output(0)
        x = ops.relu(ops.add(transpose(x, _TO_LAST), constant(channels()))).output(0)
        values.append(x)
    before, after, kept = carry(parameter, values, pixels_of(_SHAPE))
    for one, other in zip(before, after, strict=True):
        # Three layers of 36 products each.
        np.testing.assert_allclose(
            one, other, rtol=0, atol=3 * 36 * np.finfo(np.float32).eps * np.abs(one).max()
        )
    assert [order for _, order in kept] == [_TO_LAST] * 3
    assert kinds([output for output, _ in kept], parameter).count("Transpose") == 1


def test_branches_in_different_orders_are_joined():
    parameter = ops.parameter([2, 4, 4, 4], np.float32)
    branches = [
        ops.relu(transpose(parameter, order)).output(0)
        for order in (_TO_SECOND, (0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3))
    ]
    values = [ops.concat(branches, 1).output(0), ops.add(branches[1], branches[3]).output(0)]
    before, after, _ = carry(parameter, [*branches, *values], pixels_of((2, 4, 4, 4)))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("is_swapped", [False, True])
def test_maps_join_with_channels_first(is_swapped):
    """As in ConvNeXt's blocks by PyTorch: convolutions, and dense layers between transpositions."""
    parameter = ops.parameter([2, 4, 5, 6], np.float32)
    weights = constant(_RNG.standard_normal((4, 4, 1, 1)))
    shape = [1, 1], [0, 0], [0, 0], [1, 1]
    maps = ops.convolution(parameter, weights, *shape).output(0)
    dense = ops.matmul(transpose(maps, _TO_LAST), constant(np.eye(4)), False, False)
    branches = [maps, transpose(dense, _TO_SECOND)]
    total = ops.add(*(branches[::-1] if is_swapped else branches))
    output = ops.convolution(total, weights, *shape).output(0)
    before, after, kept = carry(parameter, [total.output(0), output], pixels_of((2, 4, 5, 6)))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, **_CLOSE)
    assert [order for _, order in kept] == [None, None]
    # The two around the dense layer.
    assert kinds([held_by for held_by, _ in kept], parameter).count("Transpose") == 2


def test_squeeze_and_excitation_keeps_no_transposition():
    weights = constant(_RNG.standard_normal((4, 4, 1, 1)))
    parameter = ops.parameter([-1, 5, 6, 4], np.float32)
    x = ops.reshape(ops.reduce_mean(parameter, [1, 2], False), [-1, 1, 1, 4], False)
    x = ops.convolution(transpose(x, _TO_SECOND), weights, [1, 1], [0, 0], [0, 0], [1, 1])
    maps = transpose(ops.relu(transpose(parameter, _TO_SECOND)), _TO_LAST)
    output = ops.multiply(maps, ops.sigmoid(transpose(x, _TO_LAST))).output(0)
    before, after, [(held_by, _)] = carry(parameter, [output], pixels_of(_SHAPE))
    np.testing.assert_allclose(after[0], before[0], **_CLOSE)
    # The one from the pixels is the graph's own end.
    assert kinds([held_by], parameter).count("Transpose") <= 1


def test_results_keep_values_and_names():
    parameter = ops.parameter([2, 3, 4, 5], np.float32)
    inner = ops.relu(transpose(parameter, _TO_SECOND))
    inner.set_friendly_name("inner")
    inner.output(0).set_names({"wanted"})
    back = transpose(inner, _TO_LAST)
    back.set_names({"back"})
    model = ov.Model([ops.result(inner), ops.result(back)], [parameter])
    pixels = pixels_of((2, 3, 4, 5))
    carry_transpositions(model, {})
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({0: pixels})
    np.testing.assert_array_equal(found["wanted"], np.maximum(pixels, 0).transpose(_TO_SECOND))
    np.testing.assert_array_equal(found["back"], np.maximum(pixels, 0))
    assert "inner" in [node.get_friendly_name() for node in model.get_ordered_ops()]


def test_a_value_beside_the_way_to_the_results_is_followed():
    parameter = ops.parameter([2, 3, 4, 5], np.float32)
    pixels = pixels_of((2, 3, 4, 5))
    beside = ops.negative(transpose(parameter, _TO_SECOND)).output(0)
    model = ov.Model([ops.result(ops.relu(parameter))], [parameter])
    output, order = carry_transpositions(model, {"beside": beside})["beside"]
    [value] = run([output], parameter, pixels)
    np.testing.assert_array_equal(value.transpose(order), -pixels.transpose(_TO_SECOND))


# --- random graphs -----------------------------------------------------------------------------
# Small integers only, so that every sum and product is exact in any order.


def _axis(draw, x):
    return draw(st.integers(0, len(x.shape) - 1))


def _some_axes(draw, x):
    return draw(st.sets(st.integers(0, len(x.shape) - 1), min_size=1, max_size=len(x.shape) - 1))


def _limited(x):
    return ops.clamp(x, -64, 64)


def _step_transpose(draw, x, values):
    return transpose(x, draw(st.permutations(range(len(x.shape)))))


def _step_unary(draw, x, values):
    return draw(st.sampled_from([ops.relu, ops.negative, ops.abs, _limited]))(x)


def _step_constant(draw, x, values):
    kept = draw(st.lists(st.booleans(), min_size=len(x.shape), max_size=len(x.shape)))
    shape = [n if keep else 1 for n, keep in zip(x.shape, kept, strict=True)]
    shape = shape[draw(st.integers(0, len(shape))) :]
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape) % 5 - 2
    operation = draw(st.sampled_from([ops.add, ops.subtract, ops.multiply, ops.maximum]))
    operands = [x, constant(numbers)]
    return _limited(operation(*(operands if draw(st.booleans()) else operands[::-1])))


def _step_join(draw, x, values):
    def fits(other):
        pairs = zip(reversed(list(x.shape)), reversed(list(other.shape)), strict=False)
        return all(n == m or 1 in (n, m) for n, m in pairs)

    other = draw(st.sampled_from([x, *(other for other in values if fits(other))]))
    return _limited(draw(st.sampled_from([ops.add, ops.multiply, ops.minimum]))(x, other))


def _step_concat(draw, x, values):
    axis = _axis(draw, x)

    def beside(shape):
        return [n for i, n in enumerate(shape) if i != axis]

    fitting = [
        other
        for other in values
        if len(other.shape) == len(x.shape) and beside(other.shape) == beside(x.shape)
    ]
    # Lengths that OpenVINO does not know in advance equal none, not even themselves.
    others = draw(st.lists(st.sampled_from([x, *fitting]), min_size=1, max_size=2))
    return ops.concat([x, *others], axis - draw(st.sampled_from([0, len(x.shape)])))


def _step_reduce(draw, x, values):
    operation = draw(st.sampled_from([ops.reduce_max, ops.reduce_sum, ops.reduce_min]))
    return _limited(operation(x, sorted(_some_axes(draw, x)), draw(st.booleans())))


def _step_unsqueeze(draw, x, values):
    return ops.unsqueeze(x, [draw(st.integers(-1, len(x.shape)))])


def _step_squeeze(draw, x, values):
    units = [axis for axis, n in enumerate(x.shape) if n == 1]
    return ops.squeeze(x, [draw(st.sampled_from(units))]) if units and len(x.shape) > 2 else x


def _step_merge(draw, x, values):
    axis = draw(st.integers(0, len(x.shape) - 2))
    shape = list(x.shape)
    return ops.reshape(x, [*shape[:axis], -1, *shape[axis + 2 :]], False)


def _step_split_axis(draw, x, values):
    axis, shape = _axis(draw, x), list(x.shape)
    for divisor in (2, 3, 1):
        if shape[axis] % divisor == 0:
            new = [*shape[:axis], divisor, shape[axis] // divisor, *shape[axis + 1 :]]
            return ops.reshape(x, new, False)


def _step_split(draw, x, values):
    axis = _axis(draw, x)
    return ops.split(x, constant(axis, np.int64), x.shape[axis]).output(x.shape[axis] - 1)


def _step_slice(draw, x, values):
    axes = sorted(_some_axes(draw, x))
    stop = [max(1, x.shape[axis] - 1) for axis in axes]
    return ops.slice(x, [0] * len(axes), stop, [1] * len(axes), axes)


def _step_strided_slice(draw, x, values):
    n = draw(st.integers(1, len(x.shape)))
    masks = [draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for _ in range(2)]
    return ops.strided_slice(x, [0] * n, [1] * n, [1] * n, *masks)


def _step_pad(draw, x, values):
    pads = [draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for n in [len(x.shape)] * 2]
    return ops.pad(x, *pads, "constant", constant(3.0))


def _step_gather(draw, x, values):
    axis = _axis(draw, x)
    indices = draw(st.sampled_from([0, [0], [0, -1], [[0, 0]]]))
    if indices == 0 and len(x.shape) < 3:
        return x
    return ops.gather(x, constant(indices, np.int64), constant(axis, np.int64))


def _step_tile(draw, x, values):
    return ops.tile(x, [draw(st.integers(1, 2)) for _ in x.shape])


def _step_shape(draw, x, values):
    return ops.reshape(_step_unary(draw, x, values), ops.shape_of(x), False)


def _step_matmul(draw, x, values):
    n = list(x.shape)[-1]
    return _limited(ops.matmul(x, constant(np.eye(n, n)[::-1].copy()), False, False))


_STEPS = [step for name, step in sorted(globals().items()) if name.startswith("_step_")]


@st.composite
def graphs(draw):
    """Draw a parameter and the values of a random graph of it."""
    shape = draw(st.lists(st.integers(1, 4), min_size=3, max_size=4))
    parameter = ops.parameter(shape, np.float32)
    values = [parameter.output(0), transpose(parameter, draw(st.permutations(range(len(shape)))))]
    for _ in range(draw(st.integers(1, 9))):
        step = draw(st.sampled_from([_step_transpose, *_STEPS]))
        source = draw(st.sampled_from(values[-3:]))
        if len(source.shape) < 2:
            source = ops.unsqueeze(source, [0]).output(0)
        new = step(draw, source, values)
        new = new.output(0) if isinstance(new, ov.Node) else new
        if len(new.shape) <= 6 and np.prod(list(new.shape)) <= 2000:
            values.append(new)
    return parameter, values


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs_keep_their_values(graph):
    parameter, values = graph
    values = [ops.negative(value).output(0) for value in values]
    pixels = (np.arange(np.prod(list(parameter.shape))) % 7 - 3).astype(np.float32)
    before, after, _ = carry(parameter, values, pixels.reshape(list(parameter.shape)), evaluate)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
