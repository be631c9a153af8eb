"""Keras models from a name or a file, on any backend of Keras."""

import importlib.util
import math
import os
import sys
import threading
from contextlib import nullcontext
from functools import lru_cache

import numpy as np

from sklearn_cnnfeat._files import digest_of_file
from sklearn_cnnfeat._network.file_kinds import version_advice
from sklearn_cnnfeat._network.model_files import inspected_copy, saved_by
from sklearn_cnnfeat._network.random_weights import draw
from sklearn_cnnfeat._network.refusals import cause_of
from sklearn_cnnfeat._network.runtime import import_openvino
from sklearn_cnnfeat._network.weights import find_weights, missing_weights
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat.exceptions import ModelFileError, UntrustedModelError

_BACKENDS = ("tensorflow", "torch", "jax", "openvino")


def import_keras():
    """Import Keras, on the backend that is chosen or, where none is, on one that is installed."""
    if "keras" not in sys.modules:
        if "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("tensorflow") is None:
            installed = [name for name in _BACKENDS if importlib.util.find_spec(name)]
            if installed:
                os.environ["KERAS_BACKEND"] = installed[0]
    try:
        if os.environ.get("KERAS_BACKEND") == "openvino" and "keras" not in sys.modules:
            import_openvino()
        import keras
    except ModuleNotFoundError as error:
        chosen = os.environ.get("KERAS_BACKEND", "tensorflow")
        raise ImportError(
            f"Keras cannot be imported on its {chosen!r} backend: {error}. pip install keras "
            f"{'jax' if chosen == 'jax' else chosen}, or set the environment variable "
            "KERAS_BACKEND to a backend that is installed."
        ) from error
    return keras


def is_keras_model(value):
    """Whether `value` is a Keras model; does not import Keras."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)


def load_file(source):
    """Return the `keras.Model` of a file."""
    # A search over layers asks for the same network again and again; a file may change.
    return _load_file(source.name, _digest_now(source, source.name), source.trusted)


def load_named(source, input_size, weights_file=None):
    """Return the `keras.Model` of a named network, built for images of `input_size`.

    Published weights are looked for, and downloaded, unless `weights_file` says where they are.
    """
    path = source.weights
    if path == "imagenet":
        path = str(weights_file or download_weights(source, input_size))
    digest = None if path == "random" else _digest_now(source, path)
    return _load_named(source, digest, input_size, path)


def _digest_now(source, path):
    """Return the digest of a file, which must be the one that it had in fit."""
    digest = digest_of_file(path)
    if source.digest not in (None, digest):
        raise ModelFileError(
            f"{str(path)!r} has changed since fit, and the compiled network of that time is gone. "
            "Call fit again."
        )
    return digest


def _opened(path, digest, trusted, what):
    """Yield a path that Keras may read; what trusted files hold is not looked into."""
    return nullcontext(path) if trusted else inspected_copy(path, digest, what)


@lru_cache(maxsize=1)
def _load_file(path, digest, trusted):
    with _opened(path, digest, trusted, "model") as readable:
        keras = import_keras()
        try:
            return keras.saving.load_model(readable, compile=False, safe_mode=not trusted)
        except Exception as error:
            problem = cause_of(error)
            if "File not found" in str(error):
                problem = "the archive is damaged or cut off."
            elif (version := saved_by(readable)) not in (None, keras.__version__):
                advice = version_advice(version, keras.__version__)
                problem = f"{problem.rstrip('.')}. {advice}"
            raise ModelFileError(
                f"{path!r} cannot be read as a Keras model (.keras or .h5): {problem}"
            ) from error


@lru_cache(maxsize=1)
def _load_named(source, digest, input_size, path):
    architecture = find_architecture(source.name)
    model = construct(architecture, source.include_top, (*input_size, 3))
    if path == "random":
        draw(model, source.seed)
        return model
    try:
        with _opened(path, digest, source.trusted, "weights") as readable:
            model.load_weights(readable)
    except UntrustedModelError:
        raise
    except Exception as error:
        version = "with" if source.include_top else "without"
        hint = " If it was downloaded, delete it so that it is downloaded again."
        raise ModelFileError(
            f"The weights in {str(path)!r} do not fit {architecture.name!r} {version} its "
            f"classifier, for images of {input_size[0]} x {input_size[1]} pixels: "
            f"{cause_of(error)}" + (hint if source.weights == "imagenet" else "")
        ) from error
    if architecture.rescales and _normalizes_as_imagenet(model):
        model = add_rescaling(model)
    return model


def download_weights(source, input_size, found=None):
    """Return the path of published weights, which Keras downloads where they are missing.

    `found` is what `find_weights` has found before, if anything.
    """
    architecture = find_architecture(source.name)
    found = found or find_weights(architecture, source.include_top, input_size)
    if found.path is not None:
        return found.path
    path = architecture.weights_file(source.include_top, input_size)
    size = architecture.trained_size(input_size)
    problem = f"Keras put it elsewhere: was KERAS_HOME set to {str(path.parents[1])!r} too late?"
    try:
        construct(architecture, source.include_top, (size, size, 3), weights="imagenet")
    except Exception as error:
        problem = cause_of(error)
    if not path.exists():
        raise missing_weights(architecture, source.include_top, input_size, found, problem)
    return path


# Mean and standard deviation of ImageNet's pixels, scaled to 0 to 1.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def _normalizes_as_imagenet(model):
    mean = np.ravel(model.get_layer("normalization").mean)
    return np.allclose(mean, _IMAGENET_MEAN, atol=1e-3)


def add_rescaling(model):
    """Return EfficientNet as it is for published weights, and for what was trained from them.

    They normalize by variances that are deviations. Keras makes up for it by another division,
    with ``weights="imagenet"`` only: from a file the same weights would give other numbers.
    """
    keras = import_keras()
    scale = [1 / math.sqrt(deviation) for deviation in _IMAGENET_DEVIATION]
    rescaling = keras.layers.Rescaling(scale, name="rescaling_1")

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        return rescaling(outputs) if layer.name == "normalization" else outputs

    return keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call, input_tensors=model.input
    )


def construct(architecture, include_top, shape, *, weights=None, symbolic=False):
    """Build a network of Keras Applications with layer names that do not depend on earlier ones.

    Keras numbers unnamed layers ("conv2d_17") with a counter of the thread, so a thread of its
    own gives each network the names that it has in a fresh process, and the default dtype policy.
    A symbolic network has layers and shapes, but no memory for its weights.
    """
    keras = import_keras()
    result = []

    def build():
        constructor = getattr(keras.applications, architecture.keras_name)
        scope = keras.StatelessScope(initialize_variables=False) if symbolic else nullcontext()
        try:
            with scope:
                model = constructor(weights=weights, include_top=include_top, input_shape=shape)
            result.append(model)
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=build, name="sklearn_cnnfeat-build")
    thread.start()
    thread.join()
    (model,) = result
    if not isinstance(model, BaseException):
        return model
    if isinstance(model, ValueError) and "nput size must be" in str(model):
        raise ValueError(f"{architecture.name!r} cannot take {shape[:2]}: {model}") from model
    raise model
