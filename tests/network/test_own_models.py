"""Models of the user's own give what Keras itself gives, or say why not."""

import json
import os
import re
import zipfile

import h5py
import numpy as np
import pytest
from requirements import needs_tensorflow

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat.exceptions import UntrustedModelError

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
    outputs = cut.predict(X.astype(np.float32), verbose=0)
    return outputs if len(names) > 1 else [outputs]


def side_by_side(outputs):
    return np.hstack([np.reshape(maps, (len(maps), -1)) for maps in outputs])


def assert_layers_equal(model, wanted, X, outputs, **parameters):
    """Compare the columns of each layer with its output, for values differ in size among them."""
    cnn = CNNFeatureTransformer(model, wanted, **parameters).fit(X)
    features = cnn.transform(X)
    assert cnn.feature_shapes_ == [maps.shape[1:] for maps in outputs]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in cnn.feature_shapes_])
    assert features.shape == (len(X), ends[-1])
    for columns, maps in zip(np.split(features, ends[:-1], axis=1), outputs, strict=True):
        assert_equal_to_rounding(columns, maps)
    return cnn


def assert_layers_equal_predict(model, names, X, **parameters):
    assert_layers_equal(model, names, X, predict_layers(model, names, X), **parameters)


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


def make_many_kinds():
    """Layers that OpenVINO computes in place, as views, or in another order of dimensions."""
    inputs = keras.Input((17, 23, 3))
    x = layers.Rescaling(1 / 255, name="scale")(inputs)
    x = layers.ZeroPadding2D(2, name="padded")(x)
    x = layers.Conv2D(8, 3, name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(x)
    x = layers.Cropping2D(((0, 1), (3, 0)), name="cropped")(x)
    x = layers.SpatialDropout2D(0.5, name="dropout")(x)
    flat = layers.Flatten(name="flat")(x)
    y = layers.Conv2DTranspose(4, 3, strides=2, activation="gelu", name="transposed")(x)
    y = layers.GroupNormalization(2, name="gn")(y)
    y = layers.UpSampling2D(2, interpolation="bilinear", name="upsampled")(y)
    y = layers.Permute((2, 1, 3), name="permuted")(y)
    y = layers.AveragePooling2D(3, padding="same", name="pooled")(y)
    y = layers.LayerNormalization(name="ln")(y)
    z = layers.GlobalMaxPooling2D(keepdims=True, name="squeezed")(y)
    z = layers.Conv2D(4, 1, activation="sigmoid", name="excited")(z)
    y = layers.Multiply(name="gated")([y, z])
    y = layers.Reshape((-1, 2, 4), name="reshaped")(y)
    y = layers.Concatenate(axis=2, name="joined")([y, y * 2])
    y = layers.GlobalAveragePooling2D(name="averaged")(y)
    y = layers.Concatenate(name="vectors")([y, layers.Dense(5, name="dense")(flat)])
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(y))


ENGINES = ["openvino", "keras"]


# --- kinds of models ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "make",
    [
        make_seed_cnn,
        pytest.param(make_branches, marks=needs_tensorflow),
        make_many_kinds,
    ],
)
@pytest.mark.sampled(3)
def test_all_layers_at_once_equal_predict(make, engine):
    model = make()
    randomize_statistics(model)
    X = pictures(3, *model.input_shape[1:])
    # The functions of keras.ops stand among the layers, but are none.
    position = {
        layer.name: i for i, layer in enumerate(model.layers) if isinstance(layer, layers.Layer)
    }
    outputs = predict_layers(model, list(position), X)
    cnn = assert_layers_equal(model, list(position), X, outputs, engine=engine)
    assert cnn.layer_names_ == list(position)
    # Every other one counted from the end.
    indices = [i - len(model.layers) * (i % 2) for i in position.values()]
    by_index = CNNFeatureTransformer(model, indices, engine=engine).fit(X)
    assert by_index.layer_names_ == list(position)
    assert by_index.feature_shapes_ == cnn.feature_shapes_


@pytest.mark.parametrize("engine", ENGINES)
def test_last_is_the_vector_in_front_of_the_classifier(engine):
    model = make_seed_cnn()
    randomize_statistics(model)
    X = pictures(3, 52, 56)
    last, dense = predict_layers(model, [model.layers[-2].name, "dense_128"], X)
    assert last.shape == (3, 128)
    assert_layers_equal(model, "last", X, [last], engine=engine)
    assert_layers_equal(model, ["dense_128", "last"], X, [dense, last], engine=engine)


def randomize_statistics(model):
    """Give batch normalizations something to do."""
    rng = np.random.default_rng(3)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])


