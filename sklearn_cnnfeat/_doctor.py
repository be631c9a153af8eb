"""What is installed and whether it works: for bug reports, and for new installations."""

import os
import platform
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import joblib
import numpy as np
import psutil

from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat._home import (
    features_folder,
    home_folder,
    make_private_folder,
    networks_folder,
)
from sklearn_cnnfeat._loop import thread_count
from sklearn_cnnfeat._network.converter import has_gpu
from sklearn_cnnfeat._network.keras_models import import_keras
from sklearn_cnnfeat._network.keras_sources import choose_engine
from sklearn_cnnfeat._network.ncnn_networks import problem_of_ncnn
from sklearn_cnnfeat._network.runtime import has_fast_bfloat16
from sklearn_cnnfeat._network.spec import installed_version
from sklearn_cnnfeat._network.store import check_networks
from sklearn_cnnfeat._network.torch_sources import describe_device
from sklearn_cnnfeat._network.weights import find_all_weights
from sklearn_cnnfeat._network.zoo import keras_home
from sklearn_cnnfeat._transformer import CNNFeatureTransformer

_DISTRIBUTION = "sklearn-cnnfeat"
_DEPENDENCIES = (
    *("scikit-learn", "numpy", "scipy", "pandas", "polars", "pillow", "joblib", "tensorflow"),
    *("keras", "openvino", "ncnn", "nncf", "onnx", "torch", "h5py", "matplotlib"),
)
# Environment variables that affect this package or its dependencies.
_VARIABLES = (
    *("SKLEARN_CNNFEAT_HOME", "SKLEARN_CNNFEAT_WEIGHTS", "KERAS_HOME", "KERAS_BACKEND"),
    "OMP_NUM_THREADS",
    *("CUDA_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS"),
)
# Relative to the largest value: rounding of float32 when sums are taken in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Check:
    """What one check of an installation found.

    A "note" is something that may be meant so; what is "failed" needs to be mended.
    """

    name: str
    status: str
    detail: str


def show_versions():
    """Print what a bug report needs: versions, engines, threads and folders.

    Neither TensorFlow nor OpenVINO is loaded, and nothing is sent anywhere.

    See Also
    --------
    sklearn.show_versions : The same for scikit-learn and its libraries of linear algebra.

    Examples
    --------
    >>> from sklearn_cnnfeat import show_versions
    >>> show_versions()
    System:
        python: 3...
    """
    for title, facts in _facts().items():
        print(f"{title}:")
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            print(f"    {name:>{width}}: {value}")
        print()


def _facts():
    memory = psutil.virtual_memory()
    return {
        "System": {
            "python": sys.version.replace("\n", " "),
            "executable": sys.executable,
            "machine": platform.platform(),
            "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
        },
        "Packages": {
            name: installed_version(name) or "not installed"
            for name in (_DISTRIBUTION, *_DEPENDENCIES)
        },
        "Computing": {
            "engine='auto'": choose_engine(),
            "engine='torch'": describe_device(),
            "cores": joblib.cpu_count(),
            "threads with n_jobs=None": thread_count(None),
        },
        "Folders and variables": {
            "compiled networks and features": home_folder(),
            "weights of Keras": keras_home() / "models",
            **{name: os.environ.get(name, "not set") for name in _VARIABLES},
        },
    }


def diagnose(cache=None):
    """Check an installation; yield each `Check` as soon as it has been made.

    `cache` is the folder of the feature cache to be checked; None stands for the one of
    ``cache=True``.
    """
    for name, check in (
        ("packages", _check_packages),
        ("engine", _check_engine),
        ("precision", _check_precision),
        ("home folder", _check_home),
        ("compiled networks", _check_networks),
        ("feature cache", lambda: _check_cache(cache)),
        ("published weights", _check_weights),
        ("self-test", _check_numbers),
    ):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                status, detail = check()
        except Exception as error:
            status, detail = "failed", f"{type(error).__name__}: {error}"
        ours = [
            str(w.message) for w in caught if w.category.__module__.startswith("sklearn_cnnfeat")
        ]
        if ours:
            status = "note" if status == "ok" else status
            detail = " ".join([f"{detail.removesuffix('.')}.", *dict.fromkeys(ours)])
        yield Check(name, status, detail)


def doctor(cache=None):
    """Print versions and the checks of an installation; return 1 if a check has failed, else 0."""
    show_versions()
    failed = 0
    for check in diagnose(cache):
        print(f"[{check.status:^6}] {check.name}: {check.detail}", flush=True)
        failed += check.status == "failed"
    checks = "1 check" if failed == 1 else f"{failed} checks"
    print(f"\n{checks} failed." if failed else "\nAll is well.")
    return 1 if failed else 0


def _check_packages():
    # Comes with Keras.
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return "note", f"{_DISTRIBUTION} is not installed; it is run from a source folder."
    problems, n_known, is_without_tensorflow = [], 0, False
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        if requirement.name == "tensorflow" and version is None:
            is_without_tensorflow = True
            continue
        if requirement.name == "ncnn" and version is None:
            continue  # packages of conda leave it out; the check of the engine says what is lost
        n_known += 1
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement} is wanted, {version or 'nothing'} is installed")
    if problems:
        advice = f"pip install --upgrade {_DISTRIBUTION} installs what is missing"
        return "failed", f"{'; '.join(problems)}. {advice}."
    detail = f"all {n_known} required packages are installed, all versions are compatible"
    if is_without_tensorflow:
        return "note", (
            f"{detail}. TensorFlow is not installed: models with custom layers or TensorFlow "
            "operations need it (pip install tensorflow)."
        )
    return "ok", detail


