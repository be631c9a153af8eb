"""The command line: arguments -> public functions -> tables, files and exit codes.

All imports of weight happen inside the commands, so that help and completion come at once.
"""

import os
import re
import sys
import warnings
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from glob import glob
from tempfile import TemporaryDirectory

import click

import sklearn_cnnfeat
from sklearn_cnnfeat._csv import csv_writer
from sklearn_cnnfeat._home import programs_folder
from sklearn_cnnfeat._network.weights import find_all_weights
from sklearn_cnnfeat._network.zoo import find_architecture, list_models
from sklearn_cnnfeat._terminal import (
    PICTURE,
    Group,
    Many,
    OutputFile,
    completion_script,
    is_terminal,
    results,
    run,
    say,
    show,
    show_record,
    show_table,
    table_options,
)


def main(arguments=None):
    """Run ``cnnfeat`` and return its exit code."""
    return run(program, arguments)


# --- kinds of arguments ---------------------------------------------------------------------------


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
        """Return a name as it is, and an index as an integer."""
        return int(value) if re.fullmatch(r"-?\d+", str(value)) else value


class Numbers(click.ParamType):
    """A word, how many, or which: ``all``, ``16``, ``0,5,7``."""

    name = "numbers"

    def __init__(self, *words):
        self.words = words

    def convert(self, value, param, ctx):
        """Return the word, an integer, or a list of integers."""
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


POOLINGS = click.Choice(["avg", "max", "gem", "spp", "flatten"])

model_option = click.option(
    "-m",
    "--model",
    type=Network(),
    default="vgg16",
    show_default=True,
    help="A network that 'cnnfeat models' lists, or a .keras or .h5 file.",
)
layers_option = click.option(
    "-l",
    "--layer",
    "--layers",
    "layers",
    cls=Many,
    type=Layer(),
    default=["last"],
    metavar="LAYER",
    help="As 'cnnfeat layers MODEL' lists them, or indices, negative from the end.  [default: the "
    "last one before the classifier]",
)
weights_option = click.option(
    "--weights",
    default="imagenet",
    show_default=True,
    callback=_weights,
    metavar="imagenet|random|FILE",
    help="Of a network by name. ImageNet's are downloaded the first time.",
)
input_size_option = click.option(
    "--input-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Height and width that images are brought to.  [default: the network's own]",
)
cache_folder_option = click.option(
    "--cache-folder",
    "--folder",
    "cache_folder",
    type=click.Path(file_okay=False, resolve_path=True),
    metavar="FOLDER",
    help="Where features are kept.  [default: the user's cache folder]",
)
progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    help="Progress bars on the error stream.  [default: in a terminal]",
)


trusted_option = click.option(
    "--trusted",
    is_flag=True,
    help="Load a model file although it holds code: only if you would run a program from whoever "
    "made it.",
)


def picture_option(default):
    """Add where a picture goes."""
    return click.option(
        "-o",
        "--output",
        type=PICTURE,
        default=default,
        show_default=True,
        help="The picture to write: .png, .pdf, .svg, .jpg or .webp.",
    )


def network_options(function):
    """Add what says which network is used, and how images get into it."""
    for option in (  # the last one is listed first
        click.option(
            "--preprocessing",
            type=click.Choice(["auto", "caffe", "tf", "torch", "rescale", "none"]),
            default="auto",
            show_default=True,
            help="What pixels go through. 'auto' is right for networks by name; for a model file "
            "it is none.",
        ),
        click.option(
            "--resize",
            type=click.Choice(["stretch", "crop", "pad"]),
            default="stretch",
            show_default=True,
            help="What happens to images of another shape.",
        ),
        input_size_option,
        trusted_option,
        weights_option,
        model_option,
    ):
        function = option(function)
    return function


def _transformer(model, layer="last", pooling="avg", preprocessing="auto", **settings):
    from sklearn_cnnfeat import CNNFeatureTransformer

    return CNNFeatureTransformer(
        model,
        layer,
        pooling,
        preprocessing=None if preprocessing == "none" else preprocessing,
        random_state=0,  # where weights are random
        **settings,
    )


