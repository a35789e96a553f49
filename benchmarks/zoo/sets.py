"""The sets of public networks: their names, and how one of them is built. Nothing is downloaded."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import transformers, ultralytics
from benchmarks.zoo.models import QUICK, declare_torchvision_operators
from reparam.capture.tree import tensors

BATCH = 2
CHOSEN = Path(__file__).with_name("timm.txt")

# One or two of every file of torchvision.models: the smallest, and one with batch norms where they are optional.
# The slow ones last.
TORCHVISION = (
    *"squeezenet1_0 squeezenet1_1 shufflenet_v2_x0_5 mobilenet_v3_small mnasnet0_5 mobilenet_v2 resnet18".split(),
    *"regnet_y_400mf regnet_x_400mf efficientnet_b0 densenet121 googlenet inception_v3 resnext50_32x4d".split(),
    *"lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large alexnet vgg11_bn efficientnet_v2_s".split(),
    *"convnext_tiny swin_t swin_v2_t maxvit_t fcn_resnet50 deeplabv3_resnet50 wide_resnet50_2 vit_b_32 vgg11".split(),
    *"mc3_18 r3d_18 r2plus1d_18 swin3d_t mvit_v1_b s3d".split(),
)
# Whole detectors: the code after the heads depends on the data and sorts.
DETECTION = (
    *"ssdlite320_mobilenet_v3_large fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn".split(),
    *"fcos_resnet50_fpn retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 fasterrcnn_resnet50_fpn_v2".split(),
    *"maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn ssd300_vgg16".split(),
)


def load(set_names: Sequence[str]) -> None:
    """Import the packages of these sets, as far as they are installed."""
    declare_torchvision_operators()
    for set_name in set_names:
        with suppress(ImportError):
            _set(set_name).load()


def names(set_name: str) -> list[str]:
    """The names of a set, slow ones last."""
    return list(_set(set_name).names())


def build(set_name: str, name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """The network `name` of a set in eval mode, with drawn weights and statistics, and the smallest images it accepts.

    Both are float64 where the network sorts what it returns: in a lower dtype rounding decides near ties. Weights are
    drawn again where every output is constant (after a last relu), because a comparison would say nothing.
    """
    declare_torchvision_operators()
    network_set = _set(set_name)
    for attempt in range(_ATTEMPTS):
        model, x = _draw(network_set, name, seed + attempt)
        if not _is_constant(model, x):
            break
    is_sorted = any(fnmatchcase(name, pattern) for pattern in network_set.sorted)
    return (model.double(), x.double()) if is_sorted else (model, x)


_ATTEMPTS = 5


def _is_constant(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether every output holds one number throughout."""
    with torch.no_grad():
        outputs = [value for _, value in tensors(model(x)) if value.is_floating_point()]
    return bool(outputs) and all(bool((value == value.flatten()[:1]).all()) for value in outputs)


def _draw(network_set: _Set, name: str, seed: int) -> tuple[nn.Module, torch.Tensor]:
    from reparam.nn import draw_constants, draw_statistics

    torch.manual_seed(seed)
    model = network_set.build(name)
    draw_constants(model, seed).eval()
    x = _accepted(model, list(_images(model, network_set.sizes, network_set.shapes.get(name))))
    # The variance of two numbers is often tiny, and dividing by it leaves nothing but noise.
    many = torch.randn(8 * BATCH, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    return draw_statistics(model, seed, inputs=(many,)).eval(), x


def own_conversion(model: nn.Module) -> Callable[[], nn.Module] | None:
    """The conversion that the authors of a network ship with it; None where there is none. It works on a copy."""
    if type(model).__module__.startswith("ultralytics."):
        return lambda: ultralytics.fused(model)
    if not any(callable(getattr(m, way, None)) for m in model.modules() for way in _OWN_WAYS):
        return None
    from timm.utils.model import reparameterize_model

    return lambda: reparameterize_model(model).eval()


_OWN_WAYS = ("fuse", "reparameterize", "switch_to_deploy")


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _load_torchvision() -> object:
    return importlib.import_module("torchvision")


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    builder = models.get_model_builder(name)
    if ".segmentation." in builder.__module__:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model: nn.Module = builder(weights=None, **options)
    return model


def _detector(name: str) -> nn.Module:
    """A detector that returns a few boxes for small images, whatever their scores."""
    from torchvision.ops import boxes

    boxes._assert_has_ops = lambda: None  # it would stop where the operation is not the compiled one
    regions = "rcnn" in name
    options: dict[str, Any] = {"weights_backbone": None, "num_classes": 2 if "keypoint" in name else 5}
    options["box_detections_per_img" if regions else "detections_per_img"] = 3
    options["box_score_thresh" if regions else "score_thresh"] = 0.0
    if regions:
        options |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 5}
    else:
        options["topk_candidates"] = 20
    if not name.startswith("ssd"):
        options |= {"min_size": 64, "max_size": 128}
    return _torchvision(name, **options)


