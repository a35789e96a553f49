"""The numbers and texts of a report: what was counted before and after, and what was refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.plan.liveness import alive
from reparam.report.report import counts
from tests.helpers import Block, convs_ran, image, norms_ran, ran, trained
from tests.networks import X, network


def test_the_fields_of_a_fold() -> None:
    model = network()
    report = reparam.reparameterize(model, X).reparam_report
    lines = {fold.name: fold for fold in report.folds}
    assert set(lines) == {"stem.0", "blocks.0.conv", "blocks.1.conv"}
    assert lines["stem.0"].before == "1 conv + 1 bn"
    assert lines["stem.0"].after == "Conv2d 3->4 3x3 s2 p1"
    assert lines["blocks.0.conv"].before == "2 conv + 3 bn + 2 add"
    assert lines["blocks.0.conv"].after == "Conv2d 4->4 3x3 s1 p1"
    assert all(0 <= fold.error <= 1e-13 for fold in report.folds)
    assert report.verification.ok
    assert report.verification.fp64_error <= 1e-12


def test_counts_are_those_of_what_runs() -> None:
    """The counts of the report are those of aten's operations, before and after."""
    model = network()
    folded = reparam.reparameterize(model, X)
    report = folded.reparam_report
    for each, counted in ((model, report.before), (folded, report.after)):
        assert counted.convs == convs_ran(each, X)
        assert counted.norms == norms_ran(each, X)
        assert counted.parameters == sum(t.numel() for t in (*each.parameters(), *each.buffers()))
        assert counted.macs == macs(each, X)
        assert counted.elementwise == sum(ran(each, X)[name] for name in ("add", "mul", "sub", "div", "neg"))


COUNTED: dict[str, Callable[[], nn.Module]] = {
    "a product with weights": lambda: Block(
        lambda m, x: m.norm(x).permute(0, 2, 3, 1) @ m.weight / 2,
        norm=nn.BatchNorm2d(3),
        weight=nn.Parameter(torch.randn(3, 5)),
    ),
    "a product of what is computed": lambda: Block(
        lambda m, x: x.relu() @ x.sigmoid().transpose(-1, -2) + m.fc(x), fc=nn.Linear(24, 20)
    ),
    "a dropped result": lambda: Block(
        lambda m, x: (m.other(x) * 2, m.norm(m.conv(x)) + 1)[1],
        other=nn.Conv2d(3, 2, 1),
        conv=nn.Conv2d(3, 4, 1),
        norm=nn.BatchNorm2d(4),
    ),
    "a norm behind a join": lambda: Block(
        lambda m, x: m.norm(m.a(x.relu()) + m.b(x.tanh())),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 1),
        norm=nn.BatchNorm2d(4),
    ),
    "a map of biases": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4)),
    "two heads": lambda: Block(
        lambda m, x: (m.a(x.mean((2, 3))) + m.b(x.mean((2, 3)))) / 2, a=nn.Linear(3, 4), b=nn.Linear(3, 4)
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_counted_after_is_what_a_recording_of_the_result_counts(name: str) -> None:
    model, x = trained(COUNTED[name]()), image(2, 3, 20, 24)
    folded = reparam.reparameterize(model, x, fixed_size=True)
    recorded = record(folded, Inputs.of(x))
    live = alive(recorded)
    assert folded.reparam_report.after == counts((node for node in recorded.nodes if node in live), folded)


def test_a_product_with_weights_counts_as_the_linear_layer_that_it_becomes() -> None:
    model, x = trained(COUNTED["a product with weights"]()), image(2, 3, 20, 24)
    report = reparam.reparameterize(model, x).reparam_report
    assert (report.before.convs, report.after.convs) == (1, 1)


def macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds by hooks on convolutions and linear layers, and on the one module that computes its kernel."""
    total: list[int] = []

    def count(module: nn.Module, args: Any, result: Tensor) -> None:
        weight = module.weight
        total.append(result.numel() * weight[0].numel())

    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, reparam.nn.IdentityBasedConv1x1)):
            module.register_forward_hook(count)
    copied(*inputs)
    return sum(total)


def test_refusals_say_where_what_why_and_what_would_help() -> None:
    model = trained(nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(3)))
    report = reparam.reparameterize(model, X).reparam_report
    refusal = next(r for r in report.refusals if r.operation == "avg_pool2d")
    assert refusal.where == "0"
    assert "count_include_pad" in refusal.reason
    assert "would fold" in refusal.remedy
    assert f"0 (avg_pool2d) kept: {refusal.reason}; {refusal.remedy}" in str(report)


def test_a_report_prints_as_tables() -> None:
    text = str(reparam.reparameterize(network(), X).reparam_report)
    for part in ("what it was", "2 conv + 3 bn + 2 add", "Conv2d 4->4 3x3 s1 p1", "batch norms", "Verified: equal"):
        assert part in text
    assert max(map(len, text.splitlines())) < 250


def test_equal_refusals_print_once() -> None:
    pools = [nn.AvgPool2d(3, 1, 1, count_include_pad=False) for _ in range(3)]
    report = reparam.reparameterize(trained(nn.Sequential(*pools)), X).reparam_report
    assert len([r for r in report.refusals if r.operation == "avg_pool2d"]) == 3
    assert str(report).count("count_include_pad") == 1 + str(report).count("count_include_pad=True")
    assert "(and 2 more)" in str(report)
