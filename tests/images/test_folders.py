import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image
from sklearn.utils import Bunch

from sklearn_cnnfeat._images.folders import load_image_folder, load_image_table


def make(folder, *names):
    """Write small images, and text where the name is not an image's."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tiff"):
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text("not an image")


def relative(photos, folder):
    return [Path(path).relative_to(folder).as_posix() for path in photos.data]


# --- load_image_folder ---------------------------------------------------------------------------


def test_one_folder_a_class(tmp_path):
    make(tmp_path, "bees/2.png", "bees/1.JPG", "ants/b/deep/3.jpeg", "ants/a.webp", "ants/c.gif")
    make(tmp_path, "ants/notes.txt", "ants/noextension", "top.png", "bees/Thumbs.db")
    make(tmp_path, "ants/.hidden.png", "ants/.git/x.png", ".cache/x.png", "ants/._a.jpg")
    photos = load_image_folder(tmp_path)
    assert isinstance(photos, Bunch)
    assert relative(photos, tmp_path) == [
        "ants/a.webp",
        "ants/b/deep/3.jpeg",
        "ants/c.gif",
        "bees/1.JPG",
        "bees/2.png",
    ]
    assert photos.data.dtype == object
    assert set(map(type, photos.data)) == {str}
    assert photos.target.tolist() == [0, 0, 0, 1, 1]
    assert photos.target.dtype.kind == "i"
    assert photos.target_names == ["ants", "bees"]
    assert photos.DESCR == f"5 images of 2 classes from {str(tmp_path)!r}."
    again = load_image_folder(str(tmp_path) + os.sep)
    assert [Path(path) for path in again.data] == [Path(path) for path in photos.data]


def test_relative_folder_gives_relative_paths(tmp_path, monkeypatch):
    make(tmp_path, "photos/ants/1.png", "photos/bees/2.png")
    monkeypatch.chdir(tmp_path)
    photos = load_image_folder("photos")
    assert photos.data.tolist() == [
        os.path.join("photos", "ants", "1.png"),
        os.path.join("photos", "bees", "2.png"),
    ]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    names = [f"{letter}/{number}.png" for letter in "zAa10é" for number in (10, 9, 1)]
    make(tmp_path, *names)
    expected = load_image_folder(tmp_path)
    assert relative(expected, tmp_path) == sorted(names)
    scandir = os.scandir

    class Reversed:
        def __init__(self, *args):
            with scandir(*args) as entries:
                self.entries = iter(list(entries)[::-1])

        def __iter__(self):
            return self.entries

        def __next__(self):
            return next(self.entries)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        close = __exit__

    monkeypatch.setattr(os, "scandir", Reversed)
    assert load_image_folder(tmp_path).data.tolist() == expected.data.tolist()


@pytest.mark.parametrize("extensions", [".png", (".png",), [".PNG"], {".png"}])
def test_extensions(tmp_path, extensions):
    make(tmp_path, "ants/1.png", "ants/2.jpg", "ants/3.PNG")
    photos = load_image_folder(tmp_path, extensions=extensions)
    assert relative(photos, tmp_path) == ["ants/1.png", "ants/3.PNG"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_are_followed_but_not_in_circles(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    make(photos, "ants/1.png", "ants/sub/2.png", "bees/3.png")
    make(elsewhere, "4.png", "deep/5.png")
    for link, target in [
        ("ants/sub/up", photos / "ants"),
        ("ants/root", photos),
        ("ants/self", photos / "ants" / "self"),
        ("ants/twice", photos / "ants" / "sub"),
        ("bees/more", elsewhere),
        ("bees/broken", tmp_path / "nowhere"),
        ("wasps", elsewhere),
    ]:
        (photos / link).symlink_to(target, target_is_directory=True)
    (elsewhere / "back").symlink_to(photos / "bees", target_is_directory=True)
    (photos / "bees" / "file.png").symlink_to(elsewhere / "4.png")
    found = load_image_folder(photos)
    by_class = {
        name: [
            path
            for path, label in zip(relative(found, photos), found.target, strict=True)
            if found.target_names[label] == name
        ]
        for name in found.target_names
    }
    assert by_class["ants"] == ["ants/1.png", "ants/sub/2.png"]
    assert by_class["bees"][:4] == [
        "bees/3.png",
        "bees/file.png",
        "bees/more/4.png",
        "bees/more/deep/5.png",
    ]
    assert "wasps/4.png" in by_class["wasps"]
    assert len(found.data) == len(set(found.data))


def test_hidden_class_folders_are_no_classes(tmp_path):
    make(tmp_path, "ants/1.png", ".ipynb_checkpoints/ants.png")
    assert load_image_folder(tmp_path).target_names == ["ants"]


def test_a_class_without_images_is_skipped_with_a_warning(tmp_path):
    make(tmp_path, "ants/1.png", "bees/readme.txt", "cows/2.png")
    (tmp_path / "dogs").mkdir()
    with pytest.warns(UserWarning, match=r"2 of the 4 subfolders.*classes: 'bees', 'dogs'\."):
        photos = load_image_folder(tmp_path)
    assert photos.target_names == ["ants", "cows"]
    assert photos.target.tolist() == [0, 1]


def test_errors_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder 'nowhere'\. Relative paths start at"):
        load_image_folder("nowhere")
    make(tmp_path, "file.txt")
    with pytest.raises(NotADirectoryError, match=r"'file\.txt' is a file"):
        load_image_folder("file.txt")
    os.mkdir("empty")
    with pytest.raises(ValueError, match=r"'empty' must hold one subfolder per class.*no subfold"):
        load_image_folder("empty")
    make(tmp_path, *[f"flat/{i}.png" for i in range(7)], "flat/.hidden/x.png")
    with pytest.raises(ValueError, match=r"7 images lie directly in it \('0\.png', .*'4\.png', \."):
        load_image_folder("flat")
    make(tmp_path, "texts/ants/1.txt")
    with pytest.raises(ValueError, match=r"subfolders of 'texts' \('ants'\) hold no images"):
        load_image_folder("texts")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_no_empty_class(tmp_path):
    make(tmp_path, "ants/1.png", "ants/secret/2.png")
    os.chmod(tmp_path / "ants" / "secret", 0)
    try:
        with pytest.raises(PermissionError):
            load_image_folder(tmp_path)
    finally:
        os.chmod(tmp_path / "ants" / "secret", 0o700)


def test_nothing_is_opened(tmp_path):
    (tmp_path / "ants").mkdir()
    (tmp_path / "ants" / "broken.jpg").write_text("no image at all")
    assert relative(load_image_folder(tmp_path), tmp_path) == ["ants/broken.jpg"]


def test_a_fresh_process_finds_the_same(tmp_path):
    make(tmp_path, *[f"{name}/{i}.png" for name in ("c", "a", "b") for i in range(5)])
    code = (
        "from sklearn_cnnfeat._images.folders import load_image_folder;"
        f"print(*load_image_folder({str(tmp_path)!r}).data, sep='\\n')"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
    ).stdout
    assert output.split() == load_image_folder(tmp_path).data.tolist()


# --- load_image_table ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    make(tmp_path, "train/00012.jpg", "train/7.jpg", "train/x.jpg")
    return tmp_path


ROWS = {"id": ["7", "00012", "x"], "breed": ["pug", "NA", "pug"]}


@pytest.mark.parametrize("kind", ["pandas", "polars", "csv", "csv path"])
def test_tables(folder, kind):
    table = pd.DataFrame(ROWS)
    if kind == "polars":
        table = pl.DataFrame(ROWS)
    elif kind.startswith("csv"):
        table.to_csv(folder / "labels.csv", index=False)
        table = folder / "labels.csv" if kind == "csv path" else str(folder / "labels.csv")
    photos = load_image_table(
        table, path="id", target="breed", folder=folder / "train", extension=".jpg"
    )
    assert relative(photos, folder) == ["train/7.jpg", "train/00012.jpg", "train/x.jpg"]
    assert photos.data.dtype == object
    assert set(map(type, photos.data)) == {str}
    assert photos.target_names == ["NA", "pug"]
    assert photos.target.tolist() == [1, 0, 1]
    assert "3 images of 2 classes from" in photos.DESCR


def test_paths_start_at_the_csv_file(folder, monkeypatch):
    (folder / "labels.csv").write_text("file,class\ntrain/7.jpg,3\ntrain/x.jpg,1\n")
    photos = load_image_table(folder / "labels.csv", path="file", target="class")
    assert relative(photos, folder) == ["train/7.jpg", "train/x.jpg"]
    assert photos.target_names == [1, 3]
    assert photos.target.tolist() == [1, 0]
    monkeypatch.chdir(folder)
    frame = pd.DataFrame({"file": ["train/7.jpg"], "class": [True]})
    photos = load_image_table(frame, path="file", target="class")
    assert photos.data.tolist() == ["train/7.jpg"] or os.name == "nt"
    assert photos.target_names == [True]


def test_absolute_paths_and_numbers_as_names(folder):
    frame = pd.DataFrame({"file": [str(folder / "train" / "x.jpg")], "class": ["a"]})
    photos = load_image_table(frame, path="file", target="class", folder="/nowhere")
    assert relative(photos, folder) == ["train/x.jpg"]
    frame = pd.DataFrame({"file": [7], "class": ["a"]})
    photos = load_image_table(
        frame, path="file", target="class", folder=folder / "train", extension=".jpg"
    )
    assert relative(photos, folder) == ["train/7.jpg"]


def test_errors_of_tables(folder):
    frame = pd.DataFrame(ROWS)
    with pytest.raises(ValueError, match=r"the table has no column 'name'.*: 'id', 'breed'\."):
        load_image_table(frame, path="name", target="breed")
    with pytest.raises(ValueError, match=r"the table has no column 'y'"):
        load_image_table(frame, path="id", target="y")
    with pytest.raises(ValueError, match="the table has no rows"):
        load_image_table(frame[:0], path="id", target="breed")
    with pytest.raises(ValueError, match=r"1 of the 3 rows of the table have no 'id': rows 1\."):
        load_image_table(frame.assign(id=["7", None, "x"]), path="id", target="breed")
    (folder / "labels.csv").write_text("id,breed\n7,pug\nx,\n")
    with pytest.raises(ValueError, match=r"1 of the 2 rows of .*labels\.csv' have no 'breed'"):
        load_image_table(folder / "labels.csv", path="id", target="breed")
    with pytest.raises(ValueError, match=r"labels\.csv' has no column 'name'"):
        load_image_table(folder / "labels.csv", path="name", target="breed")
    with pytest.raises(FileNotFoundError, match=r"3 of the 3 files in column 'id'.*Pass folder="):
        load_image_table(frame, path="id", target="breed", folder=folder)
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 files.*: '.*lost\.jpg'\."):
        load_image_table(
            pd.DataFrame({"id": ["7", "lost"], "breed": [0, 1]}),
            path="id",
            target="breed",
            folder=folder / "train",
            extension=".jpg",
        )
    with pytest.raises(FileNotFoundError):
        load_image_table(folder / "nowhere.csv", path="id", target="breed")


def test_targets_index_target_names(folder):
    frame = pd.DataFrame({"id": ["7", "x", "00012"] * 5, "breed": list("cab") * 5})
    for labels in (frame["breed"], frame["breed"].astype("category"), frame["breed"].map(ord)):
        photos = load_image_table(
            frame.assign(breed=labels),
            path="id",
            target="breed",
            folder=folder / "train",
            extension=".jpg",
        )
        assert np.array(photos.target_names)[photos.target].tolist() == labels.tolist()
