"""Say what takes long, on the error stream, where a person may be looking."""

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
    """Print a sentence before a wait of seconds, even where `verbose` is 0 if a person looks on."""
    if verbose or sys.stderr.isatty() or "ipykernel" in sys.modules:
        # Not in the middle of a progress bar.
        tqdm.write(f"sklearn-cnnfeat: {sentence}", file=sys.stderr)
        sys.stderr.flush()
