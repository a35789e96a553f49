"""What is planned and reported is the layer that is emitted, and no plan needs more of everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from benchmarks.fuzz.draw import draw_network
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.plan import cost
from reparam.plan.liveness import alive
from tests.helpers import EXACT, Block, Launches, bn, conv, distance, image, report_of, same_conv, seq, summed, trained


def macs_of(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of what a model runs."""
    return sum(map(cost.macs_of, alive(record(model, Inputs.of(inputs)))))


def parameters_of(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def require_counted(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """The model converted: its counts are those of what runs, and not all of them have risen."""
    folded = reparam.reparameterize(model, inputs, verify=False)
    after = report_of(folded).after
    macs, parameters = macs_of(folded, *inputs), parameters_of(folded)
    assert (after.macs, after.parameters) == (macs, parameters)
    assert macs <= macs_of(model, *inputs) or parameters <= parameters_of(model)
    return folded


def _low_rank(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.base(x)) + m.wide(m.narrow(x))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "padded at one end": lambda: (seq(nn.ZeroPad2d((0, 1, 0, 1)), conv(4, 4, 3, stride=2)), (1, 4, 33, 33)),
    "padded at one end, and a norm": lambda: (seq(nn.ZeroPad2d((0, 1, 0, 1)), conv(4, 4, 3), bn()), (1, 4, 9, 7)),
    "causal": lambda: (seq(nn.ZeroPad1d((2, 0)), nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)), (1, 8, 100)),
    "same with an even kernel": lambda: (seq(conv(4, 4, 4, padding="same"), bn()), (2, 4, 9, 7)),
    "low rank": lambda: (
        Block(_low_rank, base=nn.Linear(64, 64), narrow=nn.Linear(64, 8), wide=nn.Linear(8, 64)),
        (1, 2, 64),
    ),
    "narrow and wide": lambda: (seq(conv(16, 4, 1), conv(4, 64, 1)), (1, 16, 3, 3)),
    "rows and columns": lambda: (
        summed(conv(4, 4, (1, 3), padding=(0, 1)), conv(4, 4, (3, 1), padding=(1, 0))),
        (1, 4, 5, 7),
    ),
    "pooled": lambda: (seq(conv(4, 4, 1), nn.AvgPool2d(2)), (1, 4, 8, 6)),
    "groups behind a shuffle": lambda: (
        seq(conv(8, 8, 3, groups=2), nn.ChannelShuffle(2), nn.ChannelShuffle(4), same_conv(8, 8, groups=2)),
        (1, 8, 9, 7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_what_runs(name: str) -> None:
    model, shape = NETWORKS[name]()
    model = trained(model, image(*shape))
    folded = require_counted(model, image(*shape))
    for x in (image(*shape), image(2, *shape[1:], seed=1)):
        assert distance(model, folded, x) < EXACT


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [*range(0, 120, 7), 149])
def test_counts_of_random_networks(seed: int) -> None:
    model, inputs = draw_network(seed).build()
    require_counted(model, *inputs)


@pytest.mark.parametrize("size", [(33, 33), (9, 12), (1, 2)])
def test_a_kernel_does_not_grow_by_zero_taps(size: tuple[int, int]) -> None:
    x = image(1, 4, *size)
    model = trained(seq(nn.ZeroPad2d((0, 1, 0, 1)), conv(4, 4, 2, stride=2), bn()), x)
    folded = reparam.reparameterize(model, x)
    assert folded[1].kernel_size == (2, 2)
    assert type(folded[0]) is nn.ZeroPad2d
    assert report_of(folded).after.norms == 0


@pytest.mark.parametrize("taps", [(4, 3), (2, 2), (6, 1)])
def test_a_layer_pads_as_same_says(taps: tuple[int, int]) -> None:
    x = image(1, 4, 9, 6)
    model = trained(seq(conv(4, 4, taps, padding="same", dilation=(1, 2)), bn()), x)
    folded = reparam.reparameterize(model, x)
    assert (folded[0].kernel_size, folded[0].padding) == (taps, "same")
    assert distance(model, folded, image(2, 4, 5, 8)) < EXACT
    assert not report_of(reparam.reparameterize(folded, x)).folds


def test_what_stays_small_is_explained() -> None:
    model, shape = NETWORKS["narrow and wide"]()
    report = report_of(reparam.reparameterize(trained(model), image(*shape)))
    assert any("more multiply-adds and more parameters" in refusal.reason for refusal in report.refusals)
    report = report_of(reparam.reparameterize(model, image(*shape), cost=Launches()))  # the user's own cost may grow it
    assert report.after.convs == 1
