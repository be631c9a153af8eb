"""Compiled networks on the disk: started without TensorFlow, damaged, shared, killed, missing."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from requirements import needs_tensorflow
from small_network import LAYERS, save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer, exceptions
from sklearn_cnnfeat._network import (
    conversion,
    converter,
    keras_models,
    networks,
    store,
    whole_networks,
)
from sklearn_cnnfeat._network.engines import openvino as engine_openvino


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("pictures"), 6)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return an empty home; nothing is loaded, as in a new process."""
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
    networks.forget_networks()
    return tmp_path / "home"


def _features(network, pictures, layer="two", **parameters):
    return CNNFeatureTransformer(network, layer, "avg", **parameters).fit_transform(pictures)


def _start(script, home, **environment):
    """Start a process of its own with a script."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SKLEARN_CNNFEAT_HOME": str(home), **environment},
    )


def _finish(process, seconds=120):
    output, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors
    return output


def _folders(home):
    return sorted(
        path for path in (home / "networks").iterdir() if path.is_dir() and path.name != "locks"
    )


@pytest.fixture
def count_builds(monkeypatch):
    builds = []
    convert = converter.convert
    monkeypatch.setattr(
        converter, "convert", lambda *args: (builds.append(args), convert(*args))[1]
    )
    return builds


def test_later_process_needs_no_tensorflow(network, pictures, home, imagenet_home, tmp_path):
    weights = tmp_path / "mobilenet.weights.h5"
    keras = keras_models.import_keras()
    small = {"input_size": 32, "pooling": "avg"}
    keras.applications.MobileNet(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    ).save_weights(weights)
    settings = [
        {"model": network, "layer": "two", "pooling": "avg"},
        {"model": "mobilenet", "layer": "conv_pw_1_relu", **small},
        {"model": "mobilenet", "layer": "conv_pw_1_relu", "weights": str(weights), **small},
    ]
    expected = [CNNFeatureTransformer(**setting).fit_transform(pictures) for setting in settings]
    script = f"""
        import sys
        import numpy as np
        from sklearn_cnnfeat import CNNFeatureTransformer
        rows = [
            CNNFeatureTransformer(**setting).fit_transform({pictures!r}) for setting in {settings!r}
        ]
        np.savez({str(tmp_path / "rows.npz")!r}, *rows)
        print([name for name in ("tensorflow", "keras") if name in sys.modules])
    """
    assert _finish(_start(script, home)) == "[]\n"
    with np.load(tmp_path / "rows.npz") as later:
        for name, rows in zip(later.files, expected, strict=True):
            np.testing.assert_array_equal(later[name], rows)


@pytest.mark.parametrize("name", ["record.json", "network.xml", "network.bin"])
@pytest.mark.parametrize("damage", ["flipped first", "flipped last", "cut", "empty", "gone"])
@pytest.mark.sampled(5)
def test_damaged_program_is_compiled_again(network, pictures, home, count_builds, name, damage):
    expected = _features(network, pictures)
    (folder,) = _folders(home)
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage.startswith("flipped"):
        content[len(content) // 5 if damage.endswith("first") else -9] ^= 4
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        content.clear()
    # Written anew, for the old one is mapped into memory.
    file.unlink()
    if damage != "gone":
        file.write_bytes(content)
    networks.forget_networks()
    with pytest.warns(exceptions.ProgramWarning, match="it is compiled again") as caught:
        rows = _features(network, pictures)
    assert len(caught) == 1
    np.testing.assert_array_equal(rows, expected)
    assert len(count_builds) == 2
    # Whole again.
    networks.forget_networks()
    with warnings.catch_warnings():
        warnings.simplefilter("error", exceptions.ProgramWarning)
        np.testing.assert_array_equal(_features(network, pictures), expected)
    assert len(count_builds) == 2


def test_home_that_cannot_be_written_to(network, pictures, home, tmp_path, monkeypatch):
    expected = _features(network, pictures)
    networks.forget_networks()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "file"))
    with pytest.warns(exceptions.ProgramWarning, match="Set SKLEARN_CNNFEAT_HOME") as caught:
        rows = _features(network, pictures)
    # Python may warn of a process of an earlier test at the same time.
    ours = [w for w in caught if issubclass(w.category, exceptions.ProgramWarning)]
    assert len(ours) == 1
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.slow
def test_two_processes_compile_the_same(network, pictures, home, tmp_path):
    script = f"""
        from sklearn_cnnfeat import CNNFeatureTransformer
        rows = CNNFeatureTransformer({network!r}, "two", "avg").fit_transform({pictures!r})
        print(rows.tobytes().hex())
    """
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    outputs = [_finish(p) for p in [_start(script, home, **environment) for _ in range(2)]]
    assert outputs[0] == outputs[1] != ""
    (folder,) = _folders(home)
    assert sorted(path.name for path in folder.iterdir()) == [
        "network.bin",
        "network.xml",
        "record.json",
    ]


@pytest.mark.slow
def test_killed_while_compiling(network, pictures, home):
    """What a kill leaves behind is never taken for a program."""
    script = f"""
        import os, signal
        from sklearn_cnnfeat import CNNFeatureTransformer
        rename = os.rename
        os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        CNNFeatureTransformer({network!r}, "two", "avg").fit({pictures!r})
    """
    process = _start(script, home)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert [path.name.startswith("tmp-") for path in _folders(home)] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error", exceptions.ProgramWarning)
        rows = _features(network, pictures)
    assert np.isfinite(rows).all()
    # After an hour the remains are swept away with the next program that is written.
    (remains,) = (path for path in _folders(home) if path.name.startswith("tmp-"))
    long_ago = time.time() - 7200
    os.utime(remains, (long_ago, long_ago))
    _features(save_network(home.parent / "other.keras", seed=1), pictures)
    assert not remains.exists()


def test_oldest_networks_leave_the_disk(pictures, home, tmp_path, monkeypatch):
    folders = []
    for seed in range(3):
        _features(save_network(tmp_path / f"{seed}.keras", seed), pictures)
        (folder,) = set(_folders(home)) - set(folders)
        folders.append(folder)
    now = time.time()
    for folder, age in zip(folders, (10, 50, 20), strict=True):
        os.utime(folder / "record.json", (now - age, now - age))
    total = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    # Room for three: their records differ by some characters.
    monkeypatch.setattr(store, "MAX_BYTES_ON_DISK", total + 1000)
    _features(save_network(tmp_path / "3.keras", 3), pictures)
    left = _folders(home)
    assert folders[1] not in left
    assert {folders[0], folders[2]} < set(left)
    assert len(left) == 3


def test_few_programs_stay_in_memory(network, pictures, home):
    for layer in [*LAYERS, "pool", "mean", "rescale"]:
        _features(network, pictures, layer)
    assert len(networks._compiled) == whole_networks.MAX_IN_MEMORY


@pytest.mark.slow
def test_changed_model_file_is_another_network(pictures, home, tmp_path):
    path = save_network(tmp_path / "model.keras", seed=0)
    before = _features(path, pictures)
    save_network(path, seed=100)
    after = _features(path, pictures)
    assert not np.array_equal(before, after)
    save_network(path, seed=0)
    np.testing.assert_array_equal(_features(path, pictures), before)


@pytest.mark.slow
def test_model_trained_further(network, pictures, home):
    model = keras_models.import_keras().saving.load_model(network)
    fitted = CNNFeatureTransformer(model, "two", "avg").fit(pictures)
    before = fitted.transform(pictures)
    kernel = model.get_layer("one").kernel
    kernel.assign(kernel * 2)
    # What was fitted stays as it was; a new fit sees the new weights.
    np.testing.assert_array_equal(fitted.transform(pictures), before)
    assert not np.array_equal(_features(model, pictures), before)


def test_forked_child_is_told(network, pictures):
    script = f"""
        import os, sys
        from sklearn_cnnfeat import CNNFeatureTransformer
        cnn = CNNFeatureTransformer({network!r}, "two", "avg").fit({pictures!r})
        cnn.transform({pictures!r})
        child = os.fork()
        if child == 0:
            try:
                cnn.transform({pictures!r})
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    output = _finish(_start(script, os.environ["SKLEARN_CNNFEAT_HOME"]))
    assert "neither OpenVINO nor TensorFlow works after a fork" in output


