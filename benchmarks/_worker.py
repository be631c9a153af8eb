"""Contenders in processes of their own, and the taking of turns.

A `Worker` imports what its contender needs, gets the network ready, and then computes features as
often as it is asked: its peak memory is the contender's own, and contenders can take turns.
"""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from _common import WORK, count_cores, cycled, peak_rss_mb, summarize
from _contenders import CONTENDERS
from _networks import NETWORKS
from _parts import PARTS

_ALL = CONTENDERS | PARTS
# Seconds after which a worker counts as hung.
_LIMIT = 600
# Images of a measurement at least: fewer would say little of how fast it goes on. A multiple of
# every contender's batch, or a divisor.
_FEW = 16


class WorkerError(RuntimeError):
    """A contender failed."""


class Worker:
    """A contender and a network in a process of their own.

    Parameters
    ----------
    contender, network : str
        Names in `CONTENDERS` or `PARTS`, and in `NETWORKS`.
    paths : list of str
        The files.
    task : {"set_up", "prepare"}
        What it begins with.
    home : path, default=None
        Where our programs are kept; None for one that all share.
    cores : int, default=None
        The process is kept to this many cores.
    """

    def __init__(self, contender, network, paths, task="set_up", home=None, cores=None):
        self.contender = contender
        (WORK / "logs").mkdir(parents=True, exist_ok=True)
        self._log = WORK / "logs" / f"{contender}-{network}.txt"
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(home or WORK / "home"),
            )
        order = {"task": task, "contender": contender, "network": network, "paths": paths}
        self._send({**order, "cores": cores})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def wait(self):
        """Wait until it has begun; return the seconds that took, its start not counted."""
        return self._receive()["seconds"]

    def run(self, n_images, save_rows=None):
        """Compute the features of `n_images` files.

        Parameters
        ----------
        n_images : int
            Files are taken again from the first where there are fewer.
        save_rows : path, default=None
            Where the rows go as ``.npy``.

        Returns
        -------
        result : dict
            "seconds", "images", "columns" and "peak_rss_mb" (of the process so far).
        """
        self._send({"images": n_images, "save_rows": None if save_rows is None else str(save_rows)})
        return self._receive()

    def close(self):
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _send(self, message):
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._reason()) from None

    def _receive(self):
        timer = threading.Timer(_LIMIT, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise WorkerError(self._reason())
        return json.loads(line)

    def _reason(self):
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line]
        print(f"{self.contender} failed; what it printed is in {self._log}", file=sys.stderr)
        return lines[-1] if lines else "it ended without a word"


def environment(home):
    """Return the environment variables of a process that measures."""
    return {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "SKLEARN_CNNFEAT_HOME": str(home),
        "TORCHINDUCTOR_CACHE_DIR": str(WORK / "inductor"),
    }


def choose_contenders(names):
    """Return the names whose packages are installed, and why the others are left out."""
    left_out = {name: reason for name in names if (reason := _ALL[name].missing())}
    for name, reason in left_out.items():
        print(f"Left out: {_ALL[name].label} ({reason}).", flush=True)
    return [name for name in names if name not in left_out], left_out


def prepare(network, contenders, paths):
    """Make what contenders load later: weights, converted networks, compiled programs.

    Parameters
    ----------
    network, contenders, paths
        As for `compare`.

    Returns
    -------
    failures : dict
        For each contender whose files cannot be made: {"failed": reason}.
    """
    failures = {}
    for name in contenders:
        try:
            with Worker(name, network, paths, "prepare") as worker:
                worker.wait()
        except WorkerError as error:
            failures[name] = {"failed": str(error)}
    return failures


def compare(network, contenders, paths, rounds, seconds, cores=None):
    """Let contenders take turns on one network.

    Parameters
    ----------
    network : str
        Name in `NETWORKS`.
    contenders : list of str
        Names in `CONTENDERS` or `PARTS`.
    paths : list of str
        The files.
    rounds : int
        How often each is measured.
    seconds : float
        About how long a measurement takes: slow contenders are given fewer files.
    cores : int, default=None
        Every process is kept to this many cores.

    Returns
    -------
    results : dict
        For each contender: its figures, or {"failed": reason}.
    """
    contenders = [name for name in contenders if _ALL[name].covers(NETWORKS[network])]
    workers, results = {}, {}

    def start(name):
        few = max(_ALL[name].batch, _FEW)
        workers[name] = worker = Worker(name, network, paths, cores=cores)
        set_up_seconds = worker.wait()
        first = worker.run(few)
        # The second run is not slowed down by what happens once.
        second = worker.run(few, save_rows=_rows_file(network, name))
        return {
            "set_up_seconds": set_up_seconds,
            "warm_up_seconds": first["seconds"],
            "images": _count_images(seconds * few / second["seconds"], _ALL[name].batch),
            "columns": second["columns"],
            "images_per_second": [],
        }

    try:
        failures = prepare(network, contenders, paths)
        with ThreadPoolExecutor(count_cores()) as pool:
            started = {
                name: pool.submit(start, name) for name in contenders if name not in failures
            }
            for name in contenders:
                try:
                    results[name] = started[name].result() if name in started else failures[name]
                except WorkerError as error:
                    results[name] = {"failed": str(error)}
        running = [name for name in contenders if "failed" not in results[name]]
        for _ in range(rounds):
            for name in running:
                run = workers[name].run(results[name]["images"])
                results[name]["images_per_second"].append(run["images"] / run["seconds"])
                results[name]["peak_rss_mb"] = run["peak_rss_mb"]
    finally:
        for worker in workers.values():
            worker.close()
    for name in running:
        rates = results[name]["images_per_second"]
        results[name] |= summarize(rates)
        results[name]["difference"] = _difference(network, name)
    return results


def _count_images(count, batch):
    return max(_FEW, batch, round(count / batch) * batch)


def _rows_file(network, contender):
    folder = WORK / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{network}-{contender}.npy"


def _difference(network, contender):
    """Return the largest difference to Keras' rows, relative to the largest of them."""
    reference = _rows_file(network, "predict_loop")
    if not _ALL[contender].keras_weights or not reference.exists():
        return None
    import numpy as np

    expected, rows = np.load(reference), np.load(_rows_file(network, contender))
    count = min(len(expected), len(rows))
    largest = np.abs(expected[:count]).max()
    return float(np.abs(rows[:count] - expected[:count]).max() / largest)


def _work():
    """Be a worker: a message a line on the standard input, an answer a line on the output."""
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print goes to the log.
    os.dup2(2, 1)

    def answer(message):
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    order = json.loads(sys.stdin.readline())
    if order["cores"] is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["cores"]])
    contender = _ALL[order["contender"]]
    begin = {"set_up": contender.set_up, "prepare": contender.prepare}[order["task"]]
    start = time.perf_counter()
    begin(NETWORKS[order["network"]], order["paths"])
    answer({"seconds": time.perf_counter() - start})
    for line in sys.stdin:
        request = json.loads(line)
        paths = cycled(order["paths"], request["images"])
        start = time.perf_counter()
        rows = contender.features(paths)
        seconds = time.perf_counter() - start
        if len(rows) != len(paths):
            raise WorkerError(f"{len(rows)} rows for {len(paths)} files")
        if request["save_rows"] is not None:
            import numpy as np

            np.save(request["save_rows"], rows)
        answer(
            {
                "seconds": seconds,
                "images": len(rows),
                "columns": rows.shape[1],
                "row_bytes": rows.nbytes,
                "peak_rss_mb": peak_rss_mb(),
            }
        )


if __name__ == "__main__":
    _work()
