"""What Python's and torch's libraries put between the layers: caches, checkpoints, autocast, wrappers."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import reparam
from reparam.errors import ModelError
from tests.capture.residual import SIZES, Layer, Residual, fold_at
from tests.helpers import convs_ran, distance, image, norms_ran, report_of, trained


@functools.lru_cache(maxsize=4)
def grid(height: int, width: int) -> Tensor:
    """A table of positions."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, x * y, x + y])[None]


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer(taps=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.second(x) + grid(x.shape[2], x.shape[3])
        return y.relu()


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.positions, self.head = Residual(), Positions(), Residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.positions(self.block(x)))


@pytest.mark.parametrize("warm", [False, True])
def test_a_cached_table_of_positions(warm: bool) -> None:
    grid.cache_clear()
    if warm:
        Pyramid()(torch.randn(SIZES[0]))
    result = fold_at(Pyramid())
    assert convs_ran(result, image(1, 4, 8, 8)) == 3
    assert all(type(grid(*size[2:])) is Tensor for size in SIZES)
    pickle.loads(pickle.dumps(result))(image(1, 4, 8, 8))


def test_caches_keep_nothing_of_verification() -> None:
    model = trained(Pyramid(), torch.randn(2, 4, 9, 7), dtype=torch.float32)
    result = reparam.reparameterize(model, torch.randn(2, 4, 9, 7))
    for size in SIZES:
        x = torch.randn(size)
        assert result(x).dtype == model(x).dtype == torch.float32
    assert all(grid(*size[2:]).dtype == torch.float32 for size in SIZES)


@functools.lru_cache
def ramp(length: int) -> Tensor:
    """A table that is exact in every dtype."""
    return torch.arange(length) * 0.25


class Ramped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + ramp(x.shape[3])).relu()


def test_caches_keep_nothing_of_what_loading_computes(tmp_path: Path) -> None:
    """A loaded model is checked in float64. A table cached meanwhile would make every later result float64."""
    x = image(2, 4, 5, 7, dtype=torch.float32)
    reparam.save(reparam.reparameterize(trained(Ramped(), x, dtype=torch.float32), x), tmp_path / "model.safetensors")
    ramp.cache_clear()
    loaded = reparam.load(tmp_path / "model.safetensors", Ramped())
    assert loaded(x).dtype == ramp(7).dtype == torch.float32


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class Efficient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = Layer(), Layer(taps=1), Layer()

    def forward(self, x: Tensor) -> Any:
        return self.last(Swish.apply(self.first(x) + self.second(x)))


def test_an_autograd_function_of_its_own() -> None:
    fold_at(Efficient())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Residual(), Residual())

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about an input without gradient
        result = fold_at(Network())
    assert convs_ran(result, image(1, 4, 8, 8)) == 2


class Checkpointed(nn.Module):
    """Its own code goes through a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer(taps=1)

    def inner(self, x: Tensor) -> Any:
        return (self.first(x) + self.second(x)).relu()

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


def test_a_forward_through_a_checkpoint() -> None:
    fold_at(Checkpointed())


class Fourier(nn.Module):
    """A branch in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = Layer(), Layer(taps=1), Layer()
        self.mix = Layer(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.second(x)
        spectrum = torch.fft.rfft2(y, norm="ortho")
        parts = self.mix(torch.cat([spectrum.real, spectrum.imag], 1)).relu()
        real, imag = parts.chunk(2, 1)
        return self.last(y + torch.fft.irfft2(torch.complex(real, imag), s=y.shape[-2:], norm="ortho"))


def test_complex_tensors_are_kept() -> None:
    result = fold_at(Fourier())
    assert convs_ran(result, image(1, 4, 8, 8)) == 3


class PartlyHalf(nn.Module):
    """A part in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = Residual(), Residual(), Residual()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.middle(x)
        return self.last(x.float())


def test_autocast_inside_is_kept_and_named() -> None:
    inputs = torch.randn(2, 4, 9, 7)
    model = trained(PartlyHalf(), inputs, dtype=torch.float32)
    result = reparam.reparameterize(model, inputs)
    assert [norms_ran(each, inputs) for each in result.children()] == [0, 2, 0]
    assert any("dtype" in line.reason and line.where.startswith("middle") for line in report_of(result).refusals)
    assert distance(model, result, torch.randn(1, 4, 12, 5)) < 1e-2


def test_data_parallel() -> None:
    model = fold_at(nn.DataParallel(nn.Sequential(Residual(), Residual())))
    assert isinstance(model, nn.DataParallel)
    assert convs_ran(model.module, image(1, 4, 8, 8)) == 2


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_group")
def test_distributed_data_parallel_is_explained() -> None:
    model = nn.parallel.DistributedDataParallel(trained(Residual(), image(2, 4, 9, 7))).eval()
    with pytest.raises(ModelError, match=r"model\.module"):
        reparam.reparameterize(model, image(2, 4, 9, 7))


def test_a_compiled_model_is_explained() -> None:
    model = torch.compile(trained(Residual(), image(2, 4, 9, 7)), backend="eager")
    with pytest.raises(ModelError, match="_orig_mod"):
        reparam.reparameterize(model, image(2, 4, 9, 7))


def test_a_compiled_part_is_explained() -> None:
    inner = torch.compile(Residual(), backend="eager")
    model = trained(nn.Sequential(nn.ReLU(), Residual()), image(2, 4, 9, 7))
    model.append(inner.eval().double())
    with pytest.raises(ModelError, match=r"2 .*_orig_mod"):
        reparam.reparameterize(model, image(2, 4, 9, 7))
