"""What the pages say is run, and is true. (That the site looks right is tested where it is built.)

The blocks of a page run from top to bottom in one process, in a folder with a few photographs, with
random weights in the place of the published ones, and without a network.
"""

import doctest
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import benchmark_tables
import pytest
from small_network import save_photos

import sklearn_cnnfeat
from sklearn_cnnfeat._network import keras_models

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.M | re.S)
# Networks whose published weights the pages speak of.
NETWORKS = {
    "VGG16": "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "VGG19": "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "MobileNet": "mobilenet_1_0_224_tf_no_top.h5",
}
END = "--- end of block ---"


def text_of(page):
    return page.read_text(encoding="utf-8")


def python_blocks(page):
    """Return (code, expected output or None) of each block."""
    return [(m[2], m[3] or None) for m in BLOCK.finditer(text_of(page)) if m[1] == "python"]


# Run with every change; the others are slow.
SAMPLE = "getting_started.md"


def with_code(pages):
    return [
        pytest.param(page, id=page.name, marks=() if page.name == SAMPLE else (pytest.mark.slow,))
        for page in pages
        if python_blocks(page)
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a Keras home with random weights under the names of the published ones."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    keras = keras_models.import_keras()
    keras.utils.set_random_seed(0)
    home = tmp_path_factory.mktemp("keras")
    (home / "models").mkdir()
    for name, file in NETWORKS.items():
        model = getattr(keras.applications, name)(weights=None, include_top=False)
        with h5py.File(home / "models" / file, "w") as group:
            save_weights_to_hdf5_group(group, model)
    return home


@pytest.fixture
def folder(tmp_path):
    """Return a folder that holds ``photos/`` with two classes of eight."""
    paths = save_photos(tmp_path / "all", 16)
    for i, path in enumerate(paths):
        label = tmp_path / "photos" / ("ants" if i % 2 else "bees")
        label.mkdir(parents=True, exist_ok=True)
        Path(path).rename(label / f"{i:02d}.jpg")
    (tmp_path / "all").rmdir()
    return tmp_path


@pytest.mark.parametrize("page", with_code(PAGES))
@pytest.mark.slow
def test_code_runs_and_prints_what_the_page_says(page, weights, folder):
    blocks = python_blocks(page)
    code = "".join(f"{code}\nprint({END!r})\n" for code, _ in blocks)
    # Keras by hand would compare the file with the published one.
    vgg16 = str(weights / "models" / NETWORKS["VGG16"])
    code = code.replace('VGG16(weights="imagenet"', f"VGG16(weights={vgg16!r}")
    done = subprocess.run(
        # As in a notebook, which has no file that processes of a cluster would run again.
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "KERAS_HOME": str(weights),
            "SKLEARN_CNNFEAT_WEIGHTS": "",
            "PYTHONIOENCODING": "utf-8",
            # Whatever wants a download fails at once.
            "https_proxy": "http://127.0.0.1:9",
        },
        capture_output=True,
        encoding="utf-8",
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(END + "\n")
    assert len(printed) == len(blocks) + 1
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for (source, expected), got in zip(blocks, printed, strict=False):
        if expected is not None:
            assert checker.check_output(expected, got, flags), f"{source}\nprinted:\n{got}"


def test_blocks_are_found():
    # Each page of the guide has code, and a page whose fences are wrong would have none.
    guide = re.findall(r"^[a-z_]+$", text_of(DOCS / "guide.md"), re.M)
    assert len(guide) >= 10
    # Those of the command line are run with its tests.
    for name in set(guide) - {"promises", "command_line", "commands"}:
        assert python_blocks(DOCS / f"{name}.md"), name
    for page in PAGES:
        fences = re.findall(r"^```", text_of(page), re.M)
        assert len(fences) % 2 == 0, page.name


# --- what a newcomer looks for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "page", "code"),
    [
        ("last pooling layer, for an SVM", "getting_started", 'layer="block5_pool"'),
        ("dense layer of your own model", "own_models", 'layer="fc"'),
        ("Which layer is best", "layers", "layer_report("),
        ("Plotting feature maps", "seeing", "FeatureMapDisplay.from_estimator("),
        ("Without internet", "offline", "pack_weights("),
        ("million images", "scaling", "extract("),
    ],
)
def test_a_newcomer_finds_it_from_the_start_page(card, page, code):
    found = re.search(
        rf"^:::{{grid-item-card}} .*{card}.*\n:link: {page}$", text_of(DOCS / "index.md"), re.M
    )
    assert found, card
    assert any(code in block for block, _ in python_blocks(DOCS / f"{page}.md"))


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^   (\w+)$", text_of(DOCS / "api.rst"), re.M)
    assert sorted(listed) == sorted(sklearn_cnnfeat.__all__)


