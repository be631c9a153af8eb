"""The command line: what it prints and writes, in processes of its own where that matters."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from small_network import save_network, save_photos

import sklearn_cnnfeat
from sklearn_cnnfeat import (
    CNNFeatureTransformer,
    DecisionMapDisplay,
    list_models,
    load_image_folder,
)
from sklearn_cnnfeat._cli import main, program

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = [sys.executable, "-m", "sklearn_cnnfeat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a small network and photographs of two classes."""
    folder = tmp_path_factory.mktemp("cli")
    save_network(folder / "small.keras")
    for path in save_photos(folder / "all", 16):
        name = "china" if int(Path(path).stem) % 2 == 0 else "flower"
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        shutil.move(path, folder / "photos" / name)
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """Work in an empty folder that has the network and the photographs in it."""
    (tmp_path / "small.keras").symlink_to(folder / "small.keras")
    shutil.copytree(folder / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cnnfeat(capfd):
    """Return a function that runs a command and returns its exit code, output and messages."""

    def cnnfeat(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return cnnfeat


@pytest.fixture(scope="module")
def saved(folder):
    """Return the path of a pipeline that `cnnfeat search` has saved."""
    path = folder / "model.joblib"
    code = main(
        [
            *["search", str(folder / "photos"), "--model", str(folder / "small.keras")],
            *["--layers", "one", "two", "--C", "1", "--cv", "2", "--classifier", "linear-svm"],
            *["-o", str(path)],
        ]
    )
    assert code == 0
    return path


def process(*arguments, **kwargs):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | kwargs.pop("env", {})
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        **kwargs,
    )


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def assert_is_picture(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert min(pixels.shape) > 150, pixels.shape
    assert pixels.std() > 10, f"{path} is nearly empty"


def assert_is_one_message(messages):
    assert "Traceback" not in messages
    assert messages.startswith("cnnfeat: error: "), messages
    assert messages.count("cnnfeat: ") == 1, messages


# --- start-up and help ----------------------------------------------------------------------------


def test_help_imports_nothing_of_weight():
    code = (
        "import sys; sys.argv = ['cnnfeat', '--help']\n"
        "from sklearn_cnnfeat._cli import main\n"
        "code = main()\n"
        "heavy = {'numpy', 'sklearn', 'pandas', 'tensorflow', 'keras', 'openvino', 'matplotlib'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else code)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "cnnfeat search photos/" in done.stdout


def _commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(_commands(program)), ids=" ".join)
def test_help_of_every_command_has_an_example(path, cnnfeat):
    code, printed, messages = cnnfeat(*path, "--help")
    assert (code, messages) == (0, "")
    assert f"\n    cnnfeat {' '.join(path)}" in printed.replace("| cnnfeat", "\n    cnnfeat")
    if {"search", "predict", "why"} & set(path):
        assert path == ("search",) or "can run any code" in " ".join(printed.split())


def test_every_command_is_in_the_readme():
    for name, *_ in _commands(program):
        assert f"`{name}`" in README or f"cnnfeat {name}" in README, name


def test_entry_point_is_the_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"cnnfeat": "sklearn_cnnfeat._cli:main"}
    assert process("--version").stdout == f"cnnfeat, version {sklearn_cnnfeat.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, cnnfeat):
    code, printed, _ = cnnfeat("completion", shell)
    assert code == 0
    assert "_CNNFEAT_COMPLETE" in printed


def test_completion_knows_networks(cnnfeat, monkeypatch):
    monkeypatch.setenv("_CNNFEAT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "cnnfeat extract --model vgg")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert cnnfeat()[:2] == (0, "plain,vgg16\nplain,vgg19\n")


# --- the main job ---------------------------------------------------------------------------------


def run_commands(commands, folder, assets):
    """Run lines of a page in a shell, with the network whose weights are here, as processes."""
    for vgg16, mobilenet in {
        "vgg16": "mobilenet",
        "block3_pool": "conv_pw_2_relu",
        "block4_pool": "conv_pw_6_relu",
        "block5_pool": "conv_pw_12_relu",
    }.items():
        commands = commands.replace(vgg16, mobilenet)
    command = shlex.join(COMMAND)
    done = subprocess.run(
        ["sh", "-ec", f'cnnfeat() {{ {command} "$@"; }}\n{commands}'],
        cwd=folder,
        # The terminal stays clean without the user's help.
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        | {"PYTHONPATH": str(ROOT), "KERAS_HOME": str(assets / "keras_home")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("cnnfeat: ") for line in done.stderr.splitlines()), done.stderr
    return done


@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
@pytest.mark.slow
def test_commands_of_the_readme_on_photographs(assets, tmp_path, monkeypatch):
    """With the network whose weights are here, in real processes."""
    (tmp_path / "new").mkdir()
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, photo in enumerate(sorted((assets / "photos" / name).iterdir())[:40]):
            is_new = number >= 20
            shutil.copy(
                photo, tmp_path / (f"new/{name}{number}.jpg" if is_new else f"photos/{name}")
            )
    shutil.copy(tmp_path / "new" / "bees20.jpg", tmp_path / "new" / "1.jpg")
    (commands,) = re.findall(r"^```sh\n(cnnfeat .*?)^```$", README, re.M | re.S)
    done = run_commands(commands, tmp_path, assets)

    first, _, last = read_csv(done.stdout)
    assert [first["layer"], last["layer"]] == ["conv_pw_2_relu", "conv_pw_12_relu"]
    assert [first["features"], last["features"]] == ["128", "1024"]
    assert float(last["accuracy"]) > float(first["accuracy"])
    assert float(last["accuracy"]) > 0.75
    assert last["rank"] == "1"
    assert "best: conv_pw_12_relu, avg pooling" in done.stderr

    rows = read_csv((tmp_path / "predictions.csv").read_text())
    assert list(rows[0]) == ["path", "prediction", "score_bees"]
    assert len(rows) == 41
    monkeypatch.setenv("KERAS_HOME", str(assets / "keras_home"))
    model = joblib.load(tmp_path / "model.joblib")
    paths = [str(tmp_path / row["path"]) for row in rows]
    assert [row["prediction"] for row in rows] == list(model.predict(paths))
    scores = [float(row["score_bees"]) for row in rows]
    np.testing.assert_allclose(scores, model.decision_function(paths), rtol=1e-5)
    for row in rows:
        assert row["prediction"] == ("bees" if float(row["score_bees"]) > 0 else "ants")

    (score,) = (float(row["score_bees"]) for row in rows if row["path"] == "new/1.jpg")
    assert f"bees against ants: {score:+.3g} (exact map)" in done.stderr
    assert_is_picture(tmp_path / "why.png")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
def test_commands_of_the_page_of_the_command_line(assets, tmp_path, monkeypatch):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
    for folder, first, last in ("photos", 0, 10), ("new", 10, 12):
        for name in ("ants", "bees"):
            where = tmp_path / folder / (name if folder == "photos" else "")
            where.mkdir(parents=True, exist_ok=True)
            for i, photo in enumerate(sorted((assets / "photos" / name).iterdir())[first:last]):
                shutil.copy(photo, where / (f"{name}{i}.jpg"))
    (tmp_path / "new" / "ants0.jpg").rename(tmp_path / "new" / "1.jpg")
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == 4
    printed = run_commands("".join(blocks), tmp_path, assets).stdout
    for picture in ("layers.png", "why.png", "filters.png", "maps.png"):
        assert_is_picture(tmp_path / picture)
    assert len(read_csv((tmp_path / "predictions.csv").read_text())) == 4
    for made in ("features.npy", "some.npy"):
        assert np.load(tmp_path / made).shape == (20, 1024), made
    assert (tmp_path / "my-weights" / "mobilenet_1_0_224_tf_no_top.h5").exists()
    assert "resnet50_v2\n" in printed
    assert "All is well." in printed


@pytest.mark.slow
def test_skops_and_probabilities(here, cnnfeat):
    code, printed, messages = cnnfeat(
        *["search", "photos", "-m", "small.keras", "-l", "one", "two", "--cv", "2"],
        *["--classifier", "logreg", "-o", "model.skops", "--plot", "search.png"],
    )
    assert code == 0, messages
    assert_is_picture("search.png")
    code, printed, messages = cnnfeat("predict", "model.skops", "photos")
    assert (code, messages) == (0, "")
    rows = read_csv(printed)
    assert list(rows[0]) == ["path", "prediction", "probability_china", "probability_flower"]
    assert len(rows) == 16
    for row in rows:
        probabilities = {name: float(row[f"probability_{name}"]) for name in ("china", "flower")}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert max(probabilities, key=probabilities.get) == row["prediction"]
    code, _, messages = cnnfeat("why", "model.skops", rows[0]["path"], "-o", "why.svg")
    assert code == 0
    assert "flower against china" in messages
    assert "(exact map)" in messages
    assert Path("why.svg").read_text().count("<image") > 0


def test_search_table_as_json_and_several_poolings(here, cnnfeat):
    code, printed, messages = cnnfeat(
        *["search", "photos", "--model", "small.keras", "--layers", "two", "one"],
        *["--pooling", "avg", "max", "--C", "1", "10", "--cv", "2", "--json", "--progress"],
        *["--classifier", "svm"],
    )
    assert code == 0, messages
    rows = json.loads(printed)
    assert [(row["layer"], row["pooling"]) for row in rows] == [
        ("one", "avg"),
        ("one", "max"),
        ("two", "avg"),
        ("two", "max"),
    ]
    assert sorted(row["rank"] for row in rows) == [1, 2, 3, 4]
    best = max(rows, key=lambda row: row["accuracy"])
    assert best["accuracy"] == max(row["accuracy"] for row in rows if row["rank"] == 1)
    assert "16/16" in messages, "2 layers x 2 poolings x 2 C x 2 folds"
    assert "0.500 for always saying 'china'" in messages


def test_search_compares_resizes_and_keeps_a_linear_model(here, cnnfeat):
    code, printed, messages = cnnfeat(
        *["search", "photos", "-m", "small.keras", "-l", "two", "one", "--cv", "2", "--json"],
        *["--resize", "stretch", "crop", "-o", "model.joblib"],
    )
    assert code == 0, messages
    rows = json.loads(printed)
    assert [row["layer"] for row in rows] == ["one", "two"]
    assert {row["resize"] for row in rows} <= {"stretch", "crop"}
    assert {row["classifier"] for row in rows} <= {"rbf SVM", "linear SVM"}
    kept = joblib.load("model.joblib")
    if kept[-1].kernel == "linear":
        assert "kept: a linear SVM" in messages or "linear SVM" in {
            row["classifier"] for row in rows if row["rank"] == 1
        }


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # rbf, linear at two layers; the standard error of the best is 0.04 / sqrt(4) = 0.02
        ([0.90, 0.87, 0.85, 0.881], 3),
        ([0.90, 0.87, 0.85, 0.879], 0),
        ([0.90, 0.91, 0.95, 0.85], 2),
        ([0.90, 0.95, 0.85, 0.94], 1),
    ],
)
def test_linear_within_one_standard_error(scores, expected):
    from sklearn_cnnfeat._cli.pipelines import _simplest

    rbf, linear = {"classifier": SVC()}, {"classifier": SVC(kernel="linear")}
    results = {
        "mean_test_score": np.array(scores),
        "std_test_score": np.full(4, 0.04),
        "params": [rbf, linear, rbf, linear],
        **{f"split{k}_test_score": None for k in range(5)},
    }
    assert _simplest(results) == expected


@pytest.mark.slow
def test_search_in_several_processes(here, cnnfeat):
    arguments = ["search", "photos", "-m", "small.keras", "-l", "one", "--C", "1", "--cv", "2"]
    alone, together = cnnfeat(*arguments), cnnfeat(*arguments, "--jobs", "2")
    assert alone[0] == 0
    assert together == alone


def test_search_chooses_layers_and_scores_as_scikit_learn(here, cnnfeat):
    code, printed, messages = cnnfeat(
        *["search", "photos", "-m", "small.keras", "--C", "1", "--cv", "3"],
        *["--scoring", "balanced_accuracy", "--classifier", "svm"],
    )
    assert code == 0, messages
    rows = read_csv(printed)
    assert [row["layer"] for row in rows] == ["one", "two", "three"]
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.preprocessing import StandardScaler

    photos = load_image_folder("photos")
    cnn = CNNFeatureTransformer("small.keras", "two", "avg")
    scores = cross_val_score(
        make_pipeline(cnn, StandardScaler(), SVC()),
        photos.data,
        photos.target,
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
        scoring="balanced_accuracy",
    )
    assert float(rows[1]["balanced_accuracy"]) == pytest.approx(scores.mean())


def test_search_leaves_out_what_cannot_be_read(here, cnnfeat):
    arguments = ["search", "photos", "-m", "small.keras", "-l", "one", "--cv", "2"]
    (here / "photos" / "china" / "broken.jpg").write_bytes(b"no picture")
    code, printed, messages = cnnfeat(*arguments)
    assert (code, printed) == (1, "")
    assert_is_one_message(messages)
    assert "broken.jpg" in messages
    code, printed, messages = cnnfeat(*arguments, "--on-error", "skip", "-o", "model.joblib")
    assert code == 0, messages
    assert "broken.jpg" in messages
    assert len(read_csv(printed)) == 1
    assert joblib.load("model.joblib").named_steps["cnn"].on_error == "raise"


def test_predictions_are_the_pipelines(saved, here, cnnfeat):
    paths = sorted(str(path) for path in (here / "photos").rglob("*.jpg"))
    pipeline = joblib.load(saved)
    code, printed, _ = cnnfeat("predict", saved, *paths)
    assert code == 0
    rows = read_csv(printed)
    assert [row["path"] for row in rows] == paths
    assert [row["prediction"] for row in rows] == pipeline.predict(paths).tolist()
    scores = [float(row["score_flower"]) for row in rows]
    assert scores == pipeline.decision_function(paths).tolist()
    code, printed, _ = cnnfeat("predict", saved, "photos", "--json")
    assert [json.loads(line)["score_flower"] for line in printed.splitlines()] == scores


def test_predict_names_of_any_kind(saved, here, cnnfeat):
    names = ["two words.jpg", 'quo"te,comma.jpg', "line\nbreak.jpg", "re\rturn.jpg", "Gänse 雁.jpg"]
    (here / "new" / "deep").mkdir(parents=True)
    (here / "new" / "deep" / "up").symlink_to(here / "new")
    (here / "new" / ".hidden.jpg").write_bytes(b"")
    source = next((here / "photos" / "china").iterdir())
    for name in names:
        shutil.copy(source, here / "new" / "deep" / name)
    code, printed, _ = cnnfeat("predict", saved, "new")
    assert code == 0
    assert {Path(row["path"]).name for row in read_csv(printed)} == set(names)
    assert len(read_csv(printed)) == len(names)


def test_predict_leaves_out_what_cannot_be_read(saved, here, cnnfeat):
    (here / "photos" / "china" / "broken.jpg").write_bytes(b"no picture")
    code, _, messages = cnnfeat("predict", saved, "photos")
    assert code == 1
    assert_is_one_message(messages)
    code, printed, messages = cnnfeat("predict", saved, "photos", "--on-error", "skip")
    assert code == 0
    assert len(read_csv(printed)) == 16
    assert "left out: cannot read" in messages
    assert "broken.jpg" in messages


def test_predict_leaves_out_links_that_lead_nowhere(saved, here, cnnfeat):
    (here / "photos" / "china" / "gone.jpg").symlink_to(here / "nowhere.jpg")
    code, _, messages = cnnfeat("predict", saved, "photos")
    assert code == 1
    assert_is_one_message(messages)
    code, printed, messages = cnnfeat("predict", saved, "photos", "--on-error", "skip")
    assert code == 0
    assert len(read_csv(printed)) == 16
    assert re.search(r"left out: cannot read '.*gone\.jpg': No such file", messages)


def test_predict_regression_without_scores(here, cnnfeat):
    from sklearn.linear_model import Ridge

    paths = sorted(str(path) for path in (here / "photos").rglob("*.jpg"))
    pipeline = make_pipeline(CNNFeatureTransformer("small.keras", "one", "avg"), Ridge())
    joblib.dump(pipeline.fit(paths, range(len(paths))), "ridge.joblib")
    code, printed, _ = cnnfeat("predict", "ridge.joblib", *paths[:2])
    assert code == 0
    assert list(read_csv(printed)[0]) == ["path", "prediction"]
    predicted = [float(row["prediction"]) for row in read_csv(printed)]
    assert predicted == pytest.approx(pipeline.predict(paths[:2]))


def test_why_is_the_decision_map(saved, here, cnnfeat):
    photo = str(next((here / "photos" / "china").iterdir()))
    code, printed, messages = cnnfeat("why", saved, photo, "--target", "china")
    assert (code, printed) == (0, "")
    display = DecisionMapDisplay.from_estimator(joblib.load(saved), [photo], target="china")
    assert f"china against flower: {display.decision.decision:+.3g} (exact map)" in messages
    assert_is_picture("why.png")
    code, _, messages = cnnfeat("why", saved, photo, "--target", "dog")
    assert code == 1
    assert_is_one_message(messages)
    assert "dog" in messages


# --- features and pictures ------------------------------------------------------------------------


def test_models(cnnfeat):
    assert cnnfeat("models") == (0, "\n".join(list_models()) + "\n", "")
    assert cnnfeat("models", "VGG")[1] == "vgg16\nvgg19\n"
    assert cnnfeat("models", "vgg1[0-6]")[1] == "vgg16\n"
    code, printed, messages = cnnfeat("models", "alexnet")
    assert (code, printed) == (1, "")
    assert "alexnet" in messages


def test_models_long_knows_which_weights_are_here(cnnfeat, imagenet_home):
    rows = read_csv(cnnfeat("models", "mobilenet", "--long")[1])
    found = {row["model"]: row["weights"] for row in rows}
    assert found["mobilenet"] == "here"
    assert found["mobilenet_v2"] == "to download"
    assert rows[0]["input_size"] == "224"


def test_layers(here, cnnfeat):
    code, printed, _ = cnnfeat("layers", "small.keras", "--json")
    assert code == 0
    rows = {row["path"]: row for row in json.loads(printed)}
    assert rows["two"]["output_shape"] == [13, 13, 8]
    assert rows["two"]["n_features"] == 13 * 13 * 8
    (row,) = read_csv(cnnfeat("layers", "small.keras", "t?o")[1])
    assert (row["path"], row["output_shape"]) == ("two", "13x13x8")
    assert len(read_csv(cnnfeat("layers", "small.keras", "conv2d")[1])) == 3
    (row,) = read_csv(cnnfeat("layers", "small.keras", "one", "--filters")[1])
    assert row["kernel_shape"] == "3x3x3x4"
    code, _, messages = cnnfeat("layers", "small.keras", "nothing")
    assert code == 1
    assert messages.endswith("small.keras matches 'nothing'.\n")


def test_tables_are_aligned_in_a_terminal(here):
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "models", "vgg*", "--long"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=slave,
        stderr=subprocess.PIPE,
    ) as running:
        os.close(slave)
        printed = b""
        try:
            while part := os.read(master, 4096):
                printed += part
        except OSError:  # Linux says so at the end
            pass
        assert running.wait() == 0
    header, *lines = printed.decode().splitlines()
    assert header.split() == ["model", "input_size", "layers", "preprocessing", "weights"]
    assert [line.index("224") for line in lines] == [header.index("input_size") + 7] * 2


