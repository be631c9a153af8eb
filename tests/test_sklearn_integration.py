"""The transformer among scikit-learn's own tools: pipelines, searches, copies, data frames."""

import concurrent.futures
import copy
import io
import os
import pickle
import re
import sys

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import _indexing

from sklearn_cnnfeat import CNNFeatureTransformer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
layers = keras.layers

# scikit-learn keeps the index of a Series from 1.7, that of a data frame ever since.
KEEPS_SERIES_INDEX = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 7)
# Its column transformer once asked for a protocol that polars has dropped since.
SELECTS_POLARS = hasattr(pl.DataFrame, "__dataframe__") or not hasattr(
    _indexing, "_get_column_indices_interchange"
)
# How the digits of load_digits become images.
DIGITS = {"image_shape": (8, 8), "value_range": (0, 16)}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255, name="scale"),
            layers.Conv2D(4, 3, activation="relu", name="conv_1"),
            layers.Conv2D(6, 3, activation="relu", name="conv_2"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(5, activation="relu", name="fc"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="own",
    )


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "own.keras"
    model.save(path)
    return str(path)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:120], y[:120]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return the paths of twelve pictures, half of them dark."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(12):
        pixels = rng.integers(0, 100, (9 + i, 14, 3)) + 100 * (i % 2)
        paths.append(str(folder / f"{i:02d}.png"))
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


# --- copies ---------------------------------------------------------------------------------------


def test_clone_shares_the_model_and_nothing_fitted(model, digits):
    cnn = CNNFeatureTransformer(model, "conv_1", "avg", engine="openvino", **DIGITS)
    cnn.set_output(transform="pandas").fit(digits[0])
    copied = clone(cnn)
    assert copied.model is model
    assert copied.get_params() == cnn.get_params()
    assert not hasattr(copied, "layer_names_")
    frame = copied.fit_transform(digits[0])
    assert isinstance(frame, pd.DataFrame)
    # A mutable parameter is not shared.
    layers_ = ["conv_1", "conv_2"]
    copied = clone(CNNFeatureTransformer(model, layers_))
    assert copied.layer == layers_
    assert copied.layer is not layers_


def test_clone_copies_no_network():
    inputs = keras.Input((8, 8, 3))
    large = keras.Model(inputs, layers.Dense(40_000)(layers.Flatten()(inputs)))
    search = make_pipeline(CNNFeatureTransformer(large, "last"), SVC())
    assert clone(search)[0].model is large


def test_clone_of_a_subclass_is_one(model):
    class Own(CNNFeatureTransformer):
        pass

    assert type(clone(Own(model, "conv_1"))) is Own


def test_set_params(model, digits):
    pipeline = Pipeline([("cnn", CNNFeatureTransformer(model, "conv_1", **DIGITS)), ("svc", SVC())])
    X = digits[0]
    assert pipeline[:-1].fit(X).transform(X).shape == (120, 6 * 6 * 4)
    pipeline.set_params(cnn__layer="conv_2", cnn__pooling="max", cnn__batch_size=3)
    assert pipeline[:-1].fit(X).transform(X).shape == (120, 6)
    with pytest.raises(ValueError, match="Invalid parameter 'layers'"):
        pipeline.set_params(cnn__layers="conv_2")


@pytest.mark.parametrize("kind", ["object", "file", "name"])
@pytest.mark.parametrize("how", ["pickle", "joblib", "deepcopy"])
def test_round_trips(kind, how, model, model_file, digits, tmp_path):
    X = digits[0][:20]
    cnn = {
        "object": CNNFeatureTransformer(model, ["conv_1", "fc"], **DIGITS),
        "file": CNNFeatureTransformer(model_file, ["conv_1", "fc"], **DIGITS),
        "name": CNNFeatureTransformer(
            "mobilenet", "conv1_relu", "avg", weights=None, input_size=32, random_state=0, **DIGITS
        ),
    }[kind]
    unfitted, rows = clone(cnn), cnn.fit_transform(X)
    for estimator in (unfitted, cnn):
        if how == "pickle":
            copied = pickle.loads(pickle.dumps(estimator))
        elif how == "joblib":
            joblib.dump(estimator, tmp_path / "cnn.joblib")
            copied = joblib.load(tmp_path / "cnn.joblib")
        else:
            copied = copy.deepcopy(estimator)
        if estimator is unfitted:
            copied.fit(X)
        np.testing.assert_array_equal(copied.transform(X), rows)
        np.testing.assert_array_equal(copied.get_feature_names_out(), cnn.get_feature_names_out())
    # The original is as it was.
    np.testing.assert_array_equal(cnn.transform(X), rows)


