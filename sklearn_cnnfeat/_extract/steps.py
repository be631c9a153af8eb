"""The steps of a pipeline behind the network, applied row by row."""

import joblib
import numpy as np
import pandas as pd


class Steps:
    """The steps of a pipeline behind the network, applied row by row.

    A row is then the same whatever it was computed together with, before or after an interruption.
    """

    def __init__(self, steps, extractor):
        if extractor.gives_maps:
            raise ValueError("pooling=None gives maps; the steps of a pipeline take vectors.")
        self._steps = steps
        self._columns = extractor.columns
        self._names = None
        if hasattr(steps[0], "feature_names_in_"):
            self._names = extractor.feature_names
        self._row = np.zeros((1, extractor.n_columns), np.float32)
        self.n_columns = self._transform().size
        try:
            names = steps.get_feature_names_out(extractor.feature_names)
        except AttributeError:  # a step that knows no names
            names = [f"{steps.steps[-1][0]}_{i}" for i in range(self.n_columns)]
        self.names = [str(name) for name in names]
        self.digest = joblib.hash(steps)

    def wrap(self, sink):
        """Return a sink that transforms rows before `sink` takes them."""
        return _StepSink(self, sink)

    def apply(self, rows):
        """Return the transformed row of one image, given its rows, one per head."""
        for columns, values in zip(self._columns, rows, strict=True):
            self._row[0, columns] = np.ravel(values)
        return self._transform()

    def _transform(self):
        row = self._row
        if self._names is not None:
            row = pd.DataFrame(row, columns=self._names)
        row = np.asarray(self._steps.transform(row))
        if row.ndim != 2 or len(row) != 1 or row.dtype.kind not in "buif":
            raise ValueError(
                "The steps of the pipeline must give a dense array with a row an image. Got "
                f"{row.dtype} of shape {row.shape} for one image."
            )
        return row[0]


class _StepSink:
    def __init__(self, steps, sink):
        self._steps = steps
        self._sink = sink
        self.fail = sink.fail

    def write(self, i, rows):
        self._sink.write(i, [self._steps.apply(rows)])
