from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reparam.deploy.checkpoint import KEYS, fit, read_checkpoint
from reparam.errors import InputError


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def saved(tmp_path: Path, content: Any, name: str = "best.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


# --- where the weights are


@pytest.mark.parametrize(
    ("wrapped", "key"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, "state_dict"),
        (lambda s: {"model": {k: v + 1 for k, v in s.items()}, "model_ema": s}, "model_ema"),
        (lambda s: {"model": {"x": torch.ones(1)}, "ema": {"module": s, "updates": 4}}, "ema.module"),
        (lambda s: {"net": s, "acc": 0.9}, "net"),
        (lambda s: {"model": {"state_dict": s}}, "model.state_dict"),
        (lambda s: {**s, "version": 2}, ""),
    ],
)
def test_the_weights_are_found(tmp_path: Path, wrapped: Any, key: str) -> None:
    trained, fresh = net(), net()
    checkpoint = read_checkpoint(saved(tmp_path, wrapped(trained.state_dict())))
    assert checkpoint.key == key
    found = fit(checkpoint, fresh)
    assert same_weights(fresh, trained)
    assert not found.missing
    assert not found.unexpected


def test_other_entries_are_reported(tmp_path: Path) -> None:
    state = net().state_dict()
    path = saved(tmp_path, {"model": state, "ema": {k: v + 1 for k, v in state.items()}})
    assert str(read_checkpoint(path)).endswith("9 tensors under 'ema' (others under 'model')")
    chosen = read_checkpoint(path, "model")
    assert chosen.key == "model"
    assert torch.equal(chosen.state["0.bias"], state["0.bias"])
    with pytest.raises(InputError, match=r"no weights under 'swa': it is a dict of model, ema"):
        read_checkpoint(path, "swa")


def test_a_dotted_key_leads_inside(tmp_path: Path) -> None:
    path = saved(tmp_path, {"runs": {"1.5": net().state_dict()}})
    assert read_checkpoint(path, "runs.1.5").key == "runs.1.5"


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"epoch": 1}}, torch.ones(3)], ids=str)
def test_files_without_weights(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match="holds no weights"):
        read_checkpoint(saved(tmp_path, content))


def test_safetensors(tmp_path: Path) -> None:
    trained, fresh = net(), net()
    save_file(trained.state_dict(), tmp_path / "best.safetensors")
    fit(read_checkpoint(tmp_path / "best.safetensors"), fresh)
    assert same_weights(fresh, trained)


# --- names


@pytest.mark.parametrize(
    ("prefix", "stripped"),
    [
        ("module.", ("module.",)),
        ("_orig_mod.", ("_orig_mod.",)),
        ("module._orig_mod.", ("module.", "_orig_mod.")),
        ("_orig_mod.module.", ("_orig_mod.", "module.")),
        ("model.", ("model.",)),
        ("net.backbone.", ("net.backbone.",)),
        ("module.model.", ("module.", "model.")),
    ],
)
def test_prefixes_are_stripped(tmp_path: Path, prefix: str, stripped: tuple[str, ...]) -> None:
    trained, fresh = net(), net()
    found = fit(read_checkpoint(saved(tmp_path, prefixed(trained.state_dict(), prefix))), fresh)
    assert same_weights(fresh, trained)
    assert found.stripped == stripped


def test_a_part_that_was_compiled(tmp_path: Path) -> None:
    trained, fresh = nn.Sequential(net(), net()), nn.Sequential(net(), net())
    state = {name.replace("1.", "1._orig_mod.", 1) if name.startswith("1.") else name: tensor
             for name, tensor in trained.state_dict().items()}  # fmt: skip
    assert fit(read_checkpoint(saved(tmp_path, state)), fresh).stripped == ("_orig_mod.",)
    assert same_weights(fresh, trained)


def test_a_model_that_is_wrapped_itself_keeps_its_names(tmp_path: Path) -> None:
    trained, fresh = nn.DataParallel(net()), nn.DataParallel(net())
    assert fit(read_checkpoint(saved(tmp_path, trained.state_dict())), fresh).stripped == ()
    assert same_weights(fresh, trained)


def test_entries_outside_the_wrapped_part_are_counted(tmp_path: Path) -> None:
    trained, fresh = net(), net()
    state = {**prefixed(trained.state_dict(), "model."), "loss.weight": torch.ones(2)}
    found = fit(read_checkpoint(saved(tmp_path, state)), fresh)
    assert found.left_out == 1
    assert "1 tensors outside" in str(found)


def test_two_models_in_one_checkpoint(tmp_path: Path) -> None:
    student, teacher, fresh = net(), net(), net()
    state = {**prefixed(student.state_dict(), "student."), **prefixed(teacher.state_dict(), "teacher.")}
    checkpoint = read_checkpoint(saved(tmp_path, state))
    with pytest.raises(InputError, match=r"under 'student\.' and under 'teacher\.'"):
        fit(checkpoint, fresh)
    fit(checkpoint, fresh, prefix="teacher.")
    assert same_weights(fresh, teacher)


def test_missing_and_unexpected_tensors_stop_it(tmp_path: Path) -> None:
    state = net().state_dict()
    state["9.weight"] = state.pop("3.weight")
    checkpoint = read_checkpoint(saved(tmp_path, state))
    with pytest.raises(InputError, match=r"missing 3\.weight; unexpected 9\.weight"):
        fit(checkpoint, net())
    found = fit(checkpoint, net(), partial=True)
    assert (found.missing, found.unexpected) == (("3.weight",), ("9.weight",))


def test_old_checkpoints_do_not_count_batches(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in net().state_dict().items() if "num_batches" not in name}
    assert not fit(read_checkpoint(saved(tmp_path, state)), net()).missing


