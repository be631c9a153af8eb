"""The layers of PyTorch modules: calls of submodules, their outputs, and which axis is which.

A module is called three times on tensors without content, which gives the shapes of all layers and
which axis is which. It runs in evaluation mode, in a copy that shares its weights, and is left as
it was.
"""

import copy
import logging
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from sklearn_cnnfeat._network.axes import CHANNELS_FIRST, find_axes
from sklearn_cnnfeat._network.layers import Kernel, Layer, sentence
from sklearn_cnnfeat._network.tokens import find_grid, square_patches
from sklearn_cnnfeat._network.torch_models import import_torch


@dataclass
class Call:
    """One call of one submodule."""

    path: str
    module: object
    # Path of the call that gave its input.
    source: str | None
    # What was kept of its output; None where that is not a tensor of floating-point numbers.
    value: object
    problem: str | None = None


def twin_of(module):
    """Return a copy of a module that shares its weights; itself where it cannot be copied.

    Some networks remember what they have computed for an earlier call, and no call of ours may be
    remembered by the user's.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except Exception:  # whatever copying the attributes of a user's own class raises
        return module


@contextmanager
def evaluating(module):
    """Put a module into evaluation mode and back, without calling any code of its own."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def record_calls(module, images, keep):
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
            calls.append(Call(name, part, source, value, problem))

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
            calls.append(Call(name, module, None, keep(output)))
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

    `size` is height, width and channels of the images. For networks that are built for one size
    only, `resize` takes height and width, and returns the network for images of that size in
    evaluation mode.
    """
    height, width, channels = size
    calls, failure = _imagine(module, (2, channels, height, width))
    if failure is not None:
        raise _explain_without_content(failure, module, name, size) from failure
    resize = resize or _resizer_of(module)
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
                layer = _with_grid(layer, module, maps, size[:2])
                if len(layer.shape) == 3:
                    maps.append(layer.shape[:2])
        layers.append(layer)
    return layers, orders


# Layers between a network and its classifier, or behind it, that change nothing or only the scale.
_PASSED = {
    *("Dropout", "Dropout2d", "AlphaDropout", "Identity"),
    *("Softmax", "LogSoftmax", "Sigmoid"),
}


def last_before_classifier(layers):
    """Return the path of the layer that feeds the final `Linear`; None where there is none.

    The classifier may lie in a module of its own, which gives the same output.
    """
    by_path = {layer.path: layer for layer in layers}
    names = [layer.path.partition("#")[0] for layer in layers]
    parts = {name[:i] for name in names for i, sign in enumerate(name) if sign == "."}
    leaves = [layer for layer, name in zip(layers, names, strict=True) if name not in parts]

    def passed(layer):
        while layer is not None and layer.type in _PASSED:
            layer = by_path.get(layer.source)
        return layer

    classifier = passed(leaves[-1]) if leaves else None
    if classifier is None or classifier.type != "Linear":
        return None
    last = passed(by_path.get(classifier.source))
    return None if last is None or last.shape is None else last.path


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


def _with_grid(layer, module, maps, size):
    if len(layer.shape) != 2:
        return layer
    n_prefix = getattr(module, "num_prefix_tokens", None)
    if not maps and n_prefix is not None:
        # Some networks cut patches without a convolution.
        patches = square_patches(layer.shape[0] - n_prefix, size)
        maps = [] if patches is None else [patches]
    return replace(layer, grid=find_grid(layer.shape[0], maps, n_prefix))


def _imagine(module, shape, resize=None):
    """Return the calls of a module on images without content, with shapes, and why it failed."""
    torch = import_torch()
    from torch._subclasses.fake_tensor import FakeTensorMode

    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    twin = twin_of(module) if resize is None else resize(*shape[2:])
    if next((p.is_meta for p in twin.parameters()), False):
        return record_calls(twin, torch.zeros(shape, dtype=dtype, device="meta"), _shape)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, evaluating(twin), _silent_about_failures():
        return record_calls(twin, torch.zeros(shape, dtype=dtype), _shape)


def _resizer_of(module):
    """Return what makes a copy of a timm module for another size; None for other modules."""
    if not hasattr(module, "set_input_size"):
        return None

    def resize(height, width):
        twin = twin_of(module)
        if twin is not module:
            with suppress(Exception):  # it stays one for its own size
                twin.set_input_size((height, width))
        return twin

    return resize


def _shape(output):
    return tuple(output.shape)


def explain(error, name, size):
    """Return an error that says what about a network cannot be computed."""
    height, width, channels = size
    return ValueError(
        f"{sentence(name)} cannot be computed in evaluation mode on images of {height} x {width} "
        f"pixels and {channels} channels: {type(error).__name__}: {first_line(error)}. If it takes "
        "images of another size, set input_size=(height, width)."
    )


def _explain_without_content(error, module, name, size):
    """Return an error that says why a network fails on tensors without content."""
    from torch._subclasses import fake_tensor

    if isinstance(
        error,
        (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException),
    ):
        return ValueError(
            f"The control flow of {name} depends on the values of a tensor (if, while, .item(), "
            "int(tensor) or a boolean mask). A converted network computes the same for every "
            "image. Pass a submodule without such control flow, or an ONNX file of a version that "
            "has none: torch.onnx.export(module, (images,), 'network.onnx')."
        )
    torch = import_torch()
    height, width, channels = size
    twin = twin_of(module)
    with evaluating(twin):
        _, failure = record_calls(twin, torch.zeros(1, channels, height, width), _shape)
    if failure is not None:
        return explain(failure, name, size)
    return ValueError(
        f"{sentence(name)} cannot be traced: {type(error).__name__}: {first_line(error)}. Use "
        "operations of PyTorch throughout forward(), not those of NumPy or other libraries."
    )


@contextmanager
def _silent_about_failures():
    """Keep PyTorch from logging tracebacks of failures that become messages."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


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


def first_line(error):
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")
