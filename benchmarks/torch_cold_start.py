"""A fresh process on a network that is converted already: PyTorch's and ONNX' against Keras'.

Time is counted from the start of the Python interpreter to the row of one photograph, imports,
loading the network and computing included. The three networks have the same layers.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
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
from torch_parity import make_photos, prepare

_CODE = """
import json, sys
sys.path.insert(0, {folder!r})
from _common import peak_rss_mb
from sklearn_cnnfeat import CNNFeatureTransformer
cnn = CNNFeatureTransformer({model!r}, {layer!r}, "avg", engine="openvino", **{settings!r})
cnn.fit_transform([{photo!r}])
heavy = [name for name in ("torch", "keras", "tensorflow", "onnx") if name in sys.modules]
print(json.dumps([peak_rss_mb(), heavy]))
"""


def export(path):
    """Write the network of timm as an ONNX file."""
    import timm
    import torch

    network = timm.create_model("mobilenetv2_100").eval()
    images = torch.from_numpy(prepare(make_photos(224))[:1])
    torch.onnx.export(network, (images,), path, dynamo=True, verbose=False)


def first_row(code):
    """Return seconds, peak memory in MB and heavy libraries of a process that computes one row."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, *json.loads(done.stdout.splitlines()[-1])


def main():
    """Measure, print, write."""
    parser = make_parser("torch_cold_start", __doc__, rounds=5)
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    photo = find_photos(options.photos)[0]
    # Kept between runs, as what all benchmarks need.
    folder = WORK / "torch_cold_start"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["SKLEARN_CNNFEAT_HOME"] = str(folder / "home")
    path = str(folder / "network.onnx")
    if not os.path.exists(path):
        export(path)
    random = {"weights": None, "random_state": 0}
    networks = {
        "Keras": ("mobilenet_v2", "last", random),
        "timm": ("timm/mobilenetv2_100", "bn2", random),
        "ONNX": (path, -3, {"preprocessing": "torch"}),
    }
    codes = {
        name: _CODE.format(
            folder=os.path.dirname(os.path.abspath(__file__)),
            model=model,
            layer=layer,
            settings=settings,
            photo=photo,
        )
        for name, (model, layer, settings) in networks.items()
    }
    for code in codes.values():
        first_row(code)  # converts
    runs = {name: [] for name in codes}
    for _ in range(options.rounds):
        for name, code in codes.items():
            runs[name].append(first_row(code))
    results = {
        name: {
            "seconds": summarize([seconds for seconds, _, _ in values]),
            "peak_rss_mb": summarize([memory for _, memory, _ in values]),
            "imported": ", ".join(values[0][2]) or "none of torch, keras, tensorflow, onnx",
        }
        for name, values in runs.items()
    }
    keys = ("seconds", "peak_rss_mb")
    print_table(
        ["network", "seconds", "peak MB", "imported"],
        [
            [name, *(show(result[key]["median"]) for key in keys), result["imported"]]
            for name, result in results.items()
        ],
    )
    figure, axes = make_axes(1, 6, 2.5)
    seconds = [result["seconds"]["median"] for result in results.values()]
    plot_bars(np.ravel(axes)[0], list(results), seconds, None, "First row", "seconds")
    save(options, machine, {"networks": results}, figure)


if __name__ == "__main__":
    main()
