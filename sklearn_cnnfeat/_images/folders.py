"""Photographs on disk as paths and labels, ready for a pipeline."""

import os

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from sklearn_cnnfeat._images.formats import EXTENSIONS
from sklearn_cnnfeat._images.urls import is_url, local_path
from sklearn_cnnfeat._text import first_few
from sklearn_cnnfeat._warn import warn

__all__ = ["load_image_folder", "load_image_table"]


def load_image_folder(path, *, extensions=EXTENSIONS):
    """List the images of a folder that holds one subfolder per class.

    Nothing is opened: the data are paths, which `CNNFeatureTransformer` reads when it needs them.

    Parameters
    ----------
    path : str or os.PathLike
        The folder. Its subfolders are the classes and are named after them. Images may lie at any
        depth inside of these. Images beside the subfolders, and hidden files and folders (`.git`,
        `.ipynb_checkpoints`), are left out.
    extensions : tuple of str, default=all that can be read
        What the name of an image ends with, in lower or upper case. By default `.jpg`, `.jpeg`,
        `.jfif`, `.png`, `.webp`, `.gif`, `.bmp`, `.tif` and `.tiff`.

    Returns
    -------
    photos : :class:`~sklearn.utils.Bunch`
        Dictionary-like, with:

        data : ndarray of str objects, shape (n_images,)
            The paths, class by class, sorted by name. The same on every machine.
        target : ndarray of int, shape (n_images,)
            The class of each image, as an index into `target_names`.
        target_names : list of str
            The names of the classes, sorted.
        DESCR : str
            One line on what was found.

    See Also
    --------
    load_image_table : The same for labels in a table.

    Examples
    --------
    >>> import os, tempfile
    >>> from PIL import Image
    >>> from sklearn_cnnfeat import load_image_folder
    >>> folder = tempfile.mkdtemp()
    >>> for name in ["ants/1.png", "ants/2.png", "bees/1.png"]:
    ...     os.makedirs(os.path.join(folder, os.path.dirname(name)), exist_ok=True)
    ...     Image.new("RGB", (32, 32)).save(os.path.join(folder, name))
    >>> photos = load_image_folder(folder)
    >>> photos.target_names
    ['ants', 'bees']
    >>> photos.target
    array([0, 0, 1])
    >>> [os.path.basename(path) for path in photos.data]
    ['1.png', '2.png', '1.png']
    """
    path = os.fspath(path)
    extensions = _check_extensions(extensions)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"There is no folder {path!r}. Relative paths start at {os.getcwd()!r}."
        )
    if not os.path.isdir(path):
        raise NotADirectoryError(
            f"path must be a folder that holds one subfolder per class, but {path!r} is a file."
        )
    folders = sorted(
        name
        for name in os.listdir(path)
        # `DirEntry.is_dir` of `os.scandir` raises an error for a link to itself.
        if not _is_hidden(name) and os.path.isdir(os.path.join(path, name))
    )
    if not folders:
        raise ValueError(_no_classes(path, extensions))

    data, target, target_names, empty = [], [], [], []
    for name in folders:
        images = _find_images(os.path.join(path, name), extensions, path)
        if not images:
            empty.append(name)
            continue
        data += images
        target += [len(target_names)] * len(images)
        target_names.append(name)
    if not data:
        raise ValueError(
            f"The subfolders of {path!r} ({first_few(folders)}) hold no images: no file ends with "
            f"{', '.join(extensions)}."
        )
    if empty:
        warn(
            f"{len(empty)} of the {len(folders)} subfolders of {path!r} hold no images and are "
            f"not classes: {first_few(empty)}.",
        )
    return _bunch(data, np.array(target), target_names, repr(path))


def find_images(path):
    """List all images of a folder, with their classes where all lie in subfolders.

    Returned is what `load_image_folder` returns; `target` and `target_names` are None where images
    lie in the folder itself.
    """
    path = os.fspath(path)
    if not os.path.isdir(path):
        raise FileNotFoundError(
            f"There is no folder {path!r}. Relative paths start at {os.getcwd()!r}. A single image "
            "goes into a list: [X]."
        )
    visible = [name for name in os.listdir(path) if not _is_hidden(name)]
    folders = {name for name in visible if os.path.isdir(os.path.join(path, name))}
    has_own = any(name.lower().endswith(EXTENSIONS) and name not in folders for name in visible)
    if folders and not has_own:
        return load_image_folder(path)
    data = _find_images(path, EXTENSIONS)
    if not data:
        raise ValueError(
            f"The folder {path!r} holds no images: no file in it ends with {', '.join(EXTENSIONS)}."
        )
    return Bunch(data=np.array(data, dtype=object), target=None, target_names=None)


