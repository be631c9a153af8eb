"""Rounding of Winograd's convolutions, against the same network in float64."""

import numpy as np
import pytest
from network.graphs import Builder, compute, op

pytest.importorskip("ncnn")

from sklearn_cnnfeat._network.engines.ncnn import NcnnNetwork

# Filters of each layer, and whether a pooling halves the maps behind it.
NETWORKS = {
    "narrow": [(16, False), (32, True), (32, False), (48, True), (64, False)],
    "wide": [(64, False), (64, True), (128, False), (128, True), (256, False)],
    "even": [(64, False)] * 5,
}


def convolve(x, kernel):
    """Return a 3 x 3 convolution of maps (row, column, channel) with zeros around, in float64."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = 0
    for row in range(3):
        for column in range(3):
            window = padded[row : row + height, column : column + width]
            y = y + window @ kernel[:, :, row, column].T
    return y


@pytest.mark.parametrize("name", NETWORKS)
def test_errors_are_no_larger_than_those_of_direct_summation(name):
    builder = Builder((64, 64, 3))
    pixels = builder.random.uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    x = op.transpose(builder.pixels, [0, 3, 1, 2])
    exact, heads, references = pixels[0].astype(np.float64), [], []
    for n_filters, is_pooled in NETWORKS[name]:
        n_channels = exact.shape[-1]
        # He's scale keeps numbers at one size through all layers.
        kernel = builder.numbers(n_filters, n_channels, 3, 3) * np.sqrt(2 / (9 * n_channels))
        kernel = kernel.astype(np.float32)
        x = op.relu(op.convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
        exact = np.maximum(convolve(exact, kernel.astype(np.float64)), 0)
        if is_pooled:
            x = op.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
            height, width, depth = exact.shape
            exact = exact.reshape(height // 2, 2, width // 2, 2, depth).max(axis=(1, 3))
        heads.append(op.transpose(x, [0, 2, 3, 1]))
        references.append(exact)
    model = builder.model(*heads)
    ours = NcnnNetwork(model).compute(pixels[0])
    direct = [output[0] for output in compute(model, pixels)]
    for reference, head, other in zip(references, ours, direct, strict=True):
        error, error_of_direct = (
            np.sqrt(np.mean((output - reference) ** 2)) / np.abs(reference).max()
            for output in (head, other)
        )
        assert error <= 1.2 * error_of_direct, (error, error_of_direct)
