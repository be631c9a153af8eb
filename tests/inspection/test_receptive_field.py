"""Receptive fields against what networks do: change a row of pixels, see which positions change."""

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._inspection.receptive_field import receptive_field
from sklearn_cnnfeat._network.networks import open_network
from sklearn_cnnfeat._transformer import extractor_of

SIDE = 48


def field_of(cnn):
    extractor = extractor_of(cnn)
    network = open_network(extractor.spec, extractor.engine, extractor.model)
    return receptive_field(network.read().output(0))


def valid(keras, x):
    x = keras.layers.Conv2D(6, 5, strides=2)(x)
    x = keras.layers.MaxPooling2D(3, strides=2)(x)
    return keras.layers.Conv2D(6, 3)(x)


def same(keras, x):
    x = keras.layers.ZeroPadding2D(((1, 0), (0, 1)))(x)
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.AveragePooling2D(2)(x)
    return keras.layers.Conv2D(6, (3, 5), padding="same", dilation_rate=2)(x)


def branches(keras, x):
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same")(x)
    wide = keras.layers.Conv2D(6, 5, padding="same")(x)
    narrow = keras.layers.Conv2D(6, 1)(x)
    return keras.layers.Concatenate()([wide, narrow, keras.layers.Add()([x, wide])])


@pytest.mark.parametrize("build", [valid, same, branches])
def test_fields_are_those_of_the_network(build):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(inputs, build(keras, inputs))
    cnn = CNNFeatureTransformer(model, "last", "flatten")
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    changed = np.repeat(image[None], 2 * SIDE + 1, axis=0)
    for k in range(SIDE):
        changed[k, k] = 255 - changed[k, k]
        changed[SIDE + k, :, k] = 255 - changed[SIDE + k, :, k]
    rows = cnn.fit_transform(changed)
    maps = rows.reshape(-1, *cnn.feature_shapes_[0])
    differs = (np.abs(maps[:-1] - maps[-1]) > 1e-6 * np.abs(maps).max()).any(axis=-1)
    field = field_of(cnn)
    middle = [length // 2 for length in maps.shape[1:3]]
    for place in (middle, [0, 0], [length - 1 for length in maps.shape[1:3]]):
        seen = [
            np.flatnonzero(differs[start : start + SIDE, place[0], place[1]]) for start in (0, SIDE)
        ]
        top, left, bottom, right = np.clip(field.box(*place), 0, SIDE)
        assert (top, bottom) == (seen[0][0], seen[0][-1] + 1)
        assert (left, right) == (seen[1][0], seen[1][-1] + 1)


@pytest.mark.slow
def test_gates_are_left_out_and_attention_is_not():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    gate = layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    gated = layers.Multiply(name="gated")([x, gate])
    tokens = layers.Reshape((900, 4))(gated)
    mixed = layers.Attention()([tokens, tokens])
    model = keras.Model(inputs, layers.Reshape((30, 30, 4), name="mixed")(mixed))
    image = np.zeros((1, 32, 32, 3), np.uint8)
    cnn = CNNFeatureTransformer(model, "gated").fit(image)
    assert field_of(cnn).size == (3, 3)
    cnn = CNNFeatureTransformer(model, "mixed").fit(image)
    assert field_of(cnn) is None
