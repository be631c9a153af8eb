"""Start conversions from the user's process: choose the converting process, return its results."""

import importlib.util
import tempfile
from contextlib import closing
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
# Models with operations of TensorFlow are for its own backend.
_ABSENT, _SUPERFLUOUS = ("tensorflow",), ("matplotlib", "pandas", "sklearn")
# Errors that another backend would raise as well.
_FINAL = (UntrustedModelError, WeightsNotFoundError, ProcessEndedError, MemoryError)
# Errors of a backend that does not support a network, including files with custom classes.
_NOT_TAKEN = (UnsupportedLayersError, NotImplementedError, ModelFileError)


def convert(source, input_size, folder):
    """Convert a network that Keras can load by itself, in a separate process.

    Raises `UnsupportedLayersError` if Keras' OpenVINO backend does not compute the network and
    TensorFlow is not installed.
    """
    job = Job(source, input_size, str(folder), source.file(input_size))
    return _run(conversion.convert, (job,), source, _PREFERRED)


def convert_saved(source, input_size, folder, model):
    """Convert a model of this process; what is returned and raised is that of `convert`."""
    backends = _PREFERRED if keras_objects.has_lasting_identity(model) else _PREFERRED[::-1]
    with tempfile.TemporaryDirectory(prefix="cnnfeat-") as temporary:
        path = Path(temporary) / "model.keras"

        def classes():
            model.save(path)
            return keras_objects.classes_of_main(model)

        job = Job(source, input_size, str(folder), str(path))
        return convert_with_classes(job, classes, lambda: model, backends)


def convert_with_classes(job, classes, load, backends=_PREFERRED):
    """Convert a network that may hold the user's own classes, in a separate process or else here.

    `classes` and `load` return the classes by name, and the network in this process.
    """
    try:
        with_classes = replace(job, classes=keras_objects.portable(classes()))
        return _run(conversion.convert, (with_classes,), job.source, backends)
    except (UnsupportedLayersError, OSError):
        raise
    except Exception as error:
        # What cannot be saved, or not be loaded elsewhere, is converted where it is.
        if keras_models.import_keras().backend.backend() != "tensorflow":
            if isinstance(error, (*_FINAL, ModelFileError)):
                raise
            raise UnsupportedLayersError(
                f"{sentence(job.source.label)} cannot be converted in a separate process "
                f"without TensorFlow ({first_line(error)}). pip install tensorflow, or "
                "engine='keras' runs the model on Keras itself."
            ) from error
    return conversion.convert_model(load(), job.source, job.input_size, job.folder)


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
            f"{sentence(source.label)} has layers that cannot be converted without TensorFlow "
            f"({error}). pip install tensorflow, or engine='keras' runs the model on Keras itself."
        ) from error
    for backend, error in failures.items():
        if not (isinstance(error, _NOT_TAKEN) or source.trusted):
            warn(
                f"Keras on {backend} failed on {source.label} ({first_line(error)}). "
                "TensorFlow converted it instead, which takes longer; please report this.",
                EngineWarning,
            )
    return result


def describe_named(source, input_size):
    """Return the record of a named network without its weights, as plain values."""
    return keras_process("openvino").run(conversion.describe_named, source, input_size)


def read_kernels(source, input_size, path):
    """Return the kernels of a layer by name."""
    job = Job(source, input_size, None, source.file(input_size))
    return _run(conversion.read_kernels, (job, path), source, _PREFERRED)


def download_weights(source, input_size):
    """Return the path of published weights, downloaded where they are missing."""
    architecture = find_architecture(source.name)
    found = find_weights(architecture, source.include_top, input_size)
    if found.path is not None:
        return found.path
    # Keras puts them into the folder that was configured when it was imported.
    with closing(KerasProcess({**_QUIET, "KERAS_BACKEND": "openvino"})) as process:
        return process.run(keras_models.download_weights, source, input_size, found)


@lru_cache
def keras_process(backend):
    """Return the process in which Keras runs on a backend, without a GPU."""
    # A folder of its own: what the user's keras.json says is for networks that the user builds,
    # and nothing is written into the user's.
    folder = str(home_folder() / "keras")
    environment = {"KERAS_BACKEND": backend, "KERAS_HOME": folder, "MPLCONFIGDIR": folder}
    if backend != "openvino":
        return KerasProcess(_QUIET | environment)
    # Code that asks whether a hidden module is installed gets an error: hide what is there only.
    absent = _ABSENT if _has_tensorflow() else ()
    return KerasProcess(_QUIET | environment, absent, _SUPERFLUOUS)


def _has_tensorflow():
    return importlib.util.find_spec("tensorflow") is not None


@lru_cache(maxsize=1)
def has_gpu():
    """Whether the backend of Keras that the user has chosen sees a GPU."""
    # No process is started only to see none.
    if not has_gpu_files():
        return False
    try:
        with closing(KerasProcess({})) as process:
            return process.run(framework.sees_gpu)
    except (ImportError, ProcessEndedError, RuntimeError):
        return False
