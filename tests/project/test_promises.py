"""The page of promises: each names tests that are there, and run."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
PROMISES = [row for row in ROWS if not row.startswith("| promise ")]


@cache
def _parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_are_promises():
    assert len(PROMISES) > 30


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[2:40])
def test_each_is_held_by_tests(row):
    _, _, held_by, _ = re.split(r"(?<!\\)\|", row)
    named = re.findall(r"`(\w+\.py)::(\w+)`", held_by)
    assert named
    # Nothing else stands there that only looks like a test.
    assert not re.sub(r"`\w+\.py::\w+`|[, ]", "", held_by)
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        tree = _parse(path)
        found = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == test
        ]
        assert len(found) == 1, f"{file} has {len(found)} tests called {test}"
        assert test.startswith("test_")
        marks = {ast.unparse(mark).split("(")[0] for mark in found[0].decorator_list}
        assert not marks & {"pytest.mark.skip", "pytest.mark.xfail", "pytest.mark.slow"}


def test_security_pages_lead_somewhere():
    for page in (ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} leads to {target}"
