"""How fast does the feature cache write and read rows, and in how much memory?

Every measurement is a process of its own, so that its peak memory (RSS) is its own too; "over
output" is that peak less the interpreter with NumPy and less the array of rows.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import (
    describe_machine,
    make_axes,
    make_parser,
    peak_rss_mb,
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
    summarize,
)

from sklearn_cnnfeat._cache import FeatureCache

N_ROWS = {1024: 20_000, 25_088: 2_000}  # columns: rows
# Rows a call.
CALLS = [("write", 256), ("write", 32), ("read", 32), ("read", 2_000)]


def child(action, batch, n_columns, folder):
    """Write or read all rows of one width; print rates and memory."""
    n_rows = N_ROWS[n_columns]
    digests = [i.to_bytes(32, "big") for i in range(n_rows)]
    order = np.random.default_rng(0).permutation(n_rows)
    if action == "write":
        block = np.random.default_rng(1).random((batch, n_columns), dtype=np.float32)
    else:
        block = np.zeros((n_rows, n_columns), dtype=np.float32)
    before = peak_rss_mb()
    # What is read is what came last in `CALLS`.
    written = batch if action == "write" else 32
    with FeatureCache(Path(folder) / f"{n_columns}-{written}") as cache:
        start = time.perf_counter()
        for first in range(0, n_rows, batch):
            if action == "write":
                part = digests[first : first + batch]
                cache.put_many("benchmark", part, block[: len(part)])
            else:
                part = [digests[i] for i in order[first : first + batch]]
                out = block[first : first + batch]
                if not cache.get_many("benchmark", part, out).all():
                    raise SystemExit("rows are missing: the figures would mean nothing")
        seconds = time.perf_counter() - start
        file_bytes = cache.info().file_bytes
    n_bytes = 4 * n_rows * n_columns
    record = {
        "rows": n_rows,
        "rows_per_second": n_rows / seconds,
        "mb_per_second": n_bytes / seconds / 1e6,
        "peak_rss_mb": peak_rss_mb(),
        "over_output_mb": peak_rss_mb() - before - block.nbytes / 1e6 * (action == "read"),
        "bytes_on_disk_per_byte": file_bytes / n_bytes,
    }
    print(json.dumps(record))


def measure(n_rounds):
    """Return, for each width and kind of call, rows a second and memory."""
    results = {}
    for n_columns in N_ROWS:
        rounds = {call: [] for call in CALLS}
        for _ in range(n_rounds):
            with tempfile.TemporaryDirectory() as folder:
                for action, batch in CALLS:
                    job = json.dumps([action, batch, n_columns, folder])
                    done = subprocess.run(
                        [sys.executable, __file__, "--job", job],
                        check=True,
                        capture_output=True,
                        text=True,
                    )
                    rounds[action, batch].append(json.loads(done.stdout))
        results[f"{n_columns:,} columns"] = {
            f"{action}, {batch:,} rows a call": {
                key: records[0][key]
                if key == "rows"
                else summarize([record[key] for record in records])
                for key in records[0]
            }
            for (action, batch), records in rounds.items()
        }
    return results


def main():
    """Measure, print, write."""
    parser = make_parser("cache_rows", __doc__, rounds=3)
    parser.add_argument("--job", help="for processes of its own")
    options = parser.parse_args()
    if options.job:
        child(*json.loads(options.job))
        return
    machine = describe_machine()
    print_machine(machine)
    results = measure(options.rounds)
    header = ["columns", "call", "rows/s", "MB/s", "peak MB", "over output", "disk/payload"]
    keys = ["rows_per_second", "mb_per_second", "peak_rss_mb", "over_output_mb"]
    rows = [
        [
            columns,
            call,
            *(show(record[key]["median"]) for key in keys),
            show(record["bytes_on_disk_per_byte"]["median"], 4),
        ]
        for columns, calls in results.items()
        for call, record in calls.items()
    ]
    print_table(header, rows)
    figure, axes = make_axes(len(results), 10, 2.4)
    for panel, (columns, calls) in zip(axes, results.items(), strict=True):
        rates = [record["rows_per_second"] for record in calls.values()]
        plot_bars(
            panel,
            list(calls),
            [rate["median"] for rate in rates],
            [(rate["low"], rate["high"]) for rate in rates],
            columns,
            "rows/s",
        )
    save(options, machine, results, figure)


if __name__ == "__main__":
    main()
