"""Where this package keeps files of its own: compiled networks and cached features."""

import os
from pathlib import Path

import platformdirs


def home_folder():
    """Return the folder for everything kept between runs; it is not created here.

    That is ``$SKLEARN_CNNFEAT_HOME`` where it is set, else the user's cache folder of the operating
    system, as an absolute path.
    """
    chosen = os.environ.get("SKLEARN_CNNFEAT_HOME", "")
    folder = Path(chosen or platformdirs.user_cache_dir("sklearn-cnnfeat", appauthor=False))
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:  # an account without a home folder: usual in containers
        raise RuntimeError(
            f"cannot tell the home folder of this account ({folder}); "
            "set the environment variable SKLEARN_CNNFEAT_HOME to a folder for cached files"
        ) from error


def networks_folder():
    """Return the folder of compiled networks, whether it exists or not."""
    return home_folder() / "networks"


def features_folder():
    """Return the default folder of cached features, whether it exists or not."""
    return home_folder() / "features"


def make_private_folder(folder):
    """Make `folder` and its missing parents, readable by their owner only.

    A folder that is there already keeps its mode: it may be shared on purpose.
    """
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
