"""Where each fold is written back, and how: the smallest edit that carries it.

Four kinds of edit, in this order:

*swap*: the fold is a chain of operations, each result read once. The one that has a kernel becomes the folded
convolution under its own name; every other one does nothing from now on. Where such an operation is all that its module
does, the module is exchanged; no forward is rewritten.

*merge*: folds that one convolution computes (see `merge`) are a rewrite, whatever each would be alone.

*unscaled*: the fold takes the scale and shift of a normalisation (see `split`), whose module loses its weight and bias.

*rewrite*: the smallest module whose forward holds the operations gets a new forward, from a symbolic trace of that
module alone (see `trace`), in which one convolution stands for them.

All edits are prepared before the first is made (see `emit`). What cannot be edited is refused with its reason, and
planned anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace

from torch import nn

from reparam.capture.graph import (
    Call,
    Node,
    Record,
    calls_around,
    common_call,
    has_user_code,
    model_tensors,
    nodes_in,
    used_only_by,
)
from reparam.capture.norms import NORM_MODULES, affine_part
from reparam.errors import Refusal
from reparam.plan.fold import Fold, Fusion, ViewedFold
from reparam.plan.plan import Plan
from reparam.plan.shapes import Extents
from reparam.plan.strides import CHANGES_LAYOUT, layout_sensitive
from reparam.rewrite.chains import ELSEWHERE, MEASURED, behind_norm, carriers, is_chain, keeps_sizes, parted, runs
from reparam.rewrite.edits import Edits, Piece, Rewrite, Swap
from reparam.rewrite.proofs import Proofs, contains
from reparam.rewrite.reshapes import require_stated
from reparam.rewrite.trace import Trace
from reparam.rewrite.users import asked, handed_in, returned, unordered


class _Lowering:
    def __init__(
        self, record: Record, proofs: Proofs, pinned: Collection[nn.Module], barriers: Collection[Node]
    ) -> None:
        self.record = record
        self.barriers = barriers
        self.pinned = {*pinned, *record.hooked}
        self.ordinal = {event: i for call in record.calls for i, event in enumerate(call.events)}
        self.proofs, self.calls = proofs, proofs.calls
        self.readers = record.readers()
        self.handed_on = _handed_on(record.calls)
        self.layout_sensitive = layout_sensitive(record)
        self.removed: Collection[Node] = ()
        self.unmade: Set[Node] = frozenset()  # of these, the tensors that no longer exist
        self.fates: dict[Call, object] = {}
        self.carriers: dict[Fold, Node | None] = {}
        self.whole: dict[Fold, Fold] = {}

    def edits(self, whole: Sequence[Fold], removed: Collection[Node]) -> Edits:
        """Every fold by its smallest edit; if any is refused, the others have to be planned anew."""
        self.removed = removed
        self.unmade = set(removed) - {fold.sink for fold in whole}
        result = Edits(removed=removed, pinned=self.pinned)
        folds = self._edited(result, whole)
        alike: dict[tuple[tuple[tuple[str, int], ...], ...], list[Fold]] = defaultdict(list)
        for fold in folds:
            alike[self._signature(self.whole[fold].nodes), self._signature(fold.nodes)].append(fold)
        self.fates = {call: fate for fold in folds for call, fate in self._fates(fold)}
        pieces = self._unscaled(result, whole)
        merged = self._merged(result)
        pieces += merged
        for group in alike.values():
            try:
                swaps, parts = self._smallest(group)
                result.swaps += swaps
                pieces += parts
            except _RefusalAt as refusal:
                result.opaque.setdefault(refusal.node, refusal)
            except Refusal as refusal:
                self._refuse(result, group, refusal)
        self._rewrites(result, pieces)
        for group in alike.values():
            try:
                self._require_proven(self.whole[group[0]], result.rewrites)
            except Refusal as refusal:
                self._refuse(result, [self.whole[fold] for fold in group], refusal)
        for piece in merged:
            try:
                self._require_proven(self.whole[piece.fold], result.rewrites)
            except Refusal:
                _part(result, [piece])
        return result

    def _edited(self, result: Edits, folds: Iterable[Fold]) -> list[Fold]:
        """The folds as they are edited, chains among them, and what of them is carried where: see `carriers`."""
        starts = {behind_norm(fold): fold for fold in folds}
        inside: dict[Node, list[Fold]] = defaultdict(list)
        for fold in starts:
            for node in fold.nodes:
                inside[node].append(fold)
        for fold, whole in starts.items():
            try:
                self._require_sizes(whole)
                parts = [fold]
                if isinstance(fold, ViewedFold) and not is_chain(fold, inside, self.removed):
                    parts = parted(fold, inside, self.removed)
                self.whole.update(dict.fromkeys(parts, whole))
            except _RefusalAt as refusal:
                result.opaque.setdefault(refusal.node, refusal)
            except Refusal as refusal:
                self._refuse(result, [whole], refusal)
        alone = [fold for fold in self.whole if not fold.shared]
        chains = [fold for fold in alone if is_chain(fold, inside, self.removed)]
        self.carriers = {fold: carrier for fold in chains for carrier in carriers(fold)}
        return alone

    def _signature(self, nodes: Iterable[Node]) -> tuple[tuple[str, int], ...]:
        """Which operations of which code these are: equal for the same code in another call of its module."""
        return tuple((node.call.path if node.call else "", self.ordinal.get(node, -1)) for node in nodes)

    # --- normalisations whose scale and shift are taken

    def _unscaled(self, result: Edits, folds: Iterable[Fold]) -> list[Piece]:
        """Each of them once, whoever takes its scale: modules of torch to be unscaled, pieces of all other code."""
        heads = {fold.nodes[0]: fold for fold in folds if fold.nodes[0].function is affine_part}
        alike: dict[tuple[tuple[str, int], ...], list[Fold]] = defaultdict(list)
        for affine, fold in heads.items():
            head = Fold(fold.base, affine, fold.value, (affine,), fold.sizes, fold.extents)
            alike[self._signature([affine])].append(head)
        pieces: list[Piece] = []
        for group in alike.values():
            try:
                for head in group:
                    self._require_taken(head.sink)
                pieces += self._taken(result, group)
            except Refusal as refusal:
                result.opaque.update((head.sink, refusal) for head in group)
        return pieces

    def _taken(self, result: Edits, group: list[Fold]) -> list[Piece]:
        head, call = group[0], group[0].sink.call
        if call is None:
            raise Refusal("it runs outside the model's forward")
        self._require_alike(call, group)
        asking = {module for leaf in model_tensors([head.sink]) for module in self.record.inspectors.get(id(leaf), ())}
        if asking - {call.module}:
            raise Refusal("other code asks for the dtype, device or size of its weight")
        if not _is_own(call, head.sink):
            return [Piece(call, head.nodes, head.base, head.sink, head, None)]
        if call.parent is not None and _reads_within(call.parent.module):
            raise Refusal(f"{_path(self.calls, call.parent.module)} may read its weight without calling it")
        if not self._unread(call.module):
            raise Refusal(f"other code reads the parameters of {call.path}", "code that reads its own would fold")
        result.unscaled.append(call.module)
        return []

    def _require_taken(self, affine: Node) -> None:
        """Nobody reads what was scaled and shifted any more."""
        if affine not in self.removed:
            raise Refusal("not every operation that reads it can take its scale")

    def _require_sizes(self, fold: Fold) -> None:
        """Each reshape is given sizes that do to the channels, for every input, what they did."""
        for node in fold.reshapes:
            self._require_stated(node, fold.extents)

    def _require_stated(self, node: Node, extents: Extents) -> None:
        try:
            require_stated(node, self._stating(node), extents)
        except Refusal as refusal:
            raise _RefusalAt(node, refusal.reason, refusal.remedy) from None

    def _stating(self, node: Node) -> Trace | None:
        """The trace of the code that calls an operation, which shows where its numbers come from.

        None where it does not ask for any number: those it hands on are the same for every input. Raises Refusal.
        """
        call = node.call
        if call is None or not has_user_code(call.module):
            return None
        try:
            return self.proofs.trace(call, frozenset({call.module}))
        except Refusal:
            if self.proofs.looks(call):
                raise
            return None

    def _shown(self, fold: Fold) -> Collection[Node]:
        """The operations of a fold, or of a part of one, whose sizes are those of what they read."""
        return self.whole.get(fold, fold).reshapes

    # --- convolutions that are computed by one

    def _merged(self, result: Edits) -> list[Piece]:
        """The pieces of every wide convolution, once for all calls of the code around it."""
        parts: dict[Fusion, list[Fold]] = defaultdict(list)
        for fold in self.whole:
            for fusion in fold.shared:
                parts[fusion].append(fold)
        alike: dict[tuple[tuple[str, int], ...], list[Fusion]] = defaultdict(list)
        for fusion, folds in parts.items():
            alike[self._signature(node for fold in folds for node in fold.nodes)].append(fusion)
        pieces: list[Piece] = []
        for group in alike.values():
            try:
                pieces += self._parts(group, parts[group[0]])
            except Refusal:
                result.unfusable.update(sink for fusion in group for sink in fusion.sinks)
        return pieces

    def _parts(self, group: Sequence[Fusion], folds: Sequence[Fold]) -> list[Piece]:
        """The parts of the first of a group, in the smallest call that holds all operations of all parts."""
        for fusion in group:
            for view in fusion.views.required:
                self._require_stated(view, fusion.views)
        call = common_call([node for fold in folds for node in fold.nodes])
        if call is None:
            raise Refusal("it runs outside the model's forward")
        self._require_alike(call, group)
        for fold in folds:
            self._require_loose(call, fold.nodes)
            readers = (reader for leaf in model_tensors(fold.nodes) for reader in self.readers[id(leaf)])
            if len(fold.nodes) == 1 and not all(used_only_by(reader, self.removed) for reader in readers):
                raise Refusal("its weight would be held twice")
        return [Piece(call, fold.nodes, fold.base, fold.sink, fold, fold.value) for fold in folds]

    # --- one group of folds: the same code, once for every call of the module around it

    def _smallest(self, group: list[Fold]) -> tuple[list[Swap], list[Piece]]:
        return self._chain(group) or self._joined(group)

    def _chain(self, group: list[Fold]) -> tuple[list[Swap], list[Piece]] | None:
        """Each operation where it stands: swaps for whole modules, pieces of code for the rest.

        None where the fold is no chain of operations that can be edited one by one.
        """
        fold = group[0]
        carrier = self.carriers.get(fold)
        if fold not in self.carriers:
            return None
        if not keeps_sizes(fold, len(fold.nodes) if carrier is None else fold.nodes.index(carrier)):
            return None
        if self._has_to_check(self.whole[fold]):
            return None
        swaps: list[Swap] = []
        pieces: list[Piece] = []
        for call, nodes in runs(fold):
            value = fold.value if carrier in nodes else None
            told = len(call.args) > 1 or call.kwargs
            if told and not has_user_code(call.module) and not fold.takes_output_size(nodes, value):
                raise Refusal("it is told its output size at every call", "output_padding instead would fold")
            if self._whole(call, nodes, fold):
                if not self._has_one_fate(call) or not self._unread(call.module):
                    return None  # the module has to stay as well
                swaps.append(Swap(call.module, self.whole[fold], value))
            else:
                self._require_loose(call, nodes)
                self._require_alike(call, group)
                pieces.append(Piece(call, nodes, nodes[0].operands[0], nodes[-1], fold, value))
        return swaps, pieces

    def _joined(self, group: list[Fold]) -> tuple[list[Swap], list[Piece]]:
        """One convolution in the smallest call that holds all operations of the fold."""
        fold = group[0]
        if fold.steps:
            raise Refusal(ELSEWHERE)
        call = common_call(fold.nodes)
        if call is None:
            raise Refusal("it runs outside the model's forward")
        self._require_loose(call, fold.nodes)
        self._require_alike(call, group)
        value = None if fold.value.identity else fold.value
        if self._whole(call, fold.nodes, fold):
            if not self._unread(call.module):
                raise Refusal(f"other code reads the parameters of {call.path}", "code that reads its own would fold")
            return [Swap(call.module, self.whole[fold], value)], []
        return [], [Piece(call, fold.nodes, fold.base, fold.sink, fold, value)]

    def _fates(self, fold: Fold) -> Iterator[tuple[Call, object]]:
        """What a chain makes of each call that it passes through: nothing (None), or its own convolution."""
        if fold in self.carriers:
            carrier = self.carriers[fold]
            whole = self._signature(self.whole[fold].nodes)
            for call, nodes in runs(fold):
                yield call, (whole if carrier in nodes else None)

    def _require_proven(self, fold: Fold, rewrites: Sequence[Rewrite]) -> None:
        """Whatever code leads through the chain leads through it for every input: it looks at none, or is traced."""
        around, looking = self._looking(fold)
        written = (rewrite.trace for rewrite in rewrites)
        if looking and not any(trace.call is around and looking <= {*trace.opened} for trace in written):
            self.proofs.require(around, looking)

    def _looking(self, fold: Fold) -> tuple[Call, frozenset[nn.Module]]:
        """The call around a fold, and the modules whose code leads through it and may go other ways."""
        around = common_call(fold.path)
        if around is None:
            raise Refusal("it runs outside the model's forward")
        way = {call for node in fold.path for call in calls_around(node, around) if has_user_code(call.module)}
        for call in self._passed({*fold.path} - {fold.sink}, around):
            way.update(outer for outer in call.stack(around) if has_user_code(outer.module))
        looking = {outer for call in way if self.proofs.looks(call) for outer in call.stack() if outer in way}
        return around, frozenset(call.module for call in looking)

    def _has_to_check(self, fold: Fold) -> bool:
        """Whether the code around a chain leads through it for lists of a certain length alone, if it checks them."""
        around, looking = self._looking(fold)
        if not looking or not contains(around) or self.proofs.holds(around, looking):
            return False
        try:
            self.proofs.shaped(around, looking | {around.module})
        except Refusal:
            return False
        return True

    def _require_loose(self, call: Call, nodes: Sequence[Node]) -> None:
        """No module that has to stay what it is computes its whole result in the code that would be replaced."""
        whole = call.result is nodes[-1] and not any(isinstance(event, Call) for event in call.events)
        if whole and call.module in self.pinned:
            raise Refusal(f"{call.path or 'the model itself'} must stay what it is (a hook or `keep` watches it)")

    def _has_one_fate(self, call: Call) -> bool:
        """Whether every call of the module that would be exchanged comes to the same."""
        calls = self.calls[call.module]
        return all(other in self.fates and self.fates[other] == self.fates[call] for other in calls)

    def _require_alike(self, call: Call, group: Sequence[Fold | Fusion]) -> None:
        """Every call of the module whose code is edited takes part in the same fold."""
        calls = len(self.calls[call.module])
        if calls != len(group):
            raise Refusal(
                f"{call.path or 'the model itself'} is called {calls} times, and only {len(group)} of them fold alike",
                "separate modules would fold",
            )

    def _whole(self, call: Call, nodes: Sequence[Node], fold: Fold) -> bool:
        """Whether these operations are all that the call does, so that its module can be exchanged."""
        if call.module in self.pinned or any(isinstance(event, Call) for event in call.events):
            return False
        if has_user_code(call.module) and (len(call.args) != 1 or call.kwargs):
            return False  # called in a way in which a layer of torch cannot be
        mine = set(nodes)
        own = [event for event in call.events if isinstance(event, Node)]
        whole = all(node.constant or node.passthrough or node in mine for node in own) and call.result is nodes[-1]
        return whole and (not has_user_code(call.module) or self._proven(call, nodes, fold))

    def _unread(self, module: nn.Module) -> bool:
        """Whether only operations that are removed read the module's tensors."""
        return only_read_by(self.removed, module, self.readers)

    def _read_elsewhere(self, module: nn.Module) -> bool:
        """Whether operations that stay read the module's tensors, besides its own."""
        own = (node for call in self.calls[module] for node in call.nodes())
        return not only_read_by({*self.removed, *own}, module, self.readers)

    def _proven(self, call: Call, nodes: Sequence[Node], fold: Fold) -> bool:
        trace = self.proofs.trace(call, frozenset({call.module}))
        return not any(trace.sized(node) for node in nodes if node not in self._shown(fold))

    def _refuse(self, result: Edits, group: Iterable[Fold], refusal: Refusal, call: Call | None = None) -> None:
        """Leave as they are the operations that the code around them holds fast: those of its own forward.

        Where it has none, it is what it hands from one inner call to another: what is inside these may still fold.
        """
        for fold in group:
            around = call or common_call(fold.nodes)
            own = [node for node in fold.nodes if node.call is around]
            handed = [] if own else [node for node in _handed(fold, around) if node not in self.barriers]
            result.barriers.update((node, refusal) for node in handed)
            steps = self.whole.get(fold, fold).steps
            for node in [] if handed else steps[:1] or own or fold.nodes[-1:]:
                result.opaque.setdefault(node, refusal)

    # --- rewriting

    def _rewrites(self, result: Edits, pieces: list[Piece]) -> None:
        """One rewrite per module, around every piece in it; a piece inside another's opened code moves out to it."""
        at = {piece: piece.call for piece in pieces}
        opened: dict[Call, set[nn.Module]] = {}
        settled = False
        while not settled:
            settled = True
            opened = defaultdict(set)
            for piece, call in at.items():
                opened[call] |= self._opened(piece, call)
            for piece, call in at.items():
                outer = next((c for c in call.stack() if c is not call and call.module in opened.get(c, ())), None)
                if outer is not None:
                    at[piece], settled = outer, False
        swapped = frozenset(swap.module for swap in result.swaps)
        parts = _by_place(at)
        for call, inner in opened.items():
            mine = parts[call]
            try:
                self._require_apart(swapped, call, inner, mine)
                result.rewrites.append(self._rewrite(call, inner, mine))
            except Refusal as refusal:
                if _part(result, mine):
                    continue
                if isinstance(refusal, _RefusalAt):
                    result.opaque.setdefault(refusal.node, refusal)
                    continue
                # What another piece has drawn out of its own code may do there in the next plan.
                for piece in [piece for piece in mine if piece.call is call] or mine:
                    self._refuse(result, [piece.fold], refusal, piece.call)

    def _require_apart(
        self, swapped: Collection[nn.Module], place: Call, opened: set[nn.Module], pieces: list[Piece]
    ) -> None:
        """No code that is written out in `place` is edited where it stands as well."""
        if not opened.isdisjoint(swapped):
            raise Refusal("another fold takes a module away whose code this one would have to write out")
        for piece in pieces:
            inner = [call for call in calls_around(piece.nodes[0], place) if call is not place]
            if piece.call is not place and any(len(self.calls[call.module]) > 1 for call in inner):
                raise Refusal("its code is called several times, and another fold would write out one of them")

    def _opened(self, piece: Piece, place: Call) -> set[nn.Module]:
        """The modules whose code is written into that of `place`: those around the nodes of a piece."""
        opened = {place.module}
        for node in piece.nodes:
            for call in node.call.stack() if node.call else ():
                if call is place:
                    break
                if has_user_code(call.module) or not self._inside(call, piece.nodes):
                    opened.add(call.module)
        # A module that only hands on a tensor of the fold (a drop path) has to prove that it always does.
        for call in self._passed({*piece.nodes[:-1], piece.base}, place):
            if self.proofs.looks(call) or not any(True for _ in call.nodes()):
                opened |= {outer.module for outer in call.stack(place) if has_user_code(outer.module)}
        return opened

    def _passed(self, nodes: Collection[Node], place: Call) -> list[Call]:
        """The calls inside that of `place` that hand on one of the nodes as it came in."""
        found = (call for node in nodes for call in self.handed_on[node])
        return [call for call in found if call is not place and place in call.stack()]

    def _inside(self, call: Call, nodes: Collection[Node]) -> bool:
        return all(node.constant or node in nodes for node in call.nodes())

    def _rewrite(self, call: Call, opened: set[nn.Module], pieces: list[Piece]) -> Rewrite:
        held = [module for module in opened if module in self.pinned and module is not call.module]
        if held:
            raise Refusal(f"{_path(self.calls, held[0])} must stay callable (a hook or `keep` watches it)")
        if not has_user_code(call.module) and self._read_elsewhere(call.module):
            raise Refusal(f"other code reads the parameters of {call.path}", "code that reads its own would fold")
        trace = self._rewritten(call, frozenset(opened))
        pieces = [replace(piece, fold=self.whole.get(piece.fold, piece.fold)) for piece in pieces]
        gone = {node for piece in pieces for node in piece.nodes}
        kept = returned(trace)
        for piece in pieces:
            self._require_editable(trace, piece, gone, kept)
        return Rewrite(trace, pieces)

    def _require_editable(self, trace: Trace, piece: Piece, gone: Collection[Node], kept: Collection[Node]) -> None:
        """Raise Refusal where code that stays needs what a piece would take away."""
        if piece.base not in trace.at:
            raise _RefusalAt(piece.nodes[0], "its forward is handed a list of tensors whose length it does not know")
        if not self.layout_sensitive.isdisjoint(piece.nodes) and (reader := unordered(trace, piece.base, piece.nodes)):
            raise _RefusalAt(reader, *CHANGES_LAYOUT)
        for node in piece.nodes:
            if node not in trace.at:
                continue
            if trace.sized(node) and node not in self._shown(piece.fold):
                raise _RefusalAt(node, f"{node.name} takes an argument that depends on the size of the input")
            if node is piece.sink:
                continue
            if node in self.unmade and node in kept:
                raise _RefusalAt(node, "its code also returns it, although nobody reads it")
            if node in self.unmade and handed_in(trace, node):
                raise _RefusalAt(node, "its code also calls a module with it that does not read it")
            if piece.same_size_end(node) is None and asked(trace, node, gone):
                raise _RefusalAt(next(reader for reader in piece.nodes if node in reader.operands), MEASURED)

    def _rewritten(self, call: Call, opened: frozenset[nn.Module]) -> Trace:
        """The trace that is written in the place of a forward: one that may check what its arguments hold."""
        try:
            return self.proofs.trace(call, opened)
        except Refusal as refusal:
            if not contains(call):
                raise
            try:
                return self.proofs.shaped(call, opened)
            except Refusal:
                raise refusal from None


