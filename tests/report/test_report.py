"""What the report holds for diagrams and plots, and its forms: nothing in them is markup that did not come from us."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam.compare.verification import Check, Verification
from reparam.report.outcome import START, FoldLine, Step
from reparam.report.quantisation import BIT, BITS, SOUND, Weights, ranges
from reparam.report.render.diagram import LARGEST, diagram, shape_of
from reparam.report.render.layout import laid_out
from reparam.report.render.markup import tag
from reparam.report.report import Report
from reparam.rules import RULES, Rule
from tests.helpers import Block, Launches, image, trained
from tests.outcomes import HOSTILE, LATENCY, hostile


class Branches(nn.Module):
    """A dense, a pointwise and an identity branch, scaled."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.dense = nn.Conv2d(channels, channels, 3, padding=1, groups=2, bias=False)
        self.point = nn.Conv2d(channels, channels, 1)
        self.norm, self.own = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.gain = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 0 + self.norm(self.dense(x)) + self.gain * self.point(x) + self.own(x)


def report_of(model: nn.Module, x: Tensor, **options: Any) -> Report:
    found = reparam.reparameterize(model, x, **options).reparam_report
    assert isinstance(found, Report)
    return found


# --- the operations of a fold ---------------------------------------------------------------------------------------


def test_a_fold_knows_its_operations() -> None:
    (fold,) = report_of(trained(Branches(), image(2, 4, 7, 5)), image(2, 4, 7, 5), cost=Launches()).folds
    assert fold.becomes == ("Conv2d 4->4 3x3 s1 p1",)
    assert [(step.operation, step.geometry, step.where, step.reads) for step in fold.steps] == [
        ("conv2d", "4->4 3x3 p1 g2", "dense", (START,)),
        ("batch_norm", "", "norm", (0,)),
        ("conv2d", "4->4 1x1", "point", (START,)),
        ("mul", "gain", "the model itself", (2,)),
        ("batch_norm", "", "own", (START,)),
        ("add", "", "the model itself", (1, 3, 4)),  # two sums are one of three, and a sum that starts from 0 is none
    ]


def test_a_sum_that_is_read_elsewhere_is_a_step_of_its_own() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        both = m.a(x) + m.b(x)
        return both + m.c(both)

    members = {name: nn.Conv2d(3, 3, 1) for name in "abc"}
    (fold,) = report_of(trained(Block(forward, **members)), image(2, 3, 5, 4)).folds
    sums = [step for step in fold.steps if step.operation == "add"]
    assert [step.reads for step in sums] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("layer", "shape", "geometry"),
    [
        (nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 3)), (2, 4, 9, 8), "4->6 3x5 s1x2 p1x3"),
        (nn.Conv1d(4, 8, 3, dilation=4, groups=4, padding="same"), (2, 4, 19), "4->8 3 psame d4 g4"),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 4, 5), "4->6 3x3 s2 p1 o1 g2"),
        (nn.Linear(4, 6), (2, 4), "4->6"),
        (nn.AvgPool2d((3, 2), stride=1), (2, 4, 6, 5), "3x2"),
        (nn.AvgPool2d(3, padding=1), (2, 4, 6, 5), "3x3 s3 p1"),
    ],
    ids=str,
)
def test_geometry(layer: nn.Module, shape: tuple[int, ...], geometry: str) -> None:
    behind = nn.Linear(6, 6) if isinstance(layer, nn.Linear) else None
    if isinstance(layer, nn.AvgPool2d):
        layer, geometry = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), layer), f"{geometry}"
    model = nn.Sequential(layer, behind or (nn.BatchNorm1d if len(shape) == 3 else nn.BatchNorm2d)(_channels(layer)))
    (fold,) = report_of(trained(model, image(*shape)), image(*shape), cost=Launches()).folds
    assert geometry in [step.geometry for step in fold.steps]


def _channels(layer: nn.Module) -> int:
    return layer.out_channels if hasattr(layer, "out_channels") else 4


