"""PyTorch modules as OpenVINO graphs: the output of every submodule is found by its name.

PyTorch traces a module once, in evaluation mode, and OpenVINO reads the trace. What the graph gives
is compared with what the module gives for other images.
"""

import logging
import warnings
from dataclasses import replace

from sklearn_cnnfeat._network.channels_first import to_converted
from sklearn_cnnfeat._network.engines.openvino import first_line as failure_of
from sklearn_cnnfeat._network.layers import sentence
from sklearn_cnnfeat._network.runtime import import_openvino
from sklearn_cnnfeat._network.torch_calls import (
    evaluating,
    explain,
    first_line,
    last_before_classifier,
    list_module_layers,
    record_calls,
    twin_of,
)
from sklearn_cnnfeat._network.torch_comparison import compare_layers
from sklearn_cnnfeat._network.torch_models import as_float32, check_module, import_torch
from sklearn_cnnfeat.exceptions import EngineError


def convert_module(module, size, name, resize=None):
    """Return a PyTorch module, which is left as it is, as a `Converted`.

    `size` and `resize` are as for `list_module_layers`. `ValueError` is raised if the module cannot
    be computed on such images, or not be traced; `EngineError` if OpenVINO cannot take it, or
    computes it differently.
    """
    check_module(module)
    module = as_float32(module)
    layers, orders = list_module_layers(module, size, name, resize)
    height, width, channels = size
    example = _example((1, channels, height, width), seed=0)
    module = twin_of(module)
    with evaluating(module):
        paths, traced = _trace(module, example, name)
        try:
            model = _read(traced)
        except Exception as error:
            reason = failure_of(error).rstrip(".")
            raise EngineError(
                f"OpenVINO cannot take {name}: {reason}. engine='torch' runs it on PyTorch itself."
            ) from error
        outputs = dict(zip(paths, (_value(output) for output in model.outputs), strict=True))
        outputs = {path: output for path, output in outputs.items() if path in orders}
        layers = [layer for layer in layers if layer.problem or layer.path in outputs]
        # A module may make a constant of the number of images: len(x) is one for PyTorch's tracing.
        if not _takes(model, (-1, channels, height, width)):
            _set_input(model, (1, channels, height, width))
        _compare(model, paths, module, name)
    converted = to_converted(model, layers, outputs, orders)
    return replace(converted, last=last_before_classifier(layers))


def _trace(module, example, name):
    """Return the paths of all calls and a traced module that gives their values."""
    torch = import_torch()

    class Taps(torch.nn.Module):
        """A network whose outputs are those of all its layers."""

        def __init__(self):
            super().__init__()
            self.network = module

        def forward(self, images):
            calls, failure = record_calls(module, images, torch.clone)
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
                f"PyTorch cannot trace {name}: {type(error).__name__}: {first_line(error)}. "
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


def _compare(model, paths, module, name):
    """Raise unless a model gives what its module gives, for two images at once if it can."""
    torch = import_torch()
    n, *shape = model.input().partial_shape
    n = n.get_length() if n.is_static else 2
    shape = tuple(size.get_length() for size in shape)
    images = _example((n, *shape), seed=1)
    calls, failure = record_calls(module, images, torch.clone)
    if failure is not None:
        raise explain(failure, name, (*shape[1:], shape[0])) from failure
    calls = [call for call in calls if call.value is not None]
    if [call.path for call in calls] != paths:
        raise ValueError(
            f"{sentence(name)} calls other layers for other images; a converted network does the "
            "same for every image."
        )
    values = [call.value.to(torch.float32).numpy() for call in calls]
    compare_layers(model, images.numpy(), dict(zip(paths, values, strict=True)), name)


def _example(shape, seed):
    """Return smooth noise between -1 and 1, which every layer takes for something like a photo."""
    torch = import_torch()
    generator = torch.Generator().manual_seed(seed)
    coarse = 2 * torch.rand((*shape[:2], 8, 8), generator=generator) - 1
    return torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear").contiguous()
