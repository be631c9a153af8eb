"""The built site, as its readers get it: links, pictures and search, in files and in a browser.

Run after the build, ``python -m pytest docs/test_site.py``; ``CNNFEAT_SITE`` names the site's
folder where it is another. The browser is the one that Playwright has (``playwright install
chromium``), or a Chromium that is installed.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

DOCS = Path(__file__).resolve().parent
SITE = Path(os.environ.get("CNNFEAT_SITE") or DOCS / "_build")
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PAGES = [page for page in PAGES if not page.startswith("_static/")]  # the theme's templates
CHROMIUM = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
# A wide window and a phone's.
WINDOWS = {"wide": (1440, 900), "phone": (390, 844)}
MOST_BYTES = 2_000_000


class Links(HTMLParser):
    """What a page points to, and what may be pointed to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.files, self.ids, self.without_text = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag in ("img", "script") and "src" in attributes:
            self.files.append(attributes["src"])
        # An empty text is for pictures beside a link that says the same.
        if tag == "img" and "alt" not in attributes:
            self.without_text.append(attributes.get("src"))
        if tag == "link" and attributes.get("rel") == "stylesheet":
            self.files.append(attributes["href"])


@functools.cache
def links_of(path):
    return Links(path.read_text(encoding="utf-8"))


def is_elsewhere(address):
    return re.match(r"[a-z]+:|//", address) is not None


def test_the_site_is_built():
    assert len(PAGES) > 40, f"no site in {SITE}; build it first: python -m sphinx docs docs/_build"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    file = SITE / page
    found = links_of(file)
    for address in found.links:
        target, anchor = urldefrag(address)
        if is_elsewhere(address):
            continue
        path = (file.parent / unquote(target)).resolve() if target else file
        if path.is_dir():
            path /= "index.html"
        assert path.exists(), address
        if anchor and path.suffix == ".html":
            assert unquote(anchor) in links_of(path).ids, address
    for address in found.files:
        if not is_elsewhere(address):
            assert (file.parent / unquote(address.split("?")[0])).exists(), address
    assert not found.without_text, "pictures without a text for those who do not see them"


def test_pages_are_complete():
    import sklearn_cnnfeat

    wanted = {f"generated/sklearn_cnnfeat.{name}.html" for name in sklearn_cnnfeat.__all__}
    wanted |= {f"auto_examples/{path.stem}.html" for path in DOCS.glob("../examples/plot_*.py")}
    wanted |= {f"{path.stem}.html" for path in DOCS.glob("*.md")}
    assert wanted <= set(PAGES)


def test_the_html_repr_links_to_a_page():
    import sklearn_cnnfeat

    link = sklearn_cnnfeat.CNNFeatureTransformer()._get_doc_link()
    assert (SITE / link.split("/latest/")[1]).exists()


def test_every_example_has_a_picture():
    for path in DOCS.glob("../examples/plot_*.py"):
        pictures = links_of(SITE / "auto_examples" / f"{path.stem}.html").files
        assert any("sphx_glr_" in picture for picture in pictures), path.stem


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address():
    """Serve the site to this machine, and return its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    """Return a headless browser."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch()
        except Error:
            # Playwright's own is not installed.
            found = next(filter(None, map(shutil.which, CHROMIUM)), None)
            if found is None:
                raise
            started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=WINDOWS)
def tab(browser, address, request):
    """Return a page in a window, with notes of what failed and of how much came."""
    width, height = WINDOWS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, is_mobile=request.param == "phone"
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.failed, page.n_bytes, page.window = [], 0, request.param

    def note(response):
        if response.url.startswith(address):
            if response.status >= 400:
                page.failed.append((response.status, response.url))
            page.n_bytes += int(response.headers.get("content-length", 0))

    page.on("response", note)
    page.on("pageerror", lambda error: page.failed.append(("script", str(error))))
    # Formulas are drawn by a script from the net, which may not be there.
    page.route("**/*", lambda route: _only_here(route, address))
    yield page
    context.close()


def _only_here(route, address):
    route.continue_() if route.request.url.startswith(address) else route.abort()


def look(tab, name):
    """Save what is seen, where a folder for it is named."""
    folder = os.environ.get("CNNFEAT_SITE_PICTURES")
    if folder:
        tab.screenshot(path=f"{folder}/{name}_{tab.window}.png")


