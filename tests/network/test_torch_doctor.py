"""What `cnnfeat doctor` tells of PyTorch."""

import importlib.util

from sklearn_cnnfeat._network.torch_sources import describe_device


def test_device():
    if importlib.util.find_spec("torch") is None:
        assert describe_device() == "PyTorch is not installed"
        return
    import torch

    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    assert describe_device().partition(",")[0] == expected
