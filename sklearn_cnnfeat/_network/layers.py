"""Find a layer in a network: names, indices, paths into nested models, "last"."""

import math
from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches

from sklearn_cnnfeat._network.tokens import TokenGrid
from sklearn_cnnfeat.exceptions import LayerNotFoundError

# Layers that change nothing or only the scale of a classifier's output, and models inside a model.
_ACTIVATIONS = {"Activation", "Softmax"}
_MODELS = {"Functional", "Sequential"}
_INACTIVE = {
    *("Dropout", "SpatialDropout2D", "GaussianDropout", "AlphaDropout", "GaussianNoise"),
    "Identity",
}
# The same layer in Keras, PyTorch and ONNX.
_CLASSIFIERS = {"Dense", "Linear", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Kernel:
    """The weights of a convolution or dense layer, without their values."""

    # Name in the layer, such as "kernel" or "depthwise_kernel".
    name: str
    # (height, width, channels in, filters) or (inputs, units).
    shape: tuple
    # None where there is no bias.
    bias_shape: tuple | None
    # Statistics of the values; None where only the structure is known.
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Layer:
    """One call of one layer, in the order of computation."""

    # Names of the models around it and its own, joined by "/".
    path: str
    # Class name.
    type: str
    # Position among the layers of the outermost model; None inside nested models.
    index: int | None
    # Shape of its output without the batch; None where it has several outputs.
    shape: tuple | None
    # Path of the call that gave its input; None where that is not a layer's.
    source: str | None = None
    # Number of weights, trainable or not.
    n_parameters: int = 0
    # Kernels of the layer, at its first call.
    kernels: tuple = ()
    # Why its output cannot be taken, as the end of "gives ..."; None where it can.
    problem: str | None = None
    # How the tokens lie on the image, where it gives tokens (n, tokens, width) of patches.
    grid: TokenGrid | None = None
    # Another name that the file has for its output.
    alias: str | None = None

    @property
    def map_shape(self):
        """Shape of what features are taken from: of tokens, the map of their patches."""
        if self.grid is None:
            return self.shape
        return self.grid.height, self.grid.width, self.shape[-1]


# The default of `CNNFeatureTransformer`, and whose layer it is.
_DEFAULT, _ITS_NETWORKS = "block5_pool", "VGG16 and VGG19"


def find_layer(layer, layers, n_layers, where):
    """Return the entry of `layers` that the parameter `layer` means.

    `layers` has the calls of all layers, nested ones included, in the order of computation. Indices
    count the `n_layers` of the outermost model.
    """
    if layer == "last":
        found = _last_before_classifier(layers, where)
    elif isinstance(layer, str):
        found = _find_by_name(layer, layers, where)
    else:
        found = _find_by_index(layer, layers, n_layers, where)
    if found.problem is not None:
        raise LayerNotFoundError(
            f"Layer {layer!r} of {where} gives {found.problem}, and features cannot be taken from "
            "it; choose a layer before or behind it."
        )
    if found.shape is None:
        raise LayerNotFoundError(
            f"Layer {layer!r} of {where} has several outputs; choose a layer behind it "
            "that has one."
        )
    if len(found.shape) == 2 and found.grid is not None:
        return found
    if len(found.shape) not in (1, 3):
        raise LayerNotFoundError(
            f"Layer {layer!r} of {where} gives an output of shape {_shape_text(found.shape)}; "
            "features can be taken from layers that give maps (n, height, width, channels), "
            "vectors (n, length), or tokens (n, tokens, width) whose places in the image are known."
        )
    return found


# Names of `layer=` that mean a reduction of the image rather than a layer of one network.
STRIDES = {f"stride{stride}": stride for stride in (4, 8, 16, 32)}
# Layers whose maps are a little larger than those that they are made of.
_PADDING = {"ZeroPadding2D", "ZeroPad2d", "ConstantPad2d", "ReflectionPad2d", "Pad"}


def find_at_stride(stride, layers, input_shape, where):
    """Return the last layer whose maps are `stride` times smaller than the image."""
    if None in input_shape[:2]:
        raise LayerNotFoundError(
            f"{sentence(where)} takes images of any size, so that nothing tells which layer has "
            f"maps {stride} times smaller. Say input_size=(height, width)."
        )
    reductions = {}
    for layer in layers:
        reduction = _reduction(layer, input_shape)
        if reduction is not None and layer.type not in _PADDING:
            reductions[reduction] = layer
    if stride not in reductions:
        known = ", ".join(f"{n}" for n in sorted(reductions)) or "none"
        raise LayerNotFoundError(
            f"{sentence(where)} has no layer whose maps are {stride} times smaller than the image; "
            f"its reductions are {known}."
        )
    return reductions[stride]


def _reduction(layer, input_shape):
    """Return how many times smaller a layer's maps are: a power of two, or None for other layers.

    Without padding they are smaller still, 8 x 8 at stride 32 of 299 x 299.
    """
    shape = layer.map_shape
    # A single position is the mean over all of them.
    if shape is None or len(shape) != 3 or None in shape or shape[:2] == (1, 1):
        return None
    powers = {round(math.log2(n / m)) for n, m in zip(input_shape[:2], shape[:2], strict=True)}
    return 2 ** powers.pop() if len(powers) == 1 and min(powers) >= 0 else None


def _find_by_name(name, layers, where):
    exact = [entry for entry in layers if name in (entry.path, entry.alias)]
    # A bare name that is unique anywhere inside also works.
    found = exact or [entry for entry in layers if entry.path.endswith("/" + name)]
    if len(found) == 1:
        return found[0]
    if found:
        paths = ", ".join(repr(entry.path) for entry in found)
        raise LayerNotFoundError(
            f"{sentence(where)} has {len(found)} layers {name!r}: say which, of {paths}."
        )
    calls = [entry.path for entry in layers if _without_call(entry.path) == name]
    if calls:
        raise LayerNotFoundError(
            f"Layer {name!r} of {where} is used {len(calls)} times: say which output, of "
            f"{', '.join(map(repr, calls))}."
        )
    if name == _DEFAULT:
        raise LayerNotFoundError(
            f"{sentence(where)} has no layer {name!r}: it is the default, and belongs to "
            f"{_ITS_NETWORKS}. layer='last' is the last one before the classifier of any network; "
            f"layer_summary(model) lists all {len(layers)} of them."
        )
    paths = [entry.path for entry in layers]
    by_name = defaultdict(list)
    for path in paths:
        by_name[path.rsplit("/", 1)[-1]].append(path)
    close = get_close_matches(name, [*paths, *by_name], n=8, cutoff=0.4)
    nearest = list(dict.fromkeys(p for near in close for p in by_name.get(near, [near])))[:5]
    hint = f" Nearest names: {', '.join(map(repr, nearest))}." if nearest else ""
    raise LayerNotFoundError(
        f"{sentence(where)} has no layer {name!r}.{hint} layer_summary(model) lists "
        f"all {len(layers)} of them."
    )


def _find_by_index(index, layers, n_layers, where):
    if not -n_layers <= index < n_layers:
        raise LayerNotFoundError(
            f"Layer index {index} is out of range: {where} has {n_layers} layers, "
            f"{-n_layers} to {n_layers - 1}. layer_summary(model) lists them."
        )
    position = index % n_layers
    calls = [entry for entry in layers if entry.index == position]
    if not calls:
        raise LayerNotFoundError(
            f"Layer {index} of {where} does not lie between the input and the output of the "
            "network."
        )
    if len(calls) > 1:
        raise LayerNotFoundError(
            f"Layer {index} of {where} is used {len(calls)} times: say which output, of "
            f"{', '.join(repr(entry.path) for entry in calls)}."
        )
    return calls[0]


def _last_before_classifier(layers, where):
    by_path = {entry.path: entry for entry in layers}

    def skip(entry, types):
        while entry is not None and entry.type in types:
            entry = by_path.get(entry.source)
        return entry

    end = layers[-1]
    if end.type == "Add" and by_path.get(end.source) and by_path[end.source].type == "MatMul":
        end = by_path[end.source]  # a dense layer and its bias, in ONNX
    classifier = skip(end, _ACTIVATIONS | _MODELS)
    if classifier is None or classifier.type not in _CLASSIFIERS:
        return layers[-1]
    last = skip(by_path.get(classifier.source), _INACTIVE | _MODELS)
    if last is None:
        raise LayerNotFoundError(
            f"layer='last' is undefined for {where}: its classifier {classifier.path!r} takes a "
            "value that no layer gives, such as a mean. Choose a layer by its name; "
            "layer_summary(model) lists all of them."
        )
    return last


def sentence(where):
    """Return `where` as a sentence begins with it."""
    return where[:1].upper() + where[1:]


def _without_call(path):
    name, _, call = path.rpartition(":")
    return name if call.isdigit() else path


def _shape_text(shape):
    return "(" + ", ".join(["n", *("?" if n is None else str(n) for n in shape)]) + ")"
