"""How Sphinx builds the site: ``python -m sphinx -W --keep-going docs docs/_build``.

The gallery runs the scripts of ``examples/`` with the photographs that ``CNNFEAT_EXAMPLE_PHOTOS``
names, or else with a small set that is downloaded once. The weights of MobileNet are downloaded
where they are not on this machine yet (``KERAS_HOME``). ``-D plot_gallery=0`` needs neither.
"""

import os
import re
import sys
import tomllib
import warnings
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]
# Also for the processes that examples start.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(DOCS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

from tempfile import TemporaryDirectory

from gallery_photos import put_photos

import sklearn_cnnfeat
from sklearn_cnnfeat._cli.options import Many
from sklearn_cnnfeat.exceptions import WeightsNotFoundError

warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")

# --- the project ------------------------------------------------------------------------------

project = "sklearn-cnnfeat"
author = "The sklearn-cnnfeat developers"
copyright = author
with open(DOCS.parent / "pyproject.toml", "rb") as file:
    ADDRESSES = tomllib.load(file)["project"]["urls"]
release = sklearn_cnnfeat.__version__
version = release.split("+")[0]

# --- what is read -----------------------------------------------------------------------------

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "benchmark_tables",
]
exclude_patterns = ["_build", "**/sg_execution_times.rst", "sg_execution_times.rst"]
templates_path = ["_templates"]
default_role = "literal"  # single backticks in docstrings
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes_action = "qe"  # dashes of options stay as they are typed
suppress_warnings = [
    # The gallery's settings hold functions.
    "config.cache",
]

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say more
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

if os.environ.get("READTHEDOCS"):
    # Links into other sites are looked up in these; a build without a network does without.
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }

# --- the gallery ------------------------------------------------------------------------------


class ByStory:
    """Sort examples from the first that a user wants to the last."""

    ORDER = (
        "plot_folder_to_svm.py",
        "plot_own_network.py",
        "plot_which_layer.py",
        "plot_layer_search.py",
        "plot_shapes_of_features.py",
        "plot_filters_and_maps.py",
        "plot_maps_layer_by_layer.py",
        "plot_transfer_learning_maps.py",
        "plot_vector_as_picture.py",
        "plot_decision_map.py",
        "plot_look_alikes.py",
        "plot_mixed_columns.py",
    )

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name):
        """Return the place of a script; new ones come last, by name."""
        place = self.ORDER.index(name) if name in self.ORDER else len(self.ORDER)
        return place, name

    def __repr__(self):
        return f"<{type(self).__name__}>"


def prepare_gallery(app, config):
    """Put photographs where scripts run, and weights where they are found."""
    if str(config.plot_gallery).lower() in ("0", "false"):
        # Pages show pictures of the gallery, which are not there then.
        config.suppress_warnings.append("image.not_readable")
        return
    try:
        put_photos(DOCS.parent / "examples" / "photos", os.environ.get("CNNFEAT_EXAMPLE_PHOTOS"))
        with TemporaryDirectory() as folder:  # Keras keeps what it downloads
            sklearn_cnnfeat.pack_weights("mobilenet", folder)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error  # Sphinx would bury an error in its own state
    except WeightsNotFoundError as error:
        raise SystemExit(
            "The gallery needs the published weights of MobileNet, which are not on this machine "
            "and cannot be downloaded: set KERAS_HOME or SKLEARN_CNNFEAT_WEIGHTS, or build with "
            "-D plot_gallery=0."
        ) from error


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"demo\.py|notebooks",
    "within_subsection_order": ByStory,
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_cnnfeat",),
    "show_signature": False,
    "remove_config_comments": True,
    "download_all_examples": False,
    "min_reported_time": 1000,
    "write_computation_times": False,
    "thumbnail_size": (400, 280),
    "nested_sections": False,
    "matplotlib_animations": False,
    "image_srcset": [],
}

# --- how it looks -----------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "sklearn-cnnfeat"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "github_url": ADDRESSES["Source"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_sidebars = {"index": []}


# --- docstrings that come from scikit-learn -----------------------------------------------------


def drop_references(app, what, name, obj, options, lines):
    """Write the text of links into scikit-learn's own guide without the links."""
    if str(getattr(obj, "__module__", "")).startswith("sklearn."):
        # A link to an example has no text but its address.
        text = re.sub(r":ref:`sphx_glr_[^`]*`", "scikit-learn's gallery", "\n".join(lines))
        text = re.sub(r":ref:`([^<`]+?)\s*(<[^`]*>)?`", r"\1", text)
        lines[:] = text.split("\n")


def drop_roles(app, page, template, context, doctree):
    """Write links as text in scikit-learn's picture of an estimator, which is HTML already."""
    if page.startswith("auto_examples/") and "sk-top-container" in context.get("body", ""):
        role = r":(?:ref|term|func|class|meth|mod|doc):`~?([^`&<]+?)\s*(?:&lt;[^`]*?&gt;)?`"
        body = re.sub(r":ref:`sphx_glr_[^`]*`", "scikit-learn's gallery", context["body"])
        context["body"] = re.sub(role, r"\1", body)


# --- help texts of the command line ---------------------------------------------------------------


def show_examples_as_code(app, ctx, lines):
    """Turn what click keeps as it is, the examples at the end of a help text, into code."""
    text = "\n".join(lines)
    text = re.sub(r"^\| (\S.*)$", r"\1\n\n.. code-block:: sh\n", text, flags=re.M)
    lines[:] = re.sub(r"^\|  ", "  ", text, flags=re.M).split("\n")


def write_options(app, ctx, lines):
    """Mark options of several values; leave out ``--debug``, which the page tells of once."""
    text = "\n".join(lines)
    if text.count(".. option::") > 1:
        text = re.sub(r"^\.\. option:: --debug\n\n.*\n+", "", text, flags=re.M)
    for option in ctx.command.params:
        if isinstance(option, Many):
            # As Sphinx names it, and as help does in capitals.
            name = option.metavar or option.name
            shown = (option.metavar or option.name.removesuffix("s")).upper()
            text = text.replace(f"{option.opts[-1]} <{name}>", f"{option.opts[-1]} <{shown}...>")
    # Addresses are no links here.
    lines[:] = re.sub(r"(?<!`)\btcp://[\w:.]*\w", r"``\g<0>``", text).split("\n")


def setup(app):
    """Register what is above with Sphinx."""
    app.connect("config-inited", prepare_gallery, priority=900)
    app.connect("autodoc-process-docstring", drop_references)
    app.connect("sphinx-click-process-description", show_examples_as_code)
    app.connect("sphinx-click-process-options", write_options)
    app.connect("html-page-context", drop_roles)
