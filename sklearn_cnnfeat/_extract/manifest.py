"""The manifest of a file of features: made, parsed, validated and compared."""

import hashlib
import json
import math

import numpy as np

# Increase it whenever the file format changes.
VERSION = 1
DTYPES = ("float32", "float16")
ON_ERROR = ("raise", "skip", "nan")

# Images in a shard, and bytes of its rows, at most: what a kill may cost.
_SHARD_ROWS = 256
_SHARD_BYTES = 16 * 1024**2

# Entries that follow from others, and are reported as a change only where nothing else explains it.
_FOLLOW = ("row_shape", "heads", "feature_names", "columns", "label_dtype", "target_names")


def default_part_size(row_shape, dtype):
    """Return how many images go into a shard where the caller does not say."""
    row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize
    return max(1, min(_SHARD_ROWS, _SHARD_BYTES // row_bytes))


def digest_of_names(names):
    """Return the SHA-256 of names of files, which may hold any byte."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def errors_of(manifest):
    """Return the errors of unreadable images by position."""
    return {int(position): reason for position, reason in manifest["errors"].items()}


def positions_of(manifest, rows):
    """Return the positions, among all images, of some rows of a finished file."""
    if manifest["on_error"] != "skip":
        return list(rows)
    skipped = errors_of(manifest)
    kept = (i for i in range(manifest["n_images"]) if i not in skipped)
    return [i for row, i in enumerate(kept) if row in rows]


# --- reading --------------------------------------------------------------------------------------


def parse_manifest(text, file, form):
    """Return the manifest in a text; None if it is not one of this format.

    Raises `ValueError`, which names `file`, where it is one and was altered.
    """
    try:
        manifest = json.loads(text)
    except RecursionError:
        raise ValueError(f"{str(file)!r} is nested too deep for a manifest of extract.") from None
    except ValueError:
        return None
    return check_manifest(manifest, file, form)


def check_manifest(manifest, file, form):
    """Do as `parse_manifest` with what JSON has given."""
    if not isinstance(manifest, dict) or manifest.get("format") != form:
        return None
    if manifest.get("version") != VERSION:
        return manifest
    try:
        problem = _find_problem(manifest)
    except (ArithmeticError, TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        raise ValueError(
            f"The manifest in {str(file)!r} is damaged or was altered: {problem}. Copy the file "
            "again, or remove it and extract again."
        )
    return manifest


def _find_problem(manifest):
    for name, is_right in _ENTRIES.items():
        if name not in manifest and name not in _OPTIONAL:
            return f"{name} is missing"
        if name in manifest and not is_right(manifest[name]):
            return f"{name} is {short(manifest[name])}"
    n_images, errors = manifest["n_images"], errors_of(manifest)
    n_columns = math.prod(manifest["row_shape"])
    n_skipped = len(errors) if manifest["on_error"] == "skip" else 0
    has_labels, is_text = "label" in manifest["columns"], manifest["label_dtype"] == "str"
    wrong = {
        "n_rows": manifest["n_rows"] != n_images - n_skipped,
        "errors": not all(position < n_images for position in errors),
        "label_dtype": has_labels == (manifest["label_dtype"] is None),
        "target_names": is_text != (manifest["target_names"] is not None),
        "feature_names": len(manifest["feature_names"] or range(n_columns)) != n_columns,
        "heads": manifest["heads"] is not None
        and manifest["feature_names"] is None
        and sum(length for *_, length in manifest["heads"]) != n_columns,
    }
    return next((f"{name} does not fit the rest" for name, is_so in wrong.items() if is_so), None)


def _is_count(value):
    return type(value) is int and value >= 0


def _is_shape(value):
    return isinstance(value, list) and all(_is_count(length) and length for length in value)


def _is_texts(value):
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_texts_or_none(value):
    return value is None or _is_texts(value)


def _is_by_position(value):
    """Return whether a value maps positions, which JSON stores as text, to text."""
    return (
        isinstance(value, dict)
        and all(key.isascii() and key.isdecimal() for key in value)
        and _is_texts(list(value.values()))
    )


def _is_label_dtype(value):
    return value in (None, "str") or (isinstance(value, str) and np.dtype(value).kind in "buif")


def _is_head(value):
    if not isinstance(value, list) or len(value) != 4:
        return False
    layer, maps, pooling, length = value
    # Maps of images of any size have no height and width.
    is_shape = isinstance(maps, list) and maps and _is_shape([n for n in maps if n is not None])
    is_pooling = pooling is None or isinstance(pooling, str)
    return isinstance(layer, str) and bool(is_shape) and is_pooling and _is_count(length)


def _is_file(value):
    is_entry = isinstance(value, dict) and value.keys() == {"bytes", "sha256"}
    return is_entry and _is_count(value["bytes"]) and isinstance(value["sha256"], str)


_ENTRIES = {
    "dtype": lambda value: value in DTYPES,
    "part_size": lambda value: _is_count(value) and value > 0,
    "n_images": _is_count,
    "n_rows": _is_count,
    "row_shape": lambda value: _is_shape(value) and bool(value),
    "columns": lambda value: value in _COLUMNS,
    "label_dtype": _is_label_dtype,
    "target_names": _is_texts_or_none,
    "feature_names": _is_texts_or_none,
    "heads": lambda value: value is None or (isinstance(value, list) and all(map(_is_head, value))),
    "on_error": lambda value: value is None or value in ON_ERROR,
    "errors": _is_by_position,
    "stamps": _is_texts,
    # What stands in a file, by the names that its format gives them.
    "files": lambda value: isinstance(value, dict) and all(map(_is_file, value.values())),
    # Paths of images that the columns cannot hold as they are, by position.
    "paths": _is_by_position,
}
# Earlier versions wrote files without them.
_OPTIONAL = ("files", "paths")
_COLUMNS = (["error"], ["path", "error"], ["label", "error"], ["path", "label", "error"])


# --- comparing ------------------------------------------------------------------------------------


def differences(before, now):
    """Describe what differs between two manifests."""
    if before.get("n_images") != now["n_images"]:
        return [f"{before.get('n_images')} images then, {now['n_images']} now"]
    words = {
        "names": "the names of the images, or their order",
        "labels": "the labels",
        "steps": "the steps of the pipeline behind the network",
    }
    changes = []
    for name, value in now.items():
        old = before.get(name)
        if old == value:
            continue
        if name in words:
            changes.append(words[name])
        elif name == "recipe":
            changes += _differences_of_heads(old, value)
        elif name not in _FOLLOW:
            changes.append(f"{name} was {short(old)}, is {short(value)}")
    if not changes:
        changes = [name for name in now if before.get(name) != now[name]]
    return list(dict.fromkeys(changes))


def _differences_of_heads(before, now):
    """Describe what differs between the fingerprints of several layers."""
    before = [head if isinstance(head, dict) else {} for head in before or []]
    if len(before) != len(now):
        layers = [[head.get("layer") for head in heads] for heads in (before, now)]
        return [f"layers were {short(layers[0])}, are {short(layers[1])}"]
    return [
        f"{entry} was {short(old.get(entry))}, is {short(head[entry])}"
        for old, head in zip(before, now, strict=True)
        for entry in head
        if old.get(entry) != head[entry]
    ]


def short(value):
    """Return a value as text of at most 200 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