def _check_engine():
    engine = choose_engine()
    if engine == "openvino":
        problem = _problem_of_openvino()
        if problem is None:
            problem = problem_of_ncnn()
            if problem is None:
                return "ok", (
                    "engine='auto' is OpenVINO on this machine, and ncnn for networks that are "
                    "mostly 3 x 3 convolutions"
                )
            return "note", (
                f"engine='auto' is OpenVINO on this machine. {problem} VGG16 and networks like it "
                "take up to twice as long without it."
            )
        return "failed", (
            f"OpenVINO is installed but cannot be loaded ({problem}), so networks run on Keras. "
            "pip install --force-reinstall openvino may help."
        )
    if has_gpu():
        return "ok", "engine='auto' is Keras, on a GPU"
    return "note", (
        "OpenVINO is not installed, so networks run on Keras, at a third to two thirds of the "
        "speed: pip install openvino, if it exists for this platform."
    )


def _problem_of_openvino():
    """Return why OpenVINO cannot be loaded; None where it can."""
    try:
        has_fast_bfloat16()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _check_precision():
    found = ["float32"]
    if choose_engine() == "openvino" and _problem_of_openvino() is None:
        if has_fast_bfloat16():
            found.append("bfloat16 (in hardware)")
        if installed_version("nncf"):
            found.append("int8")
    return "ok", ", ".join(found)


def _check_home():
    folder = home_folder()
    try:
        make_private_folder(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return "failed", (
            f"{folder} cannot be written to ({error}), so each process compiles its networks "
            "again. Set the environment variable SKLEARN_CNNFEAT_HOME to a writable folder."
        )
    free = shutil.disk_usage(folder).free
    detail = f"{folder} can be written to; {free / 1e9:.1f} GB are free on its disk"
    return ("note" if free < 2e9 else "ok"), detail


def _check_networks():
    sound, damaged, n_bytes = check_networks()
    detail = f"{sound} in {networks_folder()}, {n_bytes / 1e6:.0f} MB"
    if damaged:
        names = ", ".join(damaged[:3])
        return "note", f"{detail}; {len(damaged)} damaged, converted again when needed: {names}"
    return "ok", detail


def _check_cache(path):
    folder = features_folder() if path is None else Path(path)
    if not folder.exists():
        return "ok", f"none yet in {folder}"
    with FeatureCache(folder) as cache:
        report = cache.verify()
        info = cache.info()
    detail = f"{report.rows} sound rows in {folder}, {info.bytes / 1e6:.0f} MB"
    if report.bad:
        return "note", f"{detail}; {report.bad} damaged ones were removed"
    return "ok", detail


def _check_weights():
    found = find_all_weights()
    if not found:
        folder = keras_home() / "models"
        return "note", f"none on this machine; weights='imagenet' downloads them to {folder}"
    folders = {}
    for (name, top), path in found.items():
        version = f"{name} ({'with' if top else 'without'} classifier)"
        folders.setdefault(path.parent, []).append(version)
    return "ok", "; ".join(f"in {folder}: {', '.join(names)}" for folder, names in folders.items())


def _check_numbers():
    keras = import_keras()
    initializer = keras.initializers.GlorotUniform(seed=0)
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 255, name="rescale"),
            keras.layers.Conv2D(
                8, 3, activation="relu", kernel_initializer=initializer, name="maps"
            ),
            keras.layers.GlobalAveragePooling2D(name="mean"),
        ],
        name="self_test",
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected = _in_float64(model, images)
    cnn = CNNFeatureTransformer(model, "maps", "avg").fit(images)
    features = cnn.transform(images)
    worst = np.abs(features - expected).max() / np.abs(expected).max()
    if not worst <= _ROUNDING:
        return "failed", (
            f"{cnn.engine_} differs from NumPy's float64 by {worst:.1e} of the largest value; "
            f"rounding leaves {_ROUNDING:.0e}. Please report it."
        )
    if cnn.engine_ == "openvino" and any(
        (cnn.transform(images[i : i + 1])[0] != features[i]).any() for i in range(len(images))
    ):
        return "failed", "the row of an image depends on its batch. Please report it."
    return "ok", f"{cnn.engine_} equals NumPy's float64, to {worst:.0e} of the largest value"


def _in_float64(model, images):
    """Return what the network of the self-test computes, without Keras.

    Keras' own prediction depends on its backend: OpenVINO's is bfloat16 where the processor has it.
    """
    kernel, bias = (
        np.asarray(value, np.float64) for value in model.get_layer("maps").get_weights()
    )
    windows = np.lib.stride_tricks.sliding_window_view(images / 255, kernel.shape[:2], axis=(1, 2))
    maps = np.einsum("nyxcij,ijco->nyxo", windows, kernel) + bias
    return np.maximum(maps, 0).mean(axis=(1, 2))
