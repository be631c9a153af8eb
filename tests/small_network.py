"""A network small enough for tests that run it hundreds of times, photographs, and counters."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat._network.engines import framework
from sklearn_cnnfeat._network.engines import openvino as engine_openvino

LAYERS = ["one", "two", "three"]


def save_network(path, seed=0):
    """Save a network of three convolutions on images of 32 x 32 pixels, and return its path."""
    import keras

    def kernel(n):
        return keras.initializers.GlorotUniform(seed=seed + n)

    keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 255, name="rescale"),
            keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=kernel(1), name="one"),
            keras.layers.MaxPooling2D(name="pool"),
            keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=kernel(2), name="two"),
            keras.layers.Conv2D(
                16, 3, strides=2, activation="relu", kernel_initializer=kernel(3), name="three"
            ),
            keras.layers.GlobalAveragePooling2D(name="mean"),
            keras.layers.Dense(2, kernel_initializer=kernel(4), name="classify"),
        ],
        name="small",
    ).save(path)
    return str(path)


def save_photos(folder, n, side=(48, 96)):
    """Save n different JPEG files, half of them of each of two photographs; return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    paths = []
    for i in range(n):
        photo, height = photos[i % 2], rng.integers(*side)
        width = height * 4 // 3
        top, left = rng.integers(np.subtract(photo.shape[:2], (height, width)))
        path = folder / f"{i:05d}.jpg"
        Image.fromarray(photo[top : top + height, left : left + width]).save(path, quality=90)
        paths.append(str(path))
    return paths


def count_computed(monkeypatch):
    """Return a list that gets the number of each image that goes through a network, from now on."""
    computed = []
    for engine in (engine_openvino.OpenVINOEngine, framework.KerasEngine):
        monkeypatch.setattr(engine, "run", _counting(engine.run, computed))
    return computed


def _counting(run, computed):
    def counting(engine, batches, deliver):
        def count(token, rows):
            # A newly compiled network is compared with Keras on noise, numbered without a key.
            if isinstance(token, tuple):
                computed.append(token[0])
            deliver(token, rows)

        return run(engine, batches, count)

    return counting


class CountingTransformer(CNNFeatureTransformer):
    """Has the number of images that were computed written to a file, from whatever process."""


def _count_into_file(run):
    def counting(engine, batches, deliver):
        computed = []
        _counting(run, computed)(engine, batches, deliver)
        if path := os.environ.get("CNNFEAT_TEST_COUNT"):
            with open(path, "a") as file:
                file.write(f"{len(computed)}\n")

    return counting


# A process that unpickles a `CountingTransformer` imports this module.
for _engine in (engine_openvino.OpenVINOEngine, framework.KerasEngine):
    _engine.run = _count_into_file(_engine.run)
