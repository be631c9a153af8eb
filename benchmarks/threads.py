"""How decoding, inference and the whole gain from cores.

Processes are kept to 1, 2, 4, ... cores by the operating system (Linux only), and `n_jobs=None`
takes as many threads as there are cores.
"""

import os

from _common import (
    count_cores,
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    print_machine,
    print_table,
    save,
    show,
)
from _contenders import CONTENDERS
from _networks import add_networks
from _parts import PARTS
from _worker import compare
from throughput import add_seconds

_PARTS = {
    "decoding": PARTS["decoding"].label,
    "inference": PARTS["inference"].label,
    "ours": CONTENDERS["ours"].label,
}


def main():
    """Measure, print, write."""
    parser = make_parser("threads", __doc__, rounds=3)
    add_networks(parser, ["mobilenet_v2", "resnet50", "vgg16"])
    add_seconds(parser, 1.0)
    options = parser.parse_args()
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("This system cannot keep a process to some of its cores; Linux can.")
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    counts = [2**k for k in range(count_cores().bit_length()) if 2**k <= count_cores()]
    networks, rows = {}, []
    for network in options.networks:
        networks[network] = {
            cores: compare(network, list(_PARTS), paths, options.rounds, options.seconds, cores)
            for cores in counts
        }
        for part, label in _PARTS.items():
            rates = [networks[network][cores][part].get("median") for cores in counts]
            gains = [rate / rates[0] if rate and rates[0] else None for rate in rates]
            rows.append([network, label, *map(show, rates), *map(show, gains[1:])])
    header = ["network", "part", *(f"{cores} cores" for cores in counts)]
    print_table([*header, *(f"gain of {cores}" for cores in counts[1:])], rows)
    figure = plot(networks, counts)
    save(options, machine, {"networks": networks}, figure)


def plot(networks, counts):
    """Draw what each part gains from cores; the grey line is as much as there are."""
    figure, axes = make_axes(len(networks), 3.5 * len(networks), 3.4)
    for panel, (network, of_cores) in zip(axes, networks.items(), strict=True):
        panel.plot(counts, counts, color="0.8", linewidth=4)
        for part, label in _PARTS.items():
            rates = [of_cores[cores][part].get("median", float("nan")) for cores in counts]
            gains = [rate / rates[0] for rate in rates]
            panel.plot(counts, gains, "o-", label=f"{label}: {show(rates[-1])} images/s")
        panel.set_title(network)
        panel.set_xlabel("cores")
        panel.set_xticks(counts)
        panel.set_ylim(0, 1.5 * max(counts))
        panel.legend(frameon=False, loc="upper left", fontsize="small")
    axes[0].set_ylabel("times the images/s of one core")
    return figure


if __name__ == "__main__":
    main()
