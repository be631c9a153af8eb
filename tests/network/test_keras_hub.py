"""Backbones of KerasHub: converted as Keras' own networks are."""

import numpy as np
import pytest

pytest.importorskip("keras_hub", reason="needs pip install keras-hub")

import keras
import keras_hub

from sklearn_cnnfeat import CNNFeatureTransformer, layer_summary

PHOTOS = np.random.default_rng(5).integers(0, 256, (3, 64, 96, 3), np.uint8)
TOLERANCE = 5e-6


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="module")
def resnet():
    keras.utils.set_random_seed(0)
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(64, 96, 3),
    )


@pytest.fixture(scope="module")
def vit():
    keras.utils.set_random_seed(0)
    return keras_hub.models.ViTBackbone(
        image_shape=(64, 96, 3),
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=48,
    )


def test_a_residual_backbone(resnet, tmp_path):
    maps = np.asarray(resnet.predict_on_batch(PHOTOS.astype(np.float32)))
    cnn = CNNFeatureTransformer(resnet, "last", "avg", cache=tmp_path / "cache")
    assert_close(cnn.fit_transform(PHOTOS), maps.mean((1, 2)))
    assert cnn.engine_ == "openvino"
    middle = cnn.set_params(layer="stride8", pooling="flatten").fit_transform(PHOTOS)
    assert middle.shape == (3, 8 * 12 * 64)


def test_tokens_of_a_transformer(vit):
    """Its patches are cut out inside a layer of KerasHub's own."""
    tokens = np.asarray(vit.predict_on_batch(PHOTOS.astype(np.float32)))
    shapes = layer_summary(vit).set_index("path")["output_shape"]
    assert shapes["vit_encoder"] == (4, 6, 24)
    cnn = CNNFeatureTransformer(vit, "vit_encoder", "cls")
    assert_close(cnn.fit_transform(PHOTOS), tokens[:, 0])
    assert cnn.engine_ == "openvino"
    assert_close(cnn.set_params(pooling="avg").fit_transform(PHOTOS), tokens[:, 1:].mean(1))
    maps = cnn.set_params(pooling=None).fit_transform(PHOTOS)
    assert_close(maps, tokens[:, 1:].reshape(3, 4, 6, 24))
