"""Networks of timm: names, weights, preprocessing, and parity of all families."""

import copy
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs pip install "sklearn-cnnfeat[timm]"')
timm = pytest.importorskip("timm", reason='needs pip install "sklearn-cnnfeat[timm]"')

from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_torch import run_torch  # noqa: E402
from timm.data import create_transform  # noqa: E402
from torch_networks import scale_weights, take_statistics  # noqa: E402

from sklearn_cnnfeat import CNNFeatureTransformer, filter_summary  # noqa: E402
from sklearn_cnnfeat._images.resize import fit  # noqa: E402
from sklearn_cnnfeat._images.spec import ImageSpec  # noqa: E402
from sklearn_cnnfeat._network.networks import forget_networks  # noqa: E402
from sklearn_cnnfeat._network.timm_models import (  # noqa: E402
    build_timm,
    fetch_timm_weights,
    find_timm_weights,
    list_timm_models,
    open_timm,
    timm_facts,
)
from sklearn_cnnfeat._network.torch_conversion import convert_module  # noqa: E402
from sklearn_cnnfeat._network.torch_models import resizing_of  # noqa: E402
from sklearn_cnnfeat.exceptions import WeightsNotFoundError  # noqa: E402

TOLERANCE = 5e-6

# Two of each of fifteen families, the smallest, at sizes that take little time.
NETWORKS = [
    *[("resnet18", (64, 96)), ("resnetv2_50", (64, 96))],
    *[("vgg11", (64, 96)), ("vgg11_bn", (64, 96))],
    *[("densenet121", (64, 96)), ("densenetblur121d", (64, 96))],
    *[("efficientnet_b0", (64, 96)), ("tf_efficientnetv2_b0", (64, 96))],
    *[("mobilenetv3_small_050", (64, 96)), ("mobilenetv3_large_100", (64, 96))],
    *[("regnetx_002", (64, 96)), ("regnety_002", (64, 96))],
    *[("convnext_atto", (64, 96)), ("convnext_femto_ols", (64, 96))],
    *[("convnextv2_atto", (64, 96)), ("convnextv2_femto", (64, 96))],
    *[("swin_tiny_patch4_window7_224", None), ("swinv2_cr_tiny_224", None)],
    *[("vit_tiny_patch16_224", None), ("deit_tiny_distilled_patch16_224", None)],
    *[("vit_small_patch14_reg4_dinov2", (224, 224)), ("vit_small_patch14_dinov2", (224, 224))],
    *[("efficientvit_b0", (64, 96)), ("efficientvit_m0", None)],
    *[("fastvit_t8", (128, 128)), ("fastvit_sa12", (128, 128))],
    *[("inception_v3", (128, 160)), ("inception_v4", (128, 160))],
    *[("ghostnet_050", (64, 96)), ("mobilenetv2_035", (64, 96))],
]
FAST = {"resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"}


def cases():
    for name, size in NETWORKS:
        marks = [] if name in FAST else [pytest.mark.slow, pytest.mark.timeout(900)]
        yield pytest.param(name, size, marks=marks, id=name)