class _RefusalAt(Refusal):
    """One operation that stands in the way; what is around it may still be edited."""

    def __init__(self, node: Node, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.node = node


def _is_own(call: Call, affine: Node) -> bool:
    """Whether the call is one of a module that normalises as torch does, with the parameters it holds itself."""
    own = [*call.module._parameters.values()]
    held = all(any(operand.tensor is each for each in own) for operand in affine.inputs[1:])
    return type(call.module).forward in _FORWARDS and held


_FORWARDS = tuple(kind.forward for kind in NORM_MODULES)


def _reads_within(module: nn.Module) -> bool:
    """Whether it may hand the weights of the modules inside it to one large kernel, as torch's own blocks do."""
    mine = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return any(kind.__module__.startswith("torch.nn.") and kind not in mine for kind in type(module).__mro__)


def lower(
    record: Record,
    plan: Plan,
    proofs: Proofs,
    pinned: Collection[nn.Module] = (),
    barriers: Collection[Node] = (),
) -> Edits:
    """The edits that carry a plan, or the constraints that the next plan has to respect.

    Requires a plan of this record; `proofs` of it; `pinned` modules keep their place and their identity; `barriers` are
    the tensors through which the plan leads no fold already. Leaves model and record as they are. Raises nothing: what
    cannot be edited is among the constraints, with its reason.
    """
    steps = {step for fold in plan.folds for step in fold.steps}
    return _Lowering(record, proofs, pinned, barriers).edits(plan.folds, plan.removed - steps)


def _part(result: Edits, pieces: Iterable[Piece]) -> bool:
    """Leave apart what is merged among the pieces of code that cannot be edited; whether anything is."""
    sinks = {sink for piece in pieces for fusion in piece.fold.shared for sink in fusion.sinks}
    result.unfusable |= sinks
    return bool(sinks)


def _by_place(at: Mapping[Piece, Call]) -> Mapping[Call, list[Piece]]:
    parts: dict[Call, list[Piece]] = defaultdict(list)
    for piece, place in at.items():
        parts[place].append(piece)
    return parts


def _handed(fold: Fold, around: Call | None) -> list[Node]:
    """The tensors of a fold that pass from one call made by `around` to another."""
    inner = {node: [call for call in calls_around(node, around) if call is not around][-1:] for node in fold.nodes}
    handed = {
        operand for node in fold.nodes for operand in node.operands if inner.get(operand, inner[node]) != inner[node]
    }
    return [node for node in fold.nodes if node in handed]


def _handed_on(calls: Iterable[Call]) -> Mapping[Node, list[Call]]:
    """The calls that return a tensor which they have not computed, for each such tensor."""
    found: dict[Node, list[Call]] = defaultdict(list)
    for call in calls:
        for node in nodes_in(call.result):
            if has_user_code(call.module) and call not in calls_around(node, call):
                found[node].append(call)
    return found


def only_read_by(nodes: Collection[Node], module: nn.Module, readers: Mapping[int, list[Node]]) -> bool:
    """Whether the module's tensors, in whatever code, are read by these operations alone."""
    tensors = (*module.parameters(), *module.buffers())
    return all(used_only_by(reader, nodes) for tensor in tensors for reader in readers.get(id(tensor), ()))


def _path(calls: dict[nn.Module, list[Call]], module: nn.Module) -> str:
    return calls[module][0].path or "the model itself"
