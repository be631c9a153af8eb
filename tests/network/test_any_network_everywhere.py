"""Everything that works with Keras' networks works with ONNX files and PyTorch modules."""

import importlib.util
from collections import OrderedDict
from dataclasses import dataclass

import joblib
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import numpy_helper
from onnx_networks import residual_network, save, vision_transformer
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_onnx import run_onnxruntime

from sklearn_cnnfeat import (
    ChannelExamplesDisplay,
    CNNFeatureTransformer,
    DecisionMapDisplay,
    EmbeddingDisplay,
    FeatureCache,
    FeatureMapDisplay,
    FilterDisplay,
    decision_map,
    explore,
    extract,
    filter_summary,
    layer_report,
    layer_scores,
    layer_summary,
    load_features,
    precompute,
)
from sklearn_cnnfeat._cli import main
from sklearn_cnnfeat._images import Images
from sklearn_cnnfeat._network.engines.openvino import OpenVINOEngine
from sklearn_cnnfeat._network.runtime import supports_bfloat16

SIZE = 32
N = 12
KINDS = ["onnx", *(["torch"] if importlib.util.find_spec("torch") else [])]
METADATA = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}


@dataclass
class Case:
    """A network, the names of some of its layers, and its first kernel."""

    model: object
    # An early layer and a late one, which give maps.
    layers: list
    # A layer with a kernel.
    conv: str
    # (height, width, channels in, filters).
    kernel: np.ndarray


def make_onnx(folder):
    model = residual_network(("n", 3, SIZE, SIZE), metadata=METADATA)
    path = str(save(model, folder / "network.onnx"))
    weights = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    kernel = weights["stem.weight"].transpose(2, 3, 1, 0)
    return Case(path, ["/stem/Relu", "/block1/Add"], "/stem/Conv", kernel)


def make_torch():
    from torch import nn
    from torch_networks import scale_weights

    parts = {
        "conv1": nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False),
        "bn1": nn.BatchNorm2d(8),
        "relu1": nn.ReLU(inplace=True),
        "conv2": nn.Conv2d(8, 16, 3, stride=2, padding=1),
        "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(16, 5),
    }
    network = scale_weights(nn.Sequential(OrderedDict(parts)))
    network.pretrained_cfg = {
        **{"input_size": (3, SIZE, SIZE), "mean": [0.5] * 3, "std": [0.25] * 3}
    }
    kernel = parts["conv1"].weight.detach().numpy().transpose(2, 3, 1, 0)
    return Case(network, ["relu1", "relu2"], "conv1", kernel)


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    if request.param == "torch":
        return make_torch()
    return make_onnx(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def data():
    """Two classes: a bright square at the top left or at the bottom right."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 120, (N, SIZE, SIZE, 3), dtype=np.uint8)
    X[: N // 2, 2:12, 2:12] = rng.integers(180, 256, (N // 2, 10, 10, 3))
    X[N // 2 :, 20:30, 20:30] = rng.integers(180, 256, (N - N // 2, 10, 10, 3))
    return X, np.repeat(["left", "right"], N // 2)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Return a folder of the same photographs, one subfolder per class."""
    folder = tmp_path_factory.mktemp("photos")
    for i, (pixels, label) in enumerate(zip(*data, strict=True)):
        (folder / label).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / label / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


def make(case, layer=None, pooling="avg", **settings):
    layer = case.layers[1] if layer is None else layer
    return CNNFeatureTransformer(case.model, layer, pooling, **{"engine": "openvino", **settings})


@pytest.fixture
def computed(monkeypatch):
    """Return a list that gets a number for each image that goes through a network."""
    numbers, run = [], OpenVINOEngine.run

    def counting(engine, batches, deliver):
        def count(token, rows):
            if isinstance(token, tuple):  # conversions compare on noise without a key
                numbers.append(token[0])
            deliver(token, rows)

        return run(engine, batches, count)

    monkeypatch.setattr(OpenVINOEngine, "run", counting)
    return numbers


# --- cache, search, files -------------------------------------------------------------------------


def test_cache(case, data, tmp_path, computed):
    X, _ = data
    expected = make(case).fit_transform(X)
    computed.clear()
    cnn = make(case, cache=tmp_path / "cache").fit(X)
    first = cnn.transform(X)
    assert len(computed) == N
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(clone(cnn).fit_transform(X[::-1]), expected[::-1])
    assert len(computed) == N
    assert FeatureCache(tmp_path / "cache").info().rows == N


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_search_over_layers(case, data, tmp_path, computed, n_jobs):
    X, y = data
    cnn = make(case, cache=tmp_path / "cache")
    grid = {
        "cnnfeaturetransformer__layer": case.layers,
        "cnnfeaturetransformer__pooling": ["avg", "max"],
    }
    pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipe, grid, cv=3, n_jobs=n_jobs, error_score="raise")
    report = precompute(search, X, verbose=0)
    assert (report.n_passes, report.n_computed) == (1, N)
    computed.clear()
    search.fit(X, y)
    assert not computed
    scores = layer_scores(search)
    assert set(scores["layer"]) == set(case.layers)
    assert search.best_score_ == scores["mean_test_score"].max()
    # As without any cache.
    best = search.best_estimator_
    plain = clone(best).set_params(cnnfeaturetransformer__cache=None).fit(X, y)
    np.testing.assert_array_equal(plain.decision_function(X), best.decision_function(X))


