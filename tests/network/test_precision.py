"""Lower precision and faster decoding: what they change, and what they refuse."""

import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from small_network import save_photos

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._network import networks
from sklearn_cnnfeat._network import quantize as quantize_module
from sklearn_cnnfeat.exceptions import ImageError, UnreadableImageWarning


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("pictures"), 24)


def _cosines(a, b):
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _features(network, pictures, **parameters):
    return CNNFeatureTransformer(network, "three", "flatten", **parameters).fit_transform(pictures)


@pytest.fixture
def quantized(monkeypatch):
    """Forget what is loaded, and count the networks that are quantized."""
    made = []
    quantize = quantize_module.quantize

    def count(network, batches):
        made.append(len(batches))
        return quantize(network, batches)

    monkeypatch.setattr(quantize_module, "quantize", count)
    networks.forget_networks()
    return made


def test_int8_stays_near_float32(network, pictures):
    exact = _features(network, pictures)
    rows = _features(network, pictures, precision="int8")
    assert not np.array_equal(exact, rows)
    assert _cosines(exact, rows).min() > 0.98


KERNELS = ("Convolution", "GroupConvolution", "MatMul")


def _own_network(kind, folder):
    """Save a network with all that has a kernel, as Keras and as PyTorch compute it."""
    from onnx_networks import residual_network, save

    if kind == "onnx":
        return save(residual_network((1, 3, 32, 32)), folder / "network.onnx")
    import keras

    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(16, 3, use_bias=False, name="plain"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu", name="strided"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8, name="dense"),
        ]
    )
    network.save(folder / "network.keras")
    return folder / "network.keras"


@pytest.mark.parametrize("kind", ["keras", "onnx"])
def test_all_kernels_have_8_bits(kind, pictures, tmp_path, monkeypatch):
    made = []

    def keep(network, batches):
        made.append(quantize(network, batches))
        return made[-1]

    quantize = quantize_module.quantize
    monkeypatch.setattr(quantize_module, "quantize", keep)
    settings = {"input_size": 32, "preprocessing": "rescale", "precision": "int8"}
    CNNFeatureTransformer(_own_network(kind, tmp_path), -1, None, **settings).fit(pictures)
    (network,) = made
    kernels = [node.input_value(1) for node in network.get_ops() if node.get_type_name() in KERNELS]
    assert len(kernels) >= 4
    for kernel in kernels:
        assert _stored_types(kernel.get_node()) == {"i8"}


def _stored_types(node):
    """Return the types of the largest constants that a kernel is computed from."""
    constants = []

    def collect(node):
        if node.get_type_name() == "Constant":
            constants.append(node)
        for value in node.input_values():
            collect(value.get_node())

    collect(node)
    sizes = [np.prod(list(constant.shape)) for constant in constants]
    largest = [c for c, size in zip(constants, sizes, strict=True) if size == max(sizes)]
    return {constant.get_element_type().get_type_name() for constant in largest}


@pytest.mark.slow
def test_one_calibration_serves_all_folds(network, pictures, quantized, monkeypatch, tmp_path):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path))
    rows = [
        _features(network, fold, precision="int8", calibration=pictures[::2])
        for fold in (pictures[:12], pictures[12:], pictures)
    ]
    assert quantized == [12]
    np.testing.assert_array_equal(np.vstack(rows[:2]), rows[2])
    # Without images of its own each fold calibrates on what it is fitted on.
    _features(network, pictures[:12], precision="int8")
    _features(network, pictures[12:], precision="int8")
    assert quantized == [12, 12, 12]


