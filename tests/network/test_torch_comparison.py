"""Conversions are compared with PyTorch layer by layer: what is wrong is refused, and only that."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs pip install "sklearn-cnnfeat[torch]"')

from torch import nn  # noqa: E402
from torch_networks import Residual, scale_weights  # noqa: E402

from sklearn_cnnfeat._network import torch_conversion  # noqa: E402
from sklearn_cnnfeat._network.runtime import import_operations  # noqa: E402
from sklearn_cnnfeat._network.torch_conversion import convert_module  # noqa: E402
from sklearn_cnnfeat.exceptions import EngineError  # noqa: E402

SIZE = (16, 16, 3)


class Chaotic(nn.Module):
    """Multiplies every difference by up to thirty, six times."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.waves = nn.ModuleList([nn.Identity() for _ in range(6)])

    def forward(self, x):
        x = self.conv(x)
        for wave in self.waves:
            x = wave(torch.sin(30 * x))
        return x


@pytest.fixture
def chaotic():
    torch.manual_seed(0)
    return Chaotic().eval()


@pytest.fixture
def change_graphs(monkeypatch):
    """Let a function change each graph that OpenVINO reads from PyTorch."""

    def install(change):
        def read(traced):
            model = original(traced)
            change(model)
            model.validate_nodes_and_infer_types()
            return model

        monkeypatch.setattr(torch_conversion, "_read", read)

    original = torch_conversion._read
    return install


def operations_of(model, kind):
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def test_networks_that_amplify_rounding_are_converted(chaotic, compute):
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, *SIZE)).astype(np.float32)
    value = compute(convert_module(chaotic, SIZE, "it"), pixels)["waves.5"]
    with torch.no_grad():
        expected = chaotic(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    # No limit on the whole network would do: the same arithmetic in another order gives other
    # numbers.
    assert np.abs(value - expected.transpose(0, 2, 3, 1)).max() > 1e-2


def test_a_wrong_number_in_a_network_that_amplifies_rounding(chaotic, change_graphs):
    def change(model):
        operations = import_operations()
        wrong = operations.constant(np.float32(30.01))
        operations_of(model, "Multiply")[3].input(1).replace_source_output(wrong.output(0))

    change_graphs(change)
    with pytest.raises(EngineError, match=r"layer 'waves\.3' of it differently .* by [0-9.]+e-0"):
        convert_module(chaotic, SIZE, "it")


def test_a_layer_of_another_shape(change_graphs):
    def change(model):
        (relu,) = operations_of(model, "Relu")
        column = import_operations().reduce_mean(relu.input_value(0), np.array([3]), True)
        relu.output(0).replace(column.output(0))

    change_graphs(change)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    shapes = r"shape is \(2, 4, 14, 1\), not \(2, 4, 14, 14\)"
    with pytest.raises(EngineError, match=f"layer '1' of it .*{shapes}"):
        convert_module(network, SIZE, "it")


def test_a_wrong_layer_is_named_and_not_those_behind_it(change_graphs):
    def change(model):
        operations = import_operations()
        second = operations_of(model, "Relu")[1]
        leaky = operations.prelu(second.input_value(0), operations.constant(np.float32(0.01)))
        second.output(0).replace(leaky.output(0))

    change_graphs(change)
    with pytest.raises(EngineError, match=r"layer 'block\.2' of it"):
        convert_module(scale_weights(Residual()), SIZE, "it")
