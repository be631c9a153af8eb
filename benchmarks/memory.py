"""Peak memory against the number of images: it should grow with the rows and nothing else.

Each number of images is computed by a process of its own. Where there are fewer photographs, they
are taken again: their pixels are decoded each time.
"""

from _common import (
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    print_machine,
    print_table,
    save,
    show,
    summarize,
)
from _contenders import CONTENDERS
from _networks import NETWORKS
from _worker import Worker, choose_contenders, prepare

_CONTENDERS = ["ours", "predict_batches"]


def peak_rss(contender, network, paths, count):
    """Return the peak memory of `count` images, and the size of their rows, both in MB."""
    with Worker(contender, network, paths) as worker:
        worker.wait()
        run = worker.run(count)
    return run["peak_rss_mb"], run["row_bytes"] / 1e6


def measure(options, contenders, paths):
    """Return, for each contender and number of images, figures of memory."""
    failures = prepare(options.network, contenders, paths)
    runs = {
        name: {count: [] for count in options.counts} for name in contenders if name not in failures
    }
    for _ in range(options.rounds):
        for count in options.counts:
            for name in runs:
                runs[name][count].append(peak_rss(name, options.network, paths, count))
    return {
        name: {
            count: {
                "peak_rss_mb": summarize([peak for peak, _ in values]),
                "rows_mb": values[0][1],
                "beyond_rows_mb": summarize([peak - rows for peak, rows in values]),
            }
            for count, values in counts.items()
        }
        for name, counts in runs.items()
    }


def main():
    """Measure, print, write."""
    parser = make_parser("memory", __doc__, rounds=2)
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[200, 500, 1000, 2000], help="numbers of images"
    )
    parser.add_argument(
        "--network", choices=list(NETWORKS), default="mobilenet", metavar="NAME", help="which"
    )
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    contenders, left_out = choose_contenders(_CONTENDERS)
    results = measure(options, contenders, paths)
    print(f"{options.network}:")
    rows = [
        [
            CONTENDERS[name].label,
            str(count),
            show(figures["peak_rss_mb"]["median"], 4),
            show(figures["rows_mb"]),
            show(figures["beyond_rows_mb"]["median"], 4),
        ]
        for name, counts in results.items()
        for count, figures in counts.items()
    ]
    print_table(["contender", "images", "peak MB", "rows MB", "peak beyond the rows MB"], rows)
    growth = {}
    for name, counts in results.items():
        first, last = (counts[count]["beyond_rows_mb"]["median"] for count in _ends(counts))
        growth[name] = last - first
        print(
            f"{CONTENDERS[name].label}: {max(counts)} images take {show(last - first)} MB more "
            f"than {min(counts)}, beyond the rows."
        )
    figure, (panel,) = make_axes(1, 6, 4)
    for name, counts in results.items():
        peaks = [figures["peak_rss_mb"]["median"] for figures in counts.values()]
        panel.plot(list(counts), peaks, "o-", label=CONTENDERS[name].label)
    panel.set_xlabel("images")
    panel.set_ylabel("peak memory, MB")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)
    save(
        options,
        machine,
        {"left_out": left_out, "memory": results, "growth_beyond_rows_mb": growth},
        figure,
    )


def _ends(counts):
    return min(counts), max(counts)


if __name__ == "__main__":
    main()
