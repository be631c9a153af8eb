"""From a folder of photographs to a fitted classifier, and from that to predictions."""

import errno
import os
import signal
import warnings

import joblib
import numpy as np
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_cnnfeat._images.urls import is_url
from sklearn_cnnfeat._layer_scores import layer_scores
from sklearn_cnnfeat._precompute import precompute
from sklearn_cnnfeat._progress import progress
from sklearn_cnnfeat.exceptions import ImageError, UnreadableImageWarning

CLASSIFIERS = {
    "auto": [SVC(), SVC(kernel="linear")],
    "svm": [SVC()],
    "linear-svm": [SVC(kernel="linear")],
    "logreg": [LogisticRegression(max_iter=2000)],
}
# Images that go through a pipeline together.
_CHUNK = 64


def search_folder(
    photos,
    cnn,
    layers,
    *,
    poolings=("avg",),
    resizes=("stretch",),
    classifier="auto",
    costs=(0.1, 1, 10),
    folds=5,
    scoring="accuracy",
    seed=0,
    n_jobs=None,
    verbose=0,
):
    """Search layers, poolings and C for the best classifier of photographs.

    These are what `load_image_folder` returns.

    The network `cnn` must have a cache. With ``on_error="nan"``, photographs that cannot be read
    are left out. The classifier "auto" keeps a linear SVM where it is as good as one with an RBF
    kernel within one standard error. The classes of the fitted `GridSearchCV` are the names of the
    folders.
    """
    score = get_scorer(scoring)
    paths, names = photos.data, np.array(photos.target_names)[photos.target]
    _check_classes(names, folds)
    pipeline = Pipeline([("cnn", cnn), ("scale", StandardScaler()), ("classifier", SVC())])
    grid = {
        "cnn__layer": list(layers),
        "cnn__pooling": list(poolings),
        "cnn__resize": list(resizes),
        "classifier": CLASSIFIERS[classifier],
        "classifier__C": list(costs),
    }
    search = GridSearchCV(
        pipeline,
        grid,
        refit=_simplest,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        scoring=scoring,
        n_jobs=n_jobs,
        error_score="raise",
    )
    report = precompute(search, paths, verbose=verbose)
    if report.n_unreadable:
        settings = {"layer": layers[0], "pooling": poolings[0], "resize": resizes[0]}
        readable = _readable(clone(cnn).set_params(verbose=0, **settings), paths)
        paths, names = paths[readable], names[readable]
        _check_classes(names, folds)
    # What is left can be read; a file that breaks later must not become a row of NaN.
    search.estimator = pipeline.set_params(cnn__on_error="raise")
    n_fits = len(ParameterGrid(search.param_grid)) * folds
    if n_jobs not in (None, 1):
        return _fit_in_processes(search, paths, names)
    with progress(n_fits, "cross-validation", verbose, unit="fit") as bar:

        def counting(estimator, X, y):
            bar.update()
            return score(estimator, X, y)

        search.set_params(scoring=counting).fit(paths, names)
    # The function belongs to this call; a search that is kept has the name.
    search.scoring, search.scorer_ = scoring, score
    return search


def _fit_in_processes(search, paths, names):
    # A terminal interrupts all processes; only this one knows what to do about it.
    deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    try:
        with joblib.parallel_config("loky", **deaf):
            return search.fit(paths, names)
    finally:
        # Or they would outlive an interrupt, and complain.
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def _simplest(results):
    """Return the position of the best setting, or of a linear one that is as good."""
    means = results["mean_test_score"]
    best = int(np.nanargmax(means))
    n_folds = sum(name.startswith("split") for name in results)
    # The deviation is that of the folds at hand, hence one less.
    error = results["std_test_score"][best] / np.sqrt(n_folds - 1)
    linear = [
        i
        for i, setting in enumerate(results["params"])
        if getattr(setting["classifier"], "kernel", "linear") == "linear"
    ]
    if linear:
        top = max(linear, key=lambda i: means[i])
        if means[top] >= means[best] - error:
            return top
    return best


def best_params(search):
    """Return the setting with the best score."""
    return search.cv_results_["params"][int(np.nanargmax(search.cv_results_["mean_test_score"]))]


def _check_classes(names, folds):
    classes, counts = np.unique(names, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"All photographs belong to one class, '{classes[0]}': there is nothing to tell apart. "
            "The folder needs one subfolder per class."
            if len(classes)
            else "None of the photographs can be read."
        )
    smallest = counts.argmin()
    if counts[smallest] < folds:
        raise ValueError(
            f"{folds} folds need {folds} photographs a class, and '{classes[smallest]}' has "
            f"{counts[smallest]}: add some, or choose fewer folds."
        )


