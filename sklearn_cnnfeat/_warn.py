"""Warnings that point at a line of the user's program, even from deep inside the package."""

import sys
import warnings

# Frames of these packages stand between a user's line and a warning.
_SKIPPED = {"joblib", "sklearn", "sklearn_cnnfeat"}


def warn(message, category=UserWarning):
    """Warn at the innermost line that is neither ours nor scikit-learn's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _package_of(frame) in _SKIPPED:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _package_of(frame):
    return frame.f_globals.get("__name__", "").partition(".")[0]
