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


class ImageError(ValueError):
    """An image cannot be turned into pixels.

    Parameters
    ----------
    name : str
        The file, or "image 17" for an image that has no name.
    reason : str
        What is wrong with it.
    """

    def __init__(self, name, reason):
        # Both go to `args`, so that the error survives pickling on its way out of a worker process.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self):
        return f"cannot read {self.name!r}: {self.reason}"


class UnreadableImageWarning(UserWarning):
    """Some images could not be read; their rows are NaN."""


class LayerNotFoundError(ValueError):
    """The parameter `layer` fits no layer of the network, or more than one."""


class WeightsNotFoundError(OSError):
    """Published weights are neither on this machine nor could they be downloaded."""


class ModelFileError(ValueError):
    """A file cannot be read as a Keras model or as weights of the network."""


class UntrustedModelError(ModelFileError):
    """A model file contains something that could do more than compute; it was not loaded."""


class EngineError(RuntimeError):
    """An engine cannot run a network."""


class EngineWarning(UserWarning):
    """Another engine than expected computes the features."""


class ProgramWarning(UserWarning):
    """A compiled network could not be kept or read, and is compiled again."""


class CacheWarning(UserWarning):
    """The feature cache is unavailable; results are still correct, but are computed again."""


class NotAffineError(ValueError):
    """A pipeline has no exact decision map.

    Parameters
    ----------
    reason : str
        What is not affine, as a sentence.
    """

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason

    def __str__(self):
        return (
            f"{self.reason} So there is no exact decision map; method='occlusion' works with every "
            "pipeline."
        )
