"""Images behind URLs: any file system that fsspec knows."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import uuid

import fsspec
import numpy as np
import pytest
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._images import as_images
from sklearn_cnnfeat._images.urls import read_url
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
    with pytest.raises(ImageError, match=r"broken\.jpg': it is not a JPEG"):
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
    monkeypatch.setitem(sys.modules, "fsspec.registry", None)
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


# --- local URLs ----------------------------------------------------------------------------------


def test_local_urls_are_paths(files):
    images = as_images([f"file://{files[0]}", f"FILE://{files[1]}", f"local://{files[2]}"])
    assert [images.path(i) for i in range(3)] == files[:3]
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 files.*: '/nowhere/1\.jpg'"):
        as_images(["file:///nowhere/1.jpg"]).check()


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices in the file system")
def test_pipes_and_devices_behind_urls_are_refused(tmp_path):
    """In a process of its own, because a pipe that is opened waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    code = """
import sys
from sklearn_cnnfeat._images import as_images
from sklearn_cnnfeat.exceptions import ImageError
images = as_images(sys.argv[1:])
for i in range(len(images)):
    try:
        images.read(i)
    except ImageError as error:
        print(error)
"""
    forms = ["{}", "file://{}", "local://{}", "zip://1.jpg::{}", "zip://1.jpg::file://{}"]
    urls = [form.format(path) for form in forms for path in (tmp_path / "pipe", "/dev/zero")]
    done = subprocess.run(
        [sys.executable, "-c", code, *urls], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(urls)
    assert all("regular file" in line for line in lines)


# --- size ----------------------------------------------------------------------------------------


@pytest.fixture
def endless():
    """Serve a file that has no end, to those who ask for a range as well; yield its URL."""

    class Endless(http.server.BaseHTTPRequestHandler):
        sent = 0

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                while Endless.sent < 2**30:
                    Endless.sent += self.wfile.write(bytes(2**16))
            except OSError:
                pass  # the other side has closed the connection

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/photo.jpg", Endless
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_without_end_is_not_read_whole(endless):
    url, server = endless
    with pytest.raises(ValueError, match="larger than 100,000 bytes"):
        read_url(url, 100_000)
    # What had been sent when the connection was closed: buffers of the system on both sides.
    assert server.sent < 2**27


# --- errors and protocols ------------------------------------------------------------------------


def _not_an_archive(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"not an archive")
    return f"zip://1.jpg::{tmp_path / 'photos.zip'}"


@pytest.mark.parametrize(
    "make",
    [
        _not_an_archive,
        lambda tmp_path: f"zip://1.jpg::{tmp_path}",
        lambda tmp_path: f"zip://1.jpg::{tmp_path / 'none.zip'}",
        lambda tmp_path: "http://127.0.0.1:9/photo.jpg",
        lambda tmp_path: "https://name.invalid/photo.jpg",
        lambda tmp_path: "http://",
        lambda tmp_path: "memory://",
        lambda tmp_path: "reference://",
        lambda tmp_path: "simplecache::http://127.0.0.1:9/photo.jpg",
        lambda tmp_path: "never://a.jpg",
        lambda tmp_path: "zip://a::never::b",
    ],
)
def test_errors_are_ours_and_name_the_url(cnn, make, tmp_path):
    url = make(tmp_path)
    with pytest.raises(ImageError) as caught:
        images = as_images([url])
        images.read(0)
    assert caught.value.name == url
    assert len(caught.value.reason) > 5
    with pytest.raises(ValueError, match=re.escape(repr(url))):
        cnn.transform([url])


@pytest.mark.parametrize(
    "url",
    [
        "reference://photo.jpg",
        "ssh://host/photo.jpg",
        "git://photo.jpg",
        "simplecache::s3://bucket/photo.jpg",
        "zip://photo.jpg::simplecache::s3://bucket/photos.zip",
        "zip://photo.jpg::ftp://host/photos.zip",
    ],
)
def test_protocols_that_are_not_open(url, files, monkeypatch):
    # As if the packages of all protocols were installed.
    registry = sys.modules["fsspec.registry"]
    monkeypatch.setattr(registry, "get_filesystem_class", lambda protocol: None)
    with pytest.raises(ValueError, match=r"is not among those.*CNNFEAT_URL_PROTOCOLS="):
        as_images([*files, url]).check()
    monkeypatch.setenv("CNNFEAT_URL_PROTOCOLS", "reference, ssh, git, simplecache, ftp")
    as_images([*files, url]).check()
