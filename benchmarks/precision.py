"""What lower precision and faster decoding change: features, accuracy, images a second.

Photographs in one folder a class, a network with published weights. Every variant is compared with
``precision="float32", decode="exact"``: the angle between rows (cosine), the largest difference of
a number over the largest number, and how many photographs two classifiers get right when each is
predicted by a classifier fitted on other folds. 8-bit arithmetic is calibrated on all photographs.
"""

import time

import numpy as np
from _common import (
    describe_machine,
    make_axes,
    make_parser,
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
    summarize,
)

_VARIANTS = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "int8": {"precision": "int8"},
    "float32, decode='fast'": {"decode": "fast"},
}


def main():
    """Compare, print, write."""
    parser = make_parser("precision", __doc__, rounds=3)
    parser.add_argument("--model", default="mobilenet", help="name of a network, or a model file")
    parser.add_argument(
        "--layers",
        nargs="+",
        default=["conv_pw_6_relu", "conv_pw_12_relu", "conv_dw_13_relu"],
        help="layers, each averaged over all positions",
    )
    parser.add_argument("--preprocessing", default="auto", help="as of CNNFeatureTransformer")
    parser.add_argument("--input-size", type=int, default=224, help="in pixels")
    options = parser.parse_args()
    if options.photos is None:
        parser.error("--photos is needed: a folder of photographs with one folder a class")
    machine = describe_machine()
    print_machine(machine)
    results = compare(options)
    for layer, figures in results["layers"].items():
        _print_layer(layer, figures)
    print_table(
        ["variant", "images/s", "from - to"],
        [
            [name, show(rate["median"]), f"{show(rate['low'])} - {show(rate['high'])}"]
            for name, rate in results["images_per_second"].items()
        ],
    )
    save(options, machine, results, plot(results))


def compare(options):
    """Return the figures of each variant."""
    from sklearn_cnnfeat import CNNFeatureTransformer, load_image_folder

    photos = load_image_folder(options.photos)
    transformers = {
        name: CNNFeatureTransformer(
            options.model,
            options.layers,
            "avg",
            preprocessing=options.preprocessing,
            input_size=options.input_size,
            **parameters,
        ).fit(photos.data)
        for name, parameters in _VARIANTS.items()
    }
    rows = {name: cnn.transform(photos.data) for name, cnn in transformers.items()}
    rates = {name: [] for name in transformers}
    for _ in range(options.rounds):
        for name, cnn in transformers.items():
            start = time.perf_counter()
            cnn.transform(photos.data)
            rates[name].append(len(photos.data) / (time.perf_counter() - start))
    widths = [shape[-1] for shape in transformers["float32"].feature_shapes_]
    ends = np.cumsum(widths)
    layers = {}
    for layer, first, last in zip(options.layers, ends - widths, ends, strict=True):
        exact = rows["float32"][:, first:last]
        layers[layer] = {
            name: _describe(exact, found[:, first:last], photos.target)
            for name, found in rows.items()
        }
    return {
        "photos": len(photos.data),
        "layers": layers,
        "images_per_second": {name: summarize(values) for name, values in rates.items()},
    }


def _describe(exact, rows, target):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rows, axis=1)
    cosines = (exact * rows).sum(axis=1) / norms
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    right = {
        name: int(
            np.sum(
                cross_val_predict(make_pipeline(StandardScaler(), model), rows, target, cv=folds)
                == target
            )
        )
        for name, model in (
            ("LogisticRegression", LogisticRegression(max_iter=2000)),
            ("SVC", SVC()),
        )
    }
    return {
        "cosine_median": float(np.median(cosines)),
        "cosine_min": float(cosines.min()),
        "largest_difference": float(np.abs(exact - rows).max() / np.abs(exact).max()),
        "right": right,
    }


def _print_layer(layer, figures):
    print(f"{layer}:")
    classifiers = next(iter(figures.values()))["right"]
    print_table(
        [
            "variant",
            "median cosine",
            "least cosine",
            "largest difference",
            *(f"right, {name}" for name in classifiers),
        ],
        [
            [
                name,
                f"{figure['cosine_median']:.5f}",
                f"{figure['cosine_min']:.5f}",
                f"{figure['largest_difference']:.1e}",
                *map(str, figure["right"].values()),
            ]
            for name, figure in figures.items()
        ],
    )


def plot(results):
    """Draw images a second, and the photographs that are classified right."""
    figure, axes = make_axes(1 + len(results["layers"]), 4.5 * (1 + len(results["layers"])), 2.2)
    rates = results["images_per_second"]
    plot_bars(
        axes[0],
        list(rates),
        [rate["median"] for rate in rates.values()],
        [(rate["low"], rate["high"]) for rate in rates.values()],
        "all layers",
        "images a second",
    )
    for panel, (layer, figures) in zip(axes[1:], results["layers"].items(), strict=True):
        right = [f["right"]["SVC"] for f in figures.values()]
        plot_bars(
            panel, [""] * len(right), right, None, layer, f"right of {results['photos']}, SVC"
        )
    return figure


if __name__ == "__main__":
    main()