_NO_OPENVINO = """
    import sys
    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "openvino":
                raise ModuleNotFoundError(name)
    import importlib.util
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *a: None if name == "openvino" else find_spec(name, *a)
    sys.meta_path.insert(0, Blocker())
"""


@needs_tensorflow
def test_without_openvino(network, pictures, tmp_path):
    script = f"""
        from sklearn_cnnfeat import CNNFeatureTransformer
        cnn = CNNFeatureTransformer({network!r}, "two", "avg").fit({pictures!r})
        print(cnn.engine_, cnn.transform({pictures!r}).shape)
        try:
            cnn.set_params(engine="openvino").fit({pictures!r})
        except ImportError as error:
            print(error)
    """
    script = textwrap.dedent(_NO_OPENVINO) + textwrap.dedent(script)
    output = _finish(_start(script, tmp_path))
    assert output.splitlines()[0] == "keras (6, 8)"
    assert "pip install openvino" in output


def test_a_backend_of_keras_that_is_missing_is_told(tmp_path):
    script = """
        from sklearn_cnnfeat._network.keras_models import import_keras
        try:
            import_keras()
        except ImportError as error:
            print(error)
    """
    script = textwrap.dedent(_NO_OPENVINO) + textwrap.dedent(script)
    output = _finish(_start(script, tmp_path, KERAS_BACKEND="openvino"))
    assert "cannot be imported on its 'openvino' backend" in output
    assert "pip install keras openvino" in output


