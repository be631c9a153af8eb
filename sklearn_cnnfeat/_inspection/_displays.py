"""Pictures of maps, filters and decisions; the only room that imports matplotlib."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection._decision import decision_map
from sklearn_cnnfeat._inspection._maps import (
    as_batch,
    choose_channels,
    combine_channels,
    compute_maps,
    picture,
)
from sklearn_cnnfeat._inspection._source import as_transformer, network_of
from sklearn_cnnfeat._inspection._summaries import kernels_of
from sklearn_cnnfeat._network import _build
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._search import layer_scores

# Maps of a layer that are drawn unless more are asked for: what fits a page in 8 columns.
_MOST_TILES = 64
# Filters in a table with one column a channel, and the columns of such a table.
_MOST_ROWS, _MOST_COLUMNS = 6, 8
# Pixels of a tile that is smaller itself, and of the longest side of a whole mosaic.
_TILE_SIDE, _MOSAIC_SIDE = 32, 3000
# Most inches of a figure with one panel, of one with several, and of a tile.
_WIDTH, _HEIGHT, _FULL_WIDTH, _TILE_WIDTH = 7.0, 7.5, 13.0, 0.9
# Panels side by side: of tiles, which are small already, and of single maps.
_MOST_MOSAICS, _MOST_PANELS = 3, 5


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
        The images, to lay maps over.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    axes_ : ndarray of matplotlib Axes, of shape (n_images, n_layers)
        One a panel.

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
        normalize="channel",
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

        normalize : {"channel", "shared"}, default="channel"
            Each channel on its own scale from its smallest to its largest value, or all of a
            layer on one, with a colour bar.

        n_columns : int, default=None
            Tiles side by side. None takes 8 for up to 64 channels, and more for more.

        cmap : str or matplotlib Colormap, default="viridis"
            Colours.

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
        fitted, maps = compute_maps(transformer, X, layer)
        layers = fitted.layer_names_
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
        most = _MOST_TILES if combine is None else max(values.shape[-1] for values in maps)
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
            pictures=[picture(fitted, X, i) for i in range(len(maps[0]))] if overlay else None,
        )
        return display.plot(
            overlay=overlay, normalize=normalize, n_columns=n_columns, cmap=cmap, ax=ax
        )

    def plot(self, *, overlay=False, normalize="channel", n_columns=None, cmap="viridis", ax=None):
        """Draw the maps.

        Parameters
        ----------
        overlay : bool, default=False
            Lay the fused map over the picture.

        normalize : {"channel", "shared"}, default="channel"
            Each channel on its own scale, or all of a layer on one.

        n_columns : int, default=None
            Tiles side by side.

        cmap : str or matplotlib Colormap, default="viridis"
            Colours.

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
        n_images = len(self.maps[0])
        alone = n_images * len(self.layers) == 1
        panels = [
            [self._panel(k, i, normalize, n_columns, alone, overlay) for k in range(len(self.maps))]
            for i in range(n_images)
        ]
        self.figure_, self.axes_ = _make_axes(panels, ax)
        self.images_ = np.empty(self.axes_.shape, object)
        for i, row in enumerate(panels):
            for k, panel in enumerate(row):
                if i > 0:
                    panel.title = None
                self.images_[i, k] = panel.draw(self.axes_[i, k], cmap)
        return self

    def _panel(self, k, i, normalize, n_columns, alone, overlay):
        values, picked, layer = self.maps[k], self.channels[k], self.layers[k]
        if self.combined is not None:
            combined = self.combined[k]
            height, width = combined.shape[1:]
            return _Panel(
                combined[i],
                title=f"{layer}\n{self.combination} of {len(picked)} maps, {height} x {width}",
                limits=(combined.min(), combined.max()),
                picture=self.pictures[i] if overlay else None,
            )
        if values.ndim == 2:
            n_units = len(picked)
            columns = n_columns or 2 ** int(np.ceil(np.log2(np.sqrt(n_units))))
            padded = np.full(-(-n_units // columns) * columns, np.nan)
            padded[:n_units] = values[i, picked]
            rows = padded.reshape(-1, columns)
            what = f"{n_units} numbers" if n_units > columns else f"{n_units} numbers in a row"
            return _Panel(
                rows,
                title=f"{layer}\n{what}, {columns} a line" if n_units > columns else what,
                limits=(values[:, picked].min(), values[:, picked].max()),
                row_labels=_row_labels(len(rows), 1, picked[::columns]),
            )
        shown = values[..., picked]
        limits = (shown.min(), shown.max()) if normalize == "shared" else None
        tiles = np.moveaxis(shown[i], -1, 0)
        height, width, n_channels = values.shape[1:]
        columns = n_columns or _n_columns(len(picked))
        of_all = f" of {n_channels}" if len(picked) < n_channels else ""
        mosaic = _Mosaic(
            tiles if limits else _scale_each(tiles), columns, labels=picked if alone else None
        )
        return _Panel(
            mosaic.pixels,
            title=f"{layer}\n{len(picked)}{of_all} maps, {height} x {width}",
            limits=limits,
            mosaic=mosaic,
            row_labels=None if mosaic.labels else mosaic.label_rows(picked),
        )


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
        The filters that are drawn.

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
        layer,
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

        layer : str or int
            A layer with kernels, as :func:`filter_summary` lists them.

        filters : int, sequence of int or "all", default=None
            The first so many, chosen ones, or all. None takes 6 where each channel has a column,
            64 where a filter is one picture, and all of 1x1 convolutions and dense layers.

        channels : int, sequence of int or "all", default=None
            The channels of each filter. None takes the first 8, and all of 1x1 convolutions and
            dense layers.

        rgb : bool, default=False
            One picture in colours a filter, for layers that see three channels.

        normalize : {"shared", "filter"}, default="shared"
            Black and white are the smallest and the largest number of all filters drawn, or of
            each filter.

        cmap : str or matplotlib Colormap, default=None
            Colours. None is gray for kernels and blue-white-red around zero for 1x1 convolutions
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
        source, input_size, model = network_of(transformer, layer)
        found, keras_layer = _build.find_weighted_layer(layer, source, input_size, model)
        kernels = kernels_of(keras_layer)
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
            if _preprocessing(transformer, source) == "caffe":
                # Such networks get their pictures with the channels reversed.
                colours = colours[::-1]
        one_picture = rgb or is_depthwise
        most = n_filters if is_matrix else _MOST_TILES if one_picture else _MOST_ROWS
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

    def plot(self, *, normalize="shared", cmap=None, ax=None):
        """Draw the filters.

        Parameters
        ----------
        normalize : {"shared", "filter"}, default="shared"
            One scale for all filters drawn, or one for each.

        cmap : str or matplotlib Colormap, default=None
            Colours.

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
        self.figure_, axes = _make_axes([[panel]], ax)
        self.ax_ = axes.item()
        self.image_ = panel.draw(self.ax_, cmap)
        return self

    def _matrix(self):
        weights = self.kernel.reshape(self.kernel.shape[-2:])[self.channels][:, self.filters].T
        limit = np.abs(weights).max()
        what = "units" if self.kernel.ndim == 2 else "filters, 1 x 1"
        return _Panel(
            weights,
            title=f"{self.layer}\n{len(weights)} {what}",
            axis_labels=(f"{weights.shape[1]} inputs", what.split(",")[0]),
            limits=(-limit, limit),
            row_labels=_row_labels(len(weights), 1, self.filters),
        )

    def _tiles(self, normalize):
        height, width, _, n_filters = self.kernel.shape
        count = f"{len(self.filters)} of {n_filters}" if len(self.filters) < n_filters else ""
        count = count or f"{n_filters}"
        size = f"{height} x {width}"
        if self.channels is None:
            filters = np.moveaxis(self.kernel[..., self.filters], -1, 0)
            filters = _scale_together(filters, normalize)
            if self.colours is None:
                filters = filters[..., 0]
            elif self.colours[0] == "blue":
                filters = filters[..., ::-1]
            mosaic = _Mosaic(filters, _n_columns(len(filters)), labels=self.filters)
            title = f"{self.layer}\n{count} filters, {size}"
            return _Panel(mosaic.pixels, title=title, limits=(0, 1), bar=False, mosaic=mosaic)
        filters = np.moveaxis(self.kernel[:, :, self.channels][..., self.filters], -1, 0)
        filters = np.moveaxis(_scale_together(filters, normalize), -1, 1)
        columns = len(self.channels)
        mosaic = _Mosaic(filters.reshape(-1, height, width), columns)
        names = [self.colours[c] if self.colours else f"channel {c}" for c in self.channels]
        return _Panel(
            mosaic.pixels,
            title=f"{self.layer}\n{count} filters, {size}",
            limits=(0, 1),
            bar=False,
            mosaic=mosaic,
            row_labels=mosaic.label_rows(np.repeat(self.filters, columns), "filter {}"),
            column_labels=names,
        )


class DecisionMapDisplay:
    """Where in a picture the decision of a pipeline came from.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    decision : Bunch
        What :func:`decision_map` returns.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    ax_ : matplotlib Axes
        The axes.

    image_ : matplotlib AxesImage
        The map over the picture: red where it speaks for the target, blue where against.

    See Also
    --------
    decision_map : The numbers alone.
    FeatureMapDisplay : What a layer of the network makes of a picture.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, DecisionMapDisplay
    >>> photos = load_sample_images().images
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_2_relu", "avg", weights=None, input_size=64, random_state=0
    ... )
    >>> pipe = make_pipeline(cnn, LogisticRegression()).fit(photos, ["china", "flower"])
    >>> display = DecisionMapDisplay.from_estimator(pipe, photos[1])
    >>> print(display.decision.target)
    flower
    """

    def __init__(self, decision):
        self.decision = decision

    @classmethod
    def from_estimator(
        cls,
        estimator,
        image,
        *,
        target=None,
        method="auto",
        step=None,
        patch_size=None,
        stride=None,
        cmap="RdBu_r",
        alpha=0.85,
        ax=None,
    ):
        """Compute the map of a decision and draw it over the picture.

        Parameters
        ----------
        estimator : Pipeline
            Fitted, with a :class:`CNNFeatureTransformer` and a classifier or regressor.

        image : image
            One image, as for :func:`decision_map`.

        target : class label, pair of class labels or int, default=None
            Which decision, as for :func:`decision_map`.

        method : {"auto", "exact", "occlusion"}, default="auto"
            How, as for :func:`decision_map`.

        step : str, default=None
            Which of several networks in the pipeline.

        patch_size, stride : int, default=None
            Of the patches that are covered, in pixels of the network's input.

        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colours, the middle one for zero.

        alpha : float, default=0.85
            Opacity of the largest values; zero is transparent.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : DecisionMapDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        decision = decision_map(
            estimator,
            image,
            target,
            method=method,
            step=step,
            patch_size=patch_size,
            stride=stride,
        )
        return cls(decision).plot(cmap=cmap, alpha=alpha, ax=ax)

    def plot(self, *, cmap="RdBu_r", alpha=0.85, ax=None):
        """Draw the map over the picture.

        Parameters
        ----------
        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colours, the middle one for zero.

        alpha : float, default=0.85
            Opacity of the largest values; zero is transparent.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : DecisionMapDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        decision = self.decision
        panel = _Panel(decision.map, title=None, picture=decision.image, bar=False)
        self.figure_, axes = _make_axes([[panel]], ax)
        self.ax_ = axes.item()
        limit = float(np.abs(decision.map).max()) or 1.0
        height, width = decision.image.shape[:2]
        self.ax_.imshow(_as_gray(decision.image), cmap="gray", vmin=0, vmax=255)
        self.image_ = self.ax_.imshow(
            decision.map,
            cmap=cmap,
            vmin=-limit,
            vmax=limit,
            alpha=alpha * np.sqrt(np.abs(decision.map) / limit),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )
        self.ax_.set_axis_off()
        target = "prediction" if decision.target is None else decision.target
        other = decision.other
        question = target if other is None else f"{target} against {other}"
        self.ax_.set_title(f"{question}: {decision.decision:+.3g}", fontsize=10)
        bar = _draw_bar(self.ax_, self.image_)
        against = "against" if other is None else f"for {other}"
        bar.set_label(f"{against}   $\\leftarrow$      $\\rightarrow$   for {target}", fontsize=8)
        return self


class LayerScoreDisplay:
    """How good each layer of a network is: scores against layers, in the order of computation.

    Bars span one standard deviation over the folds to either side; the numbers of features stand
    below the layers. A layer that comes earlier and whose bar overlaps the best one's is
    worth a thought: what lies behind it need not be computed.

    Make it with :meth:`from_search`, or from the table that :func:`layer_report` returns. All
    parameters are stored as attributes.

    Parameters
    ----------
    scores : DataFrame
        What :func:`layer_scores` or :func:`layer_report` returns.

    score_name : str, default="Score"
        What the score is called.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    ax_ : matplotlib Axes
        The axes.

    lines_ : list of matplotlib ErrorbarContainer
        The points and their bars, one a network and pooling.

    See Also
    --------
    layer_scores : The numbers alone.
    layer_report : Compares the layers of a network in one call.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_cnnfeat import LayerScoreDisplay, layer_report
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> report = layer_report(
    ...     X[:60],
    ...     y[:60],
    ...     "mobilenet",
    ...     weights=None,
    ...     random_state=0,
    ...     input_size=32,
    ...     image_shape=(8, 8),
    ...     value_range=(0, 16),
    ...     verbose=0,
    ... )
    >>> display = LayerScoreDisplay(report, score_name="Accuracy").plot()
    >>> display.ax_.get_ylabel()
    'Accuracy'
    """

    def __init__(self, scores, *, score_name="Score"):
        self.scores = scores
        self.score_name = score_name

    @classmethod
    def from_search(cls, search, *, metric=None, step=None, score_name=None, ax=None):
        """Draw the result of a search over layers.

        Parameters
        ----------
        search : GridSearchCV, RandomizedSearchCV or a halving search
            A fitted search over an estimator that holds a :class:`CNNFeatureTransformer`.

        metric : str, default=None
            Which score, where the search has several; None then takes the one in `refit`.

        step : str, default=None
            Which of several networks in the estimator.

        score_name : str, default=None
            What the score is called; None takes the name of the search's own.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : LayerScoreDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_search")
        scores = layer_scores(search, metric=metric, step=step)
        if score_name is None:
            name = metric or (search.scoring if isinstance(search.scoring, str) else None)
            score_name = "Score" if name is None else name.replace("_", " ").capitalize()
        return cls(scores, score_name=score_name).plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw the scores.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : LayerScoreDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        scores = self.scores
        places = [name for name in ("model", "layer") if name in scores]
        lines = [name for name in ("model", "pooling") if name in scores]
        where = scores.groupby(places, sort=False, dropna=False).ngroup().to_numpy()
        line_of = np.zeros(len(scores), int)
        if lines:
            line_of = scores.groupby(lines, sort=False, dropna=False).ngroup().to_numpy()
        n_lines = line_of.max() + 1
        if ax is None:
            width = min(max(5.0, 1.2 * (where.max() + 1) + 1.5), _FULL_WIDTH)
            _, ax = plt.subplots(figsize=(width, 4.5), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_ = []
        for line in range(n_lines):
            own = line_of == line
            rows = scores[own]
            # Points of several lines stand beside each other.
            x = where[own] + 0.3 * ((line + 0.5) / n_lines - 0.5)
            drawn = ax.errorbar(
                x,
                rows["mean_test_score"],
                rows["std_test_score"],
                marker="o",
                linestyle=":",
                capsize=3,
                label=", ".join(str(value) for value in rows.iloc[0][lines]) if lines else None,
            )
            self.lines_.append(drawn)
        ticks = []
        for place in range(where.max() + 1):
            rows = scores[where == place]
            widths = " / ".join(f"{n:,}" for n in dict.fromkeys(rows["n_features"]))
            ticks.append(f"{rows['layer'].iloc[0]}\n({widths})".replace(" + ", " +\n"))
        ax.set_xticks(range(len(ticks)), ticks, rotation=30, ha="right", rotation_mode="anchor")
        ax.margins(x=0.08)
        ax.set_xlabel("Layer, first to last (number of features)")
        ax.set_ylabel(self.score_name)
        ax.grid(axis="y", alpha=0.3)
        if lines:
            ax.legend()
        return self


# --- drawing --------------------------------------------------------------------------------------


class _Panel:
    """One axes: an image with its title, colour bar and labels."""

    def __init__(
        self,
        values,
        *,
        title,
        limits=None,
        bar=True,
        picture=None,
        mosaic=None,
        row_labels=None,
        column_labels=None,
        axis_labels=None,
    ):
        self.values = values
        self.title = title
        self.limits = limits
        self.bar = bar and limits is not None
        self.picture = picture
        self.mosaic = mosaic
        self.row_labels = row_labels
        self.column_labels = column_labels
        self.axis_labels = axis_labels

    @property
    def aspect(self):
        """Height over width, colour bar included."""
        shown = self.values if self.picture is None else self.picture
        if self.axis_labels is not None:
            # Entries of a matrix need not be square.
            return float(np.clip(shown.shape[0] / shown.shape[1], 0.5, 1.2))
        return shown.shape[0] / shown.shape[1] * (0.88 if self.bar else 1)

    @property
    def margin(self):
        """Inches that the labels take on the left."""
        return 0.0 if self.row_labels is None else 0.5

    @property
    def width(self):
        """Inches that it takes alone."""
        width = min(_WIDTH, max(2.5, _HEIGHT / self.aspect))
        if self.mosaic is not None:
            width = min(width, max(2.5, _TILE_WIDTH * self.mosaic.n_columns + self.margin))
        return width

    def draw(self, ax, cmap):
        """Draw and return the image."""
        low, high = self.limits or (0, 1)
        options = {"cmap": cmap, "vmin": low, "vmax": high}
        if self.picture is not None:
            height, width = self.picture.shape[:2]
            ax.imshow(_as_gray(self.picture), cmap="gray", vmin=0, vmax=255)
            # Where there is little, the picture is seen.
            strength = (self.values - low) / ((high - low) or 1)
            options.update(
                alpha=0.75 * strength,
                interpolation="bilinear",
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
        if self.axis_labels is not None:
            options["aspect"] = "auto"
        image = ax.imshow(self.values, **options)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        if self.mosaic is not None and self.mosaic.labels:
            for x, y, text in self.mosaic.labels:
                ax.text(x, y, text, fontsize=6, ha="left", va="bottom", color="0.3")
        if self.row_labels is not None:
            ax.set_yticks(*self.row_labels, fontsize=7, color="0.3")
        if self.column_labels is not None:
            ax.set_xticks(self.mosaic.column_centres, self.column_labels, fontsize=7, color="0.3")
            ax.xaxis.tick_top()
            ax.tick_params(length=0)
        if self.axis_labels is not None:
            ax.set_xlabel(self.axis_labels[0], fontsize=8, color="0.3")
            ax.set_ylabel(self.axis_labels[1], fontsize=8, color="0.3")
        if self.title:
            ax.set_title(self.title, fontsize=10)
        # Maps of fewer rows stand beside the first rows of others.
        ax.set_anchor("N")
        if self.bar:
            _draw_bar(ax, image)
        return image


class _Mosaic:
    """Tiles side by side in one array; NaN, or white, between them.

    Hundreds of axes would take minutes to draw; one image takes a fraction of a second.
    """

    def __init__(self, tiles, n_columns, labels=None):
        tiles = _resize_tiles(tiles, n_columns)
        n_tiles, height, width = tiles.shape[:3]
        self.n_columns = min(n_columns, n_tiles)
        self.n_rows = -(-n_tiles // self.n_columns)
        labelled = labels is not None and n_tiles <= _MOST_TILES
        gap = max(1, round(0.06 * width))
        # Room for the numbers of the channels.
        above = max(gap, round(0.26 * max(height, width))) if labelled else gap
        self._step_x, self._step_y = width + gap, height + above
        self._size = height, width
        shape = (
            self.n_rows * self._step_y - (0 if labelled else gap),
            self.n_columns * self._step_x - gap,
            *tiles.shape[3:],
        )
        self.pixels = np.full(shape, 1.0 if tiles.ndim == 4 else np.nan)
        self.labels = []
        top = above if labelled else 0
        for k, tile in enumerate(tiles):
            y = (k // self.n_columns) * self._step_y + top
            x = (k % self.n_columns) * self._step_x
            self.pixels[y : y + height, x : x + width] = tile
            if labelled:
                self.labels.append((x - 0.5, y - 0.5 - 0.03 * height, str(labels[k])))

    @property
    def column_centres(self):
        """Where columns have their labels."""
        return [i * self._step_x + (self._size[1] - 1) / 2 for i in range(self.n_columns)]

    def label_rows(self, numbers, text="{}"):
        """Return positions and labels of rows: the number of the first tile in each."""
        positions = [i * self._step_y + (self._size[0] - 1) / 2 for i in range(self.n_rows)]
        return positions, [text.format(number) for number in numbers[:: self.n_columns]]


def _resize_tiles(tiles, n_columns):
    """Return tiles large enough to be seen beside their gaps, and small enough to be drawn."""
    height, width = tiles.shape[1:3]
    n_rows = -(-len(tiles) // n_columns)
    repeat = -(-_TILE_SIDE // max(height, width))
    if repeat > 1:
        return tiles.repeat(repeat, axis=1).repeat(repeat, axis=2)
    step = -(-max(height * n_rows, width * n_columns) // _MOSAIC_SIDE)
    if step > 1:
        height, width = height // step * step, width // step * step
        blocks = tiles[:, :height, :width].reshape(
            len(tiles), height // step, step, width // step, step, *tiles.shape[3:]
        )
        return blocks.mean(axis=(2, 4))
    return tiles


def _n_columns(n_tiles):
    """Return 8 columns for up to 64 tiles, and twice as many as often as needed for more."""
    columns = 8
    while columns * columns < n_tiles:
        columns *= 2
    return min(columns, n_tiles)


def _scale_each(tiles):
    """Scale each tile to 0-1; a constant one becomes 0."""
    low = tiles.min(axis=(1, 2), keepdims=True)
    spread = tiles.max(axis=(1, 2), keepdims=True) - low
    return (tiles - low) / np.where(spread > 0, spread, 1)


def _scale_together(filters, normalize):
    """Scale filters (n, height, width, channels) to 0-1, together or one by one."""
    axes = None if normalize == "shared" else (1, 2, 3)
    low = filters.min(axis=axes, keepdims=True)
    spread = filters.max(axis=axes, keepdims=True) - low
    return (filters - low) / np.where(spread > 0, spread, 1)


def _draw_bar(ax, image):
    """Draw a colour bar beside an image."""
    from matplotlib.cm import ScalarMappable

    # The image's own transparency would make the bar see-through as well.
    opaque = ScalarMappable(image.norm, image.cmap)
    height, width = np.ptp(ax.get_ylim()), np.ptp(ax.get_xlim())
    aspect = 22 * max(1.0, height / width)
    bar = ax.figure.colorbar(opaque, ax=ax, fraction=0.05, pad=0.02, aspect=aspect)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)
    return bar


def _row_labels(n_rows, step, numbers):
    """Return positions and labels of at most 16 rows."""
    every = -(-n_rows // 16)
    rows = np.arange(0, n_rows, every)
    return rows * step, [str(numbers[row]) for row in rows]


def _as_gray(pixels):
    """Return a picture in gray: the colours over it are the map's."""
    return pixels @ np.array([0.299, 0.587, 0.114]) if pixels.shape[2] == 3 else pixels[..., 0]


def _make_axes(panels, ax):
    """Return a figure and an array of axes with the shape of `panels`, a list of lists."""
    import matplotlib.pyplot as plt

    shape = len(panels), len(panels[0])
    n_panels = shape[0] * shape[1]
    if ax is not None:
        axes = np.array(ax, dtype=object).ravel()
        if len(axes) != n_panels:
            raise ValueError(
                f"ax holds {len(axes)} axes, but {n_panels} are needed: one a panel, images "
                f"({shape[0]}) times layers ({shape[1]})."
            )
        axes = axes.reshape(shape)
        return axes[0, 0].figure, axes
    # The layers of one image go on in a second line, those of several images stay in columns.
    flat = [panel for row in panels for panel in row]
    most = _MOST_MOSAICS if any(panel.mosaic for panel in flat) else _MOST_PANELS
    columns = shape[1] if shape[0] > 1 else -(-shape[1] // -(-shape[1] // most))
    rows = [flat[start : start + columns] for start in range(0, n_panels, columns)]
    width = flat[0].width if n_panels == 1 else min(4.2 * columns, _FULL_WIDTH)
    heights = [
        max(panel.aspect * (width / columns - panel.margin) for panel in row) for row in rows
    ]
    figure, grid = plt.subplots(
        len(rows),
        columns,
        figsize=(width, sum(heights) + 0.6 * len(rows)),
        height_ratios=heights,
        squeeze=False,
        layout="compressed",
    )
    axes = grid.ravel()
    for empty in axes[n_panels:]:
        empty.remove()
    return figure, axes[:n_panels].reshape(shape)


def _preprocessing(transformer, source):
    if transformer.preprocessing == "auto":
        return find_architecture(source.name).preprocessing if source.kind == "zoo" else None
    return transformer.preprocessing
