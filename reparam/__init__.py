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
from reparam.plan.cost import Cost, MeasuredCost, Price, StaticCost, Work
from reparam.report.report import Report
from reparam.rewrite.origin import Origin
from reparam.version import __version__ as __version__

__all__ = [
    "Comparison",
    "Cost",
    "Exported",
    "InputError",
    "MeasuredCost",
    "ModelError",
    "Origin",
    "Price",
    "Refusal",
    "ReparamError",
    "Report",
    "StaticCost",
    "TrainModeError",
    "Verification",
    "VerificationError",
    "Work",
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


def __dir__() -> list[str]:
    """The public names alone: the rooms are not for users."""
    return [*__all__, "__version__"]
