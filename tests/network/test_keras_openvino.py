"""Keras' OpenVINO backend against TensorFlow, layer by layer and network by network.

Each backend has a process of its own; weights and numbers go through files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from requirements import needs_tensorflow

from sklearn_cnnfeat._network.zoo import list_models

pytestmark = needs_tensorflow

_HERE = Path(__file__).parent
# float32 keeps 24 bits, 6e-8. A sum of n products of random sign, in another order, differs by
# about sqrt(n) of that: 4e-6 of the largest value for the 4,608 products of VGG's convolutions,
# and rounding errors of one layer fade in the next where weights are scaled.
_CLOSE = 5e-6


def run_script(name, *arguments):
    root = _HERE.parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, str(_HERE / name), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def difference(found, expected):
    assert found.shape == expected.shape
    assert np.isfinite(expected).all()
    return np.abs(found - expected).max() / np.abs(expected).max()


# --- layers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers_folder(tmp_path_factory):
    # One for all workers of pytest-xdist: it takes half a minute.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "keras_layers"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            for backend in ("tensorflow", "openvino"):
                run_script("keras_cases.py", backend, folder)
    return folder


@pytest.fixture(scope="module")
def described(layers_folder):
    return json.loads((layers_folder / "cases.json").read_text())


@pytest.mark.timeout(900)
def test_every_listed_layer_is_as_on_tensorflow(layers_folder, described):
    wrong = {}
    for name in described:
        expected = np.load(layers_folder / f"{name}.tensorflow.npy")
        found = np.load(layers_folder / f"{name}.openvino.npy")
        error = difference(found, expected)
        if not error <= _CLOSE:
            wrong[name] = error
    assert not wrong
    assert len(described) > 300


def test_every_case_is_on_the_list(described):
    assert {name: case["problems"] for name, case in described.items() if case["problems"]} == {}


def test_every_pair_on_the_list_has_a_case(described):
    from sklearn_cnnfeat._network.keras_openvino_layers import FUNCTIONS, INACTIVE, LISTED

    seen = {tuple(pair) for case in described.values() for pair in case["pairs"]}
    pairs = {(name, None, None) for name in [*LISTED, *INACTIVE, *FUNCTIONS]}
    pairs |= {
        (name, option, value)
        for name, options in LISTED.items()
        for option, values in options.items()
        for value in values
    }
    assert pairs - seen == set()


def test_what_is_not_on_the_list_is_named(layers_folder):
    problems = json.loads((layers_folder / "unlisted.json").read_text())
    assert problems == {
        "bicubic": ["resizing (Resizing, interpolation='bicubic')"],
        "antialiased": ["resizing (Resizing, antialias=True)"],
        "cropped": ["resizing (Resizing, crop_to_aspect_ratio=True)"],
        "mixed": ["conv (Conv2D, dtype='mixed_bfloat16')"],
        "lambda": ["twice (Lambda)"],
        "custom": ["own (Own)"],
        "same-name": ["dense (Dense)"],
        "function": ["tanh (Tanh)"],
        "activation": ["conv (Conv2D, activation='tripled')"],
        "recurrent": ["lstm (LSTM)"],
        "inner": ["inner/resizing (Resizing, interpolation='lanczos3')"],
        "subclass": ["whole (Whole)"],
    }


# --- networks -------------------------------------------------------------------------------------

_SAMPLE = ("mobilenet",)


@pytest.fixture(scope="module")
def networks_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("converter", ["openvino", pytest.param("frozen", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in _SAMPLE else pytest.mark.slow)
        for name in list_models()
    ],
)
def test_networks_are_as_on_tensorflow(networks_folder, name, converter):
    for how in ("tensorflow", converter):
        run_script("keras_networks.py", how, name, networks_folder)

    def values(how, which):
        return np.load(networks_folder / f"{name}.{how}.{which}.npy")

    report = json.loads((networks_folder / f"{name}.{converter}.json").read_text())
    assert report["problems"] == []
    for path, which in report["layers"].items():
        expected = values("tensorflow", which)
        error = difference(values(converter, which), expected)
        if error > _CLOSE:
            # Where rounding grows from layer to layer, Keras itself is as far from exact numbers.
            run_script("keras_networks.py", "exact", name, networks_folder)
            exact = values("exact", which)
            allowed = max(_CLOSE, 2 * difference(expected, exact))
            assert difference(values(converter, which), exact) <= allowed, path
    # The same layers, shapes included, on both backends.
    assert report["described"] == json.loads(
        (networks_folder / f"{name}.tensorflow.json").read_text()
    )
    for file in networks_folder.glob(f"{name}.*"):
        file.unlink()
    # Dense layers of ConvNeXt work on channels last between convolutions that do not.
    allowed = report["dense"] if name.startswith("convnext") else 0
    assert report["transpositions"] <= 2 * allowed
