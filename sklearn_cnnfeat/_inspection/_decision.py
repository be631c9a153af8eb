"""Where in a picture a decision came from: exact contributions, or what covering a patch changes.

Behind a network, standardization, projections, selections of columns and a linear model are one
affine function of the features. Its coefficients are found by taking those of the linear model
back through the steps, each of them transposed.
"""

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from sklearn.base import clone, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, FastICA, IncrementalPCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectorMixin
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)
from sklearn.random_projection import BaseRandomProjection
from sklearn.svm import SVC, NuSVC
from sklearn.utils import Bunch, _safe_indexing
from sklearn.utils.validation import check_is_fitted

from sklearn_cnnfeat._inspection._maps import as_batch, compute_maps, network_pixels, picture
from sklearn_cnnfeat._inspection._source import child, chosen, find_step
from sklearn_cnnfeat._network.pooling import GEM_FLOOR, GEM_POWER, SPP_LEVELS, spp_bins
from sklearn_cnnfeat.exceptions import NotAffineError

# Largest difference between what was added up and the decision, relative to all that was added
# up, that is put down to the rounding of the pipeline's own arithmetic.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "int8": 1e-4}
# Covered pictures that are computed at a time: they are held in memory.
_CHUNK = 128


def decision_map(
    estimator, image, target=None, *, method="auto", step=None, patch_size=None, stride=None
):
    """Find out where in a picture the decision of a pipeline came from.

    Behind the network, a pipeline of affine steps and a linear model adds up a contribution of
    every position of the layer. Other pipelines are asked what they decide when patches of the
    picture are covered.

    Parameters
    ----------
    estimator : Pipeline
        Fitted, with a :class:`CNNFeatureTransformer` and a classifier or regressor; or a fitted
        search over one, which stands for its best estimator.

    image : image
        One image, or an `X` of one, as for the pipeline's `predict`.

    target : class label, pair of class labels or int, default=None
        The decision that is explained.

        - Two classes: the class that positive numbers speak for. None is ``classes_[1]``, for
          which ``decision_function`` is positive.
        - More classes: a class. None is the one that is predicted. For `SVC` and `NuSVC`, which
          decide between each pair of classes, it is the sum of the class's decisions against all
          others, with which ``decision_function_shape="ovr"`` breaks its ties of votes; a pair
          ``(a, b)`` is the decision for `a` against `b`, as with ``"ovo"``.
        - Regressors of several outputs: the number of the output.

    method : {"auto", "exact", "occlusion"}, default="auto"
        ``"exact"`` adds up to the decision, and needs affine steps and a linear model.
        ``"occlusion"`` covers patches with the picture's mean colour and says by how much the
        decision (or probability, where there is no decision function) falls. ``"auto"`` is exact
        where that is possible.

    step : str, default=None
        Name of the network's step, as in ``set_params``, where the pipeline has several. What the
        others contribute is part of `intercept`.

    patch_size : int, default=None
        Side of the covered squares, in pixels of the network's input. None takes a sixth of the
        longer side.

    stride : int, default=None
        From square to square. None takes half of `patch_size`.

    Returns
    -------
    result : Bunch
        With the attributes:

        map : ndarray of shape (height, width), float64
            Exact: what each position of the layer contributes. Occlusion: the mean fall of the
            decision over the patches that cover a pixel of the network's input.
        intercept : float or None
            Exact: the linear model's intercept, and what does not come from this network, so that
            ``map.sum() + intercept == decision`` up to rounding.
        decision : float
            What the pipeline decides.
        target, other :
            What a positive decision speaks for, and a negative one: classes, or None.
        maps : dict
            Exact, of each layer: its own share of `map`, at its own size.
        layer : str
            Names of the layers.
        method : {"exact", "occlusion"}
            How it was found.
        image : ndarray of uint8
            The picture that the map stretches over.

    Raises
    ------
    NotAffineError
        If ``method="exact"`` and a step or the model is not affine; the message names it.

    See Also
    --------
    DecisionMapDisplay : Draws the map over the picture.

    Notes
    -----
    Contributions are counted as the linear model counts its features: behind a `StandardScaler`
    or a `PCA` from the mean of the training images, so that a position contributes nothing if it
    is as there on average, and without one from zero.

    For the poolings ``"flatten"`` and ``"avg"`` contributions are affine in the maps. For ``"max"``
    and ``"spp"`` the positions of each maximum carry it, and for ``"gem"`` each position has its
    share of the mean, in proportion to the third power: they add up for this image, and would be
    others for another.

    Where several layers stand side by side, contributions of coarse maps are spread evenly over the
    positions of the finest.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, decision_map
    >>> photos = load_sample_images().images
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_2_relu", "avg", weights=None, input_size=64, random_state=0
    ... )
    >>> pipe = make_pipeline(cnn, LogisticRegression()).fit(photos, ["china", "flower"])
    >>> result = decision_map(pipe, photos[0])
    >>> result.map.shape
    (16, 16)
    >>> difference = result.map.sum() + result.intercept - pipe.decision_function(photos[:1])[0]
    >>> bool(abs(difference) < 1e-5)
    True
    """
    if method not in ("auto", "exact", "occlusion"):
        raise ValueError(f"method must be 'auto', 'exact' or 'occlusion'. Got {method!r} instead.")
    estimator = chosen(estimator)
    if not isinstance(estimator, Pipeline):
        raise TypeError(
            "decision_map explains a fitted Pipeline with a CNNFeatureTransformer and a classifier "
            f"or regressor. Got {type(estimator).__name__} instead."
        )
    step = find_step(estimator, step)
    check_is_fitted(estimator)
    route = _Route(estimator, step, image)
    rows = route.cnn.transform(route.images)
    inputs = route.forward(rows)
    question = _Question(route.final, target, inputs[-1])
    if method != "occlusion":
        try:
            return _exact(route, rows, inputs, question)
        except NotAffineError:
            if method == "exact":
                raise
    return _occlusion(route, question, inputs[-1], patch_size, stride)


