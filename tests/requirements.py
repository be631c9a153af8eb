"""What some tests need, and environments may lack."""

from importlib.util import find_spec

import pytest

# Keras then runs on OpenVINO: it computes with what is tested, trains nothing, and is no second
# framework to compare with.
needs_tensorflow = pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow")
