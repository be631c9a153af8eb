"""The pictures: their numbers are the network's own, and they are never blank."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_cnnfeat import (
    CNNFeatureTransformer,
    DecisionMapDisplay,
    FeatureMapDisplay,
    FilterDisplay,
    layer_summary,
)
from sklearn_cnnfeat._network import keras_models

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def keras():
    return keras_models.import_keras()


@pytest.fixture(scope="module")
def photos_():
    return load_sample_images().images


@pytest.fixture(scope="module")
def network(keras):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inner = keras.Sequential(
        [
            keras.Input((48, 48, 3)),
            layers.Conv2D(64, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(name="pool"),
        ],
        name="inner",
    )
    inputs = keras.Input((48, 48, 3))
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)
    x = inner(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(512, 1, name="point")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(10, name="dense")(x))


def keras_output(keras, model, output, image):
    pixels = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR))
    return np.asarray(keras.Model(model.inputs, output)(pixels[np.newaxis].astype(np.float32)))[0]


def pixels_of(figure):
    """Draw the figure and return what came out."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def assert_drawn(display):
    """A picture with content, within its figure, with no label over another."""
    pixels = pixels_of(display.figure_)
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 50, "blank"
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border.mean(axis=1) > 200).mean() > 0.5, "the picture is cut off"
    renderer = display.figure_.canvas.get_renderer()
    for ax in display.figure_.axes:
        whole = ax.get_tightbbox(renderer)
        assert whole.x0 >= -2 and whole.x1 <= pixels.shape[1] + 2
        assert whole.y0 >= -2 and whole.y1 <= pixels.shape[0] + 2
        texts = [*ax.texts, ax.title, *([] if ax.images == [] else ax.get_yticklabels())]
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i]), "labels overlap"


# --- feature maps ---------------------------------------------------------------------------------


def test_maps_are_those_of_keras(keras, network, photos_):
    display = FeatureMapDisplay.from_estimator(
        network, photos_[0], layer=["inner/conv", "inner/pool", "dense"]
    )
    assert display.layers == ["inner/conv", "inner/pool", "dense"]
    model = network.get_layer("inner")
    scaled = np.asarray(
        Image.fromarray(photos_[0]).resize((48, 48), Image.Resampling.BILINEAR), np.float32
    )[np.newaxis]
    scaled = np.asarray(network.get_layer("rescale")(scaled))
    for name, values in zip(["conv", "pool"], display.maps, strict=False):
        cut = keras.Model(model.inputs, model.get_layer(name).output)
        np.testing.assert_allclose(values, np.asarray(cut(scaled)), rtol=1e-5, atol=1e-6)
    expected = keras_output(keras, network, network.output, photos_[0])
    np.testing.assert_allclose(display.maps[2][0], expected, rtol=1e-4, atol=1e-5)
    assert_drawn(display)


def test_what_is_drawn_is_what_was_computed(network, photos_):
    display = FeatureMapDisplay.from_estimator(
        network, photos_[0], layer="conv", normalize="shared", channels=[5, 0, 63]
    )
    drawn = np.asarray(display.images_[0, 0].get_array().filled(np.nan))
    tiles = [drawn[~np.isnan(drawn).all(axis=1)][:, x : x + 46] for x in (0, 49, 98)]
    for tile, channel in zip(tiles, [5, 0, 63], strict=True):
        np.testing.assert_array_equal(tile, display.maps[0][0, ..., channel])
    labels = [text.get_text() for text in display.axes_[0, 0].texts]
    assert labels == ["5", "0", "63"]
    assert_drawn(display)


def test_each_channel_on_its_own_scale(network, photos_):
    display = FeatureMapDisplay.from_estimator(network, photos_[0], layer="conv")
    drawn = np.asarray(display.images_[0, 0].get_array().filled(np.nan))
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    assert (low, high) == (0, 1)
    assert len(display.axes_[0, 0].texts) == 64
    assert display.axes_.shape == (1, 1)
    assert "conv\n64 maps, 46 x 46" in display.axes_[0, 0].get_title()
    assert_drawn(display)


def test_first_strongest_and_all_channels(network, photos_):
    def channels(which):
        return FeatureMapDisplay.from_estimator(network, photos_[0], layer="point", channels=which)

    assert channels(None).channels[0].tolist() == list(range(64))
    assert channels(3).channels[0].tolist() == [0, 1, 2]
    assert channels([-1, 2]).channels[0].tolist() == [511, 2]
    strongest = channels("strongest")
    strength = np.abs(strongest.maps[0]).mean(axis=(0, 1, 2))
    assert strongest.channels[0][0] == strength.argmax()
    assert (np.diff(strength[strongest.channels[0]]) <= 0).all()
    everything = channels("all")
    assert len(everything.channels[0]) == 512
    assert_drawn(everything)


