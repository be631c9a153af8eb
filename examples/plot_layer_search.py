"""
Which layer? Let a grid search decide
=====================================

The layer is a parameter like any other, so a grid search can choose it. Early layers know edges
and colours, late ones parts of things; which serves best depends on the photographs.
"""

# %%
# Photographs and a pipeline
# --------------------------
# With ``cache=True`` the features stay on disk, and no photograph goes through the same layers
# twice, today or tomorrow.
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_cnnfeat import CNNFeatureTransformer, load_image_folder

photos = load_image_folder("photos/")
cnn = CNNFeatureTransformer("mobilenet", pooling="avg", cache=True)
pipe = Pipeline([("cnn", cnn), ("scale", StandardScaler()), ("svm", SVC())])

# %%
# The search
# ----------
# ``layer_summary("mobilenet")`` lists the layers there are to choose from. The search asks for
# 6 layers x 3 costs x 5 folds; ``precompute`` brings all of these features from one pass of each
# photograph, and the search itself only reads them.
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_cnnfeat import precompute

layers = [
    "conv1_relu",
    "conv_pw_2_relu",
    "conv_pw_4_relu",
    "conv_pw_6_relu",
    "conv_pw_10_relu",
    "conv_dw_13_relu",
]
search = GridSearchCV(
    pipe,
    {"cnn__layer": layers, "svm__C": [0.1, 1, 10]},
    cv=StratifiedKFold(5, shuffle=True, random_state=0),
)
report = precompute(search, photos.data)
print(f"{report.n_images} photographs, {report.n_settings} layers: {report.seconds:.1f} seconds")
search.fit(photos.data, photos.target)
print(f"best: {search.best_params_['cnn__layer']}, accuracy {search.best_score_:.3f}")

# %%
# Accuracy by layer
# -----------------
# Each layer at its best cost; the bars span one standard deviation over the folds. The band begins
# one standard error below the best score, and the star marks the first layer inside it: everything
# behind that layer need not be computed.
import matplotlib.pyplot as plt
import numpy as np

from sklearn_cnnfeat import LayerScoreDisplay

display = LayerScoreDisplay.from_search(search, score_name="Accuracy, 5 folds")
chance = np.bincount(photos.target).max() / len(photos.target)
display.ax_.axhline(chance, color="0.4", linewidth=1, label="always the largest class")
display.ax_.legend(fontsize=8)
plt.show()
