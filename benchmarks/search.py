"""What a search over layers costs, with and without the feature cache.

Run as ``KERAS_HOME=DIR python benchmarks/search.py --photos DIR``, where ``DIR/models`` holds the
ImageNet weights of MobileNet and ``--photos`` one folder of photographs a class (default: the
folders in the one that ``CNNFEAT_TEST_ASSETS`` names). Every measurement is a process of its own.
Networks are built, compiled and warm before a clock starts; our clock includes reading the compiled
network from the disk. ``--quick`` takes fewer images and rounds, and proves nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

LAYERS = ["conv_pw_6_relu", "conv_pw_12_relu", "conv_dw_13_relu"]
PARAMS = {"svm__C": [0.1, 1, 10, 100]}
N_FOLDS = 5
N_COUNTED = 0


# --- contenders ---------------------------------------------------------------------------------


class KerasFeatures(TransformerMixin, BaseEstimator):
    """What users write today: `predict` on a truncated network, images loaded with Keras."""

    _networks = {}  # noqa: RUF012 - one network a layer for all copies

    def __init__(self, layer="conv_pw_6_relu"):
        self.layer = layer

    def fit(self, X, y=None):
        """Do nothing."""
        return self

    def __sklearn_is_fitted__(self):
        return True

    def network(self):
        """Build the network once a process, which is kinder than most notebooks are."""
        import keras

        if self.layer not in self._networks:
            base = keras.applications.MobileNet(include_top=False, input_shape=(224, 224, 3))
            maps = base.get_layer(self.layer).output
            row = keras.layers.GlobalAveragePooling2D()(maps)
            self._networks[self.layer] = keras.Model(base.input, row)
        return self._networks[self.layer]

    def transform(self, X):
        """Return average-pooled features."""
        global N_COUNTED
        import keras

        N_COUNTED += len(X)
        load = keras.utils.load_img
        photos = [np.asarray(load(p, target_size=(224, 224), interpolation="bilinear")) for p in X]
        pixels = keras.applications.mobilenet.preprocess_input(np.stack(photos).astype("float32"))
        return self.network().predict(pixels, batch_size=32, verbose=0)


def warm_up_keras(photos):
    """Build, trace and run the networks before the clock starts."""
    global N_COUNTED
    for layer in LAYERS:
        for n in (8, 32):
            KerasFeatures(layer).transform(photos.data[:n])
    N_COUNTED = 0


def keras_search(photos, memory=None):
    """Search with Keras inside a plain transformer."""
    warm_up_keras(photos)
    pipe = Pipeline([("cnn", KerasFeatures()), ("svm", SVC())], memory=memory)
    start = time.perf_counter()
    search = GridSearchCV(pipe, {"cnn__layer": LAYERS, **PARAMS}, cv=N_FOLDS)
    search.fit(photos.data, photos.target)
    return time.perf_counter() - start, search.best_score_


def by_hand(photos, folder):
    """Compute each layer's features once with Keras, search each in memory."""
    warm_up_keras(photos)
    start = time.perf_counter()
    scores = []
    for layer in LAYERS:
        features = KerasFeatures(layer).transform(photos.data)
        search = GridSearchCV(Pipeline([("svm", SVC())]), PARAMS, cv=N_FOLDS)
        scores.append(search.fit(features, photos.target).best_score_)
    return time.perf_counter() - start, max(scores)


def ours(photos, cache=None, ahead=False):
    """Search with CNNFeatureTransformer."""
    from sklearn_cnnfeat import CNNFeatureTransformer, precompute

    count_images()
    start = time.perf_counter()
    cnn = CNNFeatureTransformer("mobilenet", LAYERS[0], "avg", cache=cache)
    pipe = Pipeline([("cnn", cnn), ("svm", SVC())])
    search = GridSearchCV(pipe, {"cnn__layer": LAYERS, **PARAMS}, cv=N_FOLDS)
    if ahead:
        precompute(search, photos.data, verbose=0)
    search.fit(photos.data, photos.target)
    return time.perf_counter() - start, search.best_score_


def count_images():
    """Count what goes through the network where it goes through."""
    from sklearn_cnnfeat._network.engines.openvino import OpenVINOEngine

    run = OpenVINOEngine.run

    def counting(engine, batches, deliver):
        def counted(token, rows):
            global N_COUNTED
            # A newly compiled network is compared with Keras on noise, numbered without a key.
            N_COUNTED += isinstance(token, tuple)
            deliver(token, rows)

        return run(engine, batches, counted)

    OpenVINOEngine.run = counting


