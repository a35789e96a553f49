"""A .safetensors file, read once: the bytes that are hashed are those that become tensors.

Nothing is mapped, so a file that is cut off later does no harm; each tensor is read into its own memory, so there is
one copy of the weights. The header is checked against the size of the file before memory is taken.
Source: the format of safetensors, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError

MAX_HEADER = 32 << 20  # bytes
_CHUNK = 1 << 24

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, text)
    for name, text in {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
        "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
        "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    }.items()
    if text in vars(torch)
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a header; it ends at byte `end` of the data."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int

    @property
    def type_text(self) -> str:
        """The dtype and shape, such as `float32 8x3x3x3`."""
        return f"{str(self.dtype).removeprefix('torch.')} {'x'.join(map(str, self.shape))}".rstrip()


class WeightsFile:
    """An open file. `entries` is its header; `read` gives the tensors and the digest of all bytes.

    Raises InputError where the header is damaged or larger than it may be.
    """

    def __init__(self, file: RawIOBase, name: str) -> None:
        self.file = file
        self.name = name
        self.digest = hashlib.sha256()
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        start = self._bytes(8)
        length = int.from_bytes(start, "little")
        if length > min(size - 8, MAX_HEADER):
            raise self._damage("its header is longer than the file or the limit")
        self.entries = self._entries(self._bytes(length), size - 8 - length)

    def read(self) -> tuple[dict[str, Tensor], str]:
        """Every tensor by name, and the sha256 of the file in hexadecimal."""
        tensors = {}
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
            if entry.end > entry.begin:
                self._fill(tensor.view(-1).view(torch.uint8).numpy().data)
            tensors[name] = tensor.view(torch.uint8).ne(0) if entry.dtype == torch.bool else tensor
        if self.file.read(1):
            raise self._damage("it has grown while it was read")
        return tensors, self.digest.hexdigest()

    def _bytes(self, count: int) -> bytes:
        content = bytearray(count)
        self._fill(memoryview(content))
        return bytes(content)

    def _fill(self, memory: memoryview) -> None:
        for start in range(0, len(memory), _CHUNK):
            part = memory[start : start + _CHUNK]
            filled = 0
            while filled < len(part):
                count = self.file.readinto(part[filled:])
                if not count:
                    raise self._damage("it is cut off")
                filled += count
            self.digest.update(part)

    def _entries(self, header: bytes, data: int) -> dict[str, Entry]:
        try:
            content = json.loads(header)
            content.pop("__metadata__", None)
            entries = {str(name): _entry(about) for name, about in content.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damage(f"{type(error).__name__} in its header") from error
        end = 0
        for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
            if entry.begin != end:
                raise self._damage("its tensors overlap or leave gaps")
            end = entry.end
        if end != data:
            raise self._damage("it is cut off, or has more data than tensors")
        return entries

    def _damage(self, why: str) -> InputError:
        return InputError(f"{self.name} is damaged, or is not a .safetensors file: {why}; copy it again")


def _entry(about: Mapping[str, Any]) -> Entry:
    """An entry of the header. Raises ValueError where its sizes do not fit."""
    shape, (begin, end) = about["shape"], about["data_offsets"]
    dtype = _DTYPES[about["dtype"]]
    if len(shape) > 16 or not all(type(size) is int and 0 <= size < 2**48 for size in (*shape, begin, end)):
        raise ValueError("a size that is no size")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError("a size that does not fit the shape")
    return Entry(tuple(shape), dtype, begin, end)
