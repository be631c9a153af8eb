"""What the tests of networks share."""

import numpy as np
import pytest


@pytest.fixture
def compute():
    """Return the value of every layer of a `Converted` for some images, in float32."""

    def run(converted, images):
        from sklearn_cnnfeat._network.runtime import import_openvino

        openvino = import_openvino()
        paths = list(converted.outputs)
        model = openvino.Model(
            [converted.outputs[path] for path in paths], converted.model.get_parameters()
        )
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", options)
        results = compiled(np.ascontiguousarray(images, np.float32))
        return {path: results[i] for i, path in enumerate(paths)}

    return run


def relative_error(found, expected):
    """Return the largest difference, as a part of the largest expected value."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()
