"""What `reparameterize` promises of any model: the result, the report, and the errors that leave all as it was."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
import reparam.convert as pipeline
from reparam.capture.inputs import Inputs
from reparam.capture.recorder import record
from reparam.errors import InputError, ModelError, ReparamError, TrainModeError, VerificationError
from reparam.nn import DiverseBranchBlock, RepVGGBlock
from reparam.plan.plan import plan
from reparam.report.report import counts
from reparam.rules import RULES
from tests.helpers import EXACT, Block, convs_ran, distance, image, norms_ran, plain_convs, ran, trained


class Network(nn.Module):
    """A classifier with methods and attributes of its own; some blocks have to be rewritten, some need not."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.num_features = channels
        self.config = {"name": "network", "channels": [3, channels]}
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList([RepVGGBlock(channels, channels), DiverseBranchBlock(channels, channels, 3)])
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(F.relu(x)))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        features = self.forward_features(x).mean((2, 3))
        return self.head(features if scale is None else features * scale)

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)


def network(dtype: torch.dtype = torch.float64) -> Network:
    model = trained(Network(), dtype=dtype)
    assert isinstance(model, Network)
    return model


X = image(2, 3, 17, 22)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a conversion might change."""
    return {
        "tensors": {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "modules": [(name, id(m), type(m), m.training, sorted(vars(m))) for name, m in model.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "grads": [p.requires_grad for p in model.parameters()],
        "output": ran_once(model),
    }


def ran_once(model: nn.Module) -> Tensor | None:
    """What a copy of it computes now."""
    try:
        with torch.no_grad():
            return copy.deepcopy(model)(X.to(next(model.parameters()).dtype))
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return None


def same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return before.is_meta or torch.equal(before.double().nan_to_num(7), after.double().nan_to_num(7))
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(same, before, after))
    return bool(before == after)


# --- the result


def test_it_is_the_user_s_own_model() -> None:
    model = network()
    folded = reparam.reparameterize(model, X)
    assert type(folded) is Network
    assert folded is not model
    assert not any(module.training for module in folded.modules())
    assert folded.num_features == 4
    assert folded.config == model.config
    assert folded.config is not model.config
    assert torch.equal(folded.predict(X), model.predict(X))
    assert torch.allclose(folded.forward_features(X), model.forward_features(X), rtol=1e-12, atol=1e-12)
    assert distance(model, folded, X, torch.rand(4, dtype=torch.float64)) < EXACT
    assert {"stem", "stem.0", "blocks.0", "blocks.1", "head", "norm"} <= {name for name, _ in folded.named_modules()}
    assert isinstance(folded.blocks, nn.ModuleList)
    assert isinstance(folded.stem[0], nn.Conv2d)
    assert [type(layer) for layer in plain_convs(folded)].count(nn.Conv2d) == 3


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (64, 33)])
def test_it_holds_at_every_size(size: tuple[int, int]) -> None:
    model = network()
    assert distance(model, reparam.reparameterize(model, X), image(3, 3, *size)) < EXACT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_device_and_format(dtype: torch.dtype) -> None:
    model = network(dtype).to(memory_format=torch.channels_last)
    folded = reparam.reparameterize(model, X.to(dtype))
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert {p.device for p in folded.parameters()} == {torch.device("cpu")}
    convs = [m for m in plain_convs(folded) if isinstance(m, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)
    assert not any(conv.weight.is_contiguous() for conv in convs)


def test_the_usual_memory_format_stays_too() -> None:
    folded = reparam.reparameterize(network(), X)
    assert all(layer.weight.is_contiguous() for layer in plain_convs(folded))


def test_new_weights_are_not_trained() -> None:
    folded = reparam.reparameterize(network(), X)
    assert not any(p.requires_grad for layer in plain_convs(folded)[:-1] for p in layer.parameters())


def roundtrips() -> dict[str, Callable[[nn.Module], nn.Module]]:
    def saved(model: nn.Module) -> nn.Module:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        result: nn.Module = torch.load(file, weights_only=False)
        return result

    def reloaded(model: nn.Module) -> nn.Module:
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            nn.init.zeros_(parameter)
        twin.load_state_dict(model.state_dict(), strict=True)
        return twin

    return {
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "torch.save": saved,
        "deepcopy": copy.deepcopy,
        "state_dict": reloaded,
        "twice": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
    }


@pytest.mark.parametrize("how", roundtrips())
def test_it_is_copied_and_stored(how: str) -> None:
    folded = reparam.reparameterize(network(), X)
    again = roundtrips()[how](folded)
    assert type(again) is Network
    assert torch.equal(again(X), folded(X))
    assert [(n, type(m).__name__) for n, m in again.named_modules()] == [
        (n, type(m).__name__) for n, m in folded.named_modules()
    ]
    assert isinstance(again.blocks[0], type(folded.blocks[0]).__mro__[1])


def test_a_copy_is_independent() -> None:
    folded = reparam.reparameterize(network(), X)
    before = folded(X)
    for parameter in copy.deepcopy(folded).parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(folded(X), before)


def test_it_exports() -> None:
    folded = reparam.reparameterize(network(), X)
    exported = torch.export.export(folded, (X,)).module()
    assert torch.allclose(exported(X), folded(X), rtol=1e-12, atol=1e-12)


def test_it_is_traced_as_before() -> None:
    folded = reparam.reparameterize(network(), X)
    traced = torch.fx.symbolic_trace(folded, concrete_args={"scale": None})
    assert torch.allclose(traced(X), folded(X))


def test_a_second_conversion_finds_nothing() -> None:
    folded = reparam.reparameterize(network(), X)
    again = reparam.reparameterize(folded, X)
    assert again.reparam_report.folds == ()
    assert "Nothing to fold" in str(again.reparam_report)
    assert torch.equal(again(X), folded(X))
    assert again.reparam_report.before == again.reparam_report.after


def test_the_code_of_a_rewritten_block_reads_as_what_it_does() -> None:
    block = reparam.reparameterize(network(), X).blocks[0]
    assert [name for name, _ in block.named_children()] == ["activation", "conv"]
    lines = [line.strip().partition(";")[0] for line in block.code.strip().splitlines()]
    assert lines == [
        "def forward(self, x):",
        "conv = self.conv(x)",
        "activation = self.activation(conv)",
        "return activation",
    ]


# --- the original


def test_the_original_is_untouched() -> None:
    model = network()
    model.stem.register_forward_hook(lambda *_: None)
    before = state(model)
    reparam.reparameterize(model, X)
    assert same(before, state(model))


def test_a_traced_original_is_untouched() -> None:
    """Without example inputs the model is traced and run on guesses: on a copy."""

    class Stores(Network):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.last = x
            return super().forward(x)

    model = trained(Stores())
    before = state(model)
    reparam.reparameterize(model)
    assert same(before, state(model))


# --- in place


def test_in_place_changes_the_model_itself() -> None:
    model = network()
    truth, head = model(X), model.head
    result = reparam.reparameterize(model, X, inplace=True)
    assert result is model
    assert type(model) is Network
    assert convs_ran(model, X) == 4
    assert ((model(X) - truth).abs().max() / truth.abs().max()).item() < EXACT
    assert model.head.weight is head.weight
    assert model.reparam_report.folds


def test_in_place_of_a_model_that_is_one_block() -> None:
    model = trained(RepVGGBlock(4, 4))
    x = image(1, 4, 9, 7)
    truth = model(x)
    assert reparam.reparameterize(model, x, inplace=True) is model
    assert convs_ran(model, x) == 1
    assert ((model(x) - truth).abs().max() / truth.abs().max()).item() < EXACT
    assert isinstance(pickle.loads(pickle.dumps(model)), RepVGGBlock)


@pytest.mark.parametrize("inplace", [False, True])
def test_weights_and_calls_of_inference_mode(inplace: bool) -> None:
    with torch.inference_mode():
        model, x = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())), image(2, 3, 7, 10)
        original = copy.deepcopy(model)
        deployed = reparam.reparameterize(model, x, inplace=inplace)
        assert distance(original, deployed, x) < EXACT
    assert [type(layer) for layer in deployed.children()] == [nn.Conv2d, nn.Identity, nn.ReLU]


# --- example inputs


@pytest.mark.parametrize(
    "inputs", [X, (X,), [X], {"x": X}, (X, torch.ones(4).double()), {"x": X, "scale": torch.ones(4).double()}, None]
)
def test_forms_of_inputs(inputs: Any) -> None:
    model = network()
    folded = reparam.reparameterize(model, inputs)
    assert distance(model, folded, X) < EXACT
    assert convs_ran(folded, X) == 4


def test_no_inputs_for_a_model_that_cannot_be_traced() -> None:
    class Branching(Network):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(InputError, match="give example_inputs"):
        reparam.reparameterize(trained(Branching()))


def test_no_inputs_for_a_model_whose_shape_is_unknown() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    with pytest.raises(InputError, match="give example_inputs"):
        reparam.reparameterize(Bare().eval())


@pytest.mark.parametrize("inputs", ["image", 3, (), {1: X}, [None]])
def test_inputs_of_no_use(inputs: Any) -> None:
    with pytest.raises(InputError, match="example_inputs"):
        reparam.reparameterize(network(), inputs)


# --- keep


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
    before = state(model)
    with pytest.raises(InputError, match=r"stm\.0.*named_modules"):
        reparam.reparameterize(model, X, keep=["stem.0", "stm.0"])
    assert same(before, state(model))


# --- errors, each of which leaves the model as it was


def with_nan() -> nn.Module:
    model = network()
    with torch.no_grad():
        model.stem[0].weight[0, 0, 0, 0] = float("nan")
    return model


def with_infinite_statistics() -> nn.Module:
    model = network()
    model.stem[1].running_var[0] = float("nan")
    return model


def in_train_mode() -> nn.Module:
    model = network()
    model.blocks[0].train()
    return model


def on_meta() -> nn.Module:
    return Network().eval().to("meta")


def in_float8() -> nn.Module:
    model = network(torch.float32)
    model.head.weight = nn.Parameter(model.head.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return model


ERRORS: dict[str, tuple[Callable[[], Any], dict[str, Any], type[ReparamError], str]] = {
    "train mode": (in_train_mode, {}, TrainModeError, r"blocks\.0.*eval\(\)"),
    "NaN": (with_nan, {}, ModelError, r"stem\.0\.weight.*not finite"),
    "NaN statistics": (with_infinite_statistics, {}, ModelError, r"stem\.1\.running_var.*not finite"),
    "fails on its inputs": (network, {"example_inputs": image(1, 4, 9, 7)}, ModelError, r"1x4x9x7.*RuntimeError"),
    "wrong arguments": (network, {"example_inputs": {"y": X}}, ModelError, "TypeError"),
    "meta": (on_meta, {}, ModelError, r"stem\.0\.weight.*meta"),
    "float8": (in_float8, {}, ModelError, r"head\.weight.*float8"),
    "unknown cost": (network, {"cost": "guessed"}, InputError, "'guessed'.*'static'"),
    "no module": (lambda: {"weight": X}, {}, InputError, "dict.*Module"),
    "a class": (lambda: Network, {}, InputError, "Module"),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ERRORS)
def test_error(name: str, inplace: bool) -> None:
    make, options, error, message = ERRORS[name]
    model = make()
    before = state(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=message):
        reparam.reparameterize(model, inplace=inplace, **{"example_inputs": X, **options})
    if isinstance(model, nn.Module):
        assert same(before, state(model))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantized_model_is_refused() -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.dequantize()

    with pytest.raises(ModelError, match=r"weight is torch\.qint8"):
        reparam.reparameterize(Quantized().eval(), torch.randn(2, 4))


# --- a result that is wrong


@pytest.fixture
def wrong_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for batch norm that forgets epsilon."""
    import dataclasses

    right = RULES["batch_norm"]

    def apply(*args: Any, **kwargs: Any) -> Any:
        return right.apply(*args[:7], eps=0.0)

    monkeypatch.setitem(RULES, "batch_norm", dataclasses.replace(right, apply=apply))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_wrong_rule_is_caught(wrong_norm: None, inplace: bool) -> None:
    model = network()
    before = state(model)
    with pytest.raises(VerificationError, match=r"stem\.0 is not exact.*Leave it out with keep"):
        reparam.reparameterize(model, X, inplace=inplace)
    assert same(before, state(model))
    assert "reparam_report" not in vars(model)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("guilty", ["head", "blocks.1"])