def test_extract(here, cnnfeat):
    arguments = ["-m", "small.keras", "-l", "one", "two", "-p", "max", "--part-size", "4"]
    code, printed, messages = cnnfeat("extract", "photos/", "-o", "all.npy", *arguments)
    assert (code, printed) == (0, ""), messages
    assert "all.npy has 12 features of 16 images (16 computed now)" in messages
    found = sklearn_cnnfeat.load_features("all.npy")
    photos = load_image_folder("photos")
    cnn = CNNFeatureTransformer("small.keras", ["one", "two"], "max")
    np.testing.assert_array_equal(found.data, cnn.fit_transform(photos.data))
    assert found.target_names == ["china", "flower"]
    assert "(0 computed now)" in cnnfeat("extract", "photos/", "-o", "all.npy", *arguments)[2]
    code, _, messages = cnnfeat("extract", "photos/", "-o", "all.npy", "-m", "small.keras")
    assert code == 1
    assert_is_one_message(messages)


def test_extract_names_from_a_file(here, cnnfeat, monkeypatch):
    (here / "photos" / "china" / "broken.jpg").write_bytes(b"no picture")
    names = sorted(str(path) for path in (here / "photos").rglob("*.jpg"))
    arguments = ["extract", "--files-from", "-", "-o", "some.npy", "-m", "small.keras"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    code, _, messages = cnnfeat(*arguments, "--on-error", "skip")
    assert code == 0, messages
    assert "17 images (16 computed now, 1 could not be read)" in messages
    assert sklearn_cnnfeat.load_features("some.npy").data.shape == (16, 16)


def test_maps_and_filters(here, cnnfeat):
    photo = next((here / "photos" / "china").iterdir())
    for arguments in (
        ["--layer", "one"],
        ["--layers", "one", "two", "--combine", "max", "-o", "fused.png"],
        ["--layer", "three", "--overlay", "-o", "overlay.png"],
        ["--layer", "two", "--channels", "3,1,", "-o", "chosen.png"],
    ):
        code, _, messages = cnnfeat("maps", photo, "--model", "small.keras", *arguments)
        assert code == 0, messages
        assert_is_picture(messages.split("wrote ")[-1].strip())
    code, _, messages = cnnfeat("filters", "small.keras", "-l", "one", "--rgb", "--filters", "all")
    assert code == 0, messages
    assert_is_picture("filters.png")


# --- the cache ------------------------------------------------------------------------------------


def test_cache(here, cnnfeat, monkeypatch):
    (here / "kept").mkdir()
    arguments = ["-m", "small.keras", "-l", "one", "--cv", "2", "--cache-folder", "kept"]
    assert cnnfeat("search", "photos", *arguments)[0] == 0
    record = json.loads(cnnfeat("cache", "info", "--folder", "kept", "--json")[1])[0]
    assert (record["rows"], record["recipes"]) == (16, 1)
    code, printed, _ = cnnfeat("cache", "verify", "--folder", "kept")
    assert (code, printed) == (0, "sound,damaged_and_removed\n16,0\n")
    code, _, messages = cnnfeat("cache", "clear", "--folder", "kept")
    assert code == 2, "nobody is there to be asked"
    assert "Remove 16 rows" in messages
    # The folder goes by the name that other commands have for it as well.
    code, printed, messages = cnnfeat("cache", "clear", "--cache-folder", "kept", "--yes")
    assert (code, printed) == (0, "")
    assert messages.startswith("cnnfeat: removed 16 rows (")
    assert str(here / "kept") in messages
    record = json.loads(cnnfeat("cache", "info", "--folder", "kept", "--json")[1])[0]
    assert record["rows"] == 0


def test_search_without_a_cache_keeps_nothing(here, cnnfeat, monkeypatch):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(here / "home"))
    monkeypatch.setenv("TMPDIR", str(here / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (here / "temporary").mkdir()
    arguments = ["-m", "small.keras", "-l", "one", "two", "--cv", "2", "-o", "model.joblib"]
    expected = cnnfeat("search", "photos", *arguments, "--cache-folder", "kept")
    assert cnnfeat("search", "photos", *arguments, "--no-cache") == expected
    assert expected[0] == 0
    assert joblib.load("model.joblib")["cnn"].cache is None
    code, printed, messages = cnnfeat("predict", "model.joblib", "photos")
    assert (code, len(read_csv(printed))) == (0, 16), messages
    assert not (here / "home" / "features").exists()
    assert not list((here / "temporary").rglob("features.sqlite"))
    code, _, messages = cnnfeat(
        "search", "photos", *arguments, "--no-cache", "--cache-folder", "kept"
    )
    assert code == 2
    assert "exclude each other" in messages


@pytest.mark.parametrize("suffix", ["skops", "joblib"])
def test_a_file_does_not_choose_where_features_are_kept(suffix, here, cnnfeat, monkeypatch):
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(here / "home"))
    arguments = ["-m", "small.keras", "-l", "one", "--cv", "2", "-o", f"model.{suffix}"]
    assert cnnfeat("search", "photos", *arguments, "--cache-folder", "elsewhere")[0] == 0
    shutil.rmtree("elsewhere")
    photo = next(Path("photos").rglob("*.jpg"))
    expected = cnnfeat("predict", f"model.{suffix}", "photos")
    assert expected[0] == 0
    assert cnnfeat("why", f"model.{suffix}", str(photo), "-o", "why.svg")[0] == 0
    assert not Path("elsewhere").exists()
    assert not (here / "home" / "features").exists()
    asked = cnnfeat("predict", f"model.{suffix}", "photos", "--cache-folder", "kept")
    assert asked == expected
    assert Path("kept", "features.sqlite").exists()


def test_cache_tells_damage(here, cnnfeat):
    import sqlite3

    arguments = ["-m", "small.keras", "-l", "one", "--cv", "2", "--cache-folder", "kept"]
    assert cnnfeat("search", "photos", *arguments)[0] == 0
    with sqlite3.connect("kept/features.sqlite") as connection:
        connection.execute("UPDATE rows SET crc = crc + 1 WHERE id = 3")
    connection.close()
    code, printed, _ = cnnfeat("cache", "verify", "--folder", "kept")
    assert (code, printed) == (1, "sound,damaged_and_removed\n15,1\n")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "nowhere"], "nowhere"),
        (["search", "photos", "--C", "0"], "range"),
        (["search", "photos", "--cv", "1"], "range"),
        (["search", "--layers", "one", "photos"], "put PHOTOS first"),
        (["search", "photos", "-o", "model.txt"], "must end with .joblib"),
        (["search", "photos", "-o", "no/folder/model.joblib"], "no folder 'no/folder'"),
        (["search", "photos", "--plot", "plot.doc"], "must end with .png"),
        (["predict", "small.keras"], "Missing argument"),
        (["maps", "photos"], "is a directory"),
        (["filters", "vgg16", "-l", "x", "--filters", "few"], "how many (16)"),
        (["extract", "-o", "features.parquet"], "Name PHOTOS"),
        (["sarch", "photos"], "No such command 'sarch'"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, expected, here, cnnfeat):
    code, printed, messages = cnnfeat(*arguments)
    assert (code, printed) == (2, "")
    assert "Usage: cnnfeat" in messages
    assert expected in " ".join(messages.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "photos", "-m", "small.keras", "-l", "two", "--cv", "9"], "has 8"),
        (["search", "photos", "-m", "small.keras", "-l", "nothing"], "nothing"),
        (["search", "photos/china", "-m", "small.keras"], "one subfolder per class"),
        (["search", "single", "-m", "small.keras"], "one class, 'only'"),
        (["search", "empty"], "no subfolders"),
        (["search", "photos", "-m", "vgg61"], "'cnnfeat models' lists all names"),
        (["search", "photos", "-m", "small.keras", "--scoring", "beauty"], "beauty"),
        (["layers", "nothing.keras"], "there is no such file"),
        (["layers", "text.keras"], "text.keras"),
        (["predict", "text.joblib", "photos"], "no joblib file, or a damaged one"),
        (["predict", "cut.joblib", "photos"], "no joblib file, or a damaged one"),
        (["predict", "text.skops", "photos"], "no skops file, or a damaged one"),
        (["predict", "list.joblib", "photos"], "type list, not a fitted pipeline"),
        (["predict", "svm.joblib", "photos"], "CNNFeatureTransformer"),
        (["predict", "strange.skops", "photos"], "not known to be harmless"),
        (["predict", "trusting.skops", "photos"], "says trusted=True of the model file"),
        (["predict", "saved", "empty"], "no images in 'empty'"),
        (["predict", "saved", "nowhere.jpg"], "no file or folder 'nowhere.jpg'"),
        (["maps", "text.jpg", "-m", "small.keras", "-l", "one"], "text.jpg"),
        (["maps", "photo.jpg", "-m", "small.keras", "--channels", "99,", "-l", "one"], "99"),
        (["maps", "photo.jpg", "-m", "small.keras", "--channels", ""], "must be a number"),
        (["maps", "photo.jpg", "-m", "small.keras", "--cmap", "mud", "-l", "one"], "mud"),
        (["filters", "small.keras", "-l", "pool"], "no kernel"),
    ],
)
def test_errors_are_one_message_and_end_with_1(arguments, expected, saved, here, cnnfeat):
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    (here / "empty").mkdir()
    (here / "single" / "only").mkdir(parents=True)
    photo = next((here / "photos" / "china").iterdir())
    shutil.copy(photo, here / "single" / "only")
    shutil.copy(photo, here / "photo.jpg")
    for suffix in ("keras", "joblib", "skops", "jpg"):
        (here / f"text.{suffix}").write_text("not at all")
    (here / "cut.joblib").write_bytes(saved.read_bytes()[:1000])
    joblib.dump([1, 2], here / "list.joblib")
    joblib.dump(SVC().fit([[0], [1]], [0, 1]), here / "svm.joblib")
    skops.io.dump(make_pipeline(FunctionTransformer(os.getenv), SVC()), here / "strange.skops")
    trusting = joblib.load(saved)
    trusting[0].set_params(trusted=True)
    skops.io.dump(trusting, here / "trusting.skops")
    code, printed, messages = cnnfeat(*[saved if a == "saved" else a for a in arguments])
    assert (code, printed) == (1, "")
    assert_is_one_message(messages)
    assert expected in messages


