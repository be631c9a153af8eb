"""Which layer of a network gives an SVM the best features? A search, from start to end, offline.

    cnnfeat demo [FOLDER FOR THE PICTURES]

A small convolutional network learns to read half of scikit-learn's handwritten digits. The other
half is new to it, and only 100 of those digits have labels: too few to train a network, enough for
an SVM. A grid search finds the layer and the pooling whose features serve the SVM best. The same
search on raw pixels shows what the features are worth. It takes about a minute on two cores.
"""

import os
from pathlib import Path

import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from sklearn_cnnfeat import (
    CNNFeatureTransformer,
    FeatureMapDisplay,
    FilterDisplay,
    LayerScoreDisplay,
    layer_scores,
    precompute,
)

LAYERS = ["conv1", "conv2", "pool1", "conv3", "pool2"]
# 100 digits with labels, five times; the SVM reads the rest.
SPLITS = StratifiedShuffleSplit(5, train_size=100, random_state=0)


def train_network(X, y):
    """Train a small network on digits; it takes pixels from 0 to 255, as images have them."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Rescaling(1 / 255, name="rescale"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="conv3"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(64, activation="relu", name="dense"),
            layers.Dense(10, activation="softmax", name="digit"),
        ],
        name="digits",
    )
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(X.reshape(-1, 8, 8, 1) * (255 / 16), y, batch_size=32, epochs=30, verbose=0)
    return network


def search_layers(network, X, y, cache):
    """Search layers, poolings and the SVM's C, with one pass through the network per digit."""
    # A row of load_digits is an image of 8 x 8 pixels from 0 to 16.
    cnn = CNNFeatureTransformer(network, image_shape=(8, 8), value_range=(0, 16), cache=cache)
    costs = {"svm__C": [1, 10]}
    grid = [
        {"cnn__layer": LAYERS, "cnn__pooling": ["flatten", "avg", "max"], **costs},
        {"cnn__layer": ["dense"], "cnn__pooling": [None], **costs},  # a vector: nothing to pool
    ]
    search = GridSearchCV(Pipeline([("cnn", cnn), ("svm", SVC())]), grid, cv=SPLITS, refit=False)
    precompute(search, X)
    return search.fit(X, y)


def main(folder="demo_output"):
    """Run the search, print its table, and draw three pictures into a folder."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    X, y = load_digits(return_X_y=True)
    X_network, X, y_network, y = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)

    print(f"1/3 Training a small CNN on {len(X_network)} handwritten digits")
    network = train_network(X_network, y_network)

    print(f"2/3 Searching layers and poolings on the other {len(X)}, of which 100 have labels")
    search = search_layers(network, X, y, str(folder / "features"))
    pixels = GridSearchCV(SVC(), {"C": [1, 10]}, cv=SPLITS).fit(X, y)
    scores = layer_scores(search)
    scores["pooling"] = [setting["cnn__pooling"] or "vector" for setting in scores["params"]]
    table = scores[["layer", "pooling", "n_features", "mean_test_score", "std_test_score"]]
    table = table.sort_values("mean_test_score", ascending=False)
    with pd.option_context("display.precision", 3):
        print(table.to_string(index=False))
    best = table.iloc[0]
    print(
        f"Best: {best['layer']}, {best['pooling']}: {100 * best['mean_test_score']:.1f} % right; "
        f"raw pixels: {100 * pixels.best_score_:.1f} %"
    )

    print("3/3 Drawing")
    digit = X[y == 2][:1].reshape(1, 8, 8) * (255 / 16)
    displays = {
        "accuracy_by_layer.png": LayerScoreDisplay.from_search(search, score_name="Accuracy"),
        "feature_maps.png": FeatureMapDisplay.from_estimator(
            network, digit.astype("uint8"), layer=["conv1", "conv2", "conv3"], channels=16
        ),
        "filters.png": FilterDisplay.from_estimator(network, layer="conv1", filters=16),
    }
    for name, display in displays.items():
        display.figure_.savefig(folder / name, dpi=120, bbox_inches="tight")
        print(f"    {folder / name}")
    print(
        "The same on your own photographs, in one subfolder per class:\n"
        "    cnnfeat search photos/ --model vgg16"
    )
