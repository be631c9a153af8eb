"""Every accepted `X` as a sequence of lazily decoded images.

The only room that knows Pillow. An image is *read* (bytes of a file, a PIL image, an array),
*digested* (what a cache may recognise it by) and *decoded* (the pixels that a network takes), each
a call of its own, so that a caller may skip decoding what it already knows.
"""

import hashlib
import io
import math
import numbers
import os
import re
import stat
import threading
import time
import warnings
import zlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)
from scipy.sparse import issparse

from sklearn_cnnfeat._urls import check_urls, is_url, read_url

__all__ = [
    "DECODES",
    "EXTENSIONS",
    "FORMATS",
    "INTERPOLATIONS",
    "MOST_PIXELS",
    "RESIZES",
    "ImageError",
    "ImageSpec",
    "Images",
    "as_images",
    "first_few",
]

# Part of every fingerprint: raise it with any change to the code below that changes a pixel.
DECODER_VERSION = 3

DECODES = ("exact", "fast")
RESIZES = ("stretch", "crop", "pad")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

# "crop" keeps this part of the short side, as the networks' authors evaluate them (224 of 256).
_CROP_FRACTION = 0.875

# What a file may begin with, and what reads it. Pillow knows some forty more formats, few of them
# hardened against hostile files; a photograph comes in one of these.
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
# Pillow's own limit: what an image may have at most if nothing else is said.
MOST_PIXELS = 178_956_970
# Larger files are no photographs; they are read into memory whole.
_MOST_BYTES = 2 * 1024**3

# What names of such files end with.
EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

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
_ON_SIDE = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]

# A PIL image opened from a file reads it on first use, and the same object may stand in X twice.
_PIL_LOADING = threading.Lock()

# Digests of files by path and by how they are read, with the state of the file at that time.
_DIGESTS = {}
_MOST_DIGESTS = 500_000
# Nanoseconds after which a file's times are trusted to change with its content: file systems keep
# them to two seconds or better.
_SETTLED_NS = 2_500_000_000

_CHUNK_VALUES = 4_000_000
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class ImageError(ValueError):
    """An image that cannot be turned into pixels.

    Parameters
    ----------
    name : str
        The file, or "image 17" for an image that has no name.
    reason : str
        What is wrong with it.
    """

    def __init__(self, name, reason):
        # Both go to args, so that the error survives pickling on its way out of a worker process.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self):
        return f"cannot read {self.name!r}: {self.reason}"


