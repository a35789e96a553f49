"""Dead weight: what the report names, what `prune=True` removes, and what it has to leave."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.errors import VerificationError
from reparam.nn import RepVGGBlock
from reparam.rewrite import prune as pruning
from tests.helpers import EXACT, Block, distance, image, ran, trained

X = image(2, 3, 11, 14)


def stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))


def head(inplace: bool = False) -> nn.Module:
    """What classifies from the middle of a network while it is trained."""
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    return nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace), *pooled)


def numbers_in(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def stored(model: nn.Module) -> tuple[int, int]:
    """Elements and bytes of a state_dict, each tensor once."""
    held = {t.data_ptr(): t for t in model.state_dict().values() if t.numel()}.values()
    return sum(t.numel() for t in held), sum(t.numel() * t.element_size() for t in held)


class Training(nn.Module):
    """A head that only training calls, in the form of torchvision: eval asks whether it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux, self.out = stem(), head(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        aux = None
        if self.aux is not None and self.training:
            aux = self.aux(x)
        x = self.out(x)
        return (x, aux) if self.training else x


class Dropped(nn.Module):
    """A head that is called whatever the mode, and whose result only training returns."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem, self.aux, self.out = stem(), head(inplace), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        aux = self.aux(x)
        x = self.out(x)
        return (x, aux) if self.training else x


class Branches(nn.Module):
    """Code that a fold rewrites, with a norm whose result is dropped in the middle of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.lost = stem(), stem(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        _ = self.lost(a) + 1
        return torch.relu(a + b)


def unused(**members: Any) -> Block:
    return Block(lambda m, x: m.stem(x).relu(), stem=stem(), **members)


def functional(m: Any, x: Tensor) -> Tensor:
    _ = F.conv2d(x, m.lost * 2)
    return F.relu(m.stem(x))


def unread_statistics(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, m.norm.weight, m.norm.bias, training=True)


def tied() -> nn.Module:
    model = Block(lambda m, x: F.relu(m.encoder(x)), encoder=nn.Conv2d(3, 3, 1), decoder=nn.Conv2d(3, 3, 1))
    model.decoder.weight = model.encoder.weight
    return model


def registered_twice() -> nn.Module:
    lost = nn.Conv2d(3, 3, 1)
    return unused(a=lost, b=nn.ModuleList([lost]))


def without_buffers() -> nn.Module:
    model = unused(aux=nn.Conv2d(3, 3, 1))
    model.register_buffer("grid", torch.zeros(3, 5), persistent=False)
    return model


# What is dead: name, kind, why and elements.
DEAD: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, str, str, int]]]] = {
    "a head that only training calls": (Training, [("aux", "Sequential", "never called", 4 * 6 + 6 + 25 + 12 + 2)]),
    "a head whose result is dropped": (Dropped, [("aux", "Sequential", "its result is dropped", numbers_in(head()))]),
    "a norm in code that is rewritten": (Branches, [("lost", "BatchNorm2d", "its result is dropped", 17)]),
    "a placeholder": (lambda: unused(later=nn.Conv2d(8, 8, 3)), [("later", "Conv2d", "never called", 584)]),
    "deep inside": (
        lambda: nn.Sequential(nn.Sequential(unused(later=nn.ModuleDict({"a": nn.Linear(2, 3)})))),
        [("0.0.later", "ModuleDict", "never called", 9)],
    ),
    "some of a list": (
        lambda: Block(lambda m, x: m.every[1](x), every=nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))),
        [("every.0", "Conv2d", "never called", 12), ("every.2", "Conv2d", "never called", 12)],
    ),
    "a parameter": (lambda: unused(scale=nn.Parameter(torch.ones(3, 1, 1))), [("scale", "parameter", "never read", 3)]),
    "a buffer": (lambda: unused(steps=torch.zeros(2)), [("steps", "buffer", "never read", 2)]),
    "a buffer that is not stored": (
        without_buffers,
        [("grid", "buffer", "never read", 15), ("aux", "Conv2d", "never called", 12)],
    ),
    "a parameter in a module that only passes on": (
        lambda: nn.Sequential(stem(), Block(lambda m, x: x, scale=nn.Parameter(torch.ones(3))), nn.ReLU()),
        [("1.scale", "parameter", "never read", 3)],
    ),
    "a kernel": (
        lambda: Block(functional, stem=stem(), lost=nn.Parameter(torch.ones(2, 3, 1, 1))),
        [("lost", "parameter", "its result is dropped", 6)],
    ),
    "statistics": (
        lambda: Block(unread_statistics, norm=nn.BatchNorm2d(3)),
        [("norm.running_mean", "buffer", "never read", 3), ("norm.running_var", "buffer", "never read", 3)],
    ),
    "the rest of a tied layer": (tied, [("decoder.bias", "parameter", "never read", 3)]),
    "one module in two places": (registered_twice, [("a", "Conv2d", "never called", 12)]),
}


