"""Errors and warnings that a program may want to tell apart.

Examples
--------
>>> from sklearn_cnnfeat import CNNFeatureTransformer
>>> from sklearn_cnnfeat.exceptions import LayerNotFoundError
>>> cnn = CNNFeatureTransformer("mobilenet", "fc9", weights=None)
>>> try:
...     cnn.fit([b"an image"])
... except LayerNotFoundError as error:
...     print(str(error).partition(". ")[0])
'mobilenet' has no layer 'fc9'
"""

from sklearn_cnnfeat._cache import CacheWarning
from sklearn_cnnfeat._images import ImageError
from sklearn_cnnfeat._inspection._decision import NotAffineError
from sklearn_cnnfeat._network._build import WeightsNotFoundError
from sklearn_cnnfeat._network._programs import EngineError, EngineWarning, ProgramWarning
from sklearn_cnnfeat._network.layers import LayerNotFoundError
from sklearn_cnnfeat._network.model_files import ModelFileError, UntrustedModelError
from sklearn_cnnfeat._stream import UnreadableImageWarning

__all__ = [
    "CacheWarning",
    "EngineError",
    "EngineWarning",
    "ImageError",
    "LayerNotFoundError",
    "ModelFileError",
    "NotAffineError",
    "ProgramWarning",
    "UnreadableImageWarning",
    "UntrustedModelError",
    "WeightsNotFoundError",
]