def _exact(route, rows, inputs, question):
    weights, intercept = question.linear_form()
    form, shift = route.pull_back(inputs, _Form(weights, np.zeros_like(weights)))
    intercept += shift
    maps = _contributions(route.cnn, route.images, np.ravel(rows), form)
    shape = tuple(np.max([map_.shape for map_ in maps.values()], axis=0))
    total = sum(_spread(map_, shape) for map_ in maps.values())
    decision = question.score(inputs[-1]).item()
    added = np.abs(total).sum() + abs(intercept)
    if not abs(total.sum() + intercept - decision) <= _TOLERANCE[route.cnn.precision] * added:
        raise NotAffineError(
            f"What {type(route.final).__name__} decides, {decision:.6g}, is no affine function of "
            f"the features: their contributions add up to {total.sum() + intercept:.6g}."
        )
    return Bunch(
        map=total,
        intercept=float(intercept),
        decision=decision,
        target=question.target,
        other=question.other,
        maps=maps,
        layer=", ".join(maps),
        method="exact",
        image=picture(route.cnn, route.images, 0),
    )


def _occlusion(route, question, features, patch_size, stride):
    pixels = network_pixels(route.cnn, route.images, 0)
    height, width, _ = pixels.shape
    patch = max(1, round(max(height, width) / 6)) if patch_size is None else patch_size
    stride = max(1, patch // 2) if stride is None else stride
    if not (1 <= patch <= min(height, width) and 1 <= stride <= patch):
        raise ValueError(
            f"patch_size={patch} and stride={stride} do not cover the {height} x {width} pixels "
            f"that the network gets: 1 <= stride <= patch_size <= {min(height, width)} is needed."
        )
    corners = list(product(_starts(height, patch, stride), _starts(width, patch, stride)))
    decision = question.score(features).item()
    fill = pixels.mean(axis=(0, 1)).astype(pixels.dtype)
    cnn = _taking_network_pixels(route.cnn, pixels.dtype)
    falls, counts = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, len(corners), _CHUNK):
        chunk = corners[start : start + _CHUNK]
        covered = np.repeat(pixels[np.newaxis], len(chunk), axis=0)
        for picture_, (top, left) in zip(covered, chunk, strict=True):
            picture_[top : top + patch, left : left + patch] = fill
        scores = question.score(route.forward(cnn.transform(covered))[-1])
        for score, (top, left) in zip(scores, chunk, strict=True):
            falls[top : top + patch, left : left + patch] += decision - score
            counts[top : top + patch, left : left + patch] += 1
    return Bunch(
        map=falls / counts,
        intercept=None,
        decision=decision,
        target=question.target,
        other=question.other,
        maps={},
        layer=", ".join(route.cnn.layer_names_),
        method="occlusion",
        image=picture(route.cnn, route.images, 0),
    )


