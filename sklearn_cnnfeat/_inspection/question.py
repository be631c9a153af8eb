"""Which decision of a pipeline's final step is explained, and its linear form where it has one."""

import copy

import numpy as np
from sklearn.base import is_regressor
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC, NuSVC

from sklearn_cnnfeat._inspection.pipeline_steps import as_array, without_name_warnings
from sklearn_cnnfeat.exceptions import NotAffineError


class Question:
    """Which decision is asked for: a combination of the columns that the final step gives."""

    def __init__(self, final, target, features):
        self._final = final
        self._is_by_pairs = isinstance(final, (SVC, NuSVC)) and len(final.classes_) > 2
        self.other = None
        classes = getattr(final, "classes_", None)
        n_columns = self._columns(features).shape[1]
        if classes is None:
            self.target, self._mix = target, _output(target, n_columns)
            return
        if isinstance(classes, list):
            raise ValueError(
                f"{type(final).__name__} decides on several outputs at once; decision maps explain "
                "one classification."
            )
        if len(classes) == 2:
            self.target = classes[1] if target is None else target
            chosen_class = _position(self.target, classes)
            self.other = classes[1 - chosen_class]
            # One column speaks for the second class; columns of probabilities for one class each.
            self._mix = (
                np.array([2.0 * chosen_class - 1]) if n_columns == 1 else np.eye(2)[chosen_class]
            )
        elif self._is_by_pairs:
            if target is None:
                target = final.predict(features)[0]
            pairs = [(a, b) for a in range(len(classes)) for b in range(a + 1, len(classes))]
            if isinstance(target, (tuple, list)) and len(target) == 2:
                self.target, self.other = target
                a, b = (_position(label, classes) for label in target)
                self._mix = np.array([(pair == (a, b)) - (pair == (b, a)) for pair in pairs], float)
            else:
                self.target = target
                a = _position(target, classes)
                self._mix = np.array([(pair[0] == a) - (pair[1] == a) for pair in pairs], float)
        else:
            if target is None:
                target = classes[self._columns(features)[0].argmax()]
            self.target = target
            self._mix = np.eye(len(classes))[_position(target, classes)]

    def score(self, features):
        """Return the decision for each row of features."""
        return self._columns(features) @ self._mix

    def predict(self, features):
        """Return the prediction for one row of features, and its probability where there is one."""
        with without_name_warnings():
            prediction = self._final.predict(features)[0]
            classes = getattr(self._final, "classes_", None)
            probability = None
            if classes is not None and hasattr(self._final, "predict_proba"):
                probabilities = self._final.predict_proba(features)[0]
                probability = float(probabilities[_position(prediction, classes)])
        return {"prediction": prediction, "probability": probability}

    def _columns(self, features):
        final = self._final
        if self._is_by_pairs:
            # The votes of "ovr" are no sum of anything.
            final = copy.copy(final)
            final.decision_function_shape = "ovo"
        for name in ("decision_function", "predict_proba", "predict"):
            if hasattr(final, name) and (name != "predict" or is_regressor(final)):
                with without_name_warnings():
                    values = getattr(final, name)(features)
                return np.asarray(values, np.float64).reshape(len(features), -1)
        raise TypeError(
            f"The final step, {type(final).__name__}, has neither decision_function nor "
            "predict_proba, and is no regressor."
        )

    def linear_form(self):
        """Return the coefficients and the intercept of the decision."""
        final = self._final
        models = final.estimators_ if isinstance(final, OneVsRestClassifier) else [final]
        if not all(hasattr(model, "coef_") and hasattr(model, "intercept_") for model in models):
            raise NotAffineError(f"The final step, {type(final).__name__}, is no linear model.")
        coefficients = np.vstack([np.atleast_2d(as_array(model.coef_)) for model in models])
        intercepts = np.concatenate([np.atleast_1d(model.intercept_) for model in models])
        n_columns = len(self._mix)
        if len(coefficients) != n_columns or len(intercepts) not in (1, n_columns):
            raise NotAffineError(
                f"The final step, {type(final).__name__}, has {len(coefficients)} rows of "
                f"coefficients for {n_columns} decisions."
            )
        intercepts = np.broadcast_to(intercepts, n_columns)
        return self._mix @ coefficients.astype(np.float64), float(self._mix @ intercepts)


def _position(label, classes):
    for position, known in enumerate(classes):
        if known == label:
            return position
    names = ", ".join(str(known) for known in classes)
    raise ValueError(f"target={label!r} is none of the classes that were learned: {names}.")


def _output(target, n_outputs):
    if target is None and n_outputs == 1:
        target = 0
    if isinstance(target, (int, np.integer)) and 0 <= target < n_outputs:
        return np.eye(n_outputs)[target]
    raise ValueError(
        f"target must be the number of an output, 0 to {n_outputs - 1}. Got {target!r} instead."
    )
