"""Errors that leave the model as it was, and what a conversion says and does on the side."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError, ModelError, ReparamError, TrainModeError
from tests.helpers import image, trained
from tests.networks import Network, X, network, same, snapshot


def with_nan() -> nn.Module:
    model = network()
    with torch.no_grad():
        model.stem[0].weight[0, 0, 0, 0] = float("nan")
    return model


def with_infinite_statistics() -> nn.Module:
    model = network()
    model.stem[1].running_var[0] = float("nan")
    return model


def with_an_infinite_variance() -> nn.Module:
    model = network()
    model.stem[1].running_var[0] = float("inf")
    return model


class Int8Tensor(torch.Tensor):
    """As quantisation libraries hold a weight: whole numbers and their scales, behind a dispatch of its own."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, scales: torch.Tensor) -> Int8Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scales.dtype)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor) -> None:
        self.numbers, self.scales = numbers, scales

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scales)
        raise NotImplementedError(func)


def in_train_mode() -> nn.Module:
    model = network()
    model.blocks[0].train()
    return model


def on_meta() -> nn.Module:
    return Network().eval().to("meta")


def in_float8() -> nn.Module:
    model = network(torch.float32)
    model.head.weight = nn.Parameter(model.head.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return model


ERRORS: dict[str, tuple[Callable[[], Any], dict[str, Any], type[ReparamError], str]] = {
    "train mode": (in_train_mode, {}, TrainModeError, r"blocks\.0.*eval\(\)"),
    "NaN": (with_nan, {}, ModelError, r"stem\.0\.weight.*not finite"),
    "NaN statistics": (with_infinite_statistics, {}, ModelError, r"stem\.1\.running_var.*not finite"),
    "infinite statistics": (with_an_infinite_variance, {}, ModelError, r"stem\.1\.running_var.*not finite"),
    "fails on its inputs": (network, {"example_inputs": image(1, 4, 9, 7)}, ModelError, r"1x4x9x7.*RuntimeError"),
    "wrong arguments": (network, {"example_inputs": {"y": X}}, ModelError, "TypeError"),
    "meta": (on_meta, {}, ModelError, r"stem\.0\.weight.*meta"),
    "float8": (in_float8, {}, ModelError, r"head\.weight.*float8"),
    "unknown cost": (network, {"cost": "guessed"}, InputError, "'guessed'.*'static'"),
    "no module": (lambda: {"weight": X}, {}, InputError, "dict.*Module"),
    "a class": (lambda: Network, {}, InputError, "Module"),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_leaves_the_model_untouched(name: str, inplace: bool) -> None:
    make, options, error, message = ERRORS[name]
    model = make()
    before = snapshot(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=message):
        reparam.reparameterize(model, inplace=inplace, **{"example_inputs": X, **options})
    if isinstance(model, nn.Module):
        assert same(before, snapshot(model))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_weight_of_a_quantisation_library_is_named() -> None:
    model = network(torch.float32)
    numbers = torch.ones(model.head.weight.shape, dtype=torch.int8)
    model.head.weight = nn.Parameter(Int8Tensor(numbers, torch.ones(5, 1)), requires_grad=False)
    with pytest.raises(ModelError, match=r"head\.weight.*Int8Tensor.*fold before the model is quantised"):
        reparam.reparameterize(model, X.float())


def test_a_quantized_model_is_refused() -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.dequantize()

    with pytest.raises(ModelError, match=r"weight is torch\.qint8"):
        reparam.reparameterize(Quantized().eval(), torch.randn(2, 4))


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reparam.reparameterize(network(), X, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "recording" in err
    assert "folding 3 regions" in err


def test_silence_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    reparam.reparameterize(network(), X)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(collecting: bool, fails: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(ModelError) if fails else contextlib.nullcontext():
            reparam.reparameterize(trained(Network()), image(1, 7 if fails else 3, 16, 16))
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()
