"""For users of timm: its `reparameterize_model` with this package behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reparam.compare.levels import Verify
from reparam.convert import reparameterize


def reparameterize_model(
    model: nn.Module, inplace: bool = False, *, example_inputs: Any = None, verify: Verify = True
) -> nn.Module:
    """Drop-in for `timm.utils.reparameterize_model`: folds whatever is linear, and not only blocks with a `fuse()`.

    model: of timm, in eval mode. inplace: change it, and return it.
    example_inputs: as for `reparameterize`; without them one image of the size that the model was made for.
    verify: as for `reparameterize`.

    Raises what `reparameterize` does; timm's own function proves nothing and so refuses nothing.
    """
    given = _image(model) if example_inputs is None else example_inputs
    return reparameterize(model, given, inplace=inplace, verify=verify)


def _image(model: nn.Module) -> torch.Tensor | None:
    """One normal image; None where the model does not say which size it is for."""
    size = dict(getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        return None
    like = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0))
    drawn = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    return drawn.to(like.device, like.dtype)