@dataclass(frozen=True)
class ImageSpec:
    """What a network wants of each image.

    Parameters
    ----------
    height, width : int or None
        Size in pixels. Both None keep each image's own size.
    channels : {1, 3}
        Gray or RGB.
    resize : {"stretch", "crop", "pad"}
        "stretch" resizes to the size whatever the shape. "crop" resizes the short side to
        `round(size / 0.875)`, the long side in proportion (rounded down), and cuts the size from
        the centre; at 224 this is torchvision's Resize(256) and CenterCrop(224). "pad" resizes the
        side that fits first and centres the image on black.
    interpolation : str
        One of Pillow's filters: nearest, box, bilinear, hamming, bicubic, lanczos.
    max_pixels : int
        Larger images are refused from their header, before they are decoded. WebP and TIFF files
        beyond twice `PIL.Image.MAX_IMAGE_PIXELS`, which is the default, are refused by Pillow too.
    decode : {"exact", "fast"}
        "fast" lets the JPEG decoder halve large pictures while it decodes them, as often as they
        stay larger than what is needed: less to decode and to resize, and slightly other pixels.
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

    def fingerprint(self):
        """Return text that changes with everything that changes a pixel."""
        return (
            f"pixels {DECODER_VERSION}; {self.height}x{self.width}x{self.channels}; {self.resize}; "
            f"{self.interpolation}; {self.decode}; pillow {PIL.__version__}; "
            f"jpeg {features.version('jpg')}; turbo {features.version('libjpeg_turbo')}; "
            f"webp {features.version('webp')}"
        )


class Images:
    """A sequence of images, none decoded before it is asked for; made by `as_images`.

    Attributes
    ----------
    kind : {"path", "bytes", "pil", "array"}
        What the images come as.
    dtype : numpy.dtype
        Of the decoded images: uint8, or float32 where the pixels are no whole numbers in 0..255.
    index : pandas.Index or None
        Of the Series or data frame that held the images.
    """

    def __init__(self, items, kind, *, dtype, index, value_range, data_format):
        self._items = items
        self.kind = kind
        self.dtype = np.dtype(dtype)
        self.index = index
        self._value_range = value_range
        self._data_format = data_format

    def absolute_part(self, span):
        """Return the files at the positions of a range, their paths from the root on."""
        return Images(
            [
                path if path is None or is_url(path) else os.path.abspath(path)
                for path in self._items[span.start : span.stop]
            ],
            self.kind,
            dtype=self.dtype,
            index=None,
            value_range=self._value_range,
            data_format=self._data_format,
        )

    def __len__(self):
        return len(self._items)

    def name(self, i):
        """Return what to call image `i` in messages."""
        item = self._items[i]
        return item if self.kind == "path" and item is not None else f"image {i}"

    def path(self, i):
        """Return the file of image `i`; None where it is missing or no file."""
        return self._items[i] if self.kind == "path" else None

    def check(self):
        """Raise if files are missing, before any time is spent on the others."""
        if self.kind != "path":
            return
        missing, not_files, urls = [], [], []
        for path in self._items:
            if is_url(path):
                # Asked for one by one only when they are read: that may take a while each.
                urls.append(path)
                continue
            try:
                mode = os.stat(path).st_mode
            except (OSError, ValueError):  # ValueError: a null character in the name
                missing.append(path)
            else:
                if not stat.S_ISREG(mode):
                    not_files.append(path)
        check_urls(urls)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self)} files in X cannot be found: "
                f"{first_few(missing)}. Relative paths start at {os.getcwd()!r}."
            )
        if not_files:
            raise ValueError(
                f"X must hold the paths of image files, but {len(not_files)} of its {len(self)} "
                f"paths lead to folders or no regular files: {first_few(not_files)}. "
                "load_image_folder lists the images of a folder."
            )

    def read(self, i):
        """Return image `i` as it comes: bytes, a PIL image or an array. Input and output only."""
        item = self._items[i]
        if item is None:
            raise ImageError(self.name(i), "it is missing")
        if self.kind == "path":
            try:
                if is_url(item):
                    return read_url(item, _MOST_BYTES)
                status = os.stat(item)
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                    raise ValueError("it is no regular file")  # a pipe would be waited for
                if status.st_size > _MOST_BYTES:
                    raise ValueError(f"it is larger than {_MOST_BYTES:,} bytes")
                with open(item, "rb") as file:
                    return file.read()
            except ImportError:
                # Nothing is wrong with the image.
                raise
            except Exception as error:
                raise ImageError(item, _reason(error)) from error
        if self.kind == "pil":
            try:
                with _PIL_LOADING:
                    item.load()
                    _turn(item)  # Pillow parses it once and keeps it, which must not race either
            except Exception as error:
                raise ImageError(self.name(i), _reason(error)) from error
        return item

    def stamp(self, i):
        """Return 16 bytes that change with image `i`: of a file they hold its size and time.

        Nothing is read for them but arrays and the like, whose content is digested. They are zeros
        for what cannot be read.
        """
        if self.kind == "path":
            state = None if self._items[i] is None else _file_state(self._items[i])
            if state is None:
                return bytes(16)
            size, modified, *_ = state
            return size.to_bytes(8, "little") + modified.to_bytes(8, "little", signed=True)
        try:
            return self.digest(self.read(i))[:16]
        except ImageError:
            return bytes(16)

    def reading(self):
        """Return text that changes with how images are read, apart from the network's wishes."""
        return f"{self.dtype} {self._value_range} {self._data_format}"

    def digest(self, raw):
        """Return 32 bytes that are equal only for images that decode alike."""
        how = f"{self.dtype} {self._value_range} "
        if self.kind == "array":
            how += f"array {self._data_format} {raw.dtype.str} {raw.shape}"
            content = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
        elif self.kind == "pil":
            palette = raw.getpalette("RGB") if raw.mode in ("P", "PA") else None
            how += f"pil {raw.mode} {raw.size} {palette} {_turn(raw)}"
            content = raw.tobytes()
        else:
            how += "encoded"
            content = raw
        digest = hashlib.sha256(how.encode() + b"\0")
        digest.update(content)
        return digest.digest()

    def key(self, i):
        """Return the digest of image `i`, without reading a file that has not changed."""
        return self._remembered(i) or self.read_with_key(i)[1]

    def read_with_key(self, i):
        """Return image `i` as it comes, and its digest."""
        if self.kind != "path" or self._items[i] is None:
            raw = self.read(i)
            return raw, self.digest(raw)
        now = time.time_ns()
        before = _file_state(self._items[i])
        raw = self.read(i)
        key = self._remembered(i)
        if key is None:
            key = self.digest(raw)
            # A file just written may change again without a change of its time.
            settled = before is not None and now - max(before[1:3]) > _SETTLED_NS
            if settled and _file_state(self._items[i]) == before:
                if len(_DIGESTS) >= _MOST_DIGESTS:
                    _DIGESTS.clear()
                _DIGESTS[self._items[i], self._how()] = before, key
        return raw, key

    def _remembered(self, i):
        if self.kind != "path" or self._items[i] is None:
            return None
        state, key = _DIGESTS.get((self._items[i], self._how()), (None, None))
        return key if state is not None and state == _file_state(self._items[i]) else None

    def _how(self):
        return self.dtype, self._value_range

    def decode(self, raw, spec, name):
        """Return the pixels, on 0..255, that `spec` asks for: (height, width, channels)."""
        try:
            if self.kind == "array":
                return self._decode_array(raw, spec)
            image = _upright(raw if self.kind == "pil" else _open(raw, spec))
            if self._value_range is None:
                return _as_array(_fit(_eight_bit(image, spec.channels), spec))
            return self._decode_floats(_numbers(image, spec.channels), spec)
        except Exception as error:
            raise ImageError(name, _reason(error)) from error

    def _decode_array(self, pixels, spec):
        if pixels.ndim == 2:
            pixels = pixels[:, :, np.newaxis]
        elif self._data_format == "channels_first":
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels[:, :, :3]  # no alpha
        # Whatever the other images in `X` are: how an image is resized must not depend on them.
        if self._value_range is not None or not _is_eight_bit(pixels):
            return self._decode_floats(pixels, spec)
        pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        pixels = _as_array(_fit(_eight_bit(image, spec.channels), spec))
        return pixels.astype(self.dtype, copy=False)

    def _decode_floats(self, pixels, spec):
        # At least float32, and float64 for what float32 cannot hold exactly (large integers).
        pixels = pixels.astype(np.result_type(pixels.dtype, np.float32), copy=False)
        if self._value_range is not None:
            low, high = self._value_range
            pixels = (pixels - low) * 255 / (high - low)
        if spec.channels == 1 and pixels.shape[2] == 3:
            red, green, blue = np.moveaxis(pixels, 2, 0)
            pixels = (0.299 * red + 0.587 * green + 0.114 * blue)[:, :, np.newaxis]
        planes = [
            np.asarray(_fit(Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)), spec))
            for plane in np.moveaxis(pixels, 2, 0)
        ]
        if len(planes) < spec.channels:
            planes *= spec.channels
        return np.stack(planes, axis=2)


