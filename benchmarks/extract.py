"""Features into a file: how fast against `transform`, in how much memory, and after how many kills.

Every measurement is a process of its own. Where there are fewer photographs than wanted, they get
more names (hard links), so that each is read and decoded as often as it is named.
"""

import filecmp
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import (
    WORK,
    describe_machine,
    find_photos,
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
from _networks import NETWORKS, weights_file
from _worker import environment, prepare

FORMATS = ("npy", "parquet", "zarr")
TASKS = ("transform", *FORMATS)
# What happens once a process, such as the import of a library, happens with these.
_WARM_UP = 16


# --- in a separate process ----------------------------------------------------------------------


def _make_transformer(network, paths):
    from sklearn_cnnfeat import CNNFeatureTransformer

    return CNNFeatureTransformer(
        network, "last", "avg", weights=weights_file(NETWORKS[network])
    ).fit(paths[:1])


def _measure(task, network, folder, count):
    """Print the time and the peak memory of one task."""
    from sklearn_cnnfeat import extract

    paths = sorted(map(str, Path(folder).iterdir()))[:count]
    cnn = _make_transformer(network, paths)

    def run(paths, name):
        if task == "transform":
            return cnn.transform(paths).nbytes
        return extract(paths, f"{where}/{name}.{task}", cnn, verbose=0).n_features * 4 * len(paths)

    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as where:
        run(paths[:_WARM_UP], "warm")
        start = time.perf_counter()
        row_bytes = run(paths, "measured")
        seconds = time.perf_counter() - start
    result = {"seconds": seconds, "peak_rss_mb": peak_rss_mb(), "rows_mb": row_bytes / 1e6}
    print(json.dumps(result))


def _count(form, network, folder, to, log):
    """Extract, and note down each image that goes through the network, until killed."""
    from sklearn_cnnfeat import extract
    from sklearn_cnnfeat._network.engines.openvino import OpenVINOEngine

    computed = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    once = iter(["ready"])
    run = OpenVINOEngine.run

    def counting(engine, batches, deliver):
        def count(token, rows):
            os.write(computed, b"%d\n" % token[0])
            for word in once:  # not before: what loads takes longer than what is waited for
                print(word, flush=True)
            deliver(token, rows)

        return run(engine, batches, count)

    paths = sorted(map(str, Path(folder).iterdir()))
    cnn = _make_transformer(network, paths)
    OpenVINOEngine.run = counting
    extract(paths, f"{to}.{form}", cnn, part_size=16, verbose=0)


def _start(*order):
    return subprocess.Popen(
        [sys.executable, __file__, "--order", *map(str, order)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(WORK / "home"),
    )


def _finish(process):
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)
    return output


# --- what is measured -----------------------------------------------------------------------------


def name_often(paths, folder, count):
    """Give photographs as many names as are wanted."""
    folder.mkdir()
    for i in range(count):
        name = folder / f"{i:06d}.jpg"
        try:
            os.link(paths[i % len(paths)], name)
        except OSError:  # another disk
            shutil.copy(paths[i % len(paths)], name)


def measure(options, folder):
    """Return times, and peak memory by number of files, of each task."""
    runs = {task: {count: [] for count in options.counts} for task in TASKS}
    for _ in range(options.rounds):
        for count in options.counts:
            for task in TASKS:
                process = _start("measure", task, options.network, folder, count)
                runs[task][count].append(json.loads(_finish(process)))
    most = max(options.counts)
    results = {}
    for task, counts in runs.items():
        rates = [most / run["seconds"] for run in counts[most]]
        peaks = {
            str(count): summarize([run["peak_rss_mb"] for run in values])
            for count, values in counts.items()
        }
        results[task] = {
            "images_per_second": summarize(rates),
            "all_images_per_second": rates,
            "peak_rss_mb": peaks,
            "rows_mb": counts[most][0]["rows_mb"],
            "growth_mb": peaks[str(most)]["median"] - peaks[str(min(options.counts))]["median"],
        }
    for result in results.values():
        # Round by round, for what slows the machine down slows both down.
        pairs = zip(
            result["all_images_per_second"],
            results["transform"]["all_images_per_second"],
            strict=True,
        )
        result["of_transform"] = statistics.median(ours / theirs for ours, theirs in pairs)
    return results


def kill_again_and_again(form, options, folder, where):
    """Kill an extraction at random moments; return how many images were computed."""
    n_images = len(os.listdir(folder))
    where.mkdir()
    log = where / "log"
    _finish(_start("count", form, options.network, folder, where / "whole", where / "other"))
    rng = random.Random(0)
    n_kills = 0
    while True:
        process = _start("count", form, options.network, folder, where / "killed", log)
        process.stdout.readline()
        if n_kills < options.kills:
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        n_kills += 1
    computed = list(map(int, log.read_text().split()))
    return {
        "images": n_images,
        "part_size": 16,
        "kills": n_kills,
        "computed": len(computed),
        "computed_twice": len(computed) - n_images,
        "twice_a_kill": (len(computed) - n_images) / max(1, n_kills),
        "all_computed": set(computed) == set(range(n_images)),
        "identical": _same(where / f"whole.{form}", where / f"killed.{form}"),
    }


def _same(one, other):
    """Tell whether files, or trees of files, and those beside them hold the same bytes."""
    suffixes = [path.name.removeprefix(one.name) for path in one.parent.glob(f"{one.name}*")]
    pairs = [(Path(f"{one}{suffix}"), Path(f"{other}{suffix}")) for suffix in suffixes]
    if one.is_dir():
        names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        if names != sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file()):
            return False
        pairs = [(one / name, other / name) for name in names]
    return all(filecmp.cmp(*pair, shallow=False) for pair in pairs)


