"""decision_map: exact contributions add up to the decision; occlusion finds what matters."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA, FastICA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.random_projection import SparseRandomProjection
from sklearn.svm import SVC, LinearSVC, LinearSVR

from sklearn_cnnfeat import CNNFeatureTransformer, decision_map
from sklearn_cnnfeat._network import keras_models

SIZE = 24


@pytest.fixture(scope="module")
def network():
    keras = keras_models.import_keras()
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(6, 3, activation="relu", name="first"),
            layers.MaxPooling2D(name="pool"),
            layers.Conv2D(8, 3, name="second"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="dense"),
        ]
    )


@pytest.fixture(scope="module")
def data():
    """Three classes: a bright square at the top left, at the bottom right, or none."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 120, (36, SIZE, SIZE, 3), dtype=np.uint8)
    y = np.repeat(["left", "right", "none"], 12)
    X[:12, 2:10, 2:10] = rng.integers(180, 256, (12, 8, 8, 3))
    X[12:24, 14:22, 14:22] = rng.integers(180, 256, (12, 8, 8, 3))
    return X, y


def cnn_of(network, pooling="flatten", layer="second"):
    return CNNFeatureTransformer(network, layer, pooling, engine="keras")


def check_exact(result, expected):
    """Compare sums of float32 contributions, whose error is terms x eps x the size of the terms."""
    assert result.method == "exact"
    scale = max(np.abs(result.map).sum() + abs(result.intercept), abs(expected))
    tolerance = result.map.size * np.finfo(np.float32).eps * scale
    assert abs(result.map.sum() + result.intercept - expected) <= tolerance
    assert abs(result.decision - expected) <= tolerance


BINARY = {
    "logistic": LogisticRegression(),
    "linear svc": LinearSVC(),
    "svc": SVC(kernel="linear"),
    "ridge": RidgeClassifier(),
    "sgd": SGDClassifier(random_state=0),
    "perceptron": Perceptron(random_state=0),
    "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5),
    "one versus rest": OneVsRestClassifier(LogisticRegression()),
    "no intercept": LogisticRegression(fit_intercept=False),
}


@pytest.mark.parametrize("classifier", BINARY.values(), ids=BINARY)
def test_two_classes(network, data, classifier):
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network), StandardScaler(), classifier).fit(X, y)
    for image in X[[3, 20]]:
        expected = pipeline.decision_function(image[np.newaxis])[0]
        result = decision_map(pipeline, image, method="exact")
        check_exact(result, expected)
        assert (result.target, result.other) == ("right", "left")
        assert result.map.shape == (9, 9)
        if isinstance(classifier, (LogisticRegression, LinearSVC)):
            # Counted from the mean image: only the model's own intercept is left over.
            assert result.intercept == pytest.approx(np.ravel(pipeline[-1].intercept_)[0])
        against = decision_map(pipeline, image, "left", method="exact")
        check_exact(against, -expected)
        np.testing.assert_allclose(against.map, -result.map)


MULTICLASS = {
    name: model
    for name, model in BINARY.items()
    if name in ("logistic", "linear svc", "ridge", "sgd", "lda", "one versus rest")
}


@pytest.mark.parametrize("classifier", MULTICLASS.values(), ids=MULTICLASS)
def test_more_classes(network, data, classifier):
    X, y = data
    pipeline = make_pipeline(cnn_of(network, "avg"), StandardScaler(), classifier).fit(X, y)
    expected = pipeline.decision_function(X[:1])[0]
    for k, label in enumerate(pipeline.classes_):
        check_exact(decision_map(pipeline, X[0], label, method="exact"), expected[k])
    predicted = decision_map(pipeline, X[0])
    assert predicted.target == pipeline.predict(X[:1])[0]


