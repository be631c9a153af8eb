"""Shared fixtures: a home of our own for every run, real photographs where they are."""

import importlib.util
import os
import shutil
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

# Before TensorFlow is imported by any test: its chatter is not ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

if importlib.util.find_spec("tensorflow") is None:
    # Tests import Keras themselves, and its default backend is TensorFlow.
    from sklearn_cnnfeat._network.keras_models import import_keras
    from sklearn_cnnfeat._network.runtime import import_openvino

    import_keras()
    # What Keras predicts there is bfloat16 on processors that have it; here it judges.
    openvino = import_openvino()
    in_float32 = {"INFERENCE_PRECISION_HINT": "f32"}
    openvino.compile_model = partial(openvino.compile_model, config=in_float32)

_ASSETS = Path(
    os.environ.get("CNNFEAT_TEST_ASSETS")
    or Path(__file__).resolve().parents[2] / "shared" / "assets"
)
# Folders of tests are in memory where the system has room there: thousands of files and databases
# are written and synchronized.
_MEMORY = Path("/dev/shm")
_ROOM = 2**31


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow all but a few cases, evenly spread, of the tests that say ``sampled(n)``."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for group in cases.values():
        (n_fast,) = group[0].get_closest_marker("sampled").args
        fast = {round(i * (len(group) - 1) / max(n_fast - 1, 1)) for i in range(n_fast)}
        for i, item in enumerate(group):
            if i not in fast:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Keep compiled networks of the tests out of the user's home, and share them among tests."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("SKLEARN_CNNFEAT_HOME")
    os.environ["SKLEARN_CNNFEAT_HOME"] = str(folder)
    yield folder
    if converter := sys.modules.get("sklearn_cnnfeat._network.converter"):
        # The processes end now, while coverage still collects what they have measured.
        converter.keras_process.cache_clear()
    if before is None:
        del os.environ["SKLEARN_CNNFEAT_HOME"]
    else:
        os.environ["SKLEARN_CNNFEAT_HOME"] = before


@pytest.fixture
def tmp_path(tmp_path):
    """Return an empty folder, in memory if possible; what is in it goes with the test."""
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _ROOM:
        yield tmp_path
        return
    with TemporaryDirectory(dir=_MEMORY, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def no_open_figures():
    """Close what a test has drawn: pyplot warns of many figures, whoever opened them."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def assets():
    """Return the folder of real weights and photographs."""
    if not _ASSETS.is_dir():
        pytest.skip(f"no assets in {_ASSETS}; CNNFEAT_TEST_ASSETS names their folder")
    return _ASSETS


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return the file of a small network."""
    from small_network import save_network

    return save_network(tmp_path_factory.mktemp("model") / "small.keras")


@pytest.fixture(scope="session")
def photos(assets):
    """Return the sorted paths of the photographs."""
    return sorted(str(path) for path in (assets / "photos").rglob("*.jpg"))


@pytest.fixture
def imagenet_home(assets, monkeypatch):
    """Let Keras find the published weights of MobileNet without a network."""
    monkeypatch.setenv("KERAS_HOME", str(assets / "keras_home"))