def test_a_pickle_gives_the_model_of_its_time(model, digits):
    X = digits[0][:10]
    mine = keras.models.clone_model(model)
    dumped = pickle.dumps(CNNFeatureTransformer(mine, "conv_1", **DIGITS))
    first, same = pickle.loads(dumped), pickle.loads(dumped)
    assert first.model is same.model
    rows = first.fit_transform(X)
    # Trained on, it is another model, and the pickle still holds the old one.
    first.model.set_weights([weight * 2 for weight in first.model.get_weights()])
    again = pickle.loads(dumped)
    np.testing.assert_array_equal(again.fit_transform(X), rows)
    assert not np.allclose(first.fit_transform(X), rows)


def test_a_pickle_is_no_larger_than_its_model(model):
    buffer = io.BytesIO()
    model_size = len(pickle.dumps(model))
    pickle.dump([CNNFeatureTransformer(model, layer) for layer in range(20)], buffer)
    # One copy of the model, however many estimators share it.
    assert len(buffer.getvalue()) < 2 * model_size
    loaded = pickle.loads(buffer.getvalue())
    assert all(cnn.model is loaded[0].model for cnn in loaded)


# --- searches and pipelines -----------------------------------------------------------------------


@pytest.mark.slow
def test_grid_search_in_processes(model, digits):
    X, y = digits
    pipeline = Pipeline(
        [("cnn", CNNFeatureTransformer(model, **DIGITS)), ("svc", SVC(kernel="linear"))]
    )
    grid = {"cnn__layer": ["conv_1", "pool"], "cnn__pooling": ["flatten", "max"]}
    searches = []
    for n_jobs in (1, 2):
        search = GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs, error_score="raise")
        searches.append(search.fit(X, y))
    one, two = searches
    np.testing.assert_array_equal(
        one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"]
    )
    assert one.best_score_ > 0.5
    assert two.best_estimator_["cnn"].model is model


def test_a_fitted_pipeline_in_other_processes(model, digits):
    X, y = digits
    pipeline = make_pipeline(CNNFeatureTransformer(model, "pool", **DIGITS), SVC()).fit(X, y)
    results = joblib.Parallel(n_jobs=2)(
        joblib.delayed(getattr(pipeline, method))(X) for method in ("decision_function", "predict")
    )
    np.testing.assert_array_equal(results[0], pipeline.decision_function(X))
    np.testing.assert_array_equal(results[1], pipeline.predict(X))


NOTEBOOK = """
import keras

class Doubling(keras.layers.Layer):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}

@keras.saving.register_keras_serializable("own")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(2, 3)

    def call(self, inputs):
        return self.conv(inputs)

def double(layer):
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), layer])

MODELS = {
    "layer": lambda: double(Doubling(3.0)),
    "lambda": lambda: double(keras.layers.Lambda(lambda x: x * 3)),
    "subclass": Subclassed,
}
"""


@pytest.mark.parametrize("own", ["layer", "lambda", "subclass"])
@pytest.mark.slow
def test_code_of_a_notebook_in_other_processes(own, digits, monkeypatch):
    """What was written in `__main__` cannot be imported there and must travel with the model."""
    X = digits[0][:10]
    notebook = {"__name__": "__main__"}
    exec(NOTEBOOK, notebook)
    for name in ("Doubling", "Subclassed"):
        monkeypatch.setattr(sys.modules["__main__"], name, notebook[name], raising=False)
    model = notebook["MODELS"][own]()
    model(X.reshape(-1, 8, 8, 1))
    cnn = CNNFeatureTransformer(model, "last", **DIGITS)
    rows = cnn.fit_transform(X)
    for call in (cnn.transform, clone(cnn).fit_transform):
        for result in joblib.Parallel(n_jobs=2)(joblib.delayed(call)(X) for _ in range(2)):
            np.testing.assert_array_equal(result, rows)


