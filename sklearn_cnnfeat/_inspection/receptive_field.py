"""Receptive fields: which pixels of the network's input one position of a layer depends on.

They are computed from the graph that OpenVINO runs. Each value has, per axis, the size of the field
in pixels, the step from one position to the next, and where the field of the first position starts,
which may lie in the padding. Gates, which weigh channels by a mean over all positions, see the
whole image in every network that has them; they are left out.
"""

from dataclasses import dataclass

import numpy as np

# Operations that compute each position from the same position of their inputs.
_LOCAL = frozenset(
    """Abs Add BatchNormInference Clamp Concat Convert Divide Elu Erf Exp FakeQuantize Gelu
    HardSigmoid HSigmoid HSwish LogicalAnd Maximum Minimum Mish Multiply Negative PRelu Power Relu
    Reshape Result Selu Sigmoid SoftPlus Split Sqrt SquaredDifference Squeeze Subtract Swish Tanh
    Transpose Unsqueeze VariadicSplit""".split()
)
# Operations that do so where they change no shape, such as the reversal of channels.
_LOCAL_OF_SAME_SHAPE = frozenset(["Gather", "ReverseSequence", "Slice", "StridedSlice"])
_CONVOLUTIONS = frozenset(["Convolution", "GroupConvolution"])
_POOLINGS = frozenset(["MaxPool", "AvgPool"])
_REDUCTIONS = frozenset(["ReduceMax", "ReduceMean", "ReduceSum"])


@dataclass(frozen=True)
class ReceptiveField:
    """The field of a layer's positions, in pixels, each number for height and width."""

    size: tuple
    stride: tuple
    start: tuple

    def box(self, row, column):
        """Return top, left, bottom and right of a position's field; it may exceed the image."""
        top, left = (
            start + stride * place
            for start, stride, place in zip(self.start, self.stride, (row, column), strict=True)
        )
        return top, left, top + self.size[0], left + self.size[1]


# Beside a field, what a value may depend on: no pixel, every pixel by a gate, and every pixel.
_NOTHING, _GATE, _EVERYTHING = "nothing", "gate", "everything"


def receptive_field(output):
    """Return the field of the positions of `output`, an `openvino.Output`.

    None stands for the whole image, also where an operation is not known.
    """
    fields = {}
    for node in _in_order(output.get_node()):
        fields[node.get_friendly_name()] = _field_of(
            node, [fields[value.get_node().get_friendly_name()] for value in node.input_values()]
        )
    found = fields[output.get_node().get_friendly_name()]
    return found if isinstance(found, ReceptiveField) else None


def _in_order(last):
    """Return the nodes that `last` depends on, and itself, inputs before what uses them."""
    order, seen, stack = [], set(), [(last, False)]
    while stack:
        node, is_done = stack.pop()
        name = node.get_friendly_name()
        if is_done:
            order.append(node)
        elif name not in seen:
            seen.add(name)
            stack.append((node, True))
            stack += [(value.get_node(), False) for value in node.input_values()]
    return order


def _field_of(node, inputs):
    kind = node.get_type_name()
    if kind == "Parameter":
        return ReceptiveField((1, 1), (1, 1), (0, 0))
    if kind in ("Constant", "ShapeOf") or all(field == _NOTHING for field in inputs):
        return _NOTHING
    if kind in _LOCAL or (kind in _LOCAL_OF_SAME_SHAPE and _keeps_shape(node)):
        return _union(inputs)
    first = inputs[0]
    if not isinstance(first, ReceptiveField):
        return first
    if kind in _CONVOLUTIONS or kind in _POOLINGS:
        return _slid(node, kind, first)
    if kind == "Pad":
        return _padded(node, first)
    if kind in _REDUCTIONS:
        return _GATE
    return _EVERYTHING


def _union(inputs):
    fields = [field for field in inputs if isinstance(field, ReceptiveField)]
    if _EVERYTHING in inputs or len({field.stride for field in fields}) > 1:
        return _EVERYTHING
    if not fields:
        return _GATE
    start = np.min([field.start for field in fields], axis=0)
    end = np.max([np.add(field.start, field.size) for field in fields], axis=0)
    return ReceptiveField(tuple((end - start).tolist()), fields[0].stride, tuple(start.tolist()))


def _slid(node, kind, field):
    """Return the field behind a window that slides over positions."""
    settings = node.get_attributes()
    if kind in _CONVOLUTIONS:
        kernel = list(node.input_value(1).get_partial_shape().to_shape())[-2:]
    else:
        kernel = list(settings["kernel"])
    strides = list(settings["strides"])
    dilations = list(settings.get("dilations") or [1, 1])
    shape = [node.input_value(0).get_partial_shape(), node.output(0).get_partial_shape()]
    if len(kernel) != 2 or any(part.rank.get_length() != 4 for part in shape):
        return _EVERYTHING
    given, computed = ([_length(part[axis]) for axis in (2, 3)] for part in shape)
    if computed == [1, 1] and given != [1, 1]:
        return _GATE
    size, step, start = [], [], []
    for axis in range(2):
        reach = (kernel[axis] - 1) * dilations[axis]
        before = list(settings["pads_begin"])[axis]
        if settings.get("auto_pad", "explicit").startswith("same"):
            total = (computed[axis] - 1) * strides[axis] + reach + 1 - given[axis]
            is_upper = settings["auto_pad"].endswith("upper")
            before = max(total, 0) // 2 if is_upper else -(-max(total, 0) // 2)
        size.append(field.size[axis] + reach * field.stride[axis])
        start.append(field.start[axis] - before * field.stride[axis])
        step.append(field.stride[axis] * strides[axis])
    return ReceptiveField(tuple(size), tuple(step), tuple(start))


def _padded(node, field):
    pads = node.input_value(1).get_node()
    if pads.get_type_name() != "Constant":
        return _EVERYTHING
    before = np.ravel(pads.get_data()).tolist()
    if len(before) != 4:
        return _EVERYTHING
    # Channels are never padded: they come last, or second.
    places = before[1:3] if before[1] else before[2:4]
    start = tuple(
        start - number * stride
        for start, number, stride in zip(field.start, places, field.stride, strict=True)
    )
    return ReceptiveField(field.size, field.stride, start)


def _keeps_shape(node):
    return node.input_value(0).get_partial_shape() == node.output(0).get_partial_shape()


def _length(dimension):
    return dimension.get_length() if dimension.is_static else -1
