"""What a Dask cluster gains and costs: files to features on one and on two worker processes.

Two workers of one thread each live through the whole run, so that both have loaded their network
before anything is measured; a measurement on one leaves the other idle. They take turns with
`transform` in this process, on one thread and on two. What Dask itself costs is measured with the
same graph and rows of zeros instead of a network.
"""

import os
import time

from _common import (
    WORK,
    cycled,
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
from _networks import NETWORKS, make_weights, weights_file

LABELS = {
    "transform, 1 thread": "transform, 1 thread",
    "transform, 2 threads": "transform, 2 threads",
    "1 worker": "Dask, 1 worker of 1 thread",
    "2 workers": "Dask, 2 workers of 1 thread",
}


class Zeros:
    """Stands in for an extractor: rows of the same size, without work."""

    def __init__(self, n_columns):
        self.row_shape = (n_columns,)

    def read(self, paths):
        """Return the paths."""
        return paths

    def compute(self, paths):
        """Return rows of zeros."""
        import numpy as np

        return np.zeros((len(paths), *self.row_shape), np.float32)


def make_transformer(network, paths, n_jobs=None):
    """Return the fitted transformer that all measure."""
    from sklearn_cnnfeat import CNNFeatureTransformer

    weights = weights_file(NETWORKS[network])
    return CNNFeatureTransformer(network, "last", "avg", weights=weights, n_jobs=n_jobs).fit(paths)


def count_loads():
    """Count, in a worker, the networks that are loaded from now on."""
    from sklearn_cnnfeat._network.engines import openvino as engine_openvino

    engine_openvino.n_loads = 0
    init = engine_openvino.OpenVINOEngine.__init__

    def counting(*args, **kwargs):
        engine_openvino.n_loads += 1
        init(*args, **kwargs)

    engine_openvino.OpenVINOEngine.__init__ = counting


def read_loads():
    """Return what `count_loads` has counted."""
    from sklearn_cnnfeat._network.engines import openvino as engine_openvino

    return engine_openvino.n_loads


def lazy_features(cnn, paths, part_size):
    """Return the lazy features of a bag of paths, `part_size` in each partition."""
    import dask.bag

    return cnn.transform(dask.bag.from_sequence(paths, partition_size=part_size))


def lazy_zeros(n_columns, paths, part_size):
    """Return the same graph with no network in it."""
    import dask.bag

    from sklearn_cnnfeat._dask import transform_lazily

    bag = dask.bag.from_sequence(paths, partition_size=part_size)
    return transform_lazily(Zeros(n_columns), bag)


def timed(function):
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure(options, paths, client):
    """Return all figures."""
    import numpy as np

    client.run(_import_for_counting)
    client.run(count_loads)
    addresses = sorted(client.scheduler_info()["workers"])
    here = {f"transform, {n} thread{'s' * (n > 1)}": n for n in (1, 2)}
    cnns = {name: make_transformer(options.network, paths, n) for name, n in here.items()}
    cnn = make_transformer(options.network, paths)
    workers = {"1 worker": addresses[:1], "2 workers": addresses}

    def run_on(names, features):
        return client.compute(features, workers=names).result()

    ways = {name: lambda some, own=own: own.transform(some) for name, own in cnns.items()}
    for name, names in workers.items():
        ways[name] = lambda some, names=names: run_on(
            names, lazy_features(cnn, some, options.part_size)
        )
    few = cycled(paths, 4 * options.part_size)
    expected = ways["transform, 1 thread"](few)
    for name, way in ways.items():
        if not np.array_equal(way(few), expected):
            raise SystemExit(f"{name}: other rows than transform's.")
    # Whichever worker had none of these.
    for address in addresses:
        run_on([address], lazy_features(cnn, few[: options.part_size], options.part_size))

    many = cycled(paths, options.images)
    seconds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(lambda way=way: way(many))[0])

    n_tasks = options.tasks
    n_columns = expected.shape[1]
    empty = cycled(paths, n_tasks * options.part_size)
    costs = []
    for _ in range(options.rounds):
        costs.append(
            timed(lambda: run_on(addresses[:1], lazy_zeros(n_columns, empty, options.part_size)))[0]
            / n_tasks
        )
    rates = {
        name: summarize([options.images / value for value in values])
        for name, values in seconds.items()
    }
    one, two = rates["1 worker"]["median"], rates["2 workers"]["median"]
    task = summarize(costs)
    return {
        "images_per_second": rates,
        "speedup": {
            "two_workers_over_one": two / one,
            "of_each_round": [
                a / b for a, b in zip(seconds["1 worker"], seconds["2 workers"], strict=True)
            ],
            "two_threads_over_one": rates["transform, 2 threads"]["median"]
            / rates["transform, 1 thread"]["median"],
        },
        "scheduling": {
            "seconds_a_task": task,
            "seconds_of_work_a_task": options.part_size / one,
            "share_of_work": task["median"] / (options.part_size / one),
        },
        "loads_of_each_worker": [client.run(read_loads)[address] for address in addresses],
        "columns": n_columns,
    }


def _import_for_counting():
    """Import what `count_loads` changes, as a first task would."""
    import sklearn_cnnfeat._network.engines.openvino  # noqa: F401


def main():
    """Measure, print, write."""
    parser = make_parser("dask_scaling", __doc__, rounds=5)
    parser.add_argument("--network", choices=list(NETWORKS), default="mobilenet_v2", help="which")
    parser.add_argument("--images", type=int, default=2048, help="files in a measurement")
    parser.add_argument("--part-size", type=int, default=256, help="files in a partition")
    parser.add_argument("--tasks", type=int, default=400, help="tasks that compute nothing")
    options = parser.parse_args()
    os.environ["SKLEARN_CNNFEAT_HOME"] = str(WORK / "home")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from dask.distributed import Client, LocalCluster

    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    make_weights(NETWORKS[options.network], paths)
    make_transformer(options.network, paths)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        results = measure(options, paths, client)

    rates = results["images_per_second"]
    base = rates["1 worker"]["median"]
    print_table(
        ["", "images/s", "from - to", "over 1 worker"],
        [
            [
                LABELS[name],
                show(rate["median"]),
                f"{show(rate['low'])} - {show(rate['high'])}",
                show(rate["median"] / base),
            ]
            for name, rate in rates.items()
        ],
    )
    scheduling = results["scheduling"]
    print(
        f"Dask costs {1e3 * scheduling['seconds_a_task']['median']:.2f} ms a task, "
        f"{100 * scheduling['share_of_work']:.2f} % of the "
        f"{show(scheduling['seconds_of_work_a_task'])} s of work in it "
        f"({options.part_size} images). Networks loaded by each worker: "
        f"{results['loads_of_each_worker']}."
    )
    figure, (panel,) = make_axes(1, 7, 2.6)
    plot_bars(
        panel,
        [LABELS[name] for name in rates],
        [rate["median"] for rate in rates.values()],
        [(rate["low"], rate["high"]) for rate in rates.values()],
        f"{options.network}, files to features",
        "images a second",
    )
    save(options, machine, results, figure)


if __name__ == "__main__":
    main()
