"""The structure of a folded model as data: how it differs from the original, and how to rebuild it from a fresh one.

The conversion cannot simply run again. A plan depends on the weights, which a fresh model does not have (groups of
channels come from the zeros of a kernel, a padding folds if it equals the bias), and on the version of this package. So
the difference itself is stored: each module that was replaced, with the arguments of torch's own class; each forward
that was rewritten, as a graph of known operations (see `program_data`); each name that was removed. The fresh
model must match the original class by class and tensor by tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from reparam.capture.norms import NORM_MODULES
from reparam.capture.snapshot import WEIGHT_HOOKS, copied
from reparam.deploy.program_data import program_data, read_program
from reparam.deploy.tables import DTYPES
from reparam.errors import InputError
from reparam.rewrite.code import Forward, forward_of, set_forward
from reparam.rewrite.computed import computed_weights, make_plain, weight_hooks
from reparam.rewrite.layers import BiasMap
from reparam.rewrite.program import Program, is_name

Data = dict[str, Any]
MAX_DEPTH = 100  # of modules within modules
MAX_NUMBERS = 2**34  # of all new weights together
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_NOT_COMPARED = {*vars(nn.Module()), "reparam_report", "reparam_origin"}
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PADS = tuple(
    getattr(nn, f"{kind}Pad{axes}d") for kind in ("Zero", "Reflection", "Replication", "Circular") for axes in (1, 2, 3)
)
# The classes that a fold creates, and the attributes that are their arguments.
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(_CONVS, ("in_channels", "out_channels", *_GEOMETRY)),
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(_PADS, ("padding",)),
    nn.Identity: (),
    nn.Sequential: (),
    BiasMap: (),
}
_FLAGS = frozenset(NORM_MODULES.values())  # the attributes that folding changes, always to False
_CLASSES = {cls.__name__: cls for cls in _ARGUMENTS}


def class_name(module: nn.Module) -> str:
    """The name of a module's class; if its forward has been rewritten, of the class before that."""
    return _name(getattr(type(module), "_rewritten_from", type(module)))


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def outline(model: nn.Module) -> Data:
    """What a fresh model must match: the class of each module, the dtype and shape of each tensor."""
    modules = {path: class_name(module) for path, module in model.named_modules(remove_duplicate=False)}
    return {"modules": modules, "tensors": {name: type_text(tensor) for name, tensor in _tensors(model)}}


def require_outline(model: nn.Module, wanted: Data) -> None:
    """Raises InputError with the first difference between a model and the outline that it must match."""
    actual = outline(model)
    for part in ("modules", "tensors"):
        here, original = actual[part], dict(wanted[part])
        for name in [*original, *here]:
            if here.get(name) != original.get(name):
                raise InputError(
                    f"the model does not match the original of the artefact: {name or 'the model itself'} is "
                    f"{here.get(name, 'absent')} here and {original.get(name, 'absent')} in the original; build it by "
                    "the same code and arguments, in the same dtype"
                )


# --- from two models to their difference


def describe(original: nn.Module, folded: nn.Module) -> Data:
    """How to make `folded` from a model of the structure of `original`. Weights are not looked at.

    Raises InputError for changes that folding does not make: quantised, wrapped or replaced layers.
    """
    return _Describer().module("", original, folded) or {"kept": {}}


def constants(folded: nn.Module, structure: Data) -> dict[str, Tensor]:
    """The tensors that rewritten code reads and the state_dict lacks, by name."""
    return {name: _attribute(folded, name) for name in _constant_names(structure, "")}


