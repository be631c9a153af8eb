"""The layout pass: carry transpositions to the ends of a graph and drop those that meet.

OpenVINO's convolutions take channels first and Keras' networks have them last, so the converted
graph has a transposition before and after every convolution. The pass visits each operation once. A
transposition is not executed but noted: "this value is that one, in another order of axes".
Operations that can work in the other order do so (`layout_rules`), and the note moves on to their
outputs. Any other operation gets the transposition back: slower, but never wrong.
"""

from sklearn_cnnfeat._network.layout_rules import ONE_VALUE, SEVERAL_VALUES
from sklearn_cnnfeat._network.runtime import import_openvino, import_operations
from sklearn_cnnfeat._network.transpositions import (
    Carried,
    composed,
    constant_of,
    integers,
    moved,
    normalized,
)


def carry_transpositions(model, outputs):
    """Carry the transpositions of `model` to its ends, in place.

    Operations keep their friendly names, and the results of the model their values and names. A
    tensor name inside stays with the operation, which may now compute in another order.

    Parameters
    ----------
    model : openvino.Model
        The graph. Its inputs and results stay as they are.
    outputs : dict of str to openvino.Output
        Values to follow, of operations that may lie beside the way to the model's results.

    Returns
    -------
    carried : dict of str to (openvino.Output, tuple or None)
        For each of `outputs` what holds its value now, and the order of axes with
        ``value == transpose(output, order)``; None where that is the same.
    """
    openvino = import_openvino()

    results = model.get_results()
    # A model of everything that is wanted, for the order of computation.
    whole = openvino.Model(
        [*(result.input_value(0) for result in results), *outputs.values()],
        model.get_sinks(),
        model.get_parameters(),
    )
    walk = _Walk()
    for node in whole.get_ordered_ops():
        if node.get_type_name() != "Result":
            walk.visit(node)
    for result in results:
        result.input(0).replace_source_output(walk.with_names(result.input_value(0)))
    carried = {path: walk.look_up(output) for path, output in outputs.items()}
    del whole
    model.validate_nodes_and_infer_types()
    return {path: (value.output, value.order) for path, value in carried.items()}


class _Walk:
    """What is known of the values of a graph while its operations are visited in order."""

    def __init__(self):
        self._carried = {}  # by what gave the value before the pass
        self._restored = {}  # transpositions that were put back, one for each value

    def look_up(self, output):
        """Return the `Carried` value that stands for an output of the graph as it was."""
        return self._carried.get(output, Carried(output))

    def restore(self, output):
        """Return an output that holds the value in its logical order."""
        value = self.look_up(output)
        if value.order is None:
            return value.output
        if value not in self._restored:
            restored = moved(value.output, value.order)
            name = output.get_node().get_friendly_name()
            if output.get_node().get_type_name() != "Transpose":
                name += "/transposed"
            restored.get_node().set_friendly_name(name)
            self._restored[value] = restored
        return self._restored[value]

    def with_names(self, output):
        """Return the value in its logical order with the tensor names that it had."""
        restored = self.restore(output)
        if restored != output:
            names = output.get_names()
            output.set_names(set())
            restored.add_names(names)
        return restored

    def visit(self, node):
        """Connect an operation to what its inputs have become."""
        inputs = [node.input_value(i) for i in range(node.get_input_size())]
        values = [self.look_up(output) for output in inputs]
        if node.get_type_name() == "Transpose" and self._note(node, values):
            return
        if all(value.order is None for value in values):
            order, sources = None, [value.output for value in values]
        elif node.get_type_name() == "ShapeOf":
            self._permute_shape(node, values[0])
            return
        else:
            order, sources = self._apply_rule(node, values)
            if sources is None:
                sources = [self.restore(output) for output in inputs]
        for position, (source, given) in enumerate(zip(sources, inputs, strict=True)):
            if source is not None and source != given:
                node.input(position).replace_source_output(source)
        node.validate_and_infer_types()
        if order is not None:
            for output in node.outputs():
                self._carried[output] = Carried(output, order)

    def _note(self, node, values):
        order = constant_of(values[1].output)
        if order is None:
            return False
        value, order = values[0], [int(axis) for axis in order.flat]
        order = normalized(composed(value.order, order) if value.order else order)
        self._carried[node.output(0)] = Carried(value.output, order)
        return True

    def _apply_rule(self, node, values):
        """Return the order of the outputs and the inputs, None for those that a rule has set."""
        kind = node.get_type_name()
        if kind in SEVERAL_VALUES:
            found = SEVERAL_VALUES[kind](node, values)
            if found is not None:
                sources, order = found
                return normalized(order), sources
        elif kind in ONE_VALUE and all(value.order is None for value in values[1:]):
            order = ONE_VALUE[kind](node, values[0])
            if order is not None:
                return normalized(order), [values[0].output] + [None] * (len(values) - 1)
        return None, None

    def _permute_shape(self, node, value):
        """Take the shape of what holds the value, and rearrange that instead."""
        ops = import_operations()

        node.input(0).replace_source_output(value.output)
        node.validate_and_infer_types()
        shape = ops.gather(node, integers(value.order), integers(0)).output(0)
        self._carried[node.output(0)] = Carried(shape)
