"""A wrong fold is found, named and undone; `verify=` chooses how much is checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
import reparam.convert as pipeline
from reparam.algebra.lazy import Lazy
from reparam.compare.bounds import EXACT as EXACT_FOLD
from reparam.errors import InputError, VerificationError
from reparam.rules import RULES
from tests.helpers import EXACT, distance, image, trained
from tests.networks import Network, X, network, same, snapshot


@pytest.fixture
def wrong_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for batch norm that forgets epsilon."""
    right = RULES["batch_norm"]

    def apply(*args: Any, **kwargs: Any) -> Any:
        return right.apply(*args[:7], eps=0.0)

    monkeypatch.setitem(RULES, "batch_norm", dataclasses.replace(right, apply=apply))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_wrong_rule_is_caught(wrong_norm: None, inplace: bool) -> None:
    model = network()
    before = snapshot(model)
    with pytest.raises(VerificationError, match=r"stem\.0 is not exact.*Exclude it with keep"):
        reparam.reparameterize(model, X, inplace=inplace)
    assert same(before, snapshot(model))
    assert "reparam_report" not in vars(model)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("guilty", ["head", "blocks.1"])
def test_a_wrong_edit_is_caught_and_named(monkeypatch: pytest.MonkeyPatch, inplace: bool, guilty: str) -> None:
    """Each fold is right by itself, but the layer written into the model is wrong."""
    from reparam.rewrite import apply as emit

    model = trained(nn.Sequential(Network(), nn.Linear(5, 3), nn.Identity(), nn.Linear(3, 2)))
    right = emit.plain_layer

    def wrong(value: Any, like: Tensor) -> Any:
        module, exact = right(value, like)
        mine = isinstance(module, nn.Linear) if guilty == "head" else value.anchor.key.where.startswith("0.blocks.0")
        if mine:
            for parameter in exact:
                exact[parameter] = exact[parameter] * 1.001
                parameter.data.mul_(1.001)
        return module, exact

    monkeypatch.setattr(emit, "plain_layer", wrong)
    before = snapshot(model)
    word = r"Guilty: (3|1|0\.head|the model)" if guilty == "head" else r"Guilty: 0\.blocks\.1"
    with pytest.raises(VerificationError, match=word):
        reparam.reparameterize(model, X, inplace=inplace)
    assert same(before, snapshot(model))


def test_without_verification_a_wrong_fold_passes(wrong_norm: None) -> None:
    model = network()
    folded = reparam.reparameterize(model, X, verify=False)
    assert folded.reparam_report.verification is None
    assert "Not verified" in str(folded.reparam_report)
    assert distance(model, folded, X) > EXACT


def test_folds_alone_are_verified_without_running_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(pipeline, "verify_models", lambda *_, **__: runs.append(1))
    model = network()
    reports = {
        how: reparam.reparameterize(model, X, verify=how).reparam_report
        for how in (False, "folds")  # type: ignore[arg-type]
    }
    assert not runs
    assert [report.checked for report in reports.values()] == ["none", "folds"]
    assert all(fold.error is None for fold in reports[False].folds)
    assert all(fold.error is not None and fold.error <= EXACT for fold in reports["folds"].folds)
    text = str(reports["folds"])
    assert "Each fold verified alone: float64 error " in text
    assert "the whole models were not compared" in text
    assert "Verified: " not in text


def test_folds_alone_find_a_wrong_fold(wrong_norm: None) -> None:
    model = network()
    before = snapshot(model)
    with pytest.raises(VerificationError, match="is not exact"):
        reparam.reparameterize(model, X, verify="folds", inplace=True)
    assert same(before, snapshot(model))


def test_true_means_full() -> None:
    model = network()
    reports = [reparam.reparameterize(model, X, verify=how).reparam_report for how in (True, "full")]  # type: ignore[arg-type]
    assert reports[0].verification == reports[1].verification
    assert reports[0].checked == reports[1].checked == "full"


@pytest.mark.parametrize("wrong", ["fold", "none", "", None, 2])
def test_an_unknown_choice_is_refused_with_the_choices(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"verify=.*'full'.*'folds'.*False"):
        reparam.reparameterize(network(), X, verify=wrong)


@pytest.mark.parametrize(("part", "ok"), [(0.5, True), (1.5, False), (3.0, False)])
@pytest.mark.parametrize("of", ["weight", "bias", "both"])
def test_a_fold_passes_up_to_the_bound(monkeypatch: pytest.MonkeyPatch, of: str, part: float, ok: bool) -> None:
    """A rule that is off by a part of the bound, in what it multiplies or in what it adds, with verify="folds"."""
    right = RULES["batch_norm"]

    def apply(*args: Any, **kwargs: Any) -> Any:
        value = right.apply(*args, **kwargs)
        factor = Lazy.of(torch.tensor([1 + part * EXACT_FOLD], dtype=torch.float64))
        wrong = value.scale_shift(factor)
        if of == "weight":
            return dataclasses.replace(wrong, bias=value.bias)
        return dataclasses.replace(value, bias=wrong.bias) if of == "bias" else wrong

    monkeypatch.setitem(RULES, "batch_norm", dataclasses.replace(right, apply=apply))
    norm = nn.BatchNorm2d(4)
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), norm))
    if of != "both":  # the part that is wrong makes up all of the result
        nn.init.zeros_(norm.bias if of == "weight" else model[0].weight)
        nn.init.zeros_(norm.running_mean)
        nn.init.zeros_(model[0].bias)
    x = image(2, 4, 5, 7)
    if ok:
        (line,) = reparam.reparameterize(model, x, verify="folds").reparam_report.folds
        assert line.error == pytest.approx(part * EXACT_FOLD, rel=1e-3)
    else:
        with pytest.raises(VerificationError, match="is not exact"):
            reparam.reparameterize(model, x, verify="folds")
