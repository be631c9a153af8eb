"""Find packages that were replaced on disk after this process had loaded them."""

import re
import sys
from importlib import metadata
from pathlib import Path

# Packages whose Python files and C libraries work only with each other: module -> distribution.
# Keras is not among them, because networks are converted in a process of their own.
_PACKAGES = {
    "PIL": "pillow",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}


def check_loaded(packages=_PACKAGES):
    """Raise an `ImportError` if a loaded package is not the one that is installed.

    ``pip install`` in a live notebook leaves such a mixture: modules that were imported before it
    are old, and modules that are imported from now on are new.
    """
    for module, distribution in packages.items():
        versions = _loaded_versions(module)
        installed = _installed_versions(module, distribution)
        if len(versions) > 1 or (versions and installed and versions.isdisjoint(installed)):
            found = " and ".join(sorted(versions | installed))
            raise ImportError(
                f"{distribution} was installed after this process had loaded another version of "
                f"it, so that parts of both are in use ({found}). Restart the kernel (or this "
                "program), then run it again from the start."
            )


def _loaded_versions(module):
    """Return the versions of a module's Python files and of its C library, if it is loaded."""
    loaded = sys.modules.get(module)
    versions = {_release(getattr(loaded, "__version__", ""))}
    core = getattr(sys.modules.get("PIL.Image"), "core", None) if module == "PIL" else None
    versions.add(_release(getattr(core, "PILLOW_VERSION", "")))
    return versions - {""}


def _installed_versions(module, distribution):
    """Return the versions that lie where a module was loaded from: one, none if unknown."""
    loaded = sys.modules.get(module)
    if getattr(loaded, "__file__", None) is None:
        return set()
    folder = str(Path(loaded.__file__).parents[1])
    found = metadata.distributions(name=distribution, path=[folder])
    return {_release(each.version or "") for each in found} - {""}


def _release(version):
    return re.match(r"[0-9.]*", version).group().rstrip(".")
