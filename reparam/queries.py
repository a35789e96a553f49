"""Attributes and methods that look at a tensor without computing one."""

from __future__ import annotations

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