class _Describer:
    """Describes one folded model, module by module.

    shared: what to write where a module that has been described occurs again.
    """

    def __init__(self) -> None:
        self.shared: dict[nn.Module, Data | None] = {}

    def module(self, path: str, old: nn.Module | None, new: nn.Module) -> Data | None:
        """The difference of one module and all inside it; None where there is none."""
        if new in self.shared:
            return self.shared[new]
        if new.training:
            raise InputError(f"{path or 'the model'} is in train mode; call .eval() on it first")
        # A fresh model shares its own modules already; a new module has to be shared by name.
        self.shared[new] = None if _is_kept(old, new) else {"same": path}
        if old is None or not _is_kept(old, new):
            return {"new": self.new(path, old, new)}
        kept = self.kept(path, old, new)
        return {"kept": kept} if kept else None

    def new(self, path: str, old: nn.Module | None, new: nn.Module) -> Data:
        if type(new) not in _ARGUMENTS:
            raise InputError(
                f"{path or 'the model'} is a {class_name(new)}, which folding does not create; save the model as "
                "reparameterize has returned it, or export a .pt2"
            )
        children = {
            name: self.child_of_new(path, old, name, child) for name, child in new._modules.items() if child is not None
        }
        return {**_constructor(new), "children": children}

    def child_of_new(self, path: str, old: nn.Module | None, name: str, child: nn.Module) -> Data:
        """A child of a new module: new as well, or moved there from inside the module that was replaced."""
        here = f"{path}.{name}" if path else name
        candidates = () if old is None else old.named_modules()
        for place, candidate in candidates:
            if place.replace(".", "_") == name and class_name(candidate) == class_name(child):
                return {"from": place, **(self.module(here, candidate, child) or {"kept": {}})}
        return self.module(here, None, child) or {}

    def kept(self, path: str, old: nn.Module, new: nn.Module) -> Data:
        """What has changed in a module that is still there: code, members, attributes, hooks, order."""
        where = path or "the model"
        changes: Data = {}
        attributes, constant_names = _attributes(old, new, where)
        forward = forward_of(new)
        if isinstance(forward, Program):
            changes["forward"] = program_data(forward, new, constant_names, where)
        elif forward is not None:
            raise InputError(f"{where} comes from a file of format 1; fold the original again and save the result")
        gone, none = [], []
        for registry in _REGISTRIES:
            before, after = vars(old)[registry], vars(new)[registry]
            gone += [name for name in before if name not in after]
            none += [name for name in after if after[name] is None and before.get(name) is not None]
        plain = {name: type_text(new._parameters[name]) for name in _made_plain(old, new)}  # type: ignore[arg-type]
        added = [name for name, _ in _own_tensors(new) if name not in plain and name not in dict(_own_tensors(old))]
        if added:
            raise InputError(f"{where} has tensors that folding does not create: {', '.join(added)}; export a .pt2")
        children = {}
        for name, child in new._modules.items():
            below = None
            if child is not None:
                below = self.module(f"{path}.{name}" if path else name, old._modules.get(name), child)
            if below is not None:
                children[name] = below
        hooks = [name for name in weight_hooks(old) if name not in plain and name not in weight_hooks(new)]
        changes |= {"plain": plain, "gone": gone, "none": none, "attributes": attributes, "constants": constant_names,
                    "unhooked": hooks, "children": children}  # fmt: skip
        order = list(new._modules)
        if order != [name for name in old._modules if name in new._modules]:
            changes["order"] = order
        return {key: value for key, value in changes.items() if value}


def _is_kept(old: nn.Module | None, new: nn.Module) -> bool:
    """Whether `new` is the old module, edited or not. A layer of torch with another geometry is a new one."""
    if old is None or class_name(new) not in (class_name(old), _name(type_before_parametrizations(old))):
        return False
    if type(new) not in _ARGUMENTS or isinstance(new, nn.Sequential):
        return True
    return type(old) is type(new) and _constructor(old) == _constructor(new)


def _made_plain(old: nn.Module, new: nn.Module) -> list[str]:
    """The weights that `old` computes at every call and `new` holds."""
    return [name for name in computed_weights(old) if new._parameters.get(name) is not None]


def _constructor(module: nn.Module) -> Data:
    """What makes a layer of torch: its class, its arguments, its tensors."""
    arguments = {name: _as_json(getattr(module, name)) for name in _ARGUMENTS[type(module)]}
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        arguments["bias"] = module.bias is not None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        arguments["output_padding"] = _as_json(module.output_padding)
    tensors = {name: type_text(tensor) for name, tensor in _own_tensors(module)}
    return {"class": type(module).__name__, "arguments": arguments, "tensors": tensors}


def _attributes(old: nn.Module, new: nn.Module, where: str) -> tuple[Data, list[str]]:
    """The plain attributes that have changed, and the names of the tensors that rewritten code reads."""
    before, changed, constant_names = vars(old), {}, []
    for name, value in vars(new).items():
        if name in _NOT_COMPARED or name.startswith("__"):  # torch.jit.script leaves `__overloads__`
            continue
        if isinstance(value, Tensor):
            constant_names += [name] if name not in before else []
        elif _is_flag(name, value) and before.get(name) != value:
            changed[name] = value
        elif name not in before or (_is_plain(value) and _is_plain(before[name]) and before[name] != value):
            raise InputError(
                f"{where} has an attribute that folding does not set: {name}; save the model as reparameterize has "
                "returned it, or export a .pt2"
            )
    return changed, constant_names


def _is_flag(name: str, value: Any) -> bool:
    """Whether folding sets that attribute to that value: it does for norms that lose scale and shift."""
    return name in _FLAGS and value is False


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- from a fresh model and the difference to a folded model


