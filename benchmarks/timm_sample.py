"""Which networks of timm can be used: a hundred names at random, from conversion to features.

Run as ``python benchmarks/timm_sample.py [NAME ...]``; without names, those of the sample that are
not yet in ``benchmarks/results/timm_sample.json``. Weights are random, as timm draws them. Networks
run in separate processes with one thread, several after another in each. A network counts as
converted if its features came out of OpenVINO: a conversion compares every layer with PyTorch and
fails where one differs by more than 1e-4 of the largest value. Networks of more than 150 million
parameters are left out. Convolutional networks run at 128 pixels or at the least that timm says
they take.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from _common import RESULTS, describe_machine, print_machine

REPORT = RESULTS / "timm_sample.json"
N_NAMES, SEED = 100, 0
MOST_PARAMETERS = 150e6
# Networks for one process, and the time that each of them has.
_TOGETHER, _SECONDS = 8, 1800


def draw_names():
    """Return the names of the sample in the order in which they were drawn."""
    import timm

    return random.Random(SEED).sample(sorted(timm.list_models()), N_NAMES)


def choose_size(name):
    """Return the side of the images: small where the network takes any."""
    import timm

    config = timm.get_pretrained_cfg(name)
    native = config.input_size[-1]
    if config.fixed_input_size:
        return native
    least = (config.min_input_size or (3, 128, 128))[-1]
    return min(native, max(128, least))


def count_parameters(name):
    """Return the number of parameters of a network, which is not filled with numbers."""
    import timm
    import torch

    with torch.device("meta"):
        return sum(value.numel() for value in timm.create_model(name).parameters())


def check(name):
    """Return a record of one network."""
    from sklearn_cnnfeat import CNNFeatureTransformer, layer_summary
    from sklearn_cnnfeat.exceptions import LayerNotFoundError

    record = {"network": name, "parameters": count_parameters(name)}
    if record["parameters"] > MOST_PARAMETERS:
        return {**record, "skipped": f"more than {MOST_PARAMETERS:,.0f} parameters"}
    size = choose_size(name)
    photo = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SKLEARN_CNNFEAT_HOME"] = folder
        settings = {"weights": None, "random_state": 0, "input_size": size, "n_jobs": 1}
        cnn = CNNFeatureTransformer(f"timm/{name}", "last", "avg", engine="openvino", **settings)
        try:
            try:
                row = cnn.fit_transform(photo)
            except LayerNotFoundError:  # its classifier takes what no layer gives
                row = cnn.set_params(layer=-1).fit_transform(photo)
            n_layers = len(layer_summary(cnn))
        except Exception as error:
            return {**record, "size": size, "error": f"{type(error).__name__}: {error}"}
    record |= {"size": size, "layer": cnn.layer, "layers": n_layers, "features": row.shape[1]}
    return record | {"seconds": round(time.perf_counter() - begin, 1)}


def run(names):
    """Yield the record of each network, from processes that compute several of them."""
    left = list(names)
    while left:
        chosen = left[:_TOGETHER]
        command = [sys.executable, __file__, "--here", *chosen]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as worker:
            for name in chosen:
                timer = threading.Timer(_SECONDS, worker.kill)
                timer.start()
                record = next((line for line in worker.stdout if line.startswith("{")), None)
                timer.cancel()
                left.remove(name)
                if record is None:
                    worker.kill()
                    status = worker.wait()
                    yield {"network": name, "error": f"its process ended with status {status}"}
                    break
                yield json.loads(record)


def show(record):
    """Print the line of one network."""
    told = record.get("error") or record.get("skipped")
    told = told or f"{record['layers']} layers, {record['features']} features"
    print(f"{record['network']:<44} {told}"[:180], flush=True)


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help="default: those missing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        for name in arguments.networks:
            print(json.dumps(check(name)), flush=True)
        return
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {"networks": {}}
    sample = draw_names()
    report |= {"machine": describe_machine(), "drawn": N_NAMES}
    print_machine(report["machine"])
    for record in run(arguments.networks or [n for n in sample if n not in report["networks"]]):
        report["networks"][record["network"]] = record
        show(record)
        REPORT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    records = [report["networks"][name] for name in sample if name in report["networks"]]
    tried = [record for record in records if "skipped" not in record]
    failed = [record["network"] for record in tried if "error" in record]
    report["converted"], report["tried"] = len(tried) - len(failed), len(tried)
    REPORT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    print(
        f"{report['converted']} of {len(tried)} converted, {len(records) - len(tried)} left out; "
        f"not converted: {failed}"
    )


if __name__ == "__main__":
    main()
