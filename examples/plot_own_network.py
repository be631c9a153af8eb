"""
The 128-unit layer of your own network, for an SVM
==================================================

A network of one's own ends in a dense layer of 128 units and a softmax. The 128 numbers that the
dense layer gives for each image are wanted, to train an SVM on them. Here the images are
scikit-learn's handwritten digits; the network learns from half of them.
"""

# %%
# A network, trained
# ------------------
# Two blocks of convolutions, then fully connected layers. It takes pixels from 0 to 255, as they
# come out of image files, and scales them itself.
import keras
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

X, y = load_digits(return_X_y=True)
X_network, X, y_network, y = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        layers.Input((8, 8, 1)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.Dense(128, name="fc"),
        layers.Activation("relu", name="fc_relu"),
        layers.BatchNormalization(),
        layers.Dense(10, activation="softmax", name="digit"),
    ]
)
network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
images = X_network.reshape(-1, 8, 8, 1) * (255 / 16)
network.fit(images, y_network, epochs=15, verbose=0)
_, accuracy_network = network.evaluate(X.reshape(-1, 8, 8, 1) * (255 / 16), y, verbose=0)
print(f"the network itself reads {accuracy_network:.3f} of the other digits")

# %%
# One row of 128 numbers an image
# -------------------------------
# The layer goes by its name; its place in the list of layers (``layer=9``, or ``-4`` from the end)
# says the same. ``fc_relu`` would give the numbers behind the activation. Rows of
# ``load_digits`` hold 8 x 8 pixels from 0 to 16, and the last two parameters say so; image files
# need neither.
from sklearn_cnnfeat import CNNFeatureTransformer

cnn = CNNFeatureTransformer(model=network, layer="fc", image_shape=(8, 8), value_range=(0, 16))
vectors = cnn.fit_transform(X)
print(f"features: {vectors.shape}, named {cnn.get_feature_names_out()[0]} and so on")

# %%
# An SVM on these rows, cross-validated over the digits that the network has not seen.
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

accuracy = cross_val_score(SVC(), vectors, y)
accuracy_pixels = cross_val_score(SVC(), X, y)
print(f"SVM on the 128 units: {accuracy.mean():.3f} +- {accuracy.std():.3f}")
print(f"SVM on the pixels:    {accuracy_pixels.mean():.3f} +- {accuracy_pixels.std():.3f}")

# %%
# The vectors, seen
# -----------------
# Left, one line an image and one column a unit, images sorted by digit, as the difference from the
# unit's mean: each digit has a pattern of its own. Right, the same 128 dimensions laid out in a
# plane so that neighbours stay neighbours.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import Isomap

order = np.argsort(y, kind="stable")
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
difference = vectors[order] - vectors.mean(axis=0)
limit = np.quantile(np.abs(difference), 0.99)
mesh = left.imshow(
    difference,
    aspect="auto",
    cmap="RdBu_r",
    vmin=-limit,
    vmax=limit,
    interpolation="nearest",
)
counts = np.bincount(y)
left.set_yticks(np.cumsum(counts) - counts / 2, range(10))
left.hlines(np.cumsum(counts)[:-1] - 0.5, -0.5, 127.5, color="black", linewidth=0.6)
left.set(xlabel="unit of the dense layer", ylabel="digit", title="128 numbers an image")
figure.colorbar(mesh, ax=left, label="difference from the mean")
plane = Isomap(n_neighbors=20).fit_transform(vectors)
for digit in range(10):
    right.scatter(*plane[y == digit].T, s=8, alpha=0.6, color=f"C{digit}")
    right.text(
        *np.median(plane[y == digit], axis=0), digit, fontsize=16, weight="bold", ha="center"
    )
right.set(xticks=[], yticks=[], title="The 128 dimensions in a plane")
plt.show()
