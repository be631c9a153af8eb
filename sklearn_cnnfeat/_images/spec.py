"""How images are decoded for a network: size, channels, filters, limits."""

from dataclasses import dataclass

from PIL import features

from sklearn_cnnfeat._images.formats import FORMATS
from sklearn_cnnfeat._images.pillow import DECODER

# Part of every fingerprint: increase it with every change to this package that changes a pixel.
DECODER_VERSION = 3

DECODES = ("exact", "fast")
RESIZES = ("stretch", "crop", "pad")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

# The default limit, which is Pillow's own.
MOST_PIXELS = 178_956_970


@dataclass(frozen=True)
class ImageSpec:
    """How images are decoded for a network.

    Parameters
    ----------
    height, width : int or None
        Size in pixels. Both None keep each image's own size.
    channels : {1, 3}
        Gray or RGB.
    resize : {"stretch", "crop", "pad"}
        "stretch" resizes to the size and ignores the aspect ratio. "crop" resizes the short side to
        `round(size / 0.875)`, the long side in proportion (rounded down), and cuts the size from
        the center; at 224 this is torchvision's Resize(256) and CenterCrop(224). "pad" resizes the
        image to fit inside and centers it on black.
    crop : float, default=None
        Which part of the scaled sides is kept by "crop" in place of 0.875, and by "stretch" in
        place of all; the scaled sides are rounded down then, as timm does.
    interpolation : str
        One of Pillow's filters: nearest, box, bilinear, hamming, bicubic, lanczos.
    max_pixels : int
        Larger images are refused from their header, before they are decoded. So are those of fewer
        pixels that take more than 8 bytes each to decode (WebP, progressive JPEG) and together
        more than `max_pixels` of 8 bytes. WebP and TIFF files
        beyond twice `PIL.Image.MAX_IMAGE_PIXELS`, which is the default, are refused by Pillow too.
    decode : {"exact", "fast"}
        "fast" lets the JPEG decoder halve large pictures while it decodes them, as often as they
        stay larger than needed. This is faster and changes the pixels slightly.
    formats : tuple of str
        Those of `FORMATS` that are read; files of others are refused.
    """

    height: int | None
    width: int | None
    channels: int
    resize: str = "stretch"
    interpolation: str = "bilinear"
    max_pixels: int = MOST_PIXELS
    decode: str = "exact"
    formats: tuple = FORMATS
    crop: float | None = None

    def fingerprint(self):
        """Return text that differs whenever decoding could give other pixels."""
        return (
            f"pixels {DECODER_VERSION}; {self.height}x{self.width}x{self.channels}; {self.resize}; "
            f"{self.interpolation}; {self.decode}; pillow {DECODER}; "
            f"jpeg {features.version('jpg')}; turbo {features.version('libjpeg_turbo')}; "
            f"webp {features.version('webp')}"
            + ("" if self.crop is None else f"; crop {self.crop!r}")
        )