def _readable(cnn, paths):
    """Tell which photographs can be read, from the cache for those that can."""
    readable = []
    with warnings.catch_warnings():
        # They have been listed already.
        warnings.simplefilter("ignore", UnreadableImageWarning)
        for start in range(0, len(paths), _CHUNK):
            rows = cnn.fit_transform(paths[start : start + _CHUNK])
            readable.append(~np.isnan(rows).any(axis=1))
    return np.concatenate(readable)


def score_table(search):
    """Return one dictionary a layer and pooling, at its best C, in the order of the network."""
    scores = layer_scores(search)
    order = (-scores["mean_test_score"]).rank(method="first").astype(int)
    name = search.scoring
    grid = search.param_grid
    several = [
        (column, key)
        for column, key in (("resize", "cnn__resize"), ("classifier", "classifier"))
        if len(grid[key]) > 1
    ]
    return [
        {
            "layer": row["layer"],
            "pooling": row["params"]["cnn__pooling"],
            **{column: _setting_name(row["params"][key]) for column, key in several},
            "features": int(row["n_features"]),
            "C": float(row["params"]["classifier__C"]),
            name: float(row["mean_test_score"]),
            "std": float(row["std_test_score"]),
            "rank": int(rank),
        }
        for rank, (_, row) in zip(order, scores.iterrows(), strict=True)
    ]


def _setting_name(value):
    """Return an SVM by its kernel, and other settings as they are."""
    return f"{value.kernel} SVM" if isinstance(value, SVC) else value


def chance(search, photos):
    """Return the score of who always says the most frequent class, and that class."""
    names = np.array(photos.target_names)[photos.target]
    guess = DummyClassifier().fit(np.zeros((len(names), 1)), names)
    score = get_scorer(search.scoring)(guess, np.zeros((len(names), 1)), names)
    return float(score), str(guess.predict([[0]])[0])


def predict_images(model, paths, *, skip=False, warn=print, verbose=0):
    """Yield one dictionary an image: path, prediction, and scores or probabilities if there are.

    Images that cannot be read are left out with `skip`, and `warn` is called with a sentence for
    each.
    """
    with progress(len(paths), "predicting", verbose) as bar:
        for start in range(0, len(paths), _CHUNK):
            chunk = list(paths[start : start + _CHUNK])
            n_images = len(chunk)
            if skip:
                # Such as links that lead nowhere: of these a transformer tells all at once.
                missing = [path for path in chunk if not (is_url(path) or os.path.exists(path))]
                for path in missing:
                    warn(f"left out: {ImageError(path, os.strerror(errno.ENOENT))}")
                chunk = [path for path in chunk if path not in missing]
            while chunk:
                try:
                    results = list(_predict(model, chunk))
                except ImageError as error:
                    if not skip or error.name not in chunk:
                        raise
                    warn(f"left out: {error}")
                    chunk = [path for path in chunk if path != error.name]
                else:
                    yield from results
                    break
            bar.update(n_images)


def _predict(model, paths):
    X = np.array(paths, dtype=object)
    if isinstance(model, Pipeline) and len(model.steps) > 1:
        # Once through the network, for predictions and scores alike.
        X, model = model[:-1].transform(X), model.steps[-1][1]
    columns = _score_columns(model, X)
    for i, (path, prediction) in enumerate(zip(paths, model.predict(X), strict=True)):
        yield {
            "path": path,
            "prediction": _python(prediction),
            **{name: _python(values[i]) for name, values in columns.items()},
        }


def _score_columns(model, X):
    classes = getattr(model, "classes_", None)
    if classes is None or isinstance(classes, list):
        return {}
    if hasattr(model, "predict_proba"):
        values = model.predict_proba(X)
        return {f"probability_{name}": values[:, i] for i, name in enumerate(classes)}
    if hasattr(model, "decision_function"):
        values = np.asarray(model.decision_function(X))
        if values.ndim == 1:  # positive for the second class
            return {f"score_{classes[1]}": values}
        if values.shape[1] == len(classes):
            return {f"score_{name}": values[:, i] for i, name in enumerate(classes)}
    return {}


def _python(value):
    return value.tolist() if hasattr(value, "tolist") else value
