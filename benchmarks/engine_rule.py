"""ncnn against OpenVINO, by the share of multiplications in Winograd's convolutions.

``engine="auto"`` takes ncnn from a share on that stands in ``_network/engines/winograd.py``. Here
are the networks that it was chosen by: those of `throughput.py`, cuts of VGG16, and own CNNs with
random weights. Figures are of the network alone, in float32, with an image per thread. The engines
take turns; the best turn of each counts. "processor" is the time of all cores per image, which
other work on the machine disturbs less than images per second.
"""

import os
import time
from tempfile import TemporaryDirectory

from _common import (
    WORK,
    count_cores,
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
)
from _networks import NETWORKS, make_weights, weights_file
from throughput import TEN

# Own networks: filters, size and stride of each convolution, or "pool", and the images' side.
OWN = {
    "own, 64-64, 128-128, 256-256": (
        [(64, 3, 1)] * 2 + ["pool"] + [(128, 3, 1)] * 2 + ["pool"] + [(256, 3, 1)] * 2,
        128,
    ),
    "own, 16-16, 32-32, 64": ([(16, 3, 1)] * 2 + [(32, 3, 1)] * 2 + [(64, 3, 1)], 96),
    "own, 3 x 3 and 1 x 1": ([(64, 3, 1), (128, 1, 1)] * 2, 112),
    "own, 3 x 3 and 5 x 5": ([(64, 3, 1), (64, 3, 1), (64, 5, 1)], 112),
    "own, 5 x 5": ([(64, 5, 1)] * 2, 112),
    "own, strides": ([(64, 3, 2), (128, 3, 2), (256, 3, 2)], 128),
}
CUTS = [f"block{i}_pool" for i in range(1, 6)]


def models(names, paths):
    """Yield a name, the model, its options, and the layer, for each network and cut."""
    for name in names:
        if name in NETWORKS:
            network = NETWORKS[name]
            make_weights(network, paths)
            weights = {"weights": weights_file(network)}
            yield name, name, weights, "last", network.size
            if name == "vgg16":
                for cut in CUTS[:-1]:
                    yield f"vgg16 to {cut}", name, weights, cut, network.size


def own_models(folder):
    """Yield the same for the own networks, which are written into `folder`."""
    import keras

    for i, (name, (layers, side)) in enumerate(OWN.items()):
        keras.utils.set_random_seed(i)
        x = inputs = keras.Input((side, side, 3))
        for layer in layers:
            if layer == "pool":
                x = keras.layers.MaxPooling2D()(x)
                continue
            options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
            x = keras.layers.Conv2D(*layer, **options)(x)
        path = os.path.join(folder, f"{i}.keras")
        keras.Model(inputs, x).save(path)
        yield name, path, {}, "last", side


def open_graph(model, options, layer, images):
    """Return the graph of a network to a layer, averaged over all positions."""
    from sklearn_cnnfeat import CNNFeatureTransformer
    from sklearn_cnnfeat._network.networks import open_network
    from sklearn_cnnfeat._transformer import extractor_for

    cnn = CNNFeatureTransformer(model, layer, "avg", **options, engine="openvino")
    extractor, _ = extractor_for(cnn.fit(images), images)
    return open_network(extractor.spec, "openvino").read()


def measure(graph, side, options):
    """Return the share and the figures of both engines."""
    import numpy as np

    from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork
    from sklearn_cnnfeat._network.engines.ncnn_graph import TranslationError
    from sklearn_cnnfeat._network.engines.openvino import OpenVINOEngine
    from sklearn_cnnfeat._network.engines.winograd import winograd_share

    result = {"share": winograd_share(graph)}
    engines = {"openvino": OpenVINOEngine(graph, np.uint8, "float32", options.threads, None)}
    try:
        engines["ncnn"] = NcnnEngine(NcnnNetwork(graph), options.threads)
    except TranslationError as error:
        return {**result, "problem": str(error)}
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)

    def run(engine, n_images):
        start, processor = time.perf_counter(), time.process_time()
        engine.run((([i], pixels) for i in range(n_images)), lambda token, rows: None)
        return time.perf_counter() - start, time.process_time() - processor

    counts, best = {}, {name: [float("inf")] * 2 for name in engines}
    for name, engine in engines.items():
        run(engine, 4)
        counts[name] = max(4, 2 * round(options.seconds / (run(engine, 4)[0] / 4) / 2))
    for _ in range(options.rounds):
        for name, engine in engines.items():
            figures = [figure / counts[name] for figure in run(engine, counts[name])]
            best[name] = [min(pair) for pair in zip(figures, best[name], strict=True)]
    for name, (seconds, processor) in best.items():
        result[f"{name}_images_per_second"] = 1 / seconds
        result[f"{name}_processor_ms"] = 1000 * processor
    result["ratio"] = best["openvino"][0] / best["ncnn"][0]
    result["ratio_of_processor_time"] = best["openvino"][1] / best["ncnn"][1]
    return result


def main():
    """Measure, print, write."""
    parser = make_parser("engine_rule", __doc__, rounds=4)
    parser.add_argument("--networks", nargs="*", choices=TEN, default=TEN, metavar="NAME")
    parser.add_argument("--no-own", action="store_true", help="leave out the own networks")
    parser.add_argument("--seconds", type=float, default=0.4, help="about how long a turn takes")
    parser.add_argument(
        "--threads", type=int, default=count_cores(), help="images at the same time"
    )
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("SKLEARN_CNNFEAT_HOME", str(WORK / "home"))
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    networks = {}
    with TemporaryDirectory(prefix="cnnfeat-bench-") as folder:
        entries = list(models(options.networks, paths))
        for name, model, more, layer, side in [
            *entries,
            *(() if options.no_own else own_models(folder)),
        ]:
            networks[name] = measure(open_graph(model, more, layer, paths[:1]), side, options)
            print(name, networks[name], flush=True)
    networks = dict(sorted(networks.items(), key=lambda entry: -entry[1]["share"]))
    header = ["network", "share", "OpenVINO", "ncnn", "ratio", "of processor time"]
    keys = ["openvino_images_per_second", "ncnn_images_per_second", "ratio"]
    keys.append("ratio_of_processor_time")
    print_table(
        header,
        [
            [name, f"{result['share']:.3f}", *(show(result.get(key)) for key in keys)]
            for name, result in networks.items()
        ],
    )
    done = {name: result["ratio"] for name, result in networks.items() if "ratio" in result}
    figure, (panel,) = make_axes(1, 7, 0.8 + 0.3 * len(done))
    plot_bars(panel, list(done), list(done.values()), None, "ncnn over OpenVINO", "images/s")
    save(options, machine, {"networks": networks}, figure)


if __name__ == "__main__":
    main()
