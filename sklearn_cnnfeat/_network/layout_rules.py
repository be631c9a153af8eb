"""What each kind of operation does to an order of axes: the rules of the layout pass.

A rule for one value takes the operation and the carried value of its first input, changes the other
inputs and the attributes accordingly, and returns the order of the outputs. A rule for several
values takes all of them and returns their outputs rearranged, and the common order. Either returns
None, and has changed nothing, if it does not know what to do.
"""

import math

import numpy as np

from sklearn_cnnfeat._network.runtime import import_operations
from sklearn_cnnfeat._network.transpositions import (
    Carried,
    arranged,
    cheapest_order,
    constant_of,
    integers,
    lengths,
)

# --- one value ---------------------------------------------------------------------------------


def _constants(node, *positions):
    """Return the values of inputs as lists of integers, or None unless all are constants."""
    found = [constant_of(node.input_value(position)) for position in positions]
    return None if any(v is None for v in found) else [[int(n) for n in v.flat] for v in found]


def _set_input(node, position, values):
    node.input(position).replace_source_output(integers(values))


def _set_axis(node, position, axis):
    """Replace an input that is one axis, which must stay a scalar."""
    ops = import_operations()

    node.input(position).replace_source_output(ops.constant(np.int64(axis)).output(0))


def _without(order, axes):
    """Return the order of what is left when logical `axes` are removed."""
    left = [kept for axis, kept in enumerate(order) if axis not in axes]
    return tuple(sorted(left).index(kept) for kept in left)


def _axes_of(node, rank):
    found = _constants(node, 1) if node.get_input_size() > 1 else None
    return None if found is None else [axis % rank for axis in found[0]]


def _along_axes(node, value):
    """Normalizations over the axes in the second input."""
    return None if _move_axes(node, value.order) is None else value.order


def _move_axes(node, order):
    """Let an operation work on the same axes in an order; return them, None if unknown."""
    axes = _axes_of(node, len(order))
    if axes is not None:
        _set_input(node, 1, sorted(order[axis] for axis in axes))
    return axes


def _reduce(node, value):
    axes = _move_axes(node, value.order)
    if axes is None:
        return None
    return value.order if node.get_attributes()["keep_dims"] else _without(value.order, axes)


def _squeeze(node, value):
    if node.get_attributes().get("allow_axis_skip"):
        return None
    axes = _move_axes(node, value.order)
    return None if axes is None else _without(value.order, axes)


def _unsqueeze(node, value):
    order = value.order
    axes = _constants(node, 1)
    if axes is None:
        return None
    rank = len(order) + len(axes[0])
    new = sorted(axis % rank for axis in axes[0])
    # New axes come last, where they do not move any other.
    _set_input(node, 1, range(len(order), rank))
    old = iter(order)
    return tuple(len(order) + new.index(axis) if axis in new else next(old) for axis in range(rank))


def _along_axis(node, value):
    """Operations along the one axis in the second input."""
    order = value.order
    axes = _axes_of(node, len(order))
    if axes is None:
        return None
    _set_axis(node, 1, order[axes[0]])
    return order


def _along_attribute(node, value):
    """Operations along the axis in an attribute."""
    order = value.order
    node.set_attribute("axis", order[node.get_attributes()["axis"] % len(order)])
    return order


def _channels_second(node, value):
    """Operations whose channels are axis 1 and that treat all later axes alike."""
    return value.order if value.order[:2] == (0, 1) else None


def _gather(node, value):
    order = value.order
    axes = _constants(node, 2)
    rank = node.input_value(1).get_partial_shape().rank
    if axes is None or rank.is_dynamic or node.get_attributes()["batch_dims"] != 0:
        return None
    axis, added = axes[0][0] % len(order), rank.get_length()
    kept = order[axis]
    _set_axis(node, 2, kept)
    shifted = [other if other < kept else other + added - 1 for other in order]
    return (*shifted[:axis], *range(kept, kept + added), *shifted[axis + 1 :])


def _slice(node, value):
    order = value.order
    if node.get_input_size() < 5:
        n_sliced = lengths(node.input_value(1))[0]
        if n_sliced is None:
            return None
        axes = range(n_sliced)
    else:
        found = _constants(node, 4)
        if found is None:
            return None
        axes = [axis % len(order) for axis in found[0]]
    kept = integers([order[axis] for axis in axes])
    node.set_arguments([*node.input_values()[:4], kept])
    return order


_MASKS = ("new_axis_mask", "shrink_axis_mask", "ellipsis_mask")


def _strided_slice(node, value):
    order = value.order
    attributes = node.get_attributes()
    given = _constants(node, 1, 2, 3) if node.get_input_size() == 4 else None
    if given is None or any(any(attributes[mask]) for mask in _MASKS):
        return None
    given += [attributes["begin_mask"], attributes["end_mask"]]
    missing = (0, 0, 1, 1, 1)  # axes that are not named are taken whole
    n_named = len(given[0])
    for values, default in zip(given, missing, strict=True):
        # Masks may be shorter than what they mask, which means zeros.
        values.extend([0] * (n_named - len(values)))
        values.extend([default] * (len(order) - len(values)))
    logical_axes = [order.index(kept) for kept in range(len(order))]
    begin, end, steps, *masks = ([values[axis] for axis in logical_axes] for values in given)
    for position, values in enumerate((begin, end, steps), 1):
        _set_input(node, position, values)
    for name, mask in zip(("begin_mask", "end_mask"), masks, strict=True):
        node.set_attribute(name, mask)
    return order


