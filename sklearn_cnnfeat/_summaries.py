"""Tables of the layers and filters of a network."""

import numpy as np
import pandas as pd

from sklearn_cnnfeat._network.whole_networks import describe_network, describe_weighted
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._parameters import network_of
from sklearn_cnnfeat._steps import as_transformer
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import WeightsNotFoundError


def layer_summary(model):
    """List the layers of a network, as ``CNNFeatureTransformer(layer=...)`` takes them.

    Networks by name are listed completely, with their classifier, and without their weights, which
    are neither downloaded nor held in memory.

    Parameters
    ----------
    model : str, path, keras.Model, CNNFeatureTransformer or Pipeline
        A network as for :class:`CNNFeatureTransformer`. A transformer, fitted or not, or a
        pipeline with one, stands for the network that it uses, at its `input_size`.

    Returns
    -------
    layers : DataFrame
        One row per layer that features can be taken from, in the order of computation:

        - ``index``: what ``layer=`` takes as an integer; missing inside nested models and for
          layers used several times, which go by path;
        - ``path``: what ``layer=`` takes as a string;
        - ``type``: class of the layer;
        - ``output_shape``: (height, width, channels) of maps, (rows, columns, width) of the
          patches of a transformer, or (length,) of a vector, for one image; None where it depends
          on the image;
        - ``n_features``: how many numbers that is with ``pooling="flatten"``;
        - ``n_parameters``: number of weights, trainable or not.

    See Also
    --------
    filter_summary : The convolutions of a network and their weights.
    list_models : Networks that are known by name.

    Examples
    --------
    >>> from sklearn_cnnfeat import layer_summary
    >>> layers = layer_summary("vgg16")
    >>> layers[layers["type"] == "MaxPooling2D"]
        index         path          type    output_shape  n_features  n_parameters
    3       3  block1_pool  MaxPooling2D  (112, 112, 64)      802816             0
    6       6  block2_pool  MaxPooling2D   (56, 56, 128)      401408             0
    10     10  block3_pool  MaxPooling2D   (28, 28, 256)      200704             0
    14     14  block4_pool  MaxPooling2D   (14, 14, 512)      100352             0
    18     18  block5_pool  MaxPooling2D     (7, 7, 512)       25088             0
    """
    layers = describe_network(*network_of(as_transformer(model))).layers
    uses = pd.Series([layer.index for layer in layers], dtype="Int64").value_counts()
    rows = [
        (
            layer.index if uses.get(layer.index) == 1 else pd.NA,
            layer.path,
            layer.type,
            layer.map_shape,
            pd.NA if None in layer.map_shape else int(np.prod(layer.map_shape)),
            layer.n_parameters,
        )
        for layer in layers
        if layer.shape is not None and len(layer.map_shape) in (1, 3)
    ]
    columns = ["index", "path", "type", "output_shape", "n_features", "n_parameters"]
    return pd.DataFrame(rows, columns=columns).astype({"index": "Int64", "n_features": "Int64"})


def filter_summary(model):
    """List the convolutions and dense layers of a network with their weights.

    Parameters
    ----------
    model : str, path, keras.Model, CNNFeatureTransformer or Pipeline
        A network as for :class:`CNNFeatureTransformer`. A transformer, fitted or not, or a
        pipeline with one, stands for the network that it uses. A network by name is read without
        its classifier, with ImageNet's weights; ``CNNFeatureTransformer(name, weights=...)``
        stands for others, and one whose `layer` lies in the classifier for the whole network.

    Returns
    -------
    filters : DataFrame
        One row per kernel, in the order of computation:

        - ``path``: the layer, as ``layer=`` takes it;
        - ``type``: class of the layer;
        - ``kernel``: name of the weights in the layer;
        - ``kernel_shape``: (height, width, channels in, filters), for depthwise convolutions
          (height, width, channels in, filters per channel), for dense layers (inputs, units);
        - ``bias_shape``: (filters,), or None where there is no bias;
        - ``mean``, ``std``, ``min``, ``max``: of the kernel's numbers; missing, with a warning,
          where the weights of a network by name are not on this machine.

    See Also
    --------
    layer_summary : All layers and the shapes of their outputs.
    FilterDisplay : The kernels as pictures.

    Examples
    --------
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, filter_summary
    >>> filters = filter_summary(CNNFeatureTransformer("vgg16", weights=None, random_state=0))
    >>> filters[["path", "kernel_shape", "bias_shape"]].head(3)
               path    kernel_shape bias_shape
    0  block1_conv1    (3, 3, 3, 64)      (64,)
    1  block1_conv2   (3, 3, 64, 64)      (64,)
    2  block2_conv1  (3, 3, 64, 128)     (128,)
    """
    rows = [
        (
            layer.path,
            layer.type,
            kernel.name,
            kernel.shape,
            kernel.bias_shape,
            kernel.mean,
            kernel.std,
            kernel.min,
            kernel.max,
        )
        for layer in _weighted_layers(network_of(as_transformer(model)))
        for kernel in layer.kernels
    ]
    columns = ["path", "type", "kernel", "kernel_shape", "bias_shape", "mean", "std", "min", "max"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(["mean", "std", "min", "max"], float))


def _weighted_layers(network):
    """Return the layers of a network with the statistics of their kernels, where they are known."""
    try:
        return describe_weighted(*network).layers
    except WeightsNotFoundError as error:
        source, input_size, _ = network
        structure = source.structure(input_size)
        if structure is None:
            raise
        reason = str(error).split("\n")[0]
        warn(f"Shapes only, for the weights are not here: {reason}")
        classifier = find_architecture(source.name).head
        return [layer for layer in structure.layers if layer.path not in classifier]
