"""From a spec to one graph: pixels in, preprocessing, truncated network, pooling, rows out.

The only room that imports Keras and TensorFlow, and the last one to be needed: a program that lies
compiled on the disk is run without it.
"""

import hashlib
import json
import math
import os
import random
import re
import sys
import tempfile
import threading
import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from sklearn_cnnfeat._files import digest_of_file
from sklearn_cnnfeat._images import MOST_PIXELS
from sklearn_cnnfeat._network.layers import Layer, find_layer, sentence
from sklearn_cnnfeat._network.model_files import (
    INSPECTION,
    REFUSED_LAYERS,
    cause_of,
    inspected_copy,
    saved_by,
)
from sklearn_cnnfeat._network.pooling import needs_fixed_size, pool, pooled_shape
from sklearn_cnnfeat._network.spec import Head, NetworkInfo
from sklearn_cnnfeat._network.weights import VARIABLE as WEIGHTS_VARIABLE
from sklearn_cnnfeat._network.weights import find_weights
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat.exceptions import (
    LayerNotFoundError,
    ModelFileError,
    UntrustedModelError,
    WeightsNotFoundError,
)

_MAX_CONSTANT_BYTES = 256 * 1024**2

_REDIRECTING = threading.Lock()

# What Keras writes as a class in configurations and is none, such as the tensors between the layers
# of a functional model.
_PLAIN = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")


@dataclass(frozen=True)
class Graph:
    """A network as one function of pixels, and what is known of it."""

    info: NetworkInfo
    # Takes a batch of pixels (n, height, width, channels) as a float32 tensor, gives one tensor
    # a head: its rows, not in their shape yet (see `_behind_views`).
    function: object
    # Whether the spec's fingerprint means the same numbers in every process.
    lasting: bool
    # Whether the model is in the user's hands, who may train it.
    shared: bool

    @property
    def output_names(self):
        """Names of the outputs in the graph, one a head."""
        return tuple(output.name for output in self.function.outputs)

    def run(self, pixels):
        """Return one float32 array a head for a batch of pixels."""
        import tensorflow as tf

        return [out.numpy() for out in self.function(tf.constant(pixels, tf.float32))]

    def freeze(self):
        """Return the graph with the variables of the model as constants: faster, and for good.

        Large models stay as they are if nobody else can change them: TensorFlow makes about
        twenty copies of the constants of a function that it runs.
        """
        from tensorflow.python.framework import convert_to_constants

        variables = self.function.graph.variables
        n_bytes = sum(math.prod(v.shape) * v.dtype.size for v in variables)
        if n_bytes > _MAX_CONSTANT_BYTES and not self.shared:
            return self
        with _without_early_messages():
            frozen = convert_to_constants.convert_variables_to_constants_v2(
                self.function, lower_control_flow=False
            )
        return replace(self, function=frozen)

    def write(self, path):
        """Write the graph with constants for variables, as a TensorFlow `GraphDef`."""
        from tensorflow.python.framework import convert_to_constants as convert

        # What `freeze` does too, before it makes a function of it.
        with _without_early_messages():
            values = convert._FunctionConverterDataInEager(
                self.function, lower_control_flow=False, aggressive_inlining=False
            )
        graph_def, _ = convert._replace_variables_by_constants(values)
        Path(path).write_bytes(graph_def.SerializeToString())


def import_keras():
    """Import Keras on TensorFlow, with the number of threads that this process may use."""
    if "keras" not in sys.modules:
        # Another backend may be missing, of which Keras would only say that.
        _check_backend(os.environ.get("KERAS_BACKEND") or "tensorflow")
    first = "tensorflow" not in sys.modules
    with _without_early_messages() if first else nullcontext():
        import keras

    _check_backend(keras.backend.backend())
    share = os.environ.get("OMP_NUM_THREADS", "")
    if first and share.isdigit():
        # TensorFlow does not look at OMP_NUM_THREADS, by which joblib gives each worker its share.
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(int(share))
    return keras


def _check_backend(name):
    if name != "tensorflow":
        raise ImportError(
            f"sklearn-cnnfeat runs Keras on TensorFlow, but Keras is set to the {name!r} backend. "
            "Set the environment variable KERAS_BACKEND=tensorflow (or remove it) before Keras is "
            "imported."
        )


