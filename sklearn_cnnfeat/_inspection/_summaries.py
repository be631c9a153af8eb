"""What a network is made of, as data frames."""

import numpy as np
import pandas as pd

from sklearn_cnnfeat._inspection._steps import as_transformer
from sklearn_cnnfeat._network import _build


def layer_summary(model):
    """List the layers of a network, as ``CNNFeatureTransformer(layer=...)`` takes them.

    Networks by name are listed whole, with their classifier, and without their weights, which
    are neither downloaded nor held in memory.

    Parameters
    ----------
    model : str, path, keras.Model, CNNFeatureTransformer or Pipeline
        A network as for :class:`CNNFeatureTransformer`. A transformer, fitted or not, or a
        pipeline with one, stands for the network that it uses, at its `input_size`.

    Returns
    -------
    layers : DataFrame
        One row a layer that features can be taken from, in the order of computation:

        - ``index``: what ``layer=`` takes as an integer; missing inside nested models and for
          layers used several times, which go by path;
        - ``path``: what ``layer=`` takes as a string;
        - ``type``: class of the layer;
        - ``output_shape``: (height, width, channels) of maps, or (length,) of a vector, for one
          image; None where it depends on the image;
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
    pairs = _build.list_layers(*as_transformer(model)._network())
    uses = pd.Series([layer.index for layer, _ in pairs], dtype="Int64").value_counts()
    rows = [
        (
            layer.index if uses.get(layer.index) == 1 else pd.NA,
            layer.path,
            layer.type,
            layer.shape,
            pd.NA if None in layer.shape else int(np.prod(layer.shape)),
            keras_layer.count_params(),
        )
        for layer, keras_layer in pairs
        if layer.shape is not None and len(layer.shape) in (1, 3)
    ]
    columns = ["index", "path", "type", "output_shape", "n_features", "n_parameters"]
    return pd.DataFrame(rows, columns=columns).astype({"index": "Int64", "n_features": "Int64"})
