"""From the parameters of a `CNNFeatureTransformer` to what is computed: sources, specs, extractors.

All functions read public parameters only, of transformers that are fitted or not.
"""

import os
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache, partial
from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state

from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat._calibration import digest_sample
from sklearn_cnnfeat._extractor import Extractor, Reading
from sklearn_cnnfeat._home import features_folder
from sklearn_cnnfeat._images import FORMATS, ImageSpec
from sklearn_cnnfeat._network import foreign
from sklearn_cnnfeat._network.keras_models import is_keras_model
from sklearn_cnnfeat._network.spec import NetworkSpec, Resizing, Source
from sklearn_cnnfeat._network.whole_networks import identify
from sklearn_cnnfeat._network.zoo import find_architecture, list_models
from sklearn_cnnfeat._progress import announce
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import CacheWarning

_MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")


# --- extractors -----------------------------------------------------------------------------------


def make_extractor(cnn, images=None, spec=None):
    """Return the extractor that the parameters of a transformer describe, without a cache.

    Parameters
    ----------
    cnn : CNNFeatureTransformer
        Fitted or not.
    images : Images, default=None
        The images of `fit`, for ``precision="int8"``.
    spec : NetworkSpec, default=None
        What to compute in place of what the parameters say.
    """
    check_formats(cnn.formats)
    extractor = _unopened(cnn, network_spec(cnn, images) if spec is None else spec)
    extractor = extractor.opened(images)
    if cnn.preprocessing == "auto" and extractor.spec.source.kind != "zoo":
        _hint_at_preprocessing(extractor)
    if (cnn.resize, cnn.interpolation) == ("stretch", "bilinear"):
        _hint_at_resizing(extractor)
    return extractor


# Digests of the networks for which a hint was printed.
_hinted = set()


def _hint_at_preprocessing(extractor):
    """Print a hint, once per network and process, if pixels are unexpectedly not preprocessed."""
    digest = extractor.spec.source.digest
    if extractor.normalizes or digest in _hinted:
        return
    _hinted.add(digest)
    announce(
        f"{extractor.network_name!r} gets pixels as they are, 0 to 255, for preprocessing='auto' "
        "does nothing for models of your own, and this one has no layer that rescales them. If it "
        "was trained on other values, choose preprocessing='rescale' (0 to 1), 'tf' (-1 to 1), "
        "'torch' or 'caffe'; preprocessing=None confirms 0 to 255.",
        extractor.verbose,
    )


def _hint_at_resizing(extractor):
    """Print a hint, once per network and process, if it was evaluated with other resizing."""
    own = _own_resizing(extractor.spec.source, extractor.model)
    key = "resizing", extractor.spec.source.digest
    if own is None or own[:2] == ("stretch", "bilinear") or key in _hinted:
        return
    _hinted.add(key)
    announce(
        f"{extractor.network_name!r} was evaluated by its makers with resize={own.resize!r} and "
        f"interpolation={own.interpolation!r}, and images are stretched with the bilinear filter "
        "here. resize='auto' and interpolation='auto' do as its makers did.",
        extractor.verbose,
    )


def _resizing(cnn, source):
    """Return how images are resized, as parameters of `ImageSpec`."""
    own = None
    if "auto" in (cnn.resize, cnn.interpolation):
        own = _own_resizing(source, cnn.model)
    own = own or Resizing("stretch", "bilinear", None)
    return {
        "resize": own.resize if cnn.resize == "auto" else cnn.resize,
        "crop": own.crop if cnn.resize == "auto" else None,
        "interpolation": own.interpolation if cnn.interpolation == "auto" else cnn.interpolation,
    }


def _own_resizing(source, model):
    return foreign.image_facts(source, model).resizing if foreign.is_foreign(source) else None


def _unopened(cnn, spec):
    return Extractor(
        spec=spec,
        engine=cnn.engine,
        image_spec=ImageSpec(
            None,
            None,
            3,
            **_resizing(cnn, spec.source),
            decode=cnn.decode,
            max_pixels=cnn.max_pixels,
            formats=check_formats(cnn.formats),
        ),
        reading=reading(cnn),
        precision=cnn.precision,
        model=cnn.model if foreign.is_network(cnn.model) else None,
        pooling=cnn.pooling if callable(cnn.pooling) else None,
        preprocessing=cnn.preprocessing if callable(cnn.preprocessing) else None,
        calibration=cnn.calibration if cnn.precision == "int8" else None,
        n_jobs=cnn.n_jobs,
        batch_size=cnn.batch_size,
        on_error=cnn.on_error,
        verbose=cnn.verbose,
    )


