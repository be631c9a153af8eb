"""Remove operations of a graph that change nothing, or depend on constants alone."""

from sklearn_cnnfeat._network.runtime import import_openvino, import_passes
from sklearn_cnnfeat._network.transpositions import constant_of


def drop_identities(model, outputs):
    """Let readers of an operation that changes nothing read its input.

    These are conversions to the type that a value has, which Keras' backend puts around its layers,
    and products with 1, of which PyTorch's sums have one. They keep a batch normalization apart
    from its convolution. The graph is changed; returned is where `outputs` are now.
    """
    openvino = import_openvino()
    results = [result.input_value(0) for result in model.get_results()]
    whole = openvino.Model([*results, *outputs.values()], model.get_parameters())
    for node in whole.get_ordered_ops():
        source = _kept(node)
        if source is not None:
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(source)
    return {path: _source(output) for path, output in outputs.items()}


def fold_constants(model):
    """Compute what depends on constants alone, in place."""
    passes = import_passes()
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def _kept(node):
    """Return the input that a node gives as it is; None where it computes something."""
    if node.get_type_name() == "Convert":
        is_same = node.input(0).get_element_type() == node.output(0).get_element_type()
        return node.input_value(0) if is_same else None
    if node.get_type_name() == "Multiply":
        first, second = node.input_values()
        for value, factor in ((first, second), (second, first)):
            is_same = value.get_partial_shape() == node.get_output_partial_shape(0)
            if is_same and _is_one(constant_of(factor)):
                return value
    return None


def _is_one(numbers):
    return numbers is not None and numbers.size == 1 and numbers.item() == 1


def _source(output):
    while (source := _kept(output.get_node())) is not None:
        output = source
    return output
