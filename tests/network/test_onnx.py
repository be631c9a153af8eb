"""ONNX files: inspected before they are opened, every node equal to ONNX Runtime's."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_networks import Writer, residual_network, save, vision_transformer

from sklearn_cnnfeat._network.layers import find_layer
from sklearn_cnnfeat._network.onnx_files import read_onnx
from sklearn_cnnfeat._network.onnx_models import convert_onnx, image_facts
from sklearn_cnnfeat.exceptions import ModelFileError, UntrustedModelError

# float32 rounding of sums of up to 300 products, through the 12 layers of these networks.
TOLERANCE = 5e-6


def run_onnxruntime(path, images):
    """Return the value of every tensor of a network by its name."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    values = session.run(names, {session.get_inputs()[0].name: images})
    return dict(zip(names, values, strict=True))


def assert_equals_onnxruntime(path, converted, images, compute):
    """Compare every layer that features can be taken from; return how many."""
    expected = run_onnxruntime(path, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    computed = compute(converted, images)
    for layer in converted.layers:
        if layer.problem:
            assert layer.path not in computed
            continue
        value = expected[layer.alias]
        if value.ndim == 4:
            value = value.transpose(0, 2, 3, 1)
        assert computed[layer.path].shape[1:] == value.shape[1:]
        largest = np.abs(value).max()
        assert np.abs(computed[layer.path] - value).max() <= TOLERANCE * largest, layer.path
    return len(computed)


def images(*shape):
    return np.random.default_rng(3).uniform(-2, 2, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), ("n", 3, 64, 96), (1, 3, 40, 40)])
def test_every_node_of_a_residual_network_equals_onnxruntime(tmp_path, shape, compute):
    path = save(residual_network(shape), tmp_path / "network.onnx")
    converted = convert_onnx(path)
    height, width = (side if isinstance(side, int) else 56 for side in shape[2:])
    n_compared = assert_equals_onnxruntime(path, converted, images(1, height, width, 3), compute)
    assert n_compared == len(onnx.load(path).graph.node)
    pixels = converted.model.inputs[0]
    assert pixels.names == {"pixels"}
    assert [layer.index for layer in converted.layers] == list(range(n_compared))


def test_dynamic_batch(tmp_path, compute):
    path = save(residual_network(), tmp_path / "network.onnx")
    batch = images(3, 32, 48, 3)
    converted = convert_onnx(path, (32, 48))
    together = compute(converted, batch)
    for i in range(3):
        for name, value in compute(converted, batch[i : i + 1]).items():
            np.testing.assert_allclose(together[name][i], value[0], rtol=0, atol=1e-5)


def test_tokens_know_their_grid(tmp_path, compute):
    path = save(vision_transformer(), tmp_path / "network.onnx")
    converted = convert_onnx(path)
    assert_equals_onnxruntime(path, converted, images(1, 32, 48, 3), compute)
    layers = {layer.path: layer for layer in converted.layers}
    assert layers["/patch/Conv"].shape == (4, 6, 20)
    grid = layers["/Add"].grid
    assert (grid.n_prefix, grid.height, grid.width) == (2, 4, 6)
    assert layers["/patch/Transpose"].grid.n_prefix == 0
    # Channels before positions are not tokens yet.
    assert layers["/patch/Reshape"].grid is None


def test_files_for_one_image_at_a_time(tmp_path, compute):
    """Windows that are computed as if they were images, with their number as a constant."""
    net = Writer()
    value = net.conv("images", "conv", 3, 8)
    cut = net.weight("cut", [1, 8, 2, 4, 2, 4], np.int64)
    value = net.add("Reshape", [value, cut], "/cut/Reshape")
    value = net.add("Transpose", [value], "/cut/Transpose", perm=[0, 2, 4, 3, 5, 1])
    windows = net.weight("windows", [4, 16, 8], np.int64)
    value = net.add("Reshape", [value, windows], "/windows/Reshape")
    value = net.add("MatMul", [value, net.kernel("w", (8, 8))], "/windows/MatMul")
    image = net.weight("image", [1, 64, 8], np.int64)
    value = net.add("Reshape", [value, image], "/image/Reshape")
    path = save(net.model(value, (1, 3, 8, 8)), tmp_path / "network.onnx")
    converted = convert_onnx(path)
    assert assert_equals_onnxruntime(path, converted, images(1, 8, 8, 3), compute) == 3
    problems = {layer.path: layer.problem for layer in converted.layers if layer.problem}
    assert "whose first axis is not the images'" in problems["/windows/MatMul"]
    assert converted.model.inputs[0].partial_shape[0].get_length() == 1


