"""Contenders that run a converted network: ONNX Runtime, ncnn and MNN."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from _common import WORK, count_cores, installed
from _contender import Contender, Threaded
from _networks import decode, freeze, gelu, weights_file, write_whole


def onnx_file(network):
    """Return the path of the network converted to ONNX."""
    versions = "-".join(f"{name}{installed(name)}" for name in ("keras", "tf2onnx"))
    return WORK / "onnx" / f"{network.name}-{versions}.onnx"


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
            mock.patch("tensorflow.nn.gelu", gelu),
        ):
            frozen = freeze(network)
        write_whole(
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


def our_graph(network, paths):
    """Return the graph that our engines compute, and the engine that ``engine="auto"`` takes."""
    from sklearn_cnnfeat import CNNFeatureTransformer
    from sklearn_cnnfeat._network.networks import open_network
    from sklearn_cnnfeat._transformer import extractor_for

    cnn = CNNFeatureTransformer(network.name, "last", "avg", weights=weights_file(network))
    extractor, _ = extractor_for(cnn.fit(paths), paths[:1])
    return open_network(extractor.spec, "openvino").read(), cnn.engine_


class Ncnn(Contender):
    """The network in ncnn's own files, by ncnn's Python package: an image per thread.

    The files are what our translation makes: no converter of ncnn reads these graphs.
    """

    packages = ("ncnn", "openvino")

    def prepare(self, network, paths):
        super().prepare(network, paths)
        if _ncnn_files(network)[0].exists():
            return
        import numpy as np

        from sklearn_cnnfeat._network.engines.ncnn_translation import translate

        translation = translate(our_graph(network, paths)[0])
        layers, weights, names = _ncnn_files(network)

        def write_weights(path):
            with open(path, "wb") as file:
                for array, has_type in translation.weights:
                    file.write(bytes(4) if has_type else b"")
                    file.write(np.ascontiguousarray(array, np.float32).tobytes())

        def write_text(text):
            return lambda path: open(path, "w").write(text)

        write_whole(weights, write_weights)
        write_whole(names, write_text(json.dumps([translation.input, translation.heads[0].blob])))
        write_whole(layers, write_text(translation.text))

    def set_up(self, network, paths):
        import ncnn

        layers, weights, names = _ncnn_files(network)
        self._size = network.size
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = 1
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = False
        # As ours: with F(6 x 6, 3 x 3) rounding errors are several times as large.
        options.use_winograd63_convolution = False
        self._net.load_param(str(layers))
        self._net.load_model(str(weights))
        self._input, self._output = json.loads(names.read_text())

    def features(self, paths):
        import numpy as np

        with ThreadPoolExecutor(count_cores()) as pool:
            return np.stack(list(pool.map(self._row, paths)))

    def _row(self, path):
        return self.compute(decode(path, self._size))

    def compute(self, pixels):
        """Return the row of an image's pixels."""
        import ncnn
        import numpy as np

        maps = ncnn.Mat(self._size, self._size, 3)
        np.asarray(maps)[...] = pixels.transpose(2, 0, 1)
        extractor = self._net.create_extractor()
        extractor.input(self._input, maps)
        return np.array(extractor.extract(self._output)[1])


def _ncnn_files(network):
    """Return the paths of layers, of weights, and of the names of what comes in and out."""
    name = f"{network.name}-keras{installed('keras')}-ncnn{installed('ncnn')}"
    return [WORK / "ncnn" / f"{name}.{ending}" for ending in ("param", "bin", "json")]


class Mnn(Threaded):
    """The network converted from ONNX to MNN, in float32."""

    packages = ("MNN", "onnx", "tf2onnx", "keras", "tensorflow")
    batch = 4

    def prepare(self, network, paths):
        super().prepare(network, paths)
        if _mnn_file(network).exists():
            return
        OnnxRuntime("").prepare(network, paths)
        # The command `mnnconvert` reports to MNN's maker what it converts; this does not. It cannot
        # be in one process with TensorFlow.
        command = [sys.executable, "-c", "import _tools, sys; _tools.mnnconvert(sys.argv)"]
        command += ["-f", "ONNX", "--modelFile", str(onnx_file(network)), "--MNNModel"]
        write_whole(_mnn_file(network), lambda path: subprocess.run([*command, path], check=True))

    def _load(self, network, paths):
        import MNN
        import numpy as np
        import onnx

        graph = onnx.load(onnx_file(network)).graph
        names = [[entry.name for entry in entries] for entries in (graph.input, graph.output)]
        manager = MNN.nn.create_runtime_manager(
            ({"backend": 0, "precision": "high", "numThread": count_cores()},)
        )
        module = MNN.nn.load_module_from_file(
            str(_mnn_file(network)), *names, runtime_manager=manager
        )

        def run(pixels):
            array = np.ascontiguousarray(pixels)
            # The layout of the converted network, whose own transpositions take it from there.
            tensor = MNN.expr.const(array, array.shape, MNN.expr.NCHW, MNN.expr.uint8)
            return np.array(module.forward([tensor])[0].read())

        return run


def _mnn_file(network):
    return WORK / "mnn" / f"{network.name}-keras{installed('keras')}-mnn{installed('MNN')}.mnn"