@pytest.mark.parametrize("name", DEAD)
def test_dead_weight_is_named(name: str) -> None:
    make, expected = DEAD[name]
    model = trained(make(), dtype=torch.float32)
    before = stored(model)
    folded = reparam.reparameterize(model, X.float())
    found = folded.reparam_report.dead
    assert [(d.name, d.kind, d.why, d.elements) for d in found] == expected
    assert {d.fate for d in found} == {"left"}
    assert all(d.bytes in (4 * d.elements, 4 * d.elements + 4) for d in found)  # a norm counts in int64
    assert stored(model) == before
    assert all(f"{d.elements:,}" in str(folded.reparam_report) for d in found)


@pytest.mark.parametrize("name", DEAD)
def test_a_pruned_model_computes_the_same_and_is_smaller_by_what_was_named(name: str) -> None:
    model = trained(DEAD[name][0]())
    whole, pruned = reparam.reparameterize(model, X), reparam.reparameterize(model, X, prune=True)
    report = pruned.reparam_report
    assert {d.fate for d in report.dead} == {"removed"}
    assert report.verification.ok
    assert report.folds == whole.reparam_report.folds
    for size in ((11, 14), (5, 3), (1, 2)):
        assert distance(model, pruned, image(3, 3, *size)) < EXACT
    assert report.after.parameters == whole.reparam_report.after.parameters - sum(d.elements for d in report.dead)
    if name != "a buffer that is not stored":
        less = [a - b for a, b in zip(stored(whole), stored(pruned), strict=True)]
        assert less == [sum(d.elements for d in report.dead), sum(d.bytes for d in report.dead)]


@pytest.mark.parametrize("name", DEAD)
def test_a_second_conversion_finds_nothing(name: str) -> None:
    pruned = reparam.reparameterize(trained(DEAD[name][0]()), X, prune=True)
    again = reparam.reparameterize(pruned, X, prune=True)
    assert again.reparam_report.dead == ()
    assert "dead weight" not in str(again.reparam_report)
    assert again.reparam_report.folds == ()
    assert torch.equal(again(X), pruned(X))


@pytest.mark.parametrize("name", DEAD)
def test_pruned_models_are_ordinary(name: str) -> None:
    pruned = reparam.reparameterize(trained(DEAD[name][0]()), X, prune=True)
    for again in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))) if "Block" not in repr(pruned) else ():
        assert torch.equal(again(X), pruned(X))
        again.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(torch.export.export(pruned, (X,)).module()(X), pruned(X))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_dropped_call_is_no_longer_made(inplace: bool) -> None:
    """A write in the middle of it is seen by nothing that is alive."""
    model = trained(Dropped(inplace))
    pruned = reparam.reparameterize(model, X, prune=True)
    assert "aux" not in pruned.code
    assert pruned.aux is None
    assert ran(pruned, X)["convolution"] == 2
    assert ran(reparam.reparameterize(model, X), X)["convolution"] == 3


def test_auxiliary_heads_of_training_are_gone() -> None:
    pruned = reparam.reparameterize(trained(Training()), X, prune=True)
    assert pruned.aux is None
    assert pruned.train()(X)[1] is None


def test_in_place() -> None:
    model = trained(Dropped())
    truth = model(X)
    assert reparam.reparameterize(model, X, inplace=True, prune=True) is model
    assert model.aux is None
    assert ((model(X) - truth).abs().max() / truth.abs().max()).item() < EXACT


def test_the_original_keeps_its_weight() -> None:
    model = trained(Dropped())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    reparam.reparameterize(model, X, prune=True)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert type(model) is Dropped
    assert isinstance(model.aux, nn.Sequential)


# --- what is alive


class Counting(nn.Module):
    """Keeps a count in a buffer, which eval goes on with."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return F.relu(self.stem(x))


class Remembering(nn.Module):
    """Keeps what a layer computed, where whoever wants it finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = stem(), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.side(x)
        return F.relu(self.stem(x))


