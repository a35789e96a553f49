"""A rewritten forward as JSON: a graph of known operations, which cannot run anything else.

A file names operations and never holds code. Reading it checks every part against closed tables: functions by name,
methods by name and bound to `torch.Tensor`, attributes by name, and members of the module that are registered below it.
Whatever the tables lack is refused, when a model is saved and when it is loaded.
"""

from __future__ import annotations

import builtins
import keyword
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from reparam.errors import InputError
from reparam.rewrite.program import (
    CALL_FUNCTION,
    CALL_METHOD,
    CALL_MODULE,
    GET_ATTR,
    OUTPUT,
    PLACEHOLDER,
    Program,
    Reference,
    Step,
)

Data = dict[str, Any]

MAX_STEPS = 100_000  # of one forward
MAX_DEPTH = 32  # of nested arguments

# Attributes of a tensor that code may read.
ATTRIBUTES = frozenset("shape dtype device ndim T mT".split())

# Functions, by the name that a program gives them. Each computes tensors or numbers from its arguments and has no other
# effect; none takes a function, a name, a file or a device to run on.
_OPERATORS = (
    "add sub mul truediv floordiv mod pow matmul neg pos and_ or_ xor invert lshift rshift eq ne lt le gt ge "
    "iadd isub imul itruediv ifloordiv getitem setitem"
)
_PYTHON = "getattr int float bool len abs min max round sum tuple list slice"
_MATH = "ceil floor sqrt prod gcd log2"
_TORCH = (
    "abs add addcmul addcdiv addmm amax amin any all arange argmax argmin argsort atan2 baddbmm bmm broadcast_tensors "
    "bucketize cat chunk clamp clip clone column_stack concat concatenate conv1d conv2d conv3d conv_transpose1d "
    "conv_transpose2d conv_transpose3d cos cosh count_nonzero cross cummax cummin cumprod cumsum deg2rad diagonal diff "
    "div divide dot dsplit dstack einsum empty empty_like eq erf erfc exp exp2 expm1 eye fft_fft flatten flip fliplr "
    "flipud floor floor_divide fmod frac full full_like gather ge greater gt hardshrink heaviside hsplit hstack "
    "index_select inner isfinite isinf isnan kron le lerp less linspace log log10 log1p log2 logical_and logical_not "
    "logical_or logical_xor logsumexp lt masked_fill matmul maximum max mean median meshgrid min minimum mm moveaxis "
    "movedim mul multiply narrow nan_to_num ne neg negative nonzero norm ones ones_like outer permute pixel_shuffle "
    "pixel_unshuffle positive pow prelu prod ravel reciprocal relu remainder repeat_interleave reshape roll rot90 round "
    "rsqrt rsub scatter scatter_add select selu sigmoid sign sin sinh softmax sort split sqrt square squeeze stack std "
    "std_mean sub subtract sum swapaxes swapdims t take_along_dim tan tanh tensor_split tile topk transpose tril triu "
    "true_divide trunc unbind unflatten unsqueeze var var_mean vsplit vstack where zeros zeros_like log_softmax "
    "scalar_tensor _assert tensordot"
)
_FUNCTIONAL = (
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm celu channel_shuffle "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d "
    "dropout2d dropout3d elu embedding feature_alpha_dropout fold gelu glu grid_sample group_norm gumbel_softmax "
    "hardshrink hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm leaky_relu linear local_response_norm "
    "log_softmax logsigmoid lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d mish normalize one_hot pad "
    "pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm rrelu scaled_dot_product_attention selu sigmoid silu "
    "softmax softmin softplus softshrink softsign tanh tanhshrink threshold unfold upsample"
)

