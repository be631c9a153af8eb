"""The way of photographs through a pipeline: to its network, and from there to the decision."""

from functools import cached_property

import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.pipeline import Pipeline

from sklearn_cnnfeat._inspection.affine import pull_back, pull_back_front
from sklearn_cnnfeat._inspection.maps import as_batch
from sklearn_cnnfeat._inspection.pipeline_steps import (
    as_array,
    behind,
    columns_of,
    enter,
    flatten,
    weight_of,
    without_name_warnings,
)
from sklearn_cnnfeat._steps import child
from sklearn_cnnfeat._transformer import extractor_for


class Route:
    """The way of photographs through a pipeline: to its network, and from there to the decision."""

    def __init__(self, pipeline, step, X):
        self.final, before, self._front, self._inner, self._behind = _parts(pipeline, step)
        for _, part in before:
            X = part.transform(X)
        self._X = X

    @cached_property
    def _opened(self):
        X = _images_of(self._front, self._inner, self._X)
        return extractor_for(child(self._front, self._inner), X)

    @property
    def extractor(self):
        """What computes the network's rows."""
        return self._opened[0]

    @property
    def images(self):
        """What the network gets."""
        return self._opened[1]

    def forward(self, rows):
        """Return what each step behind the network gets, the final one included.

        There is one row for each photograph, or any number of rows for a single one.
        """
        with without_name_warnings():
            inputs = [_forward(self._front, self._inner, self._X, rows)]
            for _, step in self._behind:
                inputs.append(as_array(step.transform(inputs[-1])))
        return inputs

    def features(self, rows):
        """Return what the predictor gets; without one, what the last step gives."""
        last = self.forward(rows)[-1]
        if self.final is self._front or is_predictor(self.final):
            return last
        with without_name_warnings():
            return as_array(self.final.transform(last))

    def pull_back(self, inputs, form):
        """Return the form of the network's features for the one of `inputs[-1]`, and a shift."""
        total = 0.0
        for (name, step), features in zip(self._behind[::-1], inputs[-2::-1], strict=True):
            form, shift = pull_back(name, step, features, form)
            total += shift
        form, shift = pull_back_front(self._front, self._inner, self._X, form)
        return form, total + shift


def final_step(pipeline):
    """Return the last step, that of a pipeline inside it included."""
    return flatten(pipeline)[-1][1]


def is_predictor(step):
    """Tell whether a step of a pipeline predicts classes or values."""
    return hasattr(step, "predict") and (is_classifier(step) or is_regressor(step))


def one_image(pipeline, step, image):
    """Return one image as an `X` of one, as a pipeline gets it; raise if there are several."""
    _, before, front, inner, _ = _parts(pipeline, step)
    X = image if before or inner else as_batch(image, front)
    n_images = X.shape[0] if hasattr(X, "shape") else len(X)
    if n_images != 1:
        raise ValueError(f"One image is explained at a time. Got {n_images} instead.")
    return X


def _parts(pipeline, step):
    """Return the final step, those before the network, the one that holds it, and the rest.

    The one that holds it comes with the network's name inside it.
    """
    steps = flatten(pipeline)
    # The step that is the network, or holds it beside others.
    position = next(
        i for i, (name, _) in enumerate(steps) if step == name or step.startswith(name + "__")
    )
    name, front = steps[position]
    inner = step[len(name) + 2 :]
    return steps[-1][1], steps[:position], front, inner, steps[position + 1 : -1]


def _images_of(part, inner, X):
    """Return what the network inside `part` gets as images when `part` gets `X`."""
    while inner:
        _, part, inner, X = enter(part, inner, X)
    return X


def _forward(part, inner, X, rows):
    """Return what `part` makes of `X` where the network inside it gives `rows`."""
    if not inner:
        return as_array(rows)
    name, branch, rest, X_branch = enter(part, inner, X)
    inside = _forward(branch, rest, X_branch, rows)
    if isinstance(part, Pipeline):
        for _, step in behind(part, name):
            inside = as_array(step.transform(inside))
        return inside
    out = as_array(part.transform(X)).astype(np.float64)
    if len(out) != len(rows):
        out = np.repeat(out, len(rows), axis=0)
    out[:, columns_of(part, name, X)] = inside * weight_of(part, name)
    return out