def test_svc_decides_between_pairs(network, data):
    X, y = data
    svc = SVC(kernel="linear", decision_function_shape="ovo")
    pipeline = make_pipeline(cnn_of(network), StandardScaler(), svc).fit(X, y)
    pairs = pipeline.decision_function(X[:1])[0]
    classes = list(pipeline.classes_)
    assert classes == ["left", "none", "right"]
    for pair, expected in zip([(0, 1), (0, 2), (1, 2)], pairs, strict=True):
        a, b = (classes[k] for k in pair)
        result = decision_map(pipeline, X[0], (a, b), method="exact")
        check_exact(result, expected)
        assert (result.target, result.other) == (a, b)
        check_exact(decision_map(pipeline, X[0], (b, a), method="exact"), -expected)
    # One class: its decisions against the others; the largest sum is the predicted class's.
    sums = [pairs[0] + pairs[1], pairs[2] - pairs[0], -pairs[1] - pairs[2]]
    svc.decision_function_shape = "ovr"
    for label, expected in zip(classes, sums, strict=True):
        check_exact(decision_map(pipeline, X[0], label, method="exact"), expected)
    for image in X[::6]:
        result = decision_map(pipeline, image)
        assert result.target == pipeline.predict(image[np.newaxis])[0]
        assert result.decision > 0


REGRESSORS = [LinearRegression(), Ridge(), LinearSVR(random_state=0)]


@pytest.mark.parametrize("regressor", REGRESSORS, ids=lambda model: type(model).__name__)
def test_regressors(network, data, regressor):
    X, y = data[0], (data[1] == "left") + 0.5 * (data[1] == "right")
    pipeline = make_pipeline(cnn_of(network, "avg"), StandardScaler(), regressor).fit(X, y)
    check_exact(decision_map(pipeline, X[0], method="exact"), pipeline.predict(X[:1])[0])


def test_regressors_of_several_outputs(network, data):
    X = data[0]
    Y = np.random.default_rng(0).normal(size=(len(X), 2))
    pipeline = make_pipeline(cnn_of(network, "avg"), Ridge()).fit(X, Y)
    for k in range(2):
        check_exact(decision_map(pipeline, X[5], k), pipeline.predict(X[5:6])[0, k])
    with pytest.raises(ValueError, match=r"number of an output, 0 to 1\. Got None"):
        decision_map(pipeline, X[5])


STEPS = {
    "min-max": [MinMaxScaler()],
    "max-abs": [MaxAbsScaler()],
    "robust": [RobustScaler()],
    "centred only": [StandardScaler(with_std=False)],
    "scaled only": [RobustScaler(with_centering=False), StandardScaler(with_mean=False)],
    "pca": [PCA(10, random_state=0)],
    "whitened": [StandardScaler(), PCA(10, whiten=True, random_state=0)],
    "svd": [TruncatedSVD(10, random_state=0)],
    "ica": [FastICA(5, random_state=0)],
    "random projection": [SparseRandomProjection(20, random_state=0)],
    "lda": [PCA(10), LinearDiscriminantAnalysis(n_components=2)],
    "lda eigen": [PCA(10), LinearDiscriminantAnalysis(solver="eigen")],
    "best": [SelectKBest(k=50)],
    "variance": [VarianceThreshold(0.001), SelectKBest(k=20), StandardScaler()],
    "passthrough": ["passthrough", None, FunctionTransformer()],
    "pipeline inside": [make_pipeline(StandardScaler(), PCA(8)), StandardScaler()],
    "columns": [
        make_column_transformer(
            (StandardScaler(), [5, 3, 100]), ("drop", [0]), (PCA(3), slice(200, 260))
        )
    ],
    "columns, others kept": [
        make_column_transformer((MinMaxScaler(), slice(0, 50)), remainder="passthrough")
    ],
    "union": [
        FeatureUnion(
            [("pca", PCA(4)), ("best", make_pipeline(MaxAbsScaler(), SelectKBest(k=6)))],
            transformer_weights={"pca": 0.1},
        )
    ],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_affine_steps(network, data, steps):
    X, y = data
    pipeline = make_pipeline(cnn_of(network), *steps, LogisticRegression()).fit(X, y)
    expected = pipeline.decision_function(X[:1])[0]
    for k, label in enumerate(pipeline.classes_):
        check_exact(decision_map(pipeline, X[0], label, method="exact"), expected[k])


@pytest.mark.parametrize("pooling", ["flatten", "avg", "max", "gem", "spp"])
@pytest.mark.parametrize("layer", ["second", ["pool", "second"], ["first", "second"]])
def test_poolings_and_several_layers(network, data, pooling, layer):
    X, y = data[0][:24], data[1][:24]
    cnn = cnn_of(network, pooling, layer)
    pipeline = make_pipeline(cnn, StandardScaler(), LinearSVC()).fit(X, y)
    result = decision_map(pipeline, X[0], method="exact")
    check_exact(result, pipeline.decision_function(X[:1])[0])
    for name, map_ in result.maps.items():
        assert map_.shape == {"first": (22, 22), "pool": (11, 11), "second": (9, 9)}[name]
    assert result.map.shape == max(map_.shape for map_ in result.maps.values())
    total = sum(map_.sum() for map_ in result.maps.values())
    np.testing.assert_allclose(result.map.sum(), total)


def test_contributions_lie_where_the_evidence_is(network, data):
    """Maps on the other corner's half of a bright square stay quiet."""
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network), LogisticRegression(C=0.01)).fit(X, y)
    # Against a picture without a square the difference lies at the square.
    difference = (
        decision_map(pipeline, X[0], "left").map - decision_map(pipeline, data[0][30], "left").map
    )
    assert difference[:5, :5].sum() > 3 * np.abs(difference[5:, 5:].sum())


