"""
Look-alikes and groups, without labels
======================================

Two photographs whose features are close look alike to the network. That is enough to find the
photographs most similar to a given one, and to sort a heap of photographs into groups.
"""

# %%
# Features of all photographs
# ---------------------------
import numpy as np

from sklearn_cnnfeat import CNNFeatureTransformer, load_image_folder

photos = load_image_folder("photos/")
cnn = CNNFeatureTransformer("mobilenet", "conv_dw_13_relu", pooling="avg")
features = cnn.fit_transform(photos.data)
print(f"{features.shape[0]} photographs, {features.shape[1]} features each")

# %%
# Look-alikes
# -----------
# The nearest neighbours by the angle between two rows. The folders' names were not used, so they
# can judge: how many of the five nearest come from the photograph's own folder?
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

scaled = StandardScaler().fit_transform(features)
nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(scaled)
neighbours = nearest.kneighbors(return_distance=False)
same = photos.target[neighbours] == photos.target[:, np.newaxis]
print(f"{same.mean():.3f} of the five nearest come from the same folder")

import matplotlib.pyplot as plt
from PIL import Image

queries = np.linspace(0, len(photos.data) - 1, 6).astype(int)[1:5]
figure, axes = plt.subplots(4, 6, figsize=(11, 6.6), layout="constrained")
for row, query in zip(axes, queries, strict=True):
    for ax, index in zip(row, [query, *neighbours[query]], strict=True):
        ax.imshow(Image.open(photos.data[index]).convert("RGB").resize((200, 150)))
        ax.set(xticks=[], yticks=[])
        own = photos.target[index] == photos.target[query]
        ax.set_xlabel(
            photos.target_names[photos.target[index]], color="black" if own else "tab:red"
        )
axes[0, 0].set_title("photograph")
axes[0, 1].set_title("nearest")
for ax, place in zip(axes[0, 2:], ["second", "third", "fourth", "fifth"], strict=True):
    ax.set_title(place)
plt.show()

# %%
# Groups
# ------
# As many groups as there are folders, in the ten directions that vary most. An adjusted Rand index
# of 1 means that the groups are the folders, 0 that they have nothing to do with them.
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from sklearn_cnnfeat import EmbeddingDisplay

plane = PCA(10, random_state=0).fit_transform(scaled)
groups = KMeans(len(photos.target_names), n_init=10, random_state=0).fit_predict(plane)
print(
    f"groups against folders, adjusted Rand index: {adjusted_rand_score(photos.target, groups):.2f}"
)

# All photographs by similarity; a frame's color is its group.
EmbeddingDisplay.from_estimator(cnn, photos.data, [f"group {group + 1}" for group in groups])
plt.show()