def build(name, size):
    """Return a network, the size of its images, what resizes it, and pixels.

    Some networks amplify rounding so much under random statistics that PyTorch's float32 is itself
    far from its float64. They get the statistics of images, as training leaves them.
    """
    network, size, resize = open_timm(timm_facts(f"timm/{name}"), None, 0, size)
    scale_weights(network)
    random = np.random.default_rng(1)
    pixels = random.uniform(-2, 2, (1, *size)).astype(np.float32)
    if own_error(network, pixels) > TOLERANCE / 4:
        coarse = random.uniform(-2, 2, (8, 8, 8, size[2])).astype(np.float32)
        rows, columns = (np.arange(side) * 8 // side for side in size[:2])
        take_statistics(network, np.concatenate([pixels, coarse[:, rows][:, :, columns]]))
    return network, size, resize, pixels


def own_error(network, pixels):
    """Return how far PyTorch's float32 is from its float64, at most in any layer."""
    expected = run_torch(copy.deepcopy(network).double(), pixels.astype(np.float64))
    found = run_torch(network, pixels)
    return max(relative(found[path], value) for path, value in expected.items())


def relative(value, wanted):
    """Return the largest difference, relative to the largest value."""
    return np.abs(value - wanted).max() / np.abs(wanted).max()


def errors_of(converted, network, pixels, compute):
    """Return how far the first, the middle and the last layer are from PyTorch's."""
    expected, computed = run_torch(network, pixels), compute(converted, pixels)
    paths = [path for path in computed if "#" not in path]
    shapes = {layer.path: layer.shape for layer in converted.layers}
    errors = {}
    for path in (paths[0], paths[len(paths) // 2], paths[-1]):
        wanted = expected[path]
        if wanted.ndim == 4 and wanted.shape[1:] != shapes[path]:
            wanted = wanted.transpose(0, 2, 3, 1)
        errors[path] = relative(computed[path], wanted)
    return errors


@pytest.mark.parametrize(("name", "size"), list(cases()))
def test_first_middle_and_last_layer_equal_torch(name, size, compute):
    network, size, resize, pixels = build(name, size)
    converted = convert_module(network, size, name, resize)
    errors = errors_of(converted, network, pixels, compute)
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.slow
def test_statistics_of_images_hide_no_wrong_graph(compute):
    network, size, resize, pixels = build("tf_efficientnetv2_b0", (64, 96))
    other = copy.deepcopy(network)
    other.blocks[3][1].bn2.eps = 1e-5  # PyTorch's default; TensorFlow's is 1e-3
    converted = convert_module(other, size, "the other", resize)
    assert max(errors_of(converted, network, pixels, compute).values()) > 10 * TOLERANCE


def test_facts_are_timms():
    facts = timm_facts("timm/vit_small_patch16_224.augreg_in1k")
    assert facts.size == (224, 224, 3)
    assert facts.mean == facts.std == (0.5, 0.5, 0.5)
    assert facts.resizing == ("crop", "bicubic", 0.9)
    assert facts.name == "vit_small_patch16_224.augreg_in1k"
    # Without a tag the first one of timm's.
    assert timm_facts("timm/resnet50").name == f"resnet50.{timm.get_pretrained_cfg('resnet50').tag}"


@pytest.mark.parametrize(
    ("config", "photo"),
    [
        ({"crop_pct": 0.95, "interpolation": "bicubic"}, (375, 500)),
        ({"crop_pct": 0.9, "interpolation": "bilinear"}, (500, 333)),
        ({"crop_pct": 1.0, "interpolation": "bicubic"}, (131, 640)),
        ({"crop_pct": 0.875, "interpolation": "bicubic", "crop_mode": "squash"}, (375, 500)),
        ({"crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "squash"}, (375, 500)),
    ],
    ids=str,
)
def test_pixels_are_those_of_timms_own_transform(config, photo):
    config = {"input_size": (3, 224, 224), "mean": [0.5] * 3, "std": [0.5] * 3, **config}
    noise = np.random.default_rng(0).integers(0, 256, (*photo, 3), np.uint8)
    image = Image.fromarray(noise)
    resolved = timm.data.resolve_data_config({}, pretrained_cfg=config)
    expected = np.asarray(create_transform(**resolved, normalize=False)(image))
    own = resizing_of(resolved)
    spec = ImageSpec(224, 224, 3, own.resize, own.interpolation, crop=own.crop)
    np.testing.assert_array_equal(np.asarray(fit(image, spec)), expected.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("timm/resnet51", "Nearest names: .*'timm/resnet50'"),
        ("timm/resnet50.imagenet", "has no weights 'imagenet' of 'resnet50'.*'a1_in1k'"),
    ],
)
def test_unknown_names(model, match):
    with pytest.raises(ValueError, match=match):
        timm_facts(model)


def test_maps_of_a_module_that_is_built_for_one_size(compute):
    """Swin keeps them channels last; images of other sizes, in a copy, tell."""
    settings = {"depths": (1, 1), "num_heads": (2, 2), "num_classes": 5}
    network = timm.models.SwinTransformer(32, 2, embed_dim=16, window_size=4, **settings)
    scale_weights(network)
    before = {name: value.shape for name, value in network.state_dict().items()}
    converted = convert_module(network, (32, 32, 3), "it")
    assert {layer.path: layer.shape for layer in converted.layers}["norm"] == (8, 8, 32)
    pixels = np.random.default_rng(1).uniform(-2, 2, (1, 32, 32, 3)).astype(np.float32)
    expected, found = run_torch(network, pixels)["norm"], compute(converted, pixels)["norm"]
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert {name: value.shape for name, value in network.state_dict().items()} == before
    assert network.patch_embed.img_size == (32, 32)


def test_names_are_listed_with_their_tags():
    names = list_timm_models("timm/convnext_tiny*")
    assert "timm/convnext_tiny.fb_in1k" in names
    assert all(name.startswith("timm/convnext_tiny") for name in names)


@pytest.fixture
def weights(tmp_path):
    network = build_timm(timm_facts("timm/mobilenetv3_small_050"), None, seed=3)
    path = tmp_path / "own.safetensors"
    save_file(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("HF_HUB_CACHE", "models--timm--{name}/snapshots/0a1b/model.safetensors"),
        ("SKLEARN_CNNFEAT_WEIGHTS", "models--timm--{name}/snapshots/0a1b/model.safetensors"),
        ("SKLEARN_CNNFEAT_WEIGHTS", "{name}.safetensors"),
        ("SKLEARN_CNNFEAT_WEIGHTS", "{name}/model.safetensors"),
    ],
)
def test_weights_are_found_offline(weights, tmp_path, monkeypatch, variable, place):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv(variable, str(tmp_path / "folder"))
    network, source = weights
    facts = timm_facts("timm/mobilenetv3_small_050.lamb_in1k")
    path = tmp_path / "folder" / place.format(name=facts.name)
    path.parent.mkdir(parents=True)
    path.write_bytes(source.read_bytes())
    assert find_timm_weights(facts)[0] == path == fetch_timm_weights(facts)
    again = build_timm(facts, path)
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_summary_without_weights_says_which_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsNotFoundError, match=r"mobilenetv3_small_050\.lamb_in1k\.safe"):
        filter_summary("timm/mobilenetv3_small_050.lamb_in1k")


def test_missing_weights_are_told_completely(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("SKLEARN_CNNFEAT_WEIGHTS", raising=False)
    import huggingface_hub

    def fail(*args, **kwargs):
        raise OSError("no route to huggingface.co")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    facts = timm_facts("timm/mobilenetv3_small_050.lamb_in1k")
    with pytest.raises(WeightsNotFoundError) as caught:
        fetch_timm_weights(facts)
    for part in (
        "could not be downloaded (no route to huggingface.co)",
        "https://huggingface.co/timm/mobilenetv3_small_050.lamb_in1k/resolve/main/model.safetensors",
        "mobilenetv3_small_050.lamb_in1k.safetensors",
        str(tmp_path),
        "SKLEARN_CNNFEAT_WEIGHTS names: it is not set",
        "weights=None",
    ):
        assert part in str(caught.value)


def test_pickles_and_foreign_weights_are_refused(tmp_path, weights):
    facts = timm_facts("timm/resnet18")
    with pytest.raises(ValueError, match="which can hold code"):
        build_timm(facts, tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="do not fit 'timm/resnet18"):
        build_timm(facts, weights[1])


def test_a_fresh_process_on_a_converted_network_imports_no_torch():
    code = (
        "import sys, numpy as np; from sklearn_cnnfeat import CNNFeatureTransformer as C; "
        "X = np.zeros((1, 64, 64, 3), np.uint8); settings = {'weights': None, 'random_state': 0}; "
        "C('timm/mobilenetv3_small_050', 'last', 'avg', input_size=64, **settings)"
        ".fit_transform(X); print([m for m in ('torch', 'timm', 'keras') if m in sys.modules])"
    )
    for _ in range(2):  # the first one converts, in a process of its own
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "[]", done.stderr


def test_random_weights_follow_the_seed_and_leave_the_generator():
    facts = timm_facts("timm/mobilenetv3_small_050")
    state = torch.get_rng_state()
    first, same, other = (build_timm(facts, None, seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_weights_that_change_after_fit_are_an_error(engine, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
    path = weights[1]
    images = np.full((1, 64, 64, 3), 128, np.uint8)
    name, settings = "timm/mobilenetv3_small_050", {"input_size": 64, "engine": engine}
    cnn = CNNFeatureTransformer(name, "last", "avg", weights=path, **settings).fit(images)
    state = load_file(path)
    save_file({name: value * 2 for name, value in state.items()}, path)
    forget_networks()
    shutil.rmtree(tmp_path / "home" / "networks")
    with pytest.raises(RuntimeError, match=r"has changed since fit.* Call fit again"):
        pickle.loads(pickle.dumps(cnn)).transform(images)
