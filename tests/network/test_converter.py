"""Which process of Keras converts, and what happens when it fails."""

import math
import os

import pytest

from sklearn_cnnfeat._network import converter
from sklearn_cnnfeat._network.process import ProcessEndedError
from sklearn_cnnfeat._network.spec import Source
from sklearn_cnnfeat.exceptions import EngineWarning

NAMED = Source("zoo", "mobilenet", "random", seed=0)
BACKENDS = ("openvino", "tensorflow")


def _refuse():
    raise NotImplementedError("no such operation")


def test_what_nobody_expects_is_told_before_another_backend_tries():
    pytest.importorskip("tensorflow")
    with (
        pytest.warns(
            EngineWarning, match=r"failed on 'mobilenet' \(ValueError: math domain error\)"
        ),
        pytest.raises(ValueError, match="math domain error"),
    ):
        converter._run(math.sqrt, (-1,), NAMED, BACKENDS)


def test_what_a_backend_lacks_is_not_told():
    pytest.importorskip("tensorflow")
    with pytest.raises(NotImplementedError, match="no such operation"):
        converter._run(_refuse, (), NAMED, BACKENDS)


def test_a_process_that_was_killed_is_not_tried_again():
    with pytest.raises(ProcessEndedError, match="ended with status 3"):
        converter._run(os._exit, (3,), NAMED, BACKENDS)
