"""How fast the feature cache writes and reads rows, and in how much memory.

Run as ``python benchmarks/cache_rows.py [--folder DIR] [--json FILE]``. Every measurement is a
process of its own, so that its peak memory (RSS) is its own too; ``over output`` is that peak less
the interpreter with NumPy and less the array of rows.
"""

import argparse
import json
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._cache import FeatureCache

SIZES = {1024: 20_000, 25_088: 2_000}  # width: rows
WRITES, READS = (256, 32), (32, 2_000)  # rows a call


def rss():
    """Peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(action, batch, width, folder):
    """Write or read all rows of one width; return a record of rates and memory."""
    count = SIZES[width]
    digests = [i.to_bytes(32, "big") for i in range(count)]
    order = np.random.default_rng(0).permutation(count)
    if action == "write":
        block = np.random.default_rng(1).random((batch, width), dtype=np.float32)
    else:
        block = np.zeros((count, width), dtype=np.float32)
    before = rss()
    written = batch if action == "write" else WRITES[-1]
    with FeatureCache(Path(folder) / f"{width}-{written}") as cache:
        start = time.perf_counter()
        for first in range(0, count, batch):
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
    return {
        "width": width,
        "action": action,
        "batch": batch,
        "rows": count,
        "rows_per_second": round(count / seconds),
        "mb_per_second": round(count * width * 4 / seconds / 1e6),
        "peak_rss_mb": round(rss()),
        "over_output_mb": round(rss() - before - block.nbytes / 1e6 * (action == "read")),
        "bytes_on_disk_per_byte": round(file_bytes / (count * width * 4), 3),
    }


def main():
    """Run every measurement in a child and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="where the cache is made (a temporary folder)")
    parser.add_argument("--json", default="cache_rows.json", help="where the figures go")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        action, batch, width = options.one
        print(json.dumps(measure(action, int(batch), int(width), options.folder)))
        return
    records = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(" width  action  rows/call   rows/s   MB/s  peak RSS  over output  disk/payload")
        for width in SIZES:
            for action, batch in [*(("write", n) for n in WRITES), *(("read", n) for n in READS)]:
                one = ["--folder", folder, "--one", action, str(batch), str(width)]
                child = subprocess.run(
                    [sys.executable, __file__, *one], check=True, capture_output=True, text=True
                )
                record = json.loads(child.stdout)
                records.append(record)
                print(
                    "{width:6d}  {action:6s}  {batch:9d}  {rows_per_second:7,d}  "
                    "{mb_per_second:5d}  {peak_rss_mb:5d} MB  {over_output_mb:8d} MB  "
                    "{bytes_on_disk_per_byte:12.3f}".format(**record),
                    flush=True,
                )
    machine = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }
    Path(options.json).write_text(json.dumps({"machine": machine, "rows": records}, indent=1))


if __name__ == "__main__":
    main()
