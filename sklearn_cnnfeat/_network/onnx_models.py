"""ONNX files as OpenVINO graphs: the output of every node is found by its name."""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace

from sklearn_cnnfeat._network.axes import CHANNELS_FIRST, CHANNELS_LAST, find_axes
from sklearn_cnnfeat._network.channels_first import to_converted
from sklearn_cnnfeat._network.layers import Kernel, Layer, sentence
from sklearn_cnnfeat._network.onnx_files import read_onnx
from sklearn_cnnfeat._network.refusals import show
from sklearn_cnnfeat._network.runtime import import_openvino
from sklearn_cnnfeat._network.tokens import find_grid
from sklearn_cnnfeat.exceptions import ModelFileError

# Size at which the axes of a network for images of any size are looked at.
_ANY_SIZE = (224, 224)
# Operators on maps, which ONNX defines for channels first only.
_CHANNELS_FIRST = set(
    "AveragePool BatchNormalization Conv ConvTranspose GlobalAveragePool GlobalLpPool "
    "GlobalMaxPool InstanceNormalization LpPool LRN MaxPool SpaceToDepth DepthToSpace "
    "QLinearConv ConvInteger GroupNormalization".split()
)
# Operators that leave the axes of their first input where they are.
_SAME_AXES = set(
    "Abs Add Cast Ceil Celu Clip Concat Div Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "Identity LayerNormalization LeakyRelu Log Max Min Mish Mul Neg Pad Pow PRelu Relu Resize "
    "Selu Sigmoid Slice Softplus Softsign Sqrt Sub Tanh ThresholdedRelu Upsample "
    "DequantizeLinear QuantizeLinear".split()
)


@dataclass(frozen=True)
class ImageFacts:
    """What an ONNX file says about the images that it takes."""

    # Height and width; None where it takes any.
    size: tuple
    channels: int
    is_channels_first: bool
    # For pixels on 0-1: mean and standard deviation of each channel; None where it does not say.
    mean: tuple | None = None
    std: tuple | None = None


def image_facts(file):
    """Return what a file says about its images."""
    _, *axes = file.image.shape
    is_channels_first = axes[0] in (1, 3) or axes[2] not in (1, 3)
    channels = axes[0] if is_channels_first else axes[2]
    if channels not in (1, 3):
        shape = ", ".join("n" if n is None else str(n) for n in file.image.shape)
        raise ModelFileError(
            f"{show(str(file.path))!r} takes images of shape ({shape}); networks for gray (1 "
            "channel) and RGB (3 channels) images can be used."
        )
    size = axes[1:] if is_channels_first else axes[:2]
    mean, std = _normalization(file.metadata, channels)
    return ImageFacts(tuple(size), channels, is_channels_first, mean, std)


def _normalization(metadata, channels):
    """Return the mean and the deviation that the metadata tells, for pixels on 0-1."""
    for names in (("mean", "std"), ("image_mean", "image_std")):
        values = [_floats(metadata.get(name), channels) for name in names]
        if all(values) and all(value > 0 for value in values[1]):
            # Means above 1 are of pixels on 0-255.
            scale = 255.0 if max(values[0]) > 1 else 1.0
            return tuple(tuple(value / scale for value in entry) for entry in values)
    return None, None


def _floats(text, n):
    try:
        values = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
        values = [float(value) for value in values]
    except (AttributeError, TypeError, ValueError):
        return None
    return values if len(values) == n and all(map(math.isfinite, values)) else None


def convert_onnx(path, input_size=None):
    """Return the network in an ONNX file as a `Converted`."""
    file = read_onnx(path)
    facts = image_facts(file)
    shown = show(str(path))
    openvino = import_openvino()
    try:
        model = openvino.Core().read_model(str(path))
    except Exception as error:
        raise ModelFileError(
            f"OpenVINO cannot take the network in {shown!r}: {_last_line(error)}. "
            "onnx.checker.check_model(path, full_check=True) tells whether the file is valid."
        ) from error
    size = _choose_size(facts, input_size, shown)
    several = _shapes_at(model, facts, 2, _fixed(size))
    # A file may make a constant of the number of images that it was exported with.
    takes_several = several is not None and all(
        several.get(name, (2,))[:1] == (2,) for name in file.outputs
    )
    _resize(model, facts, -1 if takes_several else 1, size)
    layers, outputs, orders = _list_layers(file, facts, model, size, 2 if takes_several else 1)
    return to_converted(model, layers, outputs, orders, facts.is_channels_first)


def _choose_size(facts, input_size, shown):
    if input_size is None:
        return facts.size
    for asked, given in zip(input_size, facts.size, strict=True):
        if given not in (None, asked):
            raise ValueError(
                f"The network in {shown!r} is for images of {facts.size[0]} x {facts.size[1]} "
                f"pixels, but input_size={tuple(input_size)!r}. Leave input_size=None, or export "
                "it with dynamic axes."
            )
    return tuple(input_size)


def _resize(model, facts, n, size):
    """Set the size of the input."""
    openvino = import_openvino()
    height, width = (-1 if side is None else side for side in size)
    axes = (
        (facts.channels, height, width)
        if facts.is_channels_first
        else (height, width, facts.channels)
    )
    (pixels,) = model.get_parameters()
    pixels.set_partial_shape(openvino.PartialShape([n, *axes]))
    model.validate_nodes_and_infer_types()


