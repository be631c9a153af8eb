"""Networks of PyTorch: modules, converted in this process, and timm's names, in another one."""

import importlib.util
import os
from abc import abstractmethod
from contextlib import closing
from dataclasses import asdict, replace

from sklearn_cnnfeat._files import digest_of_file, digest_of_text
from sklearn_cnnfeat._network import foreign, store, timm_models, torch_models
from sklearn_cnnfeat._network.engines import torch_engine
from sklearn_cnnfeat._network.layers import sentence
from sklearn_cnnfeat._network.process import KerasProcess, ProcessEndedError
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.runtime import has_gpu_files
from sklearn_cnnfeat._network.spec import (
    NETWORK_FORMAT,
    ImageFacts,
    Normalization,
    Resizing,
    Source,
    installed_version,
)
from sklearn_cnnfeat._network.torch_calls import last_before_classifier, list_module_layers
from sklearn_cnnfeat._network.torch_conversion import convert_module

# What holds code and weights of PyTorch.
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def is_module(model):
    """Whether `model` is a torch.nn.Module, found out without importing PyTorch."""
    return any(
        (kind.__module__, kind.__qualname__) == ("torch.nn.modules.module", "Module")
        for kind in type(model).__mro__
    )


class TorchSource(Source):
    """A network that PyTorch computes."""

    engines = ("openvino", "ncnn", "torch")

    def choose_size(self, input_size, model=None):
        size = self.image_facts(model).size
        if input_size is not None:
            return input_size
        if None in size:
            raise ValueError(
                f"{sentence(self.label)} does not say the size of its images. Say "
                "input_size=(height, width), for example 224."
            )
        return size

    def default_engine(self):
        # PyTorch is not imported only to see none.
        if not has_gpu_files():
            return "openvino"
        return "torch" if torch_engine.find_device().type == "cuda" else "openvino"

    def open_module(self, input_size, model=None):
        """Return a module, its record, and the order of the axes of each layer's output."""
        module, size, resize = self._build(input_size, model)
        layers, orders = list_module_layers(module, size, self.label, resize)
        record = NetworkRecord(
            layers=tuple(layers),
            n_layers=len(layers),
            input_shape=size,
            converter="PyTorch",
            is_lasting=self.is_lasting(model),
            last=last_before_classifier(layers),
        )
        return module, record, orders

    @abstractmethod
    def _build(self, input_size, model):
        """Return a module, height, width and channels of its images, and its other sizes."""


class TorchModule(TorchSource):
    """A `torch.nn.Module` of the user's process."""

    kind = "torch"
    _label = "the module {!r}"

    @classmethod
    def of(cls, asked):
        if is_module(asked.model):
            asked.check_no_weights(foreign.OWN_WEIGHTS)
            return cls(type(asked.model).__name__)
        if isinstance(asked.model, dict):
            torch_models.check_module(asked.model)
        if asked.path is not None and asked.path.lower().endswith(_PICKLES):
            raise ValueError(
                f"model={asked.path!r} is a pickle of PyTorch, which can hold code and is not "
                "loaded here. Where you trust it, load it yourself: "
                f"network.load_state_dict(torch.load({asked.path!r})), and pass the network."
            )
        return None

    def identify(self, layers=(), input_size=None, model=None):
        return replace(self, digest=torch_models.digest_of_module(model))

    def is_lasting(self, model=None):
        return torch_models.has_lasting_identity(model)

    def image_facts(self, model=None):
        return torch_models.module_facts(model)

    def convert(self, input_size, folder, model=None):
        size = (*input_size, torch_models.find_channels(model))
        converted = convert_module(model, size, self.label)
        converter = f"PyTorch {installed_version('torch')}"
        return foreign.finish(converted, self, str(folder), converter, self.is_lasting(model))

    def read_kernels(self, layer, input_size, model=None):
        return _kernels_of(model, layer) if layer.kernels else {}

    def _build(self, input_size, model):
        torch_models.check_module(model)
        size = (*input_size, torch_models.find_channels(model))
        return torch_models.as_float32(model), size, None


class TimmNetwork(TorchSource):
    """A network of timm."""

    kind = "timm"
    is_named = True

    @classmethod
    def of(cls, asked):
        if not timm_models.is_timm_name(asked.path):
            return None
        if asked.weights is None:
            return cls(asked.path, weights="random", seed=asked.draw_seed())
        if asked.weights == "imagenet":
            return cls(asked.path, weights="imagenet")
        weights = os.path.abspath(os.fspath(asked.weights))
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"weights={weights!r} is not a file.")
        return cls(asked.path, weights=weights)

    def identity(self):
        return super().identity() | {"timm": installed_version("timm")}

    def identify(self, layers=(), input_size=None, model=None):
        path = self._weights_file()
        if path is not None:
            return replace(self, digest=digest_of_file(path))
        # Random weights are drawn by PyTorch, in an order that is timm's.
        versions = [installed_version(name) for name in ("timm", "torch")]
        return replace(self, digest=digest_of_text(f"{versions}"))

    def image_facts(self, model=None):
        facts = self._facts()
        return ImageFacts(facts.size[:2], Normalization(facts.mean, facts.std), facts.resizing)

    def convert(self, input_size, folder, model=None):
        parts = self._facts(), self._weights_file()
        return foreign.process().run(_convert, self, *parts, input_size, str(folder))

    def read_kernels(self, layer, input_size, model=None):
        if not layer.kernels:
            return {}
        parts = self._facts(), self._weights_file(), self.seed
        return foreign.process().run(_read_kernels, *parts, layer)

    def _build(self, input_size, model):
        return timm_models.open_timm(self._facts(), self._weights_file(), self.seed, input_size)

    def _weights_file(self):
        """Return the path of the weights, downloaded where they are missing; None if random."""
        if self.weights == "random":
            return None
        if self.weights != "imagenet":
            return self.weights
        facts = self._facts()
        path, _ = timm_models.find_timm_weights(facts)
        return str(path or foreign.process().run(timm_models.fetch_timm_weights, facts))

    def _facts(self):
        """Return what timm says about the network, from the disk if it was asked before."""
        key = digest_of_text(f"{self.name} timm {installed_version('timm')} {NETWORK_FORMAT} facts")
        stored = store.read(key) or store.write(
            key, lambda _: foreign.process().run(_read_facts, self.name)
        )
        values = {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in stored.record.items()
        }
        return timm_models.TimmFacts(**values | {"resizing": Resizing(*values["resizing"])})


def describe_device():
    """Return the device of ``engine="torch"``, as a separate process sees it."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    try:
        with closing(KerasProcess({})) as process:
            return process.run(torch_engine.describe_device)
    except (ImportError, ProcessEndedError, RuntimeError) as error:
        return f"PyTorch cannot be used ({error})"


# --- in the process -------------------------------------------------------------------------------


def _read_facts(name):
    return asdict(timm_models.timm_facts(name))


def _convert(source, facts, weights, input_size, folder):
    converted = timm_models.convert_timm(facts, weights, source.seed, input_size)
    return foreign.finish(converted, source, folder, f"timm {installed_version('timm')}")


def _read_kernels(facts, weights, seed, layer):
    return _kernels_of(timm_models.build_timm(facts, weights, seed), layer)


def _kernels_of(module, layer):
    weight = module.get_submodule(layer.path.partition("#")[0]).weight.detach()
    values = weight.float().cpu().numpy()
    return {"weight": values.transpose((2, 3, 1, 0) if values.ndim == 4 else (1, 0)).copy()}
