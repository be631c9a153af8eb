"""Operations that change nothing are dropped, and no others."""

import numpy as np
import openvino as ov
import openvino.opset15 as ops
import pytest

from sklearn_cnnfeat._network.identities import drop_identities


def kinds_after(value, parameter):
    """Return the kinds of operations that are left between a parameter and a value."""
    last = ops.relu(value)
    model = ov.Model([ops.result(last)], [parameter])
    outputs = drop_identities(model, {"value": value.output(0), "last": last.output(0)})
    left = ov.Model(list(outputs.values()), [parameter])
    kinds = [node.get_type_name() for node in left.get_ordered_ops()]
    return set(kinds) - {"Parameter", "Constant", "Result"}


def images(*shape):
    return ops.parameter(shape, np.float32)


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("one", [np.float32(1), np.ones((1, 1), np.float32)], ids=["scalar", "1x1"])
def test_products_with_one(one, is_swapped):
    parameter = images(-1, 4, 5)
    terms = [parameter, ops.constant(one)]
    assert kinds_after(ops.multiply(*terms[:: -1 if is_swapped else 1]), parameter) == {"Relu"}


def test_conversions_to_the_same_type():
    parameter = images(-1, 4)
    assert kinds_after(ops.convert(parameter, "f32"), parameter) == {"Relu"}
    assert kinds_after(ops.convert(parameter, "f64"), parameter) == {"Convert", "Relu"}


@pytest.mark.parametrize(
    "factor",
    [np.float32(1.0000001), np.ones(4, np.float32), np.ones((1, 1, 1), np.float32)],
    ids=["another number", "several", "another rank"],
)
def test_products_that_stay(factor):
    parameter = images(2, 4)
    assert "Multiply" in kinds_after(ops.multiply(parameter, ops.constant(factor)), parameter)