# --- from an encoded or PIL image to pixels ------------------------------------------------------


def _file_state(path):
    """Return size, times and identity of a file; None where it cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def _open(data, spec):
    """Decode an encoded image as `PIL.Image.open` does, but within `spec.max_pixels`.

    The limit of `PIL.Image.open` belongs to the whole process: `max_pixels` could not exceed it,
    and a warning would come at half of it.
    """
    if not data:
        raise ValueError("it is empty")
    format, reader = next(
        ((name, reader) for magic, name, reader in _FORMATS if data.startswith(magic)), (None, None)
    )
    if reader is None:
        raise ValueError(
            f"no JPEG, PNG, WebP, GIF, BMP or TIFF image; it begins with {data[:16]!r}"
        )
    if format not in spec.formats:
        raise ValueError(f"it is a {format} image, and formats={tuple(spec.formats)!r}")
    if format == "jpeg":
        data = _expose_cuts(data)
    try:
        image = reader(io.BytesIO(data))
    except SyntaxError as error:  # what Pillow says of a header that makes no sense
        raise ValueError(f"its header is damaged ({error})") from error
    width, height = image.size
    if width * height > spec.max_pixels:
        raise ValueError(
            f"its header promises {width} x {height} pixels, more than max_pixels={spec.max_pixels}"
        )
    if spec.decode == "fast" and reader is JpegImagePlugin.JpegImageFile and spec.height:
        on_side = _turn(image) in _ON_SIDE
        needed = _scaled_size((height, width) if on_side else (width, height), spec)
        image.draft(None, needed[::-1] if on_side else needed)
    if format == "tiff":
        _check_strips(image)
    image.load()
    if format == "png":
        _check_rows(data, image)
    if format == "tiff" and image.mode.startswith("I;16") and image.tag_v2.get(_WHITE_IS) == 0:
        # Pillow inverts only those of 8 bits and fewer.
        image = Image.fromarray(65535 - np.asarray(image))
    return image


# The tag of TIFF files that is 0 where 0 is white.
_WHITE_IS = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION


def _check_strips(image):
    """Raise where the strips or tiles of a TIFF file do not cover it: the rest would be black."""
    width, height = image.size
    covered = sum((right - left) * (low - top) for _, (left, top, right, low), *_ in image.tile)
    # Channels may lie one behind the other, each in strips of its own.
    if covered % (width * height):
        raise ValueError("image file is truncated: its strips do not cover the picture")


# Where the passes of an interlaced PNG file begin, and their steps: x, y, across, down.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# Channels of each type of PNG file.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _check_rows(data, image):
    """Raise where a PNG file holds fewer rows than its header promises.

    Pillow is content with compressed data that end too soon, as long as they end properly.
    """
    width, height = image.size
    interlaced = data[28]
    if not interlaced and np.asarray(image.crop((0, height - 1, width, height))).any():
        return  # a row that is missing is black
    bits = data[24] * _CHANNELS[data[25]]
    missing = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        n_pixels, n_rows = -(-(width - left) // across), -(-(height - top) // down)
        if n_pixels > 0:
            missing += max(0, n_rows) * (1 + (n_pixels * bits + 7) // 8)
    unpacked = zlib.decompressobj()
    place = 8
    while missing > 0 and place < len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        packed = data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(unpacked.decompress(packed, _MOST_UNPACKED))
            packed = unpacked.unconsumed_tail
        place += length + 12
    if missing > 0:
        raise ValueError("image file is truncated: rows are missing")


# Bytes unpacked at once, to be counted.
_MOST_UNPACKED = 2**20

# In place of the marker at the end of a JPEG file: 64 bits of what no Huffman code begins with.
_NO_END = b"\xff\x00" * 8
# The next marker in compressed data, where 255 is followed by 0 and restarts may stand.
_NO_FILL = re.compile(rb"[^\xff]")
# Encoders write about ten; each takes time for all pixels, even if it takes no room in the file.
_MOST_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _expose_cuts(data):
    """Return a JPEG file changed so that Pillow notices where its data end too soon.

    If a file was cut off and closed by an end marker, libjpeg paints the rest gray and gives a
    warning that Pillow hides. Without the marker Pillow waits for more data and then tells. A few
    bytes stand in for it, because the decoder looks ahead; they are not enough for one more block.
    A file of several scans needs its end, but if it was cut off it lacks some of its scans.
    """
    place, missing, n_scans = 2, {}, 0
    try:
        while (marker := data[place + 1]) != 0xD9:
            if marker == 0xFF:
                # Markers may be preceded by any number of these.
                place = _NO_FILL.search(data, place + 2).start() - 1
                continue
            if data[place] != 0xFF or 0xD0 <= marker <= 0xD7:
                return data
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            segment = data[place + 4 : place + 2 + length]
            place += 2 + length
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                kind, n_components = marker, segment[5]
                # Coefficients of each component that no scan has brought to the last bit.
                missing = {segment[6 + 3 * i]: set(range(64)) for i in range(n_components)}
            elif marker == 0xDA:
                if kind in (0xC0, 0xC1) and segment[0] == n_components:
                    end = data.find(b"\xff\xd9", place)
                    if end < 0:
                        # What stands behind it, zeros perhaps, could pass for data.
                        raise ValueError("image file is truncated: its end is not marked")
                    return data[:end] + _NO_END
                last_bit = segment[-1] & 15
                coefficients = range(segment[-3], segment[-2] + 1)
                for i in range(segment[0]):
                    if last_bit == 0:
                        missing[segment[1 + 2 * i]].difference_update(coefficients)
                found = _MARKER.search(data, place)
                if found is None:
                    return data
                place = found.start()
                n_scans += 1
                if n_scans > _MOST_SCANS:
                    raise ValueError(f"it has more than {_MOST_SCANS} scans")
    except (AttributeError, IndexError, KeyError, UnboundLocalError):
        # Pillow says what is wrong with it.
        return data
    if any(missing.values()):
        raise ValueError("it was cut off: scans are missing, though its end is marked")
    return data


def _turn(image):
    """Return how to turn the image upright, None if it is."""
    # Anything may stand in EXIF, and Pillow raises whatever it stumbles over.
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        return None


def _upright(image):
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _is_eight_bit(pixels):
    """Tell whether an array holds nothing but whole numbers from 0 to 255."""
    if pixels.dtype == np.uint8:
        return True
    return pixels.dtype.kind in "bui" and pixels.min() >= 0 and pixels.max() <= 255


def _is_wide(image):
    return image.mode.startswith("I") or image.mode == "F"


def _eight_bit(image, channels):
    """Return the image as RGB or L. Transparency is dropped, as Keras does."""
    mode = "RGB" if channels == 3 else "L"
    if _is_wide(image):
        image = _narrow(image)
    if image.mode == mode:
        return image
    if "transparency" in image.info:
        # Pillow would try to carry it over, and warns or fails where it cannot.
        image = image.copy()
        del image.info["transparency"]
    if image.mode in _HALFWAY:
        image = image.convert(_HALFWAY[image.mode])
    return image.convert(mode)


# Pillow has no direct way from these modes to both RGB and L.
_HALFWAY = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}


def _narrow(image):
    """Return a gray image of more than 8 bits with 8.

    16-bit modes are divided by 257, so that white stays white (Pillow would clip them). The 32-bit
    modes do not say what white is: values up to 255 are taken as they are, others as 16 bits.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode in ("I", "F") and not (
        0 <= low and high <= 65535 and not (image.mode == "F" and low < high <= 1)
    ):
        raise ValueError(
            f"its pixels are {image.mode!r} numbers (32 bits) from {low:g} to {high:g}, which do "
            "not tell what white is. Say it with value_range=(black, white)"
        )
    if image.mode not in ("I", "F") or high > 255:
        values = values / np.float32(257)
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _numbers(image, channels):
    """Return the numbers an image holds, unscaled: (height, width, channels)."""
    if _is_wide(image):
        return np.asarray(image)[:, :, np.newaxis]
    return _as_array(_eight_bit(image, channels))


