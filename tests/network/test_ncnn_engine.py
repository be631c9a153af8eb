"""The engine that runs networks on ncnn: rows, threads, interrupts, memory, what it opens."""

import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from network.graphs import compute, openvino, plain_network

pytest.importorskip("ncnn")

from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork

_TESTS = str(Path(__file__).resolve().parents[1])
# Begins a child that may take some bytes more than it has.
_LIMIT = """
import resource, sys
import numpy as np
from network.graphs import plain_network
from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork
from sklearn_cnnfeat._network.engines.openvino import OpenVINOEngine

def limit(n_bytes):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + n_bytes, resource.RLIM_INFINITY))

def make(model):
    if sys.argv[1] == "ncnn":
        return NcnnEngine(NcnnNetwork(model), 1)
    return OpenVINOEngine(model, np.uint8, "float32", 1, None)
"""


def rows_of(engine, pixels, size=1):
    """Return the rows of all images, given in batches of `size`, in the order of the images."""
    rows = {}
    batches = (
        (range(i, min(i + size, len(pixels))), pixels[i : i + size])
        for i in range(0, len(pixels), size)
    )
    engine.run(batches, lambda token, heads: rows.update({token: np.array(heads[0])}))
    assert list(rows) == list(range(len(pixels)))
    return np.stack([rows[i] for i in range(len(pixels))])


def images(n, dtype=np.uint8, shape=(32, 32, 3)):
    return np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(dtype)


def run_child(code, *arguments, expected=0):
    """Run a script in a process of its own; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {_TESTS!r})\n{code}", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(_TESTS).parent,
    )
    assert result.returncode == expected, (result.returncode, result.stdout, result.stderr)
    return result.stdout


def test_rows_do_not_depend_on_batch_order_threads_or_type():
    model, pixels = plain_network(), images(7)
    wanted = rows_of(NcnnEngine(NcnnNetwork(model), n_threads=1), pixels)
    reference = compute(model, pixels.astype(np.float32))[0]
    terms = 10 * 32 * 9 * 3
    tolerance = terms * np.finfo(np.float32).eps * np.abs(reference).max()
    np.testing.assert_allclose(wanted, reference, rtol=0, atol=tolerance)
    for n_threads in (1, 2, 3):
        for size in (1, 3, 7):
            engine = NcnnEngine(NcnnNetwork(model), n_threads, batch_size=size)
            assert np.array_equal(rows_of(engine, pixels, size), wanted)
            assert np.array_equal(rows_of(engine, pixels[::-1], size), wanted[::-1])
    floats = pixels.astype(np.float32)
    assert np.array_equal(rows_of(NcnnEngine(NcnnNetwork(model), 2), floats), wanted)
    assert np.array_equal(rows_of(NcnnEngine(NcnnNetwork(model), 2, n_callers=2), pixels), wanted)


def test_several_callers_at_once():
    from concurrent.futures import ThreadPoolExecutor

    engine = NcnnEngine(NcnnNetwork(plain_network()), n_threads=2, n_callers=3)
    pixels = images(6)
    wanted = rows_of(engine, pixels)
    with ThreadPoolExecutor(3) as threads:
        for rows in threads.map(lambda _: rows_of(engine, pixels), range(6)):
            assert np.array_equal(rows, wanted)


def test_an_engine_without_images_delivers_nothing():
    NcnnEngine(NcnnNetwork(plain_network()), n_threads=2).run(iter([]), pytest.fail)


def test_an_error_of_the_caller_ends_the_run_and_the_engine_goes_on():
    engine, pixels = NcnnEngine(NcnnNetwork(plain_network()), n_threads=2), images(5)

    def broken():
        yield range(2), pixels[:2]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        engine.run(broken(), lambda token, rows: None)
    assert rows_of(engine, pixels).shape == (5, 32)


def test_a_large_image():
    model = plain_network((1024, 1024, 3), (16, 16))
    pixels = images(1, shape=(1024, 1024, 3))
    reference = compute(model, pixels.astype(np.float32))[0]
    tolerance = 10 * 16 * 9 * 2 * np.finfo(np.float32).eps * np.abs(reference).max()
    found = rows_of(NcnnEngine(NcnnNetwork(model), 1), pixels)
    np.testing.assert_allclose(found, reference, rtol=0, atol=tolerance)


def test_an_interrupt_ends_a_run_and_no_more():
    out = run_child("""
import os, signal
import numpy as np
from network.graphs import plain_network
from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork

engine = NcnnEngine(NcnnNetwork(plain_network((128, 128, 3))), n_threads=2)
pixels = np.zeros((40, 128, 128, 3), np.uint8)
done = []

