"""Names of layers that travel from network to network."""

import pytest

from sklearn_cnnfeat._network.layers import Layer, find_at_stride
from sklearn_cnnfeat._network.tokens import TokenGrid
from sklearn_cnnfeat.exceptions import LayerNotFoundError


def layers_of(*entries):
    return [
        Layer(path=path, type=kind, index=i, shape=shape)
        for i, (path, kind, shape) in enumerate(entries)
    ]


# Sizes of InceptionV3's stages, which has no padding in its first layers.
INCEPTION = layers_of(
    ("conv2d", "Conv2D", (149, 149, 32)),
    ("max_pooling2d", "MaxPooling2D", (73, 73, 64)),
    ("mixed2", "Concatenate", (35, 35, 288)),
    ("mixed3", "Concatenate", (17, 17, 768)),
    ("mixed7", "Concatenate", (17, 17, 768)),
    ("mixed10", "Concatenate", (8, 8, 2048)),
    ("pool", "GlobalAveragePooling2D", (1, 1, 2048)),
    ("predictions", "Dense", (1000,)),
)


@pytest.mark.parametrize(
    ("stride", "path"), [(4, "max_pooling2d"), (8, "mixed2"), (16, "mixed7"), (32, "mixed10")]
)
def test_last_layer_of_a_reduction(stride, path):
    assert find_at_stride(stride, INCEPTION, (299, 299, 3), "it").path == path


def test_padding_and_single_positions_are_passed_over():
    layers = layers_of(
        ("conv", "Conv2D", (28, 28, 8)),
        ("pad", "ZeroPadding2D", (29, 29, 8)),
        ("squeeze", "Conv2D", (1, 1, 8)),
        ("expand", "Conv2D", (14, 14, 8)),
    )
    assert find_at_stride(8, layers, (224, 224, 3), "it").path == "conv"
    # 1 x 1 would be stride 32 of an image of 32 x 32.
    with pytest.raises(LayerNotFoundError, match="its reductions are 1, 2"):
        find_at_stride(32, layers, (32, 32, 3), "it")


def test_images_that_are_not_square():
    layers = layers_of(("conv", "Conv2D", (10, 20, 8)), ("odd", "Conv2D", (10, 5, 8)))
    assert find_at_stride(16, layers, (160, 320, 3), "it").path == "conv"


def test_tokens_count_by_their_grid():
    block = Layer("block", "Block", 0, (197, 192), grid=TokenGrid(1, 14, 14))
    assert find_at_stride(16, [block], (224, 224, 3), "it").path == "block"


def test_images_of_any_size():
    with pytest.raises(LayerNotFoundError, match="Say input_size"):
        find_at_stride(8, INCEPTION, (None, None, 3), "it")
