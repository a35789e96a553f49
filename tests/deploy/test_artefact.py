from __future__ import annotations

import copy
import functools
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import reparam
from benchmarks.zoo.models import build, example_input
from reparam.deploy.artefact import apply, load, save
from reparam.deploy.pair import Saved
from reparam.errors import InputError
from reparam.nn import ACBlock, DiverseBranchBlock, MobileOneBlock, RepVGGBlock, demo_network
from tests.deploy import tables
from tests.deploy.old_format import make_format_1
from tests.helpers import ScaledBranches, convs_ran, distance, image, norms_ran, trained


class Tied(nn.Module):
    """One block in two places, a kept tied weight, a constant in the code, a part that is renamed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = RepVGGBlock(4, 4)
        self.again = nn.Sequential(nn.ReLU(), self.first)
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.first(x)).mean((2, 3))
        return torch.tanh(self.b(torch.relu(self.a(y)))) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Scaled(nn.Module):
    """A norm that loses its scale as a module, and one that loses it inside code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(6), nn.LayerNorm(6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.norm(x))
        return self.second(nn.functional.layer_norm(y, (6,), self.inner.weight, self.inner.bias))


class Hooked(nn.Module):
    """Weight norm of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        with pytest.warns(FutureWarning):
            self.old = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[1](self.old(torch.relu(self.norms[0](self.new(x)))))


class Recurrent(nn.Module):
    """Computed weights of layers that do not fold."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.conv = norm(nn.Conv1d(3, 4, 3))
        self.new = norm(norm(nn.GRU(4, 5, batch_first=True), "weight_ih_l0"), "weight_hh_l0")
        with pytest.warns(FutureWarning):
            self.old = nn.utils.weight_norm(nn.LSTM(5, 4, batch_first=True), "weight_hh_l0")

    def forward(self, x: Tensor) -> Tensor:
        return self.old(self.new(self.conv(x).transpose(1, 2))[0])[0]


class WithHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        self.aux(x.mean((2, 3)))
        return x


def pair() -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "convolution and norm": (pair, (2, 3, 7, 9), {}),
    "RepVGG": (lambda: nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8, groups=2)), (1, 3, 9, 8), {}),
    "ACNet": (lambda: ACBlock(3, 6, 3), (1, 3, 9, 8), {}),
    "DBB": (
        lambda: nn.Sequential(DiverseBranchBlock(3, 6, 3), DiverseBranchBlock(6, 6, 3, groups=6)),
        (2, 3, 8, 9),
        {},
    ),
    "MobileOne": (lambda: nn.Sequential(MobileOneBlock(3, 3, 3, groups=3), MobileOneBlock(3, 8, 1)), (1, 3, 8, 9), {}),
    "demo": (demo_network, (1, 3, 33, 40), {}),
    "kept block": (demo_network, (1, 3, 33, 40), {"keep": ("repvgg.0", "head")}),
    "shared": (Tied, (2, 4, 5, 6), {}),
    "normalisations": (Scaled, (2, 3, 6), {}),
    "weight norm": (Hooked, (2, 3, 8, 9), {}),
    "recurrent weight norm": (Recurrent, (2, 3, 9), {}),
    "rewritten": (lambda: ScaledBranches(4), (2, 4, 6, 5), {}),
    "a single layer": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), (2, 3, 4, 5), {}),
    "pruned": (WithHead, (2, 3, 8, 9), {"prune": True}),
    "fixed size": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        (2, 3, 8, 9),
        {"fixed_size": True},
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)), (2, 3, 4, 5), {}),
    "nothing to fold": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (1, 3, 5, 6), {}),
}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[Callable[[], nn.Module], nn.Module, nn.Module, Tensor]:
    """A function that makes the model, a trained one, its fold, and its input."""
    make, shape, options = MODELS[name]
    x = image(*shape, dtype=dtype)
    model = trained(make(), x, dtype=dtype)
    return lambda: make().to(dtype), model, reparam.reparameterize(model, x, verify="folds", **options), x


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_as_it_was(name: str, tmp_path: Path) -> None:
    make, model, deployed, x = made(name)
    saved = save(deployed, tmp_path / "net.safetensors")
    fresh = make()
    before = copy.deepcopy(fresh.state_dict())
    loaded = load(saved.weights, fresh)
    assert distance(deployed, loaded, x) == 0
    assert repr(loaded) == repr(deployed)
    assert list(loaded.state_dict()) == list(deployed.state_dict())
    assert (convs_ran(loaded, x), norms_ran(loaded, x)) == (convs_ran(deployed, x), norms_ran(deployed, x))
    assert not any(module.training for module in loaded.modules())
    assert all(torch.equal(fresh.state_dict()[key], before[key]) for key in before)
    assert all(module.training for module in fresh.modules())
    assert distance(model, reparam.undo(loaded, model.state_dict()), x) == 0
    assert distance(deployed, pickle.loads(pickle.dumps(loaded)), x) == 0


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    make, _, deployed, _ = made("shared")
    loaded = load(save(deployed, tmp_path / "net.json").provenance, make())
    assert loaded.a.weight is loaded.b.weight
    assert loaded.again[1] is loaded.first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_and_memory_formats(dtype: torch.dtype, tmp_path: Path) -> None:
    make, _, deployed, x = made("RepVGG", dtype)
    deployed = deployed.to(memory_format=torch.channels_last)
    loaded = load(save(deployed, tmp_path / "net.safetensors").weights, make())
    assert {tensor.dtype for tensor in loaded.parameters()} == {dtype}
    kernels = [each for each in loaded.parameters() if each.dim() == 4]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels)
    assert torch.equal(loaded(x), deployed(x))


