"""The forms in which one model could be deployed: what it was converted by, and what runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import reparam
from reparam.errors import VerificationError

Run = Callable[[Tensor], Tensor]
_OWN_WAYS = ("fuse", "reparameterize", "switch_to_deploy")


def unchanged(model: nn.Module, _: Tensor) -> nn.Module:
    return model


@cache  # three forms run one and the same
def by_reparam(model: nn.Module, x: Tensor) -> nn.Module:
    return reparam.reparameterize(model, x, verify=False)


def by_fx(model: nn.Module, _: Tensor) -> nn.Module:
    return fuse(model).eval()  # the modules that it makes are in train mode


def by_its_own(model: nn.Module, _: Tensor) -> nn.Module:
    """The conversion that the authors of the blocks ship; raises LookupError where there is none."""
    if not any(callable(getattr(module, way, None)) for module in model.modules() for way in _OWN_WAYS):
        raise LookupError("it has no conversion of its own")
    from timm.utils.model import reparameterize_model

    converted: nn.Module = reparameterize_model(model)
    return converted.eval()  # here, too


def eager(model: nn.Module, _: Tensor) -> Run:
    return model


def compiled(model: nn.Module, x: Tensor) -> Run:
    """Inductor with constants folded into the code (freezing), for this one size."""
    from torch._inductor import config

    torch._dynamo.reset()
    config.freezing = True  # read when the first call compiles, so it cannot be set back here
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
    assert exported is not None  # as it is with dynamo=True
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model_bytes = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])

    return call


@dataclass(frozen=True)
class Form:
    """A conversion and a runtime; the name is what a table calls it."""

    name: str
    convert: Callable[[nn.Module, Tensor], nn.Module]
    prepare: Callable[[nn.Module, Tensor], Run] = eager

    def made(self, model: nn.Module, x: Tensor) -> Run | str:
        """What to call, or why there is nothing to call."""
        try:
            return self.prepare(self.convert(model, x), x)
        except Exception as error:  # noqa: BLE001 - whatever stops another tool is a result here
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


ORIGINAL = Form("original", unchanged)
FORMS = (
    ORIGINAL,
    Form("reparam", by_reparam),
    Form("own conversion", by_its_own),
    Form("torch.fx fuse", by_fx),
    Form("original, compiled", unchanged, compiled),
    Form("reparam, compiled", by_reparam, compiled),
    Form("original, ONNX Runtime", unchanged, in_onnxruntime),
    Form("reparam, ONNX Runtime", by_reparam, in_onnxruntime),
)


def equal(models: dict[str, Run], x: Tensor) -> dict[str, str]:
    """Why forms cannot be compared: those whose outputs are not the original's, the first one, within its rounding."""
    try:
        reparam.benchmark(models, x, rounds=1, warmup=0)
    except VerificationError as error:
        first, *others = models
        if len(others) == 1:
            return {others[0]: f"computes something else: {error}"}
        wrong = [equal({first: models[first], other: models[other]}, x) for other in others]
        return {name: why for each in wrong for name, why in each.items()}
    return {}
