"""What the layout promises: heavy libraries have one room each, and imports form no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sklearn_cnnfeat

ROOT = Path(sklearn_cnnfeat.__file__).parent
MODULES = {
    ".".join(["sklearn_cnnfeat", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in ROOT.rglob("*.py")
}
# Library -> the modules that may import it, each inside a function.
ROOMS = {
    "keras": {"_network/_build.py", "_network/keras_models.py"},
    "tensorflow": {"_network/_build.py"},
    "openvino": {"_network/runtime.py"},
    "nncf": {"_network/quantize.py"},
    "matplotlib": {"_demo.py", "_inspection/_displays.py"},
    "PIL": {
        "_images/decode.py",
        "_images/formats.py",
        "_images/inputs.py",
        "_images/modes.py",
        "_images/orientation.py",
        "_images/resize.py",
        "_images/spec.py",
    },
    "pyarrow": {"_sinks.py"},
    "zarr": {"_sinks.py"},
    "h5py": {"_network/model_files.py"},
    "sqlite3": {"_cache.py", "_database.py"},
    "dask": {"_distributed.py"},
    "distributed": {"_distributed.py"},
    "fsspec": {"_images/urls.py"},
    "click": {"_cli.py", "_terminal.py"},
    "skops": {"_saving.py"},
}


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_each_library_is_imported_in_its_room_only(library):
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in MODULES.values()
        for name, _ in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if name.split(".")[0] == library
    }
    assert importers == ROOMS[library]


def test_imports_form_no_circle():
    graph = {
        module: {
            name
            for name, _ in _imports(ast.parse(path.read_text(encoding="utf-8")))
            if name in MODULES and name != module
        }
        for module, path in MODULES.items()
    }
    # The package itself, which only gathers the public names, stands above all.
    for dependencies in graph.values():
        dependencies.discard("sklearn_cnnfeat")
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)
