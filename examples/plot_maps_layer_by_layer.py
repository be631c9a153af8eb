"""
Layer by layer: from texture to shape
=====================================

The maps of an own network of four convolutions, one layer after the other, and all maps of each
layer added up into one; then the same for five layers of MobileNet. Early layers keep texture and
detail, late ones shapes, and resolution falls.
"""

# %%
# An own network
# --------------
# Nine filters in each of four convolutions, with random weights.
import keras
from keras import layers
from sklearn.datasets import load_sample_image

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        layers.Input((427, 640, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(9, 5, name="conv1"),
        layers.ReLU(name="relu1"),
        layers.MaxPooling2D(4, name="pool1"),
        layers.Conv2D(9, 5, name="conv2"),
        layers.ReLU(name="relu2"),
        layers.MaxPooling2D(3, name="pool2"),
        layers.Conv2D(9, 5, name="conv3"),
        layers.ReLU(name="relu3"),
        layers.MaxPooling2D(2, name="pool3"),
        layers.Conv2D(9, 3, name="conv4"),
    ]
)

# %%
# All layers come from one pass through the network. ``savefig`` keeps the picture in a file.
import matplotlib.pyplot as plt

from sklearn_cnnfeat import CNNFeatureTransformer, FeatureMapDisplay

image = load_sample_image("flower.jpg")  # or "001.jpg"
convolutions = ["conv1", "conv2", "conv3", "conv4"]
display = FeatureMapDisplay.from_estimator(network, image, layer=convolutions, n_columns=3)
# display.figure_.savefig("feature_map.png")
plt.show()

# %%
# All nine maps of a layer, added up.
FeatureMapDisplay.from_estimator(network, image, layer=convolutions, combine="sum")
plt.show()

# %%
# The five sizes of a trained network
# -----------------------------------
# The first 64 maps of each. Every map has its own scale, so that faint ones are seen too. Of VGG19
# these would be ``block1_pool`` to ``block5_pool``.
mobilenet = CNNFeatureTransformer("mobilenet", "conv_pw_12_relu")
stages = [f"conv_pw_{i}_relu" for i in (1, 3, 5, 11, 12)]
FeatureMapDisplay.from_estimator(mobilenet, image, layer=stages)
plt.show()

# %%
# All maps of each, added up.
FeatureMapDisplay.from_estimator(mobilenet, image, layer=stages, combine="sum")
plt.show()
