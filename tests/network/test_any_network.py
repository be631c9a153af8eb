"""Networks that are not Keras', through the public interface."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx_networks import residual_network, save, vision_transformer
from sklearn.base import clone
from test_onnx import run_onnxruntime

from sklearn_cnnfeat import CNNFeatureTransformer, layer_summary
from sklearn_cnnfeat.exceptions import LayerNotFoundError, UntrustedModelError

TOLERANCE = 5e-6
PHOTOS = np.random.default_rng(5).integers(0, 256, (3, 40, 56, 3), np.uint8)
METADATA = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))


@pytest.fixture
def residual(tmp_path):
    return str(save(residual_network(("n", 3, 40, 56), metadata=METADATA), tmp_path / "net.onnx"))


def normalized(pixels):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_onnx_rows_equal_onnxruntime(residual):
    tensors = run_onnxruntime(residual, normalized(PHOTOS))
    maps = tensors["/block1/Add_output_0"].transpose(0, 2, 3, 1)
    cnn = CNNFeatureTransformer(residual, "/block1/Add", "flatten")
    assert_close(cnn.fit_transform(PHOTOS), maps.reshape(3, -1))
    assert cnn.layer_names_ == ["/block1/Add"]
    assert cnn.input_size_ == (40, 56)
    assert_close(cnn.set_params(pooling="avg").fit_transform(PHOTOS), maps.mean((1, 2)))
    several = cnn.set_params(layer=["/stem/Relu", "/fc/Gemm"], pooling="max").fit_transform(PHOTOS)
    stem = tensors["/stem/Relu_output_0"].max((2, 3))
    assert_close(several[:, :16], stem)
    assert_close(several[:, 16:], tensors["/fc/Gemm_output_0"])
    assert list(cnn.get_feature_names_out()[[0, -1]]) == ["/stem/Relu_c0", "/fc/Gemm_9"]


def test_rows_are_the_same_bits_alone_in_a_pickle_and_from_the_cache(residual, tmp_path):
    cnn = CNNFeatureTransformer(residual, "/block0/Add", cache=tmp_path / "cache").fit(PHOTOS)
    rows = cnn.transform(PHOTOS)
    for other in (
        cnn,
        pickle.loads(pickle.dumps(cnn)),
        clone(cnn).set_params(cache=None).fit(PHOTOS),
    ):
        np.testing.assert_array_equal(other.transform(PHOTOS[1:2]), rows[1:2])
    with ThreadPoolExecutor(2) as pool:
        for again in pool.map(cnn.transform, [PHOTOS, PHOTOS[::-1]]):
            np.testing.assert_array_equal(np.sort(again, axis=0), np.sort(rows, axis=0))


def test_a_fresh_process_imports_neither_keras_nor_torch(residual):
    CNNFeatureTransformer(residual, "/stem/Relu", "avg").fit(PHOTOS)  # converted, for later runs
    code = (
        "import sys, numpy as np; from sklearn_cnnfeat import CNNFeatureTransformer as C; "
        f"C({residual!r}, '/stem/Relu', 'avg').fit_transform(np.zeros((1, 40, 56, 3), np.uint8)); "
        "print([m for m in ('keras', 'tensorflow', 'torch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tokens(tmp_path):
    path = str(save(vision_transformer(), tmp_path / "vit.onnx"))
    pixels = np.random.default_rng(5).integers(0, 256, (2, 32, 48, 3), np.uint8)
    inputs = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 255
    tokens = run_onnxruntime(path, inputs)["/Add_output_0"]
    cnn = CNNFeatureTransformer(path, "/Add", "cls", preprocessing="rescale")
    assert_close(cnn.fit_transform(pixels), tokens[:, 0])
    assert cnn.feature_shapes_ == [(4, 6, 20)]
    assert_close(cnn.set_params(pooling="avg").fit_transform(pixels), tokens[:, 2:].mean(1))
    maps = cnn.set_params(pooling=None).fit_transform(pixels)
    assert_close(maps, tokens[:, 2:].reshape(2, 4, 6, 20))
    rows = cnn.set_params(pooling="flatten").fit_transform(pixels)
    assert_close(rows, tokens[:, 2:].reshape(2, -1))
    assert cnn.get_feature_names_out()[21] == "/Add_y0_x1_c1"


def test_maps_and_the_tokens_made_of_them_side_by_side(tmp_path):
    """A tensor and another view of it as outputs of one cut, which OpenVINO got wrong."""
    path = str(save(vision_transformer(), tmp_path / "vit.onnx"))
    pixels = np.random.default_rng(5).integers(0, 256, (2, 32, 48, 3), np.uint8)
    inputs = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 255
    tensors = run_onnxruntime(path, inputs)
    layers = ["/patch/Conv", "/patch/Transpose", "/norm/LayerNormalization", "/Add"]
    cnn = CNNFeatureTransformer(path, layers, "flatten", preprocessing="rescale")
    rows = np.split(cnn.fit_transform(pixels), 4, axis=1)
    assert_close(rows[0], tensors["/patch/Conv_output_0"].transpose(0, 2, 3, 1).reshape(2, -1))
    for part, layer, skipped in zip(rows[1:], layers[1:], (0, 2, 2), strict=True):
        assert_close(part, tensors[f"{layer}_output_0"][:, skipped:].reshape(2, -1))


def test_class_token_where_there_is_none(residual, tmp_path):
    path = str(save(vision_transformer(), tmp_path / "vit.onnx"))
    pixels = np.zeros((1, 32, 48, 3), np.uint8)
    for model, layer in ((path, "/patch/Transpose"), (path, "/patch/Conv")):
        with pytest.raises(ValueError, match="pooling='cls' takes the class token"):
            CNNFeatureTransformer(model, layer, "cls").fit(pixels)
    # Vectors pass through, whatever the pooling.
    CNNFeatureTransformer(residual, "/fc/Gemm", "avg").fit(PHOTOS)


def test_layer_summary_of_onnx(residual):
    summary = layer_summary(residual)
    assert list(summary["path"][:2]) == ["/stem/Conv", "/stem/BatchNormalization"]


def test_images_of_any_size(tmp_path):
    path = str(save(residual_network(), tmp_path / "any.onnx"))
    cnn = CNNFeatureTransformer(path, "/block1/Add", "avg", preprocessing=None)
    mixed = [PHOTOS[0], PHOTOS[1][:32, :32]]
    rows = cnn.fit_transform(mixed)
    assert cnn.input_size_ is None
    for row, image in zip(rows, mixed, strict=True):
        inputs = np.ascontiguousarray(image[None].transpose(0, 3, 1, 2), np.float32)
        maps = run_onnxruntime(path, inputs)["/block1/Add_output_0"]
        assert_close(row, maps.mean((2, 3))[0])


@pytest.mark.parametrize(
    ("parameters", "error", "match"),
    [
        ({"layer": "/block1/Ad"}, LayerNotFoundError, "Nearest names: '/block1/Add'"),
        ({"engine": "keras"}, ValueError, "engine='keras' runs Keras models"),
        ({"weights": "w.h5"}, ValueError, "is for networks by name"),
        ({"input_size": 64}, ValueError, "for images of 40 x 56 pixels"),
        ({"model": "missing.onnx"}, FileNotFoundError, "there is no such file"),
        ({"model": "weights.pth"}, ValueError, "a pickle of PyTorch"),
        ({"model": {"conv.weight": 0}}, (TypeError, ImportError), "state dict|pip install"),
    ],
)
def test_errors(residual, parameters, error, match):
    cnn = CNNFeatureTransformer(residual, "/block1/Add", "avg").set_params(**parameters)
    with pytest.raises(error, match=match):
        cnn.fit(PHOTOS)


def test_untrusted_files_are_refused_before_they_are_opened(tmp_path):
    model = residual_network()
    model.graph.node[0].domain = "com.example"
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedModelError, match="is not standard"):
        CNNFeatureTransformer(str(tmp_path / "net.onnx"), "last").fit(PHOTOS)
