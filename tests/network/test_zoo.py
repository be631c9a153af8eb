"""The table of networks against Keras itself, and what happens without their weights."""

import threading
from dataclasses import asdict

import numpy as np
import pytest

from sklearn_cnnfeat import CNNFeatureTransformer, list_models
from sklearn_cnnfeat._network import converter, keras_models
from sklearn_cnnfeat._network import weights as _published
from sklearn_cnnfeat._network import zoo as _zoo
from sklearn_cnnfeat._network.engines import framework
from sklearn_cnnfeat._network.keras_sources import NamedNetwork

# One of each family, cheap ones; the others differ from them in numbers only.
FAMILIES = [
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_b0",
    "inception_v3",
    "mobilenet",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "nasnet_mobile",
    "resnet50",
    "resnet50_v2",
    "vgg16",
    "vgg19",
    "xception",
]
REST = [pytest.param(n, marks=pytest.mark.slow) for n in list_models() if n not in FAMILIES]


@pytest.fixture
def asked(monkeypatch):
    """Let Keras ask for downloads, and give it none: a list of (file, address, subfolder)."""
    keras = keras_models.import_keras()
    from keras.src.utils import file_utils

    calls = []

    def get_file(fname, origin, cache_subdir, file_hash=None, **_):
        # A wrong digest fails the network that is being built.
        assert _published.DIGESTS.get(fname) == file_hash
        calls.append((fname, origin, cache_subdir))

    monkeypatch.setattr(file_utils, "get_file", get_file)
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_: None)
    return calls


# Keras says that it takes the weights of the native size where there are no others.
pytestmark = pytest.mark.filterwarnings("ignore:.*input_shape. is undefined:UserWarning")


def keras_network(name, **arguments):
    """Build a network by Keras alone, with names as in a fresh process and without memory."""
    keras = keras_models.import_keras()
    result = []

    def build():
        with keras.StatelessScope():
            result.append(getattr(keras.applications, name)(**arguments))

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    return result[0]


def layer_names(model):
    return [layer.name for layer in model.layers]


@pytest.mark.parametrize("name", [*FAMILIES, *REST])
@pytest.mark.sampled(4)
def test_layers_sizes_and_files_are_those_of_keras(name, asked):
    architecture = _zoo.find_architecture(name)
    native = (architecture.native_size,) * 2
    whole = keras_network(architecture.keras_name, weights="imagenet")
    # Without a size NASNet is built otherwise.
    version = {"include_top": False, "input_shape": (*native, 3)}
    headless = keras_network(architecture.keras_name, weights="imagenet", **version)

    if whole.input_shape == (None, None, None, 3):
        # MobileNetV3 takes any size; its weights' name says what they are for.
        assert f"_{native[0]}_" in asked[0][0]
    else:
        assert whole.input_shape == (None, *native, 3)
    n_trunk = architecture.n_trunk + architecture.rescales
    assert layer_names(whole)[:n_trunk] == layer_names(headless)[:n_trunk]
    assert tuple(layer_names(whole)[n_trunk:]) == architecture.head
    assert tuple(layer_names(headless)[n_trunk:]) == architecture.tail
    # Without weights, Keras leaves out the layer that only published weights need.
    random = keras_network(architecture.keras_name, weights=None, **version)
    assert len(random.layers) == architecture.n_trunk + len(architecture.tail)

    for include_top, call in zip((True, False), asked, strict=True):
        path = architecture.weights_file(include_top, native)
        assert call == (path.name, architecture.download_url(include_top, native), "models")


@pytest.mark.parametrize("name", list_models())
def test_preprocessing_is_that_of_keras(name):
    keras = keras_models.import_keras()
    architecture = _zoo.find_architecture(name)
    constructor = getattr(keras.applications, architecture.keras_name)
    # Public modules bear the names of the private ones that they are made of.
    module = getattr(keras.applications, constructor.__module__.rsplit(".", 1)[-1])
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype(np.float32)
    expected = module.preprocess_input(pixels.copy())
    ours = framework._preprocess(keras.ops.convert_to_tensor(pixels), architecture.preprocessing)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-5)