def _starts(length, patch, stride):
    """Return where patches start, the last one at the edge."""
    return sorted({*range(0, length - patch, stride), length - patch})


def _taking_network_pixels(cnn, dtype):
    """Return a fitted transformer that takes pixels as they go into its network."""
    original, cnn = cnn, clone(cnn)
    # Not copy.copy, which reads the model anew from what pickles hold.
    vars(cnn).update(vars(original))
    cnn.image_shape, cnn.data_format, cnn.resize = None, "channels_last", "stretch"
    cnn.value_range = None if dtype == np.uint8 else (0, 255)
    # Covered pictures are not worth keeping.
    cnn._is_cached, cnn.verbose = False, 0
    return cnn


# --- the decision ---------------------------------------------------------------------------------


class _Question:
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

    def _columns(self, features):
        final = self._final
        if self._is_by_pairs:
            # The votes of "ovr" are no sum of anything.
            final = copy.copy(final)
            final.decision_function_shape = "ovo"
        for name in ("decision_function", "predict_proba", "predict"):
            if hasattr(final, name) and (name != "predict" or is_regressor(final)):
                with _without_name_warnings():
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
        coefficients = np.vstack([np.atleast_2d(_as_array(model.coef_)) for model in models])
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


# --- from the network to the decision ---------------------------------------------------------


class _Route:
    """The way of one image through a pipeline: to its network, and from there to the decision."""

    def __init__(self, pipeline, step, image):
        steps = _flatten(pipeline)
        self.final = steps[-1][1]
        # The step that is the network, or holds it beside others.
        position = next(
            i for i, (name, _) in enumerate(steps) if step == name or step.startswith(name + "__")
        )
        name, self._front = steps[position]
        self._inner = step[len(name) + 2 :]
        self._behind = steps[position + 1 : -1]
        self.cnn = child(self._front, self._inner)
        X = as_batch(image, self.cnn) if position == 0 and not self._inner else image
        n_images = X.shape[0] if hasattr(X, "shape") else len(X)
        if n_images != 1:
            raise ValueError(f"One image is explained at a time. Got {n_images} instead.")
        for _, before in steps[:position]:
            X = before.transform(X)
        self._X = X
        self.images = _images_of(self._front, self._inner, X)

    def forward(self, rows):
        """Return what each step behind the network gets, the final one included."""
        with _without_name_warnings():
            inputs = [_forward(self._front, self._inner, self._X, rows)]
            for _, step in self._behind:
                inputs.append(_as_array(step.transform(inputs[-1])))
        return inputs

    def pull_back(self, inputs, form):
        """Return the form of the network's features for the one of `inputs[-1]`, and a shift."""
        total = 0.0
        for (name, step), features in zip(self._behind[::-1], inputs[-2::-1], strict=True):
            form, shift = _pull_back(name, step, features, form)
            total += shift
        form, shift = _pull_back_front(self._front, self._inner, self._X, form)
        return form, total + shift


def _flatten(pipeline):
    """Return the steps of a pipeline, those of pipelines inside it in their places."""
    flat = []
    for name, step in pipeline.steps:
        step = chosen(step)
        if isinstance(step, Pipeline):
            flat += [(f"{name}__{inner}", part) for inner, part in _flatten(step)]
        elif step is not None and not isinstance(step, str):
            flat.append((name, step))
    return flat


def _enter(part, inner, X):
    """Go one level into a union, column transformer or pipeline, towards the network.

    Returns the name of the branch, the branch, the rest of the network's name inside it, and what
    the branch gets.
    """
    if isinstance(part, Pipeline):
        branches = dict(_flatten(part))
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


def _images_of(part, inner, X):
    """Return what the network inside `part` gets as images when `part` gets `X`."""
    while inner:
        _, part, inner, X = _enter(part, inner, X)
    return X


