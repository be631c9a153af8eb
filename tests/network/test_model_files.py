"""Model files from strangers: looked into before Keras, refused if they could do more."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fuzz
import keras
import numpy as np
import pytest
from make_bad_models import (
    MODULE,
    archive,
    good_models,
    layer,
    legacy,
    make_bad_models,
    network,
    weights,
)
from requirements import needs_tensorflow
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from small_network import save_network

from sklearn_cnnfeat import (
    CNNFeatureTransformer,
    FilterDisplay,
    filter_summary,
    layer_report,
    layer_summary,
    list_models,
)
from sklearn_cnnfeat._network import model_configs
from sklearn_cnnfeat._network import model_files as _inspect
from sklearn_cnnfeat._network.model_files import inspect_file
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._transformer import extractor_of
from sklearn_cnnfeat.exceptions import ModelFileError, UntrustedModelError

X = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return folder, make_bad_models(folder)


@pytest.fixture
def canaries(corpus, monkeypatch):
    """Put the canaries where a bad file would find them, and see afterwards that none did."""
    folder, _ = corpus
    modules = folder / "modules"
    modules.mkdir(exist_ok=True)
    (modules / f"{MODULE}.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()\n")
    (folder / "secret").write_text("a line that is nobody's business\n")
    monkeypatch.syspath_prepend(modules)
    before = {path.name for path in folder.iterdir()}
    yield folder
    assert {path.name for path in folder.iterdir()} == before
    assert MODULE not in sys.modules
    assert not (folder.parent / "canary").exists()


def test_bad_models_are_refused_without_side_effects(corpus, canaries):
    folder, models = corpus
    assert len(models) > 90
    refused = set()
    for model in models:
        if model.what == "weights":
            continue
        with pytest.raises(ModelFileError, match=model.reason) as caught:
            CNNFeatureTransformer(folder / model.name, "last").fit(X)
        assert str(folder / model.name) in str(caught.value)
        if isinstance(caught.value, UntrustedModelError):
            assert "say trusted=True" in str(caught.value)
            refused.add(model.cve)
    # Every class of vulnerability in the list of reliability reports, but for those that have no
    # file of their own.
    assert refused >= {
        "CVE-2024-3660",
        "CVE-2024-55459",
        "CVE-2025-1550",
        "CVE-2025-8747",
        "CVE-2025-9906",
        "CVE-2025-9905",
        "CVE-2025-49655",
        "CVE-2025-12058",
        "CVE-2025-12060",
        "CVE-2026-0897",
        "CVE-2026-1669",
        "CVE-2026-1462",
        "CVE-2026-12481",
        "CVE-2026-12570",
    }


def test_bad_weights_are_refused(corpus, canaries):
    folder, models = corpus
    for model in models:
        if model.what == "weights":
            with pytest.raises(UntrustedModelError, match=model.reason):
                inspect_file(folder / model.name, "weights")
    for name in ("external_storage.weights.h5", "shape_bomb.weights.h5", "external_link.keras"):
        cnn = CNNFeatureTransformer("mobilenet", weights=folder / name, layer="last")
        with pytest.raises(UntrustedModelError, match=re.escape(name) + r".* was not loaded"):
            cnn.fit(X)


def test_canaries_do_sing(tmp_path):
    """What is refused above is no empty threat: with trusted=True the code in the file runs."""
    make_bad_models(tmp_path)
    assert not (tmp_path / "canary").exists()
    CNNFeatureTransformer(tmp_path / "lambda.keras", "own", trusted=True).fit_transform(X)
    assert (tmp_path / "canary").read_text() == "run"


def test_refusal_comes_before_keras(corpus):
    """Not even Keras is imported for a file that is refused."""
    folder, _ = corpus
    code = f"""
import sys
import numpy as np
from sklearn_cnnfeat import CNNFeatureTransformer, layer_summary
for use in (layer_summary, lambda path: CNNFeatureTransformer(path, "last").fit(
    np.zeros((1, 12, 12, 3), np.uint8)
)):
    try:
        use({str(folder / "lambda.keras")!r})
    except ValueError as error:
        print(type(error).__name__, "keras" in sys.modules, "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UntrustedModelError", "False", "False"] * 2


