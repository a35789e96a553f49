"""What a user meets first: the public names, and the package as a program."""

from __future__ import annotations

import subprocess
import sys

import reparam


def test_dir_lists_the_public_names_only() -> None:
    assert set(dir(reparam)) == {*reparam.__all__, "__version__"}
    assert all(hasattr(reparam, name) for name in dir(reparam))


def test_the_package_runs_the_command_line() -> None:
    ended = subprocess.run([sys.executable, "-m", "reparam", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"reparam {reparam.__version__}\n"
