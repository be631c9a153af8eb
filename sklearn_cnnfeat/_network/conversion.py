"""Convert a model to a whole OpenVINO network: the code that runs in the converting process."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sklearn_cnnfeat._network import graph
from sklearn_cnnfeat._network.converted import ConversionError, UnsupportedLayersError
from sklearn_cnnfeat._network.engines.openvino import (
    OpenVINOEngine,
    compile_in_float32,
    first_line,
    write_network,
)
from sklearn_cnnfeat._network.folding import fold_batch_normalization
from sklearn_cnnfeat._network.identities import drop_identities
from sklearn_cnnfeat._network.keras_layers import (
    check_input,
    find_patches,
    functional,
    kernels_of,
    list_calls,
    list_layers,
    list_named_layers,
)
from sklearn_cnnfeat._network.keras_models import import_keras
from sklearn_cnnfeat._network.layout import carry_transpositions
from sklearn_cnnfeat._network.model_files import inspection_of
from sklearn_cnnfeat._network.process import memory_for
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.runtime import import_openvino
from sklearn_cnnfeat._network.spec import Head, Source
from sklearn_cnnfeat._network.tokens import with_grids
from sklearn_cnnfeat._network.zoo import find_architecture

# Largest difference to the framework's own numbers, relative to the largest of them, that counts
# as rounding of float32.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Job:
    """A network to be converted.

    Attributes
    ----------
    source : Source
        Where it comes from, with its digest.
    input_size : tuple or None
        Height and width in pixels; None for the network's own.
    folder : str
        Where the graph is written.
    file : str or None
        The file that is read, if there is one: weights, the model, or a saved model.
    classes : dict or None
        The classes of its layers that no other process can import, by name.
    """

    source: Source
    input_size: tuple | None
    folder: str
    file: str | None = None
    classes: dict | None = None

    def load(self):
        """Return the `keras.Model`."""
        return self.source.load(self.input_size, self.file, self.classes)


def convert(job):
    """Convert a network; return its record as plain values. The graph is in the job's folder."""
    import_keras()  # takes gigabytes of address space, which must not count towards the limit
    files = () if job.file is None else (job.file,)
    with nullcontext() if job.source.trusted else memory_for(*files):
        return convert_model(job.load(), job.source, job.input_size, job.folder)


def convert_model(model, source, input_size, folder):
    """Convert a Keras model on the backend of this process; return its record as plain values."""
    record = describe_model(model, source, input_size)
    converted, run, name = _front_end(model, source, record.input_shape)
    paths = layers_to_compare(record.layers, converted.outputs)
    pixels = sample_pixels(record.input_shape)
    # Computed before the graph is changed, because the reference may share it.
    expected = run(pixels, paths)
    record = replace(record, converter=name)
    record, computed = write_simplified(converted, record, paths, pixels, folder, source)
    return replace(record, reason=reason_to_refuse(computed, expected, source)).to_json()


def write_simplified(converted, record, paths, pixels, folder, source):
    """Simplify a graph and write it; return the record, and what some layers of it give."""
    try:
        permutations = simplify(converted)
        network = graph.name_layers(converted, permutations)
        record = replace(
            record,
            permutations={path: order for path, (_, order) in permutations.items() if order},
        )
        # Each layer for itself, as most users have it computed.
        computed = [run_layers(network, record, [path], pixels)[0] for path in paths]
    except Exception as error:
        raise ConversionError(
            f"OpenVINO cannot take {source.label}: {first_line(error)}."
        ) from error
    write_network(network, folder)
    return record, computed


def simplify(converted):
    """Simplify a graph for storage, in place; return where each layer is, with its permutation."""
    outputs = drop_identities(converted.model, converted.outputs)
    carried = carry_transpositions(converted.model, outputs)
    outputs = {path: output for path, (output, _) in carried.items()}
    folded = fold_batch_normalization(converted.model, outputs)
    return {path: (folded[path], order) for path, (_, order) in carried.items()}


def describe_model(model, source, input_size):
    """Return the record of a Keras model, without the entries that need a conversion."""
    shape = _choose_input_shape(check_input(model, source.label), source, input_size)
    size = None if input_size is None else shape[:2]
    layers = list_layers(model, source, size)
    has_tokens = any(layer.shape is not None and len(layer.shape) == 2 for layer in layers)
    patches = find_patches(model, source, size) if has_tokens else {}
    return NetworkRecord(
        layers=with_grids(layers, patches),
        n_layers=source.count_layers(model),
        input_shape=shape,
        last=source.last_layer(model),
        opaque=model.name if functional(model) is None else None,
        inspection=inspection_of(source),
        is_lasting=source.is_lasting(model),
    )


