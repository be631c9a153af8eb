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
