"""For users of Lightning: a callback that folds the trained model and writes the artefact."""

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
from reparam.deploy.artefact import save
from reparam.deploy.files import require_writable
from reparam.deploy.pair import Saved
from reparam.errors import InputError


def _callback() -> Any:
    """The base class of callbacks, from the Lightning package that is installed: the new one or the old one."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError:
            continue
    raise InputError("Lightning is not installed; install it with: pip install 'reparam[lightning]'")


class FoldCallback(_callback()):  # type: ignore[misc]
    """Folds a part of the LightningModule when fitting ends, and saves it.

    path: the .safetensors file of the artefact.
    part: the attribute that holds the network, such as "model" or "net.backbone".
    example_inputs: as for `reparameterize`; without them, the module's `example_input_array`.
    verify: as for `reparameterize`.
    force: overwrite.

    The trained network is not changed; the attribute `deployed` is the folded one. Before training begins, InputError
    is raised for a wrong `verify`, for a part or inputs that do not exist, and for files that cannot be written.
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
        """Checks the arguments: a mistake must not show after a week of training."""
        level_of(self.verify)
        self._network(pl_module)
        self._inputs(pl_module)
        if trainer.is_global_zero:
            for path in (self.saved.weights, self.saved.provenance):
                require_writable(path, self.force)

    def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Folds and saves, in the main process only."""
        if not trainer.is_global_zero:
            return
        network = copied(self._network(pl_module)).eval()
        device = next(network.parameters(), torch.empty(0)).device
        inputs = self._inputs(pl_module).map(lambda tensor: tensor.to(device))
        self.deployed = reparameterize(network, inputs, inplace=True, verify=self.verify)
        save(self.deployed, self.saved.weights, source={"trained by": type(pl_module).__name__}, force=self.force)

    def _network(self, pl_module: nn.Module) -> nn.Module:
        network: nn.Module | None = dict(pl_module.named_modules()).get(self.part) if self.part else None
        if network is None:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise InputError(
                f"FoldCallback(part={self.part!r}): {type(pl_module).__name__} has no such part; name one of {names}"
            )
        return network

    def _inputs(self, pl_module: nn.Module) -> Inputs:
        example_inputs = self.example_inputs
        if example_inputs is None:
            example_inputs = getattr(pl_module, "example_input_array", None)
        if example_inputs is None:
            raise InputError(
                "FoldCallback: there are no example inputs; give example_inputs=, or set example_input_array on "
                f"{type(pl_module).__name__}"
            )
        return Inputs.of(example_inputs)
