"""Look at many photographs: ``embedding``, ``gallery``, ``examples``, ``explore``."""

import os

import click

from sklearn_cnnfeat._cli.commands import command
from sklearn_cnnfeat._cli.options import (
    Layer,
    Many,
    OutputFile,
    image_paths,
    network_options,
    picture_option,
    transformer,
    write_picture,
)
from sklearn_cnnfeat._cli.output import say

model_argument = click.argument("model", type=click.Path(exists=True, dir_okay=False))
photos_argument = click.argument("photos", type=click.Path(exists=True, file_okay=False))
method_option = click.option(
    "--method",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    show_default=True,
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


@command(short_help="Draw a map of photographs: like beside like.")
@model_argument
@photos_argument
@picture_option("embedding.png")
@method_option
def embedding(model, photos, output, method):
    """Draw a map of a folder of photographs by the features that a saved pipeline uses.

    Photographs lie beside those that look alike to the network; where PHOTOS has one subfolder
    per class, frames show the classes, and mistakes are marked.

    \b
    Example:
      cnnfeat embedding model.joblib photos/ -o embedding.png
    """
    from sklearn_cnnfeat import EmbeddingDisplay
    from sklearn_cnnfeat._cli.saving import load_pipeline

    paths, labels = _photos(photos)
    display = EmbeddingDisplay.from_estimator(load_pipeline(model), paths, labels, method=method)
    write_picture(display, output)


@command(short_help="Draw the worst or least certain predictions.")
@model_argument
@photos_argument
@picture_option("gallery.png")
@click.option(
    "--which",
    type=click.Choice(["worst", "least_certain", "best"]),
    default="worst",
    show_default=True,
    help="The most certain mistakes, the least certain ones, or the most certain right ones.",
)
@click.option(
    "-n",
    "--number",
    "n_photos",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="How many photographs to draw.",
)
@click.option(
    "--cv",
    type=click.IntRange(min=2),
    metavar="FOLDS",
    help="Refit for each fold, so that no photograph is judged by a classifier that has learned "
    "from it.",
)
def gallery(model, photos, output, which, n_photos, cv):
    """Draw photographs with what a saved pipeline predicts for them, and why.

    PHOTOS has one subfolder per class: the true ones.

    \b
    Examples:
      cnnfeat gallery model.joblib photos/ --cv 5 -o worst.png
      cnnfeat gallery model.joblib new/ --which least_certain
    """
    from sklearn_cnnfeat import PredictionGalleryDisplay
    from sklearn_cnnfeat._cli.saving import load_pipeline

    paths, labels = _photos(photos, needs_classes=True)
    display = PredictionGalleryDisplay.from_estimator(
        load_pipeline(model), paths, labels, which=which, n_photos=n_photos, cv=cv
    )
    write_picture(display, output)


@command(short_help="Draw the photographs that excite a channel most.")
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@picture_option("examples.png")
@network_options
@click.option("-l", "--layer", type=Layer(), default="last", help="Whose channels.")
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
@click.option("--examples", "n_examples", type=click.IntRange(min=1), default=8, show_default=True)
def examples(images, output, layer, channels, n_examples, **network):
    """Draw the parts of photographs that excite the channels of a layer most.

    IMAGES are files, or folders that are searched at any depth.

    \b
    Example:
      cnnfeat examples photos/ --model mobilenet --layer conv_pw_5_relu --channels 3 7
    """
    from sklearn_cnnfeat import ChannelExamplesDisplay

    display = ChannelExamplesDisplay.from_estimator(
        transformer(**network),
        image_paths(images),
        list(channels),
        layer,
        n_examples=n_examples,
    )
    write_picture(display, output)


@command(short_help="Write a page to look around in photographs.")
@model_argument
@photos_argument
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
@method_option
@click.option(
    "--details",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="The least certain photographs that have the maps of all channels.",
)
def explore(model, photos, output, layers, method, details):
    """Write one HTML file to look around in a folder of photographs with a saved pipeline.

    It holds a map of all photographs to zoom and select in, and for each what is predicted, where
    the decision came from, its neighbors and its feature maps. It needs no server and no internet.
    The photographs are part of it, in small.

    \b
    Example:
      cnnfeat explore model.joblib photos/ -o page.html
    """
    from sklearn_cnnfeat import explore as write
    from sklearn_cnnfeat._cli.saving import load_pipeline

    paths, labels = _photos(photos)
    page = write(
        load_pipeline(model),
        paths,
        labels,
        to=output,
        layers=list(layers) or None,
        method=method,
        details=details,
    )
    say(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")
