"""Turn any exception of reading or decoding an image into an `ImageError`."""

from sklearn_cnnfeat._versions import check_loaded
from sklearn_cnnfeat.exceptions import ImageError

# Mismatched versions of Pillow's parts raise these; damaged files rarely do.
_FAULTS_OF_CODE = (AttributeError, ImportError, NameError, TypeError)


def image_error(name, error):
    """Return the `ImageError` for what was raised while an image was read or decoded.

    `ImportError` is raised if Pillow was replaced after this process had loaded it: then the image
    may be fine.
    """
    if isinstance(error, _FAULTS_OF_CODE) or isinstance(_origin(error), _FAULTS_OF_CODE):
        check_loaded({"PIL": "pillow"})
    return ImageError(name, _describe(error))


def _origin(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _describe(error):
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if isinstance(error, (OSError, SyntaxError, ValueError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
