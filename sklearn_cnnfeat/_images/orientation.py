"""How photographs are turned upright."""

from PIL import ExifTags, Image

# EXIF's orientation, and what undoes it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Those that swap height and width.
ON_SIDE = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]


def orientation(image):
    """Return how to turn the image upright, None if it is."""
    # Anything may stand in EXIF, and Pillow raises whatever it stumbles over.
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        return None