def test_layer_report_chooses_layers(case, data):
    X, y = data
    report = layer_report(X, y, case.model, cv=2, verbose=0)
    assert len(report) >= 2 and set(report["layer"]) <= set(layer_summary(case.model)["path"])


def test_saved_pipeline(case, data, tmp_path):
    X, y = data
    pipe = make_pipeline(make(case), LogisticRegression()).fit(X, y)
    joblib.dump(pipe, tmp_path / "model.joblib")
    again = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(again.predict_proba(X), pipe.predict_proba(X))


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_extract_goes_on_after_an_interruption(case, paths, tmp_path, computed, form):
    expected = make(case).fit_transform(paths)
    computed.clear()
    to, decode = tmp_path / f"features.{form}", Images.decode

    def interrupt(images, raw, spec, name):
        if name == paths[9]:
            raise KeyboardInterrupt
        return decode(images, raw, spec, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Images, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(paths, to, make(case, n_jobs=1), part_size=4, verbose=0)
    n_closed = 4 * len(list((tmp_path / f"{to.name}.parts").glob("part-*")))
    assert n_closed and not to.exists()
    report = extract(paths, to, make(case, n_jobs=1), part_size=4, verbose=0)
    assert (report.n_images, report.n_computed) == (N, N - n_closed)
    np.testing.assert_array_equal(load_features(to).data, expected)


def test_dask(case, data):
    array = pytest.importorskip("dask.array")
    X, _ = data
    cnn = make(case)
    lazy = cnn.fit_transform(array.from_array(X, chunks=(5, SIZE, SIZE, 3)))
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), cnn.transform(X))


# --- looking inside -------------------------------------------------------------------------------


def test_summaries(case):
    layers = layer_summary(make(case)).set_index("path")
    assert set(case.layers) <= set(layers.index)
    assert layers["output_shape"][case.layers[0]][:2] == (16, 16)
    filters = filter_summary(make(case)).set_index("path")
    assert filters["kernel_shape"][case.conv] == case.kernel.shape
    np.testing.assert_allclose(filters["std"][case.conv], case.kernel.std(), rtol=1e-5)


def test_filters_are_the_networks_own(case):
    display = FilterDisplay.from_estimator(make(case), layer=case.conv, rgb=True)
    np.testing.assert_array_equal(display.kernel, case.kernel)
    display = FilterDisplay.from_estimator(case.model, layer=case.conv)
    assert display.layer == case.conv


def test_filters_that_are_not_there(case):
    with pytest.raises(ValueError, match="has no kernel to be drawn"):
        FilterDisplay.from_estimator(make(case), layer=case.layers[0])


def test_feature_maps(case, data):
    X, _ = data
    maps = make(case, pooling=None).fit_transform(X[:2])
    display = FeatureMapDisplay.from_estimator(make(case), X[:2])
    np.testing.assert_array_equal(display.maps[0], maps)
    both = FeatureMapDisplay.from_estimator(make(case), X[0], layer=case.layers, combine="mean")
    assert both.layers == case.layers


@pytest.mark.parametrize("pooling", ["avg", "flatten"])
def test_decisions_add_up(case, data, pooling):
    X, y = data
    pipe = make_pipeline(make(case, pooling=pooling), StandardScaler(), LogisticRegression())
    pipe.fit(X, y)
    result = decision_map(pipe, X[0])
    decision = pipe.decision_function(X[:1]).item()
    terms = np.abs(result.map).sum() + abs(result.intercept)
    assert result.method == "exact"
    # Sums of float32 numbers: terms x eps x their size.
    assert abs(result.map.sum() + result.intercept - decision) <= 1e-5 * terms
    assert decision_map(pipe, X[0], method="occlusion", patch_size=16).map.shape
    DecisionMapDisplay.from_estimator(pipe, X[0])


def test_pictures_of_many_photographs(case, data, paths, tmp_path):
    X, y = data
    pipe = make_pipeline(make(case), StandardScaler(), LogisticRegression()).fit(X, y)
    assert EmbeddingDisplay.from_estimator(pipe, X, y).points.shape == (N, 2)
    examples = ChannelExamplesDisplay.from_estimator(make(case), X, [0, 3], n_examples=4)
    assert np.shape(examples.indices) == (2, 4)
    page = tmp_path / "page.html"
    explore(make_pipeline(make(case), LogisticRegression()).fit(paths, y), paths, y, to=page)
    assert "left" in page.read_text(encoding="utf-8")


