"""The engine for most networks: OpenVINO on a CPU."""

import shutil
from collections import deque
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._memory import memory_errors
from sklearn_cnnfeat._network.runtime import import_openvino

# The file of a graph; its weights are beside it.
GRAPH = "network.xml"
# Number of image sizes for which kernels are kept, if a network takes images of any size.
_KEPT_SIZES = 4


class NotWrittenError(OSError):
    """A folder cannot be written to, or is full."""


class OpenVINOEngine:
    """A network compiled by OpenVINO; several images are computed at the same time.

    Parameters
    ----------
    network : openvino.Model
        From float32 pixels (1, height, width, channels) to one output per head, in order.
    dtype : dtype
        Of the input pixels: uint8 or float32.
    precision : {"float32", "bfloat16", "int8"}
        Of the arithmetic.
    n_threads : int
        Images computed at the same time, each on one core.
    batch_size : int or None
        Images per request; None for one.
    n_callers : int, default=None
        Number of simultaneous calls of `run`. Each of them waits for a batch before it takes the
        next, so that it uses one core. None means one call at a time, on all threads.
    """

    name = "openvino"

    @memory_errors("to load a network on OpenVINO")
    def __init__(self, network, dtype, precision, n_threads, batch_size, n_callers=None):
        openvino = import_openvino()

        self.batch_size = batch_size or 1
        # Twice as many requests as threads, so that no thread has to wait for its next image.
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
            # With pinning, two processes would share the same cores.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": hint,
        }
        if shape.is_dynamic:
            # OpenVINO keeps kernels for each layer and image size. Its own limit is so high that
            # memory would grow by gigabytes with images of many different sizes.
            kept = max(100, _KEPT_SIZES * len(network.get_ops()))
            options["CPU_RUNTIME_CACHE_CAPACITY"] = str(kept)
        self._compiled = openvino.Core().compile_model(steps.build(), "CPU", options)

    @memory_errors("to compute images on OpenVINO")
    def run(self, batches, deliver):
        """Compute all batches; return when every row was delivered."""
        # Requests are awaited in order, without callbacks: OpenVINO's threads would call back, and
        # need the interpreter lock while the thread that holds it may be waiting for them.
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
                # The request reads the pixels in place, so a reference is kept until it is done,
                # even after an interrupt.
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


def read_network(path):
    """Read a saved network; its weights are mapped from the file and shared among processes."""
    return import_openvino().Core().read_model(str(path))


def write_network(network, folder):
    """Save a network in full precision; raise `NotWrittenError` if that fails."""
    openvino = import_openvino()
    try:
        openvino.save_model(network, str(Path(folder) / GRAPH), compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO's message hides the cause: for a full disk it is "basic_ios::clear".
        free = shutil.disk_usage(folder).free
        raise NotWrittenError(
            f"OpenVINO could not write the network ({first_line(error)}; {free / 1e6:,.0f} MB free)"
        ) from error


def compile_in_float32(network):
    """Compile a graph as it is, in float32 also on processors that prefer bfloat16."""
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return import_openvino().Core().compile_model(network, "CPU", exact)


def first_line(error):
    """Return an OpenVINO error without its source location and its link to the help."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and "http" not in line]
    return f"{type(error).__name__}: {told[-1] if told else ''}"
