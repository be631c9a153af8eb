"""Where networks come from: a class for each kind of `model=`, and what fingerprints say of it."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small_network import save_network

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._network import networks
from sklearn_cnnfeat._network.find_source import KINDS, find_source
from sklearn_cnnfeat._network.keras_sources import KerasObject, ModelFile, NamedNetwork
from sklearn_cnnfeat._network.onnx_source import OnnxFile
from sklearn_cnnfeat._network.spec import Asked, installed_version
from sklearn_cnnfeat._network.torch_sources import TimmNetwork, TorchModule

PUBLISHED = {"weights": "imagenet", "digest": "d"}
REST = '"include_top": false, "seed": null, "digest": "d"'


# Written down, because all features that are in caches are found by it.
@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            NamedNetwork("vgg16", include_top=True, trusted=True, **PUBLISHED),
            '{"kind": "zoo", "name": "vgg16", "weights": "file", "include_top": true, '
            '"seed": null, "digest": "d"}',
        ),
        (
            NamedNetwork("vgg16", weights="random", seed=3),
            '{"kind": "zoo", "name": "vgg16", "weights": "random", "include_top": false, '
            '"seed": 3, "digest": null}',
        ),
        (
            NamedNetwork("vgg16", weights="/a/w.h5", digest="d"),
            f'{{"kind": "zoo", "name": "vgg16", "weights": "file", {REST}}}',
        ),
        (
            ModelFile("/a/b.keras", digest="d", trusted=True),
            f'{{"kind": "file", "weights": "own", {REST}, "archive": true}}',
        ),
        (
            ModelFile("/a/b.h5", digest="d"),
            f'{{"kind": "file", "weights": "own", {REST}, "archive": false}}',
        ),
        (KerasObject("m", digest="d"), f'{{"kind": "object", "weights": "own", {REST}}}'),
        (OnnxFile("/a/x.onnx", digest="d"), f'{{"kind": "onnx", "weights": "own", {REST}}}'),
        (TorchModule("ResNet", digest="d"), f'{{"kind": "torch", "weights": "own", {REST}}}'),
        (
            TimmNetwork("timm/x", **PUBLISHED),
            f'{{"kind": "timm", "name": "timm/x", "weights": "file", {REST}, '
            f'"timm": {json.dumps(installed_version("timm"))}}}',
        ),
    ],
)
def test_what_fingerprints_say(source, text):
    assert json.dumps(source.identity()) == text


def find(model, **parameters):
    return find_source(Asked(model, ("last",), **parameters))


def test_the_table_finds_each_kind(tmp_path):
    keras = pytest.importorskip("keras")
    onnx, h5 = tmp_path / "net.ONNX", tmp_path / "net.h5"
    for path in (onnx, h5):
        path.write_bytes(b"")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()], name="own")
    assert find("VGG16") == NamedNetwork("vgg16", weights="imagenet")
    assert find("vgg16", weights=None, draw_seed=lambda: 3).seed == 3
    assert find(h5, trusted=True) == ModelFile(str(h5), trusted=True)
    assert find(os.fspath(onnx)) == OnnxFile(str(onnx))
    assert find("timm/resnet18") == TimmNetwork("timm/resnet18", weights="imagenet")
    assert find(model) == KerasObject("own")
    assert len({kind.kind for kind in KINDS}) == len(KINDS) == 6


def test_the_table_finds_modules():
    torch = pytest.importorskip("torch")
    assert find(torch.nn.Conv2d(3, 4, 3)) == TorchModule("Conv2d")


def test_sources_of_different_kinds_differ():
    assert len({kind("a", digest="d") for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("kind", "engine", "reason"),
    [
        (OnnxFile, "keras", "engine='keras' runs Keras models, and the network in 'a' is none"),
        (TimmNetwork, "keras", "engine='keras' runs Keras models, and 'a' is none"),
        (OnnxFile, "torch", "the network in 'a' is neither"),
        (ModelFile, "torch", "engine='torch' runs PyTorch modules .*the model in 'a' is neither"),
    ],
)
def test_engines_that_do_not_run_a_kind_are_refused(kind, engine, reason):
    with pytest.raises(ValueError, match=reason):
        networks.check_engine(engine, kind("a"))


def test_published_weights_need_no_trust(imagenet_home, monkeypatch, tmp_path):
    """They are inspected always, so that they are never inspected again by a path they lack."""
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    settings = {"layer": "conv1_relu", "pooling": "avg", "input_size": 32}
    trusting, other = (
        CNNFeatureTransformer("mobilenet", trusted=trusted, **settings) for trusted in (True, False)
    )
    rows = trusting.fit_transform(images)
    networks.forget_networks()
    np.testing.assert_array_equal(other.fit_transform(images), rows)
    networks.forget_networks()


def save_onnx(path, seed):
    from onnx_networks import Writer, save

    writer = Writer(seed)
    value = writer.conv("images", "one", 3, 4)
    return str(save(writer.model(value, (1, 3, 32, 32)), path))


@pytest.fixture(params=["keras", "onnx"])
def fitted(request, tmp_path, monkeypatch):
    """Return a fitted transformer whose compiled network is gone, its images, and their rows.

    Last comes what writes the file of the network: it takes a seed.
    """
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
    path = tmp_path / f"network.{request.param}"
    if request.param == "onnx":
        pytest.importorskip("onnx")
    write = partial(save_network if request.param == "keras" else save_onnx, path)
    network, images = write(seed=0), np.zeros((2, 32, 32, 3), np.uint8)
    parameters = {"preprocessing": None, "input_size": 32}
    cnn = CNNFeatureTransformer(network, 1, "avg", **parameters)
    rows = cnn.fit_transform(images)
    networks.forget_networks()
    shutil.rmtree(tmp_path / "home" / "networks")
    return cnn, images, rows, write


def test_a_file_that_changes_after_fit_is_an_error(fitted):
    cnn, images, rows, write = fitted
    content = Path(cnn.model).read_bytes()
    write(seed=1)
    with pytest.raises(RuntimeError, match=r"has changed since fit.* Call fit again"):
        cnn.transform(images)
    Path(cnn.model).write_bytes(content)
    np.testing.assert_array_equal(cnn.transform(images), rows)


def test_a_file_that_is_gone_after_fit_is_an_error(fitted):
    cnn, images, *_ = fitted
    os.unlink(cnn.model)
    with pytest.raises(FileNotFoundError, match=r"network of fit is gone\. Put the file back"):
        cnn.transform(images)
