"""What the version of Pillow decides: flaws of older ones, mixtures of two, and its messages."""

import io
import os
import shutil
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import PIL
import pytest
from make_bad_images import encode, good_images, insert_chunk, picture
from numpy.testing import assert_array_equal
from PIL import Image, JpegImagePlugin, features

from sklearn_cnnfeat._images import ImageSpec, as_images, pillow, spec
from sklearn_cnnfeat._images.jpeg import Frame, find_frame
from sklearn_cnnfeat.exceptions import ImageError

OWN_SIZE = ImageSpec(None, None, 3)
FAST = ImageSpec(20, 24, 3, decode="fast")


def decode(data, spec=OWN_SIZE, **how):
    images = as_images([data], **how)
    return images.decode(images.read(0), spec, "picture")


@pytest.fixture
def old_pillow(monkeypatch):
    """As if the loaded decoder were one with known flaws."""
    monkeypatch.setattr(pillow, "_IS_REPAIRED", False)


# --- JPEG files whose frame is wider than Pillow's buffer ----------------------------------------


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def frame(width, height, n_components=3, marker=0xC0):
    components = b"".join(bytes([i, 0x11, 0]) for i in range(n_components))
    return segment(marker, struct.pack(">BHHB", 8, height, width, n_components) + components)


def lossless_jpeg(pixels):
    """Encode pixels as lossless JPEG: differences from the left neighbor, 4 bits for their size.

    libjpeg decodes such files at full size whatever is asked for, and Pillow before 13.0 makes room
    for the reduced size only (CVE-2026-112403).
    """
    height, width, n_components = pixels.shape
    values = pixels.astype(int)
    left = np.full_like(values, 128)
    left[1:, 0] = values[:-1, 0]
    left[:, 1:] = values[:, :-1]
    bits = ""
    for difference in (values - left).ravel().tolist():
        size = abs(difference).bit_length()
        bits += f"{size:04b}"
        if size:
            bits += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    names = b"RGB"[:n_components]
    sof = struct.pack(">BHHB", 8, height, width, n_components)
    sof += b"".join(bytes([name, 0x11, 0]) for name in names)
    table = bytes([0, 0, 0, 0, 9]) + bytes(12) + bytes(range(9))
    scan = bytes([n_components]) + b"".join(bytes([name, 0]) for name in names) + bytes([1, 0, 0])
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    header = b"\xff\xd8" + segment(0xC3, sof) + segment(0xC4, table) + segment(0xDA, scan)
    return header + data + b"\xff\xd9"


needs_lossless = pytest.mark.skipif(
    tuple(map(int, (features.version("libjpeg_turbo") or "0").split(".")[:1])) < (3,),
    reason="libjpeg-turbo before 3 does not know lossless JPEG",
)


@needs_lossless
@pytest.mark.parametrize("size", [(48, 36), (4000, 80)])
def test_lossless_jpegs_are_read_and_never_reduced(size):
    """Reduced by an unsafe decoder, the larger one ends the process; a safe one refuses it."""
    pixels = np.asarray(picture(*size))
    data = lossless_jpeg(pixels)
    assert_array_equal(decode(data), pixels)
    small = Image.fromarray(pixels).resize((24, 20), Image.Resampling.BILINEAR)
    assert_array_equal(decode(data, FAST), np.asarray(small))


