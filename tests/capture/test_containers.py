"""Tensors in containers, on their way in, between modules and on their way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.residual import SIZES, Layer, PassesOn, Residual, fold_at
from tests.helpers import convs_ran, image


@dataclass
class DataclassOutput:
    features: Tensor
    pooled: Tensor | None = None


class NamedOutput(NamedTuple):
    features: Tensor
    pooled: Tensor


class ModelOutput(dict[str, Any]):
    """As in transformers: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def as_dataclass(features: Tensor, pooled: Tensor) -> DataclassOutput:
    return DataclassOutput(features, pooled=pooled)


def as_dict(features: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    return {"features": features, "pooled": pooled}


def as_output(features: Tensor, pooled: Tensor) -> ModelOutput:
    return ModelOutput(features=features, pooled=pooled)


class Structured(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make
        self.first, self.second = Layer(), Layer(taps=1)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x) + self.second(x)
        return self.make(y.relu(), y.mean((2, 3)))


class Reads(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.body = Structured(make)
        self.block = Residual()

    def forward(self, x: Tensor) -> Any:
        out = self.body(x)
        features = out["features"] if isinstance(out, dict) else out.features
        return self.body.make(self.block(features), features.mean((2, 3)))


@pytest.mark.parametrize("make", [as_dataclass, NamedOutput, as_dict, as_output])
def test_structured_outputs(make: Any) -> None:
    x = image(1, 4, 8, 8)
    result = fold_at(Reads(make))
    assert type(result(x)) is type(make(x, x))
    assert convs_ran(result, x) == 2


class TakesContainers(nn.Module):
    """Tensors in lists, tuples and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Layer(), Layer(taps=1), Layer()

    def forward(self, images: Any) -> Any:
        x, (y,), rest = images["list"][0], images["pair"], images["more"]
        return [(self.a(x) + self.b(x)).relu(), (self.c(y) + rest["z"]).relu()]


class GivesContainers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_containers = TakesContainers()

    def forward(self, x: Tensor) -> Any:
        return self.in_containers({"list": [x.sin()], "pair": (x.cos(),), "more": {"z": x}})[::-1]


def in_containers(x: Tensor) -> Any:
    return ({"list": [x.sin()], "pair": (x.cos(),), "more": {"z": x}},)


@pytest.mark.parametrize(("model", "given"), [(TakesContainers(), in_containers), (GivesContainers(), lambda x: (x,))])
def test_tensors_in_containers(model: nn.Module, given: Any) -> None:
    result = fold_at(model, given=given)
    assert convs_ran(result, *given(image(1, 4, 8, 8))) == 2


class ReturnsInput(nn.Module):
    """Returns its inputs, read and unread."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.same = Layer(), PassesOn()

    def forward(self, x: Tensor) -> Any:
        y = self.layer(self.same(x))
        return x, self.same(y) + x


def test_an_input_that_is_returned() -> None:
    result = fold_at(ReturnsInput())
    x = image(1, 4, 8, 8)
    assert result(x)[0] is x


class Fuses(nn.Module):
    """A head that loops over a container and reads sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList(Layer() for _ in range(3))
        self.fuse, self.norm = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, features: Any) -> Tensor:
        features = list(features.values()) if isinstance(features, dict) else features
        assert len(features) == 3, f"{len(features)} levels"
        size, found = features[0].shape[-2:], []
        for i, (feature, side) in enumerate(zip(features, self.sides, strict=True)):
            found.append(F.interpolate(side(feature), size) * (i + 1))
        y = self.norm(self.fuse(torch.cat([each.relu() for each in found[::-1]], 1)))
        return y * features[-1].mean((2, 3), keepdim=True) * len(features)


class Levels(nn.Module):
    """Makes a pyramid of `count` levels in code that cannot be traced, and passes it to a head."""

    def __init__(self, head: nn.Module, make: Callable[[list[Tensor]], Any], count: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.head, self.make, self.count = head, make, count

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.head(self.make([x[..., i:, i:] for i in range(self.count(x))]))


def in_turns(features: list[Tensor]) -> dict[str, Tensor]:
    """Levels in an order that depends on the batch."""
    names = "abc" if len(features[0]) < 40 else "bca"
    return {name: features["abc".index(name)] for name in names}


def named_levels(features: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip("abc", features, strict=True))


@pytest.mark.parametrize("make", [list, tuple, named_levels])
def test_a_container_of_tensors_is_looped_over(make: Callable[[list[Tensor]], Any]) -> None:
    result = fold_at(Levels(Fuses(), make, lambda x: 3), sizes=(*SIZES, (1, 4, 4, 4)))
    assert "other arguments" in result.head.code


@pytest.mark.parametrize(
    ("make", "count"),
    [(list, lambda x: 3 if len(x) < 40 else 2), (list, lambda x: max(3, len(x))), (in_turns, lambda x: 3)],
)
def test_another_container_is_refused_at_run_time(make: Any, count: Any) -> None:
    result = fold_at(Levels(Fuses(), make, count))
    with pytest.raises(AssertionError, match="head was converted for calls with other arguments"):
        result(image(41, 4, 9, 7))


class Optional(nn.Module):
    """A head that leaves out the levels that are missing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, features: list[Tensor | None]) -> Tensor:
        there = [feature for feature in features if feature is not None]
        return self.norm(self.conv(sum(F.adaptive_avg_pool2d(each.relu(), there[0].shape[-2:]) for each in there)))


def test_a_missing_level_that_appears_is_refused_at_run_time() -> None:
    def make(features: list[Tensor]) -> list[Tensor | None]:
        return [features[0], None if len(features[0]) < 40 else features[1], features[2]]

    result = fold_at(Levels(Optional(), make, lambda x: 3))
    with pytest.raises(AssertionError, match="head was converted for calls with other arguments"):
        result(image(41, 4, 9, 7))


def test_a_size_in_a_container_may_change() -> None:
    class Sizes(Fuses):
        def forward(self, features: Any) -> Tensor:
            *levels, (height, width) = features
            y = self.norm(self.fuse(torch.cat([F.interpolate(each, (height, width)) for each in levels], 1)))
            return y * height

    fold_at(Levels(Sizes(), lambda levels: [*levels, tuple(levels[1].shape[-2:])], lambda x: 3))
