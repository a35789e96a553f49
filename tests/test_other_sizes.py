"""Code whose sizes are those of the example: a fold holds for all that the original takes, or is none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import reparam
from helpers import EXACT, Block, distance, image, trained


def test_entries_picked_by_their_number_may_be_of_more_than_there_were() -> None:
    """Pixels that were moved to the channels: a constant picks four, whether there are five or fifty."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(torch.index_select(m.block(x.relu()), 1, m.index))

    block = Block(lambda m, x: x.view(x.shape[0], 2, -1).transpose(1, 2))
    model = trained(Block(forward, block=block, index=torch.tensor([2, 6, 1, 5]), conv=nn.Conv1d(4, 3, 2)))
    folded = reparam.reparameterize(model, image(1, 8, 5), verify=False)
    for length in (5, 9, 4, 2):
        assert distance(model, folded, image(2, 8, length)) < EXACT
