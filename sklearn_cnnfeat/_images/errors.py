"""The error for an image that cannot be read."""


class ImageError(ValueError):
    """An image that cannot be turned into pixels.

    Parameters
    ----------
    name : str
        The file, or "image 17" for an image that has no name.
    reason : str
        What is wrong with it.
    """

    def __init__(self, name, reason):
        # Both go to args, so that the error survives pickling on its way out of a worker process.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self):
        return f"cannot read {self.name!r}: {self.reason}"


def describe(error):
    """Return what an exception says, for the reason of an `ImageError`."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (OSError, SyntaxError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