def test_a_model_that_was_loaded_can_be_saved_again(tmp_path: Path) -> None:
    make, _, deployed, x = made("DBB")
    first = save(deployed, tmp_path / "a.safetensors")
    second = save(load(first.weights, make()), tmp_path / "b.safetensors")
    assert first.weights.read_bytes() == second.weights.read_bytes()
    assert distance(deployed, load(second.weights, make()), x) == 0


def test_apply_gives_the_structure_and_load_state_dict_the_numbers(tmp_path: Path) -> None:
    make, _, deployed, x = made("RepVGG")
    saved = save(deployed, tmp_path / "net.safetensors")
    empty = apply(saved.provenance, make())
    empty.load_state_dict(load_file(saved.weights))
    assert distance(deployed, empty, x) == 0
    assert distance(deployed, _filled(apply(json.loads(saved.provenance.read_text()), make()), saved), x) == 0


def _filled(model: nn.Module, saved: Saved) -> nn.Module:
    model.load_state_dict(load_file(saved.weights))
    return model


def test_keyword_inputs_are_probed(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = pair()
            self.table = nn.Embedding(3, 6)

        def forward(self, *, images: Tensor, classes: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"y": self.body(images).mean((2, 3)) * scale + self.table(classes)}

    inputs = {"images": image(2, 3, 7, 9), "classes": torch.tensor([2, 0]), "scale": 2.0}
    model = trained(Masked().double())
    deployed = reparam.reparameterize(model, inputs)
    saved = save(deployed, tmp_path / "net.safetensors")
    noted = json.loads(saved.provenance.read_text())["probe"]
    assert noted["outputs"]["out['y']"]["shape"] == [2, 6]
    assert torch.equal(load(saved.weights, Masked().double())(**inputs)["y"], deployed(**inputs)["y"])


def test_the_provenance_says_where_it_comes_from(tmp_path: Path) -> None:
    _, model, _, x = made("RepVGG")
    deployed = reparam.reparameterize(model, x)
    saved = save(deployed, tmp_path / "net.safetensors", source={"model": "mine:make"})
    data = json.loads(saved.provenance.read_text())
    assert data["source"] == {"model": "mine:make"}
    assert data["made with"]["torch"] == torch.__version__
    assert set(data["keys"]) == set(model.state_dict()) == set(data["original"]["sha256"])
    assert {key for keys in data["keys"].values() for key in keys} == set(load_file(saved.weights))
    assert len(data["report"]["folds"]) == 2
    assert data["report"]["verification"]["ok"] is True
    assert data["options"]["cost"] == "static"


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("repvgg_a0", 64),
        ("mobileone_s0", 64),
        ("fastvit_t8", 64),
        ("repvit_m0_9", 64),
        ("swin_tiny_patch4_window7_224", None),  # takes no other size
        ("levit_128s", None),
    ],
)
def test_networks_of_timm(name: str, size: int | None, tmp_path: Path) -> None:
    import timm

    model = build(name)
    x = example_input(model, size=size)
    deployed = reparam.reparameterize(model, x, verify=False)
    loaded = load(save(deployed, tmp_path / "net.safetensors").weights, timm.create_model(name))
    assert distance(deployed, loaded, x) == 0
    assert repr(loaded) == repr(deployed)


