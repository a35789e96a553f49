"""Runs of a model, recorded one after the other, from which the model comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reparam.capture.caches import cached_functions, emptied
from reparam.capture.compiled import python_code
from reparam.capture.graph import Record
from reparam.capture.inputs import Inputs
from reparam.capture.likeness import Likeness
from reparam.capture.questions import asked, names
from reparam.capture.recorder import Recorder
from reparam.capture.snapshot import ModuleSnapshot, restored
from reparam.capture.tree import tensors
from reparam.errors import ModelError


def record(model: nn.Module, inputs: Inputs) -> Record:
    """Run `model` once on `inputs` and write down what it computes. The model is left as it was.

    Raises ModelError if the model fails on the inputs.
    """
    with recording(model) as run:
        return run.require(inputs)


@contextmanager
def recording(model: nn.Module) -> Iterator[Runs]:
    """Runs of a model, each of which finds what the ones before have left. In the end the model is as it was."""
    with restored(model) as snapshots:
        yield Runs(model, snapshots)


class Runs:
    """Runs of one model, recorded. plain: code is given plain sizes, as it fails with sizes that remember."""

    def __init__(self, model: nn.Module, snapshots: list[ModuleSnapshot]) -> None:
        self.model = model
        self.snapshots = snapshots
        self.plain = False
        self._cached = cached_functions(model)
        self._names = names()
        self._returned: list[Tensor] = []  # by the last run that was recorded to its end
        self._taken: tuple[Inputs, list[Tensor]] | None = None  # what was returned when nothing was recorded

    def require(self, inputs: Inputs) -> Record:
        """The record of a run on `inputs`. Raises ModelError if the model fails on them."""
        recorded = self.run(inputs)
        if recorded.error:
            self.plain = True
            recorded = self.run(inputs)
        if recorded.error:
            raise ModelError(
                f"the model fails on its example inputs ({inputs}) in eval mode: {recorded.error}; "
                "give the inputs that its forward takes: a tensor, a tuple of arguments or a dict of keyword arguments"
            )
        return recorded

    def run(self, inputs: Inputs, lie: Set[str] = frozenset()) -> Record:
        """The record of a run; where the model has failed, as far as it came. `lie`: questions answered otherwise."""
        recorder = Recorder(self.model, self.plain, lie, self.changed())
        handles = recorder.watch(self.model)
        try:
            copies = inputs.map(recorder.input_copy)
            with (
                emptied(self._cached),
                python_code(),
                torch.no_grad(),
                asked(recorder.answer, self._names, {function: recorder.cached(function) for function in self._cached}),
                recorder,
            ):
                result = copies.call(self.model)
            self._returned = [tensor for _, tensor in tensors(result)]
            return recorder.finish(result, self.snapshots)
        except Exception as error:  # noqa: BLE001 - a user's forward may raise anything
            return recorder.failed(error)
        finally:
            recorder.decisions.close()
            for handle in handles:
                handle.remove()

    def takes(self, inputs: Inputs) -> bool:
        """Whether the model runs on `inputs`."""
        return self._bare(inputs) is not None

    def sees_sizes(self, inputs: Inputs, recorded: Record) -> bool:
        """Whether code does something else with plain sizes than in the last recorded run (`type(width) is int`)."""
        if self.plain or not recorded.calls or not recorded.sizes_asked:
            return False
        returned = self._bare(inputs)
        if returned is not None and len(returned) == len(self._returned) and all(map(_equal, returned, self._returned)):
            return False
        self.plain = True
        with_plain = self.run(inputs)
        self.plain = False
        likeness = Likeness(plain=True)
        return bool(with_plain.error) or likeness.key(with_plain.calls[0]) != likeness.key(recorded.calls[0])

    def _bare(self, inputs: Inputs) -> list[Tensor] | None:
        """The tensors that the model returns where nothing is recorded; None where it fails."""
        if self._taken is None or self._taken[0] is not inputs:
            copies = inputs.map(lambda tensor: tensor.detach().clone())
            with emptied(self._cached), python_code():
                try:
                    self._taken = inputs, [tensor for _, tensor in tensors(copies.call(self.model))]
                except Exception:  # noqa: BLE001 - a user's forward may raise anything
                    return None
        return self._taken[1]

    def changed(self) -> list[nn.Module]:
        """The modules that hold something else than before the first run."""
        return [each.module for each in self.snapshots if next(each.stored_since(), None) is not None]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, bit by bit, as far as torch can say."""
    plain = one.layout == other.layout == torch.strided
    return plain and one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
