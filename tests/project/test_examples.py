"""Each example runs to its end in a process of its own, prints its numbers and draws."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gallery_photos import put_photos
from PIL import Image
from small_network import save_photos

from sklearn_cnnfeat import load_image_folder

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

# Runs a script as `python script` does, and saves the figures that it would have shown.
RUN_AND_SAVE = """
import runpy, sys
import matplotlib.pyplot as plt

sys.path.insert(0, sys.argv[1])
runpy.run_path(f"{sys.argv[1]}/{sys.argv[2]}", run_name="__main__")
for number in plt.get_fignums():
    plt.figure(number).savefig(f"figure_{number}.png")
"""

# For each example: what it prints, with a number, and between what bounds the number must be.
EXPECTED = {
    "plot_decision_map.py": {
        r"intercept: +(\S+)": (-5, 5),
        r"decision: +(\S+)": (-10, 0),
    },
    "plot_folder_to_svm.py": {
        r"SVM on conv_dw_13_relu of mobilenet: (\S+)": (0.85, 0.95),
        r"SVM on 32 x 32 pixels: (\S+)": (0.45, 0.7),
    },
    "plot_layer_search.py": {
        r"(\d+) photographs, 6 layers": (120, 120),
        r"best: conv_dw_13_relu, accuracy (\S+)": (0.85, 0.95),
    },
    "plot_look_alikes.py": {
        r"(\S+) of the five nearest": (0.75, 0.95),
        r"Rand index: (\S+)": (0.2, 1),
    },
    "plot_which_layer.py": {r"best: conv_dw_13_relu, accuracy (\S+)": (0.85, 0.95)},
    "plot_filters_and_maps.py": {r"conv_pw_5_relu: (\d+) numbers an image": (200_704, 200_704)},
    "plot_maps_layer_by_layer.py": {},
    "plot_mixed_columns.py": {
        r"off by (\S+) points on average from columns": (2, 3),
        r"off by (\S+) points on average from picture\n": (2.5, 3.5),
        r"off by (\S+) points on average from picture and columns": (0, 1.2),
    },
    "plot_own_network.py": {
        r"the network itself reads (\S+) of": (0.95, 1),
        r"features: \(899, (\d+)\)": (128, 128),
        r"SVM on the 128 units: (\S+)": (0.97, 1),
    },
    "plot_shapes_of_features.py": {
        r"spp +\(1, (\d+)\)": (21_504, 21_504),
        r"a table of 100 rows and (\d+) columns": (64, 64),
    },
    "plot_transfer_learning_maps.py": {
        r"mobilenet_1.00_224/conv_pw_12_relu .* (\d+) +0\n": (50_176, 50_176)
    },
    "plot_vector_as_picture.py": {r"fc: \(1, (\d+)\)": (128, 128)},
}


def run(arguments, folder, **environment):
    """Run Python in `folder`, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"} | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def check_numbers(printed, expected):
    for pattern, (low, high) in expected.items():
        match = re.search(pattern, printed)
        assert match, f"{pattern!r} is not in:\n{printed}"
        assert low <= float(match[1]) <= high, match[0]


def check_pictures(pictures, n_expected):
    assert len(pictures) == n_expected
    for path in pictures:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert min(pixels.shape) > 200, path
        assert pixels.std() > 10, f"{path} is nearly empty"


def check_example(script, expected, folder, **environment):
    printed = run(["-c", RUN_AND_SAVE, str(EXAMPLES), script], folder, **environment)
    check_numbers(printed, expected)
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    # One call may show two figures; those of displays are made by no `subplots`.
    n_figures = max(text.count("plt.subplots("), text.count("plt.show()"))
    check_pictures(list(folder.glob("figure_*.png")), n_figures)


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("plot_*.py")} == set(EXPECTED)


# Run with every change; the others are slow.
SAMPLE = "plot_own_network.py"


@pytest.mark.parametrize(
    "script",
    [
        script if script == SAMPLE else pytest.param(script, marks=pytest.mark.slow)
        for script in EXPECTED
    ],
)
@pytest.mark.slow
def test_example(script, assets, tmp_path):
    shutil.copytree(assets / "photos", tmp_path / "photos")
    check_example(script, EXPECTED[script], tmp_path, KERAS_HOME=str(assets / "keras_home"))


def test_photographs_of_the_gallery(tmp_path):
    """They are downloaded once, checked, and missed loudly."""
    picture = io.BytesIO()
    Image.new("RGB", (20, 20)).save(picture, "JPEG")
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in (*("test/healthy/1.jpg", "test/bean_rust/2.jpg"), "test/other/3.jpg", "x.txt"):
            file.writestr(name, picture.getvalue())
    kept = {
        "cache": tmp_path / "cache",
        "address": archive.as_uri(),
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
    put_photos(tmp_path / "photos", **kept)
    assert list(load_image_folder(tmp_path / "photos").target_names) == ["bean_rust", "healthy"]
    archive.unlink()
    put_photos(tmp_path / "photos", **kept)
    assert len(load_image_folder(tmp_path / "photos").data) == 2
    put_photos(tmp_path / "copy", tmp_path / "photos")
    assert len(load_image_folder(tmp_path / "copy").data) == 2
    with pytest.raises(RuntimeError, match=r"needs photographs, .* CNNFEAT_EXAMPLE_PHOTOS"):
        put_photos(tmp_path / "photos", **kept | {"cache": tmp_path / "other"})
    archive.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="it is not the set"):
        put_photos(tmp_path / "photos", **kept | {"cache": tmp_path / "other"})
    with pytest.raises(RuntimeError, match="no JPEG files in one subfolder per class"):
        put_photos(tmp_path / "photos", EXAMPLES / "notebooks")
    assert len(load_image_folder(tmp_path / "photos").data) == 2


def test_photographs_of_others_are_not_replaced(tmp_path):
    """Scripts of the gallery run with one's own photographs too."""
    save_photos(tmp_path / "photos" / "mine", 2)
    save_photos(tmp_path / "others" / "theirs", 2)
    for source in (None, tmp_path / "others"):
        with pytest.raises(RuntimeError, match=r"photos' would be replaced .* move it elsewhere"):
            put_photos(tmp_path / "photos", source)
    put_photos(tmp_path / "photos", tmp_path / "photos")
    assert len(list((tmp_path / "photos" / "mine").iterdir())) == 2


def test_a_build_without_photographs_ends_with_one_sentence(tmp_path):
    for name in ("sphinx_gallery", "sphinx_click", "sphinx_design", "sphinx_copybutton"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", EXAMPLES.parent / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        env={**os.environ, "CNNFEAT_EXAMPLE_PHOTOS": str(tmp_path)},
    )
    assert done.returncode == 1
    sentence = f"CNNFEAT_EXAMPLE_PHOTOS={str(tmp_path)!r} has no JPEG files in one subfolder"
    assert done.stderr.strip().startswith(sentence)
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [[str(EXAMPLES / "demo.py")], ["-m", "sklearn_cnnfeat", "demo"]]
)
def test_demo(command, tmp_path):
    printed = run([*command, "pictures"], tmp_path, KERAS_HOME=str(tmp_path / "keras"))
    check_pictures(list((tmp_path / "pictures").glob("*.png")), 3)
    best = re.search(r"Best: .*: (\S+) % right; raw pixels: (\S+) %", printed)
    assert float(best[1]) > float(best[2]) + 3, "features should beat pixels clearly"
    assert "cnnfeat search photos/ --model vgg16" in printed
