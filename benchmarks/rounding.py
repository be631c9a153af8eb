"""Rounding errors of ncnn's Winograd convolutions, beside those of Keras and of OpenVINO.

The same networks in float64, by Keras, are what all are compared with. An error is the root mean
square over all numbers of a layer, relative to the largest of them. The numbers are those of the
layer itself, not averages over positions. Kernels are random and scaled as He et al. do, so that
numbers neither grow nor shrink from layer to layer. "cosine" is the smallest of all photographs,
between ncnn's rows and Keras'.
"""

import os
from tempfile import TemporaryDirectory

from _common import (
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    plot_bars,
    print_machine,
    print_table,
    save,
)
from _networks import decode

_VGG = [f"block{i}_pool" for i in range(1, 6)]
# What the error of ncnn may be at most, as a multiple of Keras'.
_ALLOWED = 1.2


def _plain(keras, x):
    """Six convolutions of 64 to 256 filters, as in VGG."""
    for i, n_filters in enumerate((64, 64, 128, 128, 256, 256)):
        x = keras.layers.Conv2D(n_filters, 3, padding="same", activation="relu", name=f"conv_{i}")(
            x
        )
        if i in (1, 3):
            x = keras.layers.MaxPooling2D()(x)
    return x, [f"conv_{i}" for i in range(1, 6)]


def _normalized(keras, x):
    """Convolutions of 32 to 128 filters with batch normalization."""
    for i, n_filters in enumerate((32, 32, 64, 64, 128, 128)):
        x = keras.layers.Conv2D(n_filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Activation("relu", name=f"relu_{i}")(x)
        if i in (1, 3):
            x = keras.layers.AveragePooling2D(2)(x)
    return x, [f"relu_{i}" for i in range(1, 6)]


def _residual(keras, x):
    """Blocks of two convolutions that are added to what they read."""
    x = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    for i in range(5):
        y = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(x)
        y = keras.layers.Conv2D(64, 3, padding="same")(y)
        x = keras.layers.Add()([x, y])
        x = keras.layers.Activation("relu", name=f"sum_{i}")(x)
    return x, [f"sum_{i}" for i in range(5)]


# Name of the network: side of its images, and what builds it if it is not in Keras Applications.
NETWORKS = {
    "VGG16": (224, None),
    "VGG19": (224, None),
    "plain": (128, _plain),
    "normalized": (128, _normalized),
    "residual": (96, _residual),
}


def build(name, dtype):
    """Return a network with random weights, computing in `dtype`, and its layers to compare."""
    import keras
    import numpy as np

    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    side, make = NETWORKS[name]
    if make is None:
        base = getattr(keras.applications, name)(
            weights=None, include_top=False, input_shape=(side, side, 3)
        )
        layers = _VGG
        x = keras.Input((side, side, 3))
        model = keras.Model(x, base(keras.layers.Rescaling(1 / 64, -2.0)(x)))
        layers = [f"{base.name}/{layer}" for layer in layers]
        parts = [base]
    else:
        x = keras.Input((side, side, 3))
        outputs, layers = make(keras, keras.layers.Rescaling(1 / 64, -2.0)(x))
        model = keras.Model(x, outputs)
        parts = [model]
    random = np.random.default_rng(0)
    for part in parts:
        for weight in part.weights:
            weight.assign(_weights(weight, random))
    return model, parts[0], layers


def _weights(weight, random):
    """Return numbers for a weight: the same for every type, each exact in float32."""
    import numpy as np

    if weight.name == "kernel":
        scale = np.sqrt(2 / np.prod(weight.shape[:-1]))
        numbers = random.normal(0, scale, weight.shape)
    elif weight.name in ("gamma", "moving_variance"):
        numbers = random.uniform(0.5, 1.5, weight.shape)
    else:
        numbers = random.normal(0, 0.1, weight.shape)
    return numbers.astype(np.float32)


def rows_of_keras(name, dtype, pixels, path=None):
    """Return what each layer gives, one row per image, and save the network where `path` is."""
    import keras
    import numpy as np

    model, part, layers = build(name, dtype)
    if path is not None:
        model.save(path)
    names = [layer.rsplit("/", 1)[-1] for layer in layers]
    # The rescaling stands before a network of Keras Applications, and in the others.
    rescaled = pixels.astype(dtype) / 64 - 2 if part is not model else pixels.astype(dtype)
    probe = keras.Model(part.inputs, [part.get_layer(layer).output for layer in names])
    outputs = probe.predict(rescaled, batch_size=1, verbose=0)
    return layers, [np.asarray(output).reshape(len(pixels), -1) for output in outputs]


def rows_of_ours(path, layers, engine, pixels):
    """Return what each layer gives on one of our engines, one row per image."""
    import numpy as np

    from sklearn_cnnfeat import CNNFeatureTransformer

    cnn = CNNFeatureTransformer(path, layers, "flatten", preprocessing=None, engine=engine)
    rows = cnn.fit_transform(pixels)
    ends = np.cumsum([int(np.prod(shape)) for shape in cnn.feature_shapes_])
    return np.split(rows, ends[:-1], axis=1)


def measure(name, paths, folder):
    """Return the errors of each layer of a network."""
    import numpy as np

    side, _ = NETWORKS[name]
    pixels = np.stack([decode(path, side) for path in paths])
    file = os.path.join(folder, f"{name}.keras")
    layers, ours = rows_of_keras(name, "float32", pixels, file)
    rows = {
        "keras": ours,
        "ncnn": rows_of_ours(file, layers, "ncnn", pixels),
        "openvino": rows_of_ours(file, layers, "openvino", pixels),
    }
    _, exact = rows_of_keras(name, "float64", pixels)
    results = {}
    for i, layer in enumerate(layers):
        largest = np.abs(exact[i]).max()
        errors = {
            who: float(np.sqrt(np.mean((values[i] - exact[i]) ** 2)) / largest)
            for who, values in rows.items()
        }
        results[layer.rsplit("/", 1)[-1]] = {
            **{f"{who}_rms": error for who, error in errors.items()},
            "ncnn_over_keras": errors["ncnn"] / errors["keras"],
            "one_minus_cosine": float(max(1 - _cosine(rows["ncnn"][i], rows["keras"][i]))),
        }
    return results


def _cosine(a, b):
    import numpy as np

    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def main():
    """Measure, print, write."""
    parser = make_parser("rounding", __doc__, rounds=1)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=2, help="number of photographs")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    machine = describe_machine()
    print_machine(machine)
    paths = find_photos(options.photos)[: options.images]
    with TemporaryDirectory(prefix="cnnfeat-bench-") as folder:
        networks = {name: measure(name, paths, folder) for name in options.networks}
    rows = [
        [f"{name}, {layer}", *(f"{number:.2g}" for number in figures.values())]
        for name, layers in networks.items()
        for layer, figures in layers.items()
    ]
    header = ["layer", "Keras", "ncnn", "OpenVINO", "ncnn / Keras", "1 - cosine"]
    print_table(header, rows)
    ratios = {
        f"{name}, {layer}": figures["ncnn_over_keras"]
        for name, layers in networks.items()
        for layer, figures in layers.items()
    }
    print(f"Largest ratio: {max(ratios.values()):.2f} (allowed: {_ALLOWED}).")
    figure, (panel,) = make_axes(1, 7, 0.8 + 0.25 * len(ratios))
    plot_bars(panel, list(ratios), list(ratios.values()), None, "error", "multiple of Keras' own")
    save(options, machine, {"networks": networks}, figure)


if __name__ == "__main__":
    main()
