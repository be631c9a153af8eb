"""Few modules import each heavy library, and no imports are circular."""

import ast
import pickle
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sklearn_cnnfeat
from sklearn_cnnfeat import exceptions

ROOT = Path(sklearn_cnnfeat.__file__).parent
MODULES = {
    ".".join(["sklearn_cnnfeat", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in ROOT.rglob("*.py")
}
# Library -> the modules, or folders of modules, that may import it, each inside a function.
ROOMS = {
    "keras": {
        "_demo.py",  # a user's script
        "_network/keras_models.py",
        "_network/random_weights.py",
    },
    "tensorflow": {"_network/keras_tensorflow.py"},
    "openvino": {
        "_network/runtime.py",
        "_network/torch_conversion.py",
    },
    "torch": {
        "_network/engines/framework.py",
        "_network/torch_calls.py",
        "_network/torch_models.py",
    },
    "timm": {"_network/timm_models.py"},
    "huggingface_hub": {"_network/timm_models.py"},
    "nncf": {"_network/quantize.py"},
    "matplotlib": {"_inspection/drawing.py"},
    "ncnn": {"_network/engines/ncnn.py"},
    "PIL": {
        "_images/decode.py",
        "_images/formats.py",
        "_images/inputs.py",
        "_images/modes.py",
        "_images/orientation.py",
        "_images/pillow.py",
        "_images/resize.py",
        "_images/spec.py",
        "_images/strips.py",
        "_inspection/thumbnails.py",
    },
    "pyarrow": {"_extract/formats/parquet.py"},
    "zarr": {"_extract/formats/zarr.py"},
    "h5py": {"_network/hdf5_files.py", "_network/model_files.py"},
    "sqlite3": {"_cache/feature_cache.py", "_cache/database.py"},
    "dask": {"_dask.py"},
    "distributed": {"_dask.py"},
    "fsspec": {"_images/urls.py"},
    "click": {"_cli/"},
    "skops": {"_cli/saving.py"},
}


@cache
def _parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_each_library_is_imported_in_its_room_only(library):
    folders = {room for room in ROOMS[library] if room.endswith("/")}

    def room(path):
        name = path.relative_to(ROOT).as_posix()
        return next((folder for folder in folders if name.startswith(folder)), name)

    importers = {
        room(path)
        for path in MODULES.values()
        for name, _ in _imports(_parse(path))
        if name.split(".")[0] == library
    }
    assert importers == ROOMS[library]


def test_imports_form_no_circle():
    graph = {
        module: {name for name, _ in _imports(_parse(path)) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    # The package itself, which only gathers the public names, stands above all.
    for dependencies in graph.values():
        dependencies.discard("sklearn_cnnfeat")
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_public_errors_stand_in_one_module_that_imports_nothing():
    tree = ast.parse(MODULES["sklearn_cnnfeat.exceptions"].read_text(encoding="utf-8"))
    assert not list(_imports(tree))
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert defined == set(exceptions.__all__)


@pytest.mark.parametrize("name", exceptions.__all__)
def test_errors_survive_pickling(name):
    """On its way out of a worker process an error keeps its message and its attributes."""
    parts = ("photo.jpg", "it is empty") if name == "ImageError" else ("It is not affine.",)
    error = getattr(exceptions, name)(*parts)
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


def test_warnings_come_from_one_function():
    """It finds the user's line, which a fixed stacklevel misses inside of pipelines."""
    callers = {
        path.relative_to(ROOT).as_posix()
        for path in MODULES.values()
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("warnings.warn")
    }
    assert callers == {"_warn.py"}


# Private members of other libraries, each where there is no public way.
FOREIGN = {
    "_inspection/affine.py": {"_transformer_to_input_indices", "_max_components"},
    "_warn.py": {"_getframe"},
}
# The attributes of others that are set: by the ways of click, matplotlib and scikit-learn.
SET = {
    "_cache/database.py": {"text_factory"},
    "_cli/commands.py": {"group_class", "output", "debug", "message"},
    "_cli/pipelines.py": {"estimator", "scoring", "scorer_"},
    "_cli/running.py": {"showwarning"},
    "_inspection/feature_map_display.py": {"title"},
    "_inspection/question.py": {"decision_function_shape"},
    "_transformer.py": {
        *("two_d_array", "one_d_array", "string", "three_d_array", "preserves_dtype"),
    },
}


def _foreign_attributes(path):
    """Yield the attributes of a module that do not belong to `self` or `cls`."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if isinstance(owner, ast.Call) and ast.unparse(owner.func) == "super":
                continue
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                yield node


def _private_members_of_the_estimator():
    tree = _parse(MODULES["sklearn_cnnfeat._transformer"])
    methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    attributes = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    return {name for name in methods | attributes if name[0] == "_" and name[:2] != "__"}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"sklearn_cnnfeat._transformer"}))
def test_modules_keep_to_public_members(module):
    path = MODULES[module]
    name = path.relative_to(ROOT).as_posix()
    private = {node.attr for node in _foreign_attributes(path) if node.attr[0] == "_"}
    private = {attribute for attribute in private if attribute[:2] != "__"}
    assert not private & _private_members_of_the_estimator()
    if not name.startswith(("_network/", "_cache/")):
        assert private <= FOREIGN.get(name, set())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_set_attributes_of_their_own_objects_only(module):
    path = MODULES[module]
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("_network/"):
        return
    written = {
        node.attr
        for node in _foreign_attributes(path)
        if isinstance(node.ctx, (ast.Store, ast.Del))
    }
    assert written <= SET.get(name, set())


def _n_lines(node):
    """Count the lines of a function or a module without its docstrings."""
    n_lines = node.end_lineno - node.lineno + 1 if hasattr(node, "lineno") else 0
    parts = [node] if hasattr(node, "lineno") else ast.walk(node)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(part, clean=False) for part in parts if isinstance(part, kinds)]
    return n_lines - sum(len(text.splitlines()) for text in docstrings if text)


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module):
    source = MODULES[module].read_text(encoding="utf-8")
    tree = _parse(MODULES[module])
    assert len(source.splitlines()) + _n_lines(tree) <= 500
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert {function.name for function in functions if _n_lines(function) > 60} == set()


def test_the_picture_of_the_rooms_is_that_of_their_imports():
    sys.path.insert(0, str(ROOT.parent / "docs" / "_ext"))
    import module_graph

    drawn = module_graph.draw(module_graph.levels_of(module_graph.modules()))
    assert module_graph.PICTURE.read_text(encoding="utf-8") == drawn
