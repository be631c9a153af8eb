"""Do memory, threads and file handles stay flat over a long time?

Three runs, each in a separate process: tens of thousands of `transform` calls with one small
image each; one stream over tens of thousands of files; and images of ever other sizes through a
fully convolutional network. Samples are taken all the time. Memory is fitted with a straight line
after the first part of a run; its uncertainty comes from the scatter of the means of blocks of
samples, because neighbouring samples are not independent.
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
    print_machine,
    print_table,
    save,
    show,
)

RUNS = {
    "calls": "transform of one image",
    "stream": "one stream of files",
    "sizes": "images of other sizes",
}
# Part of a run that is warm-up (allocators take their last steps), and blocks that the rest is cut
# into.
WARM_UP = 0.5
N_BLOCKS = 20
SAMPLE_SECONDS = 0.1
_MOST_SAMPLES = 200_000
# Of them, about so many are kept in the file.
_KEPT_SAMPLES = 100


class Sampler:
    """Notes down memory, threads and open files of this process, now and then."""

    def __init__(self):
        import numpy as np
        import psutil

        self._process = psutil.Process()
        self._start = time.perf_counter()
        self._next = 0.0
        # Made and touched beforehand: samples must not be what grows.
        self._samples = np.ones((_MOST_SAMPLES, 5))
        self._count = 0

    def __call__(self, done):
        """Take a sample if it is time; `done` says how far the run is."""
        now = time.perf_counter() - self._start
        if now < self._next or self._count == _MOST_SAMPLES:
            return
        self._next = now + SAMPLE_SECONDS
        self._samples[self._count] = (
            now,
            done,
            self._process.memory_info().rss,
            self._process.num_threads(),
            self._process.num_fds() if hasattr(self._process, "num_fds") else 0,
        )
        self._count += 1

    @property
    def samples(self):
        """What has been noted down, a list a sample."""
        return self._samples[: self._count].tolist()


def make_network(path, fully_convolutional=False):
    """Save a small network if it is not there yet; return its path."""
    if path.exists():
        return str(path)
    import keras

    side = None if fully_convolutional else 32
    keras.utils.set_random_seed(0)
    keras.Sequential(
        [
            keras.Input((side, side, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.DepthwiseConv2D(3, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu", name="features"),
        ]
    ).save(path)
    return str(path)


def run_calls(options, folder):
    """Transform one image at a time: a file, an array, encoded bytes."""
    import numpy as np
    from PIL import Image

    from sklearn_cnnfeat import CNNFeatureTransformer

    pixels = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8)
    kinds = []
    for i, image in enumerate(pixels):
        path = folder / f"{i}.jpg"
        Image.fromarray(image).save(path)
        kinds += [[str(path)], [image], [path.read_bytes()]]
    cnn = CNNFeatureTransformer(make_network(folder / "fixed.keras"), "features", "avg")
    cnn.fit(kinds[0])
    expected = [cnn.transform(X) for X in kinds]
    sample = Sampler()
    for i in range(options.calls):
        rows = cnn.transform(kinds[i % len(kinds)])
        if i % 1000 == 0 and not np.array_equal(rows, expected[i % len(kinds)]):
            raise SystemExit("other rows than at first")
        sample(i)
    return sample.samples


def run_stream(options, folder):
    """Transform a long list of files; rows go nowhere, so that only what stays is seen."""
    from sklearn_cnnfeat import CNNFeatureTransformer
    from sklearn_cnnfeat._transformer import extractor_for

    paths = find_photos(options.photos)
    cnn = CNNFeatureTransformer(make_network(folder / "fixed.keras"), "features", "avg")
    cnn.fit(paths)
    paths = [paths[i % len(paths)] for i in range(options.images)]
    extractor, images = extractor_for(cnn, paths)
    sample = Sampler()

    class Sink:
        def write(self, i, rows):
            sample(i)

        def fail(self, i, *error):
            raise SystemExit(f"image {i} cannot be read")

    extractor.run(images, Sink())
    return sample.samples


def run_sizes(options, folder):
    """Transform images of sizes that hardly come twice."""
    import numpy as np

    from sklearn_cnnfeat import CNNFeatureTransformer

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (160, 160, 3), np.uint8)
    network = make_network(folder / "any.keras", fully_convolutional=True)
    cnn = CNNFeatureTransformer(network, "features", "avg").fit([pixels])
    # The largest first: nothing later needs more at once.
    cnn.transform([pixels] * 8)
    sample = Sampler()
    for i in range(options.sizes):
        height, width = random.integers(32, 161, 2)
        cnn.transform([pixels[:height, :width]])
        sample(i)
    return sample.samples


def child(name, options):
    """Do one run; print its samples."""
    os.environ["SKLEARN_CNNFEAT_HOME"] = str(options.folder / "home")
    runs = {"calls": run_calls, "stream": run_stream, "sizes": run_sizes}
    print(json.dumps(runs[name](options, options.folder)))


def run(name, options):
    """Run `child` in a separate process; return its samples."""
    counts = {setting: getattr(options, setting) for setting in ("calls", "images", "sizes")}
    with tempfile.TemporaryDirectory() as folder:
        # A first process compiles the network, with TensorFlow; the other one only loads it.
        for some in (dict.fromkeys(counts, 10), counts):
            command = [sys.executable, __file__, "--job", name, "--folder", folder]
            for setting, value in some.items():
                command += [f"--{setting}", str(value)]
            if options.photos:
                command += ["--photos", options.photos]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def fit_line(seconds, values):
    """Fit a line to the means of blocks; return its slope and the slope's standard error."""
    import numpy as np

    blocks = [
        (np.mean(s), np.mean(v))
        for s, v in zip(
            np.array_split(seconds, N_BLOCKS), np.array_split(values, N_BLOCKS), strict=True
        )
    ]
    x, y = np.array(blocks).T
    x = x - x.mean()
    slope = (x @ y) / (x @ x)
    residuals = y - y.mean() - slope * x
    return slope, np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x))


