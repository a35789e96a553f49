"""The report as people see it: in a real browser, on a desktop and on a phone, light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import reparam
from reparam.nn import DiverseBranchBlock, MobileOneBlock, RepVGGBlock
from tests.browser import CHROMIUM, Browser, browser
from tests.helpers import image, trained
from tests.outcomes import LATENCY, hostile

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

WIDTHS = (1280, 390)
LOOKS = [(width, dark) for width in WIDTHS for dark in (False, True)]

# The contrast (WCAG 2) of every text that is shown with what is painted behind it, the least of it with its text.
CONTRAST = """(() => {
  const number = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const inside = element.closest("svg .box, svg .sign");
    if (inside) {
      const fill = number(getComputedStyle(inside.querySelector("rect, circle")).fill);
      if (fill.length === 3 || fill[3] === 1) return fill;
    }
    for (let at = element; at; at = at.parentElement) {
      const fill = number(getComputedStyle(at).backgroundColor);
      if (fill.length === 3 || fill[3] === 1) return fill;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let least = [99, ""];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, title")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(number(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, walker.currentNode.data];
  }
  return least;
})()"""

# What reaches beyond the window although nothing around it scrolls.
SPILLED = """[...document.querySelectorAll("main *")].filter((element) =>
    element.checkVisibility() && !element.closest(".scroll, ul") &&
    element.getBoundingClientRect().right > innerWidth + 1)
  .map((element) => element.outerHTML.slice(0, 80))"""

# Pairs of texts that are drawn over each other, as far as the areas that scroll show them.
OVERLAPPING = """(() => {
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility() || element.closest("script, title")) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const box of range.getClientRects()) {
      const seen = { left: box.left, top: box.top, right: box.right, bottom: box.bottom };
      for (let at = element; at !== document.body; at = at.parentElement) {
        if (getComputedStyle(at).overflow === "visible") continue;
        const area = at.getBoundingClientRect();
        seen.left = Math.max(seen.left, area.left); seen.right = Math.min(seen.right, area.right);
        seen.top = Math.max(seen.top, area.top); seen.bottom = Math.min(seen.bottom, area.bottom);
      }
      if (seen.right - seen.left > 1 && seen.bottom - seen.top > 1) boxes.push([seen, text]);
    }
  }
  return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([b, other]) => one !== other &&
      Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
      Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
    .map(([, other]) => [one.data.slice(0, 40), other.data.slice(0, 40)]));
})()"""

OPENED = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
SHOWN = """[...document.querySelectorAll("#kept tbody tr")].filter((row) => row.checkVisibility())
  .map((row) => row.cells[0].textContent)"""


def typed(text: str) -> str:
    """A search for reasons, as if it were typed."""
    return f"""(() => {{ const field = document.querySelector("#kept-search"); field.value = {text!r};
        field.dispatchEvent(new Event("input")); }})()"""


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of several kinds, layers that lose precision in int8, norms that are kept."""
    torch.manual_seed(0)
    model = trained(
        nn.Sequential(
            RepVGGBlock(3, 8, stride=2),
            MobileOneBlock(8, 8, 3, groups=8),
            DiverseBranchBlock(8, 8, 3, activation=nn.ReLU),
            *[nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(4)],
            nn.BatchNorm2d(8),
        ),
        image(2, 3, 33, 47),
    )
    report = reparam.reparameterize(model, image(2, 3, 33, 47)).reparam_report
    assert isinstance(report, reparam.Report)
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(report.to_html(LATENCY), "utf-8")
    return file


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long names, and names that are markup."""
    name = "backbone." * 30 + "<img src=x onerror=alert(1)><script>alert(1)</script>"
    file = tmp_path_factory.mktemp("page") / "wild.html"
    file.write_text(hostile(name).to_html(), "utf-8")
    return file


@pytest.mark.parametrize(("width", "dark"), LOOKS)
@pytest.mark.parametrize("kind", ["page", "wild"])
def test_the_page_fits_and_logs_no_errors(
    kind: str, width: int, dark: bool, shown: Browser, request: pytest.FixtureRequest
) -> None:
    file: Path = request.getfixturevalue(kind)
    shown.open(file, width, dark)
    for _ in range(2):
        assert shown.value("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert shown.value(SPILLED) == []
        assert shown.value(OVERLAPPING) == []
        shown.value(OPENED)
    assert shown.complaints() == []
    assert shown.requests() == [file.as_uri()]


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_the_picture_has_the_width_and_theme_of_the_window(
    width: int, dark: bool, shown: Browser, page: Path, tmp_path: Path
) -> None:
    shown.open(page, width, dark)
    (tmp_path / "report.png").write_bytes(shown.picture())
    with Image.open(io.BytesIO(shown.picture())) as picture:
        assert picture.width == width
        assert picture.height > 2000
        grey = picture.convert("L")
        common = sorted(grey.getcolors() or [], reverse=True)[:2]  # the page itself and the cards on it
        assert all(colour < 48 if dark else colour > 240 for _, colour in common)
        # Not blank anywhere: every strip of the height of a window shows something.
        for top in range(0, picture.height - 900, 900):
            dark_to_light = grey.crop((0, top, width, top + 900)).getextrema()
            assert dark_to_light[1] - dark_to_light[0] > 100, f"{top} pixels from the top"


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_enough_contrast(dark: bool, shown: Browser, page: Path) -> None:
    shown.open(page, 1280, dark)
    shown.value(OPENED)
    contrast, text = shown.value(CONTRAST)
    assert contrast >= 4.5, text  # what WCAG 2 asks of small text


def test_a_search_leaves_the_rows_that_match(shown: Browser, page: Path) -> None:
    shown.open(page, 390)
    every = shown.value(SHOWN)
    assert len(every) >= 2
    shown.value(typed("batch_norm RELU"))
    left = shown.value(SHOWN)
    assert 0 < len(left) < len(every)
    assert shown.value("document.querySelector('#kept output').textContent") == f"{len(left)} of {len(every)}"
    shown.value(typed("there is no such word"))
    assert shown.value(SHOWN) == []
    shown.value(typed(""))
    assert shown.value(SHOWN) == every


def test_text_of_a_diagram_stays_in_its_box(shown: Browser, page: Path) -> None:
    shown.open(page, 1280)
    shown.value(OPENED)
    over = """[...document.querySelectorAll(".block .box")].filter((box) => {
        const own = box.querySelector("rect").getBBox();
        return [...box.querySelectorAll("text")].some((text) => text.getBBox().width > own.width - 4); })
        .map((box) => box.textContent)"""
    assert shown.value("document.querySelectorAll('.block .box').length") > 20
    assert shown.value(over) == []


def test_a_broken_page_is_noticed(shown: Browser, tmp_path: Path) -> None:
    file = tmp_path / "wrong.html"
    texts = "<div style='width:3000px'>x</div><p style='margin-top:-1em'>y</p>"
    file.write_text(f"<main>{texts}</main><script>nothing()</script><img src='no.png'>")
    shown.open(file, 390)
    assert shown.value("document.documentElement.scrollWidth") > 390
    assert shown.value(SPILLED)
    assert shown.value(OVERLAPPING) == [["x", "y"]]
    assert any("nothing is not defined" in complaint for complaint in shown.complaints())
    assert len(shown.requests()) == 2
