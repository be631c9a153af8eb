"""
Pictures and numbers in one data frame
======================================

A data frame of exam sheets: the points of the essay stand on the sheet in handwriting, as a
picture; the points of the quiz and the faculty, each with a bonus of its own, are ordinary columns.
How many points does a sheet have in all? Neither the picture nor the columns can tell alone.
"""

# %%
# The data frame
# --------------
# Handwritten digits from scikit-learn, written to picture files; the other columns are made up.
# A column of pictures is a column of paths.
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

folder = tempfile.TemporaryDirectory()
digits = load_digits()
rng = np.random.default_rng(0)
paths = []
for number, image in enumerate(digits.images[:900]):
    paths.append(str(Path(folder.name) / f"sheet_{number:03d}.png"))
    Image.fromarray(np.uint8(image * 255 / 16)).resize((64, 64)).save(paths[-1])

sheets = pd.DataFrame(
    {
        "essay": paths,
        "quiz": rng.integers(0, 11, len(paths)),
        "faculty": rng.choice(["arts", "law", "medicine"], len(paths)),
    }
)
bonus = sheets["faculty"].map({"arts": 0, "law": 2, "medicine": 4})
points = digits.target[: len(paths)] + sheets["quiz"] + bonus
print(sheets.assign(essay=sheets["essay"].map(os.path.basename), points=points).head(4))

# %%
# One transformer a column
# ------------------------
# A network with random weights is enough for digits: it is a rich set of filters. For photographs
# take the trained one. The principal components bring the flattened maps down to as many numbers as
# a regression can weigh against the other columns.
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVR

from sklearn_cnnfeat import CNNFeatureTransformer

cnn = CNNFeatureTransformer(
    model="mobilenet",
    layer="conv_pw_3_relu",
    weights=None,
    random_state=0,
    input_size=32,
    cache=True,
)
encoders = {
    "essay": make_pipeline(cnn, PCA(30, whiten=True, random_state=0)),
    "quiz": StandardScaler(),
    "faculty": OneHotEncoder(),
}


def regressor(*columns):
    encoded = ColumnTransformer([(name, encoders[name], [name]) for name in columns])
    return make_pipeline(encoded, SVR(C=30, gamma=0.005))


# %%
# Picture, columns, both
# ----------------------
# How far off is the estimate, on sheets that the regression has not seen?
from sklearn.metrics import mean_absolute_error
from sklearn.model_selection import cross_val_predict

choices = {
    "columns": ["quiz", "faculty"],
    "picture": ["essay"],
    "picture\nand columns": ["essay", "quiz", "faculty"],
}
estimates = {
    name: cross_val_predict(regressor(*columns), sheets, points)
    for name, columns in choices.items()
}
errors = {name: mean_absolute_error(points, estimate) for name, estimate in estimates.items()}
for name, error in errors.items():
    print(f"off by {error:.2f} points on average from {' '.join(name.split())}")

# %%
import matplotlib.pyplot as plt

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
sheet = [np.pad(Image.open(path), 3, constant_values=160) for path in paths[:25]]
left.imshow(np.block([sheet[i : i + 5] for i in range(0, 25, 5)]), cmap="gray")
left.set(xticks=[], yticks=[], title="Points of the essay, as they come")
bars = middle.bar(list(errors), list(errors.values()), color=["C0", "C0", "C1"])
middle.bar_label(bars, fmt="%.1f", label_type="center", color="white", fontsize=14)
middle.set(ylabel="points off, on average", title="What each is worth")
jitter = rng.uniform(-0.3, 0.3, len(points))
right.plot([0, 23], [0, 23], color="0.6", linewidth=1)
right.scatter(points + jitter, estimates["picture\nand columns"], s=8, alpha=0.5, color="C1")
right.set(xlabel="points in all", ylabel="estimate", title="Picture and columns", aspect="equal")
plt.show()