LOOKED_AT = [
    "index",
    "getting_started",
    "guide",
    "layers",
    "seeing",
    "offline",
    "comparison",
    "benchmarks",
    "faq",
    "architecture",
    "api",
    "auto_examples/index",
    "auto_examples/plot_decision_map",
    "generated/sklearn_cnnfeat.CNNFeatureTransformer",
]


@pytest.mark.parametrize("name", LOOKED_AT)
def test_pages_load(name, tab, address):
    tab.goto(f"{address}/{name}.html", wait_until="load")
    tab.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    tab.wait_for_function("[...document.images].every(i => i.complete)")
    broken = tab.evaluate(
        "[...document.images].filter(i => i.naturalWidth === 0)"
        ".map(i => i.src).filter(source => source.startsWith(location.origin))"
    )
    assert not broken
    assert not tab.failed
    # A page that is wider than the window would have to be pushed from side to side.
    overhang = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overhang <= 1, f"{overhang} pixels wider than the window"
    assert tab.locator("h1").first.is_visible()
    look(tab, name.replace("/", "-"))


def test_the_start_page_is_light(tab, address):
    tab.goto(f"{address}/index.html", wait_until="networkidle")
    assert 10_000 < tab.n_bytes < MOST_BYTES, tab.n_bytes
    for title in (
        "last pooling layer",
        "dense layer",
        "best",
        "feature maps",
        "internet",
        "million",
    ):
        assert tab.locator(".sd-card", has_text=title).first.is_visible(), title


def test_cards_of_the_start_page_lead_to_code(tab, address):
    tab.goto(f"{address}/index.html")
    links = tab.evaluate("[...document.querySelectorAll('.sd-card a')].map(a => a.href)")
    assert len(links) == 6
    for link in links:
        tab.goto(link)
        assert tab.locator("div.highlight-python pre").first.is_visible()


@pytest.mark.parametrize("query", ["precompute", "Kaggle", "block5_pool"])
def test_search_finds(query, tab, address):
    tab.goto(f"{address}/search.html?q={query}")
    tab.wait_for_selector("#search-results li a")
    assert tab.locator("#search-results li a").count() >= 2
    look(tab, f"search-{query}")


# --- pages that have to read on a phone ---------------------------------------------------------


def test_the_start_page_begins_with_the_installation(tab, address):
    """The line and the links are seen without scrolling; the picture's labels can be read."""
    tab.goto(f"{address}/index.html", wait_until="load")
    line = tab.locator("pre", has_text="pip install").first.bounding_box()
    links = tab.get_by_role("link", name="Get started").first.bounding_box()
    assert line["y"] + line["height"] < links["y"] + links["height"] < WINDOWS[tab.window][1]
    picture = tab.locator(".start-picture img").first
    scale = picture.evaluate("image => image.clientWidth / image.naturalWidth")
    assert scale > 0.5, "letters of half their size cannot be read"


def test_the_comparison_keeps_the_own_column(tab, address):
    """Scrolled to its last column, the table still shows its rows' names and this package."""
    tab.goto(f"{address}/comparison.html", wait_until="load")
    tab.locator(".comparison table").evaluate(
        "table => { for (let e = table; e; e = e.parentElement) e.scrollLeft = 1e6; }"
    )
    for column in (1, 2):
        cell = tab.locator(f".comparison tbody tr:nth-child(3) td:nth-child({column})")
        cell.scroll_into_view_if_needed()
        covered = cell.evaluate(
            "cell => { const b = cell.getBoundingClientRect();"
            " return !cell.contains(document.elementFromPoint(b.left + 4, b.top + b.height / 2)) }"
        )
        assert not covered, column
    last = tab.locator(".comparison tbody tr:nth-child(3) td:last-child").bounding_box()
    assert last["x"] + last["width"] <= WINDOWS[tab.window][0]


def test_benchmarks_begin_with_a_picture(tab, address):
    tab.goto(f"{address}/benchmarks.html", wait_until="load")
    tab.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    tab.wait_for_function("[...document.images].every(i => i.complete)")
    assert tab.evaluate("document.documentElement.scrollHeight") <= 8_000
    picture = tab.locator(".benchmark-picture img").first
    assert picture.bounding_box()["y"] < WINDOWS[tab.window][1]
    widths = tab.locator(".benchmark-picture img").evaluate_all(
        "images => images.filter(i => i.clientWidth).map(i => i.clientWidth / i.naturalWidth)"
    )
    assert len(widths) > 4 and min(widths) > 0.4
