"""From images to rows: a compiled network with everything that decides its numbers."""

import os
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from sklearn_cnnfeat import _dask
from sklearn_cnnfeat._calibration import pixel_batches
from sklearn_cnnfeat._functions import apply_pooling, apply_preprocessing
from sklearn_cnnfeat._images import ImageSpec, as_images
from sklearn_cnnfeat._loop import Loop, thread_count
from sklearn_cnnfeat._memory import check_memory
from sklearn_cnnfeat._network.find_source import pickled_model, unpickled_model
from sklearn_cnnfeat._network.ncnn_networks import problem_of_ncnn
from sklearn_cnnfeat._network.networks import check_precision, open_network
from sklearn_cnnfeat._network.pooling import feature_names, pooled_shape
from sklearn_cnnfeat._network.spec import NetworkInfo, NetworkSpec
from sklearn_cnnfeat._progress import announce, progress
from sklearn_cnnfeat._row_sinks import ArraySink, ShapedSink
from sklearn_cnnfeat._row_store import RowStore
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import EngineError, EngineWarning

# Layers of Keras and ONNX that rescale or normalize pixels, or may do so.
_NORMALIZING = frozenset(
    (
        *("Rescaling", "Normalization", "BatchNormalization", "LayerNormalization", "Lambda"),
        *("Add", "Subtract", "Multiply", "Divide", "Sub", "Mul", "Div"),
    )
)


@dataclass(frozen=True)
class Reading:
    """How an `X` becomes images; see `as_images`."""

    image_shape: tuple | None = None
    value_range: tuple | None = None
    data_format: str = "channels_last"

    def images(self, X, on_error, check=True):
        """Return `X` as images, checked as far as possible without decoding them.

        Missing images and files are errors here with ``on_error="raise"``; files are looked for
        with `check`.
        """
        images = as_images(
            X,
            image_shape=self.image_shape,
            value_range=self.value_range,
            data_format=self.data_format,
            allow_missing=on_error != "raise",
        )
        if check and on_error == "raise":
            images.check()
        return images