@pytest.mark.parametrize("combine", ["sum", "mean", "max", "weights"])
def test_fused(network, photos_, combine):
    weights = np.linspace(-1, 1, 64)
    given = weights if combine == "weights" else combine
    display = FeatureMapDisplay.from_estimator(network, photos_[0], layer="conv", combine=given)
    maps = display.maps[0][0]
    expected = maps @ weights if combine == "weights" else getattr(maps, combine)(axis=-1)
    drawn = display.images_[0, 0]
    np.testing.assert_allclose(np.asarray(drawn.get_array()), expected, rtol=1e-5, atol=1e-5)
    low, high = drawn.get_clim()
    assert expected.min() <= low < high <= expected.max()
    display.plot(robust=False)
    limits = display.images_[0, 0].get_clim()
    assert limits == pytest.approx((expected.min(), expected.max()))
    assert len(display.figure_.axes) == 3, "the photograph, the map and a color bar"
    assert_drawn(display)


def test_over_the_picture(network, photos_):
    display = FeatureMapDisplay.from_estimator(
        network, photos_[1], layer="pool", combine="mean", overlay=True
    )
    picture, fused = display.axes_[0, 0].images
    # The photograph has its own proportions, and the map stretches over all of it.
    assert picture.get_array().shape == photos_[1].shape[:2]
    assert fused.get_extent() == [-0.5, 639.5, 426.5, -0.5]
    np.testing.assert_array_equal(display.pictures[0], photos_[1])
    assert_drawn(display)


def test_overlays_that_lack_something(network, photos_):
    channels = FeatureMapDisplay.from_estimator(network, photos_[1], layer="pool")
    fused = FeatureMapDisplay.from_estimator(network, photos_[1], layer="pool", combine="mean")
    fused.plot(overlay=True)  # the picture is kept
    fused.pictures = None
    for display in (channels, fused):
        with pytest.raises(ValueError, match=r"from_estimator\(.*overlay=True\) makes one"):
            display.plot(overlay=True)


def test_the_photograph_stands_beside_its_maps(network, photos_):
    display = FeatureMapDisplay.from_estimator(network, photos_, layer="conv", channels=9)
    assert len(display.image_axes_) == 2 and display.axes_.shape == (2, 1)
    for ax, photo in zip(display.image_axes_, photos_, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), photo)
    # A tile has the proportions of the photograph, 427 x 640, and nine stand 3 x 3.
    drawn = display.images_[0, 0]
    aspect = drawn.axes.get_aspect()
    assert aspect == pytest.approx((427 / 640) / (46 / 46))
    height, width = drawn.get_array().shape
    assert height == pytest.approx(width, rel=0.1)
    alone = FeatureMapDisplay.from_estimator(network, photos_[0], layer="conv", show_image=False)
    assert alone.image_axes_ == [] and len(alone.figure_.axes) == 1
    assert_drawn(display)


def test_corners_do_not_take_all_colors(network, photos_):
    display = FeatureMapDisplay.from_estimator(network, photos_[0], layer="conv", combine="mean")
    fused = display.combined[0]
    fused[0, :4, :2] = 1000 * np.abs(fused).max()
    rest = np.delete(fused[0].ravel(), [r * 46 + c for r in range(4) for c in range(2)])
    display.plot()
    low, high = display.images_[0, 0].get_clim()
    assert rest.min() <= low < high <= rest.max()
    assert display.figure_.axes[-1].get_ylim()[1] == pytest.approx(high)
    display.plot(robust=False)
    assert display.images_[0, 0].get_clim()[1] == fused.max()


@pytest.mark.slow
def test_more_photographs_than_a_figure_shows(network, photos_):
    draw = FeatureMapDisplay.from_estimator
    with pytest.raises(ValueError, match="13 images are more than one figure can show: at most 12"):
        draw(network, [photos_[0]] * 13, layer="conv")
    many = draw(network, [photos_[0]] * 60, layer="pool", combine="mean", overlay=True)
    width, height = many.figure_.get_size_inches()
    assert width <= 13.1 and height <= 26
    assert many.axes_.shape == (60, 1)


