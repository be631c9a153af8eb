"""
Filters of VGG16, and what they make of a picture
=================================================

The tables and pictures that one makes to get to know a network: the shapes of all filters, six of
them as pictures, the sizes of all maps, and the maps of the five blocks.
"""

# %%
# The filters of all convolutions
# -------------------------------
import matplotlib.pyplot as plt
from _offline import local_network
from sklearn.datasets import load_sample_image

from sklearn_cnnfeat import (
    CNNFeatureTransformer,
    FeatureMapDisplay,
    FilterDisplay,
    filter_summary,
    layer_summary,
)

_, weights = local_network("vgg16")  # yours: weights = "imagenet"
vgg16 = CNNFeatureTransformer("vgg16", "block5_pool", weights=weights, random_state=0)
filters = filter_summary(vgg16)
print(filters[["path", "kernel_shape", "bias_shape", "mean", "std"]].round(4).to_string())

# %%
# Six filters of the first convolution
# ------------------------------------
# A row is a filter, a column one of its three channels; dark is the smallest number of all, light
# the largest. VGG16 gets its pictures with blue first.
FilterDisplay.from_estimator(vgg16, layer="block1_conv1", filters=6)
plt.show()

# %%
# All 64, each in colours.
FilterDisplay.from_estimator(vgg16, layer="block1_conv1", rgb=True, normalize="filter")
plt.show()

# %%
# The sizes of the maps
# ---------------------
sizes = layer_summary("vgg16")
print(
    sizes.loc[sizes["type"] == "Conv2D", ["index", "path", "output_shape"]].to_string(index=False)
)

# %%
# The 64 maps of the first convolution
# ------------------------------------
photo = load_sample_image("china.jpg")  # yours: "photo.jpg"
FeatureMapDisplay.from_estimator(vgg16, photo, layer="block1_conv1", cmap="gray")
plt.show()

# %%
# The five blocks
# ---------------
# Layers 2, 5, 9, 13 and 17 end the blocks before they are pooled. All come from one pass.
FeatureMapDisplay.from_estimator(vgg16, photo, layer=[2, 5, 9, 13, 17], cmap="gray")
plt.show()

# %%
# Features
# --------
# The same network as a transformer: the output of any layer, a row an image.
rows = vgg16.set_params(layer="block4_pool").fit_transform([photo])
print(f"block4_pool: {rows.shape[1]} numbers an image")
