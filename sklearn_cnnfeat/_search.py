"""Searches over layers: every image through each network once, for all layers together."""

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    ParameterGrid,
    ParameterSampler,
    PredefinedSplit,
    check_cv,
    cross_validate,
)
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._inspection.summaries import layer_summary
from sklearn_cnnfeat._transformer import CNNFeatureTransformer
from sklearn_cnnfeat.exceptions import LayerNotFoundError

# Parameters that a network's specification holds, and those that change no number.
_IN_SPEC = frozenset(
    "model layer pooling weights random_state preprocessing input_size calibration verbose".split()
)
# Layers that repeat others, or only pad or cut them.
_NO_STAGES = ("Functional", "Sequential", "ZeroPadding2D", "Cropping2D")
# Layers that join branches.
_JOINS = ("Add", "Concatenate", "CustomScaleLayer")


@dataclass(frozen=True)
class PrecomputeReport:
    """What `precompute` did.

    Attributes
    ----------
    n_images : int
        Number of images in `X`.
    n_settings : int
        Number of different settings of layer, pooling and so on that will be asked for.
    n_passes : int
        Number of times that the images were gone through: one for each network and preprocessing.
    n_computed : int
        Number of images pushed through a network, all passes together.
    n_hits : int
        Number of images found complete in the cache, all passes together.
    n_unreadable : int
        Number of images that could not be read (``on_error="nan"``), all passes together.
    seconds : float
        Time that it took.
    """

    n_images: int
    n_settings: int
    n_passes: int
    n_computed: int
    n_hits: int
    n_unreadable: int
    seconds: float


def precompute(estimator, X, param_grid=None, *, verbose=1):
    """Fill the cache with all features that a search will ask for, in one pass an image.

    All `CNNFeatureTransformer` steps that share a network and its input are computed together:
    layers and poolings are outputs of one network, cut behind the deepest layer. Images that the
    cache knows already are not computed again, so that an interrupted call goes on where it was.

    Parameters
    ----------
    estimator : estimator
        A `CNNFeatureTransformer`; a `Pipeline`, `ColumnTransformer`, `FeatureUnion` or any
        meta-estimator that holds some; or a search over one of these (`GridSearchCV`,
        `RandomizedSearchCV`, the halving searches). It is not changed.

    X : sequence of images
        What the estimator will be fitted on: all images, not a fold.

    param_grid : dict or list of dict, default=None
        Settings to be tried, as for `GridSearchCV`, where `estimator` is not a search.

    verbose : int, default=1
        1 shows a progress bar, 0 nothing.

    Returns
    -------
    report : PrecomputeReport
        Numbers of images, passes and hits, and the time that it took.

    Raises
    ------
    ValueError
        If a `CNNFeatureTransformer` has no cache, if none is found, or if what a search will ask
        for cannot be told beforehand.

    Warns
    -----
    CacheWarning
        If the features of some settings cannot be kept, such as those of a callable pooling.

    See Also
    --------
    FeatureCache : Where the features are kept.
    layer_report : Which layer of a network suits the data, in one call.

    Notes
    -----
    A randomized search with an int as `random_state` will draw the very settings that are
    computed here. With another one, all that it may draw is computed.

    A layer computed together with others may differ in the last digits of float32 from the same
    layer computed alone, where the network can be rearranged less: if one of the others stands
    between a convolution and its normalization.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import SVC
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, precompute
    >>> photos = load_sample_images().images
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", weights=None, random_state=0, input_size=64, cache=tempfile.mkdtemp()
    ... )
    >>> search = GridSearchCV(
    ...     make_pipeline(cnn, SVC()),
    ...     {
    ...         "cnnfeaturetransformer__layer": ["conv_pw_1_relu", "conv_pw_2_relu"],
    ...         "cnnfeaturetransformer__pooling": ["avg", "max"],
    ...     },
    ... )
    >>> report = precompute(search, photos, verbose=0)
    >>> report.n_settings, report.n_passes, report.n_computed
    (4, 1, 2)
    """
    start = time.perf_counter()
    jobs = {}
    n_found = 0
    for candidate in _candidates(estimator, {} if param_grid is None else param_grid):
        for name, transformer, part in _find_transformers(candidate, _Part(X)):
            n_found += 1
            _check_cache(name, transformer)
            if transformer._warn_uncacheable():
                continue
            key, spec = _shared_work(name, transformer, part)
            jobs.setdefault(key, (transformer, part.X, {}))[-1][spec] = None
    if not n_found:
        raise ValueError(
            f"There is no CNNFeatureTransformer in this {type(estimator).__name__}, so there is "
            "nothing to be computed."
        )
    counts = np.zeros(3, int)
    for number, (transformer, images, specs) in enumerate(jobs.values(), start=1):
        which = f" (pass {number} of {len(jobs)})" if len(jobs) > 1 else ""
        counts += transformer._precompute(images, list(specs), which, verbose)
    n_seen, n_computed, n_unreadable = counts.tolist()
    return PrecomputeReport(
        n_images=len(X),
        n_settings=sum(len(specs) for *_, specs in jobs.values()),
        n_passes=len(jobs),
        n_computed=n_computed,
        n_hits=n_seen - n_computed - n_unreadable,
        n_unreadable=n_unreadable,
        seconds=time.perf_counter() - start,
    )


