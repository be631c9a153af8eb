"""Whole networks, each converted once: from memory, from the disk, or newly converted."""

import json
import threading
from collections import OrderedDict
from dataclasses import replace

from sklearn_cnnfeat._files import digest_of_file
from sklearn_cnnfeat._network import conversion, converter, foreign, graph, store
from sklearn_cnnfeat._network.converted import ConversionError, UnsupportedLayersError
from sklearn_cnnfeat._network.engines.openvino import (
    GRAPH,
    NotWrittenError,
    first_line,
    read_network,
)
from sklearn_cnnfeat._network.layers import STRIDES, find_at_stride, find_layer, sentence
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.runtime import check_openvino, check_process
from sklearn_cnnfeat._network.spec import (
    NETWORK_FORMAT,
    describe,
    digest_of_text,
    installed_version,
)
from sklearn_cnnfeat._network.weights import find_weights
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat.exceptions import EngineError, LayerNotFoundError

# Kept in memory: as many cuts as a search over the layers of a network goes through.
MAX_IN_MEMORY = 4


class WholeNetwork:
    """A network with all its layers, on the disk; its graph is read when it is cut first.

    Attributes
    ----------
    record : NetworkRecord
        What is known of it.
    """

    def __init__(self, record, stored):
        self.record = record
        self._stored = stored
        self._model = None
        self._lock = threading.Lock()

    def cut(self, heads, preprocessing):
        """Return the part that computes some heads, as an OpenVINO model."""
        with self._lock:
            if self._model is None:
                self._model = read_network(self._stored.folder / GRAPH)
            model = self._model
        return graph.cut(model, heads, self.record.permutations or {}, preprocessing)

    def release(self):
        """Drop the graph from memory until it is cut again."""
        with self._lock:
            self._model = None


class Recent(OrderedDict):
    """The values used last, by key."""

    def recall(self, key):
        """Return the value of a key, or None."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]

    def keep(self, key, value):
        """Keep a value in place of the least recently used one."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > MAX_IN_MEMORY:
            self.popitem(last=False)


_networks, _structures = Recent(), Recent()


def forget_whole_networks():
    """Drop all networks from memory, but not from the disk."""
    _networks.clear()


def identify(source, layers, input_size=None, model=None):
    """Return `source` with the digest of its weights, downloading published ones where needed.

    `layers` are checked before a download, so that a misspelled name does not cost half a gigabyte.
    """
    if foreign.is_foreign(source):
        return foreign.identify(source, model)
    if source.kind == "object":
        from sklearn_cnnfeat._network.keras_objects import digest_of_model

        return replace(source, digest=digest_of_model(model))
    if source.kind == "file":
        return replace(source, digest=digest_of_file(source.name))
    if source.weights == "random":
        return source
    path = source.weights
    if source.weights == "imagenet":
        architecture = find_architecture(source.name)
        path = find_weights(architecture, source.include_top, input_size).path
        if path is None:
            structure = describe_network(source, input_size)
            for layer in layers:
                find_in(structure, layer, source)
            path = converter.download_weights(source, input_size)
    return replace(source, digest=digest_of_file(path))


def open_whole(source, input_size, model=None, announce=None):
    """Return a network with all its layers.

    Parameters
    ----------
    source : Source
        Where it comes from, with its digest.
    input_size : (int, int) or None
        Height and width in pixels of the images that it takes; None for its own.
    model : keras.Model, default=None
        The model itself where `source` names an object.
    announce : callable, default=None
        Called with a sentence before anything that takes seconds.

    Returns
    -------
    network : WholeNetwork
    """
    lasting = is_lasting(source, model)
    key = _key(source, input_size, None if lasting else id(model))
    network = _networks.recall(key) or (_read_whole(key) if lasting else None)
    if network is None:
        with store.locked(key):
            # Another process may have converted it while this one waited.
            network = _read_whole(key) if lasting else None
            if network is None:
                if announce:
                    announce(f"converting {describe(source)} (once; kept for later runs)")
                network = _convert(source, input_size, model, key if lasting else None)
    _networks.keep(key, network)
    return network


def is_lasting(source, model):
    if model is None:
        return True
    if foreign.is_foreign(source):
        return foreign.has_lasting_identity(model)
    from sklearn_cnnfeat._network.keras_objects import has_lasting_identity

    return has_lasting_identity(model)


def _key(*facts):
    versions = {name: installed_version(name) for name in ("keras", "openvino")}
    source, *others = facts
    return digest_of_text(json.dumps([source.identity(), *others, versions, NETWORK_FORMAT]))


