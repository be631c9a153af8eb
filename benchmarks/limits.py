"""How near we are to what the machine can do.

Share of the direct limit: images a second times operations an image, over the operations a second
of a large float32 matrix product. An image's operations are two for each multiplication of its
convolutions and dense layers; everything else is not counted. This limits only what computes
convolutions directly: Winograd's F(4 x 4, 3 x 3), which ncnn computes, takes a quarter of the
multiplications, so that a network on ncnn may exceed it.

Share of the Winograd limit: the same with a quarter of the operations of those convolutions that
ncnn computes so (3 x 3, stride 1, 16 channels or more). The transformations before and after are
not counted, nor is the memory that they move, so nothing comes close to this limit.

Work-conserving bound: the time of all images if no core were ever idle, which is inference alone on
all cores, plus decoding alone on one core divided by their number. Both are done by hand, without
this package: by OpenVINO's own queue or by threads with ncnn, and by Pillow.
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
# Multiplications of a direct 3 x 3 convolution for one of Winograd's F(4 x 4, 3 x 3).
_SAVING = 4
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
    """Return the GFLOP of one image: all directly, and with Winograd's convolutions."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras

    model = getattr(keras.applications, network.keras)(
        weights=None, include_top=False, input_shape=(network.size, network.size, 3)
    )
    direct = winograd = 0
    for layer in model.layers:
        kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
        if kernels:
            # Each number of a kernel is used once at each position of the output.
            positions = math.prod(layer.output.shape[1:-1])
            count = positions * sum(math.prod(kernel.shape) for kernel in kernels)
            direct += count
            winograd += count / _SAVING if _is_winograd(layer) else count
    return 2 * direct / 1e9, 2 * winograd / 1e9


def _is_winograd(layer):
    """Whether ncnn computes a layer by Winograd's convolution."""
    import keras

    from sklearn_cnnfeat._network.engines.ncnn_graph import MIN_CHANNELS

    if type(layer) is not keras.layers.Conv2D or layer.groups != 1:
        return False
    steps = (*layer.strides, *layer.dilation_rate)
    channels = layer.kernel.shape[2:]
    return layer.kernel_size == (3, 3) and steps == (1,) * 4 and min(channels) >= MIN_CHANNELS


def measure(network, paths, options, peak):
    """Return the figures of one network."""
    names = ["ours", "inference", "decoding_one"]
    results = compare(network, names, paths, options.rounds, options.seconds)
    failed = {name: result["failed"] for name, result in results.items() if "failed" in result}
    if failed:
        return {"failed": failed}
    whole, inference, decoding = (results[name]["median"] for name in names)
    direct, winograd = count_operations(NETWORKS[network])
    bound = 1 / inference + 1 / decoding / count_cores()
    return {
        "images_per_second": {name: results[name] for name in names},
        "gflop_an_image": direct,
        "gflop_an_image_by_winograd": winograd,
        "share_of_direct_limit": whole * direct / peak,
        "share_of_direct_limit_inference": inference * direct / peak,
        "share_of_winograd_limit_inference": inference * winograd / peak,
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
        "share of direct limit",
        "inference's share",
        "of Winograd limit",
        "wall / bound",
    ]
    rows = []
    for network, figures in networks.items():
        if "failed" in figures:
            rows.append([network, f"failed: {figures['failed']}", *[""] * (len(header) - 2)])
            continue
        rates = [show(result["median"]) for result in figures["images_per_second"].values()]
        shares = [
            figures["share_of_direct_limit"],
            figures["share_of_direct_limit_inference"],
            figures["share_of_winograd_limit_inference"],
        ]
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
    shares = [figures["share_of_direct_limit_inference"] for figures in done.values()]
    ratios = [figures["wall_over_bound"] for figures in done.values()]
    plot_bars(axes[0], list(done), shares, None, "inference alone", "share of the direct limit")
    plot_bars(axes[1], list(done), ratios, None, "files to features", "time / bound")
    results = {"peak_gflops": peak, "peak_gflops_after": peak_after, "networks": networks}
    save(options, machine, results, figure)


if __name__ == "__main__":
    main()
