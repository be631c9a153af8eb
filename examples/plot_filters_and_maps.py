"""
Filters of MobileNet, and what they make of a picture
=====================================================

The tables and pictures that one makes to get to know a network: the shapes of all filters, six of
them as pictures, the sizes of all maps, and the maps of five layers. Any network will do.
"""

# %%
# The filters of all convolutions
# -------------------------------
import matplotlib.pyplot as plt
from sklearn.datasets import load_sample_image

from sklearn_cnnfeat import (
    CNNFeatureTransformer,
    FeatureMapDisplay,
    FilterDisplay,
    filter_summary,
    layer_summary,
)

mobilenet = CNNFeatureTransformer("mobilenet", "conv_pw_5_relu")
filters = filter_summary(mobilenet)
print(filters[["path", "kernel_shape", "bias_shape", "mean", "std"]].round(4).to_string())

# %%
# Six filters of the first convolution
# ------------------------------------
# A row is a filter, a column one of its three channels; dark is the smallest number of all, light
# the largest.
FilterDisplay.from_estimator(mobilenet, layer="conv1", filters=[1, 2, 5, 7, 14, 26])
plt.show()

# %%
# All 32 in colors, the strongest first. Gray is zero: those marked with a star have practically no
# weights.
FilterDisplay.from_estimator(mobilenet, layer="conv1", rgb=True, filters="strongest")
plt.show()

# %%
# The sizes of the maps, behind each activation
# ---------------------------------------------
sizes = layer_summary("mobilenet")
print(sizes.loc[sizes["type"] == "ReLU", ["index", "path", "output_shape"]].to_string(index=False))

# %%
# The 32 maps of the first convolution
# ------------------------------------
photo = load_sample_image("china.jpg")  # or "photo.jpg"
FeatureMapDisplay.from_estimator(mobilenet, photo, layer="conv1", cmap="gray")
plt.show()

# %%
# Deeper and deeper
# -----------------
# The last layers of the first four sizes, by their numbers in that table, and a late one. All come
# from one pass.
FeatureMapDisplay.from_estimator(mobilenet, photo, layer=[9, 22, 35, 72, 79], cmap="gray")
plt.show()

# %%
# Features
# --------
# The same network as a transformer: the output of any layer, a row an image.
rows = mobilenet.fit_transform([photo])
print(f"{mobilenet.layer}: {rows.shape[1]} numbers an image")
