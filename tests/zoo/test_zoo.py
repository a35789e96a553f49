"""Public networks, random weights, drawn statistics, small sizes: how much of each is left, and that it is equal."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import reparam
from benchmarks.zoo.models import build
from reparam.capture.float64 import Float64, double
from reparam.nn import draw_constants, draw_statistics
from tests.helpers import convs_ran, distance, norms_ran, ran

pytestmark = pytest.mark.zoo

FP64 = 1e-10  # relative, of every fold and of the whole


@dataclass(frozen=True)
class Row:
    """Convolutions before, and what may be left at most: convolutions (None: as many as before), batch norms."""

    before: int
    after: int | None = None
    norms: int = 0
    size: int = 64  # pixels of a side; the smallest that the family takes with room for borders
    other: tuple[int, int] = (96, 64)  # another resolution


TABLE = {
    "repvgg_a0": Row(44, 22),
    "mobileone_s0": Row(191, 43),
    "mobileone_s1": Row(65, 43),
    "fastvit_t8": Row(68, 52),
    "fastvit_mci0": Row(119, 95, norms=1),
    "repvit_m0_9": Row(126, 103),
    "repghostnet_050": Row(95),
    "ghostnetv3_100": Row(309, 137),
    "resnet50d": Row(55),
    "efficientnet_b0": Row(81),
    "mobilenetv3_small_050": Row(53),
    "inception_v3": Row(94, size=96, other=(107, 96)),
    "nextvit_small": Row(93, norms=1),
    "starnet_s1": Row(80, norms=1),
    "densenet121": Row(120, norms=121),
}

TORCHVISION = {
    "resnet18": Row(20),
    "mobilenet_v3_small": Row(52),
    "googlenet": Row(57),
    "densenet121": Row(120, norms=121),
    "shufflenet_v2_x0_5": Row(56),
    "regnet_y_400mf": Row(85),
}


def input_of(batch: int, *size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def convert_and_check(model: nn.Module, row: Row) -> nn.Module:
    """Converts and verifies; counts what runs; compares at another batch and resolution in float64; converts again."""
    x = input_of(2, row.size, row.size)
    folded = reparam.reparameterize(model, x)
    report = folded.reparam_report
    print(report)

    verification = report.verification
    assert verification.ok
    assert verification.fp64_error <= FP64
    assert all(fold.error <= FP64 for fold in report.folds)

    assert ran(model, x)["convolution"] == row.before
    assert ran(folded, x)["convolution"] <= (row.before if row.after is None else row.after)
    assert (convs_ran(model, x), convs_ran(folded, x)) == (report.before.convs, report.after.convs)
    assert norms_ran(folded, x) == report.after.norms <= row.norms
    assert sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules()) <= row.norms

    truth, twin, other = double(model), double(folded), input_of(3, *row.other).double()
    with Float64():  # at another batch size and resolution; the weights of the twin are rounded to float32
        assert distance(truth, twin, other) < 1e-3

    kept = {line.where for line in report.refusals if line.operation == "batch_norm"}
    assert len(kept) == report.after.norms  # each one with its reason

    again = reparam.reparameterize(folded, x, verify=False)
    assert again.reparam_report.folds == ()
    return folded


_SLOW = ("mobileone_s0", "mobileone_s1", "fastvit_mci0", "repvit_m0_9", "ghostnetv3_100")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in TABLE])
def test_timm(name: str) -> None:
    pytest.importorskip("timm")
    convert_and_check(build(name), TABLE[name])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, **options)
    convert_and_check(draw_statistics(draw_constants(model), inputs=(input_of(1, 224, 224),)).eval(), TORCHVISION[name])