def test_cross_validation_and_nested_parameters(model_file, digits):
    X, y = digits
    cnn = CNNFeatureTransformer(model_file, "pool", **DIGITS)
    scores = cross_val_score(make_pipeline(cnn, StandardScaler(), SVC()), X, y, cv=2)
    assert scores.mean() > 0.5


def test_feature_union(model, digits):
    X = digits[0]
    union = FeatureUnion(
        [
            ("pixels", "passthrough"),
            ("maps", CNNFeatureTransformer(model, "conv_2", "max", **DIGITS)),
            ("vector", CNNFeatureTransformer(model, "last", **DIGITS)),
        ]
    )
    features = union.fit_transform(X)
    assert features.shape == (120, 64 + 6 + 5)
    np.testing.assert_array_equal(features[:, :64], X)
    names = union.get_feature_names_out([f"p{i}" for i in range(64)])
    assert list(names[63:66]) == ["pixels__p63", "maps__conv_2_c0", "maps__conv_2_c1"]
    assert names[-1] == "vector__fc_4"


def _frame(library, paths):
    columns = {
        "photo": paths,
        "age": np.arange(12.0),
        "weight": np.linspace(5, 9, 12),
    }
    if library == "polars":
        return pl.DataFrame(columns)
    return pd.DataFrame(columns, index=[f"row {i}" for i in range(12)])


@pytest.mark.parametrize("selection", ["photo", ["photo"]], ids=["series", "frame"])
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_column_transformer(library, selection, model, pictures):
    if library == "polars" and not SELECTS_POLARS:
        pytest.skip("this scikit-learn does not know this polars")
    frame = _frame(library, pictures)
    columns = ColumnTransformer(
        [
            ("cnn", CNNFeatureTransformer(model, "conv_2", "avg"), selection),
            ("numbers", StandardScaler(), ["age", "weight"]),
        ]
    )
    expected = CNNFeatureTransformer(model, "conv_2", "avg").fit_transform(pictures)
    features = columns.fit_transform(frame)
    np.testing.assert_array_equal(features[:, :6].astype(np.float32), expected)
    names = [f"cnn__conv_2_c{c}" for c in range(6)] + ["numbers__age", "numbers__weight"]
    assert list(columns.get_feature_names_out()) == names

    if selection == "photo" and not KEEPS_SERIES_INDEX:
        # Only ["photo"] will do.
        return
    columns.set_output(transform=library)
    table = columns.fit_transform(frame)
    assert type(table) is type(frame)
    assert list(table.columns) == names
    np.testing.assert_array_equal(table.to_numpy()[:, :6].astype(np.float32), expected)
    if library == "pandas":
        assert list(table.index) == list(frame.index)
    # Rows in another order, by themselves.
    some = frame[[3, 0, 7]] if library == "polars" else frame.iloc[[3, 0, 7]]
    np.testing.assert_array_equal(
        columns.transform(some).to_numpy()[:, :6].astype(np.float32), expected[[3, 0, 7]]
    )


def test_a_whole_pipeline_on_a_frame(model, pictures):
    frame = _frame("pandas", pictures)
    y = np.arange(12) % 2
    pipeline = make_pipeline(
        ColumnTransformer(
            [
                ("cnn", CNNFeatureTransformer(model, "conv_2", "avg"), "photo"),
                ("numbers", StandardScaler(), ["age"]),
            ]
        ),
        SVC(kernel="linear", C=100.0),
    )
    search = GridSearchCV(
        pipeline, {"columntransformer__cnn__layer": ["conv_1", "conv_2"]}, cv=3, error_score="raise"
    )
    assert search.fit(frame, y).score(frame, y) > 0.9


# --- output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(library, model, pictures):
    cnn = CNNFeatureTransformer(model, "conv_1", "max").set_output(transform=library)
    plain = CNNFeatureTransformer(model, "conv_1", "max").fit_transform(pictures)
    module = {"pandas": pd, "polars": pl}[library]
    for X in (pictures, _frame(library, pictures)["photo"], _frame(library, pictures)[["photo"]]):
        table = cnn.fit_transform(X)
        assert isinstance(table, module.DataFrame)
        assert list(table.columns) == [f"conv_1_c{c}" for c in range(4)]
        np.testing.assert_array_equal(table.to_numpy(), plain)
    cnn.set_output(transform="default")
    assert type(cnn.fit_transform(pictures)) is np.ndarray


