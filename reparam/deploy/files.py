"""Files, written whole or not at all: what stands under a name is the old file or the new one, never half of one.

A file is written under its own name into a hidden folder beside its target, so that a runtime may load and judge it
there, and is moved into place last. Whatever ends the work before (an error, Ctrl-C, a full disk), the folder goes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reparam.errors import InputError

_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the disk is read-only",
    errno.ENOENT: "there is no such folder",
    errno.ENOTDIR: "a part of its path is a file and no folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}
_CHUNK = 1 << 20


def require_writable(path: Path, force: bool = False) -> None:
    """Raises InputError, before any work is done, where `path` could not be written: its folder must exist.

    A file that stands there is overwritten with `force` alone.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: there is no folder {folder}; make it, or choose another place")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it, such as {path / 'model.safetensors'}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device or a pipe; name a file, which is written beside it and moved into place")
    if path.exists() and not force:
        raise InputError(f"{path} exists and is not overwritten; choose another name, or use --force (force=True)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: permission is denied in {folder}; choose another place")


@contextmanager
def written(paths: Sequence[Path], force: bool = False) -> Iterator[list[Path]]:
    """Where to write the files of `paths`, which share a folder; on leaving all of them are moved into place, in order.

    Nothing is moved where the block raises. Raises InputError as `require_writable` does, also where a file has
    appeared in the meantime, and for what the system reports on writing: a full disk, a missing permission.
    """
    for path in paths:
        require_writable(path, force)
    first = paths[0]
    with _explained(first):
        folder = Path(tempfile.mkdtemp(prefix=f".{first.name}.", dir=first.parent))
    try:
        with _explained(first):
            drafts = [folder / path.name for path in paths]
            yield drafts
            for draft in drafts:
                _settle(draft)
            for path, draft in zip(paths, drafts, strict=True):
                require_writable(path, force)
                draft.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_file(path: Path) -> Path:
    """The path; raises InputError where it names no file that can be read."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file{_like(path)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file in it")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission is denied")
    return path


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the system says about writing `path`, in words."""
    try:
        yield
    except Exception as error:
        number = _reported(error)
        if number is None:
            raise
        why = _WORDS.get(number, os.strerror(number))
        raise InputError(f"{path} cannot be written: {why}; nothing was written") from error


def _reported(error: Exception) -> int | None:
    """The number of the system's error; libraries that write by other means than Python's tell it in their text."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    if told:
        return int(told[1])
    return next((number for number in _WORDS if os.strerror(number) in str(error)), None)


def _settle(draft: Path) -> None:
    """On the disk before it gets its name, with the permissions that a new file has here."""
    mask = os.umask(0)
    os.umask(mask)
    draft.chmod(0o666 & ~mask)
    with draft.open("rb") as file:
        os.fsync(file.fileno())


def _like(path: Path) -> str:
    """Files of the same kind that do stand there, for whoever has mistyped a name."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {folder}"
    found = sorted(each.name for each in folder.glob(f"*{path.suffix}") if path.suffix and each.is_file())
    return f"; there is {', '.join(found[:3])}" if found else ""
