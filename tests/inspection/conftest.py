"""Fixtures of the tests of `explore`: photographs, a pipeline and its page."""

import pytest
from explored import Page, fit_pipeline, make_data

from sklearn_cnnfeat import explore


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def pipe(data):
    return fit_pipeline(*data)


@pytest.fixture(scope="module")
def path(data, pipe, tmp_path_factory):
    _, photos, y = data
    to = tmp_path_factory.mktemp("page") / "page.html"
    return explore(pipe, photos, y, to, layers=["one", "three"], details=[4, 7])


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))