def test_tokens_are_listed_and_drawn(tmp_path):
    path = str(save(vision_transformer(), tmp_path / "vit.onnx"))
    shapes = layer_summary(path).set_index("path")["output_shape"]
    assert shapes["/Add"] == shapes["/norm/LayerNormalization"] == (4, 6, 20)
    pixels = np.random.default_rng(5).integers(0, 256, (8, 32, 48, 3), np.uint8)
    inputs = np.ascontiguousarray(pixels[:1].transpose(0, 3, 1, 2), np.float32) / 255
    tokens = run_onnxruntime(path, inputs)["/Add_output_0"][0, 2:]
    cnn = CNNFeatureTransformer(path, "/Add", "avg", preprocessing="rescale")
    maps = FeatureMapDisplay.from_estimator(cnn, pixels[0]).maps[0][0]
    np.testing.assert_allclose(maps, tokens.reshape(4, 6, 20), atol=5e-6 * np.abs(tokens).max())
    y = np.arange(8) % 2
    pipe = make_pipeline(cnn, LogisticRegression()).fit(pixels, y)
    result = decision_map(pipe, pixels[0])
    assert result.method == "exact" and result.map.shape == (4, 6)


# --- other arithmetic -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_precisions(case, data, precision):
    if precision == "int8":
        pytest.importorskip("nncf")
    elif not supports_bfloat16():
        pytest.skip("this processor has no bfloat16")
    X, _ = data
    expected = make(case).fit_transform(X)
    rows = make(case, precision=precision).fit_transform(X)
    difference = np.abs(rows - expected).max() / np.abs(expected).max()
    # Images and weights of 8 bits in up to seven convolutions: half a unit of 1/127 for each.
    assert 0 < difference <= 2 * 7 / 254


def test_ncnn(case, data):
    pytest.importorskip("ncnn")
    X, _ = data
    expected = make(case).fit_transform(X)
    cnn = make(case, engine="ncnn")
    rows = cnn.fit_transform(X)
    assert cnn.engine_ == "ncnn"
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, folder, monkeypatch):
    make_onnx(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_layers_and_filters_of_a_file_on_the_command_line(here, capfd):
    assert run("layers", "network.onnx", "*Relu*", "--csv") == 0
    assert "/block0/relu2/Relu" in capfd.readouterr().out
    assert run("layers", "network.onnx", "--filters", "--json") == 0
    assert "stem.weight" in capfd.readouterr().out
    assert run("filters", "network.onnx", "-l", "/stem/Conv", "--rgb", "-o", "filters.png") == 0
    assert Image.open("filters.png").size[0] > 0


def test_extract_and_maps_of_a_file_on_the_command_line(here, folder, paths, capfd):
    network = ["--model", "network.onnx", "--layer", "/block1/Add"]
    assert run("extract", folder, "-o", "features.parquet", *network) == 0
    features = load_features("features.parquet")
    cnn = CNNFeatureTransformer("network.onnx", "/block1/Add", "avg")
    np.testing.assert_array_equal(features.data, cnn.fit_transform(paths))
    assert len(pd.read_parquet("features.parquet")) == N
    assert run("maps", paths[0], *network, "-o", "maps.png") == 0
    assert Image.open("maps.png").size[0] > 0
    search = ["search", folder, *network[:2], "--layers", "/stem/Relu", "/block1/Add"]
    assert run(*search, "--C", "1", "--cv", "2", "-o", "model.joblib") == 0
    assert run("predict", "model.joblib", paths[0]) == 0
    assert "left" in capfd.readouterr().out


def test_a_damaged_file_on_the_command_line(here, capfd):
    content = onnx.load("network.onnx").SerializeToString()
    (here / "network.onnx").write_bytes(content[:1000])
    assert run("layers", "network.onnx") != 0
    assert "cannot be read as an ONNX file" in capfd.readouterr().err


def test_names_of_timm_on_the_command_line(here, folder, capfd):
    pytest.importorskip("timm")
    assert run("models", "timm/mobilenetv3_small_050*") == 0
    assert "timm/mobilenetv3_small_050.lamb_in1k" in capfd.readouterr().out
    assert run("models", "timm/mobilenetv3_small_050", "--json") == 0
    assert "timm/mobilenetv3_small_050.lamb_in1k" in capfd.readouterr().out
    name = "timm/mobilenetv3_small_050"
    assert run("layers", name, "blocks.1*", "--weights", "random", "--csv") == 0
    assert "blocks.1.0.conv_pw" in capfd.readouterr().out
    settings = ["--weights", "random", "--input-size", "64", "--engine", "torch"]
    assert run("extract", folder, "-o", "f.npy", "-m", name, "-l", "stride16", *settings) == 0
    assert len(load_features("f.npy").data) == N
