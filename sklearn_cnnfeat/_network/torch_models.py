"""PyTorch modules as they are given: what they must be, and what they say about themselves."""

import copy
import functools
import hashlib
import pickle
import weakref
from typing import ClassVar

import joblib

from sklearn_cnnfeat._network.spec import (
    ImageFacts,
    Normalization,
    Resizing,
    installed_version,
)


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            'PyTorch modules and timm networks need PyTorch: pip install "sklearn-cnnfeat[torch]".'
        ) from error
    return torch


def check_module(module):
    """Raise unless `module` is something that can be converted."""
    torch = import_torch()
    if isinstance(module, dict):
        raise TypeError(
            "model is a dict (a state dict or a checkpoint), which holds weights and no network. "
            "Build the network, call network.load_state_dict(state), and pass the network."
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
    """Return the number of channels of the images that a module takes: 1 or 3."""
    torch = import_torch()
    found = [part.in_channels for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    if found and not {1, 3} & set(found):
        raise ValueError(
            f"The first convolution of model takes {found[0]} channels. Only networks for gray (1 "
            "channel) and RGB (3 channels) images can be used."
        )
    return next((channels for channels in found if channels in (1, 3)), 3)


def module_facts(module):
    """Return what a module says about its images.

    Networks of timm carry a `pretrained_cfg`; to others the transforms of their weights can be
    attached: ``network.transforms = weights.transforms()``, as torchvision has them.
    """
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        normalization = Normalization(tuple(config["mean"]), tuple(config["std"]))
        return ImageFacts(tuple(config["input_size"][1:]), normalization, resizing_of(config))
    transforms = getattr(module, "transforms", None)
    if all(hasattr(transforms, name) for name in ("crop_size", "mean", "std")):
        sides = tuple(transforms.crop_size)
        size = sides if len(sides) == 2 else sides * 2
        normalization = Normalization(tuple(transforms.mean), tuple(transforms.std))
        return ImageFacts(size, normalization, _resizing_of_torchvision(transforms))
    return ImageFacts()


# What timm's "crop_mode" is here; "border" pads with the mean color there, and with black here.
_CROP_MODES = {"center": "crop", "squash": "stretch", "border": "pad"}


def resizing_of(config):
    """Return the `Resizing` that a configuration of timm describes; None where it does not."""
    if not {"interpolation", "crop_pct"} <= config.keys():
        return None
    crop = float(config["crop_pct"])
    resize = _CROP_MODES[config.get("crop_mode") or "center"]
    keeps_all = resize == "pad" or (resize == "stretch" and crop == 1)
    return Resizing(resize, config["interpolation"], None if keeps_all else crop)


def _resizing_of_torchvision(transforms):
    sides = getattr(transforms, "resize_size", None)
    interpolation = getattr(getattr(transforms, "interpolation", None), "value", None)
    if not sides or interpolation is None:
        return None
    return Resizing("crop", interpolation, min(transforms.crop_size) / min(sides))


def digest_of_module(module):
    """Return the digest of a module's classes, settings and weights.

    A module that came from another process keeps the digest that it had there.
    """
    digest = _compute_digest(module)
    as_read, as_sent = _digests_of_received.get(module, (None, None))
    return as_sent if digest == as_read else digest


# The digests that a module had when it was read and when it was sent, which differ between versions
# of PyTorch.
_digests_of_received = weakref.WeakKeyDictionary()


def _compute_digest(module):
    digest = hashlib.sha256()
    versions = {name: installed_version(name) for name in ("torch", "timm", "torchvision")}
    digest.update(repr(versions).encode())
    for path, part in module.named_modules():
        settings = {name: _text_of(value) for name, value in sorted(_settings(part).items())}
        digest.update(f"{path} {_name_of(type(part))} {settings!r}".encode())
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        digest.update(name.encode())
        digest.update(_content_of(value))
    return digest.hexdigest()


# What every module has besides its settings; forward hooks may change what it computes.
_NOT_SETTINGS = {
    *("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
}


def _settings(part):
    return {name: value for name, value in vars(part).items() if name not in _NOT_SETTINGS}


def _text_of(value):
    """Return text that tells a setting's value; the kind alone for objects of other kinds."""
    torch = import_torch()
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), torch.dtype)):
        return repr(value)
    if isinstance(value, dict):
        # Tensors by a key are what some networks remember of earlier calls.
        entries = [pair for pair in value.items() if not isinstance(pair[1], torch.Tensor)]
        return repr([(_text_of(key), _text_of(entry)) for key, entry in entries])
    if isinstance(value, (list, tuple)):
        return repr([_text_of(entry) for entry in value])
    if isinstance(value, (set, frozenset)):
        return repr(sorted(_text_of(entry) for entry in value))
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(_content_of(value)).hexdigest()
    if isinstance(value, functools.partial):
        return _text_of([value.func, value.args, value.keywords])
    return _name_of(value if hasattr(value, "__qualname__") else type(value))


