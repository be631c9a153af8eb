"""What a page to explore and a map of photographs cost beyond the network: seconds, memory, bytes.

Each figure comes from a separate process. Photographs are cut out of those that there are, each
elsewhere and some mirrored, so that all files differ. With Chromium and playwright the pages are
opened as well: seconds until the first picture, and frames a second while the map is zoomed.
"""

import argparse
import json
import os
import shutil
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

_BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
_LAYER = "conv_pw_11_relu"
# Zooms in and out, a frame each, and returns frames a second.
_FRAMES = """async () => {
  const canvas = document.querySelector('#points');
  const {left, top, width, height} = canvas.getBoundingClientRect();
  const place = {clientX: left + width / 2, clientY: top + height / 2, bubbles: true};
  const n = 120, start = performance.now();
  for (let k = 0; k < n; k++) {
    canvas.dispatchEvent(new WheelEvent('wheel', {...place, deltaY: k % 40 < 20 ? -30 : 30}));
    await new Promise(requestAnimationFrame);
  }
  return 1000 * n / (performance.now() - start);
}"""


# --- parts, each in a separate process ------------------------------------------------------------


def make_transformer(options):
    """Return MobileNet, average pooling."""
    from sklearn_cnnfeat import CNNFeatureTransformer

    weights = None if options.random else "imagenet"
    return CNNFeatureTransformer("mobilenet", _LAYER, "avg", weights=weights, random_state=0)


def fit_pipeline(options, paths):
    """Return a pipeline fitted to a few photographs, and the classes of all."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = [Path(path).parent.name for path in paths]
    if len(set(y)) < 2:
        y = ["first" if 2 * k < len(paths) else "second" for k in range(len(paths))]
    few = slice(None, None, max(1, len(paths) // 100))
    model = LogisticRegression(max_iter=2000)
    pipe = make_pipeline(make_transformer(options), StandardScaler(), model)
    return pipe.fit(paths[few], y[few]), y


def time_extract(options, paths, folder):
    """Write the features to a file: what inference costs."""
    from sklearn_cnnfeat import extract

    cnn = make_transformer(options).fit(paths[:8])
    extract(paths[:16], folder / "first.npy", cnn, verbose=0)
    start = time.perf_counter()
    extract(paths, folder / "rows.npy", cnn, verbose=0)
    return {"seconds": time.perf_counter() - start}


def time_page(options, paths, folder):
    """Write the page, with a pipeline from a file."""
    import joblib

    from sklearn_cnnfeat import explore

    pipe, y = joblib.load(WORK / "pipeline.joblib")
    start = time.perf_counter()
    page = explore(pipe, paths, y, folder / "page.html")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mb": page.stat().st_size / 1e6}


def save_pipeline(options, paths, folder):
    """Fit a pipeline for the page, so that its memory is none of the page's."""
    import joblib

    joblib.dump(fit_pipeline(options, paths), WORK / "pipeline.joblib")
    return {}


def time_map(options, paths, folder):
    """Draw a map with thumbnails, from files to a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from sklearn_cnnfeat import EmbeddingDisplay

    pipe, y = fit_pipeline(options, paths)
    pipe.predict(paths[:8])
    start = time.perf_counter()
    pipe.predict(paths)
    inference = time.perf_counter() - start
    start = time.perf_counter()
    display = EmbeddingDisplay.from_estimator(pipe, paths, y, thumbnails=True)
    display.figure_.savefig(folder / "map.png")
    return {"seconds": time.perf_counter() - start, "inference": inference}


def time_browser(options, paths, folder):
    """Open a page of these photographs; return seconds and frames a second."""
    from playwright.sync_api import sync_playwright

    page = options.page
    if page is None:
        page = folder / "page.html"
        write_points(page, options.count)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        tab.goto(Path(page).as_uri())
        tab.wait_for_function("window.cnnfeat")
        tab.evaluate("() => new Promise(requestAnimationFrame)")
        opened = time.perf_counter() - start
        tab.wait_for_timeout(500)
        frames = tab.evaluate(_FRAMES)
        chromium.close()
    return {"seconds": opened, "frames": frames}


def write_points(page, count):
    """Write a page of small pictures of noise, which take a browser what photographs take."""
    import numpy as np

    from sklearn_cnnfeat import CNNFeatureTransformer, explore

    photos = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    cnn = CNNFeatureTransformer(
        "mobilenet", "conv_pw_1_relu", "avg", weights=None, random_state=0, input_size=32
    )
    explore(cnn, photos, np.arange(count) % 12, page)


PARTS = {
    "fit": save_pipeline,
    "extract": time_extract,
    "page": time_page,
    "map": time_map,
    "browser": time_browser,
}


def run_part(name, options, count, page=None):
    """Run one part in a separate process; return its figures."""
    command = [sys.executable, __file__, "--part", name, "--count", str(count)]
    command += ["--page", str(page)] if page else []
    command += ["--random"] if options.random else []
    command += ["--photos", str(options.photos)] if options.photos else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main_of_part():
    """Run the part that the arguments name, and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--count", type=int)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--photos", default=os.environ.get("CNNFEAT_BENCH_PHOTOS"))
    options = parser.parse_args()
    paths = [] if options.part == "browser" else cut_photos(options)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        figures = PARTS[options.part](options, paths, Path(folder))
        if options.part == "page":
            shutil.move(Path(folder) / "page.html", WORK / f"page_{options.count}.html")
    print(json.dumps({**figures, "peak_rss_mb": peak_rss_mb()}))