# --- what must not go through


def test_another_model_is_refused(tmp_path: Path) -> None:
    _, _, deployed, _ = made("RepVGG")
    saved = save(deployed, tmp_path / "net.safetensors")
    wider = nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8, groups=4)).double()
    with pytest.raises(
        InputError, match=r"does not match the original of the artefact: 1\..*weight is float64 8x2x3x3 here"
    ):
        load(saved.weights, wider)
    with pytest.raises(InputError, match=r"2 is .* here and absent in the original"):
        load(saved.weights, nn.Sequential(*wider, nn.ReLU()))
    with pytest.raises(InputError, match=r"float32 .* here and float64 .* in the original"):
        load(saved.weights, MODELS["RepVGG"][0]())


def test_a_changed_forward_is_noticed(tmp_path: Path) -> None:
    class Net(nn.Module):
        slope = 0.1

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = pair(), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(nn.functional.leaky_relu(self.a(x) - 1, self.slope))

    x = image(2, 3, 7, 9)
    deployed = reparam.reparameterize(trained(Net(), x), x)
    saved = save(deployed, tmp_path / "net.safetensors")
    load(saved.weights, Net().double())
    fresh = Net().double()
    fresh.slope = 0.11
    with pytest.raises(InputError, match="computes something else: out is off by"):
        load(saved.weights, fresh)
    assert load(saved.weights, fresh, verify=False)(x).shape == deployed(x).shape


