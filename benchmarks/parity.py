"""Are the features those of Keras? Every network, at native size, three layers, both engines.

Run as ``python benchmarks/parity.py [NAME ...]``, names with ``*`` allowed; without names, all
networks that are not yet in ``benchmarks/results/parity.json``. Each network runs in a process of
its own with random weights, no download and a temporary home.

"keras itself" compares what Keras gives for one image at a time with what it gives for two at once:
how far rounding alone can go.
"""

import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from _common import RESULTS, begin_series, run_alone

from sklearn_cnnfeat import CNNFeatureTransformer, list_models
from sklearn_cnnfeat._network.zoo import find_architecture

REPORT = RESULTS / "parity.json"
LIMIT = 5e-6  # of the largest value of a layer
ENGINES = ("openvino", "keras")


def make_images(size):
    """Return two photographs as an array (2, size, size, 3) of uint8."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    return np.stack(
        [Image.fromarray(im).resize((size, size)) for im in load_sample_images().images]
    )


def preprocess(architecture, images):
    """Return images as Keras' own function for the network prepares them."""
    import keras

    constructor = getattr(keras.applications, architecture.keras_name)
    # Public modules bear the names of the private ones that they are made of.
    module = getattr(keras.applications, constructor.__module__.rsplit(".", 1)[-1])
    return module.preprocess_input(images.astype(np.float32))


def build(name, size, include_top=False):
    """Build a network by Keras alone, with the layer names that it has in a fresh process."""
    import keras

    result = []

    def construct():
        constructor = getattr(keras.applications, name)
        shape = (size, size, 3)
        result.append(constructor(weights=None, include_top=include_top, input_shape=shape))

    thread = threading.Thread(target=construct)
    thread.start()
    thread.join()
    return result[0]


def tame(model, batch):
    """Scale what each batch normalization of a random network gives, so that rounding stays small.

    Without it some networks are chaotic: values grow from layer to layer, and Keras differs from
    itself by all of the largest value between one image and two at a time.
    """
    import keras

    normalizations = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]

    def scaled(layer):
        compute = layer.call

        def call(inputs, **_):
            # One factor for all channels: single weak ones would amplify their own rounding.
            square = keras.ops.mean(keras.ops.square(inputs))
            layer.moving_variance.assign(keras.ops.full(layer.moving_variance.shape, 100 * square))
            return compute(inputs, training=False)

        return call

    for layer in normalizations:
        layer.call = scaled(layer)
    model(batch)
    for layer in normalizations:
        del layer.call


def choose_layers(model):
    """Return the names of the first layer with weights, the middle one and the last one."""
    first = next(layer for layer in model.layers if layer.weights and len(layer.output.shape) == 4)
    middle = model.layers[len(model.layers) // 2]
    return [first.name, middle.name, model.layers[-1].name]


def distance(values, reference):
    """Largest difference, relative to the largest value, of two batches."""
    scale = np.abs(reference).max()
    return float(np.abs(values.reshape(reference.shape) - reference).max() / scale)


def check(name):
    """Return a record of one network."""
    import keras

    architecture = find_architecture(name)
    size = architecture.native_size
    images = make_images(size)
    batch = preprocess(architecture, images)
    model = build(architecture.keras_name, size)
    tame(model, batch)
    layers = choose_layers(model)
    cut = keras.Model(model.input, [model.get_layer(layer).output for layer in layers])
    expected = cut.predict(batch, verbose=0)
    singly = [cut.predict(image[np.newaxis], verbose=0) for image in batch]
    singly = [np.concatenate(outputs) for outputs in zip(*singly, strict=True)]
    rows = [
        {"layer": layer, "shape": list(out.shape[1:]), "keras itself": distance(single, out)}
        for layer, out, single in zip(layers, expected, singly, strict=True)
    ]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SKLEARN_CNNFEAT_HOME"] = folder
        weights = Path(folder) / "tame.weights.h5"
        model.save_weights(weights)
        del model, cut
        gc.collect()
        for engine in ENGINES:
            start = time.perf_counter()
            cnn = CNNFeatureTransformer(name, layers, "flatten", weights=weights, engine=engine)
            features = cnn.fit(images).transform(images)
            seconds[engine] = round(time.perf_counter() - start, 1)
            ends = np.cumsum([int(np.prod(row["shape"])) for row in rows])
            parts = np.split(features, ends[:-1], axis=1)
            for row, part, reference in zip(rows, parts, expected, strict=True):
                row[engine] = distance(part, reference)
    return {"network": name, "size": size, "seconds": seconds, "layers": rows}


def check_alone(name):
    """Run `check` in a separate process; return its record, or one of its error."""
    return run_alone(__file__, name, {"TF_CPP_MIN_LOG_LEVEL": "3"})


def show(record):
    """Print the lines of the table that belong to one network."""
    if "error" in record:
        print(f"{record['network']:<20} {record['error']}", flush=True)
        return
    for i, row in enumerate(record["layers"]):
        shape = " x ".join(map(str, row["shape"]))
        line = f"{record['network'] if i == 0 else '':<20} {row['layer']:<38} {shape:<16}"
        line += "".join(f" {row[engine]:9.1e}" for engine in (*ENGINES, "keras itself"))
        if i == 0:
            line += "".join(f" {record['seconds'][engine]:7.1f} s" for engine in ENGINES)
        worst = max(row[engine] for engine in ENGINES)
        print(line + ("" if worst <= LIMIT else "   <-- beyond the limit"), flush=True)


def main():
    """Run from the command line."""
    wanted, report = begin_series(
        __doc__, check, REPORT, "names or patterns; default: those missing"
    )
    if wanted:
        names = [name for pattern in wanted for name in list_models(pattern)]
    else:
        names = [n for n in list_models() if "layers" not in report["networks"].get(n, {})]
    report["limit"] = LIMIT
    print(
        f"{'network':<20} {'layer':<38} {'shape':<16} {'openvino':>9} {'keras':>9} {'itself':>9}"
        f" {'openvino':>9} {'keras':>9}"
    )
    for name in names:
        record = check_alone(name)
        show(record)
        report["networks"][name] = record
        RESULTS.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    records = [report["networks"][name] for name in names]
    rows = [row for record in records for row in record.get("layers", [])]
    failed = [record["network"] for record in records if "error" in record]
    beyond = sum(max(row[engine] for engine in ENGINES) > LIMIT for row in rows)
    print(
        f"{len(rows)} layers, {beyond} beyond {LIMIT:.0e}; {len(failed)} networks failed {failed}"
    )
    sys.exit(bool(beyond or failed))


if __name__ == "__main__":
    main()
