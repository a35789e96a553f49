"""docs/benchmarks.md: tables and plots of the numbers that `python -m benchmarks.latency --json` has written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import markdown_table, write_whole
from reparam.errors import InputError

Case = dict[str, Any]
_WALL = "ratio"
_CLOCKS = {_WALL: "wall", "cpu_ratio": "processor"}
_NOISE = 1.02  # two measurements of the same network differ by as much

_HEAD = """# Benchmarks

How long a forward pass takes in each form that could be deployed, divided by the time of the original network run
eagerly: below 1 is faster. Made by

    {command}
    python -m benchmarks.latency --json latency.json --page docs

with {versions}
on {machine}, {threads} thread(s).

All forms of a network take turns in one process for {rounds} rounds, each round in another order. A ratio is formed
within each round, in wall time and in processor time. A cell holds the median of the ratios and, in brackets, the
distance of their quartiles.

- Weights are random and statistics drawn. Nothing is downloaded.
- "compiled" is `torch.compile` with freezing, for one size. ONNX Runtime runs what `torch.onnx.export` writes.
- A form that fails, or whose output differs from the original's, is not timed.
"""


def write_page(file: Path, folder: Path) -> None:
    """Writes `folder`/benchmarks.md and its plots from the results in `file`; raises InputError without matplotlib."""
    content = json.loads(file.read_text(encoding="utf-8"))
    cases: list[Case] = content["results"]
    rounds = sorted({case["rounds"] for case in cases})
    parts = [
        _HEAD.format(
            command=content["command"],
            versions=content["versions"],
            machine=content["machine"],
            threads=content["threads"],
            rounds=" to ".join(map(str, dict.fromkeys((rounds[0], rounds[-1])))),
        )
    ]
    for batch, memory_format in dict.fromkeys(_kind(case) for case in cases):
        chosen = [case for case in cases if _kind(case) == (batch, memory_format)]
        plot = Path("figures") / f"latency-{batch}-{memory_format}.svg"
        _plot(chosen, folder / plot)
        title = f"Batch {batch}, {memory_format.replace('_', ' ')}"
        parts += [f"## {title}\n", f"![{title}: time over that of the original]({plot.as_posix()})\n", _ratios(chosen)]
    parts += ["## Against each alternative\n", _AGAINST, _against(cases)]
    parts += ["## Half precision\n", _ROUNDING, _rounding(cases)]
    parts += ["## Not timed\n", _missing(cases), _OTHERS]
    write_whole(folder / "benchmarks.md", "\n".join(parts))


def _kind(case: Case) -> tuple[int, str]:
    return case["case"]["batch"], case["case"]["memory_format"]


def _cell(spread: dict[str, float] | None) -> str:
    return "" if spread is None else f"{spread['median']:.2f} ({spread['high'] - spread['low']:.2f})"


def _forms(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(name for case in cases for name in case["case"]["forms"] if name != "original"))


def _ratio(case: Case, form: str, clock: str) -> dict[str, float] | None:
    return next((measured[clock] for measured in case["forms"] if measured["form"] == form), None)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(headers, rows) + "\n"


def _ratios(cases: Sequence[Case]) -> str:
    forms = _forms(cases)
    lines = [
        [case["case"]["model"] if clock == _WALL else "", title, *(_cell(_ratio(case, form, clock)) for form in forms)]
        for case in cases
        for clock, title in _CLOCKS.items()
    ]
    return _table(["network", "time", *forms], lines)


_AGAINST = f"""\
The processor time of the folded network, divided by that of the alternative in the same runtime, over all
networks, batches and memory formats. "slower" names the cases above {_NOISE}; smaller differences are noise. The last
column is the median in wall time, which other load on the machine changes.
"""


def _against(cases: Sequence[Case]) -> str:
    lines = []
    for form in dict.fromkeys(name for case in cases for name in case["against"]):
        shares = {_name(case): case["against"][form] for case in cases if form in case["against"]}
        ratios = {name: share["cpu"]["median"] for name, share in shares.items()}
        ordered = sorted(ratios.values())
        slower = [f"{name}: {ratio:.2f}" for name, ratio in ratios.items() if ratio > _NOISE]
        clock = f"{median(share['wall']['median'] for share in shares.values()):.2f}"
        ends = f"{ordered[0]:.2f} .. {ordered[-1]:.2f}"
        lines.append([form, str(len(ratios)), f"{median(ordered):.2f}", ends, "; ".join(slower) or "none", clock])
    return _table(["alternative", "cases", "median", "from .. to", "slower", "in wall time"], lines)


def _name(case: Case) -> str:
    return f"{case['case']['model']} ({case['case']['batch']}, {case['case']['memory_format']})"


_ROUNDING = """\
The Euclidean distance of the outputs from those in float64, divided by their norm. The original and the folded network
are each rounded to the dtype once. The figure is the root mean square over several networks with different weights,
because the error of a single one depends on luck.
"""

_OTHERS = """## Other benchmarks

| command | what it does |
|---|---|
| `python -m benchmarks.conversion` | measures the conversion itself ([what a conversion costs](performance.md)) |
| `python -m benchmarks.zoo` | converts public networks ([the zoo](zoo.md)) |
| `python -m benchmarks.calibrate` | fits the [cost model](costs.md) to a machine |
| `python -m benchmarks.fuzz` | converts random networks and compares each with its original |

With `--digest FILE`, `benchmarks.fuzz` writes one line per network: seed, folds, removed operations, a hash of what was
folded, refusals. `diff` of two such files shows where two versions of the code fold differently.
"""


def _rounding(cases: Sequence[Case]) -> str:
    lines = [
        [case["case"]["model"], dtype, f"{error['original']:.2g}", f"{error['reparam']:.2g}"]
        for case in cases
        for dtype, error in case["rounding"].items()
    ]
    return _table(["network", "dtype", "original", "folded"], lines)


def _missing(cases: Sequence[Case]) -> str:
    why: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for form, reason in case["missing"].items():
            why.setdefault((form, reason), []).append(_name(case))
    lines = [[form, ", ".join(names), reason.replace("|", "\\|")] for (form, reason), names in why.items()]
    return _table(["form", "cases", "why"], lines)


def _plot(cases: Sequence[Case], file: Path) -> None:
    """One row per network, one mark per form: the median, and a line between the quartiles."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'reparam[plots]'") from error
    forms = _forms(cases)
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(cases) + 1.6), layout="constrained")
    for i, form in enumerate(forms):
        measured = [(row, ratio) for row, case in enumerate(cases) if (ratio := _ratio(case, form, _WALL))]
        medians = [ratio["median"] for _, ratio in measured]
        sides = [
            [ratio["median"] - ratio["low"] for _, ratio in measured],
            [ratio["high"] - ratio["median"] for _, ratio in measured],
        ]
        heights = [row + 0.09 * (i - (len(forms) - 1) / 2) for row, _ in measured]
        axes.errorbar(medians, heights, xerr=sides, fmt="osD^vPX"[i % 7], color=f"C{i}", markersize=5, label=form)
    axes.axvline(1.0, color="0.5", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), [case["case"]["model"] for case in cases])
    axes.invert_yaxis()
    axes.set_xlabel("time / that of the original (left is faster)")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.9 / (0.42 * len(cases) + 1.6)), ncols=4, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
