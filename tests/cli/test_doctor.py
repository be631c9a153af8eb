"""What a bug report needs, and what tells a healthy installation from another."""

import os
import subprocess
import sys

import pytest

from sklearn_cnnfeat import CNNFeatureTransformer, FeatureCache, show_versions
from sklearn_cnnfeat._doctor import diagnose, doctor
from sklearn_cnnfeat._network import keras_sources


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(home))
    return home


def found():
    return {check.name: (check.status, check.detail) for check in diagnose()}


def test_versions(capsys, own_home, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    show_versions()
    out = capsys.readouterr().out
    lines = dict(line.strip().split(": ", 1) for line in out.splitlines() if ": " in line)
    import keras
    import sklearn

    assert lines["scikit-learn"] == sklearn.__version__
    assert lines["keras"] == keras.__version__
    assert lines["python"].startswith(sys.version.split()[0])
    assert lines["engine='auto'"] == keras_sources.choose_engine()
    assert lines["compiled networks and features"] == str(own_home)
    assert lines["OMP_NUM_THREADS"] == "3"


def test_versions_are_told_at_once():
    code = (
        "import sys, sklearn_cnnfeat; sklearn_cnnfeat.show_versions()\n"
        "print([name for name in ('keras', 'tensorflow', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_healthy_installation(own_home, capsys):
    assert doctor() == 0
    out = capsys.readouterr().out
    assert out.endswith("All is well.\n")
    assert "[  ok  ] self-test: openvino equals NumPy's float64, to " in out
    assert f"[  ok  ] home folder: {own_home} can be written to" in out
    assert f"[  ok  ] feature cache: none yet in {own_home}" in out
    assert "float32" in out
    # The self-test left its program, which the next check finds sound.
    assert found()["compiled networks"][1].startswith("1 in ")
    assert not [path for path in own_home.iterdir() if path.name.startswith("doctor-")]


def test_damage_is_told(own_home, tmp_path):
    images = [bytes([i]) * 32 for i in range(5)]
    with FeatureCache(own_home / "features") as cache:
        import numpy as np

        cache.put_many("recipe", images, np.ones((5, 3), np.float32))
    first = found()
    assert first["feature cache"][0] == "ok"
    assert first["feature cache"][1].startswith("5 sound rows")
    (weights,) = (own_home / "networks").glob("*/network.bin")
    weights.write_bytes(weights.read_bytes()[:-1])
    status, detail = found()["compiled networks"]
    assert status == "note"
    assert f"1 damaged, converted again when needed: {weights.parent.name}" in detail


def test_weights_are_found(own_home, imagenet_home):
    status, detail = found()["published weights"]
    assert status == "ok"
    assert detail.endswith(": mobilenet (without classifier)")


def test_no_weights(own_home, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert found()["published weights"][0] == "note"


@pytest.mark.skipif(os.name == "nt", reason="a file is no folder there in another way")
def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "file" / "home"))
    assert doctor() == 1
    out = capsys.readouterr().out
    assert f"[failed] home folder: {tmp_path / 'file' / 'home'} cannot be written to (" in out
    assert "Set the environment variable SKLEARN_CNNFEAT_HOME" in out
    assert "1 check failed." in out


@pytest.mark.slow
def test_a_broken_openvino(own_home, tmp_path):
    broken = tmp_path / "broken"
    (broken / "openvino").mkdir(parents=True)
    (broken / "openvino" / "__init__.py").write_text("raise OSError('libtbb.so: too short')\n")
    code = f"import sys; sys.path.insert(0, {str(broken)!r})\n" + (
        "from sklearn_cnnfeat._doctor import doctor; sys.exit(doctor())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    checks = {line.split(": ")[0]: line for line in done.stdout.splitlines() if line[:1] == "["}
    reason = "cannot be loaded (OSError: libtbb.so: too short), so networks run on Keras"
    assert reason in checks["[failed] engine"]
    assert checks["[  ok  ] precision"] == "[  ok  ] precision: float32"
    assert checks["[ note ] self-test"].count("Keras computes it instead") == 1
    assert done.stdout.endswith("1 check failed.\n")


def test_wrong_numbers_are_told(own_home, monkeypatch):
    def wrong(self, X):
        return CNNFeatureTransformer._right(self, X) * 1.001

    monkeypatch.setattr(
        CNNFeatureTransformer, "_right", CNNFeatureTransformer.transform, raising=False
    )
    monkeypatch.setattr(CNNFeatureTransformer, "transform", wrong)
    status, detail = found()["self-test"]
    assert status == "failed"
    assert "differs from NumPy's float64 by 1.0e-03" in detail


def test_the_self_test_does_not_depend_on_the_backend_of_keras(own_home):
    """On OpenVINO's, Keras predicts in bfloat16 where the processor has it."""
    code = (
        "from sklearn_cnnfeat._doctor import diagnose\n"
        "print([check.status for check in diagnose() if check.name == 'self-test'])\n"
        "import keras; print(keras.backend.backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "openvino"},
    )
    assert done.stdout.split() == ["['ok']", "openvino"], done.stderr


def test_old_packages_are_told(own_home, monkeypatch):
    from sklearn_cnnfeat import _doctor

    versions = _doctor.installed_version
    monkeypatch.setattr(
        _doctor,
        "installed_version",
        lambda name: {"pillow": "9.0", "tqdm": None}.get(name, versions(name)),
    )
    status, detail = found()["packages"]
    assert status == "failed"
    assert "pillow>=11.3" in detail and "9.0 is installed" in detail
    assert "tqdm>=4.64 is wanted, nothing is installed" in detail


def test_tensorflow_and_ncnn_may_be_left_out(own_home, monkeypatch):
    """As packages of conda do."""
    from sklearn_cnnfeat import _doctor

    versions = _doctor.installed_version
    monkeypatch.setattr(
        _doctor,
        "installed_version",
        lambda name: None if name in ("tensorflow", "ncnn") else versions(name),
    )
    lines = ["tensorflow>=2.18", "ncnn>=1.0.20261020", "numpy>=1.26"]
    monkeypatch.setattr(_doctor, "requires", lambda name: lines)
    status, detail = found()["packages"]
    assert status == "note"
    assert "all 1 required packages" in detail and "TensorFlow is not installed" in detail
