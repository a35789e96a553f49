"""Every rule against its own examples: `folds` are one convolution of the input, exactly; `keeps` are refused."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.views import View
from reparam.capture.evaluate import evaluate
from reparam.capture.float64 import double
from reparam.capture.graph import Node, Record
from reparam.capture.inputs import Inputs
from reparam.capture.ops import KERNELS, SPELLINGS, op_name
from reparam.capture.runs import record
from reparam.errors import Refusal
from reparam.nn import draw_constants, draw_statistics
from reparam.rules import RULES, Case, Rule
from reparam.rules.interpret import Interpretation, between
from reparam.rules.table import Op, rule

# A fold and its original differ by the order of a few hundred float64 additions: 1e-13 is far above that, and a
# thousand times below what verification allows a whole network.
EXACT = 1e-13
ROOT = Path(__file__).resolve().parents[2]
SIZES = [(1, 1, 1), (7, 5, 3), (10, 13, 4)]  # raised to the smallest legal ones

NAMED = {entry.name: entry for entry in RULES.values()}
assert len(NAMED) == len({id(entry) for entry in RULES.values()})


def examples(which: Callable[[Rule], list[object]]) -> list[object]:
    return [
        pytest.param(example, id=f"{name}-{i}")
        for name, entry in NAMED.items()
        for i, example in enumerate(which(entry))
    ]


def trained(case: Case) -> nn.Module:
    """The module in eval and float64, with numbers that a trained one would have."""
    model = double(case.module).eval().requires_grad_(False)
    return draw_statistics(draw_constants(model))


def interpreted(model: nn.Module, x: Tensor) -> tuple[Record, Node, Node, Interpretation]:
    """The record of one run, its input and output, and what every node is."""
    found = record(model, Inputs((x,)))
    given = next(node for node in found.nodes if node.function is None and not node.constant)
    return found, given, found.outputs[0], Interpretation(found.nodes, found.barriers)


def is_value_of(found: Interpretation, base: Node, node: Node) -> bool:
    """Whether the interpreter says that `node` is one convolution of `base`."""
    inside = found.anchor.get(node, node) is base and found.dominates(base, node)
    return inside and isinstance(found.value(base, node), (AffineConv, View))


def behind_steps(found: Interpretation, base: Node, node: Node, x: Tensor) -> Tensor:
    """The steps that rearrange or average pixels as they are, all else at the last kernel (or the last other one).

    At the last one that stands before channels become pixels, and between the same steps if it reads neighbours.
    """
    nodes, whole = between(base, [node]), found.value(base, node)
    counts = [getattr(found.value(base, each), "steps", 0) for each in nodes]
    steps = [each for each, now, before in zip(nodes, counts, [0, *counts], strict=False) if now > before]
    others = [each for each in nodes if each not in steps]
    kernels = [each for each in others if each.op in KERNELS]
    at = {each: found.value(base, each) for each in kernels}
    kernels = [each for each in kernels if getattr(at[each], "places", None) is None]
    if not whole.inside.pixelwise:
        kernels = [each for each in kernels if getattr(at[each], "steps", 0) == whole.steps_before]
    place = [*others[-1:], *kernels][-1]
    for each in nodes:
        if each in steps:
            x = evaluate(each, {each.operands[0]: x})
        elif each is place:
            here = found.value(base, each)
            spatial = len((here.as_anchor() if isinstance(here, View) else here).axes)
            x = (whole.inside.with_axes(spatial) if whole.inside.pixelwise else whole.inside)(x)
    return x


def inputs(case: Case) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 3):
        for size in SIZES:
            yield case.input(batch, size, generator)


def relative_error(ours: Tensor, truth: Tensor) -> float:
    assert ours.shape == truth.shape
    return float((ours - truth).abs().max() / truth.abs().max())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", examples(lambda entry: entry.folds()))
def test_folds(case: Case) -> None:
    """One value, found at one size, computes the module at all of them."""
    model = trained(case)
    *_, first = inputs(case)
    _, given, output, found = interpreted(model, first)
    assert is_value_of(found, given, output), found.refusals
    value = found.value(given, output)
    for x in inputs(case):
        if isinstance(value, View):  # the steps hold the sizes of their run
            _, given, output, found = interpreted(model, x)
            ours = behind_steps(found, given, output, x)
        else:
            ours = value(x)
        assert relative_error(ours, model(x)) < EXACT


@pytest.mark.parametrize("example", examples(lambda entry: entry.keeps()))
def test_keeps(example: tuple[Case, str]) -> None:
    case, word = example
    *_, x = inputs(case)
    _, given, output, found = interpreted(trained(case), x)
    assert not is_value_of(found, given, output)
    assert any(word in refusal.reason for refusal in found.refusals.values()), found.refusals


@pytest.mark.parametrize("name", NAMED)
def test_every_rule_says_what_it_is_and_shows_it(name: str) -> None:
    entry = NAMED[name]
    assert entry.folds()
    assert entry.keeps()
    assert entry.meaning
    assert all(RULES[key] is entry for key in entry.keys)


# --- every spelling of an operation

# What the examples of the rules do not spell out: in-place, method, operator and function forms of the same operation.
FORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "iadd": lambda m, x: m.inner[0](x).__iadd__(x),
    "radd": lambda m, x: 2 + m.inner[0](x),
    "isub": lambda m, x: m.inner[0](x).__isub__(x),
    "sub_": lambda m, x: m.inner[0](x).sub_(x, alpha=2),
    "subtract": lambda m, x: torch.subtract(x, m.inner[0](x)),
    "rsub": lambda m, x: 2 - m.inner[0](x),
    "imul": lambda m, x: m.inner[0](x).__imul__(3),
    "rmul": lambda m, x: 3 * m.inner[0](x),
    "multiply": lambda m, x: torch.multiply(m.inner[0](x), 3),
    "truediv": lambda m, x: m.inner[0](x) / 3,
    "itruediv": lambda m, x: m.inner[0](x).__itruediv__(3),
    "idiv": lambda m, x: m.inner[0](x).__idiv__(3),
    "true_divide": lambda m, x: m.inner[0](x).true_divide(3),
    "divide": lambda m, x: torch.divide(m.inner[0](x), 3),
    "negative": lambda m, x: torch.negative(m.inner[0](x)),
    "concat": lambda m, x: torch.concat([x, m.inner[0](x)], 1),
    "concatenate": lambda m, x: torch.concatenate([x, m.inner[0](x)], dim=1),
    "swapdims": lambda m, x: m.inner[0](x).swapdims(2, 3),
    "constant_pad_nd": lambda m, x: m.inner[0](torch.constant_pad_nd(x, [0, 1])),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    test_folds(Case(Op(FORMS[name], nn.Conv2d(4, 4, 3, padding=1))))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_spelling_is_exercised() -> None:
    """Some example that folds calls every entry of the table."""
    cases = [case for entry in NAMED.values() for case in entry.folds()]
    cases += [Case(Op(form, nn.Conv2d(4, 4, 1))) for form in FORMS.values()]
    called = set()
    for case in cases:
        *_, x = inputs(case)
        found = record(trained(case), Inputs((x,)))
        called |= {node.op for node in found.nodes if node.function is not None}
    assert set(RULES) <= called


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_exist_in_torch(spelling: str) -> None:
    owners = [(torch, spelling), (Tensor, spelling), (Tensor, f"__{spelling}__")]
    assert any(hasattr(owner, name) for owner, name in owners)
    assert spelling in FORMS


# --- the table itself


def test_an_operation_is_known_by_one_name() -> None:
    same = [torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__]
    assert {op_name(function) for function in same} == {"add"}
    assert op_name(Tensor.shape.__get__) == "shape"


def test_a_call_with_unknown_arguments_is_refused() -> None:
    with pytest.raises(Refusal, match="no rule"):
        RULES["neg"](1, 2, 3)


def test_a_key_has_one_rule() -> None:
    with pytest.raises(ValueError, match="two rules for neg"):
        rule("neg", folds=list, keeps=list)(lambda input: input)


def test_the_list_of_operations_is_current() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "generate_ops.py"))
    assert (ROOT / "docs" / "ops.md").read_text(encoding="utf-8") == generator["document"]()
