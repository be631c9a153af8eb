"""From the parameters of a `CNNFeatureTransformer` to what is computed: sources, specs, extractors.

All functions read public parameters only, of transformers that are fitted or not.
"""

import os
from dataclasses import replace
from functools import lru_cache, partial
from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state

from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat._calibration import digest_sample
from sklearn_cnnfeat._extractor import Extractor, Reading
from sklearn_cnnfeat._home import features_folder
from sklearn_cnnfeat._images import FORMATS, ImageSpec
from sklearn_cnnfeat._network.find_source import find_source, is_network
from sklearn_cnnfeat._network.spec import Asked, NetworkSpec, Resizing
from sklearn_cnnfeat._progress import announce
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import CacheWarning

# --- extractors -----------------------------------------------------------------------------------


def make_extractor(cnn, images=None, spec=None):
    """Return the extractor that the parameters of a transformer describe, without a cache.

    `images` are those of `fit`, for ``precision="int8"``; a `spec` replaces what the parameters
    say.
    """
    check_formats(cnn.formats)
    extractor = _unopened(cnn, network_spec(cnn, images) if spec is None else spec)
    extractor = extractor.opened(images)
    if cnn.preprocessing == "auto" and extractor.spec.preprocessing is None:
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
    own = extractor.spec.source.image_facts(extractor.model).resizing
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
        own = source.image_facts(own_model(cnn)).resizing
    own = own or Resizing("stretch", "bilinear", None)
    return {
        "resize": own.resize if cnn.resize == "auto" else cnn.resize,
        "crop": own.crop if cnn.resize == "auto" else None,
        "interpolation": own.interpolation if cnn.interpolation == "auto" else cnn.interpolation,
    }


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
        model=own_model(cnn),
        pooling=cnn.pooling if callable(cnn.pooling) else None,
        preprocessing=cnn.preprocessing if callable(cnn.preprocessing) else None,
        calibration=cnn.calibration if cnn.precision == "int8" else None,
        n_jobs=cnn.n_jobs,
        batch_size=cnn.batch_size,
        on_error=cnn.on_error,
        verbose=cnn.verbose,
    )


def reading(cnn):
    return Reading(cnn.image_shape, cnn.value_range, cnn.data_format)


def network_spec(cnn, images=None):
    """Return what a transformer computes; `images` are those of `fit`, for ``precision="int8"``."""
    layers = layers_of(cnn)
    if len(layers) > 1 and cnn.pooling is None:
        raise ValueError(
            "pooling=None gives the maps of one layer as a 4-D array. Choose a pooling to put "
            "several layers side by side."
        )
    source, input_size = network_source(cnn, layers)
    preprocessing = cnn.preprocessing
    if preprocessing == "auto":
        preprocessing = source.image_facts(own_model(cnn)).preprocessing
    spec = NetworkSpec(
        source=source.identify(layers, input_size, own_model(cnn)),
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
    return *network_source(transformer, layers), own_model(transformer)


def own_model(cnn):
    """Return the parameter `model` if it is a network itself; None if it names one."""
    return cnn.model if is_network(cnn.model) else None


def network_source(cnn, layers):
    """Return where a transformer's network for some layers comes from, and its input size.

    Nothing is downloaded: the source has no digest yet.
    """
    input_size = _check_input_size(cnn.input_size, cnn.max_pixels)
    asked = Asked(cnn.model, layers, cnn.weights, bool(cnn.trusted), partial(_draw_seed, cnn))
    source = find_source(asked)
    return source, source.choose_size(input_size, own_model(cnn))


def _draw_seed(cnn):
    return int(check_random_state(cnn.random_state).randint(np.iinfo(np.int32).max))


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
    # Compared by value, because it may be NumPy's False.
    return cnn.cache not in (None, False)


def open_cache(cnn, problem):
    """Return the cache that a transformer asks for; None for none.

    `problem` says why rows cannot be kept, if they cannot; this is warned of.
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