@contextmanager
def _without_early_messages():
    """Drop what TensorFlow writes whatever its log level, where that is to be quiet.

    All versions do so when they are imported, and those before 2.20 when they optimize a graph.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") == "0":
        yield
        return
    with _REDIRECTING:  # or the second thread would take the silence for the error stream
        try:
            kept = os.dup(2)
        except OSError:  # no error stream, so nothing to keep clean
            yield
            return
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def has_gpu():
    """Whether TensorFlow sees a GPU."""
    import_keras()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


# --- where networks come from ---------------------------------------------------------------


def is_keras_model(value):
    """Whether `value` is a Keras model; does not import Keras."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)


def digest_of_model(model):
    """Return the SHA-256 of a model's configuration and weights.

    A subclass of `keras.Model` that keeps its configuration to itself counts by its name. A model
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
    # Weights in their order: paths of variables change when a model is saved and loaded, and the
    # state of random generators whenever it is used.
    for variable in model.weights:
        value = np.ascontiguousarray(variable.numpy())
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(value)
    return digest.hexdigest()


def _configuration(model):
    """Return a model's configuration as text; None where Keras cannot tell it."""
    if _functional(model) is None:
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
    """A Keras model on its way to another process, which loads it once however often it comes."""

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
                written = cls(digest, path.read_bytes(), _classes_of_main(model))
            cls._written[model] = written
        return written

    def load(self):
        """Return the model. As with all pickles, its origin must be trusted."""
        model = self._read.get(self._digest)
        if model is None or digest_of_model(model) != self._digest:
            keras = import_keras()
            with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
                path = Path(folder) / "model.keras"
                path.write_bytes(self._content)
                model = keras.saving.load_model(
                    path, custom_objects=self._classes, compile=False, safe_mode=False
                )
            _digests_of_received[model] = _compute_digest(model), self._digest
            self._read[self._digest] = model
        return model


def _classes_of_main(model):
    """Return the classes of layers that were written in a script or a notebook, by their names.

    Other processes cannot import them; joblib sends such classes along.
    """
    keras = import_keras()
    classes = {type(layer) for layer in model._flatten_layers()}
    main = [own for own in classes if own.__module__ == "__main__" and "." not in own.__qualname__]
    return {
        name: own for own in main for name in (own.__name__, keras.saving.get_registered_name(own))
    }


def load_network(source, input_size):
    """Return the `keras.Model` of a zoo or file source, built for images of `input_size`."""
    if source.kind == "file":
        # A search over layers asks for the same network again and again; a file may change.
        return _load_file(source.name, _digest_now(source, source.name), source.trusted)
    path = source.weights
    if path == "imagenet":
        path = download_weights(source, input_size)
    digest = None if path == "random" else _digest_now(source, path)
    return _load_from_zoo(replace(source, digest=digest), input_size, path)


def _digest_now(source, path):
    """Return the digest of a file, which must be the one that it had in fit."""
    digest = digest_of_file(path)
    if source.digest not in (None, digest):
        raise ModelFileError(
            f"{str(path)!r} has changed since fit, and the compiled network of that time is gone. "
            "Call fit again."
        )
    return digest


def inspection_of(source):
    """Return what to note down of a network loaded from `source`: how its file was inspected."""
    return None if source.trusted else INSPECTION


def inspect_again(source, input_size):
    """Raise if the file of `source` would be refused; nothing is loaded."""
    what = "model" if source.kind == "file" else "weights"
    path = source.name if source.kind == "file" else source.weights
    if path == "imagenet":
        path = download_weights(source, input_size)
    with inspected_copy(path, source.digest, what):
        pass


def _opened(path, digest, trusted, what):
    """Yield a path that Keras may read: what trusted files hold is their owners' affair."""
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
            elif (version := saved_by(readable)) and _is_newer(version, keras.__version__):
                problem = (
                    f"{problem.rstrip('.')}. It was saved by Keras {version}, and this is Keras "
                    f"{keras.__version__}: pip install --upgrade keras may help."
                )
            raise ModelFileError(
                f"{path!r} cannot be read as a Keras model (.keras or .h5): {problem}"
            ) from error


def _is_newer(version, other):
    numbers = [[int(n) for n in re.findall(r"\d+", text)[:3]] for text in (version, other)]
    return numbers[0] > numbers[1]


