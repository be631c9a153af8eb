"""A map of all photographs, by the features of a layer."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.drawing import (
    as_text,
    class_colors,
    framed_rectangles,
    new_axes,
    text_color,
    value_colors,
)
from sklearn_cnnfeat._inspection.embedding import embed, place
from sklearn_cnnfeat._inspection.judged import judge, labels_of, n_images, warn_of_unreadable
from sklearn_cnnfeat._inspection.thumbnails import thumbnails as small_pictures

# Photographs that have thumbnails unless asked otherwise, and their longest side in pixels.
_MOST_THUMBNAILS, _SIDE = 400, 96
# Classes that the legend names.
_MOST_NAMES = 10


class EmbeddingDisplay:
    """A map of photographs: those whose features are alike lie side by side.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    points : ndarray of shape (n_photos, 2)
        Where each photograph lies.

    indices : ndarray of int
        Their positions in `X`; those that cannot be read are missing.

    y : ndarray, default=None
        The true classes.

    predicted : ndarray, default=None
        The predicted classes.

    pictures : list of ndarray, default=None
        Thumbnails. None draws dots.

    method : str, default="embedding"
        What the axes are called.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    ax_ : matplotlib Axes
        The axes.

    cells_ : ndarray of shape (n_photos, 2) or None
        Column and row of each thumbnail, counted from the left and from the bottom.

    mistakes_ : ndarray of bool
        Which photographs are predicted wrongly.

    See Also
    --------
    PredictionGalleryDisplay : The worst or least certain predictions.
    explore : The same map as a page to click through.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, EmbeddingDisplay
    >>> photos = np.random.default_rng(0).integers(0, 256, (12, 48, 48, 3), dtype=np.uint8)
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_1_relu", "avg", weights=None, random_state=0, input_size=32
    ... )
    >>> display = EmbeddingDisplay.from_estimator(cnn, photos)
    >>> display.points.shape
    (12, 2)
    """

    def __init__(
        self, points, *, indices, y=None, predicted=None, pictures=None, method="embedding"
    ):
        self.points = points
        self.indices = indices
        self.y = y
        self.predicted = predicted
        self.pictures = pictures
        self.method = method

    @classmethod
    def from_estimator(
        cls, estimator, X, y=None, *, method="pca", thumbnails="auto", step=None, ax=None
    ):
        """Compute where photographs lie and draw them there.

        Parameters
        ----------
        estimator : CNNFeatureTransformer, Pipeline, str, path or keras.Model
            A transformer, fitted or not, or a network as :class:`CNNFeatureTransformer` takes it.
            A fitted pipeline gives the features that its last step gets, and predictions.

        X : sequence of images
            The photographs, as for the estimator.

        y : array-like of shape (n_photos,), default=None
            Their classes, for the colors of frames, and to find mistakes. Fractional numbers are
            values, shown by a scale of colors.

        method : {"pca", "tsne"} or estimator, default="pca"
            How features become two numbers: the two directions in which they vary most, or t-SNE,
            which keeps neighbors together. An estimator with ``fit_transform``, such as
            ``umap.UMAP()``, is cloned. The features of a transformer alone are standardized first.

        thumbnails : {"auto"} or bool, default="auto"
            Draw each photograph in the cell of a grid that lies near its point, so that none covers
            another; or a dot at its point. "auto" takes thumbnails for up to 400 photographs.

        step : str, default=None
            Which of several networks in the pipeline.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : EmbeddingDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        labels_of(y, X, slice(None))
        judged = judge(estimator, X, step)
        warn_of_unreadable(n_images(X), len(judged.readable))
        points = embed(judged.features, method, is_scaled=judged.pipeline is not None)
        wanted = len(points) <= _MOST_THUMBNAILS if thumbnails == "auto" else thumbnails
        display = cls(
            points,
            indices=judged.readable,
            y=labels_of(y, X, judged.readable),
            predicted=judged.predicted,
            pictures=list(small_pictures(judged.pictures, judged.readable, _SIDE))
            if wanted
            else None,
            method=method if isinstance(method, str) else type(method).__name__,
        )
        return display.plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw the photographs.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : EmbeddingDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        self.ax_ = new_axes(8.0, 6.4) if ax is None else ax
        self.figure_ = self.ax_.figure
        self.mistakes_ = np.zeros(len(self.points), bool)
        shown = self.y if self.y is not None else self.predicted
        has_values = shown is not None and np.asarray(shown).dtype.kind == "f"
        if has_values:
            names, (colors, scale) = [], value_colors(shown)
            self.figure_.colorbar(scale, ax=self.ax_, label="value", shrink=0.6)
        else:
            names, colors = _colors_of(shown, len(self.points))
        if self.y is not None and self.predicted is not None and not has_values:
            self.mistakes_ = np.asarray(self.predicted) != np.asarray(self.y)
        self.cells_ = None
        if self.pictures is None:
            self._draw_dots(colors)
        else:
            self._draw_thumbnails(colors)
        self._draw_legend(names, has_frames=self.pictures is not None)
        self.ax_.set(xticks=[], yticks=[])
        self.ax_.spines[:].set_color("0.6")
        name = {"pca": "principal component", "tsne": "t-SNE"}.get(self.method, self.method)
        self.ax_.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
        self.ax_.set_title(self._title(), fontsize=10)
        return self

    def _title(self):
        text = f"{len(self.points):,} photograph{'s' if len(self.points) > 1 else ''}"
        if self.y is not None and self.predicted is not None and self.y.dtype.kind != "f":
            text += f", {self.mistakes_.sum():,} predicted wrongly"
        return text

    def _draw_dots(self, colors):
        size = float(np.clip(4000 / len(self.points), 3, 40))
        self.ax_.scatter(*self.points.T, s=size, c=colors, alpha=0.75, linewidth=0)
        if self.mistakes_.any():
            wrong = self.points[self.mistakes_]
            self.ax_.scatter(*wrong.T, s=2.5 * size + 12, marker="x", c=text_color(), linewidth=1)

    def _draw_thumbnails(self, colors):
        shapes = np.array([picture.shape[:2] for picture in self.pictures])
        # A cell has the proportions of most photographs.
        height, width = np.median(shapes, axis=0).astype(int)
        box = self.ax_.get_window_extent()
        aspect = box.width / box.height * height / width
        self.cells_, n_columns, n_rows = place(self.points, aspect)
        # One image for all: hundreds of artists would take their time.
        gap = max(2, round(0.06 * width))
        step_x, step_y = width + gap, height + gap
        canvas = np.zeros((n_rows * step_y, n_columns * step_x, 4), np.uint8)
        corners = np.empty((len(self.points), 2))
        for k, (picture, (column, row)) in enumerate(zip(self.pictures, self.cells_, strict=True)):
            fitted = _fill(picture, height, width)
            top, left = (n_rows - 1 - row) * step_y + gap // 2, column * step_x + gap // 2
            canvas[top : top + height, left : left + width, :3] = fitted
            canvas[top : top + height, left : left + width, 3] = 255
            corners[k] = left - 0.5, top - 0.5
        self.ax_.imshow(canvas, interpolation="antialiased")
        frames = framed_rectangles(corners, width, height, colors, 1.8)
        self.ax_.add_collection(frames)
        if self.mistakes_.any():
            x, y = (corners[self.mistakes_] + [0.84 * width, 0.2 * height]).T
            self.ax_.scatter(x, y, s=42, c="black", marker="o", linewidth=0, zorder=3)
            self.ax_.scatter(x, y, s=20, c="white", marker="x", linewidth=1.4, zorder=4)

    def _draw_legend(self, names, has_frames):
        marker = "s" if has_frames else "o"
        for name, color in names:
            # Names that begin with an underscore would be left out.
            name = f"\u200b{name}" if name.startswith("_") else name
            style = {"marker": marker, "linestyle": "none", "label": name}
            if has_frames:
                style.update(markerfacecolor="none", markeredgewidth=2)
            self.ax_.plot([], [], color=color, **style)
        if self.mistakes_.any():
            self.ax_.plot([], [], color=text_color(), marker="x", linestyle="none", label="mistake")
        if names or self.mistakes_.any():
            self.ax_.legend(
                fontsize=8,
                loc="upper left",
                bbox_to_anchor=(1.01, 1),
                borderaxespad=0,
                frameon=False,
            )


def _colors_of(labels, n):
    """Return names and colors for the legend, and the color of each photograph."""
    if labels is None:
        return [], np.tile((0.4, 0.4, 0.4, 1.0), (n, 1))
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    # The largest classes have colors of their own.
    order = np.argsort(-counts, kind="stable")
    own = np.empty((len(classes), 4))
    own[order] = class_colors(len(classes))
    named = np.sort(order[:_MOST_NAMES])
    names = [(as_text(classes[k]), own[k]) for k in named]
    if len(classes) > _MOST_NAMES:
        rest = len(classes) - _MOST_NAMES
        names.append((f"{rest:,} smaller classes", own[order[-1]]))
    return names, own[codes]


def _fill(picture, height, width):
    """Return a picture as its part in the middle with these proportions, in this size."""
    rows, columns = picture.shape[:2]
    scale = min(rows / height, columns / width)
    y = (rows - scale * height) / 2 + scale * (np.arange(height) + 0.5)
    x = (columns - scale * width) / 2 + scale * (np.arange(width) + 0.5)
    y, x = np.clip(y.astype(int), 0, rows - 1), np.clip(x.astype(int), 0, columns - 1)
    return picture[y[:, None], x]
