"""JPEG files that were cut off and closed with an end marker: how many are noticed, at what cost.

``python benchmarks/cut_jpegs.py --photos FOLDER``. Each photograph is written in many ways
(progressive, with restart markers, gray, CMYK, with trailing bytes, ...). All of these must be
read as Pillow reads them. Then each is cut at several places and closed; what Pillow reads as if it
were whole should be refused. Prints a table: of the cut files whose pixels differ from the whole
picture's, how many are refused, and how much of the picture is wrong in the others.
"""

import argparse
import io
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin

from sklearn_cnnfeat._images import ImageError, ImageSpec, _expose_cuts, as_images

SPEC = ImageSpec(None, None, 3)
IMAGES = as_images([b"x"])
# Bytes that are cut off, or parts of the data.
CUTS = (2, 10, 30, 60, 200, 0.02, 0.1, 0.3, 0.6, 0.9)


def decode(data):
    return IMAGES.decode(data, SPEC, "file")


def by_pillow(data):
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return np.asarray(image.convert("RGB"))


def ways(data):
    """Yield (name, file) for the ways in which a photograph is written."""
    image = Image.open(io.BytesIO(data)).convert("RGB")

    def encode(image=image, format="JPEG", **options):
        file = io.BytesIO()
        image.save(file, format, **options)
        return file.getvalue()

    thumbnail = encode(image.resize((160, 120)))
    yield "as it is", data
    yield "baseline", encode(quality=90)
    yield "optimized", encode(optimize=True)
    yield "4:4:4", encode(quality=100, subsampling=0)
    yield "quality 1", encode(quality=1)
    yield "restart markers", encode(restart_marker_blocks=7)
    yield "gray", encode(image.convert("L"))
    yield "CMYK", encode(image.convert("CMYK"))
    yield "odd size", encode(image.crop((0, 0, 333, 217)))
    yield "thumbnail in EXIF", encode(exif=b"Exif\0\0II*\0\x08" + bytes(9) + thumbnail)
    yield "trailing bytes", encode() + b"\xff\xd9junk\xff\xda" * 30
    yield "MPO", encode(format="MPO", save_all=True, append_images=[image.rotate(90)])
    yield "progressive", encode(progressive=True)
    yield "progressive, gray", encode(image.convert("L"), progressive=True)
    yield "progressive, CMYK", encode(image.convert("CMYK"), progressive=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    photos = sorted(parser.parse_args().photos.rglob("*.jpg"))
    n_whole = n_alarms = 0
    looking, decoding = [], []
    noticed = defaultdict(list)
    for path in photos:
        for name, data in ways(path.read_bytes()):
            start = time.perf_counter()
            _expose_cuts(data)
            middle = time.perf_counter()
            expected = by_pillow(data)
            looking.append(middle - start)
            decoding.append(time.perf_counter() - middle)
            n_whole += 1
            try:
                n_alarms += not np.array_equal(decode(data), expected)
            except ImageError:
                n_alarms += 1
            if name in ("as it is", "thumbnail in EXIF", "trailing bytes", "MPO"):
                continue
            kind = "several scans" if name.startswith("progressive") else "one scan"
            first = data.index(b"\xff\xda")
            last = data.rindex(b"\xff\xda")
            for cut in CUTS:
                length = len(data) - 2
                length -= cut if isinstance(cut, int) else int(cut * (length - first - 20))
                closed = data[:length].removesuffix(b"\xff") + b"\xff\xd9"
                try:
                    wrong = (by_pillow(closed) != expected).any(axis=2).mean()
                except (OSError, SyntaxError):
                    continue  # Pillow notices it by itself
                if wrong:
                    where = kind
                    if kind == "several scans":
                        where += ", cut in the last" if length > last else ", cut before the last"
                    try:
                        decode(closed)
                        noticed[where, cut].append(wrong)
                    except ImageError:
                        noticed[where, cut].append(None)
    print(f"{n_whole} whole files of {len(photos)} photographs: {n_alarms} false alarms")
    print(
        f"{np.mean(looking) * 1e6:.0f} microseconds a file to look, "
        f"{np.mean(decoding) * 1e6:.0f} to decode"
    )
    print("| file | cut off | cut files | refused | largest part of the pixels wrong unnoticed |")
    print("| --- | --- | --- | --- | --- |")
    for (where, cut), found in sorted(noticed.items(), key=lambda item: (item[0][0], item[0][1])):
        missed = [wrong for wrong in found if wrong is not None]
        share = f"{cut:.0%} of the data" if isinstance(cut, float) else f"{cut} bytes"
        worst = f"{max(missed):.2%}" if missed else "-"
        refused = len(found) - len(missed)
        print(f"| {where} | {share} | {len(found)} | {refused} | {worst} |")


if __name__ == "__main__":
    main()
