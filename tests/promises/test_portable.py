"""The result prints, copies, pickles, saves, loads its own state and goes through torch.export, whatever it was."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import reparam
from benchmarks.fuzz.draw import draw_network
from tests.helpers import EXACT, Block, bn, conv, distance, image, trained
from tests.networks import Network

Normed = Callable[..., nn.Module]
SPELLINGS: dict[str, Normed] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of old": weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm of old": spectral_norm,
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 11)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (2, 4, 7, 5)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 3), (2, 4, 3, 4, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 4, 2, 1), (2, 4, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), (2, 4, 5, 3)),
    "Linear": (lambda: nn.Linear(4, 6), (3, 4)),
    "same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
}


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def filled(model: nn.Module) -> nn.Module:
    """A copy that has forgotten its numbers, with those of the model's own state."""
    empty = copy.deepcopy(model)
    for tensor in empty.state_dict().values():
        tensor.zero_()
    empty.load_state_dict(model.state_dict())
    return empty


COPIERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "state_dict": filled,
}


class Cloning(nn.Module):
    """Runs a model on copies of its inputs, which some overwrite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> object:
        return self.model(*(x.clone() for x in inputs))


def require_portable(folded: nn.Module, *inputs: Tensor) -> None:
    assert repr(folded)
    for name, copier in COPIERS.items():
        assert distance(Cloning(folded), Cloning(copier(folded)), *inputs) < EXACT, name
        assert repr(copier(folded)) == repr(folded), name


def require_exported(folded: nn.Module, *inputs: Tensor) -> None:
    exported = torch.export.export(folded, inputs).module()
    assert distance(folded, exported, *inputs) < EXACT


class Around(nn.Module):
    """A layer under a name, as in a model with a checkpoint."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return torch.relu(y[0] if isinstance(y, tuple) else y)


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_with_a_computed_weight_stays_one_layer(layer: str, spelling: str, inplace: bool) -> None:
    make, shape = LAYERS[layer]
    x = image(*shape)
    plain = make()
    model = trained(Around(SPELLINGS[spelling](copy.deepcopy(plain))), x)
    original = copy.deepcopy(model)
    folded = reparam.reparameterize(model, x, inplace=inplace, verify="folds" if inplace else "full")
    assert type(folded.layer) is type(plain)
    assert folded.state_dict().keys() == Around(plain).state_dict().keys()
    assert distance(original, folded, x) < EXACT
    require_portable(folded, x)
    assert not reparam.reparameterize(folded, x).reparam_report.folds


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(layer: nn.Module, name: str) -> nn.Module:
    return parametrize.register_parametrization(layer, name, Doubled())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:The tensor attributes")
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, weight_norm, doubled])
def test_a_recurrent_layer_with_computed_weights(kind: type[nn.Module], norm: Normed) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        layer = kind(4, 5, num_layers=2, batch_first=True)
        for name in ("weight_hh_l0", "weight_ih_l1"):
            layer = norm(layer, name)
        return Around(layer).double().eval()

    model, x = made(), image(2, 7, 4)
    for inplace in (False, True):
        folded = reparam.reparameterize(made(), x, inplace=inplace, verify=not inplace)
        assert type(folded.layer) is kind
        assert folded.state_dict().keys() == Around(kind(4, 5, num_layers=2)).state_dict().keys()
        for y in (x, image(1, 3, 4)):
            assert distance(model, folded, y) < EXACT
        require_portable(folded, x)
    require_exported(folded, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_computed_weight_is_rounded_once(dtype: torch.dtype) -> None:
    model = Around(parametrizations.weight_norm(nn.GRU(4, 5), "weight_hh_l0")).eval()
    truth = copy.deepcopy(model).double().layer.weight_hh_l0
    folded = reparam.reparameterize(model.to(dtype), image(3, 1, 4, dtype=dtype))
    if dtype == torch.float32:
        assert torch.equal(folded.layer.weight_hh_l0, truth.to(dtype))
    assert folded.layer.weight_hh_l0.dtype == dtype


def test_an_embedding_with_a_computed_weight() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Embedding(7, 4)), nn.LayerNorm(4)).double().eval()
    x = torch.tensor([[1, 5, 0]])
    folded = reparam.reparameterize(model, x)
    assert type(folded[0]) is nn.Embedding
    assert distance(model, folded, x) < EXACT
    require_portable(folded, x)
    assert folded.reparam_origin.keys["0.parametrizations.weight.original1"] == ("0.weight",)