def _fit(image, spec):
    """Bring an image to the size of `spec`."""
    if spec.height is None:
        return image
    width, height = _scaled_size(image.size, spec)
    if width * height > spec.max_pixels:
        raise ValueError(
            f"its {image.size[0]} x {image.size[1]} pixels are too long and narrow for "
            f"resize={spec.resize!r}, which would need {width} x {height}"
        )
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling[spec.interpolation.upper()])
    if (width, height) == (spec.width, spec.height):
        return image
    left = round((width - spec.width) / 2)
    top = round((height - spec.height) / 2)
    # What lies outside the image is black, so that this pads as well.
    return image.crop((left, top, left + spec.width, top + spec.height))


def _scaled_size(size, spec):
    """Return the (width, height) to resize to, before the centre is cut out or padded."""
    width, height = spec.width, spec.height
    if spec.resize == "stretch":
        return width, height
    if spec.resize == "crop":
        width, height = round(width / _CROP_FRACTION), round(height / _CROP_FRACTION)
        by_height = size[0] * height > size[1] * width
        if by_height:
            return size[0] * height // size[1], height
        return width, size[1] * width // size[0]
    if size[0] * height > size[1] * width:
        return width, max(1, round(size[1] * width / size[0]))
    return max(1, round(size[0] * height / size[1])), height


