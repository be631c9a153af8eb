"""Keras models in the user's process: their digests, and how they are sent to other processes."""

import hashlib
import json
import tempfile
import weakref
from pathlib import Path
from typing import ClassVar

import joblib
import numpy as np

from sklearn_cnnfeat._network.keras_layers import functional
from sklearn_cnnfeat._network.keras_models import import_keras
from sklearn_cnnfeat._network.model_configs import REFUSED_LAYERS

# Entries that Keras writes like classes in configurations, but that are none, such as the tensors
# between the layers of a functional model.
_PLAIN = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")


def digest_of_model(model):
    """Return the SHA-256 of a model's configuration and weights.

    A subclass of `keras.Model` that does not tell its configuration counts by its name. A model
    that came from another process keeps the digest that it had there.
    """
    digest = _compute_digest(model)
    as_read, as_sent = _digests_of_received.get(model, (None, None))
    return as_sent if digest == as_read else digest


# The digests that a model had when it was read and when it was sent: the configuration of layers
# that are not Keras' own need not come back as the same text.
_digests_of_received = weakref.WeakKeyDictionary()


def _compute_digest(model):
    digest = hashlib.sha256()
    own = f"{type(model).__module__}.{type(model).__qualname__}"
    digest.update((_configuration(model) or own).encode())
    # There `numpy` makes NumPy 2 warn; on TensorFlow the other way does.
    is_openvino = import_keras().backend.backend() == "openvino"
    # Weights in their order: paths of variables change when a model is saved and loaded, and the
    # state of random generators whenever it is used.
    for variable in model.weights:
        value = np.ascontiguousarray(variable if is_openvino else variable.numpy())
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(value)
    return digest.hexdigest()


def _configuration(model):
    """Return a model's configuration as text; None where Keras cannot tell it."""
    if functional(model) is None:
        return None
    try:
        return json.dumps(model.get_config(), sort_keys=True)
    except (NotImplementedError, TypeError, ValueError):
        # A layer somewhere inside does not say how it was made.
        return None


def has_lasting_identity(model):
    """Whether the digest of `model` means the same in another process.

    It does if the model is made of Keras' own layers: the code of others may have changed.
    """
    configuration = _configuration(model)
    if configuration is None:
        return False
    pending = [json.loads(configuration)]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            if "class_name" in value and value["class_name"] not in _PLAIN:
                module = value.get("module") or ""
                not_own = {"Lambda", "function"} | REFUSED_LAYERS
                if not module.startswith("keras") or value["class_name"] in not_own:
                    return False
            pending.extend(value.values())
    return True


class PickledModel:
    """A Keras model in a pickle; the other process loads it once, however often it is unpickled."""

    _written: ClassVar = weakref.WeakKeyDictionary()
    _read: ClassVar = weakref.WeakValueDictionary()

    def __init__(self, digest, content, classes):
        self._digest = digest
        self._content = content
        self._classes = classes

    @classmethod
    def of(cls, model):
        """Wrap `model`; the file's content is kept as long as the model lives unchanged."""
        digest = digest_of_model(model)
        written = cls._written.get(model)
        if written is None or written._digest != digest:
            with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
                path = Path(folder) / "model.keras"
                model.save(path)
                written = cls(digest, path.read_bytes(), classes_of_main(model))
            cls._written[model] = written
        return written

    def load(self):
        """Return the model. As with all pickles, its origin must be trusted."""
        model = self._read.get(self._digest)
        if model is None or digest_of_model(model) != self._digest:
            with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
                path = Path(folder) / "model.keras"
                path.write_bytes(self._content)
                model = load_saved(path, self._classes)
            _digests_of_received[model] = _compute_digest(model), self._digest
            self._read[self._digest] = model
        return model


def load_saved(path, classes):
    """Return a model that the user of this program has saved, with custom classes."""
    keras = import_keras()
    return keras.saving.load_model(path, custom_objects=classes, compile=False, safe_mode=False)


def classes_of_main(model):
    """Return the classes of layers that were written in a script or a notebook, by their names.

    Other processes cannot import them; pickles of joblib send such classes along.
    """
    keras = import_keras()
    classes = {type(layer) for layer in (model, *model._flatten_layers())}
    main = [own for own in classes if own.__module__ == "__main__" and "." not in own.__qualname__]
    return {
        name: own for own in main for name in (own.__name__, keras.saving.get_registered_name(own))
    }


def portable(classes):
    """Return classes in a form that `pickle` can send to a process that cannot import them."""
    return joblib.wrap_non_picklable_objects(classes, keep_wrapper=False)