def written_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x).relu()
    y[:, :2].mul_(m.scale)
    return y


def into_the_input(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x))
    x.mul_(m.scale)
    return y


def as_a_number(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.stem(x) * float(m.scale))


def views_of_one_memory() -> nn.Module:
    whole = torch.rand(2, 3, 1, 1, dtype=torch.float64)
    return Block(lambda m, x: F.relu(m.stem(x * m.first)), stem=stem(), whole=whole, first=whole[0])


def attributes() -> nn.Module:
    model = unused()
    model.table = torch.ones(5)
    model.tables = [torch.ones(5)]
    return model


def number() -> nn.Parameter:
    return nn.Parameter(torch.tensor(0.5))


ALIVE: dict[str, Callable[[], nn.Module]] = {
    "a plain network": lambda: nn.Sequential(stem(), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    "a block": lambda: RepVGGBlock(3, 3),
    "a tied kernel": lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1, bias=False)] * 2),
    "state": Counting,
    "what is remembered": Remembering,
    "written through a view": lambda: Block(written_through_a_view, stem=stem(), scale=number()),
    "written to the input": lambda: Block(into_the_input, stem=stem(), scale=number()),
    "a number": lambda: Block(as_a_number, stem=stem(), scale=number()),
    "a condition": lambda: Block(lambda m, x: m.stem(x).relu() if m.on else x, stem=stem(), on=torch.tensor(True)),
    "an index": lambda: Block(lambda m, x: F.relu(m.stem(x))[:, : m.n], stem=stem(), n=torch.tensor(2)),
    "views of one memory": views_of_one_memory,
    "plain attributes": attributes,
    "a computed kernel": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.ReLU()),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIVE)
def test_weights_that_are_used_are_not_named(name: str) -> None:
    model = trained(ALIVE[name]())
    folded = reparam.reparameterize(model, X, prune=True)
    assert folded.reparam_report.dead == ()
    if name != "written to the input":
        assert distance(model, folded, X) < EXACT


def test_a_compiled_module_is_never_dead() -> None:
    """What runs outside Python is not recorded: any weight of the model may have gone into it."""
    script = torch.jit.script(nn.Conv2d(3, 3, 1))
    never = reparam.reparameterize(trained(unused(script=script, later=nn.Conv2d(3, 3, 1))), X, prune=True)
    assert [d.name for d in never.reparam_report.dead] == ["later"]
    runs = trained(Block(lambda m, x: m.script(x).relu(), script=script, later=nn.Conv2d(3, 3, 1)))
    assert reparam.reparameterize(runs, X, prune=True).reparam_report.dead == ()


# --- what is named and stays


def by_size(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.large(x) if x.shape[-1] > 40 else m.stem(x))


def asks_for_an_attribute(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.stem(x)) / m.later.out_channels


def asks_for_a_shape(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.stem(x)) / m.scale.shape[0]


def asks_whether_it_is_there(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.stem(x)) if m.later is None else torch.sigmoid(m.stem(x))


def through_every(m: Any, x: Tensor) -> Tensor:
    names = [type(each).__name__ for each in m.every]
    return m.every[names.index("Conv2d")](x)


class Twice(nn.Module):
    """The code that computes something in vain is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block(
            lambda m, x: (m.lost(x), F.relu(m.norm(x)))[1], lost=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


class Returned(nn.Module):
    """The inner module returns what the outer one drops."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block(lambda m, x: (m.lost(x), F.relu(m.norm(x))), lost=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[1]


def later() -> nn.Module:
    return nn.Conv2d(3, 4, 1)


STAYS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "another size": (lambda: Block(by_size, stem=stem(), large=later()), "large", "another input needs it"),
    "an attribute": (lambda: Block(asks_for_an_attribute, stem=stem(), later=later()), "later", "code asks"),
    "a shape": (
        lambda: Block(asks_for_a_shape, stem=stem(), scale=nn.Parameter(torch.ones(4))),
        "scale",
        "code asks for it",
    ),
    "a condition": (lambda: Block(asks_whether_it_is_there, stem=stem(), later=later()), "later", "code asks for it"),
    "twice": (Twice, "inner.lost", "is called 2 times"),
    "returned": (Returned, "inner.lost", "could not be taken apart"),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_dead_weight_that_cannot_be_removed_is_named(name: str) -> None:
    make, where, reason = STAYS[name]
    model = trained(make())
    pruned = reparam.reparameterize(model, X, prune=True)
    (dead,) = pruned.reparam_report.dead
    assert dead.name == where
    assert dead.fate.startswith("kept: ")
    assert re.search(reason, dead.fate), dead.fate
    for size in ((11, 14), (64, 49)):
        assert distance(model, pruned, image(1, 3, *size)) < EXACT
    assert {name for name in pruned.state_dict() if name.startswith(where)} == {
        name for name in model.state_dict() if name.startswith(where)
    }


