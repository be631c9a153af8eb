"""Find the `CNNFeatureTransformer` in pipelines, column transformers, unions and searches."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import ParameterGrid, ParameterSampler
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import _safe_indexing

from sklearn_cnnfeat._transformer import CNNFeatureTransformer

# --- one step -------------------------------------------------------------------------------------


def as_transformer(estimator, step=None):
    """Return the transformer inside `estimator`, or a new one for a name, file or model."""
    if isinstance(estimator, CNNFeatureTransformer):
        return estimator
    if not isinstance(estimator, BaseEstimator):
        return CNNFeatureTransformer(estimator, "last")
    estimator = chosen(estimator)
    return child(estimator, find_step(estimator, step))


def chosen(estimator):
    """Return the estimator that a fitted search has chosen; any other estimator as it is."""
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    return estimator


def find_step(estimator, step=None):
    """Return the name of the `CNNFeatureTransformer` in a pipeline, as in `set_params`."""
    kind = type(estimator).__name__
    return choose_step(list(transformers_in(estimator)), step, f"No step of {kind} is", kind)


def transformers_in(estimator):
    """Return all `CNNFeatureTransformer` steps by their names, as in `set_params`."""
    return {
        name: value
        for name, value in estimator.get_params(deep=True).items()
        if isinstance(value, CNNFeatureTransformer)
    }


def choose_step(names, step, none, owner):
    """Return the name in `names` that `step` means; None means the only one.

    `none` begins the message where there are no steps, before "a CNNFeatureTransformer"; `owner`
    has the steps.
    """
    listed = ", ".join(map(repr, names))
    if not names:
        raise ValueError(f"{none} a CNNFeatureTransformer.")
    if step is None and len(names) > 1:
        raise ValueError(
            f"{owner} has {len(names)} steps with a CNNFeatureTransformer: choose one with step=, "
            f"of {listed}."
        )
    if step is not None and step not in names:
        raise ValueError(
            f"step={step!r} is not a CNNFeatureTransformer step of {owner}. It has {listed}."
        )
    return names[0] if step is None else step


def child(estimator, name):
    """Return the part of an estimator that `name` ("union__cnn") stands for, fitted if it is."""
    while name:
        parts = _parts(estimator)
        key = next(key for key in parts if name == key or name.startswith(key + "__"))
        estimator, name = parts[key], name[len(key) + 2 :]
    return estimator


def _parts(estimator):
    if isinstance(estimator, Pipeline):
        return estimator.named_steps
    if isinstance(estimator, FeatureUnion):
        return estimator.named_transformers
    if isinstance(estimator, ColumnTransformer) and hasattr(estimator, "transformers_"):
        return estimator.named_transformers_
    return estimator.get_params(deep=True)


# --- all steps, and what each gets of X -----------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The part of `X` that a step gets."""

    X: object
    # The columns chosen on the way, as text: equal parts are equal objects for a dictionary.
    columns: tuple = ()

    def select(self, columns):
        """Return the part in some columns of this one."""
        if callable(columns):
            columns = columns(self.X)
        chosen = repr(columns.tolist() if hasattr(columns, "tolist") else columns)
        return Part(_safe_indexing(self.X, columns, axis=1), (*self.columns, chosen))


def find_transformers(estimator, part, name=""):
    """Yield each `CNNFeatureTransformer` in an estimator: its name, itself and what it gets."""
    if isinstance(estimator, CNNFeatureTransformer):
        yield name, estimator, part
    elif hasattr(estimator, "estimator") and (
        isinstance(estimator, BaseSearchCV)
        or hasattr(estimator, "param_grid")
        or hasattr(estimator, "param_distributions")
    ):
        for candidate in _searched(estimator):
            yield from find_transformers(candidate, part, _join(name, "estimator"))
    elif isinstance(estimator, Pipeline):
        front = None
        for step_name, step in estimator.steps:
            if step is None or step == "passthrough":
                continue
            for found in find_transformers(step, part, _join(name, step_name)):
                if front is not None:
                    raise ValueError(
                        f"Step {front!r} stands in front of the CNNFeatureTransformer {found[0]!r} "
                        "and may change the images. Call precompute with the rest of the "
                        "pipeline, and with what comes out of that step."
                    )
                yield found
            front = front or _join(name, step_name)
    elif isinstance(estimator, ColumnTransformer):
        if _holds_transformer(estimator.remainder):
            raise ValueError(
                "The remainder of a ColumnTransformer is a CNNFeatureTransformer: name its "
                "columns in transformers= instead, so that it can be told which they are."
            )
        for step_name, step, columns in estimator.transformers:
            if _is_estimator(step):
                yield from find_transformers(step, part.select(columns), _join(name, step_name))
    elif _is_estimator(estimator):
        for parameter, value in estimator.get_params(deep=False).items():
            if _is_estimator(value):
                yield from find_transformers(value, part, _join(name, parameter))
            elif isinstance(value, (list, tuple)):
                # As of FeatureUnion, StackingClassifier, VotingClassifier.
                for named in value:
                    if isinstance(named, tuple) and len(named) > 1 and _is_estimator(named[1]):
                        yield from find_transformers(named[1], part, _join(name, str(named[0])))


