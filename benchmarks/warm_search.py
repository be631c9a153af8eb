"""A search whose rows are all in the cache, against scikit-learn alone on rows in memory.

Three layers of MobileNet, four values of C and five folds on 120 photographs. "ready rows" is the
same grid search without a transformer, once for each layer: what scikit-learn itself takes. The
weights are random, for only the time counts.
"""

import statistics
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
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sklearn_cnnfeat import CNNFeatureTransformer, precompute

LAYERS = ["conv_pw_6_relu", "conv_pw_12_relu", "conv_dw_13_relu"]
C = [0.1, 1, 10, 100]


def timed(function, *args):
    """Return the seconds of wall and of processor that a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    """Measure, print, write."""
    options = make_parser("warm_search", __doc__, rounds=9).parse_args()
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    photos = [paths[i * len(paths) // 120] for i in range(120)]
    target = [i % 4 for i in range(120)]
    network = {"weights": None, "random_state": 0, "input_size": 96, "pooling": "avg"}
    with TemporaryDirectory(prefix="cnnfeat-bench-") as folder:
        cnn = CNNFeatureTransformer("mobilenet", cache=folder, **network)
        grid = {"cnnfeaturetransformer__layer": LAYERS, "svc__C": C}
        search = GridSearchCV(make_pipeline(cnn, SVC()), grid, cv=5)
        precompute(search, photos, verbose=0)
        rows = [cnn.set_params(layer=layer).fit_transform(photos) for layer in LAYERS]
        alone = GridSearchCV(SVC(), {"C": C}, cv=5, refit=False)

        def search_ready_rows():
            for X in rows:
                alone.fit(X, target)
            SVC().fit(rows[0], target)

        seconds = {"ready rows": [], "warm search": []}
        for i in range(options.rounds + 1):
            for name, run in (
                ("ready rows", search_ready_rows),
                ("warm search", lambda: search.fit(photos, target)),
            ):
                value = timed(run)
                if i:  # the first round warms up
                    seconds[name].append(value)
    results = {
        name: {
            "seconds": summarize([wall for wall, _ in values]),
            "processor_seconds": summarize([cpu for _, cpu in values]),
        }
        for name, values in seconds.items()
    }
    ready, warm = (
        [statistics.median(part) for part in zip(*seconds[name], strict=True)]
        for name in ("ready rows", "warm search")
    )
    ratio = {"wall": warm[0] / ready[0], "processor": warm[1] / ready[1]}
    print_table(
        ["search", "seconds", "processor seconds"],
        [
            [name, *(show(part["median"]) for part in parts.values())]
            for name, parts in results.items()
        ],
    )
    print(f"warm search over ready rows: {ratio['wall']:.2f} (processor {ratio['processor']:.2f})")
    figure, axes = make_axes(1, 5, 1.6)
    medians = [result["seconds"] for result in results.values()]
    plot_bars(
        axes[0],
        list(results),
        [value["median"] for value in medians],
        [(value["low"], value["high"]) for value in medians],
        "a search over three layers",
        "seconds",
    )
    save(options, machine, {"searches": results, "ratio": ratio}, figure)


if __name__ == "__main__":
    main()
