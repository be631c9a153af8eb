"""Exact decision maps of many photographs: one linear form for each class that is explained."""

import numpy as np

from sklearn_cnnfeat._inspection.affine import Form
from sklearn_cnnfeat._inspection.judged import pick
from sklearn_cnnfeat._inspection.positions import check_positions, contributions_of_maps, spread
from sklearn_cnnfeat._inspection.question import Question
from sklearn_cnnfeat._inspection.route import Route
from sklearn_cnnfeat._steps import find_step
from sklearn_cnnfeat.exceptions import NotAffineError


class LinearDecisions:
    """The contributions of positions to what a fitted pipeline predicts.

    The forms of `decision_map` depend on the pipeline and on the class, not on the photograph, so
    that each is found once, with the first photograph of its class.
    """

    def __init__(self, pipeline, step=None):
        self._pipeline = pipeline
        self._step = find_step(pipeline, step)
        self._forms = {}

    def prepare(self, X, i, target):
        """Find the form of `target` with photograph `i`; `NotAffineError` if there is none."""
        if target not in self._forms:
            route = Route(self._pipeline, self._step, pick(X, [i]))
            check_positions(route.extractor)
            if route.extractor.precision == "int8":
                raise NotAffineError("The maps behind 8-bit features are not known.")
            inputs = route.forward(route.extractor.compute(route.images))
            weights, _ = Question(route.final, target, inputs[-1]).linear_form()
            form, _ = route.pull_back(inputs, Form(weights, np.zeros_like(weights)))
            self._forms[target] = route.extractor, form

    def map_of(self, maps, target):
        """Return the map for one photograph's maps, one array per layer of the transformer."""
        extractor, form = self._forms[target]
        parts = contributions_of_maps(extractor, maps, form)
        shape = tuple(np.max([part.shape for part in parts.values()], axis=0))
        return sum(spread(part, shape) for part in parts.values())
