"""A network of ncnn in memory: its layers, and the text and the weights that ncnn loads.

ncnn has no batch axis. A blob is either maps (channel, row, column) or a vector. Where the axes of
an OpenVINO output ended up in a blob is noted in a `Value`, so a transposition or a flattening
costs nothing: the layer that reads the value has its weights permuted instead.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

_MAGIC = 7767517
# Of a sum over few channels Winograd's transformations round off twice as much as the sum itself:
# such layers, like the first of a network, are computed directly.
MIN_CHANNELS = 16
_NO_WINOGRAD = 64
# Order of the axes of maps in memory.
MAPS = ("c", "h", "w")
# What Permute calls the order (column, row, channel) of its output.
_PERMUTATIONS = {"whc": 0, "hwc": 1, "wch": 2, "cwh": 3, "hcw": 4, "chw": 5}


class TranslationError(Exception):
    """A network cannot run on ncnn; the message is the reason."""


@dataclass(frozen=True)
class Value:
    """An output of an OpenVINO operation, as a blob of ncnn.

    Attributes
    ----------
    blob : str
        Name of the blob.
    sizes : dict
        Length of each axis of the blob: "c", "h" and "w" for maps, "c" alone for a vector.
    axes : tuple of tuple of str
        For each axis of the OpenVINO output behind the batch, the axes of the blob that it is made
        of, the slowest first. Axes of length 1 are left out.
    """

    blob: str
    sizes: dict
    axes: tuple

    @classmethod
    def of_maps(cls, blob, channels, height, width):
        """Return the value of maps in the order of `MAPS`."""
        sizes = {"c": channels, "h": height, "w": width}
        return cls(blob, sizes, tuple((axis,) if sizes[axis] > 1 else () for axis in MAPS))

    @property
    def is_maps(self):
        """Whether the blob is maps."""
        return "h" in self.sizes

    @property
    def shape(self):
        """Shape of the OpenVINO output without the batch."""
        return tuple(int(np.prod([self.sizes[axis] for axis in group])) for group in self.axes)

    def regrouped(self, shape):
        """Return the value reshaped to `shape`; None if an axis of the blob would be divided."""
        left = [axis for group in self.axes for axis in group]
        groups = []
        for length in shape:
            group = []
            while int(np.prod([self.sizes[axis] for axis in group])) < length and left:
                group.append(left.pop(0))
            if int(np.prod([self.sizes[axis] for axis in group])) != length:
                return None
            groups.append(tuple(group))
        return None if left else Value(self.blob, self.sizes, tuple(groups))

    def arranged(self, array):
        """Return the blob's content, an array over its axes, in the shape of the output."""
        stored = [axis for axis in MAPS if axis in self.sizes]
        order = [axis for group in self.axes for axis in group]
        array = array.reshape([self.sizes[axis] for axis in stored if axis in order])
        present = [axis for axis in stored if axis in order]
        return array.transpose([present.index(axis) for axis in order]).reshape(self.shape)

    def stored(self, array):
        """Return `array`, of the output's shape, in the order of the blob's axes."""
        order = [axis for group in self.axes for axis in group]
        array = array.reshape([self.sizes[axis] for axis in order])
        present = [axis for axis in MAPS if axis in order]
        array = array.transpose([order.index(axis) for axis in present])
        return array.reshape([self.sizes[axis] for axis in MAPS if axis in self.sizes])


@dataclass
class Layer:
    """A layer of ncnn; `weights` are (array, whether a storage type is written before it)."""

    kind: str
    inputs: list
    outputs: list
    params: dict = field(default_factory=dict)
    weights: list = field(default_factory=list)
    # Sizes of the axes of the first output.
    sizes: dict = field(default_factory=dict)


