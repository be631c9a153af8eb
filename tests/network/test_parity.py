"""Features are those of Keras, network by network, to the rounding of float32."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer, list_models
from sklearn_cnnfeat._network.zoo import find_architecture

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import parity

# All preprocessings at native size (None), and all kinds of networks. Sizes that no stride divides
# show where padding differs.
NETWORKS = {
    "mobilenet": None,  # tf
    "resnet50": None,  # caffe
    "densenet121": None,  # torch
    "efficientnet_b0": None,  # its own
    "vgg16": 100,
    "resnet50_v2": 100,
    "mobilenet_v2": 101,
    "mobilenet_v3_small": 101,
    "efficientnet_v2_b0": 101,
    "inception_v3": 107,
    "xception": 107,
    "nasnet_mobile": 96,
    "convnext_tiny": 64,
}


def compare(name, size, tmp_path, engine, layers=None):
    """Check the features of two photographs against Keras' own `predict`."""
    import keras

    architecture = find_architecture(name)
    images = parity.make_images(size or architecture.native_size)
    batch = parity.preprocess(architecture, images)
    model = parity.build(architecture.keras_name, images.shape[1], include_top=layers is not None)
    parity.tame(model, batch)
    layers = layers or parity.choose_layers(model)
    model.save_weights(tmp_path / "tame.weights.h5")
    cut = keras.Model(model.input, [model.get_layer(layer).output for layer in layers])
    expected = cut.predict(batch, verbose=0)

    cnn = CNNFeatureTransformer(
        name,
        layers,
        "flatten",
        weights=tmp_path / "tame.weights.h5",
        input_size=size,
        engine=engine,
    )
    features = cnn.fit(images).transform(images)
    assert cnn.engine_ == engine
    assert cnn.layer_names_ == layers
    assert cnn.feature_shapes_ == [output.shape[1:] for output in expected]
    ends = np.cumsum([output[0].size for output in expected])
    parts = np.split(features, ends[:-1], axis=1)
    for layer, part, output in zip(layers, parts, expected, strict=True):
        assert np.abs(output).max() > 0
        assert parity.distance(part, output) <= parity.LIMIT, layer


# Of each kind of blocks without and with squeeze and excitation; the others are slow.
SAMPLE = {"mobilenet", "mobilenet_v3_small"}


@pytest.mark.parametrize(
    "name",
    [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS],
)
def test_features_are_those_of_keras(name, tmp_path):
    compare(name, NETWORKS[name], tmp_path, "openvino")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_v2_b0"])
@pytest.mark.slow
def test_the_engine_keras_gives_them_too(name, tmp_path):
    compare(name, NETWORKS[name], tmp_path, "keras")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mobilenet", ["conv_pw_13_relu", "global_average_pooling2d", "conv_preds", "predictions"]),
        ("mobilenet_v3_small", ["conv_2", "activation_18", "logits", "flatten", "predictions"]),
        pytest.param("vgg16", ["block5_pool", "fc1", "fc2", "predictions"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.sampled(1)
def test_layers_of_the_classifier(name, layers, tmp_path):
    compare(name, None if name == "vgg16" else 96, tmp_path, "openvino", layers)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list_models())
def test_every_network_at_native_size(name):
    record = parity.check_alone(name)
    assert "error" not in record, record["error"]
    for row in record["layers"]:
        for engine in parity.ENGINES:
            assert row[engine] <= parity.LIMIT, (row["layer"], engine)


# --- weights of one's own ------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_file_changed_in_place(tmp_path):
    """Other bytes are another network, in this process and in its compiled programs."""
    import keras

    path = tmp_path / "own.weights.h5"
    X = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    model = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(64, 64, 3))
    cut = keras.Model(model.input, model.get_layer("conv_pw_1_relu").output)
    cnn = CNNFeatureTransformer("mobilenet", "conv_pw_1_relu", "avg", weights=path, input_size=64)
    for factor in (1, 2):
        model.get_layer("conv1").kernel.assign(model.get_layer("conv1").kernel * factor)
        model.save_weights(path)
        expected = cut.predict(X / 127.5 - 1, verbose=0).mean(axis=(1, 2))
        rows = cnn.fit_transform(X)
        np.testing.assert_allclose(rows, expected, atol=5e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_weights_that_do_not_fit(tmp_path):
    import keras

    X = np.zeros((1, 64, 64, 3), np.uint8)
    other = keras.applications.MobileNetV2(weights=None, include_top=False)
    other.save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "junk.weights.h5").write_bytes(b"junk")
    for name in ("other.weights.h5", "junk.weights.h5"):
        cnn = CNNFeatureTransformer("mobilenet", "conv1", weights=tmp_path / name, input_size=64)
        with pytest.raises(ValueError, match="do not fit 'mobilenet' without its classifier"):
            cnn.fit(X)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        cnn.set_params(weights=tmp_path / "missing.h5").fit(X)


# --- random weights -----------------------------------------------------------------------------

_RANDOM_ROWS = """
import json, sys
import numpy as np
from sklearn_cnnfeat import CNNFeatureTransformer
X = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
cnn = CNNFeatureTransformer(
    "mobilenet_v2", "block_6_expand_relu", "avg", weights=None, input_size=64, random_state=7
)
"""


def test_random_state_determines_the_weights(tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)

    def rows(random_state):
        cnn = CNNFeatureTransformer(
            "mobilenet_v2",
            "block_6_expand_relu",
            "avg",
            weights=None,
            input_size=64,
            random_state=random_state,
        )
        return cnn.fit_transform(X)

    first = rows(7)
    assert first.std() > 0
    np.testing.assert_array_equal(rows(np.random.RandomState(7)), first)
    assert not np.array_equal(rows(8), first)
    # In a process that has not seen anything, and finds no program.
    code = _RANDOM_ROWS + "print(json.dumps(cnn.fit_transform(X).tolist()))"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SKLEARN_CNNFEAT_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    np.testing.assert_array_equal(np.float32(json.loads(process.stdout)), first)


def test_weights_of_a_seed_leave_the_generators_alone():
    import random

    random.seed(3)
    before = random.getstate()
    X = np.zeros((1, 64, 64, 3), np.uint8)
    CNNFeatureTransformer(
        "mobilenet", "conv1", "avg", weights=None, input_size=64, random_state=1
    ).fit(X)
    assert random.getstate() == before
