"""Progress bars and messages on the error stream, for whatever takes long."""

import sys

from tqdm.auto import tqdm


def progress(total, description, verbose, n_done=0, unit="image"):
    """Return a progress bar with rate and time left; a silent one where `verbose` is 0."""
    return tqdm(
        total=total,
        initial=n_done,
        desc=description,
        unit=unit,
        disable=not verbose,
        file=sys.stderr,
        leave=True,
    )


def announce(sentence, verbose):
    """Print a message before a long step; with ``verbose=0`` only in an interactive session."""
    if verbose or sys.stderr.isatty() or "ipykernel" in sys.modules:
        # Not in the middle of a progress bar.
        tqdm.write(f"sklearn-cnnfeat: {sentence}", file=sys.stderr)
        sys.stderr.flush()
