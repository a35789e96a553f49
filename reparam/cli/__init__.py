"""The command line: one thin command around each public function.

This room takes what a user types: the name of a model, a checkpoint, the shape of an input. It builds and loads the
model, calls the public function, and prints the result as text or JSON.

It never decides anything about folding, never prints a traceback for what the user can mend, and never leaves the
terminal or a file half written.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated

import typer

from reparam.cli.about import demo, doctor, ops
from reparam.cli.compare import bench, verify
from reparam.cli.export import export
from reparam.cli.fold import explain, fold
from reparam.errors import ReparamError, VerificationError
from reparam.version import __version__

FAILED = 1
NOT_EQUAL = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="reparam",
    help="Folds multi-branch networks into plain convolutions and verifies that they are equal.",
    epilog="Example: reparam demo",
    no_args_is_help=True,
    add_completion=False,  # the commands are short
    rich_markup_mode=None,  # plain text, the same in a terminal, a log and a document
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reparam {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options before the command."""


_EXAMPLES: dict[Callable[..., None], str] = {
    fold: "reparam fold mynet:make_model --checkpoint best.pth --input 1x3x224x224 --output deployed.safetensors",
    export: "reparam export mynet:make_model --checkpoint best.pth --input 1x3x224x224 --output deployed.onnx",
    explain: "reparam explain timm:resnet50 --checkpoint resnet50.safetensors",
    verify: "reparam verify mynet:make_model deployed.onnx --checkpoint best.pth --input 1x3x224x224",
    bench: "reparam bench timm:resnet50 --input 1x3x224x224 --threads 2",
    ops: "reparam ops",
    doctor: "reparam doctor",
    demo: "reparam demo",
}
for command, example in _EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(command)


class _Interrupted(BaseException):
    """A signal ends the command. Unlike KeyboardInterrupt, typer does not handle it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0, with 1 for a mistake in usage or input, with 2 if models are not equal.

    What the user can mend is one line on stderr.
    """
    before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):  # those are for people who write code
                warnings.simplefilter("ignore", kind)
            app(args=arguments, prog_name="reparam")
    except SystemExit as end:
        raise SystemExit(FAILED if end.code else 0) from None  # typer's own code for a mistake in usage is 2
    except ReparamError as error:
        typer.echo(f"reparam: {error}", err=True)
        raise SystemExit(NOT_EQUAL if isinstance(error, VerificationError) else FAILED) from None
    except _Interrupted:
        typer.echo("reparam: interrupted; nothing was written", err=True)
        raise SystemExit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    """Unwinds the stack, so that temporary files are removed."""
    raise _Interrupted
