"""Get features: ``extract``, ``models``, ``layers``."""

import os
from fnmatch import fnmatchcase

import click

from sklearn_cnnfeat._cli.commands import command
from sklearn_cnnfeat._cli.options import (
    NETWORK_SETTINGS,
    POOLINGS,
    Network,
    cache_folder_option,
    choice_option,
    image_paths,
    input_size_option,
    layers_option,
    network_options,
    progress_option,
    records,
    table_options,
    transformer,
    trusted_option,
    verbosity,
    weights_option,
)
from sklearn_cnnfeat._cli.output import say, show, show_table
from sklearn_cnnfeat._network.weights import find_all_weights
from sklearn_cnnfeat._network.zoo import find_architecture, list_models

# Further parameters of the transformer.
_COMPUTING = ("precision", "decode", "engine")


@command()
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
@choice_option("-p", "--pooling", choices=POOLINGS, help="How the maps of a layer become numbers.")
@click.option(
    "--format",
    type=click.Choice(["parquet", "npy", "zarr"]),
    help="Format of the file.  [default: by its suffix]",
)
@choice_option("--dtype", choices=["float32", "float16"], help="Type of the numbers in the file.")
@click.option(
    "--files-from",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    metavar="FILE",
    help="Read the paths of images from a file, one per line; - is the standard input.",
)
@choice_option(
    "--on-error",
    choices=["raise", "skip", "nan"],
    help="Stop at an image that cannot be read, leave it out, or write a row of NaN.",
)
@click.option(
    "--retry-errors",
    is_flag=True,
    help="Try unreadable images of a finished file again.",
)
@click.option(
    "--cache", is_flag=True, help="Read features from the cache, and write new ones to it."
)
@cache_folder_option
@choice_option(
    "--precision",
    choices=["float32", "bfloat16", "int8"],
    help="Precision of the network's arithmetic: lower is faster.",
)
@choice_option(
    "--decode",
    choices=["exact", "fast"],
    help="'fast' saves time on large JPEG files and changes features slightly.",
)
@choice_option(
    "--engine",
    choices=["auto", "openvino", "ncnn", "keras", "torch"],
    help="What runs the network.",
)
@click.option("--part-size", type=click.IntRange(min=1), metavar="N", help="Images per shard.")
@click.option("-j", "--jobs", type=int, metavar="N", help="Threads.  [default: all cores]")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Address of a Dask scheduler whose workers compute, such as tcp://node1:8786. They must "
    "see the same folders.",
)
@progress_option
def extract(
    photos,
    output,
    layers,
    pooling,
    files_from,
    cache,
    cache_folder,
    jobs,
    scheduler,
    progress,
    **settings,
):
    """Write the features of any number of images to a file.

    PHOTOS are files, or folders that are searched at any depth. If PHOTOS is one folder and all
    images lie in subfolders, the names of these are kept as labels. OUTPUT is a table for pandas,
    polars and others (.parquet), a NumPy array with a table beside it (.npy), or .zarr.

    Memory does not depend on the number of images. After an interruption of any kind, the same
    command continues where it stopped.

    \b
    Examples:
      cnnfeat extract photos/ -o features.parquet --model resnet50 --layer avg_pool
      find /data -name '*.jpg' | cnnfeat extract --files-from - -o features.npy --dtype float16
      cnnfeat extract /data/photos -o /data/features.zarr --scheduler tcp://node1:8786
    """
    if bool(photos) == (files_from is not None):
        raise click.UsageError("Name PHOTOS, or a file of their paths with --files-from.")
    from sklearn_cnnfeat import extract

    cnn = transformer(
        layer=layers[0] if len(layers) == 1 else list(layers),
        pooling=pooling,
        cache=cache_folder or cache or None,
        n_jobs=jobs,
        **{name: settings.pop(name) for name in (*NETWORK_SETTINGS, *_COMPUTING)},
    )
    report = extract(
        _named_images(photos, files_from),
        output,
        cnn,
        client=scheduler,
        verbose=verbosity(progress),
        **settings,
    )
    unreadable = f", {report.n_errors:,} could not be read" if report.n_errors else ""
    say(
        f"{output} has {report.n_features:,} features of {report.n_images:,} images "
        f"({report.n_computed:,} computed now{unreadable})"
    )


def _named_images(photos, files_from):
    if files_from is not None:
        return [line.rstrip("\r\n") for line in files_from if line.strip()]
    if len(photos) == 1 and os.path.isdir(photos[0]):
        return photos[0]
    return image_paths(photos)


@command()
@click.argument("pattern", required=False)
@click.option(
    "-l", "--long", is_flag=True, help="Show input size, layers, preprocessing and weights of each."
)
@table_options
def models(pattern, long, style):
    """List the networks that are available by name.

    PATTERN may hold * and ?; without them, it matches anywhere in the names.

    \b
    Examples:
      cnnfeat models
      cnnfeat models 'resnet*' --long
      cnnfeat models 'timm/convnext*'
    """
    if pattern is not None and not any(letter in pattern for letter in "*?["):
        pattern = f"{pattern}*" if pattern.startswith("timm/") else f"*{pattern}*"
    names = list_models(pattern)
    if not names:
        raise click.ClickException(
            f"No network matches {pattern!r}; 'cnnfeat models' lists all names."
        )
    if not long and style is None:
        show("\n".join(names))
        return
    rows, here = [], find_all_weights()
    for name in names:
        architecture = find_architecture(name)
        if architecture is None:  # of timm, which says the rest when the network is used
            rows.append({"model": name})
            continue
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


@command()
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

    MODEL is a name that 'cnnfeat models' lists, a name of timm such as timm/resnet50.a1_in1k, or a
    .keras, .h5 or .onnx file. PATTERN may hold * and ?, and is looked for in the names and types of
    layers.

    \b
    Examples:
      cnnfeat layers vgg16
      cnnfeat layers resnet50 '*_out' --csv > layers.csv
    """
    from sklearn_cnnfeat import filter_summary, layer_summary

    cnn = transformer(model, weights=weights, trusted=trusted, input_size=input_size)
    rows = records((filter_summary if filters else layer_summary)(cnn))
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
