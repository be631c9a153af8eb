"""Arguments and options that several commands share, and what is made of them."""

import os
import re
import sys
from glob import glob
from pathlib import Path

import click

from sklearn_cnnfeat._cli.output import say
from sklearn_cnnfeat._network.zoo import find_architecture, list_models

# --- kinds of arguments ---------------------------------------------------------------------------


class Many(click.Option):
    """An option that takes all values up to the next option: ``--layers a b c``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, multiple=True, **kwargs)

    def make_metavar(self, **context):  # click 8.1 gives none
        return f"{super().make_metavar(**context)}..."


class OutputFile(click.ParamType):
    """A file to be written: its suffix and its folder are looked at before the work starts."""

    name = "file"

    def __init__(self, *suffixes):
        self.suffixes = suffixes

    def convert(self, value, param, ctx):
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{value!r} must end with {' or '.join(self.suffixes)}.", param, ctx)
        if path.is_dir():
            self.fail(f"{value!r} is a folder.", param, ctx)
        if not path.parent.is_dir():
            self.fail(
                f"There is no folder {str(path.parent)!r} to write {path.name!r} to.", param, ctx
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            self.fail(f"{value!r} cannot be written: permission denied.", param, ctx)
        return path

    def shell_complete(self, ctx, param, incomplete):
        return click.Path().shell_complete(ctx, param, incomplete)


PICTURE = OutputFile(".png", ".pdf", ".svg", ".jpg", ".webp")


class Network(click.ParamType):
    """The name of a network, or the path of a model file."""

    name = "model"

    def convert(self, value, param, ctx):
        """Return a name as it is, and a path so that it holds in other folders too."""
        is_file = find_architecture(value) is None and os.path.isfile(value)
        return os.path.abspath(value) if is_file else value

    def shell_complete(self, ctx, param, incomplete):
        """Complete names of networks, and paths of files that begin with none."""
        names = [name for name in list_models() if name.startswith(incomplete.lower())]
        if not names:
            return click.Path().shell_complete(ctx, param, incomplete)
        return [click.shell_completion.CompletionItem(name) for name in names]


class Layer(click.ParamType):
    """The name of a layer, or its index."""

    name = "layer"

    def convert(self, value, param, ctx):
        return int(value) if re.fullmatch(r"-?\d+", str(value)) else value


class Numbers(click.ParamType):
    """A word, how many, or which: ``all``, ``16``, ``0,5,7``."""

    name = "numbers"

    def __init__(self, *words):
        self.words = words

    def convert(self, value, param, ctx):
        if value in self.words or not isinstance(value, str):
            return value
        try:
            numbers = [int(number) for number in value.split(",") if number]
        except ValueError:
            self.fail(
                f"{value!r} must say {', '.join([*self.words, 'how many (16)'])}, or which ones "
                "(0,5,7).",
                param,
                ctx,
            )
        return numbers if "," in value or not numbers else numbers[0]


def _weights(ctx, param, value):
    if value == "imagenet":
        return value
    return None if value == "random" else os.path.abspath(value)


POOLINGS = ["avg", "max", "gem", "spp", "flatten", "cls"]


def choice_option(*names, choices, help):
    """Add an option with one of some values, of which the first is the default."""
    return click.option(
        *names, type=click.Choice(choices), default=choices[0], show_default=True, help=help
    )


# --- options --------------------------------------------------------------------------------------

model_option = click.option(
    "-m",
    "--model",
    type=Network(),
    default="vgg16",
    show_default=True,
    help="A network that 'cnnfeat models' lists, a name of timm such as timm/resnet50.a1_in1k, or "
    "a .keras, .h5 or .onnx file.",
)
_layer_option = {
    "default": "last",
    "metavar": "LAYER",
    "help": "As 'cnnfeat layers MODEL' lists them, or an index, negative from the end.  [default: "
    "the last one before the classifier]",
}
layer_option = click.option("-l", "--layer", type=Layer(), **_layer_option)
layers_option = click.option(
    "-l",
    "--layer",
    "--layers",
    "layers",
    cls=Many,
    type=Layer(),
    **_layer_option | {"default": ["last"]},
)
weights_option = click.option(
    "--weights",
    default="imagenet",
    show_default=True,
    callback=_weights,
    metavar="imagenet|random|FILE",
    help="Weights of a network by name. ImageNet weights are downloaded the first time.",
)
input_size_option = click.option(
    "--input-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Height and width that images are resized to.  [default: the network's own]",
)
cache_folder_option = click.option(
    "--cache-folder",
    "--folder",
    "cache_folder",
    type=click.Path(file_okay=False, resolve_path=True),
    metavar="FOLDER",
    help="Folder of the feature cache.  [default: the user's cache folder]",
)
saved_cache_option = click.option(
    "--cache-folder",
    "cache_folder",
    type=click.Path(file_okay=False, resolve_path=True),
    metavar="FOLDER",
    help="Where features are looked up and kept.  [default: nowhere]",
)
progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    help="Progress bars on the error stream.  [default: in a terminal]",
)


saved_model_argument = click.argument("model", type=click.Path(exists=True, dir_okay=False))
folder_argument = click.argument("photos", type=click.Path(exists=True, file_okay=False))
on_error_option = choice_option(
    "--on-error",
    choices=["raise", "skip"],
    help="Stop at an image that cannot be read, or leave it out.",
)


trusted_option = click.option(
    "--trusted",
    is_flag=True,
    help="Load a file that contains custom code. Use only for files that you trust.",
)


def number_option(name, text, *others):
    """Add how many photographs are drawn."""
    return click.option(
        "-n",
        "--number",
        *others,
        name,
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        metavar="N",
        help=text,
    )


def picture_option(default):
    """Add where a picture goes."""
    return click.option(
        "-o",
        "--output",
        type=PICTURE,
        default=default,
        show_default=True,
        help="Picture to write: .png, .pdf, .svg, .jpg or .webp.",
    )


# The parameters of the transformer that `network_options` gives.
NETWORK_SETTINGS = ("model", "weights", "trusted", "input_size", "resize", "preprocessing")


_RESIZES = ["stretch", "crop", "pad", "auto"]
_resize_option = choice_option(
    "--resize", choices=_RESIZES, help="How images of another shape are resized."
)
_resizes_option = click.option(
    "--resize",
    "resizes",
    cls=Many,
    type=click.Choice(_RESIZES),
    default=["stretch"],
    help="What happens to images of another shape. Several are compared; 'crop' is often the best. "
    " [default: stretch]",
)


def network_options(function):
    """Add what says which network is used, and how images get into it."""
    return _with_network(function, _resize_option)


def searched_network_options(function):
    """Add the same where several ways to resize are compared, as ``resizes``."""
    return _with_network(function, _resizes_option)


def _with_network(function, resize_option):
    for option in (  # the last one is listed first
        choice_option(
            "--preprocessing",
            choices=["auto", "caffe", "tf", "torch", "rescale", "none"],
            help="Preprocessing of the pixels. 'auto' is right for networks by name; for a model "
            "file it is none.",
        ),
        resize_option,
        input_size_option,
        trusted_option,
        weights_option,
        model_option,
    ):
        function = option(function)
    return function


def table_options(function):
    """Add ``--csv`` and ``--json``; the command gets ``style``, for `show_table`."""
    for style, text in (("json", "as a JSON list of objects"), ("csv", "as CSV")):
        function = click.option(
            f"--{style}",
            "style",
            flag_value=style,
            default=None,
            show_default=False,
            help=f"Print {text}.  [default: columns in a terminal, CSV in a pipe]",
        )(function)
    return function


# --- what commands make of them -------------------------------------------------------------------


def transformer(model, layer="last", pooling="avg", preprocessing="auto", **settings):
    from sklearn_cnnfeat import CNNFeatureTransformer

    return CNNFeatureTransformer(
        model,
        layer,
        pooling,
        preprocessing=None if preprocessing == "none" else preprocessing,
        random_state=0,  # where weights are random
        **settings,
    )


def image_paths(places):
    """Return the paths of all images in files and folders."""
    from sklearn_cnnfeat._images.folders import list_images

    if os.name == "nt":  # where shells leave *.jpg to the program
        places = [name for place in places for name in (sorted(glob(place)) or [place])]
    return list_images(places)


def verbosity(progress):
    """Return 1 where progress bars are to be shown."""
    return int(sys.stderr is not None and sys.stderr.isatty() if progress is None else progress)


def records(frame):
    """Return the rows of a data frame as dictionaries, with None for what is missing."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def write_picture(display, output):
    display.figure_.savefig(output, dpi=120, bbox_inches="tight")
    say(f"wrote {output}")