@needs_tensorflow
@pytest.mark.parametrize("pooling", ["flatten", "avg", None])
def test_the_input_itself(pooling):
    model = make_branches()
    X = pictures(2, 20, 24)
    expected = X.astype(np.float32)
    if pooling == "flatten":
        expected = expected.reshape(2, -1)
    elif pooling == "avg":
        expected = expected.mean(axis=(1, 2))
    for engine in ENGINES:
        features = CNNFeatureTransformer(model, 0, pooling, engine=engine).fit_transform(X)
        np.testing.assert_allclose(features, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make_end", "expected"),
    [
        # Several heads: the one that comes last, and what both stand on.
        (lambda x: [layers.Dense(2)(x), layers.Dense(3)(x)], "flat"),
        (lambda x: layers.Softmax()(layers.Dense(2)(layers.Dropout(0.5)(x))), "flat"),
        (lambda x: layers.Dense(2)(layers.BatchNormalization(name="bn")(x)), "bn"),
        # Computed between the two, on another branch.
        (
            lambda x: layers.Dense(2, name="z")(
                layers.Concatenate(name="both")([layers.Dense(3, name="side")(x), x])
            ),
            "both",
        ),
        (lambda x: layers.Activation("tanh", name="end")(x), "end"),
        (
            lambda x: keras.Sequential(
                [layers.Dense(4, name="fc"), layers.Dense(2)], name="classifier"
            )(x),
            "classifier/fc",
        ),
    ],
)
def test_last(make_end, expected):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 3, name="conv")(inputs)
    model = keras.Model(inputs, make_end(layers.Flatten(name="flat")(x)))
    assert CNNFeatureTransformer(model, "last").fit(pictures(2, 8, 8)).layer_names_ == [expected]


def test_no_layer_is_last():
    inputs = keras.Input((8, 8, 3))
    x = keras.ops.mean(layers.Conv2D(2, 3, name="conv")(inputs), axis=(1, 2))
    model = keras.Model(inputs, layers.Dense(2, name="classes")(x))
    with pytest.raises(ValueError, match=r"classifier 'classes' takes a value that no layer gives"):
        CNNFeatureTransformer(model, "last").fit(pictures(2, 8, 8))
    tokens = keras.Sequential([keras.Input((8, 8, 3)), layers.Reshape((64, 3), name="tokens")])
    with pytest.raises(ValueError, match=r"Layer 'last' of .* shape \(n, 64, 3\)"):
        CNNFeatureTransformer(tokens, "last").fit(pictures(2, 8, 8))


@pytest.mark.parametrize("layer", ["vgg/block2_conv1", "block2_conv1"])
def test_path_and_unique_bare_name_of_a_nested_layer(layer):
    model = make_transfer()
    X = pictures(3, 24, 24)
    vgg = model.get_layer("vgg")
    inner = keras.Model(vgg.inputs, vgg.get_layer("block2_conv1").output)
    expected = inner.predict(X.astype(np.float32) / 255, verbose=0)
    cnn = CNNFeatureTransformer(model, layer).fit(X)
    assert cnn.layer_names_ == ["vgg/block2_conv1"]
    assert cnn.get_feature_names_out()[0] == "vgg/block2_conv1_y0_x0_c0"
    assert_equal_to_rounding(cnn.transform(X), expected)


def test_layers_around_a_nested_model():
    model = make_transfer()
    X = pictures(3, 24, 24)
    scaled = X.astype(np.float32) / 255
    vgg = model.get_layer("vgg").predict(scaled, verbose=0)
    fc = model.get_layer("fc")(vgg.reshape(3, -1)).numpy()
    names = ["rescaling", "vgg", "flatten", "fc"]
    cnn = CNNFeatureTransformer(model, names).fit(X)
    assert_equal_to_rounding(cnn.transform(X), side_by_side([scaled, vgg, vgg, fc]))
    for wanted, name, expected in (
        ("last", "fc", fc),
        (1, "vgg", vgg),
        (-5, "vgg", vgg),
        (-1, "classes", model.predict(X.astype(np.float32), verbose=0)),
    ):
        cnn = CNNFeatureTransformer(model, wanted).fit(X)
        assert cnn.layer_names_ == [name]
        assert_equal_to_rounding(cnn.transform(X), expected)


def test_three_levels_deep():
    middle = keras.Sequential(
        [keras.Input((24, 24, 3)), make_backbone(), layers.Conv2D(5, 3, name="conv")], name="middle"
    )
    inputs = keras.Input((24, 24, 3))
    x = middle(layers.Rescaling(1 / 255)(inputs), training=False)
    model = keras.Model(inputs, layers.Dense(2, name="classes")(layers.Flatten()(x)))
    X = pictures(2, 24, 24)
    scaled = X.astype(np.float32) / 255
    vgg = middle.get_layer("vgg")
    deepest = keras.Model(vgg.inputs, vgg.get_layer("block1_conv1").output)

    names = ["middle/vgg/block1_conv1", "middle/vgg", "middle/conv", "middle"]
    expected = [
        deepest.predict(scaled, verbose=0),
        vgg.predict(scaled, verbose=0),
        middle.predict(scaled, verbose=0),
        middle.predict(scaled, verbose=0),
    ]
    cnn = CNNFeatureTransformer(model, names).fit(X)
    assert cnn.layer_names_ == names
    assert_equal_to_rounding(cnn.transform(X), side_by_side(expected))
    for bare, name in (
        ("block1_conv1", names[0]),
        ("vgg/block1_conv1", names[0]),
        ("vgg", names[1]),
    ):
        assert CNNFeatureTransformer(model, bare).fit(X).layer_names_ == [name]


