"""``cnnfeat pack``: weights and the wheels that a target lacks, chosen by pip from a folder."""

import hashlib
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from sklearn_cnnfeat._cli import main, packing

ROOT = Path(__file__).resolve().parents[2]
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "dependencies"
]


def make_wheel(folder, name, version, needs=()):
    """Write a wheel without modules, as pip takes it."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "Requires-Python: >=3.11\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", wheel)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Give pip a folder for its index: what Kaggle holds, and newer versions of some."""
    folder = tmp_path / "index"
    folder.mkdir()
    installed = packing.find_target("kaggle").installed
    for name, version in installed.items():
        make_wheel(folder, name, version)
    make_wheel(folder, "numpy", "9.0")
    make_wheel(folder, "keras", "3.15.1", ["numpy"])
    make_wheel(folder, "openvino", "2026.4.1", ["numpy<3", "openvino-telemetry"])
    make_wheel(folder, "openvino-telemetry", "2025.2.0")
    make_wheel(folder, "colorama", "0.4.6")
    make_wheel(folder, "tqdm", "9.0", ['colorama; platform_system == "Windows"'])
    for line in DEPENDENCIES:  # of other parts of this package
        name, version = re.match(r"([\w-]+)>=([\w.]+)", line).groups()
        if name not in {*installed, "keras", "openvino"}:
            make_wheel(folder, name, version)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(
        packing,
        "_own_wheel",
        lambda folder: make_wheel(folder, "sklearn-cnnfeat", "1.2.3", DEPENDENCIES),
    )
    return folder


def names_of(folder):
    return {path.name.split("-")[0] for path in (folder / "wheels").iterdir()}


def test_pack_for_kaggle(index, tmp_path, imagenet_home, capfd):
    """Only what the image lacks goes along, in versions that leave the rest as it is."""
    folder = tmp_path / "my-dataset"
    code = main(["pack", str(folder), "--models", "mobilenet", "--target", "kaggle"])
    printed, messages = capfd.readouterr()
    assert code == 0, messages
    extra = names_of(folder) - {"keras", "openvino", "openvino_telemetry", "sklearn_cnnfeat"}
    assert not extra & {name.replace("-", "_") for name in packing.find_target("kaggle").installed}
    assert {"keras", "openvino", "openvino_telemetry", "sklearn_cnnfeat"} <= names_of(folder)
    assert (folder / "weights" / "mobilenet_1_0_224_tf_no_top.h5").exists()
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert len(printed.splitlines()) == 1 + len(
        [*folder.glob("wheels/*"), *folder.glob("weights/*")]
    )
    assert (folder / "install_cell.py").read_text() in (folder / "README.md").read_text()
    assert f"wrote {folder}" in messages


def test_packed_wheels_install_without_an_index(index, tmp_path, imagenet_home, monkeypatch):
    """On a machine with Kaggle's packages, the folder is all that pip needs."""
    target = packing.find_target("kaggle")
    packing.pack(tmp_path / "packed", ["mobilenet"], "kaggle")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packed" / "wheels"))
    there = tmp_path / "there"
    there.mkdir()
    for path in index.iterdir():
        name, version, *_ = path.name.split("-")
        if target.installed.get(name.replace("_", "-")) == version:
            shutil.copy(path, there)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{there} {tmp_path / 'packed' / 'wheels'}")
    packing._pip(
        *("install", "--dry-run", "--ignore-installed", *packing._tags(target)),
        *("--target", tmp_path / "nowhere", "sklearn-cnnfeat"),
    )


@pytest.mark.slow
def test_pack_again_leaves_no_old_wheels(index, tmp_path, imagenet_home):
    packing.pack(tmp_path / "packed", ["mobilenet"], "kaggle")
    make_wheel(tmp_path / "packed" / "wheels", "keras", "3.15.0")
    packing.pack(tmp_path / "packed", ["mobilenet"], "kaggle")
    assert not list((tmp_path / "packed" / "wheels").glob("keras-3.15.0*"))
    everything = packing.pack(tmp_path / "all", ["mobilenet"], "cp312-manylinux")
    assert any("tensorflow" in row["file"] for row in everything)


def test_pack_without_an_index_says_so(index, tmp_path, imagenet_home, capfd):
    shutil.rmtree(index)
    code = main(["pack", str(tmp_path / "packed"), "--models", "mobilenet", "--target", "kaggle"])
    messages = capfd.readouterr().err
    assert code == 1
    assert "run it where there is internet" in messages
    assert "Traceback" not in messages


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("target", "has_colorama", "has_tensorflow"),
    [("cp312-windows", True, True), ("cp314-manylinux", False, False)],
)
def test_requirements_are_those_of_the_target(
    target, has_colorama, has_tensorflow, index, tmp_path, imagenet_home
):
    """Not of the machine that packs, whose markers are the ones that pip looks at."""
    packing.pack(tmp_path / "packed", ["mobilenet"], target)
    names = names_of(tmp_path / "packed")
    assert {"keras", "tqdm", "numpy"} <= names
    assert ("colorama" in names) == has_colorama
    assert ("tensorflow" in names) == has_tensorflow


