"""The two files of an artefact, replaced and read together.

A lock on their folder keeps readers away while both are moved into place; no lock file is left behind. A copy of the
new .json is put beside them before the weights are replaced, and removed last: if the process dies between the two
moves, a reader finds it there, and the files are whole. The .json names the sha256 of its weights.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from reparam.deploy.files import require_file, written
from reparam.errors import InputError

fcntl: Any
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

MAX_JSON = 32 << 20  # bytes
_MAX_NESTING = 1000  # levels of lists and dicts
_RETRIES = (0.05, 0.2, 0.8)  # seconds; for file systems without locks


@dataclass(frozen=True)
class Saved:
    """The two files of an artefact."""

    weights: Path
    provenance: Path

    @classmethod
    def at(cls, path: Path | str) -> Saved:
        """Both, from the path of either. Raises InputError for another suffix."""
        path = Path(path)
        if path.suffix not in (".safetensors", ".json"):
            raise InputError(f"{path}: an artefact is a .safetensors file with a .json beside it; name one of them")
        return cls(path.with_suffix(".safetensors"), path.with_suffix(".json"))

    @property
    def pending(self) -> Path:
        """The .json of a save that has not ended; it stays where the process has died."""
        return self.provenance.with_name(f".{self.provenance.name}.next")


@contextmanager
def replaced(saved: Saved, force: bool) -> Iterator[tuple[Path, Path]]:
    """Yields where to write the weights and the .json, and puts both in place at the end, or neither."""
    draft = 0
    with ExitStack() as until_moved:
        try:
            with written([saved.weights, saved.provenance], force) as (weights, provenance):
                yield weights, provenance
                until_moved.enter_context(_locked(saved.weights.parent, exclusive=True))
                draft = weights.stat().st_ino
                shutil.copyfile(provenance, saved.pending)
                _sync(saved.pending)
                _sync(saved.pending.parent)
        except BaseException:
            if draft and not (saved.weights.exists() and saved.weights.stat().st_ino == draft):
                saved.pending.unlink(missing_ok=True)  # the weights are still the old ones
            raise
        saved.pending.unlink()


@contextmanager
def opened(saved: Saved) -> Iterator[tuple[list[bytes], RawIOBase]]:
    """The content of the .json, that of an unfinished save after it if there is one, and the open weights.

    Both are of one moment. Raises InputError where one is missing.
    """
    with ExitStack() as stack:
        with _locked(saved.weights.parent, exclusive=False):
            contents = [read_json_bytes(saved.pending)] if saved.pending.is_file() else []
            if not contents or saved.provenance.exists():
                contents.insert(0, read_json_bytes(saved.provenance))
            weights = stack.enter_context(require_file(saved.weights).open("rb", buffering=0))
        yield contents, weights


def retries() -> Iterator[bool]:
    """Whether to try again, once for each try; waits in between."""
    for wait in _RETRIES:
        yield True
        time.sleep(wait)
    yield False


def read_json_bytes(path: Path) -> bytes:
    """The content of a .json, read once. Raises InputError where it is missing or larger than it may be."""
    with require_file(path).open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise InputError(f"{path} is larger than {MAX_JSON >> 20} MiB, which no artefact is; it is not read")
    return content


def parsed(content: bytes) -> Any:
    """JSON without duplicate keys, NaN, infinities and deep nesting. Raises ValueError or RecursionError."""
    found = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refused_number)
    level = [found]
    for _ in range(_MAX_NESTING):  # how deep the parser itself goes depends on the version of Python
        level = [item for each in level for item in _inside(each)]
    if level:
        raise ValueError(f"it is nested deeper than {_MAX_NESTING} levels")
    return found


def _inside(item: Any) -> Iterable[Any]:
    """What a list or dict of JSON holds; nothing in anything else."""
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key that occurs twice")
    return content


def _refused_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


@contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Holds a lock on the folder, where the file system has locks."""
    if fcntl is None:
        yield
        return
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(number)


def _sync(path: Path) -> None:
    with suppress(OSError):  # folders cannot be synced everywhere
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
