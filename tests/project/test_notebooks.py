"""The notebooks run from top to bottom without a network, as on Kaggle and Colab."""

import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from small_network import save_photos

from sklearn_cnnfeat._cli.packing import INSTALL_CELL
from sklearn_cnnfeat._network import keras_models

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
MOBILENET = "mobilenet_1_0_224_tf_no_top.h5"
# For each cell: one that hangs fails.
SECONDS = 180


def read(name):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    # Installing is for those who have not.
    notebook.cells = [
        cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])
    ]
    return notebook


def run(notebook, folder):
    """Run a notebook in a kernel of its own; return what it printed and its pictures."""
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    return printed, pictures


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """Return a function that makes a competition and a folder of weights among the inputs."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1]))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own
    (tmp_path / "working").mkdir()

    def make(photos_by_label, weights):
        inputs = tmp_path / "input"
        (inputs / "my-weights").mkdir(parents=True)
        shutil.copyfile(weights, inputs / "my-weights" / MOBILENET)
        monkeypatch.setenv("SKLEARN_CNNFEAT_WEIGHTS", str(inputs))
        if not photos_by_label:
            return None
        images = inputs / "ants-or-bees" / "images"
        images.mkdir(parents=True)
        rows = []
        for label, photos in photos_by_label.items():
            for i, photo in enumerate(photos):
                name = f"{label[0]}{i:04d}"
                shutil.copyfile(photo, images / f"{name}.jpg")
                if i == 3:  # of the test set
                    (images / f"{name}.jpg").write_bytes(b"a damaged file")
                # A quarter is to be told.
                rows.append((name, label, i % 4 == 3))
        table = pd.DataFrame(rows, columns=["id", "label", "test"])
        competition = images.parent
        table.loc[~table["test"], ["id", "label"]].to_csv(competition / "train.csv", index=False)
        table.loc[table["test"], ["id"]].to_csv(competition / "test.csv", index=False)
        return competition, table[table["test"]].set_index("id")["label"]

    return make


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """Return random weights of MobileNet in the format of published ones."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    keras = keras_models.import_keras()
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("weights") / MOBILENET
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(
            file, keras.applications.MobileNet(weights=None, include_top=False)
        )
    return path


def run_competition(competition, folder):
    notebook = read("kaggle_competition.ipynb")
    first = next(cell for cell in notebook.cells if "COMPETITION =" in cell.source)
    assert "/kaggle/input/ants-or-bees" in first.source
    first.source = first.source.replace("/kaggle/input/ants-or-bees", str(competition))
    printed, pictures = run(notebook, folder)
    assert "1 pass" in printed
    assert "SVC" in printed and "LogisticRegression" in printed
    assert len(pictures) == 2
    return printed, pd.read_csv(folder / "submission.csv").set_index("id")["label"]


@pytest.mark.slow
def test_competition(kaggle, random_weights, tmp_path):
    """From photographs that are everywhere and random weights to a submission."""
    paths = save_photos(tmp_path / "photos", 48)
    competition, truth = kaggle({"ant": paths[::2], "bee": paths[1::2]}, random_weights)
    _, submission = run_competition(competition, tmp_path / "working")
    assert list(submission.index) == list(truth.index)
    assert set(submission) <= {"ant", "bee"}


@pytest.mark.slow
def test_competition_on_photographs(kaggle, assets, tmp_path):
    photos = {name: sorted((assets / "photos" / f"{name}s").iterdir()) for name in ("ant", "bee")}
    weights = assets / "keras_home" / "models" / MOBILENET
    competition, truth = kaggle(photos, weights)
    printed, submission = run_competition(competition, tmp_path / "working")
    assert float(re.search(r"accuracy (\S+)", printed)[1]) > 0.85
    assert (submission == truth).mean() > 0.8


@pytest.mark.slow
def test_five_minutes(kaggle, random_weights, tmp_path):
    kaggle({}, random_weights)
    printed, pictures = run(read("five_minutes.ipynb"), tmp_path / "working")
    assert float(re.search(r"accuracy (\S+)", printed)[1]) > 0.8
    assert len(pictures) == 3
    submission = pd.read_csv(tmp_path / "working" / "submission.csv")
    assert len(submission) == 4 and submission["label"].notna().all()


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS.glob("*.ipynb")])
def test_notebooks_begin_with_the_installation(name):
    """The first cell is the one that `cnnfeat pack` writes; the last one writes a submission."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source + "\n" == INSTALL_CELL
    assert "install" in code[0].metadata["tags"]
    assert '.to_csv("submission.csv", index=False)' in code[-1].source


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS.glob("*.ipynb")])
def test_notebooks_are_kept_without_outputs(name):
    for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