def test_a_python_that_the_package_does_not_run_on(index, tmp_path, imagenet_home, capfd):
    command = ["pack", str(tmp_path / "packed"), "--models", "mobilenet"]
    assert main([*command, "--target", "cp310-manylinux"]) == 1
    messages = capfd.readouterr().err
    assert "'cp310-manylinux' has Python 3.10; sklearn-cnnfeat needs >=3.11" in messages
    assert not (tmp_path / "packed").exists()


def test_a_package_without_wheels_for_the_target(index, tmp_path, imagenet_home, capfd):
    """Of what pip says, the errors are shown."""
    (index / "openvino-2026.4.1-py3-none-any.whl").rename(
        index / "openvino-2026.4.1-cp312-cp312-win_amd64.whl"
    )
    packing.pack(tmp_path / "windows", ["mobilenet"], "cp312-windows")
    assert "openvino" in names_of(tmp_path / "windows")
    command = ["pack", str(tmp_path / "packed"), "--models", "mobilenet"]
    assert main([*command, "--target", "cp312-macos"]) == 1
    messages = capfd.readouterr().err
    assert "No matching distribution found for openvino>=2026.0" in messages
    assert "has no wheel of that package for the target" in messages
    assert "WARNING" not in messages
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("other", ["README.md", "train.py"])
def test_files_of_others_are_not_replaced(other, tmp_path, capfd, monkeypatch):
    """Such as those of a project in the current folder."""
    (tmp_path / other).write_text("mine")
    (tmp_path / "wheels").mkdir()
    theirs = make_wheel(tmp_path / "wheels", "theirs", "1.0")
    monkeypatch.setattr(packing, "locate_weights", None)  # nothing is fetched for that
    monkeypatch.chdir(tmp_path)
    assert main(["pack", ".", "--models", "mobilenet", "--target", "kaggle"]) == 1
    messages = capfd.readouterr().err
    assert other in messages and "Name a new folder" in messages
    assert (tmp_path / other).read_text() == "mine" and theirs.exists()
    assert len(list(tmp_path.rglob("*"))) == 3


def test_what_kaggle_adds_to_a_packed_folder_stays(index, tmp_path, imagenet_home):
    folder = tmp_path / "packed"
    packing.pack(folder, ["mobilenet"], "kaggle")
    (folder / "dataset-metadata.json").write_text("{}")
    packing.pack(folder, ["mobilenet"], "kaggle")
    assert (folder / "dataset-metadata.json").read_text() == "{}"
    assert (folder / "SHA256SUMS").exists()


@pytest.mark.parametrize("target", ["azure", "cp312-beos", "cp2-manylinux"])
def test_unknown_target(target, tmp_path, capfd):
    code = main(["pack", str(tmp_path / "packed"), "--models", "vgg16", "--target", target])
    messages = capfd.readouterr().err
    assert code == 1
    assert target in messages and "kaggle" in messages and "cp312-manylinux" in messages
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("name", packing.image_names())
def test_lists_of_images_are_dated_and_complete(name):
    text = (Path(packing.__file__).parent / "targets" / f"{name}.txt").read_text()
    assert re.search(r"Python 3\.\d+, \w+ 20\d\d\.", text), "a list without its date"
    target = packing.find_target(name)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(target.installed) == len(lines) > 50


def test_install_cell_is_shell_and_python(tmp_path):
    """The cell chooses the attached dataset where there is one, in each of Kaggle's mounts."""
    assert packing.INSTALL_CELL in (ROOT / "docs" / "offline.md").read_text(encoding="utf-8")
    for mount in ("my-dataset", "datasets/somebody/my-dataset", "competitions/my-dataset"):
        inputs = tmp_path / mount.replace("/", "-") / "input"
        wheels = inputs / mount / "wheels"
        # Other datasets hold wheels too.
        for folder in (wheels, wheels.parents[1] / "another" / "wheels"):
            folder.mkdir(parents=True)
            make_wheel(folder, "keras", "3.15.1")
        make_wheel(wheels, "sklearn-cnnfeat", "1.2.3")
        code = packing.INSTALL_CELL.replace("/kaggle/input", str(inputs))
        code = re.sub(r"^!(.*)$", r'print(f"\1")', code, flags=re.M)
        done = subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [
            *("pip", "install", "--quiet", "--no-index", "--find-links", str(wheels)),
            "sklearn-cnnfeat",
        ]
