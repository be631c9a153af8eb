"""Photographs as a pipeline sees them: features, predictions and how certain these are."""

import copy
from dataclasses import dataclass

import numpy as np
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from sklearn_cnnfeat._inspection.pipeline_steps import as_array, without_name_warnings
from sklearn_cnnfeat._steps import as_transformer, chosen
from sklearn_cnnfeat._transformer import CNNFeatureTransformer, is_fitted
from sklearn_cnnfeat._warn import warn


@dataclass
class Judged:
    """Photographs as a pipeline or transformer sees them."""

    # The network, fitted.
    transformer: CNNFeatureTransformer
    # What explains decisions: the fitted pipeline, or None for a transformer alone.
    pipeline: Pipeline | None
    # Positions in `X` of the photographs that can be read.
    readable: np.ndarray
    # What the final step gets, or the network's rows; one row per readable photograph.
    features: np.ndarray
    # The predictor at the end, or None, and what it predicts.
    final: object = None
    predicted: np.ndarray | None = None


def judge(estimator, X, step=None, may_be_empty=False):
    """Return the features of photographs, and the predictions of a fitted pipeline.

    Unless it `may_be_empty`, at least one photograph must be readable.
    """
    if n_images(X) == 0:
        raise ValueError("There is no photograph in X.")
    estimator = chosen(estimator)
    transformer = as_transformer(estimator, step)
    if not isinstance(estimator, Pipeline):
        if not is_fitted(transformer):
            transformer = clone(transformer).fit(X)
        rows = _rows_of(transformer, X)
        return Judged(transformer, None, *_without_unreadable(rows, may_be_empty))
    check_is_fitted(estimator)
    final = estimator.steps[-1][1]
    is_predictor = hasattr(final, "predict") and (is_classifier(final) or is_regressor(final))
    rest = estimator.steps[:-1] if is_predictor else estimator.steps
    with without_name_warnings():
        if rest[0][1] is transformer:
            rows = _rows_of(transformer, X)
            readable, features = _without_unreadable(rows, may_be_empty)
            if not len(readable):
                return Judged(transformer, estimator, readable, features)
            for _, part in rest[1:]:
                if part is not None and part != "passthrough":
                    features = as_array(part.transform(features))
        else:
            features = as_array(estimator[: len(rest)].transform(X))
            readable = np.arange(len(features))
        predicted = final.predict(features) if is_predictor else None
    return Judged(
        transformer, estimator, readable, features, final if is_predictor else None, predicted
    )


def n_images(X):
    """Return the number of photographs in `X`."""
    return X.shape[0] if hasattr(X, "shape") else len(X)


def _rows_of(transformer, X):
    rows = as_array(transformer.transform(X))
    if rows.ndim != 2:
        raise ValueError(
            "pooling=None gives maps, not one row per photograph: choose a pooling, such as 'avg'."
        )
    return rows


def _without_unreadable(rows, may_be_empty):
    readable = np.flatnonzero(~np.isnan(rows).any(axis=1))
    if not len(readable) and not may_be_empty:
        raise ValueError("None of the photographs can be read.")
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
