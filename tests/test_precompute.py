"""`precompute` and the scores by layer, on real estimators and searches."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy import stats
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    KFold,
    PredefinedSplit,
    RandomizedSearchCV,
    StratifiedShuffleSplit,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from small_network import LAYERS, count_computed, save_network, save_photos

from sklearn_cnnfeat import (
    CacheWarning,
    CNNFeatureTransformer,
    FeatureCache,
    LayerScoreDisplay,
    layer_report,
    layer_scores,
    precompute,
)
from sklearn_cnnfeat._network import networks
from sklearn_cnnfeat._network.engines import openvino as engine_openvino
from sklearn_cnnfeat.exceptions import EngineError, UnreadableImageWarning

N = 24


@pytest.fixture(scope="module")
def other_network(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("model") / "other.keras", seed=10)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture(scope="module")
def y():
    return np.arange(N) % 2


@pytest.fixture
def cnn(network, tmp_path):
    return CNNFeatureTransformer(network, "three", "avg", cache=tmp_path / "cache")


@pytest.fixture
def computed(monkeypatch):
    return count_computed(monkeypatch)


def pipeline(cnn):
    return Pipeline([("cnn", cnn), ("svm", SVC())])


def table(files):
    """Two columns of photographs and one of numbers."""
    return pd.DataFrame({"front": files, "back": files[::-1], "age": np.arange(len(files))})


def columns(cnn, *names):
    steps = [(name, clone(cnn), [name]) for name in names]
    return Pipeline(
        [("columns", ColumnTransformer([*steps, ("age", StandardScaler(), ["age"])])), ("s", SVC())]
    )


# Each case: what is searched, how many passes it takes, how many settings it has.
CASES = {
    "transformer": (lambda cnn: cnn, 1, 1),
    "pipeline": (pipeline, 1, 1),
    "passthrough first": (
        lambda cnn: Pipeline([("no", "passthrough"), *pipeline(cnn).steps]),
        1,
        1,
    ),
    "union": (
        lambda cnn: make_pipeline(
            FeatureUnion([("a", cnn), ("b", clone(cnn).set_params(layer="one", pooling="max"))]),
            SVC(),
        ),
        1,
        2,
    ),
    "nested": (
        lambda cnn: Pipeline(
            [("outer", Pipeline([("u", FeatureUnion([("p", cnn)]))])), ("s", SVC())]
        ),
        1,
        1,
    ),
    "stacking": (
        lambda cnn: StackingClassifier(
            [("a", pipeline(cnn)), ("b", pipeline(clone(cnn).set_params(layer="two")))], cv=2
        ),
        1,
        2,
    ),
    "voting": (lambda cnn: VotingClassifier([("a", pipeline(cnn)), ("b", "drop")]), 1, 1),
    "meta": (
        lambda cnn: CalibratedClassifierCV(
            GridSearchCV(pipeline(cnn), {"cnn__layer": LAYERS}, cv=2), cv=2
        ),
        1,
        3,
    ),
    "grid": (
        lambda cnn: GridSearchCV(
            pipeline(cnn),
            {"cnn__layer": LAYERS, "cnn__pooling": ["avg", "max", "flatten"], "svm__C": [1, 10]},
            cv=3,
        ),
        1,
        9,
    ),
    "grids": (
        lambda cnn: GridSearchCV(
            pipeline(cnn),
            [
                {"cnn__layer": ["one"], "cnn__pooling": ["gem"]},
                {"cnn__layer": ["two"], "cnn__preprocessing": ["rescale", "tf"]},
            ],
            cv=3,
        ),
        3,
        3,
    ),
    "whole steps": (
        lambda cnn: GridSearchCV(
            pipeline(cnn),
            [
                {"cnn": [cnn, clone(cnn).set_params(layer="one", pooling="spp")]},
                {"cnn": [clone(cnn).set_params(pooling="max")], "cnn__layer": ["one", "two"]},
            ],
            cv=3,
        ),
        1,
        4,
    ),
    "aliases": (
        lambda cnn: GridSearchCV(
            pipeline(cnn), {"cnn__layer": ["three", -3, "two", ["two", "three"]]}, cv=3
        ),
        1,
        4,
    ),
    "random, int": (
        lambda cnn: RandomizedSearchCV(
            pipeline(cnn),
            {"cnn__layer": LAYERS, "svm__C": stats.loguniform(0.1, 100)},
            n_iter=2,
            cv=3,
            random_state=4,
        ),
        1,
        None,
    ),
    "random, None": (
        lambda cnn: RandomizedSearchCV(
            pipeline(cnn),
            {
                "cnn__layer": LAYERS,
                "svm__C": stats.loguniform(0.1, 100),
                "svm__tol": range(1, 9999),
            },
            n_iter=4,
            cv=3,
        ),
        1,
        3,
    ),
    "halving": (
        lambda cnn: HalvingGridSearchCV(
            pipeline(cnn), {"cnn__layer": LAYERS, "svm__C": [1, 10]}, cv=2, min_resources=8
        ),
        1,
        3,
    ),
    "halving, random": (
        lambda cnn: HalvingRandomSearchCV(
            pipeline(cnn),
            {"cnn__layer": LAYERS, "svm__C": stats.uniform(1, 10)},
            n_candidates=4,
            cv=2,
            min_resources=8,
        ),
        1,
        3,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.sampled(4)
def test_nothing_is_computed_after_precompute(case, cnn, files, y, computed):
    make, n_passes, n_settings = CASES[case]
    estimator = make(cnn)
    report = precompute(estimator, files, verbose=0)
    assert (report.n_images, report.n_passes) == (N, n_passes)
    assert len(computed) == report.n_computed == n_passes * N
    assert report.n_hits == report.n_unreadable == 0
    if n_settings is not None:
        assert report.n_settings == n_settings
    again = precompute(estimator, files, verbose=0)
    assert (again.n_computed, again.n_hits) == (0, n_passes * N)
    estimator.fit(files, y)
    assert len(computed) == n_passes * N


def test_random_search_with_an_int_needs_only_what_it_draws(cnn, files, y, computed):
    search = RandomizedSearchCV(
        pipeline(cnn), {"cnn__layer": LAYERS}, n_iter=1, cv=2, random_state=0
    )
    assert precompute(search, files, verbose=0).n_settings == 1
    search.fit(files, y)
    assert len(computed) == N


def test_columns_of_a_data_frame(cnn, files, y, computed):
    X = table(files)
    search = GridSearchCV(
        columns(cnn, "front", "back"),
        {"columns__front__layer": ["one", "two"], "columns__back__pooling": ["avg", "max"]},
        cv=3,
    )
    report = precompute(search, X, verbose=0)
    # One pass a column. The second finds what is the same image, layer and pooling in the first.
    assert (report.n_images, report.n_passes, report.n_settings) == (N, 2, 4)
    assert report.n_computed + report.n_hits == 2 * N
    before = len(computed)
    search.fit(X, y)
    assert len(computed) == before


def test_columns_chosen_by_a_callable_or_a_name(cnn, files, y, computed):
    X = table(files)
    for chosen in (
        "front",
        lambda frame: ["front"],
        [0],
        slice(0, 1),
        np.array([True, 0, 0], bool),
    ):
        estimator = make_pipeline(ColumnTransformer([("photo", cnn, chosen)]), SVC())
        precompute(estimator, X, verbose=0)
        estimator.fit(X, y)
    assert len(computed) == N


def test_polars_frame(cnn, files, computed):
    polars = pytest.importorskip("polars")
    X = polars.DataFrame({"front": files, "age": list(range(N))})
    try:
        ColumnTransformer([("age", "passthrough", ["age"])]).fit(X)
    except (AttributeError, ValueError):
        pytest.skip("this scikit-learn does not know this polars")
    estimator = ColumnTransformer([("photo", cnn, ["front"])])
    precompute(estimator, X, verbose=0)
    estimator.fit_transform(X)
    assert len(computed) == N


def test_networks_and_preprocessing_have_a_pass_each(cnn, network, other_network, files, computed):
    grid = {
        "cnn__model": [network, other_network],
        "cnn__layer": LAYERS,
        "cnn__preprocessing": [None, "tf"],
        "cnn__resize": ["stretch", "pad"],
    }
    report = precompute(pipeline(cnn), files, grid, verbose=0)
    assert (report.n_passes, report.n_settings) == (8, 24)
    assert len(computed) == 8 * N


@pytest.mark.slow
def test_layers_with_and_without_the_classifier_are_two_networks(tmp_path, files, computed):
    cnn = CNNFeatureTransformer(
        "mobilenet",
        "conv_pw_1_relu",
        "avg",
        weights=None,
        random_state=0,
        input_size=32,
        cache=tmp_path,
    )
    grid = {"layer": ["conv_pw_1_relu", "conv1_relu", "conv_preds"]}
    report = precompute(cnn, files, grid, verbose=0)
    assert (report.n_passes, report.n_settings, report.n_computed) == (2, 3, 2 * N)
    for layer in grid["layer"]:
        cnn.set_params(layer=layer).fit_transform(files)
    assert len(computed) == 2 * N


@pytest.mark.slow
def test_rows_are_those_of_each_layer_alone(cnn, files):
    grid = {
        "layer": [*LAYERS, ["one", "three"]],
        "pooling": ["avg", "max", "gem", "spp", "flatten"],
    }
    alone = {}
    for layer in grid["layer"]:
        for pooling in grid["pooling"]:
            uncached = clone(cnn).set_params(layer=layer, pooling=pooling, cache=None)
            alone[str(layer), pooling] = uncached.fit_transform(files)
    precompute(cnn, files, grid, verbose=0)
    for layer in grid["layer"]:
        for pooling in grid["pooling"]:
            rows = cnn.set_params(layer=layer, pooling=pooling).fit_transform(files)
            np.testing.assert_allclose(rows, alone[str(layer), pooling], rtol=1e-5, atol=1e-6)


def test_maps_are_precomputed(cnn, files, computed):
    precompute(cnn, files, {"pooling": [None, "avg"], "layer": ["one", "two"]}, verbose=0)
    maps = cnn.set_params(pooling=None, layer="one").fit_transform(files)
    assert maps.shape == (N, 30, 30, 4)
    assert len(computed) == N


def test_model_objects(tmp_path, network, files, y, computed):
    import keras

    model = keras.saving.load_model(network)
    cnn = CNNFeatureTransformer(model, "three", "avg", cache=tmp_path)
    search = GridSearchCV(pipeline(cnn), {"cnn__layer": LAYERS}, cv=3)
    assert precompute(search, files, verbose=0).n_passes == 1
    search.fit(files, y)
    assert len(computed) == N


def test_the_estimator_and_its_grid_stay_as_they_are(cnn, files):
    steps = [cnn, clone(cnn).set_params(layer="two")]
    search = GridSearchCV(
        pipeline(cnn), {"cnn": steps, "cnn__layer": ["one"], "cnn__verbose": [0]}, cv=3
    )
    before = repr(search.get_params()), [step.get_params() for step in steps]
    attributes = set(vars(cnn))
    precompute(search, files, verbose=0)
    assert (repr(search.get_params()), [step.get_params() for step in steps]) == before
    assert set(vars(cnn)) == attributes


def test_progress_tells_what_is_computed(cnn, files, capsys):
    precompute(cnn, files, {"layer": LAYERS, "resize": ["pad", "crop"]})
    err = capsys.readouterr().err
    assert "precompute small.keras, 3 layers (pass 1 of 2)" in err
    assert "precompute small.keras, 3 layers (pass 2 of 2)" in err
    assert f"{N}/{N}" in err
    precompute(cnn, files, verbose=0)
    assert "precompute" not in capsys.readouterr().err


# --- refusals -----------------------------------------------------------------------------------


def refused(estimator, X, match, **kwargs):
    with pytest.raises(ValueError, match=match) as caught:
        precompute(estimator, X, verbose=0, **kwargs)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_no_cache_is_said(cnn, files, computed):
    refused(clone(cnn).set_params(cache=None), files, "The CNNFeatureTransformer has no cache")
    union = FeatureUnion([("kept", cnn), ("lost", clone(cnn).set_params(cache=None))])
    refused(make_pipeline(union, SVC()), files, "step 'featureunion__lost' has no cache")
    assert not computed


def test_no_transformer_is_said(files):
    refused(make_pipeline(StandardScaler(), SVC()), files, "no CNNFeatureTransformer in this Pipel")


def test_a_step_in_front_is_said(cnn, files):
    pipe = Pipeline([("change", FunctionTransformer()), *pipeline(cnn).steps])
    refused(pipe, files, "Step 'change' stands in front of the CNNFeatureTransformer 'cnn'")


def test_remainder_is_refused(cnn, files):
    estimator = ColumnTransformer([("age", StandardScaler(), ["age"])], remainder=cnn)
    refused(estimator, table(files), "remainder")


def test_weights_that_no_one_will_draw_again_are_refused(cnn, files):
    random = clone(cnn).set_params(model="mobilenet", layer="conv1_relu", weights=None)
    refused(pipeline(random), files, "step 'cnn' has random weights.*int as random_state")
    state = np.random.RandomState(0)
    refused(random.set_params(random_state=state), files, "int as random_state")


def test_distributions_of_parameters_of_the_network_are_refused(cnn, files):
    search = RandomizedSearchCV(pipeline(cnn), {"cnn__input_size": stats.randint(32, 64)}, n_iter=3)
    refused(search, files, "'cnn__input_size' is drawn from a distribution")


def test_unknown_searches_are_refused(cnn, files):
    from sklearn.model_selection._search import BaseSearchCV

    class OtherSearch(BaseSearchCV):
        def __init__(self, estimator):
            super().__init__(estimator)

        def _run_search(self, evaluate_candidates):
            evaluate_candidates([{}])

    refused(OtherSearch(pipeline(cnn)), files, "OtherSearch.*param_grid=")


def test_unknown_layers_are_found_before_anything_is_computed(cnn, files, computed):
    refused(cnn, files, "no layer 'fore'", param_grid={"layer": ["one", "fore"]})
    assert not computed


def test_behind_a_preprocessing_of_the_users_own_nothing_is_kept(cnn, files, computed):
    def mean(maps):
        return maps.mean(axis=(1, 2))

    report = precompute(cnn, files, {"pooling": ["avg", mean, "max"]}, verbose=0)
    # Of the function the maps, which come before it.
    assert (report.n_settings, report.n_passes, report.n_computed) == (3, 1, N)
    computed.clear()
    cnn.set_params(pooling=mean).fit_transform(files)
    assert not computed
    with pytest.warns(CacheWarning, match="preprocessing is a callable"):
        report = precompute(cnn.set_params(preprocessing=np.sqrt), files, verbose=0)
    assert (report.n_settings, report.n_passes, report.n_computed, report.n_hits) == (0, 0, 0, 0)


# --- faults -------------------------------------------------------------------------------------


def test_unreadable_images_are_counted(cnn, files, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photograph")
    X = [*files, str(bad), str(tmp_path / "missing.jpg")]
    cnn.on_error = "nan"
    with pytest.warns(UserWarning, match="2 of 26 images could not be read"):
        report = precompute(cnn, X, verbose=0)
    assert (report.n_computed, report.n_hits, report.n_unreadable) == (N, 0, 2)
    with pytest.warns(UserWarning, match="2 of 26 images could not be read"):
        report = precompute(cnn, X, verbose=0)
    assert (report.n_computed, report.n_hits, report.n_unreadable) == (0, N, 2)
    with pytest.raises(FileNotFoundError, match="missing"):
        precompute(cnn.set_params(on_error="raise"), X, verbose=0)


def test_a_network_that_cannot_be_loaded(cnn, files, tmp_path, monkeypatch):
    """The engine is chosen by `fit`: what OpenVINO cannot load later is an error that says so."""
    cnn.set_params(layer="two", on_error="nan")
    if clone(cnn).fit(files).engine_ != "openvino":
        pytest.skip("there is no OpenVINO for this platform")

    def fail(*_, **__):
        raise RuntimeError("no room for the network")

    # Forget what other tests have loaded.
    networks.forget_networks()
    monkeypatch.setattr(engine_openvino.OpenVINOEngine, "__init__", fail)
    X = [str(tmp_path / "missing.jpg"), *files]
    with pytest.raises(EngineError, match=r"no room for the network.*engine='keras'"):
        precompute(cnn, X, verbose=0)
    with pytest.warns(UnreadableImageWarning, match="1 of 25"):
        report = precompute(cnn.set_params(engine="keras"), X, verbose=0)
    assert (report.n_computed, report.n_hits, report.n_unreadable) == (N, 0, 1)


INTERRUPTED = """
import sys
from sklearn_cnnfeat import CNNFeatureTransformer, precompute
network, cache, *files = sys.argv[1:]
cnn = CNNFeatureTransformer(network, "three", "avg", cache=cache, n_jobs=1)
print("ready", flush=True)
precompute(cnn, files, {"layer": ["one", "two", "three"]}, verbose=0)
print("done", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_interrupted_and_resumed(network, tmp_path, computed):
    files = save_photos(tmp_path / "photos", 500, side=(300, 400))
    cache = FeatureCache(tmp_path / "cache")
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, network, str(cache.path), *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 120
        while cache.info().rows < 30 and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert "KeyboardInterrupt" in err
    assert "done" not in out
    rows = set(cache.info().recipes.values())
    # All layers of an image are kept together.
    assert len(rows) == 1
    cnn = CNNFeatureTransformer(network, "three", "avg", cache=cache)
    report = precompute(cnn, files, {"layer": LAYERS}, verbose=0)
    assert report.n_hits == rows.pop() >= 10
    assert len(computed) == report.n_computed == len(files) - report.n_hits > 0
    assert set(cache.info().recipes.values()) == {len(files)}


# --- scores by layer ----------------------------------------------------------------------------


def test_scores_come_in_the_order_of_computation(cnn, files, y):
    grid = {"cnn__layer": ["three", "one", -4, ["one", "two"]], "svm__C": [0.01, 1, 10]}
    search = GridSearchCV(pipeline(cnn), grid, cv=3).fit(files, y)
    scores = layer_scores(search)
    assert scores["layer"].tolist() == ["one", "two", "one + two", "three"]
    assert scores["n_features"].tolist() == [4, 8, 12, 16]
    assert scores["mean_test_score"].max() == search.best_score_
    results = pd.DataFrame(search.cv_results_)
    for spelled, row in zip(["one", -4, ["one", "two"], "three"], scores.itertuples(), strict=True):
        own = results[[params["cnn__layer"] == spelled for params in results["params"]]]
        best = own.loc[own["mean_test_score"].idxmax()]
        assert row.params == best["params"]
        assert row.mean_test_score == best["mean_test_score"]
        assert row.std_test_score == best["std_test_score"]
        assert row.mean_fit_time == best["mean_fit_time"]


def test_the_order_of_poolings_does_not_depend_on_scores(cnn, files, y):
    """They come as they were tried first, whichever of the other settings is best for each."""
    steps = [("cnn", cnn), ("a", FunctionTransformer()), ("svm", SVC())]
    grid = {"cnn__pooling": ["avg", "max"], "a__validate": [False, True]}
    search = GridSearchCV(Pipeline(steps), grid, cv=2).fit(files, y)
    assert [params["cnn__pooling"] for params in search.cv_results_["params"]] == 2 * ["avg", "max"]
    search.cv_results_["mean_test_score"] = np.array([0.1, 0.9, 0.2, 0.3])
    assert layer_scores(search)["pooling"].tolist() == ["avg", "max"]


@pytest.mark.slow
def test_scores_of_poolings_and_networks(cnn, network, other_network, files, y):
    grid = {
        "cnn__model": [other_network, network],
        "cnn__layer": ["two", "one"],
        "cnn__pooling": ["max", "flatten"],
    }
    search = GridSearchCV(pipeline(cnn), grid, cv=2).fit(files, y)
    scores = layer_scores(search)
    assert list(scores.columns[:4]) == ["model", "layer", "pooling", "n_features"]
    assert scores["model"].tolist() == ["other.keras"] * 4 + ["small.keras"] * 4
    assert scores["layer"].tolist() == ["one", "one", "two", "two"] * 2
    display = LayerScoreDisplay.from_search(search)
    assert len(display.lines_) == 4
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts[0] == "other.keras, max"


def test_scores_of_random_and_halving_searches(cnn, files, y):
    random = RandomizedSearchCV(
        pipeline(cnn), {"cnn__layer": LAYERS, "svm__C": stats.loguniform(0.1, 9)}, n_iter=9, cv=2
    ).fit(files, y)
    assert set(layer_scores(random)["layer"]) <= set(LAYERS)
    halving = HalvingGridSearchCV(
        pipeline(cnn), {"cnn__layer": LAYERS, "svm__C": [1, 9]}, cv=2, min_resources=8, factor=3
    ).fit(files, y)
    scores = layer_scores(halving)
    assert scores["layer"].tolist() == LAYERS
    results = pd.DataFrame(halving.cv_results_)
    for row in scores.itertuples():
        own = results[[params["cnn__layer"] == row.layer for params in results["params"]]]
        assert row.n_resources == own["n_resources"].max()


def test_scores_without_a_layer_that_does_not_exist(cnn, files, y):
    grid = {"cnn__layer": [*LAYERS, "nope"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = GridSearchCV(pipeline(cnn), grid, cv=2).fit(files, y)
    with pytest.warns(UserWarning, match="do not exist are left out.*'nope'"):
        assert layer_scores(search)["layer"].tolist() == LAYERS


def test_scores_of_whole_steps(cnn, files, y):
    steps = [cnn, clone(cnn).set_params(layer="one"), FunctionTransformer(lambda X: [[0]] * len(X))]
    search = GridSearchCV(pipeline(cnn), {"cnn": steps}, cv=2).fit(files, y)
    assert layer_scores(search)["layer"].tolist() == ["one", "three"]


def test_several_scores(cnn, files, y):
    grid = {"cnn__layer": LAYERS}
    search = GridSearchCV(
        pipeline(cnn), grid, cv=2, scoring=["accuracy", "roc_auc"], refit="roc_auc"
    ).fit(files, y)
    by_refit = layer_scores(search)
    assert by_refit["mean_test_score"].tolist() == search.cv_results_["mean_test_roc_auc"].tolist()
    accuracy = layer_scores(search, metric="accuracy")["mean_test_score"]
    assert accuracy.tolist() == search.cv_results_["mean_test_accuracy"].tolist()
    assert LayerScoreDisplay.from_search(search, metric="roc_auc").score_name == "Roc auc"
    with pytest.raises(ValueError, match="choose one with metric=, of 'accuracy', 'roc_auc'"):
        layer_scores(search, metric="f1")
    search.refit = False
    with pytest.raises(ValueError, match="choose one with metric="):
        layer_scores(search)


def test_one_score_takes_no_metric(cnn, files, y):
    search = GridSearchCV(pipeline(cnn), {"cnn__layer": ["one"]}, cv=2).fit(files, y)
    with pytest.raises(ValueError, match="one score only"):
        layer_scores(search, metric="accuracy")


def test_several_steps(cnn, files, y):
    union = FeatureUnion([("a", cnn), ("b", clone(cnn).set_params(layer="one"))])
    search = GridSearchCV(
        Pipeline([("union", union), ("svm", SVC())]), {"union__b__layer": ["two", "one"]}, cv=2
    ).fit(files, y)
    with pytest.raises(ValueError, match="choose one with step=, of 'union__a', 'union__b'"):
        layer_scores(search)
    with pytest.raises(ValueError, match="step='b' is not a CNNFeatureTransformer"):
        layer_scores(search, step="b")
    assert layer_scores(search, step="union__b")["layer"].tolist() == ["one", "two"]
    assert layer_scores(search, step="union__a")["layer"].tolist() == ["three"]


def test_failed_settings_come_with_no_score(cnn, files, y):
    search = GridSearchCV(pipeline(cnn), {"cnn__layer": ["one", "two"], "svm__C": [-1, 1]}, cv=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(files, y)
    assert layer_scores(search)["mean_test_score"].notna().all()


def test_search_must_be_fitted_and_hold_a_network(cnn, files, y):
    with pytest.raises(NotFittedError):
        layer_scores(GridSearchCV(pipeline(cnn), {}))
    search = GridSearchCV(SVC(), {"C": [1]}, cv=2).fit(np.eye(N), y)
    with pytest.raises(ValueError, match="No setting of the search has a CNNFeatureTransformer"):
        layer_scores(search)


def test_layer_report(network, files, y, computed, tmp_path):
    report = layer_report(files, y, network, cv=3, verbose=0, cache=tmp_path)
    assert report["layer"].tolist() == ["one", "two", "three"]
    assert report["n_features"].tolist() == [4, 8, 16]
    assert len(computed) == N
    # What it kept serves others.
    cnn = CNNFeatureTransformer(network, "two", "avg", cache=tmp_path)
    rows = cnn.fit_transform(files)
    assert len(computed) == N
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), {}, cv=3
    ).fit(rows, y)
    assert report["mean_test_score"][1] == search.best_score_
    assert report["std_test_score"][1] == search.cv_results_["std_test_score"][0]
    display = LayerScoreDisplay(report).plot()
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == [
        "one\n(4)",
        "two\n(8)",
        "three\n(16)",
    ]


def test_layer_report_of_chosen_layers(network, files, y, computed):
    report = layer_report(
        files,
        y,
        network,
        ["mean", "three", 0],
        "max",
        estimator=SVC(),
        # The same folds for each layer, though they are drawn at random.
        cv=StratifiedShuffleSplit(3, test_size=0.4, random_state=None),
        scoring="roc_auc",
        verbose=0,
    )
    assert report["layer"].tolist() == ["rescale", "three", "mean"]
    assert len(computed) == N
    assert report["mean_test_score"].between(0, 1).all()


def test_layer_report_refuses(network, files, y):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        layer_report(files, y[:-1], network)
    with pytest.raises(ValueError, match="pooling=None"):
        layer_report(files, y, network, pooling=None)
    with pytest.raises(ValueError, match="no layer 'fore'"):
        layer_report(files, y, network, ["fore"])
    with pytest.raises(ValueError, match="needs y"):
        layer_report(files, None, network)
    with pytest.raises(TypeError, match=r"one score, .*got \['accuracy', 'f1'\]"):
        layer_report(files, y, network, scoring=["accuracy", "f1"])


def test_layer_report_leaves_out_what_cannot_be_read(network, files, y, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    settings = {"model": network, "cv": 3, "verbose": 0}
    expected = layer_report(files, y, **settings)
    with pytest.warns(UnreadableImageWarning, match=r"broken\.jpg"):
        report = layer_report(
            [*files, str(tmp_path / "broken.jpg")], [*y, y[0]], on_error="nan", **settings
        )
    columns = ["layer", "n_features", "mean_test_score"]
    assert_frame_equal(report[columns], expected[columns])


def test_layer_report_of_folds_of_ones_own_with_an_unreadable_image(network, files, y, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    halves = np.arange(N) % 4 < 2
    settings = {"model": network, "layers": ["two"], "verbose": 0}
    expected = layer_report(files, y, cv=PredefinedSplit(halves), **settings)
    images, labels = [str(tmp_path / "broken.jpg"), *files], [y[0], *y]
    first, second = (1 + np.flatnonzero(halves == half) for half in (False, True))
    for cv in (
        [([0, *second], first), (first, [0, *second])],
        PredefinedSplit([0, *halves]),
        # A fold of which nothing is left is none.
        PredefinedSplit([2, *halves]),
    ):
        with pytest.warns(UnreadableImageWarning, match=r"broken\.jpg"):
            report = layer_report(images, labels, cv=cv, on_error="nan", **settings)
        columns = ["layer", "mean_test_score", "std_test_score"]
        assert_frame_equal(report[columns], expected[columns])


def test_layer_scores_want_a_search(network):
    with pytest.raises(TypeError, match="such as GridSearchCV; got CNNFeatureTransformer"):
        layer_scores(CNNFeatureTransformer(network))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("vgg16", "block1_conv2 block2_conv2 block3_conv3 block4_conv3 block5_conv3 block5_pool"),
        (
            "resnet50",
            "conv1_relu conv2_block3_out conv3_block4_out conv4_block6_out conv5_block3_o",
        ),
        ("mobilenet", "conv_pw_1_relu conv_pw_3_relu conv_pw_5_relu conv_pw_11_relu conv_pw_13_r"),
        ("inception_v3", "activation_2 activation_4 mixed2 mixed7 mixed10"),
    ],
)
def test_layers_chosen_end_the_stages_of_networks(model, expected):
    from sklearn_cnnfeat import layer_summary
    from sklearn_cnnfeat._layer_scores import choose_layers

    assert re.match(expected, " ".join(choose_layers(layer_summary(model))))


@pytest.mark.slow
def test_photographs(assets, photos, imagenet_home, tmp_path, computed):
    y = ["ants" in path for path in photos]
    cnn = CNNFeatureTransformer("mobilenet", "conv_pw_12_relu", "avg", cache=tmp_path)
    search = GridSearchCV(
        Pipeline([("cnn", cnn), ("scale", StandardScaler()), ("svm", SVC())]),
        {
            "cnn__layer": ["conv_dw_13_relu", "conv_pw_6_relu", "conv_pw_12_relu"],
            "svm__C": [0.1, 1, 10, 100],
        },
        cv=KFold(5, shuffle=True, random_state=0),
    )
    report = precompute(search, photos, verbose=0)
    assert (report.n_passes, report.n_computed) == (1, 120)
    search.fit(photos, y)
    assert len(computed) == 120
    assert search.best_score_ > 0.85
    scores = layer_scores(search)
    assert scores["layer"].tolist() == ["conv_pw_6_relu", "conv_pw_12_relu", "conv_dw_13_relu"]
    assert scores["n_features"].tolist() == [512, 1024, 1024]


@pytest.mark.slow
def test_the_guide_on_caching_runs(assets, tmp_path):
    root = Path(__file__).resolve().parents[1]
    guide = (root / "docs" / "caching.md").read_text(encoding="utf-8")
    for folder in (assets / "photos").iterdir():
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:10]:
            (tmp_path / "photos" / folder.name / photo.name).symlink_to(photo)
    done = subprocess.run(
        [sys.executable, "-c", "".join(re.findall(r"^```python\n(.*?)^```$", guide, re.M | re.S))],
        cwd=tmp_path,
        env=os.environ | {"KERAS_HOME": str(assets / "keras_home"), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "1 pass for 3 layers" in done.stdout
    assert "0 conv_pw_6_relu 512" in re.sub(" +", " ", done.stdout)
    assert "CacheReport(rows=160, bad=0)" in done.stdout
    assert (tmp_path / "features" / "features.sqlite").exists()
