"""Every test starts from the same seed, on one thread, and can import torchvision and timm."""

from __future__ import annotations

import os

# Read when torch is first imported, here and in what the tests start. Tests run side by side, one process per core: a
# second thread in each would only wait, and one that spins while it waits slows a busy machine down a hundred times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from benchmarks.zoo.models import declare_torchvision_operators

pytest.register_assert_rewrite("tests.algebra.laws", "tests.capture.residual")

declare_torchvision_operators()
torch.set_num_threads(1)

# The same cases on every run; `--hypothesis-profile=explore` draws new ones, and many. No test fails for being slow:
# on a busy machine all are.
SLOW = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=SLOW)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
