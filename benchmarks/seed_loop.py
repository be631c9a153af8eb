"""`transform` against the loop that people paste, and against `predict` in batches.

MobileNet and VGG16 on the photographs: images a second and peak memory.
"""

from _common import describe_machine, make_axes, make_parser, plot_bars, print_machine, save
from _contenders import CONTENDERS
from throughput import add_seconds, compare_all

_NETWORKS = ["mobilenet", "vgg16"]
_CONTENDERS = ["ours", "predict_loop", "predict_batches"]


def main():
    """Compare, print, write."""
    parser = make_parser("seed_loop", __doc__, rounds=3)
    add_seconds(parser)
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    results = compare_all(options, _NETWORKS, _CONTENDERS)
    save(options, machine, results, plot(results["networks"]))


def plot(networks):
    """Draw images a second and peak memory of each network."""
    figure, axes = make_axes(2 * len(networks), 4 * len(networks) * 2, 2.2)
    for i, (network, results) in enumerate(networks.items()):
        done = {name: result for name, result in results.items() if "median" in result}
        labels = [CONTENDERS[name].label for name in done]
        rates = [result["median"] for result in done.values()]
        spread = [(result["low"], result["high"]) for result in done.values()]
        memory = [result["peak_rss_mb"] for result in done.values()]
        plot_bars(axes[2 * i], labels, rates, spread, network, "images a second")
        plot_bars(axes[2 * i + 1], [""] * len(done), memory, None, network, "peak memory, MB")
    return figure


if __name__ == "__main__":
    main()