@pytest.mark.parametrize("which", ["weights", "provenance"])
def test_damaged_files_are_refused(which: str, tmp_path: Path) -> None:
    make, _, deployed, _ = made("RepVGG")
    saved = save(deployed, tmp_path / "net.safetensors")
    path = getattr(saved, which)
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[: len(whole) // 2], b"", whole.replace(b"0", b"1")):
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            load(saved.weights, make())
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        load(saved.weights, make())


def test_weights_of_another_artefact_are_refused(tmp_path: Path) -> None:
    make, _, deployed, _ = made("RepVGG")
    saved, other = save(deployed, tmp_path / "a.safetensors"), copy.deepcopy(deployed)
    next(other.parameters()).data.mul_(1.001)
    save(other, tmp_path / "b.safetensors")
    saved.weights.write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(InputError, match="sha256 differs"):
        load(saved.weights, make())


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    _, _, deployed, _ = made("ACNet")
    saved = save(deployed, tmp_path / "net.safetensors")
    before = saved.weights.read_bytes()
    with pytest.raises(InputError, match="exists and is not overwritten"):
        save(deployed, saved.weights)
    saved.weights.unlink()
    with pytest.raises(InputError, match=r"net\.json exists"):
        save(deployed, saved.weights)
    save(deployed, saved.weights, force=True)
    assert saved.weights.read_bytes() == before
    with pytest.raises(InputError, match="name one of them"):
        save(deployed, tmp_path / "net.pth")


def test_a_model_that_was_not_folded_is_refused(tmp_path: Path) -> None:
    _, model, deployed, _ = made("demo")
    with pytest.raises(InputError, match="not a model that reparameterize or load has returned"):
        save(model, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="has been pickled"):
        save(pickle.loads(pickle.dumps(deployed)), tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="in train mode"):
        save(copy.deepcopy(deployed).train(), tmp_path / "net.safetensors")
    changed = copy.deepcopy(deployed)
    changed.head = nn.Sequential(changed.head, nn.Softplus()).eval()
    with pytest.raises(InputError, match=r"head\.1 is a torch\.nn\.modules\.activation\.Softplus"):
        save(changed, tmp_path / "net.safetensors")
    changed = copy.deepcopy(deployed)
    changed.repvgg[0].register_buffer("more", torch.ones(1))
    with pytest.raises(InputError, match="tensors that folding does not create: more"):
        save(changed, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.update(attributes={"__class__": 1}),
        lambda kept: kept.update(attributes={"_modules": 1}),
        lambda kept: kept.update(attributes={"x": [1]}),
        lambda kept: kept.update(constants=["forward"]),
        lambda kept: kept.update(constants=["nowhere"]),
        lambda kept: kept.update(children={"conv": {"new": {"class": "Module", "arguments": {}, "children": {}}}}),
        lambda kept: kept.update(children={"conv": {"kept": {}}}),
        lambda kept: kept.update(children={"conv": {"same": "nowhere"}}),
        lambda kept: kept.update(order=["nothing"]),
        lambda kept: kept.update(none=["nothing"]),
        lambda kept: kept.update(plain={"alpha": "float32 1"}),
        lambda kept: kept.update(plain={"__class__": "float32 1"}),
    ],
)
def test_a_damaged_structure_is_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    make, _, deployed, _ = made("rewritten")
    saved = save(deployed, tmp_path / "net.safetensors")
    data = json.loads(saved.provenance.read_text())
    change(data["structure"]["kept"])
    saved.provenance.write_text(json.dumps(data))
    with pytest.raises(InputError):
        load(saved.weights, make(), verify=False)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_that_has_been_scripted(tmp_path: Path) -> None:
    make, _, deployed, x = made("RepVGG")
    truth = deployed(x)
    torch.jit.script(deployed)
    assert torch.equal(load(save(deployed, tmp_path / "net.safetensors").weights, make())(x), truth)


@functools.lru_cache(maxsize=8)
def own_ramp(length: int) -> Tensor:
    return torch.linspace(0.1, 0.7, length)


class ReadsTables(nn.Module):
    """A model whose tables stay in caches between its calls: of its own file, and of another one."""

    def __init__(self, ramp: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.ramp = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), ramp

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).sin() * self.ramp(x.shape[-1])


@pytest.mark.parametrize("ramp", [own_ramp, tables.ramp])
def test_a_table_that_an_earlier_run_has_left_in_a_cache(ramp: Any, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 7, 9)
    model = trained(ReadsTables(ramp), x, dtype=torch.float32)
    deployed = reparam.reparameterize(model, x)
    deployed(x)
    assert ramp.cache_info().currsize
    saved = save(deployed, tmp_path / "net.safetensors")
    ramp.cache_clear()  # as in a new process
    assert distance(deployed, load(saved.weights, ReadsTables(ramp)), x) == 0
    assert ramp(9).dtype == torch.float32


def test_a_forward_that_is_missing_is_noticed(tmp_path: Path) -> None:
    make, _, deployed, _ = made("rewritten")
    saved = save(deployed, tmp_path / "net.safetensors")
    data = json.loads(saved.provenance.read_text())
    del data["structure"]["kept"]["forward"]
    saved.provenance.write_text(json.dumps(data))
    with pytest.raises(InputError, match="rebuilt and does not run"):
        load(saved.weights, make())


@pytest.mark.parametrize("data", ["[]", "3", "{}", '{"format": "other", "version": 1}', "[" * 100000])
def test_json_that_is_no_artefact_is_refused(data: str, tmp_path: Path) -> None:
    make, _, deployed, _ = made("ACNet")
    saved = save(deployed, tmp_path / "net.safetensors")
    saved.provenance.write_text(data)
    with pytest.raises(InputError, match="provenance"):
        load(saved.weights, make())