def test_a_run_of_assignments_is_one_step_with_a_count() -> None:
    block = trained(reparam.nn.DiverseBranchBlock(3, 4, 3), image(2, 3, 7, 5))
    (fold,) = report_of(block, image(2, 3, 7, 5)).folds
    assert [step.count for step in fold.steps if step.operation == "setitem"] == [4, 4]
    assert fold.before.count("8 setitem") == 1


def test_steps_that_stay_are_shown_around_the_fold() -> None:
    model = trained(nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)))
    (fold,) = report_of(model, image(2, 3, 6, 5)).folds
    assert fold.becomes[-1] == "Linear 3->5"
    assert len(fold.becomes) == 3
    assert "adaptive" in fold.becomes[0]


def test_a_distributed_norm_is_shown_in_every_operand() -> None:
    members = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 5, 1), "norm": nn.BatchNorm2d(9)}
    model = Block(lambda m, x: m.norm(torch.cat([m.a(x), m.b(torch.relu(x))], 1)), **members)
    a, b, norm = report_of(trained(model, image(2, 3, 5, 4)), image(2, 3, 5, 4)).folds
    for fold in (a, b):
        assert [step.operation for step in fold.steps] == ["conv2d", "share of a norm"]
    assert [step.operation for step in norm.steps] == ["batch_norm"]
    assert norm.becomes == ()
    assert norm.weights is None
    assert "its neighbours took it" in diagram(norm)


@pytest.mark.parametrize("block", ["repvgg", "dbb", "acnet", "mobileone"])
def test_steps_stand_behind_what_they_read(block: str) -> None:
    network = reparam.nn.demo_network()
    stage = nn.Sequential(network.stem, network.repvgg, network.dbb, network.acnet, network.mobileone)
    folds = [fold for fold in report_of(trained(stage), image(1, 3, 33, 47)).folds if re.search(r"^[1-4]\.", fold.name)]
    for fold in folds:
        assert all(START <= read < i for i, step in enumerate(fold.steps) for read in step.reads)
        read = {read for step in fold.steps for read in step.reads}
        assert read == {START, *range(len(fold.steps) - 1)}, block


# --- ranges of weights ----------------------------------------------------------------------------------------------


def brute_force(kernel: Tensor, per_channel: bool) -> float:
    """The median over the channels of signal-to-noise in dB, one number at a time."""
    found = []
    for row in kernel.flatten(1).tolist():
        reach = max(map(abs, row)) if per_channel else float(kernel.abs().max())
        noise = sum((round(w / reach * 127) * reach / 127 - w) ** 2 for w in row)
        found.append(min(10 * math.log10(sum(w * w for w in row) / noise), BITS * BIT) if noise else BITS * BIT)
    return float(torch.tensor(found, dtype=torch.float64).median())


@pytest.mark.parametrize("spread", [1.0, 30.0, 3000.0])
def test_ranges_equal_brute_force_rounding(spread: float) -> None:
    kernel = image(7, 3, 3, 3) * torch.logspace(0, math.log10(spread), 7, dtype=torch.float64)[:, None, None, None]
    found = ranges("layer", kernel)
    assert found is not None
    reach = kernel.abs().amax((1, 2, 3))
    assert (found.smallest, found.median, found.largest) == (reach.min(), reach.median(), reach.max())
    assert found.ratio == reach.max() / reach.median()
    assert found.per_tensor == pytest.approx(brute_force(kernel, per_channel=False), rel=1e-9)
    assert found.per_channel == pytest.approx(brute_force(kernel, per_channel=True), rel=1e-9)
    assert found.per_channel >= found.per_tensor - 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_sample_of_channels_says_what_all_would(dtype: torch.dtype) -> None:
    kernel = (image(500, 40) * torch.logspace(0, 2, 500, dtype=torch.float64)[:, None]).to(dtype)
    found = ranges("layer", kernel)
    assert found is not None
    assert found.channels == 500
    assert found.per_tensor == pytest.approx(brute_force(kernel.double(), per_channel=False), abs=1)
    assert found.per_channel == pytest.approx(brute_force(kernel.double(), per_channel=True), abs=1)