def cut_photos(options):
    """Return the paths of so many different photographs, cut out of those that there are."""
    import numpy as np
    from PIL import Image, ImageOps

    folder = WORK / "cut_photos"
    originals = find_photos(options.photos)
    paths = []
    for k in range(options.count):
        original = Path(originals[k % len(originals)])
        path = folder / original.parent.name / f"{k:05d}.jpg"
        paths.append(str(path))
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(k)
        with Image.open(original) as image:
            size = np.array(image.size)
            part = np.rint(size * rng.uniform(0.75, 1)).astype(int)
            corner = rng.integers(0, size - part + 1)
            cut = image.convert("RGB").crop([*corner, *(corner + part)]).resize(image.size)
            (ImageOps.mirror(cut) if k % 2 else cut).save(path, quality=88)
    return paths


# --- all of them ----------------------------------------------------------------------------------


def main():
    """Measure, print, write."""
    parser = make_parser("explore", __doc__, rounds=3)
    parser.add_argument("--photographs", type=int, default=2000, help="on the page")
    parser.add_argument("--thumbnails", type=int, default=200, help="on the map")
    parser.add_argument("--points", type=int, default=10_000, help="whose frames are counted")
    parser.add_argument("--random", action="store_true", help="random instead of published weights")
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    WORK.mkdir(parents=True, exist_ok=True)
    run_part("fit", options, options.photographs)
    runs = {"extract": [], "page": [], "map": [], "browser": [], "points": []}
    for _ in range(options.rounds):
        for name in ("extract", "page"):
            runs[name].append(run_part(name, options, options.photographs))
        runs["map"].append(run_part("map", options, options.thumbnails))
        page = WORK / f"page_{options.photographs}.html"
        runs["browser"].append(run_part("browser", options, 1, page))
    runs["points"].append(run_part("browser", options, options.points))
    figures = {
        name: {key: summarize([run[key] for run in some]) for key in some[0]}
        for name, some in runs.items()
    }
    n, small = f"{options.photographs:,}", f"{options.thumbnails:,}"
    page, extract, map_ = figures["page"], figures["extract"], figures["map"]
    beyond = {
        f"page of {n}, s": page["seconds"]["median"] - extract["seconds"]["median"],
        f"map of {small}, s": map_["seconds"]["median"] - map_["inference"]["median"],
        f"open {n}, s": figures["browser"]["seconds"]["median"],
    }
    rows = [[name, show(value)] for name, value in beyond.items()]
    rows += [
        [f"page of {n}, MB", show(page["mb"]["median"])],
        [f"peak memory of extract, {n}, MB", show(extract["peak_rss_mb"]["median"])],
        [f"peak memory of explore, {n}, MB", show(page["peak_rss_mb"]["median"])],
        [f"frames a second, {n}", show(figures["browser"]["frames"]["median"])],
        [f"frames a second, {options.points:,}", show(figures["points"]["frames"]["median"])],
    ]
    print_table(["beyond inference", "median"], rows)
    figure, (panel,) = make_axes(1, 7, 2.4)
    plot_bars(panel, list(beyond), list(beyond.values()), title="Beyond inference", unit="seconds")
    save(options, machine, {"explore": figures, "beyond_inference": beyond}, figure)


if __name__ == "__main__":
    main_of_part() if "--part" in sys.argv else main()