def test_contributions_are_those_of_keras(network, data):
    """By hand: Keras' own maps times the coefficients."""
    keras = keras_models.import_keras()
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network, "avg"), LogisticRegression()).fit(X, y)
    cut = keras.Model(network.inputs, network.get_layer("second").output)
    maps = np.asarray(cut(X[:1].astype(np.float32)))[0]
    weights = pipeline[-1].coef_[0] / 81
    kernel = network.get_layer("second").get_weights()[0]
    terms = np.prod(kernel.shape[:3]) + len(weights)
    tolerance = terms * np.finfo(np.float32).eps * (np.abs(maps) @ np.abs(weights)).max()
    np.testing.assert_allclose(decision_map(pipeline, X[0]).map, maps @ weights, atol=tolerance)


def test_constant_channels_favour_no_position(data):
    """The maximum of a channel that is 0 everywhere lies nowhere in particular."""
    keras = keras_models.import_keras()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Conv2D(3, 3, activation="relu", bias_initializer="ones", name="conv"),
        ]
    )
    kernel, bias = model.layers[0].get_weights()
    kernel[..., 0], bias[0] = -1, 0  # dark where the others are not
    model.layers[0].set_weights([kernel, bias])
    X, y = data[0][:24].copy(), data[1][:24]
    X[12:] = 0
    pipeline = make_pipeline(cnn_of(model, "max", "conv"), StandardScaler(), LinearSVC()).fit(X, y)
    flat = decision_map(pipeline, np.zeros((SIZE, SIZE, 3), np.uint8))
    np.testing.assert_allclose(flat.map, flat.map.mean())
    check_exact(flat, pipeline.decision_function(np.zeros((1, SIZE, SIZE, 3), np.uint8))[0])


def test_a_search_stands_for_its_best(network, data):
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network, "avg"), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1]}, cv=2).fit(X, y)
    check_exact(decision_map(search, X[0]), search.decision_function(X[:1])[0])


def test_set_output_and_random_weights(data):
    """The network drawn in fit is the one that is explained."""
    X, y = data[0][:24], data[1][:24]
    cnn = CNNFeatureTransformer("mobilenet", "conv_pw_2_relu", "avg", weights=None, input_size=32)
    pipeline = make_pipeline(cnn, StandardScaler(), LogisticRegression())
    pipeline.set_output(transform="pandas").fit(X, y)
    expected = pipeline.decision_function(X[:1])[0]
    check_exact(decision_map(pipeline, X[0], method="exact"), expected)
    with warnings.catch_warnings():
        # Looking at a pipeline leaves it as it was.
        warnings.simplefilter("error")
        assert pipeline.decision_function(X[:1])[0] == pytest.approx(expected, rel=1e-6)


