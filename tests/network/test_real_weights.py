"""Published weights on real photographs: the numbers of Keras, and what they are worth."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image
from requirements import needs_tensorflow
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.fixes import parse_version

from sklearn_cnnfeat import CNNFeatureTransformer

CLASSIFIERS = (LogisticRegression(max_iter=2000), SVC())
MOBILENET_LAYERS = ["conv_pw_6_relu", "conv_pw_12_relu", "conv_dw_13_relu"]
SQUEEZENET_LAYERS = ["fire8_concat", "fire9_concat"]
# Mean accuracy of the two classifiers, as measured with Keras' own `predict`.
RIGHT = {
    "conv_pw_6_relu": (0.725, 0.775),
    "conv_pw_12_relu": (0.892, 0.883),
    "conv_dw_13_relu": (0.908, 0.892),
    "fire8_concat": (0.808, 0.783),
    "fire9_concat": (0.800, 0.825),
}
WRONG = {
    "conv_pw_6_relu": (0.667, 0.658),
    "conv_pw_12_relu": (0.767, 0.750),
    "conv_dw_13_relu": (0.767, 0.742),
    "fire8_concat": (0.725, 0.717),
    "fire9_concat": (0.792, 0.725),
}


@pytest.fixture(scope="module")
def labels(photos):
    return np.array([os.path.basename(os.path.dirname(path)) for path in photos])


@pytest.fixture
def keras_home(assets, tmp_path, monkeypatch):
    """Give Keras the published weights; it writes its settings beside them."""
    shutil.copytree(assets / "keras_home" / "models", tmp_path / "models")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def squeezenet(assets):
    path = assets / "models" / "squeezenet_1_1.keras"
    with zipfile.ZipFile(path) as file:
        saved_by = json.loads(file.read("metadata.json"))["keras_version"]
    if parse_version(version("keras")) < parse_version(saved_by):
        pytest.skip(f"saved by Keras {saved_by}, which older ones may not read")
    return path


def check_accuracies(features, labels, layers, expected):
    """Compare with the table, to one photograph."""
    for layer, part in zip(layers, features, strict=True):
        for classifier, accuracy in zip(CLASSIFIERS, expected[layer], strict=True):
            folds = StratifiedKFold(5, shuffle=True, random_state=0)
            scores = cross_val_score(
                make_pipeline(StandardScaler(), classifier), part, labels, cv=folds
            )
            assert abs(scores.mean() - accuracy) <= 1.1 / len(labels), (layer, classifier)


def layerwise(cnn, X):
    """Return the columns of each layer."""
    features = cnn.fit_transform(X)
    widths = [shape[-1] for shape in cnn.feature_shapes_]
    return np.split(features, np.cumsum(widths)[:-1], axis=1)


@pytest.mark.parametrize(("preprocessing", "expected"), [("auto", RIGHT), ("caffe", WRONG)])
@pytest.mark.sampled(1)
def test_accuracies_of_mobilenet(keras_home, photos, labels, preprocessing, expected):
    cnn = CNNFeatureTransformer("mobilenet", MOBILENET_LAYERS, "avg", preprocessing=preprocessing)
    check_accuracies(layerwise(cnn, photos), labels, MOBILENET_LAYERS, expected)


@pytest.mark.parametrize(("preprocessing", "expected"), [("caffe", RIGHT), ("tf", WRONG)])
@pytest.mark.slow
def test_accuracies_of_a_model_file(squeezenet, photos, labels, preprocessing, expected):
    cnn = CNNFeatureTransformer(
        squeezenet, SQUEEZENET_LAYERS, "avg", preprocessing=preprocessing, input_size=224
    )
    check_accuracies(layerwise(cnn, photos), labels, SQUEEZENET_LAYERS, expected)


def mobilenet_by_hand(keras_home, layers, dtype):
    """Build MobileNet, cut behind `layers`, to be computed in `dtype`."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = keras.applications.MobileNet(
            include_top=False, weights=None, input_shape=(224, 224, 3)
        )
    finally:
        keras.config.set_dtype_policy(before)
    model.load_weights(keras_home / "models" / "mobilenet_1_0_224_tf_no_top.h5")
    return keras.Model(model.input, [model.get_layer(layer).output for layer in layers])


def rms(errors):
    return np.sqrt(np.mean(np.square(errors)))


@needs_tensorflow
@pytest.mark.parametrize("engine", ["openvino", "keras"])
@pytest.mark.sampled(1)
def test_mobilenet_is_as_exact_as_keras(keras_home, photos, engine):
    """From JPEG files by hand: Pillow, Keras' preprocessing, `predict`; and all in float64.

    With these weights rounding grows to 1e-5 of the largest value: the truth settles who is right.
    """
    import keras

    pixels = [Image.open(path).convert("RGB").resize((224, 224), 2) for path in photos[:6]]
    pixels = np.stack([np.asarray(image) for image in pixels])
    batch = keras.applications.mobilenet.preprocess_input(pixels.astype(np.float32))
    layers = ["conv1_relu", "conv_pw_6_relu", "conv_dw_13_relu"]
    single = mobilenet_by_hand(keras_home, layers, "float32").predict(batch, verbose=0)
    double = mobilenet_by_hand(keras_home, layers, "float64")(pixels / 127.5 - 1)
    for layer, expected, truth in zip(layers, single, map(np.asarray, double), strict=True):
        assert truth.dtype == np.float64
        cnn = CNNFeatureTransformer("mobilenet", layer, None, engine=engine)
        features = cnn.fit_transform(photos[:6])
        allowed = 5e-6 * np.abs(truth).max() + np.abs(expected - truth).max()
        assert np.abs(features - truth).max() <= allowed, layer
        assert rms(features - truth) <= 1.2 * rms(expected - truth), layer


@pytest.mark.slow
def test_a_fresh_process_finds_the_weights_without_a_network(keras_home, photos):
    code = (
        "import sys; from sklearn_cnnfeat import CNNFeatureTransformer\n"
        "cnn = CNNFeatureTransformer('mobilenet', 'conv_pw_6_relu', 'avg')\n"
        "print(cnn.fit_transform(sys.argv[1:]).sum())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *photos[:2]],
        env={**os.environ, "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    cnn = CNNFeatureTransformer("mobilenet", "conv_pw_6_relu", "avg")
    assert float(process.stdout) == pytest.approx(cnn.fit_transform(photos[:2]).sum(), rel=1e-6)


def test_weights_by_path_are_the_same_network(keras_home, photos):
    layer = "conv_pw_2_relu"
    named = CNNFeatureTransformer("mobilenet", layer, "avg").fit_transform(photos[:2])
    path = keras_home / "models" / "mobilenet_1_0_224_tf_no_top.h5"
    by_path = CNNFeatureTransformer("mobilenet", layer, "avg", weights=path)
    np.testing.assert_array_equal(by_path.fit_transform(photos[:2]), named)


def test_other_sizes_take_the_published_weights_too(keras_home, photos):
    """Weights of 224 pixels serve sizes that have none of their own."""
    cnn = CNNFeatureTransformer("mobilenet", "conv_pw_6_relu", "avg", input_size=(200, 264))
    assert cnn.fit(photos[:2]).feature_shapes_ == [(12, 16, 512)]
    larger = CNNFeatureTransformer("mobilenet", "conv_pw_6_relu", "avg").fit_transform(photos[:2])
    rows = cnn.transform(photos[:2])
    similarity = (rows * larger).sum() / np.linalg.norm(rows) / np.linalg.norm(larger)
    assert similarity > 0.95
