"""PyTorch modules: every layer equal to PyTorch's, and the module left as it was."""

import copy
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs pip install "sklearn-cnnfeat[torch]"')

from torch import nn  # noqa: E402
from torch_networks import ChannelsLast, CutPatches, Residual, ScaledBlock, Tokens, scale_weights  # noqa: E402

from sklearn_cnnfeat._network.conversion import simplify  # noqa: E402
from sklearn_cnnfeat._network.engines.openvino import compile_in_float32  # noqa: E402
from sklearn_cnnfeat._network.layers import find_layer  # noqa: E402
from sklearn_cnnfeat._network.runtime import import_openvino  # noqa: E402
from sklearn_cnnfeat._network.torch_calls import list_module_layers  # noqa: E402
from sklearn_cnnfeat._network.torch_conversion import convert_module  # noqa: E402
from sklearn_cnnfeat._network.torch_models import check_module, find_channels  # noqa: E402
from sklearn_cnnfeat.exceptions import LayerNotFoundError  # noqa: E402

# float32 rounding through the layers of these networks.
TOLERANCE = 5e-6


def images(*shape):
    return np.random.default_rng(3).uniform(-2, 2, shape).astype(np.float32)


def run_torch(network, pixels):
    """Return what each submodule gives, by hooks of our own; first calls only, before in-place."""
    found = {}

    def keep(path):
        def hook(_, __, output):
            if isinstance(output, torch.Tensor):
                found.setdefault(path, output.detach().clone().numpy())

        return hook

    handles = [part.register_forward_hook(keep(path)) for path, part in network.named_modules()]
    with torch.no_grad():
        network(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
    for handle in handles:
        handle.remove()
    return found


def assert_equals_torch(network, converted, pixels, compute, is_last=lambda path: False):
    """Compare all layers; `is_last` tells maps that are channels last in PyTorch."""
    expected = run_torch(network, pixels)
    computed = compute(converted, pixels)
    assert computed
    for path, value in computed.items():
        if "#" in path:
            continue
        wanted = expected[path]
        if wanted.ndim == 4 and not is_last(path):
            wanted = wanted.transpose(0, 2, 3, 1)
        assert value.shape == wanted.shape, path
        assert np.abs(value - wanted).max() <= TOLERANCE * np.abs(wanted).max(), path
    return set(computed)


def test_every_layer_equals_torch(compute):
    network = scale_weights(Residual())
    converted = convert_module(network, (32, 48, 3), "the module")
    paths = assert_equals_torch(network, converted, images(2, 32, 48, 3), compute)
    assert paths == {
        *("conv1", "bn1", "relu", "relu#2", "block", "block.0", "block.1", "block.2"),
        *("pool", "dropout", "fc"),
    }
    shapes = {layer.path: layer.shape for layer in converted.layers}
    assert shapes["relu"] == (16, 24, 8) and shapes["fc"] == (5,)
    assert [layer.path for layer in converted.layers][:3] == ["conv1", "bn1", "relu"]


def test_values_are_those_before_changes_in_place(compute):
    network = scale_weights(Residual())
    found = compute(convert_module(network, (16, 16, 3), "it"), images(1, 16, 16, 3))
    assert found["bn1"].min() < 0
    np.testing.assert_array_equal(found["relu"], np.maximum(found["bn1"], 0))


def test_the_module_is_left_as_it_was():
    network = Residual()
    network.train()
    network.bn1.eval()
    modes = [part.training for part in network.modules()]
    state = copy.deepcopy(network.state_dict())
    torch.manual_seed(7)
    before = torch.get_rng_state()
    convert_module(network, (16, 16, 3), "it")
    assert [part.training for part in network.modules()] == modes
    assert not any(part._forward_hooks for part in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in network.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_graph_has_weights_of_its_own(compute):
    network = scale_weights(Residual())
    pixels = images(1, 16, 16, 3)
    converted = convert_module(network, (16, 16, 3), "it")
    before = compute(converted, pixels)["fc"]
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    np.testing.assert_array_equal(compute(converted, pixels)["fc"], before)


def test_tokens(compute):
    network = scale_weights(Tokens())
    converted = convert_module(network, (32, 48, 3), "it")
    # The number of images is a constant of this module's graph: see `Tokens.forward`.
    assert converted.model.inputs[0].partial_shape.is_static
    assert_equals_torch(network, converted, images(1, 32, 48, 3), compute)
    layers = {layer.path: layer for layer in converted.layers}
    grid = layers["norm"].grid
    assert (grid.n_prefix, grid.height, grid.width) == (3, 4, 6)
    assert layers["norm"].shape == (27, 20)
    # Attention returns its weights too.
    with pytest.raises(LayerNotFoundError, match=r"'attention' of it gives its output as a tuple"):
        find_layer("attention", converted.layers, 9, "it")


def test_tokens_of_patches_that_are_cut_without_a_convolution(compute):
    network = scale_weights(CutPatches())
    converted = convert_module(network, (32, 48, 3), "it")
    assert_equals_torch(network, converted, images(1, 32, 48, 3), compute)
    grid = {layer.path: layer for layer in converted.layers}["norm"].grid
    assert (grid.n_prefix, grid.height, grid.width) == (2, 4, 6)


def test_maps_that_are_channels_last_inside(compute):
    network = scale_weights(ChannelsLast())
    # As many columns as channels, and square: only other sizes tell the axes.
    converted = convert_module(network, (48, 48, 3), "it")
    assert_equals_torch(
        network, converted, images(1, 48, 48, 3), compute, {"norm", "mlp"}.__contains__
    )
    assert {layer.path: layer.shape for layer in converted.layers}["norm"] == (12, 12, 12)


def test_a_block_of_convnext_becomes_as_simple_as_keras_has_it(compute):
    network = scale_weights(ScaledBlock())
    converted = convert_module(network, (32, 48, 3), "it")
    pixels = images(1, 32, 48, 3)
    expected = run_torch(network, pixels)["end"].transpose(0, 2, 3, 1)
    (value, order) = simplify(converted)["end"]
    model = import_openvino().Model([value], converted.model.get_parameters())
    found = compile_in_float32(model)(pixels)[0].transpose(order)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    maps = [n for n in model.get_ordered_ops() if n.get_output_partial_shape(0).rank == 4]
    kinds = Counter(node.get_type_name() for node in maps if "Constant" not in str(node))
    # From the image, and around the dense layer; the scale of each channel is in its weights.
    assert kinds["Transpose"] == 3
    # That of the normalization alone.
    assert kinds["Multiply"] == 1


def test_layers_are_found_by_name_suffix_index_and_last():
    layers, _ = list_module_layers(scale_weights(Residual()), (16, 16, 3), "it")
    assert find_layer("last", layers, len(layers), "it").path == "pool"
    assert find_layer("block.2", layers, len(layers), "it").path == "block.2"
    assert find_layer(-1, layers, len(layers), "it").path == "fc"
    assert find_layer("relu#2", layers, len(layers), "it").type == "ReLU"
    with pytest.raises(LayerNotFoundError, match="has no layer 'unused'"):
        find_layer("unused", layers, len(layers), "it")


@pytest.mark.parametrize(
    ("head", "last"),
    [
        ([nn.Flatten(), nn.Linear(8, 5)], "head.0"),
        ([nn.Flatten(), nn.Dropout(), nn.Linear(8, 5), nn.Softmax(1)], "head.0"),
        ([nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)], "head.2"),
    ],
)
def test_last_is_before_a_classifier_in_a_module_of_its_own(head, last):
    network = nn.Sequential()
    network.conv = nn.Conv2d(3, 8, 3)
    network.pool = nn.AdaptiveAvgPool2d(1)
    network.head = nn.Sequential(*head)
    assert convert_module(network.eval(), (16, 16, 3), "it").last == last


class _Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def test_last_before_a_classifier_that_takes_no_layer():
    layers, _ = list_module_layers(_Mean(), (16, 16, 3), "it")
    with pytest.raises(LayerNotFoundError, match=r"undefined for it: its classifier 'head' takes"):
        find_layer("last", layers, len(layers), "it")


def test_last_of_a_network_without_classifier():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    assert convert_module(network, (16, 16, 3), "it").last is None


def test_weights_are_described():
    layers, _ = list_module_layers(Residual(), (16, 16, 3), "it")
    by_path = {layer.path: layer for layer in layers}
    assert by_path["conv1"].kernels[0].shape == (3, 3, 3, 8)
    assert by_path["conv1"].kernels[0].bias_shape is None
    assert by_path["fc"].n_parameters == 45
    assert by_path["bn1"].n_parameters == 32
    # Counted once, where a layer is called twice.
    assert sum(layer.n_parameters for layer in layers) == 8 * 27 + 32 + (8 * 72 + 8) + 32 + 45


class Gray(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU())


def test_gray_images(compute):
    network = scale_weights(Gray())
    assert find_channels(network) == 1
    converted = convert_module(network, (9, 11, 1), "it")
    assert assert_equals_torch(network, converted, images(1, 9, 11, 1), compute) == {"0", "1"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(compute, dtype):
    network = scale_weights(Residual()).to(dtype)
    converted = convert_module(network, (16, 16, 3), "it")
    assert_equals_torch(copy.deepcopy(network).float(), converted, images(1, 16, 16, 3), compute)
    assert network.fc.weight.dtype == dtype


def test_one_image_and_many_give_the_same(compute):
    network = scale_weights(Residual())
    converted = convert_module(network, (32, 48, 3), "it")
    batch = images(3, 32, 48, 3)
    together = compute(converted, batch)
    for name, value in compute(converted, batch[1:2]).items():
        largest = np.abs(value).max()
        np.testing.assert_allclose(together[name][1], value[0], rtol=0, atol=TOLERANCE * largest)


class _ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        return x * 2 if x.mean() > 0 else x


class _BooleanMask(_ByValue):
    def forward(self, x):
        x = self.conv(x)
        return x[x > 0]


class _Dictionary(_ByValue):
    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.forward = lambda x: {"maps": x}

    def forward(self, x):
        return self.inner(self.conv(x))


class _Integers(_ByValue):
    def __init__(self):
        super().__init__()
        self.largest = nn.Module()
        self.largest.forward = lambda x: x.argmax(1)
        self.spectrum = nn.Module()
        self.spectrum.forward = torch.fft.fft2

    def forward(self, x):
        x = self.conv(x)
        return self.largest(x), self.spectrum(x)


class _NeedsMore(_ByValue):
    def forward(self, x, mask):
        return self.conv(x) * mask


class _NumPy(_ByValue):
    def forward(self, x):
        return torch.from_numpy(self.conv(x).numpy())


class _TrainingOnly(_ByValue):
    def forward(self, x):
        if not self.training:
            raise NotImplementedError("only for training")
        return self.conv(x)


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (_ByValue(), "control flow of the module depends on the values of a tensor"),
        (_BooleanMask(), "control flow of the module depends on the values of a tensor"),
        (_NeedsMore(), "missing 1 required positional argument"),
        (_TrainingOnly(), "in evaluation mode .* only for training"),
        (_NumPy(), r"cannot be traced: .*numpy.* Use operations of PyTorch"),
        (nn.BatchNorm2d(3, track_running_stats=False), "no running statistics"),
        (Tokens(), "on images of 40 x 40 pixels"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_cannot_be_converted(network, match):
    with pytest.raises(ValueError, match=match):
        convert_module(network, (40, 40, 3), "the module")


def test_failures_are_not_logged_as_well(caplog):
    with caplog.at_level("ERROR"), pytest.raises(ValueError, match="set input_size"):
        convert_module(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), (8, 8, 3), "it")
    assert not caplog.records


def test_number_of_channels():
    assert find_channels(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(1, 4, 1))) == 1
    assert find_channels(nn.Linear(4, 4)) == 3
    with pytest.raises(ValueError, match=r"takes 4 channels\. Only networks for gray"):
        find_channels(nn.Conv2d(4, 8, 1))


@pytest.mark.parametrize(
    ("network", "layer", "match"),
    [
        (_Dictionary(), "inner", "its output as a dict"),
        (_Integers(), "largest", "an output of int64 numbers"),
        (_Integers(), "spectrum", "an output of complex64 numbers"),
    ],
)
def test_layers_that_give_something_else(network, layer, match):
    layers, _ = list_module_layers(network, (16, 16, 3), "the module")
    with pytest.raises(LayerNotFoundError, match=match):
        find_layer(layer, layers, len(layers), "the module")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (Residual().state_dict(), "load_state_dict"),
        (torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1))), "torch.onnx.export"),
        ("resnet18", "must be a torch.nn.Module"),
    ],
    ids=["state dict", "script", "str"],
)
def test_what_is_not_a_module(value, match):
    with pytest.raises(TypeError, match=match):
        check_module(value)
