"""The documentation site: whole, readable on a desktop and on a phone, and all of it from the disk."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import reparam
from tests.browser import CHROMIUM, Browser, browser

pytest.importorskip("material", reason="the site is built with the extra docs")

ROOT = Path(__file__).resolve().parents[2]
DESKTOP, PHONE = 1280, 390
LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'>\s]+""")
ELSEWHERE = re.compile(r"url\(\s*[\"']?(?:https?:)?//|@import")
PAGES = ("index", "trouble", "equal", "api", "cli", "ops", "zoo")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the built site; a link or anchor that leads nowhere fails here."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no browser here")
    with browser() as opened:
        yield opened


def test_every_page_of_the_documentation_is_there(site: Path) -> None:
    sources = {"index", *(file.stem for file in (ROOT / "docs").glob("*.md"))}
    assert sources <= {file.stem for file in site.glob("*.html")}


def test_no_address_points_elsewhere(site: Path) -> None:
    for file in site.rglob("*.html"):
        assert not LOADED.findall(file.read_text("utf-8")), file
    for file in site.rglob("*.css"):
        assert not ELSEWHERE.search(file.read_text("utf-8")), file


def test_the_reference_shows_functions_and_their_arguments(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    for name in ("reparameterize", "verify", "undo", "export"):
        assert f'id="reparam.{name}"' in text, name
    assert "<code>keep</code>: names of modules" in text  # a line of a list and not of a paragraph


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = re.findall(r'id="(reparam[\w.]*)"', (site / "api.html").read_text("utf-8"))
    names = {*reparam.__all__, *reparam.nn.__all__} - {"nn"}
    assert names <= {name.rpartition(".")[2] for name in ids}


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_loads_nothing_from_elsewhere(site: Path, page: Browser, name: str, width: int) -> None:
    page.open(site / f"{name}.html", width, dark=width == PHONE)
    assert page.value("document.documentElement.scrollWidth") <= width
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (width == DESKTOP)  # as the system is
    assert page.complaints() == []
    assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in page.requests())


def test_the_search_works_from_the_disk(site: Path, page: Browser) -> None:
    page.open(site / "index.html", DESKTOP)
    page.value("document.querySelector('[data-md-component=search-query]').focus()")
    page.call("Input.insertText", text="tracing fails")
    for _ in range(100):
        found = page.value("[...document.querySelectorAll('.md-search-result__link')].map(each => each.href).join()")
        if found:
            break
        time.sleep(0.1)
    assert "your-model.html" in found
