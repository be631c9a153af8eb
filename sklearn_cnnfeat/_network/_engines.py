"""Run one network: OpenVINO on a CPU, Keras' own graph on TensorFlow.

An engine has `batch_size` and `run(batches, deliver)`: it takes (tokens, pixels) pairs from an
iterator and calls ``deliver(token, rows)`` once an image, where `rows` holds one array a head. The
arrays are the engine's own: `deliver` copies what it keeps.
"""

import threading
from collections import deque

import numpy as np

from sklearn_cnnfeat._network.runtime import import_openvino

# Images a call for TensorFlow, which gains from large batches; OpenVINO keeps its cores busy with
# single images, one a core, which also makes a row independent of the batch it sits in.
KERAS_BATCH = 32
# Sizes of images that kernels are kept for, where a network takes images of any size.
_KEPT_SIZES = 4


class OpenVINOEngine:
    """A network compiled by OpenVINO, several images in flight.

    Parameters
    ----------
    network : openvino.Model
        From float32 pixels (1, height, width, channels) to one output a head, in order.
    dtype : dtype
        Of the pixels that come in: uint8 or float32.
    precision : {"float32", "bfloat16", "int8"}
        Of the arithmetic.
    n_threads : int
        Images computed at the same time, each on one core.
    batch_size : int or None
        Images a request; None for one.
    n_callers : int, default=None
        Calls of `run` at the same time, each of which computes in its turn and works nothing ahead,
        so that it keeps one core busy. None is for one call at a time, on all threads.
    """

    name = "openvino"

    def __init__(self, network, dtype, precision, n_threads, batch_size, n_callers=None):
        openvino = import_openvino()

        self.batch_size = batch_size or 1
        # Twice as many requests as threads: the next image is there when one is done.
        self._n_requests = 2 * n_threads if n_callers is None else 1
        self._waits = n_callers is not None
        n_threads = n_threads if n_callers is None else n_callers
        network = network.clone()
        shape = network.inputs[0].partial_shape
        shape[0] = self.batch_size
        network.reshape(shape)
        steps = openvino.preprocess.PrePostProcessor(network)
        steps.input().tensor().set_element_type(openvino.Type(np.dtype(dtype)))
        hint = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}[precision]
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": n_threads,
            "INFERENCE_NUM_THREADS": n_threads,
            # Two processes would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": hint,
        }
        if shape.is_dynamic:
            # Of each layer, the kernels for some sizes of images are kept. OpenVINO's own limit is
            # so high that memory would grow by gigabytes with images of ever other sizes.
            kept = max(100, _KEPT_SIZES * len(network.get_ops()))
            options["CPU_RUNTIME_CACHE_CAPACITY"] = str(kept)
        self._compiled = openvino.Core().compile_model(steps.build(), "CPU", options)

    def run(self, batches, deliver):
        """Compute all batches; return when every row was delivered."""
        # They are waited for in order instead of calling back: a callback comes from OpenVINO's
        # threads, which then need the interpreter at moments when it may be waiting for them.
        idle = [self._compiled.create_infer_request() for _ in range(self._n_requests)]
        in_flight = deque()
        n_heads = len(self._compiled.outputs)

        def finish():
            request, tokens, _ = in_flight[0]
            request.wait()
            in_flight.popleft()
            outputs = [request.get_output_tensor(head).data for head in range(n_heads)]
            for i, token in enumerate(tokens):
                deliver(token, [output[i] for output in outputs])
            return request

        try:
            for tokens, pixels in batches:
                request = idle.pop() if idle else finish()
                pixels = self._pad(pixels)
                # Kept from before the start until the request is done, whatever interrupts it: it
                # reads the pixels where they are.
                in_flight.append((request, tokens, pixels))
                request.start_async({0: pixels}, share_inputs=True)
                if self._waits:
                    idle.append(finish())
            while in_flight:
                finish()
        finally:
            for request, *_ in in_flight:
                request.wait()

    def _pad(self, pixels):
        missing = self.batch_size - len(pixels)
        if missing == 0:
            return pixels
        return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])


class KerasEngine:
    """The frozen graph on TensorFlow: a GPU, and networks that OpenVINO cannot take."""

    name = "keras"
    # TensorFlow uses all its threads for one call; two calls at once would only wait.
    _one_call = threading.Lock()

    def __init__(self, graph, batch_size):
        self._graph = graph
        self.batch_size = batch_size or KERAS_BATCH

    def run(self, batches, deliver):
        """Compute all batches; return when every row was delivered."""
        for tokens, pixels in batches:
            with self._one_call:
                outputs = self._graph.run(pixels)
            for i, token in enumerate(tokens):
                deliver(token, [output[i] for output in outputs])


def read_graph(path, output_names):
    """Read a TensorFlow `GraphDef` into an OpenVINO model with its outputs in order.

    `Core.read_model` converts inside the runtime. The separate conversion tool, which reports its
    use to its makers unless told not to, is never called.
    """
    openvino = import_openvino()

    network = openvino.Core().read_model(str(path))
    return openvino.Model(
        [network.output(name).get_node().input_value(0) for name in output_names],
        network.get_parameters(),
        "sklearn_cnnfeat",
    )


def read_program(path):
    """Read a saved program."""
    openvino = import_openvino()

    return openvino.Core().read_model(str(path))


def write_program(network, path):
    """Save an OpenVINO model in full precision as `path` (.xml) and its weights beside it."""
    openvino = import_openvino()

    openvino.save_model(network, str(path), compress_to_fp16=False)


def supports_bfloat16():
    """Whether this processor computes bfloat16 in hardware."""
    openvino = import_openvino()

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
