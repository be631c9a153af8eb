"""Which photographs a pipeline finds hard or easy: margins of predictions, also out of fold."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import cross_validate
from sklearn.pipeline import Pipeline

from sklearn_cnnfeat._inspection.judged import class_scores, judge, labels_of
from sklearn_cnnfeat._inspection.maps import Pictures
from sklearn_cnnfeat._inspection.pipeline_steps import without_name_warnings
from sklearn_cnnfeat._steps import as_transformer, chosen

WHICH = ("worst", "least_certain", "best")


@dataclass
class Predictions:
    """What a pipeline predicts for photographs, and how well."""

    # Positions in `X`.
    indices: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    # Of the predicted class: its probability or score; None for regressors.
    scores: np.ndarray | None
    are_probabilities: bool
    # Large where the prediction is right and certain, and small where it is wrong.
    margins: np.ndarray
    # How far the prediction is ahead of the next one.
    leads: np.ndarray
    # The fitted pipeline that predicted each photograph.
    pipelines: list
    # All photographs, for a person to look at.
    pictures: Pictures


def predict_photos(estimator, X, y, step=None, cv=None):
    """Return the predictions of a fitted pipeline; with `cv`, each by one that has not seen it."""
    y_all = labels_of(y, X, slice(None))
    if cv is not None:
        return _predict_out_of_fold(chosen(estimator), X, y_all, step, cv)
    judged = judge(estimator, X, step)
    if judged.final is None:
        raise ValueError(
            "PredictionGalleryDisplay needs a fitted pipeline whose last step predicts, such as "
            "make_pipeline(CNNFeatureTransformer(...), StandardScaler(), LogisticRegression())."
        )
    labels = y_all[judged.readable]
    parts = _judge_rows(judged.final, judged.features, labels)
    n = len(labels)
    return Predictions(judged.readable, labels, *parts, [judged.pipeline] * n, judged.pictures)


def _predict_out_of_fold(pipeline, X, y, step, cv):
    if not isinstance(pipeline, Pipeline):
        raise ValueError("cv= needs a pipeline that predicts, to be fitted on each fold.")
    cnn = as_transformer(pipeline, step)
    if pipeline.steps[0][1] is not cnn or len(pipeline.steps) < 2:
        raise ValueError(
            "cv= needs the CNNFeatureTransformer as the first step of the pipeline: its features "
            "are computed once, for all folds."
        )
    judged = judge(cnn, X)
    labels = y[judged.readable]
    rest = Pipeline(pipeline.steps[1:])
    results = cross_validate(
        rest,
        judged.features,
        labels,
        cv=cv,
        return_estimator=True,
        return_indices=True,
        error_score="raise",
    )
    parts, positions, pipelines = [], [], []
    for fitted, test in zip(results["estimator"], results["indices"]["test"], strict=True):
        with without_name_warnings():
            features = (
                fitted[:-1].transform(judged.features[test])
                if len(fitted) > 1
                else (judged.features[test])
            )
        parts.append(_judge_rows(fitted.steps[-1][1], features, labels[test]))
        positions.append(test)
        whole = Pipeline([(pipeline.steps[0][0], judged.transformer), *fitted.steps])
        pipelines += [whole] * len(test)
    positions = np.concatenate(positions)
    predicted, scores, are_probabilities, margins, leads = zip(*parts, strict=True)
    return Predictions(
        judged.readable[positions],
        labels[positions],
        np.concatenate(predicted),
        None if scores[0] is None else np.concatenate(scores),
        are_probabilities[0],
        np.concatenate(margins),
        np.concatenate(leads),
        pipelines,
        judged.pictures,
    )


def _judge_rows(final, features, labels):
    """Return predictions, scores, whether these are probabilities, margins and leads."""
    with without_name_warnings():
        predicted = np.asarray(final.predict(features))
    if not is_classifier(final):
        errors = np.abs(predicted - labels)
        return predicted, None, False, -errors, -errors
    scores, are_probabilities = class_scores(final, features)
    if scores is None or scores.shape[1] != len(final.classes_):
        right = np.where(predicted == labels, 1.0, -1.0)
        return predicted, None, False, right, np.ones(len(right))
    classes = list(final.classes_)
    unknown = sorted(set(map(str, labels)) - set(map(str, classes)))
    if unknown:
        raise ValueError(
            f"y holds {unknown[0]!r}, which is none of the classes that were learned: "
            f"{', '.join(map(str, classes[:10]))}."
        )
    rows = np.arange(len(labels))
    own, true = np.searchsorted(classes, predicted), np.searchsorted(classes, labels)
    return (
        predicted,
        scores[rows, own],
        are_probabilities,
        _ahead(scores, true),
        _ahead(scores, own),
    )


def _ahead(scores, columns):
    """Return how far the score in each row's column is ahead of the largest other one."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, columns] = -np.inf
    return scores[rows, columns] - others.max(axis=1)


def choose_photos(predictions, which, n):
    """Return the positions of the photographs to be shown among the predictions."""
    if which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(map(repr, WHICH))}. Got {which!r}.")
    keys = {
        "worst": predictions.margins,
        "least_certain": predictions.leads,
        "best": -predictions.margins,
    }
    return np.argsort(keys[which], kind="stable")[:n]