@pytest.mark.slow
def test_keras_on_another_backend_is_left_alone(network, pictures, tmp_path):
    """Networks are converted elsewhere: what Keras is set to here does not matter."""
    script = f"""
        import sys
        from sklearn_cnnfeat import CNNFeatureTransformer
        rows = CNNFeatureTransformer({network!r}, "two", "avg").fit_transform({pictures!r})
        print(rows.tobytes().hex(), sorted({{"keras", "tensorflow"}} & set(sys.modules)))
    """
    output = _finish(_start(script, tmp_path, KERAS_BACKEND="jax"))
    assert output == f"{_features(network, pictures).tobytes().hex()} []\n"


@pytest.mark.slow
def test_network_that_openvino_cannot_take(pictures, home):
    keras = keras_models.import_keras()
    import tensorflow as tf

    class Betainc(keras.layers.Layer):
        def call(self, inputs):
            return tf.math.betainc(2.0, 3.0, tf.clip_by_value(inputs / 255.0, 0.01, 0.99))

    model = keras.Sequential([keras.Input((16, 16, 3)), Betainc(name="odd")])
    with pytest.warns(exceptions.EngineWarning, match=r"OpenVINO cannot take.*Keras computes it"):
        cnn = CNNFeatureTransformer(model, "odd", "flatten").fit(pictures)
    assert cnn.engine_ == "keras"
    images = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 100, 255)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.EngineWarning)
        rows = cnn.transform(images)
    expected = model.predict(images.astype(np.float32), verbose=0).reshape(3, -1)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    with pytest.raises(exceptions.EngineError, match="OpenVINO cannot take the model"):
        CNNFeatureTransformer(model, "odd", "flatten", engine="openvino").fit(pictures)


def test_other_numbers_than_keras_are_not_trusted(network, pictures, home, monkeypatch):
    model = keras_models.import_keras().saving.load_model(network)
    monkeypatch.setattr(conversion, "TOLERANCE", 0)
    with pytest.warns(exceptions.EngineWarning, match=r"differ from Keras' by .*e-0\d"):
        cnn = CNNFeatureTransformer(model, "three", "avg").fit(pictures)
    assert cnn.engine_ == "keras"


