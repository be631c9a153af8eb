"""Keep things in order: ``cache``, ``weights``, ``pack``, ``doctor``, ``demo``, ``completion``."""

import sys
import warnings
from contextlib import redirect_stdout

import click

from sklearn_cnnfeat._cli.commands import command, group
from sklearn_cnnfeat._cli.options import Many, cache_folder_option, records, table_options
from sklearn_cnnfeat._cli.output import results, say, show, show_record, show_table
from sklearn_cnnfeat._cli.running import completion_script
from sklearn_cnnfeat._home import networks_folder


@group()
def cache():
    """Inspect, verify or clear the feature cache."""


folder_option = click.option(
    "--folder",
    "--cache-folder",
    "folder",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of the cache.  [default: the user's cache folder]",
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
    """Show how much the cache holds.

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
        from sklearn_cnnfeat._network.store import measure_networks

        record["networks"], record["network_bytes"] = measure_networks()
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
    from sklearn_cnnfeat._network.store import measure_networks, remove_networks

    store = _open_cache(folder)
    found = store.info()
    question = f"Remove {found.rows:,} rows ({found.bytes / 1e6:,.1f} MB) from {found.path}"
    if networks:
        n_networks, n_bytes = measure_networks()
        question += (
            f", and {n_networks} networks ({n_bytes / 1e6:,.1f} MB) from {networks_folder()}"
        )
    if not yes:
        if not sys.stdin or not sys.stdin.isatty():
            raise click.UsageError(f"{question}? Nobody can be asked here: --yes confirms it.")
        if not click.confirm(f"{question}?", err=True):
            raise click.ClickException("Nothing was removed.")
    store.clear()
    removed = f"removed {found.rows:,} rows ({found.bytes / 1e6:,.1f} MB) from {found.path}"
    if networks:
        remove_networks()
        removed += f", and {n_networks} networks ({n_bytes / 1e6:,.1f} MB)"
    say(removed)


@group()
def weights():
    """Pack published weights for machines without internet."""


@weights.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORKS...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Folder to write to. Files of earlier calls stay.",
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
    show_table(records(files[["model", "file", "n_bytes", "sha256"]]), style)
    say(f"wrote {output}")


@command(name="pack", short_help="Make a folder for a machine without internet.")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option(
    "-m",
    "--models",
    "models",
    cls=Many,
    required=True,
    metavar="NETWORK",
    help="Networks whose published weights go along, as 'cnnfeat models' lists them.",
)
@click.option(
    "--target",
    metavar="TARGET",
    help="The machine that will use the folder: kaggle, colab, or a Python and a platform "
    "(manylinux, macos, windows) such as cp312-manylinux.  [default: one like this, with nothing "
    "installed]",
)
@click.option(
    "--classifier",
    is_flag=True,
    help="Also the larger weights that layers of the classifier need, such as fc1.",
)
@click.option(
    "--input-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Weights for images of this height and width; MobileNets have several.",
)
@table_options
def pack_folder(folder, models, target, classifier, input_size, style):
    """Make a folder for a machine without internet: weights, and the wheels that it lacks.

    FOLDER gets the published weights of the networks, the wheels of this package and of what the
    target does not hold yet, checksums, a README and the cell that a notebook begins with. Upload
    it as a Kaggle dataset, or carry it to a cluster. Packing needs internet, pip and, for a
    development version, the checkout.

    \b
    Examples:
      cnnfeat pack my-dataset --models vgg16 mobilenet --target kaggle
      cnnfeat pack offline --models resnet50 --target cp312-manylinux
    """
    from sklearn_cnnfeat._cli.packing import pack

    rows = pack(folder, models, target, classifier=classifier, input_size=input_size)
    show_table(rows, style)
    total = sum(row["n_bytes"] for row in rows)
    say(f"wrote {folder}: {total / 1e6:,.1f} MB")


@command(short_help="Check the installation; what a bug report needs.")
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


@command(short_help="See it at work, offline, in a minute.")
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


@command(short_help="Print a script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell):
    """Print a script that completes commands, options and names of networks in a shell.

    \b
    Examples:
      cnnfeat completion bash >> ~/.bashrc
      cnnfeat completion zsh >> ~/.zshrc
      cnnfeat completion fish > ~/.config/fish/completions/cnnfeat.fish
    """
    show(completion_script(click.get_current_context().find_root().command, shell))
