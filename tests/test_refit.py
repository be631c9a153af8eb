"""What a change of parameters does to a fitted transformer, and what a failed fit leaves."""

import os
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer, FeatureCache
from sklearn_cnnfeat.exceptions import ImageError, LayerNotFoundError, UnreadableImageWarning

N = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture
def cnn(network, files):
    return CNNFeatureTransformer(network, "two", "avg").fit(files)


def snapshot(cnn):
    return {name: id(value) for name, value in vars(cnn).items() if name.endswith("_")}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layer": "nowhere"}, LayerNotFoundError),
        ({"layer": ["one", 1]}, ValueError),
        ({"model": "/no/such/file.keras"}, FileNotFoundError),
        ({"pooling": lambda maps: None}, ValueError),
        ({"input_size": (32, 33)}, ValueError),
        ({"formats": ("jpeg", "heic")}, ValueError),
        ({"cache": ""}, ValueError),
    ],
    ids=["layer", "layers", "model", "pooling", "input_size", "formats", "cache"],
)
@pytest.mark.sampled(3)
def test_a_failed_fit_leaves_the_transformer_as_it_was(cnn, files, changes, error):
    expected = cnn.transform(files)
    before = snapshot(cnn)
    cnn.set_params(**changes)
    with pytest.raises(error):
        cnn.fit(pd.DataFrame({"photo": files}))
    assert snapshot(cnn) == before
    assert not hasattr(cnn, "feature_names_in_")
    cnn.set_params(formats=None, cache=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(cnn.transform(files), expected)
    assert len(cnn.get_feature_names_out()) == expected.shape[1]


def test_a_failed_first_fit_leaves_it_unfitted(network, files):
    cnn = CNNFeatureTransformer(network, "nowhere")
    before = dict(vars(cnn))
    with pytest.raises(LayerNotFoundError):
        cnn.fit(files)
    assert vars(cnn) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": "one"},
        {"pooling": "max"},
        {"resize": "crop"},
        {"interpolation": "nearest"},
        {"decode": "fast"},
        {"value_range": (0, 510)},
        {"preprocessing": "tf"},
        {"precision": "bfloat16"},
        {"engine": "keras"},
        {"random_state": 1},
        {"data_format": "channels_first"},
    ],
    ids=str,
)
def test_parameters_that_decide_values_act_at_the_next_fit(cnn, files, changes):
    expected = cnn.transform(files)
    names = cnn.get_feature_names_out()
    (name,) = changes
    fitted = cnn.get_params()[name]
    cnn.set_params(**changes)
    with pytest.warns(UserWarning, match=rf"act at the next fit: {name}=.*\(at fit: ") as caught:
        np.testing.assert_array_equal(cnn.transform(files), expected)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(cnn.get_feature_names_out(), names)
    cnn.set_params(**{name: fitted})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cnn.transform(files)


def test_a_changed_model_acts_at_the_next_fit(network, files, tmp_path):
    import keras

    other = save_network(tmp_path / "other.keras", seed=5)
    for fitted, changed in (
        (network, other),
        (network, keras.saving.load_model(network)),
        (keras.saving.load_model(network), other),
    ):
        cnn = CNNFeatureTransformer(fitted, "two", "avg").fit(files)
        expected = cnn.transform(files)
        cnn.set_params(model=changed)
        with pytest.warns(UserWarning, match=r"act at the next fit: model="):
            np.testing.assert_array_equal(cnn.transform(files), expected)


def test_a_list_changed_in_place_is_noticed(network, files):
    layers = ["one", "two"]
    cnn = CNNFeatureTransformer(network, layers, "avg").fit(files)
    layers.append("three")
    with pytest.warns(UserWarning, match="act at the next fit: layer="):
        assert cnn.transform(files).shape == (N, 12)


def test_copies_do_not_warn(network, files):
    import keras

    layers = ["one", "two"]
    for model in (network, keras.saving.load_model(network)):
        cnn = CNNFeatureTransformer(model, layers, "avg", input_size=[32, 32]).fit(files)
        copied = pickle.loads(pickle.dumps(cnn))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(copied.transform(files), cnn.transform(files))


def test_a_pickle_of_an_earlier_version_is_not_fitted(cnn, files):
    del cnn._extractor
    with pytest.raises(NotFittedError):
        cnn.transform(files)
    assert cnn.fit_transform(files).shape == (N, 8)


def test_other_parameters_act_at_once(cnn, files, tmp_path):
    expected = cnn.transform(files)
    cnn.set_params(n_jobs=2, batch_size=3, cache=tmp_path / "cache", trusted=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cnn.transform(files), expected)
    assert FeatureCache(tmp_path / "cache").info().rows == N
    cnn.set_params(cache=None, max_pixels=10)
    with pytest.raises(ImageError, match="max_pixels=10"):
        cnn.transform(files)
    cnn.set_params(max_pixels=10**6, formats=["png"])
    with pytest.raises(ImageError, match="it is a jpeg image"):
        cnn.transform(files)
    cnn.set_params(on_error="nan")
    with pytest.warns(UnreadableImageWarning) as caught:
        assert np.isnan(cnn.transform(files)).all()
    assert caught[0].filename == __file__


def test_verbose_acts_at_once(cnn, files, capsys):
    cnn.transform(files)
    assert "features" not in capsys.readouterr().err
    cnn.set_params(verbose=1).transform(files)
    assert "features" in capsys.readouterr().err


def test_warnings_point_at_the_users_line(network, files, tmp_path):
    """In pipelines too, whose frames lie between."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photograph")
    X = [*files, os.fspath(broken)]
    cnn = CNNFeatureTransformer(network, "two", "avg", on_error="nan", cache=tmp_path / "cache")
    pipeline = make_pipeline(cnn, StandardScaler())
    for call in (
        lambda: cnn.fit_transform(X),
        lambda: cnn.transform(X),
        lambda: pipeline.fit(X),
        lambda: pipeline.fit_transform(X),
        lambda: cnn.fit_transform(np.full((2, 32, 32, 3), 0.5)),
        lambda: CNNFeatureTransformer(
            network, "two", "avg", preprocessing=np.sqrt, cache=tmp_path / "cache"
        ).fit(files),
    ):
        with pytest.warns(UserWarning) as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}
