"""The networks, and the ways from image files to their features.

Every contender imports what it needs when it is set up, so that its process holds nothing else.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from unittest import mock

from _common import WORK, count_cores, cycled, installed

# Photographs from which batch normalization has its statistics.
_N_STATISTICS = 8


@dataclass(frozen=True)
class Network:
    """A network under the names that the packages know it by."""

    name: str
    keras: str
    # Module of keras.applications that holds its `preprocess_input`.
    module: str
    # Name in timm; None where it is not there.
    timm: str | None
    # Known to img2vec_pytorch under this name; None where it is not, or is another network there.
    img2vec: str | None = None
    size: int = 224


NETWORKS = {
    network.name: network
    for network in (
        Network("vgg16", "VGG16", "vgg16", "vgg16"),
        Network("vgg19", "VGG19", "vgg19", "vgg19"),
        Network("resnet50", "ResNet50", "resnet", "resnet50", "resnet50"),
        Network("mobilenet_v2", "MobileNetV2", "mobilenet_v2", "mobilenetv2_100"),
        Network("mobilenet_v3_small", "MobileNetV3Small", "mobilenet_v3", "mobilenetv3_small_100"),
        Network(
            "efficientnet_b0",
            "EfficientNetB0",
            "efficientnet",
            "efficientnet_b0",
            "efficientnet_b0",
        ),
        Network(
            "efficientnet_v2_b0", "EfficientNetV2B0", "efficientnet_v2", "tf_efficientnetv2_b0"
        ),
        Network("densenet121", "DenseNet121", "densenet", "densenet121", "densenet121"),
        Network("inception_v3", "InceptionV3", "inception_v3", "inception_v3", size=299),
        Network("convnext_tiny", "ConvNeXtTiny", "convnext", "convnext_tiny"),
        Network("mobilenet", "MobileNet", "mobilenet", "mobilenetv1_100"),
        Network("nasnet_mobile", "NASNetMobile", "nasnet", None),
    )
}


def add_networks(parser, default):
    """Add the option that says which networks."""
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=list(NETWORKS),
        default=default,
        metavar="NAME",
        help="which",
    )


# --- files that several contenders share ----------------------------------------------------------


def weights_file(network):
    """Return the path of the random weights that all contenders with Keras' networks use."""
    return WORK / "weights" / f"{network.name}-keras{installed('keras')}.weights.h5"


def onnx_file(network):
    """Return the path of the network converted to ONNX."""
    versions = "-".join(f"{name}{installed(name)}" for name in ("keras", "tf2onnx"))
    return WORK / "onnx" / f"{network.name}-{versions}.onnx"


