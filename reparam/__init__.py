"""Fold multi-branch networks into plain convolutions: exact or refused, never worse, always explained."""

from reparam import nn
from reparam.compare.bench import Comparison, benchmark
from reparam.compare.verification import Verification
from reparam.compare.verify import verify
from reparam.convert import reparameterize
from reparam.deploy.artefact import apply, load, save
from reparam.deploy.export import Exported, export
from reparam.deploy.undo import undo
from reparam.errors import (
    InputError,
    ModelError,
    Refusal,
    ReparamError,
    TrainModeError,
    VerificationError,
)
from reparam.plan.cost import MeasuredCost, StaticCost
from reparam.report.report import Report
from reparam.rewrite.origin import Origin

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Exported",
    "InputError",
    "MeasuredCost",
    "ModelError",
    "Origin",
    "Refusal",
    "ReparamError",
    "Report",
    "StaticCost",
    "TrainModeError",
    "Verification",
    "VerificationError",
    "apply",
    "benchmark",
    "export",
    "load",
    "nn",
    "reparameterize",
    "save",
    "undo",
    "verify",
]
