"""The first use of a network, another layer of it, and a first and a second model in a process.

Each row is a separate process with an empty cache folder, but for "another layer", which finds
what the one before it has converted. Seconds are counted from the start of the interpreter to the
first row. "converting" is the peak memory of the process that converts, if there is one.

With ``--before FOLDER`` a checkout of another version is measured in turn.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
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

NETWORKS = {
    "mobilenet_v2": ("MobileNetV2", "out_relu", "block_6_expand_relu"),
    "vgg16": ("VGG16", "block5_pool", "block3_pool"),
    "efficientnet_b0": ("EfficientNetB0", "top_activation", "block4a_activation"),
}

_MEMORY = """
import glob, json, os, sys, time

def peak_mb(pid):
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmHWM"].split()[0]) / 1024

def children(pid):
    for task in glob.glob(f"/proc/{pid}/task/*/children"):
        for child in open(task).read().split():
            yield child
            yield from children(child)
"""
_NETWORK = (
    _MEMORY
    + """
from sklearn_cnnfeat import CNNFeatureTransformer
name, layer, weights, photo = sys.argv[1:]
CNNFeatureTransformer(name, layer, "avg", weights=weights).fit_transform([photo])
peaks = [peak_mb(pid) for pid in children(os.getpid())]
print(json.dumps({"peak_mb": peak_mb("self"), "converting_mb": max(peaks, default=None)}))
"""
)
_MODELS = """
import json, sys, time
import keras
from sklearn_cnnfeat import CNNFeatureTransformer
from keras import layers
models = []
for width in (8, 16):
    models.append(keras.Sequential([
        layers.Input((64, 64, 3)), layers.Rescaling(1 / 255), layers.Conv2D(width, 3),
        layers.ReLU(), layers.MaxPooling2D(),
        layers.Conv2D(2 * width, 3, activation="relu", name="last"),
    ]))
seconds = []
for model in models:
    start = time.perf_counter()
    CNNFeatureTransformer(model, "last", "avg").fit_transform([sys.argv[1]])
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds))
"""


def save_weights(folder):
    """Write random weights of each network to a file, in a process that then ends."""
    code = (
        "import sys, keras\n"
        "for name, path in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    network = getattr(keras.applications, name)\n"
        "    network(weights=None, include_top=False, input_shape=(224, 224, 3)).save_weights(path)"
    )
    paths = {name: folder / f"{name}.weights.h5" for name in NETWORKS}
    pairs = [text for name, path in paths.items() for text in (NETWORKS[name][0], str(path))]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", code, *pairs], env=environment, check=True)
    return paths


def run(code, arguments, checkout, home):
    """Run a script on a checkout; return its seconds and what it printed as JSON."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "SKLEARN_CNNFEAT_HOME": home,
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    start = time.perf_counter()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=home
    )
    return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])


def measure_once(name, weights, photo, checkout):
    """Return the figures of one network: its first use, and another layer in another process."""
    _, layer, other = NETWORKS[name]
    with TemporaryDirectory(prefix="cnnfeat-bench-") as home:
        seconds, memory = run(_NETWORK, (name, layer, weights, photo), checkout, home)
        again, memory_again = run(_NETWORK, (name, other, weights, photo), checkout, home)
    return {
        "first use": {"seconds": seconds, **memory},
        "another layer": {"seconds": again, **memory_again},
    }


def measure_models(photo, checkout):
    """Return the seconds of a first and of a second small model in a process that has Keras."""
    with TemporaryDirectory(prefix="cnnfeat-bench-") as home:
        _, seconds = run(_MODELS, (photo,), checkout, home)
    return {
        what: {"seconds": value}
        for what, value in zip(("first model", "second model"), seconds, strict=True)
    }


def plot(results):
    """Draw the seconds of each network and use."""
    figure, axes = make_axes(len(results), 4 * len(results), 2.8)
    for panel, (version, networks) in zip(axes, results.items(), strict=True):
        rows = [
            (f"{name}, {use}", use_)
            for name, uses in networks.items()
            for use, use_ in uses.items()
        ]
        values = [figures["seconds"] for _, figures in rows]
        spread = [(value["low"], value["high"]) for value in values]
        labels = [label for label, _ in rows]
        plot_bars(panel, labels, [value["median"] for value in values], spread, version, "seconds")
    return figure


def main():
    """Measure, print, write."""
    parser = make_parser("first_use", __doc__, rounds=3)
    parser.add_argument(
        "networks", nargs="*", default=list(NETWORKS), help="of " + ", ".join(NETWORKS)
    )
    parser.add_argument("--before", help="checkout of another version, measured in turn")
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    photo = find_photos(options.photos)[0]
    checkouts = {"this version": Path(__file__).resolve().parents[1]}
    if options.before:
        checkouts["before"] = Path(options.before).resolve()
    runs = {version: {} for version in checkouts}
    with TemporaryDirectory(prefix="cnnfeat-bench-") as folder:
        weights = save_weights(Path(folder))
        for _ in range(options.rounds):
            for version, checkout in checkouts.items():
                for name in options.networks:
                    figures = measure_once(name, weights[name], photo, checkout)
                    runs[version].setdefault(name, []).append(figures)
                figures = measure_models(photo, checkout)
                runs[version].setdefault("small keras.Model", []).append(figures)
    results = {
        version: {name: _summarize_uses(figures) for name, figures in networks.items()}
        for version, networks in runs.items()
    }
    for version, networks in results.items():
        print(f"{version}:")
        rows = [
            [name, use, *(show(figures[key]["median"]) if key in figures else "-" for key in _KEYS)]
            for name, uses in networks.items()
            for use, figures in uses.items()
        ]
        print_table(["network", "use", "seconds", "peak MB", "converting MB"], rows)
    save(options, machine, {"versions": results}, plot(results))


_KEYS = ("seconds", "peak_mb", "converting_mb")


def _summarize_uses(rounds):
    """Return the summary of each figure over the rounds."""
    return {
        use: {
            key: summarize([one[use][key] for one in rounds])
            for key in _KEYS
            if figures.get(key) is not None
        }
        for use, figures in rounds[0].items()
    }


if __name__ == "__main__":
    main()
