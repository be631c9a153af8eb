"""Nothing is sent, and nothing is written outside the folders that belong to this package."""

import os
import subprocess
import sys
import textwrap

import pytest
from small_network import save_network, save_photos

# Imported by every Python process at its start: notes down each look-up and connection.
_WATCH = """
import os, sys
_LOG = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_EVENTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
def _watch(event, args):
    if event in _EVENTS and not str(args[-1]).startswith("/"):
        os.write(_LOG, f"{event} {args[1:]}\\n".encode())
sys.addaudithook(_watch)
"""

_USES = {
    "fit and transform": "CNNFeatureTransformer({network!r}, 'two', 'avg').fit_transform(photos)",
    "int8": (
        "CNNFeatureTransformer({network!r}, 'two', 'avg', precision='int8').fit_transform(photos)"
    ),
    "layer_summary": "sklearn_cnnfeat.layer_summary('mobilenet')",
    "doctor": "main(['doctor'])",
    "extract": (
        "main(['extract', photos[0], '--model', {network!r}, '--layer', 'two', '-o', 'a.npy'])"
    ),
}


@pytest.mark.parametrize("use", list(_USES))
@pytest.mark.sampled(2)
def test_nothing_is_sent_and_nothing_written_elsewhere(use, tmp_path):
    if use == "int8":
        pytest.importorskip("nncf")
    network = save_network(tmp_path / "network.keras")
    photos = save_photos(tmp_path / "photos", 4)
    home, log, watcher = tmp_path / "home", tmp_path / "log", tmp_path / "watcher"
    for folder in (home, watcher):
        folder.mkdir()
    (watcher / "sitecustomize.py").write_text(_WATCH)
    script = f"""
        import sklearn_cnnfeat
        from sklearn_cnnfeat import CNNFeatureTransformer
        from sklearn_cnnfeat._cli import main
        photos = {photos!r}
        {_USES[use].format(network=network)}
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        # Libraries keep still where they believe to be tested.
        if name not in ("CI", "TF_BUILD", "NNCF_CI", "SKLEARN_CNNFEAT_HOME", "KERAS_HOME")
        and not name.startswith(("PYTEST", "XDG_"))
    }
    environment |= {"HOME": str(home), "WATCH_LOG": str(log), "PYTHONPATH": str(watcher)}
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(watcher), os.getcwd()])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    assert log.read_text() == ""
    written = {path.relative_to(home).parts for path in home.rglob("*") if path.is_file()}
    # The doctor's self-test imports Keras here and NNCF imports matplotlib, which keep their own.
    theirs = {"doctor": [(".keras",), (".cache", "matplotlib")], "int8": [(".cache", "matplotlib")]}
    allowed = [(".cache", "sklearn-cnnfeat"), *theirs.get(use, [])]
    assert not [path for path in written if not any(path[: len(a)] == a for a in allowed)]


def test_the_watcher_sees_connections(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_WATCH)
    log = tmp_path / "log"
    script = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    environment = os.environ | {"WATCH_LOG": str(log), "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert "127.0.0.1" in log.read_text()