def _forward(part, inner, X, rows):
    """Return what `part` makes of `X` where the network inside it gives `rows`."""
    if not inner:
        return _as_array(rows)
    name, branch, rest, X_branch = _enter(part, inner, X)
    inside = _forward(branch, rest, X_branch, rows)
    if isinstance(part, Pipeline):
        for _, step in _behind(part, name):
            inside = _as_array(step.transform(inside))
        return inside
    out = np.repeat(_as_array(part.transform(X)).astype(np.float64), len(rows), axis=0)
    out[:, _columns_of(part, name, X)] = inside * _weight(part, name)
    return out


def _pull_back_front(part, inner, X, form):
    """Return the form of the network's features inside `part`, and what the others add."""
    if not inner:
        return form, 0.0
    name, branch, rest, X_branch = _enter(part, inner, X)
    if isinstance(part, Pipeline):
        features = _as_array(branch.transform(X_branch))
        form, total = _pull_back_steps(_behind(part, name), features, form)
    else:
        columns = _columns_of(part, name, X)
        others = np.ones(len(form.weights), bool)
        others[columns] = False
        total = form.select(others).value(_as_array(part.transform(X))[0, others])
        form = form.select(columns, _weight(part, name))
    form, shift = _pull_back_front(branch, rest, X_branch, form)
    return form, total + shift


def _behind(pipeline, name):
    steps = _flatten(pipeline)
    return steps[[other for other, _ in steps].index(name) + 1 :]


def _columns_of(part, name, X):
    """Return the columns of the output that a branch of a union or column transformer gives."""
    if isinstance(part, ColumnTransformer):
        return part.output_indices_[name]
    return next(columns for other, _, columns in _branches(part, X) if other == name)


def _branches(union, X):
    """Return name, transformer and columns of the output for the branches of a union."""
    branches, start = [], 0
    for name, branch in union.transformer_list:
        if branch != "drop":
            out = X if branch == "passthrough" else branch.transform(X)
            branches.append((name, branch, slice(start, start + out.shape[1])))
            start += out.shape[1]
    return branches


def _weight(part, name):
    return (part.transformer_weights or {}).get(name, 1.0)


def _as_array(values):
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


@contextmanager
def _without_name_warnings():
    # Steps that were fitted on data frames get arrays, with the same columns.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        yield


# --- affine steps, transposed -------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """What each feature x contributes: ``weights * x + offsets``."""

    weights: np.ndarray
    offsets: np.ndarray

    def select(self, columns, factor=1.0):
        """Return the form of some columns, which were multiplied by `factor`."""
        return _Form(self.weights[columns] * factor, self.offsets[columns])

    def spread(self, columns, n_columns):
        """Return the form of `n_columns` columns, of which these are some."""
        weights, offsets = np.zeros(n_columns), np.zeros(n_columns)
        np.add.at(weights, columns, self.weights)
        np.add.at(offsets, columns, self.offsets)
        return _Form(weights, offsets)

    def value(self, features):
        """Return what all features contribute together."""
        return float(features.astype(np.float64) @ self.weights + self.offsets.sum())


def _pull_back(name, step, features, form):
    """Turn the form of what a step gives into the form of what it gets, and a shift.

    Contributions add up to the same for all features. What a step subtracts from a column is
    subtracted from that column's contribution, so that they are counted from the mean behind a
    `StandardScaler`, as the linear model counts them.
    """
    if step is None or isinstance(step, str):
        return form, 0.0
    if isinstance(step, Pipeline):
        steps = [(f"{name}__{inner}", part) for inner, part in _flatten(step)]
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
        return _Form(form.weights * factor, form.offsets + form.weights * offset), 0.0
    projection = _projection(step)
    if projection is not None:
        matrix, centre = projection
        weights = np.asarray(matrix @ form.weights, np.float64)
        # What was subtracted from a projection belongs to no single column.
        return _Form(weights, -weights * centre), float(form.offsets.sum())
    raise NotAffineError(f"Step {name!r} ({type(step).__name__}) is not known to be affine.")


def _pull_back_steps(steps, features, form):
    inputs = [features]
    for _, step in steps:
        inputs.append(_as_array(step.transform(inputs[-1])))
    total = 0.0
    for (name, step), given in zip(steps[::-1], inputs[-2::-1], strict=True):
        form, shift = _pull_back(name, step, given, form)
        total += shift
    return form, total


