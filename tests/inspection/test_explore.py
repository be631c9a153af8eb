"""The page to explore: what is in the file, and what it does in a browser."""

import base64
import json
import re
import shutil
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer, decision_map, explore

N = 30
# Classes and files may be called anything.
HOSTILE = "<script>window.hacked=1</script>"
WORSE = "</script><img src=x onerror=window.hacked=1>"
CHROMIUM = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")


class Page(HTMLParser):
    """The elements of a page, and what stands in those with an id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.content, self._inside = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = dict(attributes).get("id")

    def handle_data(self, data):
        if self._inside:
            self.content[self._inside] = self.content.get(self._inside, "") + data

    def handle_endtag(self, tag):
        self._inside = None

    @property
    def facts(self):
        return json.loads(self.content["facts"])

    def line(self, name, k):
        return base64.b64decode(self.content[name].split("\n")[k])

    def maps(self, name, k):
        return zlib.decompress(self.line(name, k), -15)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a network's file, photographs of which one has a hostile name, and their classes."""
    folder = tmp_path_factory.mktemp("photos")
    photos = save_photos(folder / "all", N)
    hostile = folder / "all" / f"{HOSTILE.replace('/', '_')}.jpg"
    shutil.move(photos[3], hostile)
    photos[3] = str(hostile)
    y = np.array([HOSTILE, WORSE, "bees"] * (N // 3))
    return save_network(folder / "small.keras"), np.array(photos), y


@pytest.fixture(scope="module")
def pipe(data):
    network, photos, y = data
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    return make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos, y)


@pytest.fixture(scope="module")
def path(data, pipe, tmp_path_factory):
    _, photos, y = data
    to = tmp_path_factory.mktemp("page") / "page.html"
    return explore(pipe, photos, y, to, layers=["one", "three"], details=[4, 7])


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


# --- what is in the file --------------------------------------------------------------------------


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
    assert facts["names"] == list(data[1])
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
    assert facts["names"] == list(photos[:6])
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


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with playwright.sync_playwright() as running:
        try:
            browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, path):
    """Open the page in windows; any message of the console fails the test."""
    contexts, problems = [], []

    def open_page(size=(1280, 800), **settings):
        window = {"width": size[0], "height": size[1]}
        context = chromium.new_context(viewport=window, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_function("window.cnnfeat")
        # Until the first thumbnails are there.
        tab.wait_for_timeout(300)
        return tab

    requests = []
    yield open_page
    for context in contexts:
        assert context.pages[0].evaluate("window.hacked") is None
        context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def click_photo(tab, i):
    x, y = tab.evaluate(f"cnnfeat.map.onScreen({i})")
    box = tab.locator("#points").bounding_box()
    tab.mouse.click(box["x"] + x, box["y"] + y)


def test_a_click_shows_a_photograph(opened, data):
    tab = opened()
    click_photo(tab, 3)
    tab.wait_for_selector(".thumbs button")
    assert tab.locator("#panel h2").inner_text() == data[1][3]
    assert HOSTILE in tab.locator("#panel dl").inner_text()
    assert tab.locator(".thumbs button").count() == 8
    assert tab.locator(".photo canvas").is_visible()
    tab.locator("#decision").uncheck()
    assert not tab.locator(".photo canvas").is_visible()
    headings = tab.locator("#panel h3").all_inner_texts()
    assert headings[1:] == [
        "one: the 4 strongest of 4 channels",
        "three: the 8 strongest of 16 channels",
    ]
    # A neighbor is shown by a click.
    name = tab.locator(".thumbs button").first.get_attribute("title").removesuffix(", mistake")
    tab.locator(".thumbs button").first.click()
    tab.wait_for_function(
        "name => document.querySelector('#panel h2').innerText.endsWith(name)", arg=name
    )


def test_all_channels_of_chosen_photographs(opened):
    tab = opened()
    tab.evaluate("cnnfeat.pick(4)")
    tab.get_by_role("button", name="All 16 channels").click()
    tab.wait_for_function(
        "document.querySelectorAll('#panel .grid:not(.thumbs) figure').length === 20"
    )
    tab.evaluate("cnnfeat.pick(5)")
    tab.wait_for_selector("#panel h3")
    assert tab.get_by_role("button", name="All 16 channels").count() == 0


def test_filters(opened, page):
    tab = opened()
    facts = page.facts
    mistakes = sum(a != b for a, b in zip(facts["truth"], facts["predicted"], strict=True))
    assert tab.locator("#count").inner_text() == "30 shown"
    tab.locator("#mistakes").check()
    assert tab.locator("#count").inner_text() == f"{mistakes} of 30 shown"
    tab.locator("#mistakes").uncheck()
    tab.locator("#truth").select_option(label=HOSTILE)
    assert tab.locator("#count").inner_text() == "10 of 30 shown"
    tab.get_by_role("button", name="Show all").click()
    assert tab.locator("#count").inner_text() == "30 shown"
    assert tab.locator("#legend").inner_text().split("\n") == facts["classes"]


def drag(tab, corners):
    box = tab.locator("#points").bounding_box()
    for k, (x, y) in enumerate(corners):
        tab.mouse.move(box["x"] + x, box["y"] + y)
        if k == 0:
            tab.mouse.down()
    tab.mouse.up()


@pytest.mark.parametrize("start", ["button", "key", "shift"])
def test_lasso(opened, start):
    tab = opened()
    if start == "button":
        tab.get_by_role("button", name="Lasso").click()
    elif start == "key":
        tab.keyboard.press("l")
    else:
        tab.keyboard.down("Shift")
    width = tab.locator("#points").bounding_box()["width"]
    half = width / 2
    places = tab.evaluate("cnnfeat.facts.points.map((_, i) => cnnfeat.map.onScreen(i))")
    inside = sum(x < half for x, _ in places)
    drag(tab, [(1, 1), (half, 1), (half, 740), (1, 740), (1, 2)])
    assert tab.locator("#panel h2").inner_text() == f"{inside} selected"
    assert tab.locator(".thumbs button").count() == inside
    assert tab.locator("#lasso").get_attribute("aria-pressed") == "false"


def test_zoom_and_move(opened):
    tab = opened()
    before = tab.evaluate("cnnfeat.map.onScreen(0)")
    box = tab.locator("#points").bounding_box()
    tab.mouse.move(box["x"] + 300, box["y"] + 300)
    tab.mouse.wheel(0, -400)
    tab.wait_for_timeout(100)
    zoomed = tab.evaluate("cnnfeat.map.onScreen(0)")
    assert zoomed != before
    drag(tab, [(300, 300), (340, 320), (400, 350)])
    moved = tab.evaluate("cnnfeat.map.onScreen(0)")
    assert moved == pytest.approx([zoomed[0] + 100, zoomed[1] + 50], abs=1)
    tab.keyboard.press("Escape")
    assert tab.evaluate("cnnfeat.map.onScreen(0)") == pytest.approx(before)


def test_by_keyboard(opened, page):
    tab = opened()
    tab.locator("#points").focus()
    names, seen = page.facts["names"], []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        tab.keyboard.press(key)
        tab.wait_for_timeout(50)
        seen.append(names.index(tab.locator("#panel h2").inner_text()))
    x = [tab.evaluate(f"cnnfeat.map.onScreen({i})")[0] for i in seen]
    assert x[0] < x[1] and x[2] < x[1]
    before = tab.evaluate("cnnfeat.map.onScreen(0)")
    tab.keyboard.press("+")
    tab.wait_for_timeout(50)
    assert tab.evaluate("cnnfeat.map.onScreen(0)") != before
    # All controls come up in turn.
    tab.locator("#truth").focus()
    ids = []
    for _ in range(5):
        tab.keyboard.press("Tab")
        ids.append(tab.evaluate("document.activeElement.id"))
    assert ids == ["predicted", "mistakes", "lasso", "reset", "points"]


def test_on_a_phone(opened):
    tab = opened((390, 844), has_touch=True, is_mobile=True, device_scale_factor=2)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    x, y = tab.evaluate("cnnfeat.map.onScreen(2)")
    box = tab.locator("#points").bounding_box()
    tab.touchscreen.tap(box["x"] + x, box["y"] + y)
    tab.wait_for_selector("#panel .photo img")
    assert tab.evaluate("document.querySelector('#panel').getBoundingClientRect().width") <= 390
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened, scheme):
    tab = opened(color_scheme=scheme)
    red, green, blue = map(
        int,
        re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3],
    )
    assert (red + green + blue > 600) == (scheme == "light")
    # The map has points and pictures in it.
    colors = tab.evaluate(
        "(() => {const c = document.querySelector('#points');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " const s = new Set(); for (let k = 0; k < d.length; k += 4)"
        " s.add(d[k] << 16 | d[k + 1] << 8 | d[k + 2]); return s.size})()"
    )
    assert colors > 100