def _as_array(image):
    pixels = np.asarray(image)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _reason(error):
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (OSError, SyntaxError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


# --- from X to Images ----------------------------------------------------------------------------

_KINDS = {
    "path": (str, os.PathLike),
    "bytes": (bytes, bytearray, memoryview),
    "pil": Image.Image,
    "number": (numbers.Number, np.bool_, list, tuple),
}
_KIND_NAMES = {
    "path": "paths",
    "bytes": "encoded images (bytes)",
    "pil": "PIL images",
    "array": "arrays",
    "number": "numbers",
}
_EXPECTED = (
    "X must hold paths, encoded images (bytes), PIL images or arrays of numbers; in a list, an "
    "array, a Series or a data frame of one column"
)


def as_images(
    X, *, image_shape=None, value_range=None, data_format="channels_last", allow_missing=False
):
    """Return any accepted `X` as `Images`, after checking all that needs no decoding.

    Parameters
    ----------
    X : sequence of images
        Paths, encoded bytes, PIL images or arrays; in a list, tuple, array, Series or a data frame
        of one column. Or one array of images: (n, height, width, channels), (n, height, width) for
        gray ones, or 2-D with `image_shape`.
    image_shape : tuple of int or None
        What each row of a 2-D numeric `X` is reshaped to, `(height, width)` or with the channels
        where `data_format` has them. One entry may be -1, as in `numpy.reshape`.
    value_range : (float, float) or None
        The values of black and white, which become 0 and 255. None takes pixels as they are. For
        files it speaks of the numbers in them: (0, 4095) for 12-bit scans.
    data_format : {"channels_last", "channels_first"}
        Where arrays have their channels.
    allow_missing : bool
        Whether None or NaN may stand among paths, bytes or PIL images. Reading one of them raises
        an `ImageError`.

    Returns
    -------
    images : Images
    """
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"data_format must be 'channels_last' or 'channels_first'. Got {data_format!r} instead."
        )
    value_range = _check_value_range(value_range)
    index = X.index if hasattr(X, "iloc") else None
    kind, items = _sort_out(_unwrap(X), allow_missing)
    if kind == "array":
        items = _check_shapes(items, image_shape, data_format)
        dtype = _check_values(items, value_range)
    else:
        _check_encoded(kind, image_shape)
        dtype = np.uint8 if value_range is None else np.float32
    return Images(
        items, kind, dtype=dtype, index=index, value_range=value_range, data_format=data_format
    )


