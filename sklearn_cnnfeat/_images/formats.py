"""The image formats that are read, and how a file is recognized."""

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# The first bytes of a file, the name of its format, and Pillow's class for it. Pillow knows forty
# more formats, few of them hardened against hostile files.
_FORMATS = (
    (b"\xff\xd8\xff", "jpeg", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "png", PngImagePlugin.PngImageFile),
    (b"RIFF", "webp", WebPImagePlugin.WebPImageFile),
    (b"GIF87a", "gif", GifImagePlugin.GifImageFile),
    (b"GIF89a", "gif", GifImagePlugin.GifImageFile),
    (b"BM", "bmp", BmpImagePlugin.BmpImageFile),
    (b"II*\x00", "tiff", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", "tiff", TiffImagePlugin.TiffImageFile),
    (b"II+\x00", "tiff", TiffImagePlugin.TiffImageFile),
    (b"MM\x00+", "tiff", TiffImagePlugin.TiffImageFile),
)
FORMATS = tuple(dict.fromkeys(name for _, name, _ in _FORMATS))

# The ends of their names.
EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def find_reader(data):
    """Return the name of a file's format and Pillow's class for it; None for any other file."""
    return next(
        ((name, reader) for magic, name, reader in _FORMATS if data.startswith(magic)), (None, None)
    )