class Graph:
    """Layers in order of computation."""

    def __init__(self):
        self.layers = []
        self._producers = {}

    def add(self, kind, inputs, params, weights=(), sizes=None):
        """Append a layer with one output; return the output's name."""
        blob = f"b{len(self.layers)}"
        layer = Layer(kind, list(inputs), [blob], dict(params), list(weights), dict(sizes or {}))
        self.layers.append(layer)
        self._producers[blob] = layer
        return blob

    def producer(self, blob):
        """Return the layer that computes a blob."""
        return self._producers[blob]

    def vector(self, value):
        """Return `value` as a vector in the order of its axes, permuted where need be."""
        if not value.is_maps:
            return value
        order = [axis for group in value.axes for axis in group]
        order = [axis for axis in MAPS if axis not in order] + order
        blob = value.blob
        if tuple(order) != MAPS:
            kind = _PERMUTATIONS["".join(reversed(order))]
            sizes = dict(zip(MAPS, (value.sizes[axis] for axis in order), strict=True))
            blob = self.add("Permute", [blob], {0: kind}, sizes=sizes)
        length = int(np.prod(value.shape))
        blob = self.add("Reshape", [blob], {0: length}, sizes={"c": length})
        return Value(blob, {"c": length}, (("c",) if length > 1 else (),))

    def maps(self, value):
        """Return `value` as maps, of one row and one column if it is a vector."""
        if value.is_maps:
            return value
        sizes = {"c": value.sizes["c"], "h": 1, "w": 1}
        blob = self.add("Reshape", [value.blob], {0: 1, 1: 1, 2: sizes["c"]}, sizes=sizes)
        return Value(blob, sizes, value.axes)

    def count_bytes(self):
        """Return the bytes that ncnn takes at most while it loads the network.

        It keeps what it makes of each kernel. Winograd's is four times as large: 36 numbers for
        the 9 of a kernel.
        """
        kept = [
            (4 if is_winograd(layer) else 1) * sum(array.nbytes for array, _ in layer.weights)
            for layer in self.layers
        ]
        # One more for the kernel and the work on it.
        return sum(kept) + 2 * max(kept, default=0)

    def finish(self, heads):
        """Return the text of the network, its weights in order, and the blobs of the heads.

        Each blob has one reader in ncnn. So a blob that several layers read, or that is a head as
        well, is handed out by a Split.
        """
        readers = Counter(blob for layer in self.layers for blob in layer.inputs)
        readers.update(heads)
        handed_out = {}
        layers = []
        for layer in self.layers:
            inputs = [
                handed_out[blob].pop() if blob in handed_out else blob for blob in layer.inputs
            ]
            layers.append(Layer(layer.kind, inputs, layer.outputs, layer.params, layer.weights))
            layers[-1].sizes = layer.sizes
            blob = layer.outputs[0]
            if readers[blob] > 1:
                names = [f"{blob}_{i}" for i in range(readers[blob])]
                layers.append(Layer("Split", [blob], names, sizes=layer.sizes))
                handed_out[blob] = list(reversed(names))
        heads = [handed_out[blob].pop() if blob in handed_out else blob for blob in heads]
        n_blobs = sum(len(layer.outputs) for layer in layers)
        lines = [str(_MAGIC), f"{len(layers)} {n_blobs}"]
        lines += [_line(i, layer) for i, layer in enumerate(layers)]
        weights = [weight for layer in layers for weight in layer.weights]
        return "\n".join(lines) + "\n", weights, heads


def is_winograd(layer):
    """Whether ncnn computes a layer by Winograd's convolution."""
    if layer.kind != "Convolution":
        return False
    n_filters, n_channels, *window = layer.weights[0][0].shape
    steps = [layer.params.get(key, 1) for key in (2, 12, 3, 13)]
    return (
        window == [3, 3]
        and steps == [1] * 4
        and n_channels >= MIN_CHANNELS
        and max(n_filters, n_channels) > 8
    )


def _line(i, layer):
    hints = []
    for _ in layer.outputs:
        # Dimensions, width, height and channels: ncnn chooses the tile of Winograd by them.
        if "h" in layer.sizes:
            hints += [3, layer.sizes["w"], layer.sizes["h"], layer.sizes["c"]]
        else:
            hints += [1, layer.sizes["c"], 1, 1]
    params = {**layer.params, 30: hints}
    if layer.kind == "Convolution" and not is_winograd(layer):
        params[31] = _NO_WINOGRAD
    return " ".join(
        [
            layer.kind,
            f"l{i}",
            str(len(layer.inputs)),
            str(len(layer.outputs)),
            *layer.inputs,
            *layer.outputs,
            *(_parameter(key, value) for key, value in sorted(params.items())),
        ]
    )


def _parameter(key, value):
    if isinstance(value, list | tuple):
        return f"{-23300 - key}={len(value)}," + ",".join(_number(number) for number in value)
    return f"{key}={_number(value)}"


def _number(value):
    if isinstance(value, int):
        return str(value)
    limit = float(np.finfo(np.float32).max)
    # Nine digits give every float32 back; without a point or an exponent it would be an integer.
    text = f"{float(np.clip(value, -limit, limit)):.9g}"
    return text if "." in text or "e" in text else text + ".0"
