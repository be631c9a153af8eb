"""layer_summary and filter_summary: what they list is what `layer=` takes, with Keras' shapes."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from requirements import needs_tensorflow
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_cnnfeat import CNNFeatureTransformer, filter_summary, layer_summary, list_models
from sklearn_cnnfeat._network import keras_models
from sklearn_cnnfeat._network.zoo import find_architecture


@pytest.fixture(scope="module")
def keras():
    return keras_models.import_keras()


@pytest.fixture(scope="module")
def nested(keras):
    """Augmentation, a nested network with a shared layer, a nested Sequential, a classifier."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    inner_in = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inner_in)
    x = layers.Add(name="sum")([shared(x), shared(layers.ReLU(name="relu")(x))])
    inner = keras.Model(inner_in, layers.MaxPooling2D(name="pool")(x), name="inner")
    augment = keras.Sequential([keras.Input((16, 16, 3)), layers.RandomFlip()], name="augment")
    inputs = keras.Input((16, 16, 3), name="photo")
    x = inner(augment(inputs))
    x = layers.SeparableConv2D(6, 3, name="separable")(x)
    x = layers.Conv2DTranspose(5, 2, name="transpose")(x)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, use_bias=False, name="depthwise")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Reshape((-1, 5), name="sequence")(x)
    x = layers.Flatten(name="again")(x)
    return keras.Model(inputs, layers.Dense(2, name="classes")(x), name="outer")


def test_vgg16_is_listed_whole_without_its_weights():
    table = layer_summary("vgg16")
    assert len(table) == 23
    assert table["index"].tolist() == list(range(23))
    by_path = table.set_index("path")
    assert by_path.loc["block5_pool", "output_shape"] == (7, 7, 512)
    assert by_path.loc["block5_pool", "n_features"] == 25_088
    assert by_path.loc["fc1", "output_shape"] == (4096,)
    assert by_path.loc["fc1", "n_parameters"] == 102_764_544
    assert by_path.loc["predictions", "index"] == 22
    assert table["n_parameters"].sum() == 138_357_544


def test_published_efficientnets_have_one_layer_more():
    published = layer_summary("efficientnet_b0")["path"].tolist()
    random = layer_summary(CNNFeatureTransformer("efficientnet_b0", weights=None))["path"].tolist()
    assert set(published) - set(random) == {"rescaling_1"}
    assert published.index("rescaling_1") == published.index("normalization") + 1


def test_no_weights_are_downloaded_or_allocated():
    """VGG16's weights take 553 MB; its summary may add a small part of that."""
    code = (
        "import resource\n"
        "from sklearn_cnnfeat import layer_summary\n"
        "from sklearn_cnnfeat._network.keras_models import import_keras\n"
        "keras = import_keras(); keras.ops.zeros(1)\n"
        "layer_summary('mobilenet')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "layer_summary('vgg16')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    env = {**os.environ, "KERAS_HOME": os.devnull + "/none", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 100_000


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext_tiny", "efficientnet_b0"])
@pytest.mark.sampled(1)
def test_shapes_are_those_of_the_built_network(keras, name):
    table = layer_summary(CNNFeatureTransformer(name, weights=None, input_size=96)).set_index(
        "path"
    )
    architecture = find_architecture(name)
    constructor = getattr(keras.applications, architecture.keras_name)
    keras.backend.clear_session()
    model = constructor(weights=None, include_top=False, input_shape=(96, 96, 3))
    outer = table.loc[[layer.name for layer in model.layers]]
    assert outer["output_shape"].tolist() == [tuple(x.output.shape)[1:] for x in model.layers]
    assert outer["n_parameters"].tolist() == [x.count_params() for x in model.layers]
    trunk = outer["index"].iloc[: architecture.n_trunk]
    assert trunk.tolist() == list(range(architecture.n_trunk))
    assert outer["index"].iloc[architecture.n_trunk :].isna().all()
    assert set(architecture.head) <= set(table.index)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_by_name(name):
    table = layer_summary(name)
    architecture = find_architecture(name)
    assert sorted(table["index"].dropna()) == list(range(table["index"].count()))
    assert set(architecture.head + architecture.tail) <= set(table["path"])
    assert table["n_features"].notna().all()


def test_every_row_is_what_layer_takes(nested):
    table = layer_summary(nested)
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    assert "inner/pool" in set(table["path"])
    assert "sequence" not in set(table["path"]), "three-dimensional outputs are not taken"
    for row in table.itertuples():
        cnn = CNNFeatureTransformer(nested, row.path, engine="keras").fit(image)
        assert cnn.feature_shapes_ == [row.output_shape]
        assert cnn.transform(image).shape == (1, row.n_features)
        assert cnn.layer_names_ == [row.path]
        if row.index is not pd.NA:
            by_index = CNNFeatureTransformer(nested, row.index, engine="keras").fit(image)
            assert by_index.layer_names_ == [row.path]


def test_nested_and_shared_layers_have_no_index(nested):
    table = layer_summary(nested).set_index("path")
    assert table["index"].isna()["inner/pool"]
    assert table.loc["inner/shared:0", "output_shape"] == (16, 16, 4)
    assert table.loc["inner/shared:1", "output_shape"] == (16, 16, 4)
    assert table.loc["inner", "index"] == 2
    assert table.loc["augment", "output_shape"] == (16, 16, 3)


def test_a_layer_used_twice_outside_has_no_index(keras):
    conv = keras.layers.Conv2D(3, 1, name="conv")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, conv(conv(inputs)))
    table = layer_summary(model).set_index("path")
    assert table.loc[["conv:0", "conv:1"], "index"].isna().all()


def test_networks_for_images_of_any_size(keras):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="mean")(x))
    table = layer_summary(model).set_index("path")
    assert table.loc["conv", "output_shape"] == (None, None, 4)
    assert table.loc["conv", "n_features"] is pd.NA
    assert table.loc["mean", "n_features"] == 4
    sized = layer_summary(CNNFeatureTransformer(model, "conv", input_size=10)).set_index("path")
    assert sized.loc["conv", "output_shape"] == (8, 8, 4)


