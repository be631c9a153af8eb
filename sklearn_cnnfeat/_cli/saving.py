"""Fitted pipelines on disk: joblib files, or skops files by their suffix."""

from collections.abc import Mapping
from pathlib import Path

import joblib
import numpy as np
from sklearn.base import BaseEstimator

from sklearn_cnnfeat._files import replaced_whole
from sklearn_cnnfeat._network.find_source import KINDS
from sklearn_cnnfeat._steps import chosen, find_step
from sklearn_cnnfeat._transformer import CNNFeatureTransformer

# Our own classes in a fitted transformer. All that they hold are numbers and names.
_OURS = [
    "sklearn_cnnfeat._cache.feature_cache.FeatureCache",
    "sklearn_cnnfeat._extractor.Extractor",
    "sklearn_cnnfeat._extractor.Reading",
    "sklearn_cnnfeat._images.spec.ImageSpec",
    "sklearn_cnnfeat._network.spec.Head",
    "sklearn_cnnfeat._network.spec.NetworkInfo",
    "sklearn_cnnfeat._network.spec.NetworkSpec",
    *(f"{kind.__module__}.{kind.__name__}" for kind in KINDS),
    "sklearn_cnnfeat._transformer.CNNFeatureTransformer",
]


def check_saving(path):
    """Raise where what the suffix of `path` asks for is not installed."""
    if Path(path).suffix == ".skops":
        _import_skops()


def save_pipeline(pipeline, path):
    """Write a fitted pipeline, all of it or nothing."""
    path = Path(path)
    with replaced_whole(path, path.suffix) as unfinished:
        if path.suffix == ".skops":
            _import_skops().dump(pipeline, unfinished)
        else:
            joblib.dump(pipeline, unfinished)


def load_pipeline(path, cache=None):
    """Read a fitted pipeline that has a network.

    Its feature cache is in the folder `cache`; None is for no cache.

    A skops file is read without running code from it, and refused if it holds classes other than
    those of scikit-learn, NumPy, SciPy and this package. A joblib file may run any code. What the
    file says of a cache does not count: whoever made it does not choose where files are written.
    """
    path = Path(path)
    if path.suffix == ".skops":
        pipeline = _load_skops(path)
    else:
        try:
            pipeline = joblib.load(path)
        except (OSError, ImportError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise ImportError(f"{path} needs what is not installed here: {error}") from error
        except Exception as error:
            # Damaged or foreign bytes make unpickling raise anything.
            raise ValueError(
                f"{path} is no joblib file, or a damaged one ({type(error).__name__}: {error})."
            ) from error
    if not isinstance(pipeline, BaseEstimator) or not hasattr(pipeline, "predict"):
        raise ValueError(
            f"{path} holds an object of type {type(pipeline).__name__}, not a fitted pipeline of "
            "a CNNFeatureTransformer and a classifier or regressor."
        )
    pipeline = chosen(pipeline)
    try:
        find_step(pipeline)
    except AttributeError as error:  # parameters that one version knows and the other does not
        raise ValueError(
            f"{path} was saved by another version of sklearn-cnnfeat or scikit-learn ({error}): "
            "save it anew with the versions that are installed here."
        ) from error
    for thing in _everything_in(pipeline):
        if isinstance(thing, CNNFeatureTransformer):
            thing.set_params(cache=cache)
    return pipeline


def _load_skops(path):
    io = _import_skops()
    try:
        unknown = sorted(set(io.get_untrusted_types(file=path)) - set(_OURS))
        pipeline = None if unknown else io.load(path, trusted=_OURS)
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f"{path} is damaged: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path} is no skops file, or a damaged one ({type(error).__name__}: {error})."
        ) from error
    if not unknown:
        if any(getattr(thing, "__dict__", {}).get("trusted") for thing in _everything_in(pipeline)):
            raise ValueError(
                f"{path} says trusted=True of the model file that it names, which could run code "
                "that way. If you know where both come from, load it in Python with skops.io.load."
            )
        return pipeline
    raise ValueError(
        f"{path} holds types that are not known to be harmless: {', '.join(unknown)}. If you know "
        "where it comes from, load it in Python: skops.io.load(path, trusted=[...])."
    )


def _everything_in(pipeline):
    """Yield all objects in a pipeline, however deep."""
    waiting, seen = [pipeline], {}
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing  # kept, so that no other object gets its id
        yield thing
        waiting += getattr(thing, "__dict__", {}).values()
        if isinstance(thing, Mapping):
            waiting += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            waiting += thing
        elif isinstance(thing, np.ndarray) and thing.dtype.hasobject:
            waiting += thing.ravel().tolist()


def _import_skops():
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            'Files that end with .skops need skops: pip install "sklearn-cnnfeat[skops]"'
        ) from error
    return skops.io