def test_two_networks_and_other_columns(network, data):
    X, y = data[0][:24], data[1][:24]
    frame = pd.DataFrame({"age": np.arange(24.0), "photo": list(X), "size": np.ones(24)})
    branch = make_pipeline(cnn_of(network), PCA(4))
    columns = make_column_transformer(
        (StandardScaler(), ["age", "size"]),
        (branch, "photo"),
        (cnn_of(network, "avg"), "photo"),
        verbose_feature_names_out=False,
    )
    pipeline = make_pipeline(columns, StandardScaler(), LogisticRegression()).fit(frame, y)
    row = frame.iloc[[2]]
    expected = pipeline.decision_function(row)[0]
    with pytest.raises(ValueError, match="2 steps with a CNNFeatureTransformer: choose one") as e:
        decision_map(pipeline, row)
    names = [
        "columntransformer__pipeline__cnnfeaturetransformer",
        "columntransformer__cnnfeaturetransformer",
    ]
    for name in names:
        assert repr(name) in str(e.value)
        check_exact(decision_map(pipeline, row, step=name, method="exact"), expected)
    with pytest.raises(ValueError, match="step='nonsense' is not a CNNFeatureTransformer"):
        decision_map(pipeline, row, step="nonsense")
    union = FeatureUnion([("a", cnn_of(network, "max")), ("b", branch)])
    pipeline = Pipeline([("both", union), ("svc", SVC(kernel="linear"))]).fit(X, y)
    for name in ("both__a", "both__b__cnnfeaturetransformer"):
        result = decision_map(pipeline, X[2:3], step=name, method="exact")
        check_exact(result, pipeline.decision_function(X[2:3])[0])


OTHERS = {
    "rbf": (SVC(), "decision_function"),
    "forest": (RandomForestClassifier(20, random_state=0), "predict_proba"),
    "neighbours": (KNeighborsClassifier(24, weights="distance"), "predict_proba"),
}


@pytest.mark.parametrize(("classifier", "response"), OTHERS.values(), ids=OTHERS)
def test_occlusion(network, data, classifier, response):
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network), StandardScaler(), classifier).fit(X, y)
    result = decision_map(pipeline, X[0], "left", patch_size=8, stride=4)
    assert result.method == "occlusion"
    assert result.map.shape == (SIZE, SIZE)
    assert result.intercept is None
    values = getattr(pipeline, response)(X[:1])[0]
    expected = -values if response == "decision_function" else values[0]
    assert result.decision == pytest.approx(expected)
    # Distances to neighbours change wherever a patch is; most where it hides the square.
    top, left = np.unravel_index(result.map.argmax(), result.map.shape)
    assert top < 12 and left < 12
    assert result.map[2:10, 2:10].mean() > result.map[14:, 14:].mean()


def test_occlusion_is_what_covering_does(network, data):
    """One patch as large as the stride: each pixel has one number, the fall for its patch."""
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network), SVC()).fit(X, y)
    result = decision_map(pipeline, X[0], method="occlusion", patch_size=12, stride=12)
    covered = X[0].copy()
    covered[:12, 12:] = X[0].mean(axis=(0, 1)).astype(np.uint8)
    fall = result.decision - pipeline.decision_function(covered[np.newaxis])[0]
    np.testing.assert_allclose(result.map[:12, 12:], fall)


def test_occlusion_of_cropped_and_of_flat_images(network, data):
    X, y = data[0][:24], data[1][:24]
    cropped = cnn_of(network).set_params(resize="crop")
    pipeline = make_pipeline(cropped, SVC()).fit(X, y)
    whole = decision_map(pipeline, X[0], patch_size=SIZE)
    assert whole.image.shape == (SIZE, SIZE, 3)
    flat = cnn_of(network).set_params(image_shape=(SIZE, SIZE, 3), value_range=(0, 1))
    rows = X.reshape(24, -1) / 255
    pipeline = make_pipeline(flat, SVC()).fit(rows, y)
    result = decision_map(pipeline, rows[0])
    assert result.decision == pytest.approx(pipeline.decision_function(rows[:1])[0])
    assert result.map.std() > 0
    exact = make_pipeline(flat, LinearSVC()).fit(rows, y)
    check_exact(decision_map(exact, rows[0]), exact.decision_function(rows[:1])[0])


def test_networks_for_images_of_any_size(data):
    keras = keras_models.import_keras()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, name="c")])
    X, y = data[0][:24], data[1][:24]
    cnn = CNNFeatureTransformer(model, "c", "avg")
    pipeline = make_pipeline(cnn, LogisticRegression()).fit(list(X), y)
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    result = decision_map(pipeline, image, method="exact")
    assert result.map.shape == (28, 38)
    check_exact(result, pipeline.decision_function([image])[0])
    assert decision_map(pipeline, image, method="occlusion").map.shape == (30, 40)


