"""The process in which Keras runs: how it answers, and how it ends."""

import gc
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from requirements import needs_tensorflow

from sklearn_cnnfeat._network import process as module
from sklearn_cnnfeat._network.process import KerasProcess, ProcessEndedError, limited_memory


@pytest.fixture
def worker():
    worker = KerasProcess({"CNNFEAT_TEST": "there", "HOME": None})
    yield worker
    worker.close()


def _wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_jobs_run_elsewhere(worker):
    assert worker.run(os.getpid) == worker.pid != os.getpid()
    assert worker.run(math.sqrt, 9.0) == 3.0
    assert worker.run(os.getenv, "CNNFEAT_TEST") == "there"
    assert worker.run(os.getenv, "HOME") is None


def test_import_path_is_the_parents(worker, tmp_path, monkeypatch):
    (tmp_path / "module_of_a_user.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    import module_of_a_user

    assert worker.run(module_of_a_user.answer) == 42


def test_files_in_the_current_folder_do_not_run(worker, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('json.py of the current folder')\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert worker.run(math.sqrt, 9.0) == 3.0


def test_entries_of_the_import_path_that_are_not_text(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    assert worker.run(math.sqrt, 9.0) == 3.0


def test_modules_can_be_absent():
    worker = KerasProcess({}, absent=("colorsys",))
    with pytest.raises(ModuleNotFoundError, match="colorsys"):
        worker.run(importlib.import_module, "colorsys")
    worker.close()


def test_modules_can_be_absent_for_keras(tmp_path, monkeypatch):
    """Keras does without them; modules of users import them, also while Keras imports these."""
    (tmp_path / "module_of_a_user.py").write_text("import colorsys\n")
    (tmp_path / "keras.py").write_text(
        "try:\n    import colorsys\nexcept ImportError:\n    colorsys = None\n"
        "def is_hidden():\n"
        "    import module_of_a_user\n"
        "    return colorsys is None and module_of_a_user.colorsys is not None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    worker = KerasProcess({}, absent_for_keras=("colorsys",))
    assert worker.run(eval, "__import__('keras').is_hidden()") is True
    worker.close()


def test_a_process_that_nobody_can_reach_any_more_ends(recwarn):
    worker = KerasProcess({})
    worker.run(os.getpid)
    process = psutil.Process(worker.pid)
    del worker
    gc.collect()
    assert _wait_until(lambda: not process.is_running())
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


def test_errors_keep_kind_and_message(worker):
    with pytest.raises(ValueError, match="math domain error"):
        worker.run(math.sqrt, -1)
    with pytest.raises(FileNotFoundError, match="No such file"):
        worker.run(os.stat, "/not/there")
    # Of a kind that other processes need not know: its name and message are kept.
    with pytest.raises(RuntimeError, match=r"CalledProcessError: .*non-zero exit status 3"):
        worker.run(subprocess.check_call, [sys.executable, "-c", "raise SystemExit(3)"])
    assert worker.run(os.getpid) == worker.pid


def test_what_jobs_print_does_not_get_between_answers(worker, capfd):
    assert worker.run(os.system, "echo noise; echo noise >&2") == 0
    assert worker.run(print, "more noise") is None
    assert capfd.readouterr() == ("", "")


def test_killed_while_idle_is_started_again(worker):
    first = worker.run(os.getpid)
    os.kill(first, signal.SIGKILL)
    assert _wait_until(lambda: worker.pid is None)
    assert worker.run(os.getpid) != first


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_in_a_job_is_an_error_and_the_next_job_runs(worker):
    pid = worker.run(os.getpid)
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(ProcessEndedError, match="was ended by SIGKILL before it was done"):
        worker.run(time.sleep, 60)
    assert worker.run(os.getpid) != pid


def test_a_job_that_takes_too_long_is_ended(worker, monkeypatch):
    worker.run(os.getpid)
    monkeypatch.setattr(module, "LONGEST_JOB", 0.5)
    with pytest.raises(ProcessEndedError, match="took longer than"):
        worker.run(time.sleep, 60)


def test_an_idle_process_ends(worker, monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.2)
    process = psutil.Process(worker.run(os.getpid))
    process.wait(30)
    assert worker.run(math.sqrt, 4.0) == 2.0


def test_jobs_of_many_threads(worker):
    results = []
    threads = [
        threading.Thread(target=lambda n: results.append((n, worker.run(abs, -n))), args=(n,))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(n, n) for n in range(20)]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_it_ends_with_its_parent(how, busy):
    script = f"""
        import os, time
        from sklearn_cnnfeat._network.process import KerasProcess
        worker = KerasProcess({{}})
        print(worker.run(os.getpid), flush=True)
        worker.run(time.sleep, 600) if {busy} else time.sleep(600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)
    parent.send_signal(how)
    parent.communicate(timeout=60)
    assert _wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds to this limit")
def test_memory_can_be_limited(worker):
    assert worker.run(_allocate, 10**8, 5 * 10**8) == 10**8
    with pytest.raises(MemoryError):
        worker.run(_allocate, 10**9, 5 * 10**8)
    # The limit is gone with its job.
    assert worker.run(_allocate, 10**9, 5 * 10**9) == 10**9


def _allocate(n_bytes, limit):
    with limited_memory(limit):
        return len(bytearray(n_bytes))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own():
    script = """
        import os
        from sklearn_cnnfeat._network.process import KerasProcess
        worker = KerasProcess({})
        first = worker.run(os.getpid)
        child = os.fork()
        if child == 0:
            os._exit(0 if worker.run(os.getpid) != first else 1)
        status = os.waitpid(child, 0)[1]
        print(status, worker.run(os.getpid) == first)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "0 True\n", done.stderr


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="links to folders need rights there")
def test_keras_that_was_replaced_under_a_live_process(tmp_path):
    """As pip does in a notebook that has imported TensorFlow and an older Keras."""
    package = Path(importlib.util.find_spec("keras").origin).parent
    shutil.copytree(package, tmp_path / "keras", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "keras" / "src" / "version.py").write_text(
        '__version__ = "3.13.2"\n\n\ndef version():\n    return __version__\n'
    )
    code = """
        import shutil, sys
        from pathlib import Path
        import numpy as np
        import tensorflow, keras
        assert keras.__version__ == "3.13.2"
        model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, name="maps")])
        folder, package, version = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
        shutil.rmtree(folder)
        folder.symlink_to(package)
        information = folder.with_name(f"keras-{version}.dist-info")
        information.mkdir()
        (information / "METADATA").write_text(f"Name: keras\\nVersion: {version}\\n")
        from sklearn_cnnfeat import CNNFeatureTransformer
        from sklearn_cnnfeat._network.process import KerasProcess
        X = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
        own = CNNFeatureTransformer(model, "maps", preprocessing=None).fit_transform(X)
        expected = model.predict(X.astype(np.float32), verbose=0).reshape(len(X), -1)
        assert np.abs(own - expected).max() <= 1e-5 * np.abs(expected).max()
        named = CNNFeatureTransformer("mobilenet", "conv1_relu", "avg", weights=None)
        assert np.isfinite(named.fit_transform(X)).all()
        worker = KerasProcess({})
        print(keras.__version__, worker.run(eval, "__import__('keras').__version__"))
        worker.close()
    """
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), root]),
        "SKLEARN_CNNFEAT_HOME": str(tmp_path / "home"),
    }
    arguments = [tmp_path / "keras", package, version("keras")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    old, new = done.stdout.split()
    assert old == "3.13.2" != new
