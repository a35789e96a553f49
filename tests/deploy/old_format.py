"""Artefacts as format 1 had them: the forward is text."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn


def make_format_1(provenance: Path, deployed: nn.Module) -> None:
    """Change the .json that `save` has written for a model whose own forward is rewritten."""
    data = json.loads(provenance.read_text())
    del data["structure"]["kept"]["forward"]
    code = {"text": deployed.code, "modules": {"torch": "torch"}, "objects": {"getattr": "getattr"}}
    data["structure"]["kept"]["code"] = code
    provenance.write_text(json.dumps({**data, "version": 1}))
