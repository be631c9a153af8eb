"""How much memory decoding takes, whatever kind of file it is: see docs/security.md."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

WIDTH, HEIGHT = 4000, 3000
# For strips, rows that decoders hold, and one of the blocks of 16 MB that Pillow takes.
SLACK = 20e6 / (WIDTH * HEIGHT)

# How each kind of file is made: mode, format, EXIF orientation, options.
KINDS = {
    "jpeg": ("RGB", "JPEG", 1, {}),
    "rotated jpeg": ("RGB", "JPEG", 6, {}),
    "progressive jpeg": ("RGB", "JPEG", 1, {"progressive": True}),
    "progressive jpeg 444": ("RGB", "JPEG", 1, {"progressive": True, "subsampling": 0}),
    "cmyk progressive jpeg": ("CMYK", "JPEG", 1, {"progressive": True}),
    "rotated png": ("RGB", "PNG", 6, {}),
    "rotated rgba png": ("RGBA", "PNG", 8, {}),
    "palette png": ("P", "PNG", 1, {"transparency": 3}),
    "16-bit png": ("I;16", "PNG", 1, {}),
    "rotated 16-bit png": ("I;16", "PNG", 6, {}),
    "32-bit tiff": ("I", "TIFF", 1, {}),
    "float tiff": ("F", "TIFF", 1, {}),
    "rotated tiff": ("RGBA", "TIFF", 6, {}),
    "rotated webp": ("RGB", "WEBP", 6, {"method": 0}),
}
# The same with `value_range`, for some of them.
RANGED = ("jpeg", "rotated rgba png", "rotated 16-bit png", "32-bit tiff", "rotated webp")

# Decodes each kind of file at two sizes and prints the bytes that a pixel takes at most.
CODE = """
import ctypes, json, sys
from pathlib import Path
from sklearn_cnnfeat._images import ImageSpec, as_images

def memory(kind):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return 1024 * int(line.split()[1])

folder, kinds, n_pixels = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
spec = ImageSpec(224, 224, 3)
peaks = []
for kind, value_range in kinds:
    images = as_images([folder / f"small {kind}", folder / kind], value_range=value_range)
    # Libraries and what they keep.
    images.decode(images.read(0), spec, kind)
    data = images.read(1)
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    images.decode(data, spec, kind)
    peaks.append((memory("VmHWM") - before) / n_pixels)
print(json.dumps(peaks))
"""


def encode(size, mode, format, orientation, options):
    value = 100 if len(Image.new(mode, (1, 1)).getbands()) == 1 else (100, 120, 140, 160)
    image = Image.new(mode, size, value if isinstance(value, int) else value[: len(mode)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, format, **options, **({"exif": exif} if orientation > 1 else {}))
    return file.getvalue()


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks are measured with Linux's /proc")
    folder = tmp_path_factory.mktemp("large")
    for name, how in KINDS.items():
        (folder / name).write_bytes(encode((WIDTH, HEIGHT), *how))
        (folder / f"small {name}").write_bytes(encode((64, 48), *how))
    cases = [(kind, None) for kind in KINDS] + [(kind, (0, 70_000)) for kind in RANGED]
    arguments = [folder, json.dumps(cases), WIDTH * HEIGHT]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


# Bytes of kinds of which `max_pixels` lets in fewer pixels.
COUNTED = {"progressive jpeg 444": 10, "cmyk progressive jpeg": 12, "rotated webp": 16}


@pytest.mark.timeout(900)
def test_memory_of_a_pixel(peaks):
    beyond = {
        case: peak for case, peak in peaks.items() if not 1 < peak < COUNTED.get(case[0], 8) + SLACK
    }
    assert not beyond
