"""List and call the layers of a Keras model in the order of computation, nested models included.

Only this file uses private members of Keras: `Function._run_through_graph` and
`Function._nodes_by_depth`, the only way to find out how layers are connected, and
`Sequential._functional`, which is such a graph.
"""

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from sklearn_cnnfeat._images import MOST_PIXELS
from sklearn_cnnfeat._network.keras_models import construct, import_keras
from sklearn_cnnfeat._network.layers import Kernel, Layer, sentence
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat.exceptions import ModelFileError


def functional(model):
    """Return the graph of a Sequential or Functional model; None where Keras keeps none."""
    keras = import_keras()
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                f"The model {model.name!r} has not been built yet: give it an input shape, for "
                "example with keras.Input((height, width, channels)) as its first entry."
            )
        return model._functional
    # Functional models are those that remember how their layers are connected.
    return model if hasattr(model, "_run_through_graph") else None


def _walk(model, inputs, invoke, prefix="", makers=None):
    """Compute a model layer by layer; return its outputs and the calls that were made.

    Each call is (path, layer, output, source): the source is the path of the call that gave its
    input. Models inside the model are walked too; their own output follows those of their layers,
    the last of which is its source.
    """
    makers = {} if makers is None else makers
    graph = functional(model)
    calls = []
    seen = Counter()
    uses = Counter(
        node.operation.name
        for nodes in graph._nodes_by_depth.values()
        for node in nodes
        if node.operation is not None
    )

    def operation(layer):
        def call(*args, **kwargs):
            path = prefix + layer.name
            if uses[layer.name] > 1:
                path += f":{seen[layer.name]}"
                seen[layer.name] += 1
            if isinstance(layer, import_keras().Model) and functional(layer) is not None:
                outputs, inner = _walk(layer, args[0], invoke, path + "/", makers)
                calls.extend(inner)
                source = makers.get(id(outputs))
            else:
                source = makers.get(id(args[0])) if args else None
                outputs = invoke(layer, *args, **kwargs)
            # Tensors stay alive in the calls, so that no other one gets the same id.
            makers[id(outputs)] = path
            calls.append((path, layer, outputs, source))
            return outputs

        return call

    outputs = graph._run_through_graph(inputs, operation_fn=operation)
    return outputs, calls


def compute(layer, *args, **kwargs):
    """Call a layer as `predict` does: training is off in all layers inside it too."""
    if isinstance(layer, import_keras().Layer):
        kwargs["training"] = False
    return layer(*args, **kwargs)


def infer_shape(layer, *args, **kwargs):
    """Tell the shape of a layer's output without computing it."""
    return layer.compute_output_spec(*args, **kwargs)


def compute_layers(model, inputs, invoke):
    """Call every layer of a model; return (Layer, output, keras.Layer) in the order of computation.

    `invoke` takes a layer and the arguments of its call, and returns its output: `compute` or
    `infer_shape`.
    """
    keras = import_keras()
    if functional(model) is None:
        # A subclassed model does not tell how its layers are connected.
        calls = [(model.name, model, invoke(model, inputs), None)]
        positions = {model.name: 0}
    else:
        _, calls = _walk(model, inputs, invoke)
        positions = {layer.name: i for i, layer in enumerate(model.layers)}
        first = model.layers[0]
        if isinstance(first, keras.layers.InputLayer):
            calls.insert(0, (first.name, first, inputs, None))
    return [
        (_describe_call(path, layer, output, source, positions), output, layer)
        for path, layer, output, source in calls
        # Functions of keras.ops are not layers, as in `model.layers`.
        if isinstance(layer, keras.Layer)
    ]


def _describe_call(path, layer, output, source, positions):
    several = isinstance(output, (list, tuple, dict))
    return Layer(
        path=path,
        type=type(layer).__name__,
        index=None if "/" in path else positions[layer.name],
        shape=None if several else tuple(output.shape)[1:],
        source=source,
    )


