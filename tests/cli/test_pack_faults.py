"""``cnnfeat pack`` that is killed, and on a full disk: a folder with checksums is complete."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

import pytest
from test_pack import make_wheel

from sklearn_cnnfeat._cli import main, packing

# Packs again and again. Each time it is killed one step later: at the n-th change of the folder, or
# after n bytes of a file. It prints what each run has left.
_KILLED = """
import hashlib, json, os, resource, signal, sys, tempfile
from pathlib import Path
from sklearn_cnnfeat._cli import packing

folder, source, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
tempfile.tempdir = str(source.parent)  # links do not reach another file system
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "shutil.move"}

def kill_at(allowed):
    def count(event, arguments):
        nonlocal allowed
        if event in CHANGES and str(arguments[0]).startswith(str(folder)):
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            if allowed == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            allowed -= 1
    return count

def fake_pip(command, *arguments):
    for wheel in source.glob("*.whl"):  # no copies: these are not what is killed here
        os.link(wheel, Path(arguments[arguments.index("--dest") + 1]) / wheel.name)

packing._own_wheel = lambda temporary: source / "own" / "sklearn_cnnfeat-1.2.3-py3-none-any.whl"
packing._resolve = lambda *_: ["wanted"]
packing._pip = fake_pip

def run(step):
    pid = os.fork()
    if pid == 0:
        if kind == "changes":
            sys.addaudithook(kill_at(step))
        elif kind == "sizes":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # ends the process as a kill does
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (step * 40_000, resource.RLIM_INFINITY))
        packing.pack(folder, ["mobilenet"], "kaggle")
        os._exit(0)
    return os.waitpid(pid, 0)[1]

for step in range(100):
    status = run(step)
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.exists() else None
    print(json.dumps({"killed": status != 0, "files": files, "sums": lines}), flush=True)
    if status == 0:
        break
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Return a folder of what pip would download, and let Keras hold a file of weights."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    models = tmp_path / "keras" / "models"
    models.mkdir(parents=True)
    (models / "mobilenet_1_0_224_tf_no_top.h5").write_bytes(os.urandom(200_000))
    folder = tmp_path / "source"
    (folder / "own").mkdir(parents=True)
    for name in ("keras-3.15.1", "openvino-2026.4.1", "own/sklearn_cnnfeat-1.2.3"):
        (folder / f"{name}-py3-none-any.whl").write_bytes(os.urandom(150_000))
    return folder


def pack_and_kill(folder, source, kind):
    """Return what each run left; the last one was not killed."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, folder, source, kind],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(os.name == "nt", reason="kills by signals")
@pytest.mark.parametrize("kind", ["changes", "sizes"])
def test_killed_at_every_step(kind, source, tmp_path):
    """A kill leaves whole files under their names only, and no checksums of another state."""
    originals = [*source.rglob("*.whl"), *(tmp_path / "keras" / "models").iterdir()]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in originals}
    folder = tmp_path / "packed"
    whole = pack_and_kill(tmp_path / "whole", source, "none")[-1]
    # What an earlier version of a package has left goes.
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "keras-3.14.0-py3-none-any.whl").write_bytes(b"old")
    first = pack_and_kill(folder, source, kind)
    again = pack_and_kill(folder, source, "changes")
    assert len(first) > 3 and len(again) > 3 and first[0]["killed"]
    for state in [*first, *again]:
        for name, digest in state["files"].items():
            name = name.rpartition("/")[2]
            if name in digests:
                assert digest == digests[name], f"half of {name}"
        if state["sums"] is not None:
            listed = dict(reversed(line.split("  ")) for line in state["sums"])
            assert listed.items() <= state["files"].items()
            assert {name for name in state["files"] if name.endswith(".whl")} <= set(listed)
            assert {"README.md", "install_cell.py"} <= set(state["files"])
    for state in (first[-1], again[-1]):
        assert not state["killed"]
        assert state == whole


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of 500 KB, and what makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
        return subprocess.run(command, capture_output=True).returncode == 0

    if shutil.which("mount") is None or not mount("size=500k"):
        pytest.skip("mounting a file system is not permitted here")
    yield disk, lambda: mount("remount,size=4m")
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def wheels(source, monkeypatch):
    """Let packing take its wheels from a folder."""
    (own,) = (source / "own").iterdir()
    monkeypatch.setattr(packing, "_own_wheel", lambda folder: own)
    found = sorted(source.glob("*.whl"))
    monkeypatch.setattr(packing, "_fetch_wheels", lambda target, folder: [own, *found])


def test_a_full_disk_is_told_and_the_next_run_completes(wheels, small_disk, tmp_path, capfd):
    disk, enlarge = small_disk
    command = ["pack", str(disk / "packed"), "--models", "mobilenet", "--target", "kaggle"]
    assert main(command) == 1
    message = capfd.readouterr().err
    assert message.strip().endswith("No space left on device")
    assert str(disk / "packed" / "weights" / "mobilenet") in message
    left = [path.name for path in (disk / "packed").rglob("*") if path.is_file()]
    assert sorted(left) == sorted(path.name for path in tmp_path.glob("source/**/*.whl"))
    assert enlarge()
    assert main(command) == 0
    lines = (disk / "packed" / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 6
    for digest, name in (line.split("  ") for line in lines):
        assert hashlib.sha256((disk / "packed" / name).read_bytes()).hexdigest() == digest


def test_a_folder_that_cannot_be_written_to_is_told_at_once(small_disk, monkeypatch, capfd):
    disk, _ = small_disk
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    monkeypatch.setattr(packing, "locate_weights", None)  # nothing is fetched
    code = main(["pack", str(disk / "packed" / "here"), "--models", "mobilenet"])
    assert code == 1
    assert f"{disk}: cannot be written to" in capfd.readouterr().err


def test_a_full_folder_of_temporary_files_is_told(source, small_disk, tmp_path, monkeypatch, capfd):
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(make_wheel(index, "large", "1.0"), "a") as wheel:
        wheel.writestr("large.bin", os.urandom(1_000_000))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("TMPDIR", str(small_disk[0]))
    monkeypatch.setattr(tempfile, "tempdir", None)
    own = make_wheel(index, "sklearn-cnnfeat", "1.2.3", ["large"])
    monkeypatch.setattr(packing, "_own_wheel", lambda folder: own)
    code = main(["pack", str(tmp_path / "packed"), "--models", "mobilenet"])
    message = capfd.readouterr().err
    assert code == 1
    assert f"the disk of {str(small_disk[0])!r} is full" in message and "TMPDIR" in message
    assert "Traceback" not in message and "internet" not in message
    assert not (tmp_path / "packed").exists()
    assert not list(small_disk[0].iterdir())
