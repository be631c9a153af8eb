"""Networks ready to run: from memory, from the disk, or newly converted."""

import json
import threading
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from sklearn_cnnfeat._files import digest_of_file
from sklearn_cnnfeat._network import (
    conversion,
    converter,
    foreign,
    graph,
    ncnn_networks,
    quantize,
    store,
)
from sklearn_cnnfeat._network.converted import ConversionError, UnsupportedLayersError
from sklearn_cnnfeat._network.engines.openvino import (
    GRAPH,
    NotWrittenError,
    OpenVINOEngine,
    first_line,
    read_network,
    write_network,
)
from sklearn_cnnfeat._network.layers import STRIDES, find_at_stride, find_layer, sentence
from sklearn_cnnfeat._network.model_files import inspect_again, inspection_of
from sklearn_cnnfeat._network.pooling import needs_fixed_size, pooled_shape
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.runtime import (
    check_openvino,
    check_process,
    has_openvino,
    supports_bfloat16,
)
from sklearn_cnnfeat._network.spec import (
    NETWORK_FORMAT,
    Head,
    NetworkInfo,
    describe,
    digest_of_text,
    installed_version,
)
from sklearn_cnnfeat._network.weights import find_weights
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import EngineError, EngineWarning, LayerNotFoundError

# Kept in memory: as many cuts as a search over the layers of a network goes through.
MAX_IN_MEMORY = 4


