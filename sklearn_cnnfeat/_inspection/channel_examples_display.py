"""What excites a channel: the photographs with its largest values, cut to what it sees there."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.channel_examples import examples_of
from sklearn_cnnfeat._inspection.drawing import new_grid
from sklearn_cnnfeat._inspection.judged import (
    NONE_READABLE,
    check_some,
    warn_of_unreadable,
)
from sklearn_cnnfeat._inspection.maps import picture
from sklearn_cnnfeat._inspection.receptive_field import receptive_field
from sklearn_cnnfeat._network.networks import open_network
from sklearn_cnnfeat._steps import as_transformer
from sklearn_cnnfeat._transformer import extractor_for

# Inches of an example's width and of its title.
_SIDE, _TITLE = 1.35, 0.3


class ChannelExamplesDisplay:
    """The photographs that excite channels most, and where in them.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    crops : list of list of ndarray
        For each channel the parts of photographs that the strongest positions see, the strongest
        first.

    channels : ndarray of int
        The channels.

    layer : str
        Name of the layer.

    values : list of ndarray
        The channels' values there.

    indices : list of ndarray of int
        Positions of the photographs in `X`.

    places : list of ndarray
        Row and column of each position in the layer's maps.

    boxes : list of ndarray
        Left, top, right and bottom of each crop, in pixels of the photograph as it is drawn.

    centers : list of ndarray
        Center of each position, x and y in pixels of its crop.

    field : ReceptiveField or None
        Size, stride and start of the layer's receptive field, in pixels of the network's input.
        None where positions see the whole image.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    axes_ : ndarray of matplotlib Axes, of shape (n_channels, n_examples)
        One per crop.

    See Also
    --------
    FeatureMapDisplay : The maps of all channels for one photograph.
    FilterDisplay : The filters of a convolution.

    Notes
    -----
    The receptive field of a position is the part of the network's input that it depends on. It is
    computed from the graph: each convolution and pooling widens it. Gates that weigh channels by a
    mean over the whole image (squeeze and excitation) are left out. The circle marks the middle of
    the field, where it is most sensitive; fields of late layers are larger than the image.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cnnfeat import ChannelExamplesDisplay, CNNFeatureTransformer
    >>> photos = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), dtype=np.uint8)
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_1_relu", weights=None, random_state=0, input_size=32
    ... )
    >>> display = ChannelExamplesDisplay.from_estimator(cnn, photos, channel=3, n_examples=4)
    >>> display.field.size
    (7, 7)
    """

    def __init__(
        self, crops, *, channels, layer, values, indices, places, boxes, centers, field=None
    ):
        self.crops = crops
        self.channels = channels
        self.layer = layer
        self.values = values
        self.indices = indices
        self.places = places
        self.boxes = boxes
        self.centers = centers
        self.field = field

    @classmethod
    def from_estimator(cls, estimator, X, channel, layer=None, *, n_examples=8, step=None, ax=None):
        """Find the photographs that excite channels most, and draw what the channels see there.

        Each photograph goes through the network once, for all channels, and maps are held for a
        few photographs at a time.

        Parameters
        ----------
        estimator : CNNFeatureTransformer, Pipeline, str, path or keras.Model
            A transformer, fitted or not, a pipeline with one, or a network as
            :class:`CNNFeatureTransformer` takes it.

        X : sequence of images
            The photographs.

        channel : int or sequence of int
            The channel; several have a line each.

        layer : str or int, default=None
            The layer. None takes the transformer's own.

        n_examples : int, default=8
            Photographs for each channel.

        step : str, default=None
            Which of several networks in a pipeline.

        ax : array of matplotlib Axes, default=None
            Where to draw: one for each channel and example.

        Returns
        -------
        display : ChannelExamplesDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if n_examples < 1:
            raise ValueError(f"n_examples={n_examples} must be at least 1.")
        check_some(X)
        extractor, images = extractor_for(as_transformer(estimator, step), X)
        extractor, channels, examples, n_readable = examples_of(
            extractor, images, layer, channel, n_examples
        )
        if not n_readable:
            raise ValueError(NONE_READABLE)
        warn_of_unreadable(len(images), n_readable)
        field = _field_of(extractor)
        found = [[_crop(extractor, images, field, *one) for one in row] for row in examples]
        display = cls(
            [[crop for crop, _, _ in row] for row in found],
            channels=channels,
            layer=extractor.layers[0],
            values=[np.array([value for value, *_ in row]) for row in examples],
            indices=[np.array([i for _, i, *_ in row]) for row in examples],
            places=[np.array([example[2:] for example in row]) for row in examples],
            boxes=[np.array([box for _, box, _ in row]) for row in found],
            centers=[np.array([center for *_, center in row]) for row in found],
            field=field,
        )
        return display.plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw the crops.

        Parameters
        ----------
        ax : array of matplotlib Axes, default=None
            Where to draw: one for each channel and example.

        Returns
        -------
        display : ChannelExamplesDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        n_lines, n_columns = len(self.crops), max(map(len, self.crops))
        if ax is None:
            tallest = max(crop.shape[0] / crop.shape[1] for line in self.crops for crop in line)
            height = _SIDE * min(1.2, tallest) + _TITLE
            size = _SIDE * n_columns + 0.3, height * n_lines + 0.4
            self.figure_, self.axes_ = new_grid(n_lines, n_columns, *size)
        else:
            axes = np.array(ax, dtype=object)
            if axes.size != n_lines * n_columns:
                raise ValueError(
                    f"ax holds {axes.size} axes, but {n_lines * n_columns} are needed: "
                    f"{n_columns} examples for each of {n_lines} channels."
                )
            self.axes_ = axes.reshape(n_lines, n_columns)
            self.figure_ = self.axes_[0, 0].figure
        for line, channel in enumerate(self.channels):
            for k, crop in enumerate(self.crops[line]):
                ax_ = self.axes_[line, k]
                ax_.set_axis_off()
                ax_.imshow(crop)
                x, y = self.centers[line][k]
                for color, width in (("black", 2.6), ("white", 1.2)):
                    ax_.plot(
                        x, y, "o", markersize=9, mfc="none", mec=color, mew=width, clip_on=False
                    )
                first = f"channel {channel}: " if k == 0 else ""
                ax_.set_title(f"{first}{self.values[line][k]:.3g}", fontsize=8, loc="left")
        size = "the whole image"
        if self.field is not None:
            size = f"{self.field.size[0]} x {self.field.size[1]} pixels of the network's input"
        self.figure_.suptitle(f"{self.layer}: what excites it most, seen in {size}", fontsize=10)
        return self