# Methods of a tensor. None of them touches its storage, its hooks, gradients, files or other processes.
METHODS = frozenset(
    "abs add add_ addcmul addmm all amax amin any argmax argmin argsort baddbmm bfloat16 bmm bool broadcast_to chunk "
    "clamp clamp_ clamp_max clamp_min clone contiguous cos cosh count_nonzero cummax cummin cumprod cumsum detach diagonal "
    "diff dim div div_ dot double eq erf exp exp_ expand expand_as expm1 fill_ flatten flip fliplr flipud float floor "
    "floor_divide fmod gather ge gt half index_add index_copy index_fill index_put index_select int isfinite isinf isnan "
    "le lerp log log10 log1p log2 logical_and logical_not logical_or logical_xor log_softmax logsumexp long lt "
    "masked_fill masked_fill_ masked_scatter masked_select matmul max maximum mean median min minimum mm moveaxis movedim "
    "mul mul_ multiply nan_to_num narrow ndimension ne neg neg_ new_empty new_full new_ones new_tensor new_zeros nonzero "
    "norm numel outer permute pow pow_ prelu prod ravel reciprocal relu relu_ remainder repeat repeat_interleave reshape "
    "reshape_as roll rot90 round rsqrt scatter scatter_add select sigmoid sigmoid_ sign sin sinh size softmax sort split "
    "split_with_sizes sqrt square squeeze std sub sub_ subtract sum swapaxes swapdims t take_along_dim tan tanh tanh_ "
    "tensor_split tile to topk transpose tril triu trunc type_as unbind unflatten unfold unsqueeze var view view_as where "
    "zero_".split()
)

FUNCTIONS = frozenset(
    [
        *(f"operator.{name}" for name in _OPERATORS.split()),
        *_PYTHON.split(),
        *(f"math.{name}" for name in _MATH.split()),
        *(f"torch.{name}" for name in _TORCH.split()),
        *(f"torch.nn.functional.{name}" for name in _FUNCTIONAL.split()),
    ]
)
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_FORMATS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.memory_format)}
_LAYOUTS = {str(torch.strided): torch.strided}
_OBJECTS: dict[str, Mapping[str, Any]] = {"dtype": _DTYPES, "memory_format": _FORMATS, "layout": _LAYOUTS}
_TAKEN = {"self", "forward", "torch", "operator", "math", "device", "inf", "nan", *dir(builtins)}


def program_data(program: Program, where: str) -> Data:
    """A program as JSON. `where` names its module.

    Raises InputError where it holds what `read_program` would refuse.
    """
    return {"nodes": [_step_data(step, where) for step in program.steps]}


def _step_data(step: Step, where: str) -> Data:
    known = step.op != CALL_FUNCTION or step.target in FUNCTIONS
    known &= step.op != CALL_METHOD or step.target in METHODS
    known &= not _reads_attribute(step) or step.args[1] in ATTRIBUTES
    if not known:
        what = step.args[1] if _reads_attribute(step) else step.target
        raise InputError(f"{where}: its forward needs {what!r}, which an artefact cannot hold; export a .pt2 instead")
    try:
        kwargs = {name: _data(value) for name, value in step.kwargs}
        return {
            "op": step.op,
            "name": step.name,
            "target": step.target,
            "args": list(map(_data, step.args)),
            "kwargs": kwargs,
        }
    except TypeError as error:
        raise InputError(
            f"{where}: its forward needs {error}, which an artefact cannot hold; export a .pt2 instead"
        ) from None


def _reads_attribute(step: Step) -> bool:
    return step.op == CALL_FUNCTION and step.target == "getattr"


def _data(value: Any) -> Any:
    """An argument as JSON. Raises TypeError, which names the value, for anything else than data."""
    if isinstance(value, Reference):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return list(map(_data, value))
    if type(value) is tuple:
        return {"tuple": list(map(_data, value))}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _data(item) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_data(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, known in _OBJECTS.items():
        if isinstance(value, type(next(iter(known.values())))) and str(value) in known:
            return {kind: str(value)}
    raise TypeError(repr(value))


def read_program(data: Any, module: nn.Module, constants: Collection[str], where: str) -> Program:
    """The program that a file holds for the forward of `module`; methods of tensors are bound to `torch.Tensor`.

    constants: the names of the tensors that the file adds to the module.

    Raises InputError where it is damaged, and where it names anything that the tables lack.
    """
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list) or len(data["nodes"]) > MAX_STEPS:
        raise InputError(f"{where}: its forward is damaged; it is not loaded")
    reader = _Reader(module, constants, where)
    for node in data["nodes"]:
        reader.read(node)
    reader.require_whole()
    return Program(tuple(reader.steps))


