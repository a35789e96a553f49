"""What the forward in an artefact may name: closed lists of functions, methods, attributes, dtypes and devices.

Everything here was chosen by hand. It computes tensors or numbers from tensors and numbers, and has no other effect.
Nothing takes a function, opens a file, reads memory that it was not given, or changes how tensors hold theirs. So these
are missing on purpose:

- `apply_`, `map_`, `register_hook`, `vmap`: they call a function.
- `storage`, `untyped_storage`, `data_ptr`, `set_`, `resize_`, `as_strided`, `numpy`, `share_memory_`, `data`: memory.
- `empty`, `empty_like`, `new_empty`: what they return is what the memory held before.
- `backward`, `requires_grad_`, `retain_grad`: gradients. `manual_seed`, `set_default_dtype`: the process.
- `load`, `save`, `from_file`, `frombuffer`, `ops`, `jit`: files and code.
- `scatter`, `index_put`, `index_add`, `masked_scatter`, `bucketize`, `histc`, `embedding_bag`, `max_unpool`, quantised,
  sparse, recurrent and Fourier operations: folded forwards do not need them, and they trust their arguments more than
  the others do.
- `item`, `tolist`, `unique`, `str`, `format`, `range`, `zip`, `sorted`: results that are no tensors or sizes.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

# Attributes of a tensor that a forward may read.
ATTRIBUTES = frozenset("shape dtype device ndim T mT".split())

_OPERATORS = """
    add sub mul truediv floordiv mod pow matmul neg pos invert and_ or_ xor not_ is_ is_not eq ne lt le gt ge
    iadd isub imul itruediv ifloordiv getitem setitem
"""
PYTHON = "getattr int float bool len abs min max round sum tuple list slice"
_MATH = "ceil floor sqrt prod gcd log2"
_TORCH = """
    abs add addcdiv addcmul addmm all amax amin any arange argmax argmin argsort atan2 baddbmm bmm broadcast_tensors cat
    chunk clamp clamp_max clamp_min clip clone column_stack concat concatenate conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d cos cosh count_nonzero cross cumprod cumsum diagonal diff div divide dot einsum eq
    erf erfc exp exp2 expm1 eye flatten flip fliplr flipud floor floor_divide fmod frac full full_like gather ge greater
    gt hardshrink hstack index_select inner isfinite isinf isnan le lerp less linspace log log10 log1p log2 log_softmax
    logical_and logical_not logical_or logical_xor logsumexp lt masked_fill matmul maximum max mean median meshgrid min
    minimum mm moveaxis movedim mul multiply nan_to_num narrow ne neg negative norm ones ones_like outer permute
    pixel_shuffle pixel_unshuffle positive pow prelu prod ravel reciprocal relu relu_ remainder repeat_interleave
    reshape roll rot90 round rsqrt rsub scalar_tensor select selu sigmoid sigmoid_ sign sin sinh softmax sort split sqrt
    square squeeze stack std std_mean sub subtract sum swapaxes swapdims t tan tanh tanh_ tensor_split tensordot tile
    topk transpose tril triu true_divide trunc unbind unflatten unsqueeze var var_mean vstack where zeros zeros_like
    _assert
"""
_FUNCTIONAL = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm celu channel_shuffle conv1d conv2d
    conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d dropout2d dropout3d
    elu feature_alpha_dropout fold gelu glu group_norm hardshrink hardsigmoid hardswish hardtanh instance_norm
    interpolate layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d max_pool1d
    max_pool2d max_pool3d mish normalize pad pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm
    scaled_dot_product_attention selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink
    threshold unfold
"""
_METHODS = """
    abs abs_ add add_ addcdiv addcmul addmm all amax amin any argmax argmin argsort baddbmm bfloat16 bmm bool
    broadcast_to chunk clamp clamp_ clamp_max clamp_min clone contiguous cos cosh count_nonzero cumprod cumsum detach
    diagonal diff dim div div_ dot double eq erf exp exp_ expand expand_as expm1 fill_ flatten flip fliplr flipud float
    floor floor_divide fmod gather ge gt half index_select int isfinite isinf isnan le lerp log log10 log1p log2
    log_softmax logical_and logical_not logical_or logical_xor logsumexp long lt masked_fill masked_fill_ matmul max
    maximum mean median min minimum mm moveaxis movedim mul mul_ multiply nan_to_num narrow ndimension ne neg neg_
    new_full new_ones new_zeros norm numel outer permute pow pow_ prelu prod ravel reciprocal relu relu_ remainder
    repeat repeat_interleave reshape reshape_as roll rot90 round rsqrt select sigmoid sigmoid_ sign sin sinh size
    softmax sort split split_with_sizes sqrt square squeeze std sub sub_ subtract sum swapaxes swapdims t tan tanh
    tanh_ tensor_split tile to topk transpose tril triu true_divide trunc type_as unbind unflatten unfold unsqueeze var
    view view_as where zero_
"""


def _table(prefix: str, place: Any, names: str) -> dict[str, Callable[..., Any]]:
    """The functions by full name. What this version of torch lacks is left out."""
    present = set(dir(place))
    return {prefix + name: getattr(place, name) for name in names.split() if name in present}


# Functions, by the name that a program gives them.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_table("", builtins, PYTHON),
    **_table("math.", math, _MATH),
    **_table("operator.", operator, _OPERATORS),
    **_table("torch.", torch, _TORCH),
    **_table("torch.nn.functional.", F, _FUNCTIONAL),
}
# Methods of a tensor. A file's call of one is a call of this function, whatever it is called on.
METHOD_PREFIX = "torch.Tensor."
METHODS: dict[str, Callable[..., Any]] = _table("", torch.Tensor, _METHODS)


def _named(values: Iterable[Any]) -> dict[str, Any]:
    return {str(value): value for value in values}


DTYPES: dict[str, torch.dtype] = _named(
    getattr(torch, name)
    for name in (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64 complex64 complex128 "
        "float8_e4m3fn float8_e5m2"
    ).split()
    if name in vars(torch)
)
FORMATS: dict[str, torch.memory_format] = _named(
    (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
)
LAYOUTS: dict[str, torch.layout] = _named((torch.strided,))
DEVICE = r"(cpu|cuda|mps|xpu)(:\d{1,3})?"
