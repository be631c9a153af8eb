"""From any `X` to pixels: the collection of images, their keys, decoding and damaged files."""

from sklearn_cnnfeat._images.collection import Images
from sklearn_cnnfeat._images.formats import EXTENSIONS, FORMATS
from sklearn_cnnfeat._images.inputs import as_images
from sklearn_cnnfeat._images.spec import (
    DECODES,
    INTERPOLATIONS,
    MOST_PIXELS,
    RESIZES,
    ImageSpec,
)
from sklearn_cnnfeat._images.urls import is_url
from sklearn_cnnfeat._text import first_few

__all__ = [
    "DECODES",
    "EXTENSIONS",
    "FORMATS",
    "INTERPOLATIONS",
    "MOST_PIXELS",
    "RESIZES",
    "ImageSpec",
    "Images",
    "as_images",
    "first_few",
    "is_url",
]
