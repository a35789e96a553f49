"""How long a forward pass takes: the original, folded by reparam, by torch.fx's fuse, and by timm's own conversion.

    python benchmarks/latency.py --quick

The forms of one model take turns. One that cannot be made, or that does not compute what the original computes, is not
timed, and the reason is printed below the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import reparam
from common import chosen_models, parser, shown, write_json
from reparam.bench import Comparison
from zoo_models import build, example_input

Conversion = Callable[[nn.Module, Tensor], nn.Module]


def by_reparam(model: nn.Module, x: Tensor) -> nn.Module:
    return reparam.reparameterize(model, x, verify=False)


def by_fx(model: nn.Module, x: Tensor) -> nn.Module:
    return fuse(model).eval()  # the modules that it makes are in train mode


def by_timm(model: nn.Module, x: Tensor) -> nn.Module:
    from timm.utils.model import reparameterize_model

    converted: nn.Module = reparameterize_model(model)
    return converted.eval()  # here, too


CONVERSIONS: dict[str, Conversion] = {
    "reparam": by_reparam,
    "torch.fx fuse": by_fx,
    "timm": by_timm,
}


def attempt(convert: Conversion, model: nn.Module, x: Tensor) -> nn.Module | str:
    """The converted model, or why there is none to time."""
    try:
        converted = convert(model, x)
    except Exception as error:  # noqa: BLE001 - whatever stops another tool is a result here
        return f"cannot convert it: {type(error).__name__}: {str(error).splitlines()[0]}"
    worst = reparam.verify(model, converted, x, variants=False).worst
    return converted if worst is None else f"computes something else: {worst}"


def compare(name: str, batch: int, threads: int, rounds: int) -> tuple[Comparison, dict[str, str]]:
    """The timings of every form of one model, and why the forms that are missing are missing."""
    model = build(name)
    x = example_input(model, batch)
    attempts = {form: attempt(convert, model, x) for form, convert in CONVERSIONS.items()}
    models = {"original": model} | {form: made for form, made in attempts.items() if isinstance(made, nn.Module)}
    # `attempt` has verified each of them already.
    comparison = reparam.benchmark(models, x, rounds=rounds, threads=threads, check=False)
    return comparison, {form: reason for form, reason in attempts.items() if isinstance(reason, str)}


def rows(name: str, comparison: Comparison) -> list[list[str]]:
    return [
        [
            name if timing is comparison.timings[0] else "",
            timing.name,
            shown(comparison.ratio(timing.name)),
            f"{1e3 * timing.wall.median:.2f}",
            f"{1e3 * timing.cpu.median:.2f}",
        ]
        for timing in comparison.timings
    ]


def as_data(name: str, comparison: Comparison, missing: dict[str, str]) -> dict[str, Any]:
    forms = {
        timing.name: {
            "ratio": asdict(comparison.ratio(timing.name)),
            "wall": asdict(timing.wall),
            "cpu": asdict(timing.cpu),
        }
        for timing in comparison.timings
    }
    return {"model": name, "forms": forms, "missing": missing}


def main() -> None:
    options = parser(__doc__ or "", rounds=30).parse_args()
    torch.set_num_threads(options.threads)
    table, notes, results = [], [], []
    for name in chosen_models(options):
        comparison, missing = compare(name, options.batch, options.threads, 5 if options.quick else options.rounds)
        table += rows(name, comparison)
        notes += [f"{name}: {form} {reason}" for form, reason in missing.items()]
        results.append(as_data(name, comparison, missing))
        print(f"{name} done", file=sys.stderr)
    headers = ["model", "form", "time / original", "wall ms", "cpu ms"]
    print(tabulate(table, headers=headers, colalign=("left", "left", "right", "right", "right"), disable_numparse=True))
    if notes:
        print("", *notes, sep="\n")
    if options.json:
        write_json(options.json, options, results)


if __name__ == "__main__":
    main()