def load_image_table(table, path, target, *, folder=None, extension=""):
    """List the images and labels that stand in two columns of a table.

    Only the table is opened: the data are paths, which `CNNFeatureTransformer` reads when
    it needs them.

    Parameters
    ----------
    table : str, os.PathLike, or data frame of pandas or polars
        The table, or a CSV file.
    path : str
        The column of the images' paths or names.
    target : str
        The column of labels. Each distinct label is a class; for regression, take the numbers from
        the table itself.
    folder : str or os.PathLike, default=None
        Where relative paths start. By default in the folder of the CSV file, and for a data frame
        in the current one.
    extension : str, default=""
        What to add to each name, such as ".jpg", for tables that hold names without extension.

    Returns
    -------
    photos : :class:`~sklearn.utils.Bunch`
        Dictionary-like, with:

        data : ndarray of str objects, shape (n_images,)
            The paths, in the order of the table.
        target : ndarray of int, shape (n_images,)
            The class of each image, as an index into `target_names`.
        target_names : list
            The distinct labels, sorted.
        DESCR : str
            One line on what was found.

    See Also
    --------
    load_image_folder : The same for one folder per class.

    Examples
    --------
    >>> import os, tempfile
    >>> import pandas as pd
    >>> from PIL import Image
    >>> from sklearn_cnnfeat import load_image_table
    >>> folder = tempfile.mkdtemp()
    >>> for name in "abc":
    ...     Image.new("RGB", (32, 32)).save(os.path.join(folder, f"{name}.png"))
    >>> table = pd.DataFrame({"id": ["b", "a", "c"], "breed": ["pug", "beagle", "pug"]})
    >>> photos = load_image_table(table, path="id", target="breed", folder=folder, extension=".png")
    >>> photos.target_names
    ['beagle', 'pug']
    >>> photos.target
    array([1, 0, 1])
    """
    if isinstance(table, (str, os.PathLike)):
        where = repr(os.fspath(table))
        if folder is None:
            folder = os.path.dirname(os.fspath(table))
        # Names of images may be digits ("00012" must not become 12), and "NA" may be a label.
        table = pd.read_csv(table, dtype={path: str}, keep_default_na=False, na_values=[""])
    else:
        where = "the table"
    columns = list(table.columns)
    for column in (path, target):
        if column not in columns:
            raise ValueError(
                f"{where} has no column {column!r}. Its columns: {first_few(columns)}."
            )
    names, labels = (np.asarray(table[column].to_numpy()) for column in (path, target))
    if len(names) == 0:
        raise ValueError(f"{where} has no rows.")
    for column, values in ((path, names), (target, labels)):
        missing = np.flatnonzero(pd.isna(values)).tolist()
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(values)} rows of {where} have no {column!r}: rows "
                f"{first_few(missing)}. Drop them first."
            )
    data = [os.path.join(folder or "", f"{name}{extension}") for name in names]
    absent = [name for name in data if not os.path.isfile(name)]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of the {len(data)} files in column {path!r} of {where} cannot be "
            f"found: {first_few(absent)}. Pass folder= for the folder of these files, and "
            "extension= for the end of their names."
        )
    target_names, codes = np.unique(labels, return_inverse=True)
    return _bunch(data, codes, target_names.tolist(), where)


def _bunch(data, target, target_names, where):
    return Bunch(
        data=np.array(data, dtype=object),
        target=target,
        target_names=target_names,
        DESCR=f"{len(data)} images of {len(target_names)} classes from {where}.",
    )


def _check_extensions(extensions):
    if isinstance(extensions, str):
        extensions = (extensions,)
    return tuple(extension.lower() for extension in extensions)


def _is_hidden(name):
    return name.startswith(".")


def _no_classes(path, extensions):
    message = f"{path!r} must hold one subfolder per class, but it has no subfolders."
    images = [name for name in sorted(os.listdir(path)) if name.lower().endswith(extensions)]
    if images:
        message += (
            f" {len(images)} images lie directly in it ({first_few(images)}): move them into one "
            "folder per class, use load_image_table if a table holds their labels, or pass their "
            "paths to the transformer as a list."
        )
    return message


def _find_images(folder, extensions, root=None):
    """Return the paths of all images in a folder and those below it, sorted by name."""
    # Links may lead back to a folder above, or to other classes.
    seen = set() if root is None else {os.path.realpath(root)}
    found = []
    for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [
            os.path.join(where, name)
            for name in files
            if name.lower().endswith(extensions) and not _is_hidden(name)
        ]
    return sorted(found)


def list_images(places):
    """Return the paths of named files and URLs, and of all images in named folders.

    Folders are searched at any depth. What lies in a folder is sorted by name.
    """
    paths = []
    for place in map(local_path, map(os.fspath, places)):
        if os.path.isdir(place):
            paths += _find_images(place, EXTENSIONS)
        elif is_url(place) or os.path.exists(place):
            paths.append(place)
        else:
            raise FileNotFoundError(
                f"There is no file or folder {place!r}. Relative paths start at {os.getcwd()!r}."
            )
    if not paths:
        raise ValueError(
            f"There are no images in {first_few(places)}: no file ends with "
            f"{', '.join(EXTENSIONS)}."
        )
    return paths


def _raise(error):
    raise error