def test_pipeline_of_another_version(saved, here, cnnfeat):
    pipeline = joblib.load(saved)
    del pipeline.named_steps["cnn"].resize
    joblib.dump(pipeline, "old.joblib")
    code, printed, messages = cnnfeat("predict", "old.joblib", "photos")
    assert (code, printed) == (1, "")
    assert_is_one_message(messages)
    assert "old.joblib was saved by another version" in messages


def test_weights_that_cannot_be_had(here, cnnfeat, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    code, printed, messages = cnnfeat("maps", next((here / "photos" / "china").iterdir()))
    assert (code, printed) == (1, "")
    assert "Traceback" not in messages
    assert "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5" in messages
    assert "--weights random" in messages


def test_debug_shows_where(here, cnnfeat):
    code, _, messages = cnnfeat("layers", "nothing.keras", "--debug")
    assert code == 1
    assert "Traceback" in messages
    assert "_parameters.py" in messages


def test_unexpected_error_asks_for_a_report(cnnfeat, monkeypatch):
    monkeypatch.setattr("sklearn_cnnfeat._cli.features.list_models", {}.__getitem__)
    code, _, messages = cnnfeat("models", "x")
    assert code == 1
    assert_is_one_message(messages)
    assert "KeyError: '*x*'" in messages
    assert "--debug, and report" in messages


def test_broken_pipe_is_quiet():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arguments in (["models"], ["--help"], ["models", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment, stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b""), arguments


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_told():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "models"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert_is_one_message(done.stderr)
    assert "No space left" in done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="looks into /proc")
@pytest.mark.parametrize("moment", ["imports", "network"])
@pytest.mark.sampled(1)
def test_interrupt_is_tidy(moment, tmp_path):
    for number, path in enumerate(save_photos(tmp_path / "all", 400)):
        (tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.move(path, tmp_path / "photos" / "ab"[number % 2])
    with subprocess.Popen(
        [
            *[*COMMAND, "search", "photos", "--model", "mobilenet", "--weights", "random"],
            *["--layers", "conv_pw_13_relu", "--progress", "-o", "model.joblib"],
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        messages = b""
        if moment == "imports":
            while "_multiarray_umath" not in Path(f"/proc/{running.pid}/maps").read_text():
                time.sleep(0.002)
        else:
            while b"image/s" not in messages:
                messages += os.read(running.stderr.fileno(), 1000)
        running.send_signal(signal.SIGINT)
        printed, rest = running.communicate(timeout=60)
    messages = (messages + rest).decode()
    assert running.returncode == 130, messages
    assert printed == b""
    assert messages.endswith("\ncnnfeat: interrupted\n")
    assert "Traceback" not in messages
    assert "cross-validation" not in messages
    assert not list(tmp_path.glob("*model*"))


def test_own_log_level_stays(monkeypatch, cnnfeat):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    assert cnnfeat("models")[0] == 0
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
