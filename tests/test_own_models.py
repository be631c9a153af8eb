"""Models of the user's own give what Keras itself gives, or say why not."""

import os
import re

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
layers = keras.layers

# Of the largest value: what float32 leaves when sums are taken in another order.
TOLERANCE = 5e-6


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def pictures(n, height, width, channels=3, seed=0):
    """Return smooth images and noise, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (n, 5, 5, channels))
    rows = np.linspace(0, 4, height).round().astype(int)
    columns = np.linspace(0, 4, width).round().astype(int)
    noise = rng.normal(0, 15, (n, height, width, channels))
    return np.clip(coarse[:, rows][:, :, columns] + noise, 0, 255).astype(np.uint8)


def assert_equal_to_rounding(features, expected):
    expected = np.asarray(expected, np.float32).reshape(len(expected), -1)
    assert features.shape == expected.shape
    assert features.dtype == np.float32
    largest = np.abs(expected).max()
    assert largest > 0
    assert np.abs(features - expected).max() <= TOLERANCE * largest


def predict_layers(model, names, X):
    """Compute the outputs of layers of the outermost model with Keras' own `predict`."""
    cut = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    return [cut.predict(X.astype(np.float32), verbose=0) for cut in [cut]][0]


def make_seed_cnn():
    """Two blocks of convolutions and a dense layer of 128, the network of many tutorials."""
    return keras.Sequential(
        [
            keras.Input((52, 56, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.AveragePooling2D((19, 19)),
            layers.Flatten(),
            layers.Dense(128, name="dense_128"),
            layers.Activation("relu"),
            layers.BatchNormalization(),
            layers.Dense(2, activation="softmax"),
        ]
    )


def make_branches():
    """A Functional model with branches, an addition and functions of keras.ops in between."""
    inputs = keras.Input((20, 24, 3), name="picture")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(inputs)
    a = layers.Conv2D(4, 3, padding="same", name="a")(x)
    b = layers.SeparableConv2D(4, 5, padding="same", name="b")(x)
    b = keras.ops.relu(b) * 2.0 + 0.5
    x = layers.Add(name="sum")([a, b])
    x = keras.ops.concatenate([x, keras.ops.tanh(a)], axis=-1)
    x = layers.DepthwiseConv2D(3, strides=2, name="c")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="classes")(x))


def make_backbone(shape=(24, 24, 3), name="vgg"):
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="block1_conv1")(inputs)
    x = layers.MaxPooling2D(name="block1_pool")(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="block2_conv1")(x)
    x = layers.MaxPooling2D(name="block2_pool")(x)
    return keras.Model(inputs, x, name=name)


def make_transfer():
    return keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            layers.Rescaling(1 / 255, name="rescaling"),
            make_backbone(),
            layers.Flatten(name="flatten"),
            layers.Dense(10, activation="relu", name="fc"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(2, activation="softmax", name="classes"),
        ]
    )


ENGINES = ["openvino", "keras"]


# --- kinds of models ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [make_seed_cnn, make_branches])
def test_every_layer_by_name_and_index_equals_predict(make, engine):
    model = make()
    n = len(model.layers)
    X = pictures(3, *model.input_shape[1:])
    expected = predict_layers(model, [layer.name for layer in model.layers], X)
    expected = np.hstack([np.reshape(maps, (len(X), -1)) for maps in expected])
    for wanted in ([layer.name for layer in model.layers], list(range(n)), list(range(-n, 0))):
        kept = [
            (layer, maps)
            for layer, maps in zip(wanted, model.layers, strict=True)
            if type(maps).__module__.startswith("keras.src.layers")
        ]
        cnn = CNNFeatureTransformer(model, [layer for layer, _ in kept], engine=engine).fit(X)
        columns = predict_layers(model, [layer.name for _, layer in kept], X)
        expected = np.hstack([np.reshape(maps, (len(X), -1)) for maps in columns])
        assert_equal_to_rounding(cnn.transform(X), expected)
        assert cnn.layer_names_ == [layer.name for _, layer in kept]
        assert cnn.feature_shapes_ == [maps.shape[1:] for maps in columns]


@pytest.mark.parametrize("engine", ENGINES)
def test_last_is_the_vector_in_front_of_the_classifier(engine):
    model = make_seed_cnn()
    X = pictures(3, 52, 56)
    for layer in ("last", -2):
        cnn = CNNFeatureTransformer(model, layer, engine=engine)
        (expected,) = [predict_layers(model, [model.layers[-2].name], X)]
        assert cnn.fit_transform(X).shape == (3, 128)
        assert_equal_to_rounding(cnn.transform(X), expected)
    dense = CNNFeatureTransformer(model, "dense_128", engine=engine).fit(X)
    assert_equal_to_rounding(dense.transform(X), predict_layers(model, ["dense_128"], X))
