"""Networks in ONNX files, which are converted in a process of their own."""

import os
from dataclasses import replace
from pathlib import Path

from sklearn_cnnfeat._files import digest_of_file, digest_of_text
from sklearn_cnnfeat._network import foreign, onnx_models
from sklearn_cnnfeat._network.onnx_files import read_onnx
from sklearn_cnnfeat._network.process import memory_for
from sklearn_cnnfeat._network.runtime import import_openvino
from sklearn_cnnfeat._network.spec import ImageFacts, Normalization, Source
from sklearn_cnnfeat.exceptions import ModelFileError


class OnnxFile(Source):
    """A network in an ONNX file."""

    kind = "onnx"
    engines = ("openvino", "ncnn")
    _label = "the network in {!r}"

    @classmethod
    def of(cls, asked):
        if asked.path is None or not asked.path.lower().endswith(".onnx"):
            return None
        if not os.path.isfile(asked.path):
            raise asked.no_such_file()
        asked.check_no_weights(foreign.OWN_WEIGHTS)
        return cls(os.path.abspath(asked.path))

    def identify(self, layers=(), input_size=None, model=None):
        paths = [self.name, *read_onnx(self.name).external]
        digests = [digest_of_file(str(path)) for path in paths]
        # A single file is known by its content, as everywhere else.
        digest = digests[0] if len(digests) == 1 else digest_of_text(" ".join(digests))
        return replace(self, digest=digest)

    def image_facts(self, model=None):
        facts = onnx_models.image_facts(read_onnx(self.name))
        return ImageFacts(facts.size, facts.mean and Normalization(facts.mean, facts.std))

    def choose_size(self, input_size, model=None):
        self.image_facts()  # raises if the network does not take images
        return input_size

    def default_engine(self):
        return "openvino"

    def convert(self, input_size, folder, model=None):
        return foreign.process().run(_convert, self, input_size, str(folder))

    def read_kernels(self, layer, input_size, model=None):
        return foreign.process().run(_read_kernels, self.name, layer) if layer.kernels else {}


def _convert(source, input_size, folder):
    import_openvino()  # its addresses are not charged to the file
    path = Path(source.name)
    with memory_for(path, *read_onnx(path).external):
        converted = onnx_models.convert_onnx(path, input_size)
        return foreign.finish(converted, source, folder, "ONNX")


def _read_kernels(path, layer):
    read_onnx(path)
    (kernel,) = layer.kernels
    model = import_openvino().Core().read_model(path)
    for operation in model.get_ops():
        if operation.get_friendly_name() == kernel.name:
            values = operation.data
            order = (2, 3, 1, 0) if values.ndim == 4 else (1, 0)
            if values.ndim == 2 and values.shape == kernel.shape:
                order = (0, 1)
            return {kernel.name: values.transpose(order).copy()}
    raise ModelFileError(f"The weights {kernel.name!r} are not in {path!r} any more.")