def identify(source, layers, input_size=None, model=None):
    """Return `source` with the digest of its weights, downloading published ones where needed.

    Before a download, `layers` are looked for: a name spelled wrong costs no half gigabyte.
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


# --- which engine ---------------------------------------------------------------------------------


def choose_engine():
    """Return the engine that ``engine="auto"`` means on this machine for Keras' networks.

    On a processor OpenVINO is faster than Keras for every network that ``benchmarks/engines.py``
    compares, with a fraction of the memory. Where it is chosen, `winograd` chooses the networks
    that ncnn computes instead.
    """
    return "keras" if not has_openvino() or converter.has_gpu() else "openvino"


def check_precision(precision, engine):
    """Raise where an engine, or this processor, does not compute in a precision."""
    if precision == "float32" or (engine == "torch" and precision in ("float16", "bfloat16")):
        return
    if precision == "float16" or engine == "torch":
        raise ValueError(
            f"precision={precision!r} is not arithmetic of engine={engine!r}: 'float16' is of "
            "engine='torch', 'int8' of engine='openvino'. Use precision='float32'."
        )
    if engine != "openvino":
        runner = {"keras": "Keras", "ncnn": "ncnn"}[engine]
        raise ValueError(
            f"precision={precision!r} is arithmetic of the OpenVINO engine, and {runner} runs this "
            "network here. Use precision='float32'."
        )
    if precision == "bfloat16" and not supports_bfloat16():
        raise ValueError(
            "precision='bfloat16' needs a processor that computes it in hardware (AVX512_BF16 or "
            "AMX); this one would be slower than with precision='float32'."
        )


# --- whole networks -------------------------------------------------------------------------------


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
        return graph.cut(self._model, heads, self.record.permutations or {}, preprocessing)


class _Recent(OrderedDict):
    """The values used last, by key."""

    def recall(self, key):
        """Return the value of a key, or None."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]

    def keep(self, key, value):
        """Keep a value in place of the one that was not used for longest."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > MAX_IN_MEMORY:
            self.popitem(last=False)


_networks, _structures, _compiled = _Recent(), _Recent(), _Recent()
# Problems of ncnn that have been warned of in this process.
_told = set()
_lock = threading.RLock()


def forget_networks():
    """Drop all networks from memory; those on the disk stay."""
    with _lock:
        _networks.clear()
        _compiled.clear()
    ncnn_networks.forget_loaded()
    check_openvino.cache_clear()


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
    is_lasting = _is_lasting(source, model)
    key = _key(source, input_size, None if is_lasting else id(model))
    network = _networks.recall(key) or (_read_whole(key) if is_lasting else None)
    if network is None:
        with store.locked(key):
            # Another process may have converted it while this one waited.
            network = _read_whole(key) if is_lasting else None
            if network is None:
                if announce:
                    announce(f"converting {describe(source)} (once; kept for later runs)")
                network = _convert(source, input_size, model, key if is_lasting else None)
    _networks.keep(key, network)
    return network


def _is_lasting(source, model):
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
        _check_unchanged(source, model)

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


def _check_unchanged(source, model):
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


# --- from a spec to something that runs -----------------------------------------------------------


def find_in(record, wanted, source):
    """Return the layer of a network that the user means by `wanted`."""
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


def describe_heads(record, spec):
    """Return what comes out of a cut: its layers, shapes and poolings."""
    where = describe(spec.source)
    heads = []
    for wanted, pooling in zip(spec.layers, spec.poolings, strict=True):
        layer = find_in(record, wanted, spec.source)
        if needs_fixed_size(pooling) and None in layer.shape:
            raise ValueError(
                f"{sentence(where)} takes images of any size, so that layer {layer.path!r} gives "
                f"maps of any size, and pooling={pooling!r} rows of any length. Say "
                "input_size=(height, width), or choose pooling='avg', 'max' or 'gem'."
            )
        shape, grid = layer.shape, layer.grid
        if grid is not None:
            shape = grid.height, grid.width, shape[-1]
        if pooling == "cls" and (grid is None or grid.n_prefix == 0):
            raise ValueError(
                f"pooling='cls' takes the class token, and layer {layer.path!r} of {where} has "
                "none. Choose pooling='avg'."
            )
        heads.append(
            Head(
                layer=layer.path,
                pooling=pooling if len(shape) == 3 else None,
                map_shape=shape,
                shape=pooled_shape(shape, pooling),
                grid=grid,
            )
        )
    return NetworkInfo(heads=tuple(heads), input_shape=record.input_shape)


class CompiledNetwork:
    """A part of a network, made ready when it is run first.

    Attributes
    ----------
    spec : NetworkSpec
        What it computes.
    info : NetworkInfo
        What comes in and out.
    is_lasting : bool
        Whether its fingerprint means the same numbers in every process.
    inspection : int or None
        How its file was inspected; None where it was trusted instead.
    layers : list of Layer
        All layers of the network.
    """

    engine = None

    def __init__(self, spec, record):
        self.spec = spec
        self.record = record
        self.info = describe_heads(record, spec)
        self.is_lasting = record.is_lasting
        self.inspection = record.inspection
        self.layers = record.layers
        self._engines = _Recent()
        self._lock = threading.Lock()

    def compile(self, dtype, precision, n_threads, batch_size, n_callers=None):
        """Return an engine; one is kept for each set of arguments that is in use.

        Where `n_callers` is given, so many use it at the same time, each with one core.
        """
        key = (np.dtype(dtype).name, precision, n_threads, batch_size, n_callers)
        check_process()
        with self._lock:
            engine = self._engines.recall(key)
            if engine is None:
                engine = self._make_engine(*key)
                self._engines.keep(key, engine)
            return engine

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        raise NotImplementedError


class OpenVINONetwork(CompiledNetwork):
    """A cut of a whole network, on OpenVINO.

    Parameters
    ----------
    spec : NetworkSpec
        What to compute.
    whole : WholeNetwork
        The network.
    quantized : Stored, default=None
        The same cut on 8 bits, to be run in its place.
    """

    engine = "openvino"

    def __init__(self, spec, whole, quantized=None):
        super().__init__(spec, whole.record)
        self._whole = whole
        self._quantized = quantized

    def read(self):
        """Return the cut as an OpenVINO model."""
        if self._quantized is not None:
            return read_network(self._quantized.folder / GRAPH)
        return self._whole.cut(self.info.heads, self.spec.preprocessing)

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        try:
            return OpenVINOEngine(self.read(), dtype, precision, n_threads, batch_size, n_callers)
        except MemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"OpenVINO cannot load {describe(self.spec.source)}: {first_line(error)}."
            ) from error


class KerasNetwork(CompiledNetwork):
    """A part of a Keras model in this process.

    Parameters
    ----------
    spec : NetworkSpec
        What to compute.
    model : keras.Model
        The network.
    reason : str or None
        Why OpenVINO does not compute it; None where it was not asked.
    """

    engine = "keras"

    def __init__(self, spec, model, reason):
        record = conversion.describe_model(model, spec.source, spec.input_size)
        super().__init__(spec, record)
        self.reason = reason
        self._model = model
        self._part = None

    def compile(self, dtype, precision, n_threads, batch_size, n_callers=None):
        """Return an engine, as long as the user has not changed the model."""
        if self.spec.source.kind == "object":
            _check_unchanged(self.spec.source, self._model)
        return super().compile(dtype, precision, n_threads, batch_size, n_callers)

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        from sklearn_cnnfeat._network.engines import framework

        if self._part is None:
            self._part = framework.part_of(
                self._model, self.spec.source, self.info, self.spec.preprocessing
            )
        return framework.KerasEngine(self._part, batch_size)


class TorchNetwork(CompiledNetwork):
    """Some layers of a PyTorch module in this process.

    Parameters
    ----------
    spec : NetworkSpec
        What to compute.
    model : torch.nn.Module or None
        The network, where it is not one of timm.
    """

    engine = "torch"

    def __init__(self, spec, model):
        self._module, record, self._orders = foreign.describe_module(
            spec.source, spec.input_size, model
        )
        super().__init__(spec, record)

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        from sklearn_cnnfeat._network.engines.torch_engine import TorchEngine

        return TorchEngine(
            self._module,
            self.info.heads,
            self._orders,
            self.spec.preprocessing,
            precision,
            batch_size,
        )


def open_network(spec, engine, model=None, announce=None, calibrate=None, precision="float32"):
    """Return the compiled network of a spec.

    Parameters
    ----------
    spec : NetworkSpec
        What to compute, with a source that carries its digest.
    engine : {"auto", "openvino", "ncnn", "keras", "torch"}
        What to compute it with.
    model : keras.Model, default=None
        The model, where the spec names an object.
    announce : callable, default=None
        Called with a sentence before anything that takes seconds.
    calibrate : callable, default=None
        Takes a `NetworkInfo`; returns the batches of pixels that an 8-bit network is made with.
    precision : {"float32", "bfloat16", "float16", "int8"}, default="float32"
        Arithmetic that it will be compiled for.

    Returns
    -------
    network : CompiledNetwork
        Ready to be compiled.
    """
    wanted = engine
    if engine == "auto":
        is_foreign = foreign.is_foreign(spec.source)
        wanted = foreign.choose_engine(spec.source) if is_foreign else choose_engine()
    foreign.check_engine(spec.source, wanted)
    if wanted in ("openvino", "ncnn") and not has_openvino():
        raise ImportError(
            f"engine={wanted!r} needs OpenVINO: pip install openvino. engine='auto' runs on "
            "Keras where it is missing."
        )
    if wanted == "ncnn":
        check_precision(precision, wanted)
    elif engine == "auto" and wanted == "openvino" and precision == "float32":
        wanted = "openvino or ncnn"
    key = (spec.fingerprint(), wanted, None if _is_lasting(spec.source, model) else id(model))
    with _lock:
        compiled = _compiled.recall(key)
        if compiled is None:
            compiled = _open(spec, wanted, engine, model, announce, calibrate)
            # Kept beside its model: as long as it is, no other model can get the same id.
            compiled.model = model
            _compiled.keep(key, compiled)
        _check_trust(compiled, spec.source)
    if compiled.engine == "keras" and wanted != "keras":
        warn(f"{compiled.reason} Keras computes it instead.", EngineWarning)
    return compiled


def _open(spec, wanted, engine, model, announce, calibrate):
    reason = None
    if wanted not in ("keras", "torch"):
        try:
            network = _open_openvino(spec, model, announce, calibrate)
            return network if wanted == "openvino" else _on_ncnn(network, wanted == "ncnn")
        except EngineError as error:
            if engine != "auto" or foreign.is_foreign(spec.source):
                raise
            reason = str(error)
    check_process()
    if wanted == "torch":
        return TorchNetwork(spec, model)
    from sklearn_cnnfeat._network.keras_models import load_network

    return KerasNetwork(spec, model or load_network(spec.source, spec.input_size), reason)


def _open_openvino(spec, model, announce, calibrate):
    whole = open_whole(spec.source, spec.input_size, model, announce)
    if whole.record.reason is not None:
        raise EngineError(whole.record.reason)
    network = OpenVINONetwork(replace(spec, calibration=None), whole)
    if spec.calibration is None:
        return network
    return OpenVINONetwork(spec, whole, _quantize(spec, network, announce, calibrate))


def _on_ncnn(cut, is_wanted):
    """Return a cut on ncnn where it should run there; the cut itself elsewhere."""
    network, problem = ncnn_networks.on_ncnn(cut, is_wanted)
    if problem is not None and is_wanted:
        raise EngineError(problem)
    if problem is not None and problem not in _told:
        _told.add(problem)
        warn(f"{problem} OpenVINO computes the network instead.", EngineWarning)
    return network or cut


def _quantize(spec, network, announce, calibrate):
    """Return the 8-bit form of a cut, from the disk or made from images."""
    key = digest_of_text(spec.fingerprint() + str(installed_version("nncf")))
    with store.locked(key):
        stored = store.read(key) if network.is_lasting else None
        if stored is not None:
            return stored
        name = describe(spec.source)
        if calibrate is None:
            raise RuntimeError(
                f"The 8-bit network of {name} that was made in fit is not here. Call fit again, or "
                "say calibration=images, from which it can be made again."
            )
        if announce:
            announce(f"calibrating {name} for 8 bits (kept for later runs)")
        quantized = quantize.quantize(network.read(), calibrate(network.info))
        return store.write(
            key if network.is_lasting else None, lambda folder: write_network(quantized, folder)
        )


def _check_trust(network, source):
    """Refuse a network to who does not trust its file, if only somebody else did."""
    comes_from_file = source.kind == "file" or (source.kind == "zoo" and source.weights != "random")
    wanted = inspection_of(source)
    if comes_from_file and wanted is not None and network.inspection != wanted:
        inspect_again(source)
        network.inspection = wanted
