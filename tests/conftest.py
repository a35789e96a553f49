"""Every test starts from the same seed, on two threads, and can import torchvision and timm."""

from __future__ import annotations

import os

# Read when torch is first imported. A thread that spins while it waits for one whose core is taken makes a run on a
# busy machine a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

from benchmarks.zoo.models import declare_torchvision_operators

declare_torchvision_operators()
torch.set_num_threads(2)

# The same cases on every run; `--hypothesis-profile=explore` draws new ones, and many.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