def _unwrap(X):
    """Return what a container holds as a list or an array."""
    for kind in ("path", "bytes", "pil"):
        if isinstance(X, _KINDS[kind]):
            raise TypeError(
                f"X must be a sequence of images, got a single {type(X).__name__}. "
                "Wrap it in a list: [X]."
            )
    if issparse(X):
        raise TypeError("X is a sparse matrix, but images are dense. Pass X.toarray().")
    if isinstance(X, Mapping):
        raise TypeError(
            f"X must be a sequence of images, got a {type(X).__name__} with the entries "
            f"{first_few(list(X))}. Pass one of them, such as X['data']."
        )
    if isinstance(X, (list, tuple)):
        return list(X)
    if hasattr(X, "to_numpy"):  # pandas, polars
        return X.to_numpy()
    if isinstance(X, Set) or not (hasattr(X, "__len__") or hasattr(X, "__array__")):
        raise TypeError(
            f"X must be a sequence of images, with an order and a length, got a "
            f"{type(X).__name__}." + (" Pass list(X)." if isinstance(X, Iterable) else "")
        )
    return np.asarray(X)


def _sort_out(items, allow_missing=False):
    """Return the kind of the images, and them: a list, or one array of all images."""
    if isinstance(items, np.ndarray):
        if items.dtype.kind == "S":
            raise TypeError(
                f"X is an array of dtype {items.dtype}, which loses the zeros that an encoded "
                "image ends with. Pass a list of bytes."
            )
        if items.ndim == 2 and items.shape[1] == 1 and items.dtype.kind in "OUT":
            items = items[:, 0]
        if items.ndim != 1 or items.dtype.kind not in "OUT":
            return "array", _as_numeric(items, "X")
        items = items.tolist()
    if not items:
        raise ValueError("X holds 0 sample(s), while a minimum of 1 is required.")

    types = set(map(type, items))  # a million paths are checked by their types alone
    if allow_missing and any(map(_may_be_missing, types)):
        items = [None if _is_missing(item) else item for item in items]
        present = {type(item) for item in items if item is not None}
        if present and {_kind(type_) for type_ in present} <= {"path", "bytes", "pil"}:
            types = present
    kinds = {_kind(type_) for type_ in types}
    if len(kinds) > 1 or not kinds <= set(_KIND_NAMES):
        raise _not_one_kind(items)
    (kind,) = kinds
    if kind == "path" and types != {str}:
        items = [item if item is None else str(os.fsdecode(item)) for item in items]
    elif kind == "bytes" and types != {bytes}:
        items = [item if item is None else bytes(item) for item in items]
    elif kind == "array":
        items = [np.asarray(item) for item in items]
        if all(item.ndim == 1 for item in items):
            return _sort_out(_stack(items))
        items = [_as_numeric(item, f"Row {row} of X") for row, item in enumerate(items)]
    elif kind == "number":
        return _sort_out(_stack(items))
    return kind, items


def _kind(type_):
    for kind, types in _KINDS.items():
        if issubclass(type_, types):
            return kind
    return "array" if hasattr(type_, "__array__") else None


