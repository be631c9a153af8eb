"""Models of one's own get pixels as they are; `fit` says so where the model does not rescale."""

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer, _parameters

keras = pytest.importorskip("keras")
layers = keras.layers

X = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def model(*first):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            *first,
            layers.Conv2D(2, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(2),
        ],
        name="own",
    )


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(_parameters, "_hinted", set())


def said(capsys, cnn):
    capsys.readouterr()
    cnn.set_params(verbose=1).fit(X)
    return "choose preprocessing='rescale' (0 to 1)" in capsys.readouterr().err


@pytest.mark.parametrize("first", [[], [layers.RandomFlip()], [layers.ZeroPadding2D()]])
@pytest.mark.slow
def test_a_model_without_rescaling(first, capsys):
    own = model(*first)
    assert said(capsys, CNNFeatureTransformer(own, "last"))
    # Once.
    assert not said(capsys, CNNFeatureTransformer(own, "last", "avg"))
    assert said(capsys, CNNFeatureTransformer(model(*first), "last"))


def test_a_file(capsys, tmp_path):
    model().save(tmp_path / "own.keras")
    assert said(capsys, CNNFeatureTransformer(tmp_path / "own.keras", "last"))


@pytest.mark.parametrize(
    "first",
    [
        [layers.Rescaling(1 / 255)],
        [layers.Normalization(mean=0.0, variance=1.0)],
        [layers.RandomFlip(), layers.BatchNormalization()],
    ],
)
@pytest.mark.sampled(1)
def test_a_model_that_rescales_by_itself(first, capsys):
    assert not said(capsys, CNNFeatureTransformer(model(*first), "last"))


@pytest.mark.parametrize("preprocessing", [None, "rescale", "tf", lambda batch: batch / 255])
@pytest.mark.sampled(2)
def test_preprocessing_that_was_chosen(preprocessing, capsys):
    assert not said(capsys, CNNFeatureTransformer(model(), "last", preprocessing=preprocessing))


# One whose pixels are preprocessed before it, and one that rescales them itself.
@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v3_small"])
def test_networks_by_name(name, capsys):
    cnn = CNNFeatureTransformer(name, "last", "avg", weights=None, input_size=32)
    assert not said(capsys, cnn)
