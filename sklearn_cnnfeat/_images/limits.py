"""Refuse images by their header if decoding them would take too much memory."""

from sklearn_cnnfeat._images.jpeg import find_frame

# Bytes of memory per pixel of `max_pixels`, for all formats: the image in Pillow (4 bytes), and a
# rotated or converted copy.
BYTES_A_PIXEL = 8
_PICTURE = 4
# libwebp keeps two copies of the image, and returns a third.
_WEBP = 4 * _PICTURE
# TIFF's tag for the bits of each channel.
_BITS = 258


def check_size(format, data, image, max_pixels):
    """Raise an error for a picture that is too large, once its file is opened but not decoded."""
    width, height = image.size
    promise = f"its header promises {width} x {height} pixels"
    if width * height > max_pixels:
        raise ValueError(f"{promise}, more than max_pixels={max_pixels}")
    needed = _needed(format, data, image)
    if width * height * needed > max_pixels * BYTES_A_PIXEL:
        raise ValueError(
            f"{promise}, which take {needed:g} bytes each while a file of this kind is decoded, "
            f"more than max_pixels={max_pixels} of {BYTES_A_PIXEL} bytes"
        )


def _needed(format, data, image):
    """Return the bytes that a pixel takes while Pillow decodes the file."""
    if format == "webp":
        return _WEBP
    if format == "jpeg":
        frame = find_frame(data)
        # libjpeg collects the coefficients of all scans, two bytes each.
        return _PICTURE + 2 * frame.n_components if frame and frame.in_scans else _PICTURE
    if format == "tiff":
        # A strip may be as large as the picture.
        return _PICTURE + sum(image.tag_v2.get(_BITS, (8,))) / 8
    return _PICTURE