def test_channels_of_zeros_are_counted_and_left_out() -> None:
    kernel = torch.cat([torch.zeros(3, 2), torch.ones(2, 2)])
    found = ranges("layer", kernel)
    assert found is not None
    assert (found.channels, found.zeros, found.smallest, found.ratio) == (5, 3, 1.0, 1.0)
    assert found.per_tensor == found.per_channel == BITS * BIT  # nothing is rounded at all
    assert ranges("layer", torch.zeros(3, 2)) is None
    assert ranges("layer", torch.zeros(0, 2)) is None


def test_normal_weights_are_not_flagged() -> None:
    found = ranges("layer", image(64, 64, 3, 3))
    assert found is not None
    assert found.per_tensor == pytest.approx(SOUND, abs=2)


def with_gains(gains: Tensor) -> nn.Sequential:
    layers = nn.Conv2d(4, len(gains), 3, bias=False), nn.BatchNorm2d(len(gains))
    model = trained(nn.Sequential(*layers), image(2, 4, 6, 5))
    assert isinstance(model[1], nn.BatchNorm2d)
    model[1].running_var.fill_(1.0)  # type: ignore[union-attr]
    model[1].weight.data.copy_(gains)
    return model  # type: ignore[return-value]


def test_a_fold_that_drives_channels_apart_is_flagged_with_what_helps() -> None:
    gains = torch.ones(16, dtype=torch.float64)
    (calm,) = report_of(with_gains(gains), image(2, 4, 6, 5)).folds
    gains[3] = 64.0  # six bits
    (wild,) = report_of(with_gains(gains), image(2, 4, 6, 5)).folds
    assert calm.weights is not None
    assert not calm.weights.suffers
    assert calm.weights.advice == ""
    assert wild.weights is not None
    assert wild.weights.suffers
    assert 4 < wild.weights.bits_lost < 6  # of which one or two were to spare
    assert wild.weights.per_channel_suffices
    assert wild.weights.advice == "a scale per output channel"
    (before,) = wild.weights.before
    assert before.ratio < 2
    assert wild.weights.after.ratio > 30


def test_outlier_taps_are_not_helped_by_scales_per_channel() -> None:
    spiked = image(8, 8, 3, 3) * 1e-3
    spiked[torch.arange(8), torch.arange(8), 1, 1] += 1.0  # what an identity branch leaves
    before, after = ranges("branch", image(8, 8, 3, 3)), ranges("layer", spiked)
    assert before is not None
    assert after is not None
    weights = Weights((before,), replace(after, per_tensor=10.0, per_channel=20.0))
    assert "16 bits" in weights.advice
    assert Weights((), after).bits_lost == 0


@pytest.mark.parametrize("kind", ["transposed", "x @ W", "W @ x"])
def test_ranges_are_those_of_output_channels(kind: str) -> None:
    scale = torch.tensor([1.0, 1.0, 1.0, 50.0], dtype=torch.float64)  # of the outputs
    weight = torch.rand(4, 4, dtype=torch.float64) + 1
    if kind == "transposed":
        layer = nn.ConvTranspose2d(4, 4, 2, bias=False).double()
        layer.weight.data = torch.ones(4, 4, 2, 2, dtype=torch.float64) * scale[None, :, None, None]
        model: nn.Module = nn.Sequential(layer, nn.BatchNorm2d(4))
        x = image(2, 4, 3, 5)
    elif kind == "x @ W":
        model, x = Block(lambda m, x: (x @ m.w) * m.s, w=weight * scale, s=torch.rand(4) + 1), image(2, 3, 4)
    else:
        model = Block(lambda m, x: (m.w @ x) * m.s, w=weight * scale[:, None], s=torch.rand(4, 1) + 1)
        x = image(2, 4, 3)
    (fold,) = report_of(model.double().eval(), x).folds
    assert fold.weights is not None
    (before,) = fold.weights.before
    assert before.ratio > 20


