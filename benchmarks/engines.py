"""OpenVINO against Keras as engines of this package: which one should `engine="auto"` take?

Files to features in float32 on a network of each family: images a second, peak memory, and the
seconds until a fresh process is ready. `engine="auto"` takes OpenVINO wherever it is installed and
no GPU is there; this table says what a network gains or loses by that.
"""

from _common import (
    describe_machine,
    make_axes,
    make_parser,
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
)
from _networks import add_networks
from throughput import add_seconds, compare_all

_ENGINES = ["ours", "ours_keras"]
_FAMILIES = ["vgg16", "resnet50", "mobilenet", "mobilenet_v3_small", "efficientnet_b0"]
_FAMILIES += ["efficientnet_v2_b0", "densenet121", "inception_v3", "convnext_tiny", "nasnet_mobile"]


def find_gains(networks):
    """Return what OpenVINO gains over Keras on each network."""
    gains = {}
    for network, results in networks.items():
        if all("median" in results[name] for name in _ENGINES):
            ours, keras = (results[name] for name in _ENGINES)
            gains[network] = {
                "speed": ours["median"] / keras["median"],
                "memory": ours["peak_rss_mb"] / keras["peak_rss_mb"],
                "until_ready": _seconds_until_ready(ours) / _seconds_until_ready(keras),
            }
    return gains


def _seconds_until_ready(result):
    # Keras builds the network in the first run.
    return result["set_up_seconds"] + result["warm_up_seconds"]


def main():
    """Compare, print, write."""
    parser = make_parser("engines", __doc__, rounds=3)
    add_networks(parser, _FAMILIES)
    add_seconds(parser)
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    results = compare_all(options, options.networks, _ENGINES)
    results["openvino_over_keras"] = find_gains(results["networks"])
    print("OpenVINO over Keras:")
    print_table(
        ["network", "images/s", "peak memory", "until ready"],
        [
            [network, *(show(gain[key]) for key in ("speed", "memory", "until_ready"))]
            for network, gain in results["openvino_over_keras"].items()
        ],
    )
    figure, axes = make_axes(2, 10, 5)
    labels, rates, memory = [], [], []
    for network, of_engines in results["networks"].items():
        for name in _ENGINES:
            if "median" in of_engines[name]:
                labels.append(f"{network}, {'Keras' if name == 'ours_keras' else 'OpenVINO'}")
                rates.append(of_engines[name]["median"])
                memory.append(of_engines[name]["peak_rss_mb"])
    plot_bars(axes[0], labels, rates, None, "Files to features", "images a second")
    plot_bars(axes[1], [""] * len(labels), memory, None, "Peak memory", "MB")
    save(options, machine, results, figure)


if __name__ == "__main__":
    main()