def deliver(token, rows):
    done.append(token)
    if token == 3:
        os.kill(os.getpid(), signal.SIGINT)

batches = lambda: (([i], pixels[i : i + 1]) for i in range(40))
try:
    engine.run(batches(), deliver)
except KeyboardInterrupt:
    print("interrupted", len(done) < 40)
done.clear()
engine.run(batches(), lambda token, rows: done.append(token))
print(len(done))
""")
    assert out.split() == ["interrupted", "True", "40"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timers that send signals")
def test_an_interrupt_while_weights_are_read():
    out = run_child("""
import signal
from network.graphs import plain_network
from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork

model = plain_network((32, 32, 3), (256, 256, 256, 256))
n_interrupts = 0

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
for i in range(40):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002 * (i + 1))
        NcnnEngine(NcnnNetwork(model), 1)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        n_interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(n_interrupts > 0, NcnnEngine(NcnnNetwork(model), 1).name)
""")
    assert out.split() == ["True", "ncnn"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory that the system keeps")
@pytest.mark.parametrize(
    ("engine", "n_mebibytes"),
    # Where OpenVINO's library just fits, with 70, the system's loader ends the process.
    [("ncnn", 1), ("ncnn", 16), ("ncnn", 60), ("ncnn", 120), ("openvino", 1), ("openvino", 120)],
)
def test_too_little_memory_for_weights_is_an_error(engine, n_mebibytes):
    out = run_child(
        _LIMIT
        + """
model = plain_network((32, 32, 3), (512, 512, 512, 512))
limit(int(sys.argv[2]))
try:
    make(model)
except MemoryError as error:
    print("MemoryError", bool(str(error)))
""",
        engine,
        str(n_mebibytes * 2**20),
    )
    assert out.split() == ["MemoryError", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory that the system keeps")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_too_little_memory_for_images_is_an_error(n_threads):
    out = run_child(
        _LIMIT
        + """
engine = NcnnEngine(NcnnNetwork(plain_network((1024, 1024, 3), (64, 64))), int(sys.argv[2]))
pixels = np.zeros((1, 1024, 1024, 3), np.uint8)
limit(100 * 2**20)
try:
    engine.run([([0], pixels)], print)
except MemoryError as error:
    print("MemoryError", bool(str(error)))
""",
        "ncnn",
        str(n_threads),
    )
    assert out.split() == ["MemoryError", "True"]


def test_a_thread_that_does_not_start_is_too_little_memory(monkeypatch):
    model = plain_network()
    engine = NcnnEngine(NcnnNetwork(model), n_threads=2)

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(MemoryError, match="load a network"):
        NcnnNetwork(model)
    with pytest.raises(MemoryError, match="compute images"):
        engine.run([([0], images(1))], pytest.fail)


def test_other_errors_of_a_run_stay_as_they_are():
    engine = NcnnEngine(NcnnNetwork(plain_network()), n_threads=2)

    def broken(token, rows):
        raise RuntimeError("not about memory")

    with pytest.raises(RuntimeError, match="not about memory"):
        engine.run([([0], images(1))], broken)


def test_it_opens_no_connection_and_writes_no_file(tmp_path):
    path = tmp_path / "network.xml"
    openvino.save_model(plain_network(), str(path), compress_to_fp16=False)
    out = run_child(
        """
import sys
import numpy as np
import ncnn
import numpy.random
from sklearn_cnnfeat._network.runtime import import_openvino
model = import_openvino().Core().read_model(sys.argv[1])
seen = []

def hook(event, arguments):
    if event.startswith(("socket.", "urllib.", "subprocess.", "os.system")):
        seen.append((event, arguments))
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append((event, arguments))

for name in [name for name in sys.modules if name == "ncnn" or name.startswith("ncnn.")]:
    del sys.modules[name]
sys.dont_write_bytecode = True
sys.addaudithook(hook)
from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork
engine = NcnnEngine(NcnnNetwork(model), 2)
engine.run([([0], np.zeros((1, 32, 32, 3), np.uint8))], lambda token, rows: None)
for package in ("requests", "tqdm", "portalocker"):
    assert package not in sys.modules, package
print(seen)
""",
        str(path),
    )
    assert out.strip() == "[]"


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc"
)
def test_loading_keeps_no_memory_that_is_free():
    result = run_child(
        """
import ctypes
import psutil
from network.graphs import plain_network
from sklearn_cnnfeat._network.engines.ncnn import NcnnNetwork

model = plain_network(filters=[64, 128, 128, 256, 256, 256])
network = NcnnNetwork(model)
loaded = psutil.Process().memory_info().rss
ctypes.CDLL(None).malloc_trim(0)
print(loaded - psutil.Process().memory_info().rss)
"""
    )
    assert int(result) < 2**20
