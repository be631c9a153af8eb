"""A page to look around in photographs: gather everything, then write one HTML file."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn import config_context
from sklearn.base import is_classifier
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_cnnfeat._extractor import Extractor
from sklearn_cnnfeat._images import Images
from sklearn_cnnfeat._inspection.collector import Collector
from sklearn_cnnfeat._inspection.embedding import check_method, embed
from sklearn_cnnfeat._inspection.judged import (
    NONE_READABLE,
    check_rows,
    check_some,
    labels_of,
    n_images,
    warn_of_unreadable,
)
from sklearn_cnnfeat._inspection.maps import Pictures
from sklearn_cnnfeat._inspection.one_pass import RowsAndMaps
from sklearn_cnnfeat._inspection.page import write_page
from sklearn_cnnfeat._inspection.page_maps import Details, small_shape
from sklearn_cnnfeat._inspection.route import Route
from sklearn_cnnfeat._inspection.thumbnails import thumbnails, webp
from sklearn_cnnfeat._steps import as_transformer, chosen, find_step
from sklearn_cnnfeat._transformer import extractor_for

_NEIGHBORS = 8
# Megabytes of distances at a time.
_DISTANCES_MB = 8
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
    of the file, in small, and so are their names: think of that before passing it on. Of paths, the
    folder that all photographs lie in is left out.

    Each photograph goes through the network once, and the maps of a few are in memory at a time.
    Only 8-bit networks, and those that take images of any size, compute maps in a second pass.

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
    n = n_images(X)
    check_some(X)
    check_method(method, n)
    labels_of(y, X, slice(None))
    _, photo_side, map_side = next(size for size in _SIZES if n <= size[0])
    opened = _open(estimator, X, step)
    passing, shown, collector = _prepare(opened, X, layers, map_side, Details(details, n))
    passing.run(collector, f"explore {opened.extractor.network_name}")
    readable = np.array(sorted(collector.photos), int)
    if not len(readable):
        raise ValueError(NONE_READABLE)
    warn_of_unreadable(n, len(readable))
    photos = [collector.photos[i] for i in readable]
    features = collector.features_of(readable)
    points = embed(features, method, is_scaled=opened.pipeline is not None)
    pictures = Pictures(opened.extractor, opened.images)
    places = {int(i): place for place, i in enumerate(readable)}
    detailed = sorted(set(collector.details.lines) & set(places))
    facts = {
        "title": f"{len(readable):,} photograph{'s' if len(readable) > 1 else ''}",
        "names": _short_names([str(pictures.name(i)) for i in readable]),
        "points": np.round(_unit_square(points), 4).tolist(),
        "neighbors": _neighbors(features),
        **_predictions(collector, photos, labels_of(y, X, readable)),
        **_maps(collector, passing, shown, photos),
        "details": [places[i] for i in detailed],
    }
    small = thumbnails(pictures, readable, photo_side, webp)
    lines = {
        "maps": (photo.maps for photo in photos),
        "details": (collector.details.lines[i] for i in detailed),
        "photos": small,
    }
    write_page(to, facts, lines)
    return to


@dataclass
class _Opened:
    """A network, the photographs that it gets, and the pipeline around it."""

    extractor: Extractor
    images: Images
    pipeline: Pipeline | None = None
    step: str | None = None


def _open(estimator, X, step):
    estimator = chosen(estimator)
    if isinstance(estimator, Pipeline):
        check_is_fitted(estimator)
        step = find_step(estimator, step)
        route = Route(estimator, step, X)
        return _Opened(route.extractor, route.images, estimator, step)
    return _Opened(*extractor_for(as_transformer(estimator, step), X))


def _prepare(opened, X, layers, side, details):
    """Return the pass, the numbers of the layers that are shown, and what gathers their maps."""
    check_rows(opened.extractor)
    own = opened.extractor.layers
    wanted = layers
    if layers is not None:
        wanted = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    passing = RowsAndMaps(opened.extractor, opened.images, wanted or ())
    shown = range(len(passing.layers)) if wanted is None else passing.further
    shown = [k for k in shown if len(passing.map_shapes[k]) == 3]
    collector = Collector(X, opened.pipeline, opened.step, len(own), shown, side, details)
    if passing.is_apart:
        collector.refuse_decisions(
            "There are no decision maps for 8-bit networks and for images of any size."
        )
    return passing, shown, collector


def _short_names(names):
    """Return paths without the folder that all of them lie in; other names as they are."""
    if any("://" in name or not os.path.isabs(name) for name in names):
        return names
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # several drives
        return names
    return [os.path.relpath(name, folder) for name in names]


def _unit_square(points):
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.where(high > low, high - low, 1)


def _neighbors(features):
    n_neighbors = min(_NEIGHBORS, len(features) - 1)
    if n_neighbors < 1:
        return [[] for _ in features]
    nearest = NearestNeighbors(n_neighbors=n_neighbors, metric="cosine").fit(features)
    # Distances between all photographs at once would take more memory than the network.
    with config_context(working_memory=_DISTANCES_MB):
        return nearest.kneighbors(return_distance=False).tolist()


def _predictions(collector, photos, y):
    """Return classes by name, the true and predicted ones as their numbers, and scores."""
    final = collector.final
    if final is not None and not is_classifier(final):
        return {
            "classes": [],
            "truth": None,
            "predicted": None,
            "values": [_as_number(photo.predicted) for photo in photos],
            "targets": None if y is None else [_as_number(value) for value in y],
        }
    truth = None if y is None else [str(label) for label in y]
    guess = None if final is None else [str(photo.predicted) for photo in photos]
    # In the order of the classifier: numbers are not sorted as text.
    known = [] if final is None else [str(label) for label in final.classes_]
    names = list(dict.fromkeys([*known, *sorted({*(truth or ()), *(guess or ())})]))
    numbers = {name: k for k, name in enumerate(names)}
    facts = {
        "classes": names,
        "truth": None if truth is None else [numbers[name] for name in truth],
        "predicted": None if guess is None else [numbers[name] for name in guess],
    }
    if guess is not None and photos[0].scores is not None:
        own = [photo.scores[numbers[name]] for photo, name in zip(photos, guess, strict=True)]
        facts["scores"] = np.round(own, 3).tolist()
        facts["scoreName"] = "probability" if collector.are_probabilities else "decision"
    return facts


def _as_number(value):
    return ", ".join(f"{part:.4g}" for part in np.ravel(np.asarray(value, float)))


def _maps(collector, passing, shown, photos):
    """Return what the page knows of feature maps and decision maps."""
    return {
        "layers": [passing.layers[k] for k in shown],
        "widths": [passing.map_shapes[k][2] for k in shown],
        "shapes": [small_shape(passing.map_shapes[k], collector.side) for k in shown],
        "channels": [photo.channels for photo in photos],
        "peaks": [photo.peaks for photo in photos],
        "decisions": [photo.decision for photo in photos],
        "decisionNote": collector.note,
    }
