"""What the displays share: panels, mosaics of tiles, color bars, axes.

The only module of the package's displays that imports matplotlib.
"""

import numpy as np

# Tiles of a mosaic that have numbers of their own, in 8 columns: what fits a page.
MOST_TILES = 64
# Pixels of a tile that is smaller itself, and of the longest side of a whole mosaic.
_TILE_SIDE, _MOSAIC_SIDE = 32, 3000
# Most inches of a figure with one panel, of one with several, and of a tile.
_WIDTH, _HEIGHT, FULL_WIDTH, _TILE_WIDTH = 7.0, 7.5, 13.0, 0.9
# Panels side by side: of tiles, which are small already, and of single maps.
_MOST_MOSAICS, _MOST_PANELS = 3, 5


class Panel:
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
            ax.imshow(as_gray(self.picture), cmap="gray", vmin=0, vmax=255)
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
            draw_bar(ax, image)
        return image


class Mosaic:
    """Tiles side by side in one array; NaN, or white, between them.

    Hundreds of axes would take minutes to draw; one image takes a fraction of a second.
    """

    def __init__(self, tiles, n_columns, labels=None):
        tiles = _resize_tiles(tiles, n_columns)
        n_tiles, height, width = tiles.shape[:3]
        self.n_columns = min(n_columns, n_tiles)
        self.n_rows = -(-n_tiles // self.n_columns)
        labelled = labels is not None and n_tiles <= MOST_TILES
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


def n_columns_for(n_tiles):
    """Return 8 columns for up to 64 tiles, and twice as many as often as needed for more."""
    columns = 8
    while columns * columns < n_tiles:
        columns *= 2
    return min(columns, n_tiles)


def scale_each(tiles):
    """Scale each tile to 0-1; a constant one becomes 0."""
    low = tiles.min(axis=(1, 2), keepdims=True)
    spread = tiles.max(axis=(1, 2), keepdims=True) - low
    return (tiles - low) / np.where(spread > 0, spread, 1)


def scale_together(filters, normalize):
    """Scale filters (n, height, width, channels) to 0-1, together or one by one."""
    axes = None if normalize == "shared" else (1, 2, 3)
    low = filters.min(axis=axes, keepdims=True)
    spread = filters.max(axis=axes, keepdims=True) - low
    return (filters - low) / np.where(spread > 0, spread, 1)


def draw_bar(ax, image):
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


def label_rows(n_rows, step, numbers):
    """Return positions and labels of at most 16 rows."""
    every = -(-n_rows // 16)
    rows = np.arange(0, n_rows, every)
    return rows * step, [str(numbers[row]) for row in rows]


def as_gray(pixels):
    """Return a picture in gray: the colours over it are the map's."""
    return pixels @ np.array([0.299, 0.587, 0.114]) if pixels.shape[2] == 3 else pixels[..., 0]


def new_axes(width, height):
    """Return axes in a figure of their own, of so many inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def make_axes(panels, ax):
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
    width = flat[0].width if n_panels == 1 else min(4.2 * columns, FULL_WIDTH)
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
