"""Networks of other frameworks than Keras: ONNX files, PyTorch modules, names of timm.

What is known of them before they run, what identifies them, and their conversion. ONNX files and
networks of timm are converted in a process of their own, modules where they are.
"""

import importlib.util
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._files import digest_of_file, digest_of_text
from sklearn_cnnfeat._network import conversion, graph, onnx_models, store, timm_models
from sklearn_cnnfeat._network.converted import ConversionError
from sklearn_cnnfeat._network.engines.openvino import compile_in_float32, write_network
from sklearn_cnnfeat._network.keras_models import is_keras_model
from sklearn_cnnfeat._network.layers import sentence
from sklearn_cnnfeat._network.onnx_files import read_onnx
from sklearn_cnnfeat._network.process import KerasProcess, ProcessEndedError, limited_memory
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.runtime import has_gpu_files, import_openvino
from sklearn_cnnfeat._network.spec import (
    NETWORK_FORMAT,
    Normalization,
    Resizing,
    Source,
    describe,
    installed_version,
)
from sklearn_cnnfeat.exceptions import ModelFileError

# An ONNX file may take so many bytes of memory, and so many times its own size on top.
_FREE_BYTES, _LARGEST_RATIO = 2 * 1024**3, 4
# Where rounding grows, layers may differ so many times as far as by pixels whose last bits differ,
# up to a limit.
_LAST_BITS, _GROWTH, _MOST_GROWTH = 2**-22, 10, 0.05
# What holds code and weights of PyTorch.
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


@dataclass(frozen=True)
class ImageFacts:
    """What a network says about its images.

    Attributes
    ----------
    size : tuple
        Height and width; None where it takes any.
    channels : int
        1 or 3.
    normalization : Normalization or None
        None where it does not say.
    resizing : Resizing or None
        None where it does not say.
    """

    size: tuple
    channels: int
    normalization: Normalization | None
    resizing: Resizing | None = None


def is_foreign(source):
    """Whether a network is not Keras'."""
    return source.kind in ("onnx", "torch", "timm")


def is_module(model):
    """Whether `model` is a torch.nn.Module, found out without importing PyTorch."""
    return any(
        (kind.__module__, kind.__qualname__) == ("torch.nn.modules.module", "Module")
        for kind in type(model).__mro__
    )


def is_network(model):
    """Whether `model` is a network itself, of Keras or PyTorch, and not the name of one."""
    return is_keras_model(model) or is_module(model)


def find_source(model, weights, seed, trusted):
    """Return the source that the parameter `model` means; None where it is one of Keras'.

    Parameters
    ----------
    model : object
        The parameter.
    weights : str, path or None
        For networks by name.
    seed : callable
        Returns the seed of random weights.
    trusted : bool
        Not used: all that is read is inspected.
    """
    del trusted
    if is_module(model):
        _check_no_weights(weights)
        return Source("torch", type(model).__name__)
    if isinstance(model, dict):
        from sklearn_cnnfeat._network.torch_models import check_module

        check_module(model)
    if not isinstance(model, (str, os.PathLike)):
        return None
    name = os.fspath(model)
    if timm_models.is_timm_name(name):
        if weights is None:
            return Source("timm", name, weights="random", seed=seed())
        if weights != "imagenet":
            weights = os.path.abspath(os.fspath(weights))
            if not os.path.isfile(weights):
                raise FileNotFoundError(f"weights={weights!r} is not a file.")
        return Source("timm", name, weights=weights)
    if name.lower().endswith(_PICKLES):
        raise ValueError(
            f"model={name!r} is a pickle of PyTorch, which can hold code and is not loaded here. "
            "Where you trust it, load it yourself: network.load_state_dict(torch.load("
            f"{name!r})), and pass the network."
        )
    if not name.lower().endswith(".onnx"):
        return None
    if not os.path.isfile(name):
        raise FileNotFoundError(
            f"model={name!r}: there is no such file. Relative paths start at {os.getcwd()!r}."
        )
    _check_no_weights(weights)
    return Source("onnx", os.path.abspath(name))