def test_a_bare_name_of_two_layers_is_refused():
    inputs = keras.Input((24, 24, 3))
    x = layers.Add()([make_backbone(name="left")(inputs), make_backbone(name="right")(inputs)])
    model = keras.Model(inputs, x)
    X = pictures(2, 24, 24)
    with pytest.raises(ValueError, match=r"2 layers 'block1_pool'.*'left/.*'right/block1_pool'"):
        CNNFeatureTransformer(model, "block1_pool").fit(X)
    assert CNNFeatureTransformer(model, "right/block1_pool").fit_transform(X).shape == (2, 576)


def test_shared_layers_go_by_their_calls():
    inputs = keras.Input((16, 16, 3))
    scaled = layers.Rescaling(1 / 255)(inputs)
    shared = layers.Conv2D(3, 3, padding="same", activation="tanh", name="shared")
    first = shared(scaled)
    second = shared(layers.MaxPooling2D(name="half")(first))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D(name="pool")(second))
    X = pictures(2, 16, 16)
    expected = keras.Model(inputs, [first, second]).predict(X.astype(np.float32), verbose=0)

    cnn = CNNFeatureTransformer(model, ["shared:0", "shared:1"]).fit(X)
    assert cnn.layer_names_ == ["shared:0", "shared:1"]
    assert_equal_to_rounding(cnn.transform(X), side_by_side(expected))
    for layer in ("shared", 2):
        with pytest.raises(ValueError, match=r"is used 2 times.*'shared:0', 'shared:1'"):
            CNNFeatureTransformer(model, layer).fit(X)


def test_a_shared_nested_model_goes_by_its_calls():
    backbone = make_backbone((None, None, 3), name="twin")
    inputs = keras.Input((16, 16, 3))
    flipped = keras.ops.flip(inputs, axis=2)
    model = keras.Model(
        inputs, layers.Concatenate(name="both")([backbone(inputs), backbone(flipped)])
    )
    X = pictures(2, 16, 16).astype(np.float32)
    cnn = CNNFeatureTransformer(model, "twin:1/block2_pool").fit(X)
    assert_equal_to_rounding(cnn.transform(X), backbone.predict(X[:, :, ::-1], verbose=0))
    with pytest.raises(ValueError, match=r"2 layers 'block2_pool'.*'twin:0/.*'twin:1/block2_pool'"):
        CNNFeatureTransformer(model, "block2_pool").fit(X)