@pytest.mark.parametrize(
    "use",
    [
        layer_summary,
        filter_summary,
        lambda path: FilterDisplay.from_estimator(path, layer="conv"),
        lambda path: layer_report(list(X) * 4, [0, 1, 2] * 4, path, layers=["conv"]),
    ],
)
def test_whatever_takes_a_path_refuses(use, corpus, canaries):
    folder, _ = corpus
    with pytest.raises(UntrustedModelError, match="layer 'own' holds a Lambda"):
        use(str(folder / "lambda.keras"))


def test_summaries_of_trusted_files(tmp_path):
    path = tmp_path / "own.keras"
    double = keras.layers.Lambda(lambda x: x * 2, output_shape=(12, 12, 3), name="double")
    keras.Sequential([keras.Input((12, 12, 3)), double]).save(path)
    with pytest.raises(UntrustedModelError):
        layer_summary(path)
    cnn = CNNFeatureTransformer(path, "last", trusted=True)
    assert layer_summary(cnn)["path"].tolist() == ["double"]


def test_good_files_are_what_keras_loads(tmp_path):
    rows = []
    for name, data in good_models().items():
        path = tmp_path / name
        path.write_bytes(data)
        if "weights" in name:
            inspect_file(path, "weights")
            continue
        inspect_file(path)
        rows.append(CNNFeatureTransformer(path, "conv").fit_transform(X))
        if name == "good.keras":
            model = keras.saving.load_model(path, compile=False)
            expected = model.predict(X.astype(np.float32), verbose=0).reshape(3, -1)
            np.testing.assert_allclose(rows[0], expected, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(rows[-1], rows[0])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.sampled(1)
@needs_tensorflow
def test_layers_of_all_sorts_are_let_through(suffix, tmp_path):
    """Transfer learning, augmentation, operators, an optimizer: what people do save."""
    layers = keras.layers
    inner = keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            layers.Conv2D(4, 3, kernel_regularizer="l2", bias_constraint="non_neg"),
            layers.BatchNormalization(),
        ],
        name="inner",
    )
    inner.compile("adam", "mse", metrics=["accuracy"])
    inputs = keras.Input((24, 24, 3))
    x = layers.RandomFlip()(inputs)
    x = inner(layers.Rescaling(1 / 255)(x))
    if suffix == ".keras":
        x = keras.ops.maximum(x * 2 + 1, 0.5)
    x = layers.Activation("swish")(x)
    x = layers.PReLU(alpha_initializer=keras.initializers.Constant(0.1))(x)
    x = layers.GlobalAveragePooling2D()(layers.SeparableConv2D(4, 3, activation="relu6")(x))
    x = layers.EinsumDense("ab,bc->ac", 4, kernel_initializer="he_normal")(x)
    outputs = layers.Dense(2, activation=keras.activations.softmax, dtype="float32")(x)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.AdamW(1e-4), keras.losses.CategoricalCrossentropy())
    model.fit(np.zeros((2, 24, 24, 3)), np.eye(2), verbose=0)
    path = tmp_path / f"model{suffix}"
    model.save(path)
    inspect_file(path)
    images = np.repeat(np.repeat(X, 2, 1), 2, 2)
    features = CNNFeatureTransformer(path, "last").fit_transform(images)
    again = CNNFeatureTransformer(model, "last").fit_transform(images)
    np.testing.assert_allclose(features, again, rtol=1e-5, atol=1e-6)


