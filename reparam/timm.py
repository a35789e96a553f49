"""For users of timm: a replacement for its `reparameterize_model`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reparam.compare.levels import Verify
from reparam.convert import reparameterize


def reparameterize_model(
    model: nn.Module, inplace: bool = False, *, example_inputs: Any = None, verify: Verify = True
) -> nn.Module:
    """A drop-in for `timm.utils.reparameterize_model` that folds every linear region, not only blocks with `fuse()`.

    model: of timm, in eval mode.
    inplace: change the model, and return it.
    example_inputs: as for `reparameterize`; without them, one image of the size in the model's `pretrained_cfg`.
    verify: as for `reparameterize`.

    Raises what `reparameterize` does. timm's own function checks nothing and raises none of that.
    """
    inputs = _image(model) if example_inputs is None else example_inputs
    return reparameterize(model, inputs, inplace=inplace, verify=verify)


def _image(model: nn.Module) -> torch.Tensor | None:
    """One image of random values; None where the model names no size."""
    size = dict(getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        return None
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    return image.to(weight.device, weight.dtype)