def test_int8_beside_images_that_cannot_be_read(network, pictures, quantized, tmp_path):
    broken = str(tmp_path / "broken.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    cnn = CNNFeatureTransformer(network, "three", "avg", precision="int8", on_error="nan")
    with pytest.warns(UnreadableImageWarning, match="2 of 26"):
        rows = cnn.fit_transform([None, *pictures, broken])
    assert quantized == [24]
    np.testing.assert_array_equal(np.isnan(rows).any(axis=1), [True, *[False] * 24, True])
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        clone(cnn).set_params(on_error="raise").fit([broken, *pictures])
    with pytest.raises(ValueError, match=r"none of the calibration images can be read"):
        cnn.fit([broken])


@pytest.mark.slow
def test_lost_int8_network(network, pictures, quantized, monkeypatch, tmp_path):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
    own = CNNFeatureTransformer(network, "three", "avg", precision="int8").fit(pictures)
    given = CNNFeatureTransformer(
        network, "three", "avg", precision="int8", calibration=pictures[:8]
    ).fit(pictures)
    expected = given.transform(pictures)
    networks.forget_networks()
    shutil.rmtree(tmp_path / "home")
    with pytest.raises(RuntimeError, match="Call fit again, or say calibration=images"):
        own.transform(pictures)
    np.testing.assert_array_equal(given.transform(pictures), expected)


def test_precompute_needs_a_calibration_of_its_own(network, pictures, tmp_path):
    from sklearn_cnnfeat import precompute

    cnn = CNNFeatureTransformer(network, "three", "avg", precision="int8", cache=tmp_path)
    with pytest.raises(ValueError, match=r"differ from fold to fold\. Give calibration=images"):
        precompute(cnn, pictures, verbose=0)
    cnn.set_params(calibration=pictures)
    assert precompute(cnn, pictures, verbose=0).n_computed == len(pictures)
    assert precompute(cnn, pictures, verbose=0).n_hits == len(pictures)


@pytest.mark.slow
def test_int8_without_nncf(network, pictures, quantized, monkeypatch, tmp_path):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn-cnnfeat\[int8\]'"):
        _features(network, pictures, precision="int8")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_lower_precision_is_openvinos(network, pictures, precision):
    with pytest.raises(ValueError, match=r"arithmetic of the OpenVINO engine|is OpenVINO's"):
        _features(network, pictures, precision=precision, engine="keras")


def test_bfloat16_is_refused_where_it_is_emulated(network, pictures, monkeypatch):
    monkeypatch.setattr(networks, "supports_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="needs a processor that computes it in hardware"):
        _features(network, pictures, precision="bfloat16")


def test_quantization_opens_no_connection(network, pictures, tmp_path):
    """Nothing leaves the machine, although NNCF would report its use by default."""
    script = f"""
        import os, socket
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        os.environ["SKLEARN_CNNFEAT_HOME"] = {str(tmp_path)!r}
        os.environ["HOME"] = {str(tmp_path)!r}
        opened = []
        socket.socket.connect = lambda self, address: opened.append(address)
        socket.getaddrinfo = lambda *address, **more: opened.append(address)
        from sklearn_cnnfeat import CNNFeatureTransformer
        CNNFeatureTransformer({network!r}, "three", "avg", precision="int8").fit({pictures!r})
        from nncf.telemetry import telemetry
        print(opened, type(telemetry).__name__ == "NNCFTelemetry", os.environ.get("NNCF_CI"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert done.stdout == "[] False None\n"


def test_fast_decoding(network, tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    coarse.resize((1200, 900), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=90)
    coarse.resize((60, 45), Image.Resampling.BICUBIC).save(tmp_path / "small.jpg", quality=90)
    files = [str(tmp_path / "large.jpg"), str(tmp_path / "small.jpg")]
    cache = tmp_path / "cache"
    exact = _features(network, files, cache=cache)
    fast = _features(network, files, cache=cache, decode="fast")
    # One cache holds both; only the large picture is halved.
    assert not np.array_equal(exact[0], fast[0])
    np.testing.assert_array_equal(exact[1], fast[1])
    assert _cosines(exact, fast).min() > 0.999
    # Turned by EXIF, a picture is decoded no smaller than needed.
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(files[0]) as image:
        image.save(tmp_path / "turned.jpg", quality=90, exif=exif)
    turned = [str(tmp_path / "turned.jpg")]
    exact, fast = (
        _features(network, turned, decode=decode, resize="crop") for decode in ("exact", "fast")
    )
    assert _cosines(exact, fast).min() > 0.999
