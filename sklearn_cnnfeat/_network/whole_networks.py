"""Whole networks, each converted once: from memory, from the disk, or newly converted."""

import threading

from sklearn_cnnfeat._network import conversion, graph, store
from sklearn_cnnfeat._network.converted import ConversionError, UnsupportedLayersError
from sklearn_cnnfeat._network.engines.openvino import (
    GRAPH,
    NotWrittenError,
    first_line,
    read_network,
)
from sklearn_cnnfeat._network.layers import sentence
from sklearn_cnnfeat._network.recent import Recent
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.runtime import check_openvino, check_process
from sklearn_cnnfeat.exceptions import EngineError

# Kept in memory: as many cuts as a search over the layers of a network goes through.
MAX_IN_MEMORY = 4


class WholeNetwork:
    """A network with all its layers, on the disk; its graph is read when it is cut first.

    `open_stored` returns its record and where it is.
    """

    def __init__(self, open_stored):
        self._open_stored = open_stored
        self.record, self._stored = open_stored()
        self._model = None
        self._lock = threading.Lock()

    def cut(self, heads, preprocessing):
        """Return the part that computes some heads, as an OpenVINO model."""
        with self._lock:
            if self._model is None:
                if not (self._stored.folder / GRAPH).exists():
                    # Another process has removed it, to make room for example.
                    self.record, self._stored = self._open_stored()
                self._model = read_network(self._stored.folder / GRAPH)
            model = self._model
        return graph.cut(model, heads, self.record.permutations or {}, preprocessing)

    def release(self):
        """Drop the graph from memory until it is cut again."""
        with self._lock:
            self._model = None


_networks = Recent(MAX_IN_MEMORY)


def forget_whole_networks():
    """Drop all networks from memory, but not from the disk."""
    _networks.clear()


def open_whole(source, input_size, model=None, announce=None):
    """Return a network with all its layers."""
    lasting = source.is_lasting(model)
    key = source.key(input_size, None if lasting else id(model))

    def read_or_convert():
        found = _read_whole(key) if lasting else None
        if found is not None:
            return found
        with store.locked(key):
            # Another process may have converted it while this one waited.
            found = _read_whole(key) if lasting else None
            if found is None:
                if announce:
                    announce(f"converting {source.label} (once; kept for later runs)")
                found = _convert(source, input_size, model, key if lasting else None)
        return found

    return _networks.get_or_make(key, lambda: WholeNetwork(read_or_convert))


def _read_whole(key):
    """Return the record of a network and where it is; None where it is not on the disk."""
    stored = store.read(key)
    if stored is None:
        return None
    try:
        return NetworkRecord.from_json(stored.record), stored
    except (ValueError, TypeError) as error:
        store.discard(key, str(error))
        return None


def _convert(source, input_size, model, key):
    check_process()
    try:
        check_openvino()
    except Exception as error:
        reason = f"OpenVINO cannot take {source.label}: {first_line(error)}."
        raise EngineError(reason) from error
    check_unchanged(source, input_size, model)
    try:
        stored = store.write(key, lambda folder: source.convert(input_size, folder, model))
    except (UnsupportedLayersError, ConversionError, NotWrittenError) as error:
        raise EngineError(str(error)) from error
    return NetworkRecord.as_read(stored.record), stored


def check_unchanged(source, input_size=None, model=None):
    """Raise if a network is no longer what `source` stands for."""
    try:
        digest = source.identify(input_size=input_size, model=model).digest
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{sentence(source.label)} cannot be read ({first_line(error)}), and the compiled "
            "network of fit is gone. Put the file back, or call fit again with another."
        ) from error
    if digest != source.digest:
        raise RuntimeError(
            f"{sentence(source.label)} has changed since fit, and the compiled network of that "
            "time is gone. Call fit again."
        )


def describe_network(source, input_size, model=None):
    """Return the record of a network: of a named one whole and without its weights."""
    return source.structure(input_size) or describe_weighted(source, input_size, model)


def describe_weighted(source, input_size, model=None):
    """Return the record of the network that `source` computes, with the statistics of weights."""
    source = source.identify((), input_size, model)
    try:
        return open_whole(source, input_size, model).record
    except EngineError:
        if "keras" not in source.engines:
            raise
        return conversion.describe_model(model or source.load(input_size), source, input_size)


def read_kernels(wanted, source, input_size, model=None):
    """Return a layer and its kernels by name."""
    layer = describe_weighted(source, input_size, model).find(wanted, source.label)
    return layer, source.read_kernels(layer, input_size, model)
