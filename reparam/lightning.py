"""For users of Lightning: a callback that folds what has been trained and writes the artefact."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reparam.capture.inputs import Inputs
from reparam.capture.snapshot import copied
from reparam.compare.levels import Verify, level_of
from reparam.convert import reparameterize
from reparam.deploy.artefact import Saved, save
from reparam.deploy.files import require_writable
from reparam.errors import InputError


def _callback() -> Any:
    """The class of callbacks of the Lightning that is installed, under its new name or its old one."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError:
            continue
    raise InputError("Lightning is not installed; install it with: pip install 'reparam[lightning]'")


class FoldCallback(_callback()):  # type: ignore[misc]
    """Folds a part of the LightningModule when fitting ends, with the weights of that moment, and saves it.

    path: the .safetensors file of the artefact. part: the attribute that holds the network, such as "model" or
    "net.backbone". example_inputs: as for `reparameterize`; without them the module's `example_input_array`.
    verify: as for `reparameterize`.

    What could not be written or found is an InputError before training begins. The network that was trained is left as
    it is; `deployed` is the folded one.
    """

    def __init__(
        self,
        path: Path | str,
        part: str = "model",
        example_inputs: Any = None,
        *,
        verify: Verify = True,
        force: bool = False,
    ) -> None:
        super().__init__()
        self.saved = Saved.at(path)
        self.part = part
        self.example_inputs = example_inputs
        self.verify = verify
        self.force = force
        self.deployed: nn.Module | None = None

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Whatever is wrong with the arguments is wrong now, and not after a week of training."""
        level_of(self.verify)
        self._network(pl_module)
        self._inputs(pl_module)
        if trainer.is_global_zero:
            for path in (self.saved.weights, self.saved.provenance):
                require_writable(path, self.force)

    def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Fold and save, in one process alone."""
        if not trainer.is_global_zero:
            return
        network = copied(self._network(pl_module)).eval()
        like = next(network.parameters(), torch.empty(0))
        inputs = self._inputs(pl_module).map(lambda tensor: tensor.to(like.device))
        self.deployed = reparameterize(network, inputs, inplace=True, verify=self.verify)
        save(self.deployed, self.saved.weights, source={"trained by": type(pl_module).__name__}, force=self.force)

    def _network(self, pl_module: nn.Module) -> nn.Module:
        found: nn.Module | None = dict(pl_module.named_modules()).get(self.part) if self.part else None
        if found is None:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise InputError(
                f"FoldCallback(part={self.part!r}): {type(pl_module).__name__} has no such part; name one of {names}"
            )
        return found

    def _inputs(self, pl_module: nn.Module) -> Inputs:
        given = self.example_inputs
        if given is None:
            given = getattr(pl_module, "example_input_array", None)
        if given is None:
            raise InputError(
                "FoldCallback: what the network is called with is not known; give example_inputs=, or set "
                f"example_input_array on {type(pl_module).__name__}"
            )
        return Inputs.of(given)