def test_another_version_is_named(tmp_path: Path) -> None:
    make, _, deployed, _ = made("ACNet")
    saved = save(deployed, tmp_path / "net.safetensors")
    saved.provenance.write_text(json.dumps({**json.loads(saved.provenance.read_text()), "version": 3}))
    with pytest.raises(InputError, match="is of version 3"):
        load(saved.weights, make())


def test_undo_takes_an_artefact_and_a_checkpoint(tmp_path: Path) -> None:
    make, model, deployed, x = made("RepVGG")
    saved = save(deployed, tmp_path / "net.safetensors")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"ema": state}, tmp_path / "best.pth")
    restored = reparam.undo(saved.provenance, tmp_path / "best.pth", model=make())
    assert distance(model, restored, x) == 0
    assert distance(model, reparam.undo(deployed, str(tmp_path / "best.pth")), x) == 0
    with pytest.raises(InputError, match="model="):
        reparam.undo(saved.weights, model.state_dict())
    with pytest.raises(InputError, match="not the weights that were folded"):
        reparam.undo(saved.weights, make().state_dict(), model=make())


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every position in a tree of dicts and lists; of each list only the first entry."""
    inner = data.items() if isinstance(data, dict) else enumerate(data[:1]) if isinstance(data, list) else ()
    return [path, *(place for key, each in inner for place in _places(each, (*path, key)))]


@pytest.mark.slow
def test_any_damage_to_the_provenance_is_a_reparam_error(tmp_path: Path) -> None:
    make, _, deployed, x = made("rewritten")
    saved = save(deployed, tmp_path / "net.safetensors")
    whole = json.loads(saved.provenance.read_text())
    whole.pop("report")
    fresh = make()
    for path in _places(whole)[1:]:
        for wrong in (None, "x", [], -1.5):
            data = copy.deepcopy(whole)
            held = data
            for key in path[:-1]:
                held = held[key]
            held[path[-1]] = wrong
            saved.provenance.write_text(json.dumps(data))
            try:
                loaded = load(saved.weights, fresh)
            except InputError:
                continue
            assert distance(deployed, loaded, x) < 1e-12, (path, wrong)


# --- names from models


class Named(nn.Module):
    """Its layers have keys that are no names in Python, and its forward is rewritten."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({key: nn.Conv2d(3, 3, 3, padding=1) for key in keys})
        self.kept = nn.ModuleDict({key: nn.Conv2d(3, 3, 1) for key in keys})

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(sum(branch(x) for branch in self.branches.values()))
        for layer in self.kept.values():
            y = torch.tanh(layer(y)) * x.shape[1]
        return y


@pytest.mark.parametrize("keys", [("class", "if"), ('a"b', "a'b"), ("x\ny", "x)\n    marked = (1"), ("self", "ｘ")])
def test_keys_that_are_no_names_convert_print_pickle_and_save(keys: tuple[str, ...], tmp_path: Path) -> None:
    x = image(2, 3, 6, 5)
    model = trained(Named(keys).double(), x)
    deployed = reparam.reparameterize(model, x)
    compile(deployed.code, "code", "exec")
    assert distance(model, deployed, x) < 1e-12
    assert distance(deployed, pickle.loads(pickle.dumps(deployed)), x) == 0
    saved = save(deployed, tmp_path / "net.safetensors")
    assert distance(deployed, load(saved.weights, Named(keys).double()), x) == 0


# --- format 1


@pytest.fixture
def old(tmp_path: Path) -> tuple[Saved, nn.Module, Tensor]:
    """An artefact as format 1 had it: the forward is text."""
    _, _, deployed, x = made("rewritten")
    saved = save(deployed, tmp_path / "net.safetensors")
    make_format_1(saved.provenance, deployed)
    return saved, deployed, x


