"""PyTorch modules as OpenVINO graphs: the output of every submodule is found by its name.

A module is run three times on tensors without content, which gives the shapes of all layers and
which axis is which, and once on numbers while PyTorch traces it. It runs in evaluation mode and
is left as it was.
"""

import copy
import hashlib
import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from sklearn_cnnfeat._network.axes import CHANNELS_FIRST, find_axes
from sklearn_cnnfeat._network.channels_first import to_converted
from sklearn_cnnfeat._network.layers import Kernel, Layer, sentence
from sklearn_cnnfeat._network.runtime import import_openvino
from sklearn_cnnfeat._network.spec import installed_version
from sklearn_cnnfeat._network.tokens import find_grid
from sklearn_cnnfeat.exceptions import EngineError

# Largest difference to PyTorch's own numbers, relative to the largest of them, that is put down to
# the rounding of float32.
TOLERANCE = 1e-3


def import_torch():
    """Import PyTorch."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            'PyTorch modules and timm networks need PyTorch: pip install "sklearn-cnnfeat[torch]".'
        ) from error
    return torch


@dataclass
class _Call:
    """One call of one submodule."""

    path: str
    module: object
    # Path of the call that gave its input.
    source: str | None
    # What was kept of its output; None where that is not a tensor of floating-point numbers.
    value: object
    problem: str | None = None


# --- what the user gives --------------------------------------------------------------------------


def check_module(module):
    """Raise unless `module` is something that can be converted."""
    torch = import_torch()
    if isinstance(module, dict):
        raise TypeError(
            "model is a state dict, which holds weights and no network. Build the network, call "
            "network.load_state_dict(state), and pass the network."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            "model is a TorchScript module, whose layers cannot be told apart. Pass the "
            "torch.nn.Module that it was made from, or an ONNX file: "
            "torch.onnx.export(module, (images,), 'network.onnx')."
        )
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module. Got {type(module).__name__} instead.")
    for path, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise ValueError(
                f"Layer {path!r} ({type(part).__name__}) has no running statistics, so that the "
                "features of an image would depend on the others in its batch. Use "
                "track_running_stats=True."
            )


def find_channels(module):
    """Return the number of channels of the images that a module takes."""
    torch = import_torch()
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            return part.in_channels
    return 3


def module_facts(module):
    """Return size, channels, mean and deviation of a module's images; None where it does not say.

    Networks of timm carry a `pretrained_cfg`; to others the transforms of their weights can be
    attached: ``network.transforms = weights.transforms()``, as torchvision has them.
    """
    channels = find_channels(module)
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        return (
            tuple(config["input_size"][1:]),
            channels,
            tuple(config["mean"]),
            tuple(config["std"]),
        )
    transforms = getattr(module, "transforms", None)
    if all(hasattr(transforms, name) for name in ("crop_size", "mean", "std")):
        sides = tuple(transforms.crop_size)
        size = sides if len(sides) == 2 else sides * 2
        return size, channels, tuple(transforms.mean), tuple(transforms.std)
    return (None, None), channels, None, None


def digest_of_module(module):
    """Return the digest of a module's classes, settings and weights."""
    torch = import_torch()
    digest = hashlib.sha256()
    versions = {name: installed_version(name) for name in ("torch", "timm", "torchvision")}
    digest.update(repr(versions).encode())
    for path, part in module.named_modules():
        settings = {
            name: value
            for name, value in sorted(vars(part).items())
            if name != "training" and isinstance(value, _PLAIN)
        }
        kind = type(part)
        digest.update(f"{path} {kind.__module__}.{kind.__qualname__} {settings!r}".encode())
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        values = value.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Types of settings whose text tells their value.
_PLAIN = (bool, int, float, str, tuple, list, type(None))


# --- calls ----------------------------------------------------------------------------------------


