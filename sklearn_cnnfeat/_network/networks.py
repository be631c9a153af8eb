"""Networks ready to run: from memory, from the disk, or newly converted."""

import threading
from dataclasses import replace

import numpy as np

from sklearn_cnnfeat._network import (
    conversion,
    ncnn_networks,
    quantize,
    store,
)
from sklearn_cnnfeat._network.engines.openvino import (
    GRAPH,
    OpenVINOEngine,
    first_line,
    read_network,
    write_network,
)
from sklearn_cnnfeat._network.layers import sentence
from sklearn_cnnfeat._network.model_files import inspect_again, inspection_of
from sklearn_cnnfeat._network.pooling import needs_fixed_size, pooled_shape
from sklearn_cnnfeat._network.recent import Recent
from sklearn_cnnfeat._network.runtime import (
    check_openvino,
    check_process,
    has_openvino,
    supports_bfloat16,
)
from sklearn_cnnfeat._network.spec import (
    Head,
    NetworkInfo,
    digest_of_text,
    installed_version,
)
from sklearn_cnnfeat._network.whole_networks import (
    MAX_IN_MEMORY,
    check_unchanged,
    forget_whole_networks,
    open_whole,
)
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import EngineError, EngineWarning

# --- which engine ---------------------------------------------------------------------------------


_RUN_BY = {
    "keras": "runs Keras models, and {} is none",
    "torch": "runs PyTorch modules and networks of timm, and {} is neither",
}


def check_engine(engine, source):
    """Raise where an engine does not run a kind of networks."""
    if engine not in source.engines:
        what = _RUN_BY[engine].format(source.label)
        raise ValueError(f"engine={engine!r} {what}. Use engine='auto'.")


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


_compiled = Recent(MAX_IN_MEMORY)
# Problems of ncnn that this process has already warned of.
_told = set()
_lock = threading.RLock()


def forget_networks():
    """Drop all networks from memory; those on the disk stay."""
    with _lock:
        _compiled.clear()
    forget_whole_networks()
    ncnn_networks.forget_loaded()
    check_openvino.cache_clear()


def forget_cut(spec):
    """Drop one part of a network from memory; what is on the disk stays."""
    fingerprint = spec.fingerprint()
    with _lock:
        for key in [key for key in _compiled if key[0] == fingerprint]:
            del _compiled[key]


# --- from a spec to something that runs -----------------------------------------------------------


def describe_heads(record, spec):
    """Return what comes out of a cut: its layers, shapes and poolings."""
    where = spec.source.label
    heads = []
    for wanted, pooling in zip(spec.layers, spec.poolings, strict=True):
        layer = record.find(wanted, where)
        if needs_fixed_size(pooling) and None in layer.shape:
            raise ValueError(
                f"{sentence(where)} takes images of any size, so that layer {layer.path!r} gives "
                f"maps of any size, and pooling={pooling!r} rows of any length. Say "
                "input_size=(height, width), or choose pooling='avg', 'max' or 'gem'."
            )
        shape, grid = layer.map_shape, layer.grid
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
    """A part of a network; it is compiled when it runs first.

    What it needs to know of the whole network is in `record`; `inspection` changes when an
    untrusted file is inspected again.
    """

    engine = None

    def __init__(self, spec, record, model=None):
        self.spec = spec
        self._given = model
        self.record = record
        self.info = describe_heads(record, spec)
        self.is_lasting = record.is_lasting
        self.inspection = record.inspection
        self.layers = record.layers
        self._engines = Recent(MAX_IN_MEMORY)
        self._lock = threading.Lock()

    def compile(self, dtype, precision, n_threads, batch_size, n_callers=None):
        """Return an engine; one is kept for each set of arguments that is in use.

        `n_callers` is the number of simultaneous users, each with one core. Raises if a model that
        runs here itself has been changed by the user.
        """
        key = (np.dtype(dtype).name, precision, n_threads, batch_size, n_callers)
        check_process()
        if self._given is not None:
            check_unchanged(self.spec.source, model=self._given)
        with self._lock:
            return self._engines.get_or_make(key, lambda: self._make_engine(*key))

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        raise NotImplementedError