def test_all_classes_of_keras_are_known():
    """A class that a newer Keras adds is refused until somebody has looked at it here."""
    known = model_configs._CLASSES | model_configs.REFUSED_LAYERS
    for room in ("layers", "models", "initializers", "regularizers", "constraints"):
        module = getattr(keras, room)
        names = {name for name in dir(module) if isinstance(getattr(module, name), type)}
        # What others are made from computes nothing.
        names = {name for name in names if name[0].isupper()}
        names -= {"Initializer", "Regularizer", "Constraint"}
        assert names <= known, room
    functions = {name for name in dir(keras.activations) if name[0].islower()}
    assert functions - {"deserialize", "get", "serialize"} <= model_configs._FUNCTIONS
    for room in ("initializers", "regularizers", "constraints"):
        module = getattr(keras, room)
        short = {name for name in dir(module) if isinstance(getattr(module, name), type)}
        short = {name.replace("_", "").lower() for name in short if name[0].islower()}
        assert short - {"initializer", "regularizer", "constraint"} <= model_configs._SHORT, room
    for name in model_configs.REFUSED_LAYERS:
        assert hasattr(keras.layers, name)
        assert name not in model_configs._CLASSES


def test_real_model(assets):
    inspect_file(assets / "models" / "squeezenet_1_1.keras")
    inspect_file(
        assets / "keras_home" / "models" / "mobilenet_1_0_224_tf_no_top.h5", what="weights"
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("mobilenet_v3_small", "efficientnet_v2_b0")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in list_models()
    ],
)
def test_networks_of_keras_applications_pass(name, suffix, tmp_path):
    constructor = getattr(keras.applications, find_architecture(name).keras_name)
    path = tmp_path / f"model{suffix}"
    constructor(weights=None, include_top=False, input_shape=(96, 96, 3)).save(path)
    inspect_file(path)


# --- messages -------------------------------------------------------------------------------------


def changed(**values):
    """Return the configuration of the small network with other values for its convolution."""
    config = network()
    config["config"]["layers"][1]["config"].update(values)
    return config


