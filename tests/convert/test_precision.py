"""A fold that is right and loses precision is left out with that reason; it is no error."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import Block, bn, conv, convs_ran, image, norms_ran, report_of, seq, trained


def reasons(model: nn.Module) -> list[str]:
    return [refusal.reason for refusal in report_of(model).refusals]


def standardised(mean: float) -> nn.Module:
    """A mean is subtracted before a convolution: folded, it is subtracted from a sum that is as large."""
    tail = trained(
        seq(conv(8, 4, 3), bn(4), nn.ReLU(), conv(4, 4, 1), bn(4)), image(2, 8, 9, 9).float(), dtype=torch.float32
    )

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.tail(F.relu(m.first((x - m.mean) / m.std)))

    constants = {"mean": torch.full((1, 3, 1, 1), mean), "std": torch.full((1, 3, 1, 1), 0.9)}
    return Block(forward, first=nn.Conv2d(3, 8, 3), tail=tail, **constants).eval()


@pytest.mark.parametrize("inplace", [False, True])
def test_a_fold_that_cancels_is_left_out(inplace: bool) -> None:
    model, x = standardised(1e4), image(2, 3, 11, 14, dtype=torch.float32) + 1e4
    with torch.no_grad():
        truth = model(x)
    folded = reparam.reparameterize(model, x, inplace=inplace)
    assert norms_ran(folded, x) == 0
    assert convs_ran(folded, x) == 3
    assert sum("lose precision" in reason for reason in reasons(folded)) == 1
    verification = report_of(folded).verification
    assert verification is not None
    assert verification.ok
    with torch.no_grad():
        assert (folded(x) - truth).abs().max() < 1e-5 * truth.abs().max()


def test_a_fold_that_does_not_cancel_is_made() -> None:
    model, x = standardised(0.5), image(2, 3, 11, 14, dtype=torch.float32) + 0.5
    folded = reparam.reparameterize(model, x)
    assert not [reason for reason in reasons(folded) if "precision" in reason]
    assert len(report_of(folded).folds) == 3


def test_in_a_finer_dtype_it_is_made() -> None:
    model, x = standardised(1e4).double(), image(2, 3, 11, 14) + 1e4
    assert len(report_of(reparam.reparameterize(model, x)).folds) == 3


def loud(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A norm of tiny activations, whose scale is beyond what float16 holds; the other norm is not."""
    x = image(2, 3, 9, 8).float()
    model = trained(seq(conv(3, 8, 3), bn(8), nn.ReLU(), conv(8, 4, 3), bn(4)), x, dtype=torch.float32)
    model[1].eps, model[1].running_var = 0.0, torch.full((8,), 1e-6)
    model[1].running_mean, model[1].weight = torch.zeros(8), nn.Parameter(torch.full((8,), 50.0))
    model[0].weight.data.copy_(torch.where(model[0].weight > 0, 3.0, -3.0))
    return model.to(dtype), (x * 2.0**-13).to(dtype)


@pytest.mark.parametrize("verify", ["full", "folds", False])
def test_weights_that_overflow_are_left_out(verify: bool | str) -> None:
    model, x = loud(torch.float16)
    folded = reparam.reparameterize(model, x, verify=verify)  # type: ignore[arg-type]
    assert norms_ran(folded, x) == 1
    assert len(report_of(folded).folds) == 1
    assert [reason for reason in reasons(folded) if "float16 ends at 6.6e+04" in reason], reasons(folded)
    assert all(bool(tensor.isfinite().all()) for tensor in folded.state_dict().values())


def test_weights_that_fit_are_folded() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        model, x = loud(dtype)
        assert norms_ran(reparam.reparameterize(model, x), x) == 0
