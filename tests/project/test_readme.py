"""What the README says is run, and is true."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sklearn_cnnfeat._network.zoo import find_architecture

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK, MAIN_EXAMPLE, LOOP, PACKING = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)

# The README is about VGG16. The weights that are here without a download are MobileNet's.
MOBILENET = {
    'model="vgg16"': 'model="mobilenet"',
    "keras.applications.VGG16": "keras.applications.MobileNet",
    "keras.applications.vgg16": "keras.applications.mobilenet",
    "block3_pool": "conv_pw_3_relu",
    "block4_pool": "conv_pw_6_relu",
    "block5_pool": "conv_dw_13_relu",
}


@pytest.fixture
def run(tmp_path, assets):
    """Return a function that runs code as a user would, in a folder that holds ``photos/``."""

    def run(code, photos_per_class=60):
        for folder in (assets / "photos").iterdir():
            (tmp_path / "photos" / folder.name).mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:photos_per_class]:
                (tmp_path / "photos" / folder.name / photo.name).symlink_to(photo)
        for vgg16, mobilenet in MOBILENET.items():
            code = code.replace(vgg16, mobilenet)
        environment = {
            "KERAS_HOME": str(assets / "keras_home"),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_first_lines_print_what_the_page_says(run):
    """With MobileNet, whose last layer has 1,024 channels, and 2 x 8 photographs."""
    printed = run(QUICK, photos_per_class=8)
    assert printed == "(16, 1024) ['conv_dw_13_relu_c0' 'conv_dw_13_relu_c1']\n"


def test_main_example_finds_the_best_layer(run):
    printed = run(MAIN_EXAMPLE)
    assert "'cnnfeaturetransformer__layer': 'conv_dw_13_relu'" in printed
    assert float(printed.split()[-1]) > 0.8


@pytest.mark.slow
def test_loop_by_hand_gives_the_same_numbers(run):
    compare = """
from sklearn_cnnfeat import CNNFeatureTransformer

ours = CNNFeatureTransformer(model="vgg16", layer="block5_pool").fit_transform(photos.data)
print(ours.shape == features.shape, np.abs(ours - features).max() / np.abs(features).max())
"""
    same_shape, deviation = run(LOOP + compare, photos_per_class=5).split()
    assert same_shape == "True"
    # Rounding: on these weights either of the two is 1e-5 off the same in 64-bit arithmetic.
    assert float(deviation) < 3e-5


def test_loop_is_about_the_network_of_the_main_example():
    # The two tests above run with other names put in; these are the ones that must be there.
    for name in MOBILENET:
        assert name in MAIN_EXAMPLE + LOOP, name


def test_weights_are_packed_as_described(run):
    printed = run(
        PACKING.replace("vgg16", "mobilenet") + "import os; print(os.listdir('my-weights'))"
    )
    assert "mobilenet_1_0_224_tf_no_top.h5" in printed


def test_table_of_weights_agrees_with_what_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    rows = re.findall(r"^\| `(\w+)` \| `(\S+\.h5)` \(\d+ MB\) \| `(\S+)` \|$", README, re.M)
    assert len(rows) == 4
    for model, file, address in rows:
        architecture = find_architecture(model)
        size = (architecture.native_size, architecture.native_size)
        assert architecture.weights_file(False, size) == tmp_path / "models" / file
        assert architecture.download_url(False, size) == address + file


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_and_commands_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^):#]+)\)", text)
    scripts = re.findall(r"[\w/]+/\w+\.py|\.ci/run", text)
    assert links or scripts
    for path in links + scripts:
        assert (ROOT / path).exists(), path


def test_commands_use_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r'"\.\[(\w+)\]"', README))
    assert named == {"plot", "test"}
    assert named <= set(project["optional-dependencies"])


def test_ci_installs_and_tests_as_the_readme_says():
    commands = re.findall(r'pip install "\S+" && \S+/python (-m pytest)$', README, re.M)
    assert commands == ["-m pytest"]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '/python" -m pytest\n' in script
    assert 'install --quiet ".[docs,test]"\n' in script


def _agrees(text, value):
    """Whether a number of the README is `value`, rounded to the digits that are given."""
    number = text.replace(",", "")
    digits = len(number.partition(".")[2])
    return abs(float(number) - value) <= (0.5 if not digits else 0.5 * 10**-digits) * 1.001


def test_figures_of_the_loop_are_those_of_the_benchmark():
    results = json.loads((ROOT / "benchmarks/results/seed_loop.json").read_text())["networks"]
    rows = re.findall(
        r"^\| (.*?) \| (\S+) im.*?\| (\S+) MB \| (\S+) im.*?\| (\S+) MB \|$", README, re.M
    )
    names = ["predict_loop", "predict_batches", "ours"]
    for name, (_, *figures) in zip(names, rows, strict=True):
        for network, (rate, memory) in zip(
            ("mobilenet", "vgg16"), (figures[:2], figures[2:]), strict=True
        ):
            assert _agrees(rate, results[network][name]["median"]), (name, network)
            assert _agrees(memory, results[network][name]["peak_rss_mb"]), (name, network)


def test_figures_of_the_search_are_those_of_the_benchmark():
    searches = json.loads((ROOT / "benchmarks/results/search.json").read_text())["searches"]
    keras, memory, ours = re.search(
        r"takes (\S+) s .*?, (\S+) s with `Pipeline.*?, and (\S+) s with", README, re.S
    ).groups()
    assert _agrees(keras, searches["Keras in a transformer"]["seconds"])
    assert _agrees(memory, searches["the same, Pipeline(memory=)"]["seconds"])
    assert _agrees(ours, searches["ours, precompute"]["seconds"])
