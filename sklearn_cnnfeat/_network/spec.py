"""What to compute: frozen values with a fingerprint, made without importing Keras."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

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
class Source:
    """Where a network and its weights come from."""

    # "zoo" (a name of Keras Applications), "file" (a model file), "object" (a keras.Model), "onnx"
    # (an ONNX file), "torch" (a torch.nn.Module) or "timm" (a name of timm, with its prefix).
    kind: str
    # Name in the zoo, path of the file, or name of the model.
    name: str
    # "imagenet", "random" or the path of a weights file; "own" for files and objects.
    weights: str = "own"
    include_top: bool = False
    seed: int | None = None
    # SHA-256 of the weights file, of the model file, or of an object's configuration and weights.
    digest: str | None = None
    # Whether a file may hold more than Keras' own layers: code, say.
    trusted: bool = False

    def identity(self):
        """Return what the numbers depend on: the content of files, never their paths."""
        identity = asdict(self)
        del identity["trusted"]
        if self.kind not in ("zoo", "timm"):
            del identity["name"]
        if self.kind == "file":
            # Keras reads a file by its suffix, so the suffix counts too.
            identity["archive"] = self.name.endswith(".keras")
        if self.weights not in ("imagenet", "random", "own"):
            identity["weights"] = "file"
        if self.weights == "imagenet":
            # The same bytes under another path are the same network.
            identity["weights"] = "file"
        return identity


def describe(source):
    """Return what a network is called in messages."""
    return {
        "zoo": f"{source.name!r}",
        "file": f"the model in {source.name!r}",
        "object": f"the model {source.name!r}",
        "onnx": f"the network in {source.name!r}",
        "torch": f"the module {source.name!r}",
        "timm": f"{source.name!r}",
    }[source.kind]


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
    """What is known of a network once it has been built; stored beside the compiled network."""

    heads: tuple
    # Height, width (None: any) and channels of the images that go in.
    input_shape: tuple

    def to_json(self):
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values):
        """Return the value that `to_json` wrote."""
        heads = tuple(
            Head(
                layer=head["layer"],
                pooling=head["pooling"],
                map_shape=tuple(head["map_shape"]),
                shape=tuple(head["shape"]),
                grid=head.get("grid") and TokenGrid(**head["grid"]),
            )
            for head in values["heads"]
        )
        return cls(heads=heads, input_shape=tuple(values["input_shape"]))


@lru_cache(maxsize=16)
def installed_version(distribution):
    """Return the version of an installed distribution without importing it, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
