"""The data of a job's images besides their features: names, labels, errors, stamps."""

import hashlib
import json

import numpy as np

from sklearn_cnnfeat._extract.formats.base import as_text
from sklearn_cnnfeat._extract.manifest import digest_of_names
from sklearn_cnnfeat._extract.shards import STAMP
from sklearn_cnnfeat._files import digest_of_text
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat.exceptions import ImageError


class Records:
    """The images of a job, and their labels as `read_labels` returns them."""

    def __init__(self, images, labels):
        self.images = images
        self.has_paths = images.has_paths
        self._labels, self._label_dtype, self._target_names = labels
        self._stamps = None

    def __len__(self):
        return len(self.images)

    def describe(self):
        """Return the entries of a manifest that images and labels decide."""
        labels = self._labels
        columns = {"path": self.has_paths, "label": labels is not None, "error": True}
        return {
            "n_images": len(self),
            "columns": [name for name, is_there in columns.items() if is_there],
            "names": digest_of_names(self.names(range(len(self))) if self.has_paths else ()),
            "labels": None if labels is None else digest_of_text(json.dumps(labels.tolist())),
            "label_dtype": self._label_dtype,
            "target_names": self._target_names,
            "reading": self.images.reading(),
        }

    def names(self, positions):
        """Return the names of some images for messages."""
        return [self.images.name(position) for position in positions]

    def columns(self, positions, errors):
        """Return the columns of some images besides their features."""
        columns = {}
        if self.has_paths:
            columns["path"] = [as_text(self.images.path(position)) for position in positions]
        if self._labels is not None:
            columns["label"] = self._labels[positions]
        columns["error"] = [errors.get(position) for position in positions]
        return columns

    def paths_beyond_text(self):
        """Return the paths, by position as text, that no text column holds as they are."""
        paths = map(self.images.path, range(len(self)) if self.has_paths else ())
        return {str(i): path for i, path in enumerate(paths) if as_text(path) != path}

    def describe_error(self, position, errors):
        """Return a row of the table of unreadable images."""
        label = "" if self._labels is None else self._labels[position]
        return position, as_text(self.images.path(position)), label, errors[position]

    def error(self, position, errors):
        """Return the error of an unreadable image."""
        return ImageError(self.images.name(position), errors[position])

    def known_error(self, errors):
        """Return the error for images that failed in an earlier call."""
        position = min(errors)
        others = f" {len(errors) - 1} more cannot be read." if len(errors) > 1 else ""
        return ImageError(
            self.images.name(position),
            f"{errors[position]}, as an earlier call with another on_error found.{others} "
            "retry_errors=True computes them again",
        )

    def stamps(self, span):
        """Return the stamps, which show whether images have changed: one row per image."""
        if self._stamps is None:
            stamps = b"".join(map(self.images.stamp, range(len(self))))
            self._stamps = np.frombuffer(stamps, np.uint8).reshape(-1, STAMP)
        return self._stamps[span.start : span.stop]

    def digest_stamps(self, span, errors):
        """Return a digest of the stamps of images that can be read."""
        stamps = self.stamps(span).copy()
        stamps[[position - span.start for position in span if position in errors]] = 0
        return hashlib.sha256(stamps).hexdigest()[:16]

    def find_changed(self, span, stamps, errors):
        """Return the positions of readable images whose stamps are not these any more."""
        changed = np.flatnonzero((self.stamps(span) != stamps).any(axis=1)).tolist()
        return [span[place] for place in changed if span[place] not in errors]

    def first_names(self, positions):
        """Return the first few names, for a message."""
        return first_few(self.names(positions))
