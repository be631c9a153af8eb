"""Fold batch normalization into the convolution or dense layer before it, once, in the graph.

OpenVINO folds it when it compiles, but only if nothing else reads the output of the convolution.
The bits of a row would then depend on which other layers are requested. Here every value gets its
own branch: a scaled convolution has a scaled kernel, and its raw output, if requested, comes from
the original convolution. The graph holds the kernel once; OpenVINO multiplies it with the scale
when it compiles.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_cnnfeat._network.runtime import import_openvino, import_operations
from sklearn_cnnfeat._network.transpositions import constant_of, lengths

# The axes of a kernel that together count the output channels.
_CHANNEL_AXES = {
    "Convolution": (0,),
    "GroupConvolution": (0, 1),
    "ConvolutionBackpropData": (1,),
    "GroupConvolutionBackpropData": (0, 2),
}
# With these OpenVINO does not join what follows.
_ON_THEIR_OWN = {"Concat", "MaxPool", "AvgPool", "Parameter"}
# A longer constant does not hold one number for each channel.
_MOST_CHANNELS = 100_000


def fold_batch_normalization(model, outputs):
    """Fold batch normalization in `model`, in place, and return the new `outputs`.

    This comes after the layout pass.

    Batch normalization right behind a convolution or a dense layer, whether one operation or
    several with constants, goes into the kernel. Any other becomes one multiplication, or a
    convolution of each channel with one number, and one addition.

    `outputs` are values to follow, by name, of operations that may lie beside the way to the
    model's results.
    """
    openvino = import_openvino()

    results = [result.input_value(0) for result in model.get_results()]
    whole = openvino.Model([*results, *outputs.values()], model.get_sinks(), model.get_parameters())
    folding = _Folding()
    for node in whole.get_ordered_ops():
        folding.visit(node)
    del whole
    model.validate_nodes_and_infer_types()
    return {path: folding.replaced.get(output, output) for path, output in outputs.items()}


@dataclass(frozen=True)
class _Scaled:
    """The output of a convolution or a dense layer, times a scale, plus a shift.

    Both are vectors of float64 numbers, one for each channel. A scale of None is 1.
    """

    node: Any
    axes: tuple  # of the kernel that count the channels
    shift: Any
    scale: Any = None

    @property
    def rank(self):
        """Number of axes of the output."""
        return self.node.get_output_partial_shape(0).rank.get_length()

    @property
    def channel_axis(self):
        """Axis of the output that holds the channels."""
        return self.rank - 1 if self.node.get_type_name() == "MatMul" else 1

    def then(self, scale, shift):
        """Return this value times another scale plus another shift; None if they do not fit."""
        shift = self._vector(shift)
        if shift is None:
            return None
        if scale is None:
            return replace(self, shift=self.shift + shift)
        scale = self._vector(scale)
        if scale is None:
            return None
        own = 1.0 if self.scale is None else self.scale
        return replace(self, scale=own * scale, shift=self.shift * scale + shift)

    def _vector(self, values):
        n_channels, rank = len(self.shift), self.rank
        if values.ndim > rank or values.size not in (1, n_channels):
            return None
        shape = (1,) * (rank - values.ndim) + values.shape
        if values.size > 1 and shape[self.channel_axis] != n_channels:
            return None
        return np.broadcast_to(values.ravel(), n_channels)

    def build(self):
        """Return the output of a convolution with a scaled kernel, and the shift added."""
        ops = import_operations()
        NodeFactory = import_openvino().utils.node_factory.NodeFactory

        data, kernel, *others = self.node.input_values()
        shape = [n if axis in self.axes else 1 for axis, n in enumerate(lengths(kernel))]
        kernel = ops.multiply(kernel, _float32(self.scale.reshape(shape))).output(0)
        factory = NodeFactory(self.node.get_type_info().version_id)
        scaled = factory.create(
            self.node.get_type_name(), [data, kernel, *others], self.node.get_attributes()
        )
        shape = [1] * self.rank
        shape[self.channel_axis] = -1
        return ops.add(scaled, _float32(self.shift.reshape(shape))).output(0)


class _Folding:
    """What is known of the values of a graph while its operations are visited in order."""

    def __init__(self):
        self.replaced = {}
        self._constant = set()  # outputs that depend on nothing but constants
        self._scaled = {}

    def visit(self, node):
        """Replace batch normalization, or note what the node gives."""
        inputs = node.input_values()
        if node.get_type_name() == "Constant" or (
            inputs and all(value in self._constant for value in inputs)
        ):
            self._constant.update(node.outputs())
        elif node.get_type_name() in (*_CHANNEL_AXES, "MatMul"):
            self._note_layer(node)
        elif node.get_output_size() == 1:
            self._scale(node)

    def _note_layer(self, node):
        data, kernel = node.input_values()[:2]
        shape = lengths(kernel)
        if kernel not in self._constant or None in shape or not _is_float32(node):
            return
        axes = _CHANNEL_AXES.get(node.get_type_name())
        if axes is None:
            attributes = node.get_attributes()
            if len(shape) != 2 or attributes["transpose_a"] or len(lengths(data)) < 2:
                return
            axes = (0,) if attributes["transpose_b"] else (1,)
        n_channels = int(np.prod([shape[axis] for axis in axes]))
        self._scaled[node.output(0)] = _Scaled(node, axes, np.zeros(n_channels))

    def _scale(self, node):
        found = self._as_affine(node)
        if found is None:
            return
        data, scale, shift = found
        layer = self._scaled.get(data)
        scaled = layer and layer.then(scale, shift)
        if scaled:
            output = node.output(0)
            if scaled.scale is not None:
                output = self._put(node, scaled.build())
            self._scaled[output] = scaled
        elif node.get_type_name() == "BatchNormInference":
            self._put(node, _normalized(data, scale, shift))

    def _as_affine(self, node):
        """Return (data, scale, shift) if a node computes data * scale + shift from constants.

        Scale and shift are float64 arrays as NumPy broadcasts them; a scale of None is 1.
        """
        kind = node.get_type_name()
        if kind == "BatchNormInference" and _is_float32(node):
            data, *numbers = node.input_values()
            numbers = [self._value_of(number) for number in numbers]
            if any(number is None for number in numbers):
                return None
            gamma, beta, mean, variance = numbers
            scale = gamma / np.sqrt(variance + node.get_attributes()["epsilon"])
            shape = (-1, *[1] * (node.get_output_partial_shape(0).rank.get_length() - 2))
            return data, scale.reshape(shape), (beta - mean * scale).reshape(shape)
        if kind not in ("Add", "Subtract", "Multiply", "Divide") or not _is_float32(node):
            return None
        data, other = node.input_values()
        if kind in ("Add", "Multiply") and data in self._constant:
            data, other = other, data
        values = self._value_of(other)
        if values is None or node.get_attributes()["auto_broadcast"] == "pdpd":
            return None
        if kind in ("Add", "Subtract"):
            return data, None, values if kind == "Add" else -values
        if kind == "Divide" and not values.all():
            return None
        return data, values if kind == "Multiply" else 1 / values, np.zeros(1)

    def _value_of(self, output):
        """Return a short constant, computed if need be, as float64; None for anything else."""
        openvino = import_openvino()

        shape = lengths(output)
        if output not in self._constant or None in shape or np.prod(shape) > _MOST_CHANNELS:
            return None
        values = constant_of(output)
        if values is None:
            tensor = openvino.Tensor(output.get_element_type(), openvino.Shape(shape))
            if not openvino.Model([output], []).evaluate([tensor], []):
                return None
            values = tensor.data
        return np.array(values, np.float64)

    def _put(self, node, new):
        """Let an output take the place of that of a node, with its names."""
        output = node.output(0)
        new.get_node().set_friendly_name(node.get_friendly_name())
        names = output.get_names()
        output.set_names(set())
        output.replace(new)
        new.add_names(names)
        self.replaced[output] = new
        return new


def _is_float32(node):
    return node.get_output_element_type(0).get_type_name() == "f32"


def _float32(values):
    ops = import_operations()

    return ops.constant(np.asarray(values, np.float32)).output(0)


def _normalized(data, scale, shift):
    """Return data * scale + shift with bits that do not depend on other readers of the data.

    Behind a convolution, OpenVINO would multiply and add as the convolution ends, in two roundings,
    if nobody else reads what is between, and in one rounding otherwise. A convolution of each
    channel with one number is always on its own.
    """
    ops = import_operations()

    is_map = data.get_partial_shape().rank.get_length() == 4
    if is_map and data.get_node().get_type_name() not in _ON_THEIR_OWN:
        kernel = _float32(scale.reshape(-1, 1, 1, 1, 1))
        scaled = ops.group_convolution(data, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    else:
        scaled = ops.multiply(data, _float32(scale))
    return ops.add(scaled, _float32(shift)).output(0)
