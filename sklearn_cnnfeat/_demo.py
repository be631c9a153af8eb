"""Which layer of a network gives an SVM the best features? A search, from start to end, offline.

A small convolutional network learns to read half of scikit-learn's handwritten digits. The other
half is new to it, and only 100 of those digits have labels: too few to train a network, enough for
an SVM. A grid search finds the layer and the pooling whose features serve the SVM best, and the
same search on the raw pixels says what the features are worth.

    cnnfeat demo [FOLDER FOR THE PICTURES]

It takes about a minute on two cores and needs no internet. This is written as a user's
program would be, but for Keras and the places of its weights, which have their rooms here.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    StratifiedShuffleSplit,
    train_test_split,
)
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC
from sklearn.utils._optional_dependencies import check_matplotlib_support
from tqdm import tqdm

from sklearn_cnnfeat._network.keras_models import import_keras
from sklearn_cnnfeat._network.weights import find_weights
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat._transformer import CNNFeatureTransformer

DIGITS = {"image_shape": (8, 8), "value_range": (0, 16)}  # how a row of load_digits is to be read
LAYERS = ["conv1", "conv2", "pool1", "conv3", "pool2"]
POOLINGS = ["flatten", "avg", "max"]
COSTS = [1, 10]
PHOTO_LAYERS = {
    "vgg16": ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3"],
    "mobilenet": ["conv_pw_1_relu", "conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu"],
}
LABELLED = 100
REPEATS = 5

OWN_PHOTOS = """\
The same on your own photographs, one folder a class, with VGG16:

    photos = load_image_folder("photos/")
    pipe = make_pipeline(CNNFeatureTransformer(model="vgg16", layer="block5_pool"), SVC())
    pipe.fit(photos.data, photos.target)

or, on the command line:

    cnnfeat search photos/ --model vgg16 --layers block3_pool block4_pool block5_pool
"""


def train_network(X, y):
    """Train a small network on digits; it takes pixels from 0 to 255, as images have them."""
    keras = import_keras()
    layers = keras.layers
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
    images = X.reshape(-1, 8, 8, 1) * (255 / 16)
    # None: bars are for terminals.
    epochs = tqdm(range(30), desc="training", unit="epoch", disable=None)
    for _ in epochs:
        history = network.fit(images, y, batch_size=32, verbose=0)
        epochs.set_postfix(loss=f"{history.history['loss'][0]:.3f}")
    return network


def search(estimator, param_grid, X, y, description):
    """Run the same grid search for pixels and for features, with a progress bar."""
    splits = StratifiedShuffleSplit(REPEATS, train_size=LABELLED, random_state=0)
    grid = GridSearchCV(estimator, param_grid, cv=splits, refit=False)
    fits = REPEATS * len(ParameterGrid(param_grid))
    with tqdm(total=fits, desc=description, unit="fit", disable=None) as bar:

        def accuracy(fitted, X_new, y_new):
            score = fitted.score(X_new, y_new)
            bar.update()
            return score

        grid.set_params(scoring=accuracy).fit(X, y)
    return pd.DataFrame(grid.cv_results_).sort_values("mean_test_score", ascending=False)


def search_by_layer(network, X, y):
    """Search layers, poolings and the SVM's cost; one row a layer and pooling, at its best cost."""
    features = CNNFeatureTransformer(model=network, **DIGITS)
    results = search(
        Pipeline([("cnn", features), ("svm", SVC())]),
        [
            {"cnn__layer": LAYERS, "cnn__pooling": POOLINGS, "svm__C": COSTS},
            {"cnn__layer": ["dense"], "cnn__pooling": [None], "svm__C": COSTS},  # no map to pool
        ],
        X,
        y,
        "features",
    )
    features.set_params(layer=[*LAYERS, "dense"]).fit(X[:1])
    shapes = dict(zip(features.layer, features.feature_shapes_, strict=True))
    best = results.drop_duplicates(["param_cnn__layer", "param_cnn__pooling"])
    return pd.DataFrame(
        {
            "layer": layer,
            "pooling": pooling or "vector",
            "output": " x ".join(map(str, shapes[layer])),
            "features": np.prod(shapes[layer]) if pooling == "flatten" else shapes[layer][-1],
            "accuracy": accuracy,
            "spread": spread,
        }
        for layer, pooling, accuracy, spread in zip(
            best["param_cnn__layer"],
            best["param_cnn__pooling"].replace({np.nan: None}),
            best["mean_test_score"],
            best["std_test_score"],
            strict=True,
        )
    )