def _per_axis(*positions):
    """Return the rule for operations with inputs that hold one number for each axis."""

    def rule(node, value):
        order = value.order
        given = _constants(node, *positions)
        if given is None or any(len(values) != len(order) for values in given):
            return None
        for position, values in zip(positions, given, strict=True):
            _set_input(node, position, [values[order.index(i)] for i in range(len(order))])
        return order

    return rule


def _interpolate(node, value):
    order = value.order
    attributes = node.get_attributes()
    # Sizes, scales and axes in this order; newer versions have only one of the first two.
    axes_at = 3 if node.get_type_info().version_id == "opset4" else 2
    if node.get_input_size() <= axes_at or any(attributes["pads_begin"] + attributes["pads_end"]):
        return None
    axes = _constants(node, axes_at)
    if axes is None:
        return None
    _set_input(node, axes_at, [order[axis % len(order)] for axis in axes[0]])
    return order


def _reshape(node, value):
    order, before, after = value.order, value.shape, lengths(node.output(0))
    groups = _groups(before, after)
    if groups is None or after.count(None) > 1:
        return None
    groups.sort(key=lambda group: min(order[axis] for axis in group[0]))
    kept = [order[axis] for group, _ in groups for axis in group if before[axis] != 1]
    if kept != sorted(kept):
        return None
    target = [axis for _, group in groups for axis in group]
    node.set_attribute("special_zero", False)
    _set_input(node, 1, [-1 if after[axis] is None else after[axis] for axis in target])
    return tuple(target.index(axis) for axis in range(len(after)))


def _groups(before, after):
    """Return which neighboring axes of one shape become which of another, in pairs of lists.

    None if that is ambiguous.
    """
    if before.count(None) > 1 or before.count(None) != after.count(None) or 0 in before + after:
        return None
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        if i == len(before) or j == len(after):
            # What is left has length 1 and goes with the last group.
            if not groups:
                return None
            groups[-1][0].extend(range(i, len(before)))
            groups[-1][1].extend(range(j, len(after)))
            break
        olds, news = [i], [j]
        if (before[i] is None) != (after[j] is None):
            return None
        if before[i] is not None:
            while (n := _length(before, olds)) != (m := _length(after, news)):
                axes, shape = (olds, before) if n < m else (news, after)
                axes.append(axes[-1] + 1)
                if axes[-1] == len(shape) or shape[axes[-1]] is None:
                    return None
        groups.append((olds, news))
        i, j = olds[-1] + 1, news[-1] + 1
    return groups


def _length(shape, axes):
    return math.prod(shape[axis] for axis in axes)


ONE_VALUE = {
    **dict.fromkeys(
        "ReduceMean ReduceMax ReduceMin ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogicalAnd "
        "ReduceLogicalOr".split(),
        _reduce,
    ),
    **dict.fromkeys(["MVN", "NormalizeL2", "LRN"], _along_axes),
    **dict.fromkeys(["Split", "VariadicSplit", "CumSum"], _along_axis),
    **dict.fromkeys(["Softmax", "LogSoftmax"], _along_attribute),
    **dict.fromkeys(["BatchNormInference", "GroupNormalization"], _channels_second),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Slice": _slice,
    "StridedSlice": _strided_slice,
    "Pad": _per_axis(1, 2),
    "Tile": _per_axis(1),
    "Interpolate": _interpolate,
    "Reshape": _reshape,
}

# --- several values ----------------------------------------------------------------------------


def _elementwise(node, values):
    rank = node.get_output_partial_shape(0).rank
    if rank.is_dynamic or node.get_attributes().get("auto_broadcast") == "pdpd":
        return None
    order = cheapest_order(values, rank.get_length())
    return None if order is None else ([arranged(value, order) for value in values], order)


def _prelu(node, values):
    ops = import_operations()

    data, slope = values
    rank = len(data.shape)
    if len(slope.shape) == 1 and slope.shape != (1,) and rank > 2:
        # One slope for each channel, and channels are axis 1.
        slope = Carried(ops.unsqueeze(slope.output, integers(range(1, rank - 1))).output(0))
    return _elementwise(node, [data, slope])


def _concat(node, values):
    rank = len(values[0].shape)
    order = cheapest_order(values, rank)
    if order is None:
        return None
    sources = [arranged(value, order) for value in values]
    node.set_attribute("axis", order[node.get_attributes()["axis"] % rank])
    return sources, order


SEVERAL_VALUES = {
    **dict.fromkeys(
        "Abs Acos Acosh Asin Asinh Atan Atanh Ceiling Clamp Convert ConvertLike Cos Cosh Elu Erf "
        "Exp Floor Gelu HSigmoid HSwish HardSigmoid IsFinite IsInf IsNaN Log LogicalNot Mish "
        "Negative Relu Round Selu Sigmoid Sign Sin Sinh SoftPlus SoftSign Sqrt Swish Tan "
        "Tanh".split(),
        _elementwise,
    ),
    **dict.fromkeys(
        "Add Divide Equal FloorMod Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr "
        "LogicalXor Maximum Minimum Mod Multiply NotEqual Power SquaredDifference Subtract Select "
        "FakeQuantize".split(),
        _elementwise,
    ),
    "PRelu": _prelu,
    "Concat": _concat,
}
