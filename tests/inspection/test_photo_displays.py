"""Displays of many photographs: maps of all, galleries of predictions, examples of channels."""

import shutil

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from small_network import count_computed, save_network, save_photos

from sklearn_cnnfeat import (
    ChannelExamplesDisplay,
    CNNFeatureTransformer,
    EmbeddingDisplay,
    LayerScoreDisplay,
    PredictionGalleryDisplay,
    decision_map,
)
from sklearn_cnnfeat._inspection.embedding import place

plt = pytest.importorskip("matplotlib.pyplot")
N = 24


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a network's file, photographs of two kinds, and their classes."""
    folder = tmp_path_factory.mktemp("photos")
    photos = np.array(save_photos(folder / "all", N))
    return save_network(folder / "small.keras"), photos, np.array(["china", "flower"] * (N // 2))


@pytest.fixture(scope="module")
def pipe(data):
    network, photos, y = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    return make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos[:10], y[:10])


# --- embeddings -----------------------------------------------------------------------------------


def test_points_are_components_of_what_the_classifier_gets(data, pipe):
    _, photos, y = data
    display = EmbeddingDisplay.from_estimator(pipe, photos, y)
    expected = PCA(2, random_state=0).fit_transform(pipe[:-1].transform(photos))
    # float32 sums of 16 numbers, behind a decomposition
    scale = np.abs(expected).max()
    np.testing.assert_allclose(display.points, expected, atol=1e-4 * scale)
    assert (display.mistakes_ == (pipe.predict(photos) != y)).all()
    assert display.indices.tolist() == list(range(N))
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels[:2] == ["china", "flower"]


def test_thumbnails_do_not_overlap(data, pipe):
    _, photos, y = data
    display = EmbeddingDisplay.from_estimator(pipe, photos, y)
    cells = display.cells_
    assert len(np.unique(cells, axis=0)) == N
    assert len(display.ax_.images) == 1, "one image for all thumbnails"
    canvas = display.ax_.images[0].get_array()
    filled = (canvas[..., 3] == 255).mean()
    assert 0.2 < filled < 0.6


def test_cells_keep_the_order_of_points():
    """Roughly: neighbors may have to make room."""
    points = np.random.default_rng(0).normal(size=(N, 2))
    cells, *_ = place(points, 1.5)
    for axis in range(2):
        order = np.argsort(np.argsort(points[:, axis]))
        assert np.corrcoef(order, cells[:, axis])[0, 1] > 0.9


def test_dots_for_thousands_and_a_transformer_alone(data):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    display = EmbeddingDisplay.from_estimator(cnn, photos, thumbnails=False)
    assert display.cells_ is None and not display.ax_.images
    assert len(display.ax_.collections[0].get_offsets()) == N
    rows = StandardScaler().fit_transform(cnn.fit_transform(photos))
    expected = PCA(2, random_state=0).fit_transform(rows)
    np.testing.assert_allclose(display.points, expected, atol=1e-4 * np.abs(expected).max())


def test_methods(data):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0).fit(photos)
    tsne = EmbeddingDisplay.from_estimator(cnn, photos, method="tsne")
    assert tsne.points.shape == (N, 2) and np.isfinite(tsne.points).all()
    own = EmbeddingDisplay.from_estimator(cnn, photos, method=PCA(3, whiten=True))
    assert own.points.shape == (N, 2)
    with pytest.raises(ValueError, match="method must be 'pca', 'tsne' or an estimator"):
        EmbeddingDisplay.from_estimator(cnn, photos, method="umap")
    with pytest.raises(ValueError, match=r"gives an array of shape \(24, 1\)"):
        EmbeddingDisplay.from_estimator(cnn, photos, method=PCA(1))
    with pytest.raises(ValueError, match="needs at least 4 photographs, and there are 3"):
        EmbeddingDisplay.from_estimator(cnn, photos[:3], method="tsne")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_photographs(data, pipe, n):
    display = EmbeddingDisplay.from_estimator(pipe, data[1][:n], data[2][:n])
    assert display.points.shape == (n, 2) and np.isfinite(display.points).all()
    display.figure_.canvas.draw()