def test_one_that_cannot_be_removed_does_not_keep_the_others() -> None:
    lost = {f"lost{i}": nn.Conv2d(3, 3, 1) for i in range(5)}
    model = trained(Block(asks_for_an_attribute, stem=stem(), later=later(), **lost))
    pruned = reparam.reparameterize(model, X, prune=True)
    assert [d.name for d in pruned.reparam_report.dead if d.fate != "removed"] == ["later"]
    assert [d.name for d in pruned.reparam_report.dead if d.fate == "removed"] == list(lost)
    assert all(getattr(pruned, name) is None for name in lost)


def test_kept_and_hooked_modules_stay() -> None:
    model = trained(Dropped())
    kept = reparam.reparameterize(model, X, keep=["aux.0"], prune=True)
    assert "aux.0.weight" in kept.state_dict()
    seen: list[Tensor] = []
    kept.aux[0].register_forward_hook(lambda m, args, result: seen.append(result))
    kept(X)
    assert len(seen) == 1
    model.aux.register_forward_hook(lambda *_: None)
    assert "aux.0.weight" in reparam.reparameterize(model, X, prune=True).state_dict()
    never = trained(Training())
    pruned = reparam.reparameterize(never, X, keep=["aux"], prune=True)
    assert [d.fate for d in pruned.reparam_report.dead] == ["kept: it is pinned by a hook or `keep=`"]


def test_verification_names_a_wrong_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is left out; another size then calls what is gone."""
    monkeypatch.setattr(pruning.Pruner, "_why_needed", lambda self, dead, now: "")
    model = trained(Block(lambda m, x: m.large(x) if x.shape[-1] != 14 else m.stem(x), stem=stem(), large=later()))
    with pytest.raises(VerificationError, match="Guilty: what prune=True has removed"):
        reparam.reparameterize(model, X, prune=True)


# --- folds beside it


def test_a_hooked_module_behind_a_dropped_call_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.a(x)
        m.watched(torch.sigmoid(a))
        return torch.relu(a + m.b(x))

    model = trained(Block(forward, a=stem(), b=stem(), watched=nn.Conv2d(4, 4, 1)))
    folded = reparam.reparameterize(model, X, keep=["watched"])
    seen: list[Tensor] = []
    for each in (model, folded):
        each.watched.register_forward_hook(lambda m, args, result: seen.append(result))
    assert distance(model, folded, X) < EXACT
    assert torch.allclose(*seen, rtol=1e-12, atol=1e-12)


def test_a_write_that_nobody_reads_prevents_no_fold() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.a(x)
        (a * 2).relu_()
        return torch.relu(a + m.b(x))

    model = trained(Block(forward, a=stem(), b=stem()))
    folded = reparam.reparameterize(model, X)
    assert distance(model, folded, X) < EXACT
    assert ran(folded, X)["convolution"] == 1
    assert ran(folded, X)["mul"] == 0


class Scratch(nn.Module):
    """Called twice: what it writes to its second argument is seen only after the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = stem(), stem()

    def forward(self, x: Tensor, scratch: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        scratch.mul_(3)
        return torch.relu(y)


def test_a_write_that_one_of_two_calls_needs_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        scratch, used = torch.ones_like(x), torch.ones_like(x)
        y = m.inner(x, scratch)
        return (y + m.inner(x, used)).sum(1) + used.sum(1)

    model = trained(Block(forward, inner=Scratch()))
    folded = reparam.reparameterize(model, X)
    assert distance(model, folded, X) < EXACT
    assert ran(folded, X)["convolution"] == 2


def test_a_module_that_an_argument_switches_on_stays() -> None:
    """For the example it is told not to; at another size it may be."""

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.more = stem(), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, high: bool) -> Tensor:
            y = self.stem(x)
            return self.more(y) if high else y

    model = trained(Block(lambda m, x: m.told(x, x.shape[2] > 12), told=Told()))
    folded = reparam.reparameterize(model, X, prune=True, verify=False)
    for size in ((11, 14), (13, 5)):
        assert distance(model, folded, image(1, 3, *size)) < EXACT
