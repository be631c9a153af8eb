"""``cnnfeat explore``, ``embedding``, ``gallery`` and ``examples``: what they write, and when."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._cli import main

ROOT = Path(__file__).resolve().parents[2]
# Folders and files may be called anything.
CLASSES = ["<img src=x onerror=alert(1)>", "<script>alert(1)"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with photographs of two classes, a network and a fitted pipeline."""
    folder = tmp_path_factory.mktemp("seeing")
    network = save_network(folder / "small.keras")
    for number, path in enumerate(save_photos(folder / "all", 12)):
        (folder / "photos" / CLASSES[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.move(path, folder / "photos" / CLASSES[number % 2])
    paths = np.array(sorted(str(path) for path in (folder / "photos").rglob("*.jpg")))
    y = [Path(path).parent.name for path in paths]
    cnn = CNNFeatureTransformer(network, "two", "avg", verbose=0)
    pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(paths, y)
    joblib.dump(pipe, folder / "model.joblib")
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """Work in an empty folder that has the network, the pipeline and the photographs in it."""
    for name in ("small.keras", "model.joblib"):
        (tmp_path / name).symlink_to(folder / name)
    shutil.copytree(folder / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cnnfeat(capfd):
    """Return a function that runs a command and returns its exit code and its messages."""

    def cnnfeat(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        printed, messages = capfd.readouterr()
        assert printed == ""
        return code, messages

    return cnnfeat


def assert_is_picture(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert min(pixels.shape) > 150, pixels.shape
    assert pixels.std() > 10, f"{path} is nearly empty"


class Tags(HTMLParser):
    """The elements of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)


def facts_of(path):
    return json.loads(re.search(r'id="facts">(.*)</script>', Path(path).read_text("utf-8"))[1])


def test_embedding(here, cnnfeat):
    assert cnnfeat("embedding", "model.joblib", "photos", "--method", "tsne") == (
        0,
        "cnnfeat: wrote embedding.png\n",
    )
    assert_is_picture("embedding.png")


def test_gallery(here, cnnfeat):
    arguments = ["model.joblib", "photos", "--cv", "2", "-n", "3", "--which", "least_certain"]
    assert cnnfeat("gallery", *arguments, "-o", "g.png") == (0, "cnnfeat: wrote g.png\n")
    assert_is_picture("g.png")
    single = Path("photos", CLASSES[0])
    code, messages = cnnfeat("gallery", "model.joblib", single)
    assert code == 2 and "needs one subfolder per class" in messages


def test_examples(here, cnnfeat):
    arguments = ["photos", "-m", "small.keras", "-l", "two", "--channels", "1", "5", "-n", "3"]
    assert cnnfeat("examples", *arguments) == (0, "cnnfeat: wrote examples.png\n")
    assert_is_picture("examples.png")
    code, messages = cnnfeat("examples", *arguments, "-c", "8")
    assert code == 1 and "channel=8 is out of range" in messages


def test_explore_a_folder_with_hostile_names(here, cnnfeat):
    first = next(Path("photos", CLASSES[0]).iterdir())
    hostile = first.rename(first.with_name("<script>alert(2).jpg"))
    code, messages = cnnfeat("explore", "model.joblib", "photos", "--layers", "one", "two")
    assert code == 0
    assert re.fullmatch(r"cnnfeat: wrote page\.html \(0\.\d MB\)\n", messages)
    facts = facts_of("page.html")
    assert facts["layers"] == ["one", "two"]
    assert facts["classes"] == sorted(CLASSES)
    assert str(hostile) in facts["names"]
    # Three of data, one of facts, and the program.
    tags = Tags(Path("page.html").read_text("utf-8")).found
    assert tags.count("script") == 5 and "img" not in tags
    # For whoever may read other files that this user writes.
    mask = os.umask(0)
    os.umask(mask)
    assert os.stat("page.html").st_mode & 0o777 == 0o666 & ~mask


def test_explore_photographs_without_classes(here, cnnfeat):
    code, _ = cnnfeat("explore", "model.joblib", Path("photos", CLASSES[0]), "-o", "new.html")
    assert code == 0
    facts = facts_of("new.html")
    assert facts["truth"] is None and len(facts["predicted"]) == 6


@pytest.mark.parametrize("command", ["explore", "embedding", "gallery"])
def test_unreadable_photographs(command, here, cnnfeat):
    Path("photos", CLASSES[0], "broken.jpg").write_bytes(b"no picture")
    code, messages = cnnfeat(command, "model.joblib", "photos")
    assert code == 1 and "broken.jpg" in messages
    code, messages = cnnfeat(command, "model.joblib", "photos", "--on-error", "skip")
    assert code == 0
    assert "1 of 13 photographs cannot be read and are left out" in messages


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["explore", "model.joblib", "photos", "-o", "page.png"], "must end with .html"),
        (["explore", "model.joblib", "photos", "-o", "no/page.html"], "no folder 'no'"),
        (["explore", "nothing.joblib", "photos"], "nothing.joblib"),
        (["explore", "model.joblib", "nowhere"], "nowhere"),
        (["embedding", "model.joblib", "photos", "-o", "page.html"], "must end with .png"),
        (["gallery", "model.joblib", "photos", "--which", "funniest"], "funniest"),
        (["gallery", "model.joblib", "photos", "--cv", "1"], "range"),
        (["examples"], "Missing argument"),
    ],
)
def test_wrong_usage(arguments, expected, here, cnnfeat):
    code, messages = cnnfeat(*arguments)
    assert code == 2
    assert expected in " ".join(messages.split())
    assert not list(here.glob("*.html")) + list(here.glob("*.png"))


# --- whole or not at all --------------------------------------------------------------------------

# Each photograph many times, so that writing takes a while.
WRITE = """
import glob, resource, sys, joblib
from sklearn_cnnfeat import explore
most = int(sys.argv[1])
if most:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
explore(joblib.load("model.joblib"), 100 * sorted(glob.glob("photos/*/*.jpg")), to="page.html")
"""


def start_writing(most=0):
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, str(most)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_leaves_the_old_page(here):
    Path("page.html").write_text("old")
    running = start_writing()
    deadline = time.monotonic() + 200
    while not any(path.stat().st_size for path in here.glob(".*.html")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    running.stderr.close()
    assert Path("page.html").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limits of this kind")
def test_a_full_disk_leaves_nothing(here):
    # Python reports a file larger than allowed as it does a full disk: a failed write.
    _, messages = start_writing(most=100_000).communicate(timeout=200)
    assert "OSError" in messages and "page.html" in messages
    assert [path.name for path in here.glob("*.html")] == []
    assert list(here.glob(".*.html")) == []