# --- pictures -------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[float]]:
    count = draw(st.integers(1, 14))
    reads = [()] + [tuple(draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=4))) for i in range(1, count)]
    return reads, draw(st.lists(st.floats(10, 120), min_size=count, max_size=count))


@given(graphs())
def test_boxes_do_not_overlap_and_lines_lead_down(graph: tuple[list[tuple[int, ...]], list[float]]) -> None:
    reads, widths = graph
    layout = laid_out(reads, widths, gap=12.0)
    assert set(layout.lines) == {(source, node) for node, sources in enumerate(reads) for source in sources}
    for (source, node), points in layout.lines.items():
        assert points[0] == layout.places[source]
        assert points[-1] == layout.places[node]
        assert [rank for _, rank in points] == list(range(points[0][1], points[-1][1] + 1))
    for node, (x, rank) in layout.places.items():
        assert x - widths[node] / 2 >= -1e-6
        assert x + widths[node] / 2 <= layout.width + 1e-6
        assert rank < layout.ranks
        for other, (to, same) in layout.places.items():
            if other != node and same == rank:
                assert abs(x - to) >= (widths[node] + widths[other]) / 2 + 12 - 1e-6


def test_branches_go_straight_down() -> None:
    # Two branches of three boxes of different widths, a skip, and the sum.
    reads: list[tuple[int, ...]] = [(), (0,), (1,), (2,), (0,), (4,), (5,), (3, 6, 0)]
    layout = laid_out(reads, [24, 80, 40, 100, 30, 120, 30, 24], gap=10.0)
    x = {node: place[0] for node, place in layout.places.items()}
    assert x[1] == x[2] == x[3]
    assert x[4] == x[5] == x[6]
    assert x[0] == x[7]
    assert len({point for point, _ in layout.lines[0, 7][1:-1]}) == 1


def test_the_picture_shows_every_operation_once() -> None:
    (fold,) = report_of(trained(Branches(), image(2, 4, 7, 5)), image(2, 4, 7, 5), cost=Launches()).folds
    picture = diagram(fold)
    assert re.findall(r"<text[^>]*>([^<]*)</text>", picture) == [
        "x", "3×3 conv", "4→4 p1 g2", "bn", "1×1 conv", "4→4", "× gain", "bn", "+", "y",
        "x", "3×3 Conv2d", "4→4 s1 p1", "y",
    ]  # fmt: skip
    assert picture.count('class="line"') == 3 + 2 + 3 + 1 + 2
    assert "conv2d 4-&gt;4 3x3 p1 g2 in dense" in picture


def test_blocks_that_differ_in_channels_share_a_picture() -> None:
    def fold(text: str) -> FoldLine:
        return FoldLine("n", "1 conv", text, 0.0, (Step("conv2d", text, "n", (START,)),), (text,))

    assert shape_of(fold("4->8 3x3 g2")) == shape_of(fold("16->32 3x3 g4"))
    assert shape_of(fold("4->8 3x3 g2")) != shape_of(fold("4->8 3x3 g4"))  # a group for every channel
    assert shape_of(fold("4->8 3x3 s2")) != shape_of(fold("4->8 3x3"))
    assert shape_of(fold("4->8 3x3")) != shape_of(fold("4->8 5x5"))
    assert shape_of(fold("4->8 3x3, channels 0-3, fused with a")) == shape_of(
        fold("4->8 3x3, channels 4-7, fused with b")
    )


def test_a_fold_that_is_too_large_has_no_picture() -> None:
    steps = tuple(Step("add", "", "n", (i - 1,)) for i in range(LARGEST + 1))
    assert diagram(FoldLine("n", "", "", 0.0, steps[:-1], ())) != ""
    assert diagram(FoldLine("n", "", "", 0.0, steps, ())) == ""
    assert diagram(FoldLine("n", "", "", 0.0)) == ""


# --- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements and texts of a page; raises AssertionError where one is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += attributes
        if name not in ("meta", "input"):
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(text)