def test_every_network_of_keras_is_there():
    keras = keras_models.import_keras()
    networks = {name for name in dir(keras.applications) if name[0].isupper()}
    assert networks == {_zoo.find_architecture(name).keras_name for name in list_models()}


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2", "mobilenet_v3_small", "vgg16"])
@pytest.mark.parametrize("size", [(96, 96), (128, 128), (160, 160), (128, 200), (224, 128)])
@pytest.mark.sampled(5)
def test_weights_of_the_right_size_are_taken(name, size, asked):
    architecture = _zoo.find_architecture(name)
    keras_network(
        architecture.keras_name, weights="imagenet", include_top=False, input_shape=(*size, 3)
    )
    assert [call[0] for call in asked] == [architecture.weights_file(False, size).name]
    assert asked[0][1] == architecture.download_url(False, size)


@pytest.mark.parametrize("include_top", [False, True])
@pytest.mark.slow
def test_the_rescaling_of_published_efficientnets_is_that_of_keras(include_top, asked):
    theirs = keras_network("EfficientNetB0", weights="imagenet", include_top=include_top)
    plain = keras_network("EfficientNetB0", weights=None, include_top=include_top)
    ours = keras_models.add_rescaling(plain)
    assert layer_names(ours) == layer_names(theirs)
    for name in ("input_layer", "rescaling", "normalization", "rescaling_1", "stem_conv"):
        assert ours.get_layer(name).get_config() == theirs.get_layer(name).get_config()


def test_rows_of_the_table_are_consistent():
    for name in list_models():
        architecture = _zoo.find_architecture(name)
        facts = asdict(architecture)
        assert "{" not in str(facts["weights_files"]) + str(facts["head"])
        assert not architecture.sizes or architecture.native_size in architecture.sizes
        for layer in (*architecture.head, -1, -len(architecture.head)):
            assert architecture.needs_top(layer, "imagenet")
        for layer in (0, architecture.n_trunk - 1, -len(architecture.head) - 1, "last"):
            assert not architecture.needs_top(layer, None)
        assert architecture.needs_top(architecture.n_trunk, None)


# --- names ------------------------------------------------------------------------------------


def test_list_models():
    assert len(list_models()) == 40
    assert list_models() == sorted(list_models())
    assert list_models("resnet50*") == list_models("ResNet50*") == ["resnet50", "resnet50_v2"]
    assert list_models("efficientnet_b?") == [f"efficientnet_b{i}" for i in range(8)]
    assert list_models("vgg1[6]") == ["vgg16"]
    assert list_models("alexnet") == []


@pytest.mark.parametrize("spelling", ["ResNet50V2", "resnet50-v2", "RESNET50_V2", "resnet50_v2"])
def test_names_are_found_in_any_spelling(spelling):
    assert _zoo.find_architecture(spelling).name == "resnet50_v2"


def test_names_of_keras_are_found():
    for name in list_models():
        assert _zoo.find_architecture(_zoo.find_architecture(name).keras_name).name == name


def test_other_names_are_not():
    assert _zoo.find_architecture("resnet51") is None
    assert _zoo.find_architecture("") is None


# --- published weights --------------------------------------------------------------------------

