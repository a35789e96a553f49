"""`keep=`: modules whose output stays what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError
from tests.helpers import convs_ran, norms_ran
from tests.networks import X, network, same, snapshot


def test_keep_by_name() -> None:
    """A kept module's output is there as it was; nothing folds across it."""
    model = network()
    folded = reparam.reparameterize(model, X, keep=["stem.0"])
    seen: dict[nn.Module, Tensor] = {}
    for each in (model, folded):
        each.stem[0].register_forward_hook(lambda m, args, result, each=each: seen.update({each: result}))
        each(X)
    assert torch.equal(seen[model], seen[folded])
    assert norms_ran(folded, X) == 2  # the one behind it and the one behind a ReLU
    assert convs_ran(folded, X) == 4


@pytest.mark.parametrize("keep", [("blocks.*",), "blocks.0.branches.*", ["stem", "blocks.1"], ("*",)])
def test_keep_by_pattern(keep: Any) -> None:
    from fnmatch import fnmatchcase

    model = network()
    folded = reparam.reparameterize(model, X, keep=keep)
    kept = [
        n
        for n, _ in model.named_modules()
        if n and any(fnmatchcase(n, k) for k in ([keep] if isinstance(keep, str) else keep))
    ]
    seen: dict[tuple[int, str], Tensor] = {}
    for i, each in enumerate((model, folded)):
        for name in kept:
            module = each.get_submodule(name)
            module.register_forward_hook(lambda m, args, result, key=(i, name): seen.update({key: result}))
        each(X)
    assert kept
    reached = [name for name in kept if (0, name) in seen]
    assert reached
    for name in reached:
        assert torch.allclose(seen[1, name], seen[0, name], rtol=1e-12, atol=1e-12), name


def test_keep_everything_folds_nothing() -> None:
    assert not reparam.reparameterize(network(), X, keep=("*",)).reparam_report.folds


def test_keep_that_matches_nothing() -> None:
    model = network()
    before = snapshot(model)
    with pytest.raises(InputError, match=r"stm\.0.*named_modules"):
        reparam.reparameterize(model, X, keep=["stem.0", "stm.0"])
    assert same(before, snapshot(model))