def test_a_wrong_edit_is_caught_and_named(monkeypatch: pytest.MonkeyPatch, inplace: bool, guilty: str) -> None:
    """Each fold is right by itself, but what is written into the model is not."""
    from reparam.rewrite import apply as emit

    model = trained(nn.Sequential(Network(), nn.Linear(5, 3), nn.Identity(), nn.Linear(3, 2)))
    right = emit.plain

    def wrong(value: Any, like: Tensor) -> Any:
        module, exact = right(value, like)
        mine = isinstance(module, nn.Linear) if guilty == "head" else value.anchor.key.where.startswith("0.blocks.0")
        if mine:
            for parameter in exact:
                exact[parameter] = exact[parameter] * 1.001
                parameter.data.mul_(1.001)
        return module, exact

    monkeypatch.setattr(emit, "plain", wrong)
    before = state(model)
    word = r"Guilty: (3|1|0\.head|the model)" if guilty == "head" else r"Guilty: 0\.blocks\.1"
    with pytest.raises(VerificationError, match=word):
        reparam.reparameterize(model, X, inplace=inplace)
    assert same(before, state(model))


def test_without_verification_nobody_looks(wrong_norm: None) -> None:
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
    before = state(model)
    with pytest.raises(VerificationError, match="is not exact"):
        reparam.reparameterize(model, X, verify="folds", inplace=True)
    assert same(before, state(model))