def search_pixels(X, y):
    """Run the same search on the raw pixels; its row for the table."""
    results = search(Pipeline([("svm", SVC())]), [{"svm__C": COSTS}], X, y, "pixels  ")
    best = results.iloc[0]
    return {
        "layer": "raw pixels",
        "pooling": "",
        "output": "8 x 8",
        "features": X.shape[1],
        "accuracy": best["mean_test_score"],
        "spread": best["std_test_score"],
    }


def print_table(table):
    """Print the table, best first."""
    table = table.sort_values("accuracy", ascending=False)
    percent = [
        f"{100 * mean:.1f} +- {100 * spread:.1f} %"
        for mean, spread in zip(table["accuracy"], table["spread"], strict=True)
    ]
    table = table.drop(columns=["accuracy", "spread"]).assign(accuracy=percent)
    print(table.to_string(index=False))


def draw_accuracy(table, pixels, path):
    """Draw accuracy by layer, one series a pooling, with the spread over the repeats."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    order = {layer: place for place, layer in enumerate([*LAYERS, "dense"])}
    series = {"flatten": ("o", -0.1), "avg": ("s", 0), "max": ("^", 0.1), "vector": ("D", 0)}
    for pooling, (marker, shift) in series.items():
        rows = table[table["pooling"] == pooling].assign(place=lambda t: t["layer"].map(order))
        rows = rows.sort_values("place")
        ax.errorbar(
            rows["place"] + shift,
            100 * rows["accuracy"],
            100 * rows["spread"],
            label=pooling,
            marker=marker,
            linestyle=":",
            capsize=3,
        )
    middle, spread = 100 * pixels["accuracy"], 100 * pixels["spread"]
    ax.axhspan(middle - spread, middle + spread, color="0.5", alpha=0.25, linewidth=0)
    ax.axhline(middle, color="0.3", linewidth=1, label="raw pixels")
    ax.set_xticks(list(order.values()), list(order))
    ax.set_xlabel("layer of the network, first to last")
    ax.set_ylabel(f"accuracy of the SVM with {LABELLED} labels (%)")
    ax.set_title("Which features tell digits apart?")
    ax.grid(axis="y", alpha=0.3)
    ax.legend(title="pooling", ncols=2, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def mosaic(maps, side):
    """Lay out the side x side channels with the most contrast as one picture, each from 0 to 1."""
    chosen = np.argsort(-maps.std(axis=(0, 1)), kind="stable")[: side * side]
    low, high = np.quantile(maps[..., chosen], [0, 0.99], axis=(0, 1))
    maps = np.clip((maps[..., chosen] - low) / np.maximum(high - low, 1e-9), 0, 1)
    enlarge = max(1, 56 // len(maps))  # or the gaps would be as wide as a pixel of the last layers
    maps = maps.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    gap = max(1, len(maps) // 20)
    maps = np.pad(maps, [(0, gap), (0, gap), (0, 0)], constant_values=np.nan)
    height, width, _ = maps.shape
    tiles = maps.transpose(2, 0, 1).reshape(side, side, height, width).swapaxes(1, 2)
    return tiles.reshape(side * height, side * width)[:-gap, :-gap]


def draw_feature_maps(pictures, maps, side, title, path):
    """Draw each picture and, beside it, what the channels of each layer make of it."""
    import matplotlib.pyplot as plt

    columns = 1 + len(maps)
    height, width = pictures[0].shape[:2]
    figure, axes = plt.subplots(
        len(pictures),
        columns,
        figsize=(2.6 * columns, 0.4 + len(pictures) * (0.3 + 2.6 * height / width)),
        squeeze=False,
        layout="constrained",
    )
    for number, (row, picture) in enumerate(zip(axes, pictures, strict=True)):
        row[0].imshow(picture, cmap="gray")
        row[0].set_title("input", fontsize=9)
        for ax, (layer, output) in zip(row[1:], maps.items(), strict=True):
            ax.imshow(mosaic(output[number], side), aspect=height / width, interpolation="nearest")
            rows, columns, channels = output.shape[1:]
            ax.set_title(f"{layer}: {side**2} of {channels} maps\n{rows} x {columns}", fontsize=9)
    for ax in axes.flat:
        ax.axis("off")
    figure.suptitle(title)
    figure.get_layout_engine().set(wspace=0.06)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_digit(network, digit, path):
    """Draw what the trained network's layers see in one digit."""
    maps = {
        layer: CNNFeatureTransformer(
            model=network, layer=layer, pooling=None, **DIGITS
        ).fit_transform(digit)
        for layer in ["conv1", "conv2", "conv3"]
    }
    title = "A digit the network has not seen, and what its layers make of it"
    draw_feature_maps([digit.reshape(8, 8)], maps, 4, title, path)


