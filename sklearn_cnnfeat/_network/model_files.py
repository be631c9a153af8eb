"""Inspect a model file before Keras loads it, and without Keras: only known contents are accepted.

Keras builds whatever a file names, even with safe_mode=True: over the years, files have made it
run code, import modules, and read other files. Here a file is accepted if every class in it is on
a list of Keras' own classes that only compute, if its weights are in the file itself, and if it
cannot unpack to far more than its size.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from sklearn_cnnfeat._network.file_kinds import other_kind
from sklearn_cnnfeat._network.hdf5_files import inspect_hdf5
from sklearn_cnnfeat._network.model_configs import inspect_config, parse_config
from sklearn_cnnfeat._network.refusals import (
    FREE_BYTES,
    LARGEST_RATIO,
    MOST_TEXT,
    Refused,
    cause_of,
)
from sklearn_cnnfeat.exceptions import ModelFileError, UntrustedModelError

# Increase it whenever more is refused: files that passed an older version are inspected again.
INSPECTION = 2

_FREE_TEXT = 8 * 1024**2
# Parts of an archive up to this size are inspected in memory, larger ones on disk.
_IN_MEMORY = 32 * 1024**2

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_METADATA = "metadata.json"
_MEMBERS = {_CONFIG, _WEIGHTS, _METADATA}
_SUFFIXES = (".keras", ".h5", ".hdf5")


@contextmanager
def inspected_copy(path, digest, what="model"):
    """Copy a file to where nobody else can change it, inspect the copy, and yield its path.

    The copy lacks the training configuration of models inside the model: Keras would build it, and
    nothing here needs it. No other file than that of this SHA-256 may be read: the key of the
    compiled network is made from it.
    """
    with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
        copy = Path(folder) / os.path.basename(path)
        computed = hashlib.sha256()
        with open(path, "rb") as source, open(copy, "wb") as target:
            while block := source.read(1 << 20):
                computed.update(block)
                target.write(block)
        if computed.hexdigest() != digest:
            raise ModelFileError(f"{str(path)!r} was changed while it was being read. Try again.")
        config = _inspect(copy, path, what)
        if config is not None:
            _replace_config(copy, config)
        yield copy


def _replace_config(path, config):
    text = json.dumps(config)
    if path.suffix != ".keras":
        import h5py

        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = text
        return
    replaced = path.with_suffix(".new")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(replaced, "w") as new:
        for name in old.namelist():
            if name == _CONFIG:
                new.writestr(name, text)
                continue
            with old.open(name) as source, new.open(name, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
    os.replace(replaced, path)


def inspection_of(source):
    """Return the note on how the file of `source` was inspected, for the network's record."""
    return None if source.trusted else INSPECTION


def inspect_again(source):
    """Raise if the file of `source` would be refused; nothing is loaded."""
    path, what = source.file_to_inspect()
    with inspected_copy(path, source.digest, what):
        pass


def inspect_file(path, what="model"):
    """Raise if a file holds anything but what Keras' own layers need.

    With ``what="weights"`` only what is loaded then is looked at: no configuration.
    """
    _inspect(path, path, what)


def _inspect(path, shown, what):
    name = repr(str(shown))
    try:
        with open(path, "rb") as file:
            return inspect_stream(file, str(shown), what)
    except Refused as error:
        raise UntrustedModelError(
            f"{name} was not loaded, because {error}. A file like this can run code, or read other "
            "files, with all the rights that you have. If you trust whoever made it as you would "
            "trust a program of theirs, say trusted=True: the file is then loaded with whatever it "
            "holds."
        ) from None
    except ModelFileError:
        raise
    except Exception as error:
        # Libraries raise many kinds of errors for damaged files.
        problem = f"{type(error).__name__}: {cause_of(error)}"
        if isinstance(error, zipfile.BadZipFile):
            problem = "the archive is damaged or cut off."
        kind = "a Keras model (.keras or .h5)" if what == "model" else "weights of a Keras model"
        raise ModelFileError(f"{name} cannot be read as {kind}: {problem}") from error


def inspect_stream(file, name, what="model"):
    """Inspect an open file, of which `name` tells the kind; see `inspect_file`.

    Whatever the libraries that read it raise comes through. Returned is the configuration that
    Keras is to be given in place of the one in the file, None for that itself.
    """
    begin = file.read(64)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not name.endswith(_SUFFIXES):
        raise Refused(f"its name ends in none of {', '.join(_SUFFIXES)}")
    is_archive = name.endswith(".keras")
    if not begin.startswith(b"PK\x03\x04" if is_archive else b"\x89HDF"):
        kind = "no Keras model" if what == "model" else "no file of weights"
        found = other_kind(begin, Path(name).suffix) or f"it begins with {begin[:8]!r}"
        raise ModelFileError(f"{name!r} is {kind}: {found}.")
    if is_archive:
        return _inspect_archive(file, what)
    config = inspect_hdf5(file, size)
    if what != "model":
        return None
    if config is None:
        raise ValueError("it holds weights and no network (no 'model_config').")
    return inspect_config(parse_config(config))


# --- archives ---------------------------------------------------------------------------------


def _inspect_archive(file, what):
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            _check_member(member)
        (name, count), *_ = Counter(m.filename for m in members).most_common() or [("", 0)]
        if count > 1:
            raise Refused(f"its archive has {name!r} more than once")
        config = None
        if what == "model":
            config = inspect_config(parse_config(_read_member(archive, _CONFIG).getvalue()))
        with _read_member(archive, _WEIGHTS) as weights:
            inspect_hdf5(weights, archive.getinfo(_WEIGHTS).file_size)
    return config


def _check_member(member):
    name = member.filename
    if name not in _MEMBERS:
        known = ", ".join(sorted(_MEMBERS))
        raise Refused(
            f"its archive holds {name[:200]!r} besides {known}, a file that layers could read"
        )
    if member.flag_bits & 0x1:
        raise Refused(f"{name!r} in its archive is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"{name!r} in its archive is compressed in an unusual way")
    if name == _WEIGHTS:
        most = FREE_BYTES + LARGEST_RATIO * member.compress_size
    else:
        most = min(_FREE_TEXT + LARGEST_RATIO * member.compress_size, MOST_TEXT)
    if member.file_size > most:
        raise Refused(
            f"{name!r} in its archive would unpack to {member.file_size:,} bytes, from "
            f"{member.compress_size:,}"
        )


def _read_member(archive, name):
    """Return a member as an open file, in memory or on the disk, and check its checksum."""
    size = archive.getinfo(name).file_size
    target = io.BytesIO() if size <= _IN_MEMORY else tempfile.TemporaryFile(prefix="cnnfeat-")
    try:
        with archive.open(name) as source:
            # Not more than was promised, whatever comes out.
            shutil.copyfileobj(source, target, 1 << 20)
        target.seek(0)
    except BaseException:
        target.close()
        raise
    return target


def saved_by(path):
    """Return the version of Keras that a model file was saved by; None where it does not tell."""
    import h5py

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, _read_member(archive, _METADATA) as text:
                return str(json.load(text)["keras_version"])
        with h5py.File(path, "r") as file:
            return str(file.attrs["keras_version"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
