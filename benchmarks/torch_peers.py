"""PyTorch networks on a CPU: against the same architecture through Keras, and against embetter.

"Keras" is this package on the network of Keras Applications with the same layers, both from arrays
of uint8. embetter's `TimmEncoder` gets the same photographs as files, as ours does then; it gives
the last layer only, so that ours takes it as well. Weights are random, batch normalization has the
statistics of two photographs. Networks that are asked for again replace their results in the file.
"""

import json
import time

import numpy as np
from _common import (
    cycled,
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
    summarize,
)
from PIL import Image
from torch_parity import make_photos, prepare, scale_weights, take_statistics

from sklearn_cnnfeat import CNNFeatureTransformer

# timm's name -> the layer before the classifier, and the name of the same network in Keras.
NETWORKS = {
    "resnet18": ("layer4", None),
    "resnet50": ("layer4", "resnet50"),
    "vgg16": ("features", "vgg16"),
    "mobilenetv2_100": ("bn2", "mobilenet_v2"),
    "efficientnet_b0": ("bn2", "efficientnet_b0"),
    "densenet121": ("features", "densenet121"),
    "convnext_tiny": ("stages", "convnext_tiny"),
    "vit_tiny_patch16_224": ("norm", None),
    "swin_tiny_patch4_window7_224": ("norm", None),
}
_SIZE = 224


class Embetter:
    """embetter's encoder, with weights that need no download."""

    def __init__(self, name, network):
        import timm
        from embetter.vision import TimmEncoder

        self._encoder = object.__new__(TimmEncoder)
        self._encoder.name = name
        self._encoder.encode_predictions = False
        self._encoder.model = network
        config = timm.data.resolve_data_config({}, model=network)
        self._encoder.config = config
        self._encoder.transform_img = timm.data.transforms_factory.create_transform(**config)

    def transform(self, paths):
        """Return features as its documentation computes them."""
        return np.asarray(self._encoder.transform([_open(path) for path in paths]))


def _open(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def build(name):
    """Return a network of timm in evaluation mode, without its classifier."""
    import timm
    import torch

    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    if name == "resnet50":  # Keras' one has the strides in the first convolution of a block
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    scale_weights(network)
    take_statistics(network, prepare(make_photos(_SIZE)))
    return network


def measure(contenders, X, rounds):
    """Return the images a second of each contender, which take turns."""
    rates = {name: [] for name in contenders}
    for transform in contenders.values():
        transform(X[:2])
    for _ in range(rounds):
        for name, transform in contenders.items():
            begin = time.perf_counter()
            transform(X)
            rates[name].append(len(X) / (time.perf_counter() - begin))
    return {name: summarize(values) for name, values in rates.items()}


def compare(name, paths, rounds):
    """Return the rates of one network against Keras' and against embetter."""
    layer, keras_name = NETWORKS[name]
    network = build(name)
    settings = {"input_size": _SIZE, "preprocessing": "torch"}
    ours = CNNFeatureTransformer(network, layer, "avg", **settings).fit(paths[:1])
    result = {"engine": ours.engine_}
    if keras_name is not None:
        arrays = np.stack([np.asarray(_open(path).resize((_SIZE, _SIZE))) for path in paths])
        theirs = CNNFeatureTransformer(keras_name, "last", "avg", weights=None, random_state=0)
        theirs.fit(arrays[:1])
        contenders = {"ours": ours.transform, "Keras": theirs.transform}
        result["arrays"] = measure(contenders, arrays, rounds)
    contenders = {"ours": ours.transform, "embetter": Embetter(name, network).transform}
    result["files"] = measure(contenders, paths, rounds)
    return result


def ratio(result, part, other):
    """Return how many times as fast ours is; None where there is no other."""
    if part not in result:
        return None
    return result[part]["ours"]["median"] / result[part][other]["median"]


def main():
    """Compare, print, write."""
    parser = make_parser("torch_peers", __doc__, rounds=5)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=32, help="photographs a round")
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    paths = cycled(find_photos(options.photos), options.images)
    results = json.loads(options.out.read_text())["networks"] if options.out.exists() else {}
    for name in options.networks:
        results[name] = compare(name, paths, options.rounds)
    table = []
    for name, result in results.items():
        parts = [result["files"][contender]["median"] for contender in ("ours", "embetter")]
        ratios = [ratio(result, "arrays", "Keras"), ratio(result, "files", "embetter")]
        table.append([name, result["engine"], *map(show, parts), *map(show, ratios)])
    header = ["network", "engine", "files/s", "embetter", "ours / Keras", "ours / embetter"]
    print_table(header, table)
    figure, axes = make_axes(2, 11, 5)
    for panel, part, other in zip(axes, ("files", "arrays"), ("embetter", "Keras"), strict=True):
        found = {n: ratio(r, part, other) for n, r in results.items() if part in r}
        plot_bars(panel, list(found), list(found.values()), None, f"Against {other}", "times")
    save(options, machine, {"networks": results}, figure)


if __name__ == "__main__":
    main()
