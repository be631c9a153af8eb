"""Cuts of networks on ncnn: when they run there, and the check that their numbers are right."""

import importlib.util
import json
import threading
from functools import lru_cache

import numpy as np

from sklearn_cnnfeat._files import digest_of_text
from sklearn_cnnfeat._network import store
from sklearn_cnnfeat._network.conversion import TOLERANCE, difference, sample_pixels
from sklearn_cnnfeat._network.engines.ncnn import NcnnEngine, NcnnNetwork, import_ncnn
from sklearn_cnnfeat._network.engines.ncnn_graph import TranslationError
from sklearn_cnnfeat._network.engines.openvino import OpenVINOEngine
from sklearn_cnnfeat._network.engines.winograd import MIN_CHANNELS, prefers_ncnn
from sklearn_cnnfeat._network.recent import Recent
from sklearn_cnnfeat._network.runtime import check_process
from sklearn_cnnfeat._network.spec import installed_version

# Networks with their transformed kernels, which take four times the memory of the kernels.
_loaded = Recent(2)
_lock = threading.RLock()


def has_ncnn():
    """Whether ncnn is installed; it is not imported."""
    return importlib.util.find_spec("ncnn") is not None


@lru_cache(maxsize=1)
def problem_of_ncnn():
    """Return why ncnn cannot be used in this process; None where it can."""
    if not has_ncnn():
        return "ncnn is not installed (pip install ncnn)."
    try:
        import_ncnn()
    except MemoryError:
        raise
    except Exception as error:
        return f"ncnn cannot be loaded ({type(error).__name__}: {error})."
    return None


def forget_loaded():
    """Drop the networks that are in the memory of ncnn."""
    with _lock:
        _loaded.clear()


class NcnnCut:
    """A cut of a whole network, on ncnn."""

    engine = "ncnn"

    def __init__(self, cut):
        self.spec = cut.spec
        self.info = cut.info
        self.layers = cut.layers
        self.is_lasting = cut.is_lasting
        self.inspection = cut.inspection
        self._cut = cut

    def compile(self, dtype, precision, n_threads, batch_size, n_callers=None):
        """Return an engine; all engines of a network share its weights."""
        del dtype, precision
        check_process()
        return NcnnEngine(self._load(), n_threads, batch_size, n_callers)

    def read(self):
        return self._cut.read()

    def reason_to_refuse(self):
        """Return why ncnn must not compute this network; None where it may.

        The first time it computes an image on both engines. The answer is kept on the disk.
        Raises TranslationError where ncnn cannot compute it.
        """
        if not self.is_lasting:
            return self._compare()
        facts = [self.spec.fingerprint(), "ncnn", installed_version("ncnn")]
        key = digest_of_text(json.dumps(facts))
        with store.locked(key):
            stored = store.read(key) or store.write(key, lambda _: self._compare())
        return stored.record

    def _compare(self):
        pixels = sample_pixels(self.info.input_shape, 1)
        expected = []
        # One after the other: both hold the weights in a form of their own.
        OpenVINOEngine(self.read(), np.float32, "float32", 1, None).run(
            [([0], pixels)], lambda _, found: expected.extend(np.array(row) for row in found)
        )
        rows = self._load().compute(pixels[0])
        worst = max(difference(row, other) for row, other in zip(rows, expected, strict=True))
        if worst <= TOLERANCE:
            return None
        return (
            f"ncnn's numbers for {self.spec.source.label} differ from OpenVINO's by "
            f"{worst:.1e} of the largest (allowed: {TOLERANCE:.0e})."
        )

    def _load(self):
        with _lock:
            # Asked for by name or chosen by the rule, it is the same network.
            key = self.spec.fingerprint() if self.is_lasting else self
            return _loaded.get_or_make(key, self._load_now)

    def _load_now(self):
        network = NcnnNetwork(self.read())
        # ncnn has its own copy of the weights.
        self._cut.release()
        return network


def _prefers(cut):
    """Whether the rule chooses ncnn; the graph is read only where it might."""
    kernels = [kernel.shape for layer in cut.record.layers for kernel in layer.kernels]
    # (3, 3, channels in, filters) in Keras, (filters, channels in, 3, 3) in ONNX and PyTorch.
    shapes = [shape for shape in kernels if len(shape) == 4 and shape.count(3) >= 2]
    if not any(sum(n >= MIN_CHANNELS for n in shape) >= 2 for shape in shapes):
        return False
    return prefers_ncnn(cut.read())


def on_ncnn(cut, is_wanted, announce=None):
    """Return a cut in float32 on ncnn, and why ncnn does not compute it although it should.

    The first is None where the cut stays on OpenVINO, the second where there is no problem. Unless
    the user asked for ncnn, the rule of `winograd` decides.
    """
    if not is_wanted and not _prefers(cut):
        return None, None
    problem = problem_of_ncnn()
    if problem is not None:
        return None, problem
    network = NcnnCut(cut)
    try:
        problem = network.reason_to_refuse()
    except TranslationError as error:
        reason = f"ncnn cannot compute {cut.spec.source.label}: {error}."
        if is_wanted:
            return None, reason
        if announce:
            announce(f"{reason} OpenVINO computes it, at the speed of direct convolutions.")
        return None, None
    return (network, None) if problem is None else (None, problem)
