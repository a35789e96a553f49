"""One public network, converted: its folds and refusals, its times, and what is left of it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from torch import nn

import reparam
from benchmarks.common import forward, general
from benchmarks.zoo import sets
from benchmarks.zoo.rows import BROKEN, CONVERTED, CRASHED, REFUSED, WRONG, Row
from reparam.capture.graph import Node, Record
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.errors import ReparamError, VerificationError
from reparam.plan.liveness import alive
from reparam.report.outcome import Counts
from reparam.report.report import Report, counts


@cache
def source() -> str:
    """The version of the code that converts: a digest of all files of the package."""
    digest = hashlib.sha256()
    package = Path(reparam.__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def convert(set_name: str, name: str) -> Row:
    """The row of one network; runs in a process of its own."""
    try:
        model, x = sets.build(set_name, name)
        file = type(model).__module__.rpartition(".")[2]
        forward_seconds = min(_seconds(lambda: forward(model, x)) for _ in range(3))
    except Exception as error:  # noqa: BLE001 -- the network itself does not run, so there is nothing to convert
        return {"outcome": BROKEN, "error": _one_line(error)}
    row: Row = {"file": file, "size": "x".join(map(str, x.shape[2:])), "forward": forward_seconds}
    try:
        row["conversion"] = _seconds(lambda: reparam.reparameterize(model, x, verify=False))
        start = time.process_time()
        folded = reparam.reparameterize(model, x)
        row["verified_conversion"] = time.process_time() - start
        row["dtype"] = str(x.dtype).removeprefix("torch.")
        return {**row, "outcome": CONVERTED, **_described(folded, x), **_own_conversion(model, x)}
    except VerificationError as error:
        return {**row, "outcome": WRONG, "error": _one_line(error)}
    except ReparamError as error:
        return {**row, "outcome": REFUSED, "error": _one_line(error)}
    except Exception as error:  # noqa: BLE001 -- the bug that this script looks for
        return {**row, "outcome": CRASHED, "error": _one_line(error)}


def _described(folded: nn.Module, x: torch.Tensor) -> Row:
    report = _report(folded)
    again = _report(reparam.reparameterize(folded, x, verify=False))
    live = _live(record(folded, Inputs.of(x)))
    verification = report.verification
    return {
        "folds": len(report.folds),
        "folds_again": len(again.folds),
        "before": asdict(report.before),
        "after": asdict(counts(live, folded)),
        "refusals": dict(Counter(general(line.reason) for line in report.refusals)),
        "norms_left": dict(Counter(_reasons_of_norms(live, again))),
        "fp64": verification and verification.fp64_error,
        "own": verification and verification.own_error,
        "noise": verification and verification.noise_floor,
    }


def _own_conversion(model: nn.Module, x: torch.Tensor) -> Row:
    """What is left after the conversion that the authors of the network ship, if they ship one."""
    own = sets.own_conversion(model)
    if own is None:
        return {}
    try:
        return {"theirs": asdict(_counts(own(), x))}
    except Exception as error:  # noqa: BLE001 -- other people's code may fail in any way
        return {"theirs_error": _one_line(error)}


def _counts(model: nn.Module, x: torch.Tensor) -> Counts:
    return counts(_live(record(model, Inputs.of(x))), model)


def _live(recorded: Record) -> list[Node]:
    needed = alive(recorded)
    return [node for node in recorded.nodes if node in needed]


def _reasons_of_norms(live: Iterable[Node], again: Report) -> Iterable[str]:
    """Why each batch norm is left: it was refused, or what reads it was, or its neighbours are not linear."""
    refusals = {(line.where, line.operation): general(line.reason) for line in again.refusals}

    def refusal(node: Node) -> str | None:
        return refusals.get((node.path, _name(node)))

    for node in live:
        if _name(node) == "batch_norm":
            behind = next(
                (f"{_name(reader)} behind it: {refusal(reader)}" for reader in node.readers if refusal(reader)), ""
            )
            readers = ", ".join(sorted({_name(reader) for reader in node.readers}))
            neighbours = f"no layer beside it: it reads {_name(node.operands[0])} and is read by {readers}"
            yield refusal(node) or behind or neighbours


def _name(node: Node) -> str:
    return node.op if node.function is not None else "the input"


def _report(model: nn.Module) -> Report:
    report = model.reparam_report
    assert isinstance(report, Report)
    return report


def _seconds(action: Callable[[], object]) -> float:
    """Processor time: there is one thread, and other processes may be at work."""
    start = time.process_time()
    action()
    return time.process_time() - start


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