SEARCHES = {
    "Keras in a transformer": lambda photos, folder: keras_search(photos),
    "the same, Pipeline(memory=)": keras_search,
    "by hand, layer by layer": by_hand,
    "ours, no cache": lambda photos, folder: ours(photos),
    "ours, cache": lambda photos, folder: ours(photos, folder),
    "ours, precompute": lambda photos, folder: ours(photos, folder, ahead=True),
    "ours, second run": lambda photos, folder: ours(photos, folder, ahead=True),
}
SLOW = list(SEARCHES)[:4]


def measure_search(name, photos, folder):
    """Return seconds, images through the network, and the best score."""
    seconds, score = SEARCHES[name](photos, folder)
    return {"seconds": seconds, "images": N_COUNTED, "score": score}


# --- rows from a full cache, and what filling it costs ------------------------------------------


def copies(photos, n, folder):
    """Return n files, each of other bytes: a JPEG image ends before what is appended here."""
    paths = []
    for i in range(n):
        path = Path(folder) / f"{i:06d}.jpg"
        path.write_bytes(Path(photos.data[i % len(photos.data)]).read_bytes() + b"%09d" % i)
        paths.append(str(path))
    return paths


def settings(pooling, cache):
    """Return the transformer whose rows are read."""
    from sklearn_cnnfeat import CNNFeatureTransformer

    return CNNFeatureTransformer("mobilenet", "conv_dw_13_relu", pooling, cache=cache)


def fill(photos, folder, n):
    """Make the files and the cache that the next measurement reads."""
    from sklearn_cnnfeat import precompute

    files = Path(folder) / "files"
    files.mkdir()
    paths = copies(photos, n, files)
    cnn = settings("avg", Path(folder) / "cache")
    report = precompute(cnn, paths, {"pooling": ["avg", "flatten"]}, verbose=0)
    return {"images": report.n_computed, "passes": report.n_passes}


def full_hit(pooling, folder, n):
    """Read all rows from the cache: files seen for the first time, and again."""
    count_images()
    paths = sorted(str(path) for path in (Path(folder) / "files").iterdir())[:n]
    cnn = settings(pooling, Path(folder) / "cache").fit(paths[:1])
    cnn.transform(paths[:8])
    before = peak_rss()
    start = time.perf_counter()
    features = cnn.transform(paths)
    first = time.perf_counter() - start
    peak = peak_rss()
    rates = []
    for _ in range(3):
        del features
        start = time.perf_counter()
        features = cnn.transform(paths)
        rates.append(len(paths) / (time.perf_counter() - start))
    if N_COUNTED or "tensorflow" in sys.modules or "openvino" in sys.modules:
        raise SystemExit("something was computed: the figures would mean nothing")
    return {
        "columns": features.shape[1],
        "rows": len(paths),
        "rows_per_second_first": len(paths) / first,
        "rows_per_second_again": statistics.median(rates),
        "output_mb": features.nbytes / 1e6,
        "peak_over_output_mb": (peak - before) / 1e6 - features.nbytes / 1e6,
    }


