"""Scores by layer, as a picture."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.drawing import FULL_WIDTH, new_axes
from sklearn_cnnfeat._layer_scores import layer_scores


class LayerScoreDisplay:
    """How good each layer of a network is: scores against layers, in the order of computation.

    Bars span one standard deviation over the folds to either side; the numbers of features stand
    below the layers. A layer that comes earlier and whose bar overlaps the best one's is
    worth a thought: what lies behind it need not be computed.

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
        The points and their bars, one a network and pooling.

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
        if lines:
            ax.legend()
        return self
