"""Models of ultralytics, from the yaml files of the package at their smallest scale; random weights, no download."""

from __future__ import annotations

import copy
import os
import tempfile
from typing import Any

from torch import nn

NAMES = (
    *"yolov3-tiny yolov5n yolov6n yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n".split(),
    *"yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-cls yolov8n-ghost yolov8n-p2 yolov8n-world yolov8n-worldv2".split(),
    *"yolo11n-seg yolo11n-pose yolo11n-obb yolo11n-cls yolo12n-cls yolo26n-seg yolo26n-pose yolo26n-obb".split(),
    *"yolov8n-cls-resnet50 yoloe-v8n yoloe-11n yolov9s yolov8n-rtdetr rtdetr-resnet50".split(),
    *"yolov5n-p6 yolov9c-seg rtdetr-l".split(),
)
# They sort what they return by scores, and rounding decides near ties.
SORTED = ("yolov10*", "yolo26*", "*rtdetr*")


def load() -> Any:
    """Import its models, so that it reads and writes nothing outside the package and stays offline."""
    if "YOLO_CONFIG_DIR" not in os.environ:
        os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="zoo-")  # it writes its settings there
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    from ultralytics.nn import tasks

    return tasks


def build(name: str) -> nn.Module:
    """The model `name` in train mode."""
    tasks = load()
    kinds = {
        "-cls": tasks.ClassificationModel,
        "-seg": tasks.SegmentationModel,
        "-pose": tasks.PoseModel,
        "-obb": tasks.OBBModel,
        "-world": tasks.WorldModel,
        "rtdetr": tasks.RTDETRDetectionModel,
        "yoloe-": tasks.YOLOEModel,
    }
    kind = next((kind for part, kind in kinds.items() if part in name), tasks.DetectionModel)
    model: nn.Module = kind(f"{name}.yaml", verbose=False)
    return model


def fused(model: nn.Module) -> nn.Module:
    """A copy of the model, fused by ultralytics itself.

    `fuse` also drops a head that only training needs, and with it an output; that step is disabled, so that the outputs
    can be compared.
    """
    from ultralytics.nn.modules import Detect

    fused_model: Any = copy.deepcopy(model)
    for module in fused_model.modules():
        if isinstance(module, Detect):
            module.fuse = lambda *_: None
    result: nn.Module = fused_model.fuse(verbose=False)
    return result.eval()
