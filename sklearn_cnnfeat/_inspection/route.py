"""The way of one image through a pipeline: to its network, and from there to the decision."""

import numpy as np
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
    """The way of one image through a pipeline: to its network, and from there to the decision."""

    def __init__(self, pipeline, step, image):
        steps = flatten(pipeline)
        self.final = steps[-1][1]
        # The step that is the network, or holds it beside others.
        position = next(
            i for i, (name, _) in enumerate(steps) if step == name or step.startswith(name + "__")
        )
        name, self._front = steps[position]
        self._inner = step[len(name) + 2 :]
        self._behind = steps[position + 1 : -1]
        cnn = child(self._front, self._inner)
        X = as_batch(image, cnn) if position == 0 and not self._inner else image
        n_images = X.shape[0] if hasattr(X, "shape") else len(X)
        if n_images != 1:
            raise ValueError(f"One image is explained at a time. Got {n_images} instead.")
        for _, before in steps[:position]:
            X = before.transform(X)
        self._X = X
        X = _images_of(self._front, self._inner, X)
        self.extractor, self.images = extractor_for(cnn, X)

    def forward(self, rows):
        """Return what each step behind the network gets, the final one included."""
        with without_name_warnings():
            inputs = [_forward(self._front, self._inner, self._X, rows)]
            for _, step in self._behind:
                inputs.append(as_array(step.transform(inputs[-1])))
        return inputs

    def pull_back(self, inputs, form):
        """Return the form of the network's features for the one of `inputs[-1]`, and a shift."""
        total = 0.0
        for (name, step), features in zip(self._behind[::-1], inputs[-2::-1], strict=True):
            form, shift = pull_back(name, step, features, form)
            total += shift
        form, shift = pull_back_front(self._front, self._inner, self._X, form)
        return form, total + shift


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
    out = np.repeat(as_array(part.transform(X)).astype(np.float64), len(rows), axis=0)
    out[:, columns_of(part, name, X)] = inside * weight_of(part, name)
    return out
