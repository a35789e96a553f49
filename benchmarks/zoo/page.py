"""The page of the zoo: what became of every network, and why operations were kept. `docs/zoo.md` is made by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.common import markdown_table, versions
from benchmarks.zoo import sets
from benchmarks.zoo.rows import CONVERTED, Row

_COUNTS = ("convs", "norms", "elementwise")

_INTRODUCTION = """# The zoo

Public networks with random weights and drawn statistics, converted by `reparam.reparameterize` with all checks.
Made by

    python -m benchmarks.zoo --set transformers ultralytics detection timm torchvision --out zoo.jsonl
    python -m benchmarks.zoo --out zoo.jsonl --table

with {versions} on a CPU, one thread, batches of {batch}.

| set | models |
|---|---|
| timm | the smallest of every model file; where a file ships its own conversion, one of every family \
(`benchmarks/zoo/timm.txt`) |
| torchvision | one or two of every file |
| detection | the detectors of torchvision as a whole, including the choice of boxes |
| transformers | vision models from small configurations (`benchmarks/zoo/transformers.py`) |
| ultralytics | the smallest scale of its yaml files (`benchmarks/zoo/ultralytics.py`); its own \
conversion is `fuse()`, but the heads that `fuse()` drops are kept |

Images have the smallest size that the model accepts, out of a few from 64 to 224 pixels and the model's own. Networks
that sort their outputs (all of detection, a few others) are converted in float64, because in float32 rounding decides
near ties. The counts after a conversion come from a new recording of the converted model; so do those after a network's
own conversion.

| column | meaning |
|---|---|
| BN | calls of batch norms |
| elementwise | sums and products |
| fp64 error | largest difference of the outputs in float64, relative to the largest output |
| error / original's own | error in the model's own dtype, divided by that of the original, both against float64 |
| conversion / forward | processor time of one conversion without checks, divided by that of one forward pass |
| with checks | the same with checks |

All rows come from the same code: its digest (`benchmarks.zoo.convert.source()`) was `{source}`."""

_HEADERS = (
    "model", "file", "pixels", "folds", "convs and linears", "BN", "elementwise", "their own conversion leaves",
    "fp64 error", "error / original's own", "conversion / forward", "with checks",
)  # fmt: skip


def page(rows: Sequence[Row]) -> str:
    """The rows and their totals, in Markdown."""
    introduction = _INTRODUCTION.format(
        versions=versions("torch", "timm", "torchvision", "transformers", "ultralytics"),
        batch=sets.BATCH,
        source=", ".join(sorted({row["source"] for row in rows})) or "none",
    )
    parts = [introduction, _totals(rows)]
    for set_name in dict.fromkeys(row["set"] for row in rows):
        converted = [row for row in rows if row["set"] == set_name and row["outcome"] == CONVERTED]
        cells = [_cells(row) for row in sorted(converted, key=lambda row: row["model"])]
        parts.append(f"## {set_name}\n\n" + markdown_table(_HEADERS, cells))
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    own = row.get("theirs")
    return (
        row["model"],
        row["file"],
        row["size"] + (" float64" if row.get("dtype") == "float64" else ""),
        str(row["folds"]),
        *(_change(row["before"][key], row["after"][key]) for key in _COUNTS),
        " / ".join(str(own[key]) for key in _COUNTS) if own else "fails" if row.get("theirs_error") else "",
        "" if row["fp64"] is None else f"{row['fp64']:.0e}",
        "" if not row["noise"] else f"{row['own'] / row['noise']:.2f}",
        f"{row['conversion'] / row['forward']:.1f}",
        f"{row['verified_conversion'] / row['forward']:.0f}",
    )


def _change(before: int, after: int) -> str:
    return f"{before} → {after}" if before != after else str(before)


def _totals(rows: Sequence[Row]) -> str:
    converted = [row for row in rows if row["outcome"] == CONVERTED]
    outcomes = Counter((row["set"], row["outcome"]) for row in rows)
    own = [row for row in converted if "theirs" in row]
    behind = [row["model"] for row in own if any(row["after"][key] > row["theirs"][key] for key in _COUNTS)]
    failed = [
        (row["model"], row["outcome"], row["error"][:200].replace("|", "/"))
        for row in rows
        if row["outcome"] != CONVERTED
    ]
    unsettled = [row["model"] for row in converted if row["folds_again"]]
    before, after = (sum(row[when]["norms"] for row in converted) for when in ("before", "after"))
    text = [
        markdown_table(("set", "outcome", "models"), [(*key, str(n)) for key, n in sorted(outcomes.items())]),
        f"Folds: {sum(row['folds'] for row in converted)}. Batch norms: {before} before, {after} after.",
        f"Networks with a conversion of their own: {len(own)}. That conversion leaves fewer convolutions, batch norms "
        f"or elementwise calls than `reparam` in: {', '.join(behind) or 'none'}.",
        f"A second conversion finds more folds in: {', '.join(unsettled) or 'none'}.",
        f"Not run: {', '.join(_not_run(rows)) or 'none'}.",
        "## Not converted\n\n" + (markdown_table(("model", "outcome", "why"), failed) if failed else "None."),
        "## Batch norms left\n\n" + _reasons(converted, "norms_left"),
        "## Refusals\n\n" + _reasons(converted, "refusals"),
    ]
    return "\n\n".join(text)


def _not_run(rows: Sequence[Row]) -> list[str]:
    done = {(row["set"], row["model"]) for row in rows}
    set_names = dict.fromkeys(set_name for set_name, _ in done)
    return [name for set_name in set_names for name in sets.names(set_name) if (set_name, name) not in done]


def _reasons(rows: Sequence[Row], key: str) -> str:
    total: Counter[str] = Counter()
    models: dict[str, list[str]] = {}
    for row in rows:
        total.update(row[key])
        for reason in row[key]:
            models.setdefault(reason, []).append(row["model"])
    cells = [(reason.replace("|", "/"), str(n), _first(models[reason])) for reason, n in total.most_common()]
    return markdown_table(("reason", "count", "models"), cells) if cells else "None."


def _first(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
