"""How near we are to what the machine can do.

Share of the arithmetic limit: images a second times operations an image, over the operations a
second of a large float32 matrix product. An image's operations are two for each multiplication of
its convolutions and dense layers; everything else is not counted.

Work-conserving bound: the time of all images if no core were ever idle, which is inference alone on
all cores, plus decoding alone on one core divided by their number. Both are done by hand, without
this package: by OpenVINO's own queue, and by Pillow.
"""

import math
import os
import subprocess
import sys
import time

from _common import (
    count_cores,
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
)
from _networks import NETWORKS, add_networks
from _worker import compare
from throughput import TEN, add_seconds

_SIDE = 4096
# As the only argument: measure the matrix product, in a process with a BLAS of its own.
_PRODUCT = "--time-product"


def measure_peak(machine):
    """Return the GFLOP/s of NumPy's matrix product on all cores."""
    kernels = [None]
    if "avx512f" in machine["instructions"]:
        # OpenBLAS takes old kernels, half as fast, on processors younger than itself.
        kernels.append("SkylakeX")
    rates = []
    for kernel in kernels:
        environment = dict(os.environ)
        if kernel is not None:
            environment["OPENBLAS_CORETYPE"] = kernel
        child = subprocess.run(
            [sys.executable, __file__, _PRODUCT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        rates.append(float(child.stdout))
    return max(rates)


def time_product(seconds=3.0):
    """Return the GFLOP/s of the fastest of several large float32 matrix products."""
    import numpy as np

    random = np.random.default_rng(0)
    a, b = (random.random((_SIDE, _SIDE), np.float32) for _ in range(2))
    out = np.empty((_SIDE, _SIDE), np.float32)
    best = math.inf
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(a, b, out)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best / 1e9


def count_operations(network):
    """Return the GFLOP of one image."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras

    model = getattr(keras.applications, network.keras)(
        weights=None, include_top=False, input_shape=(network.size, network.size, 3)
    )
    multiplications = 0
    for layer in model.layers:
        kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
        if kernels:
            # Each number of a kernel is used once at each position of the output.
            positions = math.prod(layer.output.shape[1:-1])
            multiplications += positions * sum(math.prod(kernel.shape) for kernel in kernels)
    return 2 * multiplications / 1e9


def measure(network, paths, options, peak):
    """Return the figures of one network."""
    names = ["ours", "inference", "decoding_one"]
    results = compare(network, names, paths, options.rounds, options.seconds)
    failed = {name: result["failed"] for name, result in results.items() if "failed" in result}
    if failed:
        return {"failed": failed}
    whole, inference, decoding = (results[name]["median"] for name in names)
    operations = count_operations(NETWORKS[network])
    bound = 1 / inference + 1 / decoding / count_cores()
    return {
        "images_per_second": {name: results[name] for name in names},
        "gflop_an_image": operations,
        "share_of_peak": whole * operations / peak,
        "share_of_peak_inference": inference * operations / peak,
        "wall_over_bound": 1 / whole / bound,
    }


def main():
    """Measure, print, write."""
    if sys.argv[1:] == [_PRODUCT]:
        print(time_product())
        return
    parser = make_parser("limits", __doc__, rounds=3)
    add_networks(parser, TEN)
    add_seconds(parser, 1.0)
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)
    peak = measure_peak(machine)
    print(f"Matrix product of {_SIDE} x {_SIDE}, float32: {show(peak)} GFLOP/s\n", flush=True)
    networks = {network: measure(network, paths, options, peak) for network in options.networks}
    # Again at the end: a machine that has slowed down meanwhile shows here.
    peak_after = measure_peak(machine)
    print(f"The same at the end: {show(peak_after)} GFLOP/s\n")
    header = [
        "network",
        "GFLOP an image",
        "images/s",
        "inference alone",
        "decoding alone, 1 core",
        "share of peak",
        "inference's share",
        "wall / bound",
    ]
    rows = []
    for network, figures in networks.items():
        if "failed" in figures:
            rows.append([network, f"failed: {figures['failed']}", *[""] * (len(header) - 2)])
            continue
        rates = [show(result["median"]) for result in figures["images_per_second"].values()]
        shares = [figures["share_of_peak"], figures["share_of_peak_inference"]]
        rows.append(
            [
                network,
                show(figures["gflop_an_image"]),
                *rates,
                *(f"{share:.0%}" for share in shares),
                f"{figures['wall_over_bound']:.3f}",
            ]
        )
    print_table(header, rows)
    done = {network: figures for network, figures in networks.items() if "failed" not in figures}
    figure, axes = make_axes(2, 11, 0.8 + 0.35 * len(done))
    shares = [figures["share_of_peak_inference"] for figures in done.values()]
    ratios = [figures["wall_over_bound"] for figures in done.values()]
    plot_bars(axes[0], list(done), shares, None, "inference alone", "share of the matrix product")
    plot_bars(axes[1], list(done), ratios, None, "files to features", "time / bound")
    results = {"peak_gflops": peak, "peak_gflops_after": peak_after, "networks": networks}
    save(options, machine, results, figure)


if __name__ == "__main__":
    main()
