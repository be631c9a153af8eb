"""Exact decisions: linear forms of pipelines, and what each position contributes to them."""

import numpy as np

from sklearn_cnnfeat._inspection.affine import Form
from sklearn_cnnfeat._inspection.positions import check_positions, contributions_of_maps, spread
from sklearn_cnnfeat._inspection.question import Question
from sklearn_cnnfeat._inspection.route import Route
from sklearn_cnnfeat._steps import find_step
from sklearn_cnnfeat.exceptions import NotAffineError

# Largest difference between what was added up and the decision, relative to all that was added
# up, that is put down to the rounding of the pipeline's own arithmetic.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "int8": 1e-4}


def form_of(route, question, inputs):
    """Return the form of the network's features for a decision, and what is added to it."""
    weights, intercept = question.linear_form()
    form, shift = route.pull_back(inputs, Form(weights, np.zeros_like(weights)))
    return form, intercept + shift


def add_up(parts):
    """Return the maps of several layers as one, at the size of the finest."""
    shape = tuple(np.max([part.shape for part in parts], axis=0))
    return sum(spread(part, shape) for part in parts)


def check_sum(route, total, intercept, decision):
    """Raise `NotAffineError` unless contributions add up to the decision."""
    added = np.abs(total).sum() + abs(intercept)
    if not abs(total.sum() + intercept - decision) <= _TOLERANCE[route.extractor.precision] * added:
        raise NotAffineError(
            f"What {type(route.final).__name__} decides, {decision:.6g}, is no affine function of "
            f"the features: their contributions add up to {total.sum() + intercept:.6g}."
        )


class LinearDecisions:
    """The contributions of positions to what a fitted pipeline predicts, for many photographs.

    The forms of `decision_map` depend on the pipeline and on the class, not on the photograph, so
    that each is found once, with the first photograph of its class.
    """

    def __init__(self, pipeline, step=None):
        self._pipeline = pipeline
        self._step = find_step(pipeline, step)
        self._forms = {}

    def map_of(self, X, row, maps, target):
        """Return the map of the class `target` for one photograph.

        `NotAffineError` is raised if there is none.

        `X` is the photograph alone, as the pipeline gets it; `row` and `maps` are what the network
        gives for it.
        """
        if target not in self._forms:
            return self._first_map(X, row, maps, target)
        return self._add_up(*self._forms[target], maps)

    def _first_map(self, X, row, maps, target):
        route = Route(self._pipeline, self._step, X)
        check_positions(route.extractor)
        inputs = route.forward(row[np.newaxis])
        question = Question(route.final, target, inputs[-1])
        form, intercept = form_of(route, question, inputs)
        total = self._add_up(route.extractor, form, maps)
        check_sum(route, total, intercept, question.score(inputs[-1]).item())
        self._forms[target] = route.extractor, form
        return total

    def _add_up(self, extractor, form, maps):
        return add_up(contributions_of_maps(extractor, maps, form).values())
