"""Published weights that lie on this machine: found, verified, packed, and missed with a reason."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer, pack_weights
from sklearn_cnnfeat._network import keras_models
from sklearn_cnnfeat._network import weights as _published

MOBILENET = "mobilenet_1_0_224_tf_no_top.h5"
VGG16 = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a file of weights as MobileNet's, which have no digest, are published."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    keras = keras_models.import_keras()
    model = keras.applications.MobileNet(weights=None, include_top=False)
    path = tmp_path_factory.mktemp("published") / MOBILENET
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Run without a network and without any weights; Kaggle's folder is a folder of the test."""
    import urllib.error

    from keras.src.utils import file_utils

    def urlretrieve(*_):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(file_utils, "urlretrieve", urlretrieve)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv(_published.VARIABLE, raising=False)
    monkeypatch.setattr(_published, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    monkeypatch.setattr(_published, "_places_of_files", {})


def fit(model="mobilenet", layer="conv1_relu"):
    return CNNFeatureTransformer(model, layer, "avg", input_size=64).fit(IMAGES)


def put(source, folder, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or source.name)
    path.write_bytes(source.read_bytes())
    return path


@pytest.mark.slow
def test_weights_in_an_attached_dataset_are_found(published, tmp_path):
    images = tmp_path / "kaggle" / "input" / "competition" / "images"
    images.mkdir(parents=True)
    for i in range(20):
        (images / f"{i}.jpg").touch()
    put(published, tmp_path / "kaggle" / "input" / "datasets" / "someone" / "my-weights")
    expected = CNNFeatureTransformer(
        "mobilenet", "conv1_relu", "avg", input_size=64, weights=published
    )
    np.testing.assert_array_equal(fit().transform(IMAGES), expected.fit_transform(IMAGES))


def test_folders_of_the_variable_are_searched_in_their_order(published, tmp_path, monkeypatch):
    for name in ("first", "second"):
        put(published, tmp_path / name / "deep" / "down")
    folders = os.pathsep.join(
        [str(tmp_path / "none"), *(str(tmp_path / n) for n in ("first", "second"))]
    )
    monkeypatch.setenv(_published.VARIABLE, folders)
    packed = pack_weights("mobilenet", tmp_path / "packed")
    assert packed["source"][0] == str(tmp_path / "first" / "deep" / "down" / MOBILENET)


def test_keras_own_folder_comes_first(published, tmp_path, monkeypatch):
    put(published, tmp_path / "other")
    monkeypatch.setenv(_published.VARIABLE, str(tmp_path / "other"))
    own = put(published, tmp_path / "keras" / "models")
    assert pack_weights("mobilenet", tmp_path / "packed")["source"][0] == str(own)


def test_a_file_found_once_is_not_searched_again(published, tmp_path, monkeypatch):
    monkeypatch.setenv(_published.VARIABLE, str(tmp_path / "folder"))
    path = put(published, tmp_path / "folder")
    fit()
    searched = []
    monkeypatch.setattr(_published, "_search", lambda *where: searched.append(where) or [])
    fit()
    assert not searched
    path.unlink()
    with pytest.raises(OSError, match="could not be downloaded"):
        fit()
    assert searched


def test_all_weights_are_found_wherever_they_are(published, tmp_path, monkeypatch):
    kept = put(published, tmp_path / "keras" / "models")
    put(published, tmp_path / "mine", VGG16)  # not what Keras publishes under that name
    attached = put(published, tmp_path / "kaggle" / "input" / "a", "mobilenet_1_0_224_tf.h5")
    monkeypatch.setenv(_published.VARIABLE, str(tmp_path / "mine"))
    assert _published.find_all_weights() == {
        ("mobilenet", False): kept,
        ("mobilenet", True): attached,
    }
    kept.unlink()
    assert list(_published.find_all_weights()) == [("mobilenet", True)]


def test_links_in_a_circle_end(published, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    put(published, folder / "z")
    try:
        (folder / "a").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("this account cannot make links")
    monkeypatch.setenv(_published.VARIABLE, str(folder))
    assert fit().layer_names_ == ["conv1_relu"]


@pytest.mark.slow
def test_the_error_tells_where_it_looked(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="are not on this machine") as caught:
        fit("vgg16", "block1_pool")
    looked = [line for line in str(caught.value).splitlines() if line.startswith("  looked in")]
    kaggle = tmp_path / "kaggle" / "input"
    assert looked == [
        f"  looked in  {tmp_path / 'keras' / 'models'}",
        f"  looked in  {kaggle} and its folders: there is no such folder",
        "  looked in  folders that the environment variable SKLEARN_CNNFEAT_WEIGHTS names: it is "
        "not set",
    ]
    kaggle.mkdir(parents=True)
    monkeypatch.setenv(_published.VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(OSError, match="are not on this machine") as caught:
        fit("vgg16", "block1_pool")
    assert (
        f"{tmp_path / 'gone'} and its folders (SKLEARN_CNNFEAT_WEIGHTS): there is no such"
        in str(caught.value)
    )
    assert f"  looked in  {kaggle} and its folders\n" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>404</html>", r"it is a web page, probably saved in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"it is a Git LFS pointer"),
        (b"no weights at all", r"it is no HDF5 file, it begins with b'no weigh'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), r"its MD5 is \w{32}, that of Keras' file 6d6bbae143d8"),
    ],
)
@pytest.mark.sampled(2)
def test_other_files_of_the_name_are_refused(content, why, tmp_path, monkeypatch):
    file = tmp_path / "folder" / VGG16
    file.parent.mkdir()
    file.write_bytes(content)
    monkeypatch.setenv(_published.VARIABLE, str(file.parent))
    with (
        pytest.warns(UserWarning, match=why),
        pytest.raises(OSError, match=f"refused  .*{VGG16}: {why}"),
    ):
        fit("vgg16", "block1_pool")


def test_the_published_file_is_recognized(tmp_path, monkeypatch):
    # The real file is not at hand; its digest is exchanged for that of one which is.
    content = b"\x89HDF\r\n\x1a\n" + bytes(100)
    file = tmp_path / VGG16
    file.write_bytes(content)
    assert "its MD5 is" in _published.check_weights(file)
    monkeypatch.setitem(_published.DIGESTS, VGG16, hashlib.sha256(content).hexdigest())
    _published._check.cache_clear()
    assert _published.check_weights(file) is None


def test_digests_have_the_form_of_digests():
    # That they are Keras' own is tested with the table of networks.
    assert len(_published.DIGESTS) == 76
    for file, digest in _published.DIGESTS.items():
        assert file.endswith(".h5")
        assert len(bytes.fromhex(digest)) in (16, 32)


# --- packing ----------------------------------------------------------------------------------


@pytest.fixture
def packed(published, tmp_path, monkeypatch):
    """Return a folder of packed weights that have no other home any more."""
    put(published, tmp_path / "keras" / "models")
    files = pack_weights(["MobileNet"], tmp_path / "packed")
    (tmp_path / "keras" / "models" / MOBILENET).unlink()
    assert list(files["file"]) == [MOBILENET]
    return tmp_path / "packed"


def test_a_packed_folder_describes_itself(packed, published):
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert sorted(path.name for path in packed.iterdir()) == sorted(
        ["README.md", "cnnfeat-weights.json", MOBILENET]
    )
    manifest = json.loads((packed / "cnnfeat-weights.json").read_text())
    assert manifest["files"][MOBILENET]["sha256"] == digest
    readme = (packed / "README.md").read_text()
    assert MOBILENET in readme and "SKLEARN_CNNFEAT_WEIGHTS" in readme


@pytest.mark.slow
def test_packed_weights_serve_a_process_elsewhere(packed, tmp_path):
    code = (
        "import numpy as np; from sklearn_cnnfeat import CNNFeatureTransformer; "
        "cnn = CNNFeatureTransformer('mobilenet', 'conv1_relu', 'avg', input_size=64); "
        "print(cnn.fit_transform(np.zeros((1, 64, 64, 3), np.uint8)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "SKLEARN_CNNFEAT_WEIGHTS": str(packed.parent),
            "KERAS_HOME": str(tmp_path / "empty"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.strip() == "(1, 32)", done.stderr


def test_packing_again_adds(packed, published, tmp_path, monkeypatch):
    monkeypatch.setenv(_published.VARIABLE, str(tmp_path / "more"))
    put(published, tmp_path / "more", "mobilenet_1_0_128_tf_no_top.h5")
    put(published, tmp_path / "more")
    files = pack_weights("mobilenet", packed, input_size=128)
    assert list(files["file"]) == ["mobilenet_1_0_128_tf_no_top.h5"]
    assert set(_published.read_manifest(packed)) == {MOBILENET, *files["file"]}


@pytest.mark.slow
def test_a_packed_file_that_changed_is_refused(packed, monkeypatch):
    with open(packed / MOBILENET, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    monkeypatch.setenv(_published.VARIABLE, str(packed))
    with (
        pytest.warns(UserWarning, match="it has changed since"),
        pytest.raises(OSError, match="could not be downloaded"),
    ):
        fit()


@pytest.mark.slow
def test_a_damaged_manifest_is_told(packed, monkeypatch):
    (packed / "cnnfeat-weights.json").write_text("{")
    monkeypatch.setenv(_published.VARIABLE, str(packed))
    with (
        pytest.warns(UserWarning, match="is damaged .*pack the weights again"),
        pytest.raises(OSError, match="could not be downloaded"),
    ):
        fit()


@pytest.mark.slow
def test_nothing_is_written_where_a_file_is_missing(tmp_path):
    with pytest.raises(OSError, match="The ImageNet weights of 'vgg16' are not on this machine"):
        pack_weights("vgg16", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_readme_of_others_is_not_replaced(published, tmp_path):
    put(published, tmp_path / "keras" / "models")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="already has another README"):
        pack_weights("mobilenet", tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not list(tmp_path.glob("*.h5"))


def test_the_classifier_needs_files_of_its_own(published, tmp_path):
    put(published, tmp_path / "keras" / "models")
    put(published, tmp_path / "keras" / "models", "mobilenet_1_0_224_tf.h5")
    files = pack_weights("mobilenet", tmp_path / "packed", classifier=True)
    assert list(files["file"]) == [MOBILENET, "mobilenet_1_0_224_tf.h5"]


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ("vgg17", {}, "There is no network 'vgg17' with published weights"),
        (["vgg16", 3], {}, "There is no network 3"),
        ([], {}, "models is empty"),
        ("vgg16", {"input_size": 0}, "input_size must be a number of pixels"),
    ],
)
def test_wrong_arguments_are_refused(models, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pack_weights(models, tmp_path / "packed", **settings)
    assert not (tmp_path / "packed").exists()


def test_a_full_disk_is_told_with_the_file_that_is_written(packed, tmp_path):
    to = tmp_path / "full"
    script = f"""
        import os, resource, signal
        from sklearn_cnnfeat import pack_weights
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            pack_weights(["mobilenet"], {str(to)!r})
        except OSError as error:
            print(error.errno, error)
        print(os.listdir({str(to)!r}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=os.environ | {_published.VARIABLE: str(packed)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert message.startswith(f"{errno.EFBIG} ")
    assert message.endswith(f"{str(to / MOBILENET)!r}")
    assert left == "[]"