def make_weights(network, paths):
    """Make the random weights if they are not there yet.

    Batch normalization gets the statistics of a few photographs. Without them numbers shrink from
    layer to layer until they are denormal, with which processors take many times as long.
    """
    if weights_file(network).exists():
        return
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = _build_base(network, None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    pixels = np.stack([decode(path, network.size) for path in paths[:_N_STATISTICS]])
    model(_preprocess_input(network)(pixels.astype(np.float32)), training=True)
    _write_whole(weights_file(network), model.save_weights)


def _write_whole(path, write):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    write(str(temporary))
    temporary.rename(path)


# --- Keras ----------------------------------------------------------------------------------------


def _build_base(network, weights):
    import keras

    model = getattr(keras.applications, network.keras)(
        weights=None, include_top=False, input_shape=(network.size, network.size, 3)
    )
    if weights is not None:
        model.load_weights(weights)
    return model


def _build_keras(network):
    """Return the network with the weights that all share, averaged over all positions.

    ``pooling="avg"`` would be another network with ConvNeXt, whose last layer would come after it.
    """
    import keras

    base = _build_base(network, weights_file(network))
    return keras.Model(base.inputs, keras.layers.GlobalAveragePooling2D()(base.outputs[0]))


def _preprocess_input(network):
    import keras

    return getattr(keras.applications, network.module).preprocess_input


def _freeze(network):
    """Return preprocessing and network as one TensorFlow function with constants for weights."""
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    model = _build_keras(network)
    preprocess_input = _preprocess_input(network)
    signature = tf.TensorSpec((None, network.size, network.size, 3), tf.uint8)

    def rows(pixels):
        return model(preprocess_input(keras.ops.cast(pixels, "float32")), training=False)

    return convert_variables_to_constants_v2(tf.compat.v1.wrap_function(rows, [signature]))


def _gelu(features, approximate=False):
    import tensorflow as tf

    if approximate:
        raise NotImplementedError("none of the networks asks for the approximation")
    return 0.5 * features * (1 + tf.math.erf(features / 2**0.5))


# --- decoding ahead -------------------------------------------------------------------------------


def decode(path, size):
    """Read, decode and resize a file as `keras.utils.load_img` does, to uint8."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def decoded_batches(paths, size, batch):
    """Yield batches of decoded images, decoded by as many threads as there are cores."""
    import numpy as np

    waiting = deque()
    paths = iter(paths)
    with ThreadPoolExecutor(count_cores()) as pool:
        # One batch is being decoded while another is being computed.
        waiting.extend(pool.submit(decode, path, size) for path in islice(paths, 2 * batch))
        while waiting:
            pixels = [waiting.popleft().result() for _ in range(min(batch, len(waiting)))]
            waiting.extend(pool.submit(decode, path, size) for path in islice(paths, batch))
            yield np.stack(pixels)


# --- contenders -----------------------------------------------------------------------------------


class Contender:
    """One way from files to features.

    Attributes
    ----------
    label : str
        Its name in tables.
    packages : tuple of (module, distribution)
        What must be installed.
    batch : int
        Images that it takes at a time.
    ours : bool
        Whether it is this package.
    keras_weights : bool
        Whether it computes Keras' network with the weights that the others have.
    called : str or None
        Attribute of `Network` that says what a network is called there, or None in it that there is
        no such network. None for those that know every network.
    """

    packages = ()
    batch = 1
    ours = False
    keras_weights = True
    called = None

    def __init__(self, label):
        self.label = label

    def missing(self):
        """Return what is not installed; None where all is."""
        missing = [name for name in self.packages if find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else None

    def covers(self, network):
        """Whether it knows the network."""
        return self.called is None or getattr(network, self.called) is not None

    def prepare(self, network, paths):
        """Make the files that later runs find, in a process that is not measured."""
        if self.keras_weights:
            make_weights(network, paths)

    def set_up(self, network, paths):
        """Get everything ready."""
        raise NotImplementedError

    def features(self, paths):
        """Return an array with one row a file."""
        raise NotImplementedError


class Ours(Contender):
    """This package."""

    ours = True

    def __init__(self, label, precision, n_jobs=None, engine="auto"):
        super().__init__(label)
        self._precision = precision
        self._engine = engine
        self._n_jobs = n_jobs
        if precision == "int8":
            self.packages = ("openvino", "nncf")

    def prepare(self, network, paths):
        super().prepare(network, paths)
        # Compiles the network, and calibrates it where it is to have 8 bits.
        self.set_up(network, paths)

    def set_up(self, network, paths):
        from sklearn_cnnfeat import CNNFeatureTransformer

        calibration = {"calibration": paths[:32]} if self._precision == "int8" else {}
        self._cnn = CNNFeatureTransformer(
            network.name,
            "last",
            "avg",
            weights=weights_file(network),
            precision=self._precision,
            n_jobs=self._n_jobs,
            engine=self._engine,
            **calibration,
        ).fit(paths)

    def features(self, paths):
        return self._cnn.transform(paths)


class PredictLoop(Contender):
    """What most people write: one image at a time through `predict`."""

    packages = ("keras", "tensorflow")

    def set_up(self, network, paths):
        self._network = network
        self._model = _build_keras(network)

    def features(self, paths):
        import keras
        import numpy as np

        size = (self._network.size, self._network.size)
        preprocess_input = _preprocess_input(self._network)
        rows = []
        for path in paths:
            image = keras.utils.load_img(path, target_size=size, interpolation="bilinear")
            x = keras.utils.img_to_array(image)
            x = preprocess_input(np.expand_dims(x, axis=0))
            rows.append(self._model.predict(x, verbose=0)[0])
        return np.array(rows)


class PredictBatches(Contender):
    """All images in one array, and `predict` in batches of 32."""

    packages = ("keras", "tensorflow")
    batch = 32

    def set_up(self, network, paths):
        self._network = network
        self._model = _build_keras(network)

    def features(self, paths):
        import keras
        import numpy as np

        size = (self._network.size, self._network.size)
        images = [
            keras.utils.img_to_array(
                keras.utils.load_img(path, target_size=size, interpolation="bilinear")
            )
            for path in paths
        ]
        x = _preprocess_input(self._network)(np.array(images))
        return self._model.predict(x, batch_size=self.batch, verbose=0)


class Threaded(Contender):
    """A network that takes uint8 batches, behind decoding in threads."""

    batch = 32

    def set_up(self, network, paths):
        self._size = network.size
        self._run = self._load(network, paths)

    def features(self, paths):
        import numpy as np

        batches = decoded_batches(paths, self._size, self.batch)
        return np.concatenate([self._run(batch) for batch in batches])

    def _load(self, network, paths):
        """Return a function from a uint8 batch to rows."""
        raise NotImplementedError


class FrozenFunction(Threaded):
    """The network and its preprocessing as one TensorFlow graph with constants for weights."""

    packages = ("keras", "tensorflow")

    def _load(self, network, paths):
        import tensorflow as tf

        frozen = _freeze(network)
        return lambda pixels: frozen(tf.constant(pixels))[0].numpy()


class OnnxRuntime(Threaded):
    """The same graph converted to ONNX."""

    packages = ("onnxruntime", "onnx", "tf2onnx", "keras", "tensorflow")
    # Measured: small batches are as fast here as large ones or faster.
    batch = 4

    def prepare(self, network, paths):
        super().prepare(network, paths)
        if onnx_file(network).exists():
            return
        import tf2onnx

        # ConvNeXt has two things that tf2onnx cannot express: grouped convolutions, which Keras
        # compiles with XLA, and erfc, with which TensorFlow computes its activation.
        with (
            mock.patch("tensorflow.function", return_value=lambda function: function),
            mock.patch("tensorflow.nn.gelu", _gelu),
        ):
            frozen = _freeze(network)
        _write_whole(
            onnx_file(network),
            lambda path: tf2onnx.convert.from_graph_def(
                frozen.graph.as_graph_def(),
                input_names=[tensor.name for tensor in frozen.inputs],
                output_names=[tensor.name for tensor in frozen.outputs],
                output_path=path,
            ),
        )

    def _load(self, network, paths):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_cores()
        session = onnxruntime.InferenceSession(
            onnx_file(network), options, providers=["CPUExecutionProvider"]
        )
        (name,) = [entry.name for entry in session.get_inputs()]
        return lambda pixels: session.run(None, {name: pixels})[0]


class Torch(Threaded):
    """The network of the same name in timm."""

    packages = ("torch", "torchvision", "timm")
    # Measured, as is the memory format below: batches of 32 take up to twice as long an image.
    batch = 8
    keras_weights = False
    called = "timm"

    def __init__(self, label, compiled):
        super().__init__(label)
        self._compiled = compiled

    def _load(self, network, paths):
        import numpy as np
        import timm
        import torch
        import torch._inductor.config

        model = timm.create_model(network.timm, pretrained=False)
        model = model.to(memory_format=torch.channels_last)
        config = timm.data.resolve_data_config({}, model=model)
        mean = torch.tensor(config["mean"]).view(1, 3, 1, 1) * 255
        std = torch.tensor(config["std"]).view(1, 3, 1, 1) * 255

        def pooled(pixels):
            values = (pixels.permute(0, 3, 1, 2).float() - mean) / std
            return model.forward_features(values).mean((2, 3))

        def run(pixels):
            with torch.no_grad():
                return pooled(torch.from_numpy(pixels)).numpy()

        # Statistics of a few photographs, as in `make_weights`.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()
        run(np.stack([decode(path, network.size) for path in paths[:_N_STATISTICS]]))
        model.eval()
        if self._compiled:
            # PyTorch's advice for inference on a CPU; it nearly doubles the speed.
            torch._inductor.config.freezing = True
            pooled = torch.compile(pooled)
        return run


class Embetter(Contender):
    """embetter's scikit-learn transformers."""

    packages = ("embetter", "torch", "torchvision", "timm")
    keras_weights = False
    called = "timm"

    def set_up(self, network, paths):
        import timm
        from sklearn.pipeline import make_pipeline

        create_model = timm.create_model
        # It insists on published weights, which would be downloaded; random ones take as long.
        timm.create_model = lambda name, pretrained, **more: create_model(name, **more)
        from embetter.vision import ImageLoader, TimmEncoder

        self._pipeline = make_pipeline(ImageLoader(), TimmEncoder(network.timm))

    def features(self, paths):
        return self._pipeline.fit_transform(paths)


class Img2Vec(Contender):
    """img2vec_pytorch, in batches."""

    packages = ("img2vec_pytorch", "torch", "torchvision")
    batch = 32
    keras_weights = False
    called = "img2vec"

    def set_up(self, network, paths):
        import torch
        import torchvision
        from img2vec_pytorch import Img2Vec

        # As with embetter: random weights where it would download published ones.
        os.environ["TORCH_HOME"] = str(WORK / "torch")
        published = torchvision.models.get_model_weights(network.img2vec).DEFAULT.url
        path = WORK / "torch" / "hub" / "checkpoints" / published.rsplit("/", 1)[1]
        if not path.exists():
            model = torchvision.models.get_model(network.img2vec, weights=None)
            _write_whole(path, lambda temporary: torch.save(model.state_dict(), temporary))
        self._img2vec = Img2Vec(model=network.img2vec)

    def features(self, paths):
        import numpy as np
        from PIL import Image

        rows = []
        for start in range(0, len(paths), self.batch):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + self.batch]]
            rows.append(self._img2vec.get_vec(images))
        return np.concatenate(rows)