def local_network(*models):
    """Return the first of `models` whose ImageNet weights are on this disk, and "imagenet".

    Where there are none, the first model, and None for random weights.
    """
    for model in models:
        architecture = find_architecture(model)
        found = find_weights(architecture, False, (architecture.native_size,) * 2)
        if found.path:
            print(f"{model} with ImageNet weights from {found.path.parent}")
            return model, "imagenet"
    print(f"{models[0]} with random weights: {' or '.join(models)} is not in any of")
    for place in found.places:
        print(f"  {place}")
    return models[0], None


def draw_photos(path):
    """Draw what a large network sees in the two photographs that come with scikit-learn."""
    photos = load_sample_images().images
    model, weights = local_network("vgg16", "mobilenet")
    maps = {
        layer: CNNFeatureTransformer(
            model=model, layer=layer, pooling=None, weights=weights, random_state=0
        ).fit_transform(photos)
        for layer in PHOTO_LAYERS[model]
    }
    trained = "ImageNet weights" if weights else "random weights, for want of ImageNet's"
    draw_feature_maps(photos, maps, 3, f"Two photographs through {model} ({trained})", path)


def main(folder):
    """Run the demo, and write its pictures to `folder`."""
    check_matplotlib_support("cnnfeat demo")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # in step with the progress bars on stderr
    start = time.perf_counter()

    X, y = load_digits(return_X_y=True)
    X_network, X, y_network, y = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    print(f"1/4 Training a small CNN on {len(X_network)} handwritten digits")
    network = train_network(X_network, y_network)

    print(
        f"\n2/4 Searching layers and poolings on the other {len(X)}: an SVM gets {LABELLED} labels"
        f"\n    and reads the rest, {REPEATS} times; the same search on raw pixels to compare"
    )
    table = search_by_layer(network, X, y)
    pixels = search_pixels(X, y)
    print()
    print_table(pd.concat([table, pd.DataFrame([pixels])]))
    best = table.loc[table["accuracy"].idxmax()]
    print(
        f"\n    Best: {best['layer']}, {best['pooling']}: {100 * best['accuracy']:.1f} % right; "
        f"raw pixels: {100 * pixels['accuracy']:.1f} %"
    )

    print("\n3/4 Drawing")
    draw_accuracy(table, pixels, folder / "accuracy_by_layer.png")
    draw_digit(network, X[y == 2][:1], folder / "feature_maps_digit.png")
    draw_photos(folder / "feature_maps_photos.png")
    for picture in sorted(folder.glob("*.png")):
        print(f"    {picture}")

    print(f"\n4/4 Done in {time.perf_counter() - start:.0f} seconds. {OWN_PHOTOS}")
