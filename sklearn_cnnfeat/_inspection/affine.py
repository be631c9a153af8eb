"""Affine steps, transposed: the contributions of features behind a step from those before it.

Behind a network, standardization, projections, selections of columns and a linear model are one
affine function of the features. Its coefficients are found by taking those of the linear model
back through the steps, each of them transposed.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, FastICA, IncrementalPCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectorMixin
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)
from sklearn.random_projection import BaseRandomProjection

from sklearn_cnnfeat._inspection.pipeline_steps import (
    as_array,
    behind,
    branches_of,
    columns_of,
    enter,
    flatten,
    weight_of,
)
from sklearn_cnnfeat.exceptions import NotAffineError


@dataclass(frozen=True)
class Form:
    """What each feature x contributes: ``weights * x + offsets``."""

    weights: np.ndarray
    offsets: np.ndarray

    def select(self, columns, factor=1.0):
        """Return the form of some columns, which were multiplied by `factor`."""
        return Form(self.weights[columns] * factor, self.offsets[columns])

    def spread(self, columns, n_columns):
        """Return the form of `n_columns` columns, of which these are some."""
        weights, offsets = np.zeros(n_columns), np.zeros(n_columns)
        np.add.at(weights, columns, self.weights)
        np.add.at(offsets, columns, self.offsets)
        return Form(weights, offsets)

    def value(self, features):
        """Return what all features contribute together."""
        return float(features.astype(np.float64) @ self.weights + self.offsets.sum())


def pull_back_front(part, inner, X, form):
    """Return the form of the network's features inside `part`, and what the others add."""
    if not inner:
        return form, 0.0
    name, branch, rest, X_branch = enter(part, inner, X)
    if isinstance(part, Pipeline):
        features = as_array(branch.transform(X_branch))
        form, total = _pull_back_steps(behind(part, name), features, form)
    else:
        columns = columns_of(part, name, X)
        others = np.ones(len(form.weights), bool)
        others[columns] = False
        total = form.select(others).value(as_array(part.transform(X))[0, others])
        form = form.select(columns, weight_of(part, name))
    form, shift = pull_back_front(branch, rest, X_branch, form)
    return form, total + shift


def _pull_back_steps(steps, features, form):
    inputs = [features]
    for _, step in steps:
        inputs.append(as_array(step.transform(inputs[-1])))
    total = 0.0
    for (name, step), given in zip(steps[::-1], inputs[-2::-1], strict=True):
        form, shift = pull_back(name, step, given, form)
        total += shift
    return form, total


def pull_back(name, step, features, form):
    """Turn the form of what a step gives into the form of what it gets, and a shift.

    Contributions add up to the same for all features. What a step subtracts from a column is
    subtracted from that column's contribution, so that they are counted from the mean behind a
    `StandardScaler`, as the linear model counts them.
    """
    if step is None or isinstance(step, str):
        return form, 0.0
    if isinstance(step, Pipeline):
        steps = [(f"{name}__{inner}", part) for inner, part in flatten(step)]
        return _pull_back_steps(steps, features, form)
    if isinstance(step, (ColumnTransformer, FeatureUnion)):
        return _pull_back_branches(name, step, features, form)
    if isinstance(step, SelectorMixin):
        return form.spread(step.get_support(indices=True), features.shape[1]), 0.0
    if isinstance(step, FunctionTransformer) and step.func is None:
        return form, 0.0
    scaling = _scaling(step)
    if scaling is not None:
        factor, offset = scaling
        return Form(form.weights * factor, form.offsets + form.weights * offset), 0.0
    projection = _projection(step)
    if projection is not None:
        matrix, centre = projection
        weights = np.asarray(matrix @ form.weights, np.float64)
        # What was subtracted from a projection belongs to no single column.
        return Form(weights, -weights * centre), float(form.offsets.sum())
    raise NotAffineError(f"Step {name!r} ({type(step).__name__}) is not known to be affine.")


def _pull_back_branches(name, step, features, form):
    n_columns = features.shape[1]
    if isinstance(step, ColumnTransformer):
        branches = [
            (inner, branch, step.output_indices_[inner], step._transformer_to_input_indices[inner])
            for inner, branch, _ in step.transformers_
            if not (isinstance(branch, str) and branch == "drop")
        ]
    else:
        branches = [(*branch, np.arange(n_columns)) for branch in branches_of(step, features)]
    total, weights, offsets = 0.0, np.zeros(n_columns), np.zeros(n_columns)
    for inner, branch, columns, taken in branches:
        given = form.select(columns, weight_of(step, inner))
        back, shift = pull_back(f"{name}__{inner}", branch, features[:, taken], given)
        back = back.spread(np.asarray(taken, int), n_columns)
        weights, offsets = weights + back.weights, offsets + back.offsets
        total += shift
    return Form(weights, offsets), total


def _scaling(step):
    """Return factor and offset of a step that treats each column by itself; None if it does not."""
    if getattr(step, "clip", False):
        return None
    if isinstance(step, MinMaxScaler):
        return step.scale_.astype(np.float64), step.min_.astype(np.float64)
    if isinstance(step, StandardScaler):
        scale, centre = step.scale_, step.mean_ if step.with_mean else None
    elif isinstance(step, RobustScaler):
        scale, centre = step.scale_, step.center_
    elif isinstance(step, MaxAbsScaler):
        scale, centre = step.scale_, None
    else:
        return None
    factor = 1.0 if scale is None else 1 / np.asarray(scale, np.float64)
    return factor, 0.0 if centre is None else -centre * factor


def _projection(step):
    """Return matrix (n_inputs, n_outputs) and centre of a projection; None if it is none."""
    if isinstance(step, LinearDiscriminantAnalysis) and hasattr(step, "scalings_"):
        matrix = step.scalings_[:, : step._max_components]
        return matrix, step.xbar_ if step.solver == "svd" else 0.0
    if isinstance(step, (PCA, IncrementalPCA)):
        matrix = step.components_.T.astype(np.float64)
        if step.whiten:
            matrix = matrix / np.sqrt(step.explained_variance_)
        return matrix, step.mean_
    if isinstance(step, FastICA):
        return step.components_.T, getattr(step, "mean_", 0.0)
    if isinstance(step, (TruncatedSVD, BaseRandomProjection)):
        return step.components_.T, 0.0
    return None
