"""The forms in which a model could be deployed: a conversion, and the runtime that runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import reparam
from benchmarks.zoo.sets import own_conversion
from reparam.errors import VerificationError

Run = Callable[[Tensor], Tensor]


def unchanged(model: nn.Module, _: Tensor) -> nn.Module:
    return model


@cache  # three forms run the same model
def by_reparam(model: nn.Module, x: Tensor) -> nn.Module:
    return reparam.reparameterize(model, x, verify=False)


def by_fx(model: nn.Module, _: Tensor) -> nn.Module:
    return fuse(model).eval()  # it returns modules in train mode


def by_authors(model: nn.Module, _: Tensor) -> nn.Module:
    """The conversion that the authors of the blocks ship; raises LookupError where there is none."""
    convert = own_conversion(model)
    if convert is None:
        raise LookupError("it has no conversion of its own")
    return convert()


def eager(model: nn.Module, _: Tensor) -> Run:
    return model


def compiled(model: nn.Module, x: Tensor) -> Run:
    """Inductor with frozen weights, for this one size."""
    from torch._inductor import config

    torch._dynamo.reset()
    config.freezing = True  # read when the first call compiles, so it is not reset here
    run = torch.compile(model, dynamic=False)

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = run(x)
            return result

    call(x)
    return call


def in_onnxruntime(model: nn.Module, x: Tensor) -> Run:
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert exported is not None  # with dynamo=True it never is
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model_bytes = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])

    return call


@dataclass(frozen=True)
class Form:
    """A conversion and a runtime, under the name that tables use."""

    name: str
    convert: Callable[[nn.Module, Tensor], nn.Module]
    prepare: Callable[[nn.Module, Tensor], Run] = eager

    def make(self, model: nn.Module, x: Tensor) -> Run | str:
        """What to call, or the reason why this form does not exist."""
        try:
            return self.prepare(self.convert(model, x), x)
        except Exception as error:  # noqa: BLE001 - the failure of another tool is a result here
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


ORIGINAL = Form("original", unchanged)
FORMS = (
    ORIGINAL,
    Form("reparam", by_reparam),
    Form("own conversion", by_authors),
    Form("torch.fx fuse", by_fx),
    Form("original, compiled", unchanged, compiled),
    Form("reparam, compiled", by_reparam, compiled),
    Form("original, ONNX Runtime", unchanged, in_onnxruntime),
    Form("reparam, ONNX Runtime", by_reparam, in_onnxruntime),
)


def unequal(runs: dict[str, Run], x: Tensor) -> dict[str, str]:
    """The forms whose outputs differ from those of the first by more than rounding, and why."""
    try:
        reparam.benchmark(runs, x, rounds=1, warmup=0)
    except VerificationError as error:
        first, *others = runs
        if len(others) == 1:
            return {others[0]: f"computes something else: {error}"}
        reasons: dict[str, str] = {}
        for other in others:
            reasons |= unequal({first: runs[first], other: runs[other]}, x)
        return reasons
    return {}
