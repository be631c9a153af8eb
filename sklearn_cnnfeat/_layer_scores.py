"""Which layer suits the data: scores of a search by layer, and layers compared in one call."""

import math
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import clone, is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, check_cv, cross_validate
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._parameters import make_extractor, network_spec
from sklearn_cnnfeat._steps import choose_step, transformers_in, with_setting
from sklearn_cnnfeat._summaries import layer_summary
from sklearn_cnnfeat._transformer import CNNFeatureTransformer, extractor_of
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import LayerNotFoundError

# Layers that copy, pad or crop the output of others.
_NO_STAGES = ("Functional", "Sequential", "ZeroPadding2D", "Cropping2D")
# Layers that join branches.
_JOINS = ("Add", "Concatenate", "CustomScaleLayer")


# --- scores of a search ---------------------------------------------------------------------------


def layer_scores(search, *, metric=None, step=None):
    """Score each layer that a search has tried.

    Parameters
    ----------
    search : GridSearchCV, RandomizedSearchCV or a halving search
        A fitted search over an estimator that holds a `CNNFeatureTransformer`.

    metric : str, default=None
        Which score, where the search has several; None then takes the one in `refit`.

    step : str, default=None
        Which `CNNFeatureTransformer`, where there are several, named as in `set_params`.

    Returns
    -------
    scores : DataFrame
        One row per layer, in the order in which the network computes them, with the best setting of
        all other parameters:

        - ``model``: the network, if the search has tried several;
        - ``layer``: path of the layer, or of layers side by side, joined by " + ";
        - ``pooling``: if the search has tried several; each then has a row of its own;
        - ``n_features``: number of columns that the step gives;
        - ``n_resources``: of halving searches, what the score was computed from: that of the last
          round that the layer took part in;
        - ``mean_test_score``, ``std_test_score``: over the folds;
        - ``n_folds``: their number;
        - ``mean_fit_time``, ``mean_score_time``: seconds per fold;
        - ``params``: the setting, as in ``search.cv_results_``.

    See Also
    --------
    LayerScoreDisplay : The same as a picture.
    layer_report : Compares the layers of a network without a search.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import Pipeline
    >>> from sklearn.svm import SVC
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, layer_scores
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet",
    ...     pooling="avg",
    ...     weights=None,
    ...     random_state=0,
    ...     input_size=32,
    ...     image_shape=(8, 8),
    ...     value_range=(0, 16),
    ...     cache=tempfile.mkdtemp(),
    ... )
    >>> search = GridSearchCV(
    ...     Pipeline([("cnn", cnn), ("svm", SVC())]),
    ...     {"cnn__layer": ["conv_pw_3_relu", "conv_pw_1_relu"], "svm__C": [1, 10]},
    ... )
    >>> scores = layer_scores(search.fit(X[:60], y[:60]))
    >>> scores[["layer", "n_features"]]
                layer  n_features
    0  conv_pw_1_relu          64
    1  conv_pw_3_relu         128
    """
    if not isinstance(search, BaseSearchCV) and not hasattr(search, "cv_results_"):
        raise TypeError(
            f"search must be a fitted search, such as GridSearchCV; got {type(search).__name__}."
        )
    check_is_fitted(search, "cv_results_")
    results = pd.DataFrame(search.cv_results_)
    metric = _choose_metric(search, metric)
    transformers = _searched_transformers(search, step)
    results["position"] = range(len(results))
    results = results[[transformer is not None for transformer in transformers]]
    facts = _Facts()
    described, unknown = {}, {}
    for index, row in results["position"].items():
        try:
            described[index] = facts.describe(transformers[row])
        except LayerNotFoundError as error:  # its fits have failed as well
            unknown[str(error)] = None
    if unknown:
        warn(f"Settings of layers that do not exist are left out: {first_few(list(unknown))}")
    if not described:
        raise ValueError(
            "No setting of the search names a layer that exists: " + next(iter(unknown))
        )
    described = pd.DataFrame.from_dict(described, orient="index")
    scores = pd.concat([described, results.loc[described.index]], axis=1)
    scores = scores.rename(
        columns={f"mean_test_{metric}": "mean_test_score", f"std_test_{metric}": "std_test_score"}
    )
    # Where it was tried first, whichever of its other settings is best.
    kinds = ["model", "layer", "pooling"]
    scores["position"] = scores.groupby(kinds, dropna=False)["position"].transform("min")
    # The last round of a halving search first, then the best score; settings that failed last.
    by_quality = ["iter"] if "iter" in scores else []
    by_quality.append("mean_test_score")
    best = scores.sort_values(by_quality, ascending=False, na_position="last", kind="stable")
    best = best.drop_duplicates(kinds)
    best = best.sort_values(["model_order", "layer_order", "position"]).reset_index(drop=True)
    columns = [name for name in ("model", "layer", "pooling") if _is_told(best, name)]
    columns += ["n_features", *(["n_resources"] if "n_resources" in best else [])]
    best["n_folds"] = search.n_splits_
    return best[[*columns, *_SCORES, "params"]]