def test_channels_last_files(tmp_path, compute):
    net = Writer()
    value = net.add("Transpose", ["images"], "to_first", perm=[0, 3, 1, 2])
    value = net.conv(value, "conv", 3, 7)
    value = net.add("Transpose", [value], "to_last", perm=[0, 2, 3, 1])
    value = net.add("Relu", [value], "relu")
    path = save(net.model(value, ("n", "h", "w", 3)), tmp_path / "network.onnx")
    converted = convert_onnx(path, (10, 14))
    pixels = images(1, 10, 14, 3)
    expected = run_onnxruntime(path, pixels)
    computed = compute(converted, pixels)
    for name in ("to_last", "relu"):
        largest = np.abs(expected[f"{name}_output_0"]).max()
        np.testing.assert_allclose(
            computed[name], expected[f"{name}_output_0"], rtol=0, atol=TOLERANCE * largest
        )
    np.testing.assert_array_equal(computed["/conv/BatchNormalization"], computed["to_last"])
    np.testing.assert_array_equal(computed["to_first"], pixels)


def test_layers_are_found_by_node_tensor_suffix_index_and_last(tmp_path):
    path = save(residual_network(("n", 3, 32, 32)), tmp_path / "network.onnx")
    layers = convert_onnx(path).layers
    for wanted in ("/block1/Add", "/block1/Add_output_0", "block1/Add"):
        assert find_layer(wanted, layers, len(layers), "it").path == "/block1/Add"
    assert find_layer(0, layers, len(layers), "it").path == "/stem/Conv"
    assert find_layer("last", layers, len(layers), "it").path == "/Flatten"
    with pytest.raises(ValueError, match="has 2 layers 'relu2/Relu'"):
        find_layer("relu2/Relu", layers, len(layers), "it")


def test_weights_are_described(tmp_path):
    model = residual_network()
    layers = {layer.path: layer for layer in convert_onnx(save(model, tmp_path / "n.onnx")).layers}
    (kernel,) = layers["/stem/Conv"].kernels
    stored = next(w for w in model.graph.initializer if w.name == kernel.name)
    assert kernel.shape == (7, 7, 3, 16)
    assert kernel.mean == pytest.approx(numpy_helper.to_array(stored).mean(), abs=1e-7)
    assert layers["/fc/Gemm"].kernels[0].shape == (32, 10)
    assert layers["/fc/Gemm"].n_parameters == 330


def test_external_weights_lie_beside_the_file(tmp_path, compute):
    options = {"save_as_external_data": True, "location": "network.data", "size_threshold": 64}
    path = save(residual_network(("n", 3, 32, 32)), tmp_path / "network.onnx", **options)
    assert read_onnx(path).external == (tmp_path / "network.data",)
    assert_equals_onnxruntime(path, convert_onnx(path), images(1, 32, 32, 3), compute)
    (tmp_path / "network.data").unlink()
    with pytest.raises(ModelFileError, match=r"in the file 'network\.data', which is not beside"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("../secret.data", "only files in the folder"),
        ("/etc/passwd", "only files in the folder"),
        ("sub/secret.data", "only files in the folder"),
        ("link.data", "a link to a file outside"),
    ],
)
def test_external_weights_elsewhere_are_refused(tmp_path, location, match):
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    for secret in (tmp_path / "secret.data", folder / "sub" / "secret.data"):
        secret.write_bytes(bytes(1_000_000))
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    model = residual_network()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (folder / "network.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedModelError, match=match):
        read_onnx(folder / "network.onnx")


def test_external_weights_beyond_the_end_are_refused(tmp_path):
    options = {"save_as_external_data": True, "location": "network.data", "size_threshold": 64}
    path = save(residual_network(), tmp_path / "network.onnx", **options)
    data = (tmp_path / "network.data").read_bytes()
    (tmp_path / "network.data").write_bytes(data[:-64])
    with pytest.raises(ModelFileError, match="which has"):
        read_onnx(path)


def test_truncated_anywhere(tmp_path):
    data = residual_network().SerializeToString()
    path = tmp_path / "network.onnx"
    for end in [0, 1, 10, *range(50, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(ModelFileError):
            read_onnx(path)


def test_damaged_bytes_are_an_error_or_another_network(tmp_path):
    data = residual_network().SerializeToString()
    path = tmp_path / "network.onnx"
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_onnx(path)
        except ModelFileError:
            pass


def test_other_files(tmp_path):
    path = tmp_path / "network.onnx"
    for content in (b"a text about networks\n" * 9, b"\x89PNG\r\n\x1a\n" + bytes(99), bytes(99)):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match="cannot be read as an ONNX file"):
            read_onnx(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ModelFileError, match="git lfs pull"):
        read_onnx(path)


def _with_node(operator, domain="", **attributes):
    net = Writer()
    value = net.conv("images", "conv", 3, 4)
    return net.model(net.add(operator, [value], "odd", domain, **attributes), ("n", 3, 8, 8))


def _with_branch():
    branch = helper.make_graph([], "branch", [], [])
    return _with_node("If", then_branch=branch, else_branch=branch)


def _with_text():
    model = _with_node("Relu")
    model.graph.initializer.append(
        helper.make_tensor("labels", TensorProto.STRING, [2], [b"ant", b"bee"])
    )
    return model


def _with_function():
    model = _with_node("Relu")
    function = helper.make_function("own", "F", ["x"], ["y"], [], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    return model


def _with_short_weight():
    model = _with_node("Relu")
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return model


def _with_huge_weight():
    model = _with_node("Relu")
    model.graph.initializer[0].dims[0] = 2**40
    return model


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: _with_node("Secret", "com.example"), UntrustedModelError, "not standard"),
        (_with_branch, UntrustedModelError, "control flow|network of its own"),
        (_with_text, UntrustedModelError, "tensor 'labels' holds text"),
        (_with_function, UntrustedModelError, "inline_local_functions"),
        (_with_short_weight, ModelFileError, "bytes instead of"),
        (_with_huge_weight, UntrustedModelError, "elements"),
    ],
)
def test_what_is_refused(tmp_path, make, error, match):
    path = tmp_path / "network.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(error, match=match):
        read_onnx(path)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ([("a", 1, (1, 3, 8, 8)), ("b", 1, (1, 3, 8, 8))], r"2 inputs \('a', 'b'\)"),
        ([("tokens", 7, (1, 77))], r"the shape \(1, 77\)"),
        ([("text", 8, (1, 3, 8, 8))], "takes text"),
        ([("video", 1, (1, 3, 8, 8, 8))], "the shape"),
    ],
)
def test_networks_that_take_something_else(tmp_path, inputs, match):
    net = Writer()
    value = net.add("Relu", [inputs[0][0]], "relu")
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    path = tmp_path / "network.onnx"
    path.write_bytes(net.model(value, None, inputs=values).SerializeToString())
    with pytest.raises(ModelFileError, match=f"cannot be used: .*{match}"):
        read_onnx(path)


