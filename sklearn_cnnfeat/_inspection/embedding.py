"""Features of photographs as points of a plane, and pictures at these points without overlaps."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Dimensions that t-SNE starts from: noise is gone, and distances take less time.
_TSNE_DIMENSIONS = 50
# Cells of the grid per photograph: what stays empty shows how photographs are grouped.
_CELLS_PER_PHOTO = 2.2


def check_method(method, n):
    """Raise where `method` makes no points of `n` photographs."""
    if hasattr(method, "fit_transform"):
        return
    if method not in ("pca", "tsne"):
        raise ValueError(
            "method must be 'pca', 'tsne' or an estimator with fit_transform. Got "
            f"{method!r} instead."
        )
    if method == "tsne" and n < 4:
        raise ValueError(f"method='tsne' needs at least 4 photographs, and there are {n}.")


def embed(features, method, is_scaled):
    """Return points of the plane, (n, 2), for rows of features."""
    n = len(features)
    check_method(method, n)
    if hasattr(method, "fit_transform"):
        points = np.asarray(clone(method).fit_transform(features), np.float64)
        if points.ndim != 2 or points.shape[0] != n or points.shape[1] < 2:
            raise ValueError(
                f"method={method!r} gives an array of shape {points.shape}; two numbers for each "
                f"of {n} photographs are needed."
            )
        return points[:, :2]
    if n == 1:
        return np.zeros((1, 2))
    if method == "tsne":
        width = min(_TSNE_DIMENSIONS, *features.shape)
        steps = [PCA(width, random_state=0)]
        steps.append(TSNE(2, perplexity=min(30.0, (n - 1) / 3), random_state=0))
    else:
        steps = [PCA(min(2, *features.shape), random_state=0)]
    if not is_scaled:
        steps.insert(0, StandardScaler())
    points = np.asarray(make_pipeline(*steps).fit_transform(features), np.float64)
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def place(points, aspect):
    """Give each point of the plane a cell of a grid near it, no cell twice.

    `aspect` is width over height of the whole grid, in cells. Returned are column and row of each
    point, rows from the bottom, and the numbers of columns and rows.
    """
    n_cells = _CELLS_PER_PHOTO * len(points)
    n_columns = max(1, round(np.sqrt(n_cells * aspect)))
    n_rows = max(1, int(np.ceil(n_cells / n_columns)))
    # Without the few points far outside, for which the others would have to move together.
    low, high = np.percentile(points, [1, 99], axis=0)
    spread = np.where(high > low, high - low, 1)
    scaled = np.clip((points - low) / spread, -0.02, 1.02)
    grid = np.stack(np.meshgrid(np.arange(n_columns), np.arange(n_rows)), axis=-1).reshape(-1, 2)
    size = np.array([n_columns, n_rows])
    cost = cdist(scaled * (size - 1), grid, "sqeuclidean")
    _, chosen = linear_sum_assignment(cost)
    return grid[chosen], n_columns, n_rows