def peak_rss():
    """Return the peak memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def cold_cost(photos, folder, n, rounds):
    """Compare runs without a cache and runs that fill one, in turn."""
    from sklearn_cnnfeat import CNNFeatureTransformer

    files = Path(folder) / "cold"
    files.mkdir()
    paths = copies(photos, n, files)
    seconds = {"no cache": [], "filling a cache": []}
    for number in range(-1, rounds):  # one round to warm up
        for name, cache in (("no cache", None), ("filling a cache", Path(folder) / str(number))):
            cnn = CNNFeatureTransformer(
                "mobilenet_v2", "last", "avg", weights=None, random_state=0, cache=cache
            ).fit(paths)
            start = time.perf_counter()
            cnn.transform(paths)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "images": n,
        "images_per_second": {name: n / statistics.median(s) for name, s in seconds.items()},
        "cost": statistics.median(ratios) - 1,
        "cost_of_each_round": [ratio - 1 for ratio in ratios],
    }


# --- running all ---------------------------------------------------------------------------------


def child(job, folder, photos, quick):
    """Do one job in this process."""
    from sklearn_cnnfeat import load_image_folder

    data = load_image_folder(photos)
    if quick:
        data.data, data.target = data.data[::5], data.target[::5]
    kind, *arguments = job
    n = 240 if quick else 2400
    if kind == "search":
        return measure_search(arguments[0], data, folder)
    if kind == "fill":
        return fill(data, folder, n)
    if kind == "full hit":
        return full_hit(arguments[0], folder, n)
    return cold_cost(data, folder, 120 if quick else 600, 3 if quick else 7)


def run(job, folder, options):
    """Do one job in a new process."""
    command = [sys.executable, __file__, "--photos", options.photos, "--job", json.dumps(job)]
    command += ["--folder", str(folder)] + (["--quick"] if options.quick else [])
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_searches(options, folder):
    """Measure every way to search; ours several times, each with a new cache."""
    run(["search", "ours, precompute"], tempfile.mkdtemp(dir=folder), options)  # compiles
    run(["search", "ours, no cache"], tempfile.mkdtemp(dir=folder), options)
    results = {}
    for name in SEARCHES:
        if name == "ours, second run":
            continue
        runs, again = [], []
        for _ in range(1 if name in SLOW or options.quick else 5):
            cache = tempfile.mkdtemp(dir=folder)
            runs.append(run(["search", name], cache, options))
            print(f"{name}: {runs[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
            if name == "ours, precompute":
                again.append(run(["search", "ours, second run"], cache, options))
        results[name] = dict(runs[0], seconds=statistics.median(r["seconds"] for r in runs))
        if again:
            seconds = statistics.median(r["seconds"] for r in again)
            results["ours, second run"] = dict(again[0], seconds=seconds)
    return results


def main():
    """Measure, print tables, write JSON and a picture."""
    assets = os.environ.get("CNNFEAT_TEST_ASSETS")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", default=assets and str(Path(assets) / "photos"))
    parser.add_argument("--results", default=str(Path(__file__).parent / "results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.photos:
        parser.error("--photos is needed: a folder with one folder of photographs a class")
    if assets:
        os.environ.setdefault("KERAS_HOME", str(Path(assets) / "keras_home"))
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(child(job, options.folder, options.photos, options.quick)))
        return
    with tempfile.TemporaryDirectory(prefix="cnnfeat-bench-") as folder:
        searches = run_searches(options, folder)
        print_searches(searches)
        filled = run(["fill"], folder, options)
        print(f"\n{filled['images']} files through the network in {filled['passes']} pass; then")
        hits = {pooling: run(["full hit", pooling], folder, options) for pooling in POOLINGS}
        print_hits(hits)
        cold = run(["cold cost"], folder, options)
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in cold["images_per_second"].items())
        print(
            f"\nMobileNetV2, average pooling, images/s: {rates}; cost {100 * cold['cost']:+.1f} %"
        )
    results = Path(options.results)
    results.mkdir(exist_ok=True)
    record = {"machine": machine(), "searches": searches, "full_hits": hits, "cold": cold}
    (results / "search.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(searches, results / "search.png")


POOLINGS = ("avg", "flatten")


def machine():
    """Return what the figures depend on."""
    from importlib.metadata import version

    names = ("numpy", "scikit-learn", "tensorflow", "keras", "openvino", "pillow")
    return {
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def print_searches(searches):
    """Print seconds, images through a network, and how many times ours is faster."""
    best = searches["ours, precompute"]["seconds"]
    print(f"{'search':30s}  seconds  images  times ours  best score")
    for name, result in searches.items():
        print(
            f"{name:30s}  {result['seconds']:7.2f}  {result['images']:6d}  "
            f"{result['seconds'] / best:10.1f}  {result['score']:10.3f}",
            flush=True,
        )


def print_hits(hits):
    """Print how fast rows come back."""
    print("pooling  columns   rows/s  files new, rows/s  output  peak over it")
    for pooling, hit in hits.items():
        print(
            f"{pooling:7s}  {hit['columns']:7d}  {hit['rows_per_second_again']:7.0f}  "
            f"{hit['rows_per_second_first']:17.0f}  {hit['output_mb']:3.0f} MB  "
            f"{hit['peak_over_output_mb']:9.0f} MB",
            flush=True,
        )


def draw(searches, path):
    """Draw the seconds of each search as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 3.5), layout="constrained")
    names = list(searches)[::-1]
    seconds = [searches[name]["seconds"] for name in names]
    colours = ["C0" if name.startswith("ours") else "0.6" for name in names]
    bars = ax.barh(names, seconds, color=colours)
    labels = [f"{searches[n]['seconds']:.2f} s, {searches[n]['images']} images" for n in names]
    ax.bar_label(bars, labels, padding=4)
    ax.set_xscale("log")
    ax.set_xlim(right=max(seconds) * 8)
    ax.set_xlabel("seconds (logarithmic)")
    ax.set_title("3 layers x 4 values of C x 5 folds, 120 photographs, MobileNet")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