IMAGES = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def photo_like():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Run without a network, and without the weights that are on this machine."""
    import urllib.error

    from keras.src.utils import file_utils

    def urlretrieve(*_):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(file_utils, "urlretrieve", urlretrieve)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("model", "layer", "file"),
    [
        ("mobilenet", -1, "mobilenet/mobilenet_1_0_224_tf.h5"),
        ("resnet50", "last", "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("vgg16", "fc2", "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5"),
    ],
)
@pytest.mark.sampled(1)
def test_the_error_without_a_network_says_all_that_is_needed(no_network, model, layer, file):
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        CNNFeatureTransformer(model, layer).fit(IMAGES)
    assert type(caught.value).__name__ == "WeightsNotFoundError"
    assert str(caught.value).splitlines()[1:4] == [
        f"  file    {file.split('/')[-1]}",
        f"  from    https://storage.googleapis.com/tensorflow/keras-applications/{file}",
        f"  put in  {no_network / 'models'}",
    ]
    assert "Name or service not known" in str(caught.value)


@pytest.mark.slow
def test_small_networks_ask_for_the_weights_of_their_size(no_network):
    with pytest.raises(OSError, match=r"mobilenet_1_0_128_tf_no_top\.h5"):
        CNNFeatureTransformer("mobilenet", "last", input_size=128).fit(IMAGES)


@pytest.mark.slow
def test_a_damaged_download_is_named(no_network):
    file = no_network / "models" / "mobilenet_1_0_224_tf_no_top.h5"
    file.parent.mkdir()
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    with pytest.raises(ValueError, match="delete it so that it is downloaded again") as caught:
        CNNFeatureTransformer("mobilenet", "last").fit(IMAGES)
    assert str(file) in str(caught.value)


def test_a_download_that_keras_puts_elsewhere_is_told(no_network, monkeypatch):
    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: "elsewhere")
    monkeypatch.setattr(keras_models.import_keras().Model, "load_weights", lambda *_: None)
    with pytest.raises(OSError, match="Keras put it elsewhere") as caught:
        keras_models.download_weights(NamedNetwork("mobilenet", "imagenet"), (224, 224))
    assert str(no_network) in str(caught.value)


def publish(model, path):
    """Write the weights of a model in the format of the published files."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
    return str(path)


@pytest.fixture
def downloads(no_network, monkeypatch):
    """Let Keras download random weights of a small network."""
    keras = keras_models.import_keras()
    from keras.src.utils import file_utils

    calls = []

    def get_file(fname, origin, cache_subdir, **_):
        calls.append(fname)
        model = keras.applications.MobileNetV2(weights=None, include_top="no_top" not in fname)
        return publish(model, no_network / cache_subdir / fname)

    monkeypatch.setattr(file_utils, "get_file", get_file)
    # Here, where the patch holds, and not in the process of Keras.
    monkeypatch.setattr(converter, "download_weights", keras_models.download_weights)
    return calls


