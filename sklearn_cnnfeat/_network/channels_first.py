"""Convert the graph of a channels-first front end to a `Converted` with channels last."""

import numpy as np

from sklearn_cnnfeat._network.converted import Converted
from sklearn_cnnfeat._network.identities import fold_constants
from sklearn_cnnfeat._network.runtime import import_openvino, import_operations

PIXELS = "pixels"


def to_converted(model, layers, outputs, orders, is_channels_first=True):
    """Return a graph as a `Converted` whose images and maps are channels last.

    `orders` holds, for each output by the path of its layer, the order that brings its axes behind
    the batch to the logical ones.
    """
    openvino = import_openvino()
    operations = import_operations()

    fold_constants(model)  # axes and factors, which later passes look at
    (old,) = model.get_parameters()
    shape, kind = old.get_partial_shape(), old.get_element_type()
    if is_channels_first:
        shape = openvino.PartialShape([shape[0], shape[2], shape[3], shape[1]])
    pixels = operations.parameter(shape, openvino.Type.f32, name=PIXELS)
    pixels.output(0).set_names({PIXELS})
    value = pixels.output(0)
    if is_channels_first:
        value = operations.transpose(value, np.array([0, 3, 1, 2])).output(0)
    if kind != openvino.Type.f32:
        value = operations.convert(value, kind.get_type_name()).output(0)
    # The input itself may be a layer's value, where that layer does nothing.
    is_input = {path: _key(output) == _key(old.output(0)) for path, output in outputs.items()}
    for target in list(old.output(0).get_target_inputs()):
        target.replace_source_output(value)
    values = {}
    for path, output in outputs.items():
        output = value if is_input[path] else output
        if output.get_element_type() != openvino.Type.f32:
            output = operations.convert(output, "f32").output(0)
        order = (0, *(axis + 1 for axis in orders[path]))
        if order != tuple(range(len(order))):
            output = operations.transpose(output, np.array(order)).output(0)
        values[path] = output
    whole = openvino.Model(list(values.values()), [pixels], "sklearn_cnnfeat")
    return Converted(whole, layers, values)


def _key(output):
    return output.get_node().get_name(), output.get_index()
