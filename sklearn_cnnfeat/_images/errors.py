"""What an exception says, as the reason of an `ImageError`."""


def describe(error):
    """Return what an exception says, for the reason of an `ImageError`."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (OSError, SyntaxError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
