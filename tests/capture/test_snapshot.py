"""Running a model leaves what its modules hold as it was, also in containers that nobody may write to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.capture.snapshot import AttributeSnapshot
from tests.helpers import bn, conv, convs_ran, fold_exactly, image, trained


def _refuse(self: Any, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError(f"a {type(self).__name__} cannot be written to")


def _frozen(name: str, kind: type, writers: str) -> Any:
    """A subclass of a container that can be copied and not written to, as libraries have for configurations."""
    members = dict.fromkeys(writers.split(), _refuse)
    frozen: Any = type(name, (kind,), {**members, "__reduce_ex__": lambda self, _: (frozen, (kind(self),))})
    return frozen


FrozenDict = _frozen("FrozenDict", dict, "clear update setdefault pop popitem __setitem__ __delitem__ __ior__")
FrozenList = _frozen("FrozenList", list, "clear append extend insert pop remove __setitem__ __delitem__ __iadd__")


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 3), bn()

    def forward(self, x: Tensor, config: Any) -> Tensor:
        return self.norm(self.conv(x)) * config["scale"]


class _Configured(nn.Module):
    """Some layers are exchanged, and its own forward is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.config = FrozenDict(scale=2.0, levels=FrozenList([FrozenDict(width=4)]))
        self.first, self.second, self.layer = conv(4, 4, 1), conv(4, 4, 1), _Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.first(x) + self.second(x)), self.config)


def test_a_frozen_configuration() -> None:
    x = image(2, 4, 9, 7)
    model = trained(_Configured(), x)
    folded = fold_exactly(model, x, image(1, 4, 3, 3), norms=0)
    assert convs_ran(folded, x) == 2
    assert type(folded.config) is FrozenDict
    assert folded.config == model.config


class _Lazy(dict[str, Tensor]):
    """A cache that grows and cannot be emptied."""

    clear = _refuse


class _Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 1), bn()
        self.caches = [_Lazy()]

    def forward(self, x: Tensor) -> Tensor:
        self.caches[0][str(tuple(x.shape))] = x
        return self.norm(self.conv(x))


def test_a_container_that_cannot_be_put_back_is_named() -> None:
    with pytest.raises(
        reparam.ModelError, match=r"_Caches changes self.caches, and its class _Lazy .*cannot be written"
    ):
        reparam.reparameterize(_Caches().eval(), image(1, 4, 5, 5, dtype=torch.float32))


def _added(container: Any) -> None:
    container["new"] = 1


def _moved(container: Any) -> None:
    container["a"] = container.pop("a")


def _replaced(container: Any) -> None:
    container["a"] = [1]


@pytest.mark.parametrize("change", [_added, _moved, _replaced, dict.clear])
def test_what_has_changed_is_put_back(change: Callable[[Any], Any]) -> None:
    module = nn.Identity()
    module.table = {"a": [1], "b": 2}
    table, first = module.table, module.table["a"]
    before = AttributeSnapshot(module)
    change(table)
    module.other, first[0] = 3, 2
    before.restore()
    assert module.table is table
    assert table["a"] is first
    assert list(table.items()) == [("a", [1]), ("b", 2)]
    assert not hasattr(module, "other")


def test_a_container_that_holds_itself() -> None:
    module = nn.Identity()
    module.loop = []
    module.loop.append(module.loop)
    before = AttributeSnapshot(module)
    module.loop.append(1)
    before.restore()
    assert len(module.loop) == 1
