"""
Inside a network that was built on another one
==============================================

A classifier of one's own sits on a trained MobileNet. What do the layers inside make of an image?
64 maps of 112 x 112 cannot be shown as one picture: they are shown side by side, or fused.
"""

# %%
# The network
# -----------
# MobileNet is one layer of the outer network, and its layers go by paths.
import keras
from keras import layers
from sklearn.datasets import load_sample_image

keras.utils.set_random_seed(0)
base = keras.applications.MobileNet(include_top=False, input_shape=(224, 224, 3))
inputs = layers.Input((224, 224, 3))
features = layers.GlobalAveragePooling2D()(base(inputs))
network = keras.Model(inputs, layers.Dense(2, activation="softmax", name="classes")(features))

from sklearn_cnnfeat import layer_summary

print(layer_summary(network).to_string(index=False))

# %%
# The 64 maps of a layer
# ----------------------
# The preprocessing that MobileNet was trained with is not part of this network, so it is named.
import matplotlib.pyplot as plt
import numpy as np

from sklearn_cnnfeat import CNNFeatureTransformer, FeatureMapDisplay

image = load_sample_image("china.jpg")  # or "photo.jpg"
cnn = CNNFeatureTransformer(network, "conv_pw_1_relu", preprocessing="tf")
FeatureMapDisplay.from_estimator(cnn, image)
plt.show()

# %%
# One map of 64
# -------------
# Their mean, and a sum with weights of one's own: here those that stress what sets the sky apart
# from the roof.
maps = cnn.set_params(pooling=None).fit_transform([image])[0]
weights = maps[:20].mean(axis=(0, 1)) - maps[40:60, 40:75].mean(axis=(0, 1))
weights /= np.abs(weights).sum()

figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="compressed")
FeatureMapDisplay.from_estimator(cnn, image, combine="mean", ax=axes[0])
FeatureMapDisplay.from_estimator(cnn, image, combine=weights, ax=axes[1])
plt.show()

# %%
# The mean, laid over the picture.
FeatureMapDisplay.from_estimator(cnn, image, layer="conv_pw_5_relu", combine="mean", overlay=True)
plt.show()
