"""Rows do not depend on how they are computed: batches, order, threads, engines, precision."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from requirements import needs_tensorflow

from sklearn_cnnfeat import CNNFeatureTransformer, exceptions
from sklearn_cnnfeat._loop import thread_count
from sklearn_cnnfeat._network import keras_models, networks, runtime
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._transformer import extractor_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import parity

# Networks with all kinds of operations, on images whose size leaves a rest at every stride.
NETWORKS = {
    "mobilenet": "conv_pw_13_relu",
    "resnet50_v2": "conv4_block6_out",
    "efficientnet_b0": "top_activation",
    "densenet121": "pool3_pool",
    "convnext_tiny": "convnext_tiny_stage_1_block_2_layer_scale",
}
N_IMAGES = 11


@pytest.fixture(scope="module")
def pictures():
    """Parts of real photographs."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    corners = zip(rng.integers(0, 320, N_IMAGES), rng.integers(0, 530, N_IMAGES), strict=True)
    parts = [photos[i % 2][y : y + 101, x : x + 101] for i, (y, x) in enumerate(corners)]
    return np.stack(parts)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, pictures):
    """Return a function that gives a network weights which do not amplify rounding."""
    folder = tmp_path_factory.mktemp("weights")

    def save(name):
        path = folder / f"{name}.weights.h5"
        if not path.exists():
            architecture = find_architecture(name)
            model = parity.build(architecture.keras_name, 101)
            parity.tame(model, parity.preprocess(architecture, pictures[:4]))
            model.save_weights(path)
        return path

    return save


def transformer(name, weights, **parameters):
    return CNNFeatureTransformer(
        name, NETWORKS[name], weights=weights(name), input_size=101, **parameters
    )


@pytest.fixture
def needs_bfloat16():
    if not runtime.supports_bfloat16():
        pytest.skip("this processor does not compute bfloat16 in hardware")


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def check_same_bits(name, weights, pictures, precision):
    setting = {"engine": "openvino", "precision": precision}
    rows = transformer(name, weights, n_jobs=1, **setting).fit_transform(pictures)
    assert np.isfinite(rows).all()
    assert (rows.std(axis=0) > 0).any()
    order = np.random.default_rng(1).permutation(N_IMAGES)
    for parameters in (
        {"n_jobs": 2},
        {"n_jobs": 1, "batch_size": 4},
        {"n_jobs": 2, "batch_size": 5},
        {"n_jobs": 3, "batch_size": 32},
    ):
        cnn = transformer(name, weights, **parameters, **setting).fit(pictures)
        np.testing.assert_array_equal(cnn.transform(pictures[order]), rows[order])
        np.testing.assert_array_equal(cnn.transform(pictures[6:7]), rows[6:7])
    as_floats = cnn.transform(pictures.astype(np.float32))
    np.testing.assert_array_equal(as_floats, rows)
    return rows


@pytest.mark.parametrize("name", ["mobilenet", "resnet50_v2", "efficientnet_b0", "convnext_tiny"])
@pytest.mark.sampled(1)
def test_rows_are_the_same_bits(name, weights, pictures):
    check_same_bits(name, weights, pictures, "float32")


@pytest.mark.usefixtures("needs_bfloat16")
@pytest.mark.parametrize("name", ["mobilenet", "efficientnet_b0"])
@pytest.mark.slow
def test_rows_are_the_same_bits_in_bfloat16(name, weights, pictures):
    rows = check_same_bits(name, weights, pictures, "bfloat16")
    exact = transformer(name, weights).fit_transform(pictures)
    assert not np.array_equal(rows, exact)
    assert cosines(rows, exact).min() >= 0.999


@pytest.mark.usefixtures("needs_bfloat16")
def test_bfloat16_of_published_weights(assets, photos):
    """MobileNet is hit harder than others, single photographs more than the mean."""
    weights = assets / "keras_home" / "models" / "mobilenet_1_0_224_tf_no_top.h5"
    rows = [
        CNNFeatureTransformer(
            "mobilenet", ["conv_pw_6_relu", "conv_dw_13_relu"], "avg", weights=weights, precision=p
        ).fit_transform(photos[::6])
        for p in ("float32", "bfloat16")
    ]
    for columns in (slice(0, 512), slice(512, None)):
        similarities = cosines(*(part[:, columns] for part in rows))
        assert similarities.mean() >= 0.999
        assert similarities.min() >= 0.997


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.sampled(1)
def test_engines_agree(name, weights, pictures):
    rows = transformer(name, weights, engine="openvino").fit_transform(pictures)
    for parameters in ({}, {"batch_size": 4}):
        cnn = transformer(name, weights, engine="keras", **parameters).fit(pictures)
        assert cnn.engine_ == "keras"
        difference = np.abs(cnn.transform(pictures) - rows).max()
        assert difference <= 5e-6 * np.abs(rows).max()


# --- precision that cannot be had -----------------------------------------------------------------


def test_bfloat16_is_not_for_keras(pictures):
    cnn = CNNFeatureTransformer(
        "mobilenet",
        "conv1",
        "avg",
        weights=None,
        input_size=32,
        engine="keras",
        precision="bfloat16",
    )
    with pytest.raises(ValueError, match="Use precision='float32'"):
        cnn.fit(pictures)


def test_bfloat16_is_refused_where_it_is_slower(pictures, monkeypatch):
    monkeypatch.setattr(networks, "supports_bfloat16", lambda: False)
    cnn = CNNFeatureTransformer(
        "mobilenet", "conv1", "avg", weights=None, input_size=32, precision="bfloat16"
    )
    with pytest.raises(ValueError, match="needs a processor that computes it in hardware"):
        cnn.fit(pictures)


