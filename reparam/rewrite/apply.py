"""The edits made: the user's own model, with plain convolutions where the branches were."""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.lazy import cache_scope
from reparam.capture.graph import Node, Record, model_tensors, used_only_by
from reparam.capture.norms import NORM_MODULES, drop_affine, without_affine
from reparam.capture.ops import CHECKS, op_name
from reparam.capture.snapshot import WEIGHT_HOOKS
from reparam.plan.fold import Fold, Fusion, HorizontalFold
from reparam.rewrite.code import Code, set_forward
from reparam.rewrite.context import only_read_by
from reparam.rewrite.edits import Edits, Piece, Rewrite
from reparam.rewrite.index import Places, named, prefixes, stands_for
from reparam.rewrite.layers import plain
from reparam.rewrite.trace import Trace
from reparam.rewrite.users import size_readers
from reparam.rewrite.weights import Waiting

_DO_NOTHING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


@dataclass(eq=False)
class Emitted:
    """The edited model.

    exact: the float64 values of every new weight by qualified name, before rounding, if they are wanted (they take
        twice the memory of the weights). names: the modules that hold the folds. waiting: what is to be filled yet.
    """

    model: nn.Module
    exact: dict[str, Tensor]
    names: dict[Fold, str]
    waiting: list[Waiting]


def emit(
    model: nn.Module,
    record: Record,
    edits: Edits,
    live: Collection[Node],
    look: Callable[[Fold], None],
    exact: bool,
    later: bool = False,
) -> Emitted:
    """Make the edits on `model`, in place; the record is of this very model, and `live` is what its outputs need.

    One fold after the other: the kernels of each are forgotten before the next, after `look` has had a look at it.
    `later`: the new weights are forgotten as well, until they are filled in.
    """
    return _Emitter(model, record, live, look, exact, later).emit(edits)


