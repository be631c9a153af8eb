"""PyTorch modules as they are given: what they must be, and what they say about themselves."""

import copy
import hashlib

from sklearn_cnnfeat._network.spec import installed_version


def import_torch():
    """Import PyTorch."""
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
