"""Images behind URLs: any file system that fsspec knows."""

import functools
import http.server
import sys
import threading
import uuid

import fsspec
import numpy as np
import pytest
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat.exceptions import ImageError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 4)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory, files):
    network = save_network(tmp_path_factory.mktemp("network") / "small.keras")
    return CNNFeatureTransformer(network, "two", "avg").fit(files)


@pytest.fixture(scope="module")
def expected(cnn, files):
    return cnn.transform(files)


@pytest.fixture(scope="module")
def in_memory(files):
    """Copy the photographs to a file system in memory; return their URLs."""
    folder = f"memory://{uuid.uuid4().hex}"
    urls = [f"{folder}/ä photo {i}.jpg" for i in range(len(files))]
    for path, url in zip(files, urls, strict=True):
        with fsspec.open(url, "wb") as target, open(path, "rb") as source:
            target.write(source.read())
    return urls


@pytest.fixture
def web(files, tmp_path):
    """Serve the photographs; return their URLs."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    for i, path in enumerate(files):
        (tmp_path / f"{i}.jpg").write_bytes(open(path, "rb").read())
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield [f"http://127.0.0.1:{server.server_port}/{i}.jpg" for i in range(len(files))]
    server.shutdown()
    thread.join()
    server.server_close()


def test_in_memory(cnn, in_memory, expected):
    np.testing.assert_array_equal(cnn.transform(in_memory), expected)
    np.testing.assert_array_equal(cnn.transform(np.array(in_memory)), expected)


def test_over_http(cnn, web, expected):
    np.testing.assert_array_equal(cnn.transform(web), expected)
    with pytest.raises(ImageError, match=r"9\.jpg': there is no such file"):
        cnn.transform([*web, web[0].replace("0.jpg", "9.jpg")])


def test_beside_local_files(cnn, in_memory, files, expected):
    np.testing.assert_array_equal(cnn.transform([files[0], *in_memory[1:]]), expected)
    local = [f"file://{path}" for path in files]
    np.testing.assert_array_equal(cnn.transform(local), expected)
    with pytest.raises(FileNotFoundError, match="1 of the 5 files in X cannot be found"):
        cnn.transform([*in_memory, files[0] + "x"])


def test_in_an_archive(cnn, files, expected, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for i, path in enumerate(files):
            archive.write(path, f"{i}.jpg")
    urls = [f"zip://{i}.jpg::{tmp_path / 'photos.zip'}" for i in range(len(files))]
    np.testing.assert_array_equal(cnn.transform(urls), expected)


def test_missing_and_broken(cnn, in_memory, expected):
    folder = in_memory[0].rpartition("/")[0]
    fsspec.filesystem("memory").pipe_file(f"{folder}/broken.jpg", b"no image")
    with pytest.raises(ImageError, match=r"'memory://.*/none\.jpg': there is no such file"):
        cnn.transform([*in_memory, f"{folder}/none.jpg"])
    with pytest.raises(ImageError, match=r"broken\.jpg': no JPEG"):
        cnn.transform([f"{folder}/broken.jpg"])
    nan = CNNFeatureTransformer(**{**cnn.get_params(), "on_error": "nan"}).fit(in_memory)
    with pytest.warns(UserWarning, match="2 of 6 images could not be read"):
        rows = nan.transform([*in_memory, f"{folder}/none.jpg", f"{folder}/broken.jpg"])
    np.testing.assert_array_equal(rows[:4], expected)
    assert np.isnan(rows[4:]).all()


def test_limit(cnn, in_memory, web, monkeypatch):
    monkeypatch.setattr("sklearn_cnnfeat._images.collection._MOST_BYTES", 1000)
    for urls in (in_memory, web):
        with pytest.raises(ImageError, match="larger than 1,000 bytes"):
            cnn.transform(urls)


def test_cache(cnn, in_memory, expected, tmp_path):
    cached = CNNFeatureTransformer(**{**cnn.get_params(), "cache": tmp_path}).fit(in_memory)
    for _ in range(2):
        np.testing.assert_array_equal(cached.transform(in_memory), expected)
    # Content counts, not the name.
    system = fsspec.filesystem("memory")
    folder = in_memory[0].rpartition("/")[0]
    system.pipe_file(f"{folder}/same.jpg", system.cat_file(in_memory[0]))
    np.testing.assert_array_equal(cached.transform([f"{folder}/same.jpg"]), expected[:1])
    system.pipe_file(f"{folder}/same.jpg", system.cat_file(in_memory[1]))
    np.testing.assert_array_equal(cached.transform([f"{folder}/same.jpg"]), expected[1:2])


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_without_fsspec(cnn, monkeypatch, on_error):
    nan = CNNFeatureTransformer(**{**cnn.get_params(), "on_error": on_error})
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    url = "s3://bucket/photo.jpg"
    with pytest.raises(ImportError, match=r'pip install "sklearn-cnnfeat\[fsspec\]"'):
        nan.fit([url]).transform([url])


def test_without_the_package_of_a_file_system(cnn):
    fsspec.register_implementation(
        "nowhere", "no_such_package.FileSystem", errtxt="Install no-such-package to go nowhere"
    )
    with pytest.raises(ImportError, match=r"'nowhere://a\.jpg'.*Install no-such-package"):
        cnn.transform(["nowhere://a.jpg"])
    with pytest.raises(ValueError, match=r"'never://a\.jpg' cannot be read: Protocol not known"):
        cnn.transform(["never://a.jpg"])