def test_full_is_what_true_means() -> None:
    model = network()
    reports = [reparam.reparameterize(model, X, verify=how).reparam_report for how in (True, "full")]  # type: ignore[arg-type]
    assert reports[0].verification == reports[1].verification
    assert reports[0].checked == reports[1].checked == "full"


@pytest.mark.parametrize("wrong", ["fold", "none", "", None, 2])
def test_what_cannot_be_chosen_is_refused_with_the_choices(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"verify=.*'full'.*'folds'.*False"):
        reparam.reparameterize(network(), X, verify=wrong)


# --- the report


def test_fields() -> None:
    model = network()
    report = reparam.reparameterize(model, X).reparam_report
    lines = {fold.name: fold for fold in report.folds}
    assert set(lines) == {"stem.0", "blocks.0.conv", "blocks.1.conv"}
    assert lines["stem.0"].before == "1 conv + 1 bn"
    assert lines["stem.0"].after == "Conv2d 3->4 3x3 s2 p1"
    assert lines["blocks.0.conv"].before == "2 conv + 3 bn + 2 add"
    assert lines["blocks.0.conv"].after == "Conv2d 4->4 3x3 s1 p1"
    assert all(0 <= fold.error <= 1e-13 for fold in report.folds)
    assert report.verification.ok
    assert report.verification.fp64_error <= 1e-12