def test_format_1_loads_only_if_it_is_trusted(old: tuple[Saved, nn.Module, Tensor]) -> None:
    saved, deployed, x = old
    make = MODELS["rewritten"][0]
    with pytest.raises(InputError, match=r"holds Python code that loading executes.*trusted=True"):
        load(saved.weights, make().double())
    with pytest.raises(InputError, match="holds Python code"):
        apply(saved.provenance, make().double())
    loaded = load(saved.weights, make().double(), trusted=True)
    assert distance(deployed, loaded, x) == 0
    assert distance(deployed, pickle.loads(pickle.dumps(loaded)), x) == 0
    assert distance(deployed, _filled(apply(saved.provenance, make().double(), trusted=True), saved), x) == 0
    with pytest.raises(InputError, match="comes from a file of format 1"):
        save(loaded, saved.weights, force=True)


def test_undo_reads_format_1_as_data(old: tuple[Saved, nn.Module, Tensor]) -> None:
    saved, _, x = old
    _, model, _, _ = made("rewritten")
    fresh = MODELS["rewritten"][0]().double()
    restored = reparam.undo(saved.provenance, model.state_dict(), model=fresh, check=False)
    assert distance(model, restored, x) == 0


# --- both files belong together at any time


def test_a_file_that_is_cut_off_later_does_no_harm(tmp_path: Path) -> None:
    make, _, deployed, x = made("RepVGG")
    saved = save(deployed, tmp_path / "net.safetensors")
    loaded = load(saved.weights, make())
    saved.weights.write_bytes(b"")
    assert distance(deployed, loaded, x) == 0


@pytest.mark.parametrize("last", ["weights", "nothing"])
def test_a_save_that_dies_between_both_files_leaves_one_version(last: str, tmp_path: Path) -> None:
    make, _, deployed, x = made("RepVGG")
    other = copy.deepcopy(deployed)
    next(other.parameters()).data.mul_(1.5)
    saved, newer = save(deployed, tmp_path / "net.safetensors"), save(other, tmp_path / "newer.safetensors")
    saved.pending.write_bytes(newer.provenance.read_bytes())
    if last == "weights":
        newer.weights.replace(saved.weights)
    assert distance(other if last == "weights" else deployed, load(saved.weights, make(), verify=False), x) == 0
    save(other, saved.weights, force=True)
    assert not saved.pending.exists()


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, deployed, _ = made("ACNet")
    saved = save(deployed, tmp_path / "net.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "replace", _refuse)
    with pytest.raises(InputError):
        save(deployed, saved.weights, force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def _refuse(*_: Any) -> None:
    raise OSError(5, "no")


def test_loads_during_saves_give_one_of_the_versions(tmp_path: Path) -> None:
    make, _, deployed, x = made("RepVGG")
    other = copy.deepcopy(deployed)
    next(other.parameters()).data.mul_(1.5)
    saved = save(deployed, tmp_path / "net.safetensors")
    stop = threading.Event()

    def save_in_turns() -> None:
        while not stop.is_set():
            for model in (other, deployed):
                save(model, saved.weights, force=True)

    saver = threading.Thread(target=save_in_turns)
    saver.start()
    try:
        fresh, found = make(), set()
        for _ in range(300):
            loaded = load(saved.weights, fresh, verify=False)
            found.add(next(i for i, model in enumerate((deployed, other)) if distance(model, loaded, x) == 0))
    finally:
        stop.set()
        saver.join()
    assert found == {0, 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


class _NamedLikePython(nn.Module):
    """Its parameter has the name of a function of Python, and torch's own code hands on `out=None`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, input: Tensor) -> Tensor:
        y = F.normalize(self.norm(self.conv(input)), dim=1)
        return y + self.conv.weight.sum()


def test_names_of_python_and_keywords_without_a_value_can_be_saved(tmp_path: Path) -> None:
    model, x = trained(nn.Sequential(nn.ReLU(), _NamedLikePython()), dtype=torch.float32), torch.randn(2, 4, 7, 9)
    deployed = reparam.reparameterize(model, x)
    assert "input" in deployed[1].code
    assert "out = None" in deployed[1].code
    reparam.save(deployed, tmp_path / "net.safetensors")
    loaded = reparam.load(tmp_path / "net.safetensors", nn.Sequential(nn.ReLU(), _NamedLikePython()).eval())
    with torch.no_grad():
        assert torch.equal(loaded(x), deployed(x))
