"""The sets of public networks that `zoo.py` converts: their names, and how one of them is built. No download."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo_models import QUICK, declare_torchvision_operators

BATCH = 2
SIZES = (128, 160, 224)  # tried in this order, the model's own size last
CHOSEN = Path(__file__).with_name("zoo_timm.txt")

# One or two of every file of torchvision.models: the smallest, and another where batch norms are an option of the file.
TORCHVISION = (
    *"alexnet vgg11 vgg11_bn resnet18 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3".split(),
    *"mnasnet0_5 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1".split(),
    *"regnet_y_400mf regnet_x_400mf efficientnet_b0 efficientnet_v2_s convnext_tiny vit_b_32 swin_t swin_v2_t".split(),
    "maxvit_t",
    *"fcn_resnet50 deeplabv3_mobilenet_v3_large deeplabv3_resnet50 lraspp_mobilenet_v3_large".split(),
    *"r3d_18 mc3_18 r2plus1d_18 s3d mvit_v1_b swin3d_t".split(),
    *"fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_fpn retinanet_resnet50_fpn_v2".split(),
    *"fcos_resnet50_fpn ssd300_vgg16 ssdlite320_mobilenet_v3_large".split(),
)


def names(of: str) -> list[str]:
    """The names of a set."""
    match of:
        case "quick":
            return [*QUICK, "ghostnetv3_100"]
        case "timm":
            return CHOSEN.read_text(encoding="utf-8").split()
        case "torchvision":
            return list(TORCHVISION)
    raise ValueError(f"there is no set {of!r}")


def made(of: str, name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """The network `name` of a set in eval mode, nothing left at its defaults, with the smallest images it takes."""
    from reparam.nn import draw_constants, draw_statistics

    declare_torchvision_operators()
    torch.manual_seed(seed)
    model = (_torchvision if of == "torchvision" else _timm)(name)
    draw_constants(model).eval()
    x = _accepted(model, list(_images(model, name)))
    # The variance of two numbers is often tiny, and what is divided by it nothing but noise.
    many = torch.randn(8 * BATCH, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    return draw_statistics(model, inputs=(many,)).eval(), x


def own_conversion(model: nn.Module) -> Callable[[], nn.Module] | None:
    """The conversion that the authors of a network ship with it, if they do; it works on a copy."""
    if not any(callable(getattr(m, way, None)) for m in model.modules() for way in _OWN_WAYS):
        return None
    from timm.utils.model import reparameterize_model

    return lambda: reparameterize_model(model).eval()


_OWN_WAYS = ("fuse", "reparameterize", "switch_to_deploy")


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _torchvision(name: str) -> nn.Module:
    """A model; of a detector the backbone, as what follows it is sorted and needs torchvision's compiled operations."""
    from torchvision import models

    builder = models.get_model_builder(name)
    untrained = {"weights_backbone": None} if ".detection." in builder.__module__ + "." or _segments(builder) else {}
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = builder(weights=None, **untrained, **options)
    backbone = getattr(model, "backbone", None)
    return backbone if ".detection." in builder.__module__ and isinstance(backbone, nn.Module) else model


def _segments(builder: Callable[..., nn.Module]) -> bool:
    return ".segmentation." in builder.__module__


def _images(model: nn.Module, name: str) -> Iterator[torch.Tensor]:
    """What to try, smallest first."""
    generator = torch.Generator().manual_seed(0)
    channels, *own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    if any(part in type(model).__name__ for part in ("VideoResNet", "S3D", "MViT", "SwinTransformer3d")):
        shapes = [(8, 64, 64), (16, 112, 112), (16, 224, 224)]
    else:
        shapes = [(size, size) for size in SIZES if size < own[-1]] + [tuple(own)]
    for shape in shapes:
        yield torch.randn(BATCH, channels, *shape, generator=generator)


def _accepted(model: nn.Module, candidates: list[torch.Tensor]) -> torch.Tensor:
    """The first of the candidates on which the model runs; the last one if none is."""
    for x in candidates[:-1]:
        try:
            with torch.no_grad():
                model(x)
        except Exception:  # noqa: BLE001 -- a model of a fixed size may refuse in any way
            continue
        return x
    return candidates[-1]


def choose() -> str:
    """The text of `zoo_timm.txt`: of every model file of timm the smallest model, by parameters; smallest first.

    Of a file with a conversion of its own, the smallest model of every family: of every name up to its first digit.
    Takes minutes: every model is built, without memory for its weights.
    """
    declare_torchvision_operators()
    import timm

    smallest: dict[tuple[str, str], tuple[int, str]] = {}
    for name in timm.list_models():
        if name.startswith("test_"):
            continue  # toys
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # noqa: BLE001 -- those that need real memory are never the smallest
            continue
        file = type(model).__module__
        key = (file, _family(name) if own_conversion(model) else "")
        smallest[key] = min(smallest.get(key, (10**12, "")), (sum(p.numel() for p in model.parameters()), name))
    return "".join(f"{name}\n" for _, name in sorted(smallest.values()))


def _family(name: str) -> str:
    found = re.match(r"[a-z]+", name)
    return found.group() if found else name