@dataclass(frozen=True, eq=False)
class Extractor:
    """Turns images into the rows of one network; made by `fit`, used wherever rows are computed.

    Threads may share one. To change settings, make a copy: with `dataclasses.replace` for settings
    that do not affect the numbers, with `with_` for other layers of the same network.

    Attributes
    ----------
    spec : NetworkSpec
        Network, layers, poolings and preprocessing.
    engine : {"auto", "openvino", "ncnn", "keras"}
        The engine; never "auto" after `opened`.
    image_spec : ImageSpec
        Size, channels and decoding of each image; size and channels are set by `opened`.
    reading : Reading
        How arrays become images.
    precision : {"float32", "bfloat16", "int8"}
        Arithmetic.
    model : keras.Model, default=None
        The model, if the user passed an object.
    pooling, preprocessing : callable, default=None
        User-defined.
    calibration : sequence of images, default=None
        Images for ``precision="int8"``; None for those of `fit`.
    cache : FeatureCache, default=None
        Where rows are kept.
    n_jobs, batch_size : int, default=None
        As for `CNNFeatureTransformer`.
    on_error : {"raise", "nan", "record"}
        As for `CNNFeatureTransformer`; with "record" failures go to the sink without a warning.
    verbose : int
        Whether progress is shown.
    info : NetworkInfo
        Layers and shapes, after `opened`.
    shapes : tuple of tuple
        Shape of each layer's features for one image, after `opened`.
    is_lasting : bool
        Whether fingerprints mean the same numbers in every process, after `opened`.
    normalizes : bool
        Whether the network itself may rescale or normalize pixels, judged by its layers; after
        `opened`.
    asked_engine : str, default=None
        What `engine` was before `opened`: other layers may have another engine.
    """

    spec: NetworkSpec
    engine: str
    image_spec: ImageSpec
    reading: Reading = Reading()
    precision: str = "float32"
    model: object = None
    pooling: object = None
    preprocessing: object = None
    calibration: object = None
    cache: object = None
    n_jobs: int | None = None
    batch_size: int | None = None
    on_error: str = "raise"
    verbose: int = 0
    info: NetworkInfo | None = None
    shapes: tuple = ()
    is_lasting: bool = True
    normalizes: bool = True
    asked_engine: str | None = None

    # --- making one -------------------------------------------------------------------------------

    def opened(self, images=None):
        """Return this extractor with the attributes that depend on the opened network.

        `images` are for the calibration of ``precision="int8"`` if `calibration` is None.
        """
        network = self._open_network(images)
        check_precision(self.precision, network.engine)
        height, width, channels = network.info.input_shape
        return replace(
            self,
            engine=network.engine,
            asked_engine=self.engine,
            info=network.info,
            shapes=tuple(self._row_shape_of(head) for head in network.info.heads),
            is_lasting=network.is_lasting,
            normalizes=_normalizes(network.layers),
            image_spec=replace(self.image_spec, height=height, width=width, channels=channels),
        )

    def with_(self, *, layers=None, poolings=None, input_size=None, precision=None):
        """Return an extractor of the same network with other layers or poolings, if not None.

        A user-defined pooling is left out where `poolings` are given.
        """
        spec = self.spec
        layers = spec.layers if layers is None else tuple(layers)
        precision = self.precision if precision is None else precision
        spec = replace(
            spec,
            source=self._source_for(layers),
            layers=layers,
            poolings=spec.poolings if poolings is None else tuple(poolings),
            input_size=input_size or spec.input_size,
            calibration=spec.calibration if precision == "int8" else None,
        )
        pooling = self.pooling if poolings is None else None
        engine = self.asked_engine or self.engine
        return replace(
            self, spec=spec, precision=precision, pooling=pooling, engine=engine
        ).opened()

    def _source_for(self, layers):
        source = self.spec.source.with_layers(layers)
        if source is self.spec.source:
            return source
        return source.identify(layers, self.spec.input_size, self.model)

    def _open_network(self, images=None):
        """Return the compiled network: from memory, from the disk, or converted now."""
        if self.calibration is not None:
            images = self.calibration_images()
        return open_network(
            self.spec,
            self.engine,
            self.model,
            lambda sentence: announce(sentence, self.verbose),
            None if images is None else partial(self._calibration_batches, images),
            self.precision,
        )

    def calibration_images(self):
        """Return `calibration` as images."""
        try:
            return self.reading.images(self.calibration, self.on_error, check=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"calibration must be images like those of X: {error}") from error

    def _calibration_batches(self, images, info):
        height, width, channels = info.input_shape
        spec = replace(self.image_spec, height=height, width=width, channels=channels)
        return pixel_batches(images, spec, self._adapt(), self.on_error)

    def _row_shape_of(self, head):
        if self.pooling is None or len(head.map_shape) == 1:
            return head.shape
        return apply_pooling(self.pooling, np.zeros(head.map_shape, np.float32)).shape

    # --- output -----------------------------------------------------------------------------------

    @property
    def layers(self):
        """Paths of the layers."""
        return [head.layer for head in self.info.heads]

    @property
    def map_shapes(self):
        """Shape of each layer's output for one image."""
        return [head.map_shape for head in self.info.heads]

    @property
    def input_size(self):
        """Height and width in pixels of the images; None where each keeps its own size."""
        height, width, _ = self.info.input_shape
        return None if height is None or width is None else (height, width)

    @property
    def gives_maps(self):
        """Whether the features are the maps of one layer rather than rows."""
        return self.pooling is None and self.spec.poolings[0] is None

    @property
    def n_columns(self):
        """Number of columns of all layers side by side."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def row_shape(self):
        """Shape of the features of one image."""
        return self.shapes[0] if self.gives_maps else (self.n_columns,)

    @property
    def columns(self):
        """The columns of each layer, as slices."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes]).tolist()
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    @property
    def feature_names(self):
        """Names of the columns."""
        if self.gives_maps and len(self.map_shapes[0]) > 1:
            raise ValueError(
                "pooling=None gives 4-D maps, which have no columns to be named. Choose a pooling "
                "to get a table."
            )
        return feature_names(self.column_origins())

    def column_origins(self):
        """Return the parts of column names for each layer: path, map shape, pooling, length."""
        pooling = "callable" if self.pooling is not None else self.spec.poolings[0]
        return [
            (layer, maps, pooling, int(np.prod(shape)))
            for layer, maps, shape in zip(self.layers, self.map_shapes, self.shapes, strict=True)
        ]

    @property
    def fingerprints(self):
        """For each layer, all that its rows depend on besides the image, as text."""
        return [
            self.spec.recipe(
                head,
                self.info.input_shape,
                self.image_spec.fingerprint(),
                self.engine,
                self.precision,
            )
            for head in self.info.heads
        ]

    @property
    def uncacheable(self):
        """Why rows cannot be kept in a cache; None where they can."""
        problem = callable_problem(self)
        if problem is None and not self.is_lasting:
            return "the model holds layers that are not Keras' own"
        return problem

    # --- computing --------------------------------------------------------------------------------

    def read(self, X):
        """Return `X` as images, checked as far as possible without decoding them."""
        return self.reading.images(X, self.on_error)

    def compute(self, images):
        """Return the features of all images as one array."""
        shape = (len(images), *self.row_shape)
        pooled = sum(pooled_shape(maps, "avg")[0] for maps in self.map_shapes)
        check_memory(
            int(np.prod(shape)) * np.dtype(np.float32).itemsize,
            f"The features of {len(images):,} images with {int(np.prod(shape[1:])):,} columns each",
            f"pooling='avg' gives {pooled:,} columns ({len(images) * pooled * 4 / 1e9:.1f} GB).",
        )
        out = np.empty(shape, np.float32)
        self.run(images, ArraySink(out, self.columns))
        return out

    def run(self, images, sink, positions=None, description="features"):
        """Compute the rows of images into a sink; return how many went through the network.

        `positions` are those of the images to compute, None for all; `description` is for the
        progress bar.
        """
        if self.engine == "ncnn" and (problem := problem_of_ncnn()) is not None:
            warn(f"{problem} OpenVINO computes the network instead.", EngineWarning)
            other = replace(self, engine="openvino")
            return other.run(images, sink, positions, description)
        positions = range(len(images)) if positions is None else positions
        # A task of Dask has one core, whatever n_jobs is: there are as many tasks as cores.
        n_callers = _dask.tasks_at_once()
        n_threads = thread_count(self.n_jobs) if n_callers is None else 0
        heads = [head.shape for head in self.info.heads]
        pool = None if self.pooling is None else partial(apply_pooling, self.pooling)
        store = None if self.cache is None else RowStore(self.cache, self.fingerprints, heads)
        n_known = len(images) - len(positions)
        with progress(len(images), description, self.verbose, n_known) as bar:
            loop = Loop(
                images,
                self.image_spec,
                ShapedSink(sink, heads, pool),
                n_threads=n_threads,
                on_error=self.on_error,
                bar=bar,
                adapt=self._adapt(),
                store=store,
            )
            return loop.run(
                positions, partial(self._load_engine, images.dtype, n_threads, n_callers)
            )

    def _load_engine(self, dtype, n_threads, n_callers):
        network = self._open_network()
        if network.engine != self.engine:
            raise EngineError(
                f"The transformer was fitted with engine={self.engine!r}, and here "
                f"{network.engine!r} would compute other numbers. Fit it again on this machine."
            )
        try:
            return network.compile(
                np.float32 if self.preprocessing is not None else dtype,
                self.precision,
                n_threads or 1,
                # Images of different sizes cannot be stacked into a batch.
                self.batch_size if self.input_size is not None else 1,
                n_callers,
            )
        except EngineError as error:
            # No automatic fallback: the framework's numbers differ in the last digits from stored
            # ones.
            frameworks = {"keras": "Keras", "torch": "PyTorch"}
            advice = [
                f" Fit with engine={engine!r} to compute it with {frameworks[engine]}."
                for engine in self.spec.source.engines
                if engine in frameworks
            ]
            raise EngineError(f"{error}{''.join(advice)}") from error

    def _adapt(self):
        if self.preprocessing is None:
            return None
        return partial(apply_preprocessing, self.preprocessing)

    # --- pickles ----------------------------------------------------------------------------------

    def __getstate__(self):
        return {**vars(self), "model": pickled_model(self.model)}

    def __setstate__(self, state):
        vars(self).update({**state, "model": unpickled_model(state["model"])})

    @property
    def network_name(self):
        """Name of the network, for messages."""
        return os.path.basename(self.spec.source.name)


def _normalizes(layers):
    """Return whether a layer before the first weights may rescale or normalize pixels."""
    for layer in layers:
        if layer.type in _NORMALIZING:
            return True
        if layer.n_parameters:
            return False
    # The network has no weights, or its layers are unknown.
    return True


def callable_problem(owner):
    """Return why rows of an extractor or transformer with a user's callable cannot be kept."""
    # A callable pooling is no problem: the cache keeps the maps before it.
    return "preprocessing is a callable" if callable(owner.preprocessing) else None
