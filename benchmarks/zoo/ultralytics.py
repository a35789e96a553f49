"""Models of ultralytics, each from a yaml file of the package at its smallest scale: random weights, no download."""

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
# They sort what they return, by scores whose near ties another rounding decides otherwise.
SORTED = ("yolov10*", "yolo26*", "*rtdetr*")


def load() -> Any:
    """Its models. Nothing is read from, written to or asked of anything outside the package."""
    if "YOLO_CONFIG_DIR" not in os.environ:
        os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="zoo-")  # it writes its settings somewhere
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
    """What ultralytics itself makes of a model for deployment; a copy.

    It would also drop the head of a model that only training needs, and with it an output: that is no fusion, and is
    left out.
    """
    from ultralytics.nn.modules import Detect

    twin: Any = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, Detect):
            module.fuse = lambda *_: None
    made: nn.Module = twin.fuse(verbose=False)
    return made.eval()
