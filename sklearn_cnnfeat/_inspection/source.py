"""The network that a transformer uses."""

from sklearn_cnnfeat._network.foreign import is_network
from sklearn_cnnfeat._network.networks import open_network
from sklearn_cnnfeat._parameters import network_source


def network_of(transformer, layer=None):
    """Return where a transformer's network comes from, its input size, and the model if it is one.

    It is the network that computes `layer`, or else the transformer's own layers. Nothing is
    downloaded, for that needs no digest of the weights.
    """
    layer = transformer.layer if layer is None else layer
    layers = tuple(layer) if isinstance(layer, list) else (layer,)
    model = transformer.model if is_network(transformer.model) else None
    return *network_source(transformer, layers), model


def graph_of(extractor):
    """Return the `openvino.Model` that an extractor runs; None on other engines."""
    if extractor.engine != "openvino":
        return None
    return open_network(extractor.spec, extractor.engine, extractor.model).read()