def test_hundreds_of_classes_and_strange_names(data, pipe):
    names = [f"_{k} $x^ <script>" for k in range(N)]
    display = EmbeddingDisplay.from_estimator(pipe, data[1], names)
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert any("14 smaller classes" in text for text in legend)
    assert any("<script>" in text for text in legend)
    display.figure_.canvas.draw()


def test_labels_of_another_length_and_no_photographs(data, pipe):
    _, photos, y = data
    with pytest.raises(ValueError, match=r"X has 24, y has shape \(23,\)"):
        EmbeddingDisplay.from_estimator(pipe, photos, y[:-1])
    with pytest.raises(ValueError, match="no photograph"):
        EmbeddingDisplay.from_estimator(pipe, photos[:0])


def test_photographs_that_cannot_be_read(data, tmp_path):
    network, photos, y = data
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    paths = np.array([*photos[:7], str(broken)])
    cnn = CNNFeatureTransformer(network, "three", "avg", on_error="nan", verbose=0)
    pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos[:8], y[:8])
    with pytest.warns(UserWarning, match="1 of 8 photographs cannot be read and are left out"):
        display = EmbeddingDisplay.from_estimator(pipe, paths, y[:8])
    assert display.indices.tolist() == list(range(7)) and len(display.y) == 7


def test_photographs_that_have_vanished(data, pipe, tmp_path):
    photo = tmp_path / "gone.jpg"
    shutil.copyfile(data[1][0], photo)
    paths = np.array([str(photo), data[1][1]])
    EmbeddingDisplay.from_estimator(pipe, paths)
    photo.unlink()
    with pytest.raises(Exception, match=r"gone\.jpg"):
        EmbeddingDisplay.from_estimator(pipe, paths)


def test_one_class_and_values(data):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    one = EmbeddingDisplay.from_estimator(cnn, photos, ["ants"] * N)
    assert [text.get_text() for text in one.ax_.get_legend().get_texts()] == ["ants"]
    values = np.linspace(0, 1, N)
    regressor = make_pipeline(cnn, Ridge()).fit(photos, values)
    display = EmbeddingDisplay.from_estimator(regressor, photos, values, thumbnails=False)
    assert not display.mistakes_.any() and display.ax_.get_legend() is None
    assert "wrongly" not in display.ax_.get_title()
    colors = display.ax_.collections[0].get_facecolors()
    np.testing.assert_allclose(colors[[0, -1], :3], plt.get_cmap("viridis")([0.0, 1.0])[:, :3])
    bar = display.figure_.axes[1]
    assert bar.get_ylim() == (0, 1)


def test_a_network_beside_other_columns(data):
    pd = pytest.importorskip("pandas")
    network, photos, y = data
    table = pd.DataFrame({"photo": photos, "size": np.arange(N) / N})
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    columns = ColumnTransformer([("cnn", cnn, "photo"), ("others", StandardScaler(), ["size"])])
    pipe = make_pipeline(columns, LogisticRegression()).fit(table, y)
    display = EmbeddingDisplay.from_estimator(pipe, table, y)
    expected = PCA(2, random_state=0).fit_transform(pipe[:-1].transform(table))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(display.points, expected, atol=1e-4 * scale)
    assert len(display.pictures) == N
    gallery = PredictionGalleryDisplay.from_estimator(pipe, table, y, n_photos=2)
    assert gallery.names == photos[gallery.indices].tolist()


def test_frames_lie_around_their_pictures(data, pipe):
    """Positions in the figure, for the layout is what matters; fonts do not."""
    _, photos, y = data
    display = EmbeddingDisplay.from_estimator(pipe, photos, y)
    display.figure_.canvas.draw()
    inside = display.ax_.get_window_extent()
    frames = display.ax_.collections[0]
    boxes = [path.get_extents(display.ax_.transData) for path in frames.get_paths()]
    assert len(boxes) == N
    for k, one in enumerate(boxes):
        assert inside.x0 <= one.x0 and one.x1 <= inside.x1
        assert inside.y0 <= one.y0 and one.y1 <= inside.y1
        assert not any(one.overlaps(other) for other in boxes[k + 1 :])
    legend = display.ax_.get_legend().get_window_extent()
    assert legend.x0 >= inside.x1, "the legend covers no photograph"