def test_first_layer_by_its_index(network, photos_):
    by_index = FeatureMapDisplay.from_estimator(network, photos_[0], layer=0)
    first = layer_summary(network)["path"][0]
    assert by_index.layers == [first]
    by_name = FeatureMapDisplay.from_estimator(network, photos_[0], layer=first)
    np.testing.assert_array_equal(by_index.maps[0], by_name.maps[0])


def test_several_images_and_layers(network, photos_):
    display = FeatureMapDisplay.from_estimator(
        network, [*photos_, photos_[0]], layer=["conv", "pool"], combine="max", overlay=True
    )
    assert display.axes_.shape == (3, 2)
    assert display.axes_[0, 1].get_title().startswith("inner/pool\nmax of 64 maps")
    assert display.axes_[2, 1].get_title() == ""
    np.testing.assert_array_equal(
        display.images_[0, 0].get_array(), display.images_[2, 0].get_array()
    )
    assert_drawn(display)


def test_vectors_are_pictures_too(network, photos_):
    display = FeatureMapDisplay.from_estimator(network, photos_[0], layer="mean")
    drawn = display.images_[0, 0].get_array()
    assert drawn.shape == (16, 32)
    np.testing.assert_array_equal(np.ravel(drawn), display.maps[0][0])
    assert_drawn(display)
    odd = FeatureMapDisplay.from_estimator(network, photos_[0], layer="dense")
    assert odd.images_[0, 0].get_array().shape == (3, 4)
    assert odd.images_[0, 0].get_array().mask.sum() == 2
    assert_drawn(odd)


def test_all_that_is_an_image_or_a_network(network, photos_, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photos_[0]).save(path)
    images = [photos_[0], str(path), path, path.read_bytes(), Image.open(path), [path]]
    fitted = CNNFeatureTransformer(network, "pool", "avg").fit(photos_)
    pipeline = make_pipeline(fitted, StandardScaler(), LogisticRegression())
    pipeline.fit(photos_, [0, 1])
    networks = [network, fitted, CNNFeatureTransformer(network, "pool"), pipeline]
    first = FeatureMapDisplay.from_estimator(network, photos_[0], layer="pool")
    for estimator, image in [(network, x) for x in images] + [(x, photos_[0]) for x in networks]:
        layer = "pool" if estimator is network else None
        display = FeatureMapDisplay.from_estimator(estimator, image, layer=layer)
        np.testing.assert_array_equal(display.maps[0], first.maps[0])
    gray = photos_[0][..., 0]
    assert len(FeatureMapDisplay.from_estimator(network, gray, layer="pool").maps[0]) == 1
    assert fitted.pooling == "avg" and fitted.transform(photos_).shape == (2, 64)


def test_rows_of_flattened_images(keras):
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, name="c")])
    cnn = CNNFeatureTransformer(model, "c", image_shape=(8, 8), value_range=(0, 16))
    X = load_digits().data
    one = FeatureMapDisplay.from_estimator(cnn, X[0], combine="mean", overlay=True)
    assert len(one.maps[0]) == 1
    assert one.pictures[0].shape == (8, 8, 1) and one.pictures[0].max() > 200
    assert len(FeatureMapDisplay.from_estimator(cnn, X[:3]).maps[0]) == 3
    assert_drawn(one)


def test_random_weights_are_those_of_the_fitted_network(photos_):
    cnn = CNNFeatureTransformer("mobilenet", "conv1_relu", weights=None, input_size=32)
    features = cnn.fit_transform(photos_[:1])
    display = FeatureMapDisplay.from_estimator(cnn, photos_[0])
    np.testing.assert_array_equal(display.maps[0].reshape(1, -1), features)


def test_into_axes_of_ones_own(network, photos_):
    figure, axes = plt.subplots(1, 2)
    display = FeatureMapDisplay.from_estimator(
        network, photos_[0], layer=["conv", "pool"], combine="sum", ax=axes
    )
    assert display.figure_ is figure
    assert list(display.axes_.ravel()) == list(axes)
    again = display.plot(cmap="gray")
    assert again is display and again.figure_ is not figure
    with pytest.raises(ValueError, match=r"ax holds 1 axes, but 2 are needed"):
        display.plot(ax=axes[0])


