"""`extract` on a cluster of real processes: the same bytes, whatever happens to workers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_network import save_network, save_photos

import sklearn_cnnfeat
from sklearn_cnnfeat import CNNFeatureTransformer, _dask, extract, load_features
from sklearn_cnnfeat.exceptions import ImageError

N = 45
ROOT = str(Path(sklearn_cnnfeat.__file__).parents[1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory, files):
    network = save_network(tmp_path_factory.mktemp("network") / "small.keras")
    return CNNFeatureTransformer(network, "two", "avg").fit(files)


@pytest.fixture(scope="module")
def client(home):
    """Connect to two worker processes of one thread each."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        with Client(cluster) as client:
            yield client


def _contents(folder):
    """Return the bytes of all files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def folders(tmp_path):
    for name in ("local", "cluster"):
        (tmp_path / name).mkdir()
    return tmp_path / "local", tmp_path / "cluster"


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_the_same_bytes(suffix, cnn, files, folders, client):
    how = {"part_size": 8, "verbose": 0}
    local, cluster = folders
    extract(files, local / f"f.{suffix}", cnn, **how)
    report = extract(files, cluster / f"f.{suffix}", cnn, client=client, **how)
    assert report.n_computed == N
    assert _contents(cluster) == _contents(local)
    again = extract(files, cluster / f"f.{suffix}", cnn, client=client.scheduler.address, **how)
    assert again.n_computed == 0


def test_by_address_with_relative_paths(cnn, files, folders, client, monkeypatch, capsys):
    monkeypatch.chdir(os.path.dirname(files[0]))
    X = [os.path.basename(path) for path in files[:9]]
    X.append(f"file://{files[9]}")
    to = folders[1] / "f.npy"
    report = extract(X, to, cnn, part_size=4, client=client.scheduler.address)
    assert report.n_computed == 10
    assert "10/10" in capsys.readouterr().err
    np.testing.assert_array_equal(load_features(to).data, cnn.transform(files[:10]))
    # The client that was made for it is gone.
    clients = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.clients))
    assert [name for name in clients if name.startswith("Client-")] == [client.id]


@pytest.mark.parametrize("on_error", ["skip", "nan"])
def test_bad_images(on_error, cnn, files, folders, client, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    X = [*files[:10], str(tmp_path / "bad.jpg"), *files[10:20]]
    how = {"part_size": 4, "verbose": 0}
    with pytest.raises(ImageError, match=r"cannot read '.*bad\.jpg': it is not a JPEG"):
        extract(X, folders[1] / "f.npy", cnn, client=client, **how)
    reports = []
    for folder, where in zip(folders, (None, client), strict=True):
        with pytest.warns(UserWarning, match="1 of 21 images could not be read"):
            reports.append(
                extract(X, folder / "f.npy", cnn, on_error=on_error, client=where, **how)
            )
    assert reports[0].errors == reports[1].errors
    assert _contents(folders[1]) == _contents(folders[0])
    # Mended, it alone is computed.
    (tmp_path / "bad.jpg").write_bytes(open(files[0], "rb").read())
    report = extract(
        X, folders[1] / "f.npy", cnn, on_error=on_error, retry_errors=True, client=client, **how
    )
    assert (report.n_computed, report.n_errors) == (1, 0)


def test_a_pipeline(cnn, files, folders, client):
    pipe = make_pipeline(cnn, StandardScaler(), PCA(3, random_state=0)).fit(files)
    for folder, where in zip(folders, (None, client), strict=True):
        report = extract(files, folder / "f.npy", pipe, part_size=8, client=where, verbose=0)
        assert report.n_features == 3
    assert _contents(folders[1]) == _contents(folders[0])


def test_a_worker_is_killed(tmp_path, folders, home):
    # Large enough to be met in the middle.
    files = save_photos(tmp_path / "photos", 60, side=(300, 400)) * 8
    cnn = CNNFeatureTransformer(
        "mobilenet", "conv_pw_3_relu", "avg", weights=None, random_state=0, input_size=160
    ).fit(files)
    how = {"part_size": 10, "verbose": 0}
    local, cluster_folder = folders
    extract(files, local / "f.npy", cnn, **how)
    parts = cluster_folder / "f.npy.parts"
    left = []

    def kill(pid):
        while len(list(parts.glob("part-*"))) < 12:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        left.append(48 - len(list(parts.glob("part-???????"))))

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        with Client(cluster) as client:
            pids = client.run(os.getpid).values()
            thread = threading.Thread(target=kill, args=(next(iter(pids)),))
            thread.start()
            report = extract(files, cluster_folder / "f.npy", cnn, client=client, **how)
            thread.join()
            assert left[0] > 2
            assert set(client.run(os.getpid).values()) != set(pids)
    assert report.n_computed == len(files)
    assert _contents(cluster_folder) == _contents(local)


def _start(tmp_path, *command, home):
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ROOT, "SKLEARN_CNNFEAT_HOME": str(home)},
    )


def test_the_scheduler_is_killed(tmp_path, folders, home, monkeypatch):
    monkeypatch.setattr(_dask, "_NO_WORKERS", 2)
    files = save_photos(tmp_path / "photos", 60, side=(300, 400)) * 8
    cnn = CNNFeatureTransformer(
        "mobilenet", "conv_pw_3_relu", "avg", weights=None, random_state=0, input_size=160
    ).fit(files)
    how = {"part_size": 10, "verbose": 0}
    local, cluster_folder = folders
    extract(files, local / "f.npy", cnn, **how)
    parts = cluster_folder / "f.npy.parts"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    cli = "distributed.cli.dask_"
    options = ["--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
    scheduler = _start(tmp_path, f"{cli}scheduler", *options, home=home)
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "10"]
    worker = _start(tmp_path, f"{cli}worker", address, *options, home=home)

    def kill():
        while len(list(parts.glob("part-*"))) < 8:
            time.sleep(0.01)
        scheduler.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="connection to the scheduler was lost"):
            extract(files, cluster_folder / "f.npy", cnn, client=address, **how)
    finally:
        thread.join()
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    # Nothing of what was there is lost.
    report = extract(files, cluster_folder / "f.npy", cnn, **how)
    assert report.n_computed <= len(files) - 80
    assert _contents(cluster_folder) == _contents(local)


# --- what goes wrong ------------------------------------------------------------------------------


def test_no_scheduler(cnn, files, tmp_path, monkeypatch):
    monkeypatch.setattr(_dask, "_CONNECT", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(
            ConnectionError, match=f"No Dask scheduler can be reached at '{address}'"
        ):
            extract(files, tmp_path / "f.npy", cnn, client=address, verbose=0)
    assert list(tmp_path.iterdir()) == []


def test_no_workers(cnn, files, tmp_path, monkeypatch):
    monkeypatch.setattr(_dask, "_NO_WORKERS", 1)
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster, Client(cluster) as client:
        with pytest.raises(RuntimeError, match=r"has no workers.*'dask worker tcp://"):
            extract(files, tmp_path / "f.npy", cnn, client=client, verbose=0)


def test_worker_without_the_package(cnn, files, tmp_path, folders, client):
    broken = tmp_path / "broken" / "sklearn_cnnfeat"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ModuleNotFoundError('not installed here')\n")
    address = client.scheduler.address
    command = f"-m distributed.cli.dask_worker {address} --no-nanny --nthreads 1 --no-dashboard"
    worker = subprocess.Popen(
        [sys.executable, *command.split(), "--local-directory", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(broken.parent)},
    )
    try:
        client.wait_for_workers(3, timeout=30)
        with pytest.raises(
            RuntimeError, match=r"1 cannot import it: worker tcp.*not installed here"
        ):
            extract(files, folders[1] / "f.npy", cnn, client=client, verbose=0)
    finally:
        worker.kill()
        worker.communicate()
    while len(client.scheduler_info()["workers"]) > 2:
        time.sleep(0.1)
    # Nothing stands in the way of another try.
    report = extract(files, folders[1] / "f.npy", cnn, part_size=8, client=client, verbose=0)
    assert report.n_computed == N


def _pretend_other_pillow(version):
    from sklearn_cnnfeat._images import spec

    before, spec.DECODER = spec.DECODER, version
    return before


@pytest.mark.slow
def test_other_versions_on_workers(cnn, files, folders, client):
    (before,) = set(client.run(_pretend_other_pillow, "0.1").values())
    try:
        with pytest.raises(RuntimeError, match=r"other features.*pillow 0\.1.*same versions"):
            extract(files, folders[1] / "f.npy", cnn, client=client, verbose=0)
    finally:
        client.run(_pretend_other_pillow, before)


def _hide(path):
    """Make a folder invisible to a worker, as if it were on another machine."""
    import os
    import pathlib

    if path is None:
        os.path.exists, pathlib.Path.is_file = os.visible
        return
    os.visible = os.path.exists, pathlib.Path.is_file
    exists, is_file = os.visible
    os.path.exists = lambda name: not str(name).startswith(path) and exists(name)
    pathlib.Path.is_file = lambda name: not str(name).startswith(path) and is_file(name)


@pytest.mark.parametrize(
    ("what", "message"),
    [("output", "does not see the folder"), ("images", "does not see the images: of 45 not one")],
)
def test_folders_that_workers_do_not_see(what, message, cnn, files, folders, client):
    client.run(_hide, str(folders[1]) if what == "output" else os.path.dirname(files[0]))
    try:
        with pytest.raises(FileNotFoundError, match=message):
            extract(files, folders[1] / "f.npy", cnn, on_error="nan", client=client, verbose=0)
    finally:
        client.run(_hide, None)


def test_what_is_refused(cnn, files, tmp_path, client):
    with pytest.raises(TypeError, match=r"must be a dask\.distributed\.Client or the address"):
        extract(files, tmp_path / "f.npy", cnn, client=42, verbose=0)
    pixels = np.zeros((3, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="X must hold paths or URLs"):
        extract(pixels, tmp_path / "f.npy", cnn, client=client, verbose=0)


def test_without_dask(cnn, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r'pip install "sklearn-cnnfeat\[dask\]"'):
        extract(files, tmp_path / "f.npy", cnn, client="tcp://localhost:8786", verbose=0)


def test_an_address_that_is_none(tmp_path):
    files = save_photos(tmp_path / "photos", 2)
    with pytest.raises(ValueError, match=r"such as 'tcp://scheduler:8786'\. Got 'nonsense'"):
        extract(
            files,
            tmp_path / "f.npy",
            CNNFeatureTransformer("mobilenet", "conv1", "avg", weights=None, input_size=32),
            client="nonsense",
            verbose=0,
        )
