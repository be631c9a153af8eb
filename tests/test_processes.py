"""What workers, forks, interrupts, strict warnings and broken installations do to a user."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import joblib
import numpy as np
import pytest
from requirements import needs_tensorflow
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from small_network import save_photos

from sklearn_cnnfeat import CNNFeatureTransformer

N = 12
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture(scope="module")
def expected(network, files):
    return CNNFeatureTransformer(network, "two", "avg").fit_transform(files)


def start(script, *options, network, files, **environment):
    """Start a script of its own, which finds `network` and `files`."""
    script = f"network, files = {network!r}, {files!r}\n" + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, *options, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        # Ctrl-C goes to all processes of a terminal's group.
        start_new_session=True,
    )


def finish(process, seconds=60):
    """Return what a script printed; it must end well, and in time."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"hangs: {process.communicate()}") from None
    assert process.returncode == 0, errors
    return output


# --- workers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loky", "threading"])
@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.sampled(2)
def test_search_in_workers(backend, with_cache, network, files, tmp_path):
    cache = tmp_path if with_cache else None
    search = GridSearchCV(
        make_pipeline(CNNFeatureTransformer(network, "two", "avg", cache=cache), SVC()),
        {"cnnfeaturetransformer__layer": ["one", "two"], "svc__C": [1, 100]},
        cv=3,
        error_score="raise",
    )
    y = np.arange(N) // 2 % 2
    serial = GridSearchCV(search.estimator, search.param_grid, cv=3).fit(files, y)
    with joblib.parallel_config(backend, n_jobs=2):
        search.fit(files, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"]
    )


def _transform(pickled, files, queue):
    queue.put(pickle.loads(pickled).transform(files))


def test_spawned_process(network, files, expected):
    cnn = CNNFeatureTransformer(network, "two", "avg").fit(files)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_transform, args=(pickle.dumps(cnn), files, queue))
    process.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.slow
def test_workers_share_the_cores(network, files):
    """Two workers on two cores have one thread each, in the network and in the decoder."""
    script = """
        import joblib
        from sklearn_cnnfeat import CNNFeatureTransformer
        joblib.cpu_count = lambda *args, **kwargs: 2

        def threads(_):
            from sklearn_cnnfeat._network.engines import openvino as engine_openvino
            seen = []
            init = engine_openvino.OpenVINOEngine.__init__
            def note(engine, network, dtype, precision, n_threads, *more):
                seen.append(n_threads)
                init(engine, network, dtype, precision, n_threads, *more)
            engine_openvino.OpenVINOEngine.__init__ = note
            CNNFeatureTransformer(network, "two", "avg").fit_transform(files)
            return seen

        with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
            print(joblib.Parallel()(joblib.delayed(threads)(i) for i in range(2)))
    """
    assert finish(start(script, network=network, files=files)) == "[[1], [1]]\n"


# --- forks ----------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("engine", ["openvino", "keras"])
@pytest.mark.sampled(1)
def test_forked_workers_say_so(engine, network, files):
    script = f"""
        import warnings
        import joblib
        from sklearn_cnnfeat import CNNFeatureTransformer
        warnings.simplefilter("ignore")
        cnn = CNNFeatureTransformer(network, "two", "avg", engine={engine!r})
        cnn.fit(files)
        cnn.transform(files)

        def error():
            # Returned, not raised: where workers raise at the same time, the standard library's
            # Pool.terminate may kill one that holds the lock of the results, and wait for it.
            try:
                cnn.transform(files)
            except RuntimeError as error:
                return str(error)

        calls = [joblib.delayed(error)() for _ in range(2)]
        print(*joblib.Parallel(n_jobs=2, backend="multiprocessing")(calls), sep="\\n")
    """
    told = finish(start(script, network=network, files=files)).splitlines()
    assert len(told) == 2
    for line in told:
        assert "forked from one that had already run a network" in line
        assert "loky" in line


@needs_fork
def test_fork_before_the_first_network(network, files, expected):
    script = """
        import warnings
        import joblib
        from sklearn_cnnfeat import CNNFeatureTransformer
        warnings.simplefilter("ignore")
        cnn = CNNFeatureTransformer(network, "two", "avg")
        calls = [joblib.delayed(cnn.fit_transform)(files) for _ in range(2)]
        for rows in joblib.Parallel(n_jobs=2, backend="multiprocessing")(calls):
            print(rows.tobytes().hex())
    """
    output = finish(start(script, network=network, files=files))
    assert output.split() == [expected.tobytes().hex()] * 2


