"""The page to explore: what is in the file."""

import os
import re
import shutil

import numpy as np
import pytest
from explored import HOSTILE, WORSE, N, Page
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from small_network import count_computed

from sklearn_cnnfeat import CNNFeatureTransformer, decision_map, explore


def test_one_file_that_needs_nothing_else(path, page):
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)\w+:?//""", text)
    assert [tag for tag, attributes in page.tags if "src" in attributes] == []
    links = [attributes["href"] for tag, attributes in page.tags if "href" in attributes]
    assert links == ["data:,"]


def test_names_are_text(page, data):
    # One script for facts, three for pictures and maps, and the program: no more.
    assert [tag for tag, _ in page.tags].count("script") == 5
    assert [tag for tag, _ in page.tags].count("img") == 0
    facts = page.facts
    assert facts["names"] == [os.path.basename(path) for path in data[1]]
    assert facts["classes"] == sorted([HOSTILE, WORSE, "bees"])


def test_predictions_and_points(page, data, pipe):
    _, photos, y = data
    facts = page.facts
    names = np.array(facts["classes"])
    assert (names[facts["truth"]] == y).all()
    assert (names[facts["predicted"]] == pipe.predict(photos)).all()
    probabilities = pipe.predict_proba(photos).max(axis=1)
    assert facts["scoreName"] == "probability"
    np.testing.assert_allclose(facts["scores"], probabilities, atol=0.0006)  # three digits
    features = pipe[:-1].transform(photos)
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(features).kneighbors()[1]
    assert [one[0] for one in facts["neighbors"]] == nearest[:, 0].tolist()
    assert np.min(facts["points"]) == 0 and np.max(facts["points"]) == 1


def test_decision_maps_are_exact(page, data, pipe):
    _, photos, _ = data
    predicted = pipe.predict(photos)
    for i in (0, 4, 17):
        expected = decision_map(pipe, photos[i], predicted[i]).map
        height, width, limit = page.facts["decisions"][i]
        assert (height, width) == expected.shape
        values = np.frombuffer(page.maps("maps", i)[: height * width], np.int8)
        # One of 254 steps, and a limit of three digits.
        tolerance = np.abs(expected).max() * (0.5 / 127 + 0.005)
        shown = values.reshape(height, width) * limit / 127
        np.testing.assert_allclose(shown, expected, atol=tolerance)


def test_feature_maps(page, data):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "one", pooling=None, verbose=0)
    maps = cnn.fit_transform(photos[:5])
    facts = page.facts
    assert facts["layers"] == ["one", "three"] and facts["widths"] == [4, 16]
    height, width = facts["shapes"][0]
    # 30 x 30 positions, as the means of 2 x 2 blocks
    assert (height, width) == (15, 15)
    before = np.prod(facts["decisions"][4][:2])
    content = page.maps("maps", 4)
    stored = np.frombuffer(content, np.uint8)[before:][: 4 * 15 * 15].reshape(-1, 15, 15)
    assert len(content) == before + 4 * 15 * 15 + 8 * np.prod(facts["shapes"][1])
    channels = facts["channels"][4][0]
    assert len(stored) == len(channels) == 4
    strength = np.abs(maps[4]).mean(axis=(0, 1))
    assert channels == np.argsort(-strength, kind="stable").tolist()
    for one, channel, peak in zip(stored, channels, facts["peaks"][4][0], strict=True):
        small = maps[4, ..., channel].reshape(15, 2, 15, 2).mean(axis=(1, 3))
        expected = 255 * small / small.max() if small.max() > 0 else small
        np.testing.assert_allclose(one, expected, atol=0.51)
        assert peak == pytest.approx(maps[4, ..., channel].max(), rel=0.006)
    assert facts["details"] == [4, 7]
    every = np.frombuffer(page.maps("details", 0), np.uint8)
    assert len(every) == 4 * 15 * 15 + 16 * np.prod(facts["shapes"][1])