# --- galleries ------------------------------------------------------------------------------------


def test_worst_first(data, pipe):
    _, photos, y = data
    y = y.copy()
    y[[2, 5]] = "flower", "china"  # labels that are wrong themselves
    display = PredictionGalleryDisplay.from_estimator(pipe, photos, y, n_photos=6)
    probabilities = pipe.predict_proba(photos)
    of_truth = probabilities[np.arange(N), (y == "flower").astype(int)]
    assert display.indices.tolist() == np.argsort(of_truth, kind="stable")[:6].tolist()
    assert {2, 5} <= set(display.indices.tolist())
    predicted = pipe.predict(photos)[display.indices]
    assert (display.predicted == predicted).all() and (display.y == y[display.indices]).all()
    np.testing.assert_allclose(display.scores, probabilities.max(axis=1)[display.indices])
    for k, i in enumerate(display.indices):
        own = decision_map(pipe, photos[i], predicted[k])
        np.testing.assert_allclose(display.decisions[k].map, own.map)
        assert display.decisions[k].target == predicted[k]
    title = display.axes_[0, 0].get_title(loc="left")
    assert title.startswith(predicted[0]) and "wrong" in title


def test_least_certain_and_best(data, pipe):
    _, photos, y = data
    probabilities = pipe.predict_proba(photos)
    lead = np.abs(probabilities[:, 1] - probabilities[:, 0])
    least = PredictionGalleryDisplay.from_estimator(
        pipe, photos, y, which="least_certain", n_photos=4, maps=None
    )
    assert least.indices.tolist() == np.argsort(lead, kind="stable")[:4].tolist()
    assert least.decisions is None and least.axes_.shape == (4, 1)
    best = PredictionGalleryDisplay.from_estimator(
        pipe, photos, y, which="best", n_photos=4, maps=None
    )
    of_truth = probabilities[np.arange(N), (y == "flower").astype(int)]
    assert best.indices.tolist() == np.argsort(-of_truth, kind="stable")[:4].tolist()


def test_out_of_fold(data):
    network, photos, y = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression())
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    display = PredictionGalleryDisplay.from_estimator(pipe, photos, y, cv=cv, n_photos=N)
    expected = cross_val_predict(pipe, photos, y, cv=cv, method="predict_proba").max(axis=1)
    # float32 features, the same for both
    np.testing.assert_allclose(display.scores, expected[display.indices], atol=1e-5)
    for decision, score in zip(display.decisions, display.scores, strict=True):
        assert decision.probability == pytest.approx(score, abs=1e-5)