def _join(*names):
    return "__".join(filter(None, names))


# --- what a search tries ------------------------------------------------------------------------


def candidates(estimator, space):
    """Yield the estimator with each setting of `space` that matters to its images' features."""
    for setting in _settings(estimator, space):
        yield with_setting(estimator, setting)


def with_setting(estimator, setting):
    """Return a copy of an estimator as a search would fit it."""
    # The estimators in a grid are the user's too. Models are read only and may be large.
    return clone(estimator).set_params(
        **{name: clone(value) if _is_estimator(value) else value for name, value in setting.items()}
    )


def _settings(estimator, space, n_iter=None, random_state=None):
    """Return the settings that will be tried, reduced to what matters to images' features."""
    spaces = [space] if isinstance(space, Mapping) else space
    if not isinstance(spaces, (list, tuple)) or not all(isinstance(one, Mapping) for one in spaces):
        raise TypeError(
            "param_grid must be a dictionary of parameter names and lists of values, as for "
            f"GridSearchCV, or a list of such dictionaries. Got {space!r} instead."
        )
    values = {}
    for one in spaces:
        for name, tried in one.items():
            values.setdefault(name, []).append(tried)
    relevant = {name for name in values if _is_relevant(estimator, name, values)}

    def reduced(setting):
        return {name: value for name, value in setting.items() if name in relevant}

    if n_iter is not None and isinstance(random_state, Integral):
        # Exactly the settings that the search will draw.
        return map(reduced, ParameterSampler(spaces, n_iter, random_state=random_state))
    spaces = [reduced(one) for one in spaces]
    for one in spaces:
        for name, tried in one.items():
            if hasattr(tried, "rvs"):
                raise ValueError(
                    f"{name!r} is drawn from a distribution, so that nobody can tell "
                    "which values the search will try: give the search an int as random_state, or "
                    f"{name!r} a list of values."
                )
    return ParameterGrid(spaces)


def _is_relevant(estimator, name, values):
    """Whether a parameter can change the features of images, rather than an SVM's `C`."""
    owner = name.rpartition("__")[0]
    if not owner or any(name.startswith(other + "__") for other in values):
        # A whole step, or a parameter of a step that is itself tried.
        return True
    if any(_holds_transformer(value) for tried in values[name] for value in _listed(tried)):
        return True
    held = estimator.get_params().get(owner)
    return not _is_estimator(held) or _holds_transformer(held)


def _listed(tried):
    return [] if hasattr(tried, "rvs") else tried


def _is_estimator(value):
    return isinstance(value, BaseEstimator)


def _holds_transformer(value):
    return _is_estimator(value) and any(
        isinstance(part, CNNFeatureTransformer) for part in [value, *value.get_params().values()]
    )


def _searched(search):
    """Yield the estimator inside a search with each setting that it tries."""
    if hasattr(search, "param_grid"):
        settings = _settings(search.estimator, search.param_grid)
    elif hasattr(search, "param_distributions"):
        settings = _settings(
            search.estimator,
            search.param_distributions,
            getattr(search, "n_iter", None),
            search.random_state,
        )
    else:
        raise ValueError(
            f"What {type(search).__name__} will try is not known. Call precompute with its "
            "estimator, and with param_grid= naming the settings."
        )
    for setting in settings:
        yield with_setting(search.estimator, setting)
