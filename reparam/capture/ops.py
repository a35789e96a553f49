"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

PERHAPS_VIEWS = ("reshape", "flatten", "ravel", "contiguous", "to")  # or copies, by size and order of memory

# Methods that ask their second argument for its shape or dtype only, as calls that do not take it.
SHAPED_AS: dict[str, Callable[[Tensor, Tensor], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "reshape_as": lambda x, other: (Tensor.reshape, (x, tuple(other.shape))),
    "view_as": lambda x, other: (Tensor.view, (x, tuple(other.shape))),
    "expand_as": lambda x, other: (Tensor.expand, (x, tuple(other.shape))),
    "type_as": lambda x, other: (Tensor.to, (x, other.dtype)),
}

_RANDOM = frozenset(
    "rand randn randint randperm bernoulli multinomial normal poisson rand_like randn_like randint_like uniform "
    "exponential geometric cauchy log_normal random rrelu".split()
)

# Operators that Python spells differently and that mean the same function.
SPELLINGS = {
    "iadd": "add", "radd": "add", "isub": "sub", "subtract": "sub", "imul": "mul", "rmul": "mul", "multiply": "mul",
    "truediv": "div", "itruediv": "div", "idiv": "div", "true_divide": "div", "divide": "div", "negative": "neg",
    "concat": "cat", "concatenate": "cat",
}  # fmt: skip


def operation(function: Callable[..., Any] | str) -> str:
    """The name under which a torch function, method (or its name), operator or attribute is looked up."""
    getter: Any = function
    name = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        return str(getter.__self__.__name__)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    name = name.rstrip("_")
    return SPELLINGS.get(name, name)


_VIEWS = frozenset(
    "view reshape chunk split split_with_sizes tensor_split getitem transpose swapaxes swapdims permute movedim "
    "moveaxis t T mT flatten unflatten unsqueeze squeeze expand detach contiguous narrow select unbind data dropout "
    "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
    "affine_part".split()  # a norm scales as it writes: for nothing
)

_PRODUCTS = ("matmul", "linalg_matmul", "mm", "bmm", "addmm", "baddbmm", "inner", "einsum", "tensordot")

_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", *_TRANSPOSED, "linear")

KERNELS = (*_CONVOLUTIONS, *_PRODUCTS)

_POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")

_NAMING = ("view", "reshape", "unflatten", "expand")  # steps whose arguments may say how many channels there are

_PARTING = (
    "getitem",
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "narrow",
    "select",
    "unbind",
    "index_select",
    "expand",
    "repeat",
)

_MULTIPLYING = ("cat", "pixel_unshuffle", "repeat", "tile", "repeat_interleave")

MOVING = ("view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous")

GIVEN_SIZES = ("view", "reshape", "unflatten")

# What these compute is as large as the first tensor that they read, whatever else they are given.
AS_LARGE = frozenset(
    "data detach clone contiguous relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardsigmoid "
    "hardswish hardtanh softplus dropout batch_norm layer_norm rms_norm group_norm instance_norm affine_part".split()
)

QUERIES = frozenset(
    "shape size dim ndim ndimension dtype device numel nelement len is_floating_point is_complex is_cuda layout stride "
    "is_contiguous requires_grad get_device element_size itemsize is_leaf grad_fn is_sparse is_quantized is_meta names "
    "storage_offset data_ptr untyped_storage is_mkldnn is_nested type_ is_same_size hash format repr is_tensor "
    "is_inference dim_order is_signed _version is_mps is_xla is_cpu".split()
)

# Those that tell its size, those that tell how it lies in memory (as the input may), and those that tell its values.
SIZES = frozenset("shape size numel nelement len is_same_size".split())

LAID = frozenset("stride is_contiguous storage_offset untyped_storage dim_order".split())

PRINTS = frozenset("format repr".split())
