"""Look inside a network: ``maps``, ``filters``."""

import click

from sklearn_cnnfeat._cli.commands import command
from sklearn_cnnfeat._cli.options import (
    NETWORK_SETTINGS,
    Layer,
    Network,
    Numbers,
    choice_option,
    layers_option,
    network_options,
    picture_option,
    transformer,
    trusted_option,
    weights_option,
    write_picture,
)


@command()
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
@choice_option(
    "--normalize",
    choices=["channel", "shared"],
    help="Each channel on its own scale, or all on one.",
)
@click.option("--columns", type=click.IntRange(min=1), metavar="N", help="Maps side by side.")
@click.option(
    "--image/--no-image", "show_image", default=True, help="Draw the photograph beside its maps."
)
@click.option("--cmap", default="viridis", show_default=True, help="A color map of matplotlib.")
def maps(images, output, layers, combine, overlay, columns, **settings):
    """Draw the feature maps of pictures.

    \b
    Examples:
      cnnfeat maps photo.jpg --model vgg16 --layer block1_conv2 -o maps.png
      cnnfeat maps photo.jpg --layers block1_pool block3_pool block5_pool --combine sum
      cnnfeat maps ants/*.jpg --layer block5_pool --combine mean --overlay
    """
    from sklearn_cnnfeat import FeatureMapDisplay

    display = FeatureMapDisplay.from_estimator(
        transformer(**{name: settings.pop(name) for name in NETWORK_SETTINGS}),
        list(images),
        layer=list(layers),
        combine=combine or ("mean" if overlay else None),
        overlay=overlay,
        n_columns=columns,
        **settings,
    )
    write_picture(display, output)


@command()
@click.argument("model", type=Network())
@click.option("-l", "--layer", type=Layer(), required=True, help="A layer with kernels.")
@picture_option("filters.png")
@weights_option
@trusted_option
@click.option(
    "--filters",
    type=Numbers("all", "strongest"),
    help="all, strongest, how many (16), or which (0,5,7).  [default: 6; 64 where one is a single "
    "tile]",
)
@click.option(
    "--channels",
    type=Numbers("all"),
    help="Of each filter: all, how many, or which.  [default: the first 8]",
)
@click.option("--rgb", is_flag=True, help="In colors, for layers that see pictures.")
@choice_option(
    "--normalize", choices=["shared", "filter"], help="One scale for all filters, or one for each."
)
def filters(model, layer, output, weights, trusted, filters, channels, rgb, normalize):
    """Draw the filters of a convolution.

    \b
    Example:
      cnnfeat filters vgg16 --layer block1_conv1 -o filters.png
    """
    from sklearn_cnnfeat import FilterDisplay

    display = FilterDisplay.from_estimator(
        transformer(model, weights=weights, trusted=trusted),
        layer=layer,
        filters=filters,
        channels=channels,
        rgb=rgb,
        normalize=normalize,
    )
    write_picture(display, output)
