"""The network that a transformer runs, as a graph."""

from sklearn_cnnfeat._network.networks import open_network


def graph_of(extractor):
    """Return the `openvino.Model` that an extractor runs; None where a framework computes it."""
    if extractor.engine not in ("openvino", "ncnn"):
        return None
    return open_network(extractor.spec, extractor.engine, extractor.model).read()
