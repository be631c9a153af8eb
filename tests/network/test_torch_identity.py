"""What identifies a PyTorch module, and how it travels to other processes."""

import pickle
import subprocess
import sys
import textwrap
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason='needs pip install "sklearn-cnnfeat[torch]"')

from torch import nn  # noqa: E402
from torch_networks import Residual  # noqa: E402

from sklearn_cnnfeat._network.torch_models import (  # noqa: E402
    PickledModule,
    digest_of_module,
    has_lasting_identity,
)


def encoder(activation="relu"):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True).eval()


def with_attribute(value):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network.setting = value
    return network


def with_hook(hook):
    network = with_attribute(0)
    network[0].register_forward_hook(hook)
    return network


def double(part, inputs, output):
    return 2 * output


def halve(part, inputs, output):
    return output / 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (encoder("relu"), encoder("gelu")),
        (with_attribute(1), with_attribute(2)),
        (with_attribute([1, {"a": 2}]), with_attribute([1, {"a": 3}])),
        (with_attribute(torch.zeros(2)), with_attribute(torch.ones(2))),
        (with_attribute(partial(double, 1)), with_attribute(partial(double, 2))),
        (with_attribute(torch.float16), with_attribute(torch.float32)),
        (with_hook(double), with_hook(halve)),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
    ],
    ids=["function", "number", "nested", "tensor", "partial", "dtype", "hook", "class"],
)
def test_digest_tells_modules_apart(one, other):
    assert digest_of_module(one) != digest_of_module(other)
    assert digest_of_module(one) == digest_of_module(one)


def test_digest_is_the_same_in_another_process():
    """Addresses of objects must not get into it."""
    code = """
        import torch
        from torch import nn
        from sklearn_cnnfeat._network.torch_models import digest_of_module
        torch.manual_seed(0)
        network = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.functional.gelu)
        network.others = [nn.functional.relu, object(), {1, 2}, {"a": nn.ReLU()}]
        print(digest_of_module(network))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    runs = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]


def test_digest_does_not_depend_on_mode_or_on_what_a_network_remembers():
    network = with_attribute({})
    before = digest_of_module(network)
    network.train()
    network.setting["bias"] = torch.zeros(3)
    assert digest_of_module(network) == before


@pytest.mark.parametrize(
    ("module", "is_lasting"),
    [
        (encoder("gelu"), True),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), True),
        (Residual(), False),
        (with_hook(double), False),
        (with_attribute(lambda x: x), False),
        (with_attribute([partial(double, 1)]), False),
    ],
    ids=["function", "plain", "own class", "hook", "lambda", "partial"],
)
def test_code_of_the_users_own_has_no_lasting_identity(module, is_lasting):
    assert has_lasting_identity(module) is is_lasting


def test_a_module_is_serialized_once_and_loaded_once():
    network = Residual()
    wrapped = PickledModule.of(network)
    assert PickledModule.of(network) is wrapped
    first, second = (pickle.loads(pickle.dumps(wrapped)).load() for _ in range(2))
    assert first is second and first is not network
    assert digest_of_module(first) == digest_of_module(network)
    with torch.no_grad():
        network.fc.bias.add_(1)
    changed = PickledModule.of(network)
    assert changed is not wrapped
    assert torch.equal(changed.load().fc.bias, network.fc.bias)
    with torch.no_grad():
        first.fc.bias.add_(1)
    # Whoever changes what was loaded does not change what comes next.
    assert not torch.equal(wrapped.load().fc.bias, first.fc.bias)


def test_a_class_of_a_script_goes_along(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import pickle, sys
        import numpy as np, torch
        from sklearn_cnnfeat import CNNFeatureTransformer

        class Own(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = torch.nn.Conv2d(3, 4, 3)
            def forward(self, x):
                return self.conv(x).relu()

        cnn = CNNFeatureTransformer(Own(), "conv", "avg", input_size=16, preprocessing="rescale")
        X = np.zeros((2, 16, 16, 3), np.uint8)
        np.save(sys.argv[2], cnn.fit_transform(X))
        open(sys.argv[1], "wb").write(pickle.dumps(cnn))
        """)
    )
    run = partial(subprocess.run, check=True, cwd=tmp_path)
    run([sys.executable, script, "cnn.pickle", "rows.npy"])
    code = """
        import pickle
        import numpy as np
        cnn = pickle.load(open("cnn.pickle", "rb"))
        rows = cnn.fit_transform(np.zeros((2, 16, 16, 3), np.uint8))
        np.testing.assert_array_equal(rows, np.load("rows.npy"))
    """
    run([sys.executable, "-c", textwrap.dedent(code)])