def _check_no_weights(weights):
    if weights not in ("imagenet", None):
        raise ValueError(
            f"weights={os.fspath(weights)!r} is for networks by name; a network of your own has "
            "its weights. Leave weights out."
        )


def check_engine(source, engine):
    """Raise where an engine does not run a kind of networks."""
    if is_foreign(source) and engine == "keras":
        raise ValueError(
            f"engine='keras' runs Keras models, and {describe(source)} is none. Use engine='auto'."
        )
    if source.kind not in ("torch", "timm") and engine == "torch":
        raise ValueError(
            f"engine='torch' runs PyTorch modules and networks of timm, and {describe(source)} is "
            "neither. Use engine='auto'."
        )


def choose_engine(source):
    """Return the engine that ``engine="auto"`` means on this machine for such a network."""
    # PyTorch is not imported only to see none.
    if source.kind == "onnx" or not has_gpu_files():
        return "openvino"
    from sklearn_cnnfeat._network.engines.torch_engine import find_device

    return "torch" if find_device().type == "cuda" else "openvino"


def describe_device():
    """Return what ``engine="torch"`` computes on, found out in a process of its own."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    from sklearn_cnnfeat._network.engines.torch_engine import describe_device

    process = KerasProcess({})
    try:
        return process.run(describe_device)
    except (ImportError, ProcessEndedError, RuntimeError) as error:
        return f"PyTorch cannot be used ({error})"
    finally:
        process.close()


# --- facts ----------------------------------------------------------------------------------------


def image_facts(source, model=None):
    """Return what a network says about its images."""
    if source.kind == "onnx":
        facts = onnx_models.image_facts(read_onnx(source.name))
        normalization = facts.mean and Normalization(facts.mean, facts.std)
        return ImageFacts(facts.size, facts.channels, normalization)
    if source.kind == "timm":
        facts = _timm_facts(source.name)
        normalization = Normalization(facts.mean, facts.std)
        return ImageFacts(facts.size[:2], facts.size[2], normalization, facts.resizing)
    from sklearn_cnnfeat._network.torch_models import module_facts

    facts = module_facts(model)
    normalization = facts.mean and Normalization(facts.mean, facts.std)
    return ImageFacts(facts.size, facts.channels, normalization, facts.resizing)


def choose_size(source, input_size, facts):
    """Return the height and width of the images, or raise where nothing tells them."""
    if input_size is not None or source.kind == "onnx":
        return input_size
    if None in facts.size:
        raise ValueError(
            f"{sentence(describe(source))} does not say the size of its images. Say "
            "input_size=(height, width), for example 224."
        )
    return facts.size


def _timm_facts(name):
    """Return what timm says about a network, from the disk where it has been asked before."""
    key = digest_of_text(f"{name} timm {installed_version('timm')} {NETWORK_FORMAT} facts")
    stored = store.read(key)
    if stored is None:
        stored = store.write(key, lambda _: _facts_in_process(name))
    values = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in stored.record.items()
    }
    return timm_models.TimmFacts(**values | {"resizing": Resizing(*values["resizing"])})


def _facts_in_process(name):
    return _process().run(_timm_record, name)


def _timm_record(name):
    return asdict(timm_models.timm_facts(name))


@lru_cache(maxsize=1)
def _process():
    # Without a GPU, which the process would only take memory of.
    return KerasProcess({"CUDA_VISIBLE_DEVICES": "-1"})


# --- identity -------------------------------------------------------------------------------------


def identify(source, model=None):
    """Return `source` with the digest of all that its numbers depend on."""
    if source.kind == "onnx":
        paths = [source.name, *read_onnx(source.name).external]
        digests = [digest_of_file(str(path)) for path in paths]
        # A single file is known by its content, as everywhere else.
        digest = digests[0] if len(digests) == 1 else digest_of_text(" ".join(digests))
        return replace(source, digest=digest)
    if source.kind == "torch":
        from sklearn_cnnfeat._network.torch_models import digest_of_module

        return replace(source, digest=digest_of_module(model))
    versions = [installed_version(name) for name in ("timm", "torch")]
    if source.weights == "random":
        return replace(source, digest=digest_of_text(f"{versions}"))
    path = source.weights if source.weights != "imagenet" else _pretrained(source.name)
    return replace(source, digest=digest_of_text(f"{digest_of_file(str(path))} {versions[0]}"))


def _timm_weights(source):
    """Return the path of a network's weights; None for random ones."""
    if source.weights == "random":
        return None
    return str(_pretrained(source.name)) if source.weights == "imagenet" else source.weights


