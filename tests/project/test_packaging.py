"""The archives hold what they must and no more, and importing the package is light."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
# What the archives of these tests are called.
VERSION = "7.8.9"
# What the tools for lowest versions take in the newest.
TOOLS = ("build", "check-wheel-contents", "ruff", "setuptools", "twine")
HEAVY = ["tensorflow", "keras", "openvino", "nncf", "matplotlib", "polars"]


def python(*arguments, cwd, **kwargs):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        **kwargs,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Return the source archive, and the wheel that was built from it, of a copy of the tree."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools_scm")
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("building without a download needs setuptools 77")
    tree = tmp_path_factory.mktemp("build") / "tree"
    # What earlier builds left behind must not get in; nor should this one leave anything.
    unwanted = shutil.ignore_patterns(".*_cache", ".git", ".venv*", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=unwanted)
    # As if this were the commit of a tag.
    environment = os.environ | {"SETUPTOOLS_SCM_PRETEND_VERSION": VERSION}
    python("-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=tree, env=environment)
    (source,) = (tree / "dist").glob("*.tar.gz")
    (wheel,) = (tree / "dist").glob("*.whl")
    return source, wheel


def modules():
    """Return the package's files, relative to the root of the tree."""
    # The stub too: the public names are read from it.
    patterns = ("*.py", "*.pyi", "*.txt", "*.html", "*.js", "*.css", "py.typed")
    paths = [path for pattern in patterns for path in ROOT.glob(f"sklearn_cnnfeat/**/{pattern}")]
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_wheel_holds_the_package_only(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == modules()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in information)


def test_wheel_metadata(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        metadata = message_from_string(wheel.read(name).decode())
    assert metadata["Name"] == "sklearn-cnnfeat"
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"plot", "polars", "test", "dev", "all"} <= set(metadata.get_all("Provides-Extra"))
    needed = {re.match(r"[\w.-]+", line)[0] for line in metadata.get_all("Requires-Dist")}
    assert {"numpy", "scikit-learn", "tensorflow", "keras", "pillow", "joblib"} <= needed


def test_source_archive_holds_tests_and_examples(archives):
    with tarfile.open(archives[0]) as source:
        members = source.getmembers()
    files = {
        str(PurePosixPath(*PurePosixPath(member.name).parts[1:])): member
        for member in members
        if member.isfile()
    }
    wanted = modules()
    for pattern in (
        "tests/**/*.py",
        "examples/*.py",
        "examples/notebooks/*",
        "docs/*.md",
        "tools/*.py",
        "conda/*",
    ):
        wanted |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    wanted |= {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"}
    wanted |= {"setup.cfg", "examples/README.txt", ".ci/run", ".pre-commit-config.yaml"}
    assert wanted <= set(files)
    assert files[".ci/run"].mode & 0o100, "no longer executable"
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]
    assert {member.uname for member in members} == {"root"}, "tells who built it"


def test_wheel_is_complete(archives, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import sklearn_cnnfeat as package; "
        "[getattr(package, name) for name in package.__all__]; "
        "package.list_models(); print(package.__file__)"
    )
    assert python("-c", code, cwd=tmp_path).startswith(str(site))


def test_import_is_light(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sklearn_cnnfeat; "
        "repr(sklearn_cnnfeat.CNNFeatureTransformer()); sklearn_cnnfeat.list_models(); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert python("-c", code, cwd=tmp_path).strip() == "[]"


def test_the_process_that_converts_imports_what_it_has_only(tmp_path):
    """Modules that are absent there, to save time and memory, are not needed by our own either."""
    from sklearn_cnnfeat._network.converter import _ABSENT, _SUPERFLUOUS

    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"sys.modules.update(dict.fromkeys({(*_ABSENT, *_SUPERFLUOUS)!r})); "
        "import sklearn_cnnfeat._network.conversion; print('ok')"
    )
    assert python("-c", code, cwd=tmp_path).strip() == "ok"


def test_version_is_that_of_the_installed_package(archives, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        "import sklearn_cnnfeat; print(sklearn_cnnfeat.__version__)"
    )
    assert python("-c", code, cwd=tmp_path).strip() == VERSION


def dependencies():
    """Return the requirement of each dependency without its marker, by name."""
    lines = [line.partition(";")[0].strip() for line in PROJECT["dependencies"]]
    return {re.match(r"[\w-]+", line)[0]: line for line in lines}


def test_the_list_without_tensorflow_is_that_of_the_package():
    text = (ROOT / "sklearn_cnnfeat" / "no-tensorflow.txt").read_text(encoding="utf-8")
    listed = [line for line in text.splitlines() if not line.startswith("#")]
    expected = [line for line in PROJECT["dependencies"] if not line.startswith("tensorflow")]
    assert listed == expected