def test_real_photographs(photos, imagenet_home):
    from sklearn.datasets import load_sample_images

    y = ["ants" if "ants" in path else "bees" for path in photos]
    some = photos[:6] + photos[-6:]
    cnn = CNNFeatureTransformer("mobilenet", "conv_pw_11_relu", "spp")
    pipeline = make_pipeline(cnn, StandardScaler(), LinearSVC())
    pipeline.fit(some, y[:6] + y[-6:])
    for image in [photos[10], load_sample_images().images[0]]:
        expected = pipeline.decision_function([image])[0]
        check_exact(decision_map(pipeline, image, method="exact"), expected)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Normalizer(), LinearSVC()], r"Step 'normalizer' \(Normalizer\) is not known to be aff"),
        ([MinMaxScaler(clip=True), LinearSVC()], r"Step 'minmaxscaler' \(MinMaxScaler\)"),
        ([FunctionTransformer(np.sqrt), LinearSVC()], "Step 'functiontransformer'"),
        ([StandardScaler(), SVC()], "final step, SVC, is no linear model"),
        ([RandomForestClassifier(2)], "final step, RandomForestClassifier, is no linear model"),
        ([make_pipeline(StandardScaler(), Normalizer()), LinearSVC()], "'pipeline__normalizer'"),
        ([make_union(PCA(2), Normalizer()), LinearSVC()], "'featureunion__normalizer'"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value[-2:][0]).__name__,
)
def test_what_is_not_affine(network, data, steps, message):
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network, "max").set_params(layer="first"), *steps).fit(X, y)
    with pytest.raises(ValueError, match=message) as error:
        decision_map(pipeline, X[0], method="exact")
    assert "method='occlusion' works with every pipeline" in str(error.value)
    assert decision_map(pipeline, X[0], patch_size=12).method == "occlusion"


def test_a_model_with_a_link_is_noticed(network, data):
    X, y = data[0][:24], expit(np.arange(24.0))
    pipeline = make_pipeline(cnn_of(network, "avg"), PoissonRegressor()).fit(X, y)
    with pytest.raises(ValueError, match=r"PoissonRegressor decides, .* is no affine function"):
        decision_map(pipeline, X[0], method="exact")


def test_layers_and_poolings_without_positions(network, data):
    X, y = data[0][:24], data[1][:24]
    pipeline = make_pipeline(cnn_of(network, layer="dense"), LinearSVC()).fit(X, y)
    with pytest.raises(ValueError, match="Layer 'dense' gives a vector, which has no positions"):
        decision_map(pipeline, X[0], method="exact")
    assert decision_map(pipeline, X[0]).method == "occlusion"
    own = cnn_of(network, lambda maps: maps.std(axis=(1, 2)))
    pipeline = make_pipeline(own, LinearSVC()).fit(X, y)
    with pytest.raises(ValueError, match="a callable pooling"):
        decision_map(pipeline, X[0], method="exact")


def test_bad_arguments(network, data):
    X, y = data[0][:24], data[1][:24]
    cnn = cnn_of(network)
    pipeline = make_pipeline(cnn, LinearSVC())
    with pytest.raises(NotFittedError):
        decision_map(pipeline, X[0])
    pipeline.fit(X, y)
    with pytest.raises(ValueError, match=r"One image is explained at a time\. Got 2"):
        decision_map(pipeline, X[:2])
    with pytest.raises(ValueError, match="Got 3 instead"):
        decision_map(pipeline, list(X[:3]))
    with pytest.raises(ValueError, match=r"target='centre' is none of the classes.*left, right"):
        decision_map(pipeline, X[0], "centre")
    with pytest.raises(ValueError, match="method must be"):
        decision_map(pipeline, X[0], method="gradient")
    with pytest.raises(TypeError, match=r"explains a fitted Pipeline .* Got CNNFeatureTransformer"):
        decision_map(cnn, X[0])
    with pytest.raises(ValueError, match="patch_size=30 and stride=15 do not cover the 24 x 24"):
        decision_map(pipeline, X[0], method="occlusion", patch_size=30)
    with pytest.raises(ValueError, match="patch_size=0 and stride=1 do not cover"):
        decision_map(pipeline, X[0], method="occlusion", patch_size=0)
    without = make_pipeline(StandardScaler(), LinearSVC()).fit(np.eye(4), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="No step of Pipeline is a CNNFeatureTransformer"):
        decision_map(without, X[0])
    last = make_pipeline(cnn, PCA(2)).fit(X)
    with pytest.raises(TypeError, match="final step, PCA, has neither decision_function nor"):
        decision_map(last, X[0])