def _pretrained(name):
    facts = _timm_facts(name)
    path, _ = timm_models.find_timm_weights(facts)
    return path or _process().run(timm_models.fetch_timm_weights, facts)


def has_lasting_identity(module):
    """Whether the digest of a module means the same numbers in every process."""
    from sklearn_cnnfeat._network.torch_models import has_lasting_identity

    return has_lasting_identity(module)


def pickled_module(module):
    """Return what stands for a module in a pickle."""
    from sklearn_cnnfeat._network.torch_models import PickledModule

    return PickledModule.of(module)


# --- conversion -----------------------------------------------------------------------------------


def convert(source, input_size, folder, module=None):
    """Convert a network into a folder; return its record as plain values."""
    folder = str(folder)
    if source.kind == "onnx":
        return _process().run(_convert_onnx, source, input_size, folder)
    if source.kind == "timm":
        facts, weights = _timm_facts(source.name), _timm_weights(source)
        return _process().run(_convert_timm, source, facts, weights, input_size, folder)
    from sklearn_cnnfeat._network.torch_conversion import convert_module
    from sklearn_cnnfeat._network.torch_models import find_channels

    size = (*input_size, find_channels(module))
    converted = convert_module(module, size, describe(source))
    lasting = has_lasting_identity(module)
    return _finish(converted, source, folder, f"PyTorch {installed_version('torch')}", lasting)


def _convert_onnx(source, input_size, folder):
    import_openvino()  # its addresses are not charged to the file
    path = Path(source.name)
    n_bytes = sum(os.path.getsize(file) for file in (path, *read_onnx(path).external))
    with limited_memory(_FREE_BYTES + _LARGEST_RATIO * n_bytes):
        converted = onnx_models.convert_onnx(path, input_size)
        return _finish(converted, source, folder, "ONNX")


def _convert_timm(source, facts, weights, input_size, folder):
    converted = timm_models.convert_timm(facts, weights, source.seed, input_size)
    return _finish(converted, source, folder, f"timm {installed_version('timm')}")


def _finish(converted, source, folder, converter, is_lasting=True):
    """Fold, lay out, check and write a network; return its record as plain values."""
    pixels = converted.model.inputs[0].partial_shape
    height, width, channels = (n.get_length() if n.is_static else None for n in list(pixels)[1:])
    record = NetworkRecord(
        layers=tuple(converted.layers),
        n_layers=len(converted.layers),
        input_shape=(height, width, channels),
        converter=converter,
        is_lasting=is_lasting,
        last=converted.last,
    )
    paths = conversion.layers_to_compare(converted.layers, converted.outputs)
    # Numbers around zero, as most networks take them.
    images = conversion.sample_pixels(record.input_shape, 1) / np.float32(127.5) - 1
    try:
        expected = [_run(converted, path, images) for path in paths]
        permutations = conversion.simplify(converted)
        network = graph.name_layers(converted, permutations)
        record = replace(
            record,
            permutations={path: order for path, (_, order) in permutations.items() if order},
        )
        computed = [conversion.run_layers(network, record, [path], images)[0] for path in paths]
    except Exception as error:
        raise ConversionError(f"OpenVINO cannot take {describe(source)}: {error}") from error
    write_network(network, folder)
    reasons = [
        _reason_to_refuse(path, found.reshape(wanted.shape), wanted, nearby, source)
        for path, found, (wanted, nearby) in zip(paths, computed, expected, strict=True)
    ]
    reason = next(filter(None, reasons), None)
    return replace(record, reason=reason).to_json()


