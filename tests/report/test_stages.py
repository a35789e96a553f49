"""What each stage made of a model, as `report.stages` and `explain --stages` say it."""

from __future__ import annotations

import json

import pytest
from torch import nn

import reparam
from tests.helpers import plain_convs
from tests.networks import X, network


def test_every_stage_says_what_it_made() -> None:
    folded = reparam.reparameterize(network(), X)
    report = folded.reparam_report
    stages = {stage.name: stage for stage in report.stages}
    assert list(stages) == ["record", "values", "plan", "edits", "result"]
    assert stages["plan"].summary.startswith(f"{len(report.folds)} folds")
    assert stages["plan"].details == tuple(f"{f.name}: {f.before} -> {f.after} (region)" for f in report.folds)
    assert "stem.0: becomes Conv2d 3->4 3x3 s2 p1" in stages["edits"].details
    assert "stem.1: becomes nn.Identity" in stages["edits"].details
    convolutions = sum(type(module) is nn.Conv2d for module in plain_convs(folded))
    assert f"{convolutions} Conv2d" in stages["result"].summary


def test_stages_are_in_the_json() -> None:
    report = reparam.reparameterize(network(), X, verify=False).reparam_report
    assert [stage["name"] for stage in json.loads(report.to_json())["stages"]] == [s.name for s in report.stages]


def test_a_stage_prints_its_summary_and_its_parts() -> None:
    (record, *_) = reparam.reparameterize(network(), X, verify=False).reparam_report.stages
    first, *rest = str(record).splitlines()
    assert first == f"record: {record.summary}"
    assert rest == [f"  {line}" for line in record.details]


def test_what_code_looks_at_is_said_with_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    forward = type(model).forward_features

    def looking(self, x):
        return forward(self, x) if x.shape[2] > 1 else x

    monkeypatch.setattr(type(model), "forward_features", looking)
    record = reparam.reparameterize(model, X, verify=False).reparam_report.stages[0]
    (line,) = record.details
    assert "input_0.shape[2] > 1 is True" in line
    assert line.endswith("the model fails otherwise")  # its head takes other channels
