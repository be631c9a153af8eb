"""JPEG files that were cut off and closed with an end marker: how many are noticed, at what cost?

Each photograph is written in many ways (progressive, with restart markers, gray, CMYK, with
trailing bytes, ...). All of these must be read as Pillow reads them. Then each is cut at several
places and closed; what Pillow reads as if it were whole should be refused. Of the cut files whose
pixels differ from the whole picture's: how many are refused, and how wrong the others are at worst
(part of the pixels, and mean difference over the picture, of 255).
"""

import io
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from _common import (
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    print_machine,
    print_table,
    save,
    show,
    summarize,
)
from PIL import Image, JpegImagePlugin

from sklearn_cnnfeat._images import ImageSpec, as_images
from sklearn_cnnfeat._images.jpeg import expose_cuts
from sklearn_cnnfeat.exceptions import ImageError

SPEC = ImageSpec(None, None, 3)
IMAGES = as_images([b"x"])
# What is cut off: bytes, or a part of the data.
CUTS = (2, 10, 30, 60, 200, 0.02, 0.1, 0.3, 0.6, 0.9)


def decode(data):
    """Return the pixels as the package reads them."""
    return IMAGES.decode(data, SPEC, "file")


def by_pillow(data):
    """Return the pixels as Pillow reads them."""
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


def closed_cuts(name, data):
    """Yield (kind, cut, file, its pixels) where Pillow notices nothing by itself."""
    first, last = data.index(b"\xff\xda"), data.rindex(b"\xff\xda")
    for cut in CUTS:
        length = len(data) - 2
        length -= cut if isinstance(cut, int) else int(cut * (length - first - 20))
        closed = data[:length].removesuffix(b"\xff") + b"\xff\xd9"
        try:
            pixels = by_pillow(closed)
        except (OSError, SyntaxError):
            continue
        kind = "one scan"
        if name.startswith("progressive"):
            kind = "cut in the last scan" if length > last else "cut before the last scan"
        yield kind, cut, closed, pixels


def measure(paths, n_rounds):
    """Return what became of whole files and of cut ones, and the microseconds a file."""
    n_whole = n_alarms = 0
    looking, decoding = [], []
    n_files, missed = Counter(), defaultdict(list)
    for path in paths:
        for name, data in ways(Path(path).read_bytes()):
            for _ in range(n_rounds):
                start = time.perf_counter()
                expose_cuts(data)
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
            for kind, cut, closed, pixels in closed_cuts(name, data):
                differences = np.abs(pixels.astype(int) - expected)
                if not differences.any():
                    continue
                n_files[kind, cut] += 1
                try:
                    decode(closed)
                except ImageError:
                    continue
                wrong = (differences.any(axis=2).mean(), differences.mean())
                missed[kind, cut].append(wrong)
    cuts = defaultdict(dict)
    for kind, cut in sorted(n_files, key=_order):
        share = f"{cut:.0%} of the data" if isinstance(cut, float) else f"{cut} bytes"
        unnoticed = missed[kind, cut]
        part, difference = np.max(unnoticed, axis=0).tolist() if unnoticed else (None, None)
        cuts[kind][share] = {
            "cut_files": n_files[kind, cut],
            "refused": n_files[kind, cut] - len(unnoticed),
            "wrong_pixels_unnoticed": part,
            "mean_difference_unnoticed": difference,
        }
    return {
        "whole files": {
            "photographs": len(paths),
            "files": n_whole,
            "false_alarms": n_alarms,
            "microseconds_to_look": summarize([1e6 * seconds for seconds in looking]),
            "microseconds_to_decode": summarize([1e6 * seconds for seconds in decoding]),
        },
        **cuts,
    }


def _order(place):
    # Bytes before parts.
    kind, cut = place
    return kind != "one scan", kind, isinstance(cut, float), cut


def main():
    """Measure, print, write."""
    options = make_parser("cut_jpegs", __doc__, rounds=1).parse_args()
    machine = describe_machine()
    print_machine(machine)
    results = measure(find_photos(options.photos), options.rounds)
    whole = results["whole files"]
    print(
        f"{whole['files']} whole files of {whole['photographs']} photographs: "
        f"{whole['false_alarms']} false alarms; {show(whole['microseconds_to_look']['median'])} "
        f"microseconds a file to look, {show(whole['microseconds_to_decode']['median'])} to decode"
    )
    kinds = {kind: cuts for kind, cuts in results.items() if kind != "whole files"}
    header = ["file", "cut off", "cut files", "refused", "wrong pixels", "mean difference"]
    rows = [
        [
            kind,
            share,
            str(found["cut_files"]),
            str(found["refused"]),
            show(found["wrong_pixels_unnoticed"]),
            show(found["mean_difference_unnoticed"]),
        ]
        for kind, cuts in kinds.items()
        for share, found in cuts.items()
    ]
    print_table(header, rows)
    save(options, machine, results, plot(kinds))


def plot(kinds):
    """Draw the share of the cut files that is refused, cut by cut."""
    figure, axes = make_axes(len(kinds), 3.6 * len(kinds), 3.4)
    for panel, (kind, cuts) in zip(axes, kinds.items(), strict=True):
        shares = [100 * found["refused"] / found["cut_files"] for found in cuts.values()]
        panel.barh(range(len(cuts)), shares, color="tab:blue", height=0.7)
        panel.set_yticks(range(len(cuts)), list(cuts))
        panel.invert_yaxis()
        panel.set_xlim(0, 100)
        panel.set_title(kind)
        panel.set_xlabel("% of the files refused")
    axes[0].set_ylabel("cut off")
    return figure


if __name__ == "__main__":
    main()