def _images(places):
    """Return the paths of all images in files and folders."""
    from sklearn_cnnfeat._images.folders import list_images

    if os.name == "nt":  # where shells leave *.jpg to the program
        places = [name for place in places for name in (sorted(glob(place)) or [place])]
    return list_images(places)


def _verbose(progress):
    """Return 1 where progress bars are to be shown."""
    return int(sys.stderr is not None and sys.stderr.isatty() if progress is None else progress)


def _records(frame):
    """Return the rows of a data frame as dictionaries, with None for what is missing."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _write_picture(display, output):
    display.figure_.savefig(output, dpi=120, bbox_inches="tight")
    say(f"wrote {output}")


# --- the program ----------------------------------------------------------------------------------


class _Program(Group):
    sections = (
        ("Sort photographs into classes", ("search", "predict", "why")),
        ("Get features", ("extract", "models", "layers")),
        ("Look inside a network", ("maps", "filters")),
    )
    rest = "Housekeeping"


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'cnnfeat COMMAND --help' explains a command, with an example.",
)
@click.version_option(sklearn_cnnfeat.__version__, prog_name="cnnfeat")
def program():
    """Turn photographs into features from any layer of any convolutional network, and classify
    them by these.

    \b
    The main job, for a folder of photographs with one sub-folder a class:
      cnnfeat search photos/ --model vgg16 -o model.joblib
      cnnfeat predict model.joblib new/*.jpg > predictions.csv
      cnnfeat why model.joblib new/1.jpg -o why.png
    """


# --- sorting photographs --------------------------------------------------------------------------


@program.command(short_help="Find the layer and the C that classify photographs best.")
@click.argument("photos", type=click.Path(exists=True, file_okay=False))
@network_options
@click.option(
    "-l",
    "--layer",
    "--layers",
    "layers",
    cls=Many,
    type=Layer(),
    metavar="LAYER",
    help="Layers to compare, as 'cnnfeat layers MODEL' lists them.  [default: the last one of each "
    "resolution, about six]",
)
@click.option(
    "-p",
    "--pooling",
    "poolings",
    cls=Many,
    type=POOLINGS,
    default=["avg"],
    help="How the maps of a layer become numbers. Several are compared.  [default: avg]",
)
@click.option(
    "--classifier",
    type=click.Choice(["svm", "linear-svm", "logreg"]),
    default="svm",
    show_default=True,
    help="What learns from the standardized features: an SVM with an RBF kernel, a linear one, or "
    "a logistic regression, which gives probabilities. 'cnnfeat why' is exact for the last two.",
)
@click.option(
    "-C",
    "--C",
    "costs",
    cls=Many,
    type=click.FloatRange(min=0, min_open=True),
    default=[0.1, 1, 10],
    metavar="NUMBER",
    help="The classifier's C: the larger, the closer it follows the photographs. Several are "
    "compared.  [default: 0.1 1 10]",
)
@click.option(
    "--cv",
    "folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    metavar="FOLDS",
    help="Folds of the cross-validation, stratified and shuffled.",
)
@click.option(
    "--scoring",
    default="accuracy",
    show_default=True,
    metavar="SCORE",
    help="One of scikit-learn's scores, such as balanced_accuracy or f1_macro.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffling.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Stop at a photograph that cannot be read, or leave it out.",
)
@cache_folder_option
@click.option(
    "--no-cache",
    is_flag=True,
    help="Keep no features: they go to a temporary folder, and the saved pipeline keeps none "
    "either.",
)
@click.option(
    "-j",
    "--jobs",
    type=int,
    metavar="N",
    help="Processes that fit classifiers; the network uses all cores anyway.  [default: 1]",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(".joblib", ".pkl", ".skops"),
    help="Keep the best pipeline, fitted on all photographs, as .joblib or .skops.",
)
@click.option("--plot", type=PICTURE, help="Draw the scores by layer: .png, .pdf, .svg, ...")
@table_options
@progress_option
def search(
    photos,
    layers,
    poolings,
    classifier,
    costs,
    folds,
    scoring,
    seed,
    on_error,
    cache_folder,
    no_cache,
    jobs,
    output,
    plot,
    style,
    progress,
    **network,
):
    """Find the layer and the C that classify a folder of photographs best.

    PHOTOS has one sub-folder a class; it comes first, since --layers, --pooling and --C take all
    values up to the next option. Each photograph goes through the network once, for all layers
    together; then a classifier is cross-validated on each. The table has one row a layer, at its
    best C, in the order of the network.

    Features of the photographs are kept in the user's cache, also later by 'cnnfeat predict' and
    'cnnfeat why' with the saved pipeline; --cache-folder names another place, --no-cache none.

    \b
    Examples:
      cnnfeat search photos/ -o model.joblib
      cnnfeat search photos/ --model vgg16 --layers block3_pool block4_pool block5_pool \\
          --C 0.1 1 10 --plot search.png -o model.joblib
    """
    from sklearn_cnnfeat import LayerScoreDisplay, layer_summary, load_image_folder
    from sklearn_cnnfeat._classify import chance, score_table, search_folder
    from sklearn_cnnfeat._saving import check_saving, save_pipeline
    from sklearn_cnnfeat._search import choose_layers

    if output is not None:
        check_saving(output)
    if no_cache and cache_folder:
        raise click.UsageError("--no-cache and --cache-folder exclude each other.")
    if no_cache:
        # Or each photograph would go through the network once a layer and fold.
        cache_folder = click.get_current_context().with_resource(
            TemporaryDirectory(prefix="cnnfeat-", ignore_cleanup_errors=True)
        )
    if jobs not in (None, 1):
        # What they would warn of has been told when the features were computed.
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    cnn = _transformer(
        cache=cache_folder or True, on_error="nan" if on_error == "skip" else "raise", **network
    )
    found = load_image_folder(photos)
    grid = search_folder(
        found,
        cnn,
        layers or choose_layers(layer_summary(cnn)),
        poolings=poolings,
        classifier=classifier,
        costs=costs,
        folds=folds,
        scoring=scoring,
        seed=seed,
        n_jobs=jobs,
        verbose=_verbose(progress),
    )
    rows = score_table(grid)
    show_table(rows, style)
    best = min(rows, key=lambda row: row["rank"])
    score, guess = chance(grid, found)
    say(
        f"best: {best['layer']}, {best['pooling']} pooling, C={best['C']:g}: {scoring} "
        f"{best[scoring]:.3f} +- {best['std']:.3f} over {folds} folds ({score:.3f} for always "
        f"saying {guess!r})"
    )
    if plot is not None:
        name = scoring.replace("_", " ").capitalize()
        _write_picture(LayerScoreDisplay.from_search(grid, score_name=name), plot)
    if output is None:
        say("-o model.joblib keeps the best pipeline, for 'cnnfeat predict'")
    else:
        if no_cache:
            grid.best_estimator_.set_params(cnn__cache=None)
        save_pipeline(grid.best_estimator_, output)
        say(f"wrote {output}; now: cnnfeat predict {output} IMAGES")


@program.command(short_help="Classify images with a saved pipeline.")
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Stop at an image that cannot be read, or leave it out.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, in place of CSV."
)
@progress_option
def predict(model, images, on_error, as_json, progress):
    """Classify images with a pipeline that 'cnnfeat search -o' or a program of yours has saved.

    IMAGES are files, or folders that are searched at any depth. What is printed is CSV: path,
    prediction, and probabilities of all classes, or the classifier's scores where it has no
    probabilities: the class with the largest score is predicted; of two classes there is one
    score, positive for the class in its name.

    A .joblib or .pkl file can run any code when it is loaded: load only files from sources that
    you trust. A .skops file runs none.

    \b
    Example:
      cnnfeat predict model.joblib new/*.jpg > predictions.csv
    """
    import json

    from sklearn_cnnfeat._classify import predict_images
    from sklearn_cnnfeat._saving import load_pipeline

    pipeline = load_pipeline(model)
    rows = predict_images(
        pipeline,
        _images(images),
        skip=on_error == "skip",
        warn=say,
        verbose=_verbose(progress) and not is_terminal(),  # rows would tear the bar apart
    )
    writer = csv_writer(show)
    for number, row in enumerate(rows):
        if as_json:
            show(json.dumps(row, default=str, ensure_ascii=False))
            continue
        if number == 0:
            writer.writerow(row)
        writer.writerow(row.values())


@program.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@picture_option("why.png")
@click.option(
    "--target",
    metavar="CLASS",
    help="The class that is explained.  [default: of two the one with positive scores, of more the "
    "predicted one]",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "exact", "occlusion"]),
    default="auto",
    show_default=True,
    help="'exact' adds up to the decision and needs a linear classifier; 'occlusion' covers "
    "patches of the picture and works with all.",
)
@click.option("--patch-size", type=click.IntRange(min=1), metavar="PIXELS", help="Of occlusion.")
def why(model, image, output, target, method, patch_size):
    """Draw which parts of a picture a saved pipeline decided by.

    Red parts speak for the class, blue ones against it.

    A .joblib or .pkl file can run any code when it is loaded: load only files from sources that
    you trust. A .skops file runs none.

    \b
    Example:
      cnnfeat search photos/ --classifier linear-svm -o model.joblib
      cnnfeat why model.joblib photo.jpg -o why.png
    """
    from sklearn_cnnfeat import DecisionMapDisplay
    from sklearn_cnnfeat._saving import load_pipeline

    pipeline = load_pipeline(model)
    classes = {str(name): name for name in getattr(pipeline, "classes_", ())}
    display = DecisionMapDisplay.from_estimator(
        pipeline,
        [image],
        target=classes.get(target, target),
        method=method,
        patch_size=patch_size,
    )
    decision = display.decision
    against = "" if decision.other is None else f" against {decision.other}"
    say(f"{decision.target}{against}: {decision.decision:+.3g} ({decision.method} map)")
    _write_picture(display, output)


# --- features -------------------------------------------------------------------------------------


@program.command()
@click.argument("photos", nargs=-1, type=click.Path())
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(),
    metavar="OUTPUT",
    help="The file to write: .parquet, .npy or .zarr.",
)
@network_options
@layers_option
@click.option(
    "-p",
    "--pooling",
    type=POOLINGS,
    default="avg",
    show_default=True,
    help="How the maps of a layer become numbers.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["parquet", "npy", "zarr"]),
    help="Of the file.  [default: by its suffix]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the numbers in the file.",
)
@click.option(
    "--files-from",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    metavar="FILE",
    help="Read the paths of images from a file, one a line; - is the standard input.",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip", "nan"]),
    default="raise",
    show_default=True,
    help="Stop at an image that cannot be read, leave it out, or write a row of NaN.",
)
@click.option(
    "--retry-errors",
    is_flag=True,
    help="Of a finished file, try the images again that could not be read.",
)
@click.option("--cache", is_flag=True, help="Look features up in the cache, and keep them there.")
@cache_folder_option
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default="float32",
    show_default=True,
    help="Of the network's arithmetic: lower is faster.",
)
@click.option(
    "--decode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="'fast' saves time on large JPEG files and changes features slightly.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "openvino", "keras"]),
    default="auto",
    show_default=True,
    help="What runs the network.",
)
@click.option("--part-size", type=click.IntRange(min=1), metavar="N", help="Images a part.")
@click.option("-j", "--jobs", type=int, metavar="N", help="Threads.  [default: all cores]")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Let the workers of a Dask cluster compute, such as tcp://node1:8786. They see the same "
    "folders.",
)
@progress_option
def extract(
    photos,
    output,
    layers,
    pooling,
    format_,
    dtype,
    files_from,
    on_error,
    retry_errors,
    cache,
    cache_folder,
    part_size,
    jobs,
    scheduler,
    progress,
    **network,
):
    """Write the features of any number of images to a file.

    PHOTOS are files, or folders that are searched at any depth. If PHOTOS is one folder and all
    images lie in sub-folders, the names of these are kept as labels. OUTPUT is a table for pandas,
    polars and others (.parquet), a NumPy array with a table beside it (.npy), or .zarr.

    Memory does not depend on how many images there are. After an interruption of any kind, the
    same command goes on where it was.

    \b
    Examples:
      cnnfeat extract photos/ -o features.parquet --model resnet50 --layer avg_pool
      find /data -name '*.jpg' | cnnfeat extract --files-from - -o features.npy --dtype float16
      cnnfeat extract /data/photos -o /data/features.zarr --scheduler tcp://node1:8786
    """
    if bool(photos) == (files_from is not None):
        raise click.UsageError("Name PHOTOS, or a file of their paths with --files-from.")
    from sklearn_cnnfeat import extract

    if files_from is not None:
        X = [line.rstrip("\r\n") for line in files_from if line.strip()]
    elif len(photos) == 1 and os.path.isdir(photos[0]):
        X = photos[0]
    else:
        X = _images(photos)
    cnn = _transformer(
        layer=layers[0] if len(layers) == 1 else list(layers),
        pooling=pooling,
        cache=cache_folder or cache or None,
        n_jobs=jobs,
        **network,
    )
    report = extract(
        X,
        output,
        cnn,
        format=format_,
        dtype=dtype,
        part_size=part_size,
        on_error=on_error,
        retry_errors=retry_errors,
        client=scheduler,
        verbose=_verbose(progress),
    )
    unreadable = f", {report.n_errors:,} could not be read" if report.n_errors else ""
    say(
        f"{output} has {report.n_features:,} features of {report.n_images:,} images "
        f"({report.n_computed:,} computed now{unreadable})"
    )


@program.command()
@click.argument("pattern", required=False)
@click.option("-l", "--long", is_flag=True, help="Show what is known of each.")
@table_options
def models(pattern, long, style):
    """List the networks that are known by name.

    PATTERN may hold * and ?; without any, it is looked for anywhere in the names.

    \b
    Examples:
      cnnfeat models
      cnnfeat models 'resnet*' --long
    """
    if pattern is not None and not any(letter in pattern for letter in "*?["):
        pattern = f"*{pattern}*"
    names = list_models(pattern)
    if not names:
        raise click.ClickException(
            f"No network is called {pattern!r}; 'cnnfeat models' lists all names."
        )
    if not long and style is None:
        show("\n".join(names))
        return
    rows, here = [], find_all_weights()
    for name in names:
        architecture = find_architecture(name)
        rows.append(
            {
                "model": name,
                "input_size": architecture.native_size,
                "layers": architecture.n_trunk,
                "preprocessing": architecture.preprocessing or "none",
                "weights": "here" if (name, False) in here else "to download",
            }
        )
    show_table(rows, style)


@program.command()
@click.argument("model", type=Network())
@click.argument("pattern", required=False)
@click.option(
    "--filters", is_flag=True, help="List kernels and their statistics instead; needs the weights."
)
@weights_option
@trusted_option
@input_size_option
@table_options
def layers(model, pattern, filters, weights, trusted, input_size, style):
    """List the layers of a network, as --layer takes them.

    MODEL is a name that 'cnnfeat models' lists, or a .keras or .h5 file. PATTERN may hold * and ?,
    and is looked for in the names and types of layers.

    \b
    Examples:
      cnnfeat layers vgg16
      cnnfeat layers resnet50 '*_out' --csv > layers.csv
    """
    from sklearn_cnnfeat import filter_summary, layer_summary

    cnn = _transformer(model, weights=weights, trusted=trusted, input_size=input_size)
    rows = _records((filter_summary if filters else layer_summary)(cnn))
    if pattern is not None:
        wanted = pattern.lower() if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
        rows = [
            row
            for row in rows
            if any(fnmatchcase(row[key].lower(), wanted.lower()) for key in ("path", "type"))
        ]
        if not rows:
            raise click.ClickException(f"No layer of {model} matches {pattern!r}.")
    show_table(rows, style)


# --- looking inside -------------------------------------------------------------------------------


@program.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@picture_option("maps.png")
@network_options
@layers_option
@click.option(
    "--channels",
    type=Numbers("all", "strongest"),
    help="all, strongest (the 64 with the largest values), how many (16), or which (0,5,7).  "
    "[default: the first 64]",
)
@click.option(
    "--combine",
    type=click.Choice(["sum", "mean", "max"]),
    help="Fuse the channels of a layer into one map.",
)
@click.option("--overlay", is_flag=True, help="Lay the fused map over the picture.")
@click.option(
    "--normalize",
    type=click.Choice(["channel", "shared"]),
    default="channel",
    show_default=True,
    help="Each channel on a scale of its own, or all on one.",
)
@click.option("--columns", type=click.IntRange(min=1), metavar="N", help="Maps side by side.")
@click.option("--cmap", default="viridis", show_default=True, help="A colour map of matplotlib.")
def maps(images, output, layers, channels, combine, overlay, normalize, columns, cmap, **network):
    """Draw what the layers of a network make of pictures.

    \b
    Examples:
      cnnfeat maps photo.jpg --model vgg16 --layer block1_conv2 -o maps.png
      cnnfeat maps photo.jpg --layers block1_pool block3_pool block5_pool --combine sum
      cnnfeat maps ants/*.jpg --layer block5_pool --combine mean --overlay
    """
    from sklearn_cnnfeat import FeatureMapDisplay

    display = FeatureMapDisplay.from_estimator(
        _transformer(**network),
        list(images),
        layer=list(layers),
        channels=channels,
        combine=combine or ("mean" if overlay else None),
        overlay=overlay,
        normalize=normalize,
        n_columns=columns,
        cmap=cmap,
    )
    _write_picture(display, output)


@program.command()
@click.argument("model", type=Network())
@click.option("-l", "--layer", type=Layer(), required=True, help="A layer with kernels.")
@picture_option("filters.png")
@weights_option
@trusted_option
@click.option(
    "--filters",
    type=Numbers("all"),
    help="all, how many (16), or which (0,5,7).  [default: 6; 64 where one is a single tile]",
)
@click.option(
    "--channels",
    type=Numbers("all"),
    help="Of each filter: all, how many, or which.  [default: the first 8]",
)
@click.option("--rgb", is_flag=True, help="In colours, for layers that see pictures.")
@click.option(
    "--normalize",
    type=click.Choice(["shared", "filter"]),
    default="shared",
    show_default=True,
    help="One scale for all filters, or one for each.",
)
def filters(model, layer, output, weights, trusted, filters, channels, rgb, normalize):
    """Draw the filters of a convolution.

    \b
    Example:
      cnnfeat filters vgg16 --layer block1_conv1 -o filters.png
    """
    from sklearn_cnnfeat import FilterDisplay

    display = FilterDisplay.from_estimator(
        _transformer(model, weights=weights, trusted=trusted),
        layer=layer,
        filters=filters,
        channels=channels,
        rgb=rgb,
        normalize=normalize,
    )
    _write_picture(display, output)


# --- housekeeping ---------------------------------------------------------------------------------


@program.group()
def cache():
    """Look after the features that are kept on disk."""


folder_option = click.option(
    "--folder",
    "--cache-folder",
    "folder",
    type=click.Path(exists=True, file_okay=False),
    help="Of the cache.  [default: the user's cache folder]",
)


def _open_cache(folder):
    from sklearn_cnnfeat import CacheWarning, FeatureCache

    # Elsewhere a cache that fails costs time only; here it is what was asked for.
    warnings.simplefilter("error", CacheWarning)
    return FeatureCache(folder)


@cache.command()
@folder_option
@table_options
def info(folder, style):
    """Tell how much the cache holds.

    \b
    Example:
      cnnfeat cache info
    """
    found = _open_cache(folder).info()
    record = {
        "folder": str(found.path),
        "rows": found.rows,
        "recipes": len(found.recipes),
        "bytes": found.bytes,
        "max_bytes": found.max_bytes,
        "oldest_use": found.oldest and found.oldest.isoformat(timespec="minutes"),
        "newest_use": found.newest and found.newest.isoformat(timespec="minutes"),
    }
    if folder is None:
        from sklearn_cnnfeat._network._programs import measure_programs

        record["networks"], record["network_bytes"] = measure_programs()
    show_record(record, style)


@cache.command()
@folder_option
@table_options
def verify(folder, style):
    """Check every row of the cache, and remove damaged ones.

    The exit code is 1 if there were any.

    \b
    Example:
      cnnfeat cache verify
    """
    report = _open_cache(folder).verify()
    show_record({"sound": report.rows, "damaged_and_removed": report.bad}, style)
    if report.bad:
        click.get_current_context().exit(1)


@cache.command()
@folder_option
@click.option("--networks", is_flag=True, help="Remove compiled networks as well.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def clear(folder, networks, yes):
    """Remove all features from the cache.

    They are computed again when they are needed.

    \b
    Example:
      cnnfeat cache clear --yes
    """
    from sklearn_cnnfeat._network._programs import measure_programs, remove_programs

    store = _open_cache(folder)
    found = store.info()
    question = f"Remove {found.rows:,} rows ({found.bytes / 1e6:,.1f} MB) from {found.path}"
    if networks:
        n_networks, n_bytes = measure_programs()
        question += (
            f", and {n_networks} networks ({n_bytes / 1e6:,.1f} MB) from {programs_folder()}"
        )
    if not yes:
        if not sys.stdin or not sys.stdin.isatty():
            raise click.UsageError(f"{question}? Nobody can be asked here: --yes says so.")
        if not click.confirm(f"{question}?", err=True):
            raise click.ClickException("Nothing was removed.")
    store.clear()
    removed = f"removed {found.rows:,} rows ({found.bytes / 1e6:,.1f} MB) from {found.path}"
    if networks:
        remove_programs()
        removed += f", and {n_networks} networks ({n_bytes / 1e6:,.1f} MB)"
    say(removed)


@program.group()
def weights():
    """Carry published weights to machines without internet."""


@weights.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORKS...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Where to. Files of earlier calls stay.",
)
@click.option(
    "--classifier",
    is_flag=True,
    help="Also the larger files that layers of the classifier need, such as fc1.",
)
@click.option(
    "--input-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Pack the weights for images of this height and width: MobileNets have some for several "
    "sizes.  [default: the network's own]",
)
@table_options
def pack(networks, output, classifier, input_size, style):
    """Make a folder of published weights, such as a Kaggle dataset.

    NETWORKS are names that 'cnnfeat models' lists. Files that this machine has are copied, others
    are downloaded. On Kaggle the folder is found by itself once it is attached; elsewhere
    SKLEARN_CNNFEAT_WEIGHTS names it.

    \b
    Example:
      cnnfeat weights pack vgg16 resnet50 -o my-weights
    """
    from sklearn_cnnfeat import pack_weights

    files = pack_weights(list(networks), output, classifier=classifier, input_size=input_size)
    show_table(_records(files[["model", "file", "n_bytes", "sha256"]]), style)
    say(f"wrote {output}")


@program.command(short_help="Check the installation; what a bug report needs.")
@cache_folder_option
def doctor(cache_folder):
    """Check whether this installation works, and print what a bug report needs.

    Versions, engines, precisions, folders, every row of the feature cache, published weights that
    are here, and one small network against Keras' own numbers. The exit code is 1 if a check has
    failed.

    \b
    Example:
      cnnfeat doctor
    """
    from sklearn_cnnfeat._doctor import doctor

    with redirect_stdout(results()):
        status = doctor(cache_folder)
    click.get_current_context().exit(status)


@program.command(short_help="See it at work, offline, in a minute.")
@click.argument("folder", default="demo_output", type=click.Path(file_okay=False))
def demo(folder):
    """See it at work: a search over the layers of a network, offline, in a minute.

    Pictures go to FOLDER, demo_output where it is not named.

    \b
    Example:
      cnnfeat demo
    """
    from sklearn_cnnfeat._demo import main

    with redirect_stdout(results()):
        main(folder)


@program.command(short_help="Print a script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell):
    """Print a script that completes commands, options and names of networks in a shell.

    \b
    Examples:
      cnnfeat completion bash >> ~/.bashrc
      cnnfeat completion zsh >> ~/.zshrc
      cnnfeat completion fish > ~/.config/fish/completions/cnnfeat.fish
    """
    show(completion_script(program, shell))
