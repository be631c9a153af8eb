"""Warnings that point at the line of the user's program, however deep they arise."""

import os
import sys
import warnings

import joblib
import sklearn

# Frames of these packages stand between a user's line and a warning.
_SKIPPED = tuple(
    os.path.join(os.path.dirname(os.path.abspath(module_file)), "")
    for module_file in (__file__, sklearn.__file__, joblib.__file__)
)


def warn(message, category=UserWarning):
    """Warn at the innermost line that is neither ours nor scikit-learn's.

    Parameters
    ----------
    message : str
        What to say.
    category : type, default=UserWarning
        A subclass of `Warning`.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )
