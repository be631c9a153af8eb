"""Errors that refuse untrusted files, and the limits of such files."""

import re

# A file may unpack to so many bytes, and to so many times its own size on top.
FREE_BYTES = 64 * 1024**2
LARGEST_RATIO = 20
# The configuration of the largest network of Keras Applications is 1 MB of text.
MOST_TEXT = 32 * 1024**2
MOST_OBJECTS = 200_000


class Refused(Exception):
    """Why a file is refused; becomes an `UntrustedModelError` that names the file."""


def show(value, most=100):
    """Return untrusted text as one short line without control characters."""
    text = str(value)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:most])
    return f"{shown}..." if len(text) > most else shown


def cause_of(error):
    """Return the line of a Keras error that names the cause, safe to print."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
    lines = [line.strip() for line in lines if line.strip()] or [type(error).__name__]
    cause = lines[0]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("Exception encountered: "):
            cause = line.removeprefix("Exception encountered: ")
        elif line.startswith("Exception encountered when calling"):
            is_told = not following.startswith("Arguments received")
            cause = following if is_told else type(error).__name__
        elif "Example error message" in line:
            cause = following
    return show(cause, 300)