def test_classifiers_and_requires_python_agree():
    versions = [
        line.rpartition(" ")[2]
        for line in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    ]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert SETTINGS["tool"]["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"
    minors = [int(version.partition(".")[2]) for version in versions]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_the_conda_recipe_needs_what_the_package_needs():
    recipe = pytest.importorskip("yaml").safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    run = {line.split(" ")[0]: line.replace(" ", "") for line in recipe["requirements"]["run"]}
    assert recipe["context"]["python_min"] == PROJECT["requires-python"].removeprefix(">=")
    # YAML reads a version or a digest of digits only as a number, unless it is quoted.
    values = [*recipe["context"].values(), recipe["source"]["sha256"]]
    assert all(isinstance(value, str) for value in values)
    assert re.fullmatch("[0-9a-f]{64}", recipe["source"]["sha256"])
    del run["python"]
    optional = {line.replace(" ", "") for line in recipe["requirements"]["run_constraints"]}
    assert {*run.values(), *optional} == set(dependencies().values())
    assert {line.partition(">=")[0] for line in optional} == {"ncnn", "tensorflow"}
    host = {line.replace(" ", "") for line in recipe["requirements"]["host"]}
    assert set(SETTINGS["build-system"]["requires"]) <= host
    assert recipe["build"]["python"]["entry_points"] == [
        f"{name} = {function}" for name, function in PROJECT["scripts"].items()
    ]


def test_addresses_of_the_repository_are_the_ones_of_the_package():
    """One constant: pages, notebooks and the recipe name the repository of `pyproject.toml`."""
    source, documentation = PROJECT["urls"]["Source"], PROJECT["urls"]["Documentation"]
    own = source.removeprefix("https://github.com/")
    pages = [ROOT / "README.md", ROOT / "CITATION.cff", ROOT / "conda" / "recipe.yaml"]
    pages += [*ROOT.glob("docs/*.md"), *ROOT.glob("examples/notebooks/*.ipynb")]
    # Notebooks, the README and the gallery have buttons that open a notebook.
    with_buttons = [*pages[-2:], ROOT / "README.md", ROOT / "examples" / "README.txt"]
    pages.append(with_buttons[-1])
    found = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for address in re.findall(
            r"(?:github\.com|colab\.\S+?/github|codecov\.io/gh)/([\w./-]+)", text
        ):
            if "cnnfeat" in address:
                found += 1
                assert re.match(rf"{re.escape(own)}(/|$)", address), (page.name, address)
        for address in re.findall(r"https://sklearn-cnnfeat\.\S*?(?=[/\s\")]|$)", text):
            assert address == documentation, (page.name, address)
        if page in with_buttons:
            assert f"colab.research.google.com/github/{own}/blob/main/examples/notebooks/" in text
            assert f"kernels/welcome?src={source}/blob/main/examples/notebooks/" in text
    assert found > 8
    assert all(address.startswith((source, documentation)) for address in PROJECT["urls"].values())


def test_every_night_tests_run_in_each_environment():
    """And coverage goes where the README's badge is from."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    entries = jobs["versions"]["strategy"]["matrix"]["include"]
    help_text = python("tools/versions.py", "--help", cwd=ROOT)
    assert {entry["which"] for entry in entries} == set(
        re.search(r"\{([\w,-]+)\}", help_text)[1].split(",")
    )
    lowest_python = PROJECT["requires-python"].removeprefix(">=")
    assert {"which": "lowest", "python": lowest_python} in entries
    newest = {entry["python"] for entry in entries if entry["which"] == "newest"}
    assert {f"Programming Language :: Python :: {version}" for version in newest} < set(
        PROJECT["classifiers"]
    )
    used = [step.get("uses", "") for step in jobs["everything"]["steps"]]
    assert any(name.startswith("codecov/") for name in used)


def test_the_lowest_versions_keep_their_extras():
    listed = python("tools/versions.py", "lowest", "--list", cwd=ROOT).split()
    assert all("==" in line or line.startswith(TOOLS) for line in listed)
    (dask,) = [line for line in listed if line.startswith("dask")]
    assert re.fullmatch(r"dask\[array,dataframe,distributed\]==\d[\d.]*", dask)
    assert f"numpy=={dependencies()['numpy'].partition('>=')[2]}" in listed


def test_version_is_written_nowhere_else():
    assert "version" in PROJECT["dynamic"]
    # What a copy of the tree without git is called.
    fallback = SETTINGS["tool"]["setuptools_scm"]["fallback_version"]
    for path in [*ROOT.glob("*.cfg"), *ROOT.glob("*.cff"), *ROOT.glob("sklearn_cnnfeat/**/*.py*")]:
        if path.suffix != ".pyc":
            assert fallback not in path.read_text(encoding="utf-8"), path


def test_archives_are_as_the_index_wants_them(archives):
    """What PyPI refuses shows here, not on the day of a release."""
    pytest.importorskip("twine")
    pytest.importorskip("check_wheel_contents")
    python("-m", "twine", "check", "--strict", *map(str, archives), cwd=ROOT)
    python("-m", "check_wheel_contents", str(archives[1]), cwd=ROOT)