def _front_end(model, source, input_shape):
    """Return what a front end gives: the network, how to run the original, and its own name."""
    keras = import_keras()
    if keras.backend.backend() == "openvino":
        from sklearn_cnnfeat._network import keras_openvino
        from sklearn_cnnfeat._network.keras_openvino_layers import unsupported

        problems = unsupported(model)
        if problems:
            raise UnsupportedLayersError("; ".join(problems))
        converted = keras_openvino.convert(model, source, input_shape)
        return converted, partial(_run_unchanged, converted), f"Keras {keras.__version__}"
    from sklearn_cnnfeat._network import keras_tensorflow

    return *keras_tensorflow.convert(model, source, input_shape), "TensorFlow"


def _run_unchanged(converted, pixels, paths):
    """Compute some layers by the graph as the front end has made it."""
    outputs = [converted.outputs[path] for path in paths]
    network = import_openvino().Model(outputs, converted.model.get_parameters())
    values = compile_in_float32(network)(pixels)
    return [np.array(values[i]) for i in range(len(paths))]


def _choose_input_shape(own, source, input_size):
    height, width, channels = own
    if input_size is None or input_size == (height, width):
        return own
    for asked, given in zip(input_size, (height, width), strict=True):
        if given is not None and asked != given:
            raise ValueError(
                f"{source.label} was built for images of {height} x {width} pixels, but "
                f"input_size={input_size!r}. Leave input_size=None, or build the model with "
                "an input shape of (None, None, channels)."
            )
    return (*input_size, channels)


def read_kernels(job, path):
    """Return the kernels of a layer by name."""
    return kernels_in(job.load(), job.source, job.input_size, path)


def kernels_in(model, source, input_size, path):
    """Return the kernels of a layer of a model by name."""
    return next(
        kernels_of(keras_layer)
        for layer, keras_layer in list_calls(model, source, input_size)
        if layer.path == path
    )


# --- structure alone ------------------------------------------------------------------------------


def describe_named(source, input_size):
    """Return the record of a named network, classifier included, as plain values: no weights."""
    layers = list_named_layers(source, input_size)
    indices = [layer.index for layer in layers if layer.index is not None]
    architecture = find_architecture(source.name)
    trunk = [layer for layer in layers if layer.path not in architecture.head]
    return NetworkRecord(
        layers=tuple(layers),
        n_layers=1 + max(indices),
        input_shape=(*input_size, 3),
        last=trunk[-1].path,
    ).to_json()


# --- comparison -----------------------------------------------------------------------------------


def sample_pixels(input_shape, n_images=2):
    """Return smooth noise over the whole range, similar to a photograph."""
    height, width, channels = (side or 64 for side in input_shape)
    coarse = np.random.default_rng(0).uniform(0, 255, (n_images, 8, 8, channels))
    rows = np.linspace(0, 7, height).round().astype(int)
    columns = np.linspace(0, 7, width).round().astype(int)
    return np.ascontiguousarray(coarse[:, rows][:, :, columns], np.float32)


def layers_to_compare(layers, outputs):
    """Return the paths of the first, a middle and the last layer that can be features."""
    paths = [layer.path for layer in layers if layer.path in outputs and layer.index != 0]
    paths = paths or list(outputs)
    return list(dict.fromkeys([paths[0], paths[len(paths) // 2], paths[-1]]))


def reason_to_refuse(computed, expected, source):
    """Return why OpenVINO's numbers are wrong; None if they equal the framework's."""
    differences = [
        difference(numbers.reshape(reference.shape), reference)
        for numbers, reference in zip(computed, expected, strict=True)
    ]
    worst = max(differences, default=0.0)
    if worst <= TOLERANCE:
        return None
    return (
        f"OpenVINO's numbers for {source.label} differ from Keras' by {worst:.1e} of the "
        f"largest (allowed: {TOLERANCE:.0e})."
    )


def difference(computed, reference):
    """Return the largest difference, relative to the largest number; infinite where one is NaN."""
    scale = np.abs(reference).max(initial=0.0) or 1.0
    largest = np.abs(computed - reference).max(initial=0.0) / scale
    return np.inf if np.isnan(largest) else float(largest)


def run_layers(network, record, paths, pixels):
    """Return what OpenVINO computes for some layers, one array each, images first."""
    shapes = {layer.path: layer.shape for layer in record.layers}
    heads = [Head(path, None, shapes[path], shapes[path]) for path in paths]
    part = graph.cut(network, heads, record.permutations or {}, None)
    # Bits do not depend on the number of threads.
    engine = OpenVINOEngine(part, np.float32, "float32", len(pixels), None)
    rows = {}

    def deliver(i, outputs):
        rows[i] = [np.array(output) for output in outputs]

    engine.run((((i,), pixels[i : i + 1]) for i in range(len(pixels))), deliver)
    return [np.stack([rows[i][k] for i in range(len(pixels))]) for k in range(len(paths))]
