"""What the displays share: panels, mosaics of tiles, color bars, axes.

The only module of the package's displays that imports matplotlib.
"""

from dataclasses import dataclass

import numpy as np

# Tiles of a mosaic that have numbers of their own, in 8 columns: what fits a page.
MOST_TILES = 64
# Pixels of a tile that is smaller itself, and of the longest side of a whole mosaic.
_TILE_SIDE, _MOSAIC_SIDE = 32, 3000
# Most inches of a figure with one panel, of one with several, and of a tile.
_WIDTH, _HEIGHT, FULL_WIDTH, _TILE_WIDTH = 7.0, 7.5, 13.0, 0.9
# Panels side by side: of tiles, which are small already, and of single maps.
_MOST_MOSAICS, _MOST_PANELS = 3, 5
# Most inches from top to bottom: panels shrink beyond it.
_MOST_HEIGHT = 24.0
# Width of a photograph beside a mosaic, as a share of the mosaic's.
_PHOTO_SHARE = 0.4
# Robust color scales span these percentiles, and so many interquartile ranges beyond the quartiles:
# what padding leaves in the corners of a map must not take all colors.
_ROBUST, _MOST_RANGES = (2.0, 98.0), 3.0
# Paul Tol's "bright" and "muted" schemes, for people who see few colors as well.
_CLASS_COLORS = (
    "#4477AA #EE6677 #228833 #CCBB44 #66CCEE #AA3377 #882255 #44AA99 #999933 #332288".split()
)


