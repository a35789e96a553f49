"""Hostile files are refused before anything of them runs, and each check of the loader is needed for that."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.deploy import artefact, pair, probe, program_data, structure, tables
from reparam.deploy.files import sha256
from reparam.deploy.pair import Saved
from reparam.deploy.weights_file import WeightsFile
from reparam.errors import InputError
from reparam.rewrite import program
from tests.deploy.attacks import ATTACKS, RAW, Target, content_of, make, saved_target
from tests.helpers import distance


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[Saved, str]:
    saved, _, _ = saved_target(tmp_path_factory.mktemp("target"))
    return saved, saved.provenance.read_text()


@pytest.mark.parametrize("name", [*ATTACKS, *RAW])
def test_a_hostile_file_is_refused(name: str, target: tuple[Saved, str], monkeypatch: pytest.MonkeyPatch) -> None:
    saved, text = target
    content = content_of(name, text)
    assert content != text.encode()
    ran: list[str] = []
    monkeypatch.setattr(nn.Module, "__call__", lambda *_args, **_kwargs: ran.append("ran"))
    saved.provenance.write_bytes(content)
    Target.marks.clear()
    with pytest.raises(InputError):
        reparam.load(saved.weights, make())
    assert not ran
    assert not Target.marks
    saved.provenance.write_text(text)


def test_the_file_itself_loads(tmp_path: Path) -> None:
    saved, deployed, x = saved_target(tmp_path)
    assert '"forward"' in saved.provenance.read_text()
    assert distance(deployed, reparam.load(saved.weights, make()), x) == 0


# --- the tables


def test_what_is_missing_in_the_tables() -> None:
    """These are known to trust their arguments, to reach memory, or to call what they are given."""
    methods = (
        "apply_ map_ map2_ register_hook backward storage untyped_storage data_ptr set_ resize_ resize_as_ as_strided "
        "numpy tolist item share_memory_ pin_memory new_empty scatter_ index_put_ masked_scatter_ __class__"
    ).split()
    functions = (
        "torch.empty torch.as_strided torch.from_file torch.frombuffer torch.load torch.save torch.compile torch.vmap "
        "torch.manual_seed torch.set_default_dtype torch.bucketize torch.histc torch.nn.functional.embedding_bag "
        "torch.nn.functional.max_unpool2d torch.nn.functional.ctc_loss torch.segment_reduce eval exec open map sorted"
    ).split()
    assert not set(methods) & set(tables.METHODS)
    assert not set(functions) & set(tables.FUNCTIONS)
    private = [name for name in (*tables.METHODS, *tables.FUNCTIONS, *tables.ATTRIBUTES) if "._" in f".{name}"]
    assert private == ["torch._assert"]


def test_every_entry_is_what_its_name_says() -> None:
    for name, function in tables.FUNCTIONS.items():
        assert program.function_of(name) is function
    for name, function in tables.METHODS.items():
        assert program.function_of(f"torch.Tensor.{name}") is function


def test_methods_are_bound_to_tensors() -> None:
    nodes = [
        {"op": "placeholder", "name": "x", "target": "x", "args": [], "kwargs": {}},
        {"op": "call_method", "name": "y", "target": "view", "args": [{"node": "x"}, -1], "kwargs": {}},
        {"op": "output", "name": "output", "target": "output", "args": [{"node": "y"}], "kwargs": {}},
    ]
    forward = program_data.read_program({"nodes": nodes}, make(), (), "it")
    assert "torch.Tensor.view(x, -1)" in forward.text
    with pytest.raises(TypeError):
        forward.forward()(None, memoryview(b"no tensor"))


# --- mutants of the loader: without any one of its checks, some attack gets through


def _everything(*_args: Any, **_kwargs: Any) -> bool:
    return True


class _All(dict):  # type: ignore[type-arg]
    """A table that has everything."""

    def __contains__(self, key: object) -> bool:
        return True


def _reader(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Without the check of one kind of step."""
    return lambda patch: patch.setitem(program_data._CHECKS, name, lambda *_: None)


def _value(module: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, name, value)


