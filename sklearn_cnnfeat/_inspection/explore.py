"""A page to look around in photographs: gather everything, then write one HTML file."""

import os
import zlib
from base64 import b64encode
from pathlib import Path

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline
from sklearn.random_projection import GaussianRandomProjection

from sklearn_cnnfeat._inspection.embedding import embed
from sklearn_cnnfeat._inspection.judged import (
    class_scores,
    judge,
    labels_of,
    n_images,
    pick,
    warn_of_unreadable,
)
from sklearn_cnnfeat._inspection.linear_decisions import LinearDecisions
from sklearn_cnnfeat._inspection.maps import Pictures, chunks_of_maps
from sklearn_cnnfeat._inspection.page import write_page
from sklearn_cnnfeat._inspection.thumbnails import thumbnails, webp
from sklearn_cnnfeat._steps import as_transformer, chosen
from sklearn_cnnfeat._transformer import extractor_for, is_fitted
from sklearn_cnnfeat.exceptions import NotAffineError

# Channels of each layer that every photograph has, and neighbors.
_CHANNELS, _NEIGHBORS = 8, 8
# Photographs that are judged at a time, and features beyond which distances are projected.
_CHUNK, _MOST_FEATURES = 256, 4096
# Up to so many photographs: longest side of a photograph and of a map, in pixels.
_SIZES = ((100, 448, 28), (500, 256, 28), (2500, 144, 14), (10_000, 80, 7), (np.inf, 56, 7))


def explore(
    estimator, X, y=None, to="page.html", *, layers=None, method="pca", details=20, step=None
):
    """Write a page to look around in photographs: one HTML file that needs nothing else.

    The page shows all photographs as a map to zoom and to select in; a click shows a photograph,
    what is predicted for it, where the decision came from, its neighbors and its feature maps. It
    opens from a file, in a notebook and on a phone, without a server and without internet.

    Parameters
    ----------
    estimator : Pipeline, CNNFeatureTransformer, str, path or keras.Model
        A fitted pipeline, or a fitted search over one, gives predictions as well. A transformer,
        fitted or not, or a network as :class:`CNNFeatureTransformer` takes it, gives features.

    X : sequence of images
        The photographs, as for the estimator.

    y : array-like of shape (n_photos,), default=None
        Their true classes.

    to : str or path, default="page.html"
        The file to write.

    layers : str, int or list of these, default=None
        Layers whose feature maps the page shows. None takes the transformer's own.

    method : {"pca", "tsne"} or estimator, default="pca"
        How features become points, as for :class:`EmbeddingDisplay`.

    details : int or sequence of int, default=20
        Photographs with the maps of all channels: so many of the least certain ones (the first ones
        where nothing is predicted), or chosen positions in `X`. The others have the 8 strongest
        channels of each layer.

    step : str, default=None
        Which of several networks in the pipeline.

    Returns
    -------
    page : Path
        The file. In a notebook, ``IPython.display.IFrame(page, "100%", 700)`` shows it.

    See Also
    --------
    EmbeddingDisplay : The map alone, as a picture.
    PredictionGalleryDisplay : The worst or least certain predictions.

    Notes
    -----
    Decision maps are exact, and there are none for pipelines that are not linear behind the
    network; :class:`DecisionMapDisplay` draws those of single photographs. The photographs are part
    of the file, in small: think of that before passing it on.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, explore
    >>> photos = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), dtype=np.uint8)
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_1_relu", "avg", weights=None, random_state=0, input_size=32
    ... )
    >>> page = explore(cnn, photos, to=f"{tempfile.mkdtemp()}/page.html")
    >>> page.name
    'page.html'
    """
    to = Path(to)
    if not to.parent.is_dir():
        raise FileNotFoundError(f"to={os.fspath(to)!r}: there is no folder {to.parent}.")
    labels_of(y, X, slice(None))
    n = n_images(X)
    found = _judge_all(estimator, X, step)
    warn_of_unreadable(n, len(found["readable"]))
    y = labels_of(y, X, found["readable"])
    is_scaled = found["pipeline"] is not None
    points = embed(found["features"], method, is_scaled)
    _, photo_side, map_side = next(size for size in _SIZES if len(points) <= size[0])
    page = {
        "title": f"{len(points):,} photographs",
        "points": np.round(_unit_square(points), 4).tolist(),
        "neighbors": _neighbors(found["features"]),
        **_names(found, X, y),
    }
    detailed = _detailed(details, found, n)
    facts, blobs = _maps_of(found, X, layers, step, map_side, detailed)
    page.update(facts)
    pictures = Pictures(*extractor_for(found["transformer"], X))
    page["names"] = [str(pictures.name(i)) for i in found["readable"]]
    small = thumbnails(pictures, found["readable"], photo_side)
    blobs["photos"] = (b64encode(webp(pixels)).decode() for pixels in small)
    write_page(to, page, blobs)
    return to


