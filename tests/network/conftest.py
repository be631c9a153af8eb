"""What the tests of networks share."""

import importlib.util

import numpy as np
import pytest

# Doctests are looked for in helper modules too.
collect_ignore = [] if importlib.util.find_spec("torch") else ["torch_networks.py"]


@pytest.fixture
def compute():
    """Return the value of every layer of a `Converted` for some images, in float32."""

    def run(converted, images):
        from sklearn_cnnfeat._network.runtime import import_openvino

        openvino = import_openvino()
        found = {}
        # The CPU plugin computes garbage where an output and a reshaped view of it are results of
        # one graph, so that maps and tokens are computed apart.
        ranks = {path: output.partial_shape.rank for path, output in converted.outputs.items()}
        for rank in {rank.get_length() for rank in ranks.values()}:
            paths = [path for path, other in ranks.items() if other.get_length() == rank]
            model = openvino.Model(
                [converted.outputs[path] for path in paths], converted.model.get_parameters()
            )
            options = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(model, "CPU", options)
            results = compiled(np.ascontiguousarray(images, np.float32))
            found.update((path, results[i]) for i, path in enumerate(paths))
        return found

    return run
