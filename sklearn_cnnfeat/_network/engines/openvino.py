"""The engine for nearly everything: OpenVINO on a CPU."""

import shutil
from collections import deque
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._memory import memory_errors
from sklearn_cnnfeat._network.runtime import import_openvino

# The file of a graph; its weights are beside it.
GRAPH = "network.xml"
# Sizes of images that kernels are kept for, where a network takes images of any size.
_KEPT_SIZES = 4


class NotWrittenError(OSError):
    """A folder cannot be written to, or is full."""


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

    @memory_errors("to load a network on OpenVINO")
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

    @memory_errors("to compute images on OpenVINO")
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


def read_network(path):
    """Read a saved network; its weights are mapped from the file and shared among processes."""
    return import_openvino().Core().read_model(str(path))


def write_network(network, folder):
    """Save a network in full precision; raise `NotWrittenError` where the folder has no room."""
    openvino = import_openvino()
    try:
        openvino.save_model(network, str(Path(folder) / GRAPH), compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO does not tell the cause: a full disk is "basic_ios::clear".
        free = shutil.disk_usage(folder).free
        raise NotWrittenError(
            f"OpenVINO could not write the network ({first_line(error)}; {free / 1e6:,.0f} MB free)"
        ) from error


def first_line(error):
    """Return an error of OpenVINO without the place in its source and the link to its help."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and "http" not in line]
    return f"{type(error).__name__}: {told[-1] if told else ''}"