def _not_one_kind(items):
    """Return the error for images of several kinds, of none, or missing ones."""
    missing = [row for row, item in enumerate(items) if _is_missing(item)]
    if missing:
        return ValueError(
            f"X lacks {len(missing)} of its {len(items)} images: rows {first_few(missing)} are "
            f"{items[missing[0]]!r}. Drop these rows first; among paths, bytes or PIL images, "
            "on_error='nan' makes rows of NaN of them."
        )
    first = {}
    for row, item in enumerate(items):
        first.setdefault(_kind(type(item)), row)
    if None in first:
        row = first[None]
        # scikit-learn's own words, for its checks look for them.
        return TypeError(
            f"{_EXPECTED}. Row {row} is a {type(items[row]).__name__!r}: argument must be a string "
            "or a number."
        )
    found = " and ".join(f"{_KIND_NAMES[kind]} (row {row})" for kind, row in first.items())
    return TypeError(f"X mixes {found}. Pass images of one kind.")


def _is_missing(item):
    if isinstance(item, float):
        return math.isnan(item)
    return _may_be_missing(type(item))


def _may_be_missing(type_):
    return type_ is float or type_.__name__ in ("NoneType", "NAType", "NaTType")


def _stack(items):
    try:
        return np.asarray(items)
    except ValueError as error:
        raise ValueError(f"The rows of X differ in length: {error}. {_EXPECTED}.") from error


def _as_numeric(array, what):
    kind = array.dtype.kind
    if kind in "buif":
        return array
    if kind == "c":
        raise ValueError(f"Complex data not supported: {what} has the dtype {array.dtype}.")
    if array.ndim == 2 and array.size and isinstance(array[0, 0], _KINDS["path"]):
        raise ValueError(
            f"X must be one column of images, got {array.shape[1]} columns. Select the one that "
            "holds the paths."
        )
    try:
        if kind not in "OUT":
            raise TypeError("these are no numbers")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_EXPECTED}. {what} has the dtype {array.dtype}: {error}.") from error


def _check_encoded(kind, image_shape):
    if image_shape is not None:
        raise ValueError(
            f"image_shape={image_shape} reshapes rows of numbers, but X holds {_KIND_NAMES[kind]}, "
            "which have a shape. Leave it None."
        )
    if kind != "pil" and ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so that damaged files would be read half "
            "gray without a word. Set it to False; on_error='nan' gets past damaged files."
        )


def _check_shapes(items, image_shape, data_format):
    """Return the arrays with image_shape applied, or raise for what is no image."""
    if isinstance(items, list):
        if image_shape is not None:
            raise ValueError(
                f"image_shape={image_shape} reshapes the rows of a 2-D array, but X is a list of "
                "arrays, which have a shape. Leave it None."
            )
        for row, image in enumerate(items):
            _check_image_shape(image.shape, f"row {row} has the shape {image.shape}", data_format)
        return items
    if len(items.shape) and len(items) == 0:
        raise ValueError(
            f"X holds 0 sample(s) (shape={items.shape}), while a minimum of 1 is required."
        )
    if items.ndim == 2:
        items = _unflatten(items, image_shape)
    elif image_shape is not None and tuple(image_shape) != items.shape[1:]:
        raise ValueError(
            f"image_shape={tuple(image_shape)} reshapes the rows of a 2-D array, but X has the "
            f"shape {items.shape}. Leave it None."
        )
    elif items.ndim == 3 and image_shape is None and _is_color(items.shape):
        raise ValueError(
            f"X has the shape {items.shape}, which looks like a single image, but X must be a "
            "sequence of images. Wrap it in a list: [X]."
        )
    _check_image_shape(items.shape[1:], f"X has the shape {items.shape}", data_format)
    return items


def _is_color(shape):
    """Tell (height, width, 3) from a few gray images, and from images of hardly any pixels."""
    return shape[2] in (1, 3, 4) and min(shape[:2]) > 4


def _unflatten(rows, image_shape):
    if rows.shape[1] == 0:
        raise ValueError(
            f"X has 0 feature(s) (shape={rows.shape}) while a minimum of 1 is required."
        )
    if image_shape is None:
        raise ValueError(
            f"X is a 2-D array of shape {rows.shape}. If its rows are flattened images, say which "
            "shape they have, such as image_shape=(28, 28) or image_shape=(32, 32, 3)."
        )
    try:
        shape = tuple(int(size) for size in image_shape)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) not in (2, 3) or any(size < 1 and size != -1 for size in shape):
        raise ValueError(
            "image_shape must be (height, width), with or without channels. "
            f"Got {image_shape!r} instead."
        )
    try:
        return rows.reshape(len(rows), *shape)
    except ValueError:
        raise ValueError(
            f"image_shape={shape} does not fit X, whose {len(rows)} rows have {rows.shape[1]} "
            f"numbers each (shape={rows.shape})."
        ) from None