@lru_cache(maxsize=1)
def _load_from_zoo(source, input_size, path):
    architecture = find_architecture(source.name)
    model = _construct(architecture, source.include_top, (*input_size, 3), source.seed)
    if path == "random":
        return model
    try:
        with _opened(path, source.digest, source.trusted, "weights") as readable:
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
        model = _add_rescaling(model)
    return model


def download_weights(source, input_size):
    """Return the path of published weights, which Keras downloads where they are missing."""
    architecture = find_architecture(source.name)
    found = find_weights(architecture, source.include_top, input_size)
    if found.path is not None:
        return found.path
    path = architecture.weights_file(source.include_top, input_size)
    size = architecture.trained_size(input_size)
    problem = f"Keras put it elsewhere: was KERAS_HOME set to {str(path.parents[1])!r} too late?"
    try:
        _construct(architecture, source.include_top, (size, size, 3), weights="imagenet")
    except Exception as error:
        problem = cause_of(error)
    if not path.exists():
        raise WeightsNotFoundError(
            f"The ImageNet weights of {architecture.name!r} are not on this machine and could not "
            f"be downloaded ({problem}).\n"
            f"  file    {path.name}\n"
            f"  from    {architecture.download_url(source.include_top, input_size)}\n"
            f"  put in  {path.parent}\n"
            + "".join(f"  looked in  {place}\n" for place in found.places)
            + "".join(f"  refused  {problem}\n" for problem in found.refused)
            + "Download it where there is a network and put it there, or into a folder that "
            f"the environment variable {WEIGHTS_VARIABLE} names; pack_weights makes such a folder. "
            "Other choices: weights='path/to/file' for weights of your own, weights=None for "
            "random ones."
        )
    return path


# Mean and standard deviation of ImageNet's pixels, scaled to 0 to 1.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def _normalizes_as_imagenet(model):
    mean = np.ravel(model.get_layer("normalization").mean)
    return np.allclose(mean, _IMAGENET_MEAN, atol=1e-3)


def _add_rescaling(model):
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


def _construct(architecture, include_top, shape, seed=None, *, weights=None, symbolic=False):
    """Build a network of the zoo with layer names that do not depend on what was built before.

    Keras numbers unnamed layers ("conv2d_17") with a counter of the thread, so a thread of its
    own gives each network the names that it has in a fresh process, and the default dtype policy.
    A symbolic network has layers and shapes, but no memory for its weights.
    """
    keras = import_keras()
    import tensorflow as tf

    result = []

    def construct():
        constructor = getattr(keras.applications, architecture.keras_name)
        # Variables made inside a TensorFlow graph are promises that nobody redeems.
        scope = tf.Graph().as_default() if symbolic else nullcontext()
        try:
            with scope:
                model = constructor(weights=weights, include_top=include_top, input_shape=shape)
            result.append(model)
        except BaseException as error:
            result.append(error)

    # Keras draws the seed of each initializer from Python's own generator.
    state = random.getstate()
    if seed is not None:
        random.seed(seed)
    try:
        thread = threading.Thread(target=construct, name="sklearn_cnnfeat-build")
        thread.start()
        thread.join()
    finally:
        random.setstate(state)
    (model,) = result
    if not isinstance(model, BaseException):
        return model
    if isinstance(model, ValueError) and "nput size must be" in str(model):
        raise ValueError(f"{architecture.name!r} cannot take {shape[:2]}: {model}") from model
    raise model


# --- walking through a network ----------------------------------------------------------------


def _functional(model):
    """Return the graph of a Sequential or Functional model; None where Keras keeps none."""
    keras = import_keras()
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                f"The model {model.name!r} has not been built yet: give it an input shape, for "
                "example with keras.Input((height, width, channels)) as its first entry."
            )
        return model._functional
    # Functional models are those that remember how their layers are connected.
    return model if hasattr(model, "_run_through_graph") else None


