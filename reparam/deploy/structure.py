"""What a folded model is made of, as data: how to make it from a fresh copy of the original, with no training twin.

The conversion is not run again to rebuild it. A plan depends on the weights (how finely channels group is read off the
zeros of a kernel, a padding counts as exact if it holds the very bias), which a fresh model does not have, and on the
version of this package. So the difference itself is noted: every module that was exchanged, with the arguments of
torch's own class; every forward that was written, as text that is checked before it is used (see `forwards`); every
name that is gone. The fresh model has to be what the original was, class by class and tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.snapshot import WEIGHT_HOOKS, copied
from reparam.deploy.safe_code import code_data, read_code, require_members
from reparam.errors import InputError
from reparam.rewrite.code import code_of, set_forward
from reparam.rewrite.layers import BiasMap

Data = dict[str, Any]
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_NOT_COMPARED = {*vars(nn.Module()), "reparam_report", "reparam_origin"}
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PADS = tuple(
    getattr(nn, f"{kind}Pad{axes}d") for kind in ("Zero", "Reflection", "Replication", "Circular") for axes in (1, 2, 3)
)
# The classes that a fold writes, and the attributes that are their arguments.
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(_CONVS, ("in_channels", "out_channels", *_GEOMETRY)),
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(_PADS, ("padding",)),
    nn.Identity: (),
    nn.Sequential: (),
    BiasMap: (),
}
_BY_NAME = {kind.__name__: kind for kind in _ARGUMENTS}


def class_name(module: nn.Module) -> str:
    """The class that a module is of, also where its forward has been rewritten."""
    kind = getattr(type(module), "_rewritten_from", type(module))
    return f"{kind.__module__}.{kind.__qualname__}"


def outline(model: nn.Module) -> Data:
    """What a fresh model must be: the class of every module, the shape and dtype of every tensor."""
    modules = {path: class_name(each) for path, each in model.named_modules(remove_duplicate=False)}
    return {"modules": modules, "tensors": {name: _kind(tensor) for name, tensor in _tensors(model)}}


def require_outline(model: nn.Module, wanted: Data) -> None:
    """Raises InputError with the first difference between a model and the outline it must have."""
    found = outline(model)
    for what in ("modules", "tensors"):
        here, there = found[what], dict(wanted[what])
        for name in [*there, *here]:
            if here.get(name) != there.get(name):
                raise InputError(
                    f"the model is not what the artefact was made from: {name or 'the model itself'} is "
                    f"{here.get(name, 'absent')} here and {there.get(name, 'absent')} there; build it by the same code "
                    "and arguments, in the same dtype"
                )


# --- from two models to the difference


def describe(original: nn.Module, folded: nn.Module) -> Data:
    """How `folded` is made from a model like `original` (whose numbers are not looked at).

    Raises InputError for what was done to the model by others since: quantised, wrapped, layers exchanged.
    """
    return _Describer().module("", original, folded) or {"kept": {}}


def constants(folded: nn.Module, structure: Data) -> dict[str, Tensor]:
    """Tensors that rewritten code reads and that are in no state: name to value."""
    return {name: _at(folded, name) for name in _constant_names(structure, "")}


class _Describer:
    def __init__(self) -> None:
        self.seen: dict[nn.Module, Data | None] = {}

    def module(self, path: str, old: nn.Module | None, new: nn.Module) -> Data | None:
        """None where nothing has changed, here and inside."""
        if new in self.seen:
            return self.seen[new]
        if new.training:
            raise InputError(f"{path or 'the model'} is in train mode; call .eval() on it first")
        # Whoever has the same module as well: what is kept is shared in a fresh model already, what is new is not.
        self.seen[new] = None if _alike(old, new) else {"same": path}
        if old is None or not _alike(old, new):
            return {"new": self.new(path, old, new)}
        kept = self.kept(path, old, new)
        return {"kept": kept} if kept else None

    def new(self, path: str, old: nn.Module | None, new: nn.Module) -> Data:
        if type(new) not in _ARGUMENTS:
            raise InputError(
                f"{path or 'the model'} is a {class_name(new)}, which folding has not put there; an artefact holds "
                "what reparameterize returns and nothing that was changed since"
            )
        children = {
            name: self.moved(path, old, name, child) for name, child in new._modules.items() if child is not None
        }
        return {**_made(new), "children": children}

    def moved(self, path: str, old: nn.Module | None, name: str, child: nn.Module) -> Data:
        """A part of something new: new as well, or one of the parts of what stood there, under the name it had."""
        here = f"{path}.{name}" if path else name
        parts = () if old is None else old.named_modules()
        for place, part in parts:
            if place.replace(".", "_") == name and class_name(part) == class_name(child):
                return {"from": place, **(self.module(here, part, child) or {"kept": {}})}
        return self.module(here, None, child) or {}

    def kept(self, path: str, old: nn.Module, new: nn.Module) -> Data:
        where = path or "the model"
        code = code_of(new)
        found: Data = {} if code is None else {"code": code_data(code, where)}
        gone, none = [], []
        for registry in _REGISTRIES:
            before, after = vars(old)[registry], vars(new)[registry]
            gone += [name for name in before if name not in after]
            none += [name for name in after if after[name] is None and before.get(name) is not None]
        tensors = {name: _kind(tensor) for name, tensor in _own(new) if name not in {key for key, _ in _own(old)}}
        if tensors:
            raise InputError(f"{where} has tensors that folding has not put there: {', '.join(tensors)}")
        children = {}
        for name, child in new._modules.items():
            below = None if child is None else self.module(
                f"{path}.{name}" if path else name, old._modules.get(name), child)  # fmt: skip
            if below is not None:
                children[name] = below
        attributes, held = _attributes(old, new, where)
        hooks = [name for name in _weight_hooks(old) if name not in _weight_hooks(new)]
        more = {"gone": gone, "none": none, "attributes": attributes, "constants": held, "unhooked": hooks,
                "children": children}  # fmt: skip
        order = list(new._modules)
        if order != [name for name in old._modules if name in new._modules]:
            more["order"] = order
        return found | {key: value for key, value in more.items() if value}


def _alike(old: nn.Module | None, new: nn.Module) -> bool:
    """Whether `new` is what stood there, edited or not. A layer of torch with another geometry is another layer."""
    if old is None or class_name(old) != class_name(new):
        return False
    return type(new) not in _ARGUMENTS or isinstance(new, nn.Sequential) or _made(old) == _made(new)


def _made(module: nn.Module) -> Data:
    """How a layer of torch is made: its class, its arguments, its tensors."""
    arguments = {name: _plain(getattr(module, name)) for name in _ARGUMENTS[type(module)]}
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        arguments["bias"] = module.bias is not None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        arguments["output_padding"] = _plain(module.output_padding)
    tensors = {name: _kind(tensor) for name, tensor in _own(module)}
    return {"class": type(module).__name__, "arguments": arguments, "tensors": tensors}


def _attributes(old: nn.Module, new: nn.Module, where: str) -> tuple[Data, list[str]]:
    """Plain attributes that have another value now, and the names of tensors that code has been given."""
    before, changed, held = vars(old), {}, []
    for name, value in vars(new).items():
        if name in _NOT_COMPARED:
            continue
        if isinstance(value, Tensor):
            held += [name] if name not in before else []
        elif _is_plain(value) and (name not in before or (_is_plain(before[name]) and before[name] != value)):
            changed[name] = value
        elif name not in before:
            raise InputError(f"{where} has an attribute that folding has not put there: {name}")
    return changed, held


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- from a fresh model and the difference to a folded one


def rebuild(model: nn.Module, structure: Data, held: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a fresh model in the folded structure, in eval mode; new weights are zero.

    held: the `constants`. Raises InputError where the structure says what a fold never says.
    """
    fresh = copied(model)
    for name in ("reparam_report", "reparam_origin"):
        vars(fresh).pop(name, None)
    device = next((tensor.device for tensor in (*fresh.parameters(), *fresh.buffers())), torch.device("cpu"))
    try:
        return _Builder(device, held).module("", fresh, structure).eval()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"the structure in the artefact is damaged: {type(error).__name__}: {error}") from error


