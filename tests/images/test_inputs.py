"""Images of every kind through the transformer; and what is no image, refused by name."""

import io
import os
import re
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image, ImageFile
from scipy.sparse import csr_array
from sklearn.datasets import load_digits, load_sample_images

from sklearn_cnnfeat import CNNFeatureTransformer
from sklearn_cnnfeat.exceptions import ImageError, UnreadableImageWarning

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
layers = keras.layers

N = 5
SIZE = (20, 24)


def _make_model(height, width, channels):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((height, width, channels)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="conv"),
        ],
        name=f"tiny_{channels}",
    )


@pytest.fixture(scope="module")
def model():
    return _make_model(*SIZE, 3)


@pytest.fixture(scope="module")
def gray_model():
    return _make_model(8, 8, 1)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (N, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def paths(pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    names = [str(folder / f"{i}.png") for i in range(N)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(name)
    return names


@pytest.fixture
def cnn(model):
    return CNNFeatureTransformer(model, "conv", "avg")


@pytest.fixture(scope="module")
def rows(model, pixels):
    """Return what Keras gives for the five images."""
    cut = keras.Model(model.inputs, model.get_layer("conv").output)
    return cut.predict(pixels.astype(np.float32), verbose=0).mean(axis=(1, 2))


def _encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


# --- the same five pictures through every door ----------------------------------------------------

DOORS = {
    "list of paths": lambda paths, pixels: paths,
    "tuple of paths": lambda paths, pixels: tuple(paths),
    "list of pathlib paths": lambda paths, pixels: [Path(path) for path in paths],
    "array of paths": lambda paths, pixels: np.array(paths),
    "object array of paths": lambda paths, pixels: np.array(paths, dtype=object),
    "column of paths": lambda paths, pixels: np.array(paths)[:, np.newaxis],
    "pandas Series of paths": lambda paths, pixels: pd.Series(paths),
    "pandas frame of paths": lambda paths, pixels: pd.DataFrame({"path": paths}),
    "polars Series of paths": lambda paths, pixels: pl.Series(paths),
    "polars frame of paths": lambda paths, pixels: pl.DataFrame({"path": paths}),
    "bytes": lambda paths, pixels: [_encode(image) for image in pixels],
    "pandas Series of bytes": lambda paths, pixels: pd.Series([_encode(i) for i in pixels]),
    "polars Series of bytes": lambda paths, pixels: pl.Series([_encode(i) for i in pixels]),
    "PIL images": lambda paths, pixels: [Image.fromarray(image) for image in pixels],
    "PIL images of files": lambda paths, pixels: [Image.open(path) for path in paths],
    "array": lambda paths, pixels: pixels,
    "list of arrays": lambda paths, pixels: list(pixels),
    "array of floats": lambda paths, pixels: pixels.astype(np.float64),
    "array of wide integers": lambda paths, pixels: pixels.astype(np.int64),
    "array in another order": lambda paths, pixels: np.asfortranarray(pixels),
    "with an alpha channel": lambda paths, pixels: np.concatenate(
        [pixels, np.full((N, *SIZE, 1), 7, np.uint8)], axis=3
    ),
    "nested lists": lambda paths, pixels: pixels.tolist(),
}


@pytest.mark.filterwarnings("error::UserWarning:sklearn_cnnfeat")
@pytest.mark.parametrize("door", DOORS)
def test_a_picture_is_the_same_through_every_door(door, cnn, rows, paths, pixels):
    X = DOORS[door](paths, pixels)
    features = cnn.fit(X).transform(X)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, rows, rtol=1e-5, atol=1e-6)
    # Fitted on one kind, it takes every other.
    np.testing.assert_array_equal(cnn.transform(pixels), features)


@pytest.mark.parametrize(
    ("value_range", "scale"), [((0, 1), lambda x: x / 255), ((-1, 1), lambda x: x / 127.5 - 1)]
)
def test_value_range(value_range, scale, model, rows, pixels):
    cnn = CNNFeatureTransformer(model, "conv", "avg", value_range=value_range)
    np.testing.assert_allclose(cnn.fit_transform(scale(pixels)), rows, rtol=1e-4, atol=1e-5)


def test_channels_first(model, rows, pixels):
    cnn = CNNFeatureTransformer(model, "conv", "avg", data_format="channels_first")
    first = np.moveaxis(pixels, -1, 1)
    for X in (first, list(first)):
        np.testing.assert_allclose(cnn.fit_transform(X), rows, rtol=1e-5, atol=1e-6)


def test_rows_of_arrays_do_not_depend_on_the_other_arrays(model):
    # Of another size than the network's, for resizing rounds whole numbers and not others.
    large = np.random.default_rng(0).integers(0, 256, (2 * SIZE[0] + 3, 2 * SIZE[1] + 5, 3))
    beyond = large + 1
    cnn = CNNFeatureTransformer(model, "conv", "avg").fit(large[np.newaxis])
    for X in (
        [large, large.astype(np.float32) / 2],
        [large.astype(np.uint8), large, large.astype(np.float32)],
        [beyond, large],
        np.stack([large, beyond]),
        da.from_array(np.stack([large, beyond]), chunks=(1, -1, -1, -1)),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The pixels in X run from 0 to 256")
            rows = np.asarray(cnn.transform(X))
            alone = [cnn.transform(np.asarray(image)[np.newaxis])[0] for image in X]
        np.testing.assert_array_equal(rows, alone)


@pytest.mark.parametrize("image_shape", [(*SIZE, 3), (*SIZE, -1)])
def test_flattened_color_images(image_shape, model, rows, pixels):
    X = pixels.reshape(N, -1)
    cnn = CNNFeatureTransformer(model, "conv", "avg", image_shape=image_shape).fit(X)
    np.testing.assert_allclose(cnn.transform(X), rows, rtol=1e-5, atol=1e-6)
    assert cnn.n_features_in_ == X.shape[1]
    np.testing.assert_array_equal(cnn.transform(X.tolist()), cnn.transform(X))


def test_digits(gray_model):
    digits = load_digits()
    cnn = CNNFeatureTransformer(
        gray_model, "conv", image_shape=(8, 8), value_range=(0, 16), engine="keras"
    )
    features = cnn.fit_transform(digits.data[:200])
    given = (digits.images[:200, :, :, np.newaxis] * (255 / 16)).astype(np.float32)
    expected = gray_model.predict(given, verbose=0).reshape(200, -1)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)
    # As images instead of rows, and as a data frame.
    images = CNNFeatureTransformer(gray_model, "conv", value_range=(0, 16), engine="keras")
    np.testing.assert_array_equal(images.fit_transform(digits.images[:200]), features)
    frame = load_digits(as_frame=True).data[:200]
    np.testing.assert_array_equal(cnn.fit_transform(frame), features)
    assert list(cnn.feature_names_in_) == list(frame.columns)
    # Fitted anew on rows without names, it asks for none.
    cnn.fit(digits.data[:200].tolist())
    assert not hasattr(cnn, "feature_names_in_")
    assert not hasattr(cnn, "n_features_in_")
    np.testing.assert_array_equal(cnn.transform(digits.data[:200]), features)


def test_gray_becomes_color_and_color_gray(model, gray_model, pixels):
    gray = pixels[..., 0]
    cnn = CNNFeatureTransformer(model, "conv", "avg").fit(gray)
    color = np.repeat(gray[..., np.newaxis], 3, axis=3)
    np.testing.assert_array_equal(cnn.transform(gray), cnn.transform(color))
    np.testing.assert_array_equal(cnn.transform(gray[..., np.newaxis]), cnn.transform(color))

    of_color = CNNFeatureTransformer(gray_model, "conv").fit_transform(pixels)
    by_pillow = [Image.fromarray(image).convert("L") for image in pixels]
    of_gray = CNNFeatureTransformer(gray_model, "conv").fit_transform(by_pillow)
    np.testing.assert_array_equal(of_color, of_gray)


def test_images_of_different_sizes_and_modes(cnn, model):
    """Each row is that of the image on its own, resized by Pillow."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    X = [
        photos[0].convert("L"),
        photos[0].resize((31, 400)),
        photos[1].convert("CMYK"),
        photos[1].convert("P"),
        photos[0].convert("RGBA").resize((2, 2)),
        photos[1].resize((1, 1)),
        photos[0].convert("1").resize((24, 20)),
    ]
    features = cnn.fit_transform(X)
    by_hand = [
        np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))
        for image in X
    ]
    np.testing.assert_array_equal(features, cnn.transform(np.stack(by_hand)))
    alone = np.vstack([cnn.transform([image]) for image in X])
    np.testing.assert_array_equal(features, alone)


def test_order_and_duplicates(cnn, paths):
    once = cnn.fit_transform(paths)
    order = np.random.default_rng(1).integers(0, N, 40)
    np.testing.assert_array_equal(cnn.transform([paths[i] for i in order]), once[order])
    np.testing.assert_array_equal(
        cnn.transform(pd.Series(paths, index=list("cabed"))[list("abcde")]), once[[1, 2, 0, 4, 3]]
    )


def test_relative_and_home_paths(cnn, paths, monkeypatch):
    monkeypatch.chdir(os.path.dirname(paths[0]))
    expected = cnn.fit_transform(paths)
    np.testing.assert_array_equal(cnn.transform([f"{i}.png" for i in range(N)]), expected)


# --- images that cannot be read -------------------------------------------------------------------


@pytest.fixture
def bad_paths(paths, tmp_path):
    """Return paths of images among which some are none, and the positions of those."""
    good = open(paths[0], "rb").read()
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    contents = {
        "text.jpg": b"this is no picture",
        "empty.png": b"",
        "half.jpg": buffer.getvalue()[: len(buffer.getvalue()) // 2],
        "half.png": good[: len(good) // 2],
    }
    mixed = list(paths)
    for i, (name, content) in enumerate(contents.items()):
        (tmp_path / name).write_bytes(content)
        mixed.insert(2 * i, str(tmp_path / name))
    mixed.append(str(tmp_path / "missing.jpg"))
    mixed.append(str(tmp_path))
    return mixed, [0, 2, 4, 6, len(mixed) - 2, len(mixed) - 1]


def test_nan_for_images_that_cannot_be_read(model, paths, bad_paths):
    mixed, bad = bad_paths
    cnn = CNNFeatureTransformer(model, ["conv", 0], "avg", on_error="nan").fit(mixed)
    with pytest.warns(UnreadableImageWarning) as caught:
        features = cnn.transform(mixed)
    assert len(features) == len(mixed)
    missing = np.isnan(features)
    assert missing[bad].all()
    assert missing.sum() == missing[bad].size
    np.testing.assert_array_equal(np.delete(features, bad, axis=0), cnn.transform(paths))
    # One warning, which names each file and what is wrong with it.
    (warning,) = [w for w in caught if w.category is UnreadableImageWarning]
    message = str(warning.message)
    assert message.startswith(f"{len(bad)} of {len(mixed)} images could not be read")
    for i in bad[:5]:
        assert os.path.basename(mixed[i]) in message


def test_all_images_unreadable(model, tmp_path):
    X = [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    cnn = CNNFeatureTransformer(model, "conv", "avg", on_error="nan").fit(X)
    with pytest.warns(UnreadableImageWarning, match="2 of 2 images could not be read"):
        assert np.isnan(cnn.transform(X)).all()


def test_no_warning_without_unreadable_images(model, paths):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadableImageWarning)
        CNNFeatureTransformer(model, "conv", "avg", on_error="nan").fit_transform(paths)


@pytest.mark.parametrize("position", [0, 2, 4, 6])
def test_a_file_that_is_no_image_is_named(position, cnn, bad_paths):
    mixed, _ = bad_paths
    X = [mixed[1], mixed[position], mixed[3]]
    cnn.fit(X)
    with pytest.raises(ImageError, match=re.escape(mixed[position])) as caught:
        cnn.transform(X)
    assert caught.value.name == mixed[position]


def test_missing_files_and_folders_are_refused_before_any_work(cnn, paths, bad_paths):
    mixed, _ = bad_paths
    for X, error, message in (
        (
            [paths[0], mixed[-2]],
            FileNotFoundError,
            r"1 of the 2 files in X cannot be found.*missing",
        ),
        ([paths[0], mixed[-1]], ValueError, "folders or not regular files.*load_image_folder"),
    ):
        with pytest.raises(error, match=message):
            cnn.fit(X)
        with pytest.raises(error, match=message):
            cnn.fit(paths).transform(X)


def test_a_bad_image_in_memory_is_named_by_its_position(cnn, pixels):
    encoded = [_encode(image) for image in pixels]
    encoded[3] = encoded[3][:50]
    with pytest.raises(ImageError, match="'image 3'"):
        cnn.fit(encoded).transform(encoded)


def test_a_large_image_is_refused_from_its_header(model, tmp_path, monkeypatch):
    """A bomb: 20,000 x 20,000 pixels in 49 kB, refused by a limit of its own and never decoded."""
    path = str(tmp_path / "bomb.png")
    Image.new("1", (20_000, 20_000)).save(path)
    cnn = CNNFeatureTransformer(model, "conv", "avg").fit([path])
    decoded = []
    with monkeypatch.context() as patched:
        patched.setattr(ImageFile.ImageFile, "load", decoded.append)
        with pytest.raises(ImageError, match="20000 x 20000 pixels, more than max_pixels="):
            cnn.transform([path])
    assert not decoded
    small = CNNFeatureTransformer(model, "conv", "avg", max_pixels=1000)
    with pytest.raises(ImageError, match="40 x 30 pixels, more than max_pixels=1000"):
        small.fit_transform([_encode(np.zeros((30, 40), np.uint8))])


# --- what is no sequence of images ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, "0 sample"),
        (np.empty((0, 20, 24, 3)), ValueError, "0 sample"),
        (pd.Series([], dtype=object), ValueError, "0 sample"),
        (pd.DataFrame({"path": []}), ValueError, "0 sample"),
        ("photo.jpg", TypeError, r"got a single str\. Wrap it in a list: \[X\]"),
        (b"\xff\xd8\xff", TypeError, r"got a single bytes\. Wrap it in a list"),
        (Image.new("RGB", (8, 8)), TypeError, r"got a single Image\. Wrap it in a list"),
        (np.zeros((20, 24, 3)), ValueError, r"looks like a single image.*Wrap it in a list"),
        (np.full((2, 20, 24, 3), np.nan), ValueError, "contains NaN"),
        (np.full((2, 20, 24, 3), np.inf), ValueError, "infinity"),
        (np.zeros((2, 20, 24, 5)), ValueError, "have 1, 3 or 4 channels.*with 5 channels_last"),
        (np.zeros((2, 3, 20, 24)), ValueError, r'data_format="channels_first"'),
        (np.zeros((2, 2, 20, 24, 3)), ValueError, r"3-D or 4-D, but X has the shape \(2, 2, 20"),
        (np.zeros((4, 480)), ValueError, r"flattened images.*image_shape=\(28, 28\)"),
        (csr_array(np.eye(4)), TypeError, r"sparse matrix.*X\.toarray\(\)"),
        ([object(), object()], TypeError, "paths, encoded images.*Row 0 is a 'object'"),
        (np.array([{}, [], 3], dtype=object), TypeError, "Row 0 is a 'dict'"),
        (["a.jpg", None], ValueError, "lacks 1 of its 2 images: rows 1 are None"),
        (pd.Series(["a.jpg", np.nan]), ValueError, "lacks 1 of its 2 images"),
        (["a.jpg", b"bytes"], TypeError, r"mixes paths \(row 0\) and encoded images"),
        ({"data": [1]}, TypeError, r"entries 'data'.*X\['data'\]"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), ValueError, "one column of images, got 2"),
        (None, TypeError, "sequence of images.*NoneType"),
        ((str(i) for i in range(3)), TypeError, r"generator.*Pass list\(X\)"),
        (7, TypeError, "length, got a int.$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_sequence_of_images(X, error, message, cnn, pixels):
    with pytest.raises(error, match=message):
        cnn.fit(X)
    if not hasattr(X, "__next__"):
        with pytest.raises(error, match=message):
            cnn.fit(pixels).transform(X)


def test_values_that_look_scaled_are_warned_of(cnn, pixels):
    with pytest.warns(UserWarning, match=r"look scaled to 0-1.*value_range=\(0, 1\)"):
        cnn.fit(pixels / 255)
    with pytest.warns(UserWarning, match=r"0 to 255 is expected.*value_range=\(0, 65535\)"):
        cnn.fit(pixels.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("X", "value_range"),
    [((np.arange(2 * 64) % 2).reshape(2, 8, 8), (0, 1)), (load_digits().images[:3], (0, 16))],
)
def test_numbers_far_below_255_are_warned_of_once(X, value_range, gray_model):
    cnn = CNNFeatureTransformer(gray_model, "conv", "avg")
    with pytest.warns(UserWarning) as caught:
        cnn.fit_transform(X)
    (message,) = [str(w.message) for w in caught if w.category is UserWarning]
    assert f"value_range={value_range}" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cnn.set_params(value_range=value_range).fit_transform(X)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("cached", [False, True])
def test_missing_images_have_rows_of_nan_on_request(model, paths, tmp_path, missing, cached):
    cnn = CNNFeatureTransformer(
        model, "conv", "avg", on_error="nan", cache=tmp_path / "cache" if cached else None
    )
    X = pd.Series([paths[0], missing, paths[1]], dtype=object)
    with pytest.warns(UnreadableImageWarning, match="image 1.*it is missing"):
        features = cnn.fit_transform(X)
    assert np.isnan(features[1]).all()
    np.testing.assert_array_equal(features[[0, 2]], cnn.transform(paths[:2]))
    encoded = [Path(paths[0]).read_bytes(), missing]
    with pytest.warns(UnreadableImageWarning):
        np.testing.assert_array_equal(cnn.transform(encoded)[0], features[0])
    with pytest.raises(ValueError, match=r"lacks 1 of its 3 images.*on_error='nan'"):
        cnn.set_params(on_error="raise").fit(X)


@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        ((8, 9), r"image_shape=\(8, 9\) does not fit X.*64"),
        ((8,), r"image_shape must be \(height, width\)"),
        ((-1, -1), r"image_shape"),
        ((8, 8, 2), r"image_shape"),
    ],
)
def test_image_shapes_that_do_not_fit(image_shape, message, gray_model):
    digits = load_digits().data[:10]
    with pytest.raises(ValueError, match=message):
        CNNFeatureTransformer(gray_model, "conv", image_shape=image_shape).fit(digits)


def test_image_shape_is_for_rows_of_numbers(gray_model, paths, pixels):
    cnn = CNNFeatureTransformer(gray_model, "conv", image_shape=(8, 8))
    with pytest.raises(ValueError, match=r"image_shape=\(8, 8\) reshapes rows of numbers"):
        cnn.fit(paths)
    with pytest.raises(ValueError, match="4"):
        cnn.fit(pixels)
    digits = load_digits().data[:10]
    with pytest.raises(ValueError, match="64 features"):
        cnn.fit(digits).transform(digits[:, :60])


# --- more than fits -------------------------------------------------------------------------------


def test_features_that_cannot_fit_are_refused_before_anything_runs(model, paths):
    n_images = 10**7
    cnn = CNNFeatureTransformer(model, "conv", on_error="nan").fit(paths)
    X = ["/no/such/file.jpg"] * n_images * 4
    with pytest.raises(MemoryError, match=r"40,000,000 images.*GB.*pooling='avg' gives 4 columns"):
        cnn.transform(X)


def test_a_missing_file_among_many_is_found_before_images_are_opened(cnn, paths, monkeypatch):
    X = paths * 4000
    X[-1] = "/no/such/file.jpg"
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args) or open_image(*args))
    with pytest.raises(FileNotFoundError, match="1 of the 20000 files"):
        cnn.fit(X)
    assert len(opened) <= 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
@pytest.mark.timeout(60)
def test_a_pipe_is_no_image_and_is_not_waited_for(model, paths, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    cnn = CNNFeatureTransformer(model, "conv", "avg", on_error="nan").fit(paths)
    with pytest.warns(UnreadableImageWarning, match="not a regular file"):
        features = cnn.transform([paths[0], str(tmp_path / "pipe.jpg")])
    assert np.isnan(features).all(axis=1).tolist() == [False, True]


def test_a_model_of_monstrous_pictures_is_refused(tmp_path):
    keras.Sequential([keras.Input((20_000, 20_000, 3)), layers.Conv2D(2, 3, name="conv")]).save(
        tmp_path / "large.keras"
    )
    with pytest.raises(ValueError, match=r"20000, 20000, 3.*more than 178,956,970 pixels"):
        CNNFeatureTransformer(tmp_path / "large.keras", "conv", "avg").fit(
            np.zeros((2, 8, 8, 3), np.uint8)
        )


@pytest.mark.parametrize("cache", ["", "file"])
def test_what_cannot_be_a_cache_is_told_by_fit(model, pixels, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"names no folder|must be a folder"):
        CNNFeatureTransformer(model, "conv", "avg", cache=cache).fit(pixels)
