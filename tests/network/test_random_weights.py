"""Random weights: Keras' distributions, the same numbers on every backend."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

# Draws the weights of a small network and writes a digest of them.
_SCRIPT = """
import hashlib
import numpy as np
from sklearn_cnnfeat._network.keras_models import import_keras
keras = import_keras()
from sklearn_cnnfeat._network.random_weights import draw
from test_random_weights import small_network
# Without values that would be drawn in vain.
with keras.StatelessScope(initialize_variables=False):
    model = small_network(keras)
draw(model, 3)
digest = hashlib.sha256()
for variable in model.weights:
    digest.update(np.ascontiguousarray(variable.numpy()))
print(keras.backend.backend(), digest.hexdigest())
"""


def small_network(keras):
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((16, 16, 8)), layers.SeparableConv2D(4, 3), layers.PReLU()], name="inner"
    )
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.RandomFlip(),
            layers.Conv2D(8, 3, padding="same", kernel_initializer="he_normal"),
            layers.BatchNormalization(),
            inner,
            layers.Flatten(),
            layers.Dense(5, bias_initializer="ones"),
        ]
    )


@pytest.fixture(scope="module")
def keras():
    from sklearn_cnnfeat._network.keras_models import import_keras

    return import_keras()


def draw(model, seed):
    from sklearn_cnnfeat._network.random_weights import draw

    draw(model, seed)
    return [np.array(variable.numpy()) for variable in model.weights]


@pytest.mark.slow
def test_the_same_on_another_backend(keras):
    model = small_network(keras)
    digest = hashlib.sha256()
    draw(model, 3)
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable.numpy()))
    folder = os.path.dirname(__file__)
    environment = os.environ | {
        "KERAS_BACKEND": "openvino",
        "PYTHONPATH": os.pathsep.join([folder, *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-2:] == ["openvino", digest.hexdigest()]


def test_the_seed_decides(keras):
    model = small_network(keras)
    first = draw(model, 0)
    assert all(np.array_equal(a, b) for a, b in zip(first, draw(model, 0), strict=True))
    assert not np.array_equal(first[0], draw(model, 1)[0])
    assert not np.array_equal(draw(model, None)[0], draw(model, None)[0])


def test_nothing_but_kernels_is_random(keras):
    model = small_network(keras)
    draw(model, 0)
    normalization = next(v for v in model.layers if "batch_norm" in v.name)
    for name, expected in [("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1)]:
        assert np.all(getattr(normalization, name).numpy() == expected)
    assert np.all(model.layers[-1].bias.numpy() == 1)
    assert np.all(model.get_layer("inner").layers[-1].alpha.numpy() == 0)


_SHAPE = (5, 5, 40, 60)
_N = np.prod(_SHAPE)
INITIALIZERS = (
    "glorot_uniform glorot_normal he_uniform he_normal lecun_uniform lecun_normal random_uniform "
    "random_normal truncated_normal"
).split()


@pytest.mark.parametrize("name", INITIALIZERS)
def test_distributions_are_those_of_keras(keras, name):
    layer = keras.layers.Conv2D(60, 5, kernel_initializer=name)
    model = keras.Sequential([keras.Input((9, 9, 40)), layer])
    draw(model, 0)
    ours = layer.kernel.numpy()
    theirs = np.asarray(keras.initializers.get(name)(_SHAPE))
    # Both are samples: a sample's deviation varies by 1 / sqrt(2 n), its mean by 1 / sqrt(n).
    deviation = theirs.std()
    assert abs(ours.std() / deviation - 1) < 6 / np.sqrt(_N)
    assert abs(ours.mean() - theirs.mean()) < 8 * deviation / np.sqrt(_N)
    # Bounded distributions end at the same place, of which this many numbers fall short a little.
    if "_normal" not in name or name == "truncated_normal":
        assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=1e-3)


@pytest.mark.parametrize("kind", ["DepthwiseConv2D", "SeparableConv2D"])
def test_depthwise_kernels_have_initializers_of_their_own(keras, kind):
    layer = getattr(keras.layers, kind)(
        *((8, 3) if kind == "SeparableConv2D" else (3,)), depthwise_initializer="ones"
    )
    draw(keras.Sequential([keras.Input((9, 9, 4)), layer]), 0)
    kernel = layer.depthwise_kernel if kind == "SeparableConv2D" else layer.kernel
    assert np.all(kernel.numpy() == 1)


def test_other_initializers_get_a_scale_that_fits(keras):
    layer = keras.layers.Conv2D(60, 5, kernel_initializer="orthogonal")
    model = keras.Sequential([keras.Input((9, 9, 40)), layer])
    draw(model, 0)
    assert layer.kernel.numpy().std() == pytest.approx(np.sqrt(2 / 1000), rel=6 / np.sqrt(_N))


def test_constants(keras):
    layer = keras.layers.Dense(3, bias_initializer=keras.initializers.Constant(0.25))
    draw(keras.Sequential([keras.Input((4,)), layer]), 0)
    assert np.all(layer.bias.numpy() == 0.25)
