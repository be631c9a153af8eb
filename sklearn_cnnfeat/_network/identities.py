"""Remove operations of a graph that change nothing."""

from sklearn_cnnfeat._network.runtime import import_openvino


def drop_identities(model, outputs):
    """Let readers of a conversion to the type that a value has read that value itself.

    Keras' backend puts such conversions around its layers, where they keep a batch normalization
    apart from its convolution.

    Parameters
    ----------
    model : openvino.Model
        The graph; it is changed.
    outputs : dict of str to openvino.Output
        Values to follow.

    Returns
    -------
    outputs : dict of str to openvino.Output
        Where they are now.
    """
    openvino = import_openvino()
    results = [result.input_value(0) for result in model.get_results()]
    whole = openvino.Model([*results, *outputs.values()], model.get_parameters())
    for node in whole.get_ordered_ops():
        if _is_identity(node):
            source = node.input_value(0)
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(source)
    return {path: _source(output) for path, output in outputs.items()}


def _is_identity(node):
    if node.get_type_name() != "Convert":
        return False
    return node.input(0).get_element_type() == node.output(0).get_element_type()


def _source(output):
    while _is_identity(output.get_node()):
        output = output.get_node().input_value(0)
    return output
