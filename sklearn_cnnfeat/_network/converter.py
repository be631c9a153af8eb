"""Start conversions from the user's process: choose the converting process, return its results."""

import importlib.util
import sys
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from sklearn_cnnfeat._home import home_folder
from sklearn_cnnfeat._network import conversion, keras_models, keras_objects
from sklearn_cnnfeat._network.conversion import Job
from sklearn_cnnfeat._network.converted import UnsupportedLayersError
from sklearn_cnnfeat._network.engines import framework
from sklearn_cnnfeat._network.engines.openvino import first_line
from sklearn_cnnfeat._network.layers import sentence
from sklearn_cnnfeat._network.process import KerasProcess, ProcessEndedError
from sklearn_cnnfeat._network.runtime import has_gpu_files
from sklearn_cnnfeat._network.spec import describe
from sklearn_cnnfeat._network.weights import find_weights
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import (
    EngineWarning,
    ModelFileError,
    UntrustedModelError,
    WeightsNotFoundError,
)

# Keras on its OpenVINO backend needs neither TensorFlow nor a second of importing it.
_PREFERRED = ("openvino", "tensorflow")
_QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
# Keras imports these if they are installed; conversion needs a second and 500 MB less without them.
_SUPERFLUOUS = ("tensorflow", "matplotlib", "pandas", "sklearn")
# Errors that another backend would raise as well.
_FINAL = (UntrustedModelError, WeightsNotFoundError, ProcessEndedError, MemoryError)
# Errors of a backend that does not support a network, including files with custom classes.
_NOT_TAKEN = (UnsupportedLayersError, NotImplementedError, ModelFileError)


def convert(source, input_size, folder, model=None):
    """Convert a network in a separate process.

    Parameters
    ----------
    source : Source
        Where it comes from, with its digest.
    input_size : (int, int) or None
        Height and width in pixels; None for its own.
    folder : pathlib.Path
        Where the graph is written.
    model : keras.Model, default=None
        The model itself where `source` names an object.

    Returns
    -------
    record : dict
        A `NetworkRecord` as plain values.

    Raises
    ------
    UnsupportedLayersError
        If Keras' OpenVINO backend does not compute the network and TensorFlow is not installed.
    """
    if model is None:
        return _convert_named(source, input_size, folder)
    backends = _PREFERRED if keras_objects.has_lasting_identity(model) else _PREFERRED[::-1]
    with tempfile.TemporaryDirectory(prefix="cnnfeat-") as temporary:
        path = Path(temporary) / "model.keras"
        try:
            model.save(path)
            classes = keras_objects.portable(keras_objects.classes_of_main(model))
            job = Job(source, input_size, str(folder), str(path), classes)
            return _run(conversion.convert, (job,), source, backends)
        except (UnsupportedLayersError, OSError):
            raise
        except Exception:
            # A model that cannot be saved, or not be loaded elsewhere, is converted where it is.
            if keras_models.import_keras().backend.backend() != "tensorflow":
                raise
    return conversion.convert_model(model, source, input_size, str(folder))


def _convert_named(source, input_size, folder):
    """Convert a named network or a model file."""
    job = Job(source, input_size, str(folder), weights_file=_weights_file(source, input_size))
    if source.kind != "file" or not source.trusted or "keras" not in sys.modules:
        return _run(conversion.convert, (job,), source, _PREFERRED)
    # Custom classes that are registered here are known there too.
    keras = keras_models.import_keras()
    try:
        classes = keras_objects.portable(keras.saving.get_custom_objects())
        return _run(conversion.convert, (replace(job, classes=classes),), source, _PREFERRED)
    except (UnsupportedLayersError, OSError):
        raise
    except Exception:
        if keras.backend.backend() != "tensorflow":
            raise
    loaded = keras_models.load_network(source, input_size)
    return conversion.convert_model(loaded, source, input_size, str(folder))


def _weights_file(source, input_size):
    if source.weights != "imagenet":
        return None
    found = find_weights(find_architecture(source.name), source.include_top, input_size)
    return None if found.path is None else str(found.path)


def _run(function, args, source, backends):
    """Run a job on the first backend that takes it."""
    *others, last = [name for name in backends if name == "openvino" or _has_tensorflow()]
    failures = {}
    for backend in others:
        try:
            return keras_process(backend).run(function, *args)
        except _FINAL:
            raise
        except Exception as error:
            # The other backend may support it; if not, its error is the one to raise.
            failures[backend] = error
    try:
        result = keras_process(last).run(function, *args)
    except UnsupportedLayersError as error:
        raise UnsupportedLayersError(
            f"{sentence(describe(source))} has layers that cannot be converted without TensorFlow "
            f"({error}). pip install tensorflow, or engine='keras' runs the model on Keras itself."
        ) from error
    for backend, error in failures.items():
        if not (isinstance(error, _NOT_TAKEN) or source.trusted or source.kind == "object"):
            warn(
                f"Keras on {backend} failed on {describe(source)} ({first_line(error)}). "
                "TensorFlow converted it instead, which takes longer; please report this.",
                EngineWarning,
            )
    return result


def describe_named(source, input_size):
    """Return the record of a named network without its weights, as plain values."""
    return keras_process("openvino").run(conversion.describe_named, source, input_size)


def read_kernels(source, input_size, path):
    """Return the kernels of a layer by name."""
    job = Job(source, input_size, None, weights_file=_weights_file(source, input_size))
    return _run(conversion.read_kernels, (job, path), source, _PREFERRED)


def download_weights(source, input_size):
    """Return the path of published weights, downloaded where they are missing."""
    architecture = find_architecture(source.name)
    found = find_weights(architecture, source.include_top, input_size)
    if found.path is not None:
        return found.path
    # Keras puts them into the folder that was configured when it was imported.
    process = KerasProcess({**_QUIET, "KERAS_BACKEND": "openvino"})
    try:
        return process.run(keras_models.download_weights, source, input_size, found)
    finally:
        process.close()


@lru_cache
def keras_process(backend):
    """Return the process in which Keras runs on a backend, without a GPU."""
    # A folder of its own: what the user's keras.json says is for networks that the user builds,
    # and nothing is written into the user's.
    folder = str(home_folder() / "keras")
    environment = {"KERAS_BACKEND": backend, "KERAS_HOME": folder, "MPLCONFIGDIR": folder}
    return KerasProcess(_QUIET | environment, _SUPERFLUOUS if backend == "openvino" else ())


def _has_tensorflow():
    return importlib.util.find_spec("tensorflow") is not None


@lru_cache(maxsize=1)
def has_gpu():
    """Whether the backend of Keras that the user has chosen sees a GPU."""
    # No process is started only to see none.
    if not has_gpu_files():
        return False
    process = KerasProcess({})
    try:
        return process.run(framework.sees_gpu)
    except (ImportError, ProcessEndedError, RuntimeError):
        return False
    finally:
        process.close()
