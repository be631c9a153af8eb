"""Parts of our own work, done by hand."""

from concurrent.futures import ThreadPoolExecutor

from _common import count_cores, cycled
from _contender import Contender
from _contenders import CONTENDERS
from _networks import decode
from _runtimes import our_graph


class InferenceAlone(Contender):
    """Our network run by its engine directly, on pixels that are there already."""

    packages = ("openvino", "ncnn")
    _N_IMAGES = 8

    def prepare(self, network, paths):
        CONTENDERS["ours"].prepare(network, paths)
        if our_graph(network, paths)[1] == "ncnn":
            CONTENDERS["ncnn"].prepare(network, paths)

    def set_up(self, network, paths):
        import numpy as np
        import openvino

        model, engine = our_graph(network, paths)
        self._pixels = [
            decode(path, network.size)[np.newaxis] for path in cycled(paths, self._N_IMAGES)
        ]
        self._ncnn = None
        if engine == "ncnn":
            self._ncnn = CONTENDERS["ncnn"]
            self._ncnn.set_up(network, paths)
            return
        model.reshape([1, network.size, network.size, 3])
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8)
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": count_cores(),
            "INFERENCE_NUM_THREADS": count_cores(),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = openvino.Core().compile_model(steps.build(), "CPU", options)
        self._columns = compiled.output(0).partial_shape[1].get_length()
        self._queue = openvino.AsyncInferQueue(compiled, 2 * count_cores())

    def features(self, paths):
        import numpy as np

        pixels = [self._pixels[i % self._N_IMAGES] for i in range(len(paths))]
        if self._ncnn is not None:
            with ThreadPoolExecutor(count_cores()) as pool:
                return np.stack(list(pool.map(lambda batch: self._ncnn.compute(batch[0]), pixels)))
        rows = np.empty((len(paths), self._columns), np.float32)

        def deliver(request, i):
            rows[i] = request.output_tensors[0].data[0]

        self._queue.set_callback(deliver)
        for i, batch in enumerate(pixels):
            self._queue.start_async({0: batch}, i, share_inputs=True)
        self._queue.wait_all()
        return rows


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
