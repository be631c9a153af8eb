"""Searches over layers: every image through each network once, for all layers together."""

import time
from dataclasses import dataclass, replace

from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import ParameterGrid, ParameterSampler
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing

from sklearn_cnnfeat._transformer import CNNFeatureTransformer


@dataclass(frozen=True)
class PrecomputeReport:
    """What `precompute` did.

    Attributes
    ----------
    n_images : int
        Number of images in `X`.
    n_settings : int
        Number of different settings of layer, pooling and so on that a search will ask for.
    n_passes : int
        Number of times the images were gone through: one for each network and preprocessing.
    n_computed : int
        Number of images pushed through a network, all passes together.
    n_hits : int
        Number of images found complete in the cache, all passes together.
    seconds : float
        Time that it took.
    """

    n_images: int
    n_settings: int
    n_passes: int
    n_computed: int
    n_hits: int
    seconds: float


def precompute(estimator, X, param_grid=None, *, verbose=1):
    """Fill the cache with all features that a search will ask for, in one pass an image.

    All `CNNFeatureTransformer` steps that share a network and its input are computed together:
    layers and poolings are outputs of one network, cut behind the deepest layer. Images that the
    cache knows already are not computed again, so that an interrupted call goes on where it was.

    Parameters
    ----------
    estimator : estimator
        A `CNNFeatureTransformer`; a `Pipeline`, `ColumnTransformer`, `FeatureUnion` or any
        meta-estimator that holds some; or a search over one of these (`GridSearchCV`,
        `RandomizedSearchCV`, the halving searches).

    X : sequence of images
        What the estimator will be fitted on: all images, not a fold.

    param_grid : dict or list of dict, default=None
        Settings to be tried, as for `GridSearchCV`, where `estimator` is not a search.

    verbose : int, default=1
        1 shows a progress bar, 0 nothing.

    Returns
    -------
    report : PrecomputeReport
        Numbers of images, passes and hits, and the time that it took.

    Raises
    ------
    ValueError
        If a `CNNFeatureTransformer` has no cache, if none is found, or if a step in front of one
        changes `X`.

    See Also
    --------
    FeatureCache : Where the features are kept.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import SVC
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, precompute
    >>> photos = load_sample_images().images
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", weights=None, random_state=0, input_size=64, cache=tempfile.mkdtemp()
    ... )
    >>> search = GridSearchCV(
    ...     make_pipeline(cnn, SVC()),
    ...     {
    ...         "cnnfeaturetransformer__layer": ["conv_pw_1_relu", "conv_pw_2_relu"],
    ...         "cnnfeaturetransformer__pooling": ["avg", "max"],
    ...     },
    ... )
    >>> report = precompute(search, photos, verbose=0)
    >>> report.n_settings, report.n_passes, report.n_computed
    (4, 1, 2)
    """
    start = time.perf_counter()
    jobs = {}
    n_images = 0
    for candidate in _candidates(estimator, param_grid):
        for transformer, images in _find_transformers(candidate, X):
            if transformer.cache is None or transformer.cache is False:
                raise ValueError(
                    f"{transformer!r} has no cache to be filled: set cache=True, a folder or a "
                    "FeatureCache."
                )
            key, spec = _shared_work(transformer, images)
            _, _, specs = jobs.setdefault(key, (transformer, images, {}))
            specs[spec] = transformer
    if not jobs:
        raise ValueError(f"There is no CNNFeatureTransformer in {estimator!r}.")
    n_computed = n_seen = 0
    for transformer, images, specs in jobs.values():
        seen, computed = transformer._precompute(images, list(specs), verbose)
        n_images = max(n_images, seen)
        n_seen += seen
        n_computed += computed
    return PrecomputeReport(
        n_images=n_images,
        n_settings=sum(len(specs) for *_, specs in jobs.values()),
        n_passes=len(jobs),
        n_computed=n_computed,
        n_hits=n_seen - n_computed,
        seconds=time.perf_counter() - start,
    )


def _candidates(estimator, param_grid):
    """Yield the estimator with each of the settings that a search tries."""
    if not isinstance(estimator, BaseSearchCV):
        settings = [{}] if param_grid is None else ParameterGrid(param_grid)
    elif param_grid is not None:
        raise ValueError("The search has settings of its own; param_grid must be None.")
    else:
        settings = _settings_of(estimator)
        estimator = estimator.estimator
    for setting in settings:
        yield clone(estimator).set_params(**setting)


def _settings_of(search):
    if hasattr(search, "param_grid"):
        return ParameterGrid(search.param_grid)
    distributions = search.param_distributions
    n_iter = getattr(search, "n_iter", None)
    if n_iter is not None and isinstance(search.random_state, int):
        # The very settings that the search will draw.
        return ParameterSampler(distributions, n_iter, random_state=search.random_state)
    # What will be drawn cannot be known: all that may be, of what can be listed. What comes from
    # continuous distributions (an SVM's C) does not concern a network's features.
    spaces = distributions if isinstance(distributions, list) else [distributions]
    return ParameterGrid(
        [
            {name: values for name, values in space.items() if not hasattr(values, "rvs")}
            for space in spaces
        ]
    )


def _find_transformers(estimator, X):
    """Yield each `CNNFeatureTransformer` inside an estimator, with the part of X that it gets."""
    if isinstance(estimator, CNNFeatureTransformer):
        yield estimator, X
    elif isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        for position, step in enumerate(steps):
            found = list(_find_transformers(step, X))
            if found and position > 0:
                raise ValueError(
                    f"{type(steps[0]).__name__} stands in front of CNNFeatureTransformer and may "
                    "change the images. Call precompute with the rest of the pipeline, and with "
                    "what comes out of that step."
                )
            yield from found
    elif isinstance(estimator, ColumnTransformer):
        for _, transformer, columns in estimator.transformers:
            if isinstance(transformer, BaseEstimator):
                chosen = columns(X) if callable(columns) else columns
                yield from _find_transformers(transformer, _safe_indexing(X, chosen, axis=1))
    elif isinstance(estimator, BaseEstimator):
        for value in estimator.get_params(deep=False).values():
            for part in value if isinstance(value, (list, tuple)) else [value]:
                inner = part[1] if isinstance(part, tuple) and len(part) > 1 else part
                if isinstance(inner, BaseEstimator):
                    yield from _find_transformers(inner, X)


def _shared_work(transformer, images):
    """Return what transformers must have in common to share a pass, and what this one computes."""
    parameters = transformer.get_params(deep=False)
    spec = transformer._make_spec()
    common = replace(spec, layers=(), poolings=())
    for own in ("layer", "pooling", "model", "weights", "random_state", "preprocessing"):
        del parameters[own]
    settings = tuple((name, repr(value)) for name, value in sorted(parameters.items()))
    model = id(transformer.model) if spec.source.kind == "object" else None
    return (common, settings, model, id(images)), spec