def test_decisions_of_searches_and_more_classes(data):
    network, photos, _ = data
    y = np.array(["a", "b", "c"] * (N // 3))
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    search = GridSearchCV(make_pipeline(cnn, SVC(kernel="linear")), {"svc__C": [1]}, cv=2)
    search.fit(photos, y)
    display = PredictionGalleryDisplay.from_estimator(search, photos, y, n_photos=2)
    assert not display.are_probabilities
    scores = search.decision_function(photos)
    assert display.scores[0] in scores[display.indices[0]]
    assert "decision" in display.axes_[0, 0].get_title(loc="left")


def test_regressors_by_their_errors(data):
    network, photos, _ = data
    y = np.linspace(0, 1, N)
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    pipe = make_pipeline(cnn, Ridge()).fit(photos, y)
    display = PredictionGalleryDisplay.from_estimator(pipe, photos, y, n_photos=3)
    errors = np.abs(pipe.predict(photos) - y)
    assert display.indices.tolist() == np.argsort(-errors, kind="stable")[:3].tolist()
    assert display.scores is None


def test_galleries_that_cannot_be(data, pipe):
    _, photos, y = data
    draw = PredictionGalleryDisplay.from_estimator
    with pytest.raises(ValueError, match="last step predicts"):
        draw(pipe[0], photos, y)
    with pytest.raises(ValueError, match="last step predicts"):
        draw(pipe[:-1], photos, y)
    with pytest.raises(ValueError, match="which must be one of 'worst', 'least_certain', 'best'"):
        draw(pipe, photos, y, which="funniest")
    with pytest.raises(ValueError, match="y holds 'wasp', which is none of the classes"):
        draw(pipe, photos, ["wasp", *y[1:]])
    with pytest.raises(ValueError, match="one label per photograph"):
        draw(pipe, photos, y[1:])
    with pytest.raises(ValueError, match="at least 1"):
        draw(pipe, photos, y, n_photos=0)


def test_galleries_that_are_small_or_incomplete(data, pipe, tmp_path):
    network, photos, y = data
    one = PredictionGalleryDisplay.from_estimator(pipe, photos[:1], y[:1])
    assert one.axes_.shape == (1, 2)
    same = PredictionGalleryDisplay.from_estimator(pipe, photos[:3], ["china"] * 3, maps=None)
    assert len(same.pictures) == 3
    with pytest.raises(ValueError, match=r"at least 2 classes|1 class"):
        PredictionGalleryDisplay.from_estimator(pipe, photos[:9], ["china"] * 9, cv=3)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    cnn = CNNFeatureTransformer(network, "three", "avg", on_error="nan", verbose=0)
    lenient = make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos, y)
    paths = np.array([str(broken), *photos[:7]])
    for cv in (None, 2):
        with pytest.warns(UserWarning, match="1 of 8 photographs cannot be read"):
            display = PredictionGalleryDisplay.from_estimator(
                lenient, paths, [y[0], *y[:7]], cv=cv, n_photos=8, maps=None
            )
        assert sorted(display.indices) == list(range(1, 8))
    gone = tmp_path / "gone.jpg"
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        PredictionGalleryDisplay.from_estimator(pipe, [str(gone), *photos[:3]], y[:4])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        ChannelExamplesDisplay.from_estimator(pipe, [str(gone), *photos[:3]], 0)


def test_titles_stand_at_one_height(data, pipe):
    """Pictures of several proportions in a line have their titles side by side."""
    _, _, y = data
    tall = np.random.default_rng(0).integers(0, 256, (80, 40, 3), dtype=np.uint8)
    wide = tall.transpose(1, 0, 2).copy()
    display = PredictionGalleryDisplay.from_estimator(pipe, [tall, wide], y[:2])
    display.figure_.canvas.draw()
    tops = [ax.get_window_extent().y1 for ax in display.axes_.ravel()]
    assert np.ptp(tops) < 1


# --- examples of channels -------------------------------------------------------------------------


def test_strongest_places_are_those_of_the_maps(data):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "two", verbose=0)
    display = ChannelExamplesDisplay.from_estimator(cnn, photos, [5, 0], n_examples=4)
    maps = CNNFeatureTransformer(network, "two", pooling=None, verbose=0).fit_transform(photos)
    for k, channel in enumerate([5, 0]):
        largest = maps[..., channel].reshape(N, -1).max(axis=1)
        order = np.argsort(-largest, kind="stable")[:4]
        assert display.indices[k].tolist() == order.tolist()
        np.testing.assert_array_equal(display.values[k], largest[order])
        for i, (row, column), value in zip(
            order, display.places[k], display.values[k], strict=True
        ):
            assert maps[i, row, column, channel] == value
    # A 3 x 3 convolution, a pooling by 2, and another 3 x 3: 3, then 4, then 8 pixels, every 2.
    assert display.field.size == (8, 8) and display.field.stride == (2, 2)
    assert display.axes_.shape == (2, 4)


def test_crops_are_what_the_position_sees(data):
    network, _, _ = data
    # The photographs have the network's size, so that pixels are pixels.
    X = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    display = ChannelExamplesDisplay.from_estimator(network, X, 3, "two", n_examples=2)
    for i, (row, column), (left, top, right, bottom), crop in zip(
        display.indices[0], display.places[0], display.boxes[0], display.crops[0], strict=True
    ):
        assert (top, left, bottom, right) == (2 * row, 2 * column, 2 * row + 8, 2 * column + 8)
        np.testing.assert_array_equal(crop, X[i, top:bottom, left:right])