class _Builder:
    def __init__(self, device: torch.device, held: Mapping[str, Tensor]) -> None:
        self.device = device
        self.held = held
        self.built: dict[str, nn.Module] = {}

    def module(self, path: str, old: nn.Module | None, data: Data) -> nn.Module:
        if "same" in data:
            return self.built[data["same"]]
        if "new" in data:
            return self.new(path, old, data["new"])
        if old is None:
            raise InputError(f"the structure in the artefact is damaged: there is no {path}")
        self.kept(path, old, data["kept"])
        return old

    def new(self, path: str, old: nn.Module | None, data: Data) -> nn.Module:
        kind = _BY_NAME[data["class"]]
        module: nn.Module
        if kind is BiasMap or kind in (nn.Identity, nn.Sequential):
            module = kind()
        else:
            arguments = {
                key: tuple(each) if isinstance(each, list) else each for key, each in data["arguments"].items()
            }
            make: Callable[..., nn.Module] = kind
            with torch.device("meta"):
                module = make(*arguments.values()) if kind in _PADS else make(**arguments)
        self.built[path] = module
        for name, tensor in data["tensors"].items():
            shape, dtype = _read_kind(tensor)
            zeros = torch.zeros(shape, dtype=dtype, device=self.device)
            module.register_parameter(name, nn.Parameter(zeros, requires_grad=False))
        if any(tensor.is_meta for _, tensor in _own(module)):
            raise InputError(f"the structure in the artefact is damaged: {path} lacks a weight")
        for name, below in data["children"].items():
            here = f"{path}.{name}" if path else name
            part = old.get_submodule(below["from"]) if old is not None and "from" in below else None
            module._modules[name] = self.module(here, part, below)
        return module

    def kept(self, path: str, module: nn.Module, data: Data) -> None:
        where = path or "the model"
        for name, below in data.get("children", {}).items():
            here = f"{path}.{name}" if path else name
            module._modules[name] = self.module(here, module._modules.get(name), below)
        _taken(module, data.get("gone", ()), data.get("none", ()), data.get("unhooked", ()))
        for name, value in data.get("attributes", {}).items():
            if name in _NOT_COMPARED or name.startswith("__") or not _is_plain(value):
                raise InputError(f"{where}: the artefact sets {name}, which no fold does; it is not loaded")
            vars(module)[name] = value
        for name in data.get("constants", ()):
            if name in _NOT_COMPARED or name in dir(type(module)):
                raise InputError(f"{where}: the artefact sets {name}, which no fold does; it is not loaded")
            vars(module)[name] = self.held[f"{path}.{name}" if path else name].to(self.device)
        if "order" in data:
            module._modules.update({name: module._modules.pop(name) for name in data["order"]})
        if "code" in data:
            code, paths = read_code(data["code"], where)
            require_members(module, paths, where)
            set_forward(module, code)


