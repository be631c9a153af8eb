"""The worst, least certain or best predictions, with the maps of their decisions."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.decision import decision_map
from sklearn_cnnfeat._inspection.drawing import as_text, draw_decision, new_grid, text_color
from sklearn_cnnfeat._inspection.gallery import choose_photos, predict_photos
from sklearn_cnnfeat._inspection.judged import n_images, pick, warn_of_unreadable
from sklearn_cnnfeat._inspection.thumbnails import shrink

# Longest side of a photograph, in pixels.
_SIDE = 480
# Inches of a photograph's width and of its title.
_WIDTH, _TITLE = 2.3, 0.5
_TITLES = {
    "worst": "The worst predictions",
    "least_certain": "The least certain predictions",
    "best": "The best predictions",
}


class PredictionGalleryDisplay:
    """Photographs with what a pipeline predicts for them, and where the decision came from.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    pictures : list of ndarray
        The photographs.

    indices : ndarray of int
        Their positions in `X`.

    predicted, y : ndarray
        Predicted and true classes, or values.

    scores : ndarray, default=None
        Probability or score of each predicted class.

    are_probabilities : bool, default=False
        Whether the scores are probabilities.

    decisions : list of Bunch, default=None
        What :func:`decision_map` returns for each photograph.

    names : list of str, default=None
        What the photographs are called.

    which : str, default="worst"
        How they were chosen, for the title.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    axes_ : ndarray of matplotlib Axes, of shape (n_photos, 1 or 2)
        Those of each photograph and of its decision map.

    See Also
    --------
    DecisionMapDisplay : One decision map, in detail.
    EmbeddingDisplay : A map of all photographs.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, PredictionGalleryDisplay
    >>> photos = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_1_relu", "avg", weights=None, random_state=0, input_size=32
    ... )
    >>> y = ["a", "b"] * 4
    >>> pipe = make_pipeline(cnn, LogisticRegression()).fit(photos, y)
    >>> display = PredictionGalleryDisplay.from_estimator(pipe, photos, y, n_photos=2)
    >>> display.axes_.shape
    (2, 2)
    """

    def __init__(
        self,
        pictures,
        *,
        indices,
        predicted,
        y,
        scores=None,
        are_probabilities=False,
        decisions=None,
        names=None,
        which="worst",
    ):
        self.pictures = pictures
        self.indices = indices
        self.predicted = predicted
        self.y = y
        self.scores = scores
        self.are_probabilities = are_probabilities
        self.decisions = decisions
        self.names = names
        self.which = which

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        which="worst",
        n_photos=8,
        cv=None,
        maps="auto",
        step=None,
    ):
        """Predict photographs and draw the chosen ones.

        Parameters
        ----------
        estimator : Pipeline
            Fitted, with a :class:`CNNFeatureTransformer` and a classifier or regressor; or a fitted
            search over one. With `cv`, it may be unfitted.

        X : sequence of images
            The photographs.

        y : array-like of shape (n_images,)
            Their true classes, or values.

        which : {"worst", "least_certain", "best"}, default="worst"
            The most certain mistakes first; those whose two best classes are closest; or the most
            certain right ones. For regressors, those with the largest or the smallest error.

        n_photos : int, default=8
            How many to draw.

        cv : int, cross-validation generator or iterable, default=None
            Predict each photograph by a pipeline that was fitted on others, as for
            :func:`sklearn.model_selection.cross_val_predict`. The network must be the first step;
            it computes each photograph once. None takes the fitted pipeline as it is, which knows
            the photographs that it was fitted on.

        maps : {"auto", "exact", "occlusion"} or None, default="auto"
            The decision maps, as `method` of :func:`decision_map`. None draws photographs alone.

        step : str, default=None
            Which of several networks in the pipeline.

        Returns
        -------
        display : PredictionGalleryDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if n_photos < 1:
            raise ValueError(f"n_photos={n_photos} must be at least 1.")
        predictions = predict_photos(estimator, X, y, step, cv)
        warn_of_unreadable(n_images(X), len(predictions.indices))
        positions = choose_photos(predictions, which, n_photos)
        pictures, decisions, names = [], [], []
        for position in positions:
            i, pipeline = predictions.indices[position], predictions.pipelines[position]
            pictures.append(shrink(predictions.pictures.whole(i), _SIDE))
            names.append(predictions.pictures.name(i))
            if maps is not None:
                decisions.append(
                    decision_map(
                        pipeline,
                        pick(X, [i]),
                        _target(pipeline, predictions.predicted[position]),
                        method=maps,
                        step=step,
                    )
                )
        scores = predictions.scores
        display = cls(
            pictures,
            indices=predictions.indices[positions],
            predicted=predictions.predicted[positions],
            y=predictions.y[positions],
            scores=None if scores is None else scores[positions],
            are_probabilities=predictions.are_probabilities,
            decisions=decisions if maps is not None else None,
            names=names,
            which=which,
        )
        return display.plot()

    def plot(self, *, n_columns=None):
        """Draw the photographs.

        Parameters
        ----------
        n_columns : int, default=None
            Photographs side by side, each with its map. None takes 2 with maps and 4 without.

        Returns
        -------
        display : PredictionGalleryDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        n, per_photo = len(self.pictures), 1 if self.decisions is None else 2
        n_columns = min(n, n_columns or 4 // per_photo)
        n_lines = -(-n // n_columns)
        heights = [picture.shape[0] / picture.shape[1] for picture in self.pictures]
        height = n_lines * (_WIDTH * min(1.2, float(np.median(heights))) + _TITLE) + 0.3
        self.figure_, grid = new_grid(
            n_lines, n_columns * per_photo, _WIDTH * n_columns * per_photo, height
        )
        self.axes_ = grid.reshape(-1, per_photo)[:n]
        for k, axes in enumerate(self.axes_):
            axes[0].imshow(self.pictures[k])
            is_wrong = self.predicted[k] != self.y[k] and self.scores is not None
            axes[0].set_title(
                self._caption(k),
                fontsize=9,
                loc="left",
                color="#D6304A" if is_wrong else text_color(),
            )
            if self.decisions is not None:
                draw_decision(axes[1], self.decisions[k])
                axes[1].set_title(_for_whom(self.decisions[k]), fontsize=8, loc="left", color="0.5")
        self.figure_.suptitle(_TITLES[self.which], fontsize=11)
        return self

    def _caption(self, k):
        predicted, true = as_text(self.predicted[k]), as_text(self.y[k])
        if self.scores is None:
            return f"{predicted}\ntrue: {true}"
        kind = "probability" if self.are_probabilities else "decision"
        sign = "" if self.are_probabilities else "+"
        number = f"{kind} {self.scores[k]:{sign}.2f}"
        mark = "right" if self.predicted[k] == self.y[k] else f"wrong: {true}"
        return f"{predicted}, {number}\n{mark}"


def _target(pipeline, predicted):
    """Return the class to explain: the predicted one; regressors have none."""
    return predicted if hasattr(pipeline.steps[-1][1], "classes_") else None


def _for_whom(decision):
    target = "the prediction" if decision.target is None else as_text(decision.target)
    return f"red: for {target}\n({decision.method} map)"
