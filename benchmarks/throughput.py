"""From image files to features: images a second and peak memory of this package and of others.

Ten networks with random weights, without their classifier, averaged over all positions. For each
network every contender gets a process of its own; then they take turns, A B C A B C, while the
others wait. Set-up and a warm-up are not counted in images a second, and reported beside them.
"""

from _common import (
    describe_machine,
    find_photos,
    geometric_mean,
    make_axes,
    make_parser,
    print_machine,
    print_table,
    save,
    show,
)
from _contenders import CONTENDERS
from _networks import NETWORKS, add_networks
from _worker import choose_contenders, compare

TEN = [name for name in NETWORKS if name not in ("mobilenet", "nasnet_mobile")]
# `engines.py` compares the other engines.
_DEFAULT = [name for name in CONTENDERS if name not in ("ours_keras", "ours_openvino")]
# Fast, but not what people use: the ratios are given with and without them.
_RUNTIMES = ("onnxruntime", "frozen", "ncnn", "mnn")
# One a contender, ours first.
_COLORS = ["tab:red", "tab:orange", "gold", "darkred", "salmon", "tab:blue", "tab:green"]
_COLORS += ["tab:purple", "tab:brown", "black", "navy", "tab:pink", "tab:gray", "tab:olive"]
_COLORS += ["tab:cyan"]
_MARKERS = "osDhHv^<>pXP*dx"


def compare_all(options, networks, contenders):
    """Compare on each network; print a table after each, return all figures."""
    paths = find_photos(options.photos)
    contenders, left_out = choose_contenders(contenders)
    results = {}
    for network in networks:
        results[network] = compare(network, contenders, paths, options.rounds, options.seconds)
        _print_network(network, results[network])
    return {"photos": len(paths), "left_out": left_out, "networks": results}


def _print_network(network, results):
    print(f"{network}:")
    header = ["contender", "images/s", "from - to", "images", "peak MB", "set-up s", "warm-up s"]
    rows = [
        [
            CONTENDERS[name].label,
            show(result["median"]),
            f"{show(result['low'])} - {show(result['high'])}",
            str(result["images"]),
            show(result["peak_rss_mb"]),
            show(result["set_up_seconds"], 2),
            show(result["warm_up_seconds"], 2),
            "-" if result["difference"] is None else f"{result['difference']:.0e}",
        ]
        for name, result in results.items()
        if "failed" not in result
    ]
    print_table([*header, "off Keras"], rows)
    for name, result in results.items():
        if "failed" in result:
            print(f"{CONTENDERS[name].label} failed: {result['failed']}\n", flush=True)


def find_ratios(networks):
    """Return, for each set of rivals, our float32 images/s over the fastest of them."""
    sets = {
        "all others": (),
        "without ncnn": ("ncnn",),
        "without ncnn and MNN": ("ncnn", "mnn"),
        "without all runtimes": _RUNTIMES,
    }
    ratios = {}
    for title, excluded in sets.items():
        of_networks = {}
        for network, results in networks.items():
            rivals = {
                name: result["median"]
                for name, result in results.items()
                if "median" in result and not CONTENDERS[name].ours and name not in excluded
            }
            if rivals and "median" in results.get("ours", {}):
                best = max(rivals, key=rivals.get)
                ratio = results["ours"]["median"] / rivals[best]
                of_networks[network] = {"rival": best, "ratio": ratio}
        mean = geometric_mean([entry["ratio"] for entry in of_networks.values()])
        ratios[title] = {"geometric_mean": mean, "networks": of_networks}
    return ratios


def find_gains(networks):
    """Return, for each lower precision, its images/s over our own float32."""
    gains = {}
    for name in ("ours_bfloat16", "ours_int8"):
        of_networks = {
            network: results[name]["median"] / results["ours"]["median"]
            for network, results in networks.items()
            if "median" in results.get(name, {}) and "median" in results.get("ours", {})
        }
        gains[name] = {
            "geometric_mean": geometric_mean(list(of_networks.values())),
            "networks": of_networks,
        }
    return gains


def print_ratios(ratios, gains):
    """Print how often faster we are, network by network and in the mean."""
    networks = list(ratios["all others"]["networks"])
    print("Images/s of sklearn-cnnfeat float32 over the fastest rival:")
    rows = []
    for network in networks:
        cells = [network]
        for entry in ratios.values():
            of_network = entry["networks"].get(network)
            cells.append(
                f"{show(of_network['ratio'])} ({of_network['rival']})" if of_network else "-"
            )
        rows.append(cells)
    means = ["geometric mean", *(show(entry["geometric_mean"]) for entry in ratios.values())]
    print_table(["network", *ratios], [*rows, means])
    print("Images/s over those of sklearn-cnnfeat float32:")
    rows = [
        [network, *(show(gain["networks"].get(network)) for gain in gains.values())]
        for network in networks
    ]
    means = ["geometric mean", *(show(gain["geometric_mean"]) for gain in gains.values())]
    print_table(["network", *(CONTENDERS[name].label for name in gains)], [*rows, means])


def plot(networks):
    """Draw images a second and peak memory, a row a network, a mark a contender."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = make_axes(2, 13, 1.5 + 0.55 * len(networks))
    positions = {network: -row for row, network in enumerate(networks)}
    names = [name for name in CONTENDERS if any(name in results for results in networks.values())]
    marks = dict(zip(CONTENDERS, zip(_COLORS, _MARKERS, strict=True), strict=True))
    for name in names:
        color, marker = marks[name]
        of_networks = {
            network: results[name]
            for network, results in networks.items()
            if "median" in results.get(name, {})
        }
        for panel, key in zip(axes, ("median", "peak_rss_mb"), strict=True):
            panel.plot(
                [result[key] for result in of_networks.values()],
                [positions[network] for network in of_networks],
                marker,
                label=CONTENDERS[name].label,
                markersize=9 if CONTENDERS[name].ours else 6,
                color=color,
                alpha=0.85,
            )
    for panel, title in zip(axes, ("images a second", "peak memory, MB"), strict=True):
        panel.set_xscale("log")
        # A decade or so: its powers of ten alone would be one label, and all marks too many.
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="both", color="0.9")
        panel.set_axisbelow(True)
        panel.set_xlabel(title)
        panel.set_yticks(list(positions.values()), list(positions))
    axes[1].set_yticklabels([])
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def main():
    """Compare, print, write."""
    parser = make_parser("throughput", __doc__, rounds=3)
    add_networks(parser, TEN)
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=list(CONTENDERS),
        default=_DEFAULT,
        metavar="NAME",
        help="which",
    )
    add_seconds(parser)
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    results = compare_all(options, options.networks, options.contenders)
    results["ratios"] = find_ratios(results["networks"])
    results["gains"] = find_gains(results["networks"])
    print_ratios(results["ratios"], results["gains"])
    save(options, machine, results, plot(results["networks"]))


def add_seconds(parser, default=2.0):
    """Add the option for the length of a measurement."""
    parser.add_argument(
        "--seconds",
        type=float,
        default=default,
        help="about how long a measurement takes; slow contenders get fewer images",
    )


if __name__ == "__main__":
    main()