def _walk(model, inputs, invoke, prefix="", makers=None):
    """Compute a model layer by layer; yield nothing, return its outputs and the calls it made.

    Each call is (path, layer, output, source): the source is the path of the call that gave its
    input. Models inside the model are walked too; their own output follows those of their layers,
    the last of which is its source.
    """
    makers = {} if makers is None else makers
    graph = _functional(model)
    calls = []
    seen = Counter()
    uses = Counter(
        node.operation.name
        for nodes in graph._nodes_by_depth.values()
        for node in nodes
        if node.operation is not None
    )

    def operation(layer):
        def call(*args, **kwargs):
            path = prefix + layer.name
            if uses[layer.name] > 1:
                path += f":{seen[layer.name]}"
                seen[layer.name] += 1
            if _is_model(layer) and _functional(layer) is not None:
                outputs, inner = _walk(layer, args[0], invoke, path + "/", makers)
                calls.extend(inner)
                source = makers.get(id(outputs))
            else:
                source = makers.get(id(args[0])) if args else None
                outputs = invoke(layer, *args, **kwargs)
            # Tensors stay alive in the calls, so that no other one gets the same id.
            makers[id(outputs)] = path
            calls.append((path, layer, outputs, source))
            return outputs

        return call

    outputs = graph._run_through_graph(inputs, operation_fn=operation)
    return outputs, calls


def _is_model(layer):
    return isinstance(layer, import_keras().Model)


def _call(layer, *args, **kwargs):
    if isinstance(layer, import_keras().Layer):
        # As `predict` does: it holds for all layers inside too, and whatever the model says.
        kwargs["training"] = False
    return layer(*args, **kwargs)


def _infer_shape(layer, *args, **kwargs):
    return layer.compute_output_spec(*args, **kwargs)


@contextmanager
def _faults_of(source):
    """Tell which file holds a network that Keras can build and not compute."""
    try:
        yield
    except (ModelFileError, MemoryError):
        raise
    except Exception as error:
        if source.kind != "file":
            raise
        raise ModelFileError(
            f"The network in {source.name!r} cannot be computed: {cause_of(error)}"
        ) from error


def _compute_layers(model, inputs, invoke):
    """Return the `Layer` of every call in the model, what it gives, and Keras' own layer."""
    keras = import_keras()
    if _functional(model) is None:
        # A subclassed model keeps to itself how its layers are connected.
        outputs = invoke(model, inputs)
        calls = [(model.name, model, outputs, None)]
        positions = {model.name: 0}
    else:
        _, calls = _walk(model, inputs, invoke)
        positions = {layer.name: i for i, layer in enumerate(model.layers)}
        first = model.layers[0]
        if isinstance(first, keras.layers.InputLayer):
            calls.insert(0, (first.name, first, inputs, None))
    layers, tensors, keras_layers = [], [], []
    for path, layer, output, source in calls:
        if not isinstance(layer, keras.Layer):
            # Functions of keras.ops are no layers, as in `model.layers`.
            continue
        several = isinstance(output, (list, tuple, dict))
        layers.append(
            Layer(
                path=path,
                type=type(layer).__name__,
                index=None if "/" in path else positions[layer.name],
                shape=None if several else tuple(output.shape)[1:],
                source=source,
            )
        )
        tensors.append(output)
        keras_layers.append(layer)
    return layers, tensors, keras_layers


def list_layers(source, input_size=None, model=None):
    """Return the `Layer` of every call in a network and Keras' layer behind it, in pairs.

    Of networks by name these are all layers that ``layer=`` may name, those of the classifier
    included; their weights are neither read nor even allocated.
    """
    if source.kind != "zoo":
        return list_weighted_layers(source, input_size, model)
    architecture = find_architecture(source.name)
    shape = (*input_size, 3)
    model = _construct(architecture, True, shape, symbolic=True)
    if architecture.rescales and source.weights == "imagenet":
        model = _add_rescaling(model)
    pairs = _pair_layers(model, source)
    if architecture.tail:
        headless = _construct(architecture, False, shape, symbolic=True)
        # They go by name only: the indices count the whole network, classifier included.
        tail = [
            (replace(layer, index=None), keras_layer)
            for layer, keras_layer in _pair_layers(headless, source)
            if layer.path in architecture.tail
        ]
        end = len(pairs) - len(architecture.head)
        pairs[end:end] = tail
    return pairs


def check_layers(source, layers, input_size):
    """Raise if a network by name has none of these layers; its weights are not needed."""
    known = [layer for layer, _ in list_layers(source, input_size)]
    n_layers = 1 + max(layer.index for layer in known if layer.index is not None)
    for layer in layers:
        if layer != "last":
            find_layer(layer, known, n_layers, describe(source))


def list_weighted_layers(source, input_size=None, model=None):
    """Return the same pairs for the network that `source` computes, with its weights."""
    model = model if model is not None else load_network(source, input_size)
    return _pair_layers(model, source, input_size)


