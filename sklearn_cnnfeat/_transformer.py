"""The estimator: parameters, validation, names and tags. It computes nothing itself."""

import hashlib
import os
import warnings
from copy import deepcopy
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from numbers import Integral, Real

import numpy as np
import psutil
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from sklearn_cnnfeat import _distributed
from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat._home import features_folder
from sklearn_cnnfeat._images import (
    DECODES,
    FORMATS,
    INTERPOLATIONS,
    MOST_PIXELS,
    RESIZES,
    ImageSpec,
    as_images,
)
from sklearn_cnnfeat._network.keras_models import is_keras_model
from sklearn_cnnfeat._network.networks import check_precision, identify, open_network
from sklearn_cnnfeat._network.pooling import POOLINGS, feature_names, pooled_shape
from sklearn_cnnfeat._network.spec import NetworkSpec, Source
from sklearn_cnnfeat._network.zoo import find_architecture, list_models
from sklearn_cnnfeat._progress import announce, progress
from sklearn_cnnfeat._stream import ArraySink, NullSink, RowStore, stream, thread_count
from sklearn_cnnfeat.exceptions import CacheWarning, EngineError, EngineWarning, ImageError

# More change an 8-bit network hardly, and take longer.
_MOST_CALIBRATION_IMAGES = 128
_MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")