def test_a_hook_stays_on_a_layer_with_a_computed_weight() -> None:
    layer = parametrizations.weight_norm(nn.ConvTranspose1d(4, 4, 4, 2, 1))
    model = Around(layer).double().eval()
    layer.register_forward_hook(Looks())
    x = image(2, 4, 5)
    folded = reparam.reparameterize(model, x)
    assert type(folded.layer) is nn.ConvTranspose1d
    assert len(folded.layer._forward_hooks) == 1
    require_portable(folded, x)


class Looks:
    def __call__(self, module: nn.Module, args: object, result: object) -> None:
        """Look at the result."""


class ReadsTheParts(nn.Module):
    """Code that asks for the direction of a weight besides the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)) + self.layer.parametrizations.weight.original1.sum(1)


def test_a_weight_whose_parts_are_read_elsewhere() -> None:
    model = ReadsTheParts().double().eval()
    x = image(3, 4)
    assert distance(model, reparam.reparameterize(model, x), x) < EXACT


class ReadsTwice(nn.Module):
    """Code that folds with a computed weight, and code that needs it as well."""

    def __init__(self, also: bool) -> None:
        super().__init__()
        self.weight, self.also = nn.Parameter(torch.randn(4, 4, 1, 1)), also

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(F.conv2d(x, self.weight) + x)
        y = y * self.weight.sum() if self.also else y
        return y.flatten(2).softmax(2)


@pytest.mark.parametrize("also", [True, False])
def test_code_reads_a_computed_weight(also: bool) -> None:
    model = nn.Sequential(parametrizations.weight_norm(ReadsTwice(also))).double().eval()
    x = image(2, 4, 5, 3)
    folded = reparam.reparameterize(model, x)
    assert type(folded[0]).__name__ == "ReadsTwice"
    assert folded.state_dict().keys() == {"0.conv.weight", *(["0.weight"] if also else [])}
    assert distance(model, folded, x) < EXACT
    require_portable(folded, x)


class Vocoder(nn.Module):
    """Upsampling by transposed convolutions, each followed by dilated residual blocks, all of them weight-normed."""

    def __init__(self, norm: Normed) -> None:
        super().__init__()
        self.first = norm(nn.Conv1d(5, 8, 7, padding=3))
        self.ups = nn.ModuleList(norm(nn.ConvTranspose1d(8 // 2**i, 4 // 2**i, 4, 2, 1)) for i in range(2))
        self.blocks = nn.ModuleList(
            nn.ModuleList(norm(nn.Conv1d(4 // 2**i, 4 // 2**i, 3, padding=d, dilation=d)) for d in (1, 3))
            for i in range(2)
        )
        self.last = norm(nn.Conv1d(2, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            for block in blocks:
                x = x + block(F.leaky_relu(x, 0.1))
        return torch.tanh(self.last(F.leaky_relu(x)))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, weight_norm])
def test_a_vocoder(norm: Normed) -> None:
    x = image(2, 5, 9)
    model = trained(Vocoder(norm), x)
    folded = reparam.reparameterize(model, x)
    assert folded.state_dict().keys() == Vocoder(lambda layer: layer).state_dict().keys()
    for y in (x, image(1, 5, 4)):
        assert distance(model, folded, y) < EXACT
    require_portable(folded, x)
    require_exported(folded, x)


def test_a_network_of_blocks() -> None:
    x = image(2, 3, 17, 22)
    model = trained(Network(), x)
    folded = reparam.reparameterize(model, x)
    require_portable(folded, x)
    require_exported(folded, x)


def _even_and_odd_rows(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(m.conv(x))
    return m.second(torch.cat([y[:, :, ::2, ::2], y[:, :, 1::2, ::2]], 1)).relu()


def test_a_layer_that_is_written_out_does_not_stay_as_a_shell() -> None:
    layer = conv(4, 4, 3, padding=1, padding_mode="replicate", bias=True)
    x = image(2, 4, 8, 6)
    model = trained(Block(_even_and_odd_rows, conv=layer, first=bn(4), second=bn(8)), x)
    folded = reparam.reparameterize(model, x)
    assert distance(model, folded, x) < EXACT
    assert [type(module) for module in folded.children()] == [nn.Conv2d]
    assert len(folded.state_dict()) == 2
    require_portable(folded, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3, 200, 11))
def test_a_random_network(seed: int) -> None:
    program = replace(draw_network(seed), dtype=torch.float64)
    model, inputs = program.build()
    folded = reparam.reparameterize(model, inputs, verify=False)
    require_portable(folded, *inputs)
