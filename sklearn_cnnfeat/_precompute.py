"""Searches over layers: every image goes through each network once, for all layers together."""

import time
from dataclasses import dataclass, replace
from numbers import Integral

from sklearn_cnnfeat._extractor import callable_problem
from sklearn_cnnfeat._parameters import (
    make_extractor,
    network_spec,
    open_cache,
    own_model,
    wants_cache,
)
from sklearn_cnnfeat._row_sinks import NullSink
from sklearn_cnnfeat._steps import Part, candidates, find_transformers

# Parameters that a network's specification holds, and those that change no number.
_IN_SPEC = frozenset(
    "model layer pooling weights random_state preprocessing input_size calibration verbose".split()
)


@dataclass(frozen=True)
class PrecomputeReport:
    """The outcome of `precompute`.

    Attributes
    ----------
    n_images : int
        Number of images in `X`.
    n_settings : int
        Number of different settings of layer, pooling and so on.
    n_passes : int
        Number of passes over the images: one for each network and preprocessing.
    n_computed : int
        Number of images that went through a network, all passes together.
    n_hits : int
        Number of images found complete in the cache, all passes together.
    n_unreadable : int
        Number of images that could not be read (``on_error="nan"``), all passes together.
    seconds : float
        Duration.
    """

    n_images: int
    n_settings: int
    n_passes: int
    n_computed: int
    n_hits: int
    n_unreadable: int
    seconds: float


def precompute(estimator, X, param_grid=None, *, verbose=1):
    """Fill the cache with all features that a search will need, in one pass per image.

    All `CNNFeatureTransformer` steps that share a network and its input are computed together:
    layers and poolings are outputs of one network, cut behind the deepest layer. Rows that are in
    the cache already are not computed again: an interrupted call continues where it stopped.

    Parameters
    ----------
    estimator : estimator
        A `CNNFeatureTransformer`; a `Pipeline`, `ColumnTransformer`, `FeatureUnion` or any
        meta-estimator that holds some; or a search over one of these (`GridSearchCV`,
        `RandomizedSearchCV`, the halving searches). It is not changed.

    X : sequence of images
        What the estimator will be fitted on: all images, not a fold.

    param_grid : dict or list of dict, default=None
        Settings to try, as for `GridSearchCV`, where `estimator` is not a search.

    verbose : int, default=1
        1 shows a progress bar, 0 nothing.

    Returns
    -------
    report : PrecomputeReport
        Numbers of images, passes and hits, and the duration.

    Raises
    ------
    ValueError
        If a `CNNFeatureTransformer` has no cache, if there is none in the estimator, or if the
        settings of the search are not known beforehand.

    Warns
    -----
    CacheWarning
        If the features of some settings cannot be kept: those behind a callable preprocessing.

    See Also
    --------
    FeatureCache : Where the features are kept.
    layer_report : Which layer of a network suits the data, in one call.

    Notes
    -----
    For a randomized search with an int as `random_state`, exactly the settings that it will draw
    are computed. With another `random_state`, all settings that it may draw are computed.

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
    passes = _plan(estimator, X, {} if param_grid is None else param_grid)
    n_settings = sum(len(one.specs) for one in passes)
    n_seen = n_computed = n_unreadable = 0
    for number, one in enumerate(passes, start=1):
        which = f" (pass {number} of {len(passes)})" if len(passes) > 1 else ""
        seen, computed, unreadable = _run(one, which, verbose)
        n_seen, n_computed = n_seen + seen, n_computed + computed
        n_unreadable += unreadable
    return PrecomputeReport(
        n_images=len(X),
        n_settings=n_settings,
        n_passes=len(passes),
        n_computed=n_computed,
        n_hits=n_seen - n_computed - n_unreadable,
        n_unreadable=n_unreadable,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Pass:
    """Images that go through one network for several settings.

    Settings are in `specs`, in the order in which they were found.
    """

    transformer: object
    X: object
    specs: dict


def _plan(estimator, X, space):
    """Return the passes that fill the cache for all that a search will ask for."""
    passes = {}
    n_found = 0
    for candidate in candidates(estimator, space):
        for name, transformer, part in find_transformers(candidate, Part(X)):
            n_found += 1
            if not wants_cache(transformer):
                raise ValueError(
                    f"{_which(name)} has no cache to fill: set cache=True, a folder or a "
                    "FeatureCache."
                )
            if open_cache(transformer, callable_problem(transformer)) is None:
                continue
            spec = network_spec(transformer)
            key = _shared_work(name, transformer, spec), part.columns
            passes.setdefault(key, _Pass(transformer, part.X, {})).specs[spec] = None
    if not n_found:
        raise ValueError(
            f"There is no CNNFeatureTransformer in this {type(estimator).__name__}, so there is "
            "nothing to compute."
        )
    return list(passes.values())


def _shared_work(name, transformer, spec):
    """Return a key that transformers must share to share a pass."""
    if spec.source.weights == "random" and not isinstance(transformer.random_state, Integral):
        raise ValueError(
            f"{_which(name)} has random weights (weights=None), which differ at each fit, so that "
            "what is computed now would never be asked for again. Give it an int as random_state."
        )
    # What comes out of an 8-bit network depends on the outputs that it was calibrated with.
    shared = spec if spec.calibration else replace(spec, layers=(), poolings=())
    settings = tuple(
        (parameter, repr(value))
        for parameter, value in sorted(transformer.get_params(deep=False).items())
        if parameter not in _IN_SPEC
    )
    model = own_model(transformer)
    model = None if spec.source.is_lasting(model) else id(model)
    return shared, settings, model


def _which(name):
    return f"The step {name!r}" if name else "The CNNFeatureTransformer"


def _run(one, which, verbose):
    """Fill the cache for one pass.

    Returns the numbers of images, of those computed, and of those that cannot be read.
    """
    specs = list(one.specs)
    heads = dict.fromkeys(
        head for spec in specs for head in zip(spec.layers, spec.poolings, strict=True)
    )
    layers, poolings = zip(*heads, strict=True)
    whole = replace(specs[0], layers=layers, poolings=poolings)
    extractor = make_extractor(one.transformer.set_params(verbose=verbose), spec=whole)
    images = extractor.read(one.X)
    extractor = replace(extractor, cache=open_cache(one.transformer, extractor.uncacheable))
    if extractor.cache is None:
        return 0, 0, 0
    n_layers = len(set(extractor.layers))
    sink = NullSink()
    n_computed = extractor.run(
        images,
        sink,
        description=f"precompute {extractor.network_name}, "
        f"{n_layers} layer{'s' if n_layers > 1 else ''}{which}",
    )
    return len(images), n_computed, sink.n_failed
