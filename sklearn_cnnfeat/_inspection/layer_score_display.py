"""Scores by layer, as a picture."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.drawing import FULL_WIDTH, new_axes, text_color
from sklearn_cnnfeat._layer_scores import layer_scores


class LayerScoreDisplay:
    """How good each layer of a network is: scores against layers, in the order of computation.

    Bars span one standard deviation over the folds to either side; the numbers of features stand
    below the layers. The gray band begins one standard error below the best score, and a star marks
    the first layer inside it: what lies behind that layer need not be computed.

    Make it with :meth:`from_search`, or from the table that :func:`layer_report` returns. All
    parameters are stored as attributes.

    Parameters
    ----------
    scores : DataFrame
        What :func:`layer_scores` or :func:`layer_report` returns.

    score_name : str, default="Score"
        What the score is called.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    ax_ : matplotlib Axes
        The axes.

    lines_ : list of matplotlib ErrorbarContainer
        The points and their bars, one per network and pooling.

    best_ : int
        Position in `scores` of the best score.

    simplest_ : int
        Position in `scores` of the first layer whose score lies within one standard error of the
        best one; `best_` where `scores` has no column ``n_folds``.

    See Also
    --------
    layer_scores : The numbers alone.
    layer_report : Compares the layers of a network in one call.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_cnnfeat import LayerScoreDisplay, layer_report
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> report = layer_report(
    ...     X[:60],
    ...     y[:60],
    ...     "mobilenet",
    ...     weights=None,
    ...     random_state=0,
    ...     input_size=32,
    ...     image_shape=(8, 8),
    ...     value_range=(0, 16),
    ...     verbose=0,
    ... )
    >>> display = LayerScoreDisplay(report, score_name="Accuracy").plot()
    >>> display.ax_.get_ylabel()
    'Accuracy'
    """

    def __init__(self, scores, *, score_name="Score"):
        self.scores = scores
        self.score_name = score_name

    @classmethod
    def from_search(cls, search, *, metric=None, step=None, score_name=None, ax=None):
        """Draw the result of a search over layers.

        Parameters
        ----------
        search : GridSearchCV, RandomizedSearchCV or a halving search
            A fitted search over an estimator that holds a :class:`CNNFeatureTransformer`.

        metric : str, default=None
            Which score, where the search has several; None then takes the one in `refit`.

        step : str, default=None
            Which of several networks in the estimator.

        score_name : str, default=None
            What the score is called; None takes the name of the search's own.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : LayerScoreDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_search")
        scores = layer_scores(search, metric=metric, step=step)
        if score_name is None:
            name = metric or (search.scoring if isinstance(search.scoring, str) else None)
            score_name = "Score" if name is None else name.replace("_", " ").capitalize()
        return cls(scores, score_name=score_name).plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw the scores.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : LayerScoreDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        scores = self.scores
        self.best_, self.simplest_, threshold = _within_one_error(scores)
        places = [name for name in ("model", "layer") if name in scores]
        lines = [name for name in ("model", "pooling") if name in scores]
        where = scores.groupby(places, sort=False, dropna=False).ngroup().to_numpy()
        line_of = np.zeros(len(scores), int)
        if lines:
            line_of = scores.groupby(lines, sort=False, dropna=False).ngroup().to_numpy()
        n_lines = line_of.max() + 1
        if ax is None:
            width = min(max(5.0, 1.2 * (where.max() + 1) + 1.5), FULL_WIDTH)
            ax = new_axes(width, 4.5)
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_ = []
        for line in range(n_lines):
            own = line_of == line
            rows = scores[own]
            # Points of several lines stand beside each other.
            x = where[own] + 0.3 * ((line + 0.5) / n_lines - 0.5)
            drawn = ax.errorbar(
                x,
                rows["mean_test_score"],
                rows["std_test_score"],
                marker="o",
                linestyle=":",
                capsize=3,
                label=", ".join(str(value) for value in rows.iloc[0][lines]) if lines else None,
            )
            self.lines_.append(drawn)
            if own[self.simplest_]:
                star = self._draw_star(x[own[: self.simplest_].sum()], drawn.lines[0].get_color())
        if threshold is not None:
            best = scores["mean_test_score"].max()
            ax.axhspan(threshold, best, color="0.5", alpha=0.18, linewidth=0)
        ticks = []
        for place in range(where.max() + 1):
            rows = scores[where == place]
            widths = " / ".join(f"{n:,}" for n in dict.fromkeys(rows["n_features"]))
            ticks.append(f"{rows['layer'].iloc[0]}\n({widths})".replace(" + ", " +\n"))
        ax.set_xticks(range(len(ticks)), ticks, rotation=30, ha="right", rotation_mode="anchor")
        ax.margins(x=0.08)
        ax.set_xlabel("Layer, first to last (number of features)")
        ax.set_ylabel(self.score_name)
        ax.grid(axis="y", alpha=0.3)
        ax.legend(handles=[*(self.lines_ if lines else []), star], fontsize=8)
        return self

    def _draw_star(self, x, color):
        return self.ax_.plot(
            x,
            self.scores["mean_test_score"].iloc[self.simplest_],
            marker="*",
            markersize=17,
            color=color,
            markeredgecolor=text_color(),
            linestyle="none",
            label="best"
            if self.simplest_ == self.best_
            else "first within one standard error of the best",
        )[0]


def _within_one_error(scores):
    """Return the positions of the best row and of the first as good, and the score it takes."""
    means = scores["mean_test_score"].to_numpy(float)
    if np.isnan(means).all():
        raise ValueError("All scores are NaN: every fit of the search has failed.")
    best = int(np.nanargmax(means))
    if "n_folds" not in scores or scores["n_folds"].iloc[best] < 2:
        return best, best, None
    # The deviation is that of the folds at hand, hence one less.
    error = scores["std_test_score"].iloc[best] / np.sqrt(scores["n_folds"].iloc[best] - 1)
    threshold = means[best] - error
    is_good = means >= threshold
    if "model" in scores:
        is_good &= (scores["model"] == scores["model"].iloc[best]).to_numpy()
    return best, int(np.flatnonzero(is_good)[0]), threshold