def full() -> Report:
    model = nn.Sequential(Branches(), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    return report_of(trained(model, image(2, 4, 9, 7)), image(2, 4, 9, 7))


FULL = full()
PLAIN = FULL.to_html(LATENCY)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_becomes_markup(text: str) -> None:
    page, calm = Page(hostile(text).to_html(LATENCY)), Page(hostile("calm").to_html(LATENCY))
    # Only the number of lines in a box of a diagram depends on its text.
    assert [name for name in page.tags if name != "text"] == [name for name in calm.tags if name != "text"]
    assert {name for name, _ in page.attributes} == {name for name, _ in calm.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "style")]
    seen = text.translate({0: "\\x00", 0x1B: "\\x1b", 0x202E: "\\u202e", 0xD800: "\\ud800"})
    assert seen in "".join(page.texts["code"])


def test_the_page_can_be_written_as_utf_8_whatever_it_holds() -> None:
    for text in HOSTILE:
        hostile(text).to_html().encode()


def test_the_page_needs_nothing_but_itself() -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe|\ssrc=|\shref=|eval\(|innerHTML", PLAIN)


def test_only_its_own_script_and_style_may_run() -> None:
    page = Page(PLAIN)
    policy = next(value for name, value in page.attributes if value and value.startswith("default-src"))
    for element in ("script", "style"):
        (text,) = page.texts[element]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert {"base-uri 'none'", "form-action 'none'"} <= set(policy.split("; "))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_terminal_gets_no_command_and_no_hidden_character(text: str) -> None:
    printed = str(hostile(text))
    assert all(char.isprintable() or char == "\n" for char in printed)
    printed.encode()


def test_the_page_holds_what_the_report_says() -> None:
    report = FULL
    text = " ".join(part for parts in Page(PLAIN).texts.values() for part in parts)
    for fold in report.folds:
        assert fold.name in text
        assert fold.before in text
    for refusal in report.refusals:
        assert refusal.reason in text
        assert refusal.remedy in text
    assert report.verification is not None
    assert f"{report.verification.fp64_error:.1e}" in text
    assert "2.00" in text  # times as fast
    assert "3 ms" in text
    assert f"{report.before.macs:,}" in text
    assert "Equal to the original" in text


def test_every_picture_has_a_title_and_every_field_a_label() -> None:
    pictures = re.findall(r"<svg.*?</svg>", PLAIN, re.DOTALL)
    assert len(pictures) > 5
    assert all('role="img"' in picture and re.match(r"<svg[^>]*><title>[^<]", picture) for picture in pictures)
    fields = re.findall(r'<input[^>]* id="([^"]+)"', PLAIN)
    assert fields
    assert all(f'<label for="{field}">' in PLAIN for field in fields)
    ids = re.findall(r'\bid="([^"]+)"', PLAIN)
    assert len(ids) == len(set(ids))


def test_a_report_of_nothing() -> None:
    for model in (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Linear(3, 3))):
        report = report_of(model.eval(), torch.randn(2, 3))
        page = report.to_html()
        assert "Nothing was folded" in page
        assert not {"Blocks", "Quantisation after folding"} & set(Page(page).texts["h2"])
        assert report.to_markdown().startswith("# Sequential\n")
        assert json.loads(report.to_json())["folds"] == []


def test_an_unverified_or_unequal_model_is_not_called_equal() -> None:
    report = FULL
    alone = replace(report, verification=None)
    assert "Each fold verified alone" in alone.to_html()
    assert "Not verified" not in alone.to_html()
    report = replace(report, folds=tuple(replace(fold, error=None) for fold in report.folds))
    assert "Not verified" in replace(report, verification=None).to_html()
    check = Check("out", "example", "fp64", 0.5, 1e-10, 0.0, False)
    wrong = replace(report, verification=Verification((check,))).to_html()
    assert "Not equal" in wrong
    for page in (replace(report, verification=None).to_html(), wrong):
        assert "Equal to the original" not in page


