"""Which network is meant: by a name, a file, a model, a transformer or a pipeline with one."""

from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from sklearn_cnnfeat._network.keras_models import is_keras_model
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._transformer import CNNFeatureTransformer, _check_input_size


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
    found = [
        name
        for name, value in estimator.get_params(deep=True).items()
        if isinstance(value, CNNFeatureTransformer)
    ]
    names = ", ".join(map(repr, found))
    if not found:
        raise ValueError(
            f"No step of {_short(estimator)} is a CNNFeatureTransformer, so there is no network "
            "to look into."
        )
    if step is None and len(found) > 1:
        raise ValueError(
            f"{_short(estimator)} has {len(found)} steps with a CNNFeatureTransformer: say which "
            f"with step=, of {names}."
        )
    if step is not None and step not in found:
        raise ValueError(
            f"step={step!r} is no CNNFeatureTransformer of {_short(estimator)}; it has {names}."
        )
    return found[0] if step is None else step


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


def network_of(transformer, layer=None):
    """Return where a transformer's network comes from, its input size, and the model if it is one.

    It is the network that computes `layer`, or else the transformer's own layers. Nothing is
    downloaded, for that needs no digest of the weights.
    """
    layer = transformer.layer if layer is None else layer
    source = transformer._make_source(tuple(layer) if isinstance(layer, list) else (layer,))
    input_size = _check_input_size(transformer.input_size, transformer.max_pixels)
    if source.kind == "zoo" and input_size is None:
        native = find_architecture(source.name).native_size
        input_size = (native, native)
    model = transformer.model if is_keras_model(transformer.model) else None
    return source, input_size, model


def _short(estimator):
    return type(estimator).__name__