def _run(converted, path, images):
    """Return what the graph of a front end gives for a layer, before anything is changed in it.

    That is one array for the images, and one for images whose last bits differ: how far rounding
    alone goes.
    """
    openvino = import_openvino()
    part = openvino.Model([converted.outputs[path]], converted.model.get_parameters()).clone()
    compiled = compile_in_float32(part)
    return [compiled(pixels)[0] for pixels in (images, images * np.float32(1 + _LAST_BITS))]


def _reason_to_refuse(path, computed, expected, nearby, source):
    """Return why the numbers of a layer are not to be trusted; None where they are."""
    growth = _GROWTH * conversion.difference(nearby, expected)
    allowed = max(conversion.TOLERANCE, min(growth, _MOST_GROWTH))
    difference = conversion.difference(computed, expected)
    if difference <= allowed:
        return None
    return (
        f"Layer {path!r} of {describe(source)} differs by {difference:.1e} of the largest value "
        f"once its graph is simplified (allowed: {allowed:.0e})."
    )


# --- modules in this process ----------------------------------------------------------------------


def describe_module(source, input_size, module=None):
    """Return a module, its record, and the order of the axes of each layer's output."""
    from sklearn_cnnfeat._network import torch_models
    from sklearn_cnnfeat._network.torch_calls import last_before_classifier, list_module_layers

    resize = None
    if source.kind == "timm":
        facts, weights = _timm_facts(source.name), _timm_weights(source)
        module, size, resize = timm_models.open_timm(facts, weights, source.seed, input_size)
    else:
        torch_models.check_module(module)
        size = (*input_size, torch_models.find_channels(module))
        module = torch_models.as_float32(module)
    layers, orders = list_module_layers(module, size, describe(source), resize)
    record = NetworkRecord(
        layers=tuple(layers),
        n_layers=len(layers),
        input_shape=size,
        converter="PyTorch",
        is_lasting=source.kind == "timm" or has_lasting_identity(module),
        last=last_before_classifier(layers),
    )
    return module, record, orders


# --- kernels --------------------------------------------------------------------------------------


def read_kernels(source, layer, module=None):
    """Return the kernels of a layer by name."""
    if not layer.kernels:
        return {}
    if source.kind == "onnx":
        return _process().run(_onnx_kernels, source.name, layer)
    if source.kind == "timm":
        facts, weights = _timm_facts(source.name), _timm_weights(source)
        return _process().run(_timm_kernels, facts, weights, source.seed, layer)
    return _module_kernels(module, layer)


def _onnx_kernels(path, layer):
    read_onnx(path)
    (kernel,) = layer.kernels
    model = import_openvino().Core().read_model(path)
    for operation in model.get_ops():
        if operation.get_friendly_name() == kernel.name:
            values = operation.data
            order = (2, 3, 1, 0) if values.ndim == 4 else (1, 0)
            if values.ndim == 2 and values.shape == kernel.shape:
                order = (0, 1)
            return {kernel.name: values.transpose(order).copy()}
    raise ModelFileError(f"The weights {kernel.name!r} are not in {path!r} any more.")


def _timm_kernels(facts, weights, seed, layer):
    return _module_kernels(timm_models.build_timm(facts, weights, seed), layer)


def _module_kernels(module, layer):
    weight = module.get_submodule(layer.path.partition("#")[0]).weight.detach()
    values = weight.float().cpu().numpy()
    return {"weight": values.transpose((2, 3, 1, 0) if values.ndim == 4 else (1, 0)).copy()}
