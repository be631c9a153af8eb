"""Convert a Keras model on Keras' OpenVINO backend: TensorFlow is not needed.

To be used in a process with ``KERAS_BACKEND=openvino``. The backend builds a graph of OpenVINO
operations when a layer is called, so that calling all layers on a parameter is the conversion.
Some layers are computed here because the backend's own numbers are wrong.
"""

from sklearn_cnnfeat._network.converted import Converted
from sklearn_cnnfeat._network.keras_layers import (
    compute,
    compute_layers,
    is_channels_first,
    list_layers,
)
from sklearn_cnnfeat._network.keras_models import import_keras
from sklearn_cnnfeat._network.keras_openvino_layers import INACTIVE
from sklearn_cnnfeat._network.runtime import import_openvino, import_operations
from sklearn_cnnfeat._network.transpositions import integers


def convert(model, source, input_shape):
    """Convert a Keras model to an OpenVINO graph that has the value of each layer.

    All its layers must be supported.

    The axes are in the order in which Keras means them, with many transpositions.
    """
    openvino = import_openvino()
    ops = import_operations()

    layers = list_layers(model, source, input_shape[:2])
    shape = [-1 if n is None else n for n in input_shape]
    pixels = ops.parameter([-1, *shape], openvino.Type.f32, name="pixels")
    pixels.output(0).set_names({"pixels"})
    inputs, restore = pixels.output(0), _identity
    if is_channels_first(model):
        inputs = ops.transpose(inputs, integers((0, 3, 1, 2))).output(0)
        restore = _to_channels_last
    outputs = {layer.path: restore(output) for layer, output in trace(model, inputs)}
    last = next(layer.path for layer in reversed(layers) if layer.path in outputs)
    return Converted(openvino.Model([outputs[last]], [pixels]), layers, outputs)


def trace(model, inputs):
    """Call all layers on an OpenVINO output; return pairs of a layer and its output.

    Layers of several outputs are left out.
    """
    # Layers that keep a state, such as a random generator, do not change it.
    with import_keras().StatelessScope(initialize_variables=False):
        calls = compute_layers(model, _tensor(inputs), _compute)
    return [(layer, value.output) for layer, value, _ in calls if hasattr(value, "output")]


def _tensor(output):
    """Return what the backend calls a tensor."""
    return import_keras().ops.convert_to_tensor(output)


def _identity(output):
    return output


def _to_channels_last(output):
    ops = import_operations()

    if output.get_partial_shape().rank.get_length() != 4:
        return output
    return ops.transpose(output, integers((0, 2, 3, 1))).output(0)


def _compute(layer, *args, **kwargs):
    name = type(layer).__name__
    if type(layer).__module__.startswith("keras.src."):
        if name in INACTIVE:
            return args[0]
        if name in _CORRECTED:
            return _CORRECTED[name](layer, *args)
    return compute(layer, *args, **kwargs)


# --- layers that the backend computes wrong -------------------------------------------------------


def _standardized(x, axes, epsilon):
    """Return `x` with mean 0 and variance 1 along axes.

    The backend computes the variance as a difference of two squares, which loses half the digits.
    """
    keras = import_keras()
    centered = x - keras.ops.mean(x, axis=axes, keepdims=True)
    variance = keras.ops.mean(keras.ops.square(centered), axis=axes, keepdims=True)
    return centered / keras.ops.sqrt(variance + epsilon)


def _layer_normalization(layer, x):
    keras = import_keras()
    axes = [axis % len(x.shape) for axis in layer.axis]
    shape = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
    x = _standardized(x, axes, layer.epsilon)
    if layer.gamma is not None:
        x = x * keras.ops.reshape(layer.gamma, shape)
    return x if layer.beta is None else x + keras.ops.reshape(layer.beta, shape)


def _group_normalization(layer, x):
    keras = import_keras()
    rank = len(x.shape)
    axis = layer.axis % rank
    n_channels = x.shape[axis]
    lengths = keras.ops.shape(x)
    groups = (layer.groups, n_channels // layer.groups)
    split = keras.ops.reshape(x, (-1, *lengths[1:axis], *groups, *lengths[axis + 1 :]))
    axes = [other for other in range(1, rank + 1) if other != axis]
    x = keras.ops.reshape(_standardized(split, axes, layer.epsilon), (-1, *lengths[1:]))
    shape = [n_channels if other == axis else 1 for other in range(rank)]
    if layer.gamma is not None:
        x = x * keras.ops.reshape(layer.gamma, shape)
    return x if layer.beta is None else x + keras.ops.reshape(layer.beta, shape)


def _resize(x, sizes_or_scales, what, interpolation):
    """Resize images (n, height, width, channels) as TensorFlow does."""
    ops = import_operations()

    options = {
        "bilinear": {"mode": "linear_onnx", "coordinate_transformation_mode": "half_pixel"},
        "nearest": {
            "mode": "nearest",
            "coordinate_transformation_mode": "tf_half_pixel_for_nn",
            "nearest_mode": "floor",
        },
    }[interpolation]
    output = ops.transpose(x.output, integers((0, 3, 1, 2)))
    output = ops.interpolate(
        output, sizes_or_scales, shape_calculation_mode=what, axes=[2, 3], **options
    )
    return _tensor(ops.transpose(output, integers((0, 2, 3, 1))).output(0))


def _resizing(layer, x):
    return _resize(x, [layer.height, layer.width], "sizes", layer.interpolation)


def _up_sampling(layer, x):
    import numpy as np

    return _resize(x, np.array(layer.size, np.float32), "scales", layer.interpolation)


_CORRECTED = {
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "Resizing": _resizing,
    "UpSampling2D": _up_sampling,
}