# --- interrupts -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupted_search_ends(network, files):
    script = """
        import sys, time
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import SVC
        from sklearn_cnnfeat import CNNFeatureTransformer
        pipe = make_pipeline(CNNFeatureTransformer(network, "two", "avg"), SVC())
        search = GridSearchCV(pipe, {"svc__C": list(range(1, 2000))}, cv=3, n_jobs=2)
        print("begun", flush=True)
        try:
            search.fit(files * 20, [0, 1] * (10 * len(files)))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    process = start(script, network=network, files=files)
    assert process.stdout.readline() == "begun\n"
    time.sleep(4)
    os.killpg(process.pid, signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert output == "interrupted\n"


# --- warnings as errors ---------------------------------------------------------------------------


@pytest.mark.slow
def test_strict_warnings(network, files, expected, tmp_path):
    """Nothing of ours warns without a reason; a warning with one is an error that names it."""
    script = """
        import json, warnings
        warnings.simplefilter("error")
        from sklearn_cnnfeat import CNNFeatureTransformer
        settings = json.loads(SETTINGS)
        cnn = CNNFeatureTransformer(network, "two", "avg", **settings).fit(files[:12])
        for _ in range(2):
            rows = cnn.transform(files[:12])
        print(rows.tobytes().hex())
        try:
            cnn.set_params(on_error="nan").fit(files[:12]).transform(files)
        except UserWarning as warning:
            print(type(warning).__name__, str(warning).count("bad.jpg"))
        # What was computed is kept, what was wrong is not.
        print(cnn.transform(files[:12]).tobytes().hex())
    """
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    for settings in ({}, {"cache": str(tmp_path / "cache")}):
        text = f"SETTINGS = {json.dumps(settings)!r}\n" + textwrap.dedent(script)
        output = finish(start(text, network=network, files=[*files, str(bad)])).split("\n")
        assert output[0] == output[2] == expected.tobytes().hex()
        assert output[1] == "UnreadableImageWarning 1"


# --- installations --------------------------------------------------------------------------------


@pytest.fixture
def without(tmp_path):
    """Return a function that makes a folder in which a package is broken."""

    def make(name, error):
        folder = tmp_path / "broken" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f"raise {error}\n")
        return str(folder.parent)

    return make


@pytest.mark.parametrize(
    "error",
    [
        "ImportError('libopenvino.so.2640: cannot open shared object file')",
        "OSError('libtbb.so.12: file too short')",
        "RuntimeError('no plugins.xml')",
    ],
)
@pytest.mark.sampled(1)
@needs_tensorflow
def test_broken_openvino(error, network, files, expected, without, tmp_path):
    script = """
        import sys, warnings
        sys.path.insert(0, BROKEN)
        from sklearn_cnnfeat import CNNFeatureTransformer
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cnn = CNNFeatureTransformer(network, "two", "avg").fit(files)
        ours = [str(w.message) for w in caught if w.category.__name__ == "EngineWarning"]
        print(cnn.engine_, ours)
        rows = cnn.transform(files)
        print(rows.tobytes().hex())
        try:
            CNNFeatureTransformer(network, "two", "avg", engine="openvino").fit(files)
        except RuntimeError as error:
            print(error)
    """
    broken = without("openvino", error)
    # Its version, which names programs, is that of the installation beside it.
    script = f"BROKEN = {broken!r}\n" + textwrap.dedent(script)
    home = {"SKLEARN_CNNFEAT_HOME": str(tmp_path / "home")}
    output = finish(start(script, network=network, files=files, **home)).split("\n")
    reason = error.partition("('")[2].partition("')")[0]
    assert output[0].startswith("keras [")
    assert output[0].count("OpenVINO cannot take the model") == 1
    assert reason in output[0]
    assert "Keras computes it instead" in output[0]
    rows = np.frombuffer(bytes.fromhex(output[1]), np.float32).reshape(expected.shape)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    assert reason in output[2]


# --- long runs ------------------------------------------------------------------------------------


def test_images_of_other_sizes_take_no_memory(tmp_path):
    """OpenVINO would keep kernels for each of 3,000 sizes: 500 MB."""
    import keras

    path = str(tmp_path / "any.keras")
    keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.DepthwiseConv2D(3, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, name="features"),
        ]
    ).save(path)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    # A process of its own loads the network without TensorFlow, whose memory moves as well.
    CNNFeatureTransformer(path, "features", "avg").fit([pixels])
    script = """
        import numpy as np
        import psutil
        from sklearn_cnnfeat import CNNFeatureTransformer
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (160, 160, 3), np.uint8)
        cnn = CNNFeatureTransformer(network, "features", "avg", n_jobs=2).fit([pixels])
        def run(n):
            sizes = random.integers(32, 161, (n, 2))
            cnn.transform([pixels[:height, :width] for height, width in sizes])
        run(300)
        before = psutil.Process().memory_info().rss
        run(2700)
        print((psutil.Process().memory_info().rss - before) / 1e6)
    """
    assert float(finish(start(script, network=path, files=[]))) < 60