def summarize_run(samples):
    """Return the figures of one run."""
    import numpy as np

    seconds, done, rss, threads, handles = (
        np.array(column) for column in zip(*samples, strict=True)
    )
    late = seconds >= WARM_UP * seconds[-1]
    slope, error = fit_line(seconds[late], rss[late])
    third = len(rss[late]) // 3
    return {
        "images": int(done[-1]) + 1,
        "seconds": float(seconds[-1]),
        "rss_mb_after_warm_up": float(rss[late][0] / 1e6),
        "rss_mb_at_the_end": float(rss[-1] / 1e6),
        "rss_slope_mb_an_hour": float(slope * 3600 / 1e6),
        "rss_slope_standard_error": float(error * 3600 / 1e6),
        "rss_bytes_an_image": float(slope * (seconds[late][-1] - seconds[late][0]))
        / float(done[late][-1] - done[late][0]),
        "rss_mb_between_thirds": float(
            (rss[late][-third:].mean() - rss[late][:third].mean()) / 1e6
        ),
        "threads": [int(threads[late].min()), int(threads[late].max())],
        "open_files": [int(handles[late].min()), int(handles[late].max())],
    }


def main():
    """Run, print, write."""
    parser = make_parser("long_run", __doc__, rounds=1)
    parser.add_argument("--calls", type=int, default=100_000, help="calls of transform")
    parser.add_argument("--images", type=int, default=80_000, help="files of the stream")
    parser.add_argument("--sizes", type=int, default=30_000, help="images of other sizes")
    parser.add_argument("--job", choices=list(RUNS), help="for processes of its own")
    parser.add_argument("--folder", type=Path, help="for processes of its own")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if options.job:
        child(options.job, options)
        return
    machine = describe_machine()
    print_machine(machine)
    WORK.mkdir(parents=True, exist_ok=True)
    samples = {name: run(name, options) for name in RUNS}
    results = {name: summarize_run(taken) for name, taken in samples.items()}
    print_table(
        ["run", "images", "minutes", "RSS MB", "MB an hour", "+-", "threads", "open files"],
        [
            [
                RUNS[name],
                f"{result['images']:,}",
                show(result["seconds"] / 60),
                f"{show(result['rss_mb_after_warm_up'], 5)} - "
                f"{show(result['rss_mb_at_the_end'], 5)}",
                f"{result['rss_slope_mb_an_hour']:+.2f}",
                f"{1.96 * result['rss_slope_standard_error']:.2f}",
                " - ".join(map(str, result["threads"])),
                " - ".join(map(str, result["open_files"])),
            ]
            for name, result in results.items()
        ],
    )
    figure, axes = make_axes(len(RUNS), 12, 3.2)
    for panel, (name, taken) in zip(axes, samples.items(), strict=True):
        minutes = [one[0] / 60 for one in taken]
        panel.plot(minutes, [one[2] / 1e6 for one in taken], label="RSS, MB")
        panel.plot(minutes, [one[3] for one in taken], label="threads")
        panel.plot(minutes, [one[4] for one in taken], label="open files")
        panel.axvline(WARM_UP * minutes[-1], color="0.8")
        panel.set_ylim(bottom=0)
        panel.set_title(RUNS[name])
        panel.set_xlabel("minutes")
    axes[0].legend(frameon=False)
    kept = {
        name: {
            "columns": ["seconds", "images", "rss_bytes", "threads", "open_files"],
            "rows": taken[:: max(1, len(taken) // _KEPT_SAMPLES)],
        }
        for name, taken in samples.items()
    }
    save(options, machine, {"runs": results, "samples": kept}, figure)


if __name__ == "__main__":
    main()
