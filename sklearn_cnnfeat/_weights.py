"""Make a folder of published weights for machines without internet."""

import json
from numbers import Integral
from pathlib import Path

import pandas as pd

from sklearn_cnnfeat._files import check_readme, copy_whole, digest_of_file, write_whole
from sklearn_cnnfeat._network.converter import download_weights
from sklearn_cnnfeat._network.keras_sources import NamedNetwork
from sklearn_cnnfeat._network.weights import MANIFEST, VARIABLE, find_weights, read_manifest
from sklearn_cnnfeat._network.zoo import find_architecture, list_models

__all__ = ["pack_weights"]

_TITLE = "# ImageNet weights for sklearn-cnnfeat\n"
_README = """
Files as Keras publishes them, for machines without internet. `{manifest}` holds the
SHA-256 of each; a file that has changed is refused.

{table}

On Kaggle, attach this folder as a dataset: it is found by itself, and so is `weights="imagenet"`.
Elsewhere set the environment variable `{variable}` to this folder, or to one that holds it.

The weights are their publishers' work, under their licences: see https://keras.io/api/applications/
"""


def pack_weights(models, folder, *, classifier=False, input_size=None):
    """Make a folder of published weights, to be used where there is no internet.

    Files that this machine has are copied, others are downloaded by Keras first. On Kaggle, a
    dataset of the folder is found automatically once it is attached to a notebook; elsewhere the
    environment variable ``SKLEARN_CNNFEAT_WEIGHTS`` names the folder (or several, separated as in
    ``PATH``), which is searched with all that is in it.

    Parameters
    ----------
    models : str or list of str
        Networks by name, as :func:`list_models` lists them.

    folder : str or os.PathLike
        The destination, created if it is missing; files of earlier calls stay.

    classifier : bool, default=False
        Whether to pack the larger files as well, which layers of the classifier need, such as
        ``fc1`` and ``predictions``.

    input_size : int, default=None
        Height and width in pixels of the images that the networks will see. It matters for
        MobileNets, which have weights for several sizes. None packs those for the network's own.

    Returns
    -------
    files : DataFrame
        One row per file: ``model``, ``file`` (its name), ``n_bytes``, ``sha256``, ``source`` (the
        path it was copied from) and ``path``.

    Raises
    ------
    ValueError
        If a name is not that of a network.
    FileExistsError
        If the folder has a README that is not of packed weights.
    WeightsNotFoundError
        If weights are not here and cannot be downloaded.

    See Also
    --------
    list_models : Networks that are known by name.

    Examples
    --------
    Where there is internet:

    >>> from sklearn_cnnfeat import pack_weights
    >>> pack_weights(["vgg16", "mobilenet_v2"], "my-weights")  # doctest: +SKIP

    Then upload ``my-weights`` as a Kaggle dataset.
    """
    # Whatever is wrong shows before the first file is written.
    folder = Path(folder).expanduser()
    check_readme(folder, _TITLE)
    found = locate_weights(models, classifier, input_size)
    return copy_weights(found, folder)


def locate_weights(models, classifier, input_size):
    """Return pairs of a network and the path of its published file, as `pack_weights` copies them.

    Files that are missing on this machine are downloaded.
    """
    architectures = [_find(name) for name in ([models] if isinstance(models, str) else models)]
    if not architectures:
        raise ValueError("models is empty; name at least one network, as list_models() lists them.")
    if input_size is not None and (not isinstance(input_size, Integral) or input_size < 1):
        raise ValueError(f"input_size must be a number of pixels or None. Got {input_size!r}.")
    return [
        (architecture, _locate(architecture, include_top, input_size))
        for architecture in architectures
        for include_top in ((False, True) if classifier else (False,))
    ]


def copy_weights(found, folder):
    """Copy what `locate_weights` returns into a folder; return the table of `pack_weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, rows = read_manifest(folder), []
    for architecture, source in found:
        digest = digest_of_file(str(source))
        path = folder / source.name
        if not (path.exists() and digest_of_file(str(path)) == digest):
            copy_whole(source, path)
        entries[path.name] = {
            "model": architecture.name,
            "n_bytes": path.stat().st_size,
            "sha256": digest,
        }
        rows.append({"file": path.name, **entries[path.name], "source": str(source), "path": path})
    _describe(folder, dict(sorted(entries.items())))
    columns = ["model", "file", "n_bytes", "sha256", "source", "path"]
    return pd.DataFrame(rows, columns=columns).astype({"path": str})


def _find(name):
    architecture = find_architecture(name) if isinstance(name, str) else None
    if architecture is None:
        raise ValueError(
            f"There is no network {name!r} with published weights. list_models() lists the "
            f"{len(list_models())} there are, such as 'vgg16' and 'mobilenet_v2'."
        )
    return architecture


def _locate(architecture, include_top, input_size):
    """Return the path of a published file on this machine, downloaded where it is missing."""
    size = (input_size or architecture.native_size,) * 2
    path = find_weights(architecture, include_top, size).path
    if path is None:
        source = NamedNetwork(architecture.name, weights="imagenet", include_top=include_top)
        path = download_weights(source, size)
    return path


def _describe(folder, entries):
    """Write the manifest and a README."""
    content = {"format": 1, "files": entries}
    lines = ["| network | file | MB |", "| --- | --- | --- |"]
    for name, entry in entries.items():
        lines.append(f"| `{entry['model']}` | `{name}` | {entry['n_bytes'] / 1e6:.1f} |")
    text = _README.format(manifest=MANIFEST, table="\n".join(lines), variable=VARIABLE)
    readme = _TITLE + text
    for name, text in ((MANIFEST, json.dumps(content, indent=1) + "\n"), ("README.md", readme)):
        write_whole(folder / name, [text.encode()])
