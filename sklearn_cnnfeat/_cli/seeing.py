"""Look at many photographs: ``embedding``, ``gallery``, ``examples``, ``explore``."""

import os

import click

from sklearn_cnnfeat._cli.commands import command
from sklearn_cnnfeat._cli.options import (
    Layer,
    Many,
    OutputFile,
    choice_option,
    folder_argument,
    image_paths,
    layer_option,
    network_options,
    number_option,
    on_error_option,
    picture_option,
    progress_option,
    saved_cache_option,
    saved_model_argument,
    transformer,
    verbosity,
    write_picture,
)
from sklearn_cnnfeat._cli.output import say

_method_option = choice_option(
    "--method",
    choices=["pca", "tsne"],
    help="How features become a map: the two directions in which they vary most, or t-SNE.",
)


def _photos(folder, needs_classes=False):
    """Return paths and classes of a folder: one subfolder per class, or photographs alone."""
    from sklearn_cnnfeat import load_image_folder

    has_classes = any(entry.is_dir() for entry in os.scandir(folder))
    if needs_classes and not has_classes:
        raise click.UsageError(f"{folder} needs one subfolder per class: the true classes.")
    if not has_classes:
        return image_paths([folder]), None
    found = load_image_folder(folder)
    return found.data, [found.target_names[label] for label in found.target]


def _load(model, on_error, progress, cache_folder=None):
    """Return a saved pipeline whose network leaves out images and shows progress as asked."""
    from sklearn_cnnfeat._cli.saving import load_pipeline
    from sklearn_cnnfeat._steps import as_transformer

    pipeline = load_pipeline(model, cache_folder)
    as_transformer(pipeline).set_params(
        on_error="nan" if on_error == "skip" else "raise", verbose=verbosity(progress)
    )
    return pipeline


@command(short_help="Draw a map of photographs: like beside like.")
@saved_model_argument
@folder_argument
@picture_option("embedding.png")
@_method_option
@on_error_option
@saved_cache_option
@progress_option
def embedding(model, photos, output, method, on_error, cache_folder, progress):
    """Draw a map of a folder of photographs by the features that a saved pipeline uses.

    Photographs lie beside those that look alike to the network; where PHOTOS has one subfolder
    per class, frames show the classes, and mistakes are marked.

    A .joblib or .pkl file can run any code when it is loaded: load only files from sources that
    you trust. A .skops file runs none.

    \b
    Example:
      cnnfeat embedding model.joblib photos/ -o embedding.png
    """
    from sklearn_cnnfeat import EmbeddingDisplay

    paths, labels = _photos(photos)
    pipeline = _load(model, on_error, progress, cache_folder)
    display = EmbeddingDisplay.from_estimator(pipeline, paths, labels, method=method)
    write_picture(display, output)


@command(short_help="Draw the worst or least certain predictions.")
@saved_model_argument
@folder_argument
@picture_option("gallery.png")
@choice_option(
    "--which",
    choices=["worst", "least_certain", "best"],
    help="The most certain mistakes, the least certain ones, or the most certain right ones.",
)
@number_option("n_photos", "Photographs to draw.")
@click.option(
    "--cv",
    type=click.IntRange(min=2),
    metavar="FOLDS",
    help="Refit for each fold, so that no photograph is judged by a classifier that has learned "
    "from it.",
)
@on_error_option
@saved_cache_option
@progress_option
def gallery(model, photos, output, which, n_photos, cv, on_error, cache_folder, progress):
    """Draw photographs with what a saved pipeline predicts for them, and why.

    PHOTOS has one subfolder per class: the true ones.

    A .joblib or .pkl file can run any code when it is loaded: load only files from sources that
    you trust. A .skops file runs none.

    \b
    Examples:
      cnnfeat gallery model.joblib photos/ --cv 5 -o worst.png
      cnnfeat gallery model.joblib new/ --which least_certain
    """
    from sklearn_cnnfeat import PredictionGalleryDisplay

    paths, labels = _photos(photos, needs_classes=True)
    pipeline = _load(model, on_error, progress, cache_folder)
    display = PredictionGalleryDisplay.from_estimator(
        pipeline, paths, labels, which=which, n_photos=n_photos, cv=cv
    )
    write_picture(display, output)


@command(short_help="Draw the photographs that excite a channel most.")
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@picture_option("examples.png")
@network_options
@layer_option
@click.option(
    "-c",
    "--channel",
    "--channels",
    "channels",
    cls=Many,
    type=int,
    default=[0],
    metavar="N",
    help="The channels; each has a line.  [default: 0]",
)
@number_option("n_examples", "Photographs for each channel.", "--examples")
@progress_option
def examples(images, output, layer, channels, n_examples, progress, **network):
    """Draw the parts of photographs that excite the channels of a layer most.

    IMAGES are files, or folders that are searched at any depth.

    \b
    Example:
      cnnfeat examples photos/ --model mobilenet --layer conv_pw_5_relu --channels 3 7
    """
    from sklearn_cnnfeat import ChannelExamplesDisplay

    display = ChannelExamplesDisplay.from_estimator(
        transformer(verbose=verbosity(progress), **network),
        image_paths(images),
        list(channels),
        layer,
        n_examples=n_examples,
    )
    write_picture(display, output)


@command(short_help="Write a page to look around in photographs.")
@saved_model_argument
@folder_argument
@click.option(
    "-o",
    "--output",
    type=OutputFile(".html"),
    default="page.html",
    show_default=True,
    help="The page to write.",
)
@click.option(
    "--layers",
    cls=Many,
    type=Layer(),
    metavar="LAYER",
    help="Layers whose maps the page shows.  [default: those of the pipeline]",
)
@_method_option
@click.option(
    "--details",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="The N least certain photographs have the maps of all channels.",
)
@on_error_option
@progress_option
def explore(model, photos, output, layers, method, details, on_error, progress):
    """Write one HTML file to look around in a folder of photographs with a saved pipeline.

    It holds a map of all photographs to zoom and select in, and for each what is predicted, where
    the decision came from, its neighbors and its feature maps. It needs no server and no internet.
    The photographs are part of it, in small: think of that before passing it on.

    A .joblib or .pkl file can run any code when it is loaded: load only files from sources that
    you trust. A .skops file runs none.

    \b
    Example:
      cnnfeat explore model.joblib photos/ -o page.html
    """
    from sklearn_cnnfeat import explore as write

    paths, labels = _photos(photos)
    page = write(
        _load(model, on_error, progress),
        paths,
        labels,
        to=output,
        layers=list(layers) or None,
        method=method,
        details=details,
    )
    say(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")
