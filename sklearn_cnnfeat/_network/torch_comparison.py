"""Compare the graph of a PyTorch module with the module itself, layer by layer.

Every layer is computed from PyTorch's own values of the layers before it. So rounding, which some
networks amplify, does not add up, and one limit holds for every layer of every network.
"""

import math

import numpy as np

from sklearn_cnnfeat._network.engines.openvino import compile_in_float32
from sklearn_cnnfeat._network.runtime import import_openvino, import_operations
from sklearn_cnnfeat.exceptions import EngineError

# Largest difference to PyTorch's numbers, relative to the largest of them, that is put down to the
# rounding of float32 within one layer.
TOLERANCE = 1e-4


def compare_layers(model, pixels, expected, name):
    """Raise unless each layer of a graph gives what the same layer of its module gives.

    `expected` has the value of each layer by its path, in the order of the outputs of the graph.
    """
    model = model.clone()
    (parameter,) = model.get_parameters()
    parameter.set_partial_shape(import_openvino().PartialShape(list(pixels.shape)))
    model.validate_nodes_and_infer_types()
    for output, (path, value) in zip(model.outputs, expected.items(), strict=True):
        if tuple(output.shape) != value.shape:
            raise _error(path, name, f"its shape is {tuple(output.shape)}, not {value.shape}")
    sources = _part_layers(model)
    found = list(expected.values())
    values = [pixels, *(found[index] for index in sources)]
    pairs = zip(values, _types(model), strict=True)
    inputs = [value.astype(kind.to_dtype(), copy=False) for value, kind in pairs]
    # The values of all layers may take gigabytes: without copies.
    computed = compile_in_float32(model)(inputs, share_inputs=True, share_outputs=True)
    for i, (path, value) in enumerate(expected.items()):
        difference = measure_difference(computed[i], value)
        if not difference <= TOLERANCE:
            raise _error(path, name, f"by {difference:.1e} of the largest value")


def _part_layers(model):
    """Let each layer of a model read inputs in place of the layers before it.

    Returned is, for each new input, the output that it stands for.
    """
    operations = import_operations()
    known = {_key(parameter.output(0)) for parameter in model.get_parameters()}
    sources = []
    for index, result in enumerate(model.get_results()):
        value = result.input_value(0)
        readers = [
            reader
            for reader in value.get_target_inputs()
            if reader.get_node().get_type_name() != "Result"
        ]
        if not readers or _key(value) in known or value.get_node().get_type_name() == "Constant":
            continue
        known.add(_key(value))
        stand_in = operations.parameter(value.get_shape(), value.get_element_type())
        for reader in readers:
            reader.replace_source_output(stand_in.output(0))
        model.add_parameters([stand_in])
        sources.append(index)
    model.validate_nodes_and_infer_types()
    return sources


def _types(model):
    return [parameter.get_element_type() for parameter in model.get_parameters()]


def _key(output):
    return output.get_node().get_name(), output.get_index()


def _error(path, name, how):
    return EngineError(
        f"OpenVINO computes layer {path!r} of {name} differently from PyTorch: {how}. "
        "engine='torch' runs it on PyTorch itself."
    )


def measure_difference(found, expected):
    """Return the largest difference, relative to the largest finite number that is expected."""
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    largest = np.abs(expected[finite]).max() or 1.0
    difference = np.abs(found[finite].astype(np.float32) - expected[finite]).max()
    return math.inf if np.isnan(difference) else float(difference / largest)