def _check_image_shape(shape, what, data_format):
    if len(shape) not in (2, 3):
        raise ValueError(
            "An array image must be 2-D (gray) or 3-D, and an array of images 3-D or 4-D, but "
            f"{what}."
        )
    if 0 in shape:
        raise ValueError(f"An image must have pixels, but {what}: there are 0 feature(s).")
    if len(shape) == 2:
        return
    last = data_format == "channels_last"
    channels, other = (shape[2], shape[0]) if last else (shape[0], shape[2])
    if channels in (1, 3, 4):
        return
    message = f"Images have 1, 3 or 4 channels, but {what}, with {channels} {data_format}."
    if other in (1, 3, 4):
        right = "channels_first" if last else "channels_last"
        message += f' The channels look to be elsewhere: pass data_format="{right}".'
    raise ValueError(message)


def _check_value_range(value_range):
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "value_range must be a pair of numbers, black and white, such as (0, 1). "
            f"Got {value_range!r} instead."
        )
    return low, high


def _check_values(items, value_range):
    """Return the dtype of the decoded images; warn once if their values look wrong."""
    dtypes = {items.dtype} if isinstance(items, np.ndarray) else {item.dtype for item in items}
    if value_range is None and dtypes == {np.dtype(np.uint8)}:
        return np.uint8
    low, high = _bounds(items)
    floats = any(dtype.kind == "f" for dtype in dtypes)
    found = f"The pixels in X run from {low:g} to {high:g}"
    black, white = (0, 255) if value_range is None else value_range
    margin = (white - black) / 1000  # rounding, and what resampling has overshot
    if low < black - margin or high > white + margin:
        if value_range is None:
            _warn(
                f"{found}, but 0 to 255 is expected. They are used as they are; pass value_range=, "
                f"such as value_range={_suggest_range(low, high, dtypes)}."
            )
        else:
            _warn(f"{found}, beyond value_range=({black:g}, {white:g}), which is black and white.")
    elif value_range is None and low >= 0 and 0 < high <= _NEARLY_BLACK:
        scale = "scaled to 0-1" if high <= 1 else "as if white were no 255"
        _warn(
            f"{found}: they look {scale}. Pass value_range=(0, {math.ceil(high)}), or they are all "
            "nearly black."
        )
    if value_range is None and not floats and low >= 0 and high <= 255:
        return np.uint8
    return np.float32


# Numbers, other than bytes of 0 to 255, of which none is larger are hardly pixels of photographs.
_NEARLY_BLACK = 32


def _warn(message):
    warnings.warn(message, UserWarning, stacklevel=4)


def _suggest_range(low, high, dtypes):
    if all(dtype.kind == "u" for dtype in dtypes):
        return 0, max(np.iinfo(dtype).max for dtype in dtypes)
    if -1 <= low and high <= 1:
        return -1, 1
    black = min(0, math.floor(low))
    return black, max(black + 1, math.ceil(high))


def _bounds(items):
    """Return the lowest and highest value of all images; raise if one is not finite."""
    lows, highs = [], []
    for row, pixels in _pieces(items):
        low, high = float(pixels.min()), float(pixels.max())  # NaN if there is one
        if not (-_FLOAT32_MAX <= low and high <= _FLOAT32_MAX):
            if isinstance(items, np.ndarray):
                whole = (np.abs(pixels) <= _FLOAT32_MAX).reshape(len(pixels), -1).all(axis=1)
                row += int(np.argmin(whole))
            raise ValueError(
                "X contains NaN, infinity or a value too large for float32, first in the image of "
                f"row {row}."
            )
        lows.append(low)
        highs.append(high)
    return min(lows), max(highs)


def _pieces(items):
    """Yield (row, array) a piece at a time, so that no large temporary array is made."""
    if isinstance(items, list):
        yield from enumerate(items)
        return
    step = max(1, _CHUNK_VALUES // math.prod(items.shape[1:]))
    for row in range(0, len(items), step):
        yield row, items[row : row + step]


def first_few(values):
    """Return the first few values as text."""
    text = ", ".join(map(repr, values[:5]))
    return text + (", ..." if len(values) > 5 else "")
