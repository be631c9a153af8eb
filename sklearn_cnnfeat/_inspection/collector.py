"""What a page shows of each photograph, gathered while photographs go through a network."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import is_classifier
from sklearn.random_projection import GaussianRandomProjection

from sklearn_cnnfeat._inspection.judged import class_scores, n_images, pick
from sklearn_cnnfeat._inspection.linear_decisions import LinearDecisions
from sklearn_cnnfeat._inspection.page_maps import (
    N_CHANNELS,
    as_bytes,
    as_signed_bytes,
    pack,
    strongest_channels,
)
from sklearn_cnnfeat._inspection.pipeline_steps import without_name_warnings
from sklearn_cnnfeat._inspection.route import Route, final_step, is_predictor
from sklearn_cnnfeat.exceptions import NotAffineError

# More features than this, for each photograph and together in bytes, are projected to fewer, which
# keeps distances.
_MOST_FEATURES, _MOST_BYTES = 4096, 32e6
# Dimensions that they are projected to.
_PROJECTED = 1024, 256


@dataclass
class Photo:
    """What is kept of one photograph."""

    # What is predicted, and one score per class.
    predicted: object
    scores: np.ndarray | None
    # Height and width of the decision map, and its largest value; None without one.
    decision: list | None
    # Of each layer: the strongest channels, and their largest values.
    channels: list
    peaks: list
    # The decision map and the maps of these channels, packed.
    maps: bytes


class Collector:
    """Takes rows and maps of a few photographs at a time, and keeps what the page shows of them.

    Without a pipeline, rows are the features. The first `n_own` layers are those of the
    transformer; `shown` are those whose maps the page shows, with sides of at most `side`.
    Afterwards `photos` has the photographs that can be read, by position, and `note` says why they
    have no decision maps.
    """

    def __init__(self, X, pipeline, step, n_own, shown, side, details):
        self.photos = {}
        self.details = details
        self.are_probabilities = False
        self.note = None
        self._X, self._pipeline, self._step = X, pipeline, step
        self._n_own, self._shown, self.side = n_own, shown, side
        self._features = self._projection = None
        final = None if pipeline is None else final_step(pipeline)
        self.final = final if is_predictor(final) else None
        self._decisions = None
        if self.final is not None and is_classifier(self.final):
            self._decisions = LinearDecisions(pipeline, step)
        else:
            self.note = "Decision maps need a pipeline that classifies."

    def refuse_decisions(self, reason):
        """Draw no decision maps."""
        self.note = self.note or reason
        self._decisions = None

    def __call__(self, positions, rows, maps):
        """Take the rows of photographs, and the maps of each layer."""
        features, predicted, scores = self._judge(positions, rows)
        self._keep_features(positions, features)
        for k, i in enumerate(positions.tolist()):
            own = [values[k] for values in maps]
            self.photos[i] = Photo(
                None if predicted is None else predicted[k],
                None if scores is None else scores[k],
                *self._maps_of(i, rows[k], own, None if predicted is None else predicted[k]),
            )
            lead = 0.0
            if scores is not None and scores.shape[1] > 1:
                second, first = np.partition(scores[k], -2)[-2:]
                lead = float(first - second)
            self.details.offer(i, lead, lambda own=own: self._all_channels(own))

    def _judge(self, positions, rows):
        if self._pipeline is None:
            return rows, None, None
        route = Route(self._pipeline, self._step, pick(self._X, positions))
        features = route.features(rows)
        if self.final is None:
            return features, None, None
        with without_name_warnings():
            predicted = np.asarray(self.final.predict(features))
        scores, self.are_probabilities = class_scores(self.final, features)
        return features, predicted, scores

    def features_of(self, positions):
        """Return what the predictor gets for photographs, perhaps projected."""
        return self._features[positions]

    def _keep_features(self, positions, features):
        features = np.asarray(features, np.float32)
        if self._features is None:
            n, width = n_images(self._X), features.shape[1]
            if width > min(_MOST_FEATURES, max(_PROJECTED[0], _MOST_BYTES / (4 * n))):
                width = _PROJECTED[0] if 4 * n * _PROJECTED[0] <= _MOST_BYTES else _PROJECTED[1]
                self._projection = GaussianRandomProjection(width, random_state=0).fit(features)
            self._features = np.empty((n, width), np.float32)
        if self._projection is not None:
            features = self._projection.transform(features)
        self._features[positions] = features

    def _maps_of(self, i, row, maps, predicted):
        """Return the decision, channels, peaks and packed maps of a photograph."""
        parts, channels, peaks = [], [], []
        decision = self._decision(i, row, maps[: self._n_own], predicted)
        if decision is not None:
            values, limit = as_signed_bytes(decision)
            parts.append(values)
            decision = [*values.shape, float(f"{limit:.3g}")]
        for k in self._shown:
            strongest = strongest_channels(maps[k], N_CHANNELS)
            values = maps[k][..., strongest]
            parts.append(as_bytes(values, self.side))
            channels.append(strongest.tolist())
            peaks.append([float(f"{peak:.3g}") for peak in values.max(axis=(0, 1))])
        return decision, channels, peaks, pack(parts)

    def _decision(self, i, row, maps, predicted):
        if self._decisions is None:
            return None
        try:
            return self._decisions.map_of(pick(self._X, [i]), row, maps, predicted)
        except NotAffineError as error:
            self.refuse_decisions(f"There are no decision maps: {error}")
            return None

    def _all_channels(self, maps):
        return pack([as_bytes(maps[k], self.side) for k in self._shown])
