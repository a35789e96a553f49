"""Python's own functions of sizes between the layers."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.capture.residual import SIZES, fold_at
from tests.helpers import convs_ran, image


class Sized(nn.Module):
    """A layer whose forward computes a padding from the size of the image."""

    def __init__(self, work: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        pad = self.work(x)
        return self.norm(self.conv(F.pad(x, (0, int(pad), 1, 1)))).relu()


def as_in_tensorflow(x: Tensor) -> int:
    width = int(x.shape[-1])
    return max(3 - 2, 0) if width % 2 == 0 else max(3 - (width % 2), 0)


def halved(x: Tensor) -> int:
    return int(math.ceil(x.shape[-1] / 2) * 2) - x.shape[-1]


def rounded(x: Tensor) -> int:
    return round(float(x.shape[-1]) / 2 + 0.1) - len(x)


def mapped(x: Tensor) -> int:
    height, width = map(int, x.shape[-2:])
    return max(0, min(height, width) - 3)


def checked(x: Tensor) -> int:
    if not isinstance(x.shape[-1] // 1, (int, fx.Proxy)):
        raise TypeError("a size is a number")
    if x.shape[1] != 4:
        raise ValueError(f"{int(x.shape[1])} channels instead of 4")
    assert x.shape[-1] > 1, f"{len(x)} images are too narrow: {x.shape}"
    return int(x.shape[-1] // 4 + 2)


SIZED = [as_in_tensorflow, halved, rounded, mapped, checked]


@pytest.mark.parametrize("work", SIZED)
def test_python_functions_of_sizes(work: Callable[[Tensor], Any]) -> None:
    fold_at(Sized(work), sizes=(*SIZES, (1, 4, 3, 3), (2, 4, 31, 30)))


def whole(x: Tensor) -> Any:
    return math.ceil(x.shape[-1] / 2) * 2 - x.shape[-1]


def least(x: Tensor) -> Any:
    return x.shape[-1] // 2 + round(x.shape[-2] / 3)


@pytest.mark.parametrize("work", [whole, least, checked, halved, rounded, mapped])
def test_code_with_python_functions_of_sizes_is_rewritten(work: Callable[[Tensor], Any]) -> None:
    """Not where a size becomes a plain number, and code goes on with that."""

    class Branches(Sized):
        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(x, (0, work(x)))
            return (self.norm(self.conv(x)) + self.conv(x)).relu()

    kept = work in (halved, rounded, mapped)
    result = fold_at(Branches(work), norms=int(kept), sizes=(*SIZES, (2, 4, 31, 30)))
    assert convs_ran(result, image(*SIZES[0])) == 1 + kept


def test_a_forward_that_refuses_a_size_still_does() -> None:
    class Even(Sized):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] % 2:
                raise ValueError("an odd width")
            return (self.norm(self.conv(x)) + self.conv(x)).relu()

    result = fold_at(Even(checked), sizes=((2, 4, 9, 8), (1, 4, 5, 4), (3, 4, 6, 6)))
    assert convs_ran(result, image(2, 4, 9, 8)) == 1
    with pytest.raises(AssertionError, match="Even"):
        result(image(2, 4, 9, 7))


class Forgives(nn.Module):
    """A forward in which an exception decides what is computed."""

    def __init__(self, work: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        try:
            self.work(x)
        except (TypeError, ValueError, AssertionError):
            return y
        return self.norm(y)


def refuses_odd(x: Tensor) -> None:
    if x.shape[-1] % 2:
        raise ValueError("an odd width")


def asserts_even(x: Tensor) -> None:
    assert x.shape[-1] % 2 == 0


@pytest.mark.parametrize("work", [refuses_odd, asserts_even, mapped])
def test_a_caught_exception_is_control_flow(work: Callable[[Tensor], Any]) -> None:
    fold_at(Forgives(work), norms=int(work is not mapped), sizes=((2, 4, 9, 8), (1, 4, 5, 5), (3, 4, 6, 6)))


NARROW = """
def narrow(x):
    width = x.shape[-1]
    return int(width) if CONDITION else 2
"""


@pytest.mark.parametrize("names", [("type(width)", "int"), ("int", "type(width)")])
def test_type_comparisons_see_the_real_type(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = f"narrow_{names[0][:3]}"
    (tmp_path / f"{file}.py").write_text(NARROW.replace("CONDITION", " is ".join(names)))
    monkeypatch.syspath_prepend(tmp_path)
    fold_at(Sized(importlib.import_module(file).narrow))


def test_code_without_a_source_file() -> None:
    scope: dict[str, Any] = {}
    exec("def whole(x): return int(x.shape[-1])", scope)
    fold_at(Sized(scope["whole"]))
