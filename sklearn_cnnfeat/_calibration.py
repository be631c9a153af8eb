"""The images that an 8-bit network is calibrated on."""

import hashlib

import numpy as np

from sklearn_cnnfeat.exceptions import ImageError

# More images barely change the int8 scales and take longer.
_MOST_IMAGES = 128
# Goes up when the same images give another 8-bit network.
_METHOD = b"2"


def digest_sample(images, on_error):
    """Return a digest of the images that would be calibrated on."""
    keys = _sample(images, images.key, on_error)
    return hashlib.sha256(b"".join([_METHOD, *keys])).hexdigest()


def pixel_batches(images, image_spec, adapt, on_error):
    """Return the pixels of the sample, one image per batch, as the network takes them."""

    def batch(i):
        pixels = images.decode(images.read(i), image_spec, images.name(i))
        pixels = pixels if adapt is None else adapt(pixels)
        return np.array(pixels[np.newaxis], np.float32)

    batches = _sample(images, batch, on_error)
    if not batches:
        raise ValueError(
            "precision='int8' is calibrated on images, and none of the calibration images can be "
            "read."
        )
    return batches


def _sample(images, function, on_error):
    """Apply a function to evenly spread positions, leaving out images that may be unreadable."""
    n_sampled = min(len(images), _MOST_IMAGES)
    results = []
    for i in np.linspace(0, len(images) - 1, n_sampled).round().astype(int).tolist():
        try:
            results.append(function(i))
        except ImageError:
            if on_error == "raise":
                raise
    return results