def test_counts_are_those_of_what_runs() -> None:
    """Counted by aten's own operations, before and after."""
    model = network()
    folded = reparam.reparameterize(model, X)
    report = folded.reparam_report
    for each, counted in ((model, report.before), (folded, report.after)):
        assert counted.convs == convs_ran(each, X)
        assert counted.norms == norms_ran(each, X)
        assert counted.parameters == sum(t.numel() for t in (*each.parameters(), *each.buffers()))
        assert counted.macs == macs(each, X)
        assert counted.elementwise == sum(ran(each, X)[name] for name in ("add", "mul", "sub", "div", "neg"))


COUNTED: dict[str, Callable[[], nn.Module]] = {
    "a product with weights": lambda: Block(
        lambda m, x: m.norm(x).permute(0, 2, 3, 1) @ m.weight / 2,
        norm=nn.BatchNorm2d(3),
        weight=nn.Parameter(torch.randn(3, 5)),
    ),
    "a product of what is computed": lambda: Block(
        lambda m, x: x.relu() @ x.sigmoid().transpose(-1, -2) + m.fc(x), fc=nn.Linear(24, 20)
    ),
    "a dropped result": lambda: Block(
        lambda m, x: (m.other(x) * 2, m.norm(m.conv(x)) + 1)[1],
        other=nn.Conv2d(3, 2, 1),
        conv=nn.Conv2d(3, 4, 1),
        norm=nn.BatchNorm2d(4),
    ),
    "a norm behind a join": lambda: Block(
        lambda m, x: m.norm(m.a(x.relu()) + m.b(x.tanh())),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 1),
        norm=nn.BatchNorm2d(4),
    ),
    "a map of biases": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4)),
    "two heads": lambda: Block(
        lambda m, x: (m.a(x.mean((2, 3))) + m.b(x.mean((2, 3)))) / 2, a=nn.Linear(3, 4), b=nn.Linear(3, 4)
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_counted_after_is_what_a_recording_of_the_result_counts(name: str) -> None:
    model, x = trained(COUNTED[name]()), image(2, 3, 20, 24)
    folded = reparam.reparameterize(model, x, fixed_size=True)
    recorded = record(folded, Inputs.of(x))
    live = plan(recorded, recorded.nodes).live
    assert folded.reparam_report.after == counts((node for node in recorded.nodes if node in live), folded)


def test_a_product_with_weights_counts_as_the_linear_layer_that_it_becomes() -> None:
    model, x = trained(COUNTED["a product with weights"]()), image(2, 3, 20, 24)
    report = reparam.reparameterize(model, x).reparam_report
    assert (report.before.convs, report.after.convs) == (1, 1)


def macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds by hooks on convolutions and linear layers, and on the one module that computes its kernel."""
    total: list[int] = []

    def count(module: nn.Module, args: Any, result: Tensor) -> None:
        weight = module.weight
        total.append(result.numel() * weight[0].numel())

    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, reparam.nn.IdentityBasedConv1x1)):
            module.register_forward_hook(count)
    copied(*inputs)
    return sum(total)


def test_refusals_say_where_what_why_and_what_would_help() -> None:
    model = trained(nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(3)))
    report = reparam.reparameterize(model, X).reparam_report
    refusal = next(r for r in report.refusals if r.operation == "avg_pool2d")
    assert refusal.where == "0"
    assert "count_include_pad" in refusal.reason
    assert "would fold" in refusal.remedy
    assert f"0 (avg_pool2d) kept: {refusal.reason}; {refusal.remedy}" in str(report)


def test_it_prints_as_tables() -> None:
    text = str(reparam.reparameterize(network(), X).reparam_report)
    for part in ("what it was", "2 conv + 3 bn + 2 add", "Conv2d 4->4 3x3 s1 p1", "batch norms", "Verified: equal"):
        assert part in text
    assert max(map(len, text.splitlines())) < 250


def test_equal_refusals_print_once() -> None:
    pools = [nn.AvgPool2d(3, 1, 1, count_include_pad=False) for _ in range(3)]
    report = reparam.reparameterize(trained(nn.Sequential(*pools)), X).reparam_report
    assert len([r for r in report.refusals if r.operation == "avg_pool2d"]) == 3
    assert str(report).count("count_include_pad") == 1 + str(report).count("count_include_pad=True")
    assert "(and 2 more)" in str(report)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reparam.reparameterize(network(), X, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "recording" in err
    assert "folding 3 regions" in err


def test_silence_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    reparam.reparameterize(network(), X)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(collecting: bool, fails: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(ModelError) if fails else contextlib.nullcontext():
            reparam.reparameterize(trained(Network()), image(1, 7 if fails else 3, 16, 16))
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()
