"""What the examples need to run anywhere: photographs, and weights that are already here.

Your own programs need none of this: see the lines marked "yours" in each example.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what TensorFlow says to its developers

WEIGHT_FILES = {
    "vgg16": "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "vgg19": "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "mobilenet": "mobilenet_1_0_224_tf_no_top.h5",
}


def import_keras():
    """Import Keras, without what TensorFlow writes before it looks at its log level."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            import keras

            keras.ops.zeros(1)  # the first operation looks for a GPU, and says so
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    return keras


def local_network(*models):
    """Return the first of `models` whose ImageNet weights are on this disk, and "imagenet".

    Where there are none, the first model, and None for random weights.
    """
    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    for model in models:
        if (folder / WEIGHT_FILES[model]).exists():
            print(f"{model} with ImageNet weights from {folder}")
            return model, "imagenet"
    print(f"{models[0]} with random weights: {folder} has none of {' or '.join(models)}")
    return models[0], None


def photo_folder():
    """Return a folder with one sub-folder of photographs a class.

    It is the folder that the environment variable ``CNNFEAT_EXAMPLE_PHOTOS`` names; without one,
    pieces of the two photographs that come with scikit-learn, in a temporary folder.
    """
    if "CNNFEAT_EXAMPLE_PHOTOS" in os.environ:
        return Path(os.environ["CNNFEAT_EXAMPLE_PHOTOS"])
    folder = Path(tempfile.mkdtemp(prefix="photos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for name, photo in zip(["china", "flower"], load_sample_images().images, strict=True):
        (folder / name).mkdir()
        for number in range(25):
            side = rng.integers(48, 128)
            top, left = rng.integers(np.subtract(photo.shape[:2], side))
            piece = Image.fromarray(photo[top : top + side, left : left + side])
            piece.save(folder / name / f"{name}_{number:02d}.jpg", quality=90)
    return folder
