from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import reparam
from reparam.cli import main
from reparam.cli.output import ProgressBar
from reparam.cli.source import build_model
from reparam.compare.bench import benchmark
from reparam.deploy.files import sha256
from tests.console import NETWORK, refused, run
from tests.deploy.old_format import make_format_1
from tests.helpers import ScaledBranches, image, trained

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("fold", "export", "explain", "verify", "bench", "ops", "doctor", "demo")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's network in it, which is the current one."""
    (tmp_path / "mynet.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    return tmp_path


def as_process(*arguments: str, **more: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "reparam", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# --- the commands as such


def test_version() -> None:
    ended = run("--version")
    assert (ended.code, ended.out) == (0, f"reparam {reparam.__version__}\n")


def test_help_shows_the_commands_and_an_example() -> None:
    ended = run("--help")
    assert ended.code == 0
    assert all(f"  {command} " in ended.out for command in COMMANDS)
    assert "Example: reparam demo" in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_json(command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    assert f"Example: reparam {command}" in ended.out
    assert "--json" in ended.out


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("explain",), ("explain", "mynet:make", "--nonsense"), ("bench", "a", "--rounds", "x")]
)
def test_a_mistake_in_usage_ends_with_1(arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.code == 1
    assert "reparam" in ended.err
    assert not ended.out


def test_ops_lists_the_rules() -> None:
    operations = [row["operation"] for row in run("ops", "--json").data()["operations"]]
    assert "batch_norm" in operations
    assert "pixel_unshuffle" in run("ops", "pixel").out
    assert "conv2d" not in run("ops", "pixel").out


def test_doctor_knows_this_machine() -> None:
    ended = run("doctor", "--json")
    packages = {each["package"]: each for each in ended.data()["packages"]}
    assert torch.__version__.startswith(packages["torch"]["version"])  # a wheel's name may lack +cu124
    assert packages["torch"]["state"] == "ok"
    assert ended.data()["machine"]["reparam"] == reparam.__version__


def test_doctor_names_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise reparam.cli.about.PackageNotFoundError(name)

    monkeypatch.setattr("reparam.cli.about.version", lambda name: "1" if name != "onnx" else nowhere(name))
    assert "not installed: pip install 'reparam[onnx]'" in run("doctor").out


@pytest.mark.parametrize(("error", "said"), [(ImportError(), "ImportError"), (OSError("no libz\nat all"), "no libz")])
def test_doctor_says_what_a_broken_package_says(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise error

    monkeypatch.setattr("reparam.cli.about.importlib.import_module", broken)
    state = run("doctor", "--json").data()["packages"][0]["state"]
    assert state == f"cannot be imported: {said}"


def test_demo_folds_verifies_and_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few rounds; docs/trouble.md has all of them run."""
    monkeypatch.setattr("reparam.cli.about.benchmark", partial(benchmark, rounds=3))
    ended = run("demo")
    assert ended.code == 0
    assert all(word in ended.out for word in ("Conv2d", "original", "folded"))
    assert not ended.err


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with ProgressBar(2) as bar:
        bar("loading")
        bar("folding")
    lines = screen.getvalue().split("\r\x1b[K")
    assert lines == ["", f"[{'.' * 24}] loading", f"[{'#' * 12}{'.' * 12}] folding", ""]


def test_a_file_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with ProgressBar(2) as bar:
        bar("loading")
    assert not sys.stderr.getvalue()  # type: ignore[attr-defined]


# --- naming a model


def test_explain_says_what_folds_and_writes_nothing(here: Path) -> None:
    before = sorted(here.rglob("*.py"))
    ended = run("explain", "mynet:make", "--arg", "width=4", "--input", "1x3x17x19")
    assert ended.code == 0, ended.err
    assert "Conv2d 3->4 3x3 s2 p1" in ended.out
    assert "No --checkpoint" in ended.out
    assert sorted(each for each in here.rglob("*") if each.suffix != ".pyc" and each.is_file()) == before


def test_verify_can_be_chosen() -> None:
    command = ("explain", "mynet:make", "--input", "1x3x17x19", "--json")
    assert run(*command).data()["report"]["checked"] == "none"
    assert run(*command, "--verify", "folds").data()["report"]["checked"] == "folds"
    assert run(*command, "--verify", "full").data()["report"]["checked"] == "full"
    assert "choose one of full, folds, none" in refused(*command, "--verify", "all")


@pytest.mark.parametrize("cost", ["params", "flops", "mine.json"])
def test_explain_by_another_cost(cost: str, here: Path) -> None:
    reparam.StaticCost("mine", dense=1.0).save(here / "mine.json")
    ended = run("explain", "mynet:make", "--input", "1x3x32x32", "--cost", cost, "--json")
    assert ended.data()["report"]["cost"] == ("static (mine)" if cost == "mine.json" else cost)


@pytest.mark.parametrize(
    ("cost", "told"), [("speed", "'static', 'measured'"), ("no.json", r"no\.json.*cannot be read")]
)
def test_an_unusable_cost_is_refused(cost: str, told: str) -> None:
    ended = run("explain", "mynet:make", "--input", "1x3x32x32", "--cost", cost)
    assert ended.code == 1
    assert re.search(told, ended.err)


def test_explain_shows_the_stages() -> None:
    ended = run("explain", "mynet:make", "--input", "1x3x17x19", "--stages")
    starts = [line.partition(":")[0] for line in ended.out.splitlines() if line[:1].islower()]
    assert (ended.code, starts) == (0, ["record", "values", "plan", "edits", "result"])


def test_explain_as_json() -> None:
    data = run("explain", "mynet:make", "--input", "1x3x17x19", "--json", "--verify", "full").data()
    assert data["report"]["folds"][0]["after"] == "Conv2d 3->8 3x3 s2 p1"
    assert data["report"]["verification"]["ok"] is True
    assert data["inputs"] == "1x3x17x19"


def test_keep_is_passed_on() -> None:
    data = run("explain", "mynet:make", "-i", "1x3x17x19", "--keep", "body.0", "--json").data()
    assert len(data["report"]["folds"]) == 3
    assert "keep='bogus'" in refused("explain", "mynet:make", "-i", "1x3x17x19", "--keep", "bogus")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mynet", "package.module:factory"),
        ("weights.pth", "--checkpoint weights.pth"),
        ("nowhere:make", "no module nowhere"),
        ("mynet:mak", "did you mean make"),
        ("mynet:text", "is a str"),
        ("mynet:number", "returns a int"),
        ("mynet:fails", "RuntimeError: no data set here"),
        ("torchvision:resnet19", "did you mean"),
        ("timm:repvgg_a00", "did you mean"),
    ],
)
def test_a_model_that_cannot_be_built_is_explained(name: str, said: str) -> None:
    assert said in refused("explain", name, "--input", "1x3x8x8")


def test_arguments_are_literals() -> None:
    assert "key=value" in refused("explain", "mynet:make", "--arg", "width")
    assert "unexpected keyword argument 'depth'" in refused("explain", "mynet:make", "--arg", "depth=true")


def test_a_module_that_cannot_be_imported(here: Path) -> None:
    (here / "broken.py").write_text("import not_a_library\n")
    assert "broken imports not_a_library" in refused("explain", "broken:make")
    (here / "worse.py").write_text("def make(:\n")
    assert "SyntaxError" in refused("explain", "worse:make")


@pytest.mark.zoo
def test_models_of_the_zoos() -> None:
    data = run("explain", "timm:repvgg_a0", "--input", "1x3x64x64", "--json").data()
    assert len(data["report"]["folds"]) == 22
    data = run("explain", "torchvision:resnet18", "--input", "1x3x64x64", "--json").data()
    assert data["report"]["after"]["norms"] == 0
    # The builder of a detector downloads the weights of its backbone unless it is told not to.
    assert isinstance(build_model("torchvision:ssdlite320_mobilenet_v3_large"), nn.Module)


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'reparam[zoo]'" in refused("explain", "timm:repvgg_a0")


# --- inputs


@pytest.mark.parametrize("text", ["1x3", "3", "1x3x0x8", "ax3", "1x3x8x8:float99", "1 3 8 8", "2bad=1x3x8x8"])
def test_unusable_inputs_are_refused(text: str) -> None:
    refused("explain", "mynet:make", "--input", text)


def test_inputs_by_keyword_and_from_files(here: Path) -> None:
    assert run("explain", "mynet:make", "-i", "x=1x3x9x9", "--json").data()["inputs"] == "1x3x9x9"
    np.save(here / "x.npy", np.random.default_rng(0).normal(size=(2, 3, 11, 13)).astype(np.float32))
    assert run("explain", "mynet:make", "--input-file", "x.npy", "--json").data()["inputs"] == "2x3x11x13"
    torch.save((torch.randn(1, 3, 9, 8),), here / "x.pt")
    assert run("explain", "mynet:make", "--input-file", "x.pt", "--json").data()["inputs"] == "1x3x9x8"
    (here / "bad.npy").write_bytes(b"nothing")
    assert "cannot be read as input" in refused("explain", "mynet:make", "--input-file", "bad.npy")
    assert "no such file" in refused("explain", "mynet:make", "--input-file", "none.npy")
    assert "exclude each other" in refused("explain", "mynet:make", "--input-file", "x.npy", "--input", "1x3x9x8")


def test_inputs_are_guessed_from_the_model() -> None:
    assert run("explain", "mynet:make", "--json").data()["inputs"] == "2x3x64x64"


def test_devices_and_dtypes() -> None:
    assert "choose one of" in refused("explain", "mynet:make", "--dtype", "int8")
    assert "cannot be used here" in refused("explain", "mynet:make", "--device", "abacus")
    assert run("explain", "mynet:make", "--dtype", "bfloat16", "-i", "1x3x9x9", "--verify", "full").code == 0


# --- verify and bench


def test_names_from_a_checkpoint_command_no_terminal(here: Path) -> None:
    name = "\x1b]0;title\x07\u202e\nreparam: all is well"
    torch.save(mynet().state_dict() | {name: torch.ones(1)}, "best.pth")
    said = refused("explain", "mynet:make", "-c", "best.pth", "-i", "1x3x17x19")
    assert r"unexpected \x1b]0;title\x07\u202e\nreparam: all is well" in said
    ended = run("explain", "mynet:make", "-c", "best.pth", "-i", "1x3x17x19", "--partial")
    assert r"unexpected \x1b]0;title\x07\u202e\nreparam: all is well" in ended.out
    assert all(char.isprintable() or char == "\n" for char in ended.out + said)


def test_verify_finds_equal_models_equal() -> None:
    ended = run("verify", "mynet:make", "mynet:make", "-i", "1x3x17x19")
    assert ended.code == 0
    assert "equal: float64 error 0" in ended.out


@pytest.mark.parametrize("arguments", [("verify", "a.pt2", "mynet:make"), ("verify", "mynet:make", "a.pt2"),
                                       ("bench", "a.pt2"), ("bench", "mynet:make", "a.pt2")])  # fmt: skip
def test_a_program_from_elsewhere_needs_trust(here: Path, arguments: tuple[str, ...]) -> None:
    (here / "a.pt2").write_bytes(b"PK")
    said = refused(*arguments, "-i", "1x3x17x19")
    assert "unpickles" in said
    assert "use --trust" in said
    assert "damaged" in refused(*arguments, "-i", "1x3x17x19", "--trust")


def test_an_artefact_of_format_1_needs_trust(here: Path) -> None:
    x = image(1, 4, 17, 19, dtype=torch.float32)
    model = trained(ScaledBranches(4), x, dtype=torch.float32)
    torch.save(model.state_dict(), "best.pth")
    deployed = reparam.reparameterize(model, x)
    make_format_1(reparam.save(deployed, here / "net.safetensors").provenance, deployed)
    arguments = ("tests.helpers:ScaledBranches", "net.safetensors", "--arg", "channels=4", "-i", "1x4x17x19",
                 "-c", "best.pth")  # fmt: skip
    for command in ("verify", "bench"):
        assert "holds Python code that loading executes" in refused(command, *arguments)
    ended = run("verify", *arguments, "--trust")
    assert ended.code == 0, ended.err
    assert run("bench", *arguments, "--trust", "--rounds", "2").code == 0


def test_verify_ends_with_2_where_they_differ() -> None:
    ended = run("verify", "mynet:make", "mynet:make", "--other-arg", "seed=1", "-i", "1x3x17x19", "--json")
    assert ended.code == 2
    assert ended.data()["ok"] is False
    assert ended.err.startswith("reparam: the candidate is not equal")
    assert ended.err.count("\n") == 1


def test_verify_needs_an_original(here: Path) -> None:
    (here / "a.onnx").write_bytes(b"")
    assert "no float64 truth" in refused("verify", "a.onnx", "mynet:make", "-i", "1x3x17x19")
    assert "damaged" in refused("verify", "mynet:make", "a.onnx", "-i", "1x3x17x19", "--trust")
    (here / "a.pt2").write_bytes(b"PK")
    assert "damaged" in refused("verify", "a.pt2", "mynet:make", "-i", "1x3x17x19", "--trust")
    assert "no such file" in refused("verify", "mynet:make", "b.onnx", "-i", "1x3x17x19")


def test_bench_times_a_model_and_its_fold() -> None:
    ended = run("bench", "mynet:make", "-i", "1x3x17x19", "--rounds", "2", "--threads", "1", "--json")
    assert [each["name"] for each in ended.data()["models"]] == ["original", "folded"]
    assert ended.data()["checked"] is True


def test_bench_refuses_models_that_differ() -> None:
    arguments = ("mynet:make", "mynet:make", "--other-arg", "seed=1", "-i", "1x3x17x19", "--rounds", "2")
    refused("bench", *arguments, code=2)
    assert run("bench", *arguments, "--no-check").code == 0


# --- how it ends


def test_a_model_in_train_mode_is_named(here: Path) -> None:
    (here / "stubborn.py").write_text(
        "from torch import nn\n\n\n"
        "class Stubborn(nn.BatchNorm2d):\n    def train(self, mode=True):\n        return super().train(True)\n\n\n"
        "def make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), Stubborn(4))\n"
    )
    assert "in train mode: 1" in refused("explain", "stubborn:make", "-i", "1x3x8x8")


def test_inputs_that_the_model_does_not_take() -> None:
    refused("explain", "mynet:make", "-i", "1x5x8x8")


def test_an_interrupted_run_is_reported(here: Path) -> None:
    (here / "slow.py").write_text("import time\n\n\ndef make():\n    print('ready', flush=True)\n    time.sleep(60)\n")
    for number in (signal.SIGINT, signal.SIGTERM):
        process = as_process("explain", "slow:make")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err == "reparam: interrupted; nothing was written\n"


def test_a_defect_asks_for_a_bug_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> nn.Module:
        raise AssertionError("ours")

    monkeypatch.setattr(sys.modules["reparam.cli.fold"], "reparameterize", broken)
    with pytest.raises(AssertionError, match="ours"):
        main(["explain", "mynet:make", "-i", "1x3x8x8"])


# --- fold: what is written


def test_fold_writes_an_artefact_that_loads_and_verifies(here: Path) -> None:
    torch.save({"epoch": 3, "model_ema": {f"module.{k}": v for k, v in mynet(seed=5).state_dict().items()}}, "best.pth")
    ended = run(
        "fold", "mynet:make", "-c", "best.pth", "-i", "1x3x17x19", "-o", "net.safetensors", "--report", "r.html"
    )
    assert ended.code == 0, ended.err
    assert "under 'model_ema'; stripped 'module.'" in ended.out
    assert "Written: net.safetensors, net.json, r.html" in ended.out
    assert "Conv2d 3-&gt;8 3x3 s2 p1" in (here / "r.html").read_text()
    x = torch.randn(2, 3, 17, 19)
    loaded = reparam.load("net.safetensors", mynet())
    assert torch.allclose(loaded(x), mynet(seed=5)(x), atol=1e-5)
    again = run("verify", "mynet:make", "net.safetensors", "-c", "best.pth", "-i", "1x3x17x19")
    assert again.code == 0, again.err
    assert run("verify", "mynet:make", "net.json", "-i", "1x3x17x19").code == 2


def test_bench_writes_a_report_with_the_latency(here: Path) -> None:
    arguments = ("bench", "mynet:make", "-i", "1x3x17x19", "--rounds", "2", "--report", "r.html")
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    assert ended.out.rstrip().endswith("Written: r.html")
    assert "times as fast" in (here / "r.html").read_text()
    assert "r.html exists and is not overwritten" in refused(*arguments)
    assert run(*arguments, "--force").code == 0
    assert "leave out B" in refused("bench", "mynet:make", "mynet:make", "-i", "1x3x17x19", "--report", "s.html")
    assert "ends in .html, .md, .json" in refused("bench", "mynet:fails", "--report", "r.doc")
    assert not (here / "s.html").exists()


def test_fold_as_json(here: Path) -> None:
    ended = run("fold", "mynet:make", "-i", "1x3x17x19", "-o", "net.safetensors", "--report", "r.json", "--json")
    data = ended.data()
    assert data["files"] == ["net.safetensors", "net.json", "r.json"]
    assert json.loads((here / "r.json").read_text()) == {**data["report"], "latency": None}
    source = json.loads((here / "net.json").read_text())["source"]
    assert source == {"model": "mynet:make", "arguments": {}}


def test_the_provenance_names_the_checkpoint(here: Path) -> None:
    torch.save(mynet(seed=5).state_dict(), "best.pth")
    run("fold", "mynet:make", "-c", "best.pth", "-i", "1x3x17x19", "-o", "net.safetensors")
    found = json.loads((here / "net.json").read_text())["source"]["checkpoint"]
    assert found["file"] == "best.pth"
    assert found["sha256"] == sha256(here / "best.pth")


def listed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("taken", ["net.safetensors", "net.json", "r.md"])
def test_fold_does_not_overwrite(taken: str, here: Path) -> None:
    (here / taken).write_text("precious")
    arguments = ("fold", "mynet:make", "-i", "1x3x17x19", "-o", "net.safetensors", "--report", "r.md")
    before = listed(here)
    assert f"{taken} exists and is not overwritten" in refused(*arguments)
    assert listed(here) == before
    assert run(*arguments, "--force").code == 0
    assert (here / taken).read_bytes() != b"precious"


@pytest.mark.parametrize(
    ("output", "said"),
    [("net.pth", "name one of them"), ("none/net.safetensors", "there is no folder"), (".", "name one of them")],
)
def test_places_that_cannot_be_written_are_refused_before_any_work(output: str, said: str, here: Path) -> None:
    before = listed(here)
    assert said in refused("fold", "mynet:fails", "-o", output)
    assert "ends in .html, .md, .json" in refused("fold", "mynet:fails", "-o", "net.safetensors", "--report", "r.doc")
    assert listed(here) == before


def test_a_report_does_not_take_the_name_of_the_provenance(here: Path) -> None:
    before = listed(here)
    for force in ((), ("--force",)):  # which would lose the artefact
        arguments = ("fold", "mynet:fails", "-o", "net.safetensors", "--report", str(here / "net.json"), *force)
        assert "give the report another name" in refused(*arguments)
    assert listed(here) == before


def test_a_disk_that_fills_up_leaves_nothing_behind(here: Path) -> None:
    """No file may grow beyond 20 kB: the system ends the write of the weights in the middle."""
    (here / "small.py").write_text(
        "import resource\n\nimport mynet\n\n\n"
        "def make():\n    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n    return mynet.make(width=32)\n"
    )
    (here / "net.json").write_text("old")
    (here / "net.safetensors").write_text("old")
    process = as_process("fold", "small:make", "-i", "1x3x17x19", "-o", "net.safetensors", "--force",
                         PYTHONDONTWRITEBYTECODE="1")  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert not out
    assert err.startswith("reparam: net.safetensors cannot be written"), err
    assert err.count("\n") == 1
    assert {name for name in listed(here) if "pycache" not in name} == {
        "mynet.py",
        "small.py",
        "net.json",
        "net.safetensors",
    }
    assert (here / "net.safetensors").read_text() == (here / "net.json").read_text() == "old"


def test_a_run_that_is_interrupted_while_it_writes_leaves_nothing_behind(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        (here / "seen").write_text(str(sorted(path.name for path in here.glob(".net*/*"))))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("reparam.deploy.artefact.sha256", interrupted)
    ended = run("fold", "mynet:make", "-i", "1x3x17x19", "-o", "net.safetensors")
    assert (ended.code, ended.out, ended.err) == (130, "", "reparam: interrupted; nothing was written\n")
    assert (here / "seen").read_text() == "['net.safetensors']"
    assert not list(here.glob(".net*"))
    assert not list(here.glob("net*"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"<html>"])
def test_damaged_checkpoints(content: bytes, here: Path) -> None:
    (here / "best.pth").write_bytes(content)
    assert "damaged" in refused("fold", "mynet:make", "-c", "best.pth", "-o", "net.safetensors")
    assert not (here / "net.safetensors").exists()


def test_a_hostile_checkpoint_is_not_run(here: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("touch was-run",)

    torch.save({"state_dict": Hostile()}, "evil.pth")
    assert "asks for the code of posix.system" in refused(
        "fold", "mynet:make", "-c", "evil.pth", "-o", "net.safetensors"
    )
    assert not (here / "was-run").exists()


def test_a_checkpoint_of_another_model(here: Path) -> None:
    torch.save(mynet(width=16).state_dict(), "best.pth")
    said = refused("fold", "mynet:make", "-c", "best.pth", "-o", "net.safetensors")
    assert "does not fit the model" in said
    assert "--arg" in said
    assert run("explain", "mynet:make", "-c", "best.pth", "--arg", "width=16", "-i", "1x3x9x9").code == 0
    state = mynet().state_dict()
    torch.save({"head.bias": state["head.bias"]}, "part.pth")
    assert "missing stem." in refused("explain", "mynet:make", "-c", "part.pth", "-i", "1x3x9x9")
    assert "missing stem." in run("explain", "mynet:make", "-c", "part.pth", "--partial", "-i", "1x3x9x9").out


def mynet(**arguments: int) -> nn.Module:
    """The user's network, in eval mode."""
    return build_model("mynet:make", arguments)


# --- export


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_export_writes_a_program_that_verifies(suffix: str, here: Path) -> None:
    torch.save(mynet(seed=5).state_dict(), "best.pth")
    file = f"net{suffix}"
    data = run("export", "mynet:make", "-c", "best.pth", "-i", "1x3x17x19", "-o", file, "--json").data()
    assert data["file"] == file
    assert data["takes"] == "every batch and size"
    assert data["verification"]["ok"] is True
    trust = "--trust"  # a program may hold code, and an old onnxruntime reads files that a model names
    ended = run("verify", "mynet:make", file, "-c", "best.pth", "-i", "2x3x21x30", trust)
    assert ended.code == 0, ended.err
    assert run("verify", "mynet:make", file, "-i", "2x3x21x30", trust).code == 2
    timed = run("bench", "mynet:make", file, "-c", "best.pth", "-i", "2x3x21x30", "--rounds", "2", "--json",
                trust).data()  # fmt: skip
    assert [each["name"] for each in timed["models"]] == ["mynet:make", file]
    assert "exists and is not overwritten" in refused("export", "mynet:make", "-o", file)
    if suffix == ".pt2":
        assert run("verify", file, "mynet:make", "--other-checkpoint", "best.pth", "-i", "2x3x21x30", trust).code == 0


def test_export_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'reparam[onnx]'" in refused("export", "mynet:fails", "-o", "net.onnx")
    assert "name the file .pt2" in refused("export", "mynet:fails", "-o", "net.tflite")