def rebuild(
    model: nn.Module,
    structure: Data,
    tensors: Mapping[str, Tensor],
    types: Mapping[str, str] | None = None,
    read_old_forward: Callable[[Any], Forward] | None = None,
) -> nn.Module:
    """A copy of a fresh model in the folded structure, in eval mode; new weights are zero.

    tensors: the `constants`, by name. types: the dtype and shape of each weight in the file, by name; new weights must
    agree with them before they take memory. None where there is no file.
    read_old_forward: makes the forward of a file of format 1, which holds text; None to refuse it.

    Raises InputError where the structure is damaged, or holds what folding never writes.
    """
    fresh = copied(model)
    for name in ("reparam_report", "reparam_origin"):
        vars(fresh).pop(name, None)
    device = next((tensor.device for tensor in (*fresh.parameters(), *fresh.buffers())), torch.device("cpu"))
    return _Builder(device, tensors, types, read_old_forward).module("", fresh, structure).eval()


class _Builder:
    """Rebuilds one folded model, module by module.

    constants: the tensors that rewritten code reads, by name.
    built: the new modules by path, for places that share one.
    numbers: of the new weights, where no file says how large they are.
    """

    def __init__(
        self,
        device: torch.device,
        constants: Mapping[str, Tensor],
        types: Mapping[str, str] | None,
        read_old_forward: Callable[[Any], Forward] | None,
    ) -> None:
        self.device = device
        self.constants = constants
        self.types = types
        self.read_old_forward = read_old_forward
        self.built: dict[str, nn.Module] = {}
        self.numbers = 0

    def module(self, path: str, old: nn.Module | None, data: Data) -> nn.Module:
        if path.count(".") > MAX_DEPTH:
            raise _damage(f"{path[:80]} is nested too deep")
        if "same" in data:
            return self.built[data["same"]]
        if "new" in data:
            return self.new(path, old, data["new"])
        if old is None:
            raise _damage(f"there is no {path}")
        self.kept(path, old, data["kept"])
        return old

    def new(self, path: str, old: nn.Module | None, data: Data) -> nn.Module:
        module = _constructed(data["class"], data["arguments"])
        self.built[path] = module
        for name, text in data["tensors"].items():
            if name not in module._parameters:
                raise _damage(f"{path}: a {data['class']} has no {name}")
            zeros = self.zeros(f"{path}.{name}" if path else name, text)
            module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        if any(tensor.is_meta for _, tensor in _own_tensors(module)):
            raise _damage(f"{path} lacks a weight")
        for name, below in data["children"].items():
            here = f"{path}.{name}" if path else name
            moved = old.get_submodule(below["from"]) if old is not None and "from" in below else None
            _add(module, name, self.module(here, moved, below))
        return module

    def zeros(self, name: str, text: str) -> Tensor:
        """The memory of a new weight, which the file must hold as well."""
        shape, dtype = _read_type(text)
        if self.types is not None and self.types.get(name) != text:
            raise _damage(f"{name} is {text} here and {self.types.get(name, 'absent')} in the weights")
        self.numbers += math.prod(shape)
        if self.numbers > MAX_NUMBERS:
            raise _damage(f"{name} is too large")
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def kept(self, path: str, module: nn.Module, data: Data) -> None:
        where = path or "the model"
        for name, below in data.get("children", {}).items():
            here = f"{path}.{name}" if path else name
            _add(module, name, self.module(here, module._modules.get(name), below))
        if plain := data.get("plain", {}):
            self.make_plain(path, module, plain)
        _remove(module, data.get("gone", ()), data.get("none", ()), data.get("unhooked", ()))
        for name, value in data.get("attributes", {}).items():
            if not _is_flag(name, value) or not isinstance(module, tuple(NORM_MODULES)):
                raise InputError(f"{where}: the artefact sets {name}, which folding never does; it is not loaded")
            vars(module)[name] = value
        for name in data.get("constants", ()):
            if not is_name(name) or name.startswith("__") or _is_member(module, name):
                raise InputError(f"{where}: the artefact sets {name}, which folding never does; it is not loaded")
            vars(module)[name] = self.constants[f"{path}.{name}" if path else name].to(self.device)
        if "order" in data:
            module._modules.update({name: module._modules.pop(name) for name in data["order"]})
        self.set_forward(where, module, data)

    def set_forward(self, where: str, module: nn.Module, data: Data) -> None:
        """Give a module its new forward, if it has one."""
        if "code" in data:  # format 1
            if self.read_old_forward is None:
                raise _damage(f"{where} has code, which this format does not hold")
            set_forward(module, self.read_old_forward(data["code"]))
        elif "forward" in data:
            set_forward(module, read_program(data["forward"], module, data.get("constants", ()), where))

    def make_plain(self, path: str, module: nn.Module, types: Mapping[str, str]) -> None:
        """Give a module parameters in the place of all weights that it computes."""
        if set(types) != set(computed_weights(module)):
            raise _damage(f"{path} computes other weights")
        zeros = {name: self.zeros(f"{path}.{name}" if path else name, text) for name, text in types.items()}
        make_plain(module, {name: nn.Parameter(zero, requires_grad=False) for name, zero in zeros.items()})


