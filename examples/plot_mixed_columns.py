"""
Pictures and numbers in one data frame
======================================

A data frame of exam sheets: the points of the essay stand on the sheet in handwriting, as a
picture; the points of the quiz and the faculty, which sets the mark to pass, are ordinary columns.
Who passed? Neither the picture nor the columns can tell alone.
"""

# %%
# The data frame
# --------------
# Handwritten digits from scikit-learn, written to picture files; the other columns are made up.
# A column of pictures is a column of paths.
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
mark = sheets["faculty"].map({"arts": 7, "law": 9, "medicine": 12})
passed = digits.target[: len(paths)] + sheets["quiz"] >= mark
print(sheets.assign(passed=passed).head().to_string(index=False))

# %%
# One transformer a column
# ------------------------
# A network with random weights is enough for digits: it is a rich set of filters. For photographs
# take the trained one.
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_cnnfeat import CNNFeatureTransformer

cnn = CNNFeatureTransformer(
    model="mobilenet",
    layer="conv_pw_3_relu",
    weights=None,  # yours: weights="imagenet"
    random_state=0,
    input_size=(64, 64),
)
encoders = {
    "picture": (make_pipeline(cnn, PCA(60, whiten=True, random_state=0)), "essay"),
    "quiz": (StandardScaler(), ["quiz"]),
    "faculty": (OneHotEncoder(), ["faculty"]),
}


def classifier(*names):
    columns = ColumnTransformer([(name, *encoders[name]) for name in names])
    return make_pipeline(columns, LogisticRegression(max_iter=2000))


# %%
# Picture, columns, both
# ----------------------
from sklearn.model_selection import cross_val_score

choices = {
    "columns only": classifier("quiz", "faculty"),
    "picture only": classifier("picture"),
    "both": classifier("picture", "quiz", "faculty"),
}
scores = {name: cross_val_score(model, sheets, passed) for name, model in choices.items()}
for name, score in scores.items():
    print(f"{name + ':':14}{score.mean():.3f} +- {score.std():.3f}")

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4.2), width_ratios=[1, 1.4], layout="constrained"
)
left.imshow(
    np.block([[np.asarray(Image.open(p)) for p in paths[i : i + 6]] for i in range(0, 30, 6)])
)
left.set_title("The essay's points")
left.axis("off")
means = [score.mean() for score in scores.values()]
bars = right.bar(list(scores), means, yerr=[score.std() for score in scores.values()], capsize=5)
bars[-1].set_color("C1")
right.bar_label(bars, fmt="%.2f", label_type="center", color="white", fontsize=13)
right.axhline(max(passed.mean(), 1 - passed.mean()), color="0.3", linewidth=1)
right.text(
    2.45, max(passed.mean(), 1 - passed.mean()), "always the same answer", ha="right", va="bottom"
)
right.set(ylim=(0.5, 1), ylabel="accuracy", title="Who passed the exam?")
plt.show()
