"""Front end: a Keras model on TensorFlow, frozen once with the output of every layer.

It converts everything that TensorFlow can trace: custom and `Lambda` layers, operations of ``tf.``,
subclassed models.
"""

import os
import tempfile
from pathlib import Path

from sklearn_cnnfeat._network.converted import ConversionError, Converted
from sklearn_cnnfeat._network.engines.openvino import first_line
from sklearn_cnnfeat._network.keras_layers import (
    compute,
    compute_layers,
    faults_of,
    input_dtype,
    is_channels_first,
    list_layers,
)
from sklearn_cnnfeat._network.runtime import import_openvino


def convert(model, source, input_shape):
    """Convert a Keras model whole; return it, and what runs the original.

    The latter takes float32 pixels (n, height, width, channels) and paths of layers, returns what
    TensorFlow computes for them, and shares nothing with the converted network.
    """
    limit_threads()
    function, paths = _trace(model, source, input_shape)
    try:
        graph = _read(function)
    except Exception as error:
        raise ConversionError(
            f"OpenVINO cannot take {source.label}: {first_line(error)}."
        ) from error
    pixels = graph.get_parameters()[0]
    pixels.output(0).set_names({"pixels"})
    pixels.set_friendly_name("pixels")
    tensors = {
        name: output
        for node in graph.get_ordered_ops()
        if node.get_type_name() != "Result"
        for output in node.outputs()
        for name in output.get_names()
    }
    # The input itself loses its name as an output.
    outputs = {
        path: tensors.get(output.name, pixels.output(0))
        for path, output in zip(paths, function.outputs, strict=True)
    }

    def run(batch, wanted):
        values = dict(zip(paths, function(_tensor(batch)), strict=True))
        return [values[path].numpy() for path in wanted]

    return Converted(graph, list_layers(model, source, input_shape[:2]), outputs), run


def limit_threads():
    """Keep TensorFlow to the share of cores that joblib gives this process."""
    import tensorflow as tf

    # joblib sets OMP_NUM_THREADS for each worker, and TensorFlow ignores it.
    share = os.environ.get("OMP_NUM_THREADS", "")
    if share.isdigit():
        try:
            tf.config.threading.set_intra_op_parallelism_threads(int(share))
        except RuntimeError:  # TensorFlow is initialized already
            pass


def _tensor(batch):
    import tensorflow as tf

    return tf.constant(batch, tf.float32)


def _trace(model, source, shape):
    """Return one function with the output of every layer, and the paths of these layers."""
    import tensorflow as tf

    first = is_channels_first(model)
    paths = []

    def network(pixels):
        inputs = tf.transpose(pixels, (0, 3, 1, 2)) if first else pixels
        with faults_of(source):
            calls = compute_layers(model, tf.cast(inputs, input_dtype(model)), compute)
        outputs = []
        for layer, tensor, _ in calls:
            if layer.shape is None or not (tensor.dtype.is_floating or tensor.dtype.is_integer):
                continue
            tensor = tf.cast(tensor, tf.float32)
            if first and len(layer.shape) == 3:
                tensor = tf.transpose(tensor, (0, 2, 3, 1))
            paths.append(layer.path)
            outputs.append(tf.identity(tensor))
        return outputs

    signature = tf.TensorSpec((None, *shape), tf.float32)
    traced = tf.compat.v1.wrap_function(network, [signature])
    # What augmentation layers do to their random state, even where they are inactive, is cut off.
    return traced.prune(traced.inputs[0], traced.outputs), paths


def _read(function):
    """Return a traced function as an OpenVINO model, with constants in place of its variables."""
    # TensorFlow's public converter makes a function of the graph, which is not needed here and
    # takes twenty copies of the constants.
    from tensorflow.python.framework import convert_to_constants

    values = convert_to_constants._FunctionConverterDataInEager(
        function, lower_control_flow=False, aggressive_inlining=False
    )
    graph_def, _ = convert_to_constants._replace_variables_by_constants(values)
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
        path = Path(folder) / "graph.pb"
        path.write_bytes(graph_def.SerializeToString())
        # `Core.read_model` converts inside the runtime. `convert_model` would report its use to
        # its makers.
        return openvino.Core().read_model(str(path))