_SCORES = ["mean_test_score", "std_test_score", "n_folds", "mean_fit_time", "mean_score_time"]


def _is_told(scores, column):
    return column == "layer" or scores[column].nunique(dropna=False) > 1


def _choose_metric(search, metric):
    if not search.multimetric_:
        if metric is not None:
            raise ValueError(f"The search has one score only; metric must be None, not {metric!r}.")
        return "score"
    names = [name[10:] for name in search.cv_results_ if name.startswith("mean_test_")]
    metric = search.refit if metric is None else metric
    if metric not in names:
        raise ValueError(
            f"The search has several scores: choose one with metric=, of "
            f"{', '.join(map(repr, names))}. Got {metric!r} instead."
        )
    return metric


def _searched_transformers(search, step):
    """Return the transformer of each setting that was tried; None where there is none."""
    tried = [
        transformers_in(with_setting(search.estimator, setting))
        for setting in search.cv_results_["params"]
    ]
    names = list(dict.fromkeys(name for found in tried for name in found))
    name = choose_step(names, step, "No setting of the search has", "The search")
    return [found.get(name) for found in tried]


class _Facts:
    """The names of layers, their positions and their numbers of features."""

    def __init__(self):
        self._positions = {}
        self._described = {}

    def describe(self, transformer):
        """Return the facts of one setting as a dictionary."""
        # Names and shapes do not depend on the precision, and 8 bits would need calibration.
        transformer = clone(transformer).set_params(precision="float32")
        spec = network_spec(transformer)
        key = spec, transformer.pooling
        if key not in self._described:
            extractor = make_extractor(transformer, spec=spec)
            model = transformer.model
            is_path = isinstance(model, (str, Path))
            name = Path(model).name if is_path else spec.source.name
            positions = self.positions(transformer)
            self._described[key] = {
                "model": name,
                "model_order": list(self._positions).index(_identity(model)),
                "layer": " + ".join(extractor.layers),
                # Side by side, a layer comes where the deepest of them does.
                "layer_order": max(positions[layer] for layer in extractor.layers),
                "pooling": getattr(transformer.pooling, "__name__", transformer.pooling),
                "n_features": extractor.n_columns,
            }
        return self._described[key]

    def positions(self, transformer):
        """Return the position of each layer in the order of computation."""
        model = _identity(transformer.model)
        if model not in self._positions:
            paths = layer_summary(transformer)["path"]
            self._positions[model] = {path: position for position, path in enumerate(paths)}
        return self._positions[model]


def _identity(model):
    return str(model) if isinstance(model, (str, Path)) else id(model)


