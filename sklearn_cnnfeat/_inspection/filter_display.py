"""The filters of a convolution, as pictures."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.drawing import (
    MOST_TILES,
    Mosaic,
    Panel,
    label_rows,
    make_axes,
    n_columns_for,
    scale_together,
)
from sklearn_cnnfeat._inspection.maps import choose_channels
from sklearn_cnnfeat._network.whole_networks import read_kernels
from sklearn_cnnfeat._parameters import network_of
from sklearn_cnnfeat._steps import as_transformer

# Filters in a table with one column per channel, and the columns of such a table.
_MOST_ROWS, _MOST_COLUMNS = 6, 8
# Rows of such a table before it goes on in further columns.
_TALLEST = 8
# A filter is dead whose norm is at most this share of the largest one's.
_DEAD = 1e-2


class FilterDisplay:
    """The filters of a convolution, as pictures.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    kernel : ndarray
        (height, width, channels in, filters); (height, width, channels in, filters a channel) for
        depthwise convolutions; (inputs, units) for dense layers.

    layer : str
        Name of the layer.

    filters : ndarray of int
        The filters that are drawn. `dead` says which of them have practically no weights.

    channels : ndarray of int, default=None
        The channels of each filter that are drawn; None for depthwise filters, which have one.

    colours : sequence of str, default=None
        Names of the channels where the layer sees pictures.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    ax_ : matplotlib Axes
        The axes.

    image_ : matplotlib AxesImage
        What was drawn: all kernels are tiles of one image.

    See Also
    --------
    filter_summary : The convolutions of a network and their weights.
    FeatureMapDisplay : What the filters make of an image.

    Examples
    --------
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, FilterDisplay
    >>> vgg = CNNFeatureTransformer("vgg16", weights=None, random_state=0)
    >>> FilterDisplay.from_estimator(vgg, layer="block1_conv1", filters=6).kernel.shape
    (3, 3, 3, 64)
    """

    def __init__(self, kernel, *, layer, filters, channels=None, colours=None):
        self.kernel = kernel
        self.layer = layer
        self.filters = filters
        self.channels = channels
        self.colours = colours

    @classmethod
    def from_estimator(
        cls,
        estimator,
        *,
        layer=None,
        filters=None,
        channels=None,
        rgb=False,
        normalize="shared",
        cmap=None,
        ax=None,
    ):
        """Read the filters of a layer and draw them.

        Parameters
        ----------
        estimator : CNNFeatureTransformer, Pipeline, str, path or keras.Model
            A transformer, fitted or not, a pipeline with one, or a network as
            :class:`CNNFeatureTransformer` takes it.

        layer : str or int, default=None
            A layer with kernels, as :func:`filter_summary` lists them. None takes the
            transformer's own.

        filters : int, sequence of int, "all" or "strongest", default=None
            The first so many, chosen ones, all, or those with the largest mean magnitude, the
            strongest first. None takes 6 where each channel has a column,
            64 where a filter is one picture, and all of 1x1 convolutions and dense layers.

        channels : int, sequence of int or "all", default=None
            The channels of each filter. None takes the first 8, and all of 1x1 convolutions and
            dense layers.

        rgb : bool, default=False
            One picture in colors per filter, for layers that see three channels. Gray is zero, and
            the scale is the same for all filters, so that weak filters look pale.

        normalize : {"shared", "filter"}, default="shared"
            Black and white are the smallest and the largest number of all filters drawn, or of
            each filter; then filters without weights look as vivid as others.

        cmap : str or matplotlib Colormap, default=None
            Colors. None is gray for kernels and blue-white-red around zero for 1x1 convolutions
            and dense layers.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : FilterDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        transformer = as_transformer(estimator)
        layer = _own_layer(transformer) if layer is None else layer
        source, input_size, model = network_of(transformer, layer)
        found, kernels = read_kernels(layer, source, input_size, model)
        if not kernels:
            raise ValueError(
                f"Layer {found.path!r} ({found.type}) has no kernel to be drawn. "
                "filter_summary(model) lists the layers that have."
            )
        name, kernel = next(iter(kernels.items()))
        is_depthwise = "Depthwise" in found.type or name == "depthwise_kernel"
        is_matrix = not is_depthwise and (kernel.ndim == 2 or kernel.shape[:2] == (1, 1))
        if is_depthwise:
            kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
        n_channels, n_filters = kernel.shape[-2:]
        if rgb and (n_channels != 3 or is_matrix):
            raise ValueError(
                f"rgb=True needs filters of three channels and of more than one pixel; those of "
                f"layer {found.path!r} have shape {kernel.shape[:-1]}."
            )
        colours = None
        if n_channels == 3 and not is_matrix:
            colours = ("red", "green", "blue")
            if _preprocessing(transformer, source, model) == "caffe":
                # Such networks get their pictures with the channels reversed.
                colours = colours[::-1]
        one_picture = rgb or is_depthwise
        most = n_filters if is_matrix else MOST_TILES if one_picture else _MOST_ROWS
        display = cls(
            kernel,
            layer=found.path,
            filters=choose_channels(kernel, filters, found.path, most, "filter"),
            channels=None
            if one_picture
            else choose_channels(
                kernel.swapaxes(-1, -2),
                channels,
                found.path,
                n_channels if is_matrix else _MOST_COLUMNS,
            ),
            colours=colours,
        )
        return display.plot(normalize=normalize, cmap=cmap, ax=ax)

    @property
    def dead(self):
        """ndarray of bool: which of the filters drawn have practically no weights."""
        kernel = self.kernel.reshape(-1, self.kernel.shape[-1])
        strength = np.sqrt(np.square(kernel, dtype=np.float64).sum(axis=0))
        return strength[self.filters] <= _DEAD * strength.max()

    def plot(self, *, normalize="shared", cmap=None, ax=None):
        """Draw the filters.

        Parameters
        ----------
        normalize : {"shared", "filter"}, default="shared"
            One scale for all filters drawn, or one for each.

        cmap : str or matplotlib Colormap, default=None
            Colors.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : FilterDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        if normalize not in ("shared", "filter"):
            raise ValueError(f"normalize must be 'shared' or 'filter'. Got {normalize!r} instead.")
        if self.kernel.ndim == 2 or self.kernel.shape[:2] == (1, 1):
            panel, cmap = self._matrix(), cmap or "RdBu_r"
        else:
            panel, cmap = self._tiles(normalize), cmap or "gray"
        self.figure_, axes = make_axes([[panel]], ax)
        self.ax_ = axes.item()
        self.image_ = panel.draw(self.ax_, cmap)
        return self

    def _matrix(self):
        weights = self.kernel.reshape(self.kernel.shape[-2:])[self.channels][:, self.filters].T
        limit = np.abs(weights).max()
        what = "units" if self.kernel.ndim == 2 else "filters, 1 x 1"
        return Panel(
            weights,
            title=f"{self.layer}\n{len(weights)} {what}",
            axis_labels=(f"{weights.shape[1]} inputs", what.split(",")[0]),
            limits=(-limit, limit),
            row_labels=label_rows(len(weights), 1, self.filters),
        )

    def _tiles(self, normalize):
        height, width, _, n_filters = self.kernel.shape
        count = f"{len(self.filters)} of {n_filters}" if len(self.filters) < n_filters else ""
        title = f"{self.layer}\n{count or n_filters} filters, {height} x {width}"
        if self.dead.any():
            title += f", {self.dead.sum()} dead (*)"
        names = [
            f"{k}*" if dead else f"{k}" for k, dead in zip(self.filters, self.dead, strict=True)
        ]
        if self.channels is None or self.kernel.shape[2] == 1:
            return self._one_tile_each(names, title, normalize)
        filters = np.moveaxis(self.kernel[:, :, self.channels][..., self.filters], -1, 0)
        filters = np.moveaxis(scale_together(filters, normalize), -1, 1)
        return self._one_row_each(filters, names, title)

    def _one_tile_each(self, names, title, normalize):
        filters = np.moveaxis(self.kernel[..., self.filters], -1, 0)
        is_rgb = self.colours is not None
        # In colors, zero is gray for all filters alike.
        filters = scale_together(filters, normalize, centered=is_rgb and normalize == "shared")
        if not is_rgb:
            filters = filters[..., 0]
        elif self.colours[0] == "blue":
            filters = filters[..., ::-1]
        mosaic = Mosaic(filters, n_columns_for(len(filters)), labels=names)
        return Panel(mosaic.pixels, title=title, limits=(0, 1), bar=False, mosaic=mosaic)

    def _one_row_each(self, filters, names, title):
        """Return filters (n, channels, height, width) as rows, in blocks where there are many."""
        n_filters, n_channels, height, width = filters.shape
        channels = [self.colours[c] if self.colours else f"channel {c}" for c in self.channels]
        n_blocks = -(-n_filters // _TALLEST) if n_channels < 5 else 1
        if n_blocks == 1:
            mosaic = Mosaic(filters.reshape(-1, height, width), n_channels)
            rows = mosaic.label_rows(np.repeat(names, n_channels), "filter {}")
            return Panel(
                mosaic.pixels,
                title=title,
                limits=(0, 1),
                bar=False,
                mosaic=mosaic,
                row_labels=rows,
                column_labels=channels,
            )
        # Filters side by side in a line, a gap and their numbers between them.
        n_rows = -(-n_filters // n_blocks)
        shape = (n_rows, n_blocks, n_channels + 1)
        tiles = np.full((*shape, height, width), np.nan, filters.dtype)
        labels = np.full(shape, "", object)
        for k, (kernel, name) in enumerate(zip(filters, names, strict=True)):
            tiles[k // n_blocks, k % n_blocks, :n_channels] = kernel
            labels[k // n_blocks, k % n_blocks, 0] = name
        tiles, labels = (
            part.reshape(n_rows, -1, *part.shape[3:])[:, :-1] for part in (tiles, labels)
        )
        n_columns = tiles.shape[1]
        mosaic = Mosaic(
            tiles.reshape(-1, height, width), n_columns, labels=labels.ravel(), most=None
        )
        return Panel(
            mosaic.pixels,
            title=f"{title}\ncolumns: {', '.join(channels)}",
            limits=(0, 1),
            bar=False,
            mosaic=mosaic,
        )


def _preprocessing(transformer, source, model):
    if transformer.preprocessing == "auto":
        return source.image_facts(model).preprocessing
    return transformer.preprocessing


def _own_layer(transformer):
    layer = transformer.layer
    if isinstance(layer, (list, tuple)):
        if len(layer) != 1:
            raise ValueError(
                f"The transformer has {len(layer)} layers: say whose filters with layer=, one of "
                f"{', '.join(map(repr, layer))}."
            )
        (layer,) = layer
    return layer
