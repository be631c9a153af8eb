"""The table of the kinds of networks: from the parameter `model` to where a network comes from."""

from sklearn_cnnfeat._network.keras_models import is_keras_model
from sklearn_cnnfeat._network.keras_objects import PickledModel
from sklearn_cnnfeat._network.keras_sources import KerasObject, ModelFile, NamedNetwork
from sklearn_cnnfeat._network.onnx_source import OnnxFile
from sklearn_cnnfeat._network.torch_models import PickledModule
from sklearn_cnnfeat._network.torch_sources import TimmNetwork, TorchModule, is_module

# Asked in this order; the last one takes all other paths, or says what is wrong with them.
KINDS = (TimmNetwork, TorchModule, OnnxFile, KerasObject, NamedNetwork, ModelFile)


def find_source(asked):
    """Return the source of a network; nothing is downloaded, and the source has no digest yet."""
    for kind in KINDS:
        source = kind.of(asked)
        if source is not None:
            return source
    raise TypeError(
        "model must be the name of a network, the path of a .keras, .h5 or .onnx file, a "
        f"keras.Model or a torch.nn.Module. Got {asked.model!r} instead."
    )


def is_network(model):
    """Whether `model` is a network itself, of Keras or PyTorch, and not the name of one."""
    return is_keras_model(model) or is_module(model)


def pickled_model(model):
    """Return what replaces a Keras model or a PyTorch module in a pickle; others unchanged."""
    if is_module(model):
        return PickledModule.of(model)
    return PickledModel.of(model) if is_keras_model(model) else model


def unpickled_model(model):
    """Return the model that `pickled_model` was given."""
    return model.load() if isinstance(model, (PickledModel, PickledModule)) else model