@needs_tensorflow
def test_a_model_that_hides_its_layers(keras):
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__(name="hidden")
            self.conv = keras.layers.Conv2D(4, 3)

        def call(self, x):
            return self.conv(x)

    model = Hidden()
    model(np.zeros((1, 8, 8, 3), np.float32))
    table = layer_summary(model)
    assert table[["path", "output_shape"]].values.tolist() == [["hidden", (6, 6, 4)]]
    assert table["n_parameters"].item() == 112


def test_files_transformers_and_pipelines(nested, tmp_path):
    path = tmp_path / "outer.keras"
    nested.save(path)
    expected = layer_summary(nested)
    pd.testing.assert_frame_equal(layer_summary(path), expected)
    pd.testing.assert_frame_equal(layer_summary(str(path)), expected)
    cnn = CNNFeatureTransformer(nested, "inner/pool")
    pipeline = make_pipeline(cnn, StandardScaler(), SVC())
    pd.testing.assert_frame_equal(layer_summary(pipeline), expected)


def test_filters_of_a_nested_model(nested):
    table = filter_summary(nested)
    shapes = {(row.path, row.kernel): row.kernel_shape for row in table.itertuples()}
    assert shapes == {
        ("inner/first", "kernel"): (3, 3, 3, 4),
        ("inner/shared:0", "kernel"): (3, 3, 4, 4),
        ("separable", "depthwise_kernel"): (3, 3, 4, 1),
        ("separable", "pointwise_kernel"): (1, 1, 4, 6),
        ("transpose", "kernel"): (2, 2, 6, 5),
        ("depthwise", "kernel"): (2, 2, 5, 2),
        ("classes", "kernel"): (360, 2),
    }
    first = table.iloc[0]
    kernel = np.asarray(nested.get_layer("inner").get_layer("first").kernel)
    assert first["bias_shape"] == (4,)
    np.testing.assert_allclose(
        first[["mean", "std", "min", "max"]].astype(float),
        [kernel.mean(), kernel.std(), kernel.min(), kernel.max()],
        rtol=1e-5,
        atol=1e-8,
    )
    by_path = table.drop_duplicates("path").set_index("path")
    assert by_path.loc["depthwise", "bias_shape"] is None


def test_filters_of_published_weights(imagenet_home):
    table = filter_summary("mobilenet").set_index("path")
    assert table.loc["conv1", "kernel_shape"] == (3, 3, 3, 32)
    assert table.loc["conv_dw_1", "kernel_shape"] == (3, 3, 32, 1)
    assert table.loc["conv_pw_1", "kernel_shape"] == (1, 1, 32, 64)
    assert table["bias_shape"].isna().all()
    assert (table["std"].drop("conv_pw_13") > 0).all()


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("vgg61", ValueError, "Nearest names: 'vgg19', 'vgg16'"),
        ("no/such/file.keras", FileNotFoundError, "no such file"),
        (3, TypeError, "model must be the name of a network"),
        (make_pipeline(StandardScaler(), SVC()), ValueError, "No step of Pipeline"),
    ],
)
def test_what_is_no_network(model, error, message):
    for summary in (layer_summary, filter_summary):
        with pytest.raises(error, match=message):
            summary(model)