def _pull_back_branches(name, step, features, form):
    n_columns = features.shape[1]
    if isinstance(step, ColumnTransformer):
        branches = [
            (inner, branch, step.output_indices_[inner], step._transformer_to_input_indices[inner])
            for inner, branch, _ in step.transformers_
            if not (isinstance(branch, str) and branch == "drop")
        ]
    else:
        branches = [(*branch, np.arange(n_columns)) for branch in _branches(step, features)]
    total, weights, offsets = 0.0, np.zeros(n_columns), np.zeros(n_columns)
    for inner, branch, columns, taken in branches:
        given = form.select(columns, _weight(step, inner))
        back, shift = _pull_back(f"{name}__{inner}", branch, features[:, taken], given)
        back = back.spread(np.asarray(taken, int), n_columns)
        weights, offsets = weights + back.weights, offsets + back.offsets
        total += shift
    return _Form(weights, offsets), total


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


# --- from features to positions -------------------------------------------------------------------


def _contributions(cnn, images, row, form):
    """Return what each position of each layer contributes, by the names of the layers."""
    for name, shape in zip(cnn.layer_names_, cnn.feature_shapes_, strict=True):
        if len(shape) == 1:
            raise NotAffineError(f"Layer {name!r} gives a vector, which has no positions.")
    if callable(cnn.pooling):
        raise NotAffineError("What a pooling of one's own takes from each position is not known.")
    if cnn.pooling == "flatten":
        maps = [row[columns].reshape(shape) for columns, shape in _shares(cnn)]
    elif cnn.precision == "int8":
        raise NotAffineError("The maps behind 8-bit features are known for pooling='flatten' only.")
    else:
        maps = [batch[0] for batch in compute_maps(cnn, images)[1]]
    return {
        name: _CONTRIBUTIONS[cnn.pooling](values.astype(np.float64), form.select(columns))
        for name, values, (columns, _) in zip(cnn.layer_names_, maps, _shares(cnn), strict=True)
    }


def _shares(cnn):
    """Return the columns and the shape of each layer."""
    return list(zip(cnn._columns(), cnn.feature_shapes_, strict=True))


def _of_flatten(maps, form):
    contributions = maps.ravel() * form.weights + form.offsets
    return contributions.reshape(maps.shape).sum(axis=-1)


def _of_avg(maps, form):
    return (maps @ form.weights + form.offsets.sum()) / (maps.shape[0] * maps.shape[1])


def _of_gem(maps, form):
    powers = np.maximum(maps, GEM_FLOOR) ** GEM_POWER
    return _of_shares(powers, powers.mean(axis=(0, 1)) ** (1 / GEM_POWER), form)


def _of_max(maps, form):
    largest = maps.max(axis=(0, 1))
    # Where a channel is constant, say 0 behind a ReLU, no position is more than another.
    return _of_shares(maps == largest, largest, form)


def _of_spp(maps, form):
    height, width, n_channels = maps.shape
    out = np.zeros((height, width))
    bins = [
        (slice(*rows), slice(*columns))
        for level in SPP_LEVELS
        for rows in spp_bins(height, level)
        for columns in spp_bins(width, level)
    ]
    for k, place in enumerate(bins):
        channels = slice(k * n_channels, (k + 1) * n_channels)
        out[place] += _of_max(maps[place], form.select(channels))
    return out


def _of_shares(shares, pooled, form):
    """Return what positions contribute that have shares, in proportion, in each pooled channel."""
    return shares @ ((pooled * form.weights + form.offsets) / shares.sum(axis=(0, 1)))


_CONTRIBUTIONS = {
    "flatten": _of_flatten,
    "avg": _of_avg,
    "max": _of_max,
    "gem": _of_gem,
    "spp": _of_spp,
}


def _spread(map_, shape):
    """Spread each number of a map evenly over the positions of a finer one that it covers."""
    vertical, horizontal = (
        _overlaps(coarse, fine) for coarse, fine in zip(map_.shape, shape, strict=True)
    )
    return vertical @ map_ @ horizontal.T


def _overlaps(n_coarse, n_fine):
    """Return the share of each coarse interval that lies in each fine one, (n_fine, n_coarse)."""
    fine = list(pairwise(np.arange(n_fine + 1) * n_coarse / n_fine))
    return np.array(
        [
            [max(0.0, min(end, i + 1) - max(start, i)) for i in range(n_coarse)]
            for start, end in fine
        ]
    )