# --- what a search tries ------------------------------------------------------------------------


def _candidates(estimator, space):
    """Yield the estimator with each setting of `space` that matters to its images' features."""
    for setting in _settings(estimator, space):
        yield _with_setting(estimator, setting)


def _with_setting(estimator, setting):
    """Return a copy of an estimator as a search would fit it."""
    # The estimators in a grid are the user's too. Models are read only and may be large.
    return clone(estimator).set_params(
        **{name: clone(value) if _is_estimator(value) else value for name, value in setting.items()}
    )


def _settings(estimator, space, n_iter=None, random_state=None):
    """Return the settings that will be tried, reduced to what matters to images' features."""
    spaces = [space] if isinstance(space, Mapping) else space
    if not isinstance(spaces, (list, tuple)) or not all(isinstance(one, Mapping) for one in spaces):
        raise TypeError(
            "param_grid must be a dictionary of parameter names and lists of values, as for "
            f"GridSearchCV, or a list of such dictionaries. Got {space!r} instead."
        )
    values = {}
    for one in spaces:
        for name, tried in one.items():
            values.setdefault(name, []).append(tried)
    relevant = {name for name in values if _is_relevant(estimator, name, values)}

    def reduced(setting):
        return {name: value for name, value in setting.items() if name in relevant}

    if n_iter is not None and isinstance(random_state, Integral):
        # The very settings that the search will draw.
        return map(reduced, ParameterSampler(spaces, n_iter, random_state=random_state))
    spaces = [reduced(one) for one in spaces]
    for one in spaces:
        for name, tried in one.items():
            if hasattr(tried, "rvs"):
                raise ValueError(
                    f"{name!r} is drawn from a distribution, so that nobody can tell "
                    "which values the search will try: give the search an int as random_state, or "
                    f"{name!r} a list of values."
                )
    return ParameterGrid(spaces)


def _is_relevant(estimator, name, values):
    """Whether a parameter can change the features of images, rather than an SVM's `C`."""
    owner = name.rpartition("__")[0]
    if not owner or any(name.startswith(other + "__") for other in values):
        # A whole step, or a parameter of a step that is itself tried.
        return True
    if any(_holds_transformer(value) for tried in values[name] for value in _listed(tried)):
        return True
    held = estimator.get_params().get(owner)
    return not _is_estimator(held) or _holds_transformer(held)


def _listed(tried):
    return [] if hasattr(tried, "rvs") else tried


def _is_estimator(value):
    return isinstance(value, BaseEstimator)


def _holds_transformer(value):
    return _is_estimator(value) and any(
        isinstance(part, CNNFeatureTransformer) for part in [value, *value.get_params().values()]
    )


def _searched(search):
    """Yield the estimator inside a search with each setting that it tries."""
    if hasattr(search, "param_grid"):
        settings = _settings(search.estimator, search.param_grid)
    elif hasattr(search, "param_distributions"):
        settings = _settings(
            search.estimator,
            search.param_distributions,
            getattr(search, "n_iter", None),
            search.random_state,
        )
    else:
        raise ValueError(
            f"What {type(search).__name__} will try is not known. Call precompute with its "
            "estimator, and with param_grid= naming the settings."
        )
    for setting in settings:
        yield _with_setting(search.estimator, setting)


# --- transformers inside estimators -------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """The part of `X` that a step gets."""

    X: object
    # The columns chosen on the way, as text: equal parts are equal objects for a dictionary.
    columns: tuple = ()

    def select(self, columns):
        """Return the part in some columns of this one."""
        if callable(columns):
            columns = columns(self.X)
        chosen = repr(columns.tolist() if hasattr(columns, "tolist") else columns)
        return _Part(_safe_indexing(self.X, columns, axis=1), (*self.columns, chosen))