def _judge_all(estimator, X, step):
    """Return what a pipeline makes of all photographs, a few hundred at a time."""
    n = n_images(X)
    if n == 0:
        raise ValueError("There is no photograph in X.")
    estimator = chosen(estimator)
    transformer = as_transformer(estimator, step)
    if not isinstance(estimator, Pipeline):
        # Fitted once, not for each chunk.
        if not is_fitted(transformer):
            transformer = clone(transformer).fit(X)
        estimator = transformer
    readable, features, predicted, scores, projection = [], [], [], [], None
    judged = None
    for start in range(0, n, _CHUNK):
        part = judge(estimator, pick(X, np.arange(start, min(n, start + _CHUNK))), step, True)
        if not len(part.readable):
            continue
        judged = part
        rows = np.asarray(part.features, np.float32)
        if rows.shape[1] > _MOST_FEATURES:
            if projection is None:
                projection = GaussianRandomProjection(1024, random_state=0).fit(rows)
            rows = projection.transform(rows).astype(np.float32)
        readable.append(start + part.readable)
        features.append(rows)
        if part.predicted is not None:
            predicted.append(part.predicted)
            scores.append(class_scores(part.final, part.features))
    if judged is None:
        raise ValueError("None of the photographs can be read.")
    has_scores = bool(scores) and scores[0][0] is not None
    return {
        "transformer": judged.transformer,
        "pipeline": judged.pipeline,
        "final": judged.final,
        "readable": np.concatenate(readable),
        "features": np.concatenate(features),
        "predicted": np.concatenate(predicted) if predicted else None,
        "scores": np.concatenate([part for part, _ in scores]) if has_scores else None,
        "are_probabilities": has_scores and scores[0][1],
    }


def _unit_square(points):
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.where(high > low, high - low, 1)


def _neighbors(features):
    n_neighbors = min(_NEIGHBORS, len(features) - 1)
    if n_neighbors < 1:
        return [[] for _ in features]
    nearest = NearestNeighbors(n_neighbors=n_neighbors, metric="cosine").fit(features)
    return nearest.kneighbors(return_distance=False).tolist()


def _names(found, X, y):
    """Return classes by name, and the true and predicted ones as their numbers."""
    predicted = found["predicted"]
    if predicted is not None and not is_classifier(found["final"]):
        return {
            "classes": [],
            "truth": None,
            "predicted": None,
            "values": [f"{value:.4g}" for value in np.asarray(predicted, float).ravel()],
        }
    labels = [part for part in (y, predicted) if part is not None]
    if not labels:
        return {"classes": [], "truth": None, "predicted": None}
    names = sorted({str(label) for part in labels for label in np.unique(part)})
    numbers = {name: k for k, name in enumerate(names)}
    truth, guess = (
        None if part is None else [numbers[str(label)] for label in part] for part in (y, predicted)
    )
    facts = {"classes": names, "truth": truth, "predicted": guess}
    if found["scores"] is not None:
        own = [str(name) for name in found["final"].classes_]
        columns = np.array([own.index(str(label)) for label in predicted])
        values = found["scores"][np.arange(len(columns)), columns]
        facts["scores"] = np.round(values, 3).tolist()
        facts["scoreName"] = "probability" if found["are_probabilities"] else "decision"
    return facts


def _detailed(details, found, n):
    """Return the photographs with all channels, as places among the readable ones."""
    readable = found["readable"]
    if isinstance(details, (int, np.integer)):
        order = np.arange(len(readable))
        if found["scores"] is not None and found["scores"].shape[1] > 1:
            largest = np.sort(found["scores"], axis=1)[:, -2:]
            order = np.argsort(largest[:, 1] - largest[:, 0], kind="stable")
        return set(order[: max(0, details)].tolist())
    chosen_ = np.asarray(details, int)
    if chosen_.size and (chosen_.min() < -n or chosen_.max() >= n):
        raise ValueError(f"details holds {chosen_.max()}, but X has {n} photographs.")
    places = {int(i): place for place, i in enumerate(readable)}
    return {places[int(i) % n] for i in chosen_ if int(i) % n in places}


