"""A fresh process to its first row: time and peak memory.

Time is counted from the start of the Python interpreter to the row of one photograph, imports
(scikit-learn's too), loading the network and computing included. "compiled anew" is what the first
process of all pays, once.
"""

import time
from tempfile import TemporaryDirectory

from _common import (
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
from _contenders import CONTENDERS
from _networks import add_networks
from _worker import Worker, choose_contenders, prepare

_CONTENDERS = ["ours", "predict_loop", "onnxruntime", "torch"]


def first_row(contender, network, paths, home=None):
    """Return the seconds and the peak memory of a process that computes one row."""
    start = time.perf_counter()
    with Worker(contender, network, paths[:1], home=home) as worker:
        worker.wait()
        run = worker.run(1)
        return time.perf_counter() - start, run["peak_rss_mb"]


def measure(network, contenders, paths, rounds):
    """Return, for each contender, figures of seconds and memory."""
    failures = prepare(network, contenders, paths)
    runs = {name: [] for name in contenders if name not in failures}
    for _ in range(rounds):
        for name, values in runs.items():
            values.append(first_row(name, network, paths))
    runs = {CONTENDERS[name].label: values for name, values in runs.items()}
    with TemporaryDirectory(prefix="cnnfeat-bench-") as empty:
        runs["sklearn-cnnfeat, compiled anew"] = [first_row("ours", network, paths, empty)]
    return {
        label: {
            "seconds": summarize([seconds for seconds, _ in values]),
            "peak_rss_mb": summarize([memory for _, memory in values]),
        }
        for label, values in runs.items()
    }


def plot(networks):
    """Draw time and memory of each network."""
    figure, axes = make_axes(2 * len(networks), 7 * len(networks), 2.8)
    for i, (network, results) in enumerate(networks.items()):
        for j, (key, unit) in enumerate((("seconds", "seconds"), ("peak_rss_mb", "peak MB"))):
            values = [result[key] for result in results.values()]
            plot_bars(
                axes[2 * i + j],
                list(results) if j == 0 else [""] * len(results),
                [value["median"] for value in values],
                [(value["low"], value["high"]) for value in values],
                network,
                unit,
            )
    return figure


def main():
    """Measure, print, write."""
    parser = make_parser("cold_start", __doc__, rounds=5)
    add_networks(parser, ["mobilenet_v2", "vgg16"])
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    contenders, left_out = choose_contenders(_CONTENDERS)
    networks = {}
    for network in options.networks:
        results = networks[network] = measure(network, contenders, paths, options.rounds)
        keras = results.get(CONTENDERS["predict_loop"].label)
        print(f"{network}:")
        rows = []
        for label, result in results.items():
            seconds, memory = result["seconds"], result["peak_rss_mb"]
            share = keras and memory["median"] / keras["peak_rss_mb"]["median"]
            rows.append(
                [
                    label,
                    show(seconds["median"]),
                    f"{show(seconds['low'])} - {show(seconds['high'])}",
                    show(memory["median"]),
                    show(share),
                ]
            )
        print_table(["contender", "seconds", "from - to", "peak MB", "of Keras predict's"], rows)
    save(options, machine, {"left_out": left_out, "networks": networks}, plot(networks))


if __name__ == "__main__":
    main()
