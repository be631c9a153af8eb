"""Networks of timm on a CPU: this package against embetter's `TimmEncoder`, files to features.

Both compute the pooled output of the same network with random weights. embetter gives the last
layer only, so that ours takes it as well.
"""

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

from sklearn_cnnfeat import CNNFeatureTransformer

_NETWORKS = ["resnet18", "resnet50", "mobilenetv3_small_100", "efficientnet_b0", "convnext_tiny"]
_NETWORKS += ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]


class Embetter:
    """embetter's encoder, with weights that need no download."""

    def __init__(self, name):
        import timm
        from embetter.vision import TimmEncoder

        self._encoder = object.__new__(TimmEncoder)
        self._encoder.name = name
        self._encoder.encode_predictions = False
        self._encoder.model = timm.create_model(name, num_classes=0).eval()
        config = timm.data.resolve_data_config({}, model=self._encoder.model)
        self._encoder.config = config
        self._encoder.transform_img = timm.data.transforms_factory.create_transform(**config)

    def transform(self, paths):
        """Return features as its documentation computes them."""
        return np.asarray(self._encoder.transform([_open(path) for path in paths]))


def _open(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def main():
    """Compare, print, write."""
    parser = make_parser("torch_peers", __doc__, rounds=3)
    parser.add_argument("--networks", nargs="+", default=_NETWORKS)
    parser.add_argument("--images", type=int, default=32, help="photographs a round")
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    paths = cycled(find_photos(options.photos), options.images)
    table, results = [], {}
    for name in options.networks:
        ours = CNNFeatureTransformer(f"timm/{name}", "last", "avg", weights=None, random_state=0)
        contenders = {"ours": ours.fit(paths[:1]), "embetter": Embetter(name)}
        rates = {contender: [] for contender in contenders}
        for _ in range(options.rounds):
            for contender, encoder in contenders.items():
                encoder.transform(paths[:2])
                begin = time.perf_counter()
                encoder.transform(paths)
                rates[contender].append(len(paths) / (time.perf_counter() - begin))
        medians = [float(np.median(values)) for values in rates.values()]
        results[name] = {contender: summarize(values) for contender, values in rates.items()}
        table.append([name, *map(show, medians), show(medians[0] / medians[1])])
    print_table(["network", "ours", "embetter", "ours / embetter"], table)
    figure, axes = make_axes(1, 8, 5)
    ratios = [float(row[3].replace(",", "")) for row in table]
    plot_bars(
        np.ravel(axes)[0], [row[0] for row in table], ratios, None, "Against embetter", "times"
    )
    save(options, machine, {"networks": results}, figure)


if __name__ == "__main__":
    main()