def test_unknown_standard_operators_are_named(tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(_with_node("Quadruple").SerializeToString())
    with pytest.raises(ModelFileError, match=r"Quadruple.* onnx\.checker\.check_model"):
        convert_onnx(path)


def test_multispectral_images(tmp_path):
    net = Writer()
    path = save(net.model(net.conv("images", "c", 4, 5), ("n", 4, 8, 8)), tmp_path / "n.onnx")
    with pytest.raises(ModelFileError, match=r"shape \(n, 4, 8, 8\)"):
        convert_onnx(path)


def test_other_sizes_than_the_files(tmp_path):
    path = save(residual_network(("n", 3, 32, 32)), tmp_path / "network.onnx")
    with pytest.raises(ValueError, match="for images of 32 x 32"):
        convert_onnx(path, (64, 64))


@pytest.mark.parametrize(
    ("metadata", "mean"),
    [
        ({"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}, 0.485),
        ({"image_mean": "123.675, 116.28, 103.53", "image_std": "58.395,57.12,57.375"}, 0.485),
        ({"mean": "[0.5]", "std": "[0.5]"}, None),
        ({"mean": "[0.5, 0.5, NaN]", "std": "[0.5, 0.5, 0.5]"}, None),
        ({"mean": "__import__('os')", "std": "[0.5, 0.5, 0.5]"}, None),
        ({}, None),
    ],
)
def test_normalization_from_metadata(tmp_path, metadata, mean):
    path = save(residual_network(metadata=metadata), tmp_path / "network.onnx")
    file = read_onnx(path)
    assert file.metadata == metadata
    facts = image_facts(file)
    assert facts.channels == 3 and facts.size == (None, None)
    if mean is None:
        assert facts.mean is None and facts.std is None
    else:
        assert facts.mean[0] == pytest.approx(mean)
        assert facts.std[0] == pytest.approx(0.229)


def test_half_precision_files(tmp_path, compute):
    """Weights and images in float16: OpenVINO computes in float32 from the same weights."""
    net = Writer()
    weight = net.weight("w", net.random.normal(0, 0.3, (4, 3, 3, 3)), np.float16)
    value = net.add("Conv", ["images", weight], "conv")
    model = net.model(value, ("n", 3, 8, 8), kind=TensorProto.FLOAT16)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    path = save(model, tmp_path / "network.onnx")
    pixels = images(1, 8, 8, 3)
    found = compute(convert_onnx(path), pixels)["conv"]
    kernel = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(pixels.astype(np.float64), (3, 3), (1, 2))
    expected = np.einsum("nyxchw,fchw->nyxf", windows, kernel)
    # The pixels are rounded to float16 on the way in: half a unit of 2^-10 each.
    scale = np.abs(kernel).sum((1, 2, 3)).max() * np.abs(pixels).max()
    assert np.abs(found - expected).max() <= 2**-11 * scale + 1e-5
