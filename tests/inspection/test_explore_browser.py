"""The page to explore in headless Chromium: every interaction, and no message of the console."""

import json
import os
import re
import shutil

import pytest
from explored import HOSTILE

CHROMIUM = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")


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
        wait_until(tab, "Boolean(window.cnnfeat)")
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


def wait_until(tab, condition):
    """Wait for a condition. Playwright's own way evaluates text, which the page forbids."""
    for _ in range(200):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(condition)


def click_photo(tab, i):
    x, y = tab.evaluate(f"cnnfeat.map.onScreen({i})")
    box = tab.locator("#points").bounding_box()
    tab.mouse.click(box["x"] + x, box["y"] + y)


def test_a_click_shows_a_photograph(opened, data):
    tab = opened()
    click_photo(tab, 3)
    tab.wait_for_selector(".thumbs button")
    assert tab.locator("#panel h2").inner_text() == os.path.basename(data[1][3])
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
    wait_until(tab, f"document.querySelector('#panel h2').innerText.endsWith({json.dumps(name)})")


def test_all_channels_of_chosen_photographs(opened):
    tab = opened()
    tab.evaluate("cnnfeat.pick(4)")
    tab.get_by_role("button", name="All 16 channels").click()
    wait_until(tab, "document.querySelectorAll('#panel .grid:not(.thumbs) figure').length === 20")
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
    both = sum(
        facts["classes"][a] == HOSTILE and facts["classes"][b] == "bees"
        for a, b in zip(facts["truth"], facts["predicted"], strict=True)
    )
    tab.locator("#predicted").select_option(label="bees")
    assert tab.locator("#count").inner_text() == f"{both} of 30 shown"
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
    tab.keyboard.press("-")
    tab.wait_for_timeout(50)
    assert tab.evaluate("cnnfeat.map.onScreen(0)") == pytest.approx(before)
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
