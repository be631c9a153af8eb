"""Run a network on ncnn, which computes 3 x 3 convolutions by Winograd's algorithm."""

import ctypes
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sklearn_cnnfeat._memory import memory_errors, return_free_memory
from sklearn_cnnfeat._network.engines.ncnn_translation import translate

# What comes before weights in float32.
_FLOAT32 = np.zeros(1, np.uint32)
# What ncnn returns where it gets no memory.
_FAILED_ALLOCATION = -100
_NO_MEMORY = "There is not enough memory to compute an image on ncnn."
# Bytes that must be free for ncnn's library: where the loader gets none for its threads, it ends
# the process.
_N_BYTES_OF_LIBRARY = 2**26

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


class NcnnNetwork:
    """A network in the memory of ncnn, which any number of threads may use.

    Parameters
    ----------
    model : openvino.Model
        From float32 pixels (n, height, width, channels) to one output per head, in order.

    Raises
    ------
    TranslationError
        Where ncnn cannot compute the network.
    MemoryError
        Where its weights do not fit in memory.
    """

    @memory_errors("to load a network on ncnn")
    def __init__(self, model):
        self._ncnn = import_ncnn()
        translation = translate(model)
        self._input = translation.input
        self._heads = translation.heads
        self._net = _uninterrupted(_load, self._ncnn, translation)
        # The kernels that ncnn has transformed lie between the transformed ones: 36 MB for VGG16.
        return_free_memory()

    def compute(self, image):
        """Return one array per head for an image (height, width, channels)."""
        ncnn = self._ncnn
        if image.dtype != np.uint8 and not np.isfinite(image).all():
            # Winograd's convolutions would spread them over the pixels around.
            raise ValueError(
                "The preprocessing gives pixels that are NaN or infinite, which ncnn does not "
                "compute. Use engine='openvino', or a preprocessing that gives finite numbers."
            )
        planes = image.transpose(2, 0, 1)
        channels, height, width = planes.shape
        # The maps must be ncnn's own: of an array it would keep the address alone.
        maps = ncnn.Mat(width, height, channels)
        if maps.empty():
            raise MemoryError(_NO_MEMORY)
        np.asarray(maps)[...] = planes
        extractor = self._net.create_extractor()
        extractor.input(self._input, maps)
        rows = []
        for head in self._heads:
            found = ncnn.Mat()
            code = extractor.extract(head.blob, found)
            if code == _FAILED_ALLOCATION:
                raise MemoryError(_NO_MEMORY)
            if code != 0:
                raise RuntimeError(f"ncnn failed to compute an image (code {code}).")
            rows.append(head.arranged(np.asarray(found)))
        return rows


class NcnnEngine:
    """A network on ncnn, several images at the same time.

    Parameters
    ----------
    network : NcnnNetwork
        What to compute.
    n_threads : int
        Images computed at the same time, each on one core.
    batch_size : int, default=None
        Images per batch; None for one. It changes neither the rows nor the speed.
    n_callers : int, default=None
        Calls of `run` at the same time, each of which computes in its own thread. None is for one
        call at a time, on all threads.
    """

    name = "ncnn"

    def __init__(self, network, n_threads, batch_size=None, n_callers=None):
        self.batch_size = batch_size or 1
        self._network = network
        self._n_threads = n_threads if n_callers is None else 1

    @memory_errors("to compute images on ncnn")
    def run(self, batches, deliver):
        """Compute all batches; return when every row was delivered."""
        compute = self._network.compute
        images = (pair for batch in batches for pair in zip(*batch, strict=True))
        if self._n_threads == 1:
            for token, image in images:
                deliver(token, compute(image))
            return
        in_flight = deque()

        def finish():
            token, future = in_flight.popleft()
            deliver(token, future.result())

        with ThreadPoolExecutor(self._n_threads, "ncnn") as threads:
            try:
                for token, image in images:
                    # Twice as many images as threads: the next is there when one is done.
                    if len(in_flight) == 2 * self._n_threads:
                        finish()
                    in_flight.append((token, threads.submit(compute, image)))
                while in_flight:
                    finish()
            finally:
                for _, future in in_flight:
                    future.cancel()


def _load(ncnn, translation):
    """Return a network of ncnn, in float32 and for one thread per image."""
    # ncnn writes to the memory that it asks for without looking whether it got any.
    _check_free(translation.n_bytes)
    net = ncnn.Net()
    options = net.opt
    options.num_threads = 1
    # Kernels of which there is a transformed copy are freed.
    options.lightmode = True
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_packed = options.use_bf16_storage = False
    # Winograd's F(6 x 6, 3 x 3) rounds off several times as much as F(4 x 4, 3 x 3).
    options.use_winograd63_convolution = False
    if net.load_param_mem(translation.text) != 0:
        raise RuntimeError("ncnn does not read the layers of the translated network.")
    if net.load_model(_make_reader(ncnn, translation.weights)) != 0:
        raise RuntimeError("ncnn does not read the weights of the translated network.")
    return net


def _check_free(n_bytes):
    """Raise MemoryError where the system does not give so many bytes."""
    try:
        np.empty(n_bytes, np.uint8)
    except MemoryError as error:
        raise MemoryError(f"ncnn needs {n_bytes / 1e6:,.0f} MB more memory.") from error


def import_ncnn():
    """Import ncnn; raise ImportError where it is missing or broken."""

    def load():
        if "ncnn" not in sys.modules:
            _check_free(_N_BYTES_OF_LIBRARY)
        import ncnn

        return ncnn

    return _uninterrupted(load)


def _uninterrupted(function, *arguments):
    """Call a function in a thread of its own, because interrupts arrive in the main thread.

    An interrupt while ncnn calls back for weights would end the process, and one while it is
    imported would make it look broken.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def _make_reader(ncnn, weights):
    """Return what ncnn reads weights from, where they are in memory."""

    class Reader(ncnn.DataReader):
        def __init__(self, parts):
            super().__init__()
            self._parts = parts

        def read(self, target, size):
            part = next(self._parts, None)
            if part is None or part.nbytes != size:
                return 0
            ctypes.memmove(_pointer_of(target, None), part.ctypes.data, size)
            return size

    return Reader(_parts(weights))


def _parts(weights):
    for array, has_type in weights:
        if has_type:
            yield _FLOAT32
        yield np.ascontiguousarray(array, np.float32)
