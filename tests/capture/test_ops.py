"""The table of facts about operations: its rows, their spellings, and facts that exclude one another."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.capture import ops
from reparam.capture.norms import affine_part
from reparam.capture.ops import OPS, SHAPED_AS, TABLE, Fact, Kind, OpFacts, facts, op_name
from reparam.rules import RULES

OWNERS = (torch, F, Tensor, torch._C._nn, torch._C._linalg)


def test_each_operation_has_one_row() -> None:
    names = [name for row in TABLE for name in row.names.split()]
    assert len(names) == len(set(names))
    assert all(name in OPS[name].names.split() for name in names)


def test_every_name_and_spelling_leads_to_its_row() -> None:
    for row in TABLE:
        names, spellings = row.names.split(), row.spelled.split()
        assert not spellings or len(names) == 1, f"whose spellings are these, of {names}?"
        for name in (*names, *spellings):
            assert facts(op_name(name)) is row, name
            assert facts(op_name(f"__{name}__")) is row, name
        assert OPS.keys().isdisjoint(spellings)


def test_every_name_is_one_of_torch_or_python() -> None:
    def known(name: str) -> bool:
        spelled = [form for word in (name, *others[name]) for form in (word, f"{word}_", f"__{word}__")]
        return any(hasattr(owner, form) for owner in OWNERS for form in spelled)

    others = {name: OPS[name].spelled.split() for name in OPS}
    own = {affine_part.__name__, "add_map", "assert"}  # steps of the recorder and of BiasMap, and Python's statement
    own |= {"names"}  # an attribute of tensors in older versions of torch
    assert {name for name in OPS if not known(name)} <= own


def test_a_function_and_its_forms_have_one_name() -> None:
    same = [torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__, "add_", "radd"]
    assert {op_name(form) for form in same} == {"add"}
    assert op_name(Tensor.shape.__get__) == "shape"  # type: ignore[attr-defined]


def test_an_operation_without_a_row_has_no_facts() -> None:
    assert facts("fft") == OpFacts("", Kind.OTHER)
    assert "fft" not in ops.KERNELS | ops.FREE | ops.QUERIES


def test_a_rule_stands_under_the_name_of_its_operation() -> None:
    for key in RULES:
        assert op_name(key) == key
        assert facts(key).kind not in (Kind.QUERY, Kind.CHECK, Kind.RANDOM), (
            f"{key} has a rule, so it computes a tensor"
        )


def test_every_kernel_has_a_rule() -> None:
    assert RULES.keys() >= ops.KERNELS


def test_every_fact_and_kind_is_used() -> None:
    assert {row.kind for row in TABLE} == set(Kind) - {Kind.OTHER}
    assert all(any(fact in row.facts for row in TABLE) for fact in Fact)


# --- facts that exclude one another


def test_an_operation_is_of_one_sort() -> None:
    computing = (ops.KERNELS, ops.POOLS, ops.ARITHMETIC, ops.RANDOM)
    others = (ops.VIEWS, ops.PERHAPS_VIEWS, ops.QUERIES, ops.CHECKS)
    for one, other in combinations((*computing, *others), 2):
        assert not one & other


def test_what_is_free_computes_nothing() -> None:
    assert ops.VIEWS <= ops.FREE
    for name in ops.FREE - {"affine_part"}:
        assert facts(name).kind in (Kind.VIEW, Kind.SELECTION, Kind.COPY), name


def test_what_rearranges_entries_neither_selects_nor_multiplies_them() -> None:
    assert not ops.REARRANGING & (ops.CHANNEL_SELECTING | ops.CHANNEL_MULTIPLYING | ops.CROPPING)
    assert ops.RESHAPES <= ops.REARRANGING


def test_a_product_counts_channels_or_may_repeat_them() -> None:
    assert ops.KERNELS <= ops.CHANNEL_COUNTING | ops.CONTRACTING
    assert not ops.CHANNEL_COUNTING & ops.CONTRACTING


def test_what_keeps_the_shape_takes_no_sizes() -> None:
    assert not ops.SHAPE_PRESERVING & (ops.SIZE_ARGUMENTS | ops.RESHAPES | ops.CHANNEL_SELECTING | ops.CROPPING)


def test_a_question_is_about_one_thing() -> None:
    about = (ops.SIZE_QUERIES, ops.LAYOUT_QUERIES, ops.VALUE_QUERIES, ops.GRADIENT_QUERIES)
    asking = frozenset[str]().union(*about)
    assert sum(map(len, about)) == len(asking)
    assert asking <= ops.QUERIES


def test_windows_have_axes() -> None:
    assert {name for name in OPS if OPS[name].spatial} == (ops.CONVOLUTIONS | ops.TRANSPOSED_CONVOLUTIONS | ops.POOLS)
    assert all(name.endswith(f"{OPS[name].spatial}d") for name in OPS if OPS[name].spatial)


# --- facts that torch confirms


def test_a_call_like_another_tensor_is_one_without_it() -> None:
    x, other = torch.arange(3.0).view(1, 3), torch.ones(1, 3, dtype=torch.float64)
    for name, (function, attribute) in SHAPED_AS.items():
        result, expected = function(x, getattr(other, attribute)), getattr(x, name)(other)
        assert torch.equal(result, expected), name
        assert result.dtype == expected.dtype, name


def test_a_view_shares_the_memory_of_its_input() -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "view": (16,), "unflatten": (0, (2, 2)), "transpose": (0, 1), "permute": (1, 0), "swapaxes": (0, 1),
        "swapdims": (0, 1), "movedim": (0, 1), "moveaxis": (0, 1), "unsqueeze": (0,), "narrow": (0, 1, 2),
        "select": (0, 1), "chunk": (2,), "split": (2,), "split_with_sizes": ([2, 2],), "tensor_split": (2,),
        "expand": (3, 4, 4), "__getitem__": (slice(2),),
    }  # fmt: skip
    x = torch.randn(4, 4)
    for name in ops.VIEWS - {"dropout", "dropout1d", "dropout2d", "dropout3d"}:
        form = getattr(x, "__getitem__" if name == "getitem" else name)
        result = form if isinstance(form, Tensor) else form(*arguments.get(form.__name__, ()))
        first = result if isinstance(result, Tensor) else result[0]
        assert first.untyped_storage().data_ptr() == x.untyped_storage().data_ptr(), name


def test_in_eval_a_dropout_returns_its_input() -> None:
    for name in sorted(name for name in ops.FREE if "dropout" in name):
        x = torch.randn(1, 3, *[4] * {"2d": 2, "3d": 3}.get(name[-2:], 1))
        assert torch.equal(getattr(F, name)(x, training=False), x), name
