"""Files that must not be loaded, after the manner of the attacks in the repository of safetensors. All are harmless.

Each would, if a check were missing, at most set a marker, shadow a name or ask for memory. Nothing here crashes torch:
where torch can be crashed, the function is not in the tables, and the file names it without an argument that crashes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from reparam.deploy.pair import Saved
from tests.helpers import image, trained

Data = dict[str, Any]
Change = Callable[[Data], object]


class Target(nn.Module):
    """A small model whose forward is rewritten. `mark` stands for a method that does harm."""

    marks: list[str] = []  # noqa: RUF012 - shared by all instances

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.group = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.a(x) + self.b(x)) * x.shape[1] + self.group(x))

    def mark(self, *args: Any, **kwargs: Any) -> Any:
        Target.marks.append("ran")
        return args[0] if args else None


def make() -> nn.Module:
    return Target().double()


def saved_target(folder: Path) -> tuple[Saved, nn.Module, Tensor]:
    x = image(2, 4, 6, 5)
    deployed = reparam.reparameterize(trained(make(), x), x)
    return reparam.save(deployed, folder / "net.safetensors"), deployed, x


def node(op: str, target: Any, *args: Any, name: Any = "y", **kwargs: Any) -> Data:
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


X: Data = {"node": "x"}
Y: Data = {"node": "y"}
INPUT = node("placeholder", "x", name="x")
OUTPUT = node("output", "output", X, name="output")


def steps(*nodes: Any) -> Change:
    """The file with another forward: these steps between the input and the output."""
    return nodes_are(INPUT, *nodes, OUTPUT)


def nodes_are(*nodes: Any) -> Change:
    return lambda data: data["structure"]["kept"].update(forward={"nodes": list(nodes)})


def function(name: Any, *args: Any, **kwargs: Any) -> Change:
    return steps(node("call_function", name, *args, **kwargs))


def method(name: Any, *args: Any, **kwargs: Any) -> Change:
    return steps(node("call_method", name, *args, **kwargs))


def structure(**changes: Any) -> Change:
    return lambda data: data["structure"]["kept"].update(changes)


def child(**changes: Any) -> Change:
    """A change of the convolution that the file puts into the model."""
    return lambda data: _new_layer(data).update(changes)


def _new_layer(data: Data) -> Data:
    children = data["structure"]["kept"]["children"].values()
    return next(below["new"] for below in children if below.get("new", {}).get("class") == "Conv2d")


def arguments(**changes: Any) -> Change:
    return lambda data: _new_layer(data)["arguments"].update(changes)


def _nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {kind: [value]}
    return value


def _layer(**children: Any) -> Data:
    return {"new": {"class": "Sequential", "arguments": {}, "tensors": {}, "children": children}}


def _deep_modules(data: Data) -> None:
    layer = _layer()
    for _ in range(150):
        layer = _layer(m=layer)
    data["structure"]["kept"]["children"]["more"] = layer


def children(**below: Any) -> Change:
    """The file with more children of the model."""
    return lambda data: data["structure"]["kept"]["children"].update(below)


def version(number: Any) -> Change:
    return lambda data: data.update(version=number)


_CALLABLES = ("print", "eval", "exec", "open", "compile", "__import__", "torch.load", "torch.save", "builtins.eval")
_UNKNOWN = {"callable": "eval"}

ATTACKS: dict[str, Change] = {
    # Callables as values, and functions that are not in the table.
    **{f"function {name}": function(name, X) for name in _CALLABLES},
    "a callable as an argument": function("torch.relu", _UNKNOWN),
    "a function as a reference": function("torch.relu", {"node": "print"}),
    "a callable as a default": nodes_are(node("placeholder", "x", {"node": "eval"}, name="x"), OUTPUT),
    "a function that calls one": function("map", X),
    "min with a key": function("min", [X], key=X),
    "sorted": function("sorted", [X]),
    # Callables through methods and attributes.
    **{
        f"method {name}": method(name, X)
        for name in (
            "apply_", "map_", "register_hook", "backward", "requires_grad_", "retain_grad", "numpy", "tolist", "item",
            "storage", "untyped_storage", "data_ptr", "set_", "resize_", "resize_as_", "as_strided", "share_memory_",
            "__class__", "__reduce_ex__", "tofile", "mark", "format", "append", "cpu().numpy", "share_memory",
            "pin_memory",
            "scatter_", "index_put_", "masked_scatter_", "map2_", "new_empty", "copy_", "data", "to_sparse",
        )
    },
    "a method of a text": method("format", "{0.__class__}"),
    "a method of a literal": method("view", 1),
    "a method of nothing": method("relu"),
    **{
        f"attribute {name}": function("getattr", X, name)
        for name in ("data", "grad", "__class__", "__dict__", "grad_fn", "_backward_hooks", "storage", "mark")
    },
    "an attribute by a number": function("getattr", X, 1),
    "an attribute with a default": function("getattr", X, "shape", X),
    "an attribute of a text": function("getattr", "text", "shape"),
    "setattr": function("setattr", X, "data", X),
    "methodcaller": function("operator.methodcaller", "tofile"),
    "attrgetter": function("operator.attrgetter", "data"),
    "itemgetter": function("operator.itemgetter", 0),
    "operator.call": function("operator.call", X),
    # Functions that reach files, memory, the process, or trust their arguments more than others do.
    **{
        f"torch.{name}": function(f"torch.{name}", X)
        for name in (
            "from_file", "frombuffer", "ops.aten.relu", "jit.load", "hub.load", "compile", "vmap", "set_num_threads",
            "set_default_dtype", "manual_seed", "as_strided", "empty", "empty_like", "Tensor.relu", "nn.Module",
            "utils",
            "bucketize", "histc", "lstm", "segment_reduce", "sparse_coo_tensor", "_C._nn.gelu",
            "serialization.os.system",
        )
    },
    **{
        f"F.{name}": function(f"torch.nn.functional.{name}", X)
        for name in ("embedding_bag", "ctc_loss", "max_unpool2d", "handle_torch_function", "torch.load")
    },
    # Dotted and odd targets.
    **{
        f"target {target!r}": function(target, X)
        for target in ("", ".", "torch", "torch.", "torch..relu", "math.__loader__", "torch.relu\n", "len\0")
    },
    **{f"target {target!r}": function(target, X) for target in (None, 1, ["torch.relu"], {"a": 1})},
    # Format strings, and text that grows.
    "format by %": function("operator.mod", "%1000000000d", 1),
    "format by % of a list": function("operator.mod", ["%s"], X),
    "a text that is repeated": function("operator.mul", "a", 1 << 40),
    "a list that is repeated": function("operator.mul", [X], 1 << 40),
    "a text that becomes a number": function("int", "9" * 4000),
    "a huge power": function("operator.pow", 9, 1 << 40),
    "a huge shift": function("operator.lshift", 1, 1 << 40),
    "a huge integer": function("torch.add", X, 1 << 70),
    "a long text": function("torch.einsum", "a" * 100_000, X),
    # Names.
    **{
        f"name {name!r}": steps(node("call_function", "torch.relu", X, name=name))
        for name in (
            "self", "forward", "torch", "operator", "math", "eval", "len", "getattr", "__builtins__", "__class__",
            "class",
            "if", "None", "True", "a b", "1a", "", "x; y", "x\n", "x = 1, y", "ｔorch", "ｘ", "y()", "a.b", None, 1,
            ["y"],
            "y" * 100_000,
        )
    },
    "a name that is given twice": steps(node("call_function", "torch.relu", X, name="x")),
    "the first parameter is not self": nodes_are(node("placeholder", "self", name="this"), INPUT, OUTPUT),
    **{
        f"parameter {name!r}": nodes_are(node("placeholder", name, name="x"), OUTPUT)
        for name in ("torch", "len", "***x", "x, y", "x=1", "x: print(1)", "__x", "lambda", "ｘ")
    },
    "a parameter that is named twice": nodes_are(INPUT, node("placeholder", "x", name="y"), OUTPUT),
    "a parameter after a step": steps(node("call_function", "torch.relu", X), node("placeholder", "z", name="z")),
    "a default that refers": nodes_are(INPUT, node("placeholder", "z", X, name="z"), OUTPUT),
    **{
        f"keyword {name!r}": function("torch.relu", X, **{name: 1})
        for name in ("out", "a b", "class", "__x", "", "x=1, y", "ｏut")
    },
    # References.
    "a forward reference": steps(node("call_function", "torch.relu", {"node": "z"})),
    "a reference to itself": steps(node("call_function", "torch.relu", Y)),
    "a reference to the module": function("torch.relu", {"node": "self"}),
    "a reference that is no text": function("torch.relu", {"node": ["x"]}),
    # Members of the module.
    **{
        f"{op} {path!r}": steps(node(op, path, *args))
        for op, args in (("call_module", (X,)), ("get_attr", ()))
        for path in ("mark", "forward", "register_buffer", "conv.__class__", "", ".", "conv.", "conv.nowhere")
    },
    "a module that is read": steps(node("get_attr", "conv")),
    "a tensor that is called": steps(node("call_module", "conv.weight", X)),
    "get_attr with arguments": steps(node("get_attr", "conv.weight", X)),
    # Structure of the program.
    "no output": nodes_are(INPUT),
    "no steps": nodes_are(),
    "a step after the output": nodes_are(INPUT, OUTPUT, node("call_function", "torch.relu", X)),
    "an output with two values": nodes_are(INPUT, node("output", "output", X, X, name="output")),
    "an unknown op": steps(node("exec", "print", X)),
    "an op that is a list": steps({**OUTPUT, "op": ["output"]}),
    "a step with more keys": steps({**node("call_function", "torch.relu", X), "code": "print(1)"}),
    "a step without arguments": steps({"op": "call_function", "name": "y", "target": "torch.relu"}),
    "a step that is a text": steps("print(1)"),
    "arguments that are a dict": steps({**node("call_function", "torch.relu"), "args": {"a": 1}}),
    "keywords that are a list": steps({**node("call_function", "torch.relu", X), "kwargs": [["out", 1]]}),
    "a forward that is text": structure(forward="def forward(self, x):\n    return self.mark(x)\n"),
    "a forward of format 1": structure(code={"text": "def forward(self, x):\n    return self.mark(x)\n",
    "objects": {}}),
    "too many steps": nodes_are(INPUT, *[None] * 50_001, OUTPUT),
    # Arguments.
    "an argument of unknown kind": function("torch.relu", {"object": "x"}),
    "an argument of two kinds": function("torch.relu", {"node": "x", "float": "inf"}),
    "an empty argument": function("torch.relu", {}),
    **{
        f"float {text!r}": function("torch.add", X, {"float": text})
        for text in ("1e5", "NaN", "Infinity", "inf ", "__import__('os')", 1, None)
    },
    "a dtype that is a function": function("torch.zeros", 1, dtype={"dtype": "torch.load"}),
    "a dtype that is unknown": function("torch.zeros", 1, dtype={"dtype": "torch.qint8"}),
    "a device that is unknown": function("torch.zeros", 1, device={"device": "privateuseone:0"}),
    "a device that is code": function("torch.zeros", 1, device={"device": "cpu\n"}),
    "a layout that is unknown": function("torch.zeros", 1, layout={"layout": "torch.sparse_coo"}),
    "a slice of two": function("operator.getitem", X, {"slice": [1, 2]}),
    "a dict with a list as key": function("operator.getitem", {"dict": [[[1], 1]]}, 1),
    "a dict that is no list": function("operator.getitem", {"dict": {"a": 1}}, "a"),
    **{f"deep nesting of {kind}": function("torch.cat", _nested(200, kind)) for kind in ("list", "tuple")},
    # Modules and attributes.
    **{
        f"attribute that is set: {name}": structure(attributes={name: value})
        for name, value in (("forward", 1), ("training", True), ("mark", False), ("__class__", 1), ("_modules", 1),
                            ("marks", 0), ("affine", False), ("_forward_hooks", None), ("new", "text"))
    },
    "an attribute of a norm with another value": children(
        group={"kept": {"attributes": {"affine": True}}}
    ),
    **{f"constant {name!r}": structure(constants=[name]) for name in ("forward", "mark", "conv", "", "a b", 1)},
    **{
        f"class {name!r}": child(**{"class": name})
        for name in ("Module", "Bilinear", "torch.nn.Conv2d", "Target", "eval", "", None, 1, "LazyConv2d")
    },
    **{
        f"child named {name!r}": children(**{name: _layer()})
        for name in ("forward", "mark", "register_buffer", "a.b", "", "training", "__class__")
    },
    "a child of a layer that is a method": child(children={"apply": _layer()}),
    "an argument that takes memory": arguments(device="cpu"),
    "an argument that is unknown": arguments(dtype="float64"),
    "an argument that is huge": arguments(in_channels=1 << 40),
    "an argument that is a dict": arguments(stride={"a": 1}),
    "an argument that is text": arguments(padding_mode="__import__"),
    "an argument of another type": arguments(stride=[True, True]),
    "an argument that is long": arguments(kernel_size=[3] * 1000),
    "a weight that is huge": child(tensors={"weight": "float64 1000000x1000000x3x3", "bias": "float64 4"}),
    "a weight of another shape": child(tensors={"weight": "float64 4x4x3x4", "bias": "float64 4"}),
    "a weight of another dtype": child(tensors={"weight": "float32 4x4x3x3", "bias": "float64 4"}),
    "a weight of no dtype": child(tensors={"weight": "load 4x4x3x3", "bias": "float64 4"}),
    "a weight by another name": child(tensors={"weight": "float64 4x4x3x3", "forward": "float64 4"}),
    "modules that are nested too deep": _deep_modules,
    "a part that is missing": structure(children={"a": {"kept": {"children": {"b": {"kept": {}}}}}}),
    "a part that is shared with nothing": structure(children={"a": {"same": "nowhere"}}),
    # The rest of the file.
    "a huge input": lambda data: data["probe"].update(
        inputs={"args": [{"shape": [1 << 40, 4], "dtype": "float64", "mean": 0.0, "spread": 1.0}], "kwargs": {}}
    ),
    "an input that is a function": lambda data: data["probe"]["inputs"]["args"].__setitem__(
        0, {"shape": [1], "dtype": "load", "data": "AAAA"}
    ),
    "weights that are tied to nothing": lambda data: data["weights"].update(tied={"a.weight": "nowhere"}),
    "keys that are text": lambda data: data.update(keys="a"),
    **{f"version {number!r}": version(number) for number in (0, 3, "2", None, True, [2], 1)},
}  # fmt: skip


def _raw(change: Callable[[str], str]) -> Callable[[str], bytes]:
    return lambda text: change(text).encode()


# Files that are no JSON, or that Python reads more generously than JSON is.
RAW: dict[str, Callable[[str], bytes]] = {
    "NaN": _raw(lambda text: text.replace('"version": 2', '"version": 2, "more": NaN')),
    "Infinity": _raw(lambda text: text.replace('"version": 2', '"version": 2, "more": -Infinity')),
    "a key that occurs twice": _raw(lambda text: text.replace('"version": 2', '"version": 2, "version": 2')),
    "deep nesting": _raw(lambda text: text.replace('"version": 2', f'"version": 2, "more": {"[" * 5000}{"]" * 5000}')),
    "deep dicts": _raw(lambda text: '{"a":' * 100_000),
    "no JSON": lambda text: b"\x80\x04",
    "no UTF-8": lambda text: text.encode("utf-16"),
    "an integer with many digits": _raw(
        lambda text: text.replace('"version": 2', f'"version": 2, "more": {"9" * 9000}')
    ),
    "an infinite number": _raw(lambda text: text.replace('"args": [', '"args": [1e999, ')),
    "too large": _raw(lambda text: text + " " * (33 << 20)),
}


def content_of(name: str, text: str) -> bytes:
    """The .json of an attack, made from that of a good file."""
    if name in RAW:
        return RAW[name](text)
    data = json.loads(text)
    ATTACKS[name](data)
    return json.dumps(data).encode()
