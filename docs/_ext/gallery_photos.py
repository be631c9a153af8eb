"""The folder ``photos/`` that scripts of the gallery read, as a user's would."""

import hashlib
import os
import shutil
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

import platformdirs

# Photographs of bean leaves by the Makerere AI Lab, 2020, MIT license; this is the test part.
ADDRESS = "https://storage.googleapis.com/ibeans/test.zip"
SHA256 = "ca67b15d960d1e2fd9d23fd8498ce86818ead90755c630a43baf19ec4af09312"
CLASSES = ("healthy", "bean_rust")
# Hidden, so that it is not taken for a photograph.
_MARK = ".of_the_gallery"


def put_photos(folder, source=None, cache=None, address=ADDRESS, sha256=SHA256):
    """Make a folder of photographs with one subfolder per class.

    They are copied from the folder `source`. Without one, a small licensed set is downloaded once
    and kept in `cache`. RuntimeError says in one sentence what is missing. A folder of earlier
    photographs is replaced if it was made here.
    """
    folder = Path(folder)
    if source and not any(Path(source).glob("*/*.jp*g")):
        raise RuntimeError(
            f"CNNFEAT_EXAMPLE_PHOTOS={str(source)!r} has no JPEG files in one subfolder per class."
        )
    if source and folder.exists() and folder.samefile(source):
        return
    if folder.exists() and not (folder / _MARK).exists():
        raise RuntimeError(
            f"{str(folder)!r} would be replaced by photographs for the gallery: move it elsewhere, "
            "or set CNNFEAT_EXAMPLE_PHOTOS to it if it is what the gallery should show."
        )
    archive = None if source else _fetch(cache, address, sha256)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()
    if source:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        _unpack(archive, folder)


def _unpack(archive, folder):
    with zipfile.ZipFile(archive) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.parent.name in CLASSES and path.suffix == ".jpg":
                target = folder / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


def _fetch(cache, address, sha256):
    """Return the path of the archive, downloaded where it is not kept yet."""
    cache = Path(cache or platformdirs.user_cache_dir("sklearn-cnnfeat-docs", False))
    path = cache / "photos.zip"
    if not (path.exists() and _digest(path.read_bytes()) == sha256):
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                data = response.read()
        except OSError as error:
            raise RuntimeError(
                f"The gallery needs photographs, and {address} cannot be downloaded ({error}): set "
                "CNNFEAT_EXAMPLE_PHOTOS to a folder with one subfolder per class, or build with "
                "-D plot_gallery=0."
            ) from error
        if _digest(data) != sha256:
            raise RuntimeError(
                f"{address} has the SHA-256 {_digest(data)} in place of {sha256}: it is not the "
                "set of photographs that the gallery is written for."
            )
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(data)
        unfinished.replace(path)
    return path


def _digest(data):
    return hashlib.sha256(data).hexdigest()
