"""Batch norms: whose statistics they use, and which layers take their scale and shift."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, Block, conv, convs_ran, distance, fold_exactly, image, norms_ran, trained

SIZES = [(2, 4, 5, 7), (1, 4, 1, 3), (3, 4, 8, 5)]


@pytest.mark.parametrize("inside", [False, True])
def test_statistics_of_the_batch_are_used_where_code_asks_for_them(inside: bool) -> None:
    """In eval mode as well, and though there are running statistics, which such a call changes."""

    def forward(m: Block, x: Tensor) -> Tensor:
        mean, var = (m.norm.running_mean, m.norm.running_var) if inside else (m.mean.clone(), m.var.clone())
        return F.batch_norm(m.conv(x), mean, var, m.norm.weight, m.norm.bias, training=True)

    model = trained(Block(forward, conv=conv(4, 4, 1), norm=nn.BatchNorm2d(4), mean=image(4), var=image(4).exp()))
    x = image(*SIZES[0])
    result = reparam.reparameterize(model, x)
    assert norms_ran(result, x) == 1
    assert any("depends on the batch" in refusal.reason for refusal in result.reparam_report.refusals)
    for size in SIZES:
        assert distance(model, result, image(*size)) < EXACT


def test_a_convolution_shared_by_two_norms_is_computed_once_for_each() -> None:
    """One module called twice, with another norm behind each call: each gets a convolution of its own."""

    def forward(m: Block, x: Tensor) -> Tensor:
        return m.first(m.conv(x)).relu() + m.second(m.conv(x.relu())).sigmoid()

    model = trained(Block(forward, conv=conv(4, 4, 3, padding=1), first=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4)))
    fold_exactly(model, *[image(*size) for size in SIZES], convs=2)


def test_a_result_of_a_convolution_read_by_two_norms() -> None:
    """One tensor, two readers: neither norm may change what the other reads."""

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.first(y).relu() + m.second(y).sigmoid()

    model = trained(Block(forward, conv=conv(4, 4, 3, padding=1), first=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4)))
    result = fold_exactly(model, *[image(*size) for size in SIZES])
    assert convs_ran(result, image(*SIZES[0])) + norms_ran(result, image(*SIZES[0])) <= 3
