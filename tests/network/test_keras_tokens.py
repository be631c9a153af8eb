"""Tokens of Keras models: their patches are maps, on OpenVINO and on Keras itself."""

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer

PHOTOS = np.random.default_rng(5).integers(0, 256, (3, 32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def transformer():
    """A block of a vision transformer without class token, with Keras' own attention."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 48, 3))
    x = keras.layers.Rescaling(1 / 255, name="rescale")(inputs)
    x = keras.layers.Conv2D(20, 8, 8, name="patches")(x)
    x = keras.layers.Reshape((24, 20), name="tokens")(x)
    y = keras.layers.LayerNormalization(name="norm")(x)
    y = keras.layers.MultiHeadAttention(4, 5, name="attention")(y, y)
    x = keras.layers.Add(name="sum")([x, y])
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


@pytest.mark.parametrize("engine", ["auto", "keras"])
@pytest.mark.slow
def test_patches_are_maps(transformer, engine):
    import keras

    tokens = keras.Model(transformer.input, transformer.get_layer("sum").output)
    tokens = np.asarray(tokens.predict_on_batch(PHOTOS.astype(np.float32)))
    cnn = CNNFeatureTransformer(transformer, "sum", "avg", engine=engine)
    rows = cnn.fit_transform(PHOTOS)
    np.testing.assert_allclose(rows, tokens.mean(1), rtol=0, atol=5e-6 * np.abs(tokens).max())
    assert cnn.feature_shapes_ == [(4, 6, 20)]
    maps = cnn.set_params(pooling=None).fit_transform(PHOTOS)
    expected = tokens.reshape(3, 4, 6, 20)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=5e-6 * np.abs(tokens).max())


def test_there_is_no_class_token(transformer):
    with pytest.raises(ValueError, match="pooling='cls' takes the class token"):
        CNNFeatureTransformer(transformer, "sum", "cls").fit(PHOTOS)