@needs_tensorflow
@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (changed(dtype="gptq/4/128_from_float32"), "does not have a `_gptq_call` method"),
        (
            network(layer("Discretization", {"name": "odd", "bin_boundaries": "abc"})),
            "could not convert string to float: 'a'",
        ),
    ],
)
def test_networks_that_cannot_be_computed_are_told_by_file_and_cause(config, cause, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(archive(config))
    with pytest.raises(ModelFileError, match=cause) as caught:
        CNNFeatureTransformer(path, "last").fit(X)
    message = str(caught.value)
    assert message.startswith(f"The network in {str(path)!r} cannot be computed: ")
    assert message.isprintable()
    assert len(message) < 400 + len(str(path))


def test_faults_of_keras_are_told_by_their_cause(tmp_path):
    def other_shape(file):
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = np.zeros((5, 5, 3, 2), np.float32)

    path = tmp_path / "model.keras"
    for config, parameters, cause in [
        (changed(filters="x"), None, "'<=' not supported between instances"),
        (changed(kernel_size=[1] * 50_000), None, "`kernel_size` argument must be a tuple of 2"),
        (network(), weights(other_shape), r"\(3, 3, 3, 2\), Received: value\.shape=\(5, 5, 3, 2\)"),
    ]:
        path.write_bytes(archive(config, parameters=parameters))
        with pytest.raises(ModelFileError, match=cause) as caught:
            CNNFeatureTransformer(path, "last").fit(X)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 450 + len(str(path))


def keras_2_archive():
    """Return the bytes of a Functional model with standard layers, as Keras 2.13 wrote it."""
    start = layer("InputLayer", {"batch_input_shape": [None, 12, 12, 3], "name": "input"})
    conv = network()["config"]["layers"][1]
    for own in (start, conv):
        own["name"] = own["config"]["name"]
    start["inbound_nodes"], conv["inbound_nodes"] = [], [[["input", 0, 0, {}]]]
    config = {
        "name": "model",
        "layers": [start, conv],
        "input_layers": [["input", 0, 0]],
        "output_layers": [["conv", 0, 0]],
    }
    config = layer("Functional", config, "keras.src.engine.functional", "Functional")
    return archive(config)


def repacked(data, version):
    """Return an archive with another version of Keras in its metadata."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            text = json.dumps({"keras_version": version}) if name == "metadata.json" else None
            new.writestr(name, old.read(name) if text is None else text)
    return buffer.getvalue()


def test_standard_layers_of_keras_2_are_not_dangerous(tmp_path):
    """What Keras 3 cannot load is told by its version, with what to do about it."""
    path = tmp_path / "old.keras"
    path.write_bytes(repacked(keras_2_archive(), "2.13.1"))
    inspect_file(path)
    with pytest.raises(ModelFileError, match=r"saved by Keras 2\.13\.1, .*tf_keras") as caught:
        CNNFeatureTransformer(path, "last").fit(X)
    assert not isinstance(caught.value, UntrustedModelError)
    # The same place does not let through what is not on the list.
    config = network(layer("Lambda", {"name": "own"}, "keras.src.engine.functional"))
    path.write_bytes(archive(config))
    with pytest.raises(UntrustedModelError, match="Lambda"):
        inspect_file(path)


def test_files_of_an_earlier_keras_3_say_what_to_do(tmp_path):
    path = tmp_path / "old.keras"
    path.write_bytes(repacked(archive(changed(filters="x")), "3.2.0"))
    with pytest.raises(
        ModelFileError, match=r"saved by Keras 3\.2\.0, .*pip install keras==3\.2\.0"
    ):
        CNNFeatureTransformer(path, "last").fit(X)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.keras", legacy(network()), "it is an HDF5 file .* rename it to end with .h5"),
        ("model.h5", archive(network()), "it is a .keras archive .* rename it to end with .keras"),
        (
            "model.keras",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "it is a Git LFS pointer, .* 'git lfs pull'",
        ),
        ("model.h5", b"\n<!DOCTYPE html><title>404</title>", "it is a web page"),
    ],
)
def test_odd_files_are_called_what_they_are(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"{re.escape(name)}.* is no Keras model: {said}"):
        CNNFeatureTransformer(path, "last").fit(X)


@pytest.mark.parametrize(
    ("right", "wrong", "save"), [(".keras", ".h5", archive), (".h5", ".keras", legacy)]
)
def test_a_file_that_is_known_is_told_under_a_wrong_suffix(right, wrong, save, tmp_path):
    content = save(network())
    (tmp_path / f"model{right}").write_bytes(content)
    (tmp_path / f"model{wrong}").write_bytes(content)
    CNNFeatureTransformer(tmp_path / f"model{right}", "last").fit(X)
    with pytest.raises(ModelFileError, match=f"rename it to end with {right}"):
        CNNFeatureTransformer(tmp_path / f"model{wrong}", "last").fit(X)


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices are no files there")
def test_pipes_and_devices_are_not_read(tmp_path):
    pipe, device = tmp_path / "pipe.keras", tmp_path / "device.h5"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(ValueError, match=r"model=.* is not a regular file"):
            CNNFeatureTransformer(path).fit(X)
        with pytest.raises(ValueError, match=r"weights=.* is not a regular file"):
            CNNFeatureTransformer("mobilenet", weights=path).fit(X)


@pytest.mark.parametrize("suffix", [".npz", ".weights.json"])
def test_weights_of_other_kinds_are_told_what_is_taken(suffix, tmp_path):
    path = tmp_path / f"own{suffix}"
    path.write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"ends in \.weights\.h5, \.h5, \.hdf5 or \.keras"):
        CNNFeatureTransformer("mobilenet", weights=path).fit(X)


# --- trust ----------------------------------------------------------------------------------------


def test_trust_of_one_does_not_serve_another(tmp_path, home, monkeypatch):
    """A program that a trusted file was compiled to is refused to who does not trust it."""
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
    # Keras' own layers only, so that the program is kept on the disk; but a name too many.
    path = tmp_path / "model.keras"
    path.write_bytes(archive(network(), [("assets/notes.txt", b"kept beside the network")]))
    trusted = CNNFeatureTransformer(path, "conv", trusted=True).fit(X)
    rows = trusted.transform(X)
    refused = pytest.raises(UntrustedModelError, match=r"archive holds 'assets/notes\.txt'")
    with refused:
        CNNFeatureTransformer(path, "conv").fit(X)
    # In another process too, where the program is on the disk and Keras is not needed.
    code = f"""
import sys
import numpy as np
from sklearn_cnnfeat import CNNFeatureTransformer
X = np.array({X.tolist()!r}, np.uint8)
rows = CNNFeatureTransformer({str(path)!r}, "conv", trusted=True).fit_transform(X)
print(rows.sum(dtype=float), "keras" in sys.modules)
try:
    CNNFeatureTransformer({str(path)!r}, "conv").fit(X)
except ValueError as error:
    print(type(error).__name__, "keras" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.split() == [str(rows.sum(dtype=float)), "False"]
    assert second.split() == ["UntrustedModelError", "False"]


def test_a_file_that_passed_is_not_inspected_again(tmp_path, monkeypatch):
    path = save_network(tmp_path / "small.keras", seed=40)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    first = CNNFeatureTransformer(path, "one").fit_transform(images)
    # Trusted first, inspected later: one program for both.
    other = save_network(tmp_path / "other.keras", seed=41)
    CNNFeatureTransformer(other, "one", trusted=True).fit(images)
    CNNFeatureTransformer(other, "one").fit(images)
    inspected = []
    monkeypatch.setattr(_inspect, "inspect_stream", lambda *args: inspected.append(args))
    np.testing.assert_array_equal(CNNFeatureTransformer(path, "one").fit_transform(images), first)
    CNNFeatureTransformer(other, "one").fit(images)
    assert not inspected


def test_the_file_inspected_is_the_file_loaded(tmp_path, monkeypatch, corpus):
    """Whoever swaps the file between inspection and loading changes nothing."""
    path = save_network(tmp_path / "small.keras", seed=42)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = CNNFeatureTransformer(path, "one").fit_transform(images)
    again = tmp_path / "again.keras"
    shutil.copy(path, again)
    inspect_stream = _inspect.inspect_stream

    def swap(*args):
        inspect_stream(*args)
        shutil.copy(corpus[0] / "lambda.keras", again)

    monkeypatch.setattr(_inspect, "inspect_stream", swap)
    rows = CNNFeatureTransformer(again, "one", engine="keras").fit_transform(images)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)
    assert not (corpus[0] / "canary").exists()


def test_a_file_that_changes_before_it_is_read_is_told(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(good_models()["good.keras"])
    with (
        pytest.raises(ModelFileError, match="was changed while it was being read"),
        _inspect.inspected_copy(path, "0" * 64),
    ):
        pass


def test_copies_are_taken_away(tmp_path, monkeypatch, corpus):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = save_network(tmp_path / "small.keras", seed=43)
    CNNFeatureTransformer(path, "one").fit(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(UntrustedModelError):
        CNNFeatureTransformer(corpus[0] / "lambda.keras", "conv").fit(X)
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.keras"]


def test_models_passed_themselves_are_the_users_own():
    double = keras.layers.Lambda(lambda x: x * 2, output_shape=(12, 12, 3), name="double")
    model = keras.Sequential([keras.Input((12, 12, 3)), double])
    rows = CNNFeatureTransformer(model, "double").fit_transform(X)
    np.testing.assert_array_equal(rows, X.reshape(3, -1) * np.float32(2))


def test_a_misspelled_flag_is_told():
    with pytest.raises(ValueError, match="'trusted' parameter"):
        CNNFeatureTransformer("vgg16", trusted="yes").fit(X)


# --- fuzzing --------------------------------------------------------------------------------------


def test_damaged_model_files_are_refused_or_let_through():
    outcomes, failures, slowest, _ = fuzz.fuzz("models", 1000)
    assert failures == {}
    assert sum(outcomes.values()) == 1000
    assert set(outcomes) == {"let through", "refused", "damaged"}
    assert slowest < 10


@pytest.mark.skipif(os.name == "nt", reason="a process ends differently there")
def test_the_fuzzer_finds_what_it_is_to_find(monkeypatch, tmp_path):
    """Exceptions, crashes and hangs are all told, and the rest goes on."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import ctypes, sys, time\n"
        "import fuzz\n"
        "fuzz._SECONDS_AN_INPUT = 1\n"
        "def check(self, name, data):\n"
        "    n = int(name)\n"
        "    if n == 3: raise KeyError('odd')\n"
        "    if n == 5: ctypes.string_at(0)\n"
        "    if n == 8: time.sleep(60)\n"
        "    return 'fine'\n"
        "class Target:\n"
        "    most_memory = 500\n"
        "    def make(self, chance): return str(self.next()), b''\n"
        "    def next(self): return int(open(fuzz_place).read())\n"
        "    check = check\n"
        "    def __enter__(self): return self\n"
        "    def __exit__(self, *exc_info): pass\n"
        "fuzz.TARGETS['models'] = Target\n"
        "fuzz_place = sys.argv[-1]\n"
        "sys.exit(fuzz.main())\n"
    )
    monkeypatch.setattr(fuzz, "__file__", str(broken))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    outcomes, failures, _, _ = fuzz.fuzz("models", 12)
    assert sorted(failures) == [3, 5, 8]
    assert "KeyError" in failures[3]
    assert "Segmentation fault" in failures[5]
    assert "Timeout" in failures[8]
    assert outcomes["fine"] > 0


# --- pickles --------------------------------------------------------------------------------------


def test_pickles_of_files_hold_path_and_digest_and_no_model(tmp_path):
    path = save_network(tmp_path / "small.keras", seed=44)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    cnn = CNNFeatureTransformer(path, "one", "avg").fit(images)
    pickled = pickle.dumps(cnn)
    names = {argument for _, argument, _ in pickletools_strings(pickled)}
    assert path in names
    assert extractor_of(cnn).spec.source.digest in names
    # Classes of this package and of NumPy, none of Keras; a thousandth of what a model takes.
    modules = {name.split(".")[0] for name in names if re.fullmatch(r"[a-z_]+(\.\w+)+", name)}
    assert "keras" not in modules and "tensorflow" not in modules
    assert len(pickled) < 10_000
    np.testing.assert_array_equal(pickle.loads(pickled).transform(images), cnn.transform(images))


def pickletools_strings(data):
    import pickletools

    for opcode, argument, place in pickletools.genops(data):
        if isinstance(argument, str):
            yield opcode, argument, place


def test_a_pickle_computes_with_the_file_it_was_fitted_with_or_not_at_all(tmp_path, monkeypatch):
    path = save_network(tmp_path / "small.keras", seed=45)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    pickled = pickle.dumps(CNNFeatureTransformer(path, "one").fit(images))
    save_network(path, seed=46)
    code = (
        "import pickle, sys, numpy as np\n"
        "cnn = pickle.loads(sys.stdin.buffer.read())\n"
        "cnn.transform(np.zeros((1, 32, 32, 3), np.uint8))\n"
    )
    environment = {**os.environ, "SKLEARN_CNNFEAT_HOME": str(tmp_path / "elsewhere")}
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickled, capture_output=True, env=environment
    )
    assert done.returncode == 1
    assert b"has changed since fit" in done.stderr


def test_skops_saves_a_fitted_pipeline(tmp_path):
    skops_io = pytest.importorskip("skops.io")
    path = save_network(tmp_path / "small.keras", seed=47)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    cnn = CNNFeatureTransformer(path, ["one", "two"], "avg", cache=str(tmp_path / "cache"))
    pipe = make_pipeline(cnn, LogisticRegression()).fit(images, [0, 1] * 3)
    file = tmp_path / "pipe.skops"
    skops_io.dump(pipe, file)
    unknown = skops_io.get_untrusted_types(file=file)
    package = "sklearn_cnnfeat."
    assert {name.removeprefix(package) for name in unknown} == {
        "_transformer.CNNFeatureTransformer",
        "_extractor.Extractor",
        "_extractor.Reading",
        "_images.spec.ImageSpec",
        "_network.spec.Head",
        "_network.spec.NetworkInfo",
        "_network.spec.NetworkSpec",
        "_network.keras_sources.ModelFile",
    }
    again = skops_io.load(file, trusted=unknown)
    np.testing.assert_array_equal(again.decision_function(images), pipe.decision_function(images))
    assert again[0].get_feature_names_out().tolist() == cnn.get_feature_names_out().tolist()
