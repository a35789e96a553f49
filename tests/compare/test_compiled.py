"""Code that compilers and other runtimes have made is really run: a mutant of each kind that doubles its output is
caught. And what is compiled stays compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.compare.verification import COMPILED, OWN_DTYPE_ONLY
from reparam.compare.verify import verify
from reparam.plan.cost import MeasuredCost
from tests.helpers import Block, image, trained

X = image(2, 3, 9, 12, dtype=torch.float32)


class Net(nn.Module):
    """A norm to fold, and a number that `.double()` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)) * torch.tensor(0.1))


class Doubled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.model(x)


def net(seed: int = 0) -> nn.Module:
    """The same network at every call."""
    torch.manual_seed(seed)
    return trained(Net(), X, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """A backend of torch.compile that multiplies what the code returns, and counts the calls of compiled code."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.calls, self.compilations = factor, 0, 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.compilations += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return tuple(out * self.factor for out in graph(*args))

        return run

    def __deepcopy__(self, memo: Any) -> Backend:
        return self  # lightning copies it, where that has been imported


def wrapped(model: nn.Module, backend: Any) -> Any:
    return torch.compile(model, backend=backend)


def in_place(model: nn.Module, backend: Any) -> Any:
    model.compile(backend=backend)
    return model


def inside(model: nn.Module, backend: Any) -> Any:
    return nn.Sequential(wrapped(model, backend), nn.Identity()).eval()


def in_place_inside(model: nn.Module, backend: Any) -> Any:
    return nn.Sequential(in_place(model, backend), nn.Identity()).eval()


def function(model: nn.Module, backend: Any) -> Any:
    return torch.compile(lambda x: model(x), backend=backend)


def calls_function(model: nn.Module, backend: Any) -> Any:
    compiled = torch.compile(lambda y: F.relu(y * 0.1), backend=backend)
    return Block(lambda m, x: compiled(m.bn(m.conv(x))), conv=model.conv, bn=model.bn).eval()


WAYS = [wrapped, in_place, inside, in_place_inside, function, calls_function]


@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_is_run(way: Callable[[nn.Module, Any], Any]) -> None:
    model, right, wrong = net(), Backend(), Backend(2.0)
    found = verify(model, way(net(), right), X)
    assert found.ok, found
    assert right.calls
    found = verify(model, way(net(), wrong), X)
    assert wrong.calls
    assert not found.ok
    assert {check.kind for check in found.checks if not check.passed} == {"own dtype"}


@pytest.mark.parametrize("way", [wrapped, in_place, inside, in_place_inside])
def test_the_float64_of_compiled_code_is_that_of_its_python_code(way: Callable[[nn.Module, Any], Any]) -> None:
    found = verify(net(), way(net(), Backend()), X)
    assert {check.kind for check in found.checks} == {"fp64", "own dtype"}
    assert f"Candidate: {COMPILED}" in found.summary
    other = net()
    other.conv.weight.data[0] *= 1.01
    found = verify(net(), way(other, Backend()), X)
    assert "fp64" in {check.kind for check in found.checks if not check.passed}


@pytest.mark.parametrize("way", [wrapped, in_place, inside, in_place_inside, calls_function])
def test_a_compiled_original_has_a_truth(way: Callable[[nn.Module, Any], Any]) -> None:
    assert verify(way(net(), Backend()), net(), X).ok
    wrong = way(net(), Backend(2.0))
    assert not verify(wrong, Doubled(net()).eval(), X).ok  # its truth is that of its Python code


@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_stays_compiled(way: Callable[[nn.Module, Any], Any], tmp_path: Path) -> None:
    """Also that of others: they share their Python code, and dynamo gives up code, not modules."""
    backends = [Backend(), Backend()]
    mine, theirs = (way(net(), backend) for backend in backends)
    plain = net()
    _call(mine, theirs)
    compilations = [backend.compilations for backend in backends]
    calls = [backend.calls for backend in backends]

    verify(plain, mine, X, variants=False)
    if isinstance(mine, nn.Module):
        verify(mine, plain, X, variants=False)
    reparam.benchmark({"plain": plain, "mine": mine}, X, rounds=1, warmup=0)
    folded = reparam.reparameterize(plain, X, cost=MeasuredCost(0.2))
    reparam.save(folded, tmp_path / "net.safetensors")
    verify(reparam.load(tmp_path / "net.safetensors", plain), mine, X, variants=False)
    reparam.undo(folded, plain.state_dict())
    if way is calls_function:
        reparam.reparameterize(mine, X)
    assert backends[0].calls > calls[0]

    calls = [backend.calls for backend in backends]
    assert backends[1].compilations == compilations[1]
    compilations = [backend.compilations for backend in backends]
    _call(mine, theirs)
    assert [backend.calls for backend in backends] == [call + 1 for call in calls]
    assert [backend.compilations for backend in backends] == compilations


def _call(*models: Callable[..., Any]) -> None:
    with torch.no_grad():
        for model in models:
            model(X)


@pytest.mark.parametrize("way", [in_place, inside])
def test_compiled_models_are_put_back(way: Callable[[nn.Module, Any], Any]) -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return super().forward(x)

    model = Counting().eval()
    candidate = way(model, Backend())
    assert verify(model, candidate, X).ok
    assert model.calls == 0


# --- other runtimes


def scripted(model: nn.Module) -> Any:
    return torch.jit.script(model)


def traced(model: nn.Module) -> Any:
    return torch.jit.trace(model, X)


def frozen(model: nn.Module) -> Any:
    return torch.jit.freeze(torch.jit.script(model))


def optimized(model: nn.Module) -> Any:
    return torch.jit.optimize_for_inference(torch.jit.script(model))


def holds_frozen(model: nn.Module) -> Any:
    return nn.Sequential(frozen(model), nn.Identity()).eval()


def session(model: nn.Module) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(model, (X,), dynamo=True, verbose=False)
    started = runtime.InferenceSession(program.model_proto.SerializeToString())
    name = started.get_inputs()[0].name
    return lambda x: torch.from_numpy(started.run(None, {name: x.numpy()})[0])


class Uncopyable(nn.Module):
    """A module that holds a handle of another runtime."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.run = frozen(model).forward
        self.handle = (_ for _ in ())

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


def uncopyable(model: nn.Module) -> Any:
    return Uncopyable(model).eval()


DOUBLED = [scripted, traced]
OWN_ONLY = [frozen, optimized, holds_frozen, session, uncopyable]


@pytest.mark.parametrize("make", [*DOUBLED, *OWN_ONLY])
@pytest.mark.filterwarnings("ignore")
def test_other_runtimes_are_run(make: Callable[[nn.Module], Any]) -> None:
    model = net()
    found = verify(model, make(net()), X, variants=make is not session)
    assert found.ok, found
    kinds = {check.kind for check in found.checks if check.compared}
    if make in OWN_ONLY:
        assert kinds == {"own dtype"}
        assert f"Candidate: {OWN_DTYPE_ONLY}: " in found.summary
    else:
        assert kinds == {"fp64", "own dtype"}
        assert "Candidate:" not in found.summary
    found = verify(model, make(Doubled(net()).eval()), X, variants=make is not session)
    assert not found.ok
    assert all(check.error < 2 for check in found.checks if not check.passed), found


@pytest.mark.slow
def test_a_package_of_aotinductor_is_run(tmp_path: Path) -> None:
    model = net()
    for right, module in ((True, net()), (False, Doubled(net()).eval())):
        program = torch.export.export(module, (X,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / f"{right}.pt2"))
        found = verify(model, torch._inductor.aoti_load_package(path), X, variants=False)
        assert found.ok == right, found
        assert right == (f"Candidate: {OWN_DTYPE_ONLY}: " in found.summary)
        assert not [check for check in found.checks if check.error > 1.5], "it fails instead of being wrong"


def test_a_conversion_has_a_float64() -> None:
    """What cannot be doubled is excused only where nobody knows better."""
    model = net()

    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net()

        def forward(self, x: Tensor) -> Any:
            if x.dtype == torch.float64:
                raise TypeError("float32 alone")
            return self.model(x)

    assert verify(model, Refusing().eval(), X).ok
    exact = {"model.conv.bias": model.conv.bias.detach().double()}
    assert not verify(model, Refusing().eval(), X, exact=exact).ok
