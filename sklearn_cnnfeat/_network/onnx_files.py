"""What is in an ONNX file, found out before OpenVINO opens it: only what is known is let in.

An ONNX file is a protocol buffer: numbered fields, each a number or a run of bytes. The few fields
that matter are read here, with nothing allocated that the file does not hold. Refused are operators
outside the standard, loops and branches, text, and weights outside the folder of the file.
"""

import math
import mmap
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sklearn_cnnfeat._network.refusals import show
from sklearn_cnnfeat.exceptions import ModelFileError, UntrustedModelError

# Bounds on what a network may be made of. The largest networks of timm have 5,000 nodes.
_MOST_NODES = 200_000
_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 2**33
_MOST_TEXT = 64 * 1024
# ONNX allows a file as many bytes as a protocol buffer may have; more lie in files beside it.
_MOST_BYTES = 2**31

# The domains whose operators OpenVINO computes; "com.microsoft" is ONNX Runtime's, which its
# optimizer writes.
_DOMAINS = {"", "ai.onnx", "com.microsoft"}
# Operators with a body of their own, or for values that are not tensors of numbers.
_REFUSED_OPERATORS = {"If", "Loop", "Scan", "SequenceMap", "Optional", "StringNormalizer"}

# Bytes per element of each tensor type; half a byte for 4-bit integers.
_ITEM_SIZE = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20), 1),
    **dict.fromkeys((4, 5, 10, 16), 2),
    **dict.fromkeys((1, 6, 12), 4),
    **dict.fromkeys((7, 11, 13), 8),
    **dict.fromkeys((21, 22), 0.5),
}
_STRING, _COMPLEX = 8, (14, 15)
_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


@dataclass(frozen=True)
class Node:
    """One operation."""

    # Empty where the file gives none.
    name: str
    operator: str
    inputs: tuple
    outputs: tuple


@dataclass(frozen=True)
class Value:
    """An input of the graph."""

    name: str
    # Number of the type of its elements; 0 where it is not a tensor.
    type: int
    # None where a dimension is not fixed.
    shape: tuple


@dataclass(frozen=True)
class ONNXFile:
    """The structure of a network in an ONNX file."""

    path: Path
    nodes: tuple
    # The one input that takes images.
    image: Value
    # Names of the outputs of the graph.
    outputs: tuple
    # Shape of each tensor of weights, by its name.
    initializers: dict
    # What its maker notes about it.
    metadata: dict
    # Files beside it that hold weights.
    external: tuple


class _Damaged(Exception):
    """The bytes are not a protocol buffer of ONNX; becomes a `ModelFileError`."""


class _Unfit(Exception):
    """The file is whole, and not a network for images; becomes a `ModelFileError`."""


class _Refused(Exception):
    """Why a file is refused; becomes an `UntrustedModelError`."""


def read_onnx(path):
    """Return the structure of an ONNX file without its weights, or refuse the file.

    `UntrustedModelError` is for what is not a standard operator or a number, and for files outside
    its folder; `ModelFileError` for damage, and for networks that do not take images.
    """
    path = Path(path)
    shown = show(str(path))
    try:
        return _read_model(path, _map(path))
    except _Damaged as error:
        raise ModelFileError(
            f"{shown!r} cannot be read as an ONNX file: {error}. Is it complete?"
        ) from error
    except _Unfit as error:
        raise ModelFileError(f"The network in {shown!r} cannot be used: {error}.") from error
    except _Refused as error:
        raise UntrustedModelError(f"{shown!r} is refused: {error}.") from error


def _map(path):
    """Return the bytes of a file, which are read where they are looked at."""
    size = os.path.getsize(path)
    if size == 0:
        raise _Damaged("it is empty")
    if size > _MOST_BYTES:
        raise _Damaged(
            f"it has {size:,} bytes, and a protocol buffer has 2 GiB at most; larger networks "
            "keep their weights in files beside it"
        )
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if bytes(data[:24]) == b"version https://git-lfs.":
        raise _Damaged("it is a pointer of Git LFS; 'git lfs pull' fetches the file itself")
    return data


# --- protocol buffers -----------------------------------------------------------------------------


