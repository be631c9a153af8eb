"""The EXIF orientation of photographs."""

from PIL import ExifTags, Image

# EXIF's orientation and the operation that undoes it.
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
    """Return the operation that turns the image upright; None if it is upright."""
    # EXIF data may be damaged in any way, and Pillow raises many kinds of errors for it.
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        return None
