"""The steps of a pipeline: flattened, entered towards the network, and what each of them gives."""

import warnings
from contextlib import contextmanager

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import _safe_indexing

from sklearn_cnnfeat._steps import chosen


def flatten(pipeline):
    """Return the steps of a pipeline, those of pipelines inside it in their places."""
    flat = []
    for name, step in pipeline.steps:
        step = chosen(step)
        if isinstance(step, Pipeline):
            flat += [(f"{name}__{inner}", part) for inner, part in flatten(step)]
        elif step is not None and not isinstance(step, str):
            flat.append((name, step))
    return flat


def behind(pipeline, name):
    steps = flatten(pipeline)
    return steps[[other for other, _ in steps].index(name) + 1 :]


def enter(part, inner, X):
    """Go one level into a union, column transformer or pipeline, towards the network.

    Returns the name of the branch, the branch, the rest of the network's name inside it, and what
    the branch gets.
    """
    if isinstance(part, Pipeline):
        branches = dict(flatten(part))
    elif isinstance(part, FeatureUnion):
        branches = part.named_transformers
    else:
        branches = part.named_transformers_
    name = next(name for name in branches if inner == name or inner.startswith(name + "__"))
    if isinstance(part, ColumnTransformer):
        columns = next(columns for other, _, columns in part.transformers_ if other == name)
        X = _safe_indexing(X, columns, axis=1)
    elif isinstance(part, Pipeline):
        for other, step in branches.items():
            if other == name:
                break
            X = step.transform(X)
    return name, branches[name], inner[len(name) + 2 :], X


def columns_of(part, name, X):
    """Return the columns of the output that a branch of a union or column transformer gives."""
    if isinstance(part, ColumnTransformer):
        return part.output_indices_[name]
    return next(columns for other, _, columns in branches_of(part, X) if other == name)


def branches_of(union, X):
    """Return name, transformer and columns of the output for the branches of a union."""
    branches, start = [], 0
    for name, branch in union.transformer_list:
        if branch != "drop":
            out = X if branch == "passthrough" else branch.transform(X)
            branches.append((name, branch, slice(start, start + out.shape[1])))
            start += out.shape[1]
    return branches


def weight_of(part, name):
    return (part.transformer_weights or {}).get(name, 1.0)


def as_array(values):
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


@contextmanager
def without_name_warnings():
    # Steps that were fitted on data frames get arrays, with the same columns.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        yield