@dataclass(eq=False)
class Panel:
    """One axes: an image with its title, color bar and labels."""

    values: np.ndarray
    title: str | None
    # Smallest and largest value of the colors.
    limits: tuple | None = None
    bar: bool = True
    # What the values are laid over.
    picture: np.ndarray | None = None
    mosaic: "Mosaic | None" = None
    # Positions and texts.
    row_labels: tuple | None = None
    column_labels: list | None = None
    axis_labels: tuple | None = None
    pixel_aspect: float = 1.0
    extend: str = "neither"

    def __post_init__(self):
        self.bar = self.bar and self.limits is not None

    @property
    def is_photo(self):
        """Whether it shows colors as they are."""
        return self.values.ndim == 3 and self.mosaic is None

    @property
    def aspect(self):
        """Height over width, color bar included."""
        shown = self.values if self.picture is None else self.picture
        if self.axis_labels is not None:
            # Entries of a matrix need not be square.
            return float(np.clip(shown.shape[0] / shown.shape[1], 0.5, 1.2))
        stretch = self.pixel_aspect if self.picture is None else 1.0
        return shown.shape[0] / shown.shape[1] * stretch * (0.88 if self.bar else 1)

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
        options = {"cmap": cmap, "vmin": low, "vmax": high, "aspect": self.pixel_aspect}
        if self.picture is not None:
            height, width = self.picture.shape[:2]
            ax.imshow(as_gray(self.picture), cmap="gray", vmin=0, vmax=255)
            # Where there is little, the picture is seen.
            strength = (self.values - low) / ((high - low) or 1)
            options.update(
                alpha=0.75 * np.clip(strength, 0, 1),
                aspect=1.0,
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
                ax.text(x, y, text, fontsize=6, ha="left", va="bottom", color="0.5")
        if self.row_labels is not None:
            ax.set_yticks(*self.row_labels, fontsize=7, color="0.5")
        if self.column_labels is not None:
            ax.set_xticks(self.mosaic.column_centres, self.column_labels, fontsize=7, color="0.5")
            ax.xaxis.tick_top()
            ax.tick_params(length=0)
        if self.axis_labels is not None:
            ax.set_xlabel(self.axis_labels[0], fontsize=8, color="0.5")
            ax.set_ylabel(self.axis_labels[1], fontsize=8, color="0.5")
        if self.title:
            ax.set_title(self.title, fontsize=10)
        # Maps of fewer rows stand beside the first rows of others.
        ax.set_anchor("N")
        if self.bar:
            draw_bar(ax, image, self.extend)
        return image


def photo_panel(pixels, title="image"):
    """Return the panel of a photograph in its colors."""
    gray = pixels.shape[2] == 1
    return Panel(np.repeat(pixels, 3, axis=2) if gray else pixels, title=title)


class Mosaic:
    """Tiles side by side in one array; NaN, or a transparent color, between them.

    Hundreds of axes would take minutes to draw; one image takes a fraction of a second.
    """

    def __init__(self, tiles, n_columns, labels=None, pixel_aspect=1.0, most=MOST_TILES):
        tiles = _resize_tiles(tiles, n_columns)
        if tiles.ndim == 4:
            tiles = np.concatenate([tiles, np.ones_like(tiles[..., :1])], axis=-1)
        n_tiles, height, width = tiles.shape[:3]
        self.n_columns = min(n_columns, n_tiles)
        self.n_rows = -(-n_tiles // self.n_columns)
        labelled = labels is not None and (most is None or n_tiles <= most)
        gap = max(1, round(0.06 * width))
        # Room for the numbers of the channels.
        above = gap
        if labelled:
            share = 0.26 * max(0.65, min(1.0, self.n_columns / 8))
            above = max(gap, round(share * max(height * pixel_aspect, width) / pixel_aspect))
        self._step_x, self._step_y = width + gap, height + above
        self._size = height, width
        shape = (
            self.n_rows * self._step_y - (0 if labelled else gap),
            self.n_columns * self._step_x - gap,
            *tiles.shape[3:],
        )
        self.pixels = np.full(shape, 0.0 if tiles.ndim == 4 else np.nan)
        self.labels = []
        top = above if labelled else 0
        for k, tile in enumerate(tiles):
            y = (k // self.n_columns) * self._step_y + top
            x = (k % self.n_columns) * self._step_x
            self.pixels[y : y + height, x : x + width] = tile
            if labelled and labels[k] != "":
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


def n_columns_for(n_tiles):
    """Return the columns of a grid: square up to 16 tiles, 8 up to 64, more for more."""
    if n_tiles <= 3:
        return n_tiles
    if n_tiles <= 16:
        return int(np.ceil(np.sqrt(n_tiles)))
    columns = 8
    while columns * columns < n_tiles:
        columns *= 2
    return columns


def color_limits(values, robust):
    """Return the smallest and largest value of a color scale, without outliers if `robust`."""
    low, high = float(np.min(values)), float(np.max(values))
    if not robust:
        return low, high
    bottom, first, third, top = map(float, np.percentile(values, [_ROBUST[0], 25, 75, _ROBUST[1]]))
    if third > first:
        reach = _MOST_RANGES * (third - first)
        return max(bottom, first - reach), min(top, third + reach)
    # Maps that are 0 nearly everywhere keep their few values.
    return (bottom, top) if top > bottom else (low, high)


def extended(values, limits):
    """Return which ends of a color bar hold values beyond its limits, as matplotlib says it."""
    below, above = np.min(values) < limits[0], np.max(values) > limits[1]
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def scale_each(tiles, robust=False):
    """Scale each tile to 0-1; a constant one becomes 0."""
    low, high = np.array([color_limits(tile, robust) for tile in tiles]).T[..., None, None]
    spread = high - low
    return np.clip((tiles - low) / np.where(spread > 0, spread, 1), 0, 1)


def scale_together(filters, normalize, centered=False):
    """Scale filters (n, height, width, channels) to 0-1, together or one by one.

    `centered` puts zero at 0.5.
    """
    if centered:
        largest = np.abs(filters).max()
        return 0.5 + filters / (2 * largest if largest > 0 else 1)
    axes = None if normalize == "shared" else (1, 2, 3)
    low = filters.min(axis=axes, keepdims=True)
    spread = filters.max(axis=axes, keepdims=True) - low
    return (filters - low) / np.where(spread > 0, spread, 1)


def draw_bar(ax, image, extend="neither"):
    """Draw a color bar beside an image."""
    from matplotlib.cm import ScalarMappable

    # The image's own transparency would make the bar see-through as well.
    opaque = ScalarMappable(image.norm, image.cmap)
    height, width = np.ptp(ax.get_ylim()), np.ptp(ax.get_xlim())
    aspect = 22 * max(1.0, height / width)
    bar = ax.figure.colorbar(opaque, ax=ax, fraction=0.05, pad=0.02, aspect=aspect, extend=extend)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)
    return bar


def as_text(value):
    """Return a class or number for a title: short, and without what matplotlib takes for math."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    text = str(value).replace("$", r"\$")
    return text if len(text) <= 40 else f"{text[:37]}..."


def draw_decision(ax, decision, cmap="RdBu_r", alpha=0.85):
    """Draw the map of a decision over its picture in gray, and return the map's image.

    Lines enclose what lies beyond half of the largest value, so that signs need no colors: solid
    for the target, dashed against it.
    """
    values, pixels = decision.map, decision.image
    limit = float(np.abs(values).max()) or 1.0
    height, width = pixels.shape[:2]
    ax.imshow(as_gray(pixels), cmap="gray", vmin=0, vmax=255)
    image = ax.imshow(
        values,
        cmap=cmap,
        vmin=-limit,
        vmax=limit,
        alpha=alpha * np.sqrt(np.abs(values) / limit),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="bilinear",
    )
    if min(values.shape) > 1:
        rows, columns = (
            (np.arange(n) + 0.5) * length / n - 0.5
            for n, length in zip(values.shape, (height, width), strict=True)
        )
        for sign, style in ((1, "solid"), (-1, "dashed")):
            if (sign * values).max() > limit / 2:
                ax.contour(
                    columns,
                    rows,
                    sign * values,
                    [limit / 2],
                    colors="black",
                    linewidths=1.0,
                    linestyles=style,
                )
    ax.set_axis_off()
    return image


def label_rows(n_rows, step, numbers):
    """Return positions and labels of at most 16 rows."""
    every = -(-n_rows // 16)
    rows = np.arange(0, n_rows, every)
    return rows * step, [str(numbers[row]) for row in rows]


def as_gray(pixels):
    """Return a picture in gray: the colors over it are the map's."""
    return pixels @ np.array([0.299, 0.587, 0.114]) if pixels.shape[2] == 3 else pixels[..., 0]


def new_axes(width, height):
    """Return axes in a figure of their own, of so many inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def new_grid(n_rows, n_columns, width, height):
    """Return a figure and an array of empty axes without frames, of so many inches."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    for ax in axes.ravel():
        ax.set_axis_off()
        # Titles stand at one height, whatever the proportions of the pictures below.
        ax.set_anchor("N")
    return figure, axes


def framed_rectangles(corners, width, height, colors, linewidth):
    """Return rectangles without a face as one artist."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    return PatchCollection(
        [Rectangle(corner, width, height) for corner in corners],
        facecolor="none",
        edgecolor=colors,
        linewidth=linewidth,
    )


def text_color():
    """Return the color of text, which dark styles change."""
    import matplotlib

    return matplotlib.rcParams["text.color"]


def class_colors(n):
    """Return colors for classes: ten that most people can tell apart, gray for further ones."""
    import matplotlib

    colors = [matplotlib.colors.to_rgba(color) for color in _CLASS_COLORS]
    return colors[:n] + [matplotlib.colors.to_rgba("0.6")] * (n - len(colors))


def value_colors(values):
    """Return one color per value, and their scale for a color bar."""
    import matplotlib
    from matplotlib.cm import ScalarMappable

    scale = ScalarMappable(matplotlib.colors.Normalize(min(values), max(values)), "viridis")
    return scale.to_rgba(values), scale


def make_axes(panels, ax, per_line=None):
    """Return a figure and an array of axes with the shape of `panels`, a list of lists.

    `per_line` is the number of panels side by side, where the rows of `panels` are not lines.
    """
    import matplotlib.pyplot as plt

    shape = len(panels), len(panels[0])
    n_panels = shape[0] * shape[1]
    if ax is not None:
        axes = np.array(ax, dtype=object).ravel()
        if len(axes) != n_panels:
            raise ValueError(
                f"ax holds {len(axes)} axes, but {n_panels} are needed: one per panel, images "
                f"({shape[0]}) times layers ({shape[1]})."
            )
        axes = axes.reshape(shape)
        return axes[0, 0].figure, axes
    # The layers of one image go on in a second line, those of several images stay in columns.
    flat = [panel for row in panels for panel in row]
    most = _MOST_MOSAICS if any(panel.mosaic for panel in flat) else _MOST_PANELS
    columns = shape[1] if shape[0] > 1 else -(-shape[1] // -(-shape[1] // most))
    columns = per_line or columns
    lines = [flat[start : start + columns] for start in range(0, n_panels, columns)]
    widths = _widths(lines)
    heights = [
        max(
            panel.aspect * (width - panel.margin)
            for panel, width in zip(line, widths, strict=False)
        )
        for line in lines
    ]
    scale = min(1.0, _MOST_HEIGHT / sum(heights))
    figure, grid = plt.subplots(
        len(lines),
        columns,
        figsize=(
            scale * sum(widths),
            scale * sum(heights) + 0.6 * (len(lines) if scale == 1 else 1),
        ),
        height_ratios=heights,
        width_ratios=widths,
        squeeze=False,
        # "compressed" takes axes for equally wide.
        layout="compressed" if len(set(widths)) == 1 else "constrained",
    )
    axes = grid.ravel()
    for empty in axes[n_panels:]:
        empty.remove()
    return figure, axes[:n_panels].reshape(shape)


def _widths(lines):
    """Return the inches of each column; a photograph stands small beside one mosaic."""
    first = lines[0]
    if len(lines) > 1 or len(first) > 2 or not first[0].is_photo:
        return (
            [min(4.2, FULL_WIDTH / len(first))] * len(first) if len(first) > 1 else [first[0].width]
        )
    if len(first) == 1:
        return [first[0].width]
    if first[1].mosaic is None:
        return [min(4.2, first[1].width)] * 2
    wide = max(4.5, min(first[1].width, FULL_WIDTH / (1 + _PHOTO_SHARE)))
    return [max(2.2, _PHOTO_SHARE * wide), wide]
