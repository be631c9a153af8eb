"""The map of a decision, over its picture."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_cnnfeat._inspection.decision import decision_map
from sklearn_cnnfeat._inspection.drawing import Panel, as_gray, draw_bar, make_axes


class DecisionMapDisplay:
    """Where in a picture the decision of a pipeline came from.

    Make it with :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    decision : Bunch
        What :func:`decision_map` returns.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.

    ax_ : matplotlib Axes
        The axes.

    image_ : matplotlib AxesImage
        The map over the picture: red where it speaks for the target, blue where against.

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

    def __init__(self, decision):
        self.decision = decision

    @classmethod
    def from_estimator(
        cls,
        estimator,
        image,
        *,
        target=None,
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

        method : {"auto", "exact", "occlusion"}, default="auto"
            How, as for :func:`decision_map`.

        step : str, default=None
            Which of several networks in the pipeline.

        patch_size, stride : int, default=None
            Of the patches that are covered, in pixels of the network's input.

        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colours, the middle one for zero.

        alpha : float, default=0.85
            Opacity of the largest values; zero is transparent.

        ax : matplotlib Axes, default=None
            Where to draw.

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
        return cls(decision).plot(cmap=cmap, alpha=alpha, ax=ax)

    def plot(self, *, cmap="RdBu_r", alpha=0.85, ax=None):
        """Draw the map over the picture.

        Parameters
        ----------
        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colours, the middle one for zero.

        alpha : float, default=0.85
            Opacity of the largest values; zero is transparent.

        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : DecisionMapDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        decision = self.decision
        panel = Panel(decision.map, title=None, picture=decision.image, bar=False)
        self.figure_, axes = make_axes([[panel]], ax)
        self.ax_ = axes.item()
        limit = float(np.abs(decision.map).max()) or 1.0
        height, width = decision.image.shape[:2]
        self.ax_.imshow(as_gray(decision.image), cmap="gray", vmin=0, vmax=255)
        self.image_ = self.ax_.imshow(
            decision.map,
            cmap=cmap,
            vmin=-limit,
            vmax=limit,
            alpha=alpha * np.sqrt(np.abs(decision.map) / limit),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )
        self.ax_.set_axis_off()
        target = "prediction" if decision.target is None else decision.target
        other = decision.other
        question = target if other is None else f"{target} against {other}"
        self.ax_.set_title(f"{question}: {decision.decision:+.3g}", fontsize=10)
        bar = draw_bar(self.ax_, self.image_)
        against = "against" if other is None else f"for {other}"
        bar.set_label(f"{against}   $\\leftarrow$      $\\rightarrow$   for {target}", fontsize=8)
        return self
