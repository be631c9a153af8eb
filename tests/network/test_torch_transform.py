"""PyTorch modules through the public interface."""

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

torch = pytest.importorskip("torch", reason='needs pip install "sklearn-cnnfeat[torch]"')

from torch_networks import Residual, Tokens, scale_weights  # noqa: E402

from sklearn_cnnfeat import CNNFeatureTransformer, filter_summary, layer_summary  # noqa: E402
from sklearn_cnnfeat._network import networks  # noqa: E402
from sklearn_cnnfeat._network.engines import openvino as engine_openvino  # noqa: E402
from sklearn_cnnfeat.exceptions import CacheWarning, EngineError  # noqa: E402

TOLERANCE = 5e-6
PHOTOS = np.random.default_rng(5).integers(0, 256, (5, 32, 48, 3), np.uint8)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))


def output_of(network, path, pixels=PHOTOS, dtype=np.float32):
    """Return what a submodule gives for pixels on 0-1, by a hook of our own."""
    found = []
    part = network.get_submodule(path)
    handle = part.register_forward_hook(lambda _, __, output: found.append(output.clone()))
    inputs = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype) / 255
    with torch.no_grad():
        network(torch.from_numpy(inputs))
    handle.remove()
    return found[0].numpy()


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_rows_equal_torch(engine):
    network = scale_weights(Residual())
    parameters = {"preprocessing": "rescale", "input_size": (32, 48), "engine": engine}
    cnn = CNNFeatureTransformer(network, "block.1", "avg", **parameters)
    maps = output_of(network, "block.1")
    rows = cnn.fit_transform(PHOTOS)
    assert_close(rows, maps.mean((2, 3)))
    assert cnn.engine_ == ("torch" if engine == "torch" else "openvino")
    assert_close(cnn.set_params(pooling="flatten").fit_transform(PHOTOS), _flat(maps))
    spp = cnn.set_params(pooling="spp").fit_transform(PHOTOS)
    assert_close(spp[:, :8], maps.max((2, 3)))
    several = cnn.set_params(layer=["bn1", "fc"], pooling="max").fit_transform(PHOTOS)
    assert_close(several[:, :8], output_of(network, "bn1").max((2, 3)))
    assert_close(several[:, 8:], output_of(network, "fc"))