def _damage(what: str) -> InputError:
    return InputError(f"the structure in the artefact is damaged: {what}; copy both files again")


def _constructed(name: str, arguments: Data) -> nn.Module:
    """A new layer on the meta device, which takes no memory. Its arguments are those that `_constructor` writes."""
    cls: Callable[..., nn.Module] = _CLASSES[name]
    wanted = {*_ARGUMENTS[_CLASSES[name]]}
    wanted |= {"bias"} if issubclass(_CLASSES[name], nn.modules.conv._ConvNd | nn.Linear) else set()
    wanted |= {"output_padding"} if issubclass(_CLASSES[name], nn.modules.conv._ConvTransposeNd) else set()
    if set(arguments) != wanted or not all(map(_is_argument, arguments.values())):
        raise _damage(f"a {name} with other arguments")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    with torch.device("meta"):
        return cls(*values.values()) if _CLASSES[name] in _PADS else cls(**values)


def _is_argument(value: Any) -> bool:
    """Whether a layer may be made with it: a size, a flag, a word of torch's, or a few sizes."""
    sizes = value if isinstance(value, list) else [value]
    plain = len(sizes) <= 6 and all(type(size) is int and abs(size) < 2**31 for size in sizes)
    return plain or type(value) is bool or value in ("zeros", "reflect", "replicate", "circular", "same", "valid")


def _add(module: nn.Module, name: str, child: nn.Module) -> None:
    """Put a child in its place. torch refuses names that are attributes already, such as those of methods."""
    if name in module._modules:
        module._modules[name] = child
    else:
        module.add_module(name, child)


def _is_member(module: nn.Module, name: str) -> bool:
    """Whether a module has that name already: of its own, registered, or of its class."""
    registered = any(name in vars(module)[registry] for registry in _REGISTRIES)
    return registered or name in vars(module) or name in dir(type(module))


def _remove(module: nn.Module, gone: Iterable[str], none: Iterable[str], unhooked: Collection[str]) -> None:
    """Remove members and weight hooks from a module.

    gone: names to delete. none: names to set to None. unhooked: the parameters whose weight hooks go.
    """
    for name in gone:
        for registry in _REGISTRIES:
            vars(module)[registry].pop(name, None)
    for name in none:
        registry = next((registry for registry in _REGISTRIES if name in vars(module)[registry]), "")
        vars(module)[registry][name] = None
    for key, hook in list(module._forward_pre_hooks.items()):
        if type(hook).__module__ in WEIGHT_HOOKS and vars(hook)["name"] in unhooked:
            del module._forward_pre_hooks[key]


# --- tensors


def _constant_names(data: Data, path: str) -> Iterator[str]:
    kept = data.get("kept", {})
    for name in kept.get("constants", ()):
        yield f"{path}.{name}" if path else name
    for name, below in {**kept.get("children", {}), **data.get("new", {}).get("children", {})}.items():
        yield from _constant_names(below, f"{path}.{name}" if path else name)


def _attribute(model: nn.Module, name: str) -> Tensor:
    parent, _, attribute = name.rpartition(".")
    tensor: Tensor = vars(model.get_submodule(parent))[attribute]
    return tensor


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of one module, without those of its children."""
    members = [*module._parameters.items(), *module._buffers.items()]
    return [(name, tensor) for name, tensor in members if tensor is not None]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def type_text(tensor: Tensor) -> str:
    """The dtype and shape of a tensor, such as `float32 8x3x3x3`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}".rstrip()


def _read_type(text: str) -> tuple[list[int], torch.dtype]:
    match = re.fullmatch(r"(\w{1,20})((?: \d{1,12}(?:x\d{1,12}){0,7})?)", text)
    dtype = DTYPES.get(f"torch.{match[1]}") if match else None
    if match is None or dtype is None:
        raise _damage(f"{text[:80]!r} is no dtype and shape")
    return [int(size) for size in match[2].strip().split("x")] if match[2] else [], dtype