def _maps_of(found, X, layers, step, side, detailed):
    """Return what the page needs to know of the maps, and the maps as compressed bytes."""
    transformer, readable = found["transformer"], found["readable"]
    own = list(transformer.layer_names_)
    wanted = own if layers is None else [layers] if isinstance(layers, (str, int)) else list(layers)
    extra = [layer for layer in wanted if layer not in own]
    decisions, note = _decisions(found, X, step)
    chunks = chunks_of_maps(transformer, X, readable, own + extra)
    extractor = next(chunks)
    names = list(extractor.layers)
    shown = [k for k in range(len(names)) if k >= len(own) or names[k] in wanted or layers is None]
    shown = [k for k in shown if len(extractor.map_shapes[k]) == 3]
    facts = {
        "layers": [names[k] for k in shown],
        "channels": [],
        "peaks": [],
        "shapes": [],
        "decisions": [],
        "decisionNote": note,
        "details": sorted(detailed),
    }
    lines, whole = [], []
    place = 0
    for _, maps in chunks:
        for one in zip(*maps, strict=True):
            packed, channels, peaks, shapes = [], [], [], []
            decision = None
            if decisions is not None:
                target = found["predicted"][place]
                values = decisions.map_of(one[: len(own)], target)
                limit = float(np.abs(values).max()) or 1.0
                packed.append(np.rint(127 * values / limit).astype(np.int8).tobytes())
                decision = [*values.shape, float(f"{limit:.3g}")]
            for k in shown:
                strongest, largest, small = _strongest(one[k], side)
                channels.append(strongest.tolist())
                peaks.append([float(f"{peak:.3g}") for peak in largest])
                shapes.append(list(small.shape[1:]))
                packed.append(small.tobytes())
            lines.append(_pack(b"".join(packed)))
            if place in detailed:
                every = [_strongest(one[k], side, one[k].shape[2], False)[2] for k in shown]
                whole.append(_pack(b"".join(part.tobytes() for part in every)))
            facts["channels"].append(channels)
            facts["peaks"].append(peaks)
            facts["decisions"].append(decision)
            facts["shapes"] = shapes  # the same for all
            place += 1
    facts["widths"] = [extractor.map_shapes[k][2] for k in shown]
    return facts, {"maps": lines, "details": whole}


def _decisions(found, X, step):
    """Return `LinearDecisions` with all classes that are predicted, or why there are none."""
    if found["predicted"] is None or not is_classifier(found["final"]):
        return None, "Decision maps need a pipeline that classifies."
    decisions = LinearDecisions(found["pipeline"], step)
    try:
        for label in np.unique(found["predicted"]):
            first = np.flatnonzero(found["predicted"] == label)[0]
            decisions.prepare(X, found["readable"][first], label)
    except NotAffineError as error:
        return None, f"There are no decision maps: {str(error).split(' So there')[0]}"
    return decisions, None


def _strongest(maps, side, n_channels=_CHANNELS, by_strength=True):
    """Return channels, their largest values, and small maps (channels, height, width) as bytes."""
    order = np.arange(maps.shape[2])
    if by_strength:
        order = np.argsort(-np.abs(maps).mean(axis=(0, 1)), kind="stable")
    chosen_ = order[:n_channels]
    small = _shrink(np.moveaxis(maps[..., chosen_], -1, 0), side)
    low = np.minimum(small.min(axis=(1, 2), keepdims=True), 0)
    high = small.max(axis=(1, 2), keepdims=True)
    scaled = (small - low) / np.where(high > low, high - low, 1)
    return chosen_, maps[..., chosen_].max(axis=(0, 1)), np.rint(255 * scaled).astype(np.uint8)


def _shrink(maps, side):
    """Return maps whose sides are at most about `side`, each value the mean of a block."""
    step = -(-max(maps.shape[1:]) // side)
    if step == 1:
        return maps
    pads = [(0, 0), *((0, -length % step) for length in maps.shape[1:])]
    padded = np.pad(maps, pads, mode="edge")
    n, height, width = padded.shape
    return padded.reshape(n, height // step, step, width // step, step).mean(axis=(2, 4))


def _pack(data):
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    return b64encode(squeeze.compress(data) + squeeze.flush()).decode()