def _find_transformers(estimator, part, name=""):
    """Yield each `CNNFeatureTransformer` in an estimator: its name, itself and what it gets."""
    if isinstance(estimator, CNNFeatureTransformer):
        yield name, estimator, part
    elif hasattr(estimator, "estimator") and (
        isinstance(estimator, BaseSearchCV)
        or hasattr(estimator, "param_grid")
        or hasattr(estimator, "param_distributions")
    ):
        for candidate in _searched(estimator):
            yield from _find_transformers(candidate, part, _join(name, "estimator"))
    elif isinstance(estimator, Pipeline):
        front = None
        for step_name, step in estimator.steps:
            if step is None or step == "passthrough":
                continue
            for found in _find_transformers(step, part, _join(name, step_name)):
                if front is not None:
                    raise ValueError(
                        f"Step {front!r} stands in front of the CNNFeatureTransformer {found[0]!r} "
                        "and may change the images. Call precompute with the rest of the "
                        "pipeline, and with what comes out of that step."
                    )
                yield found
            front = front or _join(name, step_name)
    elif isinstance(estimator, ColumnTransformer):
        if _holds_transformer(estimator.remainder):
            raise ValueError(
                "The remainder of a ColumnTransformer is a CNNFeatureTransformer: name its "
                "columns in transformers= instead, so that it can be told which they are."
            )
        for step_name, step, columns in estimator.transformers:
            if _is_estimator(step):
                yield from _find_transformers(step, part.select(columns), _join(name, step_name))
    elif _is_estimator(estimator):
        for parameter, value in estimator.get_params(deep=False).items():
            if _is_estimator(value):
                yield from _find_transformers(value, part, _join(name, parameter))
            elif isinstance(value, (list, tuple)):
                # As of FeatureUnion, StackingClassifier, VotingClassifier.
                for named in value:
                    if isinstance(named, tuple) and len(named) > 1 and _is_estimator(named[1]):
                        yield from _find_transformers(named[1], part, _join(name, str(named[0])))


def _join(*names):
    return "__".join(filter(None, names))


def _check_cache(name, transformer):
    if not transformer._wants_cache():
        raise ValueError(
            f"{_which(name)} has no cache to be filled: set cache=True, a folder or a FeatureCache."
        )


def _which(name):
    return f"The step {name!r}" if name else "The CNNFeatureTransformer"


def _shared_work(name, transformer, part):
    """Return what transformers must have in common to share a pass, and what this one computes."""
    spec = transformer._make_spec()
    if spec.source.weights == "random" and not isinstance(transformer.random_state, Integral):
        raise ValueError(
            f"{_which(name)} has random weights (weights=None), which are others at each fit, so "
            "that what is computed now would never be asked for again. Give it an int as "
            "random_state."
        )
    # What comes out of an 8-bit network depends on the outputs that it was calibrated with.
    shared = spec if spec.calibration else replace(spec, layers=(), poolings=())
    settings = tuple(
        (parameter, repr(value))
        for parameter, value in sorted(transformer.get_params(deep=False).items())
        if parameter not in _IN_SPEC
    )
    model = id(transformer.model) if spec.source.kind == "object" else None
    return (shared, settings, model, part.columns), spec


# --- scores by layer ----------------------------------------------------------------------------


