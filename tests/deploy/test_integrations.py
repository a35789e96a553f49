from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from benchmarks.zoo.models import build, declare_torchvision_operators, example_input
from reparam.errors import InputError, TrainModeError
from reparam.nn import RepVGGBlock
from reparam.timm import reparameterize_model
from tests.deploy.old_format import make_format_1
from tests.helpers import ScaledBranches, convs_ran, distance, image, trained

declare_torchvision_operators()


# --- timm


@pytest.mark.zoo
def test_timm_models_fold_without_inputs() -> None:
    from timm.utils.model import reparameterize_model as of_timm

    model = build("repvgg_a0")
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
    x = example_input(model, size=64)
    theirs, ours = of_timm(model), reparameterize_model(model)
    assert distance(theirs, ours, x) < 1e-4
    assert distance(model, ours, x) < 1e-4
    assert convs_ran(ours, x) <= convs_ran(theirs, x)
    assert ours is not model
    assert reparameterize_model(model, True, example_inputs=x) is model
    assert model.reparam_report.folds


@pytest.mark.zoo
def test_timm_models_in_train_mode_are_refused() -> None:
    with pytest.raises(TrainModeError):
        reparameterize_model(build("mobilenetv3_small_050").train())


def test_a_model_that_names_no_size() -> None:
    model = trained(nn.Sequential(RepVGGBlock(3, 4), RepVGGBlock(4, 4)))
    assert len(reparameterize_model(model).reparam_report.folds) == 2
    assert reparameterize_model(model, verify="folds").reparam_report.checked == "folds"


# --- the hub


def network_class() -> Any:
    from reparam.hub import FoldedHubMixin

    class Net(nn.Module, FoldedHubMixin):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.body, self.head = RepVGGBlock(3, width), nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).mean((2, 3)))

    return Net


def test_a_folded_model_is_loaded_folded(tmp_path: Path) -> None:
    net, x = network_class(), image(2, 3, 7, 9, dtype=torch.float32)
    model = trained(net(width=6), x, dtype=torch.float32)
    deployed = reparam.reparameterize(model, x)
    deployed.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.json", "model.safetensors"}
    loaded = net.from_pretrained(tmp_path)
    assert isinstance(loaded, net)
    assert repr(loaded) == repr(deployed)
    assert torch.equal(loaded(x), deployed(x))
    assert distance(model, reparam.undo(loaded, model.state_dict()), x) == 0
    with pytest.raises(InputError, match="does not match the original of the artefact"):
        net.from_pretrained(tmp_path, width=5)


def test_a_folded_model_of_format_1_is_loaded_only_if_it_is_trusted(tmp_path: Path) -> None:
    from reparam.hub import FoldedHubMixin

    class Net(ScaledBranches, FoldedHubMixin):
        pass

    x = image(2, 4, 7, 9, dtype=torch.float32)
    deployed: Any = reparam.reparameterize(trained(Net(4), x, dtype=torch.float32), x)
    deployed.save_pretrained(tmp_path)
    make_format_1(tmp_path / "model.json", deployed)
    with pytest.raises(InputError, match=r"holds Python code that loading executes.*trusted=True"):
        Net.from_pretrained(tmp_path, channels=4)
    assert torch.equal(Net.from_pretrained(tmp_path, channels=4, trusted=True)(x), deployed(x))


def test_a_trained_model_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    net, x = network_class(), image(2, 3, 7, 9, dtype=torch.float32)
    model = trained(net(width=6), x, dtype=torch.float32)
    reparam.reparameterize(model, x).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.json").exists()
    assert torch.equal(net.from_pretrained(tmp_path).eval()(x), model(x))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "reparam.hub", raising=False)
    with pytest.raises(InputError, match=r"reparam\[hub\]"):
        import reparam.hub  # noqa: F401


# --- Lightning


def lightning() -> Any:
    return pytest.importorskip("pytorch_lightning")


def task(width: int = 4) -> Any:
    """A LightningModule around a network, and its data: two batches of noise."""

    class Task(lightning().LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(RepVGGBlock(3, width), RepVGGBlock(width, width))

        def training_step(self, batch: Tensor) -> Tensor:
            return self.model(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(image(8, 3, 7, 9, dtype=torch.float32), batch_size=4)

    return Task()


def fitted(module: Any, callback: Any, folder: Path) -> Any:
    trainer = lightning().Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module)
    return module


@pytest.mark.slow
def test_a_callback_folds_what_was_trained(tmp_path: Path) -> None:
    lightning()
    from reparam.lightning import FoldCallback

    module, x = task(), image(2, 3, 7, 9, dtype=torch.float32)
    callback = FoldCallback(tmp_path / "net.safetensors", example_inputs=x, verify="folds")
    fitted(module, callback, tmp_path)
    assert callback.deployed is not None
    assert callback.deployed.reparam_report.checked == "folds"
    loaded = reparam.load(tmp_path / "net.safetensors", task().model)
    assert torch.equal(loaded(x), callback.deployed(x))
    assert distance(module.model.eval(), loaded, x) < 1e-5
    assert convs_ran(module.model, x) == 4
    assert convs_ran(loaded, x) == 2


def test_mistakes_are_found_before_training(tmp_path: Path) -> None:
    lightning()
    from reparam.lightning import FoldCallback

    x = image(2, 3, 7, 9, dtype=torch.float32)
    with pytest.raises(InputError, match="has no such part; name one of model"):
        fitted(task(), FoldCallback(tmp_path / "net.safetensors", "net", x), tmp_path)
    with pytest.raises(InputError, match="set example_input_array on Task"):
        fitted(task(), FoldCallback(tmp_path / "net.safetensors"), tmp_path)
    with pytest.raises(InputError, match="verify='most'"):
        fitted(task(), FoldCallback(tmp_path / "net.safetensors", "model", x, verify="most"), tmp_path)  # type: ignore[arg-type]
    (tmp_path / "net.json").write_text("old")
    with pytest.raises(InputError, match="exists"):
        fitted(task(), FoldCallback(tmp_path / "net.safetensors", "model", x), tmp_path)


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "reparam.lightning", raising=False)
    with pytest.raises(InputError, match=r"reparam\[lightning\]"):
        import reparam.lightning  # noqa: F401
