"""Networks of Keras: named ones, model files, and models in the user's process."""

import os
import sys
from abc import abstractmethod
from dataclasses import dataclass, replace
from difflib import get_close_matches

from sklearn_cnnfeat._files import digest_of_file
from sklearn_cnnfeat._network import conversion, converter, keras_models, store
from sklearn_cnnfeat._network.engines import framework
from sklearn_cnnfeat._network.engines.openvino import GRAPH, read_network
from sklearn_cnnfeat._network.keras_layers import functional
from sklearn_cnnfeat._network.keras_objects import (
    digest_of_model,
    has_lasting_identity,
    load_saved,
)
from sklearn_cnnfeat._network.recent import Recent
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.refusals import cause_of
from sklearn_cnnfeat._network.runtime import has_openvino
from sklearn_cnnfeat._network.spec import ImageFacts, Source
from sklearn_cnnfeat._network.weights import find_weights
from sklearn_cnnfeat._network.zoo import find_architecture, list_models
from sklearn_cnnfeat.exceptions import ModelFileError

_MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
_OWN_WEIGHTS = (
    "a model of your own has its weights. Load others with model.load_weights, and leave weights "
    "out."
)
# Of named networks.
_structures = Recent(4)


def choose_engine():
    """Return the engine that ``engine="auto"`` means on this machine for Keras' networks.

    On a processor OpenVINO is faster than Keras for every network that ``benchmarks/engines.py``
    compares, with a fraction of the memory. Where it is chosen, `winograd` chooses the networks
    that ncnn computes instead.
    """
    return "keras" if not has_openvino() or converter.has_gpu() else "openvino"


class KerasSource(Source):
    """A network that Keras can build or has built."""

    engines = ("openvino", "ncnn", "keras")

    def default_engine(self):
        return choose_engine()

    def is_lasting(self, model=None):
        return model is None or has_lasting_identity(model)

    def image_facts(self, model=None):
        return ImageFacts()

    def convert(self, input_size, folder, model=None):
        return converter.convert(self, input_size, folder)

    def read_kernels(self, layer, input_size, model=None):
        return converter.read_kernels(self, input_size, layer.path)

    def file(self, input_size):
        """Return the file that Keras reads, if it is on this machine."""
        return None

    @abstractmethod
    def load(self, input_size, file=None, classes=None):
        """Return the `keras.Model`, for images of `input_size`.

        `file` is what the method of that name has found, and `classes` are custom classes of its
        layers that this process cannot import, by name.
        """

    def count_layers(self, model):
        """Return how many layers can be chosen by index."""
        return 1 if functional(model) is None else len(model.layers)

    def last_layer(self, model):
        """Return the path of what ``layer="last"`` means, if the layers do not tell it."""
        return None

    def explain(self, error):
        """Return what to raise for an error of Keras in computing; None for the error itself."""
        return None


class NamedNetwork(KerasSource):
    """A network of Keras Applications."""

    kind = "zoo"
    is_named = True

    @classmethod
    def of(cls, asked):
        architecture = None if asked.path is None else find_architecture(asked.path)
        if architecture is None:
            return None
        weights = asked.weights
        is_file = weights not in (None, "imagenet")
        if is_file:
            weights = _check_weights_file(weights, asked.trusted)
        return cls(
            architecture.name,
            weights="random" if weights is None else weights,
            include_top=any(architecture.needs_top(layer, weights) for layer in asked.layers),
            seed=asked.draw_seed() if weights is None else None,
            # Published weights are inspected always.
            trusted=asked.trusted and is_file,
        )

    @property
    def architecture(self):
        """What is known of the network without Keras."""
        return find_architecture(self.name)

    def identify(self, layers=(), input_size=None, model=None):
        if self.weights == "random":
            return self
        path = self.file(input_size)
        if path is None:
            structure = self.structure(input_size)
            for layer in layers:
                structure.find(layer, self.label)
            path = converter.download_weights(self, input_size)
        return replace(self, digest=digest_of_file(path))

    def is_lasting(self, model=None):
        return True

    def with_layers(self, layers):
        weights = None if self.weights == "random" else self.weights
        include_top = any(self.architecture.needs_top(layer, weights) for layer in layers)
        if include_top == self.include_top:
            return self
        return replace(self, include_top=include_top, digest=None)

    def image_facts(self, model=None):
        architecture = self.architecture
        return ImageFacts((architecture.native_size,) * 2, architecture.preprocessing)

    def choose_size(self, input_size, model=None):
        return self.image_facts().size if input_size is None else input_size

    def structure(self, input_size):
        """Return the record without the weights, of the whole network with its classifier."""
        published = "imagenet" if self.weights == "imagenet" else "random"
        named = NamedNetwork(self.name, weights=published, include_top=True)
        key = named.key(input_size, "structure")

        def describe(folder):
            return converter.describe_named(named, input_size)

        with store.locked(key):
            stored = _structures.get_or_make(
                key, lambda: store.read(key) or store.write(key, describe)
            )
        return NetworkRecord.as_read(stored.record)

    def file(self, input_size):
        if self.weights == "random":
            return None
        if self.weights != "imagenet":
            return self.weights
        path = find_weights(self.architecture, self.include_top, input_size).path
        return None if path is None else str(path)

    def file_to_inspect(self):
        return None if self.weights in ("random", "imagenet") else (self.weights, "weights")

    def load(self, input_size, file=None, classes=None):
        return keras_models.load_named(self, input_size, file)

    def count_layers(self, model):
        """Return how many layers can be chosen by index: those with the classifier."""
        if self.include_top:
            return len(model.layers)
        return len(model.layers) - len(self.architecture.tail) + len(self.architecture.head)

    def last_layer(self, model):
        architecture = self.architecture
        if architecture.tail and not self.include_top:
            return architecture.tail[-1]
        end = architecture.head if self.include_top else architecture.tail
        return model.layers[len(model.layers) - len(end) - 1].name