@pytest.mark.parametrize("partial", [False, True])
def test_other_shapes_are_never_loaded(tmp_path: Path, partial: bool) -> None:
    state = net().state_dict() | {"3.weight": torch.ones(7, 4, 1, 1)}
    with pytest.raises(
        InputError, match=r"3\.weight has shape \(7, 4, 1, 1\) in the file and \(2, 4, 1, 1\) in the model"
    ):
        fit(read_checkpoint(saved(tmp_path, state)), net(), partial=partial)


# --- files that are no checkpoints, or worse


class Hostile:
    """A pickle that runs code where it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was-run",)


@pytest.mark.parametrize("protocol", ["torch", "pickle", "zip with state"])
def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if protocol == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    else:
        torch.save(Hostile() if protocol == "torch" else {"state_dict": net().state_dict(), "args": Hostile()}, path)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert not (tmp_path / "was-run").exists()
    assert "posix.system" in str(error.value) or "damaged" in str(error.value)
    assert "\n" not in str(error.value)
    if protocol != "pickle":
        assert "torch.save(model.state_dict(), 'weights.pt')" in str(error.value)


def test_a_pickled_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"asks for the code of torch\.nn\.modules\.container\.Sequential"):
        read_checkpoint(saved(tmp_path, net()))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"best{suffix}"
    state = net().state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="damaged") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert share or "it is empty" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"hello", "damaged"),
        (bytes(range(256)), "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    path = tmp_path / f"best{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_checkpoint(path)
    assert "weights_only" not in str(error.value)


def test_a_torchscript_program(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), tmp_path / "net.pt")
    with pytest.raises(InputError, match="TorchScript"):
        read_checkpoint(tmp_path / "net.pt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")


# --- tensors that are no plain ones


UNUSUAL: dict[str, Callable[[], Tensor]] = {
    "sparse_coo": lambda: torch.eye(3).to_sparse(),
    "sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "sparse_csc": lambda: torch.eye(3).to_sparse_csc(),
    "sparse_bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "mkldnn": lambda: torch.eye(3).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.eye(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore")  # torch warns that some of these kinds are new or on their way out
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_that_are_not_dense_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {**net().state_dict(), "0.weight": UNUSUAL[kind]()}
    path = tmp_path / "best.pth"
    if kind == "mkldnn":  # torch.save does not write them in this way
        path.write_bytes(b"")
        monkeypatch.setattr(torch, "load", lambda *_, **__: {"model": state})
    else:
        torch.save({"model": state}, path)
    with pytest.raises(InputError, match=rf"best\.pth holds a {kind} tensor, 0\.weight, .*to_dense"):
        read_checkpoint(path, "model")


# --- nested files, and files that are too large


def nested(depth: int, key: str = "model") -> dict[str, Any]:
    """The weights under that many keys."""
    content: dict[str, Any] = net().state_dict()
    for _ in range(depth):
        content = {key: content}
    return content


def test_weights_are_found_some_levels_deep(tmp_path: Path) -> None:
    assert read_checkpoint(saved(tmp_path, nested(3))).key == "model.model.model"


@pytest.mark.parametrize("depth", [12, 400])
def test_a_deeply_nested_file_is_refused(tmp_path: Path, depth: int) -> None:
    path = saved(tmp_path, nested(depth))
    with pytest.raises(InputError, match=r"nests dicts more than 8 deep, under 'model\.model.*--checkpoint-key"):
        read_checkpoint(path)


def test_the_place_of_deeply_nested_weights_can_be_named(tmp_path: Path) -> None:
    path = saved(tmp_path, nested(12))
    assert read_checkpoint(path, ".".join(["model"] * 12)).state.keys() == net().state_dict().keys()


def test_a_file_that_contains_itself_is_searched_once(tmp_path: Path) -> None:
    """Each of its keys leads back to it: without a memory the search has eleven ways to go on, at every step."""
    content: dict[str, Any] = {"epoch": 3}
    content.update(dict.fromkeys(KEYS, content))
    with pytest.raises(InputError, match="holds no weights"):
        read_checkpoint(saved(tmp_path, content))
    content["net"] = net().state_dict()
    assert read_checkpoint(saved(tmp_path, content)).key == "net"


def test_a_dict_that_is_shared_is_searched_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    for _ in range(7):
        content = dict.fromkeys(KEYS, content)  # 11 ** 7 places hold it
    with pytest.raises(InputError, match="holds no weights"):
        read_checkpoint(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "needs more memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "needs more memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_takes_too_much_is_refused(
    tmp_path: Path, suffix: str, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr("reparam.deploy.checkpoint.load_file", load)
    (tmp_path / f"best{suffix}").write_bytes(b"")
    with pytest.raises(InputError, match=said):
        read_checkpoint(tmp_path / f"best{suffix}")


def test_the_text_of_an_error_holds_no_invisible_character(tmp_path: Path) -> None:
    path = saved(tmp_path, net().state_dict() | {"a\x1b[31m\u202e\nb": torch.ones(1)})
    with pytest.raises(InputError) as error:
        fit(read_checkpoint(path), net())
    assert r"unexpected a\x1b[31m\u202e\nb;" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("change", "fault"), [("more", r"unexpected 9\.weight"), ("fewer", r"missing 3\.weight")])
def test_one_tensor_too_many_or_too_few_stops_it(tmp_path: Path, change: str, fault: str) -> None:
    state = net().state_dict()
    if change == "more":
        state["9.weight"] = torch.ones(2)
    else:
        del state["3.weight"]
    checkpoint = read_checkpoint(saved(tmp_path, state))
    with pytest.raises(InputError, match=fault):
        fit(checkpoint, net())
    fit(checkpoint, net(), partial=True)
