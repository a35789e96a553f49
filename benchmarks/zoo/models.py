"""The timm networks of benchmarks and tests, with random weights and drawn statistics. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

ZOO = (
    "repvgg_a0",
    "mobileone_s0",
    "mobileone_s1",
    "fastvit_t8",
    "fastvit_mci0",
    "repvit_m0_9",
    "repghostnet_050",
    "ghostnetv3_100",
    "resnet50d",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "inception_v3",
    "nextvit_small",
    "starnet_s1",
    "densenet121",
)
QUICK = ("repvgg_a0", "mobileone_s0", "mobilenetv3_small_050")

# `import torchvision` asks for these operators of its compiled library, although it can run without that library.
_OPERATORS_OF_IMPORT = ("nms", "qnms")
_libraries: list[torch.library.Library] = []  # a declaration lives as long as its Library object


def declare_torchvision_operators() -> None:
    """Make torchvision, and so timm, importable where its compiled library does not load with this torch.

    A torchvision built for CUDA does not load with a torch built for the CPU. Declares the operators, and implements
    the one that detectors call. Does nothing where the compiled library loads.
    """
    if _libraries or _compiled_library_loads():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS_OF_IMPORT:
        library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _suppressed, "CPU")
    _libraries.append(library)


def _suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression, best box first: drops boxes that overlap a better one by more than the threshold."""
    lower, upper = boxes[:, None, :2].maximum(boxes[:, :2]), boxes[:, None, 2:].minimum(boxes[:, 2:])
    common = (upper - lower).clamp(min=0).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    overlaps = common / (areas[:, None] + areas - common) > threshold
    best: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if not overlaps[i, best].any():
            best.append(i)
    return torch.tensor(best, dtype=torch.int64)


def _compiled_library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")  # does not import it
    if spec is None or spec.origin is None:
        return True  # there is no torchvision to help
    try:
        for path in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(path))
    except OSError:
        return False
    return True


def build(name: str, seed: int = 0) -> nn.Module:
    """The timm model `name` in eval mode, with random weights and drawn constants and statistics."""
    declare_torchvision_operators()
    import timm

    from reparam.nn import draw_constants, draw_statistics

    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, pretrained=False)
    # With statistics that fit no input, the activations of a deep untrained network overflow or vanish.
    return draw_statistics(draw_constants(model), inputs=(example_input(model),)).eval()


def example_input(model: nn.Module, batch: int = 1, size: int | None = None, seed: int = 0) -> torch.Tensor:
    """A batch of normal numbers, (batch, C, H, W); H and W are `size`, or what the model was made for."""
    channels, height, width = model.default_cfg["input_size"]  # type: ignore[index]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size or height, size or width, generator=generator)