def test_photographs_are_small_webp_files(page, data):
    from io import BytesIO

    with Image.open(BytesIO(page.line("photos", 3))) as image:
        assert image.format == "WEBP"
        with Image.open(data[1][3]) as original:
            assert image.size == original.size  # smaller than what pages hold
            difference = np.subtract(image.convert("RGB"), original.convert("RGB"), dtype=float)
            assert np.abs(difference).mean() < 12


def test_a_transformer_alone_and_a_regressor(data, tmp_path):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    alone = Page(explore(cnn, photos, to=tmp_path / "a.html").read_text(encoding="utf-8"))
    assert alone.facts["predicted"] is None and alone.facts["truth"] is None
    assert "need a pipeline" in alone.facts["decisionNote"]
    values = np.arange(N) / 7
    regressor = make_pipeline(cnn, Ridge()).fit(photos, values)
    page = Page(explore(regressor, photos, values, tmp_path / "b.html").read_text("utf-8"))
    expected = [f"{value:.4g}" for value in regressor.predict(photos)]
    assert page.facts["values"] == expected
    assert page.facts["targets"] == [f"{value:.4g}" for value in values]
    pairs = np.column_stack([values, -values])
    both = make_pipeline(cnn, Ridge()).fit(photos, pairs)
    page = Page(explore(both, photos, to=tmp_path / "c.html").read_text("utf-8"))
    first, second = both.predict(photos)[0]
    assert page.facts["values"][0] == f"{first:.4g}, {second:.4g}"


def test_curved_classifiers_have_no_decision_maps(data, tmp_path):
    network, photos, y = data
    cnn = CNNFeatureTransformer(network, "three", "flatten", verbose=0)
    pipe = make_pipeline(cnn, SVC()).fit(photos, y)
    page = Page(explore(pipe, photos, y, tmp_path / "a.html").read_text(encoding="utf-8"))
    assert set(map(str, page.facts["decisions"])) == {"None"}
    assert "SVC, is no linear model" in page.facts["decisionNote"]


@pytest.mark.parametrize("n", [1, 2])
def test_few_photographs_and_one_class(data, pipe, tmp_path, n):
    page = Page(
        explore(pipe, data[1][:n], data[2][:n], tmp_path / "a.html").read_text(encoding="utf-8")
    )
    assert len(page.facts["points"]) == n
    assert [len(one) for one in page.facts["neighbors"]] == [n - 1] * n


