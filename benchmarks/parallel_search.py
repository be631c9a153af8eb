"""`GridSearchCV(n_jobs=2)` against `n_jobs=1`: do two processes get in each other's way?

A search over layers and C with MobileNet (random weights), without a cache and into an empty one:
with the photographs, and with several crops of each. Serial searches use all cores for each image
anyway, so that processes have nothing to gain but the classifiers; they must not lose. Every run is
a process of its own that searches twice: the first time joblib starts its workers, which import
scikit-learn, the second time they are there, as in a notebook. What that takes is told by the same
search over a table, with scikit-learn alone. Serial and parallel runs take turns.
"""

import json
import os
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
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
    summarize,
)

LAYERS = ["conv_pw_6_relu", "conv_pw_12_relu", "conv_dw_13_relu"]
CS = {"no cache": [1, 10], "cache": [0.1, 1, 10, 100], "scikit-learn alone": [0.1, 1, 10, 100]}
# What is searched, and the crops of each photograph.
SEARCHES = [
    ("no cache", 1),
    ("no cache", 4),
    ("cache", 1),
    ("cache", 16),
    ("scikit-learn alone", 1),
]
N_FOLDS = 5


def make_search(kind, n_jobs, folder):
    """Return the search."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if kind == "scikit-learn alone":
        return GridSearchCV(
            Pipeline([("scaler", StandardScaler()), ("svm", SVC())]),
            {"scaler__with_mean": [True, False], "svm__C": CS[kind]},
            cv=N_FOLDS,
            n_jobs=n_jobs,
        )
    from sklearn_cnnfeat import CNNFeatureTransformer

    cache = None if kind == "no cache" else tempfile.mkdtemp(dir=folder)
    cnn = CNNFeatureTransformer(
        "mobilenet", LAYERS[0], "avg", weights=None, random_state=0, cache=cache
    )
    layers = LAYERS[:2] if kind == "no cache" else LAYERS
    return GridSearchCV(
        Pipeline([("cnn", cnn), ("svm", SVC())]),
        {"cnn__layer": layers, "svm__C": CS[kind]},
        cv=N_FOLDS,
        n_jobs=n_jobs,
    )


def make_crops(paths, n_crops, folder):
    """Write so many crops of each photograph, all different; return their paths."""
    from PIL import Image

    crops = []
    for i, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        width, height = image.width - n_crops, image.height - n_crops
        for k in range(n_crops):
            crops.append(str(Path(folder) / f"{i:04d}-{k}.jpg"))
            image.crop((k, k, k + width, k + height)).save(crops[-1], quality=90)
    return crops


def child(kind, n_crops, n_jobs, paths):
    """Search twice; print seconds and scores."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        if kind == "scikit-learn alone":
            import numpy as np

            # As many rows and columns as the features of a layer have.
            X = np.random.default_rng(0).normal(size=(len(paths), 1024))
        else:
            X = paths if n_crops == 1 else make_crops(paths, n_crops, folder)
        for _ in range(2):
            search = make_search(kind, n_jobs, folder)
            start = time.perf_counter()
            search.fit(X, [i % 2 for i in range(len(X))])
            runs.append(
                {
                    "seconds": time.perf_counter() - start,
                    "scores": search.cv_results_["mean_test_score"].tolist(),
                }
            )
    print(json.dumps(runs))


def run(kind, n_crops, n_jobs, options):
    """Run `child` in a separate process."""
    command = [sys.executable, __file__, "--job", json.dumps([kind, n_crops, n_jobs])]
    if options.photos:
        command += ["--photos", options.photos]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{kind}, n_jobs={n_jobs} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(n_photos, options):
    """Return, for each search, the seconds of serial and parallel ones."""
    results = {}
    for kind, n_crops in SEARCHES:
        seconds = {(n_jobs, turn): [] for n_jobs in (1, 2) for turn in (0, 1)}
        scores = set()
        for _ in range(options.rounds):
            for n_jobs in (1, 2):
                for turn, one in enumerate(run(kind, n_crops, n_jobs, options)):
                    seconds[n_jobs, turn].append(one["seconds"])
                    scores.add(tuple(one["scores"]))
        if len(scores) != 1:
            raise SystemExit(f"{kind}: serial and parallel searches have other scores.")
        for turn, when in enumerate(("first search", "next search")):
            serial, parallel = seconds[1, turn], seconds[2, turn]
            n_images = n_photos * n_crops
            what = "rows" if kind == "scikit-learn alone" else "images"
            results[f"{kind}, {n_images:,} {what}, {when}"] = {
                "serial_seconds": summarize(serial),
                "parallel_seconds": summarize(parallel),
                "parallel_over_serial": summarize(
                    [b / a for a, b in zip(serial, parallel, strict=True)]
                ),
            }
    return {"searches": results, "scores_equal": True}


def main():
    """Measure, print, write."""
    parser = make_parser("parallel_search", __doc__, rounds=3)
    parser.add_argument("--job", help="for processes of its own")
    options = parser.parse_args()
    os.environ["SKLEARN_CNNFEAT_HOME"] = str(WORK / "home")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    paths = find_photos(options.photos)
    if options.job:
        child(*json.loads(options.job), paths)
        return
    machine = describe_machine()
    print_machine(machine)
    with tempfile.TemporaryDirectory() as folder:
        # Compiles the networks.
        make_search("cache", 1, folder).fit(paths[:10], [0, 1] * 5)
    results = measure(len(paths), options)
    print_table(
        ["search", "n_jobs=1, s", "n_jobs=2, s", "ratio", "from - to"],
        [
            [
                name,
                show(entry["serial_seconds"]["median"]),
                show(entry["parallel_seconds"]["median"]),
                show(entry["parallel_over_serial"]["median"]),
                f"{show(entry['parallel_over_serial']['low'])} - "
                f"{show(entry['parallel_over_serial']['high'])}",
            ]
            for name, entry in results["searches"].items()
        ],
    )
    figure, (panel,) = make_axes(1, 7, 5.5)
    labels, values, spread = [], [], []
    for name, entry in results["searches"].items():
        for n_jobs, key in ((1, "serial_seconds"), (2, "parallel_seconds")):
            labels.append(f"{name}, n_jobs={n_jobs}")
            values.append(entry[key]["median"])
            spread.append((entry[key]["low"], entry[key]["high"]))
    plot_bars(panel, labels, values, spread, "A search over layers", "seconds")
    save(options, machine, results, figure)


if __name__ == "__main__":
    main()