# Each with an attack that only this check refuses.
MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "placeholder": (_reader("placeholder"), "the first parameter is not self"),
    "output": (_reader("output"), "an output with two values"),
    "call_module": (_reader("call_module"), "call_module 'mark'"),
    "get_attr": (_reader("get_attr"), "get_attr 'conv.__class__'"),
    "call_method": (_reader("call_method"), "method apply_"),
    "call_function": (_reader("call_function"), "function eval"),
    "functions": (_value(program_data, "FUNCTIONS", _All()), "function torch.load"),
    "methods": (_value(program_data, "METHODS", _All()), "method data_ptr"),
    "attributes": (_value(program_data, "ATTRIBUTES", _All()), "attribute data"),
    "step names": (_value(program_data, "is_new_name", _everything), "name 'torch'"),
    "keywords": (_value(program_data, "is_keyword", _everything), "keyword 'x=1, y'"),
    "keywords of functions": (_value(program_data, "_require_keywords", _everything), "keyword 'out'"),
    "text in arithmetic": (_value(program_data._Reader, "arithmetic", _everything), "format by %"),
    "literals": (_value(program_data._Reader, "literal", lambda _, value: value), "a huge integer"),
    "objects": (_value(program_data._Reader, "named_object", lambda *_: None), "a forward reference"),
    "devices": (_value(program_data, "DEVICE", r"[\s\S]*"), "a device that is unknown"),
    "depth of arguments": (_value(program_data, "MAX_DEPTH", 10_000), "deep nesting of list"),
    "texts": (_value(program_data, "MAX_TEXT", 1 << 40), "a long text"),
    "integers": (_value(program_data, "MAX_INTEGER", 1 << 90), "a huge integer"),
    "exponents": (_value(program_data, "MAX_EXPONENT", 1 << 90), "a huge power"),
    "attributes that are set": (
        _value(structure, "_is_flag", _everything),
        "an attribute of a norm with another value",
    ),
    "arguments of layers": (_value(structure, "_is_argument", _everything), "an argument of another type"),
    "depth of modules": (_value(structure, "MAX_DEPTH", 10_000), "modules that are nested too deep"),
    "names of children": (
        _value(structure, "_add", lambda module, name, child: module._modules.update({name: child})),
        "child named 'mark'",
    ),
    "new weights": (
        _value(structure._Builder, "zeros", lambda *given: torch.zeros(structure._read_type(given[2])[0])),
        "a weight of another dtype",
    ),
    "size of the file": (_value(pair, "MAX_JSON", 1 << 28), "too large"),
    "numbers in JSON": (_value(pair, "_refused_number", float), "NaN"),
    "keys that occur twice": (_value(pair, "_unique", dict), "a key that occurs twice"),
    "versions": (_value(artefact, "_checked", lambda data, *_: data), "version 3"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_loader_without_one_check_is_caught(
    mutant: str, target: tuple[Saved, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all checks the attack is refused, and without this one it is not. Its forward is never made."""
    saved, text = target
    patch, attack = MUTANTS[mutant]
    monkeypatch.setattr(structure, "set_forward", lambda *_: None)
    saved.provenance.write_bytes(content_of(attack, text))
    assert not _is_accepted(saved)
    patch(monkeypatch)
    assert _is_accepted(saved)
    saved.provenance.write_text(text)


def _is_accepted(saved: Saved) -> bool:
    try:
        reparam.load(saved.weights, make(), verify=False)
    except InputError:
        return False
    return True


def test_a_large_input_is_refused_before_it_is_made(target: tuple[Saved, str], monkeypatch: pytest.MonkeyPatch) -> None:
    saved, text = target
    made: list[Any] = []
    monkeypatch.setattr(probe.Inputs, "from_outline", made.append)
    saved.provenance.write_bytes(content_of("a huge input", text))
    with pytest.raises(InputError, match="too large to run"):
        reparam.load(saved.weights, make())
    assert not made
    saved.provenance.write_text(text)


# --- weights


def _file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def _tensor(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


WEIGHTS = {
    "empty": b"",
    "a header that is longer than the file": _file({}, length=1 << 60),
    "a header that is no JSON": _file(b"\x80"),
    "a header that is a list": _file([1]),
    "a header that is nested": _file(b"[" * 100_000),
    "a shape that overflows": _file({"a": _tensor([1 << 40, 1 << 40], 0, 0)}),
    "a shape that does not fit": _file({"a": _tensor([3], 0, 4)}, b"\0" * 4),
    "a negative size": _file({"a": _tensor([-1], 0, -4)}),
    "a size that is true": _file({"a": _tensor([True], 0, 4)}, b"\0" * 4),
    "a gap": _file({"a": _tensor([1], 4, 8)}, b"\0" * 8),
    "an overlap": _file({"a": _tensor([1], 0, 4), "b": _tensor([2], 0, 8)}, b"\0" * 8),
    "beyond the file": _file({"a": _tensor([1 << 30], 0, 1 << 32)}, b"\0" * 4),
    "more data": _file({"a": _tensor([1], 0, 4)}, b"\0" * 8),
    "an unknown dtype": _file({"a": _tensor([1], 0, 4, "load")}, b"\0" * 4),
    "a dtype that is a list": _file({"a": _tensor([1], 0, 4, [])}, b"\0" * 4),
    "many dimensions": _file({"a": _tensor([1] * 5000, 0, 4)}, b"\0" * 4),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_refused_by_their_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(WEIGHTS[name])
    with path.open("rb", buffering=0) as file, pytest.raises(InputError, match="is damaged"):
        WeightsFile(file, "net.safetensors")


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool],
    ids=str,
)
def test_tensors_are_read_as_safetensors_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "net.safetensors"
    tensors = {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "b": torch.ones((), dtype=dtype),
        "c": torch.empty(0, 2).to(dtype),
    }
    save_file(tensors, path, {"format": "pt"})
    with path.open("rb", buffering=0) as file:
        weights = WeightsFile(file, "it")
        found, digest = weights.read()
    theirs = load_file(path)
    assert all(torch.equal(found[name], theirs[name]) and found[name].dtype == dtype for name in tensors)
    assert weights.entries["a"].type_text == f"{str(dtype).removeprefix('torch.')} 2x3"
    assert digest == sha256(path)
