"""Cuts of a whole network: preprocessing, the requested layers, and their poolings.

They are OpenVINO operations, the same for networks of all frameworks. A cut takes milliseconds.
"""

import math
from dataclasses import dataclass

import numpy as np

from sklearn_cnnfeat._network.pooling import pool
from sklearn_cnnfeat._network.runtime import import_openvino, import_operations
from sklearn_cnnfeat._network.spec import Normalization

# Prefix of the names of layers' tensors in a whole network; the path of the layer follows.
LAYER_PREFIX = "layer:"
_PIXELS = "pixels"
# Operations that show the same numbers in another shape.
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze"}


def name_layers(converted, permutations):
    """Return the model of a `Converted` with the output of each layer found by its name.

    `permutations` has, for each path, the output that holds the layer's value, and the permutation
    of its axes that gives the logical order, or None.
    """
    openvino = import_openvino()
    op = import_operations()

    outputs = {}
    for path, (output, _) in permutations.items():
        output.add_names({LAYER_PREFIX + path})
        outputs[output.get_node().get_friendly_name(), output.get_index()] = output
    results = [op.result(output) for output in outputs.values()]
    return openvino.Model(results, converted.model.get_parameters(), "sklearn_cnnfeat")


def cut(network, heads, permutations, preprocessing):
    """Return the part of a network that computes some heads.

    The layers of the network are named, as `name_layers` leaves it; `permutations` give the logical
    order of those whose value is stored in another one. The part goes from pixels (n, height,
    width, channels), 0 to 255, to one output for each head, which holds the numbers of
    `Head.shape`, perhaps in another shape.
    """
    openvino = import_openvino()
    op = import_operations()

    network = network.clone()
    (parameter,) = network.get_parameters()
    tensors = _layer_outputs(network)
    if preprocessing is not None:
        pixels = parameter.output(0)
        readers = list(pixels.get_target_inputs())
        prepared = _preprocess(pixels, preprocessing)
        for reader in readers:
            reader.replace_source_output(prepared)
        tensors |= {path: prepared for path, output in tensors.items() if output == pixels}
    outputs = []
    for head in heads:
        stored = Maps(tensors[head.layer], permutations.get(head.layer))
        if head.grid is not None:
            stored = _select_tokens(stored, head)
        if head.pooling == "cls":
            rows = stored
        else:
            rows = pool(stored, head.pooling, head.map_shape, Operations)
        outputs.append(_output(rows))
    results = [op.result(output) for output in outputs]
    return openvino.Model(results, [parameter], "sklearn_cnnfeat")


def _select_tokens(tokens, head):
    """Return the class token, or the patches as maps (n, height, width, width of a token)."""
    op = import_operations()

    start, stop = head.grid.tokens_of(head.pooling)
    bounds = [np.array([n], np.int64) for n in (start, stop, 1, tokens.axis(1))]
    chosen = op.slice(tokens.output, *bounds).output(0)
    chosen = Maps(chosen, tokens.permutation).in_logical_order()
    shape = (0, head.map_shape[-1]) if head.pooling == "cls" else (0, *head.map_shape)
    return Maps(op.reshape(chosen, np.array(shape, np.int64), special_zero=True).output(0))


def _layer_outputs(network):
    found = {}
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Result":  # it has the names of its input
            continue
        for output in node.outputs():
            for name in output.get_names():
                if name.startswith(LAYER_PREFIX):
                    found[name.removeprefix(LAYER_PREFIX)] = output
    return found


def _output(rows):
    """Return the tensor that holds the numbers of `rows`, to be an output of the network.

    OpenVINO (2026.4) computes garbage from a tensor that goes on through the network and is an
    output in another shape too. So rows get their shape when they have left the network.
    """
    op = import_operations()

    output = rows.in_logical_order()
    length = _length(output)
    while output.get_node().get_type_name() in _VIEWS:
        source = output.get_node().input_value(0)
        if _length(source) != length:  # the batch has got into another dimension
            break
        output = source
    if output.get_node().get_type_name() == "Parameter":
        # The input itself cannot be an output in OpenVINO, but what is computed from it can.
        output = op.negative(op.negative(output)).output(0)
    return output


