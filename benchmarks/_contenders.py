"""The ways from image files to features that are compared."""

import os

from _common import WORK
from _contender import Contender, Threaded
from _networks import (
    N_STATISTICS,
    build_keras,
    decode,
    freeze,
    preprocess_input,
    weights_file,
    write_whole,
)
from _runtimes import Mnn, Ncnn, OnnxRuntime


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
        self._model = build_keras(network)

    def features(self, paths):
        import keras
        import numpy as np

        size = (self._network.size, self._network.size)
        prepare = preprocess_input(self._network)
        rows = []
        for path in paths:
            image = keras.utils.load_img(path, target_size=size, interpolation="bilinear")
            x = keras.utils.img_to_array(image)
            x = prepare(np.expand_dims(x, axis=0))
            rows.append(self._model.predict(x, verbose=0)[0])
        return np.array(rows)


class PredictBatches(Contender):
    """All images in one array, and `predict` in batches of 32."""

    packages = ("keras", "tensorflow")
    batch = 32

    def set_up(self, network, paths):
        self._network = network
        self._model = build_keras(network)

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
        x = preprocess_input(self._network)(np.array(images))
        return self._model.predict(x, batch_size=self.batch, verbose=0)


class FrozenFunction(Threaded):
    """The network and its preprocessing as one TensorFlow graph with constants for weights."""

    packages = ("keras", "tensorflow")

    def _load(self, network, paths):
        import tensorflow as tf

        frozen = freeze(network)
        return lambda pixels: frozen(tf.constant(pixels))[0].numpy()


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
        run(np.stack([decode(path, network.size) for path in paths[:N_STATISTICS]]))
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
            write_whole(path, lambda temporary: torch.save(model.state_dict(), temporary))
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
    "ours_openvino": Ours("sklearn-cnnfeat float32, OpenVINO", "float32", engine="openvino"),
    "ours_keras": Ours("sklearn-cnnfeat float32, engine='keras'", "float32", engine="keras"),
    "predict_loop": PredictLoop("Keras predict, one at a time"),
    "predict_batches": PredictBatches("Keras predict, batches of 32"),
    "frozen": FrozenFunction("frozen TF function, threaded decoding"),
    "onnxruntime": OnnxRuntime("ONNX Runtime, threaded decoding"),
    "ncnn": Ncnn("ncnn, threaded decoding"),
    "mnn": Mnn("MNN, threaded decoding"),
    "torch": Torch("torch eager, threaded decoding", compiled=False),
    "torch_compile": Torch("torch.compile, threaded decoding", compiled=True),
    "embetter": Embetter("embetter TimmEncoder"),
    "img2vec": Img2Vec("img2vec_pytorch, batches of 32"),
}
