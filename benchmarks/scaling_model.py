"""What a million, a hundred million and a billion images cost: worked out, not measured.

Reads what `throughput.py` and `dask_scaling.py` have written to ``results/`` and runs nothing. With
r images a second a core (all cores of `throughput.py` over their number, decoding included), parts
of p images and t seconds of scheduling a part, N images on W cores take
max(N / p * (p / r + t) / W, N / p * t) seconds: the work, unless the scheduler is the slower one.
The last table checks that against what one and two workers measured.
"""

import json
import math

from _common import RESULTS, make_axes, make_parser, plot_bars, print_table, save, show

COUNTS = {
    "a million images": 10**6,
    "a hundred million images": 10**8,
    "a billion images": 10**9,
}
CORES = (8, 100, 1000)
PRECISIONS = {"float32": "ours", "bfloat16": "ours_bfloat16", "int8": "ours_int8"}


def read(name):
    """Return the figures of another benchmark."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run python benchmarks/{name}.py first.")
    return json.loads(path.read_text())


def find_rates(throughput):
    """Return, for each network, images a second a core by precision, and columns."""
    cores = throughput["machine"]["cores"]
    rates = {}
    for network, contenders in throughput["networks"].items():
        of_network = {
            precision: contenders[name]["median"] / cores
            for precision, name in PRECISIONS.items()
            if "median" in contenders.get(name, {})
        }
        if "float32" in of_network:
            rates[network] = of_network | {"columns": contenders["ours"]["columns"]}
    return rates


def seconds_for(n_images, n_cores, rate, part_size, seconds_a_task):
    """Return how long images take on some cores."""
    n_parts = math.ceil(n_images / part_size)
    work = n_parts * (part_size / rate + seconds_a_task) / n_cores
    return max(work, n_parts * seconds_a_task)


def work_out(rates, part_size, seconds_a_task):
    """Return a table for each number of images."""
    tables = {}
    for title, count in COUNTS.items():
        tables[title] = {}
        for network, rate in rates.items():
            row = {
                f"core hours, {precision}": count / rate[precision] / 3600
                for precision in PRECISIONS
                if precision in rate
            }
            for cores in CORES:
                seconds = seconds_for(count, cores, rate["float32"], part_size, seconds_a_task)
                row[f"hours on {cores:,} cores, float32"] = seconds / 3600
            row["GB of features, float32"] = count * rate["columns"] * 4 / 1e9
            tables[title][network] = row
    return tables


def check(dask, rates):
    """Return what the model says of the workers that were measured, and what they did."""
    network = dask["settings"]["network"]
    part_size = dask["settings"]["part_size"]
    task = dask["scheduling"]["seconds_a_task"]["median"]
    n_images = dask["settings"]["images"]
    if network not in rates:
        return {}
    checked = {}
    for n_workers, name in ((1, "1 worker"), (2, "2 workers")):
        seconds = seconds_for(n_images, n_workers, rates[network]["float32"], part_size, task)
        measured = dask["images_per_second"][name]["median"]
        checked[name] = {
            "images a second, worked out": n_images / seconds,
            "images a second, measured": measured,
            "measured over worked out": measured * seconds / n_images,
        }
    return checked


def main():
    """Read, work out, print, write."""
    options = make_parser("scaling_model", __doc__, rounds=0).parse_args()
    throughput, dask = read("throughput"), read("dask_scaling")
    rates = find_rates(throughput)
    part_size = dask["settings"]["part_size"]
    task = dask["scheduling"]["seconds_a_task"]["median"]
    fastest = max(rate["float32"] for rate in rates.values())
    results = {
        "images a second a core": {
            network: {name: value for name, value in rate.items() if name != "columns"}
            | {"bytes a row": 4 * rate["columns"]}
            for network, rate in rates.items()
        },
        "scheduling": {
            "Dask": {
                "images a part": part_size,
                "milliseconds a part": 1e3 * task,
                "cores that one scheduler keeps busy with the fastest network": math.floor(
                    (part_size / fastest + task) / task
                ),
            }
        },
        **work_out(rates, part_size, task),
        "worked out and measured": check(dask, rates),
    }
    for title, rows in results.items():
        print(f"{title}:")
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        print_table(
            ["", *columns],
            [
                [name, *(show(row[column]) if column in row else "-" for column in columns)]
                for name, row in rows.items()
            ],
        )
    figure, (panel,) = make_axes(1, 7, 1 + 0.35 * len(rates))
    title, count = next(iter(COUNTS.items()))
    hours = [count / rate["float32"] / 3600 for rate in rates.values()]
    plot_bars(panel, list(rates), hours, title=f"{title}, float32", unit="core hours")
    save(options, throughput["machine"], results, figure)


if __name__ == "__main__":
    main()
