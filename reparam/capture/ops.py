"""What the package knows about torch operations, in one table: a row for each, or for several that share all facts.

An operation goes by one name, however it is spelled: `x + y`, `x.add_(y)` and `torch.add(x, y)` are "add". The table
says what kind it is, whether it is a view, what it does to sizes, channels and strides, what it asks about a tensor and
what reports call it. The sets below it are what the other rooms use. What an operation computes is not here: that is
its rule (see `reparam.rules`). Nor is anything that depends on the arguments of a call.

An operation without a row has none of these facts. A new operation needs a rule, and a row where a fact holds for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any

from torch import Tensor


class Kind(Enum):
    """What an operation computes, roughly."""

    CONVOLUTION = auto()
    TRANSPOSED_CONVOLUTION = auto()
    LINEAR = auto()
    PRODUCT = auto()  # of two matrices, either of which may be a weight
    POOL = auto()  # over windows of a given size
    REDUCTION = auto()  # over whole dimensions, or windows that follow from the size of the output
    ATTENTION = auto()
    NORM = auto()
    ELEMENTWISE = auto()
    JOIN = auto()
    VIEW = auto()  # the entries of its input, seen or copied in another arrangement
    SELECTION = auto()  # some of the entries of its input, or all of them several times
    RESAMPLING = auto()  # pixels added or interpolated
    COPY = auto()
    WRITE = auto()
    RANDOM = auto()
    QUERY = auto()  # tells something about a tensor and computes none
    CHECK = auto()  # raises an exception or does nothing
    OTHER = auto()  # no row says


class Fact(Flag):
    """What may be true of an operation, whatever its arguments."""

    NONE = 0

    # memory
    VIEW = auto()  # always shares the memory of its input
    PERHAPS_VIEW = auto()  # shares it or copies it, depending on size and strides
    FREE = auto()  # priced as nothing; so is every VIEW
    NEEDS_STRIDES = auto()  # raises an exception where the strides of its input do not allow the view
    ANY_STRIDES = auto()  # reads inputs with gaps between their entries without copying them first
    CONTIGUOUS = auto()  # its result is contiguous, whatever the strides of its input
    CAST = auto()  # its result is its input where dtype, device and memory format are right already

    # sizes
    SIZE_ARGUMENTS = auto()  # takes sizes as arguments, the number of channels perhaps among them
    RESHAPE = auto()  # splits or merges dimensions
    REARRANGING = auto()  # moves entries between dimensions, and computes nothing
    SHAPE_PRESERVING = auto()  # its result has the shape of its first input
    BATCH_PRESERVING = auto()  # dimension 0 of its result is that of its first input
    BROADCASTING = auto()  # its result is as large as its inputs together
    CROPPING = auto()  # may take pixels away
    ADAPTIVE = auto()  # pools to a size that it is given

    # channels
    CHANNEL_SELECTING = auto()  # may give some of the channels, or repeat the only one
    CHANNEL_MULTIPLYING = auto()  # gives at least as many channels as it reads, in a fixed proportion
    CHANNEL_COUNTING = auto()  # holds numbers per channel and takes no other number of channels
    CONTRACTING = auto()  # a product that may repeat an input of one channel along a constant
    INDEXING = auto()  # a constant may say which entries it takes, of however many there are

    # arithmetic
    SUM = auto()  # a scale and shift of the result is one of each side
    ARITHMETIC = auto()  # +, -, * or / of a tensor and another one or a number
    MATRIX_PRODUCT = auto()  # of two activations it does as many multiply-adds as the last dimension has entries

    # questions
    ASKS_SIZE = auto()
    ASKS_LAYOUT = auto()  # strides, or what depends on them
    ASKS_VALUES = auto()
    ASKS_GRADIENTS = auto()  # whether gradients are recorded


@dataclass(frozen=True)
class OpFacts:
    """One row: `names` are the operations that it speaks for, separated by blanks.

    spelled: other names of the operation, where it is the only one of its row.
    spatial: the number of spatial axes.
    channels: the dimension of its input that holds as many entries as its weight says.
    neutral: the number that changes nothing as its other argument.
    counted: the line of a report's summary in which it counts: "conv", "bn" or "elementwise".
    abbreviation, title, sign: its name in tables, its name in diagrams, and the sign that stands for it there.
    alone: the function that does the same with an attribute of the second argument, of which it uses nothing else.
    """

    names: str
    kind: Kind
    facts: Fact = Fact.NONE
    spelled: str = ""
    spatial: int = 0
    channels: int | None = None
    neutral: int | None = None
    counted: str = ""
    abbreviation: str = ""
    title: str = ""
    sign: str = ""
    alone: tuple[Callable[..., Any], str] | None = None


_KERNEL = Fact.CHANNEL_COUNTING | Fact.BATCH_PRESERVING
_OPERATOR = Fact.ARITHMETIC | Fact.BROADCASTING | Fact.ANY_STRIDES
_ADAPTIVE_AVERAGE = Fact.ADAPTIVE | Fact.BATCH_PRESERVING
_ACTIVATION = Fact.SHAPE_PRESERVING | Fact.ANY_STRIDES
_RESIZE = Fact.RESHAPE | Fact.REARRANGING | Fact.SIZE_ARGUMENTS
_PART = Fact.VIEW | Fact.CHANNEL_SELECTING

TABLE: tuple[OpFacts, ...] = (
    # products with weights
    OpFacts("conv1d", Kind.CONVOLUTION, _KERNEL, spatial=1, channels=1, counted="conv", abbreviation="conv"),
    OpFacts("conv2d", Kind.CONVOLUTION, _KERNEL, spatial=2, channels=1, counted="conv", abbreviation="conv"),
    OpFacts("conv3d", Kind.CONVOLUTION, _KERNEL, spatial=3, channels=1, counted="conv", abbreviation="conv"),
    OpFacts("conv_transpose1d", Kind.TRANSPOSED_CONVOLUTION, _KERNEL, spatial=1, counted="conv"),
    OpFacts("conv_transpose2d", Kind.TRANSPOSED_CONVOLUTION, _KERNEL, spatial=2, counted="conv"),
    OpFacts("conv_transpose3d", Kind.TRANSPOSED_CONVOLUTION, _KERNEL, spatial=3, counted="conv"),
    OpFacts("linear", Kind.LINEAR, Fact.CHANNEL_COUNTING | Fact.CONTIGUOUS, channels=-1, counted="conv"),
    OpFacts("matmul bmm", Kind.PRODUCT, Fact.CHANNEL_COUNTING | Fact.MATRIX_PRODUCT | Fact.ANY_STRIDES),
    OpFacts("linalg_matmul mm", Kind.PRODUCT, Fact.CHANNEL_COUNTING | Fact.MATRIX_PRODUCT),
    OpFacts("baddbmm", Kind.PRODUCT, Fact.CHANNEL_COUNTING | Fact.ANY_STRIDES),
    OpFacts("addmm inner", Kind.PRODUCT, Fact.CHANNEL_COUNTING),
    OpFacts("einsum tensordot", Kind.PRODUCT, Fact.CONTRACTING),
    # normalisations; the affine part is priced as nothing, for the normalisation scales while it writes
    OpFacts(
        "batch_norm",
        Kind.NORM,
        Fact.SHAPE_PRESERVING | Fact.CHANNEL_COUNTING,
        channels=1,
        counted="bn",
        abbreviation="bn",
        title="bn",
    ),
    OpFacts("layer_norm", Kind.NORM, Fact.SHAPE_PRESERVING | Fact.CONTIGUOUS, channels=-1),
    OpFacts("rms_norm group_norm instance_norm", Kind.NORM, Fact.SHAPE_PRESERVING),
    OpFacts("add_map", Kind.ELEMENTWISE, Fact.SHAPE_PRESERVING, counted="elementwise"),
    OpFacts("affine_part", Kind.ELEMENTWISE, Fact.SHAPE_PRESERVING | Fact.FREE),
    # pools and reductions
    OpFacts("avg_pool1d", Kind.POOL, Fact.BATCH_PRESERVING, spatial=1),
    OpFacts("avg_pool2d", Kind.POOL, Fact.BATCH_PRESERVING, spatial=2, abbreviation="pool"),
    OpFacts("avg_pool3d", Kind.POOL, Fact.BATCH_PRESERVING, spatial=3),
    OpFacts("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", Kind.REDUCTION, _ADAPTIVE_AVERAGE),
    OpFacts("adaptive_max_pool1d adaptive_max_pool1d_with_indices", Kind.REDUCTION, Fact.ADAPTIVE),
    OpFacts("adaptive_max_pool2d adaptive_max_pool2d_with_indices", Kind.REDUCTION, Fact.ADAPTIVE),
    OpFacts("adaptive_max_pool3d adaptive_max_pool3d_with_indices", Kind.REDUCTION, Fact.ADAPTIVE),
    OpFacts("sum mean amax amin", Kind.REDUCTION, Fact.ANY_STRIDES),
    # arithmetic and activations
    OpFacts(
        "add", Kind.ELEMENTWISE, _OPERATOR | Fact.SUM, neutral=0, counted="elementwise", sign="+", spelled="iadd radd"
    ),
    OpFacts(
        "sub",
        Kind.ELEMENTWISE,
        _OPERATOR | Fact.SUM,
        neutral=0,
        counted="elementwise",
        sign="−",
        spelled="isub subtract",
    ),
    OpFacts("rsub", Kind.ELEMENTWISE, Fact.ARITHMETIC | Fact.ANY_STRIDES, counted="elementwise", sign="−"),
    OpFacts(
        "mul", Kind.ELEMENTWISE, _OPERATOR, neutral=1, counted="elementwise", sign="×", spelled="imul rmul multiply"
    ),
    OpFacts(
        "div",
        Kind.ELEMENTWISE,
        _OPERATOR,
        neutral=1,
        counted="elementwise",
        sign="÷",
        spelled="truediv itruediv idiv true_divide divide",
    ),
    OpFacts("neg", Kind.ELEMENTWISE, Fact.ANY_STRIDES, counted="elementwise", sign="−", spelled="negative"),
    OpFacts("pow sqrt rsqrt exp log abs clamp where softmax", Kind.ELEMENTWISE, Fact.ANY_STRIDES),
    OpFacts("relu relu6 leaky_relu elu selu celu gelu silu mish", Kind.ELEMENTWISE, _ACTIVATION),
    OpFacts("sigmoid tanh hardsigmoid hardswish hardtanh softplus", Kind.ELEMENTWISE, _ACTIVATION),
    OpFacts("scaled_dot_product_attention", Kind.ATTENTION, Fact.ANY_STRIDES),
    # dropouts: in eval their result is their input
    OpFacts("dropout", Kind.VIEW, Fact.VIEW | Fact.SHAPE_PRESERVING),
    OpFacts("dropout1d dropout2d dropout3d", Kind.VIEW, Fact.VIEW),
    OpFacts("alpha_dropout feature_alpha_dropout", Kind.VIEW, Fact.FREE),
    # other dimensions
    OpFacts("view", Kind.VIEW, Fact.VIEW | _RESIZE | Fact.NEEDS_STRIDES),
    OpFacts("unflatten", Kind.VIEW, Fact.VIEW | _RESIZE),
    OpFacts("reshape", Kind.VIEW, Fact.PERHAPS_VIEW | Fact.FREE | _RESIZE),
    OpFacts("flatten", Kind.VIEW, Fact.PERHAPS_VIEW | Fact.FREE | Fact.RESHAPE | Fact.REARRANGING),
    OpFacts("ravel", Kind.VIEW, Fact.PERHAPS_VIEW),
    OpFacts("transpose permute", Kind.VIEW, Fact.VIEW | Fact.REARRANGING),
    OpFacts("swapaxes swapdims movedim moveaxis t unsqueeze squeeze", Kind.VIEW, Fact.VIEW),
    OpFacts("T mT", Kind.VIEW, Fact.VIEW),
    OpFacts("H mH real imag", Kind.VIEW),
    OpFacts("as_strided view_as_real view_as_complex", Kind.VIEW, Fact.NEEDS_STRIDES),
    # parts and repetitions
    OpFacts("getitem", Kind.SELECTION, _PART | Fact.INDEXING | Fact.CROPPING, title="slice"),
    OpFacts("narrow", Kind.SELECTION, _PART | Fact.CROPPING),
    OpFacts("select chunk split split_with_sizes tensor_split unbind", Kind.SELECTION, _PART),
    OpFacts("expand", Kind.SELECTION, _PART | Fact.SIZE_ARGUMENTS),
    OpFacts("index_select", Kind.SELECTION, Fact.CHANNEL_SELECTING | Fact.INDEXING),
    OpFacts("repeat", Kind.SELECTION, Fact.CHANNEL_SELECTING | Fact.CHANNEL_MULTIPLYING),
    OpFacts("tile repeat_interleave", Kind.SELECTION, Fact.CHANNEL_MULTIPLYING),
    OpFacts("pixel_unshuffle", Kind.VIEW, Fact.CHANNEL_MULTIPLYING),
    OpFacts("pad", Kind.RESAMPLING, Fact.CROPPING | Fact.BATCH_PRESERVING),
    OpFacts("interpolate", Kind.RESAMPLING, Fact.BATCH_PRESERVING),
    OpFacts(
        "cat", Kind.JOIN, Fact.CHANNEL_MULTIPLYING | Fact.ANY_STRIDES, title="concat", spelled="concat concatenate"
    ),
    OpFacts("stack", Kind.JOIN, Fact.ANY_STRIDES),
    # copies and writes
    OpFacts("detach", Kind.COPY, Fact.VIEW | Fact.SHAPE_PRESERVING),
    OpFacts("data", Kind.COPY, Fact.FREE | Fact.SHAPE_PRESERVING),
    OpFacts(
        "contiguous",
        Kind.COPY,
        Fact.PERHAPS_VIEW | Fact.FREE | Fact.REARRANGING | Fact.SHAPE_PRESERVING | Fact.CONTIGUOUS,
    ),
    OpFacts("clone", Kind.COPY, Fact.SHAPE_PRESERVING),
    OpFacts("to", Kind.COPY, Fact.PERHAPS_VIEW | Fact.CAST),
    OpFacts("type float double half bfloat16", Kind.COPY, Fact.CAST),
    OpFacts("setitem", Kind.WRITE, title="fill border"),
    # calls that use the shape or dtype of another tensor
    OpFacts("reshape_as", Kind.VIEW, alone=(Tensor.reshape, "shape")),
    OpFacts("view_as", Kind.VIEW, alone=(Tensor.view, "shape")),
    OpFacts("expand_as", Kind.SELECTION, alone=(Tensor.expand, "shape")),
    OpFacts("type_as", Kind.COPY, alone=(Tensor.to, "dtype")),
    # random numbers
    OpFacts("rand randn randint randperm rand_like randn_like randint_like", Kind.RANDOM),
    OpFacts("bernoulli multinomial normal poisson uniform exponential geometric cauchy log_normal random", Kind.RANDOM),
    OpFacts("rrelu", Kind.RANDOM),
    # questions and checks
    OpFacts("size numel nelement shape len is_same_size", Kind.QUERY, Fact.ASKS_SIZE),
    OpFacts("stride", Kind.QUERY, Fact.ASKS_LAYOUT),
    OpFacts("is_contiguous storage_offset untyped_storage dim_order", Kind.QUERY, Fact.ASKS_LAYOUT),
    OpFacts("format repr", Kind.QUERY, Fact.ASKS_VALUES),
    OpFacts("requires_grad is_leaf grad_fn is_inference", Kind.QUERY, Fact.ASKS_GRADIENTS),
    OpFacts("dim ndimension is_floating_point get_device element_size", Kind.QUERY),
    OpFacts("ndim dtype device layout itemsize names hash is_tensor data_ptr _version", Kind.QUERY),
    OpFacts("is_complex is_signed is_sparse is_quantized is_nested is_mkldnn", Kind.QUERY),
    OpFacts("is_cpu is_cuda is_mps is_xla is_meta", Kind.QUERY),
    OpFacts("_assert assert", Kind.CHECK),
)

OPS: dict[str, OpFacts] = {name: row for row in TABLE for name in row.names.split()}
_UNKNOWN = OpFacts("", Kind.OTHER)

# Other names of an operation, with the name under which it stands in the table.
SPELLINGS = {other: row.names for row in TABLE for other in row.spelled.split()}

# Python's own operators that write to their first operand.
INPLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")


def op_name(function: Callable[..., Any] | str) -> str:
    """The name under which a torch function, method (or its name), operator or attribute is looked up."""
    getter: Any = function
    name = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        return str(getter.__self__.__name__)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    name = name.rstrip("_")
    return SPELLINGS.get(name, name)


def facts(name: str) -> OpFacts:
    """The row of an operation; one without any fact where it has none."""
    return OPS.get(name, _UNKNOWN)


def _of_kind(*kinds: Kind) -> frozenset[str]:
    return frozenset(name for name, row in OPS.items() if row.kind in kinds)


def _having(fact: Fact) -> frozenset[str]:
    return frozenset(name for name, row in OPS.items() if fact in row.facts)


# --- sets of operations, by kind

CONVOLUTIONS = _of_kind(Kind.CONVOLUTION)
TRANSPOSED_CONVOLUTIONS = _of_kind(Kind.TRANSPOSED_CONVOLUTION)

# What layers call, and its first arguments: what is read, and with what it is computed.
LAYERS = CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS | _of_kind(Kind.LINEAR)
LAYER_ARGUMENTS = ("input", "weight", "bias")

# Products of two tensors, either of which may be a weight.
PRODUCTS = _of_kind(Kind.PRODUCT)

# All that multiply with a kernel.
KERNELS = LAYERS | PRODUCTS

# Averages over windows of a given size.
POOLS = _of_kind(Kind.POOL)

# Different values at every run, whatever they read.
RANDOM = _of_kind(Kind.RANDOM)

# Questions about a tensor; no tensor is computed.
QUERIES = _of_kind(Kind.QUERY)

# Assertions.
CHECKS = _of_kind(Kind.CHECK)

# --- by what they do to memory

# Always views: whoever reads the result reads the memory of the input.
VIEWS = _having(Fact.VIEW)

# Views or copies, depending on size and strides.
PERHAPS_VIEWS = _having(Fact.PERHAPS_VIEW)

# Priced as nothing.
FREE = VIEWS | _having(Fact.FREE)

# Views that raise an exception where the strides do not allow them.
NEEDING_STRIDES = _having(Fact.NEEDS_STRIDES)

# They read tensors with gaps between the entries as they are, or copy their input in any case.
ANY_STRIDES = _having(Fact.ANY_STRIDES)

# Their result is contiguous, whatever they read.
CONTIGUOUS = _having(Fact.CONTIGUOUS)

# May change the dtype, the device or the memory format, and nothing else.
CASTS = _having(Fact.CAST)

# --- by what they do to sizes

# Their arguments are sizes, the number of channels perhaps among them.
SIZE_ARGUMENTS = _having(Fact.SIZE_ARGUMENTS)

# They split or merge dimensions.
RESHAPES = _having(Fact.RESHAPE)

# The whole numbers that they are given are sizes, most of them.
SIZED = SIZE_ARGUMENTS | _having(Fact.CROPPING) | _of_kind(Kind.RESAMPLING)

# Reshapes to sizes that are given.
SIZED_RESHAPES = RESHAPES & SIZE_ARGUMENTS

# They move entries to other dimensions, or nowhere, and compute nothing.
REARRANGING = _having(Fact.REARRANGING)

# Their result has the shape of the first tensor that they read, whatever else they are given.
SHAPE_PRESERVING = _having(Fact.SHAPE_PRESERVING)

# Dimension 0 of their result is that of the first tensor that they read.
BATCH_PRESERVING = _having(Fact.BATCH_PRESERVING)

# Their result is as large as their two inputs, broadcast.
BROADCASTING = _having(Fact.BROADCASTING)

# They may take pixels away at the border.
CROPPING = _having(Fact.CROPPING)

# They pool to a size that is given.
ADAPTIVE_POOLS = _having(Fact.ADAPTIVE)

# --- by what they do to channels

# Their result may be some of the channels, or copies of a single one.
CHANNEL_SELECTING = _having(Fact.CHANNEL_SELECTING)

# Their result has a multiple of the channels, or the channels of all inputs.
CHANNEL_MULTIPLYING = _having(Fact.CHANNEL_MULTIPLYING)

# They hold numbers per channel, and take no other number of channels.
CHANNEL_COUNTING = _having(Fact.CHANNEL_COUNTING)

# Products that repeat an input of a single channel along a constant.
CONTRACTING = _having(Fact.CONTRACTING)

# A constant may say which entries they take, of however many there are.
INDEXING = _having(Fact.INDEXING)

# --- by what they compute

# Sums of two tensors: scaling the result is scaling both.
SUMS = _having(Fact.SUM)

# A tensor +, -, * or / another one or a number.
ARITHMETIC = _having(Fact.ARITHMETIC)

# Of two activations, they do as many multiply-adds per entry as the last dimension of the first is long.
MATRIX_PRODUCTS = _having(Fact.MATRIX_PRODUCT)

# Calls that use nothing of their second argument but its shape or dtype, as calls without it.
SHAPED_AS = {name: row.alone for name, row in OPS.items() if row.alone is not None}

# --- by what they ask

SIZE_QUERIES = _having(Fact.ASKS_SIZE)
LAYOUT_QUERIES = _having(Fact.ASKS_LAYOUT)
VALUE_QUERIES = _having(Fact.ASKS_VALUES)
GRADIENT_QUERIES = _having(Fact.ASKS_GRADIENTS)
