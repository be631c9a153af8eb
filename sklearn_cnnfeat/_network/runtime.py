"""Import OpenVINO without telemetry, and check that it can run in this process."""

import importlib.util
import os
import sys
from contextlib import contextmanager
from functools import lru_cache

_TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry():
    """Let OpenVINO and NNCF be imported without their usage statistics.

    Both send usage statistics and write into the home folder. Where their telemetry
    package cannot be imported they use a stub instead, and keep it for the process.
    """
    absent = object()
    before = sys.modules.get(_TELEMETRY, absent)
    sys.modules[_TELEMETRY] = None  # what makes an import fail
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before


def import_openvino():
    """Import OpenVINO without its telemetry."""
    if "openvino" not in sys.modules:
        with without_telemetry():
            import openvino
    import openvino

    return openvino


def import_operations():
    """Return OpenVINO's operations, of a set that all supported versions have."""
    import_openvino()
    import openvino.opset15 as operations

    return operations


def import_passes():
    """Return OpenVINO's passes over graphs."""
    import_openvino()
    import openvino.passes as passes

    return passes


@lru_cache(maxsize=1)
def has_openvino():
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


@lru_cache(maxsize=1)
def check_openvino():
    """Compile something small: raise where OpenVINO is installed and does not work here."""
    openvino, operations = import_openvino(), import_operations()
    pixel = operations.parameter([1], openvino.Type.f32, name="pixel")
    network = openvino.Model([operations.negative(pixel)], [pixel])
    openvino.Core().compile_model(network, "CPU")


def has_gpu_files():
    """Whether a driver of NVIDIA or AMD is there, found out without importing a framework."""
    return any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd"))


def supports_bfloat16():
    """Whether this processor computes bfloat16 in hardware."""
    openvino = import_openvino()
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_fast_bfloat16():
    """Whether OpenVINO computes in bfloat16 on this processor, and not slower than in float32."""
    return has_openvino() and supports_bfloat16()


# Process in which a runtime has been set up; None before.
_runtime_process = None


def check_process():
    """Raise an error after a fork, because OpenVINO and TensorFlow would wait forever."""
    global _runtime_process
    if _runtime_process not in (None, os.getpid()):
        raise RuntimeError(
            "This process was forked from one that had already run a network, and neither "
            "OpenVINO nor TensorFlow works after a fork. Start workers with joblib's 'loky' "
            "backend (scikit-learn's default) or with multiprocessing's 'spawn' method, or fork "
            "before the first fit or transform."
        )
    _runtime_process = os.getpid()