def test_unreadable_photographs_are_left_out(data, tmp_path):
    network, photos, y = data
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    paths = np.array([str(broken), *photos[:6]])
    cnn = CNNFeatureTransformer(network, "three", "avg", on_error="nan", verbose=0)
    pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos, y)
    with pytest.warns(UserWarning, match="1 of 7 photographs cannot be read"):
        to = explore(pipe, paths, y[:7], tmp_path / "a.html", details=[0, 1])
    facts = Page(to.read_text(encoding="utf-8")).facts
    assert facts["names"] == [os.path.basename(path) for path in photos[:6]]
    assert np.array(facts["classes"])[facts["truth"]].tolist() == y[1:7].tolist()
    assert facts["details"] == [0]  # that is position 1; the unreadable one has no maps
    with (
        pytest.warns(UserWarning, match="broken"),
        pytest.raises(ValueError, match="None of the photographs can be read"),
    ):
        explore(pipe, [str(broken)], to=tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_what_cannot_be_written(data, pipe, tmp_path):
    _, photos, y = data
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        explore(pipe, photos, y, tmp_path / "no" / "page.html")
    with pytest.raises(ValueError, match="one label per photograph"):
        explore(pipe, photos, y[1:], tmp_path / "page.html")
    with pytest.raises(ValueError, match="X has 30 photographs"):
        explore(pipe, photos, y, tmp_path / "page.html", details=[30])
    with pytest.raises(ValueError, match="no photograph"):
        explore(pipe, photos[:0], to=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_names_are_paths_from_the_folder_of_all(data, pipe, tmp_path):
    _, photos, y = data
    some = photos[:4].copy()
    for k, place in enumerate(("a/b", "a", "c", "c")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        some[k] = shutil.copy(photos[k + 4], tmp_path / place)
    to = explore(pipe, some, y[4:8], tmp_path / "page.html")
    expected = [os.path.relpath(path, tmp_path) for path in some]
    assert Page(to.read_text("utf-8")).facts["names"] == expected
    assert str(tmp_path) not in to.read_text("utf-8")


def test_thousands_of_classes(data, pipe, tmp_path):
    _, photos, _ = data
    many = np.tile(photos, 70)
    names = [f"class {k} & <b>" for k in range(len(many))]
    facts = Page(explore(pipe, many, names, tmp_path / "a.html").read_text("utf-8")).facts
    assert len(facts["classes"]) == 2100 + 3
    assert [facts["classes"][k] for k in facts["truth"]] == names


def test_classes_that_are_numbers_keep_their_order(data, tmp_path):
    network, photos, _ = data
    y = np.arange(N) % 12
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos, y)
    facts = Page(explore(pipe, photos, y, tmp_path / "a.html").read_text("utf-8")).facts
    assert facts["classes"] == [str(k) for k in range(12)]
    assert facts["predicted"] == pipe.predict(photos).tolist()


def test_photographs_that_have_vanished(data, pipe, tmp_path):
    _, photos, y = data
    some = photos[:4].copy()
    some[1] = shutil.copy(photos[5], tmp_path / "gone.jpg")
    (tmp_path / "gone.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        explore(pipe, some, y[:4], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_photographs_that_vanish_meanwhile(data, pipe, tmp_path, monkeypatch):
    """Between the network and the small pictures: nothing is written, and the file is named."""
    from sklearn_cnnfeat._inspection.one_pass import RowsAndMaps

    _, photos, y = data
    some = photos[:4].copy()
    some[1] = shutil.copy(photos[5], tmp_path / "gone.jpg")
    run = RowsAndMaps.run

    def run_and_lose(self, *arguments):
        run(self, *arguments)
        (tmp_path / "gone.jpg").unlink()

    monkeypatch.setattr(RowsAndMaps, "run", run_and_lose)
    with pytest.raises(Exception, match=r"gone\.jpg"):
        explore(pipe, some, y[:4], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_one_class(data, tmp_path):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0).fit(photos)
    facts = Page(explore(cnn, photos, ["ants"] * N, tmp_path / "a.html").read_text("utf-8")).facts
    assert facts["classes"] == ["ants"] and set(facts["truth"]) == {0}
    assert facts["predicted"] is None


def test_bad_methods_are_noticed_before_the_network_runs(data, tmp_path, monkeypatch):
    network, photos, _ = data
    computed = count_computed(monkeypatch)
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    with pytest.raises(ValueError, match="method must be"):
        explore(cnn, photos, to=tmp_path / "a.html", method="umap")
    with pytest.raises(ValueError, match="needs at least 4 photographs, and there are 3"):
        explore(cnn, photos[:3], to=tmp_path / "a.html", method="tsne")
    with pytest.raises(ValueError, match="pooling=None gives maps"):
        maps = CNNFeatureTransformer(network, "three", None, verbose=0)
        explore(maps, photos, to=tmp_path / "a.html")
    assert computed == []


def test_inside_a_notebook(data, pipe, tmp_path, monkeypatch):
    """A notebook shows the page by its path from the notebook's folder."""
    display = pytest.importorskip("IPython.display")
    _, photos, y = data
    monkeypatch.chdir(tmp_path)
    page = explore(pipe, photos[:4], y[:4], "page.html")
    html = display.IFrame(page, "100%", 700)._repr_html_()
    assert 'src="page.html"' in html and 'width="100%"' in html and 'height="700"' in html
