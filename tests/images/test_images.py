import io
import os
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from make_bad_images import bad_images, encode, good_images, make_bad_images, picture
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageFile, ImageOps
from sklearn.utils import Bunch

from sklearn_cnnfeat._images import EXTENSIONS, INTERPOLATIONS, RESIZES, ImageSpec, as_images
from sklearn_cnnfeat._images.collection import ImageArrays, ImageFiles, Images, PILImages
from sklearn_cnnfeat.exceptions import ImageError

OWN_SIZE = ImageSpec(None, None, 3)
SMALL = ImageSpec(20, 24, 3)


def decode(X, spec=OWN_SIZE, **how):
    """Return all images of X, decoded."""
    images = as_images(X, **how)
    return [images.decode(images.read(i), spec, images.name(i)) for i in range(len(images))]


def decode_one(image, spec=OWN_SIZE, **how):
    (pixels,) = decode([image], spec, **how)
    return pixels


@pytest.fixture
def files(tmp_path):
    """Three files of one picture, in colors of their own."""
    paths = []
    for name, color in [("a.png", "red"), ("b.jpg", "lime"), ("c.webp", "blue")]:
        paths.append(str(tmp_path / name))
        Image.new("RGB", (8, 6), color).save(paths[-1])
    return paths


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- decoding and resizing -----------------------------------------------------------------------

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_modes_equal_pillow_pixel_for_pixel(mode, channels):
    image = picture().convert("LA").convert("PA") if mode == "PA" else picture().convert(mode)
    target = "RGB" if channels == 3 else "L"
    expected = np.asarray(image.convert(target).resize((24, 20), Image.Resampling.BILINEAR))
    pixels = decode_one(image, ImageSpec(20, 24, channels))
    assert_array_equal(pixels, expected.reshape(20, 24, channels))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(("mode", "via"), [("La", "LA"), ("RGBa", "RGBA")])
@pytest.mark.parametrize("channels", [1, 3])
def test_premultiplied_alpha_is_divided_out(mode, via, channels):
    image = picture().convert(via)
    image.putalpha(128)
    image = image.convert(mode)
    expected = image.convert(via).convert("RGB" if channels == 3 else "L")
    pixels = decode_one(image, ImageSpec(None, None, channels))
    assert_array_equal(pixels.squeeze(), np.asarray(expected))


def test_lab_becomes_rgb_and_gray(tmp_path):
    lab = picture().convert("LAB")
    lab.save(tmp_path / "lab.tif")
    rgb = lab.convert("RGB")
    assert_array_equal(decode_one(tmp_path / "lab.tif"), np.asarray(rgb))
    gray = decode_one(tmp_path / "lab.tif", ImageSpec(None, None, 1))
    assert_array_equal(gray[:, :, 0], np.asarray(rgb.convert("L")))


@pytest.mark.parametrize("transparency", [5, bytes(range(256))])
def test_transparency_of_a_palette_is_dropped(transparency, no_warnings):
    data = encode(picture().convert("P"), "PNG", transparency=transparency)
    expected = np.asarray(picture().convert("P").convert("RGB"))
    assert_array_equal(decode_one(data), expected)
    assert_array_equal(decode_one(Image.open(io.BytesIO(data))), expected)
    gray = picture().convert("P").convert("L")
    assert_array_equal(decode_one(data, ImageSpec(None, None, 1))[:, :, 0], np.asarray(gray))


