"""Make a corpus of bad images, to see that each is refused or read right.

As a script: ``python tests/make_bad_images.py FOLDER`` writes them all to a folder.
"""

import io
import random
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL import __version__ as pillow_version


@dataclass(frozen=True)
class BadImage:
    """An image file and what reading it may lead to.

    expect is "error" (it must be refused), "whole" (it may be refused, or read as `original`
    reads), "image" (it must be read) or "any" (refused or read as anything: a flipped bit in
    compressed pixels cannot always be noticed).
    """

    name: str
    data: bytes
    expect: str
    original: bytes = b""


def picture(width=48, height=36):
    """Return a smooth picture with some noise, which compresses like a photograph."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.RandomState(0).randint(0, 40, (height, width, 3))
    channels = [rows * 3 + columns, columns * 4, (rows * columns) // 8]
    return Image.fromarray(np.clip(np.stack(channels, 2) + noise, 0, 255).astype(np.uint8))


def encode(image, format, **options):
    """Return the bytes of an image in a format."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def good_images():
    """Return name -> bytes of one small file for each way of encoding."""
    image = picture()
    gray = image.convert("L")
    still = [image, image.rotate(90), image.rotate(180)]
    return {
        "baseline.jpg": encode(image, "JPEG", quality=90),
        "progressive.jpg": encode(image, "JPEG", progressive=True),
        "restart.jpg": encode(image, "JPEG", restart_marker_rows=1),
        "gray.jpg": encode(gray, "JPEG"),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "mpo.jpg": encode(image, "MPO", save_all=True, append_images=still[1:]),
        "rgb.png": encode(image, "PNG"),
        "gray16.png": encode(Image.fromarray(np.asarray(gray).astype(np.uint16) * 257), "PNG"),
        "palette.png": encode(image.convert("P"), "PNG"),
        "alpha.png": encode(image.convert("RGBA"), "PNG"),
        "animated.png": encode(image, "PNG", save_all=True, append_images=still[1:]),
        "lossy.webp": encode(image, "WEBP"),
        "lossless.webp": encode(image, "WEBP", lossless=True),
        "animated.webp": encode(image, "WEBP", save_all=True, append_images=still[1:]),
        "rgb.bmp": encode(image, "BMP"),
        "gray.bmp": encode(gray, "BMP"),
        "still.gif": encode(image, "GIF"),
        "animated.gif": encode(image, "GIF", save_all=True, append_images=still[1:]),
        "raw.tif": encode(image, "TIFF"),
        "lzw.tif": encode(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(image, "TIFF", compression="jpeg"),
    }


def bad_images(seed=0):
    """Yield `BadImage` values; the same ones for the same seed."""
    good = good_images()
    yield from truncated(good)
    yield from closed(good)
    yield from flipped(good, random.Random(seed))
    yield from lying()
    yield from lacking_rows(good)
    yield from mistaken(good)
    yield from odd_exif()
    yield from tiny()
    yield from odd_modes()


def truncated(good, cuts=60):
    """Cut files off: at the first 16 bytes, the last 16, and many places in between."""
    for name, data in good.items():
        middle = range(16, len(data) - 16, max(1, len(data) // cuts))
        for length in [*range(16), *middle, *range(len(data) - 16, len(data))]:
            yield BadImage(f"cut_{length}_{name}", data[:length], "whole", data)


def closed(good, cuts=12):
    """Cut JPEG files off in their data and close them with the marker of an end.

    A decoder that is content with that paints the rest gray.
    """
    for name in ("baseline.jpg", "restart.jpg", "gray.jpg", "cmyk.jpg", "mpo.jpg"):
        data = good[name]
        start = data.index(b"\xff\xda") + 20
        end = data.index(b"\xff\xd9", start)
        # The last few bytes are those of the very last block.
        for length in range(start, end - 60, (end - start) // cuts):
            yield BadImage(f"closed_{length}_{name}", _close(data[:length]), "error")
    data = good["progressive.jpg"]
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    for length in range(scans[0] + 20, scans[-1], (scans[-1] - scans[0]) // cuts):
        yield BadImage(f"closed_{length}_progressive.jpg", _close(data[:length]), "error")
    yield BadImage("many_scans.jpg", many_scans(data, 2000), "error")
    for number, place in enumerate(scans):
        yield BadImage(f"closed_scan_{number}_progressive.jpg", _close(data[:place]), "error")


def many_scans(progressive, n_scans):
    """Return a progressive JPEG file whose last scan comes again and again."""
    start = progressive.rindex(b"\xff\xda")
    return progressive[:start] + progressive[start:-2] * n_scans + b"\xff\xd9"


def _close(data):
    return data.removesuffix(b"\xff") + b"\xff\xd9"


def flipped(good, chance, flips=25):
    """Change one bit, or overwrite some bytes, anywhere in a file."""
    for name, data in good.items():
        for number in range(flips):
            broken = bytearray(data)
            # Headers are short, and where a flip does the most.
            place = chance.randrange(min(len(data), 200) if number % 2 else len(data))
            broken[place] ^= 1 << chance.randrange(8)
            yield BadImage(f"flip_{place}_{number}_{name}", bytes(broken), "any")
            broken[place : place + 8] = chance.randbytes(8)
            yield BadImage(f"junk_{place}_{number}_{name}", bytes(broken), "any")


def lying():
    """Promise sizes that are not there, up to decompression bombs."""
    for format, data in small_headers(13_000, 13_000).items():
        yield BadImage(f"within_limits.{format}", data, "any" if format == "gif" else "error")
    for width, height in [(20_000, 20_000), (30_000, 30_000), (65_000, 65_000), (65_000, 65_535)]:
        size = f"{width}x{height}"
        for format, data in small_headers(width, height).items():
            yield BadImage(f"bomb_{size}.{format}", data, "error")
    yield BadImage("bomb_max.png", png_header(2**31 - 1, 2**31 - 1), "error")
    yield BadImage("bomb_wide.png", png_header(2**31 - 1, 1), "error")
    yield BadImage("zero.png", png_header(0, 0), "error")
    yield BadImage("zero_wide.png", png_header(0, 5), "error")
    for format, data in small_headers(0, 0).items():
        yield BadImage(f"zero.{format}", data, "error")
    for format, data in small_headers(4000, 3000).items():
        yield BadImage(f"empty_4000x3000.{format}", data, "any" if format == "gif" else "error")
    # Honest size, but a text chunk that unpacks to 200 MB, and a profile as large.
    image = encode(picture(), "PNG")
    packed = zlib.compress(bytes(200_000_000), 9)
    yield BadImage("bomb_text.png", insert_chunk(image, b"zTXt", b"k\0\0" + packed), "any")
    yield BadImage("bomb_profile.png", insert_chunk(image, b"iCCP", b"k\0\0" + packed), "any")
    yield BadImage("bomb_itxt.png", insert_chunk(image, b"iTXt", b"k\0\1\0\0\0" + packed), "any")


def lacking_rows(good, n_rows=36):
    """Files in which nothing is damaged, but the last rows are not there, or only as zeros."""
    for interlaced in (False, True):
        # The last pass holds every other row.
        pixels = np.asarray(picture(48, n_rows + interlaced))
        whole = png_file(pixels, interlaced)
        for n_missing in (0, 1, n_rows // 3, n_rows):
            name = f"lacks_{n_missing}_interlaced_{interlaced}.png"
            short = png_file(pixels, interlaced, n_missing)
            yield BadImage(name, short, "error" if n_missing else "image", whole)
    black = png_file(np.zeros((36, 48, 3), np.uint8))
    yield BadImage("black.png", black, "image", black)
    # With tables of its own, zeros are codes like others.
    jpeg = encode(picture(), "JPEG", optimize=True)
    for part in (0.5, 0.7, 0.9):
        start = jpeg[: int(part * len(jpeg))]
        yield BadImage(f"zeros_from_{part}.jpg", start + bytes(5000), "error")
    for strips in (1, 3, 9):
        tiff = bytearray(encode(picture(), "TIFF", tiffinfo={278: n_rows // strips}))
        tag = _find_tag(tiff, 257)
        tiff[tag + 8 : tag + 12] = struct.pack("<I", n_rows + 20)
        yield BadImage(f"lacks_strips_{strips}.tif", bytes(tiff), "error")


def _find_tag(tiff, tag):
    start = int.from_bytes(tiff[4:8], "little") + 2
    return next(
        place
        for place in range(start, len(tiff), 12)
        if int.from_bytes(tiff[place : place + 2], "little") == tag
    )


def png_file(pixels, interlaced=False, n_missing=0):
    """Return a PNG file of RGB pixels, less as many of the rows that come last in it."""
    height, width, _ = pixels.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
        passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [
        b"\0" + row.tobytes()
        for left, top, across, down in passes
        for row in pixels[top::down, left::across]
        if row.size
    ]
    data = zlib.compress(b"".join(rows[: len(rows) - n_missing]))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    # In many chunks, as most programs write it.
    pieces = [chunk(b"IDAT", data[place : place + 100]) for place in range(0, len(data), 100)]
    return start + b"".join(pieces) + chunk(b"IEND", b"")


def small_headers(width, height):
    """Return extension -> a file of a few bytes whose header promises this size."""
    jpeg = bytearray(encode(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    jpeg = jpeg[: jpeg.index(b"\xff\xda") + 14]
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, width * height % 2**32)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    canvas = struct.pack("<I", max(0, min(width, 2**24) - 1))[:3]
    canvas += struct.pack("<I", max(0, min(height, 2**24) - 1))[:3]
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return {
        "png": png_header(width, height),
        "jpg": bytes(jpeg),
        "gif": b"GIF89a"
        + struct.pack("<HH", width, height)
        + bytes(3)
        + struct.pack("<cHHHHB", b",", 0, 0, width, height, 0)
        + b"\x02\x01\x05\x00;",
        "bmp": b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0),
        "tif": b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4),
        "webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
    }


def png_header(width, height):
    """Return a PNG file of one compressed row, whose header promises more."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def insert_chunk(png, kind, data):
    """Put a chunk behind the header of a PNG file."""
    return png[:33] + chunk(kind, data) + png[33:]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def mistaken(good):
    """Files that are not what their name says: other files must be refused, other images read."""
    wrong = {
        "empty": b"",
        "newline": b"\n",
        "text": b"these are the photographs of last summer\n" * 20,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 36 36\nshowpage\n",
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "zip": b"PK\x03\x04" + bytes(40),
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "random": random.Random(1).randbytes(5000),
        "npy": b"\x93NUMPY\x01\x00" + bytes(100),
        "only_magic": b"\xff\xd8\xff",
        "no_scan": b"\xff\xd8\xff\xd9",
        "ppm": b"P6 2 2 255\n" + bytes(12),
        "fits": b"SIMPLE  =                    T" + bytes(2850),
        "riff": b"RIFF\x24\0\0\0WAVEfmt " + bytes(28),
        "bm": b"BM" + b"a text that begins as a bitmap does",
    }
    for name, data in wrong.items():
        yield BadImage(f"{name}.jpg", data, "error")
        yield BadImage(f"{name}.png", data, "error")
    for name, data in good.items():
        yield BadImage(f"in_truth_{name}.jpg", data, "image", data)
        yield BadImage(f"trailing_junk_{name}", data + b"junk" * 50, "image", data)


def odd_exif():
    """Good pictures whose EXIF data are broken, absurd or huge."""
    image = picture()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "camera"
    block = exif.tobytes()
    blocks = {
        "empty": b"Exif\0\0",
        "no_tiff": b"Exif\0\0not a TIFF header at all",
        "cut": block[: len(block) // 2],
        "cut_header": block[:12],
        "huge": block + bytes(65_000 - len(block)),
        "far_offset": block[:10] + struct.pack(">I", 2**31) + block[14:],
        "bytes": b"Exif\0\0" + bytes(range(256)) * 4,
        # The directory points at itself, over and over.
        "loop": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\x08",
        "many_entries": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(12) * 300,
    }
    for value in (0, 9, 6.5, 2**31, "6", b"\x06", (6, 6)):
        kind = {int: (4, value), float: (12, value), str: (2, value)}.get(type(value))
        if kind is None:
            entry = struct.pack(">HHIBBBB", 274, 7, 4, 6, 6, 0, 0)
        elif kind[0] == 4:
            entry = struct.pack(">HHII", 274, 4, 1, value)
        else:
            entry = struct.pack(">HHI4s", 274, kind[0], 4, b"6\0\0\0")
        header = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1)
        blocks[f"orientation_{type(value).__name__}_{len(blocks)}"] = header + entry + bytes(4)
    for name, data in blocks.items():
        yield BadImage(f"exif_{name}.jpg", encode(image, "JPEG", exif=data), "image")
        yield BadImage(f"exif_{name}.png", encode(image, "PNG", exif=data), "image")
        yield BadImage(f"exif_{name}.webp", encode(image, "WEBP", exif=data), "image")


def tiny():
    """Good pictures of a pixel or two, or very long ones."""
    for size in [(1, 1), (1, 2), (2, 1), (1, 3000), (3000, 1)]:
        for mode, format in [("RGB", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("P", "GIF")]:
            name = f"tiny_{size[0]}x{size[1]}_{mode}.{format.lower()}"
            yield BadImage(name, encode(Image.new(mode, size, 1), format), "image")


def odd_modes():
    """Pictures of few, many and other channels and bits."""
    image = picture()
    for format, modes in [("PNG", "1 L LA P RGBA"), ("TIFF", "1 L LA P RGBA CMYK LAB YCbCr")]:
        for mode in modes.split():
            data = encode(image.convert(mode) if mode != "LAB" else _lab(image), format)
            # Pillow 12 writes TIFF files of this mode that it does not read.
            is_odd = mode == "YCbCr" and pillow_version < "13"
            yield BadImage(f"mode_{mode}.{format.lower()}", data, "error" if is_odd else "image")
    gray = np.asarray(image.convert("L"))
    for kind, expect in [("uint16", "image"), ("int32", "error"), ("float32", "error")]:
        values = gray.astype(kind) * (200 if kind == "uint16" else 90_000)
        data = encode(Image.fromarray(values), "TIFF")
        yield BadImage(f"mode_{kind}.tiff", data, expect)


def _lab(image):
    return Image.frombytes("LAB", image.size, image.tobytes())


def make_bad_images(folder, seed=0):
    """Write the corpus to a folder and return the `BadImage` values in it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = list(bad_images(seed))
    for image in images:
        (folder / image.name).write_bytes(image.data)
    return images


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"{len(make_bad_images(sys.argv[1]))} images written to {sys.argv[1]}")
