"""A network of Keras Applications on one backend. Run by `test_keras_openvino`.

``keras_networks.py tensorflow NAME FOLDER`` gives it weights with which signals neither grow nor
fade, saves them, and saves the values of its first, middle and last layer.
``keras_networks.py exact NAME FOLDER`` loads the weights and saves the same in float64.
``keras_networks.py openvino NAME FOLDER`` loads the weights, converts by Keras' OpenVINO backend,
and saves the same; ``keras_networks.py frozen NAME FOLDER`` converts by TensorFlow.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np


def build(name):
    from sklearn_cnnfeat._network.keras_models import construct
    from sklearn_cnnfeat._network.zoo import find_architecture

    size = 75 if name in ("inception_v3", "inception_resnet_v2", "xception") else 64
    architecture = find_architecture(name)
    shape = (size, size, 3)
    model = construct(architecture, False, shape, symbolic=sys.argv[1] == "openvino")
    high = 255 if architecture.preprocessing is None else 1
    low = 0 if architecture.preprocessing is None else -1
    x = np.random.default_rng(0).uniform(low, high, (1, *shape)).astype(np.float32)
    return model, x


def set_weights(model):
    """Draw kernels scaled as He did, and normalizations between 0.5 and 1.5."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        shape, path = tuple(variable.shape), variable.path
        if path.startswith("normalization/"):
            continue
        if len(shape) > 1:
            positions = shape[:2] if "depthwise" in path else shape[:-1]
            values = generator.standard_normal(shape) * np.sqrt(2 / np.prod(positions))
        elif "variance" in path or "gamma" in path:
            values = generator.uniform(0.5, 1.5, shape)
        else:
            values = generator.uniform(-0.1, 0.1, shape)
        variable.assign(values.astype(np.float32))


def describe(layers):
    return [[layer.path, layer.type, layer.index, layer.shape, layer.source] for layer in layers]


def wanted(layers):
    paths = [layer.path for layer in layers[1:]]
    return {"first": paths[0], "middle": paths[len(paths) // 2], "last": paths[-1]}


def run_tensorflow(name, folder):
    from sklearn_cnnfeat._network.keras_layers import compute, compute_layers

    model, x = build(name)
    set_weights(model)
    model.save_weights(folder / f"{name}.weights.h5")
    calls = compute_layers(model, x, compute)
    values = {layer.path: np.asarray(value) for layer, value, _ in calls}
    for which, path in wanted([layer for layer, *_ in calls]).items():
        np.save(folder / f"{name}.tensorflow.{which}.npy", values[path])
    described = describe(layer for layer, *_ in calls)
    (folder / f"{name}.tensorflow.json").write_text(json.dumps(described))


def run_exact(name, folder):
    import keras

    from sklearn_cnnfeat._network.keras_layers import compute, compute_layers

    _, x = build(name)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model, _ = build(name)
    model.load_weights(folder / f"{name}.weights.h5")
    calls = compute_layers(model, x.astype(np.float64), compute)
    values = {layer.path: np.asarray(value) for layer, value, _ in calls}
    for which, path in wanted([layer for layer, *_ in calls]).items():
        assert values[path].dtype == np.float64, path
        np.save(folder / f"{name}.exact.{which}.npy", values[path])


def run_converted(name, folder, converter):
    from sklearn_cnnfeat._network.runtime import import_openvino

    openvino = import_openvino()
    from sklearn_cnnfeat._network.conversion import simplify
    from sklearn_cnnfeat._network.keras_sources import NamedNetwork

    model, x = build(name)
    model.load_weights(folder / f"{name}.weights.h5")
    source, problems = NamedNetwork(name), []
    if converter == "openvino":
        from sklearn_cnnfeat._network import keras_openvino
        from sklearn_cnnfeat._network.keras_openvino_layers import unsupported

        problems = unsupported(model)
        converted = keras_openvino.convert(model, source, x.shape[1:])
    else:
        from sklearn_cnnfeat._network import keras_tensorflow

        converted, _ = keras_tensorflow.convert(model, source, x.shape[1:])
    held = simplify(converted)
    paths = wanted(converted.layers)
    for which, path in paths.items():
        output, order = held[path]
        compiled = compile_one(openvino, converted, output, x)
        value = compiled({0: x})[0]
        value = value if order is None else value.transpose(order)
        np.save(folder / f"{name}.{converter}.{which}.npy", value)
    report = {
        "problems": problems,
        "layers": {path: which for which, path in paths.items()},
        "described": describe(converted.layers),
        "dense": sum(layer.type == "Dense" for layer in converted.layers),
        "transpositions": n_transpositions(compiled),
    }
    (folder / f"{name}.{converter}.json").write_text(json.dumps(report))


def compile_one(openvino, converted, output, x):
    graph = openvino.Model([output], converted.model.get_parameters())
    graph.reshape(list(x.shape))
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(graph, "CPU", exact)


def n_transpositions(compiled):
    """Count transpositions of anything but constants in what is run."""
    constants, n = set(), 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        kind = node.get_rt_info()["layerType"].value
        sources = [value.get_node().get_friendly_name() for value in node.input_values()]
        if kind == "Const" or (sources and constants.issuperset(sources)):
            constants.add(node.get_friendly_name())
        elif kind == "Transpose":
            n += 1
    return n


if __name__ == "__main__":
    how, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    os.environ["KERAS_BACKEND"] = "openvino" if how == "openvino" else "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    if how in ("tensorflow", "exact"):
        {"tensorflow": run_tensorflow, "exact": run_exact}[how](name, folder)
    else:
        run_converted(name, folder, how)
