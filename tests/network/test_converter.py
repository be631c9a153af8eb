"""Which process of Keras converts, and what happens when it fails."""

import math
import os
import subprocess
import sys

import pytest

from sklearn_cnnfeat._network import converter
from sklearn_cnnfeat._network.keras_sources import NamedNetwork
from sklearn_cnnfeat._network.process import ProcessEndedError
from sklearn_cnnfeat.exceptions import EngineWarning

NAMED = NamedNetwork("mobilenet", "random", seed=0)
BACKENDS = ("openvino", "tensorflow")


def _succeed_on_tensorflow(error):
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        raise error
    return "done"


def test_what_nobody_expects_of_a_backend_is_told():
    pytest.importorskip("tensorflow")
    error = KeyError("odd")
    with pytest.warns(EngineWarning, match=r"openvino failed on 'mobilenet' \(KeyError: 'odd'\)"):
        assert converter._run(_succeed_on_tensorflow, (error,), NAMED, BACKENDS) == "done"


def test_what_a_backend_lacks_is_not_told():
    pytest.importorskip("tensorflow")
    error = NotImplementedError("no such operation")
    assert converter._run(_succeed_on_tensorflow, (error,), NAMED, BACKENDS) == "done"


def test_what_both_refuse_is_an_error_and_no_warning():
    with pytest.raises(ValueError, match="math domain error"):
        converter._run(math.sqrt, (-1,), NAMED, BACKENDS)


def test_a_process_that_was_killed_is_not_tried_again():
    with pytest.raises(ProcessEndedError, match="ended with status 3"):
        converter._run(os._exit, (3,), NAMED, BACKENDS)


def test_keras_on_openvino_computes_in_float32(tmp_path):
    """Processors with AMX would compute in bfloat16, 1e-3 off."""
    script = """
import keras, numpy as np
from keras import layers
from sklearn_cnnfeat import CNNFeatureTransformer
model = keras.Sequential([
    layers.Input((16, 16, 3)), layers.Rescaling(1 / 255), layers.Conv2D(32, 3, activation="relu"),
    layers.Conv2D(64, 3, activation="relu", name="two"),
])
X = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
by_keras, by_openvino = (
    CNNFeatureTransformer(model, "two", "avg", engine=engine).fit_transform(X)
    for engine in ("keras", "openvino")
)
print(np.abs(by_keras - by_openvino).max() / np.abs(by_openvino).max())
"""
    environment = {"KERAS_BACKEND": "openvino", "SKLEARN_CNNFEAT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    # Sums of 288 products, each rounded by 6e-8: about 1e-6 at most.
    assert float(done.stdout) <= 2e-6


def test_keras_on_openvino_loads_no_more_than_it_needs():
    """Packages that Keras imports where they are installed take a second and 500 MB."""
    process = converter.keras_process.__wrapped__("openvino")
    process.run(exec, "from sklearn_cnnfeat._network.keras_models import import_keras as f; f()")
    names = {"matplotlib", "pandas", "sklearn", "tensorflow"}
    assert process.run(eval, f"{names} & set(__import__('sys').modules)") == set()
    process.close()