def test_the_link_in_the_html_repr_is_the_page_of_the_reference():
    link = sklearn_cnnfeat.CNNFeatureTransformer()._get_doc_link()
    assert link.endswith("/generated/sklearn_cnnfeat.CNNFeatureTransformer.html")
    assert ":toctree: generated/" in text_of(DOCS / "api.rst")


# --- links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in DOCS.glob("*.md")])
def test_links_lead_somewhere(page):
    text = text_of(page)
    documents = re.findall(r"{doc}`(?:[^`<]*<)?([^`>]+)>?`", text)
    documents += re.findall(r"^:link: (\w+)$", text, re.M)
    for contents in re.findall(r"```{toctree}\n(.*?)```", text, re.S):
        documents += re.findall(r"^[\w/]+$", contents, re.M)
    for document in documents:
        example = document.removeprefix("auto_examples/")
        if document == "auto_examples/index":
            continue
        sources = [ROOT / "examples" / f"{example}.py"] if example != document else []
        sources += [DOCS / f"{document}{suffix}" for suffix in (".md", ".rst")]
        assert any(source.exists() for source in sources), document
    for role, name in re.findall(r"{(func|class)}`~?sklearn_cnnfeat\.(\w+)`", text):
        assert (role == "class") == isinstance(getattr(sklearn_cnnfeat, name), type), name
    for image in re.findall(r"```{image} (\S+)", text):
        assert (DOCS / image).exists(), image
    for file in re.findall(r"`((?:examples|benchmarks|tests)/[\w/]+\.\w+)`", text):
        assert (ROOT / file).exists(), file


def test_commands_use_extras_that_exist():
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    named = set()
    for page in PAGES:
        for extras in re.findall(r"sklearn-cnnfeat\[([\w,]+)\]", text_of(page)):
            named |= set(extras.split(","))
    assert "plot" in named
    assert named <= set(project["optional-dependencies"])


# --- the page of figures ------------------------------------------------------------------------


def benchmarks_on_the_page():
    return re.findall(r"^```{benchmark} (\w+)$", text_of(DOCS / "benchmarks.md"), re.M)


def test_no_figure_is_typed_by_hand():
    prose = re.sub(r"^```.*?^```", "", text_of(DOCS / "benchmarks.md"), flags=re.M | re.S)
    assert not re.search(r"\d", prose)


def test_every_measurement_is_on_the_page():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert set(benchmarks_on_the_page()) <= scripts
    measured = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert measured <= set(benchmarks_on_the_page())


@pytest.mark.parametrize("name", benchmarks_on_the_page())
def test_measurements_become_tables(name):
    assert benchmark_tables.describe(name)[0]
    results = benchmark_tables.load(name)
    if results is None:  # the page says so
        return
    machine, _ = benchmark_tables.describe_machine(results["machine"])
    assert "cores" in machine or "cpu" in machine
    tables = benchmark_tables.tables_of(name, results)
    assert tables
    for _, header, rows in tables:
        assert rows
        assert {len(row) for row in rows} == {len(header)}


def test_tables_hold_the_numbers_of_the_file(tmp_path):
    (tmp_path / "results").mkdir()
    summary = {"median": 12.345, "low": 11.0, "high": 1234.5}
    content = {
        "machine": {"processor": "P", "cores": 2, "packages": {"keras": "3.15"}},
        "settings": {"rounds": 3},
        "photos": 120,
        "networks": {
            "vgg16": {"ours": {"rate": summary, "peak_mb": 700}, "loop": {"rate": 0.0019}}
        },
    }
    (tmp_path / "results" / "speed.json").write_text(json.dumps(content))
    results = benchmark_tables.load("speed", tmp_path)
    assert benchmark_tables.load("absent", tmp_path) is None
    assert benchmark_tables.describe_machine(results["machine"]) == (
        "processor: P, cores: 2",
        "keras 3.15",
    )
    assert benchmark_tables.tables_of("speed", results) == [
        ("all", ["photos"], [["120"]]),
        (
            "networks",
            ["", "", "rate", "peak MB"],
            [
                ["vgg16", "sklearn-cnnfeat", "12.3 (11.0 - 1,234)", "700"],
                ["vgg16", "predict, one image at a time", "0.0019", ""],
            ],
        ),
    ]
