"""The command line: the package's own functions, and what they return, printed."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import torch
import typer

from reparam.bench import benchmark
from reparam.errors import ReparamError, VerificationError
from reparam.nn import demo_network, draw_constants, draw_statistics
from reparam.pipeline import reparameterize

FAILED = 1
NOT_EQUAL = 2

app = typer.Typer(
    name="reparam",
    help="Folds multi-branch networks into plain convolutions, proven equal.",
    epilog="Example: reparam demo",
    no_args_is_help=True,
    add_completion=False,  # two words to type need none
    rich_markup_mode=None,  # plain text, the same in a terminal, a log and a document
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reparam {version('reparam')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What comes before the command; without it typer would take the only command for the program itself."""


@app.command()
def demo() -> None:
    """Fold a small multi-branch network, prove the result equal, and time both."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 96, 96)
    # An untrained network is too regular to prove anything on: these draws stand for training.
    model = draw_statistics(draw_constants(demo_network()), inputs=(images,)).eval()

    deployed = reparameterize(model, images)

    typer.echo(deployed.reparam_report)
    typer.echo()
    typer.echo(benchmark({"original": model, "folded": deployed}, images))


def main() -> None:
    """Runs the command line. A ReparamError ends it with one line and code 1, models that differ with code 2."""
    try:
        app()
    except ReparamError as error:
        typer.echo(f"reparam: {error}", err=True)
        raise SystemExit(NOT_EQUAL if isinstance(error, VerificationError) else FAILED) from None


if __name__ == "__main__":
    main()
