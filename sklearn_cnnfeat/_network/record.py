"""The record of a whole network: its layers, in a small JSON file beside the graph."""

import json
from dataclasses import asdict, dataclass, fields
from types import NoneType

from sklearn_cnnfeat._network.layers import (
    STRIDES,
    Kernel,
    Layer,
    find_at_stride,
    find_layer,
    sentence,
)
from sklearn_cnnfeat._network.tokens import TokenGrid
from sklearn_cnnfeat.exceptions import LayerNotFoundError


@dataclass(frozen=True)
class NetworkRecord:
    """A network's layers and where they are in its graph."""

    # In the order of computation.
    layers: tuple
    # Layers of the outermost model: the range of indices.
    n_layers: int
    # Height, width (None: any) and channels of the images that it takes.
    input_shape: tuple
    # Path of what ``layer="last"`` means, where the layers themselves do not tell.
    last: str | None = None
    # Name of a subclassed model, of which only the output can be taken.
    opaque: str | None = None
    # Order of axes of layers that the graph does not keep in logical order.
    permutations: dict | None = None
    # Why OpenVINO does not compute it; None where it does.
    reason: str | None = None
    # Which front end converted it, and with what.
    converter: str | None = None
    # How its file was inspected; None where it was trusted instead.
    inspection: int | None = None
    # Whether the digest of its source means the same numbers in every process.
    is_lasting: bool = True

    def find(self, wanted, where):
        """Return the layer that the parameter `layer` names in the network called `where`."""
        if self.opaque is not None and wanted not in ("last", self.opaque, 0, -1):
            raise LayerNotFoundError(
                f"{sentence(where)} is a subclass of keras.Model, which does not tell how its "
                "layers are connected: only its output can be taken, with layer='last'. To take "
                f"layer {wanted!r}, build the model with the Functional API."
            )
        if wanted == "last" and self.last is not None:
            wanted = self.last
        if wanted in STRIDES and wanted not in {layer.path for layer in self.layers}:
            return find_at_stride(STRIDES[wanted], self.layers, self.input_shape, where)
        return find_layer(wanted, self.layers, self.n_layers, where)

    def to_json(self):
        return asdict(self)

    @classmethod
    def as_read(cls, values):
        """Return the record as it would be read from the disk."""
        return cls.from_json(json.loads(json.dumps(values)))

    @classmethod
    def from_json(cls, values):
        """Return the record that `to_json` wrote; raise `ValueError` for anything else."""
        _check(isinstance(values, dict) and values.keys() == {f.name for f in fields(cls)})
        kinds = {
            "layers": list,
            "n_layers": int,
            "input_shape": list,
            "last": (str, NoneType),
            "opaque": (str, NoneType),
            "permutations": (dict, NoneType),
            "reason": (str, NoneType),
            "converter": (str, NoneType),
            "inspection": (int, NoneType),
            "is_lasting": bool,
        }
        _check(all(isinstance(values[name], kind) for name, kind in kinds.items()))
        permutations = values["permutations"]
        return cls(
            **values
            | {
                "layers": tuple(_layer(layer) for layer in values["layers"]),
                "input_shape": _shape(values["input_shape"]),
                "permutations": permutations
                and {path: _shape(order) for path, order in permutations.items()},
            }
        )


def _layer(values):
    _check(isinstance(values, dict) and values.keys() == {f.name for f in fields(Layer)})
    _check(isinstance(values["path"], str) and isinstance(values["kernels"], list))
    shape = values["shape"]
    kernels = tuple(_kernel(kernel) for kernel in values["kernels"])
    shapes = {"shape": None if shape is None else _shape(shape), "grid": _grid(values["grid"])}
    return Layer(**values | shapes | {"kernels": kernels})


def _grid(values):
    if values is None:
        return None
    _check(isinstance(values, dict) and values.keys() == {f.name for f in fields(TokenGrid)})
    _check(all(isinstance(n, int) for n in values.values()))
    return TokenGrid(**values)


def _kernel(values):
    _check(isinstance(values, dict) and values.keys() == {f.name for f in fields(Kernel)})
    bias = values["bias_shape"]
    shapes = {
        "shape": _shape(values["shape"]),
        "bias_shape": None if bias is None else _shape(bias),
    }
    return Kernel(**values | shapes)


def _shape(values):
    _check(isinstance(values, list) and all(isinstance(n, (int, NoneType)) for n in values))
    return tuple(values)


def _check(condition):
    if not condition:
        raise ValueError("its record is not one of this version")