def test_a_network_that_cannot_be_loaded_later(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no room for the network")

    # Kept on the disk, unlike modules of user-defined classes.
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    cnn = CNNFeatureTransformer(network, "1", "avg", input_size=(32, 48)).fit(PHOTOS)
    networks.forget_networks()
    monkeypatch.setattr(engine_openvino.OpenVINOEngine, "__init__", fail)
    with pytest.raises(
        EngineError, match=r"no room .*\. Fit with engine='torch' to compute it with"
    ):
        cnn.transform(PHOTOS)


def test_a_row_has_the_same_bits_beside_any_layers():
    network = scale_weights(Residual())
    paths = ["conv1", "bn1", "relu", "block.0", "block.1", "relu#2", "fc"]
    cnn = CNNFeatureTransformer(network, paths, "max", preprocessing="rescale", input_size=(32, 48))
    together = cnn.fit_transform(PHOTOS)
    alone = [cnn.set_params(layer=path).fit_transform(PHOTOS) for path in paths]
    np.testing.assert_array_equal(np.hstack(alone), together)


def _flat(maps):
    return maps.transpose(0, 2, 3, 1).reshape(len(maps), -1)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_tokens(engine):
    network = scale_weights(Tokens())
    tokens = output_of(network, "norm")
    cnn = CNNFeatureTransformer(
        network, "norm", "cls", preprocessing="rescale", input_size=(32, 48), engine=engine
    )
    assert_close(cnn.fit_transform(PHOTOS), tokens[:, 0])
    assert_close(cnn.set_params(pooling="avg").fit_transform(PHOTOS), tokens[:, 3:].mean(1))
    assert cnn.feature_shapes_ == [(4, 6, 20)]


def test_half_precision_on_torch():
    network = scale_weights(Residual())
    cnn = CNNFeatureTransformer(
        network,
        "block.1",
        "avg",
        preprocessing="rescale",
        input_size=(32, 48),
        engine="torch",
        precision="bfloat16",
    )
    expected = output_of(network, "block.1").mean((2, 3))
    rows = cnn.fit_transform(PHOTOS)
    # Four convolutions and normalizations of numbers with 8 significant bits.
    assert_close(rows, expected, tolerance=8 * 2**-8)
    assert np.abs(rows - expected).max() > TOLERANCE * np.abs(expected).max()


def test_a_pickle_carries_the_module(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    cnn = CNNFeatureTransformer(
        network, "0", "avg", preprocessing="rescale", input_size=32, cache=tmp_path / "cache"
    ).fit(PHOTOS)
    again = pickle.loads(pickle.dumps(cnn))
    np.testing.assert_array_equal(again.transform(PHOTOS), cnn.transform(PHOTOS))


def test_rows_of_own_classes_are_not_cached(tmp_path):
    cnn = CNNFeatureTransformer(
        scale_weights(Residual()), "bn1", "avg", input_size=32, cache=tmp_path / "cache"
    )
    with pytest.warns(CacheWarning, match="is not used"):
        cnn.fit(PHOTOS)


def test_a_module_that_changes_is_another_network():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    cnn = CNNFeatureTransformer(network, "0", "avg", preprocessing="rescale", input_size=(32, 48))
    cnn.fit(PHOTOS)
    with torch.no_grad():
        network[0].weight.mul_(2)
    assert_close(cnn.fit_transform(PHOTOS), output_of(network, "0").mean((2, 3)))


def test_size_and_normalization_that_a_module_carries():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    with pytest.raises(ValueError, match="does not say the size of its images"):
        CNNFeatureTransformer(network, "0").fit(PHOTOS)
    network.pretrained_cfg = {"input_size": (3, 32, 48), "mean": [0.5] * 3, "std": [0.25] * 3}
    cnn = CNNFeatureTransformer(network, "0", "avg")
    rows = cnn.fit_transform(PHOTOS)
    pixels = (PHOTOS / 255 - 0.5) / 0.25 * 255
    assert_close(rows, output_of(network, "0", pixels).mean((2, 3)))


def test_summaries():
    network = scale_weights(Residual())
    network.pretrained_cfg = {"input_size": (3, 32, 32), "mean": [0.5] * 3, "std": [0.25] * 3}
    layers = layer_summary(network)
    assert list(layers["path"][:2]) == ["conv1", "bn1"]
    kernels = filter_summary(network)
    assert kernels["kernel_shape"].iloc[0] == (3, 3, 3, 8)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_module_that_changes_after_fit_is_an_error(engine):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    cnn = CNNFeatureTransformer(
        network, "0", "avg", preprocessing="rescale", input_size=(32, 48), engine=engine
    )
    rows = cnn.fit_transform(PHOTOS)
    with torch.no_grad():
        network[0].weight.mul_(2)
    if engine == "openvino":  # the converted network has weights of its own
        np.testing.assert_array_equal(cnn.transform(PHOTOS), rows)
        return
    with pytest.raises(RuntimeError, match=r"has changed since fit.* Call fit again"):
        cnn.transform(PHOTOS)
    assert_close(cnn.fit_transform(PHOTOS), output_of(network, "0").mean((2, 3)))


def test_a_change_of_one_module_leaves_its_twin_alone():
    modules = [torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    settings = {"preprocessing": "rescale", "input_size": (32, 48), "engine": "torch"}
    first, second = (CNNFeatureTransformer(m, "0", "avg", **settings).fit(PHOTOS) for m in modules)
    rows = first.transform(PHOTOS)
    with torch.no_grad():
        modules[0][0].weight.mul_(2)
    np.testing.assert_array_equal(second.transform(PHOTOS), rows)


class Remembering(torch.nn.Module):
    """Keeps what it has computed for the next call, as some networks of timm do."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.bias = torch.nn.Parameter(torch.randn(4))
        self.remembered = {}

    def forward(self, x):
        if "bias" not in self.remembered:
            self.remembered["bias"] = self.bias[:, None, None].exp()
        return self.conv(x) + self.remembered["bias"]


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_what_a_module_remembers_is_its_own(engine):
    network = torch.nn.Sequential(Remembering(), torch.nn.ReLU()).eval()
    cnn = CNNFeatureTransformer(
        network, "0", "avg", preprocessing="rescale", input_size=(32, 48), engine=engine
    ).fit(PHOTOS)
    assert not network[0].remembered
    expected = output_of(network, "0").mean((2, 3))
    assert network[0].remembered
    assert_close(cnn.transform(PHOTOS), expected)


def test_pixels_as_torchvisions_own_transform_makes_them():
    """With ``resize="auto"``, from the transforms of its weights."""
    from types import SimpleNamespace

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    network.transforms = SimpleNamespace(
        crop_size=[32],
        resize_size=[37],
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        interpolation=SimpleNamespace(value="bicubic"),
    )
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8))
    # torchvision's Resize(37) and CenterCrop(32) of a picture of 90 x 60 pixels.
    scaled = photo.resize((55, 37), Image.Resampling.BICUBIC).crop((12, 2, 44, 34))
    cnn = CNNFeatureTransformer(network, "0", "avg", resize="auto", interpolation="auto")
    by_hand = clone(cnn).set_params(resize="stretch", interpolation="bilinear")
    np.testing.assert_array_equal(cnn.fit_transform([photo]), by_hand.fit_transform([scaled]))


@pytest.mark.parametrize(
    ("settings", "is_said"),
    [
        ({}, True),
        ({"resize": "auto", "interpolation": "auto"}, False),
        ({"resize": "crop"}, False),
    ],
)
def test_another_way_to_resize_is_said(capsys, settings, is_said):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    network.pretrained_cfg = {
        **{"input_size": (3, 32, 32), "mean": [0.5] * 3, "std": [0.25] * 3},
        **{"interpolation": "bicubic", "crop_pct": 0.9},
    }
    CNNFeatureTransformer(network, "0", "avg", verbose=1, **settings).fit(PHOTOS)
    said = capsys.readouterr().err
    assert ("resize='auto' and interpolation='auto' do as its makers did" in said) == is_said
    # Mean and deviation are known, and applied.
    assert "gets pixels as they are" not in said


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_networks_that_amplify_rounding(engine):
    """An untrained network may multiply the rounding of each layer by the next one."""
    torch.manual_seed(0)
    parts = []
    for _ in range(4):
        norm = torch.nn.BatchNorm2d(8)
        norm.running_mean.copy_(torch.rand(8))
        norm.running_var.fill_(2e-3)
        parts += [torch.nn.Conv2d(8 if parts else 3, 8, 3, padding=1), norm, Sine()]
    network = torch.nn.Sequential(*parts).eval()
    cnn = CNNFeatureTransformer(
        network, "11", "flatten", preprocessing="rescale", input_size=(32, 48), engine=engine
    )
    rows = cnn.fit_transform(PHOTOS)
    expected = output_of(network, "11")
    double = output_of(network.double(), "11", dtype=np.float64)
    growth = np.abs(expected - double).max()
    assert growth > 1e-4  # of values between -1 and 1
    assert np.abs(rows - _flat(double)).max() <= 100 * growth


class Sine(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x)