class _Emitter:
    def __init__(
        self,
        model: nn.Module,
        record: Record,
        live: Collection[Node],
        look: Callable[[Fold], None],
        exact: bool,
        later: bool,
    ) -> None:
        self.model = model
        self.record = record
        self.look = look
        self.exact = exact
        self.later = later
        self.waiting: list[Waiting] = []
        self.parents: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is not None:
                    self.parents[child].append((parent, name))
        self.weights: dict[Tensor, Tensor] = {}
        self.made: dict[Fold, nn.Module] = {}
        self.parts: dict[Fusion, dict[Node, fx.Node]] = {}
        self.readers = record.readers()
        self.idle = set(record.nodes).difference(live)

    def emit(self, edits: Edits) -> Emitted:
        removed = edits.removed
        spent = self._spent(removed)
        for swap in {swap.module: swap for swap in edits.swaps}.values():  # folds may share what becomes nothing
            self._exchange(swap.module, self._plain(swap.value, swap.fold))
        for module in edits.unscaled:
            drop_affine(module)
        for rewrite in edits.rewrites:
            self._rewrite(rewrite, removed, spent, edits.pinned)
        names = {module: path for path, module in self.model.named_modules()}
        exact = {name: self.weights[p] for name, p in self.model.named_parameters() if p in self.weights}
        made = {fold: names.get(module, "") for fold, module in self.made.items()}
        return Emitted(self.model, exact, made, self.waiting)

    def _exchange(self, old: nn.Module, new: nn.Module) -> None:
        if old is self.model:
            self.model = new
        for parent, name in self.parents[old]:
            parent._modules[name] = new
        self.parents[new] = self.parents.pop(old, [])

    def _plain(self, value: AffineConv | None, *folds: Fold) -> nn.Module:
        """The module that a value is, and that computes the folds."""
        if value is None:
            return nn.Identity().eval()
        like = _weight_like(folds[0], self.model)
        with cache_scope():
            module, weights = plain(value, like.to("meta") if self.later else like)
            self.weights.update(weights if self.exact else {})
            for fold in folds:
                self.look(fold)
        if self.later:
            self.waiting.append(Waiting(module, value, like))
        self.made.update(dict.fromkeys(folds, module))
        return module

    def _rewrite(
        self, rewrite: Rewrite, removed: Collection[Node], spent: set[nn.Module], pinned: Collection[nn.Module]
    ) -> None:
        module, trace = rewrite.trace.module, rewrite.trace
        gone = {node for piece in rewrite.pieces for node in piece.nodes}
        asking = _asking(trace)
        idle = _without_idle_calls(trace, pinned)
        places = Places(trace)
        for piece in {piece.nodes: piece for piece in rewrite.pieces}.values():
            if piece.sink is piece.base.affine_part:
                _normalises_only(places, piece.base)
                continue
            replacement = start = places.read(piece.base, piece.nodes)
            if isinstance(piece.fold, HorizontalFold):
                replacement = self._fused(rewrite, places, piece, piece.fold.fusion)
            elif piece.value is not None:
                replacement = self._called(places, piece.value, start, piece.nodes, piece.fold)
            _asked_instead(trace, piece, start, replacement, asking)
            places.moved(trace.at[piece.sink], replacement)
        swept(trace, gone, self.idle)
        steps = _steps(trace)
        alone = only_read_by(removed, module, self.readers)  # else somebody asks it for its weight
        if steps is not None and isinstance(module, _OPERATIONS) and module is not self.model and alone:
            self._exchange(module, _sequence(module, steps))  # it is no longer what its class says
            return
        self._drop_unused(trace, removed, spent, idle)

    def _drop_unused(
        self, trace: Trace, removed: Collection[Node], spent: set[nn.Module], idle: Collection[str]
    ) -> None:
        """Write the edited code, and delete what it has no more use for."""
        module, used = trace.module, written(trace)
        around = prefixes(used)
        for path, inner in list(module.named_modules()):
            if path and (inner in spent or path in idle) and not named(path, used, around):
                self._dropped(module, path)
        paths = {inner: path for path, inner in module.named_modules()}
        for each in trace.opened:
            if each in paths:
                self._drop_unread(each, f"{paths[each]}." if paths[each] else "", removed, used)

    def _called(
        self, places: Places, value: AffineConv, start: fx.Node, nodes: Collection[Node], *folds: Fold
    ) -> fx.Node:
        """A call of the plain convolution in front of the first step that stands for any of the nodes."""
        trace, new = places.trace, self._plain(value, *folds)
        name = places.free_name("linear" if isinstance(new, nn.Linear) else "conv")
        trace.module._modules[name] = new  # not by add_module: it asks modules that have every attribute
        self.parents[new].append((trace.module, name))
        with trace.graph.inserting_before(places.standing(nodes)[0]):
            return trace.graph.call_module(name, (start,))

    def _fused(self, rewrite: Rewrite, places: Places, piece: Piece, fusion: Fusion) -> fx.Node:
        """A part of the fused convolution, which the first part to be written brings with it."""
        if fusion not in self.parts:
            trace, parts = rewrite.trace, [part for part in rewrite.pieces if fusion in part.fold.shared]
            nodes = {node for part in parts for node in part.nodes}
            start = places.read(piece.base, piece.nodes)
            whole = self._called(places, fusion.value, start, nodes, *(part.fold for part in parts))
            with trace.graph.inserting_before(whole.next):
                split = trace.graph.call_method("split", (whole, list(fusion.widths), fusion.channel))
                items = [trace.graph.call_function(operator.getitem, (split, i)) for i in range(len(fusion.sinks))]
            self.parts[fusion] = dict(zip(fusion.sinks, items, strict=True))
        return self.parts[fusion][piece.sink]

    def _spent(self, removed: Collection[Node]) -> set[nn.Module]:
        """The modules all of whose operations, in every call, are removed, and whose tensors no other code reads.

        Also those that are never called, and hold nothing but what removed operations read.
        """
        left: dict[nn.Module, bool] = defaultdict(lambda: True)
        for call in self.record.calls:
            nodes = [node for node in call.nodes() if not node.constant]
            left[call.module] &= bool(nodes) and all(node in removed for node in nodes)
        spent = {module for module, gone in left.items() if gone and only_read_by(removed, module, self.readers)}
        for module in self.model.modules():
            called = any(each in left and each not in spent for each in module.modules())
            if module not in left and not called and self._all_read(module):
                spent |= {module} if only_read_by(removed, module, self.readers) else set()
        return spent

    def _all_read(self, module: nn.Module) -> bool:
        """Whether code reads all tensors of a module that are not counters."""
        held = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
        return bool(held) and all(self.readers.get(id(tensor)) for tensor in held)

    def _drop_unread(self, each: nn.Module, prefix: str, removed: Collection[Node], used: Collection[str]) -> None:
        """Delete parameters and buffers of one module, whose path is `prefix`, that only removed operations read."""
        names = list(each._parameters)
        for registry in (each._parameters, each._buffers):
            for name, tensor in list(registry.items()):
                readers = self.readers[id(tensor)]
                if prefix + name not in used and readers and all(used_only_by(reader, removed) for reader in readers):
                    del registry[name]
        if isinstance(each, tuple(NORM_MODULES)) and names and not each._parameters:
            each._parameters.update(dict.fromkeys(names))  # its repr asks for them
            drop_affine(each)
        held = {name.rpartition("_")[0] for name in (*each._parameters, *each._buffers)}
        for key, hook in list(each._forward_pre_hooks.items()):
            if type(hook).__module__ in WEIGHT_HOOKS and vars(hook)["name"] not in held:
                del each._forward_pre_hooks[key]  # it would compute the weight that is gone

    def _dropped(self, module: nn.Module, path: str) -> None:
        """Delete one inner module, and the containers that are empty without it."""
        parent_path, _, name = path.rpartition(".")
        try:
            parent = module.get_submodule(parent_path)
        except AttributeError:
            return  # gone with the module around it
        if parent is not module and len(self.parents[parent]) > 1:
            return  # others have it as well
        parent._modules.pop(name, None)
        if parent_path and not parent._modules and isinstance(parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            self._dropped(module, parent_path)


_OPERATIONS = (nn.modules.batchnorm._NormBase, nn.modules.conv._ConvNd, nn.Linear)


def _normalises_only(places: Places, norm: Node) -> None:
    """Take weight and bias from the step of the code that normalises."""
    step = places.trace.at[norm]
    step.args, step.kwargs = without_affine(norm.function, step.args, step.kwargs)  # type: ignore[arg-type]
    places.shows(step, norm)


def _weight_like(fold: Fold, model: nn.Module) -> Tensor:
    """A weight of the fold: what the new one takes dtype, device and memory format from."""
    held = [leaf for leaf in model_tensors(fold.nodes) if leaf.is_floating_point()]
    # Parameters before plain attributes, which have a dtype of their own; a 1x1 kernel is of every memory format.
    held.sort(key=lambda each: (not isinstance(each, nn.Parameter), -each.dim(), each.is_contiguous()))
    return held[0] if held else next(model.parameters(), torch.empty(0)).detach().to(fold.sink.dtype)


def _asking(trace: Trace) -> dict[Node, set[fx.Node]]:
    """The steps of the code that ask for the size of a tensor, be it of the step that computes it or of one that hands
    it on as it came in."""
    found: dict[Node, set[fx.Node]] = defaultdict(set)
    for place, seen in trace.tree.items():
        if isinstance(seen, Node):
            found[seen].update(
                step for step in size_readers(trace, place) if step.op in ("call_function", "call_method")
            )
    return found


def _asked_instead(
    trace: Trace, piece: Piece, start: fx.Node, replacement: fx.Node, asking: Mapping[Node, Collection[fx.Node]]
) -> None:
    """Let code that asks for the size of what is gone ask what is as large: `start`, or what is computed of it.

    Where the piece computes nothing, both are one, and as large as all that was between them.
    """
    for node in piece.nodes:
        end = piece.same_size_end(node)
        if node is piece.sink or end is None:
            continue
        for step in asking.get(node, ()):
            for place in step.all_input_nodes:
                if trace.tree.get(place) is node:  # and not what has taken its place already
                    step.replace_input_with(place, start if end is piece.base else replacement)


def swept(trace: Trace, gone: set[Node], idle: set[Node]) -> None:
    """Erase what nobody reads any more: the removed operations, constants and sizes made for them, their checks.

    Idle operations, on which no output depends, go as well: they would need what is removed.
    """
    graph = trace.graph
    left = gone | idle
    about = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "call_function" and node.target is _SETITEM and not stands_for(trace, node, gone):
            # Assignment returns nothing: whoever reads its result means the tensor assigned to.
            node.replace_all_uses_with(node.args[0])
        if stands_for(trace, node, gone) or (node not in trace.tree and about.intersection(node.all_input_nodes)):
            about.add(node)
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        check = op_name(node.target) in CHECKS and node not in about
        seen = trace.tree.get(node, _NOTHING)
        asked = seen is _NOTHING and node.op != "call_module" and not check  # a size, for somebody who is gone
        if asked or seen is None or stands_for(trace, node, left):
            graph.erase_node(node)


def _without_idle_calls(trace: Trace, pinned: Collection[nn.Module]) -> set[str]:
    """Take the calls that do nothing out of the code; the paths of the modules that they called."""
    idle = set()
    for node in list(trace.graph.nodes):
        called = _called(trace, node) if node.op == "call_module" else None
        if type(called) in _DO_NOTHING and called not in pinned:  # the hook of some is what they are there for
            idle.add(str(node.target))
            before = node.all_input_nodes[0]
            node.replace_all_uses_with(before)
            trace.at.update({seen: before for seen, place in trace.at.items() if place is node})
            trace.graph.erase_node(node)
    return idle


def _called(trace: Trace, node: fx.Node) -> nn.Module | None:
    """The module that a step calls; None where another edit has taken it away, as nothing needs the step."""
    try:
        return trace.module.get_submodule(str(node.target))
    except AttributeError:
        return None


def written(trace: Trace) -> set[str]:
    """Make the traced code, as it has been edited, the forward of its module; the paths of what it names there."""
    set_forward(trace.module, Code.of(trace.graph))
    used = {str(node.target) for node in trace.graph.nodes if node.op in ("call_module", "get_attr")}
    vars(trace.module).update({name: tensor for name, tensor in trace.literals.items() if name in used})
    return used


_SETITEM = operator.setitem
_NOTHING = object()


def _steps(trace: Trace) -> list[str] | None:
    """The names of the modules that the forward calls, if it does nothing but call one after another."""
    steps: list[str] = []
    before: fx.Node | None = None
    for node in trace.graph.nodes:
        if node.op == "placeholder" and before is None:
            before = node
        elif node.op == "call_module" and node.args == (before,) and not node.kwargs:
            steps.append(str(node.target))
            before = node
        elif node.op == "output":
            return steps if node.args == (before,) else None
        elif node in trace.tree or node.op != "call_function":
            return None  # anything else than a check of sizes
    return None


def _sequence(module: nn.Module, steps: list[str]) -> nn.Module:
    """What is left of a module as a plain sequence, under the same names."""
    if not steps:
        return nn.Identity().eval()
    return nn.Sequential(OrderedDict((step.replace(".", "_"), module.get_submodule(step)) for step in steps)).eval()