def test_openvino_that_fails_at_load(network, pictures, home, monkeypatch):
    """What fits and cannot be loaded any more: an error that says what to do, and no other rows."""
    fitted = CNNFeatureTransformer(network, "two", "avg").fit(pictures)
    expected = fitted.transform(pictures)
    networks.forget_networks()

    def fail(*args, **more):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as broken:
        broken.setattr(engine_openvino.OpenVINOEngine, "__init__", fail)
        with pytest.raises(exceptions.EngineError, match=r"out of luck.*engine='keras'"):
            fitted.transform(pictures)
    np.testing.assert_array_equal(fitted.transform(pictures), expected)


def test_interrupt_leaves_nothing_running(network, pictures, home):
    script = f"""
        import os, signal, threading, time
        import numpy as np
        from sklearn_cnnfeat import CNNFeatureTransformer
        cnn = CNNFeatureTransformer({network!r}, "two", "avg", n_jobs=2).fit({pictures!r})
        expected = cnn.transform({pictures!r})
        before = threading.active_count()
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            cnn.transform({pictures!r} * 200_000)
        except KeyboardInterrupt:
            print("interrupted")
        time.sleep(0.2)
        print(threading.active_count() - before)
        print(np.array_equal(cnn.transform({pictures!r}), expected))
    """
    output = _finish(_start(script, os.environ["SKLEARN_CNNFEAT_HOME"]))
    assert output == "interrupted\n0\nTrue\n"


def test_rows_are_the_same_bits_however_computed(network, pictures, home):
    rows = _features(network, pictures, "three", n_jobs=1)
    rng = np.random.default_rng(0)
    for parameters in ({"n_jobs": 2}, {"batch_size": 4}, {"batch_size": 5, "n_jobs": 2}):
        cnn = CNNFeatureTransformer(network, "three", "avg", **parameters).fit(pictures)
        order = rng.permutation(len(pictures))
        np.testing.assert_array_equal(cnn.transform([pictures[i] for i in order]), rows[order])
        np.testing.assert_array_equal(cnn.transform(pictures[3:4]), rows[3:4])


def test_clones_share_the_loaded_network(network, pictures, home, count_builds):
    cnn = CNNFeatureTransformer(network, "two", "avg")
    threads = [
        threading.Thread(target=lambda: cnn.__sklearn_clone__().fit_transform(pictures))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count_builds) == 1
    assert len(whole_networks._networks) == 1


@pytest.mark.slow
def test_read_only_programs_serve(network, pictures, home):
    expected = _features(network, pictures)
    copy = Path(shutil.copytree(home, home.with_name("copy")))
    for path in [*copy.rglob("*"), copy]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    script = f"""
        import sys
        from sklearn_cnnfeat import CNNFeatureTransformer
        rows = CNNFeatureTransformer({network!r}, "two", "avg").fit_transform({pictures!r})
        print(rows.tobytes().hex(), "tensorflow" in sys.modules)
    """
    assert _finish(_start(script, copy)) == f"{expected.tobytes().hex()} False\n"
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o700)


@pytest.mark.slow
def test_nan_of_openvino_is_not_trusted(network, pictures, home, monkeypatch):
    run = engine_openvino.OpenVINOEngine.run

    def spoil(self, batches, deliver):
        # The first image wrong, the second right.
        run(
            self, batches, lambda i, rows: deliver(i, rows if i else [row * np.nan for row in rows])
        )

    model = keras_models.import_keras().saving.load_model(network)
    monkeypatch.setattr(engine_openvino.OpenVINOEngine, "run", spoil)
    with pytest.warns(exceptions.EngineWarning, match="differ from Keras' by inf"):
        cnn = CNNFeatureTransformer(model, "two", "avg").fit(pictures)
    assert cnn.engine_ == "keras"
    assert np.isfinite(cnn.transform(pictures)).all()