@pytest.mark.parametrize("kind", ["series", "frame", "rows"])
def test_the_index_is_kept(kind, model, pictures, digits):
    if kind == "series" and not KEEPS_SERIES_INDEX:
        pytest.skip("scikit-learn 1.6 drops it")
    index = [f"picture {i}" for i in range(12)]
    if kind == "rows":
        cnn = CNNFeatureTransformer(model, "conv_1", "max", **DIGITS)
        X = pd.DataFrame(digits[0][:12], index=index)
        X.columns = X.columns.astype(str)
    else:
        cnn = CNNFeatureTransformer(model, "conv_1", "max")
        X = pd.Series(pictures, index=index, name="photo")
        X = X.to_frame() if kind == "frame" else X
    table = cnn.set_output(transform="pandas").fit_transform(X)
    assert list(table.index) == index


def test_global_output_setting(model, pictures):
    cnn = CNNFeatureTransformer(model, "conv_1", "max").fit(pictures)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(cnn.transform(pictures), pd.DataFrame)


POOLED_WIDTHS = {"flatten": 36 * 4, "avg": 4, "max": 4, "gem": 4, "spp": 21 * 4}


@pytest.mark.parametrize("pooling", POOLED_WIDTHS)
def test_feature_names(pooling, model, digits):
    X = digits[0][:4]
    cnn = CNNFeatureTransformer(model, ["conv_1", "fc", -4], pooling, **DIGITS).fit(X)
    features = cnn.transform(X)
    names = cnn.get_feature_names_out()
    assert names.dtype == object
    assert len(names) == features.shape[1] == len(set(names))
    assert cnn._n_features_out == features.shape[1]
    width = POOLED_WIDTHS[pooling]
    assert list(names[width : width + 5]) == [f"fc_{i}" for i in range(5)]
    assert all(name.startswith("conv_1_") for name in names[:width])
    assert all(name.startswith("pool_") for name in names[width + 5 :])

    # A name says where its number stands among the maps.
    maps = CNNFeatureTransformer(model, "conv_1", None, **DIGITS).fit_transform(X)
    for column in range(width):
        place = {key: int(n) for key, n in re.findall(r"_(spp|y|x|c)(\d+)", names[column])}
        channel = maps[..., place["c"]]
        if pooling == "flatten":
            expected = channel[:, place["y"], place["x"]]
        elif pooling == "spp":
            rows = _bin(place["y"], 6, place["spp"])
            expected = channel[:, rows, _bin(place["x"], 6, place["spp"])].max(axis=(1, 2))
        elif pooling == "gem":
            expected = np.cbrt((np.maximum(channel, 1e-6).astype(float) ** 3).mean(axis=(1, 2)))
        else:
            expected = {"avg": np.mean, "max": np.max}[pooling](channel, axis=(1, 2))
        np.testing.assert_allclose(features[:, column], expected, rtol=1e-5, atol=1e-7)