class OpenVINONetwork(CompiledNetwork):
    """A cut of a whole network, or the same on 8 bits (`quantized`), on OpenVINO."""

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

    def release(self):
        """Drop the graph that `read` keeps in memory; it is read again when needed."""
        self._whole.release()

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        try:
            return OpenVINOEngine(self.read(), dtype, precision, n_threads, batch_size, n_callers)
        except MemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"OpenVINO cannot load {self.spec.source.label}: {first_line(error)}."
            ) from error


class KerasNetwork(CompiledNetwork):
    """A part of a Keras model in this process; `reason` says why OpenVINO does not compute it."""

    engine = "keras"

    def __init__(self, spec, model, reason):
        self._model = model or spec.source.load(spec.input_size)
        record = conversion.describe_model(self._model, spec.source, spec.input_size)
        super().__init__(spec, record, model)
        self.reason = reason
        self._part = None

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        from sklearn_cnnfeat._network.engines import framework

        if self._part is None:
            self._part = framework.part_of(
                self._model, self.spec.source, self.info, self.spec.preprocessing
            )
        return framework.KerasEngine(self._part, batch_size)


class TorchNetwork(CompiledNetwork):
    """Some layers of a PyTorch module in this process."""

    engine = "torch"

    def __init__(self, spec, model):
        if model is None:  # the user's own module is checked whenever it runs
            check_unchanged(spec.source, spec.input_size)
        self._module, record, self._orders = spec.source.open_module(spec.input_size, model)
        super().__init__(spec, record, model)

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
    """Return the compiled network of a spec whose source carries its digest, ready to be compiled.

    `model` is the model that the user passed, if any; `announce` is called with a message before
    anything that takes seconds; `calibrate` takes a `NetworkInfo`, and returns the batches of
    pixels that an 8-bit network is made with.
    """
    source = spec.source
    wanted = source.default_engine() if engine == "auto" else engine
    check_engine(wanted, source)
    if wanted in ("openvino", "ncnn") and not has_openvino():
        raise ImportError(
            f"engine={wanted!r} needs OpenVINO: pip install openvino. engine='auto' runs on "
            "Keras where it is missing."
        )
    if wanted == "ncnn":
        check_precision(precision, wanted)
    elif engine == "auto" and wanted == "openvino" and precision == "float32":
        wanted = "openvino or ncnn"
    # PyTorch runs the module object itself, which may change later: equal modules share nothing.
    is_shared = wanted != "torch" and source.is_lasting(model)
    key = (spec.fingerprint(), wanted, None if is_shared else id(model))
    with _lock:
        # The model is kept with it, so that no other model can get the same id.
        compiled, _ = _compiled.get_or_make(
            key, lambda: (_open(spec, wanted, engine, model, announce, calibrate), model)
        )
        _check_trust(compiled, source)
    if compiled.engine == "keras" and wanted != "keras":
        warn(f"{compiled.reason} Keras computes it instead.", EngineWarning)
    return compiled


def _open(spec, wanted, engine, model, announce, calibrate):
    reason = None
    if wanted not in ("keras", "torch"):
        try:
            network = _open_openvino(spec, model, announce, calibrate)
            if wanted == "openvino":
                return network
            return _on_ncnn(network, wanted == "ncnn", announce)
        except EngineError as error:
            if engine != "auto" or "keras" not in spec.source.engines:
                raise
            reason = str(error)
    check_process()
    if wanted == "torch":
        return TorchNetwork(spec, model)
    return KerasNetwork(spec, model, reason)


def _open_openvino(spec, model, announce, calibrate):
    whole = open_whole(spec.source, spec.input_size, model, announce)
    if whole.record.reason is not None:
        raise EngineError(whole.record.reason)
    network = OpenVINONetwork(replace(spec, calibration=None), whole)
    if spec.calibration is None:
        return network
    return OpenVINONetwork(spec, whole, _quantize(spec, network, announce, calibrate))


def _on_ncnn(cut, is_wanted, announce):
    """Return the cut on ncnn if it should run there, else the cut itself."""
    network, problem = ncnn_networks.on_ncnn(cut, is_wanted, announce)
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
        name = spec.source.label
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
    """Inspect the file of a network that was only trusted, if the caller does not trust it."""
    wanted = inspection_of(source)
    is_inspected = wanted is None or network.inspection == wanted
    if source.file_to_inspect() is not None and not is_inspected:
        inspect_again(source)
        network.inspection = wanted