def _length(output):
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic or any(dimension.is_dynamic for dimension in list(shape)[1:]):
        return None
    return math.prod(dimension.get_length() for dimension in list(shape)[1:])


# --- preprocessing --------------------------------------------------------------------------------

# Means of ImageNet's blue, green and red; means and deviations of its red, green and blue on 0-1.
_CAFFE_MEAN = (103.939, 116.779, 123.68)
_TORCH_MEAN, _TORCH_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _preprocess(pixels, mode):
    """Apply a mode of Keras' `preprocess_input` to pixels (n, height, width, channels)."""
    op = import_operations()

    def number(*values):
        return op.constant(np.array(values, np.float32))

    if isinstance(mode, Normalization):
        scaled = op.subtract(op.divide(pixels, number(255)), number(*mode.mean))
        return op.divide(scaled, number(*mode.std)).output(0)
    if mode == "rescale":
        return op.divide(pixels, number(255)).output(0)
    if mode == "tf":
        return op.subtract(op.divide(pixels, number(127.5)), number(1)).output(0)
    if mode == "torch":
        centered = op.subtract(op.divide(pixels, number(255)), number(*_TORCH_MEAN))
        return op.divide(centered, number(*_TORCH_DEVIATION)).output(0)
    order = op.constant(np.array([2, 1, 0], np.int64))
    axis = op.constant(np.array(3, np.int64))
    return op.subtract(op.gather(pixels, order, axis), number(*_CAFFE_MEAN)).output(0)


# --- pooling --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maps:
    """A layer's value as the network holds it.

    The `permutation` of its axes gives (n, height, width, channels); None where that is their
    order.
    """

    output: object
    permutation: tuple | None = None

    def axis(self, logical):
        """Return where the tensor has an axis of the logical order."""
        return logical if self.permutation is None else self.permutation[logical]

    def in_logical_order(self):
        """Return the tensor with its axes in logical order."""
        op = import_operations()

        if self.permutation is None:
            return self.output
        return op.transpose(self.output, np.array(self.permutation, np.int64)).output(0)


class Operations:
    """What `pooling.pool` needs, on OpenVINO."""

    @staticmethod
    def mean(maps):
        """Average over height and width."""
        op = import_operations()

        axes = np.array([maps.axis(1), maps.axis(2)], np.int64)
        return Maps(op.reduce_mean(maps.output, axes, keep_dims=False).output(0))

    @staticmethod
    def max(maps):
        """Take the maximum over height and width."""
        op = import_operations()

        axes = np.array([maps.axis(1), maps.axis(2)], np.int64)
        return Maps(op.reduce_max(maps.output, axes, keep_dims=False).output(0))

    @staticmethod
    def power(maps, exponent):
        """Raise all values to a power."""
        op = import_operations()

        raised = op.power(maps.output, np.float32(exponent)).output(0)
        return Maps(raised, maps.permutation)

    @staticmethod
    def maximum(maps, floor):
        """Raise all values to at least `floor`."""
        op = import_operations()

        return Maps(op.maximum(maps.output, np.float32(floor)).output(0), maps.permutation)

    @staticmethod
    def flatten(maps, length):
        """Put rows, columns and channels one behind the other: their order is all that counts."""
        del length
        return Maps(maps.in_logical_order())

    @staticmethod
    def crop(maps, top, bottom, left, right):
        """Take a rectangle of positions."""
        op = import_operations()

        axes = np.array([maps.axis(1), maps.axis(2)], np.int64)
        start, stop = np.array([top, left], np.int64), np.array([bottom, right], np.int64)
        step = np.ones(2, np.int64)
        return Maps(op.slice(maps.output, start, stop, step, axes).output(0), maps.permutation)

    @staticmethod
    def concatenate(vectors):
        """Put vectors side by side."""
        op = import_operations()

        return Maps(op.concat([vector.output for vector in vectors], 1).output(0))