def test_hundreds_of_maps_are_one_image(keras, photos_):
    """Matplotlib takes its time for each artist: their number must not grow with that of maps."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((112, 112, 3)), keras.layers.Conv2D(512, 3, padding="same", name="wide")]
    )
    for channels, n_labels in [(64, 64), ("all", 0)]:
        display = FeatureMapDisplay.from_estimator(model, photos_[0], channels=channels)
        ax = display.axes_[0, 0]
        assert len(ax.images) == 1
        assert len(ax.texts) == n_labels
        assert len(ax.get_yticks()) <= 16 * 2
        # And the image holds no more pixels than a screen can show.
        assert max(display.images_[0, 0].get_array().shape) <= 3200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "dense", "combine": "sum"}, "'dense' gives a vector of 10 numbers, no maps"),
        ({"layer": "conv", "combine": [1, 2]}, r"weights of shape \(2,\), but .* has 64 channels"),
        ({"layer": "conv", "combine": "median"}, "combine must be one of 'sum', 'mean', 'max'"),
        ({"layer": "conv", "channels": [3, 64]}, "Channel 64 is out of range: .* has 64 channels"),
        ({"layer": "conv", "channels": [-65]}, "Channel -65 is out of range"),
        ({"layer": "conv", "channels": []}, "channels must be a number"),
        ({"layer": "conv", "channels": "best"}, "channels must be a number"),
        ({"layer": "conv", "channels": 0}, "must be at least 1"),
        ({"layer": "conv", "overlay": True}, "say how to get it from the channels"),
        ({"layer": "conv", "normalize": "image"}, "normalize must be 'channel' or 'shared'"),
        ({"layer": "cony"}, "has no layer 'cony'"),
    ],
)
def test_bad_arguments(network, photos_, arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureMapDisplay.from_estimator(network, photos_[0], **arguments)


# --- filters --------------------------------------------------------------------------------------


def test_filters_by_row_and_channels_by_column(network):
    display = FilterDisplay.from_estimator(network, layer="inner/conv")
    kernel = np.asarray(network.get_layer("inner").get_layer("conv").kernel)
    np.testing.assert_array_equal(display.kernel, kernel)
    assert display.filters.tolist() == [0, 1, 2, 3, 4, 5]
    assert display.channels.tolist() == [0, 1, 2]
    drawn = np.asarray(display.image_.get_array().filled(np.nan))
    side = 33  # of a kernel of 3 pixels, each drawn as 11
    shown = kernel[..., :6]
    expected = (
        kernel[
            ...,
            4,
        ][:, :, 2]
        - shown.min()
    ) / (shown.max() - shown.min())
    step = side + 2
    tile = drawn[4 * step : 4 * step + side, 2 * step : 2 * step + side]
    np.testing.assert_allclose(tile[5::11, 5::11], expected, rtol=1e-6)
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["red", "green", "blue"]
    assert display.ax_.get_yticklabels()[4].get_text() == "filter 4"
    assert_drawn(display)


def test_filters_in_colours(network):
    display = FilterDisplay.from_estimator(network, layer="conv", rgb=True, normalize="filter")
    drawn = np.asarray(display.image_.get_array())
    assert drawn.ndim == 3 and drawn.min() == 0 and drawn.max() == 1
    # Between the filters the figure's own color is seen, dark or light.
    assert {0.0, 1.0} == set(np.unique(drawn[..., 3]))
    kernel = display.kernel[..., 0]
    expected = (kernel - kernel.min()) / (kernel.max() - kernel.min())
    top = next(y for y in range(len(drawn)) if drawn[y, 0, 3] == 1)
    np.testing.assert_allclose(drawn[top : top + 33 : 11, 0:33:11, :3], expected, rtol=1e-5)
    assert_drawn(display)


@pytest.mark.slow
def test_colours_of_networks_that_see_them_reversed():
    vgg = CNNFeatureTransformer("vgg16", weights=None, random_state=0)
    display = FilterDisplay.from_estimator(vgg, layer="block1_conv1", filters=6)
    assert display.colours == ("blue", "green", "red")
    colours = FilterDisplay.from_estimator(
        vgg, layer="block1_conv1", filters=[0], rgb=True, normalize="filter"
    )
    kernel = display.kernel[..., 0]
    expected = (kernel - kernel.min()) / (kernel.max() - kernel.min())
    drawn = np.asarray(colours.image_.get_array())[-33:]
    np.testing.assert_allclose(drawn[::11, :33:11, :3], expected[..., ::-1], rtol=1e-5)


def test_depthwise_point_and_dense(network):
    depthwise = FilterDisplay.from_estimator(network, layer="depthwise")
    assert depthwise.kernel.shape == (3, 3, 1, 64)
    assert len(depthwise.ax_.texts) == 64
    assert_drawn(depthwise)
    point = FilterDisplay.from_estimator(network, layer="point")
    np.testing.assert_array_equal(point.image_.get_array(), point.kernel[0, 0].T)
    low, high = point.image_.get_clim()
    assert low == -high, "white is zero"
    assert_drawn(point)
    dense = FilterDisplay.from_estimator(network, layer="dense", filters=[7, 1])
    np.testing.assert_array_equal(dense.image_.get_array(), dense.kernel.T[[7, 1]])
    assert_drawn(dense)


def test_filters_of_gray_images_form_a_square(keras):
    layers = [keras.Input((8, 8, 1)), keras.layers.Conv2D(9, 3, name="conv")]
    display = FilterDisplay.from_estimator(keras.Sequential(layers), layer="conv", filters="all")
    positions = np.array([text.get_position() for text in display.ax_.texts]).reshape(3, 3, 2)
    assert (np.ptp(positions[..., 0], axis=0) == 0).all()
    assert (np.ptp(positions[..., 1], axis=1) == 0).all()
    assert_drawn(display)
    with pytest.raises(ValueError, match="channel"):
        FilterDisplay.from_estimator(keras.Sequential(layers), layer="conv", channels=[1])


def test_published_filters(imagenet_home):
    display = FilterDisplay.from_estimator("mobilenet", layer="conv1", rgb=True)
    assert len(display.filters) == 32
    assert_drawn(display)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "pool"}, r"'inner/pool' \(MaxPooling2D\) has no kernel"),
        ({"layer": "point", "rgb": True}, "rgb=True needs filters of three channels"),
        ({"layer": "conv", "filters": [64]}, "Filter 64 is out of range: .* has 64 filters"),
        ({"layer": "conv", "normalize": "channel"}, "normalize must be 'shared' or 'filter'"),
        ({"layer": "nothing"}, "has no layer 'nothing'"),
    ],
)
def test_bad_filters(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        FilterDisplay.from_estimator(network, **arguments)


# --- decisions ------------------------------------------------------------------------------------


def test_decision_over_the_picture(network, photos_):
    cnn = CNNFeatureTransformer(network, "pool", "avg")
    pipeline = make_pipeline(cnn, LogisticRegression()).fit(photos_, ["china", "flower"])
    display = DecisionMapDisplay.from_estimator(pipeline, photos_[1])
    np.testing.assert_array_equal(display.image_.get_array(), display.decision.map)
    low, high = display.image_.get_clim()
    assert low == -high == -np.abs(display.decision.map).max()
    picture = display.ax_.images[0]
    assert picture.get_array().shape == photos_[1].shape[:2]
    assert display.ax_.get_title().startswith("flower against china: +")
    assert_drawn(display)


def test_occlusion_over_a_cropped_picture(network, photos_):
    cnn = CNNFeatureTransformer(network, "pool", "avg", resize="crop")
    pipeline = make_pipeline(cnn, SVC()).fit(photos_, ["china", "flower"])
    display = DecisionMapDisplay.from_estimator(pipeline, photos_[0])
    assert display.decision.method == "occlusion"
    assert display.decision.image.shape == (48, 48, 3)
    assert_drawn(display)


# --- matplotlib -----------------------------------------------------------------------------------


def test_without_matplotlib(network, photos_, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    pipeline = make_pipeline(CNNFeatureTransformer(network, "pool", "avg"), LogisticRegression())
    pipeline.fit(photos_, [0, 1])
    for draw in [
        lambda: FeatureMapDisplay.from_estimator(network, photos_[0]),
        lambda: FilterDisplay.from_estimator(network, layer="conv"),
        lambda: DecisionMapDisplay.from_estimator(pipeline, photos_[0]),
    ]:
        with pytest.raises(ImportError, match=r"Display.from_estimator requires matplotlib"):
            draw()


@pytest.mark.slow
def test_numbers_need_no_matplotlib():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "import numpy as np, sklearn_cnnfeat as s\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.pipeline import make_pipeline\n"
        "X = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype='uint8')\n"
        "cnn = s.CNNFeatureTransformer('mobilenet', 'conv1_relu', 'avg', weights=None,\n"
        "                              input_size=32, random_state=0)\n"
        "pipe = make_pipeline(cnn, LogisticRegression()).fit(X, [0, 0, 1, 1])\n"
        "s.decision_map(pipe, X[0]); s.layer_summary(cnn); s.filter_summary(cnn)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