CONTENDERS = {
    "ours": Ours("sklearn-cnnfeat float32", "float32"),
    "ours_bfloat16": Ours("sklearn-cnnfeat bfloat16", "bfloat16"),
    "ours_int8": Ours("sklearn-cnnfeat int8", "int8"),
    "ours_keras": Ours("sklearn-cnnfeat float32, engine='keras'", "float32", engine="keras"),
    "predict_loop": PredictLoop("Keras predict, one at a time"),
    "predict_batches": PredictBatches("Keras predict, batches of 32"),
    "frozen": FrozenFunction("frozen TF function, threaded decoding"),
    "onnxruntime": OnnxRuntime("ONNX Runtime, threaded decoding"),
    "torch": Torch("torch eager, threaded decoding", compiled=False),
    "torch_compile": Torch("torch.compile, threaded decoding", compiled=True),
    "embetter": Embetter("embetter TimmEncoder"),
    "img2vec": Img2Vec("img2vec_pytorch, batches of 32"),
}


# --- parts of our own work, done by hand ----------------------------------------------------------


class InferenceAlone(Contender):
    """Our compiled network run by OpenVINO directly, on pixels that are there already."""

    packages = ("openvino",)
    _N_IMAGES = 8

    def prepare(self, network, paths):
        CONTENDERS["ours"].prepare(network, paths)

    def set_up(self, network, paths):
        import numpy as np
        import openvino

        # Programs are touched when they are used; this network's was a moment ago.
        programs = Path(os.environ["SKLEARN_CNNFEAT_HOME"]).rglob("*.xml")
        core = openvino.Core()
        model = core.read_model(max(programs, key=_last_use))
        model.reshape([1, network.size, network.size, 3])
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8)
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": count_cores(),
            "INFERENCE_NUM_THREADS": count_cores(),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = core.compile_model(steps.build(), "CPU", options)
        self._columns = compiled.output(0).partial_shape[1].get_length()
        self._queue = openvino.AsyncInferQueue(compiled, 2 * count_cores())
        self._pixels = [
            decode(path, network.size)[np.newaxis] for path in cycled(paths, self._N_IMAGES)
        ]

    def features(self, paths):
        import numpy as np

        rows = np.empty((len(paths), self._columns), np.float32)

        def deliver(request, i):
            rows[i] = request.output_tensors[0].data[0]

        self._queue.set_callback(deliver)
        for i in range(len(paths)):
            self._queue.start_async({0: self._pixels[i % self._N_IMAGES]}, i, share_inputs=True)
        self._queue.wait_all()
        return rows


def _last_use(program):
    return max(file.stat().st_mtime for file in program.parent.iterdir())


class DecodingAlone(Contender):
    """Reading, decoding and resizing; the rows stay empty."""

    keras_weights = False

    def __init__(self, label, n_threads=None):
        super().__init__(label)
        self._n_threads = n_threads

    def set_up(self, network, paths):
        self._size = network.size

    def features(self, paths):
        import numpy as np

        with ThreadPoolExecutor(self._n_threads or count_cores()) as pool:
            for _ in pool.map(lambda path: decode(path, self._size), paths):
                pass
        return np.empty((len(paths), 0), np.float32)


PARTS = {
    "inference": InferenceAlone("inference alone"),
    "decoding": DecodingAlone("decoding alone"),
    "decoding_one": DecodingAlone("decoding alone, one thread", n_threads=1),
}