def layer_report(
    X,
    y,
    model="vgg16",
    layers=None,
    pooling="avg",
    *,
    estimator=None,
    cv=5,
    scoring=None,
    groups=None,
    n_jobs=None,
    verbose=1,
    **settings,
):
    """Score layers of a network on labeled images.

    Each image goes through the network once, for all layers together. Then an estimator is
    cross-validated on the features of each layer, with the same folds for all layers.

    Parameters
    ----------
    X : sequence of images
        As for `CNNFeatureTransformer`.

    y : array-like of shape (n_images,)
        Their classes, or numbers with a regressor as `estimator`.

    model : str, path or keras.Model, default="vgg16"
        The network, as for `CNNFeatureTransformer`.

    layers : list of str or int, default=None
        The layers to compare. None chooses about six in most networks: the last one of each
        resolution, before the maps become smaller, and the last one of all. In networks
        with branches, such as ResNets, it is the last layer of a resolution at which branches
        meet again.

    pooling : {"avg", "max", "gem", "spp", "flatten"} or callable, default="avg"
        How maps become features, as for `CNNFeatureTransformer`.

    estimator : estimator, default=None
        What learns from the features. None takes a logistic regression on standardized features.

    cv : int, cross-validation generator or iterable, default=5
        The folds, as for :func:`sklearn.model_selection.cross_validate`.

    scoring : str or callable, default=None
        The score; None takes the estimator's own.

    groups : array-like of shape (n_images,), default=None
        Groups of images that stay in one fold, for splitters that use groups.

    n_jobs : int, default=None
        Number of folds fitted in parallel. The network uses all cores in any case.

    verbose : int, default=1
        1 shows a progress bar, 0 nothing.

    **settings : dict
        Further parameters of `CNNFeatureTransformer`, such as `weights`, `input_size` or `cache`.
        With ``on_error="nan"``, images that cannot be read are left out.

    Returns
    -------
    report : DataFrame
        One row per layer, in the order in which the network computes them: ``layer``,
        ``n_features``, ``mean_test_score`` and ``std_test_score`` over the ``n_folds`` folds,
        ``mean_fit_time`` and ``mean_score_time`` in seconds per fold, features not included.

    See Also
    --------
    LayerScoreDisplay : Draws the report.
    precompute : The same pass for a search over other parameters as well.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_cnnfeat import layer_report
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> report = layer_report(
    ...     X[:60],
    ...     y[:60],
    ...     "mobilenet",
    ...     weights=None,
    ...     random_state=0,
    ...     input_size=32,
    ...     image_shape=(8, 8),
    ...     value_range=(0, 16),
    ...     verbose=0,
    ... )
    >>> report[["layer", "n_features"]]
                 layer  n_features
    0   conv_pw_1_relu          64
    1   conv_pw_3_relu         128
    2   conv_pw_5_relu         256
    3  conv_pw_11_relu         512
    """
    if y is None:
        raise ValueError("layer_report needs y, the target of each image.")
    check_consistent_length(X, y)
    if not (scoring is None or isinstance(scoring, str) or callable(scoring)):
        raise TypeError(
            f"scoring must be one score, by its name or as a callable; got {scoring!r}. Call "
            "layer_report once for each, with cache=True the features are not computed again."
        )
    if pooling is None:
        raise ValueError(
            "pooling=None gives maps, from which no estimator learns; choose 'avg', say."
        )
    cnn = CNNFeatureTransformer(model, "last", pooling, verbose=verbose, **settings)
    summary = layer_summary(cnn)
    if layers is None:
        layers = choose_layers(summary)
    cnn.set_params(layer=[layers] if isinstance(layers, (str, Integral)) else list(layers))
    if estimator is None:
        estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    features = cnn.set_output(transform="default").fit_transform(X)
    readable = ~np.isnan(features).any(axis=1)  # on_error="nan" has warned of the others
    folds = _folds(cv, features, y, groups, is_classifier(estimator), readable)
    rows = []
    for layer, columns in zip(cnn.layer_names_, extractor_of(cnn).columns, strict=True):
        results = cross_validate(
            estimator, features[:, columns], y, cv=folds, scoring=scoring, n_jobs=n_jobs
        )
        scores = results["test_score"]
        times = results["fit_time"].mean(), results["score_time"].mean()
        rows.append(
            (layer, columns.stop - columns.start, scores.mean(), scores.std(), len(folds), *times)
        )
    report = pd.DataFrame(rows, columns=["layer", "n_features", *_SCORES])
    order = {path: position for position, path in enumerate(summary["path"])}
    return report.sort_values("layer", key=lambda paths: paths.map(order), ignore_index=True)


def _folds(cv, X, y, groups, is_of_classes, readable):
    """Return the folds of the readable images, as their positions among all images."""
    splitter = check_cv(cv, y, classifier=is_of_classes)
    positions = np.arange(len(X))
    if isinstance(cv, (PredefinedSplit, Iterable)):
        # These name images by their positions among all.
        folds = [[positions[part] for part in fold] for fold in splitter.split(X, y, groups)]
        folds = [[part[readable[part]] for part in fold] for fold in folds]
        return [(train, test) for train, test in folds if len(test)]
    # The same folds as if there were no others.
    positions = positions[readable]
    y, groups = (
        None if labels is None else _safe_indexing(labels, readable) for labels in (y, groups)
    )
    folds = splitter.split(X[readable], y, groups)
    return [(positions[train], positions[test]) for train, test in folds]


def choose_layers(summary):
    """Return the paths of layers that end a stage of the network."""
    convolutions = np.flatnonzero(summary["type"].str.contains("Conv"))
    maps = summary.iloc[convolutions[0] if len(convolutions) else 0 :]
    # Maps of a single position are gates inside blocks, or belong to a classifier.
    is_stage = [
        len(shape) == 3 and None not in shape and shape[:2] != (1, 1)
        for shape in maps["output_shape"]
    ]
    maps = maps[np.array(is_stage, bool) & ~maps["type"].isin(_NO_STAGES)]
    if maps.empty:
        raise ValueError(
            "The network does not say how large its maps are, so that its layers cannot be chosen: "
            "give input_size=, or name them with layers=."
        )
    chosen = {maps.index[-1]}
    areas = np.array([math.prod(shape[:2]) for shape in maps["output_shape"]])
    # How often height and width were halved, roughly: convolutions may cut a border as well.
    n_halvings = np.log2(areas.max() / areas) / 2
    for _, stage in maps.groupby(n_halvings.round()):
        joins = np.flatnonzero(stage["type"].isin(_JOINS))
        last = joins[-1] if len(joins) else len(stage) - 1
        # What is applied to a join belongs to it.
        while last + 1 < len(stage) and stage["type"].iloc[last + 1] in ("Activation", "ReLU"):
            last += 1
        chosen.add(stage.index[last])
    return summary["path"].loc[sorted(chosen)].tolist()