# --- images of many sizes -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """A model that takes images of any size."""
    keras = keras_models.import_keras()
    path = tmp_path_factory.mktemp("model") / "any.keras"
    keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="one"),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="two"),
            keras.layers.GlobalMaxPooling2D(name="most"),
        ]
    ).save(path)
    return str(path)


@pytest.mark.parametrize("engine", ["openvino", "keras"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_images_of_all_sizes(convolutional, pictures, engine, batch_size):
    keras = keras_models.import_keras()
    images = [picture[: 40 + 5 * i, : 99 - 4 * i] for i, picture in enumerate(pictures)]
    cnn = CNNFeatureTransformer(
        convolutional, ["two", "most"], "avg", engine=engine, batch_size=batch_size
    )
    rows = cnn.fit_transform(images)
    assert cnn.input_size_ is None
    model = keras.saving.load_model(convolutional)
    both = keras.Model(model.inputs[0], [model.get_layer("two").output, model.outputs[0]])
    for image, row in zip(images, rows, strict=True):
        maps, most = both(image[np.newaxis].astype(np.float32))
        expected = np.concatenate([np.mean(maps, axis=(0, 1, 2)), most[0]])
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=5e-6 * np.abs(expected).max())


# --- threads and interrupts -----------------------------------------------------------------------


def test_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [thread_count(n) for n in (None, 1, 12, -1, -2, -20)] == [8, 1, 12, 8, 7, 1]
    for share, count in (("3", 3), ("64", 8), ("0", 8), ("many", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", share)
        assert thread_count(None) == count


@pytest.mark.parametrize("engine", ["openvino", "keras"])
def test_one_transformer_in_many_threads(engine, weights, pictures):
    cnn = transformer("mobilenet", weights, engine=engine, n_jobs=2).fit(pictures)
    expected = cnn.transform(pictures)
    wrong = []

    def work(i):
        part = slice(i, i + 5)
        for _ in range(3):
            rows = cnn.transform(pictures[part])
            if np.abs(rows - expected[part]).max() > 5e-6 * np.abs(expected).max():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_errors_while_computing_leave_the_engine_usable(convolutional, pictures):
    """Requests that are under way when something fails are waited for, started or not."""
    cnn = CNNFeatureTransformer(convolutional, "two", "avg", n_jobs=2).fit(pictures)
    expected = cnn.transform(pictures)
    program = networks.open_network(extractor_of(cnn).spec, "openvino")
    engine = program.compile(np.uint8, "float32", 2, None)

    def batches(failing):
        for i, picture in enumerate(pictures):
            if i == failing:
                # A shape that no network takes: the request cannot be started.
                yield (i,), picture[np.newaxis, ..., :1]
            yield (i,), picture[np.newaxis]

    for failing in (0, 1, 7):
        with pytest.raises(RuntimeError):
            engine.run(batches(failing), lambda token, rows: None)

    def refuse(token, rows):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        engine.run(batches(None), refuse)
    rows = np.empty_like(expected)

    def deliver(i, outputs):
        rows[i] = outputs[0]

    engine.run(batches(None), deliver)
    np.testing.assert_array_equal(rows, expected)


@needs_tensorflow
def test_failure_of_openvino_is_not_for_ever(convolutional, pictures, tmp_path, monkeypatch):
    """What cannot be loaded is an error that names the way out; nothing of it is remembered."""
    import openvino

    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path))
    networks.forget_networks()

    def fail(*_, **__):
        raise RuntimeError("Exception from src/core.cpp:1:\nno such instruction set\n")

    cnn = CNNFeatureTransformer(convolutional, "two", "avg").fit(pictures)
    assert cnn.engine_ == "openvino"
    with monkeypatch.context() as broken:
        broken.setattr(openvino.Core, "compile_model", fail)
        with pytest.raises(
            exceptions.EngineError, match=r"no such instruction set.*engine='keras'"
        ):
            cnn.transform(pictures)
        assert cnn.engine_ == "openvino"
        keras = CNNFeatureTransformer(convolutional, "two", "avg", engine="keras")
        by_keras = keras.fit_transform(pictures)
    rows = cnn.transform(pictures)
    np.testing.assert_allclose(by_keras, rows, atol=5e-6 * np.abs(rows).max())


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("engine", ["openvino", "keras"])
@pytest.mark.sampled(1)
def test_interrupts_at_any_moment(engine, convolutional):
    """Control-C, again and again: no thread is left, no crash, and the next rows are right."""
    script = f"""
        import os, signal, threading, time
        import numpy as np
        from sklearn_cnnfeat import CNNFeatureTransformer
        X = np.random.default_rng(0).integers(0, 256, (3000, 64, 64, 3), dtype=np.uint8)
        cnn = CNNFeatureTransformer(
            {convolutional!r}, "two", "avg", engine={engine!r}, n_jobs=2, input_size=64
        ).fit(X)
        expected = cnn.transform(X[:20])
        before = threading.active_count()
        interrupted = 0
        for i in range(12):
            timer = threading.Timer(0.02 + 0.02 * i, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                cnn.transform(X)
                time.sleep(2)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
        print(interrupted, threading.active_count() - before)
        rows = cnn.transform(X[:20])
        print(np.abs(rows - expected).max() <= 5e-6 * expected.max())
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "12 0\nTrue\n"
