"""Where in a picture a decision came from: exact contributions, or what hiding a patch changes."""

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_cnnfeat._inspection.linear_decisions import add_up, check_sum, form_of
from sklearn_cnnfeat._inspection.maps import picture
from sklearn_cnnfeat._inspection.occlusion import occlusion
from sklearn_cnnfeat._inspection.positions import contributions
from sklearn_cnnfeat._inspection.question import Question
from sklearn_cnnfeat._inspection.route import Route, one_image
from sklearn_cnnfeat._steps import chosen, find_step
from sklearn_cnnfeat.exceptions import NotAffineError


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
        ``"occlusion"`` covers patches with the picture's mean color and says by how much the
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
        prediction : object
            What the pipeline predicts.
        probability : float or None
            The probability of the prediction, of classifiers that have one.
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
    route = Route(estimator, step, one_image(estimator, step, image))
    rows = route.extractor.compute(route.images)
    inputs = route.forward(rows)
    question = Question(route.final, target, inputs[-1])
    if method != "occlusion":
        try:
            return _exact(route, rows, inputs, question)
        except NotAffineError:
            if method == "exact":
                raise
    return occlusion(route, question, inputs[-1], patch_size, stride)


def _exact(route, rows, inputs, question):
    form, intercept = form_of(route, question, inputs)
    maps = contributions(route.extractor, route.images, np.ravel(rows), form)
    total = add_up(maps.values())
    decision = question.score(inputs[-1]).item()
    check_sum(route, total, intercept, decision)
    return Bunch(
        map=total,
        intercept=float(intercept),
        decision=decision,
        **question.predict(inputs[-1]),
        target=question.target,
        other=question.other,
        maps=maps,
        layer=", ".join(maps),
        method="exact",
        image=picture(route.extractor, route.images, 0),
    )
