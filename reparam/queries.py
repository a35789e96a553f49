"""Attributes and methods that look at a tensor without computing one."""

from __future__ import annotations

QUERIES = frozenset(
    "shape size dim ndim ndimension dtype device numel nelement len is_floating_point is_complex is_cuda layout stride "
    "is_contiguous requires_grad get_device element_size itemsize is_leaf grad_fn is_sparse is_quantized is_meta names "
    "storage_offset data_ptr untyped_storage is_mkldnn is_nested type_ is_same_size hash format repr is_tensor "
    "is_inference dim_order is_signed _version is_mps is_xla is_cpu".split()
)

# Those that tell its size, and those that tell how it lies in memory.
SIZES = frozenset("shape size numel nelement len stride storage_offset".split())
LAID = frozenset("stride is_contiguous storage_offset untyped_storage dim_order".split())
