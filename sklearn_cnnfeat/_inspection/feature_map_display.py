"""The maps of layers, as grids of channels or fused into one."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.drawing import (
    MOST_TILES,
    Mosaic,
    Panel,
    color_limits,
    extended,
    label_rows,
    make_axes,
    n_columns_for,
    photo_panel,
    scale_each,
)
from sklearn_cnnfeat._inspection.maps import (
    as_batch,
    choose_channels,
    combine_channels,
    compute_maps,
    picture,
)
from sklearn_cnnfeat._steps import as_transformer

# Photographs in a figure: those with a line each, and those with a single map each.
_MOST_LINES, _MOST_MAPS = 12, 120
# Photographs that have a color bar each; the scale is the same for all.
_MOST_BARS = 6


class FeatureMapDisplay:
    """The maps of layers, as a grid of channels or fused into one.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    maps : list of ndarray
        One array a layer: (n_images, height, width, channels) or, for layers that give vectors,
        (n_images, length).

    layers : list of str
        Their names.

    channels : list of ndarray
        The channels of each layer that are drawn or fused.

    combined : list of ndarray, default=None
        The fused maps of each layer, (n_images, height, width). None draws channels.

    combination : str, default=None
        How they were fused, for the titles.

    pictures : list of ndarray, default=None
        The images, to stand beside the maps or under them. They also give maps their proportions.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    axes_ : ndarray of matplotlib Axes, of shape (n_images, n_layers)
        One a panel.

    image_axes_ : list of matplotlib Axes
        Those with the photographs beside the maps; empty where they are not shown.

    images_ : ndarray of matplotlib AxesImage, of shape (n_images, n_layers)
        What was drawn: all channels of a panel are tiles of one image.

    See Also
    --------
    FilterDisplay : The filters of a convolution.
    DecisionMapDisplay : Where in a picture a decision came from.
    layer_summary : The layers there are.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_image
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, FeatureMapDisplay
    >>> cnn = CNNFeatureTransformer("mobilenet", weights=None, input_size=64, random_state=0)
    >>> display = FeatureMapDisplay.from_estimator(
    ...     cnn, load_sample_image("china.jpg"), layer="conv1_relu"
    ... )
    >>> display.maps[0].shape
    (1, 32, 32, 32)
    """

    def __init__(self, maps, *, layers, channels, combined=None, combination=None, pictures=None):
        self.maps = maps
        self.layers = layers
        self.channels = channels
        self.combined = combined
        self.combination = combination
        self.pictures = pictures

    @classmethod
    def from_estimator(
        cls,
        estimator,
        image,
        *,
        layer=None,
        channels=None,
        combine=None,
        overlay=False,
        show_image=True,
        normalize="channel",
        robust=True,
        n_columns=None,
        cmap="viridis",
        ax=None,
    ):
        """Compute the maps of images and draw them.

        Parameters
        ----------
        estimator : CNNFeatureTransformer, Pipeline, str, path or keras.Model
            A transformer, fitted or not, a pipeline with one, or a network as
            :class:`CNNFeatureTransformer` takes it.

        image : image, or sequence of images
            Anything that ``transform`` takes, or one of it.

        layer : str, int or list of these, default=None
            As for :class:`CNNFeatureTransformer`; several layers come from one pass through the
            network. None takes the transformer's own, and the last one of other networks.

        channels : int, sequence of int, "all" or "strongest", default=None
            The first so many, chosen ones, all, or the 64 with the largest mean magnitude. None
            draws the first 64, and fuses all.

        combine : {"sum", "mean", "max"} or sequence of float, default=None
            Fuse the channels into one map; numbers are the weights of a weighted sum, one a
            channel.

        overlay : bool, default=False
            Lay the fused map over the picture; needs `combine`.

        show_image : bool, default=True
            Draw the photograph beside its maps; not with `overlay`, and not into `ax`.

        normalize : {"channel", "shared"}, default="channel"
            Each channel on its own scale from its smallest to its largest value, or all of a
            layer on one, with a color bar.

        robust : bool, default=True
            Color scales span the 2nd to the 98th percentile, so that a few extreme values, such as
            those that padding leaves in corners, do not take all colors. False spans all values.

        n_columns : int, default=None
            Tiles side by side. None takes a square for up to 16 channels, 8 for up to 64, and more
            for more.

        cmap : str or matplotlib Colormap, default="viridis"
            Colors.

        ax : matplotlib Axes or array of these, default=None
            Where to draw: as many as there are panels, images times layers.

        Returns
        -------
        display : FeatureMapDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        transformer = as_transformer(estimator)
        X = as_batch(image, transformer)
        _check_number(len(X), layer or transformer.layer, combine)
        extractor, images, maps = compute_maps(transformer, X, layer)
        layers = extractor.layers
        _check_fusion(layers, maps, combine, overlay)
        most = MOST_TILES if combine is None else max(values.shape[-1] for values in maps)
        chosen = [
            # A vector is one picture, of all its numbers.
            choose_channels(values, channels, name, most if values.ndim > 2 else values.shape[-1])
            for name, values in zip(layers, maps, strict=True)
        ]
        combined = None
        if combine is not None:
            combined = [
                combine_channels(values[..., picked], combine, name)
                for name, values, picked in zip(layers, maps, chosen, strict=True)
            ]
        display = cls(
            maps,
            layers=layers,
            channels=chosen,
            combined=combined,
            combination=combine if combine is None or isinstance(combine, str) else "weighted sum",
            pictures=[picture(extractor, images, i) for i in range(len(images))],
        )
        return display.plot(
            overlay=overlay,
            show_image=show_image,
            normalize=normalize,
            robust=robust,
            n_columns=n_columns,
            cmap=cmap,
            ax=ax,
        )

    def plot(
        self,
        *,
        overlay=False,
        show_image=True,
        normalize="channel",
        robust=True,
        n_columns=None,
        cmap="viridis",
        ax=None,
    ):
        """Draw the maps.

        Parameters
        ----------
        overlay : bool, default=False
            Lay the fused map over the picture.

        show_image : bool, default=True
            Draw the photograph beside its maps; not with `overlay`, and not into `ax`.

        normalize : {"channel", "shared"}, default="channel"
            Each channel on its own scale, or all of a layer on one.

        robust : bool, default=True
            Color scales span the 2nd to the 98th percentile.

        n_columns : int, default=None
            Tiles side by side.

        cmap : str or matplotlib Colormap, default="viridis"
            Colors.

        ax : matplotlib Axes or array of these, default=None
            Where to draw: as many as there are panels, images times layers.

        Returns
        -------
        display : FeatureMapDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        if normalize not in ("channel", "shared"):
            raise ValueError(f"normalize must be 'channel' or 'shared'. Got {normalize!r} instead.")
        if overlay and (self.combined is None or self.pictures is None):
            raise ValueError(
                "overlay=True lays a fused map over the picture, and this display has been made "
                "without: from_estimator(..., combine='mean', overlay=True) makes one with both."
            )
        n_images, n_layers = len(self.maps[0]), len(self.layers)
        alone = n_images * n_layers == 1
        panels = [
            [
                self._panel(k, i, normalize, robust, n_columns, alone, overlay)
                for k in range(n_layers)
            ]
            for i in range(n_images)
        ]
        has_photos = show_image and not overlay and self.pictures is not None and ax is None
        if has_photos:
            photos = [photo_panel(pixels) for pixels in self.pictures[:n_images]]
            panels = [[photo, *row] for photo, row in zip(photos, panels, strict=True)]
        self.figure_, axes = make_axes(panels, ax, self._per_line(n_images, n_layers, has_photos))
        self.images_ = np.empty((n_images, n_layers), object)
        for i, row in enumerate(panels):
            drawn = []
            for ax_, panel in zip(axes[i], row, strict=True):
                if i > 0:
                    panel.title = None
                drawn.append(panel.draw(ax_, cmap))
            self.images_[i] = drawn[has_photos:]
        self.image_axes_ = list(axes[:, 0]) if has_photos else []
        self.axes_ = axes[:, int(has_photos) :]
        return self

    def _per_line(self, n_images, n_layers, has_photos):
        """Return how many panels stand side by side; None for one image per line."""
        if self.combined is None or n_layers > 1 or n_images == 1:
            return None
        if has_photos:
            return 2 * (1 if n_images <= 3 else 2 if n_images <= 12 else 4)
        return min(n_images, max(3, int(np.ceil(np.sqrt(n_images)))))

    def _pixel_aspect(self, i, height, width):
        """Return height over width of a map's pixel: maps have the proportions of their picture."""
        if self.pictures is None:
            return 1.0
        rows, columns = self.pictures[i].shape[:2]
        return (rows / columns) / (height / width)

    def _panel(self, k, i, normalize, robust, n_columns, alone, overlay):
        values, picked, layer = self.maps[k], self.channels[k], self.layers[k]
        if self.combined is not None:
            combined = self.combined[k]
            height, width = combined.shape[1:]
            limits = color_limits(combined, robust)
            return Panel(
                combined[i],
                title=f"{layer}\n{self.combination} of {len(picked)} maps, {height} x {width}",
                limits=limits,
                bar=len(combined) <= _MOST_BARS,
                extend=extended(combined, limits),
                picture=self.pictures[i] if overlay else None,
                pixel_aspect=self._pixel_aspect(i, height, width),
            )
        if values.ndim == 2:
            n_units = len(picked)
            columns = n_columns or 2 ** int(np.ceil(np.log2(np.sqrt(n_units))))
            padded = np.full(-(-n_units // columns) * columns, np.nan)
            padded[:n_units] = values[i, picked]
            rows = padded.reshape(-1, columns)
            what = f"{n_units} numbers" if n_units > columns else f"{n_units} numbers in a row"
            return Panel(
                rows,
                title=f"{layer}\n{what}, {columns} a line" if n_units > columns else what,
                limits=(values[:, picked].min(), values[:, picked].max()),
                row_labels=label_rows(len(rows), 1, picked[::columns]),
            )
        shown = values[..., picked]
        limits = color_limits(shown, robust) if normalize == "shared" else None
        tiles = np.moveaxis(shown[i], -1, 0)
        height, width, n_channels = values.shape[1:]
        columns = n_columns or n_columns_for(len(picked))
        of_all = f" of {n_channels}" if len(picked) < n_channels else ""
        mosaic = Mosaic(
            tiles if limits else scale_each(tiles, robust),
            columns,
            labels=picked if alone else None,
            pixel_aspect=self._pixel_aspect(i, height, width),
        )
        return Panel(
            mosaic.pixels,
            title=f"{layer}\n{len(picked)}{of_all} maps, {height} x {width}",
            limits=limits,
            extend=extended(shown, limits) if limits else "neither",
            mosaic=mosaic,
            pixel_aspect=self._pixel_aspect(i, height, width),
            row_labels=None if mosaic.labels else mosaic.label_rows(picked),
        )


def _check_number(n_images, layers, combine):
    """Raise where there are more photographs than one figure can show."""
    n_layers = len(layers) if isinstance(layers, (list, tuple)) else 1
    has_lines = combine is None or n_layers > 1
    most = _MOST_LINES if has_lines else _MOST_MAPS
    if n_images > most:
        raise ValueError(
            f"{n_images} images are more than one figure can show: at most {_MOST_LINES}, or "
            f"{_MOST_MAPS} where one layer is fused into one map (combine='mean'). Pass fewer "
            f"images, such as image[:{most}], and call again for the others."
        )


def _check_fusion(layers, maps, combine, overlay):
    """Raise where there is nothing to be fused, or no fused map to be laid over the picture."""
    for name, values in zip(layers, maps, strict=True):
        if values.ndim == 2 and (combine is not None or overlay):
            raise ValueError(
                f"Layer {name!r} gives a vector of {values.shape[1]} numbers, no maps to "
                "combine or to lay over the picture. Choose a layer with maps "
                "(layer_summary(model) lists shapes), or leave combine and overlay out."
            )
    if overlay and combine is None:
        raise ValueError(
            "overlay=True lays one map over the picture: say how to get it from the channels, "
            "for example combine='mean'."
        )