def _print_speed(network, results):
    few, *_, most = results["transform"]["peak_rss_mb"]
    print_table(
        [network, "images/s", "of transform", f"MB, {few}", f"MB, {most}", "growth MB"],
        [
            [
                task,
                show(result["images_per_second"]["median"], 4),
                f"{result['of_transform']:.1%}",
                show(result["peak_rss_mb"][few]["median"], 4),
                show(result["peak_rss_mb"][most]["median"], 4),
                show(result["growth_mb"]),
            ]
            for task, result in results.items()
        ],
    )


def _print_kills(resumed):
    print_table(
        ["killed", "kills", "files", "computed", "twice a kill", "identical bytes"],
        [
            [
                form,
                result["kills"],
                result["images"],
                result["computed"],
                show(result["twice_a_kill"]),
                "yes" if result["identical"] and result["all_computed"] else "NO",
            ]
            for form, result in resumed.items()
        ],
    )


def main():
    """Measure, print tables, write figures and the plot."""
    if sys.argv[1:2] == ["--order"]:
        task, *order = sys.argv[2:]
        if task == "measure":
            _measure(*order[:3], int(order[3]))
        else:
            _count(*order)
        return
    parser = make_parser("extract", __doc__, rounds=3)
    parser.add_argument(
        "--counts", nargs=2, type=int, default=[200, 2000], help="few files, and many"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=20,
        help="how often each format is killed; 0 keeps the figures that are there, as does "
        "--rounds 0 for the others",
    )
    parser.add_argument(
        "--network", choices=list(NETWORKS), default="mobilenet", metavar="NAME", help="which"
    )
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    failures = prepare(options.network, ["ours"], paths)
    if failures:
        raise SystemExit(str(failures))
    with tempfile.TemporaryDirectory(dir=WORK) as temporary:
        temporary = Path(temporary)
        if options.rounds:
            name_often(paths, temporary / "photos", max(options.counts))
            results = measure(options, temporary / "photos")
        else:
            results = json.loads(options.out.read_text())["extract"]
        _print_speed(options.network, results)
        if options.kills:
            name_often(paths, temporary / "killed", 60 * options.kills)
            resumed = {
                form: kill_again_and_again(form, options, temporary / "killed", temporary / form)
                for form in FORMATS
            }
        else:
            resumed = json.loads(options.out.read_text())["resumed"] if options.out.exists() else {}
        _print_kills(resumed)
    figure, (speed, memory) = make_axes(2, 10, 3)
    plot_bars(
        speed,
        TASKS,
        [results[task]["images_per_second"]["median"] for task in TASKS],
        [
            (results[task]["images_per_second"]["low"], results[task]["images_per_second"]["high"])
            for task in TASKS
        ],
        options.network,
        "images/s",
    )
    for task in TASKS:
        peaks = results[task]["peak_rss_mb"]
        memory.plot(
            list(map(int, peaks)), [peak["median"] for peak in peaks.values()], "o-", label=task
        )
    memory.set_xlabel("files")
    memory.set_ylabel("peak memory, MB")
    memory.set_ylim(bottom=0)
    memory.legend(frameon=False)
    save(options, machine, {"extract": results, "resumed": resumed}, figure)


if __name__ == "__main__":
    main()