@contextmanager
def _evaluating(module):
    """Put a module into evaluation mode and back, without calling any code of its own."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _record_calls(module, images, keep):
    """Return the calls of all submodules; where the module fails, those before it, and why.

    `keep` is called with each output at once: what follows may change it in place.
    """
    torch = import_torch()
    calls, counts, makers = [], {}, {}

    def hook(path):
        def note(part, inputs, output):
            counts[path] = counts.get(path, 0) + 1
            name = path if counts[path] == 1 else f"{path}#{counts[path]}"
            first = inputs[0] if inputs else None
            source = makers.get(id(first)) or makers.get(_storage(first))
            value, problem = None, _problem_of(output)
            if problem is None:
                value = keep(output)
                makers[id(output)] = name
                makers.setdefault(_storage(output), name)
                kept.append(output)  # an id is only its own while the tensor lives
            calls.append(_Call(name, part, source, value, problem))

        return note

    def _storage(value):
        if not isinstance(value, torch.Tensor):
            return None
        return "storage", value.untyped_storage()._cdata

    kept = []
    handles = [
        part.register_forward_hook(hook(path)) for path, part in module.named_modules() if path
    ]
    failure = None
    try:
        with torch.no_grad():
            output = module(images)
        if not calls and _problem_of(output) is None:
            # A module without submodules is a layer itself.
            name = type(module).__name__
            calls.append(_Call(name, module, None, keep(output)))
    except Exception as error:
        failure = error
    finally:
        for handle in handles:
            handle.remove()
    return calls, failure


class _Enough(Exception):
    """All that was wanted has been computed; carries it out of a module."""


def find_layers_called(module, images, wanted):
    """Return the outputs of some calls by their paths; nothing behind the last one is computed."""
    missing, found = set(wanted), {}

    def keep(path, output):
        if path in missing:
            found[path] = output.clone()
            missing.discard(path)
            if not missing:
                raise _Enough

    counts = {}

    def hook(path):
        def note(part, inputs, output):
            counts[path] = counts.get(path, 0) + 1
            keep(path if counts[path] == 1 else f"{path}#{counts[path]}", output)

        return note

    parts = {path.partition("#")[0] for path in wanted}
    handles = [
        part.register_forward_hook(hook(path))
        for path, part in module.named_modules()
        if path in parts
    ]
    try:
        output = module(images)
        if not handles:  # a module without submodules is a layer itself
            found[wanted[0]] = output
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def _problem_of(output):
    torch = import_torch()
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            return None
        kind = str(output.dtype).removeprefix("torch.")
        return f"an output of {kind} numbers"
    return f"its output as a {type(output).__name__}, not as one tensor"


def list_module_layers(module, size, name, resize=None):
    """Return the `Layer` of every call in a module, and the order of the axes of each output.

    Parameters
    ----------
    module : torch.nn.Module
        The network.
    size : (int, int, int)
        Height, width and channels of the images.
    name : str
        What the network is called in messages.
    resize : callable, default=None
        Takes height and width; returns the network for images of that size on the device "meta",
        in evaluation mode. For networks that are built for one size only.
    """
    height, width, channels = size
    with _evaluating(module):
        calls, failure = _imagine(module, (2, channels, height, width))
        if failure is not None:
            raise _explain(failure, name, size) from failure
        taller, _ = _imagine(module, (2, channels, 2 * height, width), resize)
        wider, _ = _imagine(module, (2, channels, height, 2 * width), resize)
    shapes = [
        {call.path: call.value[1:] for call in others if call.value is not None}
        for others in (taller, wider)
    ]
    layers, orders, maps, seen = [], {}, [], set()
    for index, call in enumerate(calls):
        layer = Layer(
            path=call.path,
            type=type(call.module).__name__,
            index=index,
            shape=None,
            source=call.source,
            **({} if id(call.module) in seen else _weights_of(call.module)),
            problem=call.problem,
        )
        seen.add(id(call.module))
        if call.value is not None:
            layer, order = _place(layer, call, shapes, orders, layers)
            if order is not None:
                orders[call.path] = order
                layer = _with_grid(layer, module, maps)
                if len(layer.shape) == 3:
                    maps.append(layer.shape[:2])
        layers.append(layer)
    return layers, orders


def _place(layer, call, shapes, orders, layers):
    """Return the layer with its logical shape, and the order of its axes."""
    if call.value[:1] != (2,):
        return replace(layer, problem="an output whose first axis is not the images'"), None
    shape = call.value[1:]
    likely = CHANNELS_FIRST if "2d" in layer.type else None
    if likely is None and call.source in orders and len(shape) == 3:
        before = next(entry for entry in layers if entry.path == call.source)
        order = orders[call.source]
        if before.shape == tuple(shape[axis] for axis in order[: len(shape)]):
            likely = order
    axes = find_axes(shape, *(others.get(call.path) for others in shapes), likely)
    if axes.order is None:
        return replace(layer, problem=axes.problem), None
    return replace(layer, shape=tuple(shape[axis] for axis in axes.order)), axes.order


def _with_grid(layer, module, maps):
    if len(layer.shape) != 2:
        return layer
    n_prefix = getattr(module, "num_prefix_tokens", None)
    return replace(layer, grid=find_grid(layer.shape[0], maps, n_prefix))


def _imagine(module, shape, resize=None):
    """Return the calls of a module on images without content, with shapes, and why it failed."""
    torch = import_torch()
    from torch._subclasses.fake_tensor import FakeTensorMode

    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    if resize is not None:
        images = torch.zeros(shape, dtype=dtype, device="meta")
        return _record_calls(resize(*shape[2:]), images, _shape)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _record_calls(module, torch.zeros(shape, dtype=dtype), _shape)


def _shape(output):
    return tuple(output.shape)


def _explain(error, name, size):
    """Return an error that says what about a network cannot be computed."""
    from torch._subclasses import fake_tensor

    if isinstance(
        error,
        (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException),
    ):
        return ValueError(
            f"{sentence(name)} decides by the values of a tensor how it goes on (if, while, "
            "int(tensor) or a boolean mask), and a converted network does the same for every "
            "image. Pass a part of it without such decisions, or an ONNX file of one that has "
            "none."
        )
    height, width, channels = size
    return ValueError(
        f"{sentence(name)} cannot be computed in evaluation mode on images of {height} x {width} "
        f"pixels and {channels} channels: {type(error).__name__}: {_first_line(error)}. "
        "input_size=(height, width) says what it takes."
    )


def _first_line(error):
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _weights_of(module):
    """Return the facts on its weights that a `Layer` has."""
    own = list(module.parameters(recurse=False)) + [
        buffer for buffer in module.buffers(recurse=False) if buffer.is_floating_point()
    ]
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    kernels = ()
    if hasattr(weight, "ndim") and weight.ndim in (2, 4):
        values = weight.detach()
        order = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
        kernels = (
            Kernel(
                name="weight",
                shape=tuple(values.shape[axis] for axis in order),
                bias_shape=None if bias is None else tuple(bias.shape),
                mean=float(values.mean()),
                std=float(values.std(correction=0)),
                min=float(values.min()),
                max=float(values.max()),
            ),
        )
    return {"n_parameters": sum(values.numel() for values in own), "kernels": kernels}


# --- conversion -----------------------------------------------------------------------------------


def convert_module(module, size, name, resize=None):
    """Return a PyTorch module as a `Converted`.

    Parameters
    ----------
    module : torch.nn.Module
        The network, which is left as it is.
    size : (int, int, int)
        Height, width and channels of the images.
    name : str
        What the network is called in messages.
    resize : callable, default=None
        As for `list_module_layers`.

    Raises
    ------
    ValueError
        If it cannot be computed on such images, or not be traced.
    EngineError
        If OpenVINO cannot take it, or computes it differently.
    """
    check_module(module)
    module = as_float32(module)
    layers, orders = list_module_layers(module, size, name, resize)
    height, width, channels = size
    example = _example((1, channels, height, width), seed=0)
    with _evaluating(module):
        paths, traced = _trace(module, example, name)
        try:
            model = _read(traced)
        except Exception as error:
            raise EngineError(
                f"OpenVINO cannot take {name}: {_last_line(error)}. engine='torch' runs it on "
                "PyTorch itself."
            ) from error
        outputs = dict(zip(paths, (_value(output) for output in model.outputs), strict=True))
        outputs = {path: output for path, output in outputs.items() if path in orders}
        layers = [layer for layer in layers if layer.problem or layer.path in outputs]
        # A module may make a constant of the number of images: len(x) is one for PyTorch's tracing.
        if not _takes(model, (-1, channels, height, width)):
            _set_input(model, (1, channels, height, width))
        _check(model, paths, module, name)
    return to_converted(model, layers, outputs, orders)


def as_float32(module):
    """Return a module whose weights are float32 in memory: itself, or a copy."""
    torch = import_torch()
    tensors = [*module.parameters(), *module.buffers()]
    if all(
        t.device.type == "cpu" and t.dtype not in (torch.float16, torch.bfloat16, torch.float64)
        for t in tensors
    ):
        return module
    return copy.deepcopy(module).to("cpu", torch.float32)


def _trace(module, example, name):
    """Return the paths of all calls and a traced module that gives their values."""
    torch = import_torch()

    class Taps(torch.nn.Module):
        """A network whose outputs are those of all its layers."""

        def __init__(self):
            super().__init__()
            self.network = module

        def forward(self, images):
            calls, failure = _record_calls(module, images, torch.clone)
            if failure is not None:
                raise failure
            self.paths = [call.path for call in calls if call.value is not None]
            return tuple(call.value for call in calls if call.value is not None)

    taps = Taps()
    taps.training = False
    with warnings.catch_warnings(), torch.no_grad():
        # Sizes of tensors become constants: the graph is for one size of images.
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(taps, (example,), check_trace=False, strict=False)
        except Exception as error:
            raise ValueError(
                f"PyTorch cannot trace {name}: {type(error).__name__}: {_first_line(error)}. "
                "Export it as an ONNX file: torch.onnx.export(module, (images,), 'network.onnx')."
            ) from error
    return taps.paths, traced


def _read(traced):
    """Return a traced module as an OpenVINO model.

    `openvino.convert_model` does the same and reports its use to its makers.
    """
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    logging.getLogger("openvino.frontend.pytorch").setLevel(logging.ERROR)
    # Freezing would fold batch normalization. Shared weights would change with the module, and some
    # of them are gone when the trace is.
    decoder = TorchScriptPythonDecoder(traced, skip_freeze=True, shared_memory=False)
    front_end = FrontEndManager().load_by_framework("pytorch")
    return front_end.convert(front_end.load(decoder))


def _takes(model, shape):
    """Set the shape of the input to any number of images; return whether two of them fit."""
    other = model.clone()
    try:
        _set_input(other, (2, *shape[1:]))
    except Exception:  # whatever OpenVINO raises where shapes do not fit
        return False
    if any(output.partial_shape[0] != 2 for output in other.outputs if output.partial_shape.rank):
        return False
    _set_input(model, shape)
    return True


def _set_input(model, shape):
    openvino = import_openvino()
    (pixels,) = model.get_parameters()
    pixels.set_element_type(openvino.Type.f32)
    pixels.set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()


def _value(output):
    """Return what an output of a model shows."""
    return output.get_node().input_value(0)


def _check(model, paths, module, name):
    """Raise unless a model gives what its module gives, for two images at once if it can."""
    openvino = import_openvino()
    torch = import_torch()
    n, *shape = model.input().partial_shape
    n = n.get_length() if n.is_static else 2
    shape = tuple(size.get_length() for size in shape)
    images = _example((n, *shape), seed=1)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    computed = openvino.Core().compile_model(model, "CPU", options)(images.numpy())
    calls, failure = _record_calls(module, images, torch.clone)
    if failure is not None:
        raise _explain(failure, name, (*shape[1:], shape[0])) from failure
    expected = [(call.path, call.value) for call in calls if call.value is not None]
    if [path for path, _ in expected] != paths:
        raise ValueError(
            f"{sentence(name)} calls other layers for other images; a converted network does the "
            "same for every image."
        )
    for i, (path, value) in enumerate(expected):
        value = value.to(torch.float32).numpy()
        difference = _difference(computed[i], value)
        if not difference <= TOLERANCE:
            # The CPU plugin may compute garbage where a view of a result is another one.
            alone = openvino.Model([_value(model.outputs[i])], model.get_parameters())
            computed_alone = openvino.Core().compile_model(alone, "CPU", options)(images.numpy())
            difference = _difference(computed_alone[0], value)
        if not difference <= TOLERANCE:
            raise EngineError(
                f"OpenVINO computes layer {path!r} of {name} differently from PyTorch: by "
                f"{difference:.1e} of the largest value. engine='torch' runs it on PyTorch itself."
            )


def _difference(found, expected):
    if found.shape != expected.shape:
        return math.inf
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    largest = np.abs(expected[finite]).max() or 1.0
    return float(np.abs(found[finite].astype(np.float32) - expected[finite]).max() / largest)


def _example(shape, seed):
    """Return smooth noise between -1 and 1, which every layer takes for something like a photo."""
    torch = import_torch()
    generator = torch.Generator().manual_seed(seed)
    coarse = 2 * torch.rand((*shape[:2], 8, 8), generator=generator) - 1
    return torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear").contiguous()


def _last_line(error):
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and "http" not in line]
    return f"{type(error).__name__}: {told[-1].rstrip('.') if told else ''}"