def _fields(data):
    """Yield (number, value) for each field of a message: integers, or slices of `data`."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = _varint(data, position)
        elif kind in (1, 2, 5):
            length = {1: 8, 5: 4}.get(kind)
            if length is None:
                length, position = _varint(data, position)
            if length > end - position:
                raise _Damaged("it ends in the middle")
            value = data[position : position + length]
            position += length
        else:
            raise _Damaged("its structure is damaged")
        yield number, value


def _varint(data, position):
    value = shift = 0
    while True:
        if position >= len(data):
            raise _Damaged("it ends in the middle")
        if shift > 63:
            raise _Damaged("its structure is damaged")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _message(data, names):
    """Return the fields of a message as lists by name; `names` maps their numbers."""
    found = {name: [] for name in names.values()}
    for number, value in _fields(_bytes(data)):
        if number in names:
            found[names[number]].append(value)
    return found


def _bytes(value):
    if isinstance(value, int):
        raise _Damaged("its structure is damaged")
    return value


def _number(values, default=0):
    value = values[-1] if values else default
    if not isinstance(value, int):
        raise _Damaged("its structure is damaged")
    # Negative numbers are written as two's complement of 64 bits.
    return value - 2**64 if value >= 2**63 else value


def _text(value):
    value = _bytes(value)
    if len(value) > _MOST_TEXT:
        raise _Refused(f"a name in it has {len(value):,} bytes")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise _Damaged("a name in it is not UTF-8") from error


def _last_text(values):
    return _text(values[-1]) if values else ""


def _pairs(values):
    """Return entries of key and value as a dict."""
    entries = (_message(value, {1: "key", 2: "value"}) for value in values)
    return {_last_text(entry["key"]): _last_text(entry["value"]) for entry in entries}


def _numbers(values):
    """Return repeated integers, packed into runs of bytes or not."""
    numbers = []
    for value in values:
        if isinstance(value, int):
            numbers.append(_number([value]))
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            numbers.append(_number([number]))
    return numbers


# --- ONNX -----------------------------------------------------------------------------------------

_MODEL = {1: "version", 7: "graph", 14: "metadata", 20: "training", 25: "functions"}
_GRAPH = {1: "nodes", 5: "initializers", 11: "inputs", 12: "outputs", 15: "sparse"}
_NODE = {1: "inputs", 2: "outputs", 3: "name", 4: "operator", 5: "attributes", 7: "domain"}
_ATTRIBUTE = {1: "name", 5: "tensor", 6: "graph", 10: "tensors", 11: "graphs", 22: "s", 23: "s"}
_TENSOR = {
    1: "shape",
    2: "type",
    4: "floats",
    5: "integers",
    6: "texts",
    7: "longs",
    8: "name",
    9: "raw",
    10: "doubles",
    11: "unsigned",
    13: "external",
    14: "location",
}
_VALUE = {1: "name", 2: "type"}


def _read_model(path, data):
    model = _message(data, _MODEL)
    if not model["version"] or not model["graph"]:
        raise _Damaged("there is no network in it")
    if model["training"]:
        raise _Refused("it holds what is needed for training; export it for inference")
    if model["functions"]:
        raise _Refused(
            "it defines operators of its own. onnx.inliner.inline_local_functions(onnx.load(path)) "
            "returns a network without them"
        )
    graph = _message(model["graph"][-1], _GRAPH)
    if graph["sparse"]:
        raise _Refused("it holds sparse weights")
    if len(graph["nodes"]) > _MOST_NODES:
        raise _Refused(f"it has {len(graph['nodes']):,} nodes; at most {_MOST_NODES:,} are read")
    files = _Files(path)
    shapes = dict(_read_tensor(tensor, files) for tensor in graph["initializers"])
    nodes = tuple(_read_node(node, files) for node in graph["nodes"])
    if not nodes:
        raise _Damaged("there is no network in it")
    return ONNXFile(
        path=path,
        nodes=nodes,
        image=_find_image([_read_value(value) for value in graph["inputs"]], shapes),
        outputs=tuple(_last_text(_message(value, _VALUE)["name"]) for value in graph["outputs"]),
        initializers=shapes,
        metadata=_pairs(model["metadata"]),
        external=files.found,
    )


def _read_node(data, files):
    node = _message(data, _NODE)
    operator, domain = _last_text(node["operator"]), _last_text(node["domain"])
    shown = f"operator {show(operator)!r}" + (f" of domain {show(domain)!r}" if domain else "")
    if domain not in _DOMAINS:
        raise _Refused(
            f"{shown} is not standard, and what it does is not in the file. Export the network "
            "with standard operators only"
        )
    if operator in _REFUSED_OPERATORS:
        raise _Refused(
            f"{shown} makes what is computed depend on the data. Export the network without "
            "control flow"
        )
    for value in node["attributes"]:
        attribute = _message(value, _ATTRIBUTE)
        if attribute["graph"] or attribute["graphs"] or attribute["s"]:
            raise _Refused(f"{shown} holds a network of its own")
        for tensor in (*attribute["tensor"], *attribute["tensors"]):
            _read_tensor(tensor, files)
    return Node(
        name=_last_text(node["name"]),
        operator=operator,
        inputs=tuple(map(_text, node["inputs"])),
        outputs=tuple(map(_text, node["outputs"])),
    )


def _read_tensor(data, files):
    """Return the name and the shape of a tensor, all of whose elements must be in the file."""
    tensor = _message(data, _TENSOR)
    name, kind = _last_text(tensor["name"]), _number(tensor["type"])
    shape = _numbers(tensor["shape"])
    if kind == _STRING or tensor["texts"]:
        raise _Refused(f"tensor {show(name)!r} holds text")
    if kind not in _ITEM_SIZE:
        raise _Refused(f"tensor {show(name)!r} holds numbers of the unknown type {kind}")
    if len(shape) > _MOST_DIMENSIONS or any(n < 0 for n in shape):
        raise _Refused(f"tensor {show(name)!r} has the impossible shape {tuple(shape)[:9]}")
    n_elements = math.prod(shape)
    if n_elements > _MOST_ELEMENTS:
        raise _Refused(f"tensor {show(name)!r} has {n_elements:,} elements")
    n_bytes = math.ceil(n_elements * _ITEM_SIZE[kind])
    if _number(tensor["location"]) == 1:
        files.check(name, _pairs(tensor["external"]), n_bytes)
    elif tensor["raw"]:
        held = len(_bytes(tensor["raw"][-1]))
        if held != n_bytes:
            raise _Damaged(f"tensor {show(name)!r} has {held:,} bytes instead of {n_bytes:,}")
    else:
        # Packed numbers: at least one byte each, four for floats.
        least = n_elements * (4 if kind == 1 else 8 if kind == 11 else 0.5 if kind > 20 else 1)
        fields = ("floats", "integers", "longs", "doubles", "unsigned")
        values = [value for field in fields for value in tensor[field]]
        held = sum(8 if isinstance(value, int) else len(value) for value in values)
        if held < least:
            raise _Damaged(
                f"tensor {show(name)!r} has {n_elements:,} elements, and fewer are there"
            )
    return name, tuple(shape)


class _Files:
    """The files beside a network that hold its weights."""

    def __init__(self, path):
        # Hugging Face's cache keeps links to files that lie together elsewhere.
        self._folder = path.parent
        self._homes = {path.parent.resolve(), path.resolve().parent}
        self._sizes = {}

    @property
    def found(self):
        return tuple(sorted(self._sizes))

    def check(self, tensor, entries, n_bytes):
        """Raise unless the bytes of a tensor are in a file of the folder."""
        location = entries.get("location", "")
        path = self._folder / location
        if not location or os.path.basename(location) != location or "\0" in location:
            raise _Refused(
                f"the weights {show(tensor)!r} are in {show(location)!r}; only files in the folder "
                "of the network are read"
            )
        if path not in self._sizes:
            if not path.is_file():
                raise _Damaged(
                    f"the weights {show(tensor)!r} are in the file {show(location)!r}, which is "
                    f"not beside it in {show(str(self._folder))!r}: copy it there"
                )
            if path.resolve().parent not in self._homes:
                raise _Refused(f"{show(location)!r} is a link to a file outside the folder")
            self._sizes[path] = os.path.getsize(path)
        try:
            start, length = int(entries.get("offset", "0")), int(entries.get("length", n_bytes))
        except ValueError as error:
            raise _Damaged(f"the place of the weights {show(tensor)!r} is not a number") from error
        if start < 0 or length != n_bytes or start + length > self._sizes[path]:
            raise _Damaged(
                f"the weights {show(tensor)!r} are {n_bytes:,} bytes at {start:,} of the file "
                f"{show(location)!r}, which has {self._sizes[path]:,}"
            )


def _read_value(data):
    value = _message(data, _VALUE)
    kind = _message(value["type"][-1], {1: "tensor"}) if value["type"] else {"tensor": []}
    if not kind["tensor"]:
        return Value(_last_text(value["name"]), 0, ())
    tensor = _message(kind["tensor"][-1], {1: "type", 2: "shape"})
    shape = ()
    if tensor["shape"]:
        dimensions = _message(tensor["shape"][-1], {1: "dimension"})["dimension"]
        sizes = [_number(_message(entry, {1: "size"})["size"], -1) for entry in dimensions]
        shape = tuple(size if size > 0 else None for size in sizes)
    return Value(_last_text(value["name"]), _number(tensor["type"]), shape)


def _find_image(values, initializers):
    # Old files list their weights among the inputs.
    inputs = [value for value in values if value.name not in initializers]
    counts = Counter(value.name for value in inputs)
    if len(inputs) != 1 or counts[inputs[0].name] != 1:
        names = ", ".join(repr(show(value.name, 40)) for value in inputs[:5])
        raise _Unfit(
            f"it has {len(inputs)} inputs ({names or 'none'}); a network that takes images and "
            "nothing else is needed"
        )
    image = inputs[0]
    if len(image.shape) != 4:
        shape = ", ".join("n" if size is None else str(size) for size in image.shape)
        raise _Unfit(
            f"its input {show(image.name)!r} has the shape ({shape}); a network that takes images "
            "(n, channels, height, width) is needed"
        )
    if image.type not in _FLOATS and image.type != 2:
        kind = "text" if image.type == _STRING else f"numbers of type {image.type}"
        raise _Unfit(f"its input {show(image.name)!r} takes {kind}, not pixels")
    return image
