"""From an OpenVINO graph to a network of ncnn."""

from dataclasses import dataclass

import numpy as np

from sklearn_cnnfeat._network.engines import ncnn_axes, ncnn_layers
from sklearn_cnnfeat._network.engines.ncnn_graph import Graph, TranslationError, Value
from sklearn_cnnfeat._network.runtime import import_openvino

_OPERATIONS = {**ncnn_axes.OPERATIONS, **ncnn_layers.OPERATIONS}


@dataclass(frozen=True)
class Translation:
    """A network as ncnn loads it.

    Attributes
    ----------
    text : str
        The layers, in ncnn's format.
    weights : list of (ndarray, bool)
        In the order in which ncnn reads them, and whether a storage type comes before each.
    input : str
        Name of the blob of pixels: maps (channel, row, column).
    heads : list of Value
        The outputs.
    n_bytes : int
        Memory that ncnn takes at most while it loads the network.
    """

    text: str
    weights: list
    input: str
    heads: list
    n_bytes: int


def translate(model):
    """Return an OpenVINO model of one image's pixels as a network of ncnn.

    `TranslationError` is raised where ncnn lacks an operation, or one of its options.
    """
    shape = model.inputs[0].partial_shape
    if len(model.inputs) != 1 or shape.rank.is_dynamic or len(shape) != 4:
        raise TranslationError("it does not take one image of rows, columns and channels")
    if any(dimension.is_dynamic for dimension in list(shape)[1:]):
        raise TranslationError("it takes images of any size")
    model = model.clone()
    shape[0] = 1
    model.reshape(shape)
    return _Translator(model, import_openvino().Tensor).run()


class _Translator:
    """A translation at work: what the functions of each operation are called with."""

    def __init__(self, model, tensor):
        self.graph = Graph()
        self._model = model
        self._tensor = tensor
        self._values = {}
        self._constants = {}
        # Blobs that several operations read: the layer behind such a blob must stay as it is.
        self._shared = set()

    def run(self):
        """Translate all operations."""
        pixels = None
        for node in self._model.get_ordered_ops():
            if node.get_type_name() in ("Constant", "Result"):
                continue
            if self.evaluate(node.output(0)) is not None:
                continue
            operation = _OPERATIONS.get(node.get_type_name())
            if operation is None:
                self.refuse(node, "is not an operation of ncnn")
            value = operation(self, node)
            output = node.output(0)
            if (1, *value.shape) != tuple(output.get_shape()):
                self.refuse(node, f"would give {value.shape} instead of {output.get_shape()}")
            self._values[_key(output)] = value
            if len(output.get_target_inputs()) > 1:
                self._shared.add(value.blob)
            if node.get_type_name() == "Parameter":
                pixels = value.blob
        heads = [self.value(result, 0) for result in self._model.get_results()]
        text, weights, blobs = self.graph.finish([head.blob for head in heads])
        heads = [
            Value(blob, head.sizes, head.axes) for blob, head in zip(blobs, heads, strict=True)
        ]
        return Translation(text, weights, pixels, heads, self.graph.count_bytes())

    def refuse(self, node, reason):
        """Raise, naming the operation and the layer."""
        raise TranslationError(f"{node.get_type_name()} ({node.get_friendly_name()}) {reason}")

    def value(self, node, i):
        """Return the value that input `i` of a node is."""
        source = node.input(i).get_source_output()
        if _key(source) not in self._values:
            self.refuse(node, f"has a constant, or a second output, as its input {i}")
        return self._values[_key(source)]

    def is_shared(self, value):
        """Whether other operations read the same blob."""
        return value.blob in self._shared

    def constant(self, node, i):
        """Return the constant that input `i` of a node is."""
        values = self.evaluate(node.input(i).get_source_output())
        if values is None:
            self.refuse(node, f"has an input ({i}) that is not constant")
        return values

    def evaluate(self, output):
        """Return the value of an output that depends on constants and shapes alone, or None."""
        key = _key(output)
        if key not in self._constants:
            self._constants[key] = self._compute(output)
        return self._constants[key]

    def _compute(self, output):
        node = output.get_node()
        if node.get_type_name() == "Constant":
            kind = node.get_element_type().get_type_name()
            return node.get_data(dtype=np.float32) if kind in ("f16", "bf16") else node.data
        if node.get_type_name() == "ShapeOf":
            return np.array(list(node.input(0).get_shape()), np.int64)
        if node.get_type_name() == "Transpose":
            return self._compute_transpose(node)
        inputs = [self.evaluate(entry.get_source_output()) for entry in node.inputs()]
        if not inputs or any(values is None for values in inputs):
            return None
        types = [entry.get_element_type() for entry in node.inputs()]
        inputs = [
            # `ascontiguousarray` would give numbers without dimensions one.
            self._tensor(np.asarray(values, kind.to_dtype(), order="C"))
            for values, kind in zip(inputs, types, strict=True)
        ]
        outputs = [self._tensor(o.get_element_type(), o.get_shape()) for o in node.outputs()]
        if not node.evaluate(outputs, inputs):
            return None
        return np.array(outputs[output.get_index()].data)

    def _compute_transpose(self, node):
        """Return a view: Keras transposes all kernels, and a copy of them would be large."""
        array, order = (self.evaluate(entry.get_source_output()) for entry in node.inputs())
        if array is None or order is None:
            return None
        return array.transpose(tuple(order.ravel()) or None)


def _key(output):
    return output.get_node().get_name(), output.get_index()
