"""Linear layers, matrix products and scales of tokens become one linear layer or convolution of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, Block, convs_ran, distance, image, norms_ran, plain_convs, ran, trained

C = 8


def parameters(**shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


class LoRALinear(nn.Module):
    """W x + s * B(A x) with A and B as layers."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(C, 6)
        self.lora_A, self.lora_B = nn.Linear(C, rank, bias=False), nn.Linear(rank, 6, bias=False)
        self.dropout, self.scaling = nn.Dropout(0.1), 16 / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(self.dropout(x))) * self.scaling


class RawLoRA(nn.Linear):
    """The same with raw parameters, in the way of loralib: a subclass of the layer."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__(C, 6)
        self.lora_A, self.lora_B = parameters(a=(rank, C), b=(6, rank)).values()
        self.scaling = 0.5

    def forward(self, x: Tensor) -> Tensor:
        result = F.linear(x, self.weight, bias=self.bias)
        result += (x @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * self.scaling
        return result


class ConvLoRA(nn.Module):
    """A low-rank pair beside a 3x3 convolution."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, 6, 3, padding=1)
        self.down, self.up = nn.Conv2d(C, rank, 3, padding=1, bias=False), nn.Conv2d(rank, 6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + 0.25 * self.up(self.down(x))


TOKENS, VECTORS, SEQUENCES, IMAGES = [(2, 5, C), (1, 1, C), (3, 4, C)], [(5, C), (1, C)], [(2, C, 5), (1, C, 1)], [
    (2, C, 7, 5), (1, C, 1, 1), (3, C, 6, 9)
]  # fmt: skip

ONE: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "norm before": (lambda: nn.Sequential(nn.BatchNorm1d(C), nn.Linear(C, 6)), VECTORS),
    "norm after": (lambda: nn.Sequential(nn.Linear(C, 6, bias=False), nn.BatchNorm1d(6)), VECTORS),
    "norms around": (lambda: nn.Sequential(nn.BatchNorm1d(C), nn.Linear(C, 6), nn.BatchNorm1d(6)), VECTORS),
    "after another": (lambda: nn.Sequential(nn.Linear(C, 6), nn.Dropout(0.1), nn.Linear(6, 3)), TOKENS),
    "LoRA layers": (LoRALinear, TOKENS),
    "LoRA parameters": (RawLoRA, TOKENS),
    "LoRA of vectors": (RawLoRA, VECTORS),
    "LoRA of a convolution": (ConvLoRA, IMAGES),
    "two heads": (
        lambda: Block(lambda m, x: (m.a(x) + m.b(x)) / 2, a=nn.Linear(C, 5), b=nn.Linear(C, 5)), VECTORS
    ),
    "product": (
        lambda: Block(
            lambda m, x: (m.a(x) @ m.w + m.b) * m.g, a=nn.Linear(C, C), **parameters(w=(C, 5), b=(5,), g=(5,))
        ),
        TOKENS,
    ),
    "addmm": (
        lambda: Block(lambda m, x: torch.addmm(m.a(x), x, m.w, alpha=0.5), a=nn.Linear(C, 5), **parameters(w=(C, 5))),
        VECTORS,
    ),
    "einsum": (
        lambda: Block(
            lambda m, x: m.n(torch.einsum("bchw,dc->bdhw", m.a(x), m.w)),
            a=nn.Conv2d(C, 6, 1),
            n=nn.BatchNorm2d(5),
            **parameters(w=(5, 6)),
        ),
        IMAGES,
    ),
    "product from the left": (
        lambda: Block(
            lambda m, x: m.n(m.w @ m.a(x)), n=nn.BatchNorm1d(5), a=nn.Conv1d(C, 6, 1), **parameters(w=(5, 6))
        ),
        SEQUENCES,
    ),
    "scaled tokens": (
        lambda: Block(lambda m, x: x + m.g * m.a(m.s * x), a=nn.Linear(C, C), **parameters(g=(C,), s=(1, 1, C))), TOKENS
    ),
    "scaled last dimension": (
        lambda: Block(lambda m, x: x + m.g * m.a(x), a=nn.Linear(C, C), **parameters(g=(C,))),
        [(2, 3, 5, C), (1, 1, 1, C)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_becomes_one_layer(name: str) -> None:
    make, sizes = ONE[name]
    model = trained(make(), image(*sizes[0]))
    result = reparam.reparameterize(model, image(*sizes[0]), verify=False)
    counted = ran(result, image(*sizes[0]))
    assert len(plain_convs(result)) == convs_ran(result, image(*sizes[0])) == 1, result.reparam_report
    assert norms_ran(result, image(*sizes[0])) == counted["mul"] == counted["add"] == counted["einsum"] == 0
    assert len(list(result.parameters())) <= 2  # what the product was computed from is gone
    for size in sizes:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_einsum_alone_is_no_linear_layer() -> None:
    """Where the input has one channel it is the sum of a row of the constant, which no linear layer computes."""
    model = Block(lambda m, x: m.a(torch.einsum("...i,io->...o", x, m.w)), a=nn.Linear(5, 2), **parameters(w=(C, 5)))
    model = trained(model, image(2, 7, C))
    result = reparam.reparameterize(model, image(2, 7, C))
    for channels in (C, 1):
        assert distance(model, result, image(2, 7, channels)) < EXACT


def test_a_norm_behind_a_transpose_goes_into_the_product() -> None:
    """The product takes the norm, and the transpose stays."""
    model = trained(Block(lambda m, x: m.n((x @ m.w).transpose(1, 2)), n=nn.BatchNorm1d(5), **parameters(w=(C, 5))))
    x = image(2, 7, C)
    result = reparam.reparameterize(model, x, verify=False)
    assert norms_ran(result, x) == 0
    assert [type(layer) for layer in plain_convs(result)] == [nn.Linear]
    assert distance(model, result, image(3, 4, C)) < EXACT


def test_a_scale_of_tokens_alone_stays_elementwise() -> None:
    """As a layer it would multiply by a diagonal matrix."""
    model = trained(Block(lambda m, x: x * m.g + m.b, **parameters(g=(64,), b=(64,))))
    x = image(2, 50, 64)
    assert not plain_convs(reparam.reparameterize(model, x, verify=False))


def test_attention_stays() -> None:
    """The products of attention are not linear in the input; only the projections fold into one."""

    def attend(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, -1)
        return m.proj((q @ k.transpose(1, 2)).softmax(-1) @ v) * m.gamma

    model = trained(Block(attend, qkv=nn.Linear(C, 3 * C), proj=nn.Linear(C, C), **parameters(gamma=(C,))))
    x = image(2, 7, C)
    result = reparam.reparameterize(model, x, verify=False)
    assert ran(result, x)["mul"] == 0
    assert len(plain_convs(result)) == 2
    assert distance(model, result, image(3, 4, C)) < EXACT