def _read_whole(key):
    stored = store.read(key)
    if stored is None:
        return None
    try:
        return WholeNetwork(NetworkRecord.from_json(stored.record), stored)
    except (ValueError, TypeError) as error:
        store.discard(key, str(error))
        return None


def _convert(source, input_size, model, key):
    check_process()
    try:
        check_openvino()
    except Exception as error:
        reason = f"OpenVINO cannot take {describe(source)}: {first_line(error)}."
        raise EngineError(reason) from error
    if model is not None:
        check_unchanged(source, model)

    def make(folder):
        if foreign.is_foreign(source):
            return foreign.convert(source, input_size, folder, model)
        record = converter.convert(source, input_size, folder, model)
        if model is not None and record["reason"] is None:
            record["reason"] = _compare_with(model, source, record, folder)
        return record

    try:
        stored = store.write(key, make)
    except (UnsupportedLayersError, ConversionError, NotWrittenError) as error:
        raise EngineError(str(error)) from error
    # As it would be read from the disk.
    record = NetworkRecord.from_json(json.loads(json.dumps(stored.record)))
    return WholeNetwork(record, stored)


def check_unchanged(source, model):
    """Raise if a model is no longer what `source` stands for."""
    if identify(source, (), model=model).digest != source.digest:
        raise RuntimeError(
            f"{sentence(describe(source))} has changed since fit, and the compiled network of that "
            "time is gone. Call fit again."
        )


def _compare_with(model, source, record, folder):
    """Return why a network's numbers are not those of the user's own model; None where they are."""
    from sklearn_cnnfeat._network.engines import framework

    record = NetworkRecord.from_json(json.loads(json.dumps(record)))
    pixels = conversion.sample_pixels(record.input_shape)
    outputs = framework.outputs_by_layer(model, pixels)
    paths = [path for path in outputs if path in {layer.path for layer in record.layers}]
    network = read_network(folder / GRAPH)
    computed = conversion.run_layers(network, record, paths, pixels)
    return conversion.reason_to_refuse(computed, [outputs[path] for path in paths], source)


def describe_network(source, input_size, model=None):
    """Return the record of a network: of a named one whole and without its weights."""
    if source.kind != "zoo":
        return describe_weighted(source, input_size, model)
    structure = replace(source, weights="imagenet" if source.weights == "imagenet" else "random")
    key = _key(
        replace(structure, include_top=True, digest=None, seed=None), input_size, "structure"
    )
    with store.locked(key):
        record = _structures.recall(key) or store.read(key)
        if record is None:
            record = store.write(key, lambda _: converter.describe_named(structure, input_size))
        _structures.keep(key, record)
    return NetworkRecord.from_json(json.loads(json.dumps(record.record)))


def describe_weighted(source, input_size, model=None):
    """Return the record of the network that `source` computes, with the statistics of weights."""
    source = identify(source, (), input_size, model)
    if foreign.is_foreign(source):
        return open_whole(source, input_size, model).record
    try:
        return open_whole(source, input_size, model).record
    except EngineError:
        from sklearn_cnnfeat._network.keras_models import load_network

        model = model or load_network(source, input_size)
        return conversion.describe_model(model, source, input_size)


def read_kernels(wanted, source, input_size, model=None):
    """Return a layer and its kernels by name."""
    record = describe_weighted(source, input_size, model)
    layer = find_in(record, wanted, source)
    if foreign.is_foreign(source):
        return layer, foreign.read_kernels(source, layer, model)
    if model is not None:
        return layer, conversion.kernels_in(model, source, input_size, layer.path)
    return layer, converter.read_kernels(source, input_size, layer.path)


def find_in(record, wanted, source):
    """Return the layer of a network that the parameter `wanted` names."""
    where = describe(source)
    if record.opaque is not None and wanted not in ("last", record.opaque, 0, -1):
        raise LayerNotFoundError(
            f"{sentence(where)} is a subclass of keras.Model, which does not tell how its layers "
            f"are connected: only its output can be taken, with layer='last'. To take layer "
            f"{wanted!r}, build the model with the Functional API."
        )
    if wanted == "last" and record.last is not None:
        wanted = record.last
    if wanted in STRIDES and wanted not in {layer.path for layer in record.layers}:
        return find_at_stride(STRIDES[wanted], record.layers, record.input_shape, where)
    return find_layer(wanted, record.layers, record.n_layers, where)