def _name_of(value):
    """Return the module and the name of a class or a function."""
    return f"{getattr(value, '__module__', None)}.{value.__qualname__}"


def _content_of(tensor):
    torch = import_torch()
    values = tensor.detach().cpu().contiguous()
    # As bytes: NumPy has no bfloat16.
    content = values.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{values.dtype} {tuple(values.shape)}".encode() + content


def has_lasting_identity(module):
    """Whether the digest of a module means the same numbers in every process.

    The code of the user's own classes, functions and hooks may change without notice.
    """
    names = []
    for part in module.modules():
        names.append(_name_of(type(part)))
        names += [_name_of(value) for value in _functions_in(_settings(part))]
    # Functions that are built into PyTorch have no module.
    known = ("torch", "torchvision", "timm", "builtins", "functools", "math", "None")
    return all(name.partition(".")[0] in known and "<lambda>" not in name for name in names)


def _functions_in(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [function for entry in value for function in _functions_in(entry)]
    if isinstance(value, functools.partial):
        return _functions_in([value.func, value.args, value.keywords])
    return [value] if hasattr(value, "__qualname__") else []


class PickledModule:
    """A module on its way to another process, which loads it once however often it comes."""

    _written: ClassVar = weakref.WeakKeyDictionary()
    _read: ClassVar = weakref.WeakValueDictionary()

    def __init__(self, digest, content):
        self._digest = digest
        self._content = content

    @classmethod
    def of(cls, module):
        """Wrap `module`; its bytes are kept as long as it lives unchanged."""
        digest = digest_of_module(module)
        written = cls._written.get(module)
        if written is None or written._digest != digest:
            # Classes of a script or a notebook go along: other processes cannot import them.
            portable = joblib.wrap_non_picklable_objects(_on_cpu(module), keep_wrapper=False)
            written = cls(digest, pickle.dumps(portable))
            cls._written[module] = written
        return written

    def load(self):
        """Return the module, on the CPU. As with all pickles, its origin must be trusted."""
        module = self._read.get(self._digest)
        if module is None or digest_of_module(module) != self._digest:
            module = pickle.loads(self._content)
            _digests_of_received[module] = _compute_digest(module), self._digest
            self._read[self._digest] = module
        return module


def as_float32(module):
    """Return a module whose weights are float32 in memory: itself, or a copy."""
    torch = import_torch()
    others = torch.float16, torch.bfloat16, torch.float64
    if any(tensor.dtype in others for tensor in _tensors_of(module)):
        return copy.deepcopy(module).to("cpu", torch.float32)
    return _on_cpu(module)


def _on_cpu(module):
    """Return a module whose weights are in the memory of the CPU: itself, or a copy."""
    if all(tensor.device.type == "cpu" for tensor in _tensors_of(module)):
        return module
    return copy.deepcopy(module).to("cpu")


def _tensors_of(module):
    return [*module.parameters(), *module.buffers()]
