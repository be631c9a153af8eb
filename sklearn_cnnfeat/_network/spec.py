"""What to compute: frozen values with a fingerprint, made without importing Keras."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, NamedTuple

from sklearn_cnnfeat._files import digest_of_text
from sklearn_cnnfeat._network.tokens import TokenGrid

# Raised whenever a network converted by an older version of this package computes other numbers.
NETWORK_FORMAT = 2


class Normalization(NamedTuple):
    """Preprocessing by mean and standard deviation of each channel, for pixels on 0-1."""

    mean: tuple
    std: tuple


class Resizing(NamedTuple):
    """How a network's images were resized when its makers evaluated it."""

    # "stretch", "crop" or "pad".
    resize: str
    # Pillow's resampling filter.
    interpolation: str
    # Part of the scaled sides that is kept; None for all of them.
    crop: float | None


@dataclass(frozen=True)
class ImageFacts:
    """What a network says about its images; None for what it does not say."""

    # Height and width; None for a side that may have any length.
    size: tuple = (None, None)
    # Mode of Keras' preprocess_input, or a `Normalization`.
    preprocessing: object = None
    resizing: Resizing | None = None


@dataclass(frozen=True)
class Asked:
    """What the parameters of a transformer say about its network."""

    model: object
    layers: tuple = ()
    weights: object = "imagenet"
    trusted: bool = False
    # Returns the seed of random weights.
    draw_seed: Callable = int

    @property
    def path(self):
        """The parameter `model` as text, if it is a name or a path; else None."""
        return os.fspath(self.model) if isinstance(self.model, (str, os.PathLike)) else None

    def check_no_weights(self, advice):
        """Raise if weights are given for a network that has its own."""
        if self.weights not in ("imagenet", None):
            raise ValueError(
                f"weights={os.fspath(self.weights)!r} is for networks by name; {advice}"
            )

    def no_such_file(self):
        """Return the error for a path at which there is nothing."""
        return FileNotFoundError(
            f"model={self.path!r}: there is no such file. Relative paths start at {os.getcwd()!r}."
        )


@dataclass(frozen=True)
class Source(ABC):
    """Where a network and its weights come from.

    Each kind of network is a subclass, found for a parameter `model` by `find_source`. Methods take
    the network itself as `model` where the user passed one.
    """

    # What fingerprints call this kind.
    kind: ClassVar[str]
    # What can compute it.
    engines: ClassVar[tuple]
    # Whether the numbers depend on the name.
    is_named: ClassVar[bool] = False
    _label: ClassVar[str] = "{!r}"

    # Name of the network, path of its file, or name of the user's model.
    name: str
    # "imagenet", "random" or the path of a weights file; "own" for files and objects.
    weights: str = "own"
    include_top: bool = False
    seed: int | None = None
    # SHA-256 of all that the numbers depend on; None until `identify`.
    digest: str | None = None
    # Whether a file may hold more than Keras' own layers: code, say.
    trusted: bool = False

    @classmethod
    @abstractmethod
    def of(cls, asked):
        """Return the source that the parameters mean; None if it is not of this kind."""

    @property
    def label(self):
        """What the network is called in messages."""
        return self._label.format(self.name)

    def identity(self):
        """Return what the numbers depend on: the content of files, never their paths."""
        identity = {"kind": self.kind, **asdict(self)}
        del identity["trusted"]
        if not self.is_named:
            del identity["name"]
        if self.weights not in ("random", "own"):
            # The same bytes under another path are the same network.
            identity["weights"] = "file"
        return identity

    def key(self, *facts):
        """Return the key of a compiled network of this source."""
        versions = {name: installed_version(name) for name in ("keras", "openvino")}
        return digest_of_text(json.dumps([self.identity(), *facts, versions, NETWORK_FORMAT]))

    @abstractmethod
    def identify(self, layers=(), input_size=None, model=None):
        """Return this source with its digest, downloading published weights where needed.

        `layers` are checked before a download, so that a misspelled name does not cost half a
        gigabyte.
        """

    def is_lasting(self, model=None):
        """Whether the digest means the same numbers in every process."""
        return True

    def with_layers(self, layers):
        """Return the source of other layers; without its digest if it differs."""
        return self

    @abstractmethod
    def image_facts(self, model=None):
        """Return what the network says about its images."""

    def choose_size(self, input_size, model=None):
        """Return the height and width of the images; None for the network's own."""
        return input_size

    @abstractmethod
    def default_engine(self):
        """Return the engine that ``engine="auto"`` means on this machine."""

    def structure(self, input_size):
        """Return the record without the weights; None if only the network itself tells it."""
        return None

    @abstractmethod
    def convert(self, input_size, folder, model=None):
        """Convert the network into a folder; return its record as plain values."""

    @abstractmethod
    def read_kernels(self, layer, input_size, model=None):
        """Return the kernels of a layer by name."""

    def file_to_inspect(self):
        """Return the path of an untrusted file and what it holds; None where there is none."""
        return None


@dataclass(frozen=True)
class NetworkSpec:
    """One network, cut behind the requested layers: the key of a compiled network."""

    source: Source
    # As the user spelled them: names, paths into nested models, or indices.
    layers: tuple
    # One pooling per layer: a name of `pooling.POOLINGS`, or None for maps as they are.
    poolings: tuple
    # Mode of Keras' preprocess_input, "rescale", a `Normalization`, or None.
    preprocessing: object = None
    # Height and width in pixels as asked for; None for the network's own.
    input_size: tuple | None = None
    # Digest of the images that an 8-bit network was calibrated on; None for floating point.
    calibration: str | None = None

    def fingerprint(self):
        """Return the digest of all that the numbers depend on, besides the images."""
        facts = {
            "source": self.source.identity(),
            "layers": self.layers,
            "poolings": self.poolings,
            "preprocessing": self.preprocessing,
            "input_size": self.input_size,
            "calibration": self.calibration,
            "format": NETWORK_FORMAT,
            "versions": {name: installed_version(name) for name in ("keras", "openvino")},
        }
        return digest_of_text(json.dumps(facts, sort_keys=True))

    def recipe(self, head, input_shape, image_fingerprint, engine, precision):
        """Return everything that the rows of one head depend on, besides the image, as text.

        It names the layer by its full path, so that a layer has one recipe for all spellings, alone
        or among others.
        """
        facts = {
            "source": self.source.identity(),
            "layer": head.layer,
            "pooling": head.pooling,
            "preprocessing": self.preprocessing,
            "input_shape": input_shape,
            "images": image_fingerprint,
            "engine": [engine, installed_version("tensorflow" if engine == "keras" else engine)],
            "precision": precision,
            # Quantization treats the outputs of a network together.
            "calibration": self.calibration and [self.calibration, self.layers, self.poolings],
            "format": NETWORK_FORMAT,
        }
        return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True)
class Head:
    """One output of a network: a layer and how its maps are pooled."""

    # Path of the layer, as `layer=` accepts it.
    layer: str
    pooling: str | None
    # Shape of the layer's output, without the batch; None where it depends on the image.
    map_shape: tuple
    # Shape of the output of the compiled network, without the batch.
    shape: tuple
    # How the layer's tokens lie on the image, where it gives tokens; `map_shape` is of the patches.
    grid: TokenGrid | None = None


@dataclass(frozen=True)
class NetworkInfo:
    """What goes into a network and comes out of it."""

    heads: tuple
    # Height, width (None: any) and channels of the images that go in.
    input_shape: tuple


@lru_cache(maxsize=16)
def installed_version(distribution):
    """Return the version of an installed distribution without importing it, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
