"""The map of a decision, over its picture."""

from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.decision import decision_map
from sklearn_cnnfeat._inspection.drawing import (
    Panel,
    as_text,
    draw_bar,
    draw_decision,
    make_axes,
    photo_panel,
)


class DecisionMapDisplay:
    """Where in a picture the decision of a pipeline came from.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    decision : Bunch
        What :func:`decision_map` returns.

    y_true : object, default=None
        The true class or value, for the title.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    ax_ : matplotlib Axes
        The axes of the map.

    image_ax_ : matplotlib Axes or None
        Those of the photograph in its colors.

    image_ : matplotlib AxesImage
        The map over the picture: red where it speaks for the target, blue where against. Lines
        enclose what lies beyond half of the largest value, solid for and dashed against the target.

    See Also
    --------
    decision_map : The numbers alone.
    FeatureMapDisplay : What a layer of the network makes of a picture.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_cnnfeat import CNNFeatureTransformer, DecisionMapDisplay
    >>> photos = load_sample_images().images
    >>> cnn = CNNFeatureTransformer(
    ...     "mobilenet", "conv_pw_2_relu", "avg", weights=None, input_size=64, random_state=0
    ... )
    >>> pipe = make_pipeline(cnn, LogisticRegression()).fit(photos, ["china", "flower"])
    >>> display = DecisionMapDisplay.from_estimator(pipe, photos[1])
    >>> print(display.decision.target)
    flower
    """

    def __init__(self, decision, *, y_true=None):
        self.decision = decision
        self.y_true = y_true

    @classmethod
    def from_estimator(
        cls,
        estimator,
        image,
        *,
        target=None,
        y_true=None,
        method="auto",
        step=None,
        patch_size=None,
        stride=None,
        cmap="RdBu_r",
        alpha=0.85,
        ax=None,
    ):
        """Compute the map of a decision and draw it over the picture.

        Parameters
        ----------
        estimator : Pipeline
            Fitted, with a :class:`CNNFeatureTransformer` and a classifier or regressor.

        image : image
            One image, as for :func:`decision_map`.

        target : class label, pair of class labels or int, default=None
            Which decision, as for :func:`decision_map`.

        y_true : object, default=None
            The true class or value, for the title.

        method : {"auto", "exact", "occlusion"}, default="auto"
            How, as for :func:`decision_map`.

        step : str, default=None
            Which of several networks in the pipeline.

        patch_size, stride : int, default=None
            Of the patches that are covered, in pixels of the network's input.

        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colors, the middle one for zero.

        alpha : float, default=0.85
            Opacity of the largest values; zero is transparent.

        ax : matplotlib Axes, default=None
            Where to draw the map, alone. None makes a figure with the photograph beside it.

        Returns
        -------
        display : DecisionMapDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        decision = decision_map(
            estimator,
            image,
            target,
            method=method,
            step=step,
            patch_size=patch_size,
            stride=stride,
        )
        return cls(decision, y_true=y_true).plot(cmap=cmap, alpha=alpha, ax=ax)

    def plot(self, *, cmap="RdBu_r", alpha=0.85, ax=None):
        """Draw the map over the picture.

        Parameters
        ----------
        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colors, the middle one for zero.

        alpha : float, default=0.85
            Opacity of the largest values; zero is transparent.

        ax : matplotlib Axes, default=None
            Where to draw the map, alone. None makes a figure with the photograph beside it.

        Returns
        -------
        display : DecisionMapDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        decision = self.decision
        panels = [Panel(decision.map, title=None, picture=decision.image, bar=False)]
        if ax is None:
            panels.insert(0, photo_panel(decision.image, title=None))
        self.figure_, axes = make_axes([panels], ax)
        self.ax_ = axes[0, -1]
        self.image_ax_ = axes[0, 0] if ax is None else None
        question = self._question()
        if self.image_ax_ is None:
            self.ax_.set_title(f"{self._answer()}\n{question}", fontsize=10)
        else:
            panels[0].draw(self.image_ax_, None)
            self.image_ax_.set_title(self._answer(), fontsize=10)
            self.ax_.set_title(question, fontsize=10)
        self.ax_.set_anchor("N")
        self.image_ = draw_decision(self.ax_, decision, cmap, alpha)
        target = as_text(decision.target) if decision.target is not None else "prediction"
        against = "against" if decision.other is None else f"for {as_text(decision.other)}"
        bar = draw_bar(self.ax_, self.image_)
        bar.set_label(f"{against}   $\\leftarrow$      $\\rightarrow$   for {target}", fontsize=8)
        return self

    def _answer(self):
        """Return what was predicted, how surely, and what would have been right."""
        decision = self.decision
        text = f"predicted: {as_text(decision.prediction)}"
        if decision.probability is not None:
            text += f", probability {decision.probability:.2f}"
        if self.y_true is not None:
            text += f"\ntrue: {as_text(self.y_true)}"
        return text

    def _question(self):
        decision = self.decision
        target = "prediction" if decision.target is None else as_text(decision.target)
        question = (
            target if decision.other is None else f"{target} against {as_text(decision.other)}"
        )
        return f"{question}: {decision.decision:+.3g}"