def test_inputs_that_the_original_does_not_take_are_not_called_equal() -> None:
    refused = Check("call", "size 1x3x9x9", "not accepted", 0.0, 0.0, 0.0, True, "by the original: too large")
    page = replace(FULL, verification=Verification((refused,))).to_html()
    assert "by the original: too large" in page
    assert "✓ ok" not in page


def test_a_layer_that_suffers_is_named() -> None:
    gains = torch.ones(16, dtype=torch.float64)
    gains[5] = 100.0
    report = report_of(with_gains(gains), image(2, 4, 6, 5))
    page = report.to_html()
    assert "▲ 1 layer of 1 loses a bit or more" in page
    assert "a scale per output channel" in page
    assert "a scale per output channel" in report.to_markdown()
    assert "No layer loses a bit" in report_of(with_gains(torch.ones(16).double()), image(2, 4, 6, 5)).to_html()


def test_tags_escape_what_is_not_markup() -> None:
    made = tag("a", "<b>", tag("i", "&"), class_="x y", data_name='"q"', hidden=True, width=1.5, title=None)
    assert made == '<a class="x y" data-name="&quot;q&quot;" hidden width="1.5">&lt;b&gt;<i>&amp;</i></a>'
    assert tag("input", type="search") == '<input type="search">'
    assert tag("rect", x=0) == '<rect x="0"></rect>'  # in a page of HTML nothing but HTML's own tags may stay open


# --- the other forms ------------------------------------------------------------------------------------------------


def cells(line: str) -> Sequence[str]:
    return re.split(r"(?<!\\)\|", line)


@pytest.mark.parametrize("text", [*HOSTILE, "a|b", "a\nb", "a\\|b"], ids=range(len(HOSTILE) + 3))
def test_markdown_keeps_its_rows(text: str) -> None:
    written, calm = (hostile(each).to_markdown(LATENCY).splitlines() for each in (text, "calm"))
    assert len(written) == len(calm)
    for line, other in zip(written, calm, strict=True):
        assert line.startswith(other[:1])
        # A backslash before an escaped sign is escaped itself, so an even number of them stands before a bare one.
        bare = re.sub(r"\\\\|&#64;", "", line)
        assert len(cells(bare)) == len(cells(other))
        assert not re.search(r"(?<!\\)[`*\[\]#@]|<", bare.lstrip("# ")), line


def test_json_holds_every_value_and_no_nan() -> None:
    def refused(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    report = FULL
    values = json.loads(report.to_json(LATENCY), parse_constant=refused)
    assert values["before"]["macs"] == report.before.macs
    assert [fold["name"] for fold in values["folds"]] == [fold.name for fold in report.folds]
    assert values["verification"]["ok"] is True
    assert values["latency"]["models"][1]["wall_samples"] == [1e-3, 2e-3]
    assert values["folds"][0]["weights"]["after"]["channels"] == 4
    wild = json.loads(hostile("x").to_json(), parse_constant=refused)
    assert wild["folds"][1]["error"] == "inf"
    assert wild["verification"]["ok"] is False


def test_a_report_is_a_value() -> None:
    report = FULL
    assert pickle.loads(pickle.dumps(report)) == report
    assert copy.deepcopy(report) == report
    assert len(pickle.dumps(report)) < 20_000  # figures, no weights


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("rule", list({entry.name: entry for entry in RULES.values()}.values()), ids=lambda r: r.name)
def test_every_rule_can_be_drawn(rule: Rule) -> None:
    for case in rule.folds():
        x = case.input(2, (9, 7, 5), torch.Generator().manual_seed(0))
        model = trained(nn.Sequential(case.module))
        report = reparam.reparameterize(model, x, verify=False).reparam_report
        for fold in report.folds:
            assert all(START <= read < i for i, step in enumerate(fold.steps) for read in step.reads)
            assert {read for step in fold.steps for read in step.reads} >= set(range(len(fold.steps) - 1))
            picture = Page(diagram(fold))
            assert picture.texts.get("text", []).count("x") == (2 if fold.steps else 0)
        Page(report.to_html())