@pytest.mark.parametrize("layer", ["global_average_pooling2d", "out_relu"])
@pytest.mark.slow
def test_weights_are_downloaded_once_and_serve_all_sizes(layer, downloads, no_network):
    keras = keras_models.import_keras()
    X = np.random.default_rng(0).integers(0, 256, (2, 80, 64, 3), dtype=np.uint8)
    cnn = CNNFeatureTransformer("mobilenet_v2", layer, "avg", input_size=(80, 64))
    rows = cnn.fit_transform(X)
    cnn.fit(X)
    assert len(downloads) == 1
    (file,) = (no_network / "models").iterdir()
    model = keras.applications.MobileNetV2(
        weights=str(file), include_top="no_top" not in file.name, input_shape=(80, 64, 3)
    )
    maps = keras.Model(model.input, model.get_layer("out_relu").output)
    expected = maps.predict(X / 127.5 - 1, verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(rows, expected, atol=5e-6 * np.abs(expected).max())


def test_weights_in_a_folder_that_cannot_be_written_to_are_used(no_network, monkeypatch):
    """Keras itself does not look there, but attached data sets are mounted like this."""
    keras = keras_models.import_keras()
    published = keras.applications.MobileNet(weights=None, include_top=False)
    publish(published, no_network / "models" / "mobilenet_1_0_224_tf_no_top.h5")
    monkeypatch.setattr("os.access", lambda *_: False)
    cnn = CNNFeatureTransformer("mobilenet", "conv1_relu", "max", input_size=64).fit(IMAGES)
    assert cnn.transform(IMAGES).shape == (1, 32)


def test_downloads_go_to_where_keras_puts_them(no_network, monkeypatch, tmp_path_factory):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(_zoo, "_temporary_folder", lambda: temporary)
    architecture = _zoo.find_architecture("vgg16")
    assert architecture.weights_file(False, (224, 224)).parent == no_network / "models"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert architecture.weights_file(False, (224, 224)).parent == temporary / ".keras" / "models"
    monkeypatch.delenv("KERAS_HOME")
    assert _zoo.keras_home() == _zoo.Path("/tmp/.keras")


# --- EfficientNet's own way -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_efficientnet(tmp_path_factory):
    """Weights such as the published ones: normalized by ImageNet's mean and deviation."""
    keras = keras_models.import_keras()
    model = keras.applications.EfficientNetB0(weights=None, include_top=False)
    (normalization,) = (
        layer for layer in model.layers if isinstance(layer, keras.layers.Normalization)
    )
    normalization.adapt_mean.assign([0.485, 0.456, 0.406])
    normalization.adapt_variance.assign([0.229, 0.224, 0.225])
    folder = tmp_path_factory.mktemp("published") / "models"
    publish(model, folder / "efficientnetb0_notop.h5")
    model.save_weights(folder / "tuned.weights.h5")
    return folder


@pytest.mark.slow
def test_efficientnet_is_rescaled_with_published_weights(
    published_efficientnet, monkeypatch, photo_like
):
    """As `weights="imagenet"` of Keras does, by name, by path and after training."""
    keras = keras_models.import_keras()
    from keras.src.utils import file_utils

    file = str(published_efficientnet / "efficientnetb0_notop.h5")
    with monkeypatch.context() as patch:
        patch.setattr(file_utils, "get_file", lambda *_, **__: file)
        theirs = keras.applications.EfficientNetB0(include_top=False, input_shape=(64, 64, 3))
    monkeypatch.setenv("KERAS_HOME", str(published_efficientnet.parent))
    stem = keras.Model(theirs.input, theirs.get_layer("stem_activation").output)
    expected = stem.predict(photo_like, verbose=0).mean(axis=(1, 2))
    for weights in ("imagenet", file, str(published_efficientnet / "tuned.weights.h5")):
        cnn = CNNFeatureTransformer(
            "efficientnet_b0", "stem_activation", "avg", weights=weights, input_size=64
        )
        rows = cnn.fit_transform(photo_like)
        np.testing.assert_allclose(rows, expected, atol=5e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_indices_and_last_count_the_rescaling(published_efficientnet, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(published_efficientnet.parent))
    names = []
    for layer in (3, 237, "last", -4):
        cnn = CNNFeatureTransformer("efficientnet_b0", layer, "avg", input_size=64).fit(IMAGES)
        names += cnn.layer_names_
    assert names == ["rescaling_1", "top_activation", "top_activation", "top_activation"]
    cnn = CNNFeatureTransformer("efficientnet_b0", 3, "avg", weights=None, input_size=64)
    assert cnn.fit(IMAGES).layer_names_ == ["stem_conv_pad"]


@pytest.mark.slow
def test_weights_of_ones_own_are_not_rescaled(tmp_path, photo_like):
    keras = keras_models.import_keras()
    own = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(64, 64, 3)
    )
    own.save_weights(tmp_path / "own.weights.h5")
    stem = keras.Model(own.input, own.get_layer("stem_activation").output)
    expected = stem.predict(photo_like, verbose=0).mean(axis=(1, 2))
    cnn = CNNFeatureTransformer(
        "efficientnet_b0",
        "stem_activation",
        "avg",
        weights=tmp_path / "own.weights.h5",
        input_size=64,
    )
    rows = cnn.fit_transform(photo_like)
    np.testing.assert_allclose(rows, expected, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("layer", ["blok5_pool", 500, -500])
def test_wrong_layer_is_told_before_a_download(layer, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def download(*args):
        raise AssertionError("downloads for a layer that does not exist")

    monkeypatch.setattr(converter, "download_weights", download)
    with pytest.raises(ValueError, match=r"has no layer 'blok5_pool'\. Nearest.*'block5_pool'|26"):
        CNNFeatureTransformer("vgg19", layer).fit([np.zeros((8, 8, 3), np.uint8)])


def test_absurd_input_size():
    with pytest.raises(ValueError, match="makes images of 2,500,000,000 pixels"):
        CNNFeatureTransformer("mobilenet", input_size=50_000, weights=None).fit(
            [np.zeros((8, 8, 3), np.uint8)]
        )