class _Reader:
    """Reads the steps of one forward in order, and refuses what is not known."""

    def __init__(self, module: nn.Module, constants: Collection[str], where: str) -> None:
        self.where = where
        self.steps: list[Step] = []
        self.names: set[str] = set()
        self.modules = {path for path, _ in module.named_modules(remove_duplicate=False) if path}
        tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        self.tensors = {name for name, _ in tensors} | set(constants)

    def refusal(self, what: object) -> InputError:
        return InputError(
            f"{self.where}: its forward holds {str(what)[:80]!r}, which no artefact holds; it is not loaded"
        )

    def read(self, node: Any) -> None:
        if not isinstance(node, dict) or set(node) != {"op", "name", "target", "args", "kwargs"}:
            raise self.refusal(node)
        op, name, target = node["op"], node["name"], node["target"]
        if not self._is_new_name(name) or not isinstance(target, str) or not isinstance(node["args"], list):
            raise self.refusal(name)
        if self.steps and self.steps[-1].op == OUTPUT:
            raise self.refusal(op)
        args = tuple(self.value(value, 0) for value in node["args"])
        kwargs = tuple((self._keyword(key), self.value(value, 0)) for key, value in dict(node["kwargs"]).items())
        op, target = self._checked(op, target, args, kwargs)
        self.steps.append(Step(op, name, target, args, kwargs))
        self.names.add(name)

    def _is_new_name(self, name: Any) -> bool:
        plain = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        return plain and name not in _TAKEN and name not in self.names and not name.startswith("__")

    def _keyword(self, name: Any) -> str:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise self.refusal(name)
        return name

    def _checked(self, op: Any, target: str, args: tuple[Any, ...], kwargs: tuple[Any, ...]) -> tuple[str, str]:
        """The step's op and target, if the tables have them and its arguments are of the kind that they need."""
        if op == PLACEHOLDER:
            late = any(step.op != PLACEHOLDER for step in self.steps)
            plain = self._keyword(target.lstrip("*")) and target.count("*") <= 2 and len(args) <= 1 and not kwargs
            if late or not plain or any(_refers(value) for value in args):
                raise self.refusal(target)
        elif op == OUTPUT:
            if len(args) != 1 or kwargs:
                raise self.refusal(target)
        elif op == CALL_MODULE:
            if target not in self.modules:
                raise self.refusal(target)
        elif op == GET_ATTR:
            if target not in self.tensors or args or kwargs:
                raise self.refusal(target)
        elif op == CALL_METHOD:
            if target not in METHODS or not args or not isinstance(args[0], Reference):
                raise self.refusal(target)
            return CALL_FUNCTION, f"torch.Tensor.{target}"
        elif op == CALL_FUNCTION:
            attribute = len(args) == 2 and isinstance(args[0], Reference) and args[1] in ATTRIBUTES and not kwargs
            if target not in FUNCTIONS or (target == "getattr" and not attribute):
                raise self.refusal(target)
        else:
            raise self.refusal(op)
        return op, target

    def value(self, value: Any, depth: int) -> Any:
        """An argument. Each is a literal, a container of arguments, or an object of one key that says what it is."""
        if depth > MAX_DEPTH:
            raise self.refusal("arguments that are nested too deep")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        if not isinstance(value, dict) or len(value) != 1:
            raise self.refusal(value)
        ((kind, content),) = value.items()
        if kind == "node" and content in self.names:
            return Reference(content)
        if kind == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if kind == "tuple" and isinstance(content, list):
            return tuple(self.value(item, depth + 1) for item in content)
        if kind == "slice" and isinstance(content, list) and len(content) == 3:
            return slice(*(self.value(item, depth + 1) for item in content))
        if kind == "dict" and isinstance(content, dict):
            return {str(key): self.value(item, depth + 1) for key, item in content.items()}
        if kind in _OBJECTS and isinstance(content, str) and content in _OBJECTS[kind]:
            return _OBJECTS[kind][content]
        if kind == "device" and isinstance(content, str):
            return torch.device(content)
        raise self.refusal(value)

    def require_whole(self) -> None:
        if not self.steps or self.steps[-1].op != OUTPUT:
            raise self.refusal("no output")


def _refers(value: Any) -> bool:
    return any(True for _ in Step(OUTPUT, "", "", (value,)).references())