class CNNFeatureTransformer(TransformerMixin, BaseEstimator):
    """Turn images into the activations of a layer of a convolutional network.

    The network is not trained; `fit` checks everything and finds out how long a row will be.
    Rows come out in the order of `X`, each the same whatever the other images are.

    Parameters
    ----------
    model : str, path or keras.Model, default="vgg16"
        - a name that :func:`list_models` lists, such as ``"resnet50_v2"``;
        - the path of a ``.keras`` or ``.h5`` file;
        - a Keras model: Sequential, Functional, or models nested in models.

    layer : str, int or list of these, default="block5_pool"
        Where the features are taken from; nothing behind the deepest layer is computed. The
        default belongs to VGG16 and VGG19: name a layer for any other network.

        - a name, as `layer_summary` lists them;
        - a path into a nested model, such as ``"vgg16/block5_pool"``; the bare name of a nested
          layer will do where it is unique;
        - an integer index into the outermost model's layers, negative from the end. For networks
          by name it counts the whole network with its classifier: -2 is the second to last layer;
        - ``"last"``: the last layer before the classifier. For networks by name that is the last
          one of ``include_top=False``; for other models the one that feeds the final `Dense`;
        - a list of these: their columns stand side by side.

    pooling : {"flatten", "avg", "max", "gem", "spp"}, callable or None, default="flatten"
        How the maps (height, width, channels) of a layer become numbers. Layers that give vectors
        pass through.

        - ``"flatten"``: all of them, in the order of rows, columns, channels;
        - ``"avg"`` and ``"max"``: mean and maximum of each channel over all positions;
        - ``"gem"``: generalized mean, :math:`(\\frac{1}{n}\\sum \\max(x, 10^{-6})^3)^{1/3}` of each
          channel [1]_;
        - ``"spp"``: spatial pyramid, the maxima of 1 + 4 + 16 bins (1x1, 2x2 and 4x4) of each
          channel [2]_;
        - None: the maps as they are, a 4-D array;
        - a callable: takes maps (n, height, width, channels) and returns (n, k). It is called for
          one image at a time.

    weights : "imagenet", path or None, default="imagenet"
        For networks by name: the published ImageNet weights, a weights file of your own, or None
        for random weights. Published ones are looked for in Keras' folder (``~/.keras/models`` or
        ``$KERAS_HOME/models``), in the folders that ``$SKLEARN_CNNFEAT_WEIGHTS`` names and, on
        Kaggle, in all attached datasets; else Keras downloads them into its folder. See
        :func:`pack_weights` for machines without internet.

    preprocessing : {"auto", "caffe", "tf", "torch", "rescale"}, callable or None, default="auto"
        What happens to pixels (0 to 255, in the order red, green, blue) before the network.

        - ``"auto"``: what the network was trained with for networks by name, and nothing for
          other models;
        - ``"caffe"``, ``"tf"`` and ``"torch"``: the modes of Keras' `preprocess_input`, in this
          order: blue, green, red, each minus its mean over ImageNet; -1 to 1; each channel divided
          by 255, minus its mean, divided by its standard deviation over ImageNet;
        - ``"rescale"``: divided by 255, 0 to 1;
        - None: nothing, the network sees 0 to 255;
        - a callable: takes a float32 batch (1, height, width, channels) and returns it changed.

    input_size : int or (int, int), default=None
        Height and width in pixels that images are brought to. None takes the network's own size;
        a model that takes images of any size then gets each image in its own.

    resize : {"stretch", "crop", "pad"}, default="stretch"
        ``"stretch"`` ignores the aspect ratio, as Keras' `load_img` does. ``"crop"`` brings the
        short side to size / 0.875 and takes the centre. ``"pad"`` keeps all of the picture on
        black.

    interpolation : {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"}, \
            default="bilinear"
        Pillow's resampling filter.

    decode : {"exact", "fast"}, default="exact"
        ``"fast"`` lets the JPEG decoder halve pictures much larger than needed while it decodes
        them. It saves most of the time that large photographs take, and changes pixels slightly,
        and with them features.

    image_shape : tuple of int, default=None
        Shape of each image, ``(height, width)`` or ``(height, width, channels)``, where `X` is
        2-D with one flattened image a row, as in :func:`sklearn.datasets.load_digits`. One entry
        may be -1, as in :func:`numpy.reshape`.

    value_range : (float, float), default=None
        Values of black and of white, which become 0 and 255. None takes numbers as pixels on
        0 to 255. For `load_digits` it is ``(0, 16)``, for images scaled to 0-1 ``(0, 1)``.

    data_format : {"channels_last", "channels_first"}, default="channels_last"
        Where arrays have their channels.

    batch_size : int, default=None
        Images computed by one call of the network. None leaves it to the engine: 1 a core for
        OpenVINO, 32 for Keras.

    engine : {"auto", "openvino", "keras"}, default="auto"
        What runs the network. ``"auto"`` is Keras on a GPU that TensorFlow sees, and OpenVINO on
        a CPU. A network that OpenVINO cannot take, or computes differently, runs on Keras with a
        warning.

    precision : {"float32", "bfloat16", "int8"}, default="float32"
        Arithmetic of the OpenVINO engine. ``"bfloat16"`` is about twice as fast on processors
        that compute it in hardware, and changes features in the third digit. ``"int8"`` is
        faster still: the network is quantized with NNCF (``pip install
        "sklearn-cnnfeat[int8]"``), calibrated on images.

    calibration : sequence of images, default=None
        What ``precision="int8"`` is calibrated on: up to 128 of these images, evenly spread. None
        takes the images that `fit` is given; the folds of a search then have a network each,
        while images given here make one for all.

    cache : None, True, path or FeatureCache, default=None
        Where computed rows are kept, so that an image goes through a network once and never
        again, whatever the folds, the parameters and the runs. True is a folder of the user's
        own, a path any other folder. Rows read back are the same bits. See
        :func:`precompute` for searches over layers.

    on_error : {"raise", "nan"}, default="raise"
        What an image that cannot be read, or is missing (None or NaN among paths, bytes or PIL
        images), does: raise an error that names it, or make its row NaN, with one warning that
        lists all such images.

    trusted : bool, default=False
        Whether the files of `model` and `weights` come from somebody whose programs you would
        run. Model files can hold code and the names of other files. False looks into a file
        before Keras does, and refuses it if there is anything in it besides layers of Keras' own
        that compute and do nothing else; custom and `Lambda` layers need True. Models that are
        passed themselves are your own, whatever this says.

    max_pixels : int, default=178956970
        Images of more pixels than this are refused before they are decoded.

    formats : sequence of {"jpeg", "png", "webp", "gif", "bmp", "tiff"}, default=None
        Kinds of image files that are read, told by their content; others are refused as
        unreadable. None stands for all of these. Each kind has a decoder of its own in Pillow:
        who reads pictures from strangers may do with fewer.

    n_jobs : int, default=None
        Threads for decoding and for the network. None stands for all cores that this process may
        use, or for its share (``OMP_NUM_THREADS``) inside a worker of joblib. In a worker of Dask
        each task has one core in any case.

    random_state : int, RandomState instance or None, default=None
        Determines the weights where ``weights=None``.

    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    layer_names_ : list of str
        Paths of the layers.

    feature_shapes_ : list of tuple of int
        Shape of each layer's output for one image: (height, width, channels) or (length,).

    input_size_ : tuple of int or None
        Height and width in pixels of the images that the network sees; None where each image
        keeps its own size.

    engine_ : {"openvino", "keras"}
        What runs the network.

    n_features_in_ : int
        Number of columns of `X`, where it is 2-D or a data frame.

    feature_names_in_ : ndarray of str
        Names of the columns of `X`, where it is a data frame.

    See Also
    --------
    list_models : Networks that are known by name.
    load_image_folder : Paths and labels from one folder a class.

    References
    ----------
    .. [1] F. Radenović, G. Tolias, O. Chum, "Fine-tuning CNN image retrieval with no human
       annotation", IEEE TPAMI 41(7), 2019. https://arxiv.org/abs/1711.02512

    .. [2] K. He, X. Zhang, S. Ren, J. Sun, "Spatial pyramid pooling in deep convolutional
       networks for visual recognition", ECCV 2014. https://arxiv.org/abs/1406.4729

    Examples
    --------
    Random weights do without a download; leave ``weights`` out for ImageNet's.

    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn_cnnfeat import CNNFeatureTransformer
    >>> photos = load_sample_images().images
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_2_relu", "avg", weights=None, input_size=64, random_state=0
    ... )
    >>> cnn.fit_transform(photos).shape
    (2, 128)
    >>> cnn.feature_shapes_
    [(16, 16, 128)]
    >>> cnn.get_feature_names_out()[:2]
    array(['conv_pw_2_relu_c0', 'conv_pw_2_relu_c1'], dtype=object)
    """

    _parameter_constraints = {  # noqa: RUF012 - scikit-learn's own convention
        # Names, paths and layers have errors of their own, which list what there is.
        "model": "no_validation",
        "layer": [str, Integral, list, tuple],
        "pooling": [StrOptions(set(POOLINGS)), callable, None],
        "weights": [str, os.PathLike, None],
        "preprocessing": [
            StrOptions({"auto", "caffe", "tf", "torch", "rescale"}),
            callable,
            None,
        ],
        "input_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "resize": [StrOptions(set(RESIZES))],
        "interpolation": [StrOptions(set(INTERPOLATIONS))],
        "decode": [StrOptions(set(DECODES))],
        "image_shape": [tuple, list, None],
        "value_range": [tuple, list, None],
        "data_format": [StrOptions({"channels_last", "channels_first"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "engine": [StrOptions({"auto", "openvino", "keras"})],
        "precision": [StrOptions({"float32", "bfloat16", "int8"})],
        # Images of any kind, with errors of their own.
        "calibration": "no_validation",
        "cache": ["boolean", str, os.PathLike, FeatureCache, None],
        "on_error": [StrOptions({"raise", "nan"})],
        "trusted": ["boolean"],
        "max_pixels": [Interval(Real, 1, None, closed="left")],
        "formats": [list, tuple, set, frozenset, None],
        "n_jobs": [
            Interval(Integral, 1, None, closed="left"),
            Interval(Integral, None, -1, closed="right"),
            None,
        ],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _doc_link_module = "sklearn_cnnfeat"
    _doc_link_template = (
        "https://sklearn-cnnfeat.readthedocs.io/en/latest/generated/"
        "{estimator_module}.{estimator_name}.html"
    )

    def __init__(
        self,
        model="vgg16",
        layer="block5_pool",
        pooling="flatten",
        *,
        weights="imagenet",
        preprocessing="auto",
        input_size=None,
        resize="stretch",
        interpolation="bilinear",
        decode="exact",
        image_shape=None,
        value_range=None,
        data_format="channels_last",
        batch_size=None,
        engine="auto",
        precision="float32",
        calibration=None,
        cache=None,
        on_error="raise",
        trusted=False,
        max_pixels=MOST_PIXELS,
        formats=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.weights = weights
        self.preprocessing = preprocessing
        self.input_size = input_size
        self.resize = resize
        self.interpolation = interpolation
        self.decode = decode
        self.image_shape = image_shape
        self.value_range = value_range
        self.data_format = data_format
        self.batch_size = batch_size
        self.engine = engine
        self.precision = precision
        self.calibration = calibration
        self.cache = cache
        self.on_error = on_error
        self.trusted = trusted
        self.max_pixels = max_pixels
        self.formats = formats
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    # --- fitting ------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check parameters and images, and prepare the network.

        Parameters
        ----------
        X : sequence of images
            Paths, encoded images (`bytes`), PIL images or arrays, in a list, array, Series or a
            data frame of one column; or one array: (n, height, width, channels),
            (n, height, width), or 2-D with `image_shape`. Paths may be URLs that fsspec knows
            (``"s3://bucket/photo.jpg"``), with ``pip install "sklearn-cnnfeat[fsspec]"``. A Dask
            array of images, bag of paths or bytes, or column of paths of a data frame: its first
            partition is looked at.

        y : None
            Ignored.

        Returns
        -------
        self : CNNFeatureTransformer
            Fitted.

        Raises
        ------
        ValueError
            If `X`, a parameter or the model does not fit; the message says what would.
        UntrustedModelError
            If a model file holds more than Keras' own layers and ``trusted=False``.
        WeightsNotFoundError
            If the published weights are not here and cannot be downloaded.
        """
        del y
        self._fit(X)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """Fit, and compute the features of the same images, which are checked only once.

        Parameters
        ----------
        X : sequence of images
            As for `fit`.

        y : None
            Ignored.

        Returns
        -------
        features : ndarray of shape (n_images, n_features), float32
            As of `transform`.

        Raises
        ------
        ValueError, WeightsNotFoundError
            As of `fit`.
        ImageError, MemoryError
            As of `transform`.
        """
        del y
        images = self._fit(X)
        if _distributed.is_collection(X):
            return self._transform_lazily(X)
        return self._transform(images)

    def _fit(self, X):
        _check_formats(self.formats)
        if _distributed.is_collection(X):
            X = _distributed.first_images(X)
        images = self._read(X, reset=True)
        self._prepare(self._make_spec(images), images)
        if len(set(self.layer_names_)) < len(self.layer_names_):
            raise ValueError(
                f"layer={self.layer!r} names a layer twice: these are {self.layer_names_!r}."
            )
        return images

    def _prepare(self, spec, images=None):
        """Open the program of `spec` and note down what comes out of it."""
        self._spec = spec
        self._engine = self.engine
        program = self._open_program(images)
        self._info = info = program.info
        self.engine_ = program.engine
        check_precision(self.precision, program.engine)
        self.layer_names_ = [head.layer for head in info.heads]
        self.feature_shapes_ = [head.map_shape for head in info.heads]
        height, width, _ = info.input_shape
        self.input_size_ = None if height is None or width is None else (height, width)
        self._shapes = [self._row_shape(head) for head in info.heads]
        self._n_features_out = sum(int(np.prod(shape)) for shape in self._shapes)
        self._is_cached = self._wants_cache() and not self._warn_uncacheable(program)
        if self._is_cached:
            self._open_cache()  # a path that cannot be one is told now

    def _wants_cache(self):
        # Equal and not the same: it may be NumPy's False.
        return self.cache not in (None, False)

    def _warn_uncacheable(self, program=None):
        """Warn, and return True, where nothing tells what rows depend on, so that none is kept."""
        problem = None
        if callable(self.pooling):
            problem = "pooling is a callable"
        elif callable(self.preprocessing):
            problem = "preprocessing is a callable"
        elif program is not None and not program.is_lasting:
            problem = "the model holds layers that are not Keras' own"
        if problem:
            warnings.warn(
                f"cache={self.cache!r} is not used: {problem}, whose code may change without "
                "notice, so that old rows could be taken for new ones.",
                CacheWarning,
                stacklevel=5,
            )
        return problem is not None

    def _make_spec(self, images=None):
        """Return what to compute, from the parameters and, for 8 bits, the images of `fit`."""
        layers = tuple(self.layer) if isinstance(self.layer, (list, tuple)) else (self.layer,)
        if not layers or not all(isinstance(layer, (str, Integral)) for layer in layers):
            raise ValueError(
                "layer must be a name, an index, or a list of these that is not empty. Got "
                f"{self.layer!r} instead."
            )
        if len(layers) > 1 and self.pooling is None:
            raise ValueError(
                "pooling=None gives the maps of one layer as a 4-D array; choose a pooling to put "
                "several layers side by side."
            )
        input_size = _check_input_size(self.input_size, self.max_pixels)
        source = self._make_source(layers)
        preprocessing = self.preprocessing
        if source.kind == "zoo":
            architecture = find_architecture(source.name)
            native = architecture.native_size
            input_size = input_size or (native, native)
            if preprocessing == "auto":
                preprocessing = architecture.preprocessing
        elif preprocessing == "auto":
            preprocessing = None
        return NetworkSpec(
            source=identify(source, layers, input_size, self.model),
            layers=tuple(layer if isinstance(layer, str) else int(layer) for layer in layers),
            poolings=(None if callable(self.pooling) else self.pooling,) * len(layers),
            preprocessing=None if callable(preprocessing) else preprocessing,
            input_size=input_size,
            calibration=self._digest_calibration(images) if self.precision == "int8" else None,
        )

    def _make_source(self, layers):
        model, weights = self.model, self.weights
        if is_keras_model(model):
            self._check_no_weights()
            return Source("object", model.name)
        if not isinstance(model, (str, os.PathLike)):
            raise TypeError(
                "model must be the name of a network, the path of a .keras or .h5 file, or a "
                f"keras.Model. Got {model!r} instead."
            )
        path = os.fspath(model)
        architecture = find_architecture(path)
        if architecture is None:
            _check_model_file(path)
            self._check_no_weights()
            return Source("file", os.path.abspath(path), trusted=bool(self.trusted))
        if weights is not None and weights != "imagenet":
            weights = os.path.abspath(os.fspath(weights))
            _check_regular("weights", weights)
            if not os.path.isfile(weights):
                raise FileNotFoundError(
                    f"weights={os.fspath(self.weights)!r} is no file; it must be 'imagenet', None "
                    "(random) or the path of a weights file (.weights.h5, .h5 or .keras)."
                )
            if not (self.trusted or weights.endswith(_MODEL_SUFFIXES)):
                raise ValueError(
                    f"weights={os.fspath(self.weights)!r} is a file, but not one whose name ends "
                    "in .weights.h5, .h5, .hdf5 or .keras. model.save_weights('name.weights.h5') "
                    "writes one."
                )
        seed = None
        if weights is None:
            seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        return Source(
            "zoo",
            architecture.name,
            weights="random" if weights is None else weights,
            include_top=any(architecture.needs_top(layer, weights) for layer in layers),
            seed=seed,
            trusted=bool(self.trusted),
        )

    def _check_no_weights(self):
        if self.weights not in ("imagenet", None):
            raise ValueError(
                f"weights={os.fspath(self.weights)!r} is for networks by name; a model of your own "
                "has its weights. Load others with model.load_weights, and leave weights out."
            )

    def _open_program(self, images=None):
        images = self._calibration_images(images)
        return open_network(
            self._spec,
            self._engine,
            self.model if self._spec.source.kind == "object" else None,
            lambda sentence: announce(sentence, self.verbose),
            None if images is None else lambda info: self._calibration_batches(images, info),
        )

    def _calibration_images(self, images):
        """Return what 8-bit arithmetic is calibrated on: images of its own, or those of `fit`."""
        if self.precision != "int8" or self.calibration is None:
            return images
        try:
            return self._as_images(self.calibration)
        except (TypeError, ValueError) as error:
            raise type(error)(f"calibration must be images like those of X: {error}") from error

    def _digest_calibration(self, images):
        images = self._calibration_images(images)
        if images is None:
            raise ValueError(
                "precision='int8' is calibrated on the images of fit, which differ from fold to "
                "fold: give images of its own, calibration=images, to compute features ahead."
            )
        digests = b"".join(self._of_calibration_sample(images, images.key))
        return hashlib.sha256(digests).hexdigest()

    def _calibration_batches(self, images, info):
        """Return the pixels of a sample, as the network takes them."""
        spec = self._image_spec(info)

        def batch(i):
            pixels = images.decode(images.read(i), spec, images.name(i))
            if callable(self.preprocessing):
                pixels = self._preprocess(pixels)
            return np.array(pixels[np.newaxis], np.float32)

        batches = self._of_calibration_sample(images, batch)
        if not batches:
            raise ValueError(
                "precision='int8' is calibrated on images, and none of those that it was to be "
                "calibrated on can be read."
            )
        return batches

    def _of_calibration_sample(self, images, function):
        """Apply a function to the positions of a sample, but for images that may be unreadable."""
        results = []
        for i in _calibration_sample(images):
            try:
                results.append(function(i))
            except ImageError:
                if self.on_error == "raise":
                    raise
        return results

    def _row_shape(self, head):
        if not callable(self.pooling) or len(head.map_shape) == 1:
            return head.shape
        return self._pool(np.zeros(head.map_shape, np.float32)).shape

    def _pool(self, maps):
        """Apply a pooling of the user's own to the maps of one image."""
        pooled = self.pooling(maps[np.newaxis])
        row = np.asarray(np.nan if pooled is None else pooled, np.float32)
        if row.ndim != 2 or len(row) != 1:
            got = "None" if pooled is None else f"shape {row.shape}"
            raise ValueError(
                "A callable pooling takes maps (n, height, width, channels) and returns an array "
                f"(n, k). Got {got} for maps of shape {(1, *maps.shape)}."
            )
        return row[0]

    # --- transforming -------------------------------------------------------------------------

    def transform(self, X):
        """Compute the features of images.

        Parameters
        ----------
        X : sequence of images
            As for `fit`.

        Returns
        -------
        features : ndarray or dask array of shape (n_images, n_features), float32
            One row an image, in the order of `X`. With ``pooling=None``: the maps,
            (n_images, height, width, channels). For a collection of Dask a lazy array: each of
            its partitions is computed by a task on one core, when Dask is asked for it.

        Raises
        ------
        ImageError
            If an image cannot be read and ``on_error="raise"``; the message names it.
        MemoryError
            If the features would not fit into memory; nothing was computed.
        """
        check_is_fitted(self)
        if _distributed.is_collection(X):
            return self._transform_lazily(X)
        return self._transform(self._read(X, reset=False))

    def _transform(self, images):
        shape = self._row_shape_out()
        self._check_memory(len(images), shape)
        out = np.empty((len(images), *shape), np.float32)
        self._run(images, ArraySink(out, self._columns()))
        return out

    def _transform_lazily(self, X):
        container = _get_output_config("transform", self)["dense"]
        if container != "default":
            raise ValueError(
                f"set_output(transform={container!r}) makes a table in memory, and the features of "
                "a Dask collection are a lazy Dask array. Use set_output(transform='default')."
            )
        return _distributed.transform_lazily(self, X, self._row_shape_out())

    def _row_shape_out(self):
        return self._shapes[0] if self.pooling is None else (self._n_features_out,)

    def _run(self, images, sink, description="features"):
        """Stream images through the network into a sink; return how many were computed."""
        try:
            return self._stream(images, sink, description)
        except EngineError as error:
            if self._engine != "auto" or self.precision != "float32":
                raise
            warnings.warn(f"{error} Keras computes it instead.", EngineWarning, stacklevel=5)
            self._engine = self.engine_ = "keras"
            return self._stream(images, sink, description)

    def _stream(self, images, sink, description, positions=None):
        """Do as `_run` with the engine of `fit`, for all images or those at some positions."""
        image_spec = self._image_spec(self._info)
        # A task of Dask has one core, whatever n_jobs is: there are as many tasks as cores.
        n_callers = _distributed.tasks_at_once()
        n_threads = thread_count(self.n_jobs) if n_callers is None else None
        dtype = np.float32 if callable(self.preprocessing) else images.dtype
        # Images of their own sizes do not go into one array.
        batch_size = self.batch_size if self.input_size_ is not None else 1
        sink = _RowSink(sink, self._info.heads, self._pool if callable(self.pooling) else None)
        store = None
        if self._is_cached and self._wants_cache():  # it may have been taken away since `fit`
            shapes = [head.shape for head in self._info.heads]
            store = RowStore(self._open_cache(), self._recipes(), shapes)
        n_known = 0 if positions is None else len(images) - len(positions)
        with progress(len(images), description, self.verbose, n_known) as bar:
            return stream(
                images,
                image_spec,
                sink,
                lambda: self._open_program().compile(
                    dtype,
                    self.precision,
                    n_threads or 1,
                    batch_size,
                    n_callers,
                ),
                n_threads=n_threads,
                on_error=self.on_error,
                bar=bar,
                adapt=self._preprocess if callable(self.preprocessing) else None,
                store=store,
                positions=positions,
            )

    def _recipes(self):
        """Return what the rows of each head depend on besides the image, as text."""
        return [
            self._spec.recipe(
                head,
                self._info.input_shape,
                self._image_spec(self._info).fingerprint(),
                self.engine_,
                self.precision,
            )
            for head in self._info.heads
        ]

    def _precompute(self, X, specs, which, verbose):
        """Fill the cache for several specs of one network in one pass.

        Returns the numbers of images, of those computed, and of those that cannot be read.
        """
        self.verbose = verbose
        heads = dict.fromkeys(
            head for spec in specs for head in zip(spec.layers, spec.poolings, strict=True)
        )
        layers, poolings = zip(*heads, strict=True)
        images = self._read(X, reset=True)
        self._prepare(replace(specs[0], layers=layers, poolings=poolings))
        if not self._is_cached:
            return 0, 0, 0
        n_layers = len(set(self.layer_names_))
        network = os.path.basename(self._spec.source.name)
        sink = NullSink()
        n_computed = self._run(
            images,
            sink,
            f"precompute {network}, {n_layers} layer{'s' if n_layers > 1 else ''}{which}",
        )
        return len(images), n_computed, len(sink.failed)

    def _image_spec(self, info):
        height, width, channels = info.input_shape
        return ImageSpec(
            height=height,
            width=width,
            channels=channels,
            resize=self.resize,
            interpolation=self.interpolation,
            max_pixels=self.max_pixels,
            decode=self.decode,
            formats=_check_formats(self.formats),
        )

    def _open_cache(self):
        if isinstance(self.cache, FeatureCache):
            return self.cache
        if self.cache == "":
            raise ValueError(
                "cache='' names no folder; cache=True is a folder of your own, None no cache."
            )
        is_own = isinstance(self.cache, (bool, np.bool_))
        path = features_folder() if is_own else os.fspath(self.cache)
        return _shared_cache(os.path.abspath(os.path.expanduser(path)))

    def _preprocess(self, pixels):
        """Apply a preprocessing of the user's own to one image."""
        # Functions of Keras change float arrays in place.
        batch = self.preprocessing(np.array(pixels[np.newaxis], np.float32))
        batch = np.asarray(batch, np.float32)
        if batch.shape != (1, *pixels.shape):
            raise ValueError(
                "A callable preprocessing must keep the shape of the batch that it is given, "
                f"{(1, *pixels.shape)}. Got {batch.shape} instead."
            )
        return batch[0]

    def _columns(self):
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    def _check_memory(self, n_images, shape):
        needed = n_images * int(np.prod(shape)) * np.dtype(np.float32).itemsize
        available = psutil.virtual_memory().available
        if needed <= available:
            return
        pooled = sum(pooled_shape(maps, "avg")[0] for maps in self.feature_shapes_)
        raise MemoryError(
            f"The features of {n_images:,} images with {int(np.prod(shape)):,} columns each take "
            f"{needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free. pooling='avg' gives "
            f"{pooled:,} columns ({n_images * pooled * 4 / 1e9:.1f} GB)."
        )

    def _read(self, X, reset):
        """Return `X` as images, checked as far as it goes without decoding them."""
        if reset:
            # What an earlier fit was given, perhaps a data frame, holds no more.
            for name in ("n_features_in_", "feature_names_in_"):
                vars(self).pop(name, None)
        if self.image_shape is not None and not isinstance(X, (list, tuple)):
            X = validate_data(self, X, dtype=None, reset=reset, ensure_all_finite=True)
            if X.dtype == object:
                X = X.astype(np.float64)
        elif hasattr(X, "columns"):
            validate_data(self, X, skip_check_array=True, reset=reset)
        images = self._as_images(X)
        if self.on_error == "raise":
            images.check()
        return images

    def _as_images(self, X):
        return as_images(
            X,
            image_shape=self.image_shape,
            value_range=self.value_range,
            data_format=self.data_format,
            allow_missing=self.on_error == "nan",
        )

    # --- scikit-learn -------------------------------------------------------------------------

    def get_feature_names_out(self, input_features=None):
        """Say where each column comes from.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of `X`, checked where they are known and not used: the names come
            from the network.

        Returns
        -------
        names : ndarray of str
            For example ``block5_pool_y3_x2_c117`` with ``pooling="flatten"``,
            ``block5_pool_c117`` with ``"avg"``.
        """
        check_is_fitted(self)
        _check_feature_names_in(self, input_features, generate_names=False)
        if self.pooling is None and len(self.feature_shapes_[0]) > 1:
            raise ValueError(
                "pooling=None gives 4-D maps, which have no columns to be named; choose a pooling "
                "to get a table."
            )
        return feature_names(self._describe_columns())

    def _describe_columns(self):
        """Return what names columns, head by head: layer, shape of its maps, pooling, length."""
        pooling = "callable" if callable(self.pooling) else self.pooling
        return [
            (layer, maps, pooling, int(np.prod(shape)))
            for layer, maps, shape in zip(
                self.layer_names_, self.feature_shapes_, self._shapes, strict=True
            )
        ]

    def __sklearn_clone__(self):
        # The model is only read: clones share it instead of copying its weights.
        parameters = {
            name: value if name == "model" else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        copy = type(self)(**parameters)
        for setting in ("_sklearn_output_config", "_metadata_request"):
            if hasattr(self, setting):
                setattr(copy, setting, deepcopy(getattr(self, setting)))
        return copy

    def _share(self, **changes):
        """Return a copy, fitted or not, that shares everything; `changes` are its own attributes.

        Not `copy.copy`, which takes a model apart as a pickle does.
        """
        shared = object.__new__(type(self))
        shared.__dict__.update(self.__dict__, **changes)
        return shared

    def __getstate__(self):
        state = super().__getstate__()
        if is_keras_model(state.get("model")):
            from sklearn_cnnfeat._network.keras_objects import PickledModel

            state = {**state, "model": PickledModel.of(state["model"])}
        return state

    def __setstate__(self, state):
        if hasattr(state.get("model"), "load"):  # a `PickledModel`
            state = {**state, "model": state["model"].load()}
        super().__setstate__(state)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        flattened = self.image_shape is not None
        tags.input_tags.two_d_array = flattened
        tags.input_tags.one_d_array = not flattened
        tags.input_tags.string = not flattened
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


class _RowSink:
    """A sink behind what is left to do outside the network: shapes, a pooling of the user's own."""

    def __init__(self, sink, heads, pool):
        self._sink = sink
        self._shapes = [head.shape for head in heads]
        self._pool = pool
        self.fail = sink.fail

    def write(self, i, rows):
        rows = [np.reshape(row, shape) for row, shape in zip(rows, self._shapes, strict=True)]
        if self._pool is not None:
            rows = [self._pool(row) if row.ndim == 3 else row for row in rows]
        self._sink.write(i, rows)


@lru_cache(maxsize=8)
def _shared_cache(path):
    """Return the one cache of a folder: a search with hundreds of fits opens its file once."""
    return FeatureCache(path)


def _calibration_sample(images):
    """Return the positions of the images that 8-bit arithmetic is calibrated on."""
    n_sampled = min(len(images), _MOST_CALIBRATION_IMAGES)
    return np.linspace(0, len(images) - 1, n_sampled).round().astype(int).tolist()


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


def _check_formats(formats):
    if formats is None:
        return FORMATS
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"formats must be some of {', '.join(map(repr, FORMATS))}. Got {formats!r} instead."
        )
    return tuple(name for name in FORMATS if name in formats)


def _check_regular(name, path):
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"{name}={path!r} is no regular file but a device, a pipe or a socket.")


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
