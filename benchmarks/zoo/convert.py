"""Converts public networks by the hundred and says what became of each: folds, refusals, errors, what is left.

    python benchmarks/zoo.py --set timm torchvision --out zoo.jsonl --minutes 60
    python benchmarks/zoo.py --out zoo.jsonl --table

Each network is converted in a process of its own, with a time limit, so that none can spoil another. One line of JSON
per network is added to the file as soon as it is known; what is there already, of the same code, is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import reparam
from benchmarks.zoo import sets
from reparam.capture.graph import Node, Record
from reparam.capture.inputs import Inputs
from reparam.capture.recorder import record
from reparam.errors import ReparamError, VerificationError
from reparam.plan.plan import plan
from reparam.report.report import Report, counts

CONVERTED, REFUSED, WRONG, CRASHED, LATE, BROKEN = (
    "converted",
    "refused as a whole",
    "wrong",
    "crashed",
    "out of time",
    "does not run by itself",
)
Row = dict[str, Any]
SEVERAL = 2  # exit status: the rows are not of one version of the code


# One network.


def converted(of: str, name: str) -> Row:
    """What becomes of one network. Runs in a process of its own."""
    try:
        model, x = sets.made(of, name)
        file = type(model).__module__.rpartition(".")[2]
        forward = _seconds(lambda: _run(model, x), times=3)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is not ours
        return {"outcome": BROKEN, "error": _line(error)}
    row: Row = {"file": file, "size": "x".join(map(str, x.shape[2:])), "forward": forward}
    try:
        row["conversion"] = _seconds(lambda: reparam.reparameterize(model, x, verify=False))
        start = time.process_time()
        folded = reparam.reparameterize(model, x)
        row["verified_conversion"] = time.process_time() - start
        row["dtype"] = str(x.dtype).removeprefix("torch.")
        return {**row, "outcome": CONVERTED, **_described(folded, x, _report(folded)), **_theirs(model, x)}
    except VerificationError as error:
        return {**row, "outcome": WRONG, "error": _line(error)}
    except ReparamError as error:
        return {**row, "outcome": REFUSED, "error": _line(error)}
    except Exception as error:  # noqa: BLE001 -- the bug that this script looks for
        return {**row, "outcome": CRASHED, "error": _line(error)}


def _described(folded: nn.Module, x: torch.Tensor, done: Report) -> Row:
    checked = done.verification
    again = _report(reparam.reparameterize(folded, x, verify=False))
    recorded = record(folded, Inputs.of(x))
    live = _live(recorded)
    return {
        "folds": len(done.folds),
        "folds_again": len(again.folds),
        "before": asdict(done.before),
        "after": asdict(counts(live, folded)),
        "refusals": dict(Counter(_general(line.reason) for line in done.refusals)),
        "norms_left": dict(Counter(_norms_left(live, again))),
        "fp64": checked and checked.fp64_error,
        "own": checked and checked.own_error,
        "noise": checked and checked.noise_floor,
    }


def _theirs(model: nn.Module, x: torch.Tensor) -> Row:
    """What the authors' own conversion leaves, where there is one."""
    convert = sets.own_conversion(model)
    if convert is None:
        return {}
    try:
        return {"theirs": asdict(_counted(convert(), x))}
    except Exception as error:  # noqa: BLE001 -- theirs may fail in any way
        return {"theirs_error": _line(error)}


def _counted(model: nn.Module, x: torch.Tensor) -> Any:
    recorded = record(model, Inputs.of(x))
    return counts(_live(recorded), model)


def _live(recorded: Record) -> list[Node]:
    needed = plan(recorded, recorded.walls).live
    return [node for node in recorded.nodes if node in needed]


def _norms_left(live: Iterable[Node], again: Report) -> Iterable[str]:
    """Why each batch norm is still there: it was refused, or what reads it, or its neighbours are not linear."""
    why = {(line.where, line.operation): _general(line.reason) for line in again.refusals}

    def refused(node: Node) -> str | None:
        path = node.call.path if node.call is not None else ""
        return why.get((path or "the model itself", _name(node)))

    for node in live:
        if _name(node) == "batch_norm":
            readers = sorted({_name(reader) for reader in node.readers})
            reasons = [f"{_name(r)} behind it: {refused(r)}" for r in node.readers if refused(r)]
            alone = f"nothing to fold with: from {_name(node.operands[0])} to {', '.join(readers)}"
            yield refused(node) or next(iter(reasons), alone)


