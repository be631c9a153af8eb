"""PyTorch modules on a GPU: large batches, half precision, copies beside the arithmetic.

An engine has `batch_size` and `run(batches, deliver)`, as that of OpenVINO.
"""

import copy
from collections import deque

import numpy as np

from sklearn_cnnfeat._network.pooling import pool
from sklearn_cnnfeat._network.spec import Normalization
from sklearn_cnnfeat._network.torch_calls import find_layers_called
from sklearn_cnnfeat._network.torch_models import import_torch

# Images for one call on a GPU, where no other number is asked for, and on a CPU.
_GPU_BATCH, _CPU_BATCH = 128, 8
# Batches on their way: one is copied in, one computed, one copied out.
_IN_FLIGHT = 3

_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Shift and scale of pixels on 0-255, for the modes of Keras' `preprocess_input`.
_MODES = {"rescale": (0.0, 1 / 255), "tf": (127.5, 1 / 127.5), None: (0.0, 1.0)}


def find_device():
    """Return the device that PyTorch computes on: a GPU where it sees one."""
    torch = import_torch()
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def describe_device():
    """Return the name of the device, with that of the GPU."""
    device = find_device()
    if device.type != "cuda":
        return device.type
    return f"cuda, {import_torch().cuda.get_device_name(device)}"


class TorchEngine:
    """A PyTorch module, some layers of it, on one device.

    Parameters
    ----------
    module : torch.nn.Module
        The network, in float32; a copy of it is moved to the device.
    heads : sequence of Head
        Layers and poolings.
    orders : dict of str to tuple
        For each layer, the order that brings the axes of its output to the logical one.
    preprocessing : str, Normalization or None
        What happens to pixels on 0-255.
    precision : {"float32", "float16", "bfloat16"}
        Of the arithmetic.
    batch_size : int or None
        Images for one call; None for as many as the kind of device gains from. It is halved
        where memory does not suffice.
    device : str, default=None
        Of PyTorch; None for a GPU where there is one.
    """

    name = "torch"

    def __init__(self, module, heads, orders, preprocessing, precision, batch_size, device=None):
        torch = import_torch()
        self.device = find_device() if device is None else torch.device(device)
        self._heads, self._orders = heads, orders
        self._dtype = getattr(torch, precision)
        self._preprocessing = preprocessing
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._module.to(self.device, self._dtype)
        if self.device.type == "cuda":
            # Convolutions in half precision are faster so, and the pixels come that way.
            self._module.to(memory_format=torch.channels_last)
        default = _CPU_BATCH if self.device.type == "cpu" else _GPU_BATCH
        self.batch_size = batch_size or default

    def run(self, batches, deliver):
        """Compute all batches; return when every row was delivered."""
        in_flight = deque()
        for tokens, pixels in batches:
            in_flight.append((tokens, self._start(pixels)))
            if len(in_flight) >= _IN_FLIGHT:
                self._finish(*in_flight.popleft(), deliver)
        while in_flight:
            self._finish(*in_flight.popleft(), deliver)

    def _start(self, pixels):
        """Begin with a batch; return what `_finish` waits for."""
        torch = import_torch()
        with torch.inference_mode():
            outputs = self._compute_in_parts(self._upload(pixels))
            if self.device.type != "cuda":
                return outputs, None
            # Into pinned memory, beside the arithmetic of the next batch.
            hosts = [
                torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for value in outputs
            ]
            for host, value in zip(hosts, outputs, strict=True):
                host.copy_(value, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            return hosts, done

    def _finish(self, tokens, started, deliver):
        outputs, done = started
        if done is not None:
            done.synchronize()
        rows = [value.to("cpu").numpy() for value in outputs]
        for i, token in enumerate(tokens):
            deliver(token, [value[i] for value in rows])

    def _upload(self, pixels):
        """Return pixels on the device: uint8 takes a quarter of the bus."""
        torch = import_torch()
        values = torch.from_numpy(np.ascontiguousarray(pixels))
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def _compute_in_parts(self, pixels):
        """Return the rows of a batch, computed in smaller parts where memory does not suffice."""
        torch = import_torch()
        while True:
            try:
                parts = [self._compute(part) for part in pixels.split(self.batch_size)]
                return [torch.cat(values) for values in zip(*parts, strict=True)]
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()

    def _compute(self, pixels):
        images = self._prepare(pixels).permute(0, 3, 1, 2)
        wanted = [head.layer for head in self._heads]
        values = find_layers_called(self._module, images.to(self._dtype), wanted)
        return [self._row(values[head.layer], head) for head in self._heads]

    def _prepare(self, pixels):
        torch = import_torch()
        mode = _IMAGENET if self._preprocessing == "torch" else self._preprocessing
        values = pixels.to(torch.float32)
        if mode == "caffe":
            mean = torch.tensor([103.939, 116.779, 123.68], device=self.device)
            return values.flip(-1) - mean
        if isinstance(mode, Normalization):
            mean, std = (torch.tensor(numbers, device=self.device) for numbers in mode)
            return (values / 255 - mean) / std
        shift, scale = _MODES[mode]
        return (values - shift) * scale

    def _row(self, value, head):
        value = value.float().permute(0, *(axis + 1 for axis in self._orders[head.layer]))
        if head.grid is not None:
            start, stop = head.grid.tokens_of(head.pooling)
            value = value[:, start:stop]
            if head.pooling == "cls":
                return value[:, 0]
            value = value.reshape(len(value), *head.map_shape)
        return pool(value, head.pooling, head.map_shape, _Operations).contiguous()


class _Operations:
    """What `pooling.pool` needs, on tensors (n, height, width, channels)."""

    @staticmethod
    def mean(maps):
        return maps.mean((1, 2))

    @staticmethod
    def max(maps):
        return maps.amax((1, 2))

    @staticmethod
    def power(maps, exponent):
        return maps.pow(exponent)

    @staticmethod
    def maximum(maps, floor):
        return maps.clamp(min=floor)

    @staticmethod
    def flatten(maps, length):
        return maps.reshape(len(maps), length)

    @staticmethod
    def crop(maps, top, bottom, left, right):
        return maps[:, top:bottom, left:right]

    @staticmethod
    def concatenate(vectors):
        return import_torch().cat(vectors, 1)
