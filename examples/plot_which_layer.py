"""
Which layer suits my photographs? One call
==========================================

Before any search, a glance: :func:`layer_report` sends each photograph through a network once,
takes the features of a layer at the end of each stage, and cross-validates a classifier on them.
"""

# %%
# The report
# ----------
# One row a layer, in the order in which the network computes them. Wide layers cost memory and
# fitting time, deep ones cost arithmetic: the first whose score is about as good as the best one's
# is the one to take. Without ``layers=`` the last layer of each stage is taken.
from sklearn_cnnfeat import layer_report, load_image_folder

photos = load_image_folder("photos/")
layers = [
    "conv_pw_1_relu",
    "conv_pw_3_relu",
    "conv_pw_5_relu",
    "conv_pw_11_relu",
    "conv_dw_13_relu",
]
report = layer_report(photos.data, photos.target, "mobilenet", layers, verbose=0)
print(report.round(3).to_string())
best = report.loc[report["mean_test_score"].idxmax()]
print(f"best: {best['layer']}, accuracy {best['mean_test_score']:.3f}")

# %%
# The picture
# -----------
# Bars span one standard deviation over the folds to either side. Beside average pooling, the
# largest activation of each channel: it asks whether something is there, wherever and however
# often.
import matplotlib.pyplot as plt
import pandas as pd

from sklearn_cnnfeat import LayerScoreDisplay

largest = layer_report(photos.data, photos.target, "mobilenet", layers, "max", verbose=0)
both = pd.concat([report.assign(pooling="avg"), largest.assign(pooling="max")], ignore_index=True)
figure, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
LayerScoreDisplay(both, score_name="Accuracy, 5 folds").plot(ax=ax)
ax.set_title(f"Telling {' and '.join(photos.target_names)} apart with layers of MobileNet")
plt.show()
