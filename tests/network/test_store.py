"""Networks on the disk: full disks, damaged and forged records, several writers."""

import json
import shutil
import subprocess
import warnings

import numpy as np
import pytest
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._network import converter, ncnn_networks, networks, store
from sklearn_cnnfeat._network.spec import digest_of_text
from sklearn_cnnfeat.exceptions import EngineWarning, ProgramWarning


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 4)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
    networks.forget_networks()
    yield tmp_path / "home"
    networks.forget_networks()


@pytest.fixture
def full_disk(tmp_path):
    """Return a file system of 60 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _features(network, photos):
    return CNNFeatureTransformer(network, "two", "avg").fit_transform(photos)


def _record(home):
    (path,) = home.glob("networks/*/record.json")
    return path


def test_a_full_disk_is_a_warning(network, photos, home, full_disk, monkeypatch):
    expected = _features(network, photos)
    networks.forget_networks()
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(full_disk))
    (full_disk / "filler").write_bytes(bytes(50_000))
    with pytest.warns(ProgramWarning, match=r"cannot be kept in .*SKLEARN_CNNFEAT_HOME"):
        rows = _features(network, photos)
    np.testing.assert_array_equal(rows, expected)
    assert [path.name for path in (full_disk / "networks").glob("*") if path.name != "locks"] == []


@pytest.mark.slow
def test_no_room_anywhere_leaves_it_to_keras(network, photos, home, full_disk, monkeypatch):
    expected = _features(network, photos)
    networks.forget_networks()
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(full_disk))
    monkeypatch.setattr(store, "_temporary_folders", lambda: (str(full_disk),))
    (full_disk / "filler").write_bytes(bytes(50_000))
    with pytest.warns(EngineWarning, match="cannot be written anywhere.*Keras computes it"):
        rows = _features(network, photos)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        5,
        [],
        {},
        {"key": 5, "record": None, "files": {}},
        {"record": 5, "files": {}},
        {"record": {}, "files": {}},
        {"record": {"layers": []}, "files": {}},
        {"record": None, "files": {"../../elsewhere": "0"}},
        {"record": None, "files": 3},
    ],
    ids=str,
)
@pytest.mark.sampled(2)
def test_forged_records_are_converted_again(content, network, photos, home):
    expected = _features(network, photos)
    networks.forget_networks()
    if isinstance(content, dict):
        content = {"key": _record(home).parent.name} | content
    text = json.dumps(content)
    _record(home).write_text(json.dumps({"sha256": digest_of_text(text), "content": text}))
    with pytest.warns(ProgramWarning, match="it is compiled again") as caught:
        rows = _features(network, photos)
    assert len([warning for warning in caught if warning.category is ProgramWarning]) == 1
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.slow
def test_fields_of_other_kinds_are_converted_again(network, photos, home):
    expected = _features(network, photos)
    original = json.loads(json.loads(_record(home).read_text())["content"])
    for field in original["record"]:
        networks.forget_networks()
        forged = original | {"record": original["record"] | {field: [[{}]]}}
        text = json.dumps(forged)
        _record(home).write_text(json.dumps({"sha256": digest_of_text(text), "content": text}))
        with pytest.warns(ProgramWarning, match="it is compiled again"):
            np.testing.assert_array_equal(_features(network, photos), expected)


@pytest.mark.slow
def test_deep_nesting_is_damage(network, photos, home):
    expected = _features(network, photos)
    networks.forget_networks()
    _record(home).write_text("[" * 200_000)
    with pytest.warns(ProgramWarning, match="it is compiled again"):
        np.testing.assert_array_equal(_features(network, photos), expected)
    assert store.check_networks()[1] == []


def test_a_folder_of_another_network_is_not_used(network, photos, home, tmp_path):
    expected = _features(network, photos)
    folder = _record(home).parent
    other = save_network(tmp_path / "other.keras", seed=1)
    assert not np.array_equal(_features(other, photos), expected)
    (other_folder,) = {path.parent for path in home.glob("networks/*/record.json")} - {folder}
    shutil.rmtree(folder)
    other_folder.rename(folder)
    networks.forget_networks()
    with pytest.warns(ProgramWarning, match="it is another network's.*it is compiled again"):
        np.testing.assert_array_equal(_features(network, photos), expected)


def test_damage_that_cannot_be_removed_is_not_used(network, photos, home, monkeypatch):
    expected = _features(network, photos)
    networks.forget_networks()
    graph = _record(home).with_name("network.bin")
    graph.write_bytes(bytes(graph.stat().st_size))
    # As in a folder of somebody else.
    remove = shutil.rmtree

    def refuse(folder, *args, **kwargs):
        if folder != graph.parent:
            remove(folder, *args, **kwargs)

    monkeypatch.setattr(store.shutil, "rmtree", refuse)
    with pytest.warns(ProgramWarning, match=r"cannot be kept in .*SKLEARN_CNNFEAT_HOME"):
        rows = _features(network, photos)
    np.testing.assert_array_equal(rows, expected)


def test_a_file_system_without_locks(network, photos, home, monkeypatch):
    def refuse(lock, *args, **kwargs):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(store.filelock.FileLock, "acquire", refuse)
    assert np.isfinite(_features(network, photos)).all()
    assert store.measure_networks()[0] == 1


@pytest.mark.parametrize("engine", ["openvino", "ncnn"])
def test_a_network_that_another_process_has_removed(engine, network, photos, home):
    cnn = CNNFeatureTransformer(network, "two", "avg", engine=engine).fit(photos)
    expected = cnn.transform(photos)
    networks.forget_networks()
    cnn = CNNFeatureTransformer(network, "two", "avg", engine=engine).fit(photos)
    ncnn_networks.forget_loaded()
    shutil.rmtree(home / "networks")
    np.testing.assert_array_equal(cnn.transform(photos), expected)
    assert store.measure_networks()[0] >= 1
    # Layers that are computed for the first time need it as well.
    shutil.rmtree(home / "networks")
    assert CNNFeatureTransformer(network, "one", "avg", engine=engine).fit_transform(photos).any()


def test_another_layer_converts_nothing(network, photos, home, monkeypatch):
    _features(network, photos)
    networks.forget_networks()

    def convert(*args):
        raise AssertionError("converted again")

    monkeypatch.setattr(converter, "convert", convert)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layer, pooling in (("one", "flatten"), ("three", "max"), ("mean", None)):
            cnn = CNNFeatureTransformer(network, layer, pooling, preprocessing="tf")
            assert np.isfinite(cnn.fit_transform(photos)).all()
    assert store.measure_networks()[0] == 1