def reading(cnn):
    """Return how a transformer reads arrays."""
    return Reading(cnn.image_shape, cnn.value_range, cnn.data_format)


def network_spec(cnn, images=None):
    """Return what a transformer computes.

    Parameters
    ----------
    cnn : CNNFeatureTransformer
        Fitted or not.
    images : Images, default=None
        The images of `fit`, for ``precision="int8"``.
    """
    layers = layers_of(cnn)
    if len(layers) > 1 and cnn.pooling is None:
        raise ValueError(
            "pooling=None gives the maps of one layer as a 4-D array. Choose a pooling to put "
            "several layers side by side."
        )
    source, input_size = network_source(cnn, layers)
    preprocessing = cnn.preprocessing
    if preprocessing == "auto":
        preprocessing = _own_preprocessing(source, cnn.model)
    spec = NetworkSpec(
        source=identify(source, layers, input_size, cnn.model),
        layers=layers,
        poolings=(None if callable(cnn.pooling) else cnn.pooling,) * len(layers),
        preprocessing=None if callable(preprocessing) else preprocessing,
        input_size=input_size,
    )
    if cnn.precision != "int8":
        return spec
    if cnn.calibration is not None:
        images = _unopened(cnn, spec).calibration_images()
    if images is None:
        raise ValueError(
            "precision='int8' is calibrated on the images of fit, which differ from fold to fold. "
            "Give calibration=images to compute features ahead."
        )
    return replace(spec, calibration=digest_sample(images, cnn.on_error))


def _own_preprocessing(source, model):
    """Return the preprocessing that a network was trained with, as far as it is known."""
    if foreign.is_foreign(source):
        return foreign.image_facts(source, model).normalization
    return find_architecture(source.name).preprocessing if source.kind == "zoo" else None


def layers_of(cnn):
    """Return the parameter `layer` as a tuple of names and indices."""
    layers = tuple(cnn.layer) if isinstance(cnn.layer, (list, tuple)) else (cnn.layer,)
    if not layers or not all(isinstance(layer, (str, Integral)) for layer in layers):
        raise ValueError(
            "layer must be a name, an index, or a list of these that is not empty. Got "
            f"{cnn.layer!r} instead."
        )
    return tuple(layer if isinstance(layer, str) else int(layer) for layer in layers)


# --- networks -------------------------------------------------------------------------------------


def network_of(transformer, layer=None):
    """Return where a transformer's network comes from, its input size, and the model if it is one.

    It is the network that computes `layer`, or else the transformer's own layers. Nothing is
    downloaded, for that needs no digest of the weights.
    """
    layer = transformer.layer if layer is None else layer
    layers = tuple(layer) if isinstance(layer, list) else (layer,)
    model = transformer.model if foreign.is_network(transformer.model) else None
    return *network_source(transformer, layers), model


def network_source(cnn, layers):
    """Return where a transformer's network for some layers comes from, and its input size.

    Nothing is downloaded: the source has no digest yet.
    """
    input_size = _check_input_size(cnn.input_size, cnn.max_pixels)
    source = _find_source(cnn, layers)
    if foreign.is_foreign(source):
        facts = foreign.image_facts(source, cnn.model)
        input_size = foreign.choose_size(source, input_size, facts)
    if source.kind == "zoo" and input_size is None:
        native = find_architecture(source.name).native_size
        input_size = native, native
    return source, input_size


def _find_source(cnn, layers):
    model = cnn.model
    source = foreign.find_source(model, cnn.weights, partial(_draw_seed, cnn), cnn.trusted)
    if source is not None:
        return source
    if is_keras_model(model):
        _check_no_weights(cnn.weights)
        return Source("object", model.name)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            "model must be the name of a network, the path of a .keras, .h5 or .onnx file, a "
            f"keras.Model or a torch.nn.Module. Got {model!r} instead."
        )
    path = os.fspath(model)
    architecture = find_architecture(path)
    if architecture is None:
        _check_model_file(path)
        _check_no_weights(cnn.weights)
        return Source("file", os.path.abspath(path), trusted=bool(cnn.trusted))
    weights = cnn.weights
    if weights is not None and weights != "imagenet":
        weights = _check_weights_file(weights, cnn.trusted)
    seed = _draw_seed(cnn) if weights is None else None
    return Source(
        "zoo",
        architecture.name,
        weights="random" if weights is None else weights,
        include_top=any(architecture.needs_top(layer, weights) for layer in layers),
        seed=seed,
        trusted=bool(cnn.trusted),
    )


