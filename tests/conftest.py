"""Every test starts from the same seed, on two threads, and can import torchvision and timm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from zoo_models import declare_torchvision_operators

declare_torchvision_operators()
torch.set_num_threads(2)

# The same cases on every run; `--hypothesis-profile=explore` draws new ones, and many.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