@needs_lossless
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_cut_lossless_jpegs_are_refused(end):
    data = lossless_jpeg(np.asarray(picture()))
    for n_bytes in (100, 1000, len(data) // 2, len(data) - 300):
        with pytest.raises(ImageError):
            decode(data[:-n_bytes] + end)


def test_find_frame_follows_libjpeg():
    scan = segment(0xDA, bytes([3, 0, 0, 1, 0, 2, 0, 0, 63, 0]))
    start, wide, narrow = b"\xff\xd8", frame(640, 480), frame(8, 8)
    expected = Frame(0xC0, 640, 480, 3, False)
    assert find_frame(start + wide + scan) == expected
    assert find_frame(start + segment(0xE1, narrow + scan) + wide + scan) == expected
    assert find_frame(start + b"\0junk\xff\0" + wide + b"\xff\xff\xff\xd3" + scan) == expected
    assert find_frame(start + frame(640, 480, marker=0xC2) + scan).in_scans
    assert find_frame(start + wide + segment(0xDA, bytes(10))).in_scans
    for unclear in (
        start + narrow + wide + scan,
        start + narrow + b"\xff\xd9" + start + wide + scan,
        start + start + wide + scan,
        start + scan,
        start + wide,
        start + wide[:-20],
        b"",
    ):
        assert find_frame(unclear) is None


def before_scan(data, inserted):
    return data.replace(b"\xff\xda", inserted + b"\xff\xda", 1)


@pytest.mark.parametrize("decode_as", [OWN_SIZE, FAST])
@pytest.mark.parametrize(
    "hidden",
    [
        # Pillow reads what stands in a segment of this kind as headers, libjpeg does not.
        lambda data: before_scan(data, segment(0xF0, frame(8, 8))),
        lambda data: before_scan(data, segment(0xF0, frame(48, 36, 1))),
        lambda data: before_scan(data, frame(8, 8)),
        lambda data: before_scan(data, frame(8, 8, marker=0xDE)),
    ],
)
def test_frames_that_pillow_sees_differently_are_refused(
    hidden, decode_as, old_pillow, monkeypatch
):
    data = encode(picture(), "JPEG")
    decode(data, decode_as)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", None)
    with pytest.raises(ImageError, match=r"headers contradict.*Pillow 13 and later are safe"):
        decode(hidden(data), decode_as)


def test_usual_jpegs_are_read_by_older_versions(old_pillow):
    for name, data in good_images().items():
        assert decode(data).shape == (36, 48, 3), name


def test_the_loaded_decoder_decides(monkeypatch):
    assert pillow.DECODER == Image.core.PILLOW_VERSION
    assert pillow._IS_REPAIRED == (int(Image.core.PILLOW_VERSION.split(".")[0]) >= 13)
    assert f"pillow {Image.core.PILLOW_VERSION};" in OWN_SIZE.fingerprint()
    before = OWN_SIZE.fingerprint()
    monkeypatch.setattr(spec, "DECODER", "11.3.0")
    assert OWN_SIZE.fingerprint() == before.replace(f"pillow {pillow.DECODER};", "pillow 11.3.0;")


def test_exif_headers_repeated_without_end_are_refused_by_older_versions(old_pillow):
    exif = b"Exif\0\0"
    data = encode(picture(), "PNG")
    assert decode(insert_chunk(data, b"eXIf", exif * 3)).shape == (36, 48, 3)
    with pytest.raises(ImageError, match="repeats the header of its EXIF data"):
        decode(insert_chunk(data, b"eXIf", exif * 1_000_000))


# --- memory --------------------------------------------------------------------------------------


def test_kinds_that_take_more_memory_count_for_more_pixels():
    n_pixels = 48 * 36
    for name, needed in [("lossless.webp", 16), ("progressive.jpg", 10), ("rgb.png", 4)]:
        data = good_images().get(name) or encode(picture(), "WEBP", lossless=True)
        enough = -(-n_pixels * max(8, needed) // 8)
        assert decode(data, ImageSpec(None, None, 3, max_pixels=enough)).shape == (36, 48, 3)
        with pytest.raises(ImageError, match=f"max_pixels={enough - 1}"):
            decode(data, ImageSpec(None, None, 3, max_pixels=enough - 1))


# --- two versions in one process -----------------------------------------------------------------


@pytest.fixture
def other_pillow(tmp_path):
    """Return a folder with a copy of Pillow that can be replaced."""
    installed = metadata.distribution("pillow")
    package = Path(PIL.__file__).parent
    shutil.copytree(package, tmp_path / "PIL", ignore=shutil.ignore_patterns("__pycache__"))
    for libraries in package.parent.glob("pillow.libs"):
        (tmp_path / "pillow.libs").symlink_to(libraries)
    information = tmp_path / f"pillow-{installed.version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: pillow\nVersion: {installed.version}\n")
    return tmp_path


# What pip does to the files of a package that is loaded.
REPLACE = """
import io, sys, warnings
from pathlib import Path
import PIL.Image
folder = Path(sys.argv[1])
assert Path(PIL.__file__).parent == folder / "PIL"
def replace():
    (old,) = folder.glob("*.dist-info")
    new = old.rename(folder / "pillow-99.0.0.dist-info")
    (new / "METADATA").write_text("Name: pillow\\nVersion: 99.0.0\\n")
"""


def run(code, other_pillow):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(other_pillow), str(Path(__file__).parents[2])]),
    }
    return subprocess.run(
        [sys.executable, "-c", REPLACE + code, str(other_pillow)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip


def test_pillow_that_was_replaced_asks_for_a_restart(other_pillow):
    done = run("replace()\nfrom sklearn_cnnfeat import load_image_folder\n", other_pillow)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: pillow was installed after this process had loaded")
    assert f"({PIL.__version__} and 99.0.0)" in last and "Restart the kernel" in last


def test_pillow_that_is_replaced_later_asks_for_a_restart(other_pillow):
    done = run(
        """
from sklearn_cnnfeat._images import ImageSpec, as_images
file = io.BytesIO()
PIL.Image.new("RGB", (8, 8)).save(file, "WEBP")
images, spec = as_images([file.getvalue()]), ImageSpec(None, None, 3)
def attempt():
    try:
        images.decode(file.getvalue(), spec, "photo.webp")
    except Exception as error:
        print(type(error).__name__, error)
# Like a function of another version, which takes other arguments.
PIL.WebPImagePlugin.WebPImageFile._open = lambda self, other: None
attempt()
replace()
attempt()
""",
        other_pillow,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert before.startswith("ImageError cannot read 'photo.webp': Pillow cannot read its header")
    assert "TypeError" in before and "damaged" not in before
    assert after.startswith("ImportError pillow was installed after") and "Restart" in after


# --- messages of Pillow and libtiff --------------------------------------------------------------


def odd_but_readable():
    """Files that Pillow warns of and that are read all the same."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHII", 3, 271, 2, 500, 4000)
    yield encode(picture(), "JPEG", exif=exif)
    yield encode(picture(), "PNG", exif=exif)
    # An animation of 0 frames.
    yield insert_chunk(encode(picture(), "PNG"), b"acTL", bytes(8))


def test_warnings_of_pillow_neither_leak_nor_refuse_files():
    for data in odd_but_readable():
        with pytest.warns(UserWarning):
            Image.open(io.BytesIO(data)).getexif()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opened = Image.open(io.BytesIO(data))
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            caught.clear()
            assert_array_equal(decode(data), expected)
            assert_array_equal(decode(opened), expected)
            assert not caught
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_array_equal(decode(data), expected)


def test_warnings_of_others_are_left_alone():
    """While eight threads decode, another one still gets each warning, of Pillow as well."""
    data = next(odd_but_readable())
    stop = threading.Event()

    def work():
        while not stop.is_set():
            decode(data)

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")
        done = [pool.submit(work) for _ in range(8)]
        try:
            for _ in range(50):
                with pytest.raises(UserWarning):
                    Image.open(io.BytesIO(data)).getexif()
                with pytest.raises(UserWarning):
                    warnings.warn("mine", UserWarning, stacklevel=1)
        finally:
            stop.set()
        for future in done:
            future.result()


def test_libtiff_does_not_write_to_stderr(capfd):
    data = bytearray(encode(picture(), "TIFF", compression="tiff_lzw"))
    data[100:120] = b"\xff" * 20

    def by_hand():
        with pytest.raises(OSError, match="decoder error"):
            Image.open(io.BytesIO(data)).load()
        return capfd.readouterr().err

    expected = by_hand()
    with pytest.raises(ImageError):
        decode(bytes(data))
    assert capfd.readouterr().err == ""
    # Whoever uses Pillow besides gets its messages as before.
    assert by_hand() == expected != ""


def test_pillow_does_not_log(caplog):
    data = encode(picture(), "TIFF")
    samples = struct.pack("<HHII", 277, 3, 1, 3)
    assert samples in data
    data = data.replace(samples, struct.pack("<HHII", 277, 3, 1, 65535))
    with pytest.raises(ImageError, match=r"unsupported|header is damaged"):
        decode(data)
    assert not caplog.records
    with pytest.raises(OSError):
        Image.open(io.BytesIO(data))
    assert "More samples per pixel" in caplog.text
