from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.deploy.export import ANY_BATCH, ANY_SIZE, ONE_SHAPE, export
from reparam.deploy.runtimes import open_program
from reparam.errors import InputError, ModelError, TrainModeError, VerificationError
from reparam.nn import RepVGGBlock
from tests.helpers import trained

SUFFIXES = [".pt2", ".onnx"]


def blocks() -> nn.Module:
    return nn.Sequential(RepVGGBlock(3, 4, stride=2), RepVGGBlock(4, 4))


class Pooled(nn.Module):
    """A linear layer over all pixels: one size."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = blocks(), nn.Linear(4 * 4 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Branching(nn.Module):
    """Its code fixes the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = blocks()

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.body(x[i : i + 1]) for i in range(int(x.shape[0]))]
        return torch.cat(parts)


class Named(nn.Module):
    """Keyword arguments in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = blocks(), nn.Embedding(5, 4)

    def forward(self, *, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
        y = self.body(images).mean((2, 3)) + self.table(classes).sum(1)
        return {"scores": y, "best": y.argmax(1)}


def example(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_takes_every_batch_and_size(suffix: str, batch: int, tmp_path: Path) -> None:
    x = example(batch, 3, 16, 16)
    model = trained(blocks(), x, dtype=torch.float32)
    deployed = reparam.reparameterize(model, x)
    done = export(deployed, tmp_path / f"net{suffix}", x, original=model)
    assert (done.takes, done.why) == (ANY_SIZE, "")
    assert done.verification.ok
    assert "checked at 4 input shapes" in str(done)
    program = open_program(done.path, trusted=True)
    for shape in [(1, 3, 16, 16), (2, 3, 15, 21), (5, 3, 33, 8)]:
        other = example(*shape)
        assert torch.allclose(program(other), model(other), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [f"net{suffix}"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_of_one_size_takes_every_batch(suffix: str, tmp_path: Path) -> None:
    x = example(2, 3, 8, 10)
    model = trained(Pooled(), x, dtype=torch.float32)
    done = export(model, tmp_path / f"net{suffix}", x)
    assert done.takes in (ANY_SIZE, ANY_BATCH)
    assert open_program(done.path, trusted=True)(example(5, 3, 8, 10)).shape == (5, 3)


@pytest.mark.slow
def test_a_model_of_one_batch_says_so(tmp_path: Path) -> None:
    x = example(2, 3, 8, 10)
    done = export(trained(Branching(), x, dtype=torch.float32), tmp_path / "net.pt2", x)
    assert done.takes == ONE_SHAPE
    assert "for every batch and size" in done.why


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_keywords_and_dicts(suffix: str, tmp_path: Path) -> None:
    inputs = {"images": example(2, 3, 16, 12), "classes": torch.tensor([[0, 1, 4], [2, 2, 0]])}
    model = trained(Named(), dtype=torch.float32)
    deployed = reparam.reparameterize(model, inputs)
    done = export(deployed, tmp_path / f"net{suffix}", inputs, original=model)
    assert done.takes == ANY_SIZE, done.why
    assert {check.name for check in done.verification.checks} == {"out['scores']", "out['best']"}


def test_fixed_size_is_not_tried_at_others(tmp_path: Path) -> None:
    x = example(2, 3, 8, 10)
    model = trained(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), x, dtype=torch.float32)
    deployed = reparam.reparameterize(model, x, fixed_size=True)
    done = export(deployed, tmp_path / "net.pt2", x, original=model, fixed_size=True)
    assert (done.takes, done.why) == (ANY_BATCH, "")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_wrong_export_is_deleted(suffix: str, tmp_path: Path) -> None:
    x = example(2, 3, 8, 10)
    model, other = (trained(nn.Sequential(nn.Conv2d(3, 4, 3)), dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    (tmp_path / f"net{suffix}").write_text("old")
    with pytest.raises(VerificationError, match="not equal to the original"):
        export(other, tmp_path / f"net{suffix}", x, original=model, force=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_model_that_cannot_be_exported_is_explained(tmp_path: Path) -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum().item() > 0) if x.sum() > 0 else x.flatten()[: int(x.max())].numpy() * 2

    x = example(2, 3, 8, 10)
    with pytest.raises(ModelError, match=r"torch\.export cannot trace the model"):
        export(Hidden().eval(), tmp_path / "net.pt2", x)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = example(2, 3, 8, 10)
    model = blocks().eval()
    with pytest.raises(InputError, match=r"name the file \.pt2"):
        export(model, tmp_path / "net.pt", x)
    with pytest.raises(InputError, match="there is no folder"):
        export(model, tmp_path / "none" / "net.pt2", x)
    (tmp_path / "net.onnx").write_text("old")
    with pytest.raises(InputError, match="exists and is not overwritten"):
        export(model, tmp_path / "net.onnx", x)
    with pytest.raises(TrainModeError):
        export(blocks(), tmp_path / "net.pt2", x)
    with pytest.raises(InputError, match="no bfloat16"):
        export(model.bfloat16(), tmp_path / "other.onnx", x.bfloat16())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'reparam\[onnx\]'"):
        export(model, tmp_path / "other.onnx", x)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"something else"])
def test_damaged_programs_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"net{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        open_program(tmp_path / f"net{suffix}", trusted=True)


class Marks:
    """What a pickle does to whoever loads it; here it only makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


def test_a_program_from_elsewhere_is_opened_only_if_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = example(2, 3, 8, 10)
    path = export(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), tmp_path / "net.pt2", x).path
    with pytest.raises(InputError, match=r"net\.pt2 is not opened: .* unpickles .* can run any code .*trusted=True"):
        open_program(path)
    assert open_program(path, trusted=True)(x).shape == (2, 4, 6, 8)
    evil = io.BytesIO()
    torch.save({"a": Marks()}, evil)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile("evil.pt2", "w") as other:
        for name in whole.namelist():
            other.writestr(name, evil.getvalue() if "sample_inputs" in name else whole.read(name))
    with pytest.raises(InputError, match="is not opened"):
        open_program("evil.pt2")
    assert not Path("was-run").exists()


def test_an_old_onnxruntime_opens_a_file_only_if_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(InputError, match=r"onnxruntime 1\.23\.2 would read\. Install onnxruntime 1\.24\.1 or newer"):
        open_program(path)
    with pytest.raises(InputError, match="damaged"):
        open_program(path, trusted=True)


def test_weights_outside_the_folder_of_the_model_are_not_read(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret.bin")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "model" / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"no ONNX model for onnxruntime|Install onnxruntime 1\.24\.1 or newer"):
        open_program(tmp_path / "model" / "net.onnx")


@pytest.mark.parametrize(("error", "said"), [(MemoryError(), "more memory"), (RecursionError(), "nested too deeply")])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_programs_that_take_too_much_are_refused(
    suffix: str, error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.export, "load", load)
    monkeypatch.setattr(pytest.importorskip("onnxruntime"), "InferenceSession", load)
    (tmp_path / f"net{suffix}").write_bytes(b"")
    with pytest.raises(InputError, match=said):
        open_program(tmp_path / f"net{suffix}", trusted=True)


def test_a_program_refuses_another_number_of_tensors(tmp_path: Path) -> None:
    x = example(2, 3, 8, 10)
    done = export(trained(nn.Sequential(nn.Conv2d(3, 4, 3)), dtype=torch.float32), tmp_path / "net.onnx", x)
    program: Any = open_program(done.path, trusted=True)
    assert torch.equal(program(x), program(input=x))
    with pytest.raises(ValueError, match="it takes 1 tensors"):
        program(x, x)
