"""Runs of a model, recorded one after the other, from which the model comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

import torch
from torch import nn

from reparam.capture.caches import cached_functions, emptied
from reparam.capture.compiled import python_code
from reparam.capture.graph import Record
from reparam.capture.inputs import Inputs
from reparam.capture.likeness import Likeness
from reparam.capture.questions import asked, names
from reparam.capture.recorder import Recorder
from reparam.capture.snapshot import ModuleSnapshot, restored
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
            return recorder.finish(result, self.snapshots)
        except Exception as error:  # noqa: BLE001 - a user's forward may raise anything
            return recorder.failed(error)
        finally:
            recorder.decisions.close()
            for handle in handles:
                handle.remove()

    def sees_sizes(self, inputs: Inputs, recorded: Record) -> bool:
        """Whether code does something else with plain sizes than in a recorded run (`type(width) is int`)."""
        if self.plain or not recorded.calls or not recorded.sizes_asked:
            return False
        self.plain = True
        with_plain = self.run(inputs)
        self.plain = False
        likeness = Likeness(plain=True)
        return bool(with_plain.error) or likeness.key(with_plain.calls[0]) != likeness.key(recorded.calls[0])

    def changed(self) -> list[nn.Module]:
        """The modules that hold something else than before the first run."""
        return [each.module for each in self.snapshots if next(each.stored_since(), None) is not None]