@dataclass(frozen=True)
class _Set:
    """A set of networks.

    names: in the order of conversion; build: makes the network of a name.
    sizes: of images, tried before the model's own size; shapes: of the examples that are not images of any size.
    sorted: patterns of the names whose networks sort what they return; load: imports the package of the set.
    """

    names: Callable[[], list[str]]
    build: Callable[[str], nn.Module]
    sizes: tuple[int, ...] = (128, 160, 224)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sorted: tuple[str, ...] = ()
    load: Callable[[], object] = lambda: importlib.import_module("timm")


_SETS = {
    "quick": _Set(lambda: [*QUICK, "ghostnetv3_100"], _timm),
    "timm": _Set(lambda: CHOSEN.read_text(encoding="utf-8").split(), _timm),
    "torchvision": _Set(lambda: list(TORCHVISION), _torchvision, load=_load_torchvision),
    "detection": _Set(lambda: list(DETECTION), _detector, sorted=("*",), load=_load_torchvision),
    "transformers": _Set(
        lambda: list(transformers.NAMES),
        transformers.build,
        sizes=(64, 128, 160),
        shapes=transformers.SHAPES,
        sorted=transformers.SORTED,
        load=transformers.load,
    ),
    "ultralytics": _Set(
        lambda: list(ultralytics.NAMES),
        ultralytics.build,
        sizes=(64, 128, 160),
        sorted=ultralytics.SORTED,
        load=ultralytics.load,
    ),
}
SETS = tuple(_SETS)


def _set(set_name: str) -> _Set:
    if set_name not in _SETS:
        raise ValueError(f"unknown set {set_name!r}; the sets are {', '.join(_SETS)}")
    return _SETS[set_name]


def _images(model: nn.Module, sizes: tuple[int, ...], given: tuple[int, ...] | None) -> Iterator[torch.Tensor]:
    """Candidates for the example, smallest first."""
    generator = torch.Generator().manual_seed(0)
    if given is not None:
        yield torch.randn(BATCH, *given, generator=generator)
        return
    channels, *own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    if any(part in type(model).__name__ for part in ("VideoResNet", "S3D", "MViT", "SwinTransformer3d")):
        shapes = [(4, 32, 32), (8, 64, 64), (16, 112, 112), (16, 224, 224)]
    else:
        shapes = [(size, size) for size in sizes if size < own[-1]] + [tuple(own)]
    for shape in shapes:
        yield torch.randn(BATCH, channels, *shape, generator=generator)


def _accepted(model: nn.Module, candidates: list[torch.Tensor]) -> torch.Tensor:
    """The first candidate that the model accepts; the last one if it accepts none."""
    for x in candidates[:-1]:
        try:
            with torch.no_grad():
                model(x)
        except Exception:  # noqa: BLE001 -- a model of a fixed size may fail in any way
            continue
        return x
    return candidates[-1]


def choose() -> str:
    """The text of `timm.txt`: the smallest model of every model file of timm, by parameters; smallest first.

    Of a file with a conversion of its own, the smallest model of every family, which is the name up to its first digit.
    Takes minutes: every model is built, without memory for its weights.
    """
    declare_torchvision_operators()
    import timm

    smallest: dict[tuple[str, str], tuple[int, str]] = {}
    for name in timm.list_models():
        if name.startswith("test_"):
            continue  # made for tests of timm
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # noqa: BLE001 -- models that need real memory are never the smallest
            continue
        file = type(model).__module__
        key = (file, _family(name) if own_conversion(model) else "")
        smallest[key] = min(smallest.get(key, (10**12, "")), (sum(p.numel() for p in model.parameters()), name))
    return "".join(f"{name}\n" for _, name in sorted(smallest.values()))


def _family(name: str) -> str:
    letters = re.match(r"[a-z]+", name)
    return letters.group() if letters else name
