"""The edits made: the user's own model, with plain layers in the place of the folds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.lazy import cache_scope
from reparam.capture.graph import Node, Record, model_tensors
from reparam.capture.norms import drop_affine
from reparam.errors import VerificationError
from reparam.plan.fold import Fold, Fusion, HorizontalFold
from reparam.rewrite.code import forward_of, set_forward
from reparam.rewrite.computed import Source, computed_weights, is_used_apart, make_plain
from reparam.rewrite.context import only_read_by
from reparam.rewrite.edits import Edits, Piece, Rewrite
from reparam.rewrite.index import StepIndex
from reparam.rewrite.layers import plain_layer, rounded
from reparam.rewrite.program import Program
from reparam.rewrite.steps import (
    as_sequence,
    called_modules,
    drop_affine_arguments,
    erase_idle_calls,
    erase_removed,
    read_computed_weights,
    redirect_size_reads,
    size_readers_of,
    write_forward,
)
from reparam.rewrite.unused import UnusedModules
from reparam.rewrite.weights import Refill, fill_layer, fill_weight

# Layers that are exchanged for a sequence when their forward has become one: they no longer are what their class says.
_LAYERS = (nn.modules.batchnorm._NormBase, nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, eq=False)
class Emitted:
    """The edited model.

    exact: if asked for, the float64 value of every new weight before rounding, by qualified name; they take twice the
        memory of float32 weights.
    names: the path of the module that computes each fold; groups: how many groups its layer has.
    plain: the weights that layers have computed at every call and now hold, with what they were computed from.
    refills: the layers whose weights are still to be filled in.
    """

    model: nn.Module
    exact: dict[str, Tensor]
    names: dict[Fold, str]
    groups: dict[Fold, int]
    plain: dict[str, list[Tensor]]
    refills: list[Refill]


def emit(
    model: nn.Module,
    record: Record,
    edits: Edits,
    live: Collection[Node],
    look: Callable[[Fold], None],
    exact: bool,
    later: bool = False,
) -> Emitted:
    """Make the edits on `model`, in place.

    Requires edits without constraints, of a record of this very model. Returns the edited model, which is another
    object where the root itself has been exchanged. Raises VerificationError for a forward that cannot run.

    live: the nodes that an output depends on. exact: keep the float64 weights as well.
    look: is called with each fold while its kernel is in memory; the kernel is freed before the next fold.
    later: leave the new layers without weights, to be refilled.
    """
    return _Emitter(model, record, edits, live, look, exact, later).emit()


class _Emitter:
    def __init__(
        self,
        model: nn.Module,
        record: Record,
        edits: Edits,
        live: Collection[Node],
        look: Callable[[Fold], None],
        exact: bool,
        later: bool,
    ) -> None:
        self.model = model
        self.record = record
        self.edits = edits
        self.look = look
        self.exact = exact
        self.later = later
        self.readers = record.readers()
        self.dead = set(record.nodes).difference(live)
        self.parents: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is not None:
                    self.parents[child].append((parent, name))
        self.unused = UnusedModules(model, record, edits.removed, self.parents)
        self.refills: list[Refill] = []
        self.weights: dict[Tensor, Tensor] = {}
        self.layers: dict[Fold, nn.Module] = {}
        self.split_results: dict[Fusion, dict[Node, fx.Node]] = {}

    def emit(self) -> Emitted:
        for swap in {swap.module: swap for swap in self.edits.swaps}.values():  # folds may share an nn.Identity
            self._exchange(swap.module, self._layer(swap.value, swap.fold))
        for module in self.edits.unscaled:
            drop_affine(module)
        for rewrite in self.edits.rewrites:
            self._rewrite_forward(rewrite)
        for guard in self.edits.guards:
            set_forward(guard.module, Program.of(guard.graph))
        paths = {module: path for path, module in self.model.named_modules()}
        plain = dict(item for module, path in paths.items() for item in self._made_plain(module, path))
        self._require_sound(paths)
        exact = {name: self.weights[p] for name, p in self.model.named_parameters() if p in self.weights}
        names = {fold: paths.get(layer, "") for fold, layer in self.layers.items()}
        groups = {fold: _groups(layer) for fold, layer in self.layers.items()}
        return Emitted(self.model, exact, names, groups, plain, self.refills)

    def _require_sound(self, paths: Mapping[nn.Module, str]) -> None:
        """Raise VerificationError unless every new forward finds all it needs, and every layer its weights."""
        written_out = {
            inner for each in self.edits.rewrites for inner in each.code.opened if inner is not each.code.module
        }
        stripped = {module for module in self.unused.stripped - written_out if forward_of(module) is None}
        for module, path in paths.items():
            program = forward_of(module)
            if not isinstance(program, Program) or module in written_out:  # its own forward is called no more
                continue
            fault = program.fault(module)
            called = (module.get_submodule(name) for name in program.calls())
            if not fault and not stripped.isdisjoint(inner for layer in called for inner in layer.modules()):
                fault = "it calls a layer that has lost a weight"
            if fault:
                raise VerificationError(
                    f"the new forward of {path or 'the model itself'} is wrong: {fault}. Nothing has been changed. "
                    "Exclude it with keep=, and please report it"
                )

    def _made_plain(self, module: nn.Module, path: str) -> Iterator[tuple[str, list[Tensor]]]:
        """Let a module hold the weights that it computes; their qualified names, and what they are computed from."""
        if not computed_weights(module) or is_used_apart(module, self.record):
            return
        sources = {name: Source.of(module, name) for name in computed_weights(module)}
        unread = {name for name, source in sources.items() if self.unused.is_unread(module, name, source.tensors())}
        weights = {
            name: None if name in unread else self._plain_weight(module, name, sources[name]) for name in sources
        }
        make_plain(module, weights)
        yield from ((f"{path}.{name}" if path else name, source.tensors()) for name, source in sources.items())

    def _plain_weight(self, module: nn.Module, name: str, source: Source) -> nn.Parameter:
        number, tensors = source.value(), source.tensors()
        like = next((tensor for tensor in tensors if tensor.shape == number.shape), tensors[0])
        parameter = rounded(number, like.to("meta") if self.later else like)
        if self.exact:
            self.weights[parameter] = number
        if self.later:
            self.refills.append(Refill(number.numel(), partial(fill_weight, module, name, source, like)))
        return parameter

    def _exchange(self, old: nn.Module, new: nn.Module) -> None:
        """Put a module in the place of another, wherever that is held."""
        if old is self.model:
            self.model = new
        for parent, name in self.parents[old]:
            parent._modules[name] = new
        self.parents[new] = self.parents.pop(old, [])

    def _layer(self, value: AffineConv | None, *folds: Fold) -> nn.Module:
        """The layer of a value, which computes the folds."""
        if value is None:
            return nn.Identity().eval()
        like = _weight_like(folds[0], self.model)
        with cache_scope():
            layer, weights = plain_layer(value, like.to("meta") if self.later else like)
            self.weights.update(weights if self.exact else {})
            for fold in folds:
                self.look(fold)
        if self.later:
            size = sum(parameter.numel() for parameter in layer.parameters())
            self.refills.append(Refill(size, partial(fill_layer, layer, value, like)))
        self.layers.update(dict.fromkeys(folds, layer))
        return layer

    def _rewrite_forward(self, rewrite: Rewrite) -> None:
        """Edit the pieces in the code, and make it the forward of its module."""
        module, code = rewrite.code.module, rewrite.code
        replaced = {node for piece in rewrite.pieces for node in piece.nodes}
        readers = size_readers_of(code)
        read_computed_weights(code)
        idle_paths = erase_idle_calls(code, self.edits.pinned)
        index = StepIndex(code)
        for piece in {piece.nodes: piece for piece in rewrite.pieces}.values():
            if piece.sink is piece.base.affine_part:
                drop_affine_arguments(index, piece.base)
                continue
            replacement = start = index.read_as(piece.base, piece.nodes)
            if isinstance(piece.fold, HorizontalFold):
                replacement = self._split_result(rewrite, index, piece, piece.fold.fusion)
            elif piece.value is not None:
                replacement = self._call_layer(index, piece.value, start, piece.nodes, piece.fold)
            redirect_size_reads(code, piece, start, replacement, readers)
            index.replace(code.at[piece.sink], replacement)
        erase_removed(code, replaced, self.dead)
        sequence = called_modules(code)
        exclusive = only_read_by(self.edits.removed, module, self.readers)  # other code may read its weight
        if sequence is not None and isinstance(module, _LAYERS) and module is not self.model and exclusive:
            self._exchange(module, as_sequence(module, sequence))
        else:
            self.unused.drop(code, write_forward(code), idle_paths)

    def _call_layer(
        self, index: StepIndex, value: AffineConv, start: fx.Node, nodes: Collection[Node], *folds: Fold
    ) -> fx.Node:
        """A call of a new layer on `start` that stands for the nodes."""
        module, layer = index.code.module, self._layer(value, *folds)
        name = index.free_name("linear" if isinstance(layer, nn.Linear) else "conv")
        module._modules[name] = layer  # add_module fails where a module defines __getattr__ for every name
        self.parents[layer].append((module, name))
        return index.add_call(name, start, nodes)

    def _split_result(self, rewrite: Rewrite, index: StepIndex, piece: Piece, fusion: Fusion) -> fx.Node:
        """The channels of a piece, of the convolution of its fusion; its first piece adds that and the split."""
        if fusion not in self.split_results:
            fused = [other for other in rewrite.pieces if fusion in other.fold.shared]
            nodes = {node for other in fused for node in other.nodes}
            start = index.read_as(piece.base, piece.nodes)
            result = self._call_layer(index, fusion.value, start, nodes, *(other.fold for other in fused))
            items = index.add_items(result, fusion.widths, fusion.channel)
            self.split_results[fusion] = dict(zip(fusion.sinks, items, strict=True))
        return self.split_results[fusion][piece.sink]


def _groups(layer: nn.Module) -> int:
    """The groups of the convolution in a layer; 1 for a linear one."""
    convolutions = (inner for inner in layer.modules() if isinstance(inner, nn.modules.conv._ConvNd))
    return next((convolution.groups for convolution in convolutions), 1)


def _weight_like(fold: Fold, model: nn.Module) -> Tensor:
    """The weight of the fold from which the new one takes dtype, device and memory format."""
    weights = [tensor for tensor in model_tensors(fold.nodes) if tensor.is_floating_point()]
    # Plain attributes may have another dtype than parameters. A 1x1 kernel is in every memory format.
    weights.sort(key=lambda weight: (not isinstance(weight, nn.Parameter), -weight.dim(), weight.is_contiguous()))
    return weights[0] if weights else next(model.parameters(), torch.empty(0)).detach().to(fold.sink.dtype)