class ModelFile(KerasSource):
    """A file that Keras has written."""

    kind = "file"
    _label = "the model in {!r}"

    @classmethod
    def of(cls, asked):
        if asked.path is None:
            return None
        _check_model_file(asked)
        asked.check_no_weights(_OWN_WEIGHTS)
        return cls(os.path.abspath(asked.path), trusted=asked.trusted)

    def identity(self):
        # Keras reads a file by its suffix, so the suffix counts too.
        return super().identity() | {"archive": self.name.endswith(".keras")}

    def identify(self, layers=(), input_size=None, model=None):
        return replace(self, digest=digest_of_file(self.name))

    def convert(self, input_size, folder, model=None):
        if not self.trusted or "keras" not in sys.modules:
            return super().convert(input_size, folder)
        # Custom classes that are registered here are known there too.
        registered = keras_models.import_keras().saving.get_custom_objects
        job = conversion.Job(self, input_size, str(folder), self.name)
        return converter.convert_with_classes(job, registered, lambda: self.load(input_size))

    def file(self, input_size):
        return self.name

    def file_to_inspect(self):
        return self.name, "model"

    def load(self, input_size, file=None, classes=None):
        with keras_models.import_keras().saving.custom_object_scope(classes or {}):
            return keras_models.load_file(self)

    def explain(self, error):
        return ModelFileError(f"The network in {self.name!r} cannot be computed: {cause_of(error)}")


@dataclass(frozen=True)
class KerasObject(KerasSource):
    """A `keras.Model` of the user's process."""

    kind = "object"
    _label = "the model {!r}"

    # It has been built already, with whatever code it holds.
    trusted: bool = True

    @classmethod
    def of(cls, asked):
        if not keras_models.is_keras_model(asked.model):
            return None
        asked.check_no_weights(_OWN_WEIGHTS)
        return cls(asked.model.name)

    def identify(self, layers=(), input_size=None, model=None):
        return replace(self, digest=digest_of_model(model))

    def convert(self, input_size, folder, model=None):
        record = converter.convert_saved(self, input_size, folder, model)
        if record["reason"] is None:
            record["reason"] = self._compare(model, NetworkRecord.as_read(record), folder)
        return record

    def _compare(self, model, record, folder):
        """Return why the converted numbers are not those of the model; None where they are."""
        pixels = conversion.sample_pixels(record.input_shape)
        outputs = framework.outputs_by_layer(model, pixels)
        paths = [path for path in outputs if path in {layer.path for layer in record.layers}]
        computed = conversion.run_layers(read_network(folder / GRAPH), record, paths, pixels)
        return conversion.reason_to_refuse(computed, [outputs[path] for path in paths], self)

    def read_kernels(self, layer, input_size, model=None):
        return conversion.kernels_in(model, self, input_size, layer.path)

    def load(self, input_size, file=None, classes=None):
        """Return the `keras.Model` that was saved in a file."""
        return load_saved(file, classes)


# --- what is not accepted -------------------------------------------------------------------------


def _check_weights_file(weights, trusted):
    """Return the absolute path of a weights file."""
    path = os.path.abspath(os.fspath(weights))
    _check_regular("weights", path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"weights={os.fspath(weights)!r} is not a file; it must be 'imagenet', None (random) "
            "or the path of a weights file (.weights.h5, .h5 or .keras)."
        )
    if not (trusted or path.endswith(_MODEL_SUFFIXES)):
        raise ValueError(
            f"weights={os.fspath(weights)!r} is a file, but not one whose name ends in "
            ".weights.h5, .h5, .hdf5 or .keras. model.save_weights('name.weights.h5') writes one."
        )
    return path


def _check_model_file(asked):
    path = asked.path
    _check_regular("model", path)
    if os.path.isfile(path):
        if path.endswith(_MODEL_SUFFIXES):
            return
        raise ValueError(
            f"model={path!r} is a file, but its name does not end in .keras, .h5, .hdf5 or .onnx. "
            "A file of weights goes into weights=, and the name of its network into model=."
        )
    if os.path.isdir(path):
        raise ValueError(
            f"model={path!r} is a folder. Keras models come in one file: model.save('name.keras') "
            "writes it."
        )
    if path.endswith(_MODEL_SUFFIXES) or os.path.dirname(path):
        raise asked.no_such_file()
    close = get_close_matches(path.lower(), list_models(), n=4, cutoff=0.4)
    hint = f" Nearest names: {', '.join(map(repr, close))}." if close else ""
    raise ValueError(
        f"model={path!r} is neither the name of a network nor a file.{hint} list_models() lists "
        "all names."
    )


def _check_regular(name, path):
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"{name}={path!r} is not a regular file but a device, a pipe or a socket.")
