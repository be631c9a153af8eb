"""The rule that chooses ncnn: a share of multiplications, counted by hand here."""

import numpy as np
import pytest
from network.graphs import Builder, op, plain_network

from sklearn_cnnfeat._network.engines.winograd import prefers_ncnn, winograd_share


def test_share_of_multiplications():
    builder = Builder((28, 28, 128))
    x = builder.convolution(builder.pixels, 160)  # 3 x 3, stride 1
    y = builder.convolution(x, 16, 1)
    z = op.reduce_mean(builder.convolution(y, 16, strides=2), np.array([1, 2]), False)
    of_winograd = 784 * 9 * 128 * 160
    others = 784 * 160 * 16 + 196 * 9 * 16 * 16 + 16 * 10
    share = winograd_share(builder.model(builder.dense(z, 10)))
    assert share == pytest.approx(of_winograd / (of_winograd + others))


@pytest.mark.parametrize(
    "options",
    [{"size": 5}, {"size": 1}, {"strides": 2}, {"dilations": 2}, {"groups": 16}],
    ids=str,
)
def test_other_convolutions_do_not_count(options):
    builder = Builder((28, 28, 128))
    assert winograd_share(builder.model(builder.convolution(builder.pixels, 128, **options))) == 0


@pytest.mark.parametrize("channels, filters", [(127, 256), (256, 127)])
def test_few_channels_do_not_count(channels, filters):
    builder = Builder((28, 28, channels))
    assert winograd_share(builder.model(builder.convolution(builder.pixels, filters))) == 0


@pytest.mark.parametrize("shape", [(27, 28), (28, 27), (14, 14)])
def test_small_maps_do_not_count(shape):
    builder = Builder((*shape, 128))
    assert winograd_share(builder.model(builder.convolution(builder.pixels, 128))) == 0


def test_it_is_a_property_of_the_graph():
    assert prefers_ncnn(plain_network(filters=(64, 128, 128)))
    assert not prefers_ncnn(plain_network(filters=(64, 64, 64)))
    builder = Builder((32, 32, 3))
    x = builder.convolution(builder.pixels, 32, strides=2)
    x = builder.convolution(builder.convolution(x, 32, groups=32), 64, 1)
    assert not prefers_ncnn(builder.model(x))
    assert not prefers_ncnn(builder.model(builder.pixels))


def test_images_of_any_size_stay_on_openvino():
    builder = Builder((-1, -1, 128))
    model = builder.model(builder.convolution(builder.pixels, 128))
    assert winograd_share(model) is None
    assert not prefers_ncnn(model)