def _fixed(size):
    """Return a size for a look at a network that takes any."""
    return tuple(side or any_ for side, any_ in zip(size, _ANY_SIZE, strict=True))


def _shapes_at(model, facts, n, size):
    """Return the shapes of all tensors for `n` images of a size; None where they do not fit."""
    other = model.clone()
    try:
        _resize(other, facts, n, size)
    except Exception:  # whatever OpenVINO raises where shapes do not fit
        return None
    return {
        name: tuple(output.get_shape())
        for name, output in _tensors(other).items()
        if output.get_partial_shape().is_static
    }


def _tensors(model):
    """Return the outputs of all operations by the names that the file has for them."""
    found = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Result":  # it has the name of what it shows
            for output in operation.outputs():
                found.update(dict.fromkeys(output.get_names(), output))
    return found


def _list_layers(file, facts, model, size, n):
    """Return layers, outputs and orders of the axes of all nodes that give numbers of an image.

    `n` images are looked at together.
    """
    height, width = _fixed(size)
    base = _shapes_at(model, facts, n, (height, width)) or {}
    taller = _shapes_at(model, facts, n, (2 * height, width)) or {}
    wider = _shapes_at(model, facts, n, (height, 2 * width)) or {}
    tensors, names = _tensors(model), _names(file.nodes)
    constants = _constants(model)
    makers = {file.image.name: None}
    layers, outputs, orders, maps = [], {}, {}, []
    of_input = CHANNELS_FIRST if facts.is_channels_first else CHANNELS_LAST
    for node, path in zip(file.nodes, names, strict=True):
        source = next((name for name in node.inputs if name in makers), None)
        if source is None:
            continue  # weights only
        for name in node.outputs:
            makers[name] = path
        tensor = node.outputs[0] if node.outputs else ""
        output = tensors.get(tensor)
        if output is None or not output.get_element_type().is_real():
            continue
        layer = Layer(
            path=path,
            type=node.operator,
            index=len(layers),
            shape=None,
            source=makers[source],
            alias=tensor,
            **_weights_of(node, file, constants),
        )
        before = of_input if makers[source] is None else orders.get(makers[source])
        layer, order = _place(layer, node, tensor, (base, taller, wider), before, output, n)
        if order is not None:
            orders[path], outputs[path] = order, output
            if len(layer.shape) == 2 and None not in layer.shape:
                layer = replace(layer, grid=find_grid(layer.shape[0], maps))
            elif len(layer.shape) == 3 and None not in layer.shape:
                maps.append(layer.shape[:2])
        layers.append(layer)
    if not outputs:
        raise ModelFileError(
            f"{sentence(show(str(file.path)))!r} computes nothing from its image that could be a "
            "feature."
        )
    return layers, outputs, orders


def _names(nodes):
    """Return a name for each node: its own where no other has it, else that of its output."""
    counts = Counter(node.name for node in nodes)
    return [
        node.name if node.name and counts[node.name] == 1 else (node.outputs or ("",))[0]
        for node in nodes
    ]


def _place(layer, node, tensor, shapes, before, output, n):
    """Return the layer with its logical shape, and the order of its axes."""
    base, taller, wider = (entry.get(tensor) for entry in shapes)
    static = base if base is not None else _static_shape(output)
    if static is None:
        return replace(layer, problem="an output whose shape is known only when it runs"), None
    if static[:1] != (n,):
        return replace(layer, problem="an output whose first axis is not the images'"), None
    likely = None
    if node.operator in _CHANNELS_FIRST:
        likely = CHANNELS_FIRST
    elif node.operator in _SAME_AXES and before is not None and len(before) == len(static) - 1:
        likely = before
    others = (None if entry is None else entry[1:] for entry in (taller, wider))
    axes = find_axes(static[1:], *others, likely)
    if axes.order is None:
        return replace(layer, problem=axes.problem), None
    # Where images are of any size, so are the maps.
    real = _known(output.get_partial_shape())[1:]
    return replace(layer, shape=tuple(real[axis] for axis in axes.order)), axes.order


def _static_shape(output):
    shape = _known(output.get_partial_shape())
    return None if None in shape[1:] else (shape[0] or 2, *shape[1:])


def _known(shape):
    return tuple(n.get_length() if n.is_static else None for n in shape)


def _constants(model):
    return {
        operation.get_friendly_name(): operation
        for operation in model.get_ops()
        if operation.get_type_name() == "Constant"
    }


def _weights_of(node, file, constants):
    """Return the facts on its weights that a `Layer` has."""
    shapes = [file.initializers[name] for name in node.inputs if name in file.initializers]
    kernels = ()
    weight = node.inputs[1] if len(node.inputs) > 1 else ""
    shape = file.initializers.get(weight, ())
    if node.operator in ("Conv", "Gemm", "MatMul") and len(shape) in (2, 4) and weight in constants:
        values = constants[weight].data
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        order = (2, 3, 1, 0) if len(shape) == 4 else (0, 1) if node.operator == "MatMul" else (1, 0)
        kernels = (
            Kernel(
                name=weight,
                shape=tuple(shape[axis] for axis in order),
                bias_shape=file.initializers.get(bias),
                mean=float(values.mean()),
                std=float(values.std()),
                min=float(values.min()),
                max=float(values.max()),
            ),
        )
    return {"n_parameters": sum(map(math.prod, shapes)), "kernels": kernels}


def _last_line(error):
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and "http" not in line]
    return f"{type(error).__name__}: {told[-1].strip('-. ') if told else ''}"