def test_a_pil_image_is_left_as_it_was():
    image = Image.open(io.BytesIO(encode(picture().convert("P"), "PNG", transparency=b"\0\1")))
    before = (image.mode, dict(image.info), image.tobytes())
    decode_one(image, SMALL)
    assert (image.mode, dict(image.info), image.tobytes()) == before


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(48, 36), (36, 48), (10, 90), (24, 20), (27, 23), (1, 1)])
def test_resizing_equals_pillow_by_hand(resize, interpolation, size):
    image = picture(*size)
    resample = getattr(Image.Resampling, interpolation.upper())
    width, height = size
    target_width, target_height = 24, 20
    if resize == "stretch":
        expected = image.resize((target_width, target_height), resample)
    elif resize == "crop":
        # 24 / 0.875 = 27.43 and 20 / 0.875 = 22.86
        if width / height > 27 / 23:
            scaled = image.resize((width * 23 // height, 23), resample)
        else:
            scaled = image.resize((27, height * 27 // width), resample)
        left = round((scaled.width - target_width) / 2)
        top = round((scaled.height - target_height) / 2)
        expected = scaled.crop((left, top, left + target_width, top + target_height))
    else:
        scale = min(target_width / width, target_height / height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        scaled = image.resize(inner, resample)
        expected = Image.new("RGB", (target_width, target_height))
        left = -round((inner[0] - target_width) / 2)
        expected.paste(scaled, (left, -round((inner[1] - target_height) / 2)))
    spec = ImageSpec(target_height, target_width, 3, resize, interpolation)
    assert_array_equal(decode_one(image, spec), np.asarray(expected))
    # The same through floats, but for the rounding to whole numbers.
    floats = decode_one(np.asarray(image, np.float32), spec)
    assert floats.dtype == np.float32
    assert floats.flags.c_contiguous
    between = np.clip(floats, 0, 255)  # Lanczos and bicubic overshoot, uint8 cannot
    # Pillow rounds uint8 images between its horizontal and its vertical pass, too.
    assert_allclose(between, np.asarray(expected), atol=2.1)
    assert np.abs(between - np.asarray(expected)).mean() < 0.5


@pytest.mark.parametrize(
    ("size", "scaled"), [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((256, 256), None)]
)
def test_crop_at_224_is_torchvisions(size, scaled):
    # Resize(256): int(256 * long / short); CenterCrop(224): int(round((length - 224) / 2))
    image = picture(*size)
    if scaled is not None:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((length - 224) / 2.0) for length in image.size)
    expected = image.crop((left, top, left + 224, top + 224))
    pixels = decode_one(picture(*size), ImageSpec(224, 224, 3, "crop"))
    assert_array_equal(pixels, np.asarray(expected))


def test_pad_surrounds_with_black():
    pixels = decode_one(Image.new("RGB", (40, 10), "white"), ImageSpec(20, 20, 3, "pad"))
    assert (pixels[8:13].min(), pixels[:7].max(), pixels[13:].max()) == (255, 0, 0)
    pixels = decode_one(np.full((40, 10), 200.0), ImageSpec(20, 20, 1, "pad"))
    assert (pixels[:, 8:13].min(), pixels[:, :7].max(), pixels[:, 13:].max()) == (200, 0, 0)


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_image_of_the_right_size_is_not_resampled(resize, interpolation):
    spec = ImageSpec(36, 48, 3, resize, interpolation)
    assert_array_equal(decode_one(picture(), spec), np.asarray(picture()))


@pytest.mark.parametrize("resize", RESIZES)
def test_one_pixel_is_stretched(resize):
    pixels = decode_one(Image.new("RGB", (1, 1), (9, 8, 7)), ImageSpec(32, 32, 3, resize))
    assert_array_equal(pixels, np.broadcast_to([9, 8, 7], (32, 32, 3)))


def test_crop_refuses_what_would_take_too_much_memory():
    spec = ImageSpec(224, 224, 3, "crop", max_pixels=1_000_000)
    with pytest.raises(ImageError, match=r"image 0.*100000 x 1 pixels are too long and narrow"):
        decode_one(Image.new("RGB", (100_000, 1)), spec)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_photographs_upright(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(picture(), format, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert_array_equal(decode_one(data), expected)
    assert_array_equal(decode_one(Image.open(io.BytesIO(data))), expected)
    assert expected.shape[:2] == ((36, 48) if orientation < 5 else (48, 36))
    # It is resized after it was turned.
    small = Image.fromarray(expected).resize((24, 20), Image.Resampling.BILINEAR)
    assert_array_equal(decode_one(data, SMALL), np.asarray(small))


@pytest.mark.parametrize("name", ["animated.gif", "animated.webp", "animated.png", "mpo.jpg"])
def test_first_frame_of_animations(name, no_warnings):
    data = good_images()[name]
    first = Image.open(io.BytesIO(data))
    assert first.n_frames > 1
    assert_array_equal(decode_one(data), np.asarray(first.convert("RGB")))


@pytest.mark.parametrize("name", list(good_images()))
def test_formats_equal_pillow(name, tmp_path):
    data = good_images()[name]
    path = tmp_path / name
    path.write_bytes(data)
    if name == "gray16.png":
        expected = picture().convert("L").convert("RGB")
    else:
        expected = Image.open(path).convert("RGB")
    assert_array_equal(decode_one(path), np.asarray(expected))
    assert_array_equal(decode_one(data), np.asarray(expected))
    assert path.suffix in EXTENSIONS


def test_equals_keras_load_img(tmp_path, monkeypatch, request):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    paths = []
    for mode in ("L", "LA", "P", "RGB", "RGBA", "1"):
        paths.append(tmp_path / f"{mode}.png")
        picture().convert(mode).save(paths[-1])
    for name, data in good_images().items():
        if name != "gray16.png":  # Keras clips 16 bits to 8
            paths.append(tmp_path / name)
            paths[-1].write_bytes(data)
    try:
        paths += request.getfixturevalue("photos")[::10]
    except pytest.skip.Exception:
        pass
    import keras

    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
        for color, channels in [("rgb", 3), ("grayscale", 1)]:
            for path in paths:
                expected = keras.utils.load_img(
                    path, color_mode=color, target_size=(64, 56), interpolation=interpolation
                )
                spec = ImageSpec(64, 56, channels, interpolation=interpolation)
                assert_array_equal(
                    decode_one(path, spec).squeeze(), np.asarray(expected), err_msg=str(path)
                )


# --- more than 8 bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_16_bits_are_scaled_not_clipped(byteorder, tmp_path):
    wide = np.array([[0, 128, 129, 257], [1000, 40_000, 65_534, 65_535]], f"{byteorder}u2")
    expected = np.array([[0, 0, 1, 1], [4, 156, 255, 255]])
    Image.fromarray(wide).save(tmp_path / "wide.tif")
    for image in (tmp_path / "wide.tif", Image.fromarray(wide)):
        pixels = decode_one(image, ImageSpec(None, None, 1))
        assert pixels.dtype == np.uint8
        assert_array_equal(pixels[:, :, 0], expected)
        assert_array_equal(decode_one(image), np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_16_bits_whose_zero_is_white(byteorder, tmp_path):
    gray = np.asarray(picture().convert("L")).astype(f"{byteorder}u2") * 257
    for compression in ("raw", "tiff_lzw"):
        Image.fromarray(65535 - gray.astype(f"{byteorder}u2")).save(
            tmp_path / "film.tif", tiffinfo={262: 0}, compression=compression
        )
        assert_array_equal(decode_one(tmp_path / "film.tif")[:, :, 0], gray // 257)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_taken_as_8_or_16(dtype, tmp_path):
    for name, high, expected in [("8", 255, [0, 100, 255]), ("16", 65535, [0, 0, 255])]:
        path = tmp_path / f"{name}.tif"
        Image.fromarray(np.array([[0, 100, high]], dtype)).save(path)
        assert_array_equal(decode_one(path, ImageSpec(None, None, 1))[0, :, 0], expected)


@pytest.mark.parametrize(
    "values", [[0, 70_000], [-1, 100], [0.0, 0.5, 1.0], [0, np.nan], [0, np.inf], [-1.0, 1.0]]
)
def test_32_bits_of_no_known_range_are_refused(values, tmp_path):
    dtype = np.int32 if all(isinstance(value, int) for value in values) else np.float32
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(ImageError, match=r"depth\.tif.*what white is.*value_range=\(black, white"):
        decode_one(tmp_path / "depth.tif")


def test_value_range_speaks_of_the_numbers_in_files(tmp_path):
    scan = np.array([[0, 1000, 4095]], np.uint16)
    Image.fromarray(scan).save(tmp_path / "scan.png")
    pixels = decode_one(tmp_path / "scan.png", ImageSpec(None, None, 1), value_range=(0, 4095))
    assert pixels.dtype == np.float32
    assert_allclose(pixels[0, :, 0], scan[0] * (255 / 4095), rtol=1e-6)
    Image.fromarray(np.float32([[0, 0.5, 1]])).save(tmp_path / "depth.tif")
    pixels = decode_one(tmp_path / "depth.tif", value_range=(0, 1))
    assert_array_equal(pixels, np.broadcast_to([[[0.0], [127.5], [255.0]]], (1, 3, 3)))
    photo = decode_one(picture(), value_range=(0, 255))
    assert_array_equal(photo, np.asarray(picture(), np.float32))


# --- bad images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", RESIZES)
def test_bad_images_are_refused_by_name_or_read_whole(resize, no_warnings):
    corpus = list(bad_images())
    images = as_images([image.data for image in corpus])
    outcomes = set()
    for bad in corpus:
        try:
            pixels = images.decode(bad.data, OWN_SIZE, bad.name)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
            assert bad.expect != "error", bad.name
            if bad.original:
                whole = images.decode(bad.original, OWN_SIZE, "whole")
                assert_array_equal(pixels, whole, err_msg=bad.name)
            fitted = images.decode(bad.data, ImageSpec(20, 24, 3, resize), bad.name)
            assert fitted.shape == (20, 24, 3)
            outcomes.add((bad.expect, "read"))
        except ImageError as error:
            assert error.name == bad.name
            assert str(error).startswith(f"cannot read {bad.name!r}: ")
            assert len(error.reason) > 10
            assert bad.expect != "image", str(error)
            outcomes.add((bad.expect, "refused"))
    assert len(outcomes) == 6  # the corpus does hold all sorts


def test_bad_images_cost_little():
    """In a process of its own: no crash, no file that takes forever, and bounded memory."""
    code = """
import warnings
from fuzz import peak_memory
from make_bad_images import bad_images
from sklearn_cnnfeat._images import ImageSpec, as_images
from sklearn_cnnfeat.exceptions import ImageError
warnings.simplefilter("error")
images = as_images([b"x"])
counts = [0, 0]
for bad in bad_images():
    for spec in (ImageSpec(None, None, 3), ImageSpec(224, 224, 3, "crop", decode="fast")):
        try:
            images.decode(bad.data, spec, bad.name)
            counts[0] += 1
        except ImageError as error:
            assert error.name == bad.name
            counts[1] += 1
print(*counts, peak_memory())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    n_read, n_refused, peak = map(float, done.stdout.split())
    assert n_read > 1000 and n_refused > 2000
    if sys.platform == "linux":
        assert 0 < peak < 500


@pytest.mark.parametrize("suffix", [b"", b"junk" * 100, b"\xff\xd9" * 9])
def test_good_jpegs_are_not_taken_for_cut_off(suffix):
    """Every way of writing JPEG files, with what cameras put in front of and behind the data."""
    thumbnail = encode(picture(16, 12), "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    flat = Image.new("RGB", (50, 40), (128, 128, 128))
    for image in (picture(), picture(333, 217), picture(8, 8), picture(1, 1), flat):
        for mode in ("RGB", "L", "CMYK"):
            for options in (
                {},
                {"quality": 1},
                {"quality": 100, "subsampling": 0},
                {"optimize": True},
                {"progressive": True},
                {"restart_marker_blocks": 3},
                {"restart_marker_rows": 1, "progressive": True},
                {"exif": exif},
                {"comment": b"\xff\xd9 \xff\xda " * 20},
            ):
                data = encode(image.convert(mode), "JPEG", **options)
                expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                assert_array_equal(decode_one(data + suffix), expected)


def test_photographs_are_not_taken_for_cut_off(photos):
    for path in photos:
        assert_array_equal(decode_one(path), np.asarray(Image.open(path).convert("RGB")))


def test_a_cut_off_photograph_is_told_though_its_end_is_marked(photos):
    data = Path(photos[0]).read_bytes()
    for part in (0.2, 0.5, 0.9, 0.99):
        cut = data[: int(part * len(data))].removesuffix(b"\xff") + b"\xff\xd9"
        assert np.asarray(Image.open(io.BytesIO(cut))).any()  # Pillow reads it
        with pytest.raises(ImageError, match="image file is truncated"):
            decode_one(cut)
    buffer = io.BytesIO()
    Image.open(photos[0]).save(buffer, "JPEG", progressive=True)
    last_scan = buffer.getvalue().rindex(b"\xff\xda")
    for part in (0.2, 0.5, 0.9, 1):
        cut = buffer.getvalue()[: int(part * last_scan)].removesuffix(b"\xff")
        with pytest.raises(ImageError, match="scans are missing"):
            decode_one(cut + b"\xff\xd9")


def test_formats_can_be_fewer():
    spec = ImageSpec(20, 24, 3, formats=("jpeg", "png"))
    good = good_images()
    for name, data in good.items():
        if name.endswith((".jpg", ".png")):
            assert decode_one(data, spec).shape == (20, 24, 3)
        else:
            with pytest.raises(
                ImageError, match=r"it is a \w+ image, and formats=\('jpeg', 'png'\)"
            ):
                decode_one(data, spec)


def test_enormous_files_are_not_read(tmp_path):
    path = tmp_path / "film.jpg"
    with open(path, "wb") as file:
        file.truncate(2 * 1024**3 + 1)  # of nothing, and without taking room
    with pytest.raises(ImageError, match="larger than 2,147,483,648 bytes"):
        decode_one(path)


def test_bad_files_are_named_and_closed(tmp_path):
    make_bad_images(tmp_path)
    paths = sorted(tmp_path.iterdir())
    images = as_images(paths)
    images.check()
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    refused = 0
    for i in range(len(images)):
        try:
            images.decode(images.read(i), SMALL, images.name(i))
        except ImageError as error:
            assert error.name == str(paths[i])
            refused += 1
    assert 1000 < refused < len(images)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_damage_is_refused_or_read(data):
    good = list(good_images().values())
    broken = bytearray(data.draw(st.sampled_from(good)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(broken) - 1))
        junk = data.draw(st.binary(max_size=12))
        broken[start : start + data.draw(st.integers(0, 12))] = junk
        broken = broken or bytearray(b"\0")
    images = as_images([bytes(broken)])
    try:
        assert images.decode(images.read(0), SMALL, "x").shape == (20, 24, 3)
    except ImageError as error:
        assert error.name == "x"


# What Pillow 11 says of what is no WebP image.
_NO_DECODER = "its header is damaged (could not create decoder object)"
# What Python says of file names that hold one.
_NULL = "embedded null byte" if sys.version_info < (3, 13) else "stat: embedded null character"


def test_errors_say_what_is_wrong(tmp_path):
    (tmp_path / "text.jpg").write_text("holiday photos")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.jpg").write_bytes(good_images()["baseline.jpg"][:-200])
    (tmp_path / "cut.png").write_bytes(good_images()["rgb.png"][:20])
    (tmp_path / "riff.webp").write_bytes(b"RIFF" + bytes(50))
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in [
        (
            "text.jpg",
            "it is not a JPEG, PNG, WebP, GIF, BMP or TIFF image; it begins with b'holiday photos'",
        ),
        ("empty.jpg", "it is empty"),
        ("cut.jpg", "image file is truncated"),
        ("cut.png", "Truncated File Read"),
        ("riff.webp", ("its header is damaged (not a WEBP file)", _NO_DECODER)),
        ("missing.jpg", "No such file or directory"),
        ("folder.jpg", "Is a directory"),
        ("null\0.jpg", _NULL),
    ]:
        path = str(tmp_path / name)
        with pytest.raises(ImageError) as caught:
            decode_one(path)
        reasons = reason if isinstance(reason, tuple) else (reason,)
        assert str(caught.value).startswith(tuple(f"cannot read {path!r}: {x}" for x in reasons))
        assert caught.value.__cause__ is not None
    with pytest.raises(ImageError, match=r"cannot read 'image 1'"):
        decode([encode(picture(), "PNG"), b"junk"])


def test_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageError("x.jpg", "it is empty")))
    assert (error.name, error.reason) == ("x.jpg", "it is empty")
    assert str(error) == "cannot read 'x.jpg': it is empty"
    assert isinstance(error, ValueError)


def test_max_pixels_is_checked_before_decoding_and_not_pillows(monkeypatch, no_warnings):
    data = encode(picture(), "PNG")
    spec = ImageSpec(20, 24, 3, max_pixels=48 * 36 - 1)
    with pytest.raises(ImageError, match="48 x 36 pixels, more than max_pixels=1727"):
        decode_one(data, spec)
    assert decode_one(data, ImageSpec(20, 24, 3, max_pixels=48 * 36)).shape == (20, 24, 3)
    # Pillow's own limit, which belongs to the whole process, neither stops nor warns.
    good = good_images()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for name, data in good.items():
        if not name.endswith((".webp", ".tif")):  # readers that ask Pillow's limit themselves
            assert decode_one(data).shape == (36, 48, 3)


def test_process_wide_settings_are_left_alone():
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    decode(list(good_images().values()), SMALL)
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == before == (False, 89478485)


def test_half_gray_images_are_never_made(monkeypatch, files):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match=r"LOAD_TRUNCATED_IMAGES is set.*Set it to False"):
        as_images(files)
    as_images([np.zeros((4, 4), np.uint8)])


def test_a_broken_pil_image_is_named():
    image = Image.open(io.BytesIO(good_images()["baseline.jpg"][:-300]))
    images = as_images([picture(), image])
    with pytest.raises(ImageError, match=r"cannot read 'image 1': image file is truncated"):
        images.read(1)


# --- what X may be -------------------------------------------------------------------------------


class _Path:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "object array": lambda items: _object_array(items),
    "object column": lambda items: _object_array(items)[:, np.newaxis],
    "pandas Series": lambda items: pd.Series(items, index=[7, 8, 9]),
    "pandas frame": lambda items: pd.DataFrame({"image": items}, index=[7, 8, 9]),
    "polars Series": pl.Series,
    "polars frame": lambda items: pl.DataFrame({"image": items}),
}


def _object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@pytest.mark.parametrize("container", CONTAINERS)
def test_paths_in_any_container(container, files):
    images = as_images(CONTAINERS[container](files))
    assert (type(images), images.dtype, len(images)) == (ImageFiles, np.uint8, 3)
    assert [images.name(i) for i in range(3)] == files
    assert images._items == files
    images.check()
    assert images.read(1) == Path(files[1]).read_bytes()
    if container.startswith("pandas"):
        assert list(images.index) == [7, 8, 9]
    else:
        assert images.index is None


@pytest.mark.parametrize("container", CONTAINERS)
def test_bytes_in_any_container(container, files):
    encoded = [Path(file).read_bytes() for file in files]
    images = as_images(CONTAINERS[container](encoded))
    assert (type(images), images.dtype) == (Images, np.uint8)
    assert [images.read(i) for i in range(3)] == encoded
    assert images.name(2) == "image 2"
    images.check()


@pytest.mark.parametrize("container", [name for name in CONTAINERS if "polars" not in name])
def test_pil_images_and_arrays_in_any_container(container):
    pictures = [picture(8, 6), picture(5, 7), picture(9, 4)]
    images = as_images(CONTAINERS[container](pictures))
    assert (type(images), images.dtype) == (PILImages, np.uint8)
    arrays = [np.asarray(image) for image in pictures]
    assert type(as_images(CONTAINERS[container](arrays))) is ImageArrays
    for pixels, other, array in zip(
        decode(CONTAINERS[container](pictures)),
        decode(CONTAINERS[container](arrays)),
        arrays,
        strict=True,
    ):
        assert_array_equal(pixels, array)
        assert_array_equal(other, array)


@pytest.mark.parametrize(
    "paths",
    [
        lambda files: [Path(file) for file in files],
        lambda files: [_Path(file) for file in files],
        lambda files: [_Path(os.fsencode(file)) for file in files],
        lambda files: [files[0], Path(files[1]), np.str_(files[2])],
        np.array,
        lambda files: np.array(files)[:, None],
        lambda files: [[file] for file in files],
        lambda files: [np.array([file]) for file in files],
        lambda files: pd.Series(files, dtype="category"),
        lambda files: pd.Series(files, dtype="str"),
        lambda files: pd.Series(files, dtype=object),
        pd.Index,
        pytest.param(
            lambda files: np.array(files, dtype=np.dtypes.StringDType()),
            marks=pytest.mark.skipif(np.__version__ < "2", reason="came with NumPy 2"),
        ),
    ],
)
def test_kinds_of_paths(paths, files):
    images = as_images(paths(files))
    assert images.has_paths
    assert images._items == files
    assert set(map(type, images._items)) == {str}


def test_bytearrays_and_memoryviews():
    data = encode(picture(), "PNG")
    for X in ([bytearray(data)], [memoryview(data)], [data, bytearray(data)]):
        assert_array_equal(decode(X)[-1], np.asarray(picture()))


def test_a_million_paths_are_cheap():
    # One pass over their types and no look at the disk; a stat each would take seconds.
    images = as_images(["/nowhere/photo.jpg"] * 1_000_000)
    assert len(images) == 1_000_000


class _ArrayLike:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


@pytest.mark.parametrize("make", [np.array, list, np.ndarray.tolist, pl.Series, _ArrayLike])
def test_an_array_of_images_in_any_form(make):
    array = np.stack([np.asarray(picture(8, 6)), np.asarray(picture(8, 6)) // 2])
    images = as_images(make(array))
    assert (type(images), images.dtype, len(images)) == (ImageArrays, np.uint8, 2)
    for pixels, expected in zip(decode(make(array)), array, strict=True):
        assert_array_equal(pixels, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shapes_of_arrays(channels, dtype, recwarn):
    rgb = np.asarray(picture())
    gray = np.asarray(picture().convert("L"))
    alpha = np.asarray(picture().convert("RGBA")).copy()
    alpha[..., 3] = 99
    spec = ImageSpec(20, 24, channels)
    expected = {
        image.mode: np.asarray(
            image.convert("RGB" if channels == 3 else "L").resize((24, 20), 2)
        ).reshape(20, 24, channels)
        for image in (picture(), picture().convert("L"))
    }
    X = [array.astype(dtype) for array in (rgb, alpha, gray, gray[..., None])]
    results = [*decode(X, spec)]
    results += decode([np.moveaxis(x, -1, 0) for x in X[:2]], spec, data_format="channels_first")
    results += decode(np.stack(X[2:3]), spec)
    results += decode(X[0][None, ::-1, ::-1][:, ::-1, ::-1], spec)  # not contiguous
    modes = ["RGB", "RGB", "L", "L", "RGB", "RGB", "L", "RGB"]
    for pixels, mode in zip(results, modes, strict=True):
        assert pixels.dtype == dtype
        assert pixels.flags.c_contiguous
        assert_allclose(pixels, expected[mode], atol=0 if dtype is np.uint8 else 1.6)
    assert not recwarn.list


def test_channels_first():
    array = np.asarray(picture())[None]
    moved = np.moveaxis(array, 3, 1)
    assert_array_equal(decode(moved, data_format="channels_first")[0], array[0])
    gray = np.arange(30, dtype=np.uint8).reshape(1, 1, 5, 6)
    pixels = decode(gray, ImageSpec(None, None, 1), data_format="channels_first")[0]
    assert_array_equal(pixels[:, :, 0], gray[0, 0])


@pytest.mark.parametrize(
    ("image_shape", "shape"),
    [
        ((6, 8, 3), (6, 8, 3)),
        ((6, -1, 3), (6, 8, 3)),
        ((-1, 8, 3), (6, 8, 3)),
        ([6, 8, -1], (6, 8, 3)),
        ((12, 12), (12, 12, 1)),
        ((-1, 12), (12, 12, 1)),
        (np.array([12, -1]), (12, 12, 1)),
    ],
)
@pytest.mark.parametrize("make", [np.array, pd.DataFrame, pl.DataFrame, lambda a: a.tolist()])
def test_flattened_images(image_shape, shape, make):
    rows = np.random.RandomState(0).randint(0, 256, (4, 144)).astype(np.uint8)
    spec = ImageSpec(None, None, shape[2])
    results = decode(make(rows), spec, image_shape=image_shape)
    for pixels, row in zip(results, rows, strict=True):
        assert_array_equal(pixels, row.reshape(shape))


def test_flattened_images_channels_first():
    rows = np.arange(2 * 60, dtype=np.uint8).reshape(2, 60)
    results = decode(rows, image_shape=(3, 4, 5), data_format="channels_first")
    assert_array_equal(results[1], np.moveaxis(rows[1].reshape(3, 4, 5), 0, -1))


def test_flattened_frame_keeps_its_index():
    frame = pd.DataFrame(np.zeros((2, 4), np.uint8), index=["a", "b"])
    assert list(as_images(frame, image_shape=(2, 2)).index) == ["a", "b"]


def test_image_shape_may_name_the_shape_that_is_there():
    X = np.zeros((2, 10, 3), np.uint8)
    assert as_images(X, image_shape=(10, 3)).read(0).shape == (10, 3)
    with pytest.raises(ValueError, match=r"image_shape=\(3, 10\) reshapes.*shape \(2, 10, 3\)"):
        as_images(X, image_shape=(3, 10))


def test_objects_that_are_numbers():
    X = np.arange(8).reshape(2, 4).astype(object)
    assert_array_equal(decode(X, image_shape=(2, 2))[1][:, :, 0], [[4, 5], [6, 7]])


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint64, np.int64, ">i4"])
def test_integers_in_0_255_become_uint8_exactly(dtype, no_warnings):
    array = np.asarray(picture())[None].astype(dtype)
    assert as_images(array).dtype == np.uint8
    assert_array_equal(decode(array, SMALL)[0], decode(array.astype(np.uint8), SMALL)[0])
    assert as_images([array[0], array[0, :5].astype(np.uint8)]).dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_stay_unrounded(dtype, no_warnings):
    array = (np.asarray(picture()) * 0.77).astype(dtype)
    pixels = decode_one(array)
    assert pixels.dtype == np.float32
    assert_array_equal(pixels, array.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32, np.float64, bool])
@pytest.mark.parametrize("value_range", [(0, 1), (0, 16), (-1, 1), [0, 65535]])
def test_value_range_maps_to_0_255(dtype, value_range):
    low, high = value_range
    values = np.linspace(max(low, 0), min(high, 255), 12).reshape(1, 3, 4).astype(dtype)
    (pixels,) = decode(values, ImageSpec(None, None, 1), value_range=value_range)
    assert pixels.dtype == np.float32
    expected = (values[0].astype(float) - low) * 255 / (high - low)
    assert_allclose(pixels[:, :, 0], expected, rtol=1e-6, atol=1e-5)


def test_white_is_255_exactly():
    pixels = decode_one(np.array([[0, 8, 16.0]]), ImageSpec(None, None, 1), value_range=(0, 16))
    assert pixels.ravel().tolist() == [0, 127.5, 255]


def _warnings_of(X, **how):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        as_images(X, **how)
    return [str(warning.message) for warning in caught]


UNIT = np.linspace(0, 1, 48).reshape(2, 4, 6)


@pytest.mark.parametrize(
    "X",
    [
        UNIT,
        UNIT.astype(np.float16),
        list(UNIT),
        list(UNIT) * 10,
        UNIT > 0.5,
        [UNIT[0] > 0.5, UNIT[1] > 0.5],
        np.full((1, 4, 4), 0.3),
        [np.zeros((4, 4)), UNIT[0]],
        np.ones((2, 4, 4), np.int64),
    ],
)
def test_one_warning_for_0_1_pixels(X):
    (message,) = _warnings_of(X)
    assert "look scaled to 0-1" in message
    assert "value_range=(0, 1)" in message
    assert not _warnings_of(X, value_range=(0, 1))


@pytest.mark.parametrize(
    ("X", "suggested"),
    [
        (np.full((1, 4, 4), 300, np.uint16), (0, 65535)),
        (np.full((1, 4, 4), 300, np.int32), (0, 300)),
        (np.full((1, 4, 4), -3, np.int32), (-3, -2)),
        (UNIT * 2 - 1, (-1, 1)),
        (UNIT * 1000.4, (0, 1001)),
        (UNIT - 7.5, (-8, -6)),
        ([np.zeros((4, 4), np.uint8), np.full((2, 2), 256, np.uint16)], (0, 65535)),
        ([np.zeros((4, 4), np.uint8), np.full((2, 2), 256.5)] * 5, (0, 257)),
    ],
)
def test_one_warning_for_pixels_beyond_0_255(X, suggested):
    (message,) = _warnings_of(X)
    assert "0 to 255 is expected" in message
    assert f"value_range={suggested}" in message
    # They are used as they are.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert as_images(X).dtype == np.float32
        pixels = decode(X, ImageSpec(None, None, 1))[-1]
    assert_allclose(pixels[:, :, 0], np.asarray(X[-1]), rtol=1e-6)


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((2, 4, 4)),
        np.zeros((2, 4, 4), bool),
        np.ones((2, 4, 4), np.uint8),
        np.full((2, 4, 4), 33),
        UNIT * 255,
        UNIT * 255.1,
        [UNIT[0], UNIT[1] * 200],
    ],
)
def test_no_warning_for_usual_pixels(X):
    assert not _warnings_of(X)


def test_warning_for_pixels_beyond_value_range():
    (message,) = _warnings_of(np.full((1, 4, 4), 200, np.uint8), value_range=(0, 1))
    assert "from 200 to 200, beyond value_range=(0, 1)" in message


# --- errors --------------------------------------------------------------------------------------

IMAGE = np.zeros((9, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ("photo.jpg", TypeError, r"got a single str\. Wrap it in a list: \[X\]"),
        (Path("photo.jpg"), TypeError, r"got a single \w+Path\. Wrap it in a list"),
        (b"\xff\xd8\xff", TypeError, r"got a single bytes\. Wrap it in a list"),
        (Image.new("L", (2, 2)), TypeError, r"got a single Image\. Wrap it in a list"),
        (IMAGE, ValueError, r"shape \(9, 9, 3\), which looks like a single image.*Wrap it"),
        (IMAGE[:, :, 0], ValueError, r"2-D array of shape \(9, 9\).*image_shape=\(28, 28\)"),
        (np.zeros(9), ValueError, r"an array of images 3-D or 4-D, but X has the shape \(9,\)"),
        ([1, 2, 3], ValueError, r"3-D or 4-D, but X has the shape \(3,\)"),
        (np.float64(3), ValueError, r"3-D or 4-D, but X has the shape \(\)"),
        (pd.Series([1.0, 2.0]), ValueError, r"3-D or 4-D, but X has the shape \(2,\)"),
        (3, TypeError, r"with an order and a length, got a int"),
        (None, TypeError, r"with an order and a length, got a NoneType"),
        ({"a.jpg"}, TypeError, r"with an order and a length, got a set\. Pass list\(X\)"),
        (iter(["a.jpg"]), TypeError, r"got a list_iterator\. Pass list\(X\)"),
        (Bunch(data=["a"], target=[0]), TypeError, r"entries 'data', 'target'.*X\['data'\]"),
        ([], ValueError, r"X holds 0 sample\(s\)"),
        (np.zeros((0, 5, 5, 3)), ValueError, r"0 sample\(s\) \(shape=\(0, 5, 5, 3\)\)"),
        (pd.Series([], dtype=object), ValueError, r"0 sample\(s\)"),
        (pd.DataFrame({"path": []}, dtype=object), ValueError, r"0 sample\(s\)"),
        (np.zeros((5, 0)), ValueError, r"0 feature\(s\) \(shape=\(5, 0\)\) while a minimum"),
        (np.zeros((2, 0, 5, 3)), ValueError, r"must have pixels.*\(2, 0, 5, 3\)"),
        ([IMAGE, IMAGE[:0]], ValueError, r"must have pixels, but row 1 has the shape \(0, 9, 3\)"),
        (["a.jpg", IMAGE], TypeError, r"mixes paths \(row 0\) and arrays \(row 1\)"),
        ([IMAGE, IMAGE, b"x"], TypeError, r"arrays \(row 0\) and encoded images.*\(row 2\)"),
        ([Image.new("L", (2, 2)), IMAGE], TypeError, r"PIL images \(row 0\) and arrays \(row 1\)"),
        (["a.jpg", 3], TypeError, r"mixes paths \(row 0\) and numbers \(row 1\)"),
        (["a.jpg", None, "b.jpg"], ValueError, r"lacks 1 of its 3 images: rows 1 are None"),
        (["a.jpg", np.nan], ValueError, r"lacks 1 of its 2 images: rows 1 are nan"),
        (pd.Series(["a", None, pd.NA], dtype="string"), ValueError, r"lacks 2.*rows 1, 2 are <NA>"),
        (pd.Series(["a.jpg", None]), ValueError, r"lacks 1 of its 2 images: rows 1 are"),
        (pl.Series(["a.jpg", None]), ValueError, r"lacks 1 of its 2 images: rows 1 are None"),
        ([None, None], ValueError, r"lacks 2 of its 2 images: rows 0, 1 are None"),
        ([pd.NaT, "a"], ValueError, r"rows 0 are NaT"),
        ([{"path": "a"}], TypeError, r"Row 0 is a 'dict': argument must be a string or a number"),
        ([object()], TypeError, r"X must hold paths, encoded images.*Row 0 is a 'object'"),
        (np.array([[1, {}]], object), TypeError, r"argument must be a string or a real number"),
        (scipy.sparse.eye(4).tocsr(), TypeError, r"X is a sparse matrix.*X\.toarray\(\)"),
        (np.zeros((2, 2, 9, 9, 3)), ValueError, r"X has the shape \(2, 2, 9, 9, 3\)"),
        ([np.zeros((1, 9, 9, 3))], ValueError, r"row 0 has the shape \(1, 9, 9, 3\)"),
        ([IMAGE, np.float64(3)], TypeError, r"mixes arrays \(row 0\) and numbers \(row 1\)"),
        (np.zeros((2, 9, 9, 2)), ValueError, r"1, 3 or 4 channels, but X.*with 2 channels_last"),
        ([IMAGE, np.zeros((9, 9, 5))], ValueError, r"row 1 has the shape \(9, 9, 5\), with 5"),
        (np.zeros((2, 3, 9, 9)), ValueError, r'elsewhere: pass data_format="channels_first"'),
        (np.zeros((2, 1, 9, 9)), ValueError, r'elsewhere: pass data_format="channels_first"'),
        ([np.zeros((3, 9, 9))], ValueError, r'elsewhere: pass data_format="channels_first"'),
        ([[1, 2], [3]], ValueError, r"The rows of X differ in length"),
        (_object_array([[1, 2], [3]]), ValueError, r"The rows of X differ in length"),
        ([np.zeros(3), np.zeros(4)], ValueError, r"The rows of X differ in length"),
        (np.zeros((2, 4, 4)) + 1j, ValueError, r"Complex data not supported: X has"),
        ([np.zeros((4, 4)) + 1j], ValueError, r"Complex data not supported: Row 0 of X has"),
        (np.array([b"abc"]), TypeError, r"\|S3, which loses the zeros"),
        (np.array([["a", "b"]]), ValueError, r"one column of images, got 2 columns"),
        (pd.DataFrame({"p": ["a"], "y": [1]}), ValueError, r"one column of images, got 2 columns"),
        (pl.DataFrame({"p": ["a"], "y": ["b"]}), ValueError, r"one column of images, got 2"),
        (np.zeros((2, 3, 3), "M8[s]"), TypeError, r"X must hold paths.*dtype datetime64\[s\]"),
    ],
)
def test_errors(X, error, message):
    with pytest.raises(error, match=message):
        as_images(X)


@pytest.mark.parametrize("shape", [(2, 9, 9, 3), (2, 9, 9, 1), (2, 9, 9, 4)])
def test_channels_last_given_as_channels_first(shape):
    with pytest.raises(ValueError, match='elsewhere: pass data_format="channels_last"'):
        as_images(np.zeros(shape), data_format="channels_first")
    with pytest.raises(ValueError, match='elsewhere: pass data_format="channels_last"'):
        as_images([np.zeros(shape[1:])], data_format="channels_first")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_pixels_that_are_no_numbers(bad):
    X = np.zeros((5, 4, 4))
    X[3, 1, 2] = bad
    for given_X in (X, list(X)):
        with pytest.raises(ValueError, match=r"X contains NaN, infinity or.*image of row 3"):
            as_images(given_X)
        with pytest.raises(ValueError, match="image of row 3"):
            as_images(given_X, value_range=(0, 1))


def test_nan_is_found_in_any_chunk(monkeypatch):
    monkeypatch.setattr("sklearn_cnnfeat._images.arrays._CHUNK_VALUES", 40)
    X = np.zeros((11, 4, 4))
    X[7] = np.nan
    with pytest.raises(ValueError, match="image of row 7"):
        as_images(X)
    X[7] = -5
    (message,) = _warnings_of(X)
    assert "from -5 to 0" in message


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"data_format": "NCHW"}, r"'channels_last' or 'channels_first'\. Got 'NCHW' instead"),
        ({"value_range": 255}, r"value_range must be a pair of numbers.*Got 255 instead"),
        ({"value_range": (1, 0)}, r"value_range must be a pair"),
        ({"value_range": (0, 1, 2)}, r"value_range must be a pair"),
        ({"value_range": (0, np.inf)}, r"value_range must be a pair"),
        ({"value_range": ("a", "b")}, r"value_range must be a pair"),
        ({"image_shape": 8}, r"image_shape must be \(height, width\).*Got 8 instead"),
        ({"image_shape": (64,)}, r"image_shape must be \(height, width\)"),
        ({"image_shape": (2, 2, 4, 4)}, r"image_shape must be \(height, width\)"),
        ({"image_shape": ("a", 8)}, r"image_shape must be \(height, width\)"),
        ({"image_shape": (8, 9)}, r"image_shape=\(8, 9\) does not fit X, whose 3 rows have 64"),
        ({"image_shape": (-1, 7)}, r"image_shape=\(-1, 7\) does not fit X"),
        ({"image_shape": (-1, -1)}, r"image_shape=\(-1, -1\) does not fit X"),
        ({"image_shape": (-2, 8)}, r"image_shape must be \(height, width\).*Got \(-2, 8\)"),
        ({"image_shape": (4, 8, -1)}, r"with 2 channels_last"),
    ],
)
def test_errors_of_parameters(how, message):
    with pytest.raises(ValueError, match=message):
        as_images(np.zeros((3, 64)), **how)


def test_image_shape_is_for_rows_of_numbers(files):
    for X, what in [(files, "paths"), ([b""], "encoded images"), ([picture()], "PIL images")]:
        with pytest.raises(ValueError, match=f"X holds {what}.*Leave it None"):
            as_images(X, image_shape=(8, 8))
    with pytest.raises(ValueError, match="X is a list of arrays"):
        as_images([IMAGE], image_shape=(8, 8))


def test_missing_files_are_listed_up_front(files, tmp_path):
    lost = [str(tmp_path / f"lost{i}.jpg") for i in range(7)]
    with pytest.raises(FileNotFoundError) as caught:
        as_images(files + lost).check()
    message = str(caught.value)
    assert message.startswith(f"7 of the 10 files in X cannot be found: {lost[0]!r}, ")
    assert "lost4" in message and "lost5" not in message
    assert f"Relative paths start at {os.getcwd()!r}" in message
    with pytest.raises(FileNotFoundError, match="1 of the 1"):
        as_images(["nul\0.jpg"]).check()
    with pytest.raises(ValueError, match=r"1 of its 4 paths are folders.*load_image_folder"):
        as_images([*files, tmp_path]).check()


# --- digests, names, threads ---------------------------------------------------------------------


def _digest(image, **how):
    images = as_images([image], **how)
    digest = images.digest(images.read(0))
    assert type(digest) is bytes and len(digest) == 32
    return digest


def test_digest_is_of_the_content(files, tmp_path):
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(Path(files[1]).read_bytes())
    assert _digest(files[1]) == _digest(copy) == _digest(copy.read_bytes())
    assert len({_digest(file) for file in files}) == 3
    assert _digest(files[0]) != _digest(files[0], value_range=(0, 255))


def test_digest_tells_all_apart_that_decodes_differently():
    array = np.arange(108, dtype=np.uint8).reshape(3, 12, 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = Image.open(io.BytesIO(encode(picture(), "PNG", exif=exif)))
    palette = picture().convert("P")
    other_palette = palette.copy()
    other_palette.putpalette(palette.getpalette()[::-1])
    digests = [
        _digest(array),
        _digest(array.reshape(12, 3, 3)),
        _digest(array.astype(np.float32)),
        _digest(array.view(np.int8) & 127),
        _digest(array, value_range=(0, 200)),
        _digest(array, value_range=(0, 201)),
        _digest(array, data_format="channels_first"),
        _digest(array.reshape(3, 36)),
        _digest(array.astype(np.uint16)),
        _digest(picture()),
        _digest(turned),
        _digest(palette),
        _digest(other_palette),
        _digest(picture().convert("L")),
        _digest(picture(36, 48)),
        _digest(encode(picture(), "PNG")),
    ]
    assert len(set(digests)) == len(digests)
    assert _digest(array) == _digest(array.copy(order="F")) == _digest(array[::-1].copy()[::-1])
    assert _digest(picture()) == _digest(picture())


def test_digest_of_integers_depends_on_how_they_are_decoded():
    # As uint8, resizing rounds; beside an image beyond 0..255 it does not.
    small, large = np.full((2, 4, 4), 7, np.int32)
    alone = as_images([small])
    with pytest.warns(UserWarning, match="0 to 255 is expected"):
        beside = as_images([small, large * 100])
    assert (alone.dtype, beside.dtype) == (np.uint8, np.float32)
    assert alone.digest(small) != beside.digest(small)


def test_fingerprint_changes_with_whatever_changes_a_pixel():
    specs = [
        ImageSpec(*size, channels, resize, interpolation)
        for size in [(20, 24), (24, 20), (None, None)]
        for channels in (1, 3)
        for resize in RESIZES
        for interpolation in INTERPOLATIONS
    ]
    assert len({spec.fingerprint() for spec in specs}) == len(specs) == len(set(specs))
    assert ImageSpec(9, 9, 3).fingerprint() == ImageSpec(9, 9, 3, max_pixels=5).fingerprint()
    assert Image.__version__ in ImageSpec(9, 9, 3).fingerprint()


def test_threads_agree_even_on_one_pil_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), "JPEG", exif=exif)
    expected = decode_one(data, SMALL)
    for _ in range(20):
        images = as_images([Image.open(io.BytesIO(data))] * 8)
        start = threading.Barrier(8)

        def work(i, images=images, start=start):
            start.wait()
            raw = images.read(i)
            return images.digest(raw), images.decode(raw, SMALL, "x")

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(work, range(8)))
        assert len({digest for digest, _ in results}) == 1
        for _, pixels in results:
            assert_array_equal(pixels, expected)


def test_images_survive_pickling(files):
    images = pickle.loads(pickle.dumps(as_images(pd.Series(files))))
    assert_array_equal(images.decode(images.read(0), OWN_SIZE, "x")[0, 0], [255, 0, 0])


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([1, 3]),
    resize=st.sampled_from(RESIZES),
    interpolation=st.sampled_from(INTERPOLATIONS),
    dtype=st.sampled_from([np.uint8, np.float32]),
    source=st.sampled_from([(), (1,), (3,), (4,)]),
)
def test_any_size_comes_out_right(
    width, height, target, channels, resize, interpolation, dtype, source
):
    spec = ImageSpec(*target, channels, resize, interpolation)
    array = np.full((height, width, *source), 200, dtype)
    pixels = decode_one(array, spec)
    assert pixels.shape == (*target, channels)
    assert pixels.dtype == dtype
    assert pixels.flags.c_contiguous
    # A filter of a constant is that constant, whatever is cut off or put around it.
    assert set(np.unique(np.round(pixels))) <= ({0, 200} if resize == "pad" else {200})
    assert np.round(pixels).max() == 200
