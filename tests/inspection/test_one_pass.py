"""Pages and examples send each photograph through the network once, and hold few maps at a time."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_network import count_computed, save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer, decision_map, explore
from sklearn_cnnfeat._inspection import one_pass
from sklearn_cnnfeat._inspection.one_pass import RowsAndMaps
from sklearn_cnnfeat._inspection.page_maps import Details
from sklearn_cnnfeat._transformer import extractor_for

N = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photos = np.array(save_photos(folder / "all", N))
    return save_network(folder / "small.keras"), photos, np.array(["china", "flower"] * (N // 2))


def facts_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="facts">(.*)</script>', text)[1])


def gathered(cnn, photos, layers=()):
    """Return rows and maps of the photographs, put together from what comes in chunks."""
    passing = RowsAndMaps(*extractor_for(cnn, photos), layers)
    rows, maps, sizes = {}, {}, []

    def take(positions, some, some_maps):
        sizes.append(len(positions))
        for k, i in enumerate(positions.tolist()):
            rows[i] = some[k].copy()
            maps[i] = [values[k].copy() for values in some_maps]

    passing.run(take, "test")
    order = sorted(rows)
    maps = [np.stack([maps[i][k] for i in order]) for k in range(len(passing.layers))]
    return passing, np.stack([rows[i] for i in order]), maps, sizes


def strongest_first(maps):
    """Pool by hand: a callable that takes (n, height, width, channels)."""
    return np.sort(maps.reshape(len(maps), -1), axis=1)[:, -5:]


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten", "spp", strongest_first])
def test_rows_are_those_of_transform_and_maps_are_maps(data, pooling, monkeypatch):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, ["two", "mean"], pooling, verbose=0).fit(photos)
    expected = cnn.transform(photos)
    computed = count_computed(monkeypatch)
    passing, rows, maps, _ = gathered(cnn, photos, ["one", 3, "two"])
    assert sorted(computed) == list(range(N)), "one pass"
    np.testing.assert_array_equal(rows, expected)
    # Index 3 is that of "two", which is there already.
    assert passing.layers == ["two", "mean", "one"]
    assert [passing.layers[k] for k in passing.further] == ["one", "two"]
    for layer, values in zip(passing.layers, maps, strict=True):
        alone = CNNFeatureTransformer(network, layer, None, verbose=0).fit_transform(photos)
        np.testing.assert_array_equal(values, alone)


def test_few_maps_are_held_at_a_time(data, monkeypatch):
    network, photos, _ = data
    cnn = CNNFeatureTransformer(network, "one", "avg", verbose=0).fit(photos)
    # A map takes 30 x 30 x 4 numbers, a row 4.
    monkeypatch.setattr(one_pass, "_MOST_BYTES", 3 * 4 * (30 * 30 * 4 + 4))
    *_, sizes = gathered(cnn, photos)
    assert sizes == [3] * 6 + [2]


def test_networks_whose_maps_need_a_pass_of_their_own(data, tmp_path, monkeypatch):
    """Images of any size have rows of their own sizes, and maps of one."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, name="one")]
    keras.Sequential(layers).save(tmp_path / "any.keras")
    _, photos, y = data
    cnn = CNNFeatureTransformer(tmp_path / "any.keras", "one", "avg", verbose=0).fit(photos)
    expected = cnn.transform(photos)
    computed = count_computed(monkeypatch)
    passing, rows, maps, _ = gathered(cnn, photos)
    assert passing.is_apart and len(computed) == 2 * N
    np.testing.assert_array_equal(rows, expected)
    assert {values.shape for values in maps[0]} == {passing.map_shapes[0]}
    pipe = make_pipeline(cnn, LogisticRegression()).fit(photos, y)
    facts = facts_of(explore(pipe, photos, y, tmp_path / "page.html"))
    assert "images of any size" in facts["decisionNote"]
    assert set(map(str, facts["decisions"])) == {"None"}


def test_a_page_takes_one_pass(data, tmp_path, monkeypatch):
    network, photos, y = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos, y)
    computed = count_computed(monkeypatch)
    explore(pipe, photos, y, tmp_path / "page.html", layers=["one", "three"])
    assert sorted(computed) == list(range(N))


def test_a_network_beside_other_columns(data, tmp_path):
    pd = pytest.importorskip("pandas")
    network, photos, y = data
    table = pd.DataFrame({"photo": photos, "size": np.arange(N) / N})
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    columns = ColumnTransformer([("cnn", cnn, "photo"), ("others", StandardScaler(), ["size"])])
    pipe = make_pipeline(columns, LogisticRegression()).fit(table, y)
    facts = facts_of(explore(pipe, table, y, tmp_path / "page.html"))
    assert facts["names"] == [Path(path).name for path in photos]
    predicted = pipe.predict(table)
    assert np.array(facts["classes"])[facts["predicted"]].tolist() == predicted.tolist()
    np.testing.assert_allclose(facts["scores"], pipe.predict_proba(table).max(axis=1), atol=6e-4)
    largest = np.abs(decision_map(pipe, table[4:5], predicted[4]).map).max()
    assert facts["decisions"][4][2] == pytest.approx(largest, rel=0.006)


def test_what_is_nearly_linear_has_no_exact_maps(data, tmp_path):
    class Curved(LogisticRegression):
        """Has coefficients, and another decision."""

        def decision_function(self, X):
            return super().decision_function(X) ** 3 + 1

    network, photos, y = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    pipe = make_pipeline(cnn, StandardScaler(), Curved()).fit(photos, y)
    facts = facts_of(explore(pipe, photos, y, tmp_path / "page.html"))
    assert "is no affine function" in facts["decisionNote"]
    assert set(map(str, facts["decisions"])) == {"None"}


@pytest.mark.parametrize("seed", range(3))
def test_details_are_those_of_the_smallest_leads(seed):
    rng = np.random.default_rng(seed)
    leads = rng.integers(0, 10, 50) / 10
    details = Details(7, 50)
    for i in rng.permutation(50).tolist():
        details.offer(i, leads[i], lambda i=i: f"maps of {i}")
    expected = np.argsort(leads, kind="stable")[:7]
    assert details.lines == {i: f"maps of {i}" for i in sorted(expected.tolist())}


def test_details_by_position():
    details = Details([3, -1], 10)
    for i in range(10):
        details.offer(i, 0.0, lambda i=i: i)
    assert details.lines == {3: 3, 9: 9}
    none = Details(0, 10)
    none.offer(1, 0.0, lambda: 1)
    assert none.lines == {}
    with pytest.raises(ValueError, match="details holds -11, but X has 10 photographs"):
        Details([0, -11], 10)
