"""Small ONNX networks, written with the `onnx` package."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Writer:
    """Collects the nodes and weights of a network."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def weight(self, name, values, dtype=np.float32):
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def kernel(self, name, shape):
        """Add normal numbers whose variance is 2 per input, after He et al."""
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return self.weight(name, self.random.normal(0, scale, shape))

    def add(self, operator, inputs, name, domain="", **attributes):
        output = f"{name}_output_0"
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=name, domain=domain, **attributes)
        )
        return output

    def conv(self, value, name, channels, filters, size=3, stride=1, groups=1):
        weight = self.kernel(f"{name}.weight", (filters, channels // groups, size, size))
        pads = [size // 2] * 4
        value = self.add(
            "Conv", [value, weight], f"/{name}/Conv", pads=pads, strides=[stride] * 2, group=groups
        )
        statistics = [
            self.weight(f"{name}.bn.{part}", self.random.uniform(0.5, 1.5, filters))
            for part in ("scale", "bias", "mean", "variance")
        ]
        return self.add("BatchNormalization", [value, *statistics], f"/{name}/BatchNormalization")

    def model(self, value, shape, metadata=None, inputs=None, opset=17, kind=TensorProto.FLOAT):
        inputs = inputs or [helper.make_tensor_value_info("images", kind, shape)]
        output = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "network", inputs, [output], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8
        for key, entry in (metadata or {}).items():
            model.metadata_props.add(key=key, value=entry)
        return model


def residual_network(shape=("n", 3, "height", "width"), **options):
    """A residual network with squeeze and excitation, as PyTorch exports one."""
    net = Writer()
    stem = net.add("Relu", [net.conv("images", "stem", 3, 16, 7, 2)], "/stem/Relu")
    value = net.add(
        "MaxPool", [stem], "/pool/MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    for block, (channels, filters, stride) in enumerate([(16, 16, 1), (16, 32, 2)]):
        name = f"block{block}"
        inner = net.add(
            "Relu",
            [net.conv(value, f"{name}/conv1", channels, filters, 3, stride)],
            f"/{name}/Relu",
        )
        inner = net.conv(inner, f"{name}/conv2", filters, filters, groups=4)
        scale = net.add("GlobalAveragePool", [inner], f"/{name}/se/GlobalAveragePool")
        weight = net.kernel(f"{name}.se.weight", (filters, filters, 1, 1))
        scale = net.add("Conv", [scale, weight], f"/{name}/se/Conv")
        scale = net.add("Sigmoid", [scale], f"/{name}/se/Sigmoid")
        inner = net.add("Mul", [inner, scale], f"/{name}/se/Mul")
        if stride > 1:
            value = net.conv(value, f"{name}/shortcut", channels, filters, 1, stride)
        value = net.add("Add", [inner, value], f"/{name}/Add")
        value = net.add("Relu", [value], f"/{name}/relu2/Relu")
    value = net.add("GlobalAveragePool", [value], "/avgpool/GlobalAveragePool")
    value = net.add("Flatten", [value], "/Flatten", axis=1)
    weights = [net.kernel("fc.weight", (10, 32)), net.weight("fc.bias", np.zeros(10))]
    value = net.add("Gemm", [value, *weights], "/fc/Gemm", transB=1)
    return net.model(value, shape, **options)


def vision_transformer(shape=("n", 3, 32, 48), patch=8, width=20):
    """One block of a vision transformer with a class token and a register."""
    net = Writer(1)
    rows, columns = shape[2] // patch, shape[3] // patch
    weight = net.kernel("patch.weight", (width, 3, patch, patch))
    value = net.add("Conv", ["images", weight], "/patch/Conv", strides=[patch, patch])
    target = net.weight("shape", [0, width, rows * columns], np.int64)
    value = net.add("Reshape", [value, target], "/patch/Reshape")
    value = net.add("Transpose", [value], "/patch/Transpose", perm=[0, 2, 1])
    first = net.add("Shape", ["images"], "/Shape", start=0, end=1)
    rest = net.weight("rest", [2, width], np.int64)
    target = net.add("Concat", [first, rest], "/Concat_shape", axis=0)
    tokens = net.weight("tokens", net.random.normal(size=(1, 2, width)))
    tokens = net.add("Expand", [tokens, target], "/Expand")
    value = net.add("Concat", [tokens, value], "/Concat", axis=1)
    normed = [net.weight(f"norm.{part}", net.random.uniform(0.5, 1.5, width)) for part in "ab"]
    inner = net.add("LayerNormalization", [value, *normed], "/norm/LayerNormalization", axis=-1)
    query, key, values = (
        net.add("MatMul", [inner, net.kernel(f"{part}.weight", (width, width))], f"/{part}/MatMul")
        for part in ("query", "key", "value")
    )
    key = net.add("Transpose", [key], "/attention/Transpose", perm=[0, 2, 1])
    weights = net.add("MatMul", [query, key], "/attention/MatMul")
    scale = net.weight("scale", width**-0.5)
    weights = net.add("Mul", [weights, scale], "/attention/Mul")
    weights = net.add("Softmax", [weights], "/attention/Softmax", axis=-1)
    inner = net.add("MatMul", [weights, values], "/attention/MatMul_1")
    value = net.add("Add", [value, inner], "/Add")
    return net.model(value, shape)


def save(model, path, **options):
    """Write a model that the `onnx` package finds right."""
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    onnx.save(model, path, **options)
    return path
