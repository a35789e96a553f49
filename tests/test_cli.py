from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import reparam.cli
from reparam.errors import InputError, ReparamError, VerificationError

ROOT = Path(__file__).resolve().parent.parent


def test_version() -> None:
    result = CliRunner().invoke(reparam.cli.app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("reparam 0.")


def test_help_shows_the_commands_and_an_example() -> None:
    result = CliRunner().invoke(reparam.cli.app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.stdout
    assert "Example: reparam demo" in result.stdout


def test_an_unknown_command_is_refused() -> None:
    assert CliRunner().invoke(reparam.cli.app, ["fold"]).exit_code != 0


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no such file"), 1), (VerificationError("they differ"), 2)], ids=str
)
def test_an_error_is_one_line_and_a_code(
    error: ReparamError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(model: nn.Module, example_inputs: torch.Tensor) -> nn.Module:
        raise error

    monkeypatch.setattr(reparam.cli, "reparameterize", fail)
    monkeypatch.setattr(sys, "argv", ["reparam", "demo"])
    with pytest.raises(SystemExit) as exit_:
        reparam.cli.main()
    assert exit_.value.code == code
    assert capsys.readouterr().err == f"reparam: {error}\n"


@pytest.mark.slow
def test_demo_folds_verifies_and_compares() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reparam.cli", "demo"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "Conv2d" in done.stdout
    assert "original" in done.stdout
    assert "folded" in done.stdout
    assert not done.stderr