def test_memory_holds_a_few_maps_at_a_time(data, monkeypatch):
    from sklearn_cnnfeat._inspection import channel_examples, one_pass

    network, photos, _ = data
    expected = ChannelExamplesDisplay.from_estimator(network, photos, 1, "one")
    monkeypatch.setattr(one_pass, "_MOST_BYTES", 1)
    sizes = []
    take = channel_examples.StrongestExamples.take

    def count(self, positions, maps):
        sizes.append(len(positions))
        take(self, positions, maps)

    monkeypatch.setattr(channel_examples.StrongestExamples, "take", count)
    display = ChannelExamplesDisplay.from_estimator(network, photos, 1, "one")
    assert sizes == [1] * N
    np.testing.assert_array_equal(display.values[0], expected.values[0])
    np.testing.assert_array_equal(display.indices[0], expected.indices[0])


def test_examples_take_one_pass_whatever_cannot_be_read(data, tmp_path, monkeypatch):
    network, photos, _ = data
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    paths = [str(broken), *photos[:6]]
    cnn = CNNFeatureTransformer(network, "two", on_error="nan", verbose=0).fit(photos)
    computed = count_computed(monkeypatch)
    with pytest.warns(UserWarning, match="1 of 7 photographs cannot be read and are left out"):
        display = ChannelExamplesDisplay.from_estimator(cnn, paths, 5, n_examples=7)
    assert sorted(computed) == [1, 2, 3, 4, 5, 6]
    assert sorted(display.indices[0]) == [1, 2, 3, 4, 5, 6]
    with (
        pytest.warns(UserWarning, match="broken"),
        pytest.raises(ValueError, match="None of the photographs can be read"),
    ):
        ChannelExamplesDisplay.from_estimator(cnn, [str(broken)], 5)


def test_channels_that_are_not_there(data):
    network, photos, _ = data
    draw = ChannelExamplesDisplay.from_estimator
    with pytest.raises(ValueError, match="channel=8 is out of range: layer 'two' has 8 channels"):
        draw(network, photos, 8, "two")
    with pytest.raises(ValueError, match="gives a vector of 16 numbers"):
        draw(network, photos, 0, "mean")
    with pytest.raises(ValueError, match="channel must be an int"):
        draw(network, photos, "strongest", "two")
    with pytest.raises(ValueError, match="has 2 layers"):
        draw(CNNFeatureTransformer(network, ["one", "two"], verbose=0), photos, 0)


# --- scores by layer ------------------------------------------------------------------------------


def scores_of(means, std, n_folds):
    import pandas as pd

    return pd.DataFrame(
        {
            "layer": [f"layer{k}" for k in range(len(means))],
            "n_features": 10,
            "mean_test_score": means,
            "std_test_score": std,
            "n_folds": n_folds,
        }
    )


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        # The standard error is 0.04 / sqrt(5 - 1) = 0.02.
        ([0.80, 0.885, 0.90, 0.89], (2, 1)),
        ([0.80, 0.875, 0.90, 0.89], (2, 2)),
        ([0.95, 0.90, 0.90, 0.94], (0, 0)),
    ],
)
def test_the_first_layer_within_one_standard_error(means, expected):
    display = LayerScoreDisplay(scores_of(means, 0.04, 5)).plot()
    assert (display.best_, display.simplest_) == expected
    (star,) = [line for line in display.ax_.lines if line.get_marker() == "*"]
    assert star.get_xydata()[0].tolist() == [expected[1], means[expected[1]]]
    band = display.ax_.patches[0].get_extents().transformed(display.ax_.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((max(means) - 0.02, max(means)))


def test_scores_without_folds_or_without_scores():
    old = scores_of([0.8, 0.9], 0.1, 5).drop(columns="n_folds")
    display = LayerScoreDisplay(old).plot()
    assert display.best_ == display.simplest_ == 1 and not display.ax_.patches
    with pytest.raises(ValueError, match="every fit of the search has failed"):
        LayerScoreDisplay(scores_of([np.nan, np.nan], np.nan, 5)).plot()
