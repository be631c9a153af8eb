"""
From 7 x 7 x 1024 to a row a photograph
=======================================

``MobileNet(include_top=False).predict`` gives an array of four dimensions for a hundred
photographs: (100, 7, 7, 1024), and VGG16 (100, 7, 7, 512), or (100, 512, 7, 7) where channels come
first. What is that, and how does it become the table (100, n) that a logistic regression or a
random forest takes?
"""

# %%
# What it is
# ----------
# The last layers give 1,024 maps of 7 x 7 positions. Each says where in the picture one pattern was
# found. The table needs no weights, so nothing is downloaded for it.
import keras
from keras import layers
from sklearn.datasets import load_sample_image

from sklearn_cnnfeat import CNNFeatureTransformer, layer_summary

columns = ["index", "path", "output_shape", "n_features"]
print(layer_summary("mobilenet")[columns].tail(12).to_string(index=False))

# %%
# Three of the maps over the picture, each in the place where it lies.
import matplotlib.pyplot as plt

from sklearn_cnnfeat import FeatureMapDisplay

photo = load_sample_image("china.jpg")  # or "photo.jpg"
mobilenet = CNNFeatureTransformer("mobilenet", "conv_pw_12_relu")
figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), layout="compressed")
strongest = FeatureMapDisplay.from_estimator(mobilenet, photo, channels="strongest").channels[0][:3]
plt.close()
for ax, channel in zip(axes, strongest, strict=True):
    FeatureMapDisplay.from_estimator(
        mobilenet, photo, channels=[channel], combine="sum", overlay=True, ax=ax
    )
    ax.set_title(f"channel {channel}")
plt.show()

# %%
# How it becomes a row
# --------------------
# ``pooling`` says how: ``"flatten"`` keeps every number, the others say how strong each pattern is,
# anywhere (``"avg"``, ``"max"``, ``"gem"``) or in each of 21 regions (``"spp"``).
for pooling in ["flatten", "avg", "max", "gem", "spp"]:
    rows = mobilenet.set_params(pooling=pooling).fit_transform([photo])
    print(f"{pooling:8} {rows.shape}   {', '.join(mobilenet.get_feature_names_out()[:2])}, ...")

# %%
# Other layers, and networks of one's own
# ---------------------------------------
# A layer goes by its name or its number. So do those of a small network for gray images, which
# takes colour photographs as well.
keras.utils.set_random_seed(0)
small = keras.Sequential([layers.Input((299, 299, 1)), layers.Rescaling(1 / 255)])
for filters in [32, 32, 64]:
    small.add(layers.Conv2D(filters, 3))
    small.add(layers.Activation("relu"))
    small.add(layers.MaxPooling2D())
print(layer_summary(small)[columns].to_string(index=False))
rows = CNNFeatureTransformer(small, layer="last", pooling="avg").fit_transform([photo] * 100)
print(f"a table of {rows.shape[0]} rows and {rows.shape[1]} columns")
