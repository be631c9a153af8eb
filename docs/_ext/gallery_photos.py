"""The folder ``photos/`` that scripts of the gallery read, as a user's would."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def put_photos(folder, source=None):
    """Make a folder of photographs, one sub-folder a class.

    They are copied from `source`; without one they are pieces of the two photographs that come with
    scikit-learn.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if source:
        shutil.copytree(source, folder)
        return
    rng = np.random.default_rng(0)
    for name, photo in zip(["china", "flower"], load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(25):
            side = rng.integers(48, 128)
            top, left = rng.integers(np.subtract(photo.shape[:2], side))
            piece = Image.fromarray(photo[top : top + side, left : left + side])
            piece.save(folder / name / f"{name}_{number:02d}.jpg", quality=90)