def find_weighted_layer(wanted, source, input_size=None, model=None):
    """Return the pair that `wanted` means."""
    model = model if model is not None else load_network(source, input_size)
    pairs = _pair_layers(model, source, input_size)
    found = find_in_model(wanted, source, model, [layer for layer, _ in pairs])
    return next(pair for pair in pairs if pair[0] == found)


def _pair_layers(model, source, input_size=None):
    height, width, channels = check_input(model, describe(source))
    inputs = import_keras().KerasTensor((None, *(input_size or (height, width)), channels))
    with _faults_of(source):
        layers, _, keras_layers = _compute_layers(model, inputs, _infer_shape)
    return list(zip(layers, keras_layers, strict=True))


def check_input(model, where):
    """Return height, width (None: any) and channels of a model's input, or refuse the model."""
    where = sentence(where)
    try:
        inputs = model.inputs
    except (AttributeError, ValueError):
        inputs = None
    if not inputs:
        # A subclass remembers what it was first called on.
        shape = (model.get_build_config() or {}).get("input_shape")
        if not shape:
            raise ValueError(
                f"{where} does not say the shape of its input: it is a subclass of keras.Model "
                "that has not been called yet. Call it once on a batch of images, or build it "
                "with the Functional API."
            )
    elif len(inputs) > 1:
        raise ValueError(
            f"{where} has {len(inputs)} inputs; a network that takes images and nothing else is "
            "needed."
        )
    else:
        shape = tuple(inputs[0].shape)
    if len(shape) != 4:
        raise ValueError(
            f"{where} takes inputs of shape {_show(shape)}; a network that takes images "
            "(n, height, width, channels) is needed."
        )
    if math.prod(n or 1 for n in shape[1:3]) > MOST_PIXELS:
        raise ValueError(
            f"{where} takes inputs of shape {_show(shape)}, which is more than {MOST_PIXELS:,} "
            "pixels an image."
        )
    if _is_channels_first(model):
        raise ValueError(
            f"{where} works on channels-first images {_show(shape)}, which TensorFlow does not "
            "compute on a CPU. Build it with data_format='channels_last' "
            "(keras.config.set_image_data_format) and load its weights: kernels have the same "
            "layout in both."
        )
    height, width, channels = shape[1:]
    if channels not in (1, 3):
        raise ValueError(
            f"{where} takes images of {channels} channels; only gray (1) and RGB (3) images can be "
            "made from pictures."
        )
    return height, width, channels


def _input_dtype(model):
    graph = _functional(model)
    return "float32" if graph is None else graph.inputs[0].dtype


def _is_channels_first(model):
    pending = [model]
    while pending:
        layer = pending.pop()
        if getattr(layer, "data_format", None) == "channels_first":
            return True
        pending.extend(getattr(layer, "layers", None) or [])
    return False


def _show(shape):
    return "(" + ", ".join("n" if i == 0 else str(n) for i, n in enumerate(shape)) + ")"


# --- one graph ----------------------------------------------------------------------------------


def _preprocess(pixels, mode):
    keras = import_keras()
    if mode is None:
        return pixels
    if mode == "rescale":
        return pixels / 255.0
    return keras.applications.imagenet_utils.preprocess_input(
        pixels, data_format="channels_last", mode=mode
    )


def describe(source):
    """Return what the network is called in messages."""
    return {
        "zoo": f"{source.name!r}",
        "file": f"the model in {source.name!r}",
        "object": f"the model {source.name!r}",
    }[source.kind]


