"""
A picture of a vector
=====================

A network of one's own ends in fully connected layers. What do their outputs look like for one
image? Where the layers are and how long their vectors come out is in a table; the vectors
themselves, line by line, are pictures.
"""

# %%
# The network
# -----------
# Two blocks of convolutions and a dense layer of 128 units, for colour images of 84 x 84 pixels.
# Its weights are random: it could be any network.
import keras
from keras import layers
from sklearn.datasets import load_sample_image

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        layers.Input((84, 84, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(64, 3, activation="relu", name="conv1"),
        layers.Conv2D(64, 3, activation="relu", name="conv2"),
        layers.MaxPooling2D(name="pool1"),
        layers.Conv2D(128, 3, activation="relu", name="conv3"),
        layers.Conv2D(128, 3, activation="relu", name="conv4"),
        layers.AveragePooling2D(4, name="pool2"),
        layers.Flatten(name="flat"),
        layers.Dense(128, name="fc"),
        layers.Activation("relu", name="fc_relu"),
        layers.BatchNormalization(name="norm"),
        layers.Dense(2, activation="softmax", name="classes"),
    ]
)
image = load_sample_image("flower.jpg")  # or "photo.jpg"

# %%
# Its layers
# ----------
# ``layer=`` takes what stands in the columns ``index`` and ``path``. The dense layer gives 128
# numbers, and ``flat`` all those of the maps before it.
from sklearn_cnnfeat import layer_summary

print(layer_summary(network).to_string(index=False))

# %%
# The vectors
# -----------
# Both come from one pass through the network. Half of the 128 numbers are negative: they are 0
# behind the activation.
import matplotlib.pyplot as plt

from sklearn_cnnfeat import FeatureMapDisplay

display = FeatureMapDisplay.from_estimator(network, image, layer=["flat", "fc", "fc_relu"])
for name, vector in zip(display.layers, display.maps, strict=True):
    print(f"{name}: {vector.shape}")
plt.show()

# %%
# The maps that ``flat`` puts in a row, as they were before.
FeatureMapDisplay.from_estimator(network, image, layer="pool2")
plt.show()
