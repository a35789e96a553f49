"""For users of the Hugging Face hub: a mixin whose `save_pretrained` and `from_pretrained` support folded models.

    class Net(nn.Module, reparam.hub.FoldedHubMixin): ...

    reparam.reparameterize(net, images).save_pretrained("folder")  # or push_to_hub("user/net")
    deployed = Net.from_pretrained("folder")

For a folded model, the folder also holds `model.json`, the provenance of the artefact. A folder without it holds the
training form. Folded models of format 1 need `from_pretrained(..., trusted=True)`: they hold code, which is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from reparam.deploy.artefact import load, save
from reparam.errors import InputError
from reparam.rewrite.origin import Origin

try:
    from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
except ImportError as error:
    raise InputError("huggingface_hub is not installed; install it with: pip install 'reparam[hub]'") from error

WEIGHTS, PROVENANCE = "model.safetensors", "model.json"


class FoldedHubMixin(PyTorchModelHubMixin):
    """`PyTorchModelHubMixin` for models that are saved, and loaded again, in their training form or folded."""

    def _save_pretrained(self, save_directory: Path) -> None:
        if isinstance(self, nn.Module) and isinstance(vars(self).get("reparam_origin"), Origin):
            save(self, Path(save_directory) / WEIGHTS, force=True)
            return
        (Path(save_directory) / PROVENANCE).unlink(missing_ok=True)  # of a folded model that was saved there before
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
        location = {name: options[name] for name in _LOCATION_OPTIONS if name in options}
        try:
            provenance = _file(model_id, PROVENANCE, location)
        except EntryNotFoundError:
            options.pop("trusted", None)
            return super()._from_pretrained(model_id=model_id, **options)
        weights = _file(model_id, WEIGHTS, location)
        if weights.parent != provenance.parent:
            raise InputError(f"{model_id}: {WEIGHTS} and {PROVENANCE} are of two revisions; choose one with revision=")
        reserved = (*_LOCATION_OPTIONS, "map_location", "strict", "trusted")
        arguments = {name: value for name, value in options.items() if name not in reserved}
        fresh: Any = cls(**arguments)
        return load(weights, fresh, trusted=bool(options.get("trusted", False))).to(options.get("map_location", "cpu"))


_LOCATION_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def _file(model_id: str, name: str, location: dict[str, Any]) -> Path:
    """A file of a folder, or of a repository on the hub."""
    folder = Path(model_id)
    if not folder.is_dir():
        return Path(hf_hub_download(model_id, name, **location))
    if not (folder / name).is_file():
        raise EntryNotFoundError(f"{folder} has no {name}")
    return folder / name
