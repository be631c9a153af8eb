"""Which layer of a network suits an SVM? Handwritten digits, offline, in about a minute.

    python examples/demo.py [FOLDER FOR THE PICTURES]

A small convolutional network learns to read half of scikit-learn's digits. An SVM learns the other
half from the features of each layer, with 100 labels: too few to train a network. `cnnfeat demo`
is a longer version with a search over poolings and the SVM's C.
"""

import os
import sys
from pathlib import Path

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score, train_test_split
from sklearn.svm import SVC

from sklearn_cnnfeat import FeatureMapDisplay, FilterDisplay, LayerScoreDisplay, layer_report

os.environ.setdefault("MPLBACKEND", "Agg")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
folder.mkdir(parents=True, exist_ok=True)

# A row of load_digits is an image of 8 x 8 pixels from 0 to 16.
X, y = load_digits(return_X_y=True)
X_network, X, y_network, y = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)

print(f"1/3 Training a small CNN on {len(X_network)} handwritten digits")
keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv1"),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2"),
        keras.layers.MaxPooling2D(name="pool1"),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="conv3"),
        keras.layers.MaxPooling2D(name="pool2"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(64, activation="relu", name="dense"),
        keras.layers.Dense(10, activation="softmax", name="digit"),
    ]
)
network.compile("adam", "sparse_categorical_crossentropy")
# The transformer gives networks pixels from 0 to 255, as images have them.
network.fit(X_network.reshape(-1, 8, 8, 1) * (255 / 16), y_network, epochs=30, verbose=0)

print(f"2/3 An SVM on the features of each layer of the other {len(X)}, of which 100 have labels")
splits = StratifiedShuffleSplit(5, train_size=100, random_state=0)
report = layer_report(
    X,
    y,
    network,
    ["conv1", "conv2", "pool1", "conv3", "pool2", "dense"],
    "flatten",
    estimator=SVC(C=10),
    cv=splits,
    verbose=0,
    image_shape=(8, 8),
    value_range=(0, 16),
)
columns = ["layer", "n_features", "mean_test_score", "std_test_score"]
print(report[columns].round(3).to_string(index=False))
best = report.loc[report["mean_test_score"].idxmax()]
pixels = cross_val_score(SVC(C=10), X, y, cv=splits).mean()
print(
    f"Best: {best['layer']}: {100 * best['mean_test_score']:.1f} % right; "
    f"raw pixels: {100 * pixels:.1f} %"
)

print("3/3 Drawing")
two = (X[y == 2][:1].reshape(1, 8, 8) * (255 / 16)).astype("uint8")
displays = {
    "accuracy_by_layer.png": LayerScoreDisplay(report, score_name="Accuracy").plot(),
    "feature_maps.png": FeatureMapDisplay.from_estimator(
        network, two, layer=["conv1", "conv2", "conv3"], channels=16
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