# --- layers that behave differently in training ---------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_augmentation_and_dropout_are_inactive(engine):
    augmentation = keras.Sequential(
        [layers.RandomFlip(), layers.RandomRotation(0.4), layers.RandomContrast(0.5)],
        name="augment",
    )
    normalization = layers.Normalization(
        mean=[120, 115, 100], variance=[60.0, 55, 50], name="normalize"
    )
    inputs = keras.Input((16, 18, 3))
    x = augmentation(inputs)
    x = layers.RandomZoom(0.5, name="zoom")(x)
    x = normalization(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.GaussianNoise(1.0)(x)
    x = layers.Dropout(0.7, name="dropout")(x)
    model = keras.Model(inputs, layers.Dense(2, name="classes")(layers.Flatten(name="flat")(x)))
    randomize_statistics(model)
    X = pictures(3, 16, 18)
    names = ["augment", "zoom", "normalize", "conv", "bn", "dropout"]
    assert_layers_equal_predict(model, names, X, engine=engine)
    # The model itself, and with it the state of its random layers, is left alone.
    before = [variable.numpy() for variable in model.variables]
    cnn = CNNFeatureTransformer(model, "dropout", engine=engine).fit(X)
    np.testing.assert_array_equal(cnn.transform(X), cnn.transform(X))
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_an_adapted_normalization():
    normalization = layers.Normalization(name="normalize")
    X = pictures(4, 12, 12)
    normalization.adapt(X.astype(np.float32))
    model = keras.Sequential([keras.Input((12, 12, 3)), normalization, layers.Conv2D(2, 3)])
    assert_layers_equal_predict(model, ["normalize", model.layers[-1].name], X)


def test_calls_with_training_true_are_those_of_predict():
    inputs = keras.Input((12, 12, 3))
    x = layers.RandomFlip(name="flip")(inputs, training=True)
    x = layers.Conv2D(2, 3, name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x, training=True)
    x = layers.Dropout(0.5, name="dropout")(x, training=True)
    x = keras.Sequential([layers.GaussianNoise(1.0)], name="nested")(x, training=True)
    model = keras.Model(inputs, x)
    randomize_statistics(model)
    X = pictures(3, 12, 12)
    names = ["flip", "conv", "bn", "dropout", "nested"]
    assert_layers_equal_predict(model, names, X, engine="openvino")


class Augmented(layers.Layer):
    """Holds a random layer and does not know of training itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flip = layers.RandomFlip()
        self.dropout = layers.Dropout(0.5)

    def call(self, inputs):
        return self.dropout(self.flip(inputs))


@needs_tensorflow
def test_random_layers_inside_a_layer_are_inactive():
    model = keras.Sequential([keras.Input((12, 12, 3)), Augmented(name="own")])
    assert_layers_equal_predict(model, ["own"], pictures(3, 12, 12))


def test_an_input_of_another_type():
    inputs = keras.Input((12, 12, 3), dtype="uint8")
    x = keras.ops.cast(inputs, "float32") / 255.0
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="conv")(x))
    X = pictures(3, 12, 12)
    assert_layers_equal_predict(model, ["conv"], X)
    assert_layers_equal_predict(model, ["conv"], X, engine="keras")


# --- sizes and channels ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_one_channel_and_odd_sizes(engine):
    model = keras.Sequential(
        [
            keras.Input((37, 53, 1)),
            layers.Conv2D(3, 4, strides=3, padding="same", name="conv"),
            layers.MaxPooling2D(3, strides=2, name="pool"),
        ]
    )
    X = pictures(3, 37, 53, 1)
    assert_layers_equal_predict(model, ["conv", "pool"], X, engine=engine)
    cnn = CNNFeatureTransformer(model, "pool", engine=engine).fit(X)
    np.testing.assert_array_equal(cnn.transform(X), cnn.transform(X[..., 0]))
    assert cnn.input_size_ == (37, 53)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
@pytest.mark.sampled(2)
def test_images_of_their_own_sizes(pooling, engine):
    model = make_backbone((None, None, 3))
    X = [pictures(1, height, width)[0] for height, width in ((16, 16), (33, 20), (9, 40), (16, 16))]
    cnn = CNNFeatureTransformer(model, "block2_conv1", pooling, engine=engine).fit(X)
    assert cnn.input_size_ is None
    cut = keras.Model(model.inputs, model.get_layer("block2_conv1").output)
    maps = [cut.predict(image[np.newaxis].astype(np.float32), verbose=0)[0] for image in X]
    expected = np.array([pooled(each, pooling) for each in maps])
    assert_equal_to_rounding(cnn.transform(X), expected)
    np.testing.assert_array_equal(cnn.transform(X)[0], cnn.transform(X)[3])


def test_any_size_needs_a_pooling_or_an_input_size():
    model = make_backbone((None, None, 3))
    X = pictures(2, 16, 20)
    for pooling in ("flatten", "spp", None):
        with pytest.raises(ValueError, match=r"images of any size.*input_size=.*pooling='avg'"):
            CNNFeatureTransformer(model, "block2_pool", pooling).fit(X)
    cnn = CNNFeatureTransformer(model, "block2_pool", input_size=(16, 20)).fit(X)
    assert cnn.input_size_ == (16, 20)
    assert_equal_to_rounding(cnn.transform(X), model.predict(X.astype(np.float32), verbose=0))


def test_input_size_must_be_the_models():
    model = make_backbone((24, 24, 3))
    X = pictures(2, 24, 24)
    assert CNNFeatureTransformer(model, "last", input_size=24).fit(X).input_size_ == (24, 24)
    with pytest.raises(ValueError, match=r"24 x 24 pixels, but\s+input_size=\(32, 32\)"):
        CNNFeatureTransformer(model, "last", input_size=32).fit(X)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(channels):
    model = make_backbone((24, 24, channels))
    with pytest.raises(ValueError, match=f"{channels} channels; only gray"):
        CNNFeatureTransformer(model, "last").fit(pictures(2, 24, 24))


def test_channels_first_models_are_converted():
    """TensorFlow does not compute them on a CPU: the same kernels channels last are the judge."""
    kernel = keras.initializers.GlorotUniform(seed=0)
    columns = {}
    for data_format, shape in (("channels_first", (3, 24, 20)), ("channels_last", (24, 20, 3))):
        inputs = keras.Input(shape)
        options = {"data_format": data_format, "kernel_initializer": kernel}
        x = layers.Conv2D(4, 3, name="conv", **options)(inputs)
        x = layers.MaxPooling2D(data_format=data_format, name="pool")(x)
        x = layers.Flatten(data_format=data_format, name="flat")(x)
        outputs = layers.Dense(3, kernel_initializer=kernel, name="dense")(x)
        cnn = CNNFeatureTransformer(keras.Model(inputs, outputs), ["conv", "flat", "dense"])
        columns[data_format] = cnn.fit_transform(pictures(2, 24, 20))
        assert cnn.feature_shapes_ == [(22, 18, 4), (396,), (3,)]
    assert_equal_to_rounding(columns["channels_first"], columns["channels_last"])


def test_a_model_with_a_batch_size_of_its_own():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), batch_size=2),
            layers.Conv2D(2, 3, name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="dense"),
        ]
    )
    X = pictures(4, 8, 8)
    assert_layers_equal_predict(model, ["conv", "flat", "dense"], X)


# --- models that Keras knows less about -----------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(3, 3, name="conv")
        self.pool = layers.GlobalAveragePooling2D()

    def call(self, inputs, training=False):
        return self.pool(self.conv(inputs))


def test_a_subclassed_model_gives_its_own_output():
    model = Subclassed(name="own")
    X = pictures(3, 12, 14)
    with pytest.raises(ValueError, match="not been called yet"):
        CNNFeatureTransformer(model, "last").fit(X)
    expected = model(X.astype(np.float32)).numpy()
    for layer in ("last", -1, "own"):
        assert_equal_to_rounding(CNNFeatureTransformer(model, layer).fit_transform(X), expected)
    with pytest.raises(ValueError, match=r"'own' is a subclass of keras\.Model.*layer='last'"):
        CNNFeatureTransformer(model, "conv").fit(X)


def test_a_subclassed_model_inside_a_functional_one():
    inputs = keras.Input((12, 14, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = Subclassed(name="own")(x)
    model = keras.Model(inputs, layers.Dense(2, name="classes")(x))
    X = pictures(3, 12, 14)
    assert_layers_equal_predict(model, ["own", "classes"], X)


@keras.saving.register_keras_serializable("tests")
class Swish(layers.Layer):
    def __init__(self, beta=1.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta
        self.conv = layers.Conv2D(4, 3)

    def build(self, shape):
        self.conv.build(shape)

    def call(self, inputs):
        x = self.conv(inputs)
        return x * keras.ops.sigmoid(self.beta * x)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


def make_with_custom_layer():
    return keras.Sequential(
        [keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), Swish(1.5, name="swish")]
    )


def test_a_custom_layer():
    model = make_with_custom_layer()
    assert_layers_equal_predict(model, ["swish"], pictures(2, 12, 12))


def test_a_lambda_layer():
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Lambda(lambda x: x / 255.0 - 0.5, name="own"),
            layers.Conv2D(2, 3, name="conv"),
        ]
    )
    assert_layers_equal_predict(model, ["own", "conv"], pictures(2, 12, 12))


def test_mixed_precision():
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(1 / 255, dtype="mixed_float16"),
            layers.Conv2D(4, 3, dtype="mixed_float16", name="conv"),
        ]
    )
    X = pictures(3, 12, 12)
    (expected,) = predict_layers(model, ["conv"], X)
    assert expected.dtype == np.float16
    features = CNNFeatureTransformer(model, "conv").fit_transform(X)
    assert features.dtype == np.float32
    expected = expected.astype(np.float32).reshape(3, -1)
    assert np.abs(features - expected).max() <= 2e-3 * np.abs(expected).max()


def test_models_of_several_inputs_are_refused():
    left, right = keras.Input((12, 12, 3)), keras.Input((4,))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(left), right])
    with pytest.raises(ValueError, match="2 inputs; a network that takes images and nothing else"):
        CNNFeatureTransformer(keras.Model([left, right], x), "last").fit(pictures(2, 12, 12))


def test_models_of_something_else_are_refused():
    model = keras.Sequential([keras.Input((10,)), layers.Dense(3)])
    with pytest.raises(
        ValueError, match=r"inputs of shape \(n, 10\).*\(n, height, width, channels\)"
    ):
        CNNFeatureTransformer(model, "last").fit(pictures(2, 12, 12))


@pytest.mark.parametrize("inputs_as", ["list", "dict"])
def test_a_model_of_several_outputs(inputs_as):
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(3, 3, name="conv")(inputs)
    outputs = {"kind": layers.Dense(2, name="kind")(layers.Flatten(name="flat")(x)), "maps": x}
    taken = {"image": inputs} if inputs_as == "dict" else [inputs]
    model = keras.Model(taken, outputs)
    X = pictures(2, 12, 12)
    cnn = CNNFeatureTransformer(model, ["conv", "kind"]).fit(X)
    given = X.astype(np.float32)
    expected = model.predict({"image": given} if inputs_as == "dict" else given, verbose=0)
    assert_equal_to_rounding(cnn.transform(X), side_by_side([expected["maps"], expected["kind"]]))


class Halves(layers.Layer):
    def call(self, inputs):
        return inputs[..., :2], inputs[..., 2:]


def test_a_layer_of_several_outputs_is_refused():
    inputs = keras.Input((12, 12, 3))
    left, right = Halves(name="halves")(inputs)
    model = keras.Model(inputs, layers.Concatenate(name="joined")([right, left]))
    X = pictures(2, 12, 12)
    with pytest.raises(
        ValueError, match=r"'halves' of the model.*has several outputs; choose a layer behind"
    ):
        CNNFeatureTransformer(model, "halves").fit(X)
    assert_layers_equal_predict(model, ["joined"], X)


def test_an_unbuilt_sequential_is_refused():
    model = keras.Sequential([layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"not been built yet.*keras.Input\(\(height, width"):
        CNNFeatureTransformer(model, "last").fit(pictures(2, 12, 12))


def test_a_layer_of_sequences_is_refused():
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Reshape((36, 12), name="tokens"),
            layers.GlobalAveragePooling1D(name="pool"),
        ]
    )
    X = pictures(2, 12, 12)
    with pytest.raises(
        ValueError, match=r"shape \(n, 36, 12\).*maps \(n, height, width, channels\)"
    ):
        CNNFeatureTransformer(model, "tokens").fit(X)
    assert_layers_equal_predict(model, ["pool"], X)


def test_a_layer_given_twice_is_refused():
    model = make_backbone()
    X = pictures(2, 24, 24)
    for layers_ in (["block1_pool", "block1_pool"], ["block1_pool", 2]):
        with pytest.raises(ValueError, match="names a layer twice"):
            CNNFeatureTransformer(model, layers_).fit(X)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "block5_pool",
            r"no layer 'block5_pool': it is the default, .*VGG16 and VGG19.*layer='last'",
        ),
        ("block1_con", r"no layer 'block1_con'\. Nearest names: 'block1_conv1'.*layer_summary"),
        (99, "99 is out of range.*5 layers, -5 to 4"),
        (-6, "-6 is out of range"),
    ],
)
def test_an_unknown_layer_names_its_neighbours(layer, message):
    with pytest.raises(ValueError, match=message):
        CNNFeatureTransformer(make_backbone(), layer).fit(pictures(2, 24, 24))


def test_a_model_that_is_trained_on_gives_new_features():
    model = make_backbone()
    X = pictures(2, 24, 24)
    cnn = CNNFeatureTransformer(model, "block1_pool").fit(X)
    before = cnn.transform(X)
    model.set_weights([weight * 0.5 for weight in model.get_weights()])
    after = CNNFeatureTransformer(model, "block1_pool").fit_transform(X)
    assert not np.allclose(before, after)
    assert_layers_equal_predict(model, ["block1_pool"], X)
    # What was fitted keeps what it was fitted to, or says that it cannot.
    np.testing.assert_array_equal(cnn.transform(X), before)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_model_files(suffix, tmp_path):
    model = make_transfer()
    path = tmp_path / f"model{suffix}"
    model.save(path)
    X = pictures(2, 24, 24)
    expected = CNNFeatureTransformer(model, "vgg/block2_pool").fit_transform(X)
    for given in (path, str(path)):
        features = CNNFeatureTransformer(given, "block2_pool").fit_transform(X)
        np.testing.assert_array_equal(features, expected)


def test_a_file_that_changes_is_read_again(tmp_path):
    model = make_backbone()
    path = tmp_path / "model.keras"
    X = pictures(2, 24, 24)
    rows = []
    for scale in (1.0, 0.5):
        model.set_weights([weight * scale for weight in model.get_weights()])
        model.save(path)
        rows.append(CNNFeatureTransformer(path, "block1_pool").fit_transform(X))
        assert_equal_to_rounding(rows[-1], predict_layers(model, ["block1_pool"], X)[0])
    assert not np.allclose(*rows)


def test_a_file_with_a_custom_layer(tmp_path):
    path = tmp_path / "model.keras"
    model = make_with_custom_layer()
    model.save(path)
    X = pictures(2, 12, 12)
    expected = predict_layers(model, ["swish"], X)[0]
    with pytest.raises(UntrustedModelError, match=r"its layer 'swish' holds a .*trusted=True"):
        CNNFeatureTransformer(path, "swish").fit(X)
    cnn = CNNFeatureTransformer(path, "swish", trusted=True)
    assert_equal_to_rounding(cnn.fit_transform(X), expected)


def test_a_file_that_holds_code_is_refused(tmp_path):
    path = tmp_path / "model.keras"
    model = keras.Sequential(
        [keras.Input((12, 12, 3)), layers.Lambda(lambda x: x * 2, output_shape=(12, 12, 3))]
    )
    model.save(path)
    X = pictures(2, 12, 12)
    with pytest.raises(UntrustedModelError, match=re.escape(str(path)) + ".*Python code.*trusted"):
        CNNFeatureTransformer(path, "last").fit(X)
    trusted = CNNFeatureTransformer(path, "last", trusted=True).fit_transform(X)
    np.testing.assert_array_equal(trusted, X.reshape(2, -1) * np.float32(2))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04 no zip"])
def test_files_that_are_no_models(suffix, content, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    message = f"{str(path)!r} is no Keras model: it begins with {content[:8]!r}"
    if content.startswith(b"PK") and suffix == ".keras":
        message = f"{str(path)!r} cannot be read as a Keras model"
    elif content.startswith(b"PK"):
        message = "it is a .keras archive or another ZIP file with the suffix of an HDF5 file"
    with pytest.raises(ValueError, match=re.escape(message)):
        CNNFeatureTransformer(path, "last").fit(pictures(2, 12, 12))


def test_cut_off_file(tmp_path):
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(2, 3)]).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="the archive is damaged or cut off"):
        CNNFeatureTransformer(path, "last").fit(pictures(2, 12, 12))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_model_of_a_newer_keras(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(2, 3)]).save(path)

    def from_the_future(config):
        return config.replace('"kernel_size"', '"flux": 1, "kernel_size"')

    if suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["keras_version"] = "99.1.0"
            file.attrs["model_config"] = from_the_future(file.attrs["model_config"])
    else:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        members["metadata.json"] = json.dumps({"keras_version": "99.1.0"})
        members["config.json"] = from_the_future(members["config.json"].decode())
        with zipfile.ZipFile(path, "w") as file:
            for name, data in members.items():
                file.writestr(name, data)
    message = (
        r"flux.*\. It was saved by Keras 99\.1\.0, and this is Keras .* --upgrade keras may help"
    )
    with pytest.raises(ValueError, match=message):
        CNNFeatureTransformer(path, "last").fit(pictures(2, 12, 12))


def test_weights_are_no_model(tmp_path):
    path = tmp_path / "model.weights.h5"
    make_backbone().save_weights(path)
    with pytest.raises(ValueError, match=r"cannot be read as a Keras model.*weights"):
        CNNFeatureTransformer(path, "last").fit(pictures(2, 12, 12))


def test_other_files_and_names_are_refused(tmp_path):
    X = pictures(2, 12, 12)
    make_backbone().save(tmp_path / "backbone.keras")
    text = tmp_path / "model.txt"
    text.write_text("no model")
    with pytest.raises(ValueError, match=r"does not end in \.keras, .* goes into weights="):
        CNNFeatureTransformer(text).fit(X)
    with pytest.raises(ValueError, match=r"is a folder\. Keras models come in one file"):
        CNNFeatureTransformer(tmp_path).fit(X)
    with pytest.raises(FileNotFoundError, match="no such file"):
        CNNFeatureTransformer(tmp_path / "none.keras").fit(X)
    with pytest.raises(ValueError, match=r"neither the name of a network nor a file.*'vgg16'"):
        CNNFeatureTransformer("vgg61").fit(X)
    for given in (make_backbone(), tmp_path / "backbone.keras"):
        with pytest.raises(ValueError, match=r"weights='w\.h5' is for networks by name"):
            CNNFeatureTransformer(given, "last", weights="w.h5").fit(X)
    with pytest.raises(
        TypeError, match=r"name of a network, the path.*keras\.Model or a torch\.nn\.Module\. Got"
    ):
        CNNFeatureTransformer(make_backbone).fit(X)


# --- poolings and preprocessings ------------------------------------------------------------------


def pooled(maps, pooling):
    """Pool the maps of one image with NumPy, written down anew from the papers."""
    maps = maps.astype(np.float64)
    height, width, channels = maps.shape
    if pooling == "flatten":
        return [maps[y, x, c] for y in range(height) for x in range(width) for c in range(channels)]
    if pooling == "avg":
        return maps.reshape(-1, channels).mean(axis=0)
    if pooling == "max":
        return maps.reshape(-1, channels).max(axis=0)
    if pooling == "gem":
        return np.mean(np.maximum(maps.reshape(-1, channels), 1e-6) ** 3, axis=0) ** (1 / 3)
    bins = []
    for n in (1, 2, 4):
        for row in range(n):
            for column in range(n):
                top, bottom = np.floor(row * height / n), np.ceil((row + 1) * height / n)
                left, right = np.floor(column * width / n), np.ceil((column + 1) * width / n)
                part = maps[int(top) : int(bottom), int(left) : int(right)]
                bins += list(part.max(axis=(0, 1)))
    return bins


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pooling", ["flatten", "avg", "max", "gem", "spp"])
@pytest.mark.sampled(4)
def test_poolings_equal_numpy(pooling, engine):
    # Maps of 22 x 27, 7 x 9, 3 x 2 and 1 x 1, some of negative values only.
    model = keras.Sequential(
        [
            keras.Input((24, 29, 3)),
            layers.Conv2D(3, 3, name="large"),
            layers.MaxPooling2D(3, name="middle"),
            layers.Conv2D(4, 3, strides=(2, 4), activation="softplus", name="small"),
            layers.GlobalAveragePooling2D(keepdims=True, name="one"),
            layers.Rescaling(-1.0, name="negative"),
            layers.Flatten(name="vector"),
        ]
    )
    X = pictures(3, 24, 29)
    names = [layer.name for layer in model.layers]
    outputs = predict_layers(model, names, X)
    cnn = CNNFeatureTransformer(model, names, pooling, engine=engine).fit(X)
    assert cnn.feature_shapes_[1:] == [(7, 9, 3), (3, 2, 4), (1, 1, 4), (1, 1, 4), (4,)]
    expected = [
        maps if maps.ndim == 2 else np.array([pooled(each, pooling) for each in maps])
        for maps in outputs
    ]
    features = cnn.transform(X)
    ends = np.cumsum([maps.shape[1] for maps in expected])
    for columns, part in zip(np.split(features, ends[:-1], axis=1), expected, strict=True):
        assert columns.shape == part.shape
        # A mean near zero of large values is as exact as they are.
        scale = max(np.abs(part).max(), np.abs(outputs[0]).max() * (pooling == "avg"))
        assert np.abs(columns - part).max() <= TOLERANCE * scale
    assert features.shape[1] == ends[-1]
    assert len(set(cnn.get_feature_names_out())) == ends[-1]


def test_maps_as_they_are():
    model = make_backbone()
    X = pictures(3, 24, 24)
    maps = CNNFeatureTransformer(model, "block2_conv1", None).fit_transform(X)
    assert maps.shape == (3, 12, 12, 6)
    assert_equal_to_rounding(maps.reshape(3, -1), predict_layers(model, ["block2_conv1"], X)[0])
    vectors = CNNFeatureTransformer(make_transfer(), "fc", None).fit_transform(X)
    assert vectors.shape == (3, 10)


def test_a_pooling_of_ones_own():
    model = make_transfer()
    X = pictures(3, 24, 24)

    def corners(maps):
        assert maps.ndim == 4
        assert len(maps) == 1
        return np.hstack([maps[:, 0, 0], maps[:, -1, -1]])

    cnn = CNNFeatureTransformer(model, ["block2_conv1", "fc"], corners).fit(X)
    maps = CNNFeatureTransformer(model, "block2_conv1", None).fit_transform(X)
    vectors = CNNFeatureTransformer(model, "fc").fit_transform(X)
    np.testing.assert_allclose(
        cnn.transform(X), np.hstack([maps[:, 0, 0], maps[:, -1, -1], vectors]), rtol=1e-5
    )
    names = list(cnn.get_feature_names_out())
    assert names[:2] == ["vgg/block2_conv1_0", "vgg/block2_conv1_1"]
    assert names[-1] == "fc_9"
    with pytest.raises(ValueError, match=r"returns an array\s+\(n, k\)\. Got shape \(1, 3, 3, 6\)"):
        CNNFeatureTransformer(model, "block2_conv1", lambda maps: maps[:, ::4, ::4]).fit(X)


@pytest.mark.parametrize("preprocessing", ["caffe", "tf", "torch", "rescale", None, "auto"])
@pytest.mark.sampled(2)
def test_preprocessing_by_name_equals_keras(preprocessing):
    model = make_backbone()
    X = pictures(3, 24, 24)
    given = X.astype(np.float32)
    if preprocessing == "rescale":
        given = given / 255
    elif preprocessing in ("caffe", "tf", "torch"):
        given = keras.applications.imagenet_utils.preprocess_input(given, mode=preprocessing)
    features = CNNFeatureTransformer(
        model, "block2_conv1", preprocessing=preprocessing
    ).fit_transform(X)
    assert_equal_to_rounding(features, predict_layers(model, ["block2_conv1"], given)[0])


def test_preprocessing_of_ones_own():
    model = make_backbone()
    X = pictures(3, 24, 24)
    preprocess = keras.applications.resnet50.preprocess_input
    cnn = CNNFeatureTransformer(model, "block2_conv1", preprocessing=preprocess).fit(X)
    expected = predict_layers(model, ["block2_conv1"], preprocess(X.astype(np.float32)))[0]
    assert_equal_to_rounding(cnn.transform(X), expected)
    floats = X.astype(np.float32)
    assert_equal_to_rounding(cnn.transform(floats), expected)
    np.testing.assert_array_equal(floats, X)
    with pytest.raises(ValueError, match=r"keep the shape.*\(1, 24, 24, 3\).*Got \(1, 12, 24, 3\)"):
        CNNFeatureTransformer(
            model, "block2_conv1", preprocessing=lambda pixels: pixels[:, ::2]
        ).fit_transform(X)
