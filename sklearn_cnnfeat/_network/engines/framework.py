"""The engine for a GPU and for models that OpenVINO cannot take: Keras itself, on any backend."""

import threading
from contextlib import contextmanager
from functools import partial

import numpy as np

from sklearn_cnnfeat._network.keras_layers import (
    compute,
    compute_layers,
    faults_of,
    functional,
    input_dtype,
    is_channels_first,
)
from sklearn_cnnfeat._network.keras_models import import_keras
from sklearn_cnnfeat._network.pooling import pool
from sklearn_cnnfeat._network.runtime import import_openvino

# Images for one call: a GPU, and TensorFlow on a CPU, gain from large batches.
KERAS_BATCH = 32


class KerasEngine:
    """A model as `part_of` makes it, in this process, by its own `predict_on_batch`."""

    name = "keras"
    # A framework uses all its threads for one call; two calls at once would only wait.
    _one_call = threading.Lock()

    def __init__(self, model, batch_size):
        self._model = model
        self.batch_size = batch_size or KERAS_BATCH

    def run(self, batches, deliver):
        for tokens, pixels in batches:
            with self._one_call, _in_float32():
                outputs = self._model.predict_on_batch(np.asarray(pixels, np.float32))
            outputs = outputs if isinstance(outputs, list) else [outputs]
            for i, token in enumerate(tokens):
                deliver(token, [np.asarray(output[i]) for output in outputs])


@contextmanager
def _in_float32():
    """Keep Keras' OpenVINO backend from computing in bfloat16 where the processor can.

    Its `predict_on_batch` compiles the model without a word on precision, which then is the choice
    of OpenVINO: on a processor with AMX features would be off by 1e-3.
    """
    if import_keras().backend.backend() != "openvino":
        yield
        return
    openvino = import_openvino()
    compile_model = openvino.compile_model
    openvino.compile_model = partial(compile_model, config={"INFERENCE_PRECISION_HINT": "f32"})
    try:
        yield
    finally:
        openvino.compile_model = compile_model


def part_of(model, source, info, preprocessing):
    """Return a Keras model from pixels to one output for each head of `info`."""
    keras = import_keras()
    pixels = keras.Input(info.input_shape, dtype="float32")
    first = is_channels_first(model)
    inputs = keras.ops.cast(_preprocess(pixels, preprocessing), input_dtype(model))
    if first:
        inputs = keras.ops.transpose(inputs, (0, 3, 1, 2))
    with faults_of(source):
        tensors = {
            layer.path: tensor for layer, tensor, _ in compute_layers(model, inputs, compute)
        }
    outputs = []
    for head in info.heads:
        maps = keras.ops.cast(tensors[head.layer], "float32")
        if head.grid is not None:
            start, stop = head.grid.tokens_of(head.pooling)
            maps = maps[:, start:stop]
            if head.pooling == "cls":
                outputs.append(keras.ops.reshape(maps, (-1, head.map_shape[-1])))
                continue
            maps = keras.ops.reshape(maps, (-1, *head.map_shape))
        elif first and len(head.map_shape) == 3:
            maps = keras.ops.transpose(maps, (0, 2, 3, 1))
        outputs.append(pool(maps, head.pooling, head.map_shape, Operations))
    return keras.Model(pixels, outputs)


def outputs_by_layer(model, pixels):
    """Return the outputs of a model as arrays, by the name of the layer that gives each."""
    keras = import_keras()
    outputs = keras.tree.flatten(model(_as_input(model, pixels), training=False))
    graph = functional(model)
    names = [model.name] if graph is None else graph.output_names
    return {
        name: _in_logical_order(model, keras.ops.convert_to_numpy(output))
        for name, output in zip(names, outputs, strict=False)
    }


def _in_logical_order(model, values):
    values = np.asarray(values, np.float32)
    if is_channels_first(model) and values.ndim == 4:
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    return values


def _as_input(model, pixels):
    if is_channels_first(model):
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return import_keras().ops.convert_to_tensor(pixels, input_dtype(model))


def _preprocess(pixels, mode):
    if mode is None:
        return pixels
    if mode == "rescale":
        return pixels / 255.0
    return import_keras().applications.imagenet_utils.preprocess_input(
        pixels, data_format="channels_last", mode=mode
    )


def sees_gpu():
    """Whether the backend of Keras sees a GPU or another accelerator."""
    keras = import_keras()
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    return backend in ("tensorflow", "jax") and bool(keras.distribution.list_devices("gpu"))


class Operations:
    """What `pooling.pool` needs, on tensors of Keras."""

    @staticmethod
    def mean(maps):
        return import_keras().ops.mean(maps, axis=(1, 2))

    @staticmethod
    def max(maps):
        return import_keras().ops.max(maps, axis=(1, 2))

    @staticmethod
    def power(maps, exponent):
        return import_keras().ops.power(maps, exponent)

    @staticmethod
    def maximum(maps, floor):
        return import_keras().ops.maximum(maps, floor)

    @staticmethod
    def flatten(maps, length):
        return import_keras().ops.reshape(maps, (-1, length))

    @staticmethod
    def crop(maps, top, bottom, left, right):
        return maps[:, top:bottom, left:right, :]

    @staticmethod
    def concatenate(vectors):
        return import_keras().ops.concatenate(vectors, axis=-1)
