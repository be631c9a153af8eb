"""What every benchmark needs: photographs, the machine, statistics, tables, files and plots."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
# Weights, converted networks, compiled programs and generated photographs, kept between runs.
WORK = Path(os.environ.get("CNNFEAT_BENCH_WORK") or Path(tempfile.gettempdir()) / "cnnfeat-bench")

_PACKAGES = (
    "sklearn-cnnfeat",
    "scikit-learn",
    "numpy",
    "pillow",
    "keras",
    "tensorflow",
    "openvino",
    "ncnn",
    "MNN",
    "nncf",
    "onnxruntime",
    "tf2onnx",
    "torch",
    "torchvision",
    "timm",
    "embetter",
    "img2vec_pytorch",
    "pyarrow",
    "zarr",
)
_GENERATED = 120


# --- the command line -----------------------------------------------------------------------------


def make_parser(name, description, rounds):
    """Return a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--photos",
        default=os.environ.get("CNNFEAT_BENCH_PHOTOS"),
        help="folder of JPEG files, searched with its subfolders; without it "
        "$CNNFEAT_BENCH_PHOTOS, and without that generated pictures of 500 x 375 pixels",
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="how often everything is measured, in turn"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / f"{name}.json", help="where the figures go"
    )
    return parser


def find_photos(folder):
    """Return the sorted paths of the JPEG files in `folder`, or of generated ones."""
    if folder is None:
        folder = WORK / "photos"
        _generate_photos(folder)
    paths = sorted(
        str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    if not paths:
        raise SystemExit(f"There are no .jpg files in {folder}.")
    return paths


def _generate_photos(folder):
    """Write pictures that take a decoder about as long as photographs of their size do."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(_GENERATED):
        path = folder / f"{i:03d}.jpg"
        if path.exists():
            continue
        random = np.random.default_rng(i)
        # Coarse shapes, and grain for the detail that fills a photograph's file.
        shapes = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        pixels = np.asarray(shapes.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, 12, pixels.shape)
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
        temporary = path.with_suffix(".tmp")
        Image.fromarray(pixels).save(temporary, "JPEG", quality=85)
        temporary.rename(path)


def run_alone(script, name, environment=None, seconds=None):
    """Run ``script --one NAME`` in a separate process; return the record that it prints as JSON.

    An error, or a process that takes longer than so many seconds, gives a record of that.
    """
    command = [sys.executable, script, "--one", name]
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=os.environ | (environment or {}),
        )
    except subprocess.TimeoutExpired:
        return {"network": name, "error": f"not done after {seconds} seconds"}
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
    return {"network": name, "error": lines[-1]}


def begin_series(description, check, report, names="default: those missing"):
    """Return the networks that were named and the report so far; with ``--one``, check one only."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=names)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(check(arguments.networks[0])))
        sys.exit()
    known = json.loads(report.read_text()) if report.exists() else {"networks": {}}
    known["machine"] = describe_machine()
    print_machine(known["machine"])
    return arguments.networks, known


def cycled(paths, count):
    """Return `count` paths, from the first again after the last."""
    return [paths[i % len(paths)] for i in range(count)]


# --- the machine ----------------------------------------------------------------------------------


def count_cores():
    """Return the number of cores that this process may use."""
    import joblib

    return joblib.cpu_count()


def peak_rss_mb():
    """Return the largest resident memory that this process has had, in MB (10^6 bytes)."""
    try:
        # `getrusage` also counts what the parent held when it started this process.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def installed(distribution):
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def describe_machine():
    """Return what the figures depend on besides the code."""
    import psutil

    return {
        "processor": _processor(),
        "cores": count_cores(),
        "instructions": _instructions(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: v for name in _PACKAGES if (v := installed(name)) is not None},
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpuinfo():
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _processor():
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _instructions():
    wanted = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile")
    flags = set(_cpuinfo().split())
    return [flag for flag in wanted if flag in flags]


def print_machine(machine):
    """Print the machine, and a warning where other work would disturb the figures."""
    print(
        f"{machine['processor']}, {machine['cores']} cores "
        f"({' '.join(machine['instructions'])}), {machine['memory_gb']} GB, Python "
        f"{machine['python']}\n"
        + ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    )
    if machine["load_before"] is not None and machine["load_before"] > 0.5:
        print(f"The machine is busy (load {machine['load_before']}): the figures will be noisy.")
    print(flush=True)


# --- statistics -----------------------------------------------------------------------------------


def summarize(values):
    """Return median, smallest and largest value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def geometric_mean(values):
    """Return the geometric mean; None of nothing."""
    return statistics.geometric_mean(values) if values else None


# --- what comes out -------------------------------------------------------------------------------


def print_table(header, rows):
    """Print rows of text under a header, the first column on the left, the others on the right."""
    cells = [header, *[["" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *others]).rstrip())
    print(flush=True)


def show(value, digits=3):
    """Return a number with `digits` significant digits, as text."""
    if value is None:
        return "-"
    decimals = max(0, digits - len(str(int(abs(value)))))
    return f"{value:,.{decimals}f}"


def save(options, machine, results, figure):
    """Write the figures as JSON and the plot beside them."""
    settings = {
        name: value
        for name, value in vars(options).items()
        if isinstance(value, (str, int, float, list)) and name != "photos"
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "settings": settings, **results}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    picture = options.out.with_suffix(".png")
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    print(f"Written: {options.out} and {picture.name}")


def make_axes(n_panels, width, height):
    """Return a figure without a window, and its panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_bars(panel, labels, values, spread=None, title="", unit=""):
    """Draw horizontal bars, the first on top, each with its number and a line from low to high."""
    positions = range(len(labels))
    panel.barh(positions, values, color="tab:blue", height=0.7)
    for position, (low, high) in enumerate(spread or ()):
        panel.plot([low, high], [position, position], color="0.2")
    for position, value in enumerate(values):
        end = max(value, spread[position][1]) if spread else value
        panel.text(end, position, f" {show(value)}", va="center")
    panel.set_xlim(0, 1.25 * max(panel.get_xlim()[1], *values))
    panel.set_yticks(positions, labels)
    panel.invert_yaxis()
    panel.set_title(title)
    panel.set_xlabel(unit)
