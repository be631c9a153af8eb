"""Photographs as a pipeline sees them: features, predictions and how certain these are."""

import copy
from dataclasses import dataclass

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from sklearn_cnnfeat._inspection.maps import Pictures
from sklearn_cnnfeat._inspection.pipeline_steps import without_name_warnings
from sklearn_cnnfeat._inspection.route import Route, is_predictor
from sklearn_cnnfeat._steps import as_transformer, chosen, find_step
from sklearn_cnnfeat._transformer import CNNFeatureTransformer, extractor_for, is_fitted
from sklearn_cnnfeat._warn import warn

NONE_READABLE = "None of the photographs can be read."


@dataclass
class Judged:
    """Photographs as a pipeline or transformer sees them."""

    # The network, fitted.
    transformer: CNNFeatureTransformer
    # What explains decisions: the fitted pipeline, or None for a transformer alone.
    pipeline: Pipeline | None
    # All photographs, for a person to look at.
    pictures: Pictures
    # Positions in `X` of the photographs that can be read.
    readable: np.ndarray
    # What the final step gets, or the network's rows; one row per readable photograph.
    features: np.ndarray
    # The predictor at the end, or None, and what it predicts.
    final: object = None
    predicted: np.ndarray | None = None


def judge(estimator, X, step=None):
    """Return the features of photographs, and the predictions of a fitted pipeline.

    At least one photograph must be readable.
    """
    check_some(X)
    estimator = chosen(estimator)
    transformer = as_transformer(estimator, step)
    if not isinstance(estimator, Pipeline):
        if not is_fitted(transformer):
            transformer = clone(transformer).fit(X)
        extractor, images = extractor_for(transformer, X)
        found = _readable_rows(extractor, images)
        return Judged(transformer, None, Pictures(extractor, images), *found)
    check_is_fitted(estimator)
    route = Route(estimator, find_step(estimator, step), X)
    extractor, images = route.extractor, route.images
    readable, rows = _readable_rows(extractor, images)
    if len(readable) < len(images):
        route = Route(estimator, find_step(estimator, step), pick(X, readable))
    features = route.features(rows)
    final = route.final if is_predictor(route.final) else None
    with without_name_warnings():
        predicted = None if final is None else final.predict(features)
    pictures = Pictures(extractor, images)
    return Judged(transformer, estimator, pictures, readable, features, final, predicted)


def check_some(X):
    if n_images(X) == 0:
        raise ValueError("There is no photograph in X.")


def n_images(X):
    return X.shape[0] if hasattr(X, "shape") else len(X)


def check_rows(extractor):
    """Raise where the features of a photograph are maps and not a row."""
    if extractor.gives_maps and len(extractor.map_shapes[0]) > 1:
        raise ValueError(
            "pooling=None gives maps, not one row per photograph: choose a pooling, such as 'avg'."
        )


def _readable_rows(extractor, images):
    check_rows(extractor)
    rows = extractor.compute(images)
    readable = np.flatnonzero(~np.isnan(rows).any(axis=1))
    if not len(readable):
        raise ValueError(NONE_READABLE)
    return readable, rows[readable]


def labels_of(y, X, readable):
    """Return the labels of the readable photographs as an array; None where there are none."""
    if y is None:
        return None
    labels = np.asarray(y)
    if labels.ndim != 1 or len(labels) != n_images(X):
        raise ValueError(
            f"y must hold one label per photograph: X has {n_images(X)}, y has shape "
            f"{labels.shape}."
        )
    return labels[readable]


def class_scores(final, features):
    """Return one score per class, (n, n_classes), and whether they are probabilities.

    None for predictors that have neither.
    """
    classes = getattr(final, "classes_", None)
    if classes is None or isinstance(classes, list):
        return None, False
    with without_name_warnings():
        if hasattr(final, "predict_proba"):
            return np.asarray(final.predict_proba(features), np.float64), True
        if not hasattr(final, "decision_function"):
            return None, False
        if isinstance(final, (SVC, NuSVC)):
            final = copy.copy(final).set_params(decision_function_shape="ovr")
        scores = np.asarray(final.decision_function(features), np.float64)
    return np.column_stack([-scores, scores]) if scores.ndim == 1 else scores, False


def pick(X, positions):
    """Return some photographs of `X`, of the same kind."""
    return _safe_indexing(X, positions)


def warn_of_unreadable(n_all, n_readable):
    """Warn where photographs are left out."""
    if n_readable < n_all:
        warn(f"{n_all - n_readable} of {n_all} photographs cannot be read and are left out.")