def _bin(i, length, n):
    return slice(i * length // n, -(-(i + 1) * length // n))


def test_maps_have_no_column_names(model, digits):
    cnn = CNNFeatureTransformer(model, "conv_1", None, **DIGITS).fit(digits[0])
    with pytest.raises(ValueError, match="4-D maps, which have no columns"):
        cnn.get_feature_names_out()
    vectors = CNNFeatureTransformer(model, "fc", None, **DIGITS).fit(digits[0])
    assert list(vectors.get_feature_names_out()) == [f"fc_{i}" for i in range(5)]


# --- what it looks like ---------------------------------------------------------------------------


def test_html_with_a_link_to_the_documentation(model, digits):
    link = (
        "https://sklearn-cnnfeat.readthedocs.io/en/latest/generated/"
        "sklearn_cnnfeat.CNNFeatureTransformer.html"
    )
    cnn = CNNFeatureTransformer(model, "conv_1", **DIGITS)
    pipeline = make_pipeline(cnn, SVC())
    for estimator in (cnn, pipeline, pipeline.fit(*digits)):
        html = estimator._repr_html_()
        assert link in html
        assert "conv_1" in html
    assert "CNNFeatureTransformer(image_shape=(8, 8), layer='conv_1'" in repr(cnn)


def test_not_fitted():
    cnn = CNNFeatureTransformer()
    for call in (lambda: cnn.transform(["a.jpg"]), cnn.get_feature_names_out):
        with pytest.raises(NotFittedError, match="CNNFeatureTransformer instance is not fitted"):
            call()


# --- rows that depend on their image only ---------------------------------------------------------


def test_rows_are_bit_identical_however_they_are_computed(model):
    """OpenVINO: any batch, order, number of threads and batch size."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (23, 8, 8, 1), dtype=np.uint8)
    rows = CNNFeatureTransformer(model, ["conv_1", "fc"], engine="openvino").fit_transform(X)
    order = rng.permutation(23)
    for parameters in (
        {},
        {"n_jobs": 1},
        {"n_jobs": 2},
        {"n_jobs": 1, "batch_size": 5},
        {"n_jobs": 2, "batch_size": 4},
        {"batch_size": 64},
    ):
        cnn = CNNFeatureTransformer(model, ["conv_1", "fc"], engine="openvino", **parameters).fit(X)
        assert cnn.engine_ == "openvino"
        np.testing.assert_array_equal(cnn.transform(X), rows)
        np.testing.assert_array_equal(cnn.transform(X[order]), rows[order])
        np.testing.assert_array_equal(cnn.transform(X[7:8]), rows[7:8])
        np.testing.assert_array_equal(cnn.transform(X.astype(np.float32)), rows)


def test_keras_rows_are_equal_to_rounding(model):
    X = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    expected = CNNFeatureTransformer(model, "conv_2", engine="openvino").fit_transform(X)
    for batch_size in (None, 1, 7):
        cnn = CNNFeatureTransformer(model, "conv_2", engine="keras", batch_size=batch_size).fit(X)
        assert cnn.engine_ == "keras"
        largest = np.abs(expected).max()
        np.testing.assert_allclose(cnn.transform(X), expected, rtol=0, atol=5e-6 * largest)
        np.testing.assert_allclose(cnn.transform(X[3:4]), expected[3:4], atol=5e-6 * largest)


def test_transform_leaves_everything_as_it_was(model, digits, pictures):
    X = digits[0][:10].copy()
    cnn = CNNFeatureTransformer(model, "conv_1", **DIGITS).fit(X)
    before = dict(vars(cnn))
    weights = [weight.copy() for weight in model.get_weights()]
    first = cnn.transform(X)
    np.testing.assert_array_equal(cnn.transform(X), first)
    assert vars(cnn).keys() == before.keys()
    assert all(vars(cnn)[name] is value for name, value in before.items())
    np.testing.assert_array_equal(cnn.fit(X).transform(X), first)
    np.testing.assert_array_equal(X, digits[0][:10])
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("engine", ["openvino", "keras"])
def test_transform_in_many_threads(engine, model, pictures):
    cnn = CNNFeatureTransformer(model, ["conv_1", "fc"], engine=engine).fit(pictures)
    # Nothing has been compiled for this number of threads before the first call.
    cnn.set_params(n_jobs=3)
    chunks = [pictures[i % 5 :] for i in range(24)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(cnn.transform, chunks))
    rows = cnn.transform(pictures)
    for chunk, result in zip(chunks, results, strict=True):
        np.testing.assert_allclose(result, rows[len(rows) - len(chunk) :], rtol=1e-5, atol=1e-5)
        if engine == "openvino":
            np.testing.assert_array_equal(result, rows[len(rows) - len(chunk) :])


def test_fit_in_many_threads(model, model_file, digits):
    X = digits[0][:10]
    estimators = [
        CNNFeatureTransformer(given, layer, "avg", **DIGITS)
        for given in (model, model_file)
        for layer in ("conv_1", "conv_2", "pool")
    ] * 2
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda cnn: cnn.fit_transform(X), estimators))
    for i in range(6):
        np.testing.assert_array_equal(results[i], results[i + 6])
        np.testing.assert_allclose(results[i], results[(i + 3) % 6], rtol=1e-5)


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"pooling": "mean"}, ValueError, r"'pooling' parameter.*among.*'avg'.*Got 'mean'"),
        ({"layer": 2.5}, ValueError, r"'layer' parameter.*Got 2\.5"),
        ({"layer": []}, ValueError, r"a list of these that is not empty\. Got \[\]"),
        ({"layer": ["conv_1", None]}, ValueError, r"layer must be a name, an index"),
        (
            {"layer": ["conv_1", "conv_2"], "pooling": None},
            ValueError,
            "maps of one layer as a 4-D",
        ),
        ({"input_size": 0}, ValueError, r"'input_size' parameter"),
        ({"input_size": (3,)}, ValueError, r"number of pixels or \(height, width\)\. Got \(3,\)"),
        ({"input_size": (8, -8)}, ValueError, r"number of pixels or \(height, width\)"),
        ({"resize": "fit"}, ValueError, r"'resize' parameter.*'stretch'.*Got 'fit'"),
        ({"interpolation": "cubic"}, ValueError, r"'interpolation' parameter.*'bicubic'"),
        ({"value_range": (1, 0)}, ValueError, r"pair of numbers, black and white.*Got \(1, 0\)"),
        ({"data_format": "NCHW"}, ValueError, "'data_format' parameter.*'channels_first'"),
        ({"batch_size": 0}, ValueError, r"'batch_size' parameter.*\[1, inf\)"),
        ({"engine": "tvm"}, ValueError, "'engine' parameter.*'openvino'"),
        ({"precision": "fp16"}, ValueError, "'precision' parameter.*'bfloat16'"),
        ({"on_error": "ignore"}, ValueError, "'on_error' parameter.*'nan'"),
        ({"max_pixels": 0}, ValueError, "'max_pixels' parameter"),
        ({"n_jobs": 0}, ValueError, r"'n_jobs' parameter.*\[1, inf\).*Got 0"),
        ({"n_jobs": 1.5}, ValueError, "'n_jobs' parameter"),
        ({"preprocessing": "imagenet"}, ValueError, "'preprocessing' parameter.*'caffe'"),
        ({"random_state": "a"}, ValueError, "'random_state' parameter"),
        ({"verbose": "x"}, ValueError, "'verbose' parameter"),
        ({"model": None}, TypeError, r"a keras\.Model or a torch\.nn\.Module\. Got None instead"),
        ({"model": "resnet"}, ValueError, r"Nearest names: 'resnet50'.*list_models\(\)"),
        ({"model": "vgg16", "weights": "x.h5"}, FileNotFoundError, "weights='x.h5' is not a file"),
    ],
    ids=str,
)
def test_wrong_parameters(parameters, error, message, model, digits):
    cnn = CNNFeatureTransformer(**{"model": model, "layer": "conv_1", **DIGITS, **parameters})
    with pytest.raises(error, match=message):
        cnn.fit(digits[0][:3])


def test_random_weights_follow_random_state(digits):
    X = digits[0][:3]

    def rows(random_state):
        return CNNFeatureTransformer(
            "mobilenet",
            "conv1_relu",
            "avg",
            weights=None,
            input_size=32,
            random_state=random_state,
            **DIGITS,
        ).fit_transform(X)

    first = rows(0)
    np.testing.assert_array_equal(rows(0), first)
    np.testing.assert_array_equal(rows(np.random.RandomState(0)), first)
    assert not np.allclose(rows(1), first)


@pytest.mark.slow
def test_unpickled_model_is_built_anew(tmp_path, monkeypatch):
    """A pickle goes to a machine that has no compiled network, with a model of augmentations."""
    import keras

    from sklearn_cnnfeat._network import networks

    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.RandomFlip(),
            keras.layers.Conv2D(4, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    network.compile("adam", "mse")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "here"))
    fitted = CNNFeatureTransformer(network, "last").fit(images)
    rows = fitted.transform(images)
    pickled = pickle.dumps(fitted)
    monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "there"))
    networks.forget_networks()
    np.testing.assert_array_equal(pickle.loads(pickled).transform(images), rows)
