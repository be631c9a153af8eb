"""Small OpenVINO graphs, channels last as Keras writes them, for tests of engines."""

import numpy as np

from sklearn_cnnfeat._network.runtime import import_openvino

openvino = import_openvino()

import openvino.opset15 as op  # noqa: E402

EPSILON = float(np.finfo(np.float32).eps)


class Builder:
    """Operations with random weights, as a channels-last front end writes them."""

    def __init__(self, shape=(9, 11, 3), seed=0):
        self.random = np.random.default_rng(seed)
        self.pixels = op.parameter([-1, *shape], np.float32, name="pixels")

    def numbers(self, *shape):
        """Return normal numbers."""
        return self.random.standard_normal(shape).astype(np.float32)

    def convolution(self, x, filters, size=3, padding="same_upper", bias=True, **options):
        """Return a convolution between two transpositions."""
        strides = [options.pop("strides", 1)] * 2
        dilations = [options.pop("dilations", 1)] * 2
        groups = options.pop("groups", None)
        channels = x.get_output_partial_shape(0)[3].get_length()
        first = op.transpose(x, [0, 3, 1, 2])
        if groups is None:
            kernel = self.numbers(filters, channels, size, size)
            kernel /= np.sqrt(channels * size * size)
            make = op.convolution
        else:
            kernel = self.numbers(groups, filters // groups, channels // groups, size, size)
            kernel /= np.sqrt(channels // groups * size * size)
            make = op.group_convolution
        y = make(first, kernel, strides, [0, 0], [0, 0], dilations, auto_pad=padding)
        if bias:
            y = op.add(y, self.numbers(1, filters, 1, 1))
        return op.transpose(y, [0, 2, 3, 1])

    def normalize(self, x):
        """Return a batch normalization, as a product and a sum."""
        channels = x.get_output_partial_shape(0)[3].get_length()
        scale = np.exp(self.numbers(channels) / 4)
        return op.add(op.multiply(x, scale), self.numbers(channels))

    def pool(self, x, kind, size=2, strides=2, padding="valid", **options):
        """Return a pooling between two transpositions."""
        first = op.transpose(x, [0, 3, 1, 2])
        shape = [strides, strides], [0, 0], [0, 0], [size, size]
        if kind == "max":
            steps = [strides, strides], [1, 1], [0, 0], [0, 0], [size, size]
            y = op.max_pool(first, *steps, auto_pad=padding).output(0)
        else:
            y = op.avg_pool(first, *shape, not options.get("counts", False), auto_pad=padding)
        return op.transpose(y, [0, 2, 3, 1])

    def dense(self, x, units):
        """Return a dense layer with a bias."""
        n_inputs = x.get_output_partial_shape(0)[-1].get_length()
        matrix = self.numbers(n_inputs, units) / np.sqrt(n_inputs).astype(np.float32)
        return op.add(op.matmul(x, matrix, False, False), self.numbers(units))

    def model(self, *outputs):
        """Return the graph from the pixels to the outputs."""
        return openvino.Model([*outputs], [self.pixels], "test")


def plain_network(shape=(32, 32, 3), filters=(16, 32, 32), seed=0):
    """Return a graph like VGG's: 3 x 3 convolutions, ReLU, and an average over all positions."""
    builder = Builder(shape, seed)
    x = op.multiply(builder.pixels, np.float32(1 / 255))
    for n in filters:
        x = op.relu(builder.convolution(x, n))
    return builder.model(op.reduce_mean(x, np.array([1, 2]), False))


def compute(model, pixels):
    """Return what OpenVINO computes in float32 on one core, one array per output."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    found = compiled(pixels)
    return [np.array(found[i]) for i in range(len(compiled.outputs))]