def layer_scores(search, *, metric=None, step=None):
    """Tell how good each layer was that a search has tried.

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
        One row a layer, in the order in which the network computes them, with the best setting of
        all other parameters:

        - ``model``: the network, if the search has tried several;
        - ``layer``: path of the layer, or of layers side by side, joined by " + ";
        - ``pooling``: if the search has tried several; each then has a row of its own;
        - ``n_features``: number of columns that the step gives;
        - ``n_resources``: of halving searches, what the score was computed from: that of the last
          round that the layer took part in;
        - ``mean_test_score``, ``std_test_score``: over the folds;
        - ``mean_fit_time``, ``mean_score_time``: seconds a fold;
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
        warnings.warn(
            f"Settings of layers that do not exist are left out: {first_few(list(unknown))}",
            UserWarning,
            stacklevel=2,
        )
    if not described:
        raise ValueError(
            "No setting of the search names a layer that exists: " + next(iter(unknown))
        )
    described = pd.DataFrame.from_dict(described, orient="index")
    scores = pd.concat([described, results.loc[described.index]], axis=1)
    scores = scores.rename(
        columns={f"mean_test_{metric}": "mean_test_score", f"std_test_{metric}": "std_test_score"}
    )
    # The last round of a halving search first, then the best score; settings that failed last.
    by_quality = ["iter"] if "iter" in scores else []
    by_quality.append("mean_test_score")
    best = scores.sort_values(by_quality, ascending=False, na_position="last", kind="stable")
    best = best.drop_duplicates(["model", "layer", "pooling"])
    best = best.sort_values(["model_order", "layer_order", "position"]).reset_index(drop=True)
    columns = [name for name in ("model", "layer", "pooling") if _is_told(best, name)]
    columns += ["n_features", *(["n_resources"] if "n_resources" in best else [])]
    return best[[*columns, *_SCORES, "params"]]


_SCORES = ["mean_test_score", "std_test_score", "mean_fit_time", "mean_score_time"]


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
    steps = [
        {
            name: value
            for name, value in _with_setting(search.estimator, setting).get_params().items()
            if isinstance(value, CNNFeatureTransformer)
        }
        for setting in search.cv_results_["params"]
    ]
    names = list(dict.fromkeys(name for found in steps for name in found))
    if not names:
        raise ValueError("The search has tried no CNNFeatureTransformer, so it says of no layer.")
    if step is None and len(names) > 1:
        raise ValueError(
            f"The search has {len(names)} steps with a CNNFeatureTransformer: say which with "
            f"step=, of {', '.join(map(repr, names))}."
        )
    if step is not None and step not in names:
        raise ValueError(
            f"step={step!r} is no CNNFeatureTransformer of the search; it has "
            f"{', '.join(map(repr, names))}."
        )
    return [found.get(step or names[0]) for found in steps]


class _Facts:
    """What layers are called, where they lie and how many features they give."""

    def __init__(self):
        self._positions = {}
        self._described = {}

    def describe(self, transformer):
        """Return the facts of one setting as a dictionary."""
        # Neither has to do with names and shapes, and 8 bits would have to be calibrated.
        transformer = clone(transformer).set_params(cache=None, precision="float32")
        key = transformer._make_spec(), transformer.pooling
        if key not in self._described:
            transformer._prepare(key[0])
            model = transformer.model
            name = Path(model).name if isinstance(model, (str, Path)) else model.name
            positions = self.positions(transformer)
            self._described[key] = {
                "model": name,
                "model_order": list(self._positions).index(_identity(model)),
                "layer": " + ".join(transformer.layer_names_),
                # Side by side, a layer comes where the deepest of them does.
                "layer_order": max(positions[layer] for layer in transformer.layer_names_),
                "pooling": getattr(transformer.pooling, "__name__", transformer.pooling),
                "n_features": transformer._n_features_out,
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
    """Tell which layer of a network suits the data.

    Every image goes through the network once, for all layers together. Then an estimator is
    cross-validated on the features of each layer, with the same folds for all.

    Parameters
    ----------
    X : sequence of images
        As for `CNNFeatureTransformer`.

    y : array-like of shape (n_images,)
        Their classes; or numbers, with a regressor as `estimator`.

    model : str, path or keras.Model, default="vgg16"
        The network, as for `CNNFeatureTransformer`.

    layers : list of str or int, default=None
        The layers to be compared. None takes about six in most networks: the last one of each
        resolution, that is before the maps become smaller, and the last one of all. In networks
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
        What must not be torn apart by folds, for splitters that know groups.

    n_jobs : int, default=None
        Folds that are fitted at the same time. The network uses all cores anyway.

    verbose : int, default=1
        1 shows a progress bar, 0 nothing.

    **settings : dict
        Further parameters of `CNNFeatureTransformer`, such as `weights`, `input_size` or `cache`.
        With ``on_error="nan"``, images that cannot be read are left out.

    Returns
    -------
    report : DataFrame
        One row a layer, in the order in which the network computes them: ``layer``,
        ``n_features``, ``mean_test_score`` and ``std_test_score`` over the folds,
        ``mean_fit_time`` and ``mean_score_time`` in seconds a fold, features not included.

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
        raise ValueError("layer_report needs y, what an estimator is to learn of each image.")
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
    cnn.layer = [layers] if isinstance(layers, (str, Integral)) else list(layers)
    if estimator is None:
        estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    features = cnn.set_output(transform="default").fit_transform(X)
    readable = ~np.isnan(features).any(axis=1)  # on_error="nan" has warned of the others
    folds = _folds(cv, features, y, groups, is_classifier(estimator), readable)
    rows = []
    for layer, columns in zip(cnn.layer_names_, cnn._columns(), strict=True):
        results = cross_validate(
            estimator, features[:, columns], y, cv=folds, scoring=scoring, n_jobs=n_jobs
        )
        scores = results["test_score"]
        times = results["fit_time"].mean(), results["score_time"].mean()
        rows.append((layer, columns.stop - columns.start, scores.mean(), scores.std(), *times))
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