def _draw_seed(cnn):
    return int(check_random_state(cnn.random_state).randint(np.iinfo(np.int32).max))


def _check_no_weights(weights):
    if weights not in ("imagenet", None):
        raise ValueError(
            f"weights={os.fspath(weights)!r} is for networks by name; a model of your own has its "
            "weights. Load others with model.load_weights, and leave weights out."
        )


def _check_weights_file(weights, trusted):
    """Return the absolute path of a weights file."""
    path = os.path.abspath(os.fspath(weights))
    _check_regular("weights", path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"weights={os.fspath(weights)!r} is not a file; it must be 'imagenet', None (random) "
            "or the path of a weights file (.weights.h5, .h5 or .keras)."
        )
    if not (trusted or path.endswith(_MODEL_SUFFIXES)):
        raise ValueError(
            f"weights={os.fspath(weights)!r} is a file, but not one whose name ends in "
            ".weights.h5, .h5, .hdf5 or .keras. model.save_weights('name.weights.h5') writes one."
        )
    return path


def _check_model_file(path):
    _check_regular("model", path)
    if os.path.isfile(path):
        if path.endswith(_MODEL_SUFFIXES):
            return
        raise ValueError(
            f"model={path!r} is a file, but not one with the suffix .keras or .h5 of a Keras model."
        )
    if os.path.isdir(path):
        raise ValueError(
            f"model={path!r} is a folder. Keras models come in one file: model.save('name.keras') "
            "writes it."
        )
    if path.endswith(_MODEL_SUFFIXES) or os.path.dirname(path):
        raise FileNotFoundError(
            f"model={path!r}: there is no such file. Relative paths start at {os.getcwd()!r}."
        )
    close = get_close_matches(path.lower(), list_models(), n=4, cutoff=0.4)
    hint = f" Nearest names: {', '.join(map(repr, close))}." if close else ""
    raise ValueError(
        f"model={path!r} is neither the name of a network nor a file.{hint} list_models() lists "
        "all names."
    )


def _check_regular(name, path):
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"{name}={path!r} is not a regular file but a device, a pipe or a socket.")


# --- images ---------------------------------------------------------------------------------------


def _check_input_size(input_size, max_pixels):
    if input_size is None:
        return None
    sizes = (input_size, input_size) if isinstance(input_size, Integral) else tuple(input_size)
    if len(sizes) != 2 or not all(isinstance(size, Integral) and size > 0 for size in sizes):
        raise ValueError(
            f"input_size must be a number of pixels or (height, width). Got {input_size!r} instead."
        )
    height, width = (int(size) for size in sizes)
    if height * width > max_pixels:
        raise ValueError(
            f"input_size={input_size!r} makes images of {height * width:,} pixels, more than "
            f"max_pixels={max_pixels:,}."
        )
    return height, width


def check_formats(formats):
    """Return the parameter `formats` as a tuple in the order of `FORMATS`."""
    if formats is None:
        return FORMATS
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"formats must be some of {', '.join(map(repr, FORMATS))}. Got {formats!r} instead."
        )
    return tuple(name for name in FORMATS if name in formats)


# --- the cache ------------------------------------------------------------------------------------


def wants_cache(cnn):
    """Return whether a transformer asks for a cache."""
    # Compared by value, because it may be NumPy's False.
    return cnn.cache not in (None, False)


def open_cache(cnn, problem):
    """Return the cache that a transformer asks for; None for none.

    Parameters
    ----------
    cnn : CNNFeatureTransformer
        Fitted or not.
    problem : str or None
        Why rows cannot be kept, if they cannot; this is warned of.
    """
    if not wants_cache(cnn):
        return None
    if problem is not None:
        warn(
            f"cache={cnn.cache!r} is not used: {problem}, whose code may change without notice, so "
            "that old rows could be taken for new ones.",
            CacheWarning,
        )
        return None
    if isinstance(cnn.cache, FeatureCache):
        return cnn.cache
    if cnn.cache == "":
        raise ValueError(
            "cache='' names no folder. cache=True is a folder of your own, None no cache."
        )
    is_own = isinstance(cnn.cache, (bool, np.bool_))
    path = features_folder() if is_own else os.fspath(cnn.cache)
    return _shared_cache(os.path.abspath(os.path.expanduser(path)))


@lru_cache(maxsize=8)
def _shared_cache(path):
    """Return the one cache of a folder: a search with hundreds of fits opens its file once."""
    return FeatureCache(path)
