"""The estimator: parameters, validation, names and tags. It computes nothing itself."""

import os
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from numbers import Integral, Real
from reprlib import repr as repr_

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context, clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from sklearn_cnnfeat import _dask
from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat._images import DECODES, INTERPOLATIONS, MOST_PIXELS, RESIZES
from sklearn_cnnfeat._network.find_source import pickled_model, unpickled_model
from sklearn_cnnfeat._network.pooling import POOLINGS
from sklearn_cnnfeat._parameters import check_formats, make_extractor, open_cache, reading
from sklearn_cnnfeat._warn import warn

# Parameters that decide which numbers come out: they act at the next `fit`. `trusted` belongs to
# them, but changes no number.
_FITTED_PARAMETERS = (
    *("model", "layer", "pooling", "weights", "random_state"),
    *("input_size", "resize", "interpolation", "decode", "preprocessing"),
    *("image_shape", "value_range", "data_format", "engine", "precision", "calibration"),
)


class CNNFeatureTransformer(TransformerMixin, BaseEstimator):
    """Turn images into features from any layer of a convolutional network.

    The network is not trained: `fit` checks all parameters and images and prepares the network.
    Rows come out in the order of `X`, and a row does not depend on the other images.

    The parameters are listed in four groups: which network and what of it; how images are read and
    resized; how features are computed and kept; what is reported.

    Parameters
    ----------
    model : str, path, keras.Model or torch.nn.Module, default="vgg16"
        - a name that :func:`list_models` lists, such as ``"resnet50_v2"``;
        - a name of timm with its tag, such as ``"timm/convnext_tiny.fb_in1k"`` (``pip install
          "sklearn-cnnfeat[timm]"``);
        - the path of a ``.keras``, ``.h5`` or ``.onnx`` file;
        - a Keras model: Sequential, Functional, or models nested in models;
        - a PyTorch module.

    layer : str, int or list of these, default="block5_pool"
        The layer that gives the features; nothing behind the deepest layer is computed. The default
        belongs to VGG16 and VGG19: name a layer for any other network.

        - a name, as `layer_summary` lists them;
        - a path into a nested model, such as ``"vgg16/block5_pool"``; the bare name of a nested
          layer is enough where it is unique;
        - an integer index into the outermost model's layers, negative from the end. For networks
          by name it counts the whole network with its classifier: -2 is the second to last layer;
        - ``"last"``: the last layer before the classifier. For networks by name that is the last
          one of ``include_top=False``; for other models the one that feeds the final `Dense`;
        - ``"stride4"``, ``"stride8"``, ``"stride16"``, ``"stride32"``: the last layer whose maps
          are so many times smaller than the image, in any network;
        - a list of these: their columns stand side by side.

    pooling : {"flatten", "avg", "max", "gem", "spp", "cls"}, callable or None, default="flatten"
        How the maps (height, width, channels) of a layer become a row. Layers that give vectors
        pass through.

        - ``"flatten"``: all values, in the order of rows, columns, channels;
        - ``"avg"`` and ``"max"``: mean and maximum of each channel over all positions;
        - ``"gem"``: generalized mean, :math:`(\\frac{1}{n}\\sum \\max(x, 10^{-6})^3)^{1/3}` of each
          channel [1]_;
        - ``"spp"``: spatial pyramid, the maxima of 1 + 4 + 16 bins (1x1, 2x2 and 4x4) of each
          channel [2]_;
        - ``"cls"``: the class token of a transformer's layer. To all other poolings the tokens of
          such a layer are the map of its patches, without class token and registers;
        - None: the maps as they are, a 4-D array;
        - a callable: takes maps (n, height, width, channels) and returns (n, k). It is called for
          one image at a time.

    weights : "imagenet", path or None, default="imagenet"
        For networks by name: the published ImageNet weights, a weights file of your own, or None
        for random weights. Published ones are looked for in Keras' folder (``~/.keras/models`` or
        ``$KERAS_HOME/models``), in the folders that ``$SKLEARN_CNNFEAT_WEIGHTS`` names and, on
        Kaggle, in all attached datasets; otherwise Keras downloads them into its folder. See
        :func:`pack_weights` for machines without internet.

    random_state : int, RandomState instance or None, default=None
        Determines the weights where ``weights=None``.

    trusted : bool, default=False
        Whether files given as `model` and `weights` may contain custom code. Use True only for
        files you trust: model files can hold code and the names of other files. False inspects a
        file before Keras loads it, and refuses it if it holds anything besides Keras' own layers
        that only compute; custom and `Lambda` layers need True. A model object is always trusted.

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
        Height and width in pixels that images are resized to. None takes the network's own size;
        a model that takes images of any size then gets each image in its own.

    resize : {"stretch", "crop", "pad", "auto"}, default="stretch"
        ``"stretch"`` ignores the aspect ratio, as Keras' `load_img` does. ``"crop"`` resizes the
        short side to size / 0.875 and takes the center. ``"pad"`` keeps the whole picture on a
        black background. ``"auto"`` does what the network was evaluated with, where timm or
        torchvision says it, and stretches otherwise.

    interpolation : {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "auto"}, \
            default="bilinear"
        Pillow's resampling filter. ``"auto"`` is the network's own, as for `resize`.

    decode : {"exact", "fast"}, default="exact"
        ``"fast"`` lets the JPEG decoder halve pictures much larger than needed while it decodes
        them. It saves most of the time that large photographs take, and changes pixels, and with
        them features, slightly.

    image_shape : tuple of int, default=None
        Shape of each image, ``(height, width)`` or ``(height, width, channels)``, where `X` is
        2-D with one flattened image per row, as in :func:`sklearn.datasets.load_digits`. One entry
        may be -1, as in :func:`numpy.reshape`.

    value_range : (float, float), default=None
        Values of black and of white, which become 0 and 255. None takes numbers as pixels on
        0 to 255. For `load_digits` it is ``(0, 16)``, for images scaled to 0-1 ``(0, 1)``.

    data_format : {"channels_last", "channels_first"}, default="channels_last"
        Where arrays have their channels.

    formats : sequence of {"jpeg", "png", "webp", "gif", "bmp", "tiff"}, default=None
        Kinds of image files that are read, recognized by their content; others are refused as
        unreadable. None stands for all of these. Each kind has its own decoder in Pillow: a program
        that reads untrusted pictures may need fewer.

    max_pixels : int, default=178956970
        Images of more pixels than this are refused before they are decoded.

    engine : {"auto", "openvino", "ncnn", "keras", "torch"}, default="auto"
        What runs the network. ``"auto"`` is Keras on a GPU that TensorFlow sees, and OpenVINO on
        a CPU, except that networks that are mostly 3 x 3 convolutions of stride 1, such as VGG16,
        run on ncnn in float32, which computes these in half the time. ncnn knows convolutions,
        dense layers, poolings and the usual activations, on images of one size. A network that
        OpenVINO cannot run, or computes differently, runs on Keras with a warning. `fit` chooses,
        and `transform` keeps the choice.

    precision : {"float32", "bfloat16", "float16", "int8"}, default="float32"
        Arithmetic of the OpenVINO engine. ``"bfloat16"`` is about twice as fast on processors
        that compute it in hardware, and changes features in the third digit. ``"int8"`` is
        faster still: the network is quantized with NNCF (``pip install
        "sklearn-cnnfeat[int8]"``), calibrated on images.

    calibration : sequence of images, default=None
        What ``precision="int8"`` is calibrated on: up to 128 of these images, evenly spread. None
        takes the images that `fit` is given; the folds of a search then have a network each,
        while images given here make one for all.

    batch_size : int, default=None
        Images computed by one call of the network. None leaves it to the engine: 1 per core for
        OpenVINO, 32 for Keras.

    n_jobs : int, default=None
        Threads for decoding and for the network. None stands for all cores that this process may
        use, or for its share (``OMP_NUM_THREADS``) inside a worker of joblib. In a worker of Dask
        each task has one core in any case.

    cache : None, True, path or FeatureCache, default=None
        Where computed rows are kept, so that an image goes through a network only once, whatever
        the folds, the parameters and the runs. True is a folder of the user's own, a path any other
        folder. Rows read back are the same bits. See :func:`precompute` for searches over layers.

    on_error : {"raise", "nan"}, default="raise"
        What an image that cannot be read, or is missing (None or NaN among paths, bytes or PIL
        images), does: raise an error that names it, or make its row NaN, with one warning that
        lists all such images.

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

    engine_ : {"openvino", "ncnn", "keras", "torch"}
        What runs the network. Where it is "openvino", ``engine="ncnn"`` raises an error that names
        what ncnn lacks, if it lacks something.

    n_features_in_ : int
        Number of columns of `X`, where it is 2-D or a data frame.

    feature_names_in_ : ndarray of str
        Names of the columns of `X`, where it is a data frame.

    See Also
    --------
    list_models : Networks that are known by name.
    load_image_folder : Paths and labels from one folder per class.

    Notes
    -----
    After `fit`, these parameters act at once: `batch_size`, `n_jobs`, `cache`, `on_error`,
    `max_pixels`, `formats` and `verbose`. All others decide which numbers come out, and act at the
    next `fit`; `transform` warns while they differ from those of the last one. A `fit` that fails
    leaves the transformer as it was. `transform` changes nothing in it, so that threads may share
    it.

    References
    ----------
    .. [1] F. Radenović, G. Tolias, O. Chum, "Fine-tuning CNN image retrieval with no human
       annotation", IEEE TPAMI 41(7), 2019. https://arxiv.org/abs/1711.02512

    .. [2] K. He, X. Zhang, S. Ren, J. Sun, "Spatial pyramid pooling in deep convolutional
       networks for visual recognition", ECCV 2014. https://arxiv.org/abs/1406.4729

    Examples
    --------
    Random weights need no download; leave ``weights`` out for ImageNet's.

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
        "random_state": ["random_state"],
        "trusted": ["boolean"],
        "preprocessing": [
            StrOptions({"auto", "caffe", "tf", "torch", "rescale"}),
            callable,
            None,
        ],
        "input_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "resize": [StrOptions({*RESIZES, "auto"})],
        "interpolation": [StrOptions({*INTERPOLATIONS, "auto"})],
        "decode": [StrOptions(set(DECODES))],
        "image_shape": [tuple, list, None],
        "value_range": [tuple, list, None],
        "data_format": [StrOptions({"channels_last", "channels_first"})],
        "formats": [list, tuple, set, frozenset, None],
        "max_pixels": [Interval(Real, 1, None, closed="left")],
        "engine": [StrOptions({"auto", "openvino", "ncnn", "keras", "torch"})],
        "precision": [StrOptions({"float32", "bfloat16", "float16", "int8"})],
        # Images of any kind, with errors of their own.
        "calibration": "no_validation",
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "n_jobs": [
            Interval(Integral, 1, None, closed="left"),
            Interval(Integral, None, -1, closed="right"),
            None,
        ],
        "cache": ["boolean", str, os.PathLike, FeatureCache, None],
        "on_error": [StrOptions({"raise", "nan"})],
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
        random_state=None,
        trusted=False,
        preprocessing="auto",
        input_size=None,
        resize="stretch",
        interpolation="bilinear",
        decode="exact",
        image_shape=None,
        value_range=None,
        data_format="channels_last",
        formats=None,
        max_pixels=MOST_PIXELS,
        engine="auto",
        precision="float32",
        calibration=None,
        batch_size=None,
        n_jobs=None,
        cache=None,
        on_error="raise",
        verbose=0,
    ):
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.weights = weights
        self.random_state = random_state
        self.trusted = trusted
        self.preprocessing = preprocessing
        self.input_size = input_size
        self.resize = resize
        self.interpolation = interpolation
        self.decode = decode
        self.image_shape = image_shape
        self.value_range = value_range
        self.data_format = data_format
        self.formats = formats
        self.max_pixels = max_pixels
        self.engine = engine
        self.precision = precision
        self.calibration = calibration
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.cache = cache
        self.on_error = on_error
        self.verbose = verbose

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
        if _dask.is_collection(X):
            return self._transform_lazily(X)
        return extractor_of(self).compute(images)

    def transform(self, X):
        """Compute the features of images.

        Parameters
        ----------
        X : sequence of images
            As for `fit`.

        Returns
        -------
        features : ndarray or dask array of shape (n_images, n_features), float32
            One row per image, in the order of `X`. With ``pooling=None``: the maps,
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
        self._warn_of_changes()
        if _dask.is_collection(X):
            return self._transform_lazily(X)
        extractor = extractor_of(self)
        return extractor.compute(extractor.read(self._validate(X, extractor.reading)))

    def get_feature_names_out(self, input_features=None):
        """Name each column after the layer, position and channel that it comes from.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of `X`. They are checked where they are known, and not used: the
            names come from the network.

        Returns
        -------
        names : ndarray of str
            For example ``block5_pool_y3_x2_c117`` with ``pooling="flatten"``,
            ``block5_pool_c117`` with ``"avg"``.
        """
        check_is_fitted(self)
        _check_feature_names_in(self, input_features, generate_names=False)
        return self._extractor.feature_names

    def _fit(self, X):
        """Fit to images, or to the first partition of a collection; return the images."""
        with self._unchanged_on_error():
            # These describe the `X` of an earlier fit.
            for name in ("n_features_in_", "feature_names_in_"):
                vars(self).pop(name, None)
            X = _dask.first_images(X) if _dask.is_collection(X) else X
            X = self._validate(X, reading(self), reset=True)
            images = reading(self).images(X, self.on_error)
            extractor = make_extractor(self, images)
            if len(set(extractor.layers)) < len(extractor.layers):
                raise ValueError(
                    f"layer={self.layer!r} names a layer twice: these are {extractor.layers!r}."
                )
            open_cache(self, extractor.uncacheable)  # a path that cannot be one is an error now
            self._extractor = extractor
            values = {name: getattr(self, name) for name in _FITTED_PARAMETERS}
            if extractor.model is not None:
                del values["model"]  # the extractor has it
            # A list may be changed in place.
            self._fitted_parameters = {
                name: copy(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
            self.layer_names_ = extractor.layers
            self.feature_shapes_ = extractor.map_shapes
            self.input_size_ = extractor.input_size
            self.engine_ = extractor.engine
            self._n_features_out = extractor.n_columns
        return images

    @contextmanager
    def _unchanged_on_error(self):
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _validate(self, X, reading, reset=False):
        """Return `X`, checked against the columns that `fit` has seen."""
        if reading.image_shape is not None and not isinstance(X, (list, tuple)):
            X = validate_data(self, X, dtype=None, reset=reset, ensure_all_finite=True)
            return X.astype(np.float64) if X.dtype == object else X
        if hasattr(X, "columns"):
            validate_data(self, X, skip_check_array=True, reset=reset)
        return X

    def _warn_of_changes(self):
        """Warn of parameters that were changed after `fit` and take effect at the next one."""
        changed = [
            f"{name}={repr_(getattr(self, name))} (at fit: {repr_(value)})"
            for name, value in self._fitted_parameters.items()
            if not _is_same(value, getattr(self, name))
        ]
        model = self._extractor.model
        if model is not None and model is not self.model:
            changed.append(f"model={repr_(self.model)}")
        if changed:
            warn(
                f"Parameters were changed after fit and act at the next fit: {', '.join(changed)}. "
                "The features are those of the last fit."
            )

    def _transform_lazily(self, X):
        container = _get_output_config("transform", self)["dense"]
        if container != "default":
            raise ValueError(
                f"set_output(transform={container!r}) makes a table in memory, and the features of "
                "a Dask collection are a lazy Dask array. Use set_output(transform='default')."
            )
        rows = _dask.without_rows(X)
        if rows is not None:
            validate_data(self, rows, skip_check_array=True, reset=False)
        return _dask.transform_lazily(replace(extractor_of(self), verbose=0), X)

    def __sklearn_is_fitted__(self):
        # Pickles of earlier versions have no extractor: they must be fitted again.
        return hasattr(self, "_extractor")

    def __sklearn_clone__(self):
        # The model is only read: clones share it instead of copying its weights.
        parameters = {
            name: value if name == "model" else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        copied = type(self)(**parameters)
        for setting in ("_sklearn_output_config", "_metadata_request"):
            if hasattr(self, setting):
                setattr(copied, setting, deepcopy(getattr(self, setting)))
        return copied

    def __getstate__(self):
        state = super().__getstate__()
        return {**state, "model": pickled_model(state.get("model"))}

    def __setstate__(self, state):
        super().__setstate__({**state, "model": unpickled_model(state.get("model"))})

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        flattened = self.image_shape is not None
        tags.input_tags.two_d_array = flattened
        tags.input_tags.one_d_array = not flattened
        tags.input_tags.string = not flattened
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


# --- for the rest of the package ------------------------------------------------------------------


def extractor_of(transformer):
    """Return the extractor of a fitted transformer, with the parameters that need no new `fit`."""
    check_is_fitted(transformer)
    extractor = transformer._extractor
    return replace(
        extractor,
        # `fit` has warned where rows cannot be kept.
        cache=None if extractor.uncacheable else open_cache(transformer, None),
        image_spec=replace(
            extractor.image_spec,
            max_pixels=transformer.max_pixels,
            formats=check_formats(transformer.formats),
        ),
        batch_size=transformer.batch_size,
        n_jobs=transformer.n_jobs,
        on_error=transformer.on_error,
        verbose=transformer.verbose,
    )


def extractor_for(transformer, X, **changes):
    """Return the extractor of a transformer, and `X` as its images.

    If the transformer is not fitted, a copy is fitted to `X`. `changes` override parameters that
    take effect without another `fit`, such as `on_error`.
    """
    if is_fitted(transformer):
        transformer._warn_of_changes()
    else:
        transformer = clone(transformer).set_params(**changes).fit(X)
    extractor = replace(extractor_of(transformer), **changes)
    return extractor, extractor.read(transformer._validate(X, extractor.reading))


def is_fitted(transformer):
    """Return whether `fit` has been called."""
    return transformer.__sklearn_is_fitted__()


def _is_same(fitted, now):
    """Return whether a parameter has the value that it was fitted with."""
    if fitted is now:
        return True
    try:
        return bool(np.all(fitted == now))
    except ValueError:  # images of several sizes
        return False