def list_calls(model, source, input_size=None):
    """Return (Layer, keras.Layer) for each call in a model, in logical shapes, without computing.

    An `input_size` of None is the model's own.
    """
    height, width, channels = check_input(model, source.label)
    height, width = input_size or (height, width)
    first = is_channels_first(model)
    shape = (None, channels, height, width) if first else (None, height, width, channels)
    inputs = import_keras().KerasTensor(shape, input_dtype(model))
    with faults_of(source):
        calls = compute_layers(model, inputs, infer_shape)
    return [(_in_logical_order(layer, first), keras_layer) for layer, _, keras_layer in calls]


def find_patches(model, source, input_size=None):
    """Return rows and columns of the patches that a layer cuts its image into, by its path.

    Such layers, as KerasHub has them, hold a convolution whose steps are as large as its kernel.
    Parameters are those of `list_calls`.
    """
    shapes, found = {}, {}
    for layer, keras_layer in list_calls(model, source, input_size):
        shapes[layer.path] = layer.shape
        image = shapes.get(layer.source) or next(iter(shapes.values()))
        is_known = image is not None and len(image) == 3 and None not in image
        if layer.shape is None or len(layer.shape) != 2 or not is_known:
            continue
        steps = [
            part.strides
            for part in keras_layer._flatten_layers(include_self=False)
            if isinstance(part, import_keras().layers.Conv2D) and part.kernel_size == part.strides
        ]
        if len(steps) == 1:
            rows, columns = (side // step for side, step in zip(image, steps[0], strict=False))
            found[layer.path] = rows, columns
    return found


def _in_logical_order(layer, is_channels_first):
    if not is_channels_first or layer.shape is None or len(layer.shape) != 3:
        return layer
    channels, height, width = layer.shape
    return replace(layer, shape=(height, width, channels))


def list_layers(model, source, input_size=None, *, has_values=True):
    """Return the `Layer` of each call in a model, with its parameters and kernels."""
    described = {}
    layers = []
    for layer, keras_layer in list_calls(model, source, input_size):
        if id(keras_layer) not in described:
            kernels = tuple(_describe_kernels(keras_layer, has_values))
            described[id(keras_layer)] = keras_layer.count_params(), kernels, layer.path
        n_parameters, kernels, first_path = described[id(keras_layer)]
        is_first = first_path == layer.path
        layers.append(
            replace(layer, n_parameters=n_parameters, kernels=kernels if is_first else ())
        )
    return layers


def list_named_layers(source, input_size):
    """Return all layers of a named network, classifier included, without memory for its weights."""
    architecture = find_architecture(source.name)
    shape = (*input_size, 3)
    model = construct(architecture, True, shape, symbolic=True)
    layers = list_layers(model, source, has_values=False)
    if architecture.rescales and source.weights == "imagenet":
        layers = _with_rescaling(layers)
    if architecture.tail:
        headless = construct(architecture, False, shape, symbolic=True)
        # They go by name only: the indices count the whole network, classifier included.
        tail = [
            replace(layer, index=None)
            for layer in list_layers(headless, source, has_values=False)
            if layer.path in architecture.tail
        ]
        end = len(layers) - len(architecture.head)
        layers[end:end] = tail
    return layers


def _with_rescaling(layers):
    """Insert the layer that `keras_models.add_rescaling` adds."""
    at = next(i for i, layer in enumerate(layers) if layer.path == "normalization")
    before = layers[at]
    added = replace(before, path="rescaling_1", type="Rescaling", source=before.path)
    added = replace(added, index=before.index + 1, n_parameters=0, kernels=())
    after = [
        replace(
            layer,
            index=layer.index + 1,
            source="rescaling_1" if layer.source == before.path else layer.source,
        )
        for layer in layers[at + 1 :]
    ]
    return [*layers[: at + 1], added, *after]


# --- kernels --------------------------------------------------------------------------------------


def kernels_of(keras_layer):
    """Return the kernels of a convolution or dense layer by name; none for other layers."""
    return {name: _as_filters(keras_layer, w.numpy()) for name, w in _kernel_weights(keras_layer)}


def _kernel_weights(keras_layer):
    for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
        weights = getattr(keras_layer, name, None)
        if weights is not None and len(getattr(weights, "shape", ())) in (2, 4):
            yield name, weights


def _as_filters(keras_layer, kernel):
    kernel = np.asarray(kernel, np.float32)
    # Transposed convolutions keep theirs as (height, width, filters, channels in).
    return kernel.swapaxes(2, 3) if _is_transposed(keras_layer) else kernel


def _is_transposed(keras_layer):
    return "Transpose" in type(keras_layer).__name__


def _describe_kernels(keras_layer, has_values):
    bias = getattr(keras_layer, "bias", None)
    for name, weights in _kernel_weights(keras_layer):
        shape = tuple(weights.shape)
        if _is_transposed(keras_layer):
            shape = (*shape[:2], shape[3], shape[2])
        has_bias = bias is not None and name != "depthwise_kernel"
        statistics = {}
        if has_values:
            kernel = weights.numpy().astype(np.float32, copy=False)
            statistics = {
                "mean": float(kernel.mean(dtype=np.float64)),
                "std": float(kernel.std(dtype=np.float64)),
                "min": float(kernel.min()),
                "max": float(kernel.max()),
            }
        yield Kernel(name, shape, tuple(bias.shape) if has_bias else None, **statistics)


# --- what a model takes ---------------------------------------------------------------------------


def check_input(model, where):
    """Return height, width (None: any) and channels of a model's input, or refuse the model."""
    where = sentence(where)
    shape = _input_shape(model, where)
    if len(shape) != 4:
        raise ValueError(
            f"{where} takes inputs of shape {_show(shape)}; a network that takes images "
            "(n, height, width, channels) is needed."
        )
    if math.prod(n or 1 for n in shape[1:]) > 3 * MOST_PIXELS:
        raise ValueError(
            f"{where} takes inputs of shape {_show(shape)}, which is more than {MOST_PIXELS:,} "
            "pixels an image."
        )
    if is_channels_first(model):
        channels, height, width = shape[1:]
    else:
        height, width, channels = shape[1:]
    if channels not in (1, 3):
        raise ValueError(
            f"{where} takes images of {channels} channels; only gray (1) and RGB (3) images can be "
            "made from pictures."
        )
    return height, width, channels


def _input_shape(model, where):
    try:
        inputs = model.inputs
    except (AttributeError, ValueError):
        inputs = None
    if not inputs:
        # A subclass remembers what it was first called on.
        shape = (model.get_build_config() or {}).get("input_shape")
        if not shape:
            raise ValueError(
                f"{where} does not say the shape of its input: it is a subclass of keras.Model "
                "that has not been called yet. Call it once on a batch of images, or build it "
                "with the Functional API."
            )
        return shape
    if len(inputs) > 1:
        raise ValueError(
            f"{where} has {len(inputs)} inputs; a network that takes images and nothing else is "
            "needed."
        )
    return tuple(inputs[0].shape)


def input_dtype(model):
    """Return the name of the dtype that a model takes."""
    graph = functional(model)
    return "float32" if graph is None else graph.inputs[0].dtype


def is_channels_first(model):
    """Whether any layer of a model works on channels-first images."""
    pending = [model]
    while pending:
        layer = pending.pop()
        if getattr(layer, "data_format", None) == "channels_first":
            return True
        pending.extend(getattr(layer, "layers", None) or [])
    return False


def _show(shape):
    return "(" + ", ".join("n" if i == 0 else str(n) for i, n in enumerate(shape)) + ")"


@contextmanager
def faults_of(source):
    """Say which file holds a network that Keras can build but not compute."""
    try:
        yield
    except (ModelFileError, MemoryError):
        raise
    except Exception as error:
        explained = source.explain(error)
        if explained is None:
            raise
        raise explained from error