def build_graph(spec, model=None):
    """Build the graph of `spec`.

    Parameters
    ----------
    spec : NetworkSpec
        What to compute.
    model : keras.Model, default=None
        The model itself where `spec` names an object.

    Returns
    -------
    graph : Graph
        The network, which follows what happens to its model until it is frozen or written.
    """
    where = describe(spec.source)
    if model is None:
        # First of all: a file that is refused costs no import.
        model = load_network(spec.source, spec.input_size)
    elif digest_of_model(model) != spec.source.digest:
        raise RuntimeError(
            f"{sentence(where)} has changed since fit, and the compiled network of that time is "
            "gone. Call fit again."
        )
    keras = import_keras()
    import tensorflow as tf

    height, width, channels = _choose_input_shape(spec, check_input(model, where), where)
    heads = []

    def program(pixels):
        with _faults_of(spec.source):
            inputs = tf.cast(_preprocess(pixels, spec.preprocessing), _input_dtype(model))
            layers, tensors, _ = _compute_layers(model, inputs, _call)
        tensor_of = {layer.path: tensor for layer, tensor in zip(layers, tensors, strict=True)}
        outputs = []
        for wanted, pooling in zip(spec.layers, spec.poolings, strict=True):
            layer = find_in_model(wanted, spec.source, model, layers)
            _check_pooling(layer, pooling, where)
            with _faults_of(spec.source):
                maps = tf.cast(tensor_of[layer.path], tf.float32)
            rows = pool(maps, pooling, layer.shape, keras.ops)
            outputs.append(tf.identity(_behind_views(rows)))
            heads.append(
                Head(
                    layer=layer.path,
                    pooling=pooling if len(layer.shape) == 3 else None,
                    map_shape=layer.shape,
                    shape=pooled_shape(layer.shape, pooling),
                )
            )
        return outputs

    signature = tf.TensorSpec((None, height, width, channels), tf.float32)
    traced = tf.compat.v1.wrap_function(program, [signature])
    # What lies behind the deepest wanted layer is cut off, and so is what augmentation layers do
    # to their random state even where they are inactive.
    return Graph(
        info=NetworkInfo(heads=tuple(heads), input_shape=(height, width, channels)),
        function=traced.prune(traced.inputs[0], traced.outputs),
        lasting=spec.source.kind == "zoo" or has_lasting_identity(model),
        shared=spec.source.kind == "object",
    )


def _behind_views(tensor):
    """Return the tensor that `tensor` only shows in another shape.

    OpenVINO (2026.4) computes garbage from a tensor that goes on through the network and is an
    output in another shape too. So rows get their shape when they have left the network.
    """
    import tensorflow as tf

    length = math.prod(tensor.shape[1:])
    while tensor.op.type in ("Reshape", "Squeeze", "ExpandDims", "Identity"):
        source = tensor.op.inputs[0]
        if None in source.shape[1:] or math.prod(source.shape[1:]) != length:
            # The batch has got into another dimension.
            break
        tensor = source
    # The input itself cannot be an output in OpenVINO, but what is computed from it can.
    return tf.negative(tf.negative(tensor)) if tensor.op.type == "Placeholder" else tensor


def find_in_model(wanted, source, model, layers):
    """Return the entry of `layers` that the user means by `wanted`."""
    where = describe(source)
    if _functional(model) is None and wanted not in ("last", model.name, 0, -1):
        raise LayerNotFoundError(
            f"{sentence(where)} is a subclass of keras.Model, which keeps to itself how its layers "
            f"are connected: only its output can be taken, with layer='last'. To take layer "
            f"{wanted!r}, build the model with the Functional API."
        )
    if source.kind != "zoo":
        return find_layer(wanted, layers, _count_layers(model), where)
    architecture = find_architecture(source.name)
    end = architecture.head if source.include_top else architecture.tail
    n_trunk = len(model.layers) - len(end)
    if wanted == "last":
        # The same layer with and without the classifier.
        wanted = (architecture.tail or [model.layers[n_trunk - 1].name])[-1]
    return find_layer(wanted, layers, n_trunk + len(architecture.head), where)


def _count_layers(model):
    return len(model.layers) if _functional(model) is not None else 1


def _choose_input_shape(spec, own, where):
    height, width, channels = own
    if spec.input_size is None or spec.input_size == (height, width):
        return own
    for asked, given in zip(spec.input_size, (height, width), strict=True):
        if given is not None and asked != given:
            raise ValueError(
                f"{sentence(where)} was built for images of {height} x {width} pixels, but "
                f"input_size={spec.input_size!r}. Leave input_size=None, or build the model with "
                "an input shape of (None, None, channels)."
            )
    return (*spec.input_size, channels)


def _check_pooling(layer, pooling, where):
    if needs_fixed_size(pooling) and None in layer.shape:
        raise ValueError(
            f"{sentence(where)} takes images of any size, so that layer {layer.path!r} gives maps "
            f"of any size, and pooling={pooling!r} rows of any length. Say input_size=(height, "
            "width), or choose pooling='avg', 'max' or 'gem'."
        )