def _field_of(extractor):
    """Return the receptive field of a layer; None where a framework computes it."""
    if extractor.engine not in ("openvino", "ncnn"):
        return None
    network = open_network(extractor.spec, extractor.engine, extractor.model)
    return receptive_field(network.read().output(0))


def _crop(extractor, images, field, value, i, row, column):
    """Return the part of a photograph that a position sees, its box, and the position's center."""
    pixels = picture(extractor, images, i)
    height, width = pixels.shape[:2]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    rows, columns, _ = extractor.map_shapes[0]
    if field is None or extractor.input_size is None:
        center = (column + 0.5) / columns * width, (row + 0.5) / rows * height
        return pixels, (0, 0, width, height), center
    scale = np.divide((height, width), extractor.input_size)
    top, left, bottom, right = np.multiply(field.box(row, column), [*scale, *scale])
    center_y, center_x = (top + bottom) / 2, (left + right) / 2
    # What lies in the padding is not there to be shown.
    top, left = max(0, int(top)), max(0, int(left))
    bottom, right = min(height, int(np.ceil(bottom))), min(width, int(np.ceil(right)))
    center = (
        float(np.clip(center_x, left, right - 1)) - left,
        float(np.clip(center_y, top, bottom - 1)) - top,
    )
    return pixels[top:bottom, left:right], (left, top, right, bottom), center
