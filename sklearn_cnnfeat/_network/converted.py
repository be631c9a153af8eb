"""The result of every front end: one OpenVINO graph, and where its layers are in it."""

from dataclasses import dataclass
from typing import Any

from sklearn_cnnfeat._network.layers import Layer


class UnsupportedLayersError(Exception):
    """Keras' OpenVINO backend does not compute some layers, or not as TensorFlow does."""


class ConversionError(RuntimeError):
    """OpenVINO cannot take a network that its framework can compute."""


@dataclass
class Converted:
    """A whole network as an OpenVINO graph.

    Attributes
    ----------
    model : openvino.Model
        One parameter with the tensor name "pixels": float32 (-1, height or -1, width or -1,
        channels), with the values that the network itself takes. The number of images is 1 where
        the network's own graph has it as a constant.
    layers : list of Layer
        In the order of computation.
    outputs : dict of str to openvino.Output
        The value of each layer by its path, in logical order: (n, height, width, channels),
        (n, length) or (n, tokens, width).
    last : str, default=None
        Path of the last layer before the classifier, if the layers do not determine it.
    """

    model: Any
    layers: list[Layer]
    outputs: dict[str, Any]
    last: str | None = None