def _taken(module: nn.Module, gone: Iterable[str], none: Iterable[str], unhooked: Collection[str]) -> None:
    """Take from a module what its original has and it has not."""
    for name in gone:
        for registry in _REGISTRIES:
            vars(module)[registry].pop(name, None)
    for name in none:
        registry = next((each for each in _REGISTRIES if name in vars(module)[each]), "")
        vars(module)[registry][name] = None
    for key, hook in list(module._forward_pre_hooks.items()):
        if type(hook).__module__ in WEIGHT_HOOKS and vars(hook)["name"] in unhooked:
            del module._forward_pre_hooks[key]


# --- small parts


def _constant_names(data: Data, path: str) -> Iterator[str]:
    kept = data.get("kept", {})
    for name in kept.get("constants", ()):
        yield f"{path}.{name}" if path else name
    for name, below in {**kept.get("children", {}), **data.get("new", {}).get("children", {})}.items():
        yield from _constant_names(below, f"{path}.{name}" if path else name)


def _at(model: nn.Module, name: str) -> Tensor:
    parent, _, last = name.rpartition(".")
    held: Tensor = vars(model.get_submodule(parent))[last]
    return held


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of one module, and not of those inside."""
    every = [*module._parameters.items(), *module._buffers.items()]
    return [(name, tensor) for name, tensor in every if tensor is not None]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}".rstrip()


def _read_kind(text: str) -> tuple[list[int], torch.dtype]:
    name, _, shape = text.partition(" ")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"the structure in the artefact is damaged: {text} is no dtype and shape")
    return [int(size) for size in shape.split("x")] if shape else [], dtype


def _weight_hooks(module: nn.Module) -> list[str]:
    hooks = module._forward_pre_hooks.values()
    return [vars(hook)["name"] for hook in hooks if type(hook).__module__ in WEIGHT_HOOKS]