def _name(node: Node) -> str:
    return node.op if node.function is not None else "the input"


def _general(reason: str) -> str:
    """A reason without the names and numbers of one network."""
    reason = re.sub(r"the forward of (\S+ )?\(?\w+\)? cannot", "the forward cannot", reason)
    reason = re.sub(r"(stops|does not reach|calls|where|goes on with) .*", r"\1 ...", reason)
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "N", reason)


def _report(model: nn.Module) -> Report:
    done = model.reparam_report
    assert isinstance(done, Report)
    return done


def _run(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def _seconds(action: Callable[[], object], times: int = 1) -> float:
    """The processor time of the shortest of some runs; there is one thread, and others may be at work."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# All of them.


@cache
def source() -> str:
    """What the code that converts is: a digest of all of its files."""
    digest = hashlib.sha256()
    package = Path(reparam.__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class _Apart:
    """A conversion in a process of its own: a fork of this one, which has imported everything, and has no threads."""

    of: str
    name: str
    process: BaseProcess
    answer: Connection
    limit: float
    end: float

    @classmethod
    def begun(cls, of: str, name: str, limit: float) -> _Apart:
        fork = multiprocessing.get_context("fork")
        answer, told = fork.Pipe(duplex=False)
        process = fork.Process(target=_tell, args=(told, of, name), daemon=True)
        process.start()
        told.close()
        return cls(of, name, process, answer, limit, time.monotonic() + limit)

    def row(self) -> Row:
        """What it has found, or why there is nothing; it is over then."""
        named = {"source": source(), "set": self.of, "model": self.name}
        try:
            if not self.answer.poll():
                return {**named, "outcome": LATE, "error": f"took more than {self.limit:g} s"}
            return {**named, **self.answer.recv()}
        except EOFError:
            self.process.join()
            return {**named, "outcome": CRASHED, "error": f"the process ended with {self.process.exitcode}"}
        finally:
            self.process.kill()
            self.process.join()
            self.answer.close()


def _tell(told: Connection, of: str, name: str) -> None:
    """In the process apart: nothing but the row goes out."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    os.dup2(silence, sys.stderr.fileno())
    row = converted(of, name)
    told.send({**row, "seconds": time.process_time()})


def converted_all(wanted: Sequence[tuple[str, str]], options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the wanted networks as they are known, until the time is up; what is under way is waited for."""
    end = time.monotonic() + 60 * options.minutes
    waiting, running = list(wanted)[::-1], list[_Apart]()
    while True:
        while waiting and len(running) < options.jobs and time.monotonic() < end:
            limit = min(options.limit_seconds, end - time.monotonic())
            running.append(_Apart.begun(*waiting.pop(), limit))
        if not running:
            return
        ready = wait([each.answer for each in running], max(0.0, min(each.end for each in running) - time.monotonic()))
        for each in [each for each in running if each.answer in ready or each.end <= time.monotonic()]:
            running.remove(each)
            row = each.row()
            if (
                row["outcome"] != LATE or each.limit == options.limit_seconds
            ):  # else the time of all was up, not its own
                yield row


def read(file: Path) -> list[Row]:
    """The rows of a file, the last one of each network; a line that was cut off is dropped."""
    rows: dict[tuple[str, str], Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["set"], row["model"]] = row
    return list(rows.values())


def _append(file: Path, row: Row) -> None:
    with file.open("a", encoding="utf-8") as out:  # one write: a line is there or it is not
        out.write(json.dumps(row) + "\n")


# What people read.


def table(rows: Sequence[Row]) -> str:
    """The rows and what they amount to, in markdown."""
    made_by = ", ".join(sorted({row["source"] for row in rows})) or "none"
    parts = [_INTRODUCTION.replace("SOURCE", made_by), _summary(rows)]
    for of in dict.fromkeys(row["set"] for row in rows):
        lines = [_cells(row) for row in sorted(rows, key=lambda row: row["model"]) if row["set"] == of]
        parts.append(f"## {of}\n\n" + _markdown(_HEADERS, [line for line in lines if line]))
    return "\n\n".join(parts) + "\n"


def _versions() -> str:
    """The packages that the networks come from, as far as they are installed here."""
    found = []
    for package in ("torch", "timm", "torchvision", "transformers", "ultralytics"):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


_INTRODUCTION = f"""# The zoo

Public networks with random weights and drawn statistics, converted by `reparam.reparameterize` with all its checks.
Made by

    python benchmarks/zoo.py --set transformers ultralytics detection timm torchvision --out zoo.jsonl
    python benchmarks/zoo.py --out zoo.jsonl --table

with {_versions()} on a CPU, one thread, batches of {sets.BATCH}.

- timm: of every model file the smallest model, and of a file that ships a conversion of its own one of every family
  (`benchmarks/zoo/timm.txt`).
- torchvision: one or two of every file.
- detection: the detectors of torchvision as a whole, their boxes included.
- transformers: vision models from small configurations (`benchmarks/zoo/transformers.py`).
- ultralytics: the smallest scale of its yaml files (`benchmarks/zoo/ultralytics.py`). Its own conversion is `fuse()`,
  without the heads that it drops.

The images are the smallest of a few sizes (64 to 224 pixels) and the model's own that it accepts. Networks that sort
what they return (all of detection, a few others) are converted in float64: in float32 rounding decides near ties. What
runs after the conversion is counted in a new recording of the converted model, not taken from the report; so is what
their own conversion leaves. "BN" counts calls of batch norms, "elementwise" sums and products.

- *fp64 error*: largest difference of the outputs in float64, relative to the largest output.
- *error / original's own*: error in the model's own dtype over that of the original, both against float64.
- *conversion / forward*: processor time of one conversion over that of one forward pass, without and with checks.

Every row was made by the same code: the digest of `reparam/` was `SOURCE` (`zoo.source()`)."""

_HEADERS = (
    "model", "file", "pixels", "folds", "convs and linears", "BN", "elementwise", "their own conversion leaves",
    "fp64 error", "error / original's own", "conversion / forward", "with checks",
)  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    if row["outcome"] != CONVERTED:
        return ()
    before, after, theirs = row["before"], row["after"], row.get("theirs")
    changes = [_change(before[key], after[key]) for key in ("convs", "norms", "elementwise")]
    own = " / ".join(str(theirs[key]) for key in ("convs", "norms", "elementwise")) if theirs else ""
    return (
        row["model"],
        row["file"],
        row["size"] + (" float64" if row.get("dtype") == "float64" else ""),
        str(row["folds"]),
        *changes,
        own or ("fails" if row.get("theirs_error") else ""),
        "" if row["fp64"] is None else f"{row['fp64']:.0e}",
        "" if not row["noise"] else f"{row['own'] / row['noise']:.2f}",
        f"{row['conversion'] / row['forward']:.1f}",
        f"{row['verified_conversion'] / row['forward']:.0f}",
    )


def _change(before: int, after: int) -> str:
    return f"{before} → {after}" if before != after else str(before)


def _summary(rows: Sequence[Row]) -> str:
    done = [row for row in rows if row["outcome"] == CONVERTED]
    outcomes = Counter((row["set"], row["outcome"]) for row in rows)
    more = [row for row in done if row.get("theirs") and _worse(row)]
    failed = [(row["model"], row["outcome"], row["error"][:200].replace("|", "/")) for row in rows if row not in done]
    unsettled = [row["model"] for row in done if row["folds_again"]]
    before, after = (sum(row[when]["norms"] for row in done) for when in ("before", "after"))
    text = [
        _markdown(("set", "outcome", "models"), [(*key, str(n)) for key, n in sorted(outcomes.items())]),
        f"Folds: {sum(row['folds'] for row in done)}. Batch norms: {before} before, {after} after.",
        f"Networks with a conversion of their own: {sum('theirs' in row for row in done)}; of these keep more "
        f"convolutions, batch norms or elementwise calls than that leaves: "
        f"{', '.join(row['model'] for row in more) or 'none'}.",
        f"A second conversion finds something to fold: {', '.join(unsettled) or 'none'}.",
        f"Not run: {', '.join(_missing(rows)) or 'none'}.",
        "## Not converted\n\n" + (_markdown(("model", "outcome", "why"), failed) if failed else "None."),
        "## Batch norms left\n\n" + _counted_reasons(done, "norms_left"),
        "## Refusals\n\n" + _counted_reasons(done, "refusals"),
    ]
    return "\n\n".join(text)


def _missing(rows: Sequence[Row]) -> list[str]:
    seen = {(row["set"], row["model"]) for row in rows}
    return [name for of in dict.fromkeys(of for of, _ in seen) for name in sets.names(of) if (of, name) not in seen]


def _worse(row: Row) -> bool:
    return any(row["after"][key] > row["theirs"][key] for key in ("convs", "norms", "elementwise"))


def _counted_reasons(rows: Sequence[Row], key: str) -> str:
    total: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for row in rows:
        total.update(row[key])
        for reason in row[key]:
            where.setdefault(reason, []).append(row["model"])
    lines = [(reason.replace("|", "/"), str(n), _some(where[reason])) for reason, n in total.most_common()]
    return _markdown(("reason", "count", "models"), lines) if lines else "None."


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--set", choices=sets.SETS, nargs="+", default=["timm"], help="which networks")
    options.add_argument("--models", metavar="PATTERN", nargs="+", default=["*"], help='such as "repvgg*"')
    options.add_argument("--limit-seconds", type=float, default=600.0, help="for one network (default: %(default)s)")
    options.add_argument(
        "--minutes", type=float, default=float("inf"), help="for all of them; no new one is begun then"
    )
    options.add_argument("--jobs", type=int, default=1, help="so many at a time (default: %(default)s)")
    options.add_argument("--quick", action="store_true", help="four small networks, within a minute")
    options.add_argument("--out", type=Path, metavar="FILE", help="one line of JSON per network is added there")
    options.add_argument("--table", action="store_true", help="print what is in the file as markdown, convert nothing")
    options.add_argument("--choose", action="store_true", help="print the names of the timm set anew, as zoo_timm.txt")
    return options.parse_args()


def main() -> int:
    options = _options()
    if options.choose:
        print(sets.choose(), end="")
        return 0
    rows = read(options.out) if options.out else []
    if options.table:
        return _print_table(rows)
    # torchvision compiles its detectors' Python (a minute each, the recorder with it): nothing here is to be compiled.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    torch.set_num_threads(1)
    rows = [row for row in rows if row.get("source") == source()]
    seen = {(row["set"], row["model"]) for row in rows}
    chosen = ["quick"] if options.quick else options.set
    named = [(of, name) for of in chosen for name in sets.names(of)]
    asked = [(of, name) for of, name in named if any(fnmatchcase(name, pattern) for pattern in options.models)]
    sets.load(chosen)
    for row in converted_all([each for each in asked if each not in seen], options):
        rows.append(row)
        print(f"{row['model']}: {row['outcome']} {row.get('error', '')}", file=sys.stderr, flush=True)
        if options.out:
            _append(options.out, row)
    print(table(rows))
    return int(any(row["outcome"] in (WRONG, CRASHED) for row in rows))


def _print_table(rows: Sequence[Row]) -> int:
    """Unless the rows are not all of one version of the code."""
    made_by = Counter(row.get("source", "unknown") for row in rows)
    if len(made_by) > 1:
        found = ", ".join(f"{count} by {code}" for code, count in made_by.most_common())
        print(f"the rows were made by different code: {found}; run it again without --table", file=sys.stderr)
        return SEVERAL
    print(table(rows))
    return int(any(row["outcome"] in (WRONG, CRASHED) for row in rows))
